"""What is written, a real COCO reader reads; what is read, is checked."""

import json

import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.detection.coco import Found, choose, document, fit, read, run_lengths
from pipelines.detection.contract import DetectionResult

SIZE = (60, 80)  # height, width


def result(count=0, masks=None, categories=None):
    draw = np.random.default_rng(0)
    low = draw.uniform(0, 30, (count, 2))
    boxes = np.concatenate([low, low + draw.uniform(5, 30, (count, 2))], axis=1).astype(np.float32)
    ids = np.array(categories if categories is not None else [12] * count, np.int64)
    return DetectionResult(
        boxes, np.linspace(0.9, 0.5, count, dtype=np.float32), ("dog",) * count, ids, np.arange(count), "voc", "local",
        "cpu", (288, 384), masks,
    )  # fmt: skip


def reader(data):
    faster_coco_eval = pytest.importorskip("faster_coco_eval")
    return faster_coco_eval.COCO(json.loads(json.dumps(data, allow_nan=False)))


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros(SIZE, bool), np.ones(SIZE, bool), np.eye(60, 80, dtype=bool), np.ones((1, 1), bool),
        np.zeros((1, 1), bool), np.random.default_rng(1).random(SIZE) > 0.5, np.ones((3000, 900), bool),
        np.random.default_rng(2).random((1, 400)) > 0.9, np.random.default_rng(3).random((400, 1)) > 0.1,
        np.arange(4000 * 500).reshape(500, 4000) % 70_001 > 60_000,
    ],
)  # fmt: skip
def test_run_lengths_are_read_back(mask):
    pytest.importorskip("faster_coco_eval")
    from faster_coco_eval import mask as tools

    ours = run_lengths(mask)
    theirs = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = theirs["counts"]
    assert ours["counts"] == (counts.decode() if isinstance(counts, bytes) else counts)
    assert np.array_equal(tools.decode(ours).astype(bool), mask) and tools.area(ours) == mask.sum()


def test_a_real_reader_reads_several_pictures():
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 10:20, 5:9] = True  # the second one is empty
    pictures = [
        Found("a.jpg", SIZE, result(3)),
        Found("x/b.jpg", SIZE, result(2, masks)),
        Found("c.jpg", SIZE, result()),
    ]
    data = document(pictures, "voc")
    coco = reader(data)
    assert coco.getImgIds() == [1, 2, 3] and [i["file_name"] for i in coco.dataset["images"]] == [
        "a.jpg",
        "b.jpg",
        "c.jpg",
    ]
    assert sorted(coco.anns) == [1, 2, 3, 4, 5] and len(coco.cats) == 20 and coco.cats[12]["name"] == "dog"
    assert [len(coco.getAnnIds(imgIds=[i])) for i in (1, 2, 3)] == [3, 2, 0]
    first = coco.anns[1]
    x1, y1, x2, y2 = pictures[0].result.boxes[0]
    assert np.allclose(first["bbox"], [x1, y1, x2 - x1, y2 - y1], atol=0.02) and first["score"] == pytest.approx(0.9)
    assert first["area"] == pytest.approx(first["bbox"][2] * first["bbox"][3], abs=0.01) and first["iscrowd"] == 0
    with_mask = coco.anns[4]
    assert with_mask["area"] == 40 and np.array_equal(coco.annToMask(with_mask).astype(bool), masks[0])
    assert "segmentation" not in coco.anns[5] and coco.anns[5]["area"] > 0


def test_what_is_written_scores_as_a_perfect_answer_against_itself():
    pytest.importorskip("faster_coco_eval")
    from pipelines.detection.evaluate import score

    data = document([Found("a.jpg", SIZE, result(3, categories=[1, 2, 12]))], "voc")
    assert score(data, data["annotations"]).ap == pytest.approx(1)


def test_a_hundred_objects_and_none():
    coco = reader(document([Found("a.jpg", SIZE, result(100))], "coco"))
    assert sorted(coco.anns) == list(range(1, 101)) and len(coco.cats) == 80
    empty = document([Found("a.jpg", SIZE, result())], "coco_panoptic")
    assert reader(empty).anns == {} and len(empty["categories"]) == 133
    assert document([], "voc")["images"] == []


# --- reading ---------------------------------------------------------------------------------------------------------


