"""The one door for pixels: every odd file gets the right pixels or one sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import UserError
from pipelines.common.images import check_array, open_picture
from pipelines.common.limits import Limits

RED = (255, 0, 0)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def solid(mode="RGB", colour=RED, size=(40, 30)):
    return Image.new(mode, size, colour)


def assert_red(pixels, tolerance=3):
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and pixels.flags.c_contiguous
    assert np.abs(pixels.astype(int) - np.array(RED)).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_pure_red_is_red_in_every_format(kind):
    picture = open_picture(encoded(solid(), kind))
    assert picture.pixels.shape == (30, 40, 3)
    assert_red(picture.pixels, 6)
    assert picture.note == ""


def test_palette_and_cmyk():
    assert_red(open_picture(encoded(solid().convert("P", palette=Image.Palette.ADAPTIVE))).pixels)
    assert_red(open_picture(encoded(solid("CMYK", (0, 255, 255, 0)), "JPEG")).pixels, 4)


def test_alpha_lies_on_white():
    picture = open_picture(encoded(solid("RGBA", (255, 0, 0, 0))))
    assert (picture.pixels == 255).all()
    assert_red(open_picture(encoded(solid("RGBA", (255, 0, 0, 255)))).pixels)


def test_palette_transparency_lies_on_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert (open_picture(encoded(image, transparency=0)).pixels == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    pixels = open_picture(encoded(Image.fromarray(values))).pixels
    assert pixels[0, 0].tolist() == [0, 0, 0] and pixels[-1, -1].tolist() == [255, 255, 255]
    assert np.abs(pixels[..., 0].astype(float) - values / 257).max() <= 1


def test_exif_orientation_is_applied():
    image = solid(size=(40, 30))
    image.paste((0, 0, 255), (0, 0, 20, 30))  # left half blue
    exif = Image.Exif()
    exif[274] = 6  # shown turned a quarter clockwise: the left half comes to the top
    pixels = open_picture(encoded(image, "PNG", exif=exif)).pixels
    assert pixels.shape == (40, 30, 3)
    assert pixels[5, 15].tolist() == [0, 0, 255] and pixels[35, 15].tolist() == [255, 0, 0]


def test_animation_gives_its_first_frame_and_says_so():
    frames = [solid(), solid(colour=(0, 0, 255)), solid(colour=(0, 255, 0))]
    picture = open_picture(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert_red(picture.pixels)
    assert "3 frames" in picture.note


def test_large_pictures_are_made_smaller_and_say_so():
    picture = open_picture(encoded(solid(size=(3000, 1500)), "JPEG"), Limits(side=500))
    assert picture.pixels.shape == (250, 500, 3)
    assert "3000×1500" in picture.note and "500×250" in picture.note
    assert_red(picture.pixels, 4)


def test_extreme_shapes():
    assert open_picture(encoded(solid(size=(1, 1)))).pixels.shape == (1, 1, 3)
    thin = open_picture(encoded(solid(size=(5000, 1))), Limits(side=2048))
    assert thin.pixels.shape == (1, 2048, 3)


def bomb(side=20_000):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"this is no picture", "not a picture"),
        (encoded(Image.effect_noise((300, 300), 50), "JPEG")[:3000], "damaged"),
        (encoded(Image.effect_noise((99, 99), 50), "PNG")[:3000], "damaged"),
        (bomb(), "megapixels"),
        (bomb(8000), "megapixels"),
    ],
    ids=["zero bytes", "text", "cut jpeg", "cut png", "bomb", "smaller bomb"],
)
def test_bad_files_get_a_sentence(data, words):
    with pytest.raises(UserError, match=words):
        open_picture(data)


def test_too_many_bytes(tmp_path):
    path = tmp_path / "big.png"
    path.write_bytes(b"x" * 2001)
    with pytest.raises(UserError, match="larger than"):
        open_picture(path, Limits(upload_bytes=2000))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="could not be read"):
        open_picture(tmp_path / "gone.png")


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), None, [[1]]],
)
def test_arrays_of_another_kind_are_refused(array):
    with pytest.raises(UserError, match="array of shape"):
        check_array(array)


def test_arrays_are_bounded_and_made_contiguous():
    with pytest.raises(UserError, match="no pixels"):
        check_array(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(UserError, match="megapixels"):
        check_array(np.zeros((1100, 1000, 3), np.uint8), Limits(array_pixels=1_000_000))
    assert check_array(np.zeros((4, 6, 3), np.uint8)[:, ::2]).flags.c_contiguous
