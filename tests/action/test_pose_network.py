"""The interpreters: found through the catalogue, lent to one run at a time, and honest about a broken file."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipelines.action import pose_network
from pipelines.action.pose_network import Network
from pipelines.common import catalogue, checkpoint
from pipelines.common.errors import UserError


@pytest.fixture(scope="module")
def detector():
    entry = catalogue.resolve("action", "auto", "pose")
    assert entry.id == "blazepose"
    return Network(checkpoint.paths(entry)["detector"], copies=2)


def pictures(count):
    return np.random.default_rng(0).random((count, 224, 224, 3)).astype(np.float32) * 2 - 1


def test_all_streams_have_the_same_networks():
    assert pose_network.shared() is pose_network.shared("blazepose")
    assert pose_network.shared().landmarks.shape == (1, 256, 256, 3)
    with pytest.raises(UserError, match="no weights called"):
        pose_network.shared("movenet")


def test_outputs_are_as_the_file_orders_them_and_belong_to_the_caller(detector):
    first, other = pictures(2)
    boxes, scores = detector(first, (0, 1))
    assert boxes.shape == (2254, 12) and scores.shape == (2254, 1)
    before = boxes.copy()
    (swapped,) = detector(other, (1,))
    assert np.array_equal(boxes, before) and swapped.shape == (2254, 1) and not np.array_equal(swapped, scores)


def test_runs_that_meet_do_not_mix(detector):
    shown = pictures(4)
    alone = [detector(picture, (0,))[0] for picture in shown]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda k: detector(shown[k % 4], (0,))[0], range(12)))
    assert all(np.array_equal(together[k], alone[k % 4]) for k in range(12))
    assert 1 <= len(detector._free) <= 2


def test_another_shape_is_refused_and_the_interpreter_given_back(detector):
    with pytest.raises(ValueError):
        detector(np.zeros((256, 256, 3), np.float32), (0,))
    assert detector(pictures(1)[0], (1,))[0].shape == (2254, 1)


@pytest.mark.parametrize("content", [b"", b"no network at all", bytes(5000)])
def test_a_damaged_file_is_a_sentence(tmp_path, content):
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        Network(path)
