"""The Hungarian desk's page, its handlers called as gradio calls them, over tiny networks with random weights."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import UserError
from pipelines.detection import desk_page
from pipelines.detection import examples_page as examples
from pipelines.detection import traces_page as traces
from pipelines.detection.config import PRESETS
from tests.stubs import no_progress, visitor

pytestmark = pytest.mark.usefixtures("tiny")

EN, ZH = visitor("en"), visitor("zh-CN,zh;q=0.9")
WEIGHTS = (2.0, 5.0, 2.0, 0.1)


def click(x, y):
    return SimpleNamespace(index=(x, y))


def laid_out(photo, weights="auto", rows=None, drawn=None):
    return desk_page.lay_out(photo, weights, rows, drawn, EN, no_progress)


GOOD, OTHER = ["bird", 20, 20, 60, 80], ["boat", 70, 10, 150, 100]


@pytest.fixture
def desk(photo):
    """A picture laid out: its ticket."""
    return laid_out(photo)[0]


def settle(ticket, rows, *weights, layer=2, corner=None):
    return desk_page.change(ticket, rows, corner, layer, *(weights or WEIGHTS), EN)


def loss(summary):
    return float(summary.rpartition('<div style="outline')[2].split("<b>")[1].split("</b>")[0])


@pytest.mark.parametrize(("weights", "active"), [("sigmoid", False), ("softmax", True)])
def test_laying_out_takes_the_weights_own_loss_weights(photo, weights, active):
    ticket, names, layer, classification, l1, giou, nothing, table, corner, picture, *_ = laid_out(photo, weights)
    assert (classification, l1, giou) == ((1.0, 5.0, 2.0) if active else (2.0, 5.0, 2.0))
    assert nothing["interactive"] is active and nothing["value"] == 0.1
    assert layer["value"] == traces.kept(ticket).life.layers and corner is None and picture.shape == (120, 160, 3)
    assert table["headers"] == ["Label", "Left", "Top", "Right", "Bottom"] and len(names["choices"]) in (20, 80)


def test_the_truth_stays_with_its_picture(photo, desk):
    bicycle = ["bicycle", *GOOD[1:]]  # both networks know it
    drawn = settle(desk, [bicycle])[4]
    again = laid_out(photo, "softmax", [bicycle, ["", "", "", "", ""]], drawn)
    assert again[7]["data"] == [bicycle] and again[1]["value"] == "bicycle"
    assert laid_out(photo, rows=[OTHER])[7]["data"] == [OTHER]  # as a program may hand it in
    other = laid_out(examples.path("kingfisher.jpg"), rows=[GOOD], drawn=drawn)
    assert other[7]["data"] == [["bird", 181, 35, 401, 320]]
    first = desk_page.lay_out_new(None, photo, "auto", [], None, EN, no_progress)
    assert len(first) == 15 and first[0] == (photo, "auto")
    for path in (photo, None):
        later = desk_page.lay_out_new(first[0], path, "auto", [], None, EN, no_progress)
        assert all(value == gr.skip() for value in later) and len(later) == 15


def test_a_weight_moves_the_loss_and_the_matrix(desk):
    picture, summary, pairs, matrices, drawn = settle(desk, [GOOD, OTHER])
    assert picture.shape == (120, 160, 3) and pairs.count("<tr>") == 3 and matrices.count("<table") == 4
    assert "L1 × 5" in matrices and drawn.labels == ("bird", "boat")
    heavier = settle(desk, [GOOD, OTHER], 2.0, 10.0, 2.0, 0.1)
    assert "L1 × 10" in heavier[3] and loss(heavier[1]) > loss(summary) > 0
    assert loss(settle(desk, [GOOD, OTHER], 0, 0, 0, 0)[1]) == 0
    assert settle(desk, [GOOD, OTHER], layer=1)[3] != matrices
    with pytest.raises(UserError, match="0 to 100"):
        settle(desk, [GOOD], 2.0, -5.0, 2.0, 0.1)
    assert settle(desk, [GOOD], None, 5.0, 2.0, 0.1)[4] is not None  # an emptied field counts as 0


def test_bad_truth_is_a_sentence_and_the_rest_counts(desk):
    rows = [["dgo", 1, 1, 9, 9], ["bird", 500, 1, 600, 9], ["bird", 5, 5, 5, 9], ["<img src=x>", 1, 1, 9, 9], GOOD]
    _, summary, pairs, _, drawn = settle(desk, rows)
    for text in ("Row 1:", "no class", "Row 2:", "outside", "Row 3:", "no area"):
        assert text in summary
    assert "<img src=x>" not in summary and "&lt;img" in summary
    assert pairs.count("<tr>") == 2 and len(drawn.boxes) == 1


@pytest.mark.parametrize("rows", [None, [], [[]], [["", None, "", "", ""]], [["dgo", 1, 1, 9, 9]]])
def test_no_truth_at_all(desk, rows):
    _, summary, pairs, matrices, drawn = settle(desk, rows)
    assert "There is no truth yet" in summary and pairs == "" and matrices == "" and drawn is None
    assert loss(summary) > 0  # every query ought to say "nothing"


def test_more_truth_than_queries(desk):
    _, _, pairs, matrices, _ = settle(desk, [GOOD] * 9)
    assert pairs.count("no query is left") == 2
    assert "first 10" not in matrices and "Only the first 10 boxes" in settle(desk, [GOOD] * 12)[3]


def test_two_clicks_are_a_box(desk):
    rows, corner = desk_page.draw_corner(desk, [GOOD], None, "boat", EN, click(70, 90))
    assert rows == gr.skip() and corner == (70, 90)
    table, corner = desk_page.draw_corner(desk, [GOOD], corner, "boat", EN, click(20.5, 10))
    assert corner is None and table["data"] == [GOOD, ["boat", 20.5, 10.0, 70.0, 90.0]]
    with pytest.raises(UserError, match="opposite corner"):
        desk_page.draw_corner(desk, [GOOD], (70, 90), "boat", EN, click(70.5, 10))
    with pytest.raises(UserError, match="Run the network"):
        desk_page.draw_corner(None, [GOOD], None, "boat", EN, click(1, 1))
    before, after = settle(desk, [GOOD])[0], settle(desk, [GOOD], corner=(30, 30))[0]
    assert not np.array_equal(before, after)  # the first corner is marked


def test_undo_and_clear():
    assert desk_page.undo([GOOD, OTHER], (3, 4), EN)[0]["data"] == [GOOD, OTHER]  # only the corner goes
    assert desk_page.undo([GOOD, OTHER, [""] * 5], None, EN)[0]["data"] == [GOOD]
    assert desk_page.undo([], None, EN)[0]["data"] == [] and desk_page.clear(EN)[0]["data"] == []
    assert desk_page.clear(ZH)[0]["headers"] == ["类别", "左", "上", "右", "下"]


def test_detections_as_truth_are_matched_to_themselves(desk):
    run = traces.kept(desk)
    inner = replace(run.trace, boxes=0.4 + 0.2 * run.trace.boxes)  # none is cut off at the picture's edge
    never, ticket = (
        traces.shelf().put(replace(run, threshold=threshold, trace=inner), run.nbytes) for threshold in (1.0, 0.0)
    )
    with pytest.raises(UserError, match="found nothing"):
        desk_page.take_detections(never, EN)
    table, _ = desk_page.take_detections(ticket, EN)
    truth = desk_page.detections(traces.kept(ticket))
    assert len(table["data"]) == len(truth) > 5
    matrices = settle(ticket, table["data"][:1])[3]
    least = [min(costs(matrices, title)) for title in ("L1 × 5", "GIoU × 2")]
    assert 0 <= least[0] < 0.02 and -2 <= least[1] < -1.9  # a box on itself, but for the rounding of its row


def costs(matrices, title):
    """All numbers of one matrix of one column."""
    part = matrices.split(title)[1].split("</table>")[0]
    return [float(cell.split("<")[0].rpartition(">")[2]) for cell in part.split("text-align:center")[2:]]


def coco(tmp_path, boxes, name="mine.png", size=(120, 160), **more):
    document = {
        "images": [{"id": 1, "file_name": name, "height": size[0], "width": size[1]}],
        "categories": [{"id": 5, "name": "bird"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 5, "bbox": box} for i, box in enumerate(boxes, start=1)
        ],
        **more,
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_truth_from_a_coco_file(desk, photo, tmp_path, tiny):
    table, corner = desk_page.load(desk, coco(tmp_path, [[20, 20, 40, 60]]), photo, EN)
    assert table["data"] == [["bird", 20, 20, 60, 80]] and corner is None and tiny == []
    twice = coco(tmp_path, [[40, 40, 80, 120]], size=(240, 320))
    assert desk_page.load(desk, twice, photo, EN)[0]["data"] == table["data"]
    table, _ = desk_page.load(desk, coco(tmp_path, [[20, 20, 40, 60], [900, 0, 5, 5], [100, 20, 999, 20]]), photo, EN)
    assert [row[1:] for row in table["data"]] == [[20, 20, 60, 80], [100, 20, 160, 40]]
    assert len(tiny) == 1 and "cut off" in tiny[0] and "left out" in tiny[0]


def test_a_bad_coco_file_is_a_sentence(desk, photo, tmp_path):
    bad = tmp_path / "bad.json"
    for text in ("", "{", "[]", '{"images": []}'):
        bad.write_text(text)
        with pytest.raises(UserError):
            desk_page.load(desk, str(bad), photo, EN)
    with pytest.raises(UserError, match="no box that can be used"):
        desk_page.load(desk, coco(tmp_path, [[900, 0, 5, 5]]), photo, EN)
    with pytest.raises(UserError, match="Choose a COCO file"):
        desk_page.load(desk, None, photo, EN)
    with pytest.raises(UserError, match="upload it again"):
        desk_page.load(desk, str(tmp_path / "gone.json"), photo, EN)


def test_an_example_brings_its_own_truth(tmp_path):
    for path in examples.PHOTOS:
        size = Image.open(path).size[::-1]
        truth = traces.shipped(path, size, PRESETS["voc"])
        assert (truth is None) == ("railway" in path), path
        assert truth is None or truth.notes == ()
    horses = traces.shipped(examples.path("horses.jpg"), (415, 640), PRESETS["voc"])
    assert horses.labels == ("horse",) * 5 and horses.boxes.min() >= 0
    copied = tmp_path / "horses.jpg"  # as an upload of the same file
    copied.write_bytes(Path(examples.path("horses.jpg")).read_bytes())
    assert len(traces.shipped(str(copied), (415, 640), PRESETS["detr-resnet-50"])) == 5
    copied.write_bytes(Path(examples.path("dogs.jpg")).read_bytes())  # another picture of that name
    assert traces.shipped(str(copied), (480, 640), PRESETS["voc"]) is None
