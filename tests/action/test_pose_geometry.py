"""What needs no network: regions, crops, anchors, decoding, blended suppression, heat maps, who is followed."""

import math

import cv2
import numpy as np
import pytest

from pipelines.action import pose_detector, pose_landmarks
from pipelines.action.pose_detector import Person, anchors, blend
from pipelines.action.pose_landmarks import refine
from pipelines.action.pose_region import Region, between, whole
from pipelines.action.pose_tracker import choose


@pytest.mark.parametrize(
    ("rim", "angle"),
    [((100, 40), 0), ((160, 100), math.pi / 2), ((40, 100), -math.pi / 2), ((100, 160), math.pi)],
)
def test_the_rim_point_is_above_the_head(rim, angle):
    region = between(np.array([100.0, 100.0]), np.array(rim, float))
    assert region == Region(100.0, 100.0, pytest.approx(2 * 60 * 1.25), pytest.approx(angle))


def test_a_crop_maps_its_corners_to_the_turned_square():
    region = Region(100.0, 50.0, 40.0, math.pi / 2)  # a person who lies with the head to the right
    corners = region.to_picture(np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.5, 0.0]]))
    assert np.allclose(corners, [[120, 30], [120, 70], [100, 50], [120, 50]])


def test_a_crop_of_whole_pixels_is_the_picture_itself():
    picture = np.random.default_rng(0).integers(0, 256, (80, 100, 3)).astype(np.uint8)
    crop = Region(40.0, 30.0, 32.0).crop(picture, 32, cv2.BORDER_CONSTANT)
    assert np.array_equal(crop, picture[14:46, 24:56])


def test_a_turned_crop_stands_upright():
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[45:55, 70:80] = 255  # the head, to the right of the middle
    crop = Region(50.0, 50.0, 100.0, math.pi / 2).crop(picture, 100, cv2.BORDER_CONSTANT)
    down, across = np.argwhere(crop[..., 0] > 128).mean(axis=0)
    assert down == pytest.approx(25, abs=1) and across == pytest.approx(50, abs=1)


def test_places_are_rounded_to_a_32nd_of_a_pixel_as_in_opencv_4():
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    # 0.26 of a step of 4 is 1.04: at 8/32 it is 1.0, and the next value from 0.375 (12/32) on is 1.5, rounded to 2.
    for shift, extra in ((0.26, 1), (0.38, 2), (0.49, 2), (0.5 + 1 / 16, 2), (0.64, 3)):
        crop = Region(32.0 + shift, 32.0, 16.0).crop(ramp, 16, cv2.BORDER_CONSTANT)
        assert (crop[8].astype(int) - ramp[8, 24:40] == extra).all(), shift


def test_what_lies_outside_is_black_or_drawn_out():
    white = np.full((20, 20, 3), 255, np.uint8)
    assert whole(10, 20) == Region(10.0, 5.0, 20.0)
    assert Region(0.0, 10.0, 20.0).crop(white, 20, cv2.BORDER_CONSTANT)[:, :10].max() == 0
    assert Region(0.0, 10.0, 20.0).crop(white, 20, cv2.BORDER_REPLICATE).min() == 255


def test_places_far_outside_do_not_come_round_to_the_other_side():
    """A region may be fifty pictures wide, and its places need more than the map's 16 bits."""
    white = np.full((2000, 2000, 3), 255, np.uint8)
    region = Region(-30_000.0, 1000.0, 100_000.0)  # x from -80,000 to 20,000
    assert region.usable(2000, 2000)
    seen = region.crop(white, 256, cv2.BORDER_CONSTANT)[..., 0].max(axis=0) > 0
    assert np.flatnonzero(seen).tolist() == [205, 206, 207, 208, 209]  # of 391 pixels each, from 80,000 on


@pytest.mark.parametrize(
    ("region", "usable"),
    [
        (Region(50, 50, 100), True),
        (Region(-40, 50, 100), True),
        (Region(-60, 50, 100), False),  # nothing of the picture is in it
        (Region(50, 50, 0.5), False),
        (Region(50, 50, 6000), False),
        (Region(math.nan, 50, 100), False),
        (Region(50, 50, math.inf), False),
        (Region(50, 50, 100, math.nan), False),
    ],
)
def test_what_can_be_a_person(region, usable):
    assert region.usable(100, 100) is usable


def test_anchors_stand_in_the_middle_of_the_cells():
    places = anchors()
    assert places.shape == (2254, 2)
    assert np.allclose(places[0], 0.5 / 28) and np.allclose(places[0], places[1])
    assert np.allclose(places[2], [1.5 / 28, 0.5 / 28])  # rows first
    assert np.allclose(places[1568], 0.5 / 14) and np.allclose(places[-6:], 6.5 / 7)


