"""Our networks against the libraries' own: tiny random models of every family, saved by the library, read by us,
outputs compared; and Stable Diffusion 1.5's U-Net once at full size."""

import gc
import os
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.diffusion import weights
from pipelines.diffusion.config import PRESETS, TINY
from pipelines.diffusion.unet import Record, UNet, guidance_embedding
from tests.diffusion.tiny import FAMILIES

TOLERANCE = 1e-4
VAES = {name: FAMILIES[name].vae for name in ("sd1", "sd2", "emoji")}
TEXTS = {name: FAMILIES[name].text for name in ("sd1", "sd2")}


def worst(ours, theirs):
    """The largest absolute difference, after making sure that there is something to compare."""
    assert ours.shape == theirs.shape and theirs.std() > 1e-2
    return float((ours - theirs).abs().max())


def shaken(model):
    """A library's model with biases and normalisations that do something: they start at 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save_text(cfg, folder):
    import transformers

    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = shaken(transformers.CLIPTextModel(transformers.CLIPTextConfig(**asdict(cfg), **ids)))
    model.save_pretrained(folder / "text_encoder")
    return model


def save_unet(cfg, folder):
    import diffusers

    torch.manual_seed(0)
    model = shaken(diffusers.UNet2DConditionModel(**asdict(cfg)))
    model.save_pretrained(folder / "unet")
    return model


def save_vae(cfg, folder):
    import diffusers

    torch.manual_seed(0)
    levels = len(cfg.block_out_channels)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    model = shaken(diffusers.AutoencoderKL(**asdict(cfg), **kinds))
    model.save_pretrained(folder / "vae")
    return model


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unet_inputs(cfg, side, batch=2):
    latents, text = noise(batch, cfg.in_channels, side, side), noise(batch, 7, cfg.cross_attention_dim, seed=2)
    cond = noise(batch, cfg.time_cond_proj_dim, seed=3) if cfg.time_cond_proj_dim else None
    return latents, torch.tensor([3, 917, 500])[:batch], text, cond


@pytest.mark.parametrize("family", TEXTS)
@pytest.mark.parametrize("prefix", ["", "text_model."])
@torch.no_grad()
def test_text_encoder_equals_transformers(family, prefix, tmp_path):
    cfg = TEXTS[family]
    theirs = save_text(cfg, tmp_path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    bare = {key.removeprefix("text_model."): value for key, value in load_file(path).items()}
    save_file({prefix + key: value for key, value in bare.items()}, path)
    ours = weights.load_text_encoder(tmp_path, cfg)
    ids = torch.randint(3, cfg.vocab_size, (3, 11), generator=torch.Generator().manual_seed(1))
    found = ours(ids)
    assert worst(found, theirs(ids).last_hidden_state) < TOLERANCE
    assert worst(ours(ids[1:2]), found[1:2]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", [8, 12])
@torch.no_grad()
def test_unet_equals_diffusers(family, side, tmp_path):
    cfg = FAMILIES[family].unet
    theirs, ours = save_unet(cfg, tmp_path), weights.load_unet(tmp_path, cfg)
    assert (ours.mid_block is None) == family.startswith("bk-sdm") == (theirs.mid_block is None)
    latents, steps, text, cond = unet_inputs(cfg, side)
    expected = theirs(latents, steps, text, timestep_cond=cond).sample
    assert worst(ours(latents, steps, text, cond), expected) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_batch_equals_its_pictures_alone(family, tmp_path):
    cfg = FAMILIES[family].unet
    save_unet(cfg, tmp_path)
    ours = weights.load_unet(tmp_path, cfg)
    inputs = unet_inputs(cfg, 8, batch=3)
    together = ours(*inputs)
    for k in range(3):
        alone = ours(*(None if each is None else each[k : k + 1] for each in inputs))
        assert worst(alone, together[k : k + 1]) < 1e-5
    assert worst(together[:1], together[1:2]) > 0.1


@pytest.mark.parametrize("family", VAES)
@torch.no_grad()
def test_autoencoder_equals_diffusers(family, tmp_path):
    cfg = VAES[family]
    theirs, ours = save_vae(cfg, tmp_path), weights.load_vae(tmp_path, cfg)
    assert len(ours.encoder.mid_block.attentions) == (family != "emoji")
    pixels, latents = noise(2, 3, 24, 16).clamp(-1, 1), noise(2, cfg.latent_channels, 6, 4)
    expected, posterior = theirs.encode(pixels).latent_dist, ours.encode(pixels)
    assert worst(posterior.mean, expected.mean) < TOLERANCE
    assert worst(posterior.logvar, expected.logvar) < TOLERANCE
    found = ours.decode(latents)
    assert worst(found, theirs.decode(latents).sample) < TOLERANCE
    assert worst(ours.decode(latents[1:]), found[1:]) < 1e-5


@torch.no_grad()
def test_a_spoilt_weight_is_noticed(tmp_path):
    """The comparison above can fail: one weight off by a tenth, and it does."""
    theirs, ours = save_unet(TINY.unet, tmp_path), weights.load_unet(tmp_path, TINY.unet)
    ours.conv_in.weight[0, 0, 1, 1] += 0.1
    latents, steps, text, _ = unet_inputs(TINY.unet, 8)
    assert worst(ours(latents, steps, text), theirs(latents, steps, text).sample) > 10 * TOLERANCE


@pytest.mark.parametrize("width", [24, 25, 256])
def test_the_guidance_embedding_is_the_librarys(width):
    import diffusers

    embed = diffusers.StableDiffusionPipeline.get_guidance_scale_embedding
    scales = torch.tensor([1.0, 1.5, 7.5, 8.0, 14.0])
    found = guidance_embedding(scales, width)
    assert (found - embed(None, scales - 1, width)).abs().max() < 1e-6
    assert found[0, : width // 2].abs().max() == 0 and worst(found[1:2], found[2:3]) > 0.5


@torch.no_grad()
def test_a_record_holds_each_cross_attention_and_changes_nothing(tmp_path):
    """Against the library's own attention probabilities, by a processor that computes them."""
    cfg, seen = FAMILIES["sd1"].unet, []
    theirs, ours = save_unet(cfg, tmp_path), weights.load_unet(tmp_path, cfg)

    class Watching:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **options):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (attn.head_to_batch_dim(each) for each in (
                attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
            ))  # fmt: skip
            shares = attn.get_attention_scores(q, k, attention_mask)
            if encoder_hidden_states is not None:
                seen.append(shares.unflatten(0, (-1, attn.heads)).mean(dim=1))
            return attn.to_out[0](attn.batch_to_head_dim(shares @ v))

    theirs.set_attn_processor(Watching())
    latents, steps, text, _ = unet_inputs(cfg, 8)
    record = Record()
    with_it = ours(latents, steps, text, record=record)
    theirs(latents, steps, text)
    assert torch.equal(with_it, ours(latents, steps, text))
    sides = [each.shape[1] for each in record.cross_attention]
    assert sides == [8, 8, 4, 4, 2, 4, 4, 4, 8, 8, 8] and len(seen) == 11
    for ours_map, theirs_map in zip(record.cross_attention, seen, strict=True):
        assert ours_map.shape == (2, *ours_map.shape[1:3], 7) and ours_map.shape[1] == ours_map.shape[2]
        assert (ours_map.flatten(1, 2) - theirs_map).abs().max() < 1e-5
        assert (ours_map.sum(dim=-1) - 1).abs().max() < 1e-5 and ours_map.std() > 1e-3


