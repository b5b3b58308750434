"""The slot map's numbers by hand, and its memory."""

import numpy as np
import pytest

from pipelines.detection.slots import (
    Cache,
    Shape,
    SlotMap,
    busiest,
    describe,
    fixed_share,
    shapes,
    shuffled,
    spread,
    views,
)


def slot_map(centres, scores=None, wanted=None):
    """centres: (P, Q, 2)."""
    centres = np.array(centres, np.float32)
    boxes = np.concatenate([centres, np.full(centres.shape, 0.5, np.float32)], axis=2)
    scores = np.full(centres.shape[:2], 0.9, np.float32) if scores is None else np.array(scores, np.float32)
    classes = np.arange(scores.size).reshape(scores.shape) % 3
    return SlotMap(boxes, scores, classes, len(boxes) if wanted is None else wanted)


def test_views_are_the_picture_its_mirror_and_its_corners():
    image = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    whole, mirror, *corners = views(image)
    assert np.array_equal(whole, image) and np.array_equal(mirror[:, ::-1], image)
    assert [c.shape for c in corners] == [(7, 14, 3)] * 4
    assert np.array_equal(corners[0], image[:7, :14]) and np.array_equal(corners[3], image[3:, 6:])
    assert [v.shape for v in views(np.zeros((1, 1, 3), np.uint8))] == [(1, 1, 3)] * 6


def test_shapes_of_boxes():
    sizes = [(0.2, 0.2), (0.9, 0.3), (0.3, 0.9), (0.5, 0.5), (0.5, 0.4), (0.9, 0.05)]
    boxes = np.array([(0.5, 0.5, w, h) for w, h in sizes])
    named = [Shape(int(k)).name for k in shapes(boxes)]
    assert named == ["SMALL", "WIDE", "TALL", "LARGE", "LARGE", "SMALL"]


def test_spread_is_in_sides_of_the_picture():
    found = slot_map([[[0.2, 0.5], [0.5, 0.5]], [[0.8, 0.5], [0.5, 0.5]]])
    assert spread(found.boxes) == pytest.approx([0.3, 0.0])


def test_how_much_is_fixed():
    still = slot_map([[[0.1, 0.1], [0.9, 0.9]]] * 3)
    assert fixed_share(still.boxes) == pytest.approx(1)
    free = slot_map([[[0.1, 0.5], [0.1, 0.5]], [[0.9, 0.5], [0.9, 0.5]]])
    assert fixed_share(free.boxes) == pytest.approx(0)
    # Mean places 0.4 and 0.6; each strays by 0.1: 0.01 of 0.02 is between them.
    half = slot_map([[[0.3, 0.5], [0.5, 0.5]], [[0.5, 0.5], [0.7, 0.5]]])
    assert fixed_share(half.boxes) == pytest.approx(0.5)
    assert fixed_share(slot_map([[[0.5, 0.5]]]).boxes) == 0


def test_the_control_deals_the_same_boxes_to_other_queries():
    places = np.linspace(0.05, 0.95, 40)
    found = slot_map([[(x, x) for x in places]] * 25)
    dealt = shuffled(found.boxes)
    assert np.allclose(np.sort(dealt[..., 0], axis=1), np.sort(found.boxes[..., 0], axis=1))
    assert fixed_share(found.boxes) == pytest.approx(1) and fixed_share(dealt) < 0.1  # about one in 25


def test_one_slot_described():
    found = slot_map([[[0.2, 0.4]], [[0.4, 0.4]], [[0.6, 0.4]]], [[0.9], [0.2], [0.5]])
    found = SlotMap(found.boxes, found.scores, np.array([[4], [1], [4]]), 3)
    told = describe(found, 0, 0.5)
    assert told.answers == 2 and told.classes == ((4, 2),) and told.shapes == (0, 0, 0, 3)
    assert told.centre == pytest.approx([0.4, 0.4]) and told.spread == pytest.approx(np.sqrt(0.08 / 3))
    assert describe(found, 0, 0.95).classes == ()


def test_the_busiest_come_first():
    found = slot_map([[[0.5, 0.5]] * 3] * 2, [[0.6, 0.1, 0.9], [0.6, 0.2, 0.1]])
    assert busiest(found, 0.5).tolist() == [0, 2, 1]
    assert busiest(found, 0.95).tolist() == [0, 2, 1]  # nobody answers: by the mean score


def test_the_cache_keeps_a_few_whole_maps():
    cache = Cache(kept=2)
    whole = slot_map([[[0.5, 0.5]]])
    cache.put("half", slot_map([[[0.5, 0.5]]], wanted=2))
    assert cache.get("half") is None and not slot_map([[[0.5, 0.5]]], wanted=2).done
    for name in ("a", "b"):
        cache.put(name, whole)
    assert cache.get("a") is whole  # now b is the older one
    cache.put("c", whole)
    assert cache.get("b") is None and cache.get("a") is whole and cache.get("c") is whole
