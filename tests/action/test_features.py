"""The model's input: landmarks to joints, chunks to features, streamed and whole."""

import numpy as np
import pytest

from pipelines.action import features
from pipelines.action.features import JOINTS, WIDTH, FeatureStream, chunked, extract, joints_of, metre, middle, pool


def standing(frames: int = 60, seed: int = 0) -> np.ndarray:
    """Joints of somebody who stands and moves a little."""
    rng = np.random.default_rng(seed)
    pose = np.array([
        (0.50, 0.20), (0.56, 0.30), (0.44, 0.30), (0.58, 0.40), (0.42, 0.40), (0.58, 0.50), (0.42, 0.50),
        (0.54, 0.52), (0.46, 0.52), (0.54, 0.70), (0.46, 0.70), (0.54, 0.88), (0.46, 0.88),
    ])  # fmt: skip
    path = pose + np.cumsum(rng.normal(0, 0.002, (frames, 13, 2)), axis=0)
    return np.concatenate([path, np.full((frames, 13, 1), 0.9)], axis=-1).astype(np.float32)


def landmarks(frames: int = 6) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.concatenate([rng.uniform(0.2, 0.8, (frames, 33, 3)), np.full((frames, 33, 1), 0.8)], axis=-1)


def streamed(joints: np.ndarray, per_chunk: int = 3) -> np.ndarray:
    stream = FeatureStream()
    return np.stack([stream.step(joints[at : at + per_chunk]) for at in range(0, len(joints), per_chunk)])


def test_joints_come_from_the_right_landmarks():
    points = landmarks()
    joints = joints_of(points, aspect=2.0)
    assert joints.shape == (6, 13, 3) and joints.dtype == np.float32
    np.testing.assert_allclose(joints[:, 5], points[:, 15, [0, 1, 3]] * (2.0, 1.0, 1.0), rtol=1e-6)  # the left wrist
    ears = points[:, 7:9, :2].mean(axis=1) * (2.0, 1.0)
    np.testing.assert_allclose(joints[:, 0, :2], ears, rtol=1e-6)
    assert JOINTS[5] == "left wrist" and JOINTS[12] == "right ankle"


def test_head_without_ears_is_made_of_the_face():
    points = landmarks()
    points[:, 7:9] = np.nan
    points[:, 1:7] = np.nan
    points[:, 9:11] = np.nan
    np.testing.assert_allclose(joints_of(points, 1.0)[:, 0, :2], points[:, 0, :2], rtol=1e-6)


def test_unknown_visibility_of_a_known_place_is_full():
    points = landmarks()
    points[:, 11, 3] = np.nan
    points[:, 12, :] = np.nan
    joints = joints_of(points)
    assert (joints[:, 1, 2] == 1.0).all()
    assert (joints[:, 2, 2] == 0.0).all() and np.isnan(joints[:, 2, :2]).all()


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="33, 4"):
        joints_of(np.zeros((5, 17, 3)))


def test_streamed_is_whole_with_holes_and_missing_frames():
    joints = standing(90)
    joints[10:13] = np.nan  # one chunk without anybody: held
    joints[30:60] = np.nan  # long enough to be nobody
    joints[70] = np.nan  # a frame that was never taken
    joints[75:80, 5] = np.nan  # an unknown wrist
    whole = extract(chunked(joints, 3))
    np.testing.assert_array_equal(whole, streamed(joints))
    assert whole.shape == (30, WIDTH) and WIDTH == 235
    there = (whole != 0).any(axis=-1)
    # Three chunks are held after the last sight, and then nobody is there.
    np.testing.assert_array_equal(np.flatnonzero(~there), np.arange(13, 20))


def test_batch_is_single():
    both = np.stack([standing(60, 0), standing(60, 5)])
    both[1, 20:40] = np.nan
    np.testing.assert_array_equal(extract(chunked(both, 3))[1], extract(chunked(both[1], 3)))


def test_the_future_does_not_change_the_past():
    joints = standing(90)
    changed = joints.copy()
    changed[60:] += 0.3
    before, after = extract(chunked(joints, 3)), extract(chunked(changed, 3))
    np.testing.assert_array_equal(before[:20], after[:20])
    assert not np.array_equal(before[20], after[20])


