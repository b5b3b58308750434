"""Videos frame by frame, as a stream is: real times, turned phones, an hour, what is broken."""

import struct
from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.common.limits import Limits
from pipelines.common.video import Video

BOUNDS = Limits()


def write(path, frames=30, rate=30.0, size=(64, 48), code="VP80", paint=None):
    """Frame k is grey of brightness 8 k, or what paint(k) returns (BGR)."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), rate, size)
    assert writer.isOpened()
    for k in range(frames):
        writer.write(np.full((size[1], size[0], 3), min(8 * k, 255), np.uint8) if paint is None else paint(k))
    writer.release()
    return path


def every(path, bounds=BOUNDS):
    with Video(path, bounds) as video:
        return list(video.every()), video.notes


def number(data, at, keep_marker):
    """A variable-length number of EBML: its value and how many bytes it takes."""
    length = 9 - data[at].bit_length()
    first = data[at] if keep_marker else data[at] & ((1 << (8 - length)) - 1)
    return int.from_bytes(bytes([first]) + data[at + 1 : at + length], "big"), length


def at_times(path, milliseconds):
    """Give the frames of a WebM file of one cluster these times."""
    data, at, k = bytearray(path.read_bytes()), 0, 0
    while at < len(data):
        name, taken = number(data, at, True)
        size, more = number(data, at + taken, False)
        start = at + taken + more
        if name in (0x18538067, 0x1F43B675):  # a segment, a cluster: go in
            at = start
            continue
        if name == 0xA3:  # a block: track, time within the cluster
            _, track = number(data, start, False)
            struct.pack_into(">h", data, start + track, milliseconds[k])
            k += 1
        at = start + size
    assert k == len(milliseconds)
    path.write_bytes(data)
    return path


def test_every_frame_comes_with_its_own_time(tmp_path):
    times = np.cumsum([0, 33, 34, 100, 20, 250, 33, 33, 500, 40]).tolist()
    frames, notes = every(at_times(write(tmp_path / "a.webm", frames=10), times))
    assert np.allclose([frame.seconds for frame in frames], np.array(times) / 1000, atol=1e-6)
    assert [frame.index for frame in frames] == list(range(10)) and notes == []
    assert all(abs(float(frame.pixels.mean()) - 8 * frame.index) < 6 for frame in frames)


def test_times_that_repeat_or_go_back_are_made_to_grow(tmp_path):
    times = [0, 33, 33, 66, 20, 20, 200, 233, 266, 300]
    frames, _ = every(at_times(write(tmp_path / "a.webm", frames=10), times))
    seconds = np.array([frame.seconds for frame in frames])
    assert len(frames) >= 8 and (np.diff(seconds) > 0).all() and seconds[-1] == pytest.approx(0.3, abs=0.1)


def test_more_than_sixty_a_second_are_thinned_out(tmp_path):
    frames, _ = every(write(tmp_path / "a.mp4", frames=120, rate=120, code="mp4v"))
    assert 58 <= len(frames) <= 61 and frames[-1].seconds == pytest.approx(1.0, abs=0.02)


def turned(path, matrix):
    """Write a display matrix (a, b, c, d) into an MP4 file's track header, as phones do."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") - 4 + 48
    a, b, c, d = (int(value) << 16 for value in matrix)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("matrix", "shape", "corner"),
    [
        ((1, 0, 0, 1), (48, 64), (0, 0)),
        ((0, 1, -1, 0), (64, 48), (0, 1)),  # a quarter clockwise: what was on the left is on top
        ((-1, 0, 0, -1), (48, 64), (1, 1)),
        ((0, -1, 1, 0), (64, 48), (1, 0)),
    ],
)
def test_videos_of_a_turned_phone_are_upright(tmp_path, matrix, shape, corner):
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32, 2] = 255  # red in the upper left quarter
    path = turned(write(tmp_path / "a.mp4", frames=3, code="mp4v", paint=lambda k: picture), matrix)
    with Video(path) as video:
        assert video.size == shape
        pixels = next(video.every()).pixels
    assert pixels.shape[:2] == shape
    height, width = shape
    quarters = pixels[..., 0].reshape(2, height // 2, 2, width // 2).mean(axis=(1, 3))
    assert tuple(np.unravel_index(quarters.argmax(), (2, 2))) == corner and np.sort(quarters.ravel())[-2] < 40


def test_an_hour_is_followed_up_to_the_limit_and_it_is_said(tmp_path):
    black = np.zeros((16, 16, 3), np.uint8)
    path = write(tmp_path / "a.mp4", frames=3600, rate=1, size=(16, 16), code="mp4v", paint=lambda k: black)
    frames, notes = every(path)
    assert len(frames) == 601 and notes == ["The first 600 of 3600 seconds were looked at."]
    assert len(every(path, replace(BOUNDS, stream_seconds=30))[0]) == 31


def test_no_limit_on_the_number_of_frames(tmp_path):
    frames, notes = every(write(tmp_path / "a.webm"), replace(BOUNDS, video_frames=7, video_seconds=1))
    assert len(frames) == 30 and notes == []


def test_a_truncated_video_gives_what_it_has_and_says_so(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3)).astype(np.uint8)
    path = write(tmp_path / "a.webm", frames=60, paint=lambda k: noise[k])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames, notes = every(path)
    assert 15 <= len(frames) <= 45 and len(notes) == 1 and "cut short" in notes[0]


def test_a_video_without_frames_is_a_sentence(tmp_path):
    path = write(tmp_path / "a.webm", frames=30)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="cannot be read"):
        every(path)
