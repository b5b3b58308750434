"""Local and reference over the same catalogue entry: both layouts, the same answers, refusals in a sentence."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.common import catalogue
from pipelines.common.device import Device
from pipelines.common.errors import UserError
from pipelines.diffusion import forms, local, reference, tokenizer
from pipelines.diffusion.config import PRESETS, TINY
from pipelines.diffusion.contract import PromptTokens
from pipelines.diffusion.unet import Record, UNet
from tests.diffusion.original import whole_file
from tests.diffusion.tiny import CAPTIONS, FAMILIES, entry_of, write_folder

BOTH = pytest.mark.parametrize("module", [local, reference], ids=["local", "reference"])


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def difference(a, b):
    assert a.shape == b.shape and b.std() > 1e-2 and a.dtype == torch.float32 and a.device.type == "cpu"
    return float((a - b).abs().max())


def agree(ours, theirs):
    """Every method of the two, over the same input."""
    cfg = ours.config
    assert theirs.config == cfg
    text = theirs.encode_text(["a red apple", ""])
    assert text.shape == (2, cfg.text.max_position_embeddings, cfg.text.hidden_size)
    assert difference(ours.encode_text(["a red apple", ""]), text) < 1e-4
    latents = noise(2, 4, 8, 8)
    said = theirs.denoise(latents, 300.5, text, guidance=7.5)
    assert said.shape == latents.shape and difference(ours.denoise(latents, 300.5, text, guidance=7.5), said) < 1e-4
    assert difference(said, theirs.denoise(latents, 301.5, text, guidance=7.5)) > 1e-4
    follows = cfg.unet.time_cond_proj_dim is not None
    assert (difference(said, theirs.denoise(latents, 300.5, text, guidance=1.5)) > 1e-3) == follows
    assert difference(ours.denoise(latents, 300.5, text), theirs.denoise(latents, 300.5, text)) < 1e-4
    side = 4 * cfg.vae.factor
    image = np.random.default_rng(0).integers(0, 256, (side, 2 * side, 3), dtype=np.uint8)
    encoded = theirs.encode(image)
    assert encoded.shape == (1, 4, 4, 8) and difference(ours.encode(image), encoded) < 1e-4
    picture = theirs.decode(latents[:1])
    assert picture.shape == (8 * cfg.vae.factor, 8 * cfg.vae.factor, 3) and picture.dtype == np.uint8
    assert picture.std() > 1 and np.abs(picture.astype(int) - ours.decode(latents[:1])).max() <= 1
    assert np.array_equal(ours.preview(latents[:1]), ours.decode(latents[:1]))


@pytest.mark.parametrize("family", ["sd1", "lcm", "bk-sdm-tiny"])
def test_a_folder_answers_the_same_in_both(family, tmp_path):
    dtype = torch.float16 if family == "bk-sdm-tiny" else torch.float32
    write_folder(tmp_path, FAMILIES[family], dtype)
    agree(local.load(entry_of(tmp_path)), reference.load(entry_of(tmp_path)))


def test_a_float16_variant_answers_the_same_in_both(tmp_path):
    write_folder(tmp_path, FAMILIES["emoji"])
    changes = {}
    for part in ("text_encoder", "unet", "vae"):
        path = next((tmp_path / part).glob("*.safetensors"))
        changes[part] = path.with_suffix(".fp16.safetensors")
        save_file({k: v.half() for k, v in load_file(path).items()}, changes[part], metadata={"format": "pt"})
        path.unlink()
    entry = entry_of(tmp_path, **changes)
    agree(local.load(entry), reference.load(entry))


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_one_file_answers_the_same_in_both(family, tmp_path, monkeypatch):
    """The reference by diffusers' conversion, ours by ours."""
    cfg = FAMILIES[family]
    monkeypatch.setitem(PRESETS, "test", cfg)
    made = write_folder(tmp_path / "model", cfg)
    state = whole_file({part: module.state_dict() for part, module in made.items()}, cfg, family == "sd2")
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "one.safetensors")
    entry = entry_of(tmp_path / "model", preset="test", layout="original", model=tmp_path / "one.safetensors")
    agree(local.load(entry), reference.load(entry))


def test_the_bundled_model_answers_the_same_in_both():
    entry = catalogue.manifest()["emoji"]
    ours, theirs = local.load(entry), reference.load(entry)
    assert ours.config == PRESETS["emoji"]
    text, latents = theirs.encode_text(["a red apple, twemoji style"]), noise(1, 4, 16, 16)
    assert difference(ours.encode_text(["a red apple, twemoji style"]), text) < 1e-4
    assert difference(ours.denoise(latents, 700.0, text), theirs.denoise(latents, 700.0, text)) < 1e-4
    assert np.abs(ours.decode(latents).astype(int) - theirs.decode(latents)).max() <= 1


# --- tokens ----------------------------------------------------------------------------------------------------------


