"""Published layouts load strictly at real size, on meta; folders and single files; what does not fit is refused in a
sentence."""

import argparse
import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.common import catalogue, checkpoint
from pipelines.common.convert import ConversionError
from pipelines.common.errors import UserError
from pipelines.diffusion import single_file, weights
from pipelines.diffusion.config import PRESETS, TINY, TAESDConfig
from pipelines.diffusion.vae import AutoencoderKL
from tests.diffusion import published
from tests.diffusion.original import whole_file
from tests.diffusion.tiny import FAMILIES, networks, write_folder

KEYS = catalogue.WEIGHTS / "keys"
COUNTS = {  # tensors of text encoder, U-Net and autoencoder in the published files, and parameters of ours
    "stable-diffusion-v1-5": ("sd1", (197, 686, 248), (123_060_480, 859_520_964, 83_653_863)),
    "stable-diffusion-2-1-base": ("sd2-base", (373, 686, 248), (340_387_840, 865_910_724, 83_653_863)),
    "bk-sdm-tiny": ("bk-sdm-tiny", (197, 358, 248), (123_060_480, 323_384_964, 83_653_863)),
    "lcm-dreamshaper-v7": ("lcm", (197, 687, 248), (123_060_480, 859_602_884, 83_653_863)),
}
PUBLISHED = [entry.id for entry in catalogue.entries("diffusion", "model") if entry.source == "hub"]


def listed(name):
    return json.loads((KEYS / f"{name}.json").read_text(encoding="utf-8"))


