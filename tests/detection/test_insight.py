"""The life of a query, attention in a box, and the reckoning after an ablation, all by hand."""

import numpy as np
import pytest

from pipelines.detection.contract import Prediction, Trace
from pipelines.detection.insight import (
    Named,
    Outcome,
    answering,
    at_point,
    box_area,
    doubles,
    heard,
    in_common,
    life,
    likeliest,
    reckon,
    share_inside,
)

YES, NO = 2.0, -4.0  # logits; sigmoid 0.8808 and 0.0180


def made(logits, boxes, attention=None, scoring="sigmoid"):
    logits, boxes = np.array(logits, np.float32), np.array(boxes, np.float32)
    layers, queries = logits.shape[:2]
    heard_of = np.full((layers, 2, queries, queries), 1 / queries, np.float32) if attention is None else attention
    return Trace(logits, boxes, heard_of, np.zeros((layers, 2, queries, 3, 4), np.float32), scoring, (30, 40))


LEFT, SHIFTED, RIGHT = (0.25, 0.5, 0.5, 1.0), (0.375, 0.5, 0.25, 1.0), (0.75, 0.5, 0.5, 1.0)


@pytest.fixture
def told():
    """Query 0: class 0, then 2; its first box is half of its last. Query 1: class 2 throughout. Query 2: silent."""
    logits = [
        [[YES, NO, NO], [NO, NO, YES], [NO, NO, NO - 1]],
        [[NO, NO, 1.0], [NO, NO, YES], [NO, NO, NO - 1]],
    ]
    boxes = [[SHIFTED, RIGHT, LEFT], [LEFT, RIGHT, LEFT]]
    return life(made(logits, boxes), {0, 1, 2})


def test_a_life_has_classes_scores_flips_and_overlaps(told):
    assert told.layers == 2
    assert told.classes.tolist() == [[0, 2, 0], [2, 2, 0]]
    assert told.flips.tolist() == [[False] * 3, [True, False, False]]
    assert told.scores[:, 0] == pytest.approx([0.880797, 0.731059], abs=1e-5)
    assert told.overlaps.tolist() == [[0.5, 1, 1], [1, 1, 1]]
    assert told.boxes[1, 0].tolist() == [0, 0, 0.5, 1]


def test_classes_that_stand_for_nothing_are_never_the_likeliest():
    prediction = Prediction(np.array([[YES, NO, 0.0]], np.float32), np.zeros((1, 4), np.float32), "sigmoid")
    classes, scores = likeliest(prediction, {1, 2, 90})  # 0 stands for nothing, 90 is no output of this network
    assert classes.tolist() == [2] and scores.tolist() == [0.5]
    softmax = Prediction(np.log(np.array([[1, 2, 5]], np.float32)), np.zeros((1, 4), np.float32), "softmax")
    classes, scores = likeliest(softmax, {0, 1})  # the last is "no object"
    assert classes.tolist() == [1] and scores == pytest.approx([0.25])


def test_a_removed_query_scores_nothing():
    prediction = Prediction(np.full((1, 3), -np.inf, np.float32), np.zeros((1, 4), np.float32), "sigmoid")
    assert likeliest(prediction, {0, 1, 2})[1].tolist() == [0.0]


def test_answers_come_surest_first(told):
    assert answering(told, 0, 0.5).tolist() == [0, 1]  # of equals the first
    assert answering(told, 1, 0.5).tolist() == [1, 0]
    assert answering(told, 1, 0.8).tolist() == [1]
    assert answering(told, 1, 0.95).tolist() == []


def test_doubles_are_of_one_class_and_one_place():
    logits = [[[YES, NO], [1.0, NO], [NO, YES], [1.0, NO]]]
    told = life(made(logits, [[LEFT, LEFT, LEFT, RIGHT]]), {0, 1})
    assert doubles(told, 0, 0.5) == 1  # query 1; query 2 is of another class, query 3 elsewhere
    assert doubles(told, 0, 0.8) == 0


def test_a_click_takes_the_answer_whose_box_fits_best():
    small, large = (0.3, 0.3, 0.2, 0.2), (0.5, 0.5, 1.0, 1.0)
    told = life(made([[[YES, NO], [YES, NO], [NO, NO]]], [[large, small, (0.9, 0.9, 0.1, 0.1)]]), {0, 1})
    assert at_point(told, 0.31, 0.3, 0.5) == 1  # in both, nearer to the middle of the small one
    assert at_point(told, 0.6, 0.6, 0.5) == 0
    assert at_point(told, 0.9, 0.9, 0.5) == 0  # query 2 fits better but does not answer
    assert at_point(told, 0.9, 0.9, 0.01) == 2