@BOTH
def test_tokens_past_the_limit_are_shown_and_not_read(module, tiny_entry):
    backend = module.load(tiny_entry)
    seen, ids = backend.tokens("a red apple")
    assert seen == PromptTokens(("a", "red", "apple"), 3) and len(ids) == 16
    vocab = backend.tokenizer.vocab
    assert ids[0] == vocab[tokenizer.START] and ids[4:] == (vocab[tokenizer.END],) * 12
    assert backend.tokens("") == (PromptTokens((), 0), (ids[0], *[ids[4]] * 15))
    long, short = "a red apple " * 2000, "a red apple " * 4 + "a red"
    seen, ids = backend.tokens(long)
    assert len(seen.pieces) == 6000 and seen.used == 14 and ids == tuple(backend.tokenizer.encode(long))
    assert ids == backend.tokens(short)[1]


def test_the_padding_of_stable_diffusion_2_is_read_as_transformers_reads_it(tmp_path):
    """Its two files of settings disagree."""
    import transformers

    vocab, merges = tokenizer.train(CAPTIONS, 600)
    tokenizer.write(tmp_path, vocab, merges, 16)
    path = tmp_path / "special_tokens_map.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "!"}))
    ours = tokenizer.CLIPTokenizer.read(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    expected = theirs("a red apple", padding="max_length", max_length=16).input_ids
    assert ours.pad_id == vocab["!"] == expected[-1] and ours.encode("a red apple") == expected


# --- inside, and in smaller numbers ----------------------------------------------------------------------------------


def test_a_record_comes_from_our_own_network_only(tiny_entry):
    ours, theirs = local.load(tiny_entry), reference.load(tiny_entry)
    latents, text, record = noise(2, 4, 8, 8), ours.encode_text(["a red apple", ""]), Record()
    assert torch.equal(ours.denoise(latents, 5.0, text, record=record), ours.denoise(latents, 5.0, text))
    assert [tuple(each.shape) for each in record.cross_attention] == [
        (2, 8, 8, 16), (2, 4, 4, 16), (2, 8, 8, 16), (2, 8, 8, 16)
    ]  # fmt: skip
    with pytest.raises(UserError, match="Only our own networks can be looked into; choose local"):
        theirs.denoise(latents, 5.0, text, record=Record())
    with pytest.raises(UserError, match="The reference runs in float32; choose local"):
        theirs.denoise(latents, 5.0, text, precision="reduced")


def test_the_denoiser_runs_in_smaller_numbers_when_asked(tiny_entry, monkeypatch):
    ours = local.load(tiny_entry)
    latents, text = noise(1, 4, 8, 8), ours.encode_text(["a red apple"])
    full = ours.denoise(latents, 5.0, text)
    monkeypatch.setattr(forms, "pick", lambda reduced: Device("cpu", "bfloat16" if reduced else "float32", ""))
    small = ours.denoise(latents, 5.0, text, precision="reduced")
    assert small.dtype == torch.float32 and 1e-4 < difference(small, full) < 0.1 * full.abs().max()
    network = ours.unet("reduced")
    assert isinstance(network, UNet) and network is ours.unet("reduced")
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in ours.unet().parameters()} == {torch.float32}
    assert torch.equal(ours.denoise(latents, 5.0, text), full)


# --- what does not fit -----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "unet/config.json").write_text("{"), r"unet/config\.json of the model folder is damaged"),
        (
            lambda f: (f / "tokenizer/merges.txt").write_text("one two three"),
            "tokenizer of the model folder is damaged",
        ),
        (lambda f: (f / "tokenizer/vocab.json").write_text("{}"), "tokenizer of the model folder is damaged"),
        (lambda f: write_folder(f, replace(TINY, text=replace(TINY.text, vocab_size=550))), None),
        (lambda f: tokenizer.write(f / "tokenizer", *tokenizer.train(CAPTIONS, 600), 77), "are of different models"),
        (lambda f: _change(f / "unet/config.json", block_out_channels=[32, 48]), "choose local|keys do not fit"),
        (lambda f: _change(f / "text_encoder/config.json", num_hidden_layers=3), "choose local|keys do not fit"),
        (lambda f: _shorter(f / "vae/diffusion_pytorch_model.safetensors"), "choose local|is damaged"),
    ],
)
def test_a_spoilt_folder_is_one_sentence(module, spoil, words, tmp_path):
    write_folder(tmp_path)
    entry = entry_of(tmp_path)
    spoil(tmp_path)
    if words is None:  # a whole other model: as good as the first
        assert module.load(entry).config.text.vocab_size == 550
        return
    with pytest.raises(UserError, match=words) as caught:
        module.load(entry)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def _change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _shorter(path):
    path.write_bytes(path.read_bytes()[:500])


@BOTH
@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json", "vae/config.json"]
)
def test_a_folder_without_a_part_is_not_here(module, name, tmp_path):
    write_folder(tmp_path)
    entry = entry_of(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="The weights “tiny” are not on this machine"):
        module.load(entry)


def test_a_missing_library_is_one_sentence(tiny_entry, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(UserError, match="not installed here; choose local"):
        reference.load(tiny_entry)


def test_a_picture_of_another_size_is_refused(tiny_entry):
    with pytest.raises(ValueError, match="no multiples of 2"):
        local.load(tiny_entry).encode(np.zeros((15, 16, 3), np.uint8))
