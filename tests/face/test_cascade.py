"""The cascade against facenet-pytorch on photos, its sampling against torch's, and every input that breaks others."""

import resource
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.face import cascade, local, reference, workers
from pipelines.face.bench import collage, portraits
from pipelines.face.config import CascadeOptions
from pipelines.face.contract import Detections
from pipelines.face.sampling import Integral

ENTRY = catalogue.manifest()["mtcnn"]
PHOTOS = sorted((Path(__file__).parents[2] / "assets" / "examples" / "face").glob("*.jpg"))


@pytest.fixture(scope="module")
def ours():
    return local.load(ENTRY)


@pytest.fixture(scope="module")
def theirs():
    return reference.load(ENTRY)


def photo(name):
    return np.asarray(Image.open(next(path for path in PHOTOS if path.stem == name)).convert("RGB"))


def complaint(a: Detections, b: Detections) -> str:
    """Empty if the two are the same faces within the tolerances of the project."""
    if len(a) != len(b):
        return f"{len(a)} faces against {len(b)}"
    worst = [np.abs(x - y).max(initial=0) for x, y in zip(vars(a).values(), vars(b).values(), strict=True)]
    return (
        "" if worst[0] <= 0.5 and worst[1] <= 1e-3 and worst[2] <= 0.5 else f"boxes, scores, landmarks off by {worst}"
    )


def check(found):
    n = len(found)
    assert found.boxes.shape == (n, 4) and found.scores.shape == (n,) and found.landmarks.shape == (n, 5, 2)
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in vars(found).values())
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1)
    assert (areas[:-1] >= areas[1:]).all()
    return n


# Parity


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_same_faces_as_facenet_pytorch(ours, theirs, path):
    image = np.asarray(Image.open(path).convert("RGB"))
    found = ours.detect(image)
    assert check(found) >= 1
    assert complaint(found, theirs.detect(image)) == ""


@pytest.mark.parametrize(
    ("width", "height", "count"), [(640, 480, 1), (640, 480, 6), (1280, 720, 3), (960, 1280, 4), (1920, 1080, 5)]
)
def test_same_faces_in_composed_pictures(ours, theirs, width, height, count):
    image = collage(portraits(), width, height, count)
    found = ours.detect(image)
    assert check(found) >= count
    assert complaint(found, theirs.detect(image)) == ""


CHANGES = {
    "mirrored": lambda x: x[:, ::-1],
    "upside down": lambda x: x[::-1],
    "quarter turn": lambda x: np.rot90(x),
    "every second pixel": lambda x: x[::2, ::2],
    "blue first": lambda x: x[..., ::-1],
    "tilted": lambda x: cv2.warpAffine(x, cv2.getRotationMatrix2D((256, 200), 25, 0.8), (512, 480)),
    "larger": lambda x: cv2.resize(x, None, fx=1.7, fy=1.3, interpolation=cv2.INTER_CUBIC),
    "grey": lambda x: np.repeat(x.mean(2, keepdims=True).astype(np.uint8), 3, 2),
    "dark": lambda x: x // 5,
}


@pytest.mark.parametrize("change", CHANGES)
def test_same_faces_in_changed_pictures(ours, theirs, change):
    image = CHANGES[change](photo("astronaut"))  # several of them are not contiguous in memory
    found = ours.detect(image)
    check(found)
    assert complaint(found, theirs.detect(np.ascontiguousarray(image))) == ""