def test_place_and_size_do_not_matter():
    joints = standing(90)
    moved = joints.copy()
    moved[..., :2] = joints[..., :2] * 0.5 + np.array([0.4, -0.1], np.float32)
    np.testing.assert_allclose(extract(chunked(moved, 3)), extract(chunked(joints, 3)), atol=2e-4)


def test_a_stream_without_frames_is_zero():
    stream = FeatureStream()
    assert not stream.step(np.zeros((0, 13, 3), np.float32)).any()
    assert not stream.step(np.full((3, 13, 3), np.nan, np.float32)).any()


def test_a_fast_clap_shows_in_the_way_gone():
    """Hands that go there and back within a chunk stand still at ten poses a second, but not in their way."""
    joints = standing(60)
    joints[:] = joints[0]
    still = extract(chunked(joints, 3))[-1]
    joints[1::3, 5:7, 0] += 0.05
    clapping = extract(chunked(joints, 3))[-1]
    way = slice(151, 155)
    assert still[way].max() == 0.0
    # Twice 0.05 picture heights of a metre that is 0.44 heights: the trunk of 0.22 for 0.5 m is the longest bone.
    size = 0.22 / 0.50
    np.testing.assert_allclose(clapping[way], [0, 0, 2 * 0.05 / size * 4, 2 * 0.05 / size * 4], rtol=0.03)


def test_distances_between_joints_do_not_mind_a_tilted_camera():
    joints = standing(60)
    turn = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]], np.float32)
    tilted = joints.copy()
    tilted[..., :2] = joints[..., :2] @ turn.T
    row, other = extract(chunked(joints, 3))[-1], extract(chunked(tilted, 3))[-1]
    assert len(row[157:]) == 78 and np.abs(row[:26] - other[:26]).max() > 0.2
    np.testing.assert_allclose(row[157:], other[157:], atol=1e-3)
    # The shoulders, pair 12 (after the twelve of the head); a metre is 0.44 picture heights.
    shoulders = abs(float(joints[-3:, 1, 0].mean() - joints[-3:, 2, 0].mean()))
    assert row[157 + 12] == pytest.approx((shoulders / 0.44 - 0.5) * 2, abs=0.02)
    joints[:, 2, 2] = 0.0
    assert extract(chunked(joints, 3))[-1][157 + 12] == 0.0  # of a joint that nobody trusts, nothing is told


def test_metre_takes_the_longest_looking_bone():
    pose = standing(1)[0]
    assert metre(pose) == pytest.approx(0.22 / 0.50, rel=0.02)
    pose[7:9] = np.nan  # no hips, shoulders of 0.12 for 0.36 m, a neck of 0.1 for 0.3 m: the upper arms
    assert metre(pose) == pytest.approx(np.hypot(0.02, 0.1) / 0.28, rel=0.05)
    assert np.isnan(metre(np.full((13, 3), np.nan, np.float32)))


def test_distrusted_joints_count_less():
    joints = standing(60)
    hidden = joints.copy()
    hidden[:, 11:, 2] = 0.0
    row, full = extract(chunked(hidden, 3))[-1], extract(chunked(joints, 3))[-1]
    assert not row[22:26].any() and full[22:26].any()
    np.testing.assert_array_equal(row[:22], full[:22])


def test_pool_averages_what_is_known():
    frames = standing(3)
    frames[1] = np.nan
    chunk = pool(frames)
    np.testing.assert_allclose(chunk[:, :2], (frames[0, :, :2] + frames[2, :, :2]) / 2, rtol=1e-6)
    one = frames[0].copy()
    one[1] = np.nan
    np.testing.assert_allclose(middle(one), one[2, :2])


def test_values_are_bounded_and_finite():
    joints = standing(90)
    joints[45:] += 50.0
    joints[20, 3] = 1e6
    rows = extract(chunked(joints, 3))
    assert np.isfinite(rows).all() and np.abs(rows).max() <= features.LARGEST
