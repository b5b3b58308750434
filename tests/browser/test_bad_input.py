"""Odd files sent to the running app: the right answer or a sentence, bounded memory, the next visitor is served."""

import io
import struct
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.browser.conftest import EXAMPLES

ASTRONAUT = EXAMPLES / "face" / "astronaut.jpg"


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return Client(server, verbose=False, download_files=str(tmp_path_factory.mktemp("answers")))


def detect(client, path, smallest=20):
    *_, data = client.predict(handle_file(path), "local", 0.6, 0.7, 0.7, smallest, api_name="/face_detect")
    return data["faces"]


def photo():
    return Image.open(ASTRONAUT).convert("RGB")


def bomb():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(20_001) * 20_000, 9)  # 20,000 x 20,000 grey pixels that are really there
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def rotated():
    exif = Image.Exif()
    exif[274] = 6
    return saved(photo().rotate(90, expand=True), "JPEG", quality=92, exif=exif)


def two_hundred():
    face = photo().crop((150, 20, 300, 200)).resize((90, 108))
    sheet = Image.new("RGB", (90 * 20, 108 * 10), (90, 90, 90))
    for i in range(200):
        sheet.paste(face, (90 * (i % 20), 108 * (i // 20)))
    return saved(sheet, "JPEG", quality=92)


def deep_grey():
    return saved(Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257), "PNG")


def alpha():
    image = photo().convert("RGBA")
    image.putalpha(255)
    return saved(image, "PNG")


GOOD = {
    "cmyk.jpg": (lambda: saved(photo().convert("CMYK"), "JPEG", quality=92), 1),
    "grey16.png": (deep_grey, 1),
    "palette.png": (lambda: saved(photo().quantize(256), "PNG"), 1),
    "alpha.png": (alpha, 1),
    "animated.gif": (lambda: saved(photo(), "GIF", save_all=True, append_images=[photo().rotate(180)]), 1),
    "rotated.jpg": (rotated, 1),
    "one.png": (lambda: saved(Image.new("RGB", (1, 1)), "PNG"), 0),
    "thin.png": (lambda: saved(Image.new("RGB", (1, 5000)), "PNG"), 0),
    "noface.png": (lambda: saved(Image.new("RGB", (640, 480), (30, 90, 160)), "PNG"), 0),
    "two_hundred.jpg": (two_hundred, 200),
}
BAD = {
    "empty.png": (lambda: b"", "empty"),
    "text.jpg": (lambda: b"this is no picture", "not a picture"),
    "cut.jpg": (lambda: ASTRONAUT.read_bytes()[:9000], "damaged or cut short"),
    "bomb.png": (bomb, "megapixels"),
}


@pytest.mark.parametrize("name", GOOD)
def test_odd_pictures_get_the_right_answer(client, tmp_path, name):
    make, count = GOOD[name]
    path = tmp_path / name
    path.write_bytes(make())
    faces = detect(client, path)
    assert len(faces) == count
    if name == "rotated.jpg":  # found where it is seen, not where it is stored
        upright = detect(client, ASTRONAUT)[0]["box"]
        assert np.abs(np.array(faces[0]["box"]) - upright).max() < 6


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_a_sentence(client, tmp_path, name):
    make, words = BAD[name]
    path = tmp_path / name
    path.write_bytes(make())
    with pytest.raises(AppError, match=words):
        detect(client, path)
    assert len(detect(client, ASTRONAUT)) == 1  # the next visitor


def test_a_face_cut_by_the_border_is_found(client, tmp_path):
    path = tmp_path / "cut.png"
    photo().crop((205, 0, 512, 400)).save(path)
    (face,) = detect(client, path)
    assert face["box"][0] < 0 and 45 < face["box"][2] < 65


def test_the_lowest_thresholds_neither_hang_nor_fill_the_memory(client):
    group = handle_file(EXAMPLES / "face" / "group.jpg")
    *_, data = client.predict(group, "local", 0.05, 0, 0, 20, api_name="/face_detect")
    assert 6 <= len(data["faces"]) <= 256


def test_a_large_photo_is_served(client, tmp_path):
    path = tmp_path / "large.jpg"
    photo().resize((6000, 6000)).save(path)
    assert len(detect(client, path)) == 1


def test_a_request_by_hand_cannot_read_files_of_the_server(server, tmp_path):
    """The client libraries upload; a request put together by hand may name any path it likes."""
    secret = tmp_path / "secret.png"
    photo().save(secret)
    for path in (str(secret), "/dev/zero"):
        for name, data in (
            ("face_detect", [{"path": path}, "local", 0.6, 0.7, 0.7, 20]),
            ("face_enrol", ["Eileen", [{"path": path}], "local", "auto"]),
            ("face_gallery_import", [{"path": path}, "auto"]),
        ):
            call = httpx.post(f"{server}/gradio_api/call/{name}", json={"data": data}).json()
            answer = httpx.get(f"{server}/gradio_api/call/{name}/{call['event_id']}", timeout=60).text
            assert "event: error" in answer and "event: complete" not in answer, (name, answer)
            assert str(tmp_path) not in answer


def test_memory_stayed_bounded(client, server_process):
    """Runs last in this file: the most that the server ever held, everything above included."""
    status = Path(f"/proc/{server_process[1].pid}/status")
    if not status.exists():
        pytest.skip("no /proc on this system")
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert peak < 2_000_000, f"{peak / 1e6:.2f} GB"