def test_the_share_of_a_map_inside_a_box():
    maps = np.array([[[1, 1], [1, 1]], [[4, 0], [0, 0]], [[0, 0], [0, 0]]], float)
    assert share_inside(maps, np.array([0, 0, 0.5, 1])).tolist() == [0.5, 1.0, 0.0]
    # A box that covers three quarters of the width and half of the height of a flat map.
    assert share_inside(maps[0], np.array([0.25, 0.5, 1.0, 1.0])) == pytest.approx(0.375)
    assert share_inside(maps[1], np.array([0.25, 0.25, 1, 1])) == pytest.approx(0.25)
    assert box_area(np.array([0.25, 0.5, 1, 1])) == pytest.approx(0.375)


def test_what_two_maps_have_in_common():
    a, b = np.array([[1.0, 0], [0, 1]]), np.array([[2.0, 2], [0, 0]])
    assert in_common(a, a * 7) == pytest.approx(1)
    assert in_common(a, b) == pytest.approx(0.5)
    assert in_common(a, np.zeros((2, 2))) == 0


def test_whom_a_query_hears_most():
    attention = np.zeros((1, 2, 3, 3), np.float32)
    attention[0, 0, 0], attention[0, 1, 0] = [0.2, 0.8, 0], [0.6, 0.2, 0.2]
    trace = made([[[YES], [NO], [NO]]], [[LEFT] * 3], attention)
    found = heard(trace, 0, 0)
    assert [h.query for h in found] == [1, 0, 2]
    assert [h.weight for h in found] == pytest.approx([0.5, 0.4, 0.1])
    assert len(heard(trace, 0, 0, top=2)) == 2
    without = Trace(trace.logits, trace.boxes, np.zeros((0,)), trace.cross_attention, "sigmoid", (3, 4))
    assert heard(without, 0, 0) == ()


# --- the reckoning ---------------------------------------------------------------------------------------------------

A, B, C = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]


def named(*rows):
    boxes, labels, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return Named(np.array(boxes, np.float32).reshape(-1, 4), tuple(labels), np.array(scores, np.float32))


def outcomes(told):
    return [Outcome(int(o)).name for o in told.outcomes]


def test_hits_doubles_changes_false_alarms_and_misses():
    wanted = named((A, "cat", 1), (B, "dog", 1), (C, "cow", 1))
    found = named(
        ([0, 0, 10, 8], "cat", 0.7), (A, "cat", 0.9), (B, "horse", 0.8), ([60, 0, 70, 10], "cat", 0.5),
        ([20, 0, 24, 10], "dog", 0.9),
    )  # fmt: skip
    told = reckon(found, wanted)
    # The surer cat takes the object; the small dog box overlaps by 0.4 only.
    assert outcomes(told) == ["DOUBLE", "HIT", "CHANGED", "FALSE", "FALSE"]
    assert told.matched.tolist() == [0, 0, 1, -1, -1] and told.missed == (2,)
    assert told.overlap == pytest.approx(1.0)
    assert [told.count(o) for o in Outcome] == [1, 1, 1, 2]


def test_a_run_counted_against_itself_is_all_hits():
    run = named((A, "cat", 0.9), ([0, 0, 10, 9], "cat", 0.8), (B, "dog", 0.3))
    told = reckon(run, run)
    assert outcomes(told) == ["HIT"] * 3 and told.missed == () and told.overlap == pytest.approx(1)


def test_a_right_class_goes_before_a_changed_one_however_sure():
    told = reckon(named((A, "dog", 0.99), (A, "cat", 0.2)), named((A, "cat", 1)))
    assert outcomes(told) == ["FALSE", "HIT"]  # the object is taken, so that the dog is nobody's changed class


def test_one_object_is_not_found_twice_by_changed_classes():
    told = reckon(named((A, "dog", 0.9), (A, "cow", 0.8)), named((A, "cat", 1)))
    assert outcomes(told) == ["CHANGED", "FALSE"] and told.missed == ()


def test_the_overlap_of_half_counts_and_less_does_not():
    assert outcomes(reckon(named(([0, 0, 10, 5], "cat", 1)), named((A, "cat", 1)))) == ["HIT"]
    told = reckon(named(([0, 0, 10, 4.9], "cat", 1)), named((A, "cat", 1)))
    assert outcomes(told) == ["FALSE"] and told.missed == (0,)


def test_nothing_found_and_nothing_wanted():
    told = reckon(named(), named((A, "cat", 1)))
    assert told.missed == (0,) and told.overlap == 0 and len(told.outcomes) == 0
    assert outcomes(reckon(named((A, "cat", 1)), named())) == ["FALSE"]
    assert reckon(named(), named()).missed == ()
