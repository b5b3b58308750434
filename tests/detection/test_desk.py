"""The Hungarian desk: rows as visitors leave them, and an assignment that is priced as training prices it."""

import math

import numpy as np
import pytest
import torch

from pipelines.common.errors import UserError
from pipelines.detection.config import PRESETS, LossWeights, loss_weights
from pipelines.detection.criterion import Target, set_loss
from pipelines.detection.desk import MOST, PARTS, greedy, read_rows, settle, shown_queries, to_rows
from pipelines.detection.output import Output

SIZE = (100, 200)  # height, width
GOOD = ["dog", 10, 20, 60, 80]


def read(*rows):
    return read_rows(rows, SIZE, "voc")


def test_good_rows():
    truth = read(GOOD, ["cat", "0", " 1.5 ", "200", "99"])
    assert truth.boxes.tolist() == [[10, 20, 60, 80], [0, 1.5, 200, 99]] and truth.boxes.dtype == np.float32
    assert truth.labels == ("dog", "cat") and truth.classes.tolist() == [11, 7] and truth.notes == ()


def test_corners_in_any_order_are_a_box():
    assert read(["dog", 60, 20, 10, 80]).boxes.tolist() == [[10, 20, 60, 80]]
    assert read(["dog", 60, 80, 10, 20]).boxes.tolist() == [[10, 20, 60, 80]]


def test_either_name_of_a_thing_is_understood():
    truth = read(["Couch ", 0, 0, 9, 9], ["motorcycle", 0, 0, 9, 9])
    assert truth.labels == ("sofa", "motorbike") and truth.notes == ()
    assert read_rows([["sofa", 0, 0, 9, 9]], SIZE, "coco").labels == ("couch",)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (["dgo", 10, 20, 60, 80], "“dgo” is no class"),
        (["<b>x</b>" * 20, 10, 20, 60, 80], "is no class"),
        (["", 10, 20, 60, 80], "it has no class"),
        ([None, 10, 20, 60, 80], "it has no class"),
        (["dog", 10, 20, "", 80], "four numbers"),
        (["dog", 10, 20, "wide", 80], "four numbers"),
        (["dog", 10, 20, math.nan, 80], "four numbers"),
        (["dog", 10, 20, math.inf, 80], "four numbers"),
        (["dog", 10, 20, 1e300, 80], "four numbers"),
        (["dog", 10, 20], "four numbers"),
        (["dog", 10, 20, 10, 80], "no area"),
        (["dog", 10, 20, 60, 20], "no area"),
        (["dog", 300, 20, 400, 80], "outside the picture"),
        (["dog", -50, 20, -10, 80], "outside the picture"),
        (["dog", 200, 20, 210, 80], "outside the picture"),
    ],
)
def test_a_bad_row_is_left_out_with_a_sentence_and_the_others_stay(row, said):
    truth = read(row, GOOD)
    assert truth.labels == ("dog",) and truth.boxes.tolist() == [[10, 20, 60, 80]]
    assert len(truth.notes) == 1 and truth.notes[0].startswith("Row 1: ") and said in truth.notes[0]
    assert len(truth.notes[0]) < 120


def test_a_box_beyond_the_picture_is_cut_off():
    truth = read(["dog", -10, 50, 100, 150])
    assert truth.boxes.tolist() == [[0, 50, 100, 100]] and "cut off" in truth.notes[0]
    assert read(["dog", 0, 0, 200.004, 100]).notes == ()


def test_empty_rows_count_for_nothing():
    truth = read([None] * 5, ["", " ", "", "", ""], [], GOOD, [math.nan] * 5)
    assert len(truth) == 1 and truth.notes == ()
    assert len(read()) == 0 and read().boxes.shape == (0, 4)


def test_too_many_rows():
    truth = read(*[GOOD] * (MOST + 3))
    assert len(truth) == MOST and truth.notes == (f"Only the first {MOST} boxes are used.",)


def test_rows_survive_the_way_there_and_back():
    truth = read(GOOD, ["cat", 0.25, 1.5, 200, 99])
    assert to_rows(truth.boxes, truth.labels) == [["dog", 10, 20, 60, 80], ["cat", 0.2, 1.5, 200, 99]]


# --- the assignment --------------------------------------------------------------------------------------------------


def scene(scoring, queries=7, objects=3, seed=0):
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(queries, 5 + (scoring == "softmax"))).astype(np.float32)
    boxes, targets = ((draw.random((n, 4)) * 0.4 + 0.2).astype(np.float32) for n in (queries, objects))
    return logits, boxes, draw.integers(0, 5, objects), targets


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("objects", [0, 1, 3, 9])  # 9: more than there are queries
@pytest.mark.parametrize("weights", [LossWeights(), LossWeights(2.0, 3.5, 0.7, 0.3), LossWeights(0, 0, 1, 1)])
def test_the_loss_is_that_of_training(scoring, objects, weights):
    logits, boxes, classes, targets = scene(scoring, objects=objects)
    found = settle(logits, boxes, scoring, classes, targets, weights)
    output = Output(torch.from_numpy(logits)[None, None], torch.from_numpy(boxes)[None, None])
    target = Target(torch.from_numpy(classes), torch.from_numpy(targets))
    parts = set_loss(output, [target], weights, scoring)
    assert found.loss == pytest.approx(float(sum(parts.values())), rel=1e-5)
    assert found.losses[:, 1].sum() == pytest.approx(float(parts["l1"]), rel=1e-5)
    assert found.losses[:, 2].sum() == pytest.approx(float(parts["giou"]), rel=1e-5)
    assert found.losses[:, 0].sum() + found.silence == pytest.approx(float(parts["classification"]), rel=1e-5)
    assert (found.assigned >= 0).sum() == min(objects, 7) and (found.losses[found.assigned < 0] == 0).all()


