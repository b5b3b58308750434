"""Sizes, pixels and padding against transformers' own image processor."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.detection.config import IMAGENET_MEAN, IMAGENET_STD, InputSize
from pipelines.detection.preprocess import prepare, sizes

PHOTO = Path(__file__).resolve().parents[2] / "assets" / "examples" / "face" / "group.jpg"


def library_size(height, width, size):
    from transformers.image_transforms import get_size_with_aspect_ratio

    return get_size_with_aspect_ratio((height, width), size.shortest, size.longest)


def library(images, size):
    from transformers import DetrImageProcessor

    processor = DetrImageProcessor(size={"shortest_edge": size.shortest, "longest_edge": size.longest})
    out = processor(images=images, return_tensors="pt", input_data_format="channels_last")
    return out["pixel_values"], out["pixel_mask"]


@pytest.mark.parametrize("size", [InputSize(), InputSize(288, 384), InputSize(96, 160), InputSize(1600, 1600)])
def test_sizes_are_the_librarys(size):
    draw = np.random.default_rng(0)
    shapes = [tuple(int(n) for n in draw.integers(1, 3000, 2)) for _ in range(4000)]
    shapes += [(size.shortest, w) for w in range(1, 3000, 7)] + [(h, size.shortest) for h in range(1, 3000, 7)]
    shapes += [(s, s) for s in range(1, 2000, 3)]
    compared = 0
    for height, width in shapes:
        expected = library_size(height, width, size)
        if 0 not in expected:
            assert sizes(height, width, size) == expected, (height, width)
            compared += 1
    assert compared > 0.95 * len(shapes)


def test_sizes_by_hand():
    assert sizes(480, 640, InputSize()) == (800, 1066)
    assert sizes(640, 480, InputSize()) == (1066, 800)
    assert sizes(800, 1000, InputSize()) == (800, 1000)
    assert sizes(1000, 2000, InputSize()) == (666, 1333)  # 666.5 is rounded to even
    assert sizes(1, 1, InputSize(288, 384)) == (288, 288)


def test_panoramas_keep_at_least_a_pixel():
    assert sizes(40, 2000, InputSize(288, 384)) == (8, 384)
    assert sizes(2000, 40, InputSize(288, 384)) == (384, 8)
    assert library_size(1, 5000, InputSize(288, 384))[0] == 0  # what the library would make of it
    assert sizes(1, 5000, InputSize(288, 384)) == (1, 383)  # 383.99, cut off as the library does
    assert sizes(5000, 1, InputSize(288, 384)) == (383, 1)
    batch = prepare([np.zeros((1, 5000, 3), np.uint8)], InputSize(288, 384))
    assert batch.pixels.shape == (1, 3, 1, 383) and batch.sizes == ((1, 383),)


@pytest.mark.parametrize(("height", "width"), [(640, 1200), (250, 352), (100, 90), (40, 2000), (1, 4)])
def test_pixels_are_the_librarys(height, width):
    image = np.array(Image.open(PHOTO).convert("RGB").resize((width, height)))
    size = InputSize(288, 384)
    ours, (theirs, _) = prepare([image], size), library([image], size)
    assert ours.pixels.shape == theirs.shape and ours.pixels.dtype == torch.float32 and ours.padding is None
    assert (ours.pixels - theirs).abs().max() < 1e-5  # a grey level is 0.017


def test_a_batch_of_different_sizes_is_padded_as_the_librarys():
    photo = np.array(Image.open(PHOTO).convert("RGB"))
    images = [photo[:300, :300].copy(), photo[:200, :500].copy(), photo[:500, :200].copy()]
    size = InputSize(96, 160)
    ours, (pixels, mask) = prepare(images, size), library(images, size)
    assert ours.sizes == ((96, 96), (64, 160), (160, 64))
    assert ours.pixels.shape == (3, 3, 160, 160)
    assert (ours.pixels - pixels).abs().max() < 1e-5
    assert torch.equal(ours.padding, mask == 0)
    assert ours.padding[1, 64:].all() and not ours.padding[1, :64].any()
    for i, (h, w) in enumerate(ours.sizes):
        alone = prepare(images[i : i + 1], size)
        assert torch.equal(ours.pixels[i, :, :h, :w], alone.pixels[0])
        assert ours.pixels[i, :, h:].abs().sum() == 0 and ours.pixels[i, :, :, w:].abs().sum() == 0


def test_equal_sizes_need_no_padding():
    image = np.zeros((50, 70, 3), np.uint8)
    assert prepare([image, image], InputSize(96, 160)).padding is None


def test_pure_red_arrives_as_red():
    red = np.zeros((50, 70, 3), np.uint8)
    red[..., 0] = 255
    pixels = prepare([red], InputSize(96, 160)).pixels[0]
    expected = (np.array([1.0, 0.0, 0.0]) - IMAGENET_MEAN) / IMAGENET_STD
    assert np.allclose(pixels.mean(dim=(1, 2)).numpy(), expected, atol=1e-5)
    assert pixels.std(dim=(1, 2)).max() < 1e-5


def test_arrays_that_cannot_be_written_or_are_views_are_read_rightly():
    photo = np.array(Image.open(PHOTO).convert("RGB"))[:80, :120]
    frozen = photo.copy()
    frozen.flags.writeable = False
    mirrored = np.ascontiguousarray(photo[:, ::-1])[:, ::-1]
    first = prepare([photo.copy()], InputSize(96, 160)).pixels
    for other in (frozen, mirrored, photo):
        assert torch.equal(prepare([other], InputSize(96, 160)).pixels, first)
