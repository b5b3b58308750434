"""Real files, written here: frames in RGB at the rate asked for, limits said, broken files refused with a sentence."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.common.limits import Limits
from pipelines.common.video import Recorder, Video

BOUNDS = Limits()


def write(path, frames=30, rate=10, size=(64, 48), code="mp4v", paint=None):
    """Frame k is grey of brightness 8 k, or what paint(k) returns (BGR)."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), rate, size)
    assert writer.isOpened()
    for k in range(frames):
        picture = np.full((size[1], size[0], 3), min(8 * k, 255), np.uint8) if paint is None else paint(k)
        writer.write(picture)
    writer.release()
    return path


def read(path, rate=10.0, bounds=BOUNDS):
    with Video(path, bounds) as video:
        return list(video.frames(rate)), video.notes


KINDS = [
    ("a.mp4", "mp4v"),
    ("a.webm", "VP80"),
    ("b.webm", "VP90"),
    ("a.avi", "MJPG"),
    ("a.mkv", "FFV1"),
    ("a.mov", "mp4v"),
]


@pytest.mark.parametrize(("name", "code"), KINDS)
def test_frames_of_many_formats(tmp_path, name, code):
    path = write(tmp_path / name, code=code)
    with Video(path) as video:
        assert video.size == (48, 64) and video.rate == pytest.approx(10) and video.seconds == pytest.approx(3)
        frames = list(video.frames(10))
    assert [f.index for f in frames] == list(range(30)) and video.notes == []
    assert np.allclose([f.seconds for f in frames], np.arange(30) / 10, atol=0.01)
    assert all(f.pixels.shape == (48, 64, 3) and f.pixels.dtype == np.uint8 for f in frames)
    assert all(abs(float(f.pixels.mean()) - 8 * f.index) < 6 for f in frames)


def test_red_arrives_as_red(tmp_path):
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 2] = 255
    frames, _ = read(write(tmp_path / "red.mp4", frames=3, paint=lambda k: red))
    assert np.abs(frames[0].pixels.reshape(-1, 3).mean(axis=0) - [255, 0, 0]).max() < 6


@pytest.mark.parametrize(
    ("rate", "indices"),
    [(5, list(range(0, 30, 2))), (1, [0, 10, 20]), (0.5, [0, 20]), (60, list(range(30))), (4, [0, 3, 5, 8, 10, 13])],
)
def test_the_rate_is_kept(tmp_path, rate, indices):
    frames, _ = read(write(tmp_path / "a.mp4"), rate)
    assert [f.index for f in frames][: len(indices)] == indices and len(frames) >= len(indices)


@pytest.mark.parametrize("rate", [0, -1, 61, float("nan"), float("inf"), "fast", None])
def test_a_rate_that_makes_no_sense(tmp_path, rate):
    with pytest.raises(UserError, match="frames a second"):
        read(write(tmp_path / "a.mp4", frames=3), rate)


def test_an_hour_is_read_up_to_the_limit_and_it_is_said(tmp_path):
    path = write(
        tmp_path / "hour.mp4", frames=3600, rate=1, size=(16, 16), paint=lambda k: np.zeros((16, 16, 3), np.uint8)
    )
    frames, notes = read(path, 1)
    assert [f.index for f in frames] == list(range(61))  # second 60 included
    assert notes == ["The first 60 of 3600 seconds were looked at."]


def test_too_many_frames_are_said(tmp_path):
    frames, notes = read(write(tmp_path / "a.mp4"), 10, replace(BOUNDS, video_frames=7))
    assert len(frames) == 7 and notes == ["The first 7 frames were looked at, up to second 0.7."]
    assert read(tmp_path / "a.mp4", 10, replace(BOUNDS, video_frames=30))[1] == []


def test_large_frames_are_made_smaller_or_refused(tmp_path):
    path = write(tmp_path / "a.mp4", frames=3)
    frames, notes = read(path, 10, replace(BOUNDS, side=32))
    assert frames[0].pixels.shape == (24, 32, 3) and notes == ["Made smaller: 64×48 to 32×24 pixels."]
    with pytest.raises(UserError, match="megapixels"):
        Video(path, replace(BOUNDS, pixels=1000))


def noise(k):
    return np.random.default_rng(k).integers(0, 256, (48, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize(("name", "code"), [k for k in KINDS if k[0] in ("a.webm", "a.avi", "a.mkv")])
def test_a_truncated_video_gives_what_it_has_and_says_so(tmp_path, name, code):
    whole = write(tmp_path / name, code=code, frames=50, paint=noise).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    frames, notes = read(tmp_path / name)
    assert 15 <= len(frames) <= 35 and len(notes) == 1 and "cut short" in notes[0] and "of 5.0 seconds" in notes[0]


@pytest.mark.parametrize(("name", "code"), KINDS)
def test_a_video_without_frames_is_refused(tmp_path, name, code):
    """Cut after the header, or where MP4 keeps its index at the end, anywhere."""
    whole = write(tmp_path / name, code=code, frames=50, paint=noise).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2 if name in ("a.mp4", "a.mov") else 600])
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / name)


def test_an_empty_video_is_refused(tmp_path):
    for name, code in KINDS:
        path = write(tmp_path / name, code=code, frames=0)
        if path.stat().st_size:
            with pytest.raises(UserError, match="cannot be read"):
                read(path)


def test_an_odd_codec_is_refused(tmp_path):
    path = write(tmp_path / "a.avi", code="MJPG")
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"QQZ1"))
    with pytest.raises(UserError, match="codec"):
        read(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\xff\xd8\xff\xe0" + bytes(500), "not a video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "not a video"),
        (b"ffconcat version 1.0\nfile other.mp4\n", "not a video"),
        (b"just a text that someone renamed", "not a video"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(2000), "cannot be read"),
    ],
)
def test_files_that_are_no_videos(tmp_path, content, words):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read(path)


def test_folders_and_missing_files_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.mp4"):
        with pytest.raises(UserError, match="could not be read"):
            Video(path)


def test_what_is_recorded_can_be_read_and_is_rgb(tmp_path):
    path = tmp_path / "out.webm"
    green = np.zeros((49, 65, 3), np.uint8)  # odd sides
    green[..., 1] = 255
    with Recorder(path, 5) as recorder:
        for _ in range(10):
            recorder.add(green)
    assert path.read_bytes()[:4] == b"\x1a\x45\xdf\xa3"
    with Video(path) as video:
        frames = list(video.frames(5))
        assert video.size == (48, 64) and video.rate == pytest.approx(5)
    assert len(frames) == 10
    assert np.abs(frames[5].pixels.reshape(-1, 3).mean(axis=0) - [0, 255, 0]).max() < 8


def test_a_reader_left_early_lets_go_of_the_file(tmp_path):
    path = write(tmp_path / "a.mp4")
    with Video(path) as video:
        stream = video.frames(10)
        next(stream)
        stream.close()
    video.close()
    assert len(read(path)[0]) == 30
