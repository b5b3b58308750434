"""The comparison itself, on landmarks made by hand."""

import numpy as np
import pytest

from pipelines.action.evaluate_pose import agreement, distances


def clip(frames=3):
    """Shoulders 0.2 of a picture of 100 x 200 apart: 40 pixels."""
    landmarks = np.full((frames, 33, 4), 0.5, np.float32)
    landmarks[:, 11, 0], landmarks[:, 12, 0] = 0.6, 0.4
    landmarks[..., 3] = 0.9
    return landmarks


def test_distances_are_in_shoulder_widths():
    theirs = clip()
    ours = theirs.copy()
    ours[1, :, 1] += 0.02  # 2 pixels of 100
    ours[2, 0, 0] += 0.33  # 66 pixels of 200, one landmark of 33
    ours[2, 5, 3] = 0.4
    theirs[2, 0, 3] = ours[2, 0, 3] = 0.1
    found = agreement([distances(ours, theirs, (100, 200))])
    assert (found.both, found.theirs, found.ours) == (3, 0, 0)
    assert found.mean == pytest.approx((0 + 0.05 + 1.65 / 33) / 3, rel=1e-4)
    assert found.median == pytest.approx(0.05, rel=1e-4)
    assert found.visible == pytest.approx(33 * 0.05 / 98, rel=1e-4)  # the far one is not seen
    assert found.visibility == pytest.approx(0.5 / 99, rel=1e-4)


def test_frames_of_one_alone_are_counted_and_not_compared():
    ours, theirs = clip(5), clip(4)
    ours[0], theirs[1] = np.nan, np.nan
    found = agreement([distances(ours, theirs, (100, 200)), distances(clip(), clip(), (100, 200))])
    assert (found.both, found.theirs, found.ours) == (5, 1, 1) and found.mean == 0.0
    with pytest.raises(ValueError, match="no frame"):
        agreement([distances(np.full((2, 33, 4), np.nan), clip(2), (100, 200))])
