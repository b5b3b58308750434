"""Scores, boxes, suppression, masks and the panoptic map against transformers' and torchvision's own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.detection import labels
from pipelines.detection.contract import Prediction
from pipelines.detection.labels import Category
from pipelines.detection.panoptic_merge import merge
from pipelines.detection.postprocess import best, masks, objects, overlaps, suppress, to_pixels

SIZE = (120, 200)  # height, width
NOTHING = {
    "softmax": Prediction(np.zeros((0, 6), np.float32), np.zeros((0, 4), np.float32), "softmax"),
    "sigmoid": Prediction(np.zeros((0, 5), np.float32), np.zeros((0, 4), np.float32), "sigmoid"),
}


def random_prediction(scoring, queries=100, outputs=21, seed=0, grid=None):
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 3, (queries, outputs)).astype(np.float32)
    boxes = np.concatenate([draw.uniform(0.2, 0.8, (queries, 2)), draw.uniform(0.05, 0.3, (queries, 2))], axis=1)
    found = None
    if grid:
        # Blobs, so that masks overlap as real ones do.
        rows, columns = np.mgrid[: grid[0], : grid[1]]
        centres = draw.uniform(0, 1, (queries, 2)) * grid
        spread = ((rows - centres[:, :1, None]) ** 2 + (columns - centres[:, 1:, None]) ** 2) / 2
        found = (6 - spread + draw.normal(0, 0.3, spread.shape)).astype(np.float32)
    return Prediction(logits, boxes.astype(np.float32), scoring, found)


def raw(prediction):
    """As the library's networks return it."""
    found = prediction.masks
    return SimpleNamespace(
        logits=torch.from_numpy(prediction.logits)[None],
        pred_boxes=torch.from_numpy(prediction.boxes)[None],
        pred_masks=None if found is None else torch.from_numpy(found)[None],
    )


def library(prediction, threshold):
    from transformers import DeformableDetrImageProcessor, DetrImageProcessor

    processor = (DetrImageProcessor if prediction.scoring == "softmax" else DeformableDetrImageProcessor)()
    return processor.post_process_object_detection(raw(prediction), threshold, [SIZE])[0]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_objects_are_the_librarys(scoring, threshold):
    prediction = random_prediction(scoring)
    ours, theirs = objects(prediction, SIZE, threshold), library(prediction, threshold)
    order = theirs["scores"].argsort(descending=True, stable=True)
    assert len(ours) == len(order) >= (1 if threshold < 0.9 else 0)
    assert np.allclose(ours.scores, theirs["scores"][order].numpy(), atol=1e-6)
    assert np.array_equal(ours.classes, theirs["labels"][order].numpy())
    limits = np.array([SIZE[1], SIZE[0]] * 2)
    assert np.allclose(ours.boxes, np.clip(theirs["boxes"][order].numpy(), 0, limits), atol=1e-3)


def test_softmax_leaves_no_object_out_of_the_choice_only():
    logits = np.log(np.array([[0.3, 0.1, 0.6], [0.2, 0.7, 0.1]], np.float32))
    found = objects(Prediction(logits, np.full((2, 4), 0.5, np.float32), "softmax"), SIZE, 0.0)
    assert found.classes.tolist() == [1, 0] and found.queries.tolist() == [1, 0]
    assert np.allclose(found.scores, [0.7, 0.3], atol=1e-6)


def test_sigmoid_lets_one_query_stand_for_two_classes():
    prediction = Prediction(np.array([[2.0, -1.0, 1.0]], np.float32), np.full((1, 4), 0.5, np.float32), "sigmoid")
    found = objects(prediction, SIZE, 0.5)
    assert found.classes.tolist() == [0, 2] and found.queries.tolist() == [0, 0]
    assert np.allclose(found.scores, [0.880797, 0.731059], atol=1e-5)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_thresholds_zero_and_one(scoring):
    prediction = random_prediction(scoring)
    assert len(objects(prediction, SIZE, 0.0)) == 100
    assert len(objects(prediction, SIZE, 1.0)) == 0
    certain = Prediction(np.array([[-200.0, 200.0, -200.0]], np.float32), prediction.boxes[:1], scoring)
    assert objects(certain, SIZE, 1.0).classes.tolist() == [1]  # a score of exactly 1 is at least 1