@pytest.mark.parametrize(
    "options",
    [
        CascadeOptions(thresholds=(0.3, 0.3, 0.3)),
        CascadeOptions(thresholds=(0.9, 0.9, 0.99)),
        CascadeOptions(min_face=60),
        CascadeOptions(min_face=13),
        CascadeOptions(factor=0.5),
        CascadeOptions(factor=0.85, min_face=41),
    ],
    ids=str,
)
def test_same_faces_with_other_options(ours, theirs, options):
    image = cv2.resize(photo("group"), None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    assert complaint(ours.detect(image, options), theirs.detect(image, options)) == ""


def test_the_tolerance_can_fail(ours, monkeypatch):
    """Planted faults: each changes the result by more than parity allows."""
    image = photo("astronaut")
    right = ours.detect(image)
    assert complaint(right, ours.detect(image[..., ::-1])) != ""  # channels in the other order
    with monkeypatch.context() as patch:
        patch.setattr(cascade, "place", lambda boxes, points: points * 100)
        assert complaint(right, ours.detect(image)) != ""
    with monkeypatch.context() as patch:
        patch.setattr(cascade, "to_squares", lambda boxes: boxes)
        assert complaint(right, ours.detect(image)) != ""


def test_red_is_the_first_channel(ours):
    """A pure red picture reaches P-Net as red: high first channel, the others at the bottom."""
    red = np.zeros((40, 50, 3), np.uint8)
    red[..., 0] = 255
    strip = Integral.of(red).resized(25, 31, 0, 25)
    assert np.abs(strip[..., 0] - 255).max() < 1e-3 and (strip[..., 1:] == 0).all()
    level = cascade.pyramid(40, 50, CascadeOptions())[0]
    pnet = ours.networks.pnet
    (mine, _), *_ = cascade.scan(pnet, Integral.of(red), [level])
    x = torch.full((1, 3, level.height, level.width), -127.5 / 128)
    x[:, 0] = 127.5 / 128
    with torch.inference_mode():
        expected, other = pnet(x)[0][0].numpy(), pnet(x.flip(1))[0][0].numpy()
    assert np.abs(mine - expected).max() < 1e-5 and np.abs(mine - other).max() > 1e-3


# Sampling


@pytest.mark.parametrize("size", [(25, 31), (13, 12), (64, 97), (70, 200), (1, 1), (130, 97)])
def test_resized_is_area_interpolation(size):
    image = np.random.default_rng(0).integers(0, 256, (64, 97, 3), np.uint8)
    expected = F.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None].double(), size, mode="area")[0]
    table = Integral.of(image)
    whole = table.resized(*size, 0, size[0])
    assert np.abs(whole - expected.permute(1, 2, 0).numpy()).max() < 1e-4
    assert np.array_equal(table.resized(*size, size[0] // 3, size[0]), whole[size[0] // 3 :])


def test_crops_are_area_interpolation():
    image = np.random.default_rng(0).integers(0, 256, (64, 97, 3), np.uint8)
    windows = np.array([[0, 0, 97, 64], [5, 7, 6, 8], [96, 63, 97, 64], [10, 3, 40, 60], [0, 20, 24, 44]])
    crops = Integral.of(image).crops(windows, 24)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    for crop, (x0, y0, x1, y1) in zip(crops, windows, strict=True):
        expected = F.interpolate(pixels[:, :, y0:y1, x0:x1], (24, 24), mode="area")[0].permute(1, 2, 0)
        assert np.abs(crop - expected.numpy()).max() < 1e-4
    assert Integral.of(image).crops(windows[:0], 24).shape == (0, 24, 24, 3)


def test_sums_that_wrap_around_still_give_means():
    white = np.full((3200, 3200, 3), 255, np.uint8)  # sums to 2.6e9, more than an int32 holds
    assert np.abs(Integral.of(white).resized(13, 13, 0, 13) - 255).max() < 1e-3
    assert np.abs(Integral.of(white).crops(np.array([[3000, 3000, 3200, 3200]]), 24) - 255).max() < 1e-3


@pytest.mark.parametrize("bad", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3))])
def test_anything_but_an_rgb_picture_is_refused(ours, bad):
    with pytest.raises(ValueError, match="uint8"):
        ours.detect(bad)


def test_strips_are_the_whole(ours, monkeypatch):
    image = photo("astronaut")[:301, :423]
    integral, levels = Integral.of(image), cascade.pyramid(301, 423, CascadeOptions())
    whole = cascade.scan(ours.networks.pnet, integral, levels)
    monkeypatch.setattr(cascade, "STEM_PIXELS", 3000)
    monkeypatch.setattr(cascade, "HEADS_CELLS", 500)
    parts = cascade.scan(ours.networks.pnet, integral, levels)
    assert [p.shape for p, _ in whole] == [level.cells for level in levels]
    for a, b in zip(whole, parts, strict=True):
        assert all(np.abs(x - y).max() < 1e-5 for x, y in zip(a, b, strict=True))


def test_batches_are_the_whole(ours, monkeypatch):
    image = photo("astronaut")
    windows = np.array([[k, 2 * k, k + 60, 2 * k + 50] for k in range(50)])
    whole = cascade.look(ours.networks.onet, Integral.of(image), windows)
    monkeypatch.setattr(cascade, "CROP_PIXELS", 48 * 48)
    single = cascade.look(ours.networks.onet, Integral.of(image), windows)
    assert all(np.abs(x - y).max() < 1e-5 for x, y in zip(whole, single, strict=True))


# Stages