def on_meta(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def sizes(cfg):
    return dict(zip(weights.PARTS, (cfg.text, cfg.unet, cfg.vae), strict=True))


def equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


# --- the diffusers layout at real size -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COUNTS)
def test_published_keys_load_at_real_size(name):
    preset, tensors, parameters = COUNTS[name]
    for (part, size), count, total in zip(sizes(PRESETS[preset]).items(), tensors, parameters, strict=True):
        state, module = on_meta(listed(name)[part]), weights.build(part, size)
        assert len(state) == count
        found = weights.convert(part, state, module.state_dict())
        assert sum(value.numel() for value in found.values()) == total


def test_the_tiny_autoencoders_keys_load_at_real_size():
    state, module = on_meta(listed("taesd")), weights.build("taesd", TAESDConfig())
    found = weights.convert("taesd", state, module.state_dict())
    assert len(state) == 134 and sum(value.numel() for value in found.values()) == 2_445_063


@pytest.mark.parametrize("name", COUNTS)
def test_the_key_lists_are_those_of_the_libraries_own_classes(name):
    assert listed(name) == published.library_keys(name)


def test_the_tiny_autoencoders_key_list_is_that_of_the_librarys_class():
    assert listed("taesd") == published.library_taesd_keys()


@pytest.mark.parametrize("name", COUNTS)
def test_published_configurations_are_the_presets(name, tmp_path):
    for part, config in published.MODELS[name].items():
        (tmp_path / part).mkdir()
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        (tmp_path / part / file).write_text(json.dumps(config))
    found, preset = weights.read_config(tmp_path), PRESETS[COUNTS[name][0]]
    assert (found.text, found.unet) == (preset.text, preset.unet)
    assert replace(found.vae, sample_size=512) == replace(preset.vae, sample_size=512)
    assert found.schedule.prediction_type == preset.schedule.prediction_type == "epsilon"


def test_the_small_variants_have_the_papers_sizes():
    """Kim et al. 2023, table 1: 482 and 323 million parameters."""
    counts = [
        sum(p.numel() for p in weights.build("unet", PRESETS[f"bk-sdm-{k}"].unet).parameters())
        for k in ("small", "tiny")
    ]
    assert [round(count / 1e6) for count in counts] == [482, 323]


def test_loading_reports_every_key():
    expected = AutoencoderKL(TINY.vae).state_dict()
    state = dict(expected)
    del state["quant_conv.bias"]
    state["stray"] = torch.zeros(1)
    state["post_quant_conv.bias"] = torch.zeros(5)
    with pytest.raises(ConversionError) as caught:
        weights.convert("vae", state, expected)
    for words in ("missing: quant_conv.bias", "not used: stray", "post_quant_conv.bias is (5,), expected (4,)"):
        assert words in str(caught.value)


def test_old_attention_names_are_read():
    """Autoencoder files from before the library renamed its attention, with 1x1 convolutions for linear maps."""
    expected = networks(TINY)["vae"].state_dict()
    state = {}
    for key, value in expected.items():
        for new, name in published.OLD_VAE.items():
            if f".{new}." in key:
                key, value = key.replace(f".{new}.", f".{name}."), value[..., None, None] if value.ndim == 2 else value
        state[key] = value
    assert state.keys() != expected.keys() and equal(weights.convert("vae", state, expected), expected)


# --- a folder's files ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "model")
    return tmp_path / "model"


def loaded(folder):
    cfg = weights.read_config(folder)
    return (
        weights.load_text_encoder(folder, cfg.text),
        weights.load_unet(folder, cfg.unet),
        weights.load_vae(folder, cfg.vae),
    )


@pytest.mark.parametrize("part", weights.PARTS)
def test_float32_is_read_before_float16_and_both_are_computed_in_float32(part, folder):
    full = folder / part / weights.FILES[part][0]
    half, state = folder / part / weights.FILES[part][1], load_file(full)
    save_file({key: value.half() for key, value in state.items()}, half)
    at = weights.PARTS.index(part)
    assert weights.part_file(folder, part) == full
    both = loaded(folder)[at].state_dict()
    full.unlink()
    assert weights.part_file(folder, part) == half
    alone = loaded(folder)[at].state_dict()
    for key, value in alone.items():
        assert value.dtype == torch.float32 and torch.equal(value, both[key].half().float()), key
    assert any(not torch.equal(alone[key], both[key]) for key in alone)
    half.unlink()
    with pytest.raises(UserError, match=rf"The model folder has no {part}/{full.name}: fetch"):
        loaded(folder)


def test_a_network_outlives_its_file(folder):
    """Training writes the file anew while the network that came from it is in use."""
    unet = weights.load_unet(folder, TINY.unet)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    path = folder / "unet" / weights.FILES["unet"][0]
    path.write_bytes(bytes(path.stat().st_size))
    assert equal(unet.state_dict(), before)
    with pytest.raises(UserError, match="is damaged"):
        weights.load_unet(folder, TINY.unet)


@pytest.mark.parametrize("part", [*weights.PARTS, "scheduler"])
@pytest.mark.parametrize("content", [None, "{", "[1]", "\x00"])
def test_a_missing_or_damaged_configuration_is_one_sentence(part, content, folder):
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    if content is None:
        path.unlink()
        if part == "scheduler":  # then it is the usual schedule
            assert weights.read_config(folder).schedule == PRESETS["sd1"].schedule
            return
        words = rf"The model folder has no {part}/config\.json: fetch these weights again\.$"
    else:
        path.write_text(content)
        words = rf"^{part}/{path.name} of the model folder is damaged"
    with pytest.raises(UserError, match=words):
        weights.read_config(folder)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("unet", {"addition_embed_type": "text_time"}, "unet asks for addition_embed_type = 'text_time', only None"),
        ("unet", {"_class_name": "SD3Transformer2DModel"}, "only 'UNet2DConditionModel' is built"),
        ("unet", {"in_channels": 9}, "unet takes 9 channels to 4, its vae has 4"),
        ("unet", {"cross_attention_dim": 40}, "different widths"),
        ("vae", {"_class_name": "AutoencoderDC"}, "vae asks for _class_name = 'AutoencoderDC'"),
        ("vae", {"up_block_types": ["AttnUpDecoderBlock2D"] * 2}, "only UpDecoderBlock2D is built"),
        ("vae", {"shift_factor": 0.1}, "vae asks for shift_factor"),
        ("text_encoder", {"model_type": "t5"}, "only 'clip_text_model' is built"),
        ("text_encoder", {"hidden_act": "relu"}, "only quick_gelu or gelu is built"),
        ("scheduler", {"beta_schedule": "linear"}, "only 'scaled_linear' is built"),
        ("scheduler", {"beta_start": 0.0}, "describe no noise schedule"),
        ("scheduler", {"beta_end": 1.2}, "describe no noise schedule"),
        ("scheduler", {"num_train_timesteps": None}, "describe no noise schedule"),
        ("scheduler", {"num_train_timesteps": 10**9}, "describe no noise schedule"),
        ("unet", {"sample_size": 0}, "sample_size = '0', only one number is built"),
        ("scheduler", {"prediction_type": "sample"}, "only epsilon or v_prediction is built"),
        ("scheduler", {"timestep_spacing": "x"}, "only leading or linspace or trailing is built"),
        ("unet", {"sample_size": [64, 96]}, r"unet asks for sample_size = '\[64, 96\]', only one number"),
    ],
)
def test_another_architecture_is_one_sentence(part, change, words, folder):
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=words) as caught:
        weights.read_config(folder)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"block_out_channels": [32, 48]},
            r"does not hold the network that is asked for: \d+ keys do not fit, the first",
        ),
        ({"layers_per_block": 2}, "the first is “missing"),
        ({"block_out_channels": 32}, "configuration of its unet describes no network"),
        ({"block_out_channels": [-32, 64]}, "configuration of its unet describes no network"),
        ({"norm_num_groups": 7}, "configuration of its unet describes no network"),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "configuration of its unet describes no network"),
        ({"mid_block_type": "UNetMidBlock2D"}, "configuration of its unet describes no network"),
    ],
)
def test_sizes_that_are_not_the_files_are_one_sentence(change, words, folder):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    cfg = weights.read_config(folder)
    with pytest.raises(UserError, match=words) as caught:
        weights.load_unet(folder, cfg.unet)
    assert "\n" not in str(caught.value)


