"""From faces to chips: the similarity transform, the warp, facenet's crop, and faces that leave the picture."""

import cv2
import numpy as np
import pytest

from pipelines.face import align
from pipelines.face.align import DLIB_TEMPLATE, chips, crop, umeyama, warp
from pipelines.face.config import InceptionResnetConfig


def similarity(degrees, scale, shift):
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([scale * rotation, shift])


def moved(points, matrix):
    return points @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize(("degrees", "scale", "shift"), [(0, 1, (0, 0)), (30, 0.2, (-50, 7)), (179, 3.5, (400, -20))])
def test_umeyama_finds_the_transform(degrees, scale, shift):
    wanted = similarity(degrees, scale, shift)
    found = umeyama(DLIB_TEMPLATE, moved(DLIB_TEMPLATE, wanted))
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_umeyama_is_the_least_squares_optimum():
    generator = np.random.default_rng(0)
    src = DLIB_TEMPLATE + generator.normal(0, 8, (5, 2))
    found = umeyama(src, DLIB_TEMPLATE)
    error = ((moved(src, found) - DLIB_TEMPLATE) ** 2).sum()
    assert error > 1
    for degrees, scale, dx, dy in [
        (0.5, 1, 0, 0),
        (0, 1.01, 0, 0),
        (0, 1, 0.3, 0),
        (0, 1, 0, -0.3),
        (-0.5, 0.99, 0, 0),
    ]:
        other = similarity(degrees, scale, (0, 0))[:, :2] @ found[:, :2]
        centre = moved(src.mean(axis=0), found)
        turned = np.column_stack([other, centre - other @ src.mean(axis=0) + (dx, dy)])
        assert ((moved(src, turned) - DLIB_TEMPLATE) ** 2).sum() > error


def test_umeyama_never_mirrors():
    mirrored = DLIB_TEMPLATE * (-1, 1)
    found = umeyama(mirrored, DLIB_TEMPLATE)
    assert np.linalg.det(found[:, :2]) > 0
    a, b = found[0, 0], found[1, 0]
    np.testing.assert_allclose(found[:, :2], [[a, -b], [b, a]], atol=1e-9)


def test_umeyama_of_points_at_one_place_only_shifts():
    found = umeyama(np.full((5, 2), 40.0), DLIB_TEMPLATE)
    np.testing.assert_allclose(found, np.column_stack([np.eye(2), DLIB_TEMPLATE.mean(axis=0) - 40]))


def test_umeyama_of_points_on_a_line():
    line = np.array([[0, 0], [1, 1], [2, 2], [3, 3], [4, 4]], float)
    target = np.array([[0, 5], [0, 7], [0, 9], [0, 11], [0, 13]], float)
    found = umeyama(line, target)
    np.testing.assert_allclose(moved(line, found), target, atol=1e-9)
    assert np.linalg.det(found[:, :2]) == pytest.approx(2.0)  # (2 / sqrt 2) squared, and no mirroring


def picture(height=240, width=320):
    generator = np.random.default_rng(3)
    return cv2.resize(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8), (width, height))


def test_warp_by_whole_pixels_copies():
    image = picture()
    found = warp(image, np.array([[1.0, 0, -60], [0, 1.0, -40]]), 150)
    assert np.array_equal(found, image[40:190, 60:210])


def test_warp_is_black_outside():
    image = np.full((100, 100, 3), 200, np.uint8)
    found = warp(image, np.array([[1.0, 0, 50], [0, 1.0, 20]]), 150)
    assert (found[20:120, 50:150] == 200).all()
    assert (found[:19] == 0).all() and (found[121:] == 0).all() and (found[:, :49] == 0).all()


@pytest.mark.parametrize("shift", [(1000, 0), (-1000, 0), (0, 1000), (0, -1000), (1e7, 1e7)])
def test_a_face_wholly_outside_is_black(shift):
    assert (warp(picture(), np.column_stack([np.eye(2), shift]), 150) == 0).all()


@pytest.mark.parametrize("matrix", [np.zeros((2, 3)), np.full((2, 3), np.nan), np.eye(2, 3) * 1e9])
def test_a_transform_that_is_none_gives_a_black_chip(matrix):
    assert (warp(picture(), matrix, 150) == 0).all()