def truth(*boxes, **extra):
    data = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 80, "height": 60}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)],
    }
    return json.dumps(data | extra)


def only(text, size=SIZE):
    images, notes = read(text)
    return fit(choose(images), size), notes


def test_boxes_are_read_and_scaled_to_the_picture():
    found, notes = only(truth([10, 20, 30, 40], [0, 0, 80, 60]))
    assert np.allclose(found.boxes, [[10, 20, 40, 60], [0, 0, 80, 60]]) and found.labels == ("cat", "cat")
    assert found.boxes.dtype == np.float32 and found.notes == () and notes == ()
    doubled, _ = only(truth([10, 20, 30, 40]), (120, 160))
    assert np.allclose(doubled.boxes, [[20, 40, 80, 120]])
    unknown, _ = only(truth([10, 20, 30, 40], images=[{"id": 1}]), (120, 160))
    assert np.allclose(unknown.boxes, [[10, 20, 40, 60]])


def test_boxes_outside_are_cut_and_those_of_no_area_left_out_with_a_note():
    found, _ = only(
        truth([-5, 10, 20, 20], [70, 50, 30, 30], [5, 5, 0, 10], [200, 10, 20, 20], [10, 10, -5, 5], [1, 1, 2, 2])
    )
    assert np.allclose(found.boxes, [[0, 10, 15, 30], [70, 50, 80, 60], [1, 1, 3, 3]])
    assert found.notes == (
        "2 boxes reach beyond the picture and were cut off at its edge.",
        "3 boxes of no area in the picture left out.",
    )
    empty, _ = only(truth([0, 0, 0, 0]))
    assert empty.boxes.shape == (0, 4) and empty.labels == () and "1 box of no area" in empty.notes[0]
    assert only(truth([0.001, 0, 80.004, 60]))[0].notes == ()


def test_annotations_that_say_nothing_are_left_out_with_a_note():
    bad = [None, [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, None], [1, 2, float("nan"), 4], [1, 2, float("inf"), 4],
           [10**400, 2, 3, 4], {"x": 1}, [True, 1, 1, 1]]  # fmt: skip
    found, notes = only(truth(*bad, [1, 2, 3, 4]))
    assert len(found) == 1 and notes == ("9 annotations without a box of four numbers left out.",)
    box = [1, 1, 1, 1]
    ids = ((9, 1), (1, 9), ([1], 1))
    stray = [{"image_id": image, "category_id": category, "bbox": box} for image, category in ids]
    stray.append({})
    found, notes = only(truth(annotations=stray))
    assert len(found) == 0 and "4 annotations of a picture or a category" in notes[0]


def test_difficult_and_crowds_are_marked():
    rows = [{"image_id": 1, "category_id": 2, "bbox": [1, 1, 5, 5], **extra}
            for extra in ({}, {"difficult": 1}, {"iscrowd": 1})]  # fmt: skip
    found, _ = only(truth(annotations=rows))
    assert found.ignored.tolist() == [False, True, True] and found.labels == ("dog",) * 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a JSON"), ("{", "not a JSON"), (b"\xff\xd8\xff\xe0", "not a JSON"), ("[" * 100_000, "not a JSON"),
        ("[]", "needs the lists"), ("{}", "needs the lists"), ("3", "needs the lists"),
        (truth(images={}), "needs the lists"), (truth(annotations=[3]), "must be an object"),
        (truth(images=[{"file_name": "a.jpg"}]), "has no id"), (truth(categories=[{"id": []}]), "has no id"),
        (truth(images=[{"id": 1}, {"id": 1}]), "same id"),
    ],
)  # fmt: skip
def test_files_that_are_not_coco_are_refused_with_a_sentence(text, words):
    with pytest.raises(UserError, match=words):
        read(text)


def test_the_picture_is_chosen_by_its_name():
    many = [{"id": i, "file_name": f"dir/{i}.jpg"} for i in range(3)]
    images, _ = read(truth(images=many))
    assert choose(images, "somewhere/2.jpg").name == "2.jpg"
    with pytest.raises(UserError, match="3 pictures"):
        choose(images, "7.jpg")
    with pytest.raises(UserError, match="no pictures"):
        choose(())
    assert choose(images[:1], "renamed.png").name == "0.jpg"
