"""The trace is the fast path with everything kept; explanations name the rule; what-if is a fresh run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.common import catalogue
from pipelines.face import insight, local
from pipelines.face import trace as tracing
from pipelines.face.bench import collage, portraits
from pipelines.face.cascade import overlap_smaller, overlap_union
from pipelines.face.config import CascadeOptions
from pipelines.face.insight import STAGES, explain_point, replay, what_if
from pipelines.face.trace import Fate

PHOTOS = sorted((Path(__file__).parents[2] / "assets" / "examples" / "face").glob("*.jpg"))


@pytest.fixture(scope="module")
def ours():
    return local.load(catalogue.manifest()["mtcnn"])


@pytest.fixture(scope="module")
def image():
    return collage(portraits(), 900, 700, 4)


@pytest.fixture(scope="module")
def run(ours, image):
    return ours.trace(image)


def same(a, b):
    return len(a) == len(b) and all(
        np.allclose(x, y, atol=1e-3) for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_trace_finds_the_same_faces(ours, path):
    image = np.asarray(Image.open(path).convert("RGB"))
    for options in (CascadeOptions(), CascadeOptions(thresholds=(0.4, 0.4, 0.4), min_face=40, factor=0.6)):
        assert same(ours.trace(image, options).faces, ours.detect(image, options))


def test_trace_of_small_and_empty_pictures(ours):
    for shape in ((1, 1), (1, 5000), (19, 30), (25, 25), (200, 300)):
        run = ours.trace(np.full((*shape, 3), 128, np.uint8))
        assert len(run.faces) == 0 and len(run.output) == 0
        assert [count.kept for count in replay(run)][2] == 0
        assert explain_point(run, 0, 0).face is None


def test_every_candidate_has_one_true_fate(run):
    options = run.options
    for k, stage in enumerate((run.proposals, run.refined, run.output)):
        threshold = options.thresholds[k]
        for i in range(len(stage)):
            fate, score = Fate(stage.fates[i]), stage.scores[i]
            if fate is Fate.OUTSIDE:
                assert np.isnan(score)
            elif k:
                assert (fate is Fate.BELOW) == (not score > threshold)
            else:
                assert score >= threshold
            gone = fate in (Fate.SAME_LEVEL, Fate.SUPPRESSED)
            assert gone == (stage.by[i] >= 0) == (stage.overlaps[i] > 0)
            if gone:
                _check_suppression(options, stage, i, k, fate)


def _check_suppression(options, stage, i, k, fate):
    by = stage.by[i]
    boxes = stage.calibrated if k == 2 else stage.boxes
    overlap = (overlap_smaller if k == 2 else overlap_union)(boxes[by], boxes[i : i + 1])[0]
    limit = options.nms_level if fate is Fate.SAME_LEVEL else options.nms[k]
    assert stage.overlaps[i] == overlap > limit
    assert stage.scores[by] >= stage.scores[i]
    assert stage.fates[by] in (Fate.KEPT, Fate.SUPPRESSED) if fate is Fate.SAME_LEVEL else stage.fates[by] == Fate.KEPT
    if fate is Fate.SAME_LEVEL:
        assert stage.parents[by] == stage.parents[i]


def test_parents_lead_back_to_a_cell(run):
    assert set(run.refined.parents) == set(run.proposals.kept)
    assert set(run.output.parents) == set(run.refined.kept)
    assert set(run.face_ids) == set(run.output.kept)
    for i, face in enumerate(run.face_ids):
        np.testing.assert_array_equal(run.output.calibrated[face], run.faces.boxes[i])
        parent = run.output.parents[face]
        np.testing.assert_array_equal(run.output.boxes[face], run.refined.calibrated[parent])
        first = run.refined.parents[parent]
        level = run.levels[run.proposals.parents[first]]
        assert level.probability.reshape(-1)[run.proposals.cells[first]] == run.proposals.scores[first]


def test_replay_counts_everything(run):
    counts = replay(run)
    assert [count.stage for count in counts] == list(STAGES)
    for count in counts:
        gone = count.below + count.outside + count.same_level + count.suppressed + count.crowded
        assert count.entered == gone + count.kept
    assert counts[0].entered == sum(level.probability.size for level in run.levels) > 50_000
    assert counts[1].entered == counts[0].kept and counts[2].entered == counts[1].kept
    assert counts[2].kept == len(run.faces) >= 4
    assert counts[0].below > 0 and counts[0].same_level > 0 and counts[1].below > 0 and counts[2].suppressed > 0


def test_a_face_is_explained_as_found(run):
    for i, box in enumerate(run.faces.boxes):
        told = explain_point(run, *((box[:2] + box[2:]) / 2))
        assert told.face == i and f"number {i + 1}" in told.verdict
        assert any(r.stage == "O-Net" and r.fate is Fate.KEPT for r in told.candidates)
        assert any(cell.passed for cell in told.cells)


def test_no_face_is_explained_by_the_stage_that_said_no(run):
    height, width = run.image.shape[:2]
    verdicts = set()
    for y in range(5, height, 67):
        for x in range(5, width, 67):
            told = explain_point(run, x, y)
            assert all(0 <= cell.probability <= 1 for cell in told.cells)
            if told.face is not None:
                continue
            if not told.candidates:
                assert "P-Net saw no face" in told.verdict and not any(cell.passed for cell in told.cells)
                verdicts.add("cells")
            else:
                last = max(told.candidates, key=lambda record: STAGES.index(record.stage)).stage
                assert last in told.verdict
                verdicts.add(last)
    assert {"cells", "R-Net"} <= verdicts


def test_the_threshold_is_named(ours, image):
    strict = ours.trace(image, CascadeOptions(thresholds=(0.6, 0.7, 1.0)))
    free = ours.trace(image)
    centre = (free.faces.boxes[0, :2] + free.faces.boxes[0, 2:]) / 2
    told = explain_point(strict, *centre)
    assert told.face is None and "ended at O-Net" in told.verdict
    assert "is not above the threshold 1.00" in told.verdict
    below = [record for record in told.candidates if record.stage == "O-Net"]
    assert below and all(record.fate is Fate.BELOW for record in below)
    assert [record.score for record in below] == sorted((record.score for record in below), reverse=True)


def test_suppression_is_named(run):
    i = int(np.flatnonzero(run.output.fates == Fate.SUPPRESSED)[0])
    centre = (run.output.boxes[i, :2] + run.output.boxes[i, 2:]) / 2
    record = next(r for r in explain_point(run, *centre).candidates if r.stage == "O-Net" and r.index == i)
    by = run.output.by[i]
    assert f"candidate {by} with score {run.output.scores[by]:.3f}" in record.reason
    assert f"overlaps {run.output.overlaps[i]:.2f} (more than 0.70)" in record.reason


def test_points_at_and_beyond_the_border(run):
    height, width = run.image.shape[:2]
    for x, y in ((0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)):
        told = explain_point(run, x, y)
        assert len(told.cells) == len(run.levels)
    for x, y in ((-1, 5), (width, 5), (5, height), (1e9, 1e9)):
        assert explain_point(run, x, y).verdict == "This point lies outside the picture."


def test_a_picture_smaller_than_the_smallest_face(ours):
    told = explain_point(ours.trace(np.zeros((15, 15, 3), np.uint8)), 3, 3)
    assert told.verdict == "The picture is smaller than the smallest face that is searched for, 20 pixels."


THRESHOLDS = [
    (0.6, 0.7, 0.7), (0.3, 0.7, 0.7), (0.9, 0.7, 0.7), (0.6, 0.1, 0.7), (0.6, 0.7, 0.05), (0.2, 0.2, 0.2),
    (0.8, 0.95, 0.9995), (1.0, 1.0, 1.0),
]  # fmt: skip


@pytest.mark.parametrize("thresholds", THRESHOLDS, ids=str)
def test_what_if_is_a_fresh_run(ours, image, run, thresholds):
    told = what_if(ours.networks, run, thresholds)
    fresh = ours.trace(image, CascadeOptions(thresholds=thresholds))
    assert same(told.faces, fresh.faces)
    assert replay(told.trace) == replay(fresh)
    assert told.trace.options == fresh.options
    back = what_if(ours.networks, told.trace, run.options.thresholds)  # and back again
    assert same(back.faces, run.faces)


def test_what_if_names_who_came_and_went(ours, run):
    loose = what_if(ours.networks, run, (0.6, 0.2, 0.05))
    assert len(loose.faces) > len(run.faces) and len(loose.gained) >= 1 and loose.lost == ()
    none = what_if(ours.networks, run, (0.6, 0.7, 1.0))
    assert len(none.faces) == 0 and none.lost == tuple(range(len(run.faces))) and none.gained == ()


def test_what_if_does_not_repeat_work(ours, run, monkeypatch):
    monkeypatch.setattr(tracing, "scan", None)  # P-Net would fail
    monkeypatch.setattr(insight, "look", None)  # and so would a second look
    assert what_if(ours.networks, run, (0.6, 0.7, 0.9)).looked_again == 0
    assert what_if(ours.networks, run, run.options.thresholds).looked_again == 0
    monkeypatch.undo()
    assert what_if(ours.networks, run, (0.4, 0.7, 0.7)).looked_again > 0
