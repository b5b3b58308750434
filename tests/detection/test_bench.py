"""What the benchmark says of two answers, by hand."""

import numpy as np
import pytest

from pipelines.detection.bench import differences
from pipelines.detection.contract import Prediction

BOXES = np.array([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2]], np.float32)


def test_differences_by_hand():
    wanted = Prediction(np.array([[4.0, -4.0, 0.0], [0.0, 0.0, 4.0]], np.float32), BOXES, "softmax")
    assert differences(wanted, wanted)["mean overlap"] == 1
    # The sure query's box moves by half its width; the other one, which is sure of nothing, does not count.
    moved = BOXES + np.array([[0.1, 0, 0, 0], [0.4, 0.4, 0, 0]], np.float32)
    found = differences(Prediction(wanted.logits + np.array([[0.5, 0, 0]]), moved, "softmax"), wanted)
    assert found["confident"] == 1 and found["same class"] == 1
    assert found["logits"] == pytest.approx(0.5) and found["mean logits"] == pytest.approx(1 / 6)
    assert found["boxes"] == pytest.approx(0.1) and found["mean boxes"] == pytest.approx(0.025)
    assert found["mean overlap"] == found["least overlap"] == pytest.approx(1 / 3, abs=1e-5)


def test_with_nothing_sure_there_are_no_boxes_to_compare():
    unsure = Prediction(np.zeros((2, 3), np.float32), BOXES, "softmax")
    assert differences(unsure, unsure) == {"logits": 0.0, "mean logits": 0.0, "confident": 0}
