"""Scores on cases worked out by hand, difficult objects above all, and a run over a folder with a stub in place of a
network."""

import copy
import math

import numpy as np
import pytest

pytest.importorskip("faster_coco_eval")

from pipelines.detection.evaluate import as_detections, score
from pipelines.detection.postprocess import Objects


def truth(*objects, images=1, categories=("cat", "dog")):
    """objects: (image, category, box) or (image, category, box, extra)."""
    return {
        "images": [{"id": i + 1, "file_name": f"{i + 1}.png", "width": 400, "height": 300} for i in range(images)],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(categories)],
        "annotations": [
            {"id": 7 + i, "image_id": o[0], "category_id": o[1], "bbox": list(o[2]), "area": o[2][2] * o[2][3],
             "iscrowd": 0, **(o[3] if len(o) > 3 else {})}
            for i, o in enumerate(objects)
        ],
    }  # fmt: skip


def found(image, category, box, value):
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": value}


BOX, OTHER, FAR = (10, 10, 100, 80), (200, 50, 60, 60), (300, 200, 50, 50)


def test_a_perfect_answer_is_one():
    data = truth((1, 1, BOX), (2, 2, OTHER), images=2)
    result = score(data, [found(1, 1, BOX, 0.9), found(2, 2, OTHER, 0.3)])
    assert result.ap == pytest.approx(1) and result.ap50 == pytest.approx(1) and result.found50 == pytest.approx(1)
    assert result.classes == {"cat": pytest.approx(1), "dog": pytest.approx(1)}
    assert (result.images, result.objects, result.ignored) == (2, 2, 0)


def test_misses_and_wrong_boxes_cost_what_they_should():
    data = truth((1, 1, BOX), (1, 1, OTHER))
    # One of two found: precision 1 up to recall 0.5, that is 51 of 101 steps.
    assert score(data, [found(1, 1, BOX, 0.9)]).ap50 == pytest.approx(51 / 101)
    # A wrong box scored higher halves the precision of a single hit.
    single = truth((1, 1, BOX))
    assert score(single, [found(1, 1, FAR, 0.95), found(1, 1, BOX, 0.9)]).ap50 == pytest.approx(0.5)
    assert score(single, [found(1, 1, FAR, 0.85), found(1, 1, BOX, 0.9)]).ap50 == pytest.approx(1)
    # A second box on the same object is wrong as well.
    assert score(single, [found(1, 1, BOX, 0.95), found(1, 1, BOX, 0.9)]).ap50 == pytest.approx(1)
    double = truth((1, 1, BOX), (1, 1, OTHER))
    late = [found(1, 1, BOX, 0.95), found(1, 1, BOX, 0.9), found(1, 1, OTHER, 0.5)]
    assert score(double, late).ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_overlap_decides_at_which_thresholds_a_box_counts():
    data = truth((1, 1, (0, 0, 100, 100)))
    result = score(data, [found(1, 1, (0, 0, 100, 72), 0.9)])  # overlap 0.72: right at 0.50 to 0.70, five of ten
    assert result.ap50 == pytest.approx(1) and result.ap == pytest.approx(0.5)


DIFFICULT = {"difficult": 1}


def test_difficult_objects_change_nothing_found_or_not():
    plain, with_difficult = truth((1, 1, BOX)), truth((1, 1, BOX), (1, 1, OTHER, DIFFICULT))
    hit = found(1, 1, BOX, 0.5)
    on_difficult = [found(1, 1, OTHER, 0.9), found(1, 1, OTHER, 0.8)]
    expected = score(plain, [hit])
    for extra in ([], on_difficult[:1], on_difficult):
        result = score(with_difficult, [hit, *extra])
        assert (result.ap, result.ap50, result.classes) == (expected.ap, expected.ap50, expected.classes)
        assert (result.objects, result.ignored) == (1, 1)
    # The planted fault: were the object not marked, the same boxes would change the score.
    unmarked = truth((1, 1, BOX), (1, 1, OTHER))
    assert score(unmarked, [hit]).ap50 < 0.6
    assert score(plain, [hit, *on_difficult]).ap50 == pytest.approx(1 / 3)


def test_a_box_inside_a_difficult_object_is_wrong_but_inside_a_crowd_it_is_not():
    large, small = (100, 100, 200, 200), (110, 110, 30, 30)
    hit, inside = found(1, 1, BOX, 0.5), found(1, 1, small, 0.9)
    assert score(truth((1, 1, BOX), (1, 1, large, DIFFICULT)), [hit, inside]).ap50 == pytest.approx(0.5)
    assert score(truth((1, 1, BOX), (1, 1, large, {"iscrowd": 1})), [hit, inside]).ap50 == pytest.approx(1)


def test_a_class_with_only_difficult_objects_is_not_averaged():
    data = truth((1, 1, BOX), (1, 2, OTHER, DIFFICULT))
    result = score(data, [found(1, 1, BOX, 0.9), found(1, 2, FAR, 0.9)])
    assert result.classes == {"cat": pytest.approx(1)} and result.ap50 == pytest.approx(1)


def test_nothing_found_and_nothing_to_find():
    assert score(truth((1, 1, BOX)), []).ap50 == 0
    empty = score(truth(), [found(1, 1, BOX, 0.9)])
    assert math.isnan(empty.ap) and math.isnan(empty.ap50) and empty.classes == {}


def test_arguments_are_left_alone_and_bad_ones_refused():
    data, detections = truth((1, 1, BOX)), [found(1, 1, BOX, 0.9)]
    before = copy.deepcopy((data, detections))
    score(data, detections)
    assert (data, detections) == before
    for bad in (found(1, 1, BOX, math.nan), found(1, 1, (0, 0, math.inf, 1), 0.5), found(9, 1, BOX, 1),
                found(1, 9, BOX, 1)):  # fmt: skip
        with pytest.raises(ValueError):
            score(data, [bad])


def test_only_the_hundred_best_of_a_picture_count():
    wrong = [found(1, 1, FAR, 0.5 + i / 1000) for i in range(100)]
    assert score(truth((1, 1, BOX)), [*wrong, found(1, 1, BOX, 0.4)]).ap50 == 0
    assert score(truth((1, 1, BOX)), [*wrong[1:], found(1, 1, BOX, 0.4)]).ap50 == pytest.approx(1 / 100)


def test_objects_become_detections_in_the_categories_of_the_data():
    objects = Objects(
        np.array([[1, 2, 11, 22], [0, 0, 5, 5]], np.float32), np.array([0.75, 0.5], np.float32),
        np.array([3, 4]), np.array([0, 1]),
    )  # fmt: skip
    assert as_detections(objects, 8, {3: 17}) == [
        {"image_id": 8, "category_id": 17, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.75}
    ]