def test_class_filter():
    prediction = random_prediction("softmax")
    everything = objects(prediction, SIZE, 0.0)
    some = objects(prediction, SIZE, 0.0, classes={3, 5})
    assert set(some.classes) == {3, 5} and len(some) == int(np.isin(everything.classes, [3, 5]).sum())
    assert len(objects(prediction, SIZE, 0.0, classes=())) == 0


def test_boxes_are_clipped_and_those_without_area_or_number_go():
    boxes = np.array(
        [[0.5, 0.5, 0.2, 0.4], [0.0, 0.0, 0.5, 0.5], [1.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.0, 0.5],
         [np.nan, 0.5, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]], np.float32,
    )  # fmt: skip
    assert np.allclose(to_pixels(boxes[:2], SIZE), [[80, 36, 120, 84], [0, 0, 50, 30]], atol=1e-4)
    logits = np.full((6, 2), 3.0, np.float32)
    logits[5] = np.nan
    found = objects(Prediction(logits, boxes, "sigmoid"), SIZE, 0.0)
    assert sorted(set(found.queries)) == [0, 1]


def test_suppression_is_torchvisions():
    from torchvision.ops import batched_nms

    prediction = random_prediction("softmax", queries=300, outputs=4, seed=1)
    everything = objects(prediction, SIZE, 0.0, top=300)
    for overlap in (0.0, 0.1, 0.3, 0.7, 1.0):
        kept = suppress(everything.boxes, everything.scores, everything.classes, overlap)
        parts = (torch.from_numpy(a) for a in (everything.boxes, everything.scores, everything.classes))
        assert kept.tolist() == batched_nms(*parts, overlap).tolist()
        assert len(objects(prediction, SIZE, 0.0, nms=overlap, top=300)) == len(kept)
    assert len(suppress(everything.boxes, everything.scores, everything.classes, 1.0)) == len(everything)


def test_overlaps_by_hand():
    a, b = (
        np.array([[0, 0, 10, 10], [5, 5, 5, 9]], np.float32),
        np.array([[5, 0, 15, 10], [20, 20, 30, 30]], np.float32),
    )
    assert np.allclose(overlaps(a, b), [[50 / 150, 0], [0, 0]])
    assert overlaps(a, np.zeros((0, 4), np.float32)).shape == (2, 0)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_zero_queries(scoring):
    found = objects(NOTHING[scoring], SIZE, 0.0, nms=0.5)
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.scores.dtype == np.float32
    assert [len(part) for part in best(NOTHING[scoring])] == [0, 0, 0]


# --- masks -----------------------------------------------------------------------------------------------------------


def everything_a_thing(outputs):
    return {k: Category(k, f"class {k}") for k in range(outputs - 1)}


def test_masks_are_the_librarys():
    prediction = random_prediction("softmax", queries=6, grid=(15, 25))
    probability = torch.nn.functional.interpolate(
        torch.from_numpy(prediction.masks)[None].sigmoid(), SIZE, mode="bilinear", align_corners=False
    )[0]
    ours = masks(prediction, np.array([4, 1]), SIZE)
    assert ours.shape == (2, *SIZE) and ours.dtype == bool
    assert np.count_nonzero(ours != (probability[[4, 1]] >= 0.5).numpy()) <= 2
    assert masks(prediction, np.zeros(0, np.int64), SIZE).shape == (0, *SIZE)
    with pytest.raises(ValueError, match="no mask head"):
        masks(random_prediction("softmax"), np.array([0]), SIZE)


@pytest.mark.parametrize("seed", range(5))
def test_the_map_without_stuff_is_the_librarys(seed):
    from transformers import DetrImageProcessor

    prediction = random_prediction("softmax", queries=14, outputs=6, seed=seed, grid=(15, 25))
    outputs = raw(prediction)
    theirs = DetrImageProcessor().post_process_panoptic_segmentation(outputs, 0.5, target_sizes=[SIZE])[0]
    instances = DetrImageProcessor().post_process_instance_segmentation(outputs, 0.5, target_sizes=[SIZE])[0]
    ours, segments = merge(prediction, SIZE, everything_a_thing(6), 0.5)
    assert ours.shape == SIZE and ours.dtype == np.int32
    for map_ in (theirs["segmentation"], instances["segmentation"]):
        assert np.count_nonzero(ours != map_.numpy()) <= 3  # ties and last bits of the interpolation
    assert [(s.id, s.category) for s in segments] == [(s["id"], s["label_id"]) for s in theirs["segments_info"]]
    assert np.allclose([s.score for s in segments], [s["score"] for s in theirs["segments_info"]], atol=1e-5)
    assert len(segments) >= 2 and all(s.area == np.count_nonzero(ours == s.id) for s in segments)