def test_large_faces_do_not_alias():
    board = (np.indices((1200, 1200)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = np.repeat(board[:, :, None], 3, axis=2)
    found = warp(image, similarity(10, 1 / 8, (50, -20)), 150).astype(int)
    inside = found[50:100, 70:110]
    assert np.abs(inside - 127).max() <= 8
    plain = cv2.warpAffine(image, similarity(10, 1 / 8, (50, -20)), (150, 150))[50:100, 70:110]
    assert plain.std() > 10, "without averaging the pattern aliases, so the test above can fail"


@pytest.mark.parametrize("scale", [1.0, 0.7, 0.45, 0.33, 0.21, 0.1])
def test_averaging_keeps_every_point_in_its_place(scale):
    # Brightness rises with x alone, then with y: where a chip pixel came from can be read off it.
    height, width = 1500, 1600
    ramp = np.linspace(0, 250, width)[None, :].repeat(height, 0)
    for turned in (False, True):
        values = ramp if not turned else np.linspace(0, 250, height)[:, None].repeat(width, 1)
        image = np.repeat(np.round(values).astype(np.uint8)[:, :, None], 3, axis=2)
        matrix = similarity(0, scale, (-scale * 333, -scale * 222))
        found = warp(image, matrix, 60)[30, 40, 0].astype(float)
        place = (30 / scale + 222) if turned else (40 / scale + 333)
        assert abs(found - 250 * place / ((height if turned else width) - 1)) <= 0.8


def test_landmarks_fall_on_the_template():
    image = np.zeros((400, 500, 3), np.uint8)
    points = moved(DLIB_TEMPLATE, similarity(-25, 1.4, (120, 130)))
    for x, y in points:
        cv2.circle(image, (round(x), round(y)), 4, (255, 255, 255), -1)
    chip = chips("dlib_resnet", image, np.zeros((1, 4)), points[None])[0, :, :, 0]
    count, _, _, centres = cv2.connectedComponentsWithStats((chip > 127).astype(np.uint8))
    assert count == 6
    for point in DLIB_TEMPLATE:
        assert np.linalg.norm(centres[1:] - point, axis=1).min() <= 0.7


def test_crop_is_facenet_pytorchs_to_the_pixel():
    detect_face = pytest.importorskip("facenet_pytorch.models.utils.detect_face", reason="parity needs facenet-pytorch")
    image, generator = picture(), np.random.default_rng(0)
    for margin in (0, 14, 40):
        for _ in range(40):
            low = generator.uniform(-60, 200, 2)
            box = np.concatenate([low, low + generator.uniform(70, 250, 2)]).astype(np.float32)
            wanted = detect_face.extract_face(image, box, 160, margin).permute(1, 2, 0).numpy().astype(np.uint8)
            assert np.array_equal(crop(image, box, 160, margin), wanted)


@pytest.mark.parametrize(
    "box",
    [(400, 10, 500, 90), (-90, 10, -3, 90), (10, 300, 90, 390), (50, 50, 50, 90), (90, 90, 50, 50), (np.nan,) * 4],
)
def test_crop_with_no_pixel_is_black(box):
    found = crop(picture(), np.array(box, np.float32), 160)
    assert found.shape == (160, 160, 3) and (found == 0).all()


@pytest.mark.parametrize(("architecture", "side"), [("dlib_resnet", 150), ("inception_resnet_v1", 160)])
def test_chips_of_none_one_and_several_faces(architecture, side):
    image = picture()
    boxes = np.array([[20, 20, 90, 100], [-30, 180, 40, 300], [400, 400, 450, 450]], np.float32)
    shape = (DLIB_TEMPLATE / 150)[None]
    points = boxes[:, None, :2] + shape * (boxes[:, None, 2:] - boxes[:, None, :2])
    found = chips(architecture, image, boxes, points.astype(np.float32))
    assert found.shape == (3, side, side, 3) and found.dtype == np.uint8
    assert found[0].std() > 10 and found[1].std() > 10 and (found[2] == 0).all()
    assert np.array_equal(chips(architecture, image, boxes[:1], points[:1].astype(np.float32))[0], found[0])
    none = chips(architecture, image, boxes[:0], points[:0])
    assert none.shape == (0, side, side, 3) and none.dtype == np.uint8


@pytest.mark.parametrize("architecture", ["dlib_resnet", "inception_resnet_v1"])
def test_red_stays_red(architecture):
    image = np.zeros((300, 300, 3), np.uint8)
    image[:, :, 0] = 255
    found = chips(architecture, image, np.array([[50, 50, 250, 250]]), 40 + 1.3 * DLIB_TEMPLATE[None])
    assert (found[0, 40:110, 40:110] == (255, 0, 0)).all()


def test_a_tiny_picture_and_coinciding_points():
    image = np.full((1, 1, 3), 9, np.uint8)
    assert 0 < chips("dlib_resnet", image, np.zeros((1, 4)), np.zeros((1, 5, 2))).max() <= 9
    assert chips("inception_resnet_v1", image, np.array([[0, 0, 1, 1]]), np.zeros((1, 5, 2))).min() == 9


def test_mirrored_views_and_unknown_architectures():
    image = picture()[:, ::-1]  # negative strides
    assert chips("inception_resnet_v1", image, np.array([[0, 0, 320, 240]]), np.zeros((1, 5, 2))).shape[0] == 1
    with pytest.raises(ValueError, match="no alignment for 'mtcnn'"):
        chips("mtcnn", image, np.zeros((0, 4)), np.zeros((0, 5, 2)))
    assert align.SIDES["inception_resnet_v1"] == InceptionResnetConfig().input_side