def test_every_stage_takes_no_candidates(ours):
    integral = Integral.of(np.zeros((50, 50, 3), np.uint8))
    none = np.zeros((0, 4), np.float32)
    assert cascade._refine(ours.networks, integral, none, CascadeOptions()).shape == (0, 4)
    assert check(cascade._output(ours.networks, integral, none, CascadeOptions())) == 0
    assert cascade.suppress(none, none[:, 0], 0.5).shape == (0,)
    assert cascade.suppress_contained(none, none[:, 0], 0.5).shape == (0,)
    assert cascade.cell_squares(cascade.Level(0.6, 30, 30), np.zeros(0, np.int64)).shape == (0, 4)
    assert cascade.largest_first(none).shape == (0,)


def test_pyramid():
    levels = cascade.pyramid(100, 200, CascadeOptions())
    assert [(level.height, level.width) for level in levels] == [
        (61, 121), (43, 86), (31, 61), (22, 43), (16, 31),
    ]  # fmt: skip
    assert cascade.pyramid(19, 5000, CascadeOptions()) == []
    assert len(cascade.pyramid(20, 5000, CascadeOptions())) == 1
    for broken in (CascadeOptions(factor=1.0), CascadeOptions(factor=0.0), CascadeOptions(min_face=0)):
        with pytest.raises(ValueError, match="pyramid"):
            cascade.pyramid(100, 100, broken)


def test_boxes_outside_the_picture_are_dropped():
    boxes = np.array([[1, 1, 24, 24], [-50, -50, -10, -10], [90, 10, 130, 50], [200, 10, 230, 40], [5, 5, 5, 9]], float)
    windows, inside = cascade.pixel_windows(boxes, 60, 100)
    assert inside.tolist() == [True, False, True, False, True]
    assert windows[0].tolist() == [0, 0, 24, 24] and windows[2].tolist() == [89, 9, 100, 50]