def free_gigabytes():
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            return next(int(line.split()[1]) / 1e6 for line in stream if line.startswith("MemAvailable"))
    except OSError:
        return 0.0


@pytest.mark.skipif("GLASSHOUSE_SLOW" not in os.environ, reason="4 GB and a minute: set GLASSHOUSE_SLOW=1 to run it")
@torch.no_grad()
def test_stable_diffusion_1_5s_unet_at_full_size(tmp_path):
    """Random weights, 64x64 latents, batch 1: within 1e-4 of the library's, relative to the largest output."""
    import diffusers

    if free_gigabytes() < 8:
        pytest.skip("less than 8 GB of memory are free")
    cfg = PRESETS["sd1"].unet
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(**asdict(cfg)).eval()
    theirs.save_pretrained(tmp_path / "unet")
    latents, text, steps = noise(1, 4, 64, 64), noise(1, 77, 768, seed=2), torch.tensor([601])
    expected = theirs(latents, steps, text).sample
    del theirs
    gc.collect()
    ours = weights.load_unet(tmp_path, cfg)
    found = ours(latents, steps, text)
    assert isinstance(ours, UNet) and expected.abs().max() > 0.1
    difference = float((found - expected).abs().max() / expected.abs().max())
    print(f"largest difference {difference:.2e} of the largest output")
    assert difference < TOLERANCE


def test_the_families_differ_as_published():
    """The tiny configurations stand for the published ones: the same kinds of blocks, in a smaller number."""
    for family, preset in {"sd1": "sd1", "sd2": "sd2", "bk-sdm-tiny": "bk-sdm-tiny", "lcm": "lcm"}.items():
        tiny, full = FAMILIES[family], PRESETS[preset]
        assert tiny.unet.mid_block_type == full.unet.mid_block_type
        assert tiny.unet.use_linear_projection == full.unet.use_linear_projection
        assert (tiny.unet.time_cond_proj_dim is None) == (full.unet.time_cond_proj_dim is None)
        assert (tiny.unet.down_block_types[-1], tiny.unet.up_block_types[0]) == (
            full.unet.down_block_types[-1], full.unet.up_block_types[0]
        )  # fmt: skip
        assert tiny.text.hidden_act == full.text.hidden_act
    assert FAMILIES["sd2"].schedule.prediction_type == PRESETS["sd2"].schedule.prediction_type == "v_prediction"