def test_the_parts_add_up_to_the_total_and_move_with_their_weights():
    logits, boxes, classes, targets = scene("sigmoid")
    one = settle(logits, boxes, "sigmoid", classes, targets, LossWeights(1, 5, 2))
    two = settle(logits, boxes, "sigmoid", classes, targets, LossWeights(1, 10, 2))
    assert np.allclose(sum(one.costs[name] for name in PARTS), one.total, atol=1e-5)
    assert np.allclose(two.costs["l1"], 2 * one.costs["l1"]) and np.allclose(two.costs["giou"], one.costs["giou"])
    assert one.price(one.assigned) <= one.price(one.greedy) + 1e-6


def test_a_pair_priced_by_hand():
    logits = np.log(np.array([[1, 2, 1], [1, 1, 6]], np.float32))  # softmax 1/4 1/2 1/4 and 1/8 1/8 6/8
    boxes = np.array([[0.25, 0.5, 0.4, 0.4], [0.75, 0.5, 0.4, 0.4]], np.float32)
    lower = np.array([[0.25, 0.6, 0.4, 0.4]], np.float32)
    found = settle(logits, boxes, "softmax", np.array([1]), lower, LossWeights(1, 5, 2, 0.1))
    assert found.assigned.tolist() == [0] and found.greedy.tolist() == [0]
    assert found.costs["classification"][0, 0] == pytest.approx(-0.5)
    assert found.costs["l1"][0, 0] == pytest.approx(0.5)  # 5 x 0.1
    assert found.costs["giou"][0, 0] == pytest.approx(-2 * 0.6)  # 0.3 of 0.5 high, the hull is the union
    # Cross-entropies log 2 and log 4/3, weights 1 and 0.1 of their mean.
    assert found.losses[0] == pytest.approx([math.log(2) / 1.1, 0.5, 2 * 0.4], abs=1e-5)
    assert found.silence == pytest.approx(0.1 * math.log(4 / 3) / 1.1)


def test_greedy_takes_the_cheapest_pair_first_and_pays_for_it():
    total = np.array([[0.0, 0.1], [0.2, 9.0], [5.0, 5.0]])
    assert greedy(total).tolist() == [0, 2]  # the zero, then what is left of column 1
    assert greedy(np.zeros((2, 3))).tolist() == [0, 1, -1]
    assert greedy(np.zeros((3, 0))).tolist() == []


def test_where_greedy_and_hungarian_differ():
    # Query 0 lies on object 0 and is nearly as near to object 1; query 1 is a little off object 0, far from object 1.
    boxes = np.array([[0.40, 0.5, 0.2, 0.2], [0.30, 0.5, 0.2, 0.2]], np.float32)
    targets = np.array([[0.38, 0.5, 0.2, 0.2], [0.50, 0.5, 0.2, 0.2]], np.float32)
    found = settle(np.zeros((2, 3), np.float32), boxes, "sigmoid", np.array([0, 0]), targets, LossWeights(0, 5, 0))
    assert found.assigned.tolist() == [1, 0] and found.greedy.tolist() == [0, 1]
    assert found.disagreements.tolist() == [0, 1]
    assert found.price(found.assigned) == pytest.approx(5 * (0.08 + 0.10), abs=1e-5)
    assert found.price(found.greedy) == pytest.approx(5 * (0.02 + 0.20), abs=1e-5)


def test_no_weight_on_no_object_is_silence_for_nothing():
    logits, boxes, classes, targets = scene("softmax")
    assert settle(logits, boxes, "softmax", classes, targets, LossWeights(1, 5, 2, 0)).silence == 0
    empty = settle(logits, boxes, "softmax", classes[:0], targets[:0], LossWeights(1, 5, 2, 0))
    assert empty.loss == 0 and empty.losses.shape == (0, 3)


@pytest.mark.parametrize("bad", [-0.1, 101, math.nan, math.inf, None, "2", True])
def test_weights_that_are_no_weights(bad):
    with pytest.raises(UserError, match="from 0 to 100"):
        settle(*scene("sigmoid")[:2], "sigmoid", *scene("sigmoid")[2:], LossWeights(1, bad, 2))


def test_the_rows_that_are_shown():
    logits, boxes, classes, targets = scene("sigmoid", queries=40)
    found = settle(logits, boxes, "sigmoid", classes, targets, LossWeights())
    shown = shown_queries(found, 12)
    assert len(shown) == len(set(shown)) == 12 and shown[:3] == found.assigned.tolist()
    crowd = settle(*scene("sigmoid", 40, 30)[:2], "sigmoid", *scene("sigmoid", 40, 30)[2:], LossWeights())
    assert set(crowd.assigned.tolist()) <= set(shown_queries(crowd, 12))
    nobody = settle(logits, boxes, "sigmoid", classes[:0], targets[:0], LossWeights())
    assert len(shown_queries(nobody, 12)) == 12


def test_each_family_starts_from_the_weights_it_was_trained_with():
    assert loss_weights(PRESETS["detr-resnet-50"]) == LossWeights(1, 5, 2, 0.1)
    assert loss_weights(PRESETS["voc"]) == LossWeights(2, 5, 2)