# --- the original layout ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2", "bk-sdm-small", "bk-sdm-tiny", "emoji"])
def test_one_file_is_read_as_diffusers_reads_it(family, tmp_path):
    from diffusers.loaders import single_file_utils as library

    cfg = FAMILIES[family]
    made = {part: module.state_dict() for part, module in networks(cfg).items()}
    file = whole_file(made, cfg, family == "sd2")
    save_file({key: value.contiguous() for key, value in file.items()}, tmp_path / "one.safetensors")
    found = {
        part: module.state_dict()
        for part, module in zip(weights.PARTS, single_file.load(tmp_path / "one.safetensors", cfg), strict=True)
    }
    levels = [""] * len(cfg.vae.block_out_channels)
    theirs = {
        "unet": library.convert_ldm_unet_checkpoint(dict(file), {"layers_per_block": cfg.unet.layers_per_block}),
        "vae": library.convert_ldm_vae_checkpoint(dict(file), {"down_block_types": levels, "up_block_types": levels}),
    }
    assert equal(theirs["unet"], made["unet"]) and equal(theirs["vae"], made["vae"])
    for part in weights.PARTS:
        assert equal(found[part], made[part]), part
    if family != "sd2":
        text = library.convert_ldm_clip_checkpoint(file)
    else:
        width = argparse.Namespace(config=argparse.Namespace(hidden_size=cfg.text.hidden_size))
        text = library.convert_open_clip_checkpoint(width, file)
    text = {key.removeprefix("text_model."): value for key, value in text.items()}
    assert equal({key: value for key, value in text.items() if key in made["text_encoder"]}, made["text_encoder"])


@pytest.mark.parametrize(("preset", "count"), [("sd1", 1131), ("sd2-base", 1226)])
def test_one_file_at_real_size_on_meta(preset, count):
    cfg = PRESETS[preset]
    expected = {part: weights.build(part, size).state_dict() for part, size in sizes(cfg).items()}
    with torch.device("meta"):
        file = whole_file(expected, cfg, preset != "sd1")
    parts = single_file.split(file)
    names = {key for part in parts.values() for key in part}
    signs = {  # of diffusers' own, by which it tells the two
        "sd1": "model.diffusion_model.output_blocks.11.0.skip_connection.weight",
        "sd2-base": "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight",
    }
    assert signs[preset] in file and sum(len(part) for part in parts.values()) == count and len(names) == count
    for part, state in parts.items():
        found = single_file.keys(part, cfg, state).apply(state, expected[part])
        assert found.keys() == expected[part].keys()


@pytest.fixture(scope="module")
def tiny_file():
    return whole_file({part: module.state_dict() for part, module in networks(TINY).items()}, TINY, False)