@pytest.mark.parametrize("seed", range(5))
def test_stuff_of_a_class_is_one_segment(seed):
    prediction = random_prediction("softmax", queries=14, outputs=4, seed=seed, grid=(15, 25))
    things = everything_a_thing(4)
    mixed = {**things, 1: Category(1, "sky", False), 2: Category(2, "grass", False)}
    apart, pieces = merge(prediction, SIZE, things, 0.4)
    together, segments = merge(prediction, SIZE, mixed, 0.4)
    category = {s.id: s.category for s in pieces} | {0: -1}, {s.id: s.category for s in segments} | {0: -1}
    assert np.array_equal(np.vectorize(category[0].get)(apart), np.vectorize(category[1].get)(together))
    for k in (1, 2):
        assert sum(s.category == k for s in segments) == min(1, sum(s.category == k for s in pieces))
        assert all(not s.thing for s in segments if s.category == k)
    assert len({s.id for s in segments}) == len(segments)  # the library's can repeat


def hand_made(found, classes, outputs=4):
    logits = np.full((len(found), outputs), -20, np.float32)
    logits[np.arange(len(found)), classes] = 20
    return Prediction(logits, np.full((len(found), 4), 0.5, np.float32), "softmax", np.array(found, np.float32))


def test_a_mask_mostly_covered_by_a_stronger_one_is_dropped():
    strong, weak = np.full((10, 10), -9.0), np.full((10, 10), -9.0)
    strong[:, :6], weak[:, :8] = 9, 5  # of the weak one's 80 pixels, 20 are left
    rest = np.full((10, 10), -9.0)
    rest[:, 8:] = 9
    ids, segments = merge(hand_made([strong, weak, rest], [0, 1, 2]), (10, 10), everything_a_thing(4))
    assert [s.category for s in segments] == [0, 2]
    assert (ids[:, :6] == 1).all() and (ids[:, 6:8] == 0).all() and (ids[:, 8:] == 2).all()


def test_specks_are_dropped_and_their_pixels_shared_out():
    ground, speck = np.full((10, 10), 4.0), np.full((10, 10), -9.0)
    speck[2:4, 2:4] = 9
    ids, segments = merge(hand_made([ground, speck], [0, 1]), (10, 10), everything_a_thing(4))
    assert [(s.category, s.area) for s in segments] == [(0, 100)] and (ids == 1).all()
    speck[4, 4] = 9  # five pixels stay
    ids, segments = merge(hand_made([ground, speck], [0, 1]), (10, 10), everything_a_thing(4))
    assert [(s.category, s.area) for s in segments] == [(0, 95), (1, 5)]


def test_no_object_anywhere_is_an_empty_map():
    prediction = hand_made([np.full((4, 4), 9.0)], [3])
    ids, segments = merge(prediction, SIZE, everything_a_thing(4))
    assert ids.shape == SIZE and not ids.any() and segments == ()
    gap = {k: v for k, v in everything_a_thing(4).items() if k != 1}
    assert merge(hand_made([np.full((4, 4), 9.0)], [1]), SIZE, gap)[1] == ()


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_of_voc_and_coco():
    from torchvision.models._meta import _COCO_CATEGORIES

    voc, coco, panoptic = (labels.categories(key) for key in ("voc", "coco", "coco_panoptic"))
    assert list(voc) == list(range(20)) and voc[0] == Category(1, "aeroplane") and voc[19] == Category(20, "tvmonitor")
    assert len(coco) == 80 and all(k == c.id and c.name == _COCO_CATEGORIES[k] for k, c in coco.items())
    assert 12 not in coco and coco[90].name == "toothbrush"
    assert len(panoptic) == 133 and sum(c.thing for c in panoptic.values()) == 80
    assert all(panoptic[k] == c for k, c in coco.items())
    assert panoptic[187] == Category(187, "sky-other-merged", False) and max(panoptic) == 200
    assert all(not c.thing for k, c in panoptic.items() if k > 90)


def test_names_and_synonyms():
    assert labels.indices("voc", ("person", "cat")) == {14, 7} and labels.indices("coco", ("person",)) == {1}
    with pytest.raises(KeyError):
        labels.indices("voc", ("unicorn",))
    assert {labels.same(n) for n in labels.names("voc")} <= {labels.same(n) for n in labels.names("coco")}
