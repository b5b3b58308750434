"""Streams: what comes in is checked, chunks are complete in time, and one visitor knows nothing of another."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.action import open_stream
from pipelines.action.clock import ChunkClock
from pipelines.action.pipeline import load, pose_of, watch
from pipelines.common.bench import torch_threads
from pipelines.common.errors import UserError
from tests.action.small import LABELS, small, standing

CLIP = Path(__file__).resolve().parents[2] / "assets" / "examples" / "action" / "jumping-jacks.webm"


@pytest.fixture
def entry(tmp_path, monkeypatch):
    with torch_threads(1):  # tiny networks on a busy machine would mostly wait for each other's threads
        yield small(tmp_path, monkeypatch, threshold=0.3, release=0.2)


def poses(count, seed=0):
    """Somebody who moves the arms: (count, 33, 4)."""
    rng = np.random.default_rng(seed)
    moving = np.repeat(standing()[None], count, axis=0)
    moving[:, 13:17, :2] += np.cumsum(rng.normal(0, 0.02, (count, 4, 2)), axis=0)
    return moving.astype(np.float32)


def run(stream, given, rate=20.0, start=0.0):
    """Updates by poses at a steady rate."""
    found = [stream.push_pose(pose, start + k / rate) for k, pose in enumerate(given)]
    return [update for update in found if update is not None]


def test_a_chunk_is_answered_with_the_first_frame_after_it(entry):
    with open_stream() as stream:
        found = [stream.push_pose(pose, k / 20) for k, pose in enumerate(poses(7))]
        assert [update is not None for update in found] == [False, False, True, False, True, False, True]
        update = found[2]
        assert update.labels == LABELS and update.probabilities.shape == (5,) and update.anticipated.shape == (3, 5)
        assert update.timestamp == pytest.approx(0.1) and [found[k].chunk for k in (2, 4, 6)] == [0, 1, 2]
        assert float(update.probabilities.sum()) == pytest.approx(1, abs=1e-5)
        assert (update.weights, update.backend, update.brain) == ("small", "local", "oadtr")
        assert np.array_equal(update.landmarks, poses(7)[1]), "of the chunk's last frame"
        assert update.seconds["model"] > 0 and "pose" not in update.seconds
        last = stream.finish()
        assert last.chunk == 3 and stream.finish() is None


def test_a_stream_is_what_the_backend_says_of_the_whole(entry):
    given = poses(60)
    with open_stream(keep=100) as stream:
        found = run(stream, given)
        features = np.stack([moment.features for moment in stream.past])
        assert len(found) == len(features) == 29
        whole, future = load(entry, "local").sequence(features)
        assert np.abs(whole - np.stack([update.probabilities for update in found])).max() < 1e-5
        assert np.abs(future - np.stack([update.anticipated for update in found])).max() < 1e-5


def test_two_streams_know_nothing_of_each_other(entry):
    a, b = poses(40, 1), poses(40, 2)
    with open_stream() as alone:
        wanted = [update.probabilities for update in run(alone, a)]
    with open_stream() as first, open_stream() as second:
        found = []
        for k in range(40):
            update = first.push_pose(a[k], k / 20)
            second.push_pose(b[k], k / 20)
            found += [] if update is None else [update.probabilities]
    assert np.array_equal(np.stack(found), np.stack(wanted))
    backend = load(entry, "local")
    assert not [name for name in vars(backend) if "past" in name or "state" in name]


def test_a_late_frame_is_passed_over_and_an_old_clock_begins_anew(entry):
    given = poses(12)
    with open_stream() as stream:
        run(stream, given)
        assert stream.push_pose(given[0], 0.55) is None and stream.push_pose(given[0], 0.3) is None
        assert stream.dropped == 2
        update = stream.push_pose(given[0], 0.6)
        assert update.dropped == 2 and update.chunk == 5
        wanted = run(open_stream(), given)
        stream.push_pose(given[5], 70.0)
        again = run(stream, given)  # the time is far back: the same video, played again
        assert [u.chunk for u in again] == [u.chunk for u in wanted]
        assert np.array_equal(again[-1].probabilities, wanted[-1].probabilities)


def test_chunks_without_a_frame_are_left_out_and_time_goes_on(entry):
    given = poses(20)
    with open_stream() as stream:
        run(stream, given[:4])  # to 0.15 s
        update = stream.push_pose(given[4], 0.52)
        assert update.chunk == 1
        assert stream.push_pose(given[5], 0.62).chunk == 5
        assert stream.push_pose(given[6], 3600.0).chunk == 6, "an hour's gap costs no hour"
        assert stream.push_pose(given[6], 3600.2).chunk == 36000


def test_a_gap_is_told_to_the_brain(entry):
    given = poses(20)
    with open_stream() as gap, open_stream() as nobody:
        for k in (0, 1, 2, 3, 14, 16):
            last = gap.push_pose(given[k], k / 20)
        for k in (0, 1, 2, 3, *range(4, 14, 2), 14, 16):
            unknown = np.full((33, 4), np.nan)
            other = nobody.push_pose(unknown if 3 < k < 14 else given[k], k / 20)
        assert np.abs(last.probabilities - other.probabilities).max() < 1e-6


def test_nobody_and_unknown_numbers(entry):
    with open_stream() as stream:
        found = run(stream, np.full((6, 33, 4), np.nan))
        assert found[0].landmarks is None and np.isfinite(found[0].probabilities).all()
        holes = poses(6)
        holes[:, 20:, :] = np.inf
        found = run(stream, holes, start=10.0)
        assert np.isfinite(found[-1].probabilities).all()
        assert np.isnan(found[-1].landmarks[20:]).all()


@pytest.mark.parametrize("wrong", [np.zeros((32, 4)), np.zeros((33, 3)), "pose", [[1, 2], [3]], None])
def test_what_is_no_pose(entry, wrong):
    with open_stream() as stream, pytest.raises(UserError, match="A pose must"):
        stream.push_pose(wrong, 0.0)
    assert pose_of(standing()).dtype == np.float32


def test_times_and_frames_that_cannot_be_served(entry):
    frame = np.zeros((48, 64, 3), np.uint8)
    with open_stream() as stream:
        for time in (np.nan, np.inf, None, "1", True):
            with pytest.raises(UserError, match="The time of a frame"):
                stream.push(frame, time)
        for picture in (frame[..., 0], frame.astype(float), np.zeros((0, 4, 3), np.uint8), None):
            with pytest.raises(UserError, match="picture"):
                stream.push(picture, 0.0)
        with pytest.raises(UserError, match="aspect"):
            stream.push_pose(standing(), 0.0, aspect=0)
        stream.close()
        stream.close()
        with pytest.raises(UserError, match="closed; open a new one"):
            stream.push(frame, 0.0)
        assert stream.finish() is None


def test_frames_of_any_size(entry):
    sizes = [(48, 64), (1, 1), (2160, 3840), (480, 640), (640, 480), (5, 900)]
    with open_stream() as stream:
        for k, (height, width) in enumerate(sizes):
            update = stream.push(np.zeros((height, width, 3), np.uint8), k / 10)
            assert stream.pose is None and (update is not None) == (k > 0)
        assert np.isfinite(update.probabilities).all() and update.seconds["pose"] > 0


def test_a_real_clip(entry):
    with open_stream(keep=100) as stream:
        found = list(watch(CLIP, stream))
        updates = [update for _, update in found if update is not None]
        assert len(found) == 97 and [update.chunk for update in updates] == list(range(32))
        assert all(update.landmarks is not None for update in updates)
        assert np.abs([m.features for m in stream.past]).max() > 0.5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weights": "none such"}, "no weights called"),
        ({"backend": "cloud"}, "no implementation"),
        ({"brain": "cat"}, "no brain called “cat”"),
        ({"threshold": 0}, "threshold must lie above 0"),
        ({"threshold": np.nan}, "threshold must lie above 0"),
        ({"threshold": 0.4, "release": 0.5}, "between 0 and the threshold"),
        ({"memory": 0}, "whole number of chunks"),
        ({"memory": 9}, "1 to 8 chunks"),
        ({"seed": -1}, "seed"),
        ({"keep": -1}, "can keep"),
        ({"colour": "red"}, "no such option: 'colour'"),
        ({"backend": "reference"}, "not on this machine: fetch it"),
        ({"weights": "small", "backend": "reference"}, "other implementation only: choose local"),
    ],
)
def test_options_that_cannot_be_served(entry, options, sentence):
    with pytest.raises(UserError, match=sentence):
        open_stream(**options)


def test_thresholds_follow_the_weights_and_can_be_moved(entry):
    with open_stream() as stream:
        assert (stream._calls.threshold, stream._calls.release) == (0.3, 0.2)
        stream.call_at(0.1)
        assert (stream._calls.threshold, stream._calls.release) == (0.1, pytest.approx(0.06))
        update = run(stream, poses(4))[0]
        assert update.action == LABELS[int(update.probabilities[1:].argmax()) + 1]
        stream.call_at(1.0, 1.0)
        assert run(stream, poses(4), start=5.0)[-1].action is None
        with pytest.raises(UserError, match="threshold"):
            stream.call_at(2)


@pytest.mark.parametrize("brain", ["oadtr", "linear", "gru", "none"])
def test_every_brain_answers_with_every_switch(entry, brain):
    given = poses(30)
    with open_stream(brain=brain, attention=True) as stream:
        plain = run(stream, given)
    with open_stream(brain=brain, shuffled=True) as stream:
        shuffled = run(stream, given)
    moved = np.abs(plain[-1].probabilities - shuffled[-1].probabilities).max()
    assert moved > 1e-6 if brain != "none" else moved == 0.0
    assert (plain[-1].attention is not None) == (brain in ("oadtr", "linear"))
    if brain in ("oadtr", "linear"):
        assert plain[-1].attention.shape == (8,) and 0 < plain[-1].attention.sum() < 1


def test_the_clock_counts_what_is_late():
    wall = [0.0]
    clock = ChunkClock(lambda: wall[0])
    for k in range(4):
        wall[0] = k / 10 + 0.02
        clock.came(k / 10)
        wall[0] += 0.05  # what looking at it takes is not the camera's delay
        clock.advance(k / 10)
        clock.answered(max(0, k - 1))
    assert clock.late == 0
    wall[0] = 0.42
    clock.came(0.4)
    wall[0] = 0.51
    clock.advance(0.4)
    clock.answered(3)
    assert clock.late == 0
    wall[0] = 0.53
    clock.answered(3)
    assert clock.late == 1, "0.11 s after its end, by a clock that is 0.02 s ahead"
    assert clock.end_of(3) == pytest.approx(0.4) and clock.chunk == 4