def test_a_ckpt_is_read_when_it_holds_tensors_only(tiny_file, tmp_path):
    path = tmp_path / "model.ckpt"
    half = {key: value.half() if value.is_floating_point() else value for key, value in tiny_file.items()}
    torch.save({"state_dict": half, "global_step": 470_000, "epoch": 3}, path)
    text, unet, vae = single_file.load(path, TINY)
    expected = networks(TINY)
    for found, part in ((text, "text_encoder"), (unet, "unet"), (vae, "vae")):
        state = {key: value.half().float() for key, value in expected[part].state_dict().items()}
        assert equal(found.state_dict(), state) and not found.training
    torch.save({"state_dict": half, "callbacks": argparse.Namespace(lr=1e-4)}, path)
    with pytest.raises(
        UserError, match=r"^model\.ckpt holds Python objects besides tensors.*convert it to safetensors"
    ):
        single_file.load(path, TINY)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: s.update({"conditioner.embedders.1.model.ln_final.bias": torch.ones(1)}),
            "is Stable Diffusion XL; only",
        ),
        (lambda s: s.update({"control_model.time_embed.0.bias": torch.ones(1)}), "This file is a ControlNet; only"),
        (lambda s: s.update({"lora_unet_mid.alpha": torch.ones(1)}), "This file is a LoRA"),
        (lambda s: s.update({"stray": torch.ones(1)}), "holds 1 names that are not known here, the first is “stray”"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("first_stage")], "This file has no vae: choose one"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("cond_stage")], "This file has no text_encoder"),
        (
            lambda s: s.pop("model.diffusion_model.out.2.bias"),
            r"The unet of one\.safetensors does not hold the network.*",
        ),
        (
            lambda s: s.update({"first_stage_model.extra": torch.ones(1)}),
            "The vae of one.*the first is “not used: extra",
        ),
    ],
)
def test_a_file_of_something_else_is_one_sentence(change, words, tiny_file, tmp_path):
    state = {key: value.contiguous() for key, value in tiny_file.items()}
    change(state)
    save_file(state, tmp_path / "one.safetensors")
    with pytest.raises(UserError, match=words) as caught:
        single_file.load(tmp_path / "one.safetensors", TINY)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_size_is_one_sentence(tiny_file, tmp_path):
    save_file({key: value.contiguous() for key, value in tiny_file.items()}, tmp_path / "one.safetensors")
    with pytest.raises(UserError, match=r"does not hold the network that is asked for: \d+ keys do not fit"):
        single_file.load(tmp_path / "one.safetensors", FAMILIES["sd2"])


# --- the catalogue ---------------------------------------------------------------------------------------------------


def test_the_entries_list_every_file_of_a_folder():
    entries = {entry.id: entry for entry in catalogue.entries("diffusion", "model")}
    assert next(iter(entries)) == "emoji" and entries.keys() == {*COUNTS, "emoji", "stable-diffusion-v1-5-one-file"}
    whole = {
        "model_index", *weights.PARTS, "text_encoder_config", "unet_config", "vae_config", "scheduler", "vocab",
        "merges", "tokenizer_config", "special_tokens_map",
    }  # fmt: skip
    for name, entry in entries.items():
        assert entry.preset in PRESETS and entry.facts["trained_on"]
        if entry.layout == "diffusers":
            assert {file.name for file in entry.files} == whole, name
    for name, (preset, _, parameters) in COUNTS.items():
        assert entries[name].preset == preset
        assert entries[name].facts["memory_megabytes"] == pytest.approx(4 * sum(parameters) / 1e6, rel=0.01)
    assert [entry.id for entry in catalogue.entries("diffusion", "preview")] == ["taesd"]


def test_the_bundled_files_are_the_listed_ones():
    for file in catalogue.manifest()["emoji"].files:
        content = (catalogue.WEIGHTS / file.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256), file.path


def test_the_full_file_is_taken_where_it_is_here_already(monkeypatch, tmp_path):
    entry, here = catalogue.manifest()["stable-diffusion-v1-5"], set()
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda origin, name, revision: str(tmp_path / name) if name in here else None,
    )
    for file in entry.files:
        here.add(file.path)
        (tmp_path / file.path).parent.mkdir(exist_ok=True)
        (tmp_path / file.path).touch()
    assert checkpoint.locate(entry)["unet"].name == "diffusion_pytorch_model.fp16.safetensors"
    full = "unet/diffusion_pytorch_model.safetensors"
    here.add(full)
    (tmp_path / full).touch()
    assert checkpoint.locate(entry)["unet"] == tmp_path / full
    here.remove("unet/diffusion_pytorch_model.fp16.safetensors")
    assert checkpoint.locate(entry)["unet"] == tmp_path / full
    here.remove(full)
    assert checkpoint.locate(entry) is None
    raw = {"id": "x", "source": "hub", "files": [{"name": "a", "path": "a", "sha256": "0" * 64, "fuller": ["b"]}]}
    others = dict.fromkeys(("pipeline", "role", "title", "architecture", "preset", "layout", "licence"), "x")
    with pytest.raises(ValueError, match="'x': a hash is of one file"):
        catalogue.parse({"entry": [raw | others]})
