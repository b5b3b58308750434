"""The tiny autoencoder against diffusers', its two published layouts, and the quick looks at latents."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.diffusion import preview, weights
from pipelines.diffusion.config import TAESDConfig, VAEConfig
from tests.diffusion.published import TAESD

WIDE = VAEConfig()  # Stable Diffusion's: too large to be its own preview
SMALL = {
    "encoder_block_out_channels": [8, 8, 8, 8], "decoder_block_out_channels": [8, 8, 8, 8],
    "num_encoder_blocks": [1, 2, 1, 2], "num_decoder_blocks": [2, 1, 2, 1],
}  # fmt: skip


def library(folder, **changes):
    """The library's own with random weights, saved by itself."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny.from_config(TAESD | SMALL | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # plain random numbers, at which each layer keeps the size of the signal
            parameter.normal_(0.0, (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.2)
    model.save_pretrained(folder)
    return model


def noise(*shape):
    return 2.0 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(tmp_path):
    return library(tmp_path)


@torch.no_grad()
def test_it_equals_diffusers(model, tmp_path):
    ours = weights.load_taesd(tmp_path / "diffusion_pytorch_model.safetensors")
    assert ours.cfg == TAESDConfig(**{key: tuple(value) for key, value in SMALL.items()}) and not ours.training
    pixels, latents = noise(2, 3, 32, 48).clamp(-1, 1), noise(2, 4, 5, 3)
    encoded, decoded = ours.encode(pixels), ours.decode(latents)
    for found, expected in ((encoded, model.encode(pixels).latents), (decoded, model.decode(latents).sample)):
        assert found.shape == expected.shape and expected.std() > 0.1
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert encoded.shape == (2, 4, 4, 6) and decoded.shape == (2, 3, 40, 24)
    assert (ours.decode(latents[1:]) - decoded[1:]).abs().max() < 1e-4 * decoded.abs().max()
    ours.decoder.layers[2].conv[4].bias[0] += 0.1
    assert (ours.decode(latents) - decoded).abs().max() > 1e-3


@torch.no_grad()
def test_its_authors_own_files_are_the_same_network(tmp_path):
    """taesd_encoder and taesd_decoder, in which the decoder's names count the bending of the latents."""
    library(tmp_path, **{key: TAESD[key] for key in SMALL})
    ours = weights.load_taesd(tmp_path / "diffusion_pytorch_model.safetensors")
    paths = {}
    for half, before in (("encoder", 0), ("decoder", 1)):
        state = {}
        for key, value in ours.state_dict().items():
            if key.startswith(f"{half}.layers."):
                place, rest = key.removeprefix(f"{half}.layers.").split(".", 1)
                state[f"{int(place) + before}.{rest}"] = value.clone()
        paths[half] = tmp_path / f"taesd_{half}.safetensors"
        save_file(state, paths[half])
        # The names by which other programs know these files.
        assert {"decoder": {"1.bias", "3.conv.4.bias", "8.conv.0.weight"}, "encoder": {"0.bias", "14.bias"}}[
            half
        ] <= state.keys()
    found = weights.load_taesd_halves(**paths).state_dict()
    assert found.keys() == ours.state_dict().keys()
    assert all(torch.equal(value, found[key]) for key, value in ours.state_dict().items())
    with pytest.raises(UserError, match=r"taesd_encoder\.safetensors does not hold the network"):
        weights.load_taesd_halves(paths["decoder"], paths["encoder"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_fn": "silu"}, "taesd asks for act_fn = 'silu', only 'relu' is built"),
        ({"_class_name": "AutoencoderKL"}, "only 'AutoencoderTiny' is built"),
        ({"latent_channels": 16}, "does not hold the network that is asked for: 3 keys do not fit"),
        ({"num_decoder_blocks": [3, 3]}, "configuration of its taesd describes no network"),
    ],
)
def test_another_autoencoder_is_one_sentence(change, words, model, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=words):
        weights.load_taesd(tmp_path / "diffusion_pytorch_model.safetensors")


# --- quick looks -----------------------------------------------------------------------------------------------------


def taesd_entry(folder, name="diffusion_pytorch_model.safetensors"):
    files = (catalogue.File("model", str(folder / name)), catalogue.File("config", str(folder / "config.json")))
    return catalogue.Entry(
        "taesd", "diffusion", "preview", "TAESD", "taesd", "taesd", "bundled", "diffusers", "", files
    )


def never(latents):
    raise AssertionError("the large decoder was asked")


@pytest.fixture
def shelf(monkeypatch):
    """What the catalogue holds; empty at first."""
    entries = {}
    monkeypatch.setattr(catalogue, "manifest", lambda: entries)
    return entries


def test_a_small_decoder_shows_its_own_pictures(shelf):
    picture = np.full((16, 16, 3), 7, np.uint8)
    for config in (VAEConfig(block_out_channels=(16, 128)), VAEConfig(scaling_factor=0.13025)):
        assert preview.Preview(config).show(noise(1, 4, 2, 2), lambda latents: picture) is picture


def test_a_large_one_is_shown_by_the_tiny_one_once_that_is_here(shelf, model, tmp_path):
    look, latents = preview.Preview(WIDE), noise(1, 4, 6, 5)
    before = look.show(latents, never)
    assert before.shape == (6, 5, 3) and np.array_equal(before, preview.rough(latents))
    shelf["taesd"] = taesd_entry(tmp_path)
    after = look.show(latents, never)
    with torch.no_grad():
        expected = model.decode(latents).sample[0].permute(1, 2, 0).add(1).mul(127.5).clamp(0, 255).round()
    assert after.shape == (48, 40, 3) and np.abs(after - expected.numpy()).max() <= 1 and after.std() > 5


def test_a_damaged_tiny_one_spoils_no_run(shelf, model, tmp_path):
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    shelf["taesd"] = taesd_entry(tmp_path)
    assert preview.Preview(WIDE).show(noise(1, 4, 6, 5), never).shape == (6, 5, 3)


def test_rough_colours():
    """By hand: 127.5 + 127.5 * (first row of the table), and grey for nothing."""
    latents = torch.zeros(1, 4, 1, 2)
    latents[0, 0, 0, 1] = 1.0
    assert preview.rough(latents).tolist() == [[[128, 128, 128], [165, 154, 154]]]


def test_bytes_go_to_numbers_and_back():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = preview.to_tensor(image, 8)
    assert pixels.shape == (1, 3, 16, 16) and (float(pixels.min()), float(pixels.max())) == (-1.0, 1.0)
    assert np.array_equal(preview.to_image(pixels), image)
    assert preview.to_image(torch.tensor([[[[-9.0]], [[9.0]], [[float("nan")]]]])).tolist() == [[[0, 255, 128]]]
    for wrong in (image[:12], image[:, :12], image[:0], image.astype(np.float32), image[..., 0]):
        with pytest.raises(ValueError, match=r"no multiples|not an RGB picture"):
            preview.to_tensor(wrong, 8)
