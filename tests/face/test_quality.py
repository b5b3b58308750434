"""Pose from five points, sharpness and light, each against what was put in."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.face.quality import MEAN_FACE, light, pose, sharpness

FRONTAL = MEAN_FACE[:, :2] * 1.7 + [300, 200]


def turned(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """The rotation of a head, built from what the angles mean and not from the code under test.

    x right, y down, z away from the viewer. A turn to the right moves the nose, which points at the viewer (-z), to +x;
    a nod up moves it to -y; a lean clockwise moves the top of the head (-y) to +x.
    """
    y, p, r = np.radians([yaw, pitch, roll])
    right = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    up = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    clockwise = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return clockwise @ up @ right


def seen(yaw: float, pitch: float, roll: float, distance: float = np.inf) -> np.ndarray:
    """(5, 2) pixels of the mean face; `distance` of the camera in millimetres."""
    points = (MEAN_FACE - MEAN_FACE.mean(axis=0)) @ turned(yaw, pitch, roll).T
    return points[:, :2] / (1 + points[:, 2:] / distance) * 1.7 + [300, 200]


def test_the_rotations_of_this_test_mean_what_they_say():
    nose, crown = np.array([0, 0, -1.0]), np.array([0, -1.0, 0])
    assert (turned(30, 0, 0) @ nose)[0] == pytest.approx(0.5)
    assert (turned(0, 30, 0) @ nose)[1] == pytest.approx(-0.5)
    assert (turned(0, 0, 30) @ crown)[0] == pytest.approx(0.5)


NEAR = 1.6  # degrees that true perspective at 60 cm may cost; the closed-form start alone is up to 2.2 off
ANGLES = [(y, p, r) for y in (-45, -20, 0, 10, 45) for p in (-45, -15, 0, 30, 45) for r in (-60, 0, 35)]


@pytest.mark.parametrize(("yaw", "pitch", "roll"), ANGLES)
def test_a_known_rotation_is_recovered(yaw, pitch, roll):
    found = pose(seen(yaw, pitch, roll))
    assert (found.yaw, found.pitch, found.roll) == pytest.approx((yaw, pitch, roll), abs=0.01)
    near = pose(seen(yaw, pitch, roll, distance=600))  # a webcam: true perspective, which the fit does not know
    assert (near.yaw, near.pitch, near.roll) == pytest.approx((yaw, pitch, roll), abs=NEAR)


def test_noise_of_a_detector_moves_the_angles_little():
    rng = np.random.default_rng(0)
    errors = []
    for yaw, pitch, roll in ANGLES:
        found = pose(seen(yaw, pitch, roll) + rng.normal(0, 0.02 * 63 * 1.7, (5, 2)))  # 2 % of the eyes' distance
        errors.append(np.abs([found.yaw - yaw, found.pitch - pitch, found.roll - roll]))
    assert np.mean(errors, axis=0).max() < 3
    assert np.max(errors) < 12


@pytest.mark.parametrize("lean", [-170, -90, -30, 7, 45, 120])
def test_a_turn_of_the_picture_is_roll_and_nothing_else(lean):
    # Points of no model face, so that the fit is not perfect.
    points = seen(20, -10, 0) + np.array([[3, -2], [-4, 1], [2, 5], [0, -3], [1, 2]])
    angle = np.radians(lean)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    before, after = pose(points), pose(points @ turn.T)
    assert (after.yaw, after.pitch) == pytest.approx((before.yaw, before.pitch), abs=1e-6)
    assert (after.roll - before.roll - lean + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)


def test_size_and_place_do_not_matter():
    found = [pose(seen(25, 10, -5) * scale + shift) for scale, shift in ((1, 0), (0.01, 4000), (300, -99))]
    for one in found:
        assert (one.yaw, one.pitch, one.roll) == pytest.approx((25, 10, -5), abs=0.01)


@pytest.mark.parametrize(
    "points",
    [np.zeros((5, 2)), np.full((5, 2), 77.0), np.full((5, 2), np.nan), np.full((5, 2), np.inf), np.full((5, 2), 1e300),
     np.stack([np.arange(5), 2 * np.arange(5)], axis=1), np.stack([np.arange(5), np.zeros(5)], axis=1),
     np.array([*([[0, 0]] * 4), [1, 0]]), FRONTAL[::-1], FRONTAL * 1e12, FRONTAL[:3], np.zeros((0, 2))],
)  # fmt: skip
def test_points_that_show_no_face_give_finite_numbers(points):
    found = pose(points)
    assert np.isfinite([found.yaw, found.pitch, found.roll]).all()
    assert all(-180 <= angle <= 180 for angle in (found.yaw, found.pitch, found.roll))


def checks(size: int, cell: int) -> np.ndarray:
    """A black and white board of size x size pixels."""
    rows, columns = np.mgrid[:size, :size] // cell
    return np.repeat((((rows + columns) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)


def test_sharpness_is_the_variance_of_the_laplacian():
    # Stripes two pixels wide: the Laplacian is +255 and -255 on alternate pixels, away from the border and at it.
    image = np.zeros((112, 112, 3), np.uint8)
    image[:, 0::4] = image[:, 1::4] = 255
    assert sharpness(image, np.array([0, 0, 112, 112])) == pytest.approx(255**2, rel=0.02)
    assert sharpness(np.full((112, 112, 3), 90, np.uint8), np.array([0, 0, 112, 112])) == 0


def test_sharpness_falls_with_blur_and_not_with_size():
    import cv2

    rng = np.random.default_rng(0)
    face = cv2.resize(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8), (448, 448), interpolation=cv2.INTER_CUBIC)
    box = np.array([0, 0, 448, 448])
    whole = sharpness(face, box)
    half = sharpness(cv2.resize(face, (224, 224), interpolation=cv2.INTER_AREA), box / 2)
    assert half == pytest.approx(whole, rel=0.1)
    assert sharpness(cv2.GaussianBlur(face, (0, 0), 24), box) < 50 < 500 < whole


def test_sharpness_looks_at_the_box_only():
    image = np.full((300, 300, 3), 128, np.uint8)
    image[100:212, 100:212] = checks(112, 4)
    assert sharpness(image, np.array([100, 100, 212, 212])) > 5000
    assert sharpness(image, np.array([0, 0, 99, 99])) == 0


PLACES = [
    [-50, -50, 50, 50], [150, 150, 260, 250], [-500, -500, 900, 900], [190, 10, 400, 90], [199.5, 199.5, 300, 300],
]  # fmt: skip
NOWHERE = [
    [300, 300, 400, 400], [-90, -90, -10, -10], [50, 50, 50, 90], [90, 90, 50, 50], [np.nan] * 4,
    [-np.inf, 0, np.inf, 50], [0, 200, 50, 260],
]  # fmt: skip


@pytest.mark.parametrize("box", PLACES)
def test_a_box_partly_outside_counts_what_is_inside(box):
    image = np.full((200, 200, 3), 51, np.uint8)
    assert sharpness(image, np.array(box)) == 0
    points = FRONTAL - FRONTAL.mean(axis=0) + np.array([box[0] + box[2], box[1] + box[3]]) / 2
    level, balance = light(image, np.array(box), points)
    assert level in (0.0, pytest.approx(0.2, abs=1e-6))
    assert balance == pytest.approx(0, abs=1e-6)


def test_the_inside_part_has_its_light():
    image = np.full((200, 200, 3), 51, np.uint8)
    assert light(image, np.array([-50, 50, 50, 150]), FRONTAL * np.nan) == pytest.approx((0.2, 0))


@pytest.mark.parametrize("box", NOWHERE)
def test_a_box_that_is_nowhere_has_no_light_and_no_sharpness(box):
    image = np.full((200, 200, 3), 200, np.uint8)
    assert sharpness(image, np.array(box)) == 0.0
    assert light(image, np.array(box), FRONTAL) == (0.0, 0.0)


def test_light_is_luma_of_rgb():
    box, points = np.array([0, 0, 100, 100]), (FRONTAL - FRONTAL.mean(axis=0)) * 0.5 + 50
    for colour, luma in (((255, 0, 0), 0.299), ((0, 255, 0), 0.587), ((0, 0, 255), 0.114), ((255, 255, 255), 1.0)):
        level, balance = light(np.full((100, 100, 3), colour, np.uint8), box, points)
        assert level == pytest.approx(luma, abs=0.003)
        assert balance == 0


def test_light_balance_is_left_less_right_along_the_faces_own_line():
    image = np.zeros((200, 200, 3), np.uint8)
    image[:, :100] = 204
    box = np.array([20, 20, 180, 180])
    upright = (FRONTAL - FRONTAL.mean(axis=0)) * 0.8 + 100
    level, balance = light(image, box, upright)
    assert (level, balance) == pytest.approx((0.4, 0.8), abs=0.02)
    assert light(image[:, ::-1], box, upright)[1] == pytest.approx(-0.8, abs=0.02)
    # Lying on its side (a quarter turn clockwise), the face's halves are above and below: the light is even.
    sideways = (upright - 100) @ np.array([[0, 1], [-1, 0]]) + 100
    assert light(image, box, sideways) == pytest.approx((0.4, 0), abs=0.03)


def test_the_corners_of_the_box_are_not_the_face():
    image = np.full((200, 200, 3), 255, np.uint8)
    rows, columns = np.mgrid[:200, :200]
    image[(rows - 99.5) ** 2 + (columns - 99.5) ** 2 < 103**2] = 102
    assert light(image, np.array([0, 0, 200, 200]), FRONTAL)[0] == pytest.approx(0.4, abs=0.001)


def test_a_great_picture_of_one_face_is_measured_small():
    image = np.zeros((3000, 3000, 3), np.uint8)
    image[:, 1500:] = 255
    points = (FRONTAL - FRONTAL.mean(axis=0)) * 12 + 1500
    assert light(image, np.array([0, 0, 3000, 3000]), points) == pytest.approx((0.5, -1), abs=0.02)
