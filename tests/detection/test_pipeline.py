"""Requests and results with a stub in place of the networks: checks, thresholds, masks, notes, videos, evaluation."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.common import backends, catalogue
from pipelines.common import limits as limits_module
from pipelines.common.errors import UserError
from pipelines.common.limits import Limits
from pipelines.detection import (
    Ablation,
    DetectionRequest,
    InputSize,
    Prediction,
    Video,
    detect_video,
    predict,
    run,
    trace,
)
from pipelines.detection.config import PRESETS
from pipelines.detection.evaluate import main as evaluate
from pipelines.detection.pipeline import cost

GREY = np.full((120, 200, 3), 120, np.uint8)
RED = np.zeros((120, 200, 3), np.uint8)
RED[..., 0] = 255
SURE, HALF = 8.0, 0.4  # logits against zeros: scores of nearly 1 and of somewhat over a half


class Stub:
    """Finds what it is told. Of a picture that is red in the first channel it also finds a cat that fills it."""

    def __init__(self, found, calls, outputs, scoring, masks):
        self.found, self.calls, self.outputs, self.scoring, self.with_masks = found, calls, outputs, scoring, masks

    def predict(self, images, size, masks=True, precision="float32", ablation=None):
        self.calls.append({"size": size, "masks": masks, "precision": precision, "ablation": ablation})
        return [self._one(image, masks) for image in images]

    def _one(self, image, masks):
        found = list(self.found)
        if image[..., 0].mean() > 200 > 50 > image[..., 2].mean():
            found.append((7, SURE, (0.5, 0.5, 1.0, 1.0)))
        logits = np.full((len(found), self.outputs), -20, np.float32)
        grids = np.full((len(found), 12, 20), -9, np.float32)
        for i, (k, logit, (cx, cy, w, h)) in enumerate(found):
            logits[i, k] = logit
            if self.scoring == "softmax":
                logits[i, -1] = 0
            rows, columns = (
                slice(round(12 * (cy - h / 2)), round(12 * (cy + h / 2))),
                slice(round(20 * (cx - w / 2)), round(20 * (cx + w / 2))),
            )
            grids[i, rows, columns] = 9
        boxes = np.array([f[2] for f in found], np.float32).reshape(-1, 4)
        return Prediction(logits, boxes, self.scoring, grids if masks and self.with_masks else None)

    def trace(self, image, size, ablation):
        return SimpleNamespace(image=image, size=size, ablation=ablation)


def entry(name, preset):
    file = catalogue.File("model", "README.md")  # any file that is there
    return catalogue.Entry(name, "detection", "detector", name, "detr", preset, "bundled", "own", "", (file,))


@pytest.fixture
def stubbed(monkeypatch):
    """Weights "voc" and "masks" without files, for both backends; returns the calls of the network."""
    calls = []

    def use(*found):
        def load(chosen, device="cpu"):
            if chosen.preset == "detr-resnet-50-panoptic":
                return Stub(found, calls, 251, "softmax", True)
            return Stub(found, calls, 20, "sigmoid", False)

        for backend in ("local", "reference"):
            monkeypatch.setitem(sys.modules, f"pipelines.detection.{backend}", SimpleNamespace(load=load))
        entries = [entry("voc", "voc"), entry("masks", "detr-resnet-50-panoptic")]
        monkeypatch.setattr(catalogue, "manifest", lambda: {e.id: e for e in entries})
        fresh = backends.Backends(10**9)
        monkeypatch.setattr(backends, "shared", lambda: fresh)
        return calls

    return use


DOG, PERSON = (11, SURE, (0.25, 0.5, 0.2, 0.4)), (14, HALF, (0.75, 0.5, 0.3, 0.8))


@pytest.mark.parametrize("backend", ["local", "reference"])
def test_objects_of_a_picture(stubbed, backend):
    calls = stubbed(PERSON, DOG)
    result = run(DetectionRequest(GREY, backend=backend))
    assert result.labels == ("dog", "person") and result.categories.tolist() == [12, 15]
    assert result.queries.tolist() == [1, 0] and len(result) == 2
    assert np.allclose(result.boxes, [[30, 36, 70, 84], [120, 12, 180, 108]], atol=1e-3)
    assert np.allclose(result.scores, [0.99966, 0.59869], atol=1e-4) and result.scores.dtype == np.float32
    assert (result.weights, result.backend, result.size) == ("voc", backend, (230, 384))
    assert result.device.startswith("cpu: ") and set(result.seconds) == {"load", "network", "finish"}
    assert result.masks is None and result.panoptic is None and result.segments == () and result.notes == ()
    assert calls == [{"size": InputSize(288, 384), "masks": True, "precision": "float32", "ablation": Ablation()}]


def test_no_object(stubbed):
    stubbed()
    result = run(DetectionRequest(GREY, nms=0.5))
    assert len(result) == 0 and result.boxes.shape == (0, 4) and result.labels == () and result.categories.shape == (0,)
    masked = run(DetectionRequest(GREY, weights="masks"))
    assert masked.masks.shape == (0, 120, 200) and not masked.panoptic.any() and masked.segments == ()


def test_thresholds_zero_and_one(stubbed):
    stubbed(DOG, PERSON)
    everything = run(DetectionRequest(GREY, threshold=0))
    assert len(everything) == 40 and everything.notes == ()  # two queries, twenty classes
    assert len(run(DetectionRequest(GREY, threshold=1))) == 0
    assert [len(run(DetectionRequest(GREY, threshold=t))) for t in (0.59, 0.6, 0.9999)] == [2, 1, 0]


def test_a_hundred_objects_and_more(stubbed):
    def row(n):
        return [(14, SURE - i / 100, (0.005 + 0.0049 * i, 0.5, 0.004, 0.5)) for i in range(n)]

    stubbed(*row(100))
    assert len(run(DetectionRequest(GREY))) == 100 and run(DetectionRequest(GREY)).notes == ()
    stubbed(*row(130))
    result = run(DetectionRequest(GREY))
    assert len(result) == 100 and result.queries.tolist() == list(range(100))
    assert result.notes == ("130 objects pass the threshold; the 100 surest are kept.",)


def test_classes_and_suppression(stubbed):
    stubbed(DOG, PERSON, (11, HALF, (0.26, 0.5, 0.2, 0.4)))
    assert run(DetectionRequest(GREY)).labels == ("dog", "person", "dog")
    assert run(DetectionRequest(GREY, classes=("dog",))).queries.tolist() == [0, 2]
    assert run(DetectionRequest(GREY, nms=0.5)).queries.tolist() == [0, 1]
    assert run(DetectionRequest(GREY, nms=1)).queries.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": GREY[..., 0]}, "array of shape"),
        ({"image": GREY.astype(np.float32)}, "array of shape"),
        ({"image": None}, "array of shape"),
        ({"image": GREY[:0]}, "no pixels"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": 1.1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": float("inf")}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
        ({"threshold": None}, "threshold"),
        ({"nms": float("nan")}, "suppression"),
        ({"nms": 2}, "suppression"),
        ({"weights": "nonsense"}, "no weights called"),
        ({"weights": 3}, "no weights called"),
        ({"backend": "somebody"}, "no implementation called"),
        ({"classes": ("unicorn",)}, "no class called “unicorn”"),
        ({"classes": "dog"}, "list of names"),
        ({"classes": (3,)}, "list of names"),
        ({"precision": "int4"}, "precision"),
        ({"input": InputSize(16, 384)}, "between 32 and 1600"),
        ({"input": InputSize(800, 4000)}, "between 32 and 1600"),
        ({"input": InputSize(400, 300)}, "shortest first"),
        ({"input": InputSize(300.5, 400)}, "whole numbers"),
        ({"input": (300, 400)}, "whole numbers"),
        ({"ablation": Ablation(queries=frozenset({60}))}, "queries 0 to 59"),
        ({"ablation": Ablation(heads=frozenset({(3, 0)}))}, "layers 0 to 2"),
        ({"ablation": None}, "Ablation"),
        ({"ablation": Ablation(encoder=False), "backend": "reference"}, "choose local"),
    ],
)
def test_requests_that_cannot_be_served_say_why(stubbed, change, words):
    stubbed(DOG)
    with pytest.raises(UserError, match=words):
        run(replace(DetectionRequest(GREY), **change))


def test_options_reach_the_network(stubbed):
    calls = stubbed(DOG)
    ablation = Ablation(queries=frozenset({3}), heads=frozenset({(2, 3)}), positions=False)
    run(DetectionRequest(GREY, input=InputSize(96, 160), masks=False, precision="reduced", ablation=ablation))
    assert calls == [{"size": InputSize(96, 160), "masks": False, "precision": "reduced", "ablation": ablation}]
    looked = trace(GREY, "voc", InputSize(96, 160), ablation)
    assert looked.size == InputSize(96, 160) and looked.ablation == ablation and looked.image is GREY


def test_predict_gives_what_the_network_said(stubbed):
    stubbed(DOG, PERSON)
    prediction = predict(DetectionRequest(GREY, threshold=0.9))
    assert prediction.logits.shape == (2, 20) and prediction.scoring == "sigmoid" and len(prediction.boxes) == 2


def test_reduced_precision_that_is_none_is_said(stubbed, monkeypatch):
    from pipelines.common.device import pick as real
    from pipelines.detection import pipeline

    stubbed(DOG)
    monkeypatch.setattr(pipeline.forms, "device", lambda precision, config: replace(real(), dtype="float32"))
    assert "float32 was used" in run(DetectionRequest(GREY, precision="reduced")).notes[0]
    monkeypatch.setattr(pipeline.forms, "device", lambda precision, config: replace(real(), dtype="bfloat16"))
    assert run(DetectionRequest(GREY, precision="reduced")).notes == ()


# --- masks -----------------------------------------------------------------------------------------------------------

CAT, SKY = (17, SURE, (0.25, 0.75, 0.5, 0.5)), (187, SURE, (0.5, 0.25, 1.0, 0.5))


def test_masks_and_the_panoptic_map(stubbed):
    stubbed(CAT, SKY, (187, SURE, (0.75, 0.75, 0.5, 0.5)))
    result = run(DetectionRequest(GREY, weights="masks"))
    assert result.labels == ("cat", "sky-other-merged", "sky-other-merged") and result.categories.tolist() == [
        17,
        187,
        187,
    ]
    assert result.masks.shape == (3, 120, 200) and result.masks.dtype == bool
    assert result.masks[0, 65:, :95].all() and not result.masks[0, :55].any()
    assert [(s.id, s.label, s.thing) for s in result.segments] == [(1, "cat", True), (2, "sky-other-merged", False)]
    assert result.panoptic.dtype == np.int32 and result.panoptic[100, 50] == 1 and result.panoptic[20, 100] == 2
    assert result.panoptic[100, 150] == 2  # the second piece of sky
    assert sum(s.area for s in result.segments) == np.count_nonzero(result.panoptic)


def test_masks_can_be_left_out_and_filtered(stubbed):
    stubbed(CAT, SKY)
    plain = run(DetectionRequest(GREY, weights="masks", masks=False))
    assert plain.masks is None and plain.panoptic is None and len(plain) == 2
    cats = run(DetectionRequest(GREY, weights="masks", classes=("cat",)))
    assert cats.labels == ("cat",) and len(cats.masks) == 1 and [s.label for s in cats.segments] == ["cat"]
    assert cats.panoptic[100, 50] == 1 and not cats.panoptic[:50].any()


def test_masks_past_the_limit_are_left_out_with_a_note(stubbed, monkeypatch):
    from pipelines.detection import pipeline

    stubbed(CAT, SKY)
    monkeypatch.setattr(pipeline, "limits", lambda: replace(limits_module.limits(), mask_pixels=2 * 120 * 200 - 1))
    result = run(DetectionRequest(GREY, weights="masks"))
    assert result.masks is None and result.panoptic.any() and "masks of 2 objects" in result.notes[0]


# --- pictures --------------------------------------------------------------------------------------------------------


def test_pure_red_arrives_as_red(stubbed):
    stubbed()
    assert run(DetectionRequest(RED)).labels == ("cat",)
    assert run(DetectionRequest(np.ascontiguousarray(RED[..., ::-1]))).labels == ()


@pytest.mark.parametrize(("shape", "seen"), [((40, 2000), (8, 384)), ((2000, 40), (384, 8)), ((1, 1), (288, 288))])
def test_panoramas_and_a_single_pixel(stubbed, shape, seen):
    stubbed(DOG)
    result = run(DetectionRequest(np.zeros((*shape, 3), np.uint8)))
    assert result.size == seen and len(result) == 1
    height, width = shape
    expected = [0.15 * width, 0.3 * height, 0.35 * width, 0.7 * height]
    assert np.allclose(result.boxes[0], expected, atol=1e-3)
    if shape != (1, 1):
        assert "50 times as long" in result.notes[0] and f"{seen[1]}×{seen[0]}" in result.notes[0]
    else:
        assert result.notes == ()


def test_cost_of_an_input_size():
    config = PRESETS["detr-resnet-50"]
    assert cost(config, 480, 640, config.input) == 1
    assert cost(config, 480, 640, InputSize(400, 1333)) == pytest.approx(0.25, abs=0.001)


# --- videos ----------------------------------------------------------------------------------------------------------


def test_a_video_frame_by_frame(stubbed, tmp_path):
    calls = stubbed(DOG)
    path = str(tmp_path / "a.mp4")
    writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(20):
        writer.write(np.ascontiguousarray(cv2.resize(RED, (64, 48))[..., ::-1]))
    writer.release()
    request = DetectionRequest(GREY, weights="auto")
    with Video(path) as video:
        seen = list(detect_video(video, request, rate=5))
    assert [frame.index for frame, _ in seen] == list(range(0, 20, 2)) and len(calls) == 10
    assert all(result.labels == ("cat", "dog") or result.labels == ("dog", "cat") for _, result in seen)
    with Video(path, replace(Limits(), video_frames=3)) as video:
        assert len(list(detect_video(video, request, rate=5))) == 3 and "first 3 frames" in video.notes[0]
    with Video(path) as video:
        stream = detect_video(video, request, rate=5)
        next(stream)
        stream.close()  # a visitor presses stop
    assert len(calls) == 14


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("dog", "person"), ("Dog ", "cat")])
def test_a_folder_is_evaluated(stubbed, tmp_path, names, capsys):
    """Two photos, a dog in each; the stub finds it in both, and a person in none that the data has."""
    pytest.importorskip("faster_coco_eval")
    stubbed(DOG)
    (tmp_path / "images").mkdir()
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 120} for i in (5, 6)],
        "categories": [{"id": 40 + k, "name": name} for k, name in enumerate(names)],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 40, "bbox": [30, 36, 40, 48], "area": 1920, "iscrowd": 0},
            {"id": 2, "image_id": 6, "category_id": 40, "bbox": [30, 36, 40, 48], "area": 1920, "difficult": 1},
        ],
    }
    (tmp_path / "val.json").write_text(json.dumps(data))
    for i in (5, 6):
        Image.fromarray(GREY).save(tmp_path / "images" / f"{i}.png")
    scores = evaluate(["--data", str(tmp_path), "--json", str(tmp_path / "out.json")])
    assert scores.ap == pytest.approx(1) and scores.classes == {names[0]: pytest.approx(1)}
    assert (scores.images, scores.objects, scores.ignored) == (2, 1, 1)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["ap50"] == pytest.approx(1) and written["weights"] == "voc" and written["backend"] == "local"
    assert "mAP@0.5 1.0000" in capsys.readouterr().out
    assert evaluate(["--data", str(tmp_path), "--limit", "1"]).images == 1
    assert evaluate(["--data", str(tmp_path), "--model", str(tmp_path), "--backend", "reference"]).ap == pytest.approx(
        1
    )


def test_data_with_other_classes_is_refused(stubbed, tmp_path):
    stubbed(DOG)
    (tmp_path / "val.json").write_text(
        json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]})
    )
    with pytest.raises(ValueError, match="none of the classes"):
        evaluate(["--data", str(tmp_path)])