def test_boxes_are_decoded_from_their_anchors():
    boxes, scores = np.zeros((2254, 12), np.float32), np.full(2254, -9.0, np.float32)
    boxes[1569] = (22.4, -11.2, 44.8, 22.4, 0, 0, 112, 0, 0, 0, 0, -56)
    scores[[3, 1569]] = (-0.01, math.log(3))  # just below a half, and three quarters
    sure, found = pose_detector.decode(boxes, scores)
    x = y = 0.5 / 14
    assert sure == pytest.approx([0.75])
    assert np.allclose(found, [[x, y - 0.1, x + 0.2, y, x, y, x + 0.5, y, x, y, x, y - 0.25]], atol=1e-6)
    assert pose_detector.decode(boxes, np.full(2254, -1000.0))[1].shape == (0, 12)


def test_boxes_of_one_face_are_blended_by_score():
    rows = np.zeros((3, 12), np.float32)
    rows[:, :4] = [(0, 0, 1, 1), (0, 0.2, 1, 1.2), (3, 3, 4, 4)]
    rows[:, 4] = (0, 1, 7)
    scores, found = blend(np.array([0.9, 0.6, 0.95]), rows)
    assert scores == pytest.approx([0.95, 0.9])
    assert np.allclose(found[:, 4], [7, 0.4]) and np.allclose(found[1, :4], [0, 0.08, 1, 1.08])
    apart, _ = blend(np.array([0.9, 0.6, 0.95]), rows, overlap=0.7)  # theirs is 0.667
    assert len(apart) == 3
    assert blend(np.zeros(0), np.zeros((0, 12)))[1].shape == (0, 12)


def test_boxes_without_an_area_end():
    scores, _ = blend(np.array([0.9, 0.8]), np.zeros((2, 12), np.float32))
    assert scores == pytest.approx([0.9, 0.8])


def heat_with(peak, row, column, height=6.0):
    heat = np.full((64, 64, 39), -60.0, np.float32)
    heat[row, column, peak] = height
    return heat


def test_a_sure_heat_map_moves_a_place_to_its_centre_of_mass():
    places = np.full((39, 2), 0.5)  # cell 32
    heat = heat_with(4, 30, 33)
    heat[30, 34, 4] = 6.0
    refined = refine(places, heat)
    assert refined[4] == pytest.approx([33.5 / 64, 30 / 64], abs=1e-6)
    assert np.array_equal(np.delete(refined, 4, axis=0), np.delete(places, 4, axis=0))


@pytest.mark.parametrize(
    ("row", "column", "height", "moved"),
    [
        (28, 36, 6.0, True),  # the corner of the 9 x 9 window
        (27, 32, 6.0, False),  # outside it
        (30, 33, -0.1, False),  # a peak below a half
        (30, 33, 0.1, True),
    ],
)
def test_only_a_near_and_sure_peak_counts(row, column, height, moved):
    places = np.full((39, 2), 0.5)
    refined = refine(places, heat_with(0, row, column, height))
    assert (refined[0] != places[0]).any() == moved


def test_places_at_the_edge_and_outside_are_left_or_read_within():
    places = np.full((39, 2), 0.5)
    places[0], places[1], places[2] = (0.001, 0.999), (-0.5, 0.5), (0.5, 1.4)
    heat = np.full((64, 64, 39), -60.0, np.float32)
    heat[62, 1, 0] = heat[32, 0, 1] = heat[63, 32, 2] = 6.0
    refined = refine(places, heat)
    assert refined[0] == pytest.approx([1 / 64, 62 / 64]) and np.array_equal(refined[1:], places[1:])


def test_landmarks_are_put_back_into_the_picture():
    table = np.zeros((39, 5), np.float32)
    table[:, :2] = 128
    table[0] = (192, 64, -32, 0, 9)
    table[33], table[34] = (128, 192, 0, 0, 0), (128, 0, 0, 0, 0)
    raw = pose_landmarks.decode(
        table.ravel(), np.array([0.8]), np.full((64, 64, 39), -60.0), Region(100.0, 100.0, 512.0)
    )
    assert np.allclose(raw.points[0], [228, -28, -64]) and np.allclose(raw.points[1], [100, 100, 0])
    assert np.allclose(raw.anchors, [[100, 228], [100, -156]])
    assert raw.seen[0] == 0.5 and raw.presence == pytest.approx(0.8)


def person(x, side, score=0.9):
    return Person(score, Region(float(x), 50.0, float(side)), np.zeros(4))


def test_the_largest_is_chosen_and_who_was_lost_is_preferred():
    near, small, large = person(100, 80), person(300, 20, 0.99), person(500, 160, 0.6)
    people = [small, near, large]
    assert choose([], None) is None and choose([], Region(0, 0, 1)) is None
    assert choose(people, None) is large and choose(people, None, "surest") is small
    assert choose(people, Region(110, 50, 90)) is near
    assert choose(people, Region(160, 50, 90)) is large  # more than half a side away: gone
    assert choose(people, Region(300, 50, 90)) is large  # a bystander behind the place is not the person
