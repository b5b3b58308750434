"""What is drawn and written of a result: colours, boxes, segments, tables, charts, differences."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipelines.detection import video_view, view
from pipelines.detection.contract import DetectionResult, Prediction, Segment
from pipelines.detection.labels import names
from pipelines.ui import draw

GREY = np.full((100, 200, 3), 120, np.uint8)


def say(text, **values):
    return text.format(**values)


def result(*found, masks=None, panoptic=None, segments=(), notes=()):
    """found: (label, score, box, query) each."""
    return DetectionResult(
        np.array([f[2] for f in found], np.float32).reshape(-1, 4), np.array([f[1] for f in found], np.float32),
        tuple(f[0] for f in found), np.arange(len(found)), np.array([f[3] for f in found], np.int64), "voc", "local",
        "cpu: here", (288, 384), masks, panoptic, segments, {"load": 0.1, "network": 0.12, "finish": 0.002}, notes,
    )  # fmt: skip


DOG, CAR = ("dog", 0.9, (20, 30, 80, 90), 3), ("car", 0.6, (100, 40, 180, 80), 5)


def rgb(ink):
    return tuple(int(ink[i : i + 2], 16) for i in (1, 3, 5))


def test_a_class_has_one_colour_whatever_it_is_called():
    assert view.colour("motorbike") == view.colour("motorcycle") and view.colour("sofa") == view.colour("couch")
    assert view.colour("dog") == view.colour("dog") != view.colour("cat")
    assert view.colour("a class of other data").startswith("#")


def luminance(ink):
    parts = [c / 255 for c in rgb(ink)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("key", ["voc", "coco", "coco_panoptic"])
def test_white_text_is_readable_on_every_colour(key):
    """Contrast as WCAG counts it, 3 for large text."""
    worst = min(names(key), key=lambda name: 1.05 / (luminance(view.colour(name)) + 0.05))
    assert 1.05 / (luminance(view.colour(worst)) + 0.05) >= 3, (worst, view.colour(worst))


def test_colours_of_the_twenty_classes_are_told_apart():
    inks = np.array([rgb(view.colour(name)) for name in names("voc")], float)
    apart = np.abs(inks[:, None] - inks[None]).sum(axis=2) + 1000 * np.eye(len(inks))
    assert apart.min() > 30


def test_boxes_are_drawn_where_they_are_and_the_surest_on_top():
    shown = view.boxes(GREY, result(DOG, CAR))
    assert tuple(shown[60, 20]) == rgb(view.colour("dog")) and tuple(shown[60, 180]) == rgb(view.colour("car"))
    assert tuple(shown[60, 50]) == (120, 120, 120) and not np.shares_memory(shown, GREY)
    same_place = view.boxes(GREY, result(DOG, ("car", 0.5, (20, 30, 80, 90), 1)))
    assert tuple(same_place[60, 20]) == rgb(view.colour("dog"))
    red = np.zeros((100, 200, 3), np.uint8)
    red[..., 0] = 255
    assert tuple(view.boxes(red, result(DOG))[5, 5]) == (255, 0, 0)
    assert np.array_equal(view.boxes(GREY, result()), GREY)


def test_only_the_surest_of_many_boxes_are_named():
    boxes = [("dog", 0.9 - i / 1000, (2 * i, 40, 2 * i + 1, 60), i) for i in range(99)]
    assert view.boxes(GREY, result(*boxes)).shape == GREY.shape
    assert view.objects(GREY, result(*boxes), None, False, say).count("<tr>") == 100


def test_masks_colour_what_they_cover():
    mask = np.zeros((1, 100, 200), bool)
    mask[0, 40:60, 40:60] = True
    shown = view.boxes(GREY, result(DOG, masks=mask))
    wanted = np.round(0.55 * 120 + 0.45 * np.array(rgb(view.colour("dog"))))
    assert np.array_equal(shown[50, 50], wanted) and tuple(shown[70, 50]) == (120, 120, 120)


def panoptic():
    ids = np.zeros((100, 200), np.int32)
    ids[:, 100:], ids[60:, :100] = 1, 2
    segments = (Segment(1, "sky-other-merged", 187, False, 0.8, 10_000), Segment(2, "dog", 18, True, 0.9, 4000))
    return result(panoptic=ids, segments=segments)


def test_segments_are_coloured_and_parted_by_white_lines():
    shown = view.segments(GREY, panoptic())
    assert tuple(shown[20, 20]) == (120, 120, 120) and tuple(shown[20, 100]) == (255, 255, 255)
    wanted = np.round(0.4 * 120 + 0.6 * np.array(rgb(view.colour("dog"))))
    assert np.array_equal(shown[80, 20], wanted)
    assert np.array_equal(view.segments(GREY, result(DOG)), GREY)


def test_the_legend_names_segments_largest_first():
    text = view.legend(panoptic(), say)
    assert text.index("sky ") < text.index("dog ") and "0.80, 50%" in text and "0.90, 20%" in text
    assert view.legend(result(), say) == ""
    assert "No segment" in view.legend(result(panoptic=np.zeros((4, 4), np.int32)), say)


def test_the_table_has_a_row_an_object():
    text = view.objects(GREY, result(DOG, CAR, notes=("a <note>",)), None, False, say)
    assert text.count("<tr>") == 3 and text.count("<img") == 2 and "2 object(s)." in text
    assert ">0.900<" in text and "20, 30, 80, 90" in text and "<td>3</td>" in text and "<td>5</td>" in text
    assert "384×288 pixels and took 120 ms" in text and "a &lt;note&gt;" in text
    again = view.objects(GREY, result(DOG), None, True, say)
    assert "Sorted anew in 2.0 ms" in again and "took 120 ms" not in again


def test_labels_cannot_smuggle_html():
    bad = ("<script>{x}", 0.9, (1, 1, 9, 9), 0)
    text = view.objects(GREY, result(bad), None, False, say)
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_nothing_found_names_the_surest_guess():
    text = view.objects(GREY, result(), result(("cat", 0.31, (1, 1, 9, 9), 0)), True, say)
    assert "Nothing reaches the threshold." in text and "guess is cat at 0.31" in text and "<table" not in text
    assert "guess" not in view.objects(GREY, result(), result(), True, say)


def test_names_follow_the_language():
    spoken = []

    def chinese(text, **values):
        spoken.append(text)
        return {"motorcycle": "摩托车"}.get(text, text).format(**values)

    assert view.word("motorbike", chinese) == "摩托车" and spoken == ["motorcycle"]
    assert view.word("pottedplant", chinese) == "pottedplant" and view.word("tree-merged", chinese) == "tree"


def test_records_are_json():
    data = json.loads(json.dumps(view.records(replace(panoptic(), notes=("n",)))))
    assert [s["label"] for s in data["segments"]] == ["sky-other-merged", "dog"] and data["notes"] == ["n"]
    data = json.loads(json.dumps(view.records(result(DOG, CAR))))
    assert data["objects"][1] == {
        "label": "car", "category": 1, "score": 0.6, "box": [100.0, 40.0, 180.0, 80.0], "query": 5,
    }  # fmt: skip
    assert data["input"] == {"height": 288, "width": 384} and data["seconds"]["network"] == 0.12


def test_crops_of_any_box_have_a_pixel():
    for box in ((20, 30, 80, 90), (-9, -9, -3, -3), (500, 500, 900, 900), (10, 10, 10, 10)):
        assert draw.crop(GREY, np.array(box)).size >= 3
    assert draw.crop(GREY, np.array((20, 30, 80, 90))).shape == (60, 60, 3)


# --- videos


def test_the_chart_has_a_line_a_class():
    counts = [Counter(dog=1), Counter(dog=2, car=1), Counter()]
    text = video_view.chart([0.0, 0.5, 1.0], counts, say)
    assert text.count("<polyline") == 2 and view.colour("dog") in text and ">2</text>" in text and ">1.2 s<" in text
    line = text.split('points="')[1].split('"')[0]
    heights = [float(point.split(",")[1]) for point in line.split()]
    assert len(heights) == 6 and heights[2] < heights[0] < heights[4]  # up is more


def test_charts_of_little():
    assert video_view.chart([], [], say) == ""
    assert "No object" in video_view.chart([0.0], [Counter()], say)
    assert video_view.chart([0.0], [Counter(dog=1)], say).count("<polyline") == 1
    many = Counter({name: 20 - i for i, name in enumerate(names("voc"))})
    assert video_view.chart([0.0, 1.0], [many, many], say).count("<polyline") == video_view.CHARTED


def test_the_strip_shows_frames_with_their_times():
    text = video_view.strip([GREY, GREY], [0.0, 2.5])
    assert text.count("<img") == 2 and "2.50 s" in text
    tall = np.full((600, 300, 3), 120, np.uint8)
    shown = video_view.thumbnail(tall, result(("dog", 0.9, (100, 200, 200, 400), 0)))
    assert shown.shape == (150, 75, 3) and tuple(shown[75, 25]) == rgb(view.colour("dog"))
    assert video_view.small(GREY, 640) is GREY and video_view.small(tall, 300).shape == (300, 150, 3)


# --- two implementations


def prediction(boxes=((0.25, 0.6, 0.3, 0.6), (0.7, 0.6, 0.4, 0.4)), logits=0.0):
    return Prediction(np.full((2, 20), logits, np.float32), np.array(boxes, np.float32), "sigmoid")


def test_equal_implementations_differ_by_nothing():
    text = view.difference(prediction(), prediction(), result(DOG), result(DOG), (100, 200), (0.1, 0.25), say)
    assert "The same 1 object(s) in both." in text and "gh-yes" in text and "Ratio: 2.50×" in text
    assert text.count("0.0000 px") == 2 and text.count("0.00e+00") == 2


def test_differences_are_found_and_measured():
    """A box a hundredth to the right of a 200 pixel picture is 2 pixels off."""
    moved = prediction(((0.26, 0.6, 0.3, 0.6), (0.7, 0.6, 0.4, 0.4)), 0.5)
    other = ("dog", 0.8, (22, 30, 82, 90), 3)
    text = view.difference(prediction(), moved, result(DOG, CAR), result(other), (100, 200), (0.1, 0.1), say)
    assert "Not the same objects: 2 here, 1 in the library, 1 of them in both." in text and "gh-no" in text
    assert "5.00e-01" in text and text.count("2.0000 px") == 2 and "1.00e-01" in text


def test_nothing_found_by_either():
    text = view.difference(prediction(), prediction(), result(), result(), (100, 200), (0.1, 0.1), say)
    assert "The same 0 object(s)" in text and "the objects shown" not in text
