"""Average precisions by hand, and the evaluation over feature files by the authors' rules."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines.action import evaluate as evaluation
from pipelines.action.config import PRESETS
from pipelines.action.evaluate import Video, evaluate, read_videos
from pipelines.action.metrics import average_precision, frame_scores
from pipelines.common.errors import UserError
from tests.action.brains import lively


def by_the_book(scores, positive, calibrated):
    """The authors' loop (De Geest's formula), for scores that all differ."""
    weight = (positive == 0).sum() / (positive == 1).sum() if calibrated else 1.0
    hits, total = 0, 0.0
    for rank, at in enumerate(np.argsort(-scores), start=1):
        if positive[at]:
            hits += 1
            total += weight * hits / (weight * hits + rank - hits)
    return total / positive.sum()


def test_by_hand():
    scores, positive = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 0, 1, 0, 0])
    assert average_precision(scores, positive) == pytest.approx((1 + 2 / 3) / 2)
    # w = 3 / 2: behind the second positive 3 / (3 + 1).
    assert average_precision(scores, positive, calibrated=True) == pytest.approx((1 + 3 / 4) / 2)


def test_rare_classes_are_judged_alike_when_calibrated():
    """Half of all negatives stand before the positives: the plain score sinks with rarity, the calibrated does not."""
    for negatives in (2, 20, 2000):
        scores = np.concatenate((np.full(negatives // 2, 3.0), [2.0], np.full(negatives // 2, 1.0)))
        positive = scores == 2.0
        assert average_precision(scores, positive) == pytest.approx(1 / (1 + negatives / 2))
        assert average_precision(scores, positive, calibrated=True) == pytest.approx(2 / 3)


def test_equal_scores_have_no_order():
    positive = np.array([True, False, False, False])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        assert average_precision(np.zeros(4), positive[order]) == pytest.approx(0.25)
        assert average_precision(np.zeros(4), positive[order], calibrated=True) == pytest.approx(0.5)


@pytest.mark.parametrize("calibrated", [False, True])
def test_as_the_authors_compute_it(calibrated):
    rng = np.random.default_rng(0)
    for share in (0.5, 0.02):
        scores, positive = rng.permutation(500) / 500, rng.random(500) < share
        found = average_precision(scores, positive, calibrated)
        assert found == pytest.approx(by_the_book(scores, positive, calibrated), abs=1e-12)
        assert 0.01 < found < 0.7


def test_edges():
    assert math.isnan(average_precision(np.zeros(3), np.zeros(3, bool)))
    assert average_precision(np.array([0.1, 0.2]), np.array([True, True]), calibrated=True) == 1.0
    assert math.isnan(average_precision(np.zeros(0), np.zeros(0, bool)))
    with pytest.raises(ValueError, match="not finite"):
        average_precision(np.array([math.nan, 1.0]), np.array([True, False]))
    with pytest.raises(ValueError, match="same length"):
        average_precision(np.zeros(3), np.zeros(2, bool))


def test_frames_by_hand():
    probabilities = np.array([[0.1, 0.9, 0.0], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.0, 0.2, 0.8]])
    found = frame_scores(probabilities, np.array([1, 0, 2, 2]), ("nothing", "run", "jump"))
    assert found.ap == pytest.approx({"run": 1.0, "jump": (1 + 2 / 3) / 2})  # second and third are equal at 0.1
    assert found.calibrated == pytest.approx({"run": 1.0, "jump": (1 + 2 / 3) / 2})  # as many with as without
    assert found.mean_ap == pytest.approx((1 + 5 / 6) / 2) and found.chunks == 4
    # A chunk of two classes counts for both; a class that no chunk has, for none.
    both = np.array([[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    found = frame_scores(probabilities, both, ("nothing", "run", "jump"))
    assert found.ap["run"] == pytest.approx((1 + 1 + 3 / 4) / 3) and math.isnan(found.ap["jump"])
    assert found.mean_ap == found.ap["run"]


def test_ambiguous_chunks_are_left_out():
    probabilities = np.array([[0.0, 0.5, 0.5], [0.0, 0.9, 0.1], [0.0, 0.1, 0.9]])
    targets = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    found = frame_scores(probabilities, targets, ("nothing", "run", "unclear"), ambiguous=2)
    assert found.ap == {"run": 1.0} and found.chunks == 2
    assert frame_scores(probabilities, targets, ("nothing", "run", "unclear")).ap["run"] == 0.5


# --- feature files ---------------------------------------------------------------------------------------------------

CONFIG = PRESETS["tiny-authors"]  # 16 chunks, 4 future, 40 features, 7 classes
LABELS = tuple("abcdefg")


def video(length, seed, name="v"):
    rng = np.random.default_rng(seed)
    targets = np.eye(7, dtype=np.float32)[rng.integers(0, 7, length)]
    return Video(name, rng.standard_normal((length, 40)).astype(np.float32), targets)


def write(folder, item):
    np.save(folder / f"{item.name}_rgb.npy", item.features[:, :24])
    np.save(folder / f"{item.name}_flow.npy", item.features[:, 24:])
    np.save(folder / f"{item.name}.npy", item.targets)


def test_the_authors_rules():
    network, item = lively("tiny-authors"), video(30, 0)
    found = evaluate(network, [item, video(20, 1)], LABELS, ambiguous=6)
    # Windows [0, 16) to [9, 25): one fewer than would fit, as the authors' loop ends.
    newest = np.arange(15, 25)
    judged = newest[item.targets[newest].argmax(1) != 6]
    assert found.videos == 2 and found.too_short == 1 and found.current.chunks == len(judged) < 10
    windows = torch.stack([torch.from_numpy(item.features[k - 15 : k + 1]) for k in judged])
    now, later = network(windows)
    wanted = now[:, :6].softmax(1).numpy()
    for k in range(1, 6):
        ap = average_precision(wanted[:, k], item.targets[judged, k] == 1)
        assert found.current.ap[LABELS[k]] == pytest.approx(ap, nan_ok=True)
    assert "g" not in found.current.ap and "a" not in found.current.ap
    ahead = later[:, 2, :6].softmax(1).numpy()
    aps = [average_precision(ahead[:, k], item.targets[judged + 3, k] == 1) for k in range(1, 6)]
    assert len(found.future) == 4 and found.future[2] == pytest.approx(np.nanmean(aps))


def test_streaming_scores_the_same():
    network, videos = lively("tiny-authors"), [video(40, 0), video(33, 1)]
    plain, streamed = (evaluate(network, videos, LABELS, streaming=s, batch=7) for s in (False, True))
    assert streamed.current.ap == pytest.approx(plain.current.ap)
    assert streamed.future == pytest.approx(plain.future) and plain.current.chunks == 20 + 13


def test_a_perfect_network_scores_one():
    class Oracle(torch.nn.Module):
        config = CONFIG
        positions = torch.zeros(1)

        def forward(self, windows):
            return windows[:, -1, :7], windows[:, -1, 7:35].unflatten(1, (4, 7))

    item = video(60, 3)
    for k in range(5):
        item.features[: 60 - k, 7 * k : 7 * k + 7] = 9 * item.targets[k:]
    found = evaluate(Oracle(), [item], LABELS)
    assert found.current.mean_ap == found.current.mean_calibrated == 1.0 and found.future == (1.0,) * 4


def test_files_are_read_as_they_are(tmp_path):
    for item in (video(30, 0, "b"), video(25, 1, "a")):
        write(tmp_path, item)
    found = list(read_videos(tmp_path, tmp_path, CONFIG))
    assert [each.name for each in found] == ["a", "b"]
    assert np.array_equal(found[1].features, video(30, 0).features) and found[0].targets.shape == (25, 7)
    assert [each.name for each in read_videos(tmp_path, tmp_path, CONFIG, ["b"])] == ["b"]


@pytest.mark.parametrize(
    ("name", "array", "sentence"),
    [
        ("v_rgb.npy", np.zeros((29, 24)), "29 chunks of RGB and 30"),
        ("v_rgb.npy", np.zeros((30, 23)), "23 \\+ 16 features a chunk, the network 40"),
        ("v.npy", np.zeros((30, 6)), "targets of v are \\(30, 6\\)"),
        ("v_flow.npy", np.full((30, 16), np.nan), "not finite"),
        ("v_flow.npy", np.zeros(30), "one row of numbers a chunk"),
        ("v_flow.npy", np.array([{"a": 1}], dtype=object), "Python objects, which are not read"),
        ("v_flow.npy", None, "no v_flow.npy"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, array, sentence):
    write(tmp_path, video(30, 0))
    (tmp_path / name).unlink()
    if array is not None:
        np.save(tmp_path / name, array, allow_pickle=True)
    with pytest.raises(UserError, match=sentence):
        list(read_videos(tmp_path, tmp_path, CONFIG))


def test_nothing_to_evaluate(tmp_path):
    with pytest.raises(UserError, match=r"no <video>_rgb\.npy"):
        list(read_videos(tmp_path, tmp_path, CONFIG))
    with pytest.raises(UserError, match="None of the 1 videos has 21 chunks"):
        evaluate(lively("tiny-authors"), [video(20, 0)], LABELS)


def test_the_command(tmp_path, capsys):
    write(tmp_path, video(60, 0, "v"))
    network = lively("tiny-authors")
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    places = ["--features", str(tmp_path), "--targets", str(tmp_path), "--out", str(tmp_path / "scores.json")]
    command = ["--checkpoint", str(tmp_path / "model.safetensors"), "--preset", "tiny-authors", *places]
    found = evaluation.main(command)
    assert found.current.chunks == 40 and "mcAP" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text())["current"]["mean_ap"] == found.current.mean_ap
    wanted = evaluate(network, [video(60, 0)], tuple("0123456"))
    assert found.current.ap == pytest.approx(wanted.current.ap)
    with pytest.raises(SystemExit):
        evaluation.main([*command, "--reduced"])
    assert "--reduced is of --streaming" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="damaged"):
        (tmp_path / "model.safetensors").write_bytes(b"x")
        evaluation.main(command)