def test_a_candidate_outside_the_frame_breaks_the_library_and_not_ours(ours, theirs, monkeypatch):
    """P-Net is made to see a face in one corner and to move its box out of the picture."""
    image = photo("astronaut")
    before = ours.detect(image)
    pull = cascade.scan

    def shifted(pnet, integral, levels):
        maps = pull(pnet, integral, levels)
        maps[0][0][0, 0], maps[0][1][:, 0, 0] = 0.99, -5
        return maps

    monkeypatch.setattr(cascade, "scan", shifted)
    assert complaint(ours.detect(image), before) == ""

    class Shifted(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.conv1 = inner, inner.conv1

        def forward(self, x):
            offsets, probability = self.inner(x)
            probability[0, 1, 0, 0], offsets[0, :, 0, 0] = 0.99, -5
            return offsets, probability

    broken = reference.load(ENTRY)
    broken._networks["pnet"] = Shifted(broken._networks["pnet"])
    with pytest.raises(UserError, match="fails on this picture"):
        broken.detect(image)


def test_contained_boxes_go():
    boxes = np.array([[0, 0, 100, 100], [10, 10, 30, 30], [200, 0, 300, 100], [90, 90, 190, 190]], np.float32)
    scores = np.array([0.9, 0.95, 0.8, 0.7], np.float32)
    assert cascade.suppress_contained(boxes, scores, 0.7).tolist() == [1, 2, 3]  # the part is surer than the whole
    assert cascade.suppress_contained(boxes, scores[[1, 0, 2, 3]], 0.7).tolist() == [0, 2, 3]


def test_admitted_takes_the_strongest_in_reading_order():
    probability = np.array([[0.9, 0.1, 0.8], [0.7, 0.95, 0.6]], np.float32)
    assert cascade.admitted(probability, 0.6).tolist() == [0, 2, 3, 4, 5]
    assert cascade.admitted(probability, 0.6, most=3).tolist() == [0, 2, 4]
    assert cascade.admitted(probability, 1.0).tolist() == []


# Bad input


def flat(height, width, colour):
    return np.full((height, width, 3), colour, np.uint8)


NOTHING = {
    "one pixel": flat(1, 1, 9),
    "a line": flat(1, 5000, 9),
    "a column": flat(5000, 1, 9),
    "under a cell": flat(11, 11, 200),
    "under the smallest face": flat(19, 400, 200),
    "black": flat(200, 300, 0),
    "white": flat(200, 300, 255),
    "red": flat(200, 300, (255, 0, 0)),
}


@pytest.mark.parametrize("name", NOTHING)
def test_pictures_without_a_face(ours, theirs, name):
    image = NOTHING[name]
    assert check(ours.detect(image)) == 0
    try:
        assert len(theirs.detect(image)) == 0
    except UserError as error:
        assert "fails on this picture" in str(error) and min(image.shape[:2]) < 20


def test_noise(ours, theirs):
    image = np.random.default_rng(3).integers(0, 256, (400, 500, 3), np.uint8)
    assert complaint(ours.detect(image), theirs.detect(image)) == ""


def test_smallest_face_larger_than_the_picture(ours, theirs):
    image, options = photo("astronaut"), CascadeOptions(min_face=600)
    assert check(ours.detect(image, options)) == 0
    with pytest.raises(UserError, match="fails on this picture"):
        theirs.detect(image, options)


def test_faces_cut_by_each_border(ours, theirs):
    image = photo("astronaut")  # its face is at 181..268, 61..172
    cut = {"left": image[:, 205:], "right": image[:, :245], "top": image[95:], "bottom": image[:145]}
    counts = {}
    for side, part in cut.items():
        found = ours.detect(part)
        counts[side] = check(found)
        assert complaint(found, theirs.detect(np.ascontiguousarray(part))) == "", side
    assert sum(counts.values()) >= 2, counts


@pytest.fixture(scope="module")
def crowd():
    """Two hundred times the same face, 72 pixels each."""
    face = cv2.resize(photo("astronaut")[40:200, 150:310], (72, 72), interpolation=cv2.INTER_AREA)
    return np.tile(face, (10, 20, 1))


def test_two_hundred_faces(ours, theirs, crowd):
    found = ours.detect(crowd)
    assert check(found) == 200
    expected = theirs.detect(crowd)
    # Equal faces have equal areas, so that their order is no part of the answer. Of thousands of candidates a few have
    # scores that differ by rounding alone (1e-7), and which of such two suppresses the other is then chance: with a
    # smallest face of 36 pixels, one box of the 200 is 0.55 pixels off, at the same score.
    apart = np.abs(found.boxes[:, None] - expected.boxes[None]).max(2)
    assert len(expected) == 200 and sorted(apart.argmin(1)) == list(range(200))
    assert (apart.min(1) > 0.5).sum() <= 2 and apart.min(1).max() < 2


def test_the_limit_does_not_bite_on_two_hundred_faces(ours, crowd):
    run = ours.trace(crowd)
    assert sum(level.left_out for level in run.levels) == 0
    assert max(len(stage) for stage in (run.refined, run.output)) < cascade.MOST
    assert len(run.faces) == 200


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_thresholds_at_the_ends(ours, threshold):
    image = collage(portraits(), 800, 600, 3)
    start = time.perf_counter()
    found = ours.detect(image, CascadeOptions(thresholds=(threshold, 0.7, 0.7)))
    assert (check(found) == 3) if threshold == 0 else (check(found) < 3)  # a cell or two may be sure to the last bit
    found = ours.detect(image, CascadeOptions(thresholds=(0.6, threshold, threshold)))
    assert (check(found) == 0) == bool(threshold)
    assert time.perf_counter() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6  # kilobytes, of the whole test run


def test_everything_admitted_is_bounded(ours, monkeypatch):
    monkeypatch.setattr(cascade.admitted, "__defaults__", (200,))
    monkeypatch.setattr(cascade, "MOST", 200)
    seen = []
    look = cascade.look
    monkeypatch.setattr(cascade, "look", lambda *a: (seen.append(len(a[2])), look(*a))[1])
    ours.detect(photo("astronaut"), CascadeOptions(thresholds=(0, 0, 0)))
    assert len(seen) == 2 and max(seen) <= 200


def test_the_library_refuses_what_it_cannot_be_told(theirs):
    with pytest.raises(UserError, match="overlap limits are fixed"):
        theirs.detect(photo("astronaut"), replace(CascadeOptions(), nms=(0.7, 0.7, 0.5)))


# Threads


def test_work_is_spread_in_order_and_torch_keeps_its_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        seen = workers.spread(lambda k: (k, torch.get_num_threads(), threading.get_ident()), range(40))
        assert [k for k, _, _ in seen] == list(range(40))
        assert {n for _, n, _ in seen} == {1} and threading.get_ident() not in {t for _, _, t in seen}
        assert torch.get_num_threads() == 2
        born_later = []
        thread = threading.Thread(target=lambda: born_later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert born_later == [2]
        with pytest.raises(ZeroDivisionError):
            workers.spread(lambda k: 1 // k, [1, 0, 1])
        torch.set_num_threads(1)
        assert workers.spread(lambda k: threading.get_ident(), range(3)) == [threading.get_ident()] * 3
    finally:
        torch.set_num_threads(before)


def test_one_thread_finds_what_two_find(ours):
    image = photo("astronaut")
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(ours.detect(image))
    finally:
        torch.set_num_threads(before)
    assert complaint(*results) == ""
