"""The handlers of the pages Detect, Video and Swap, called as gradio calls them, with stubs in place of networks."""

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import gradio as gr
import numpy as np
import pytest
from PIL import Image

from pipelines.common import video as video_module
from pipelines.common.errors import UserError
from pipelines.common.limits import Limits
from pipelines.detection import coco, detect_page, swap_page, video_page
from pipelines.detection import examples_page as examples
from pipelines.detection import pipeline as pipeline_module
from tests.detection.test_pipeline import DOG, PERSON, SURE, stubbed
from tests.stubs import no_progress, visitor

__all__ = ["stubbed"]  # the fixture: weights "voc" and "masks" that find what they are told

EN, ZH = visitor("en"), visitor("zh-CN,zh;q=0.9")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(gr, "Info", lambda *a, **k: None)


def saved(path, size=(200, 120), colour=(120, 120, 120)):
    Image.new("RGB", size, colour).save(path)
    return str(path)


@pytest.fixture
def grey(tmp_path):
    return saved(tmp_path / "grey.png")


def find(path, weights="voc", side=288, threshold=0.5, classes=(), what="boxes", request=EN, backend="local"):
    names = ("ticket", "what", "cost", "shown", "table", "data")
    values = detect_page.detect(path, backend, weights, side, threshold, list(classes), what, request, no_progress)
    return dict(zip(names, values, strict=True))


# --- Detect


def test_detect_gives_picture_table_and_data(stubbed, grey):
    calls = stubbed(DOG, PERSON)
    out = find(grey)
    assert out["shown"].shape == (120, 200, 3) and out["table"].count("<tr>") == 3
    assert [o["label"] for o in out["data"]["objects"]] == ["dog", "person"]
    assert out["data"]["objects"][0]["box"] == [30.0, 36.0, 70.0, 84.0] and out["what"]["visible"] is False
    assert "384×230 pixels for the network, the size that it was made for" in out["cost"] and len(calls) == 1
    assert "2 个物体" in find(grey, request=ZH)["table"] and "狗" in find(grey, request=ZH)["table"]


def test_red_arrives_as_red(stubbed, tmp_path):
    """The stub finds a cat wherever the first channel is full and the last is empty."""
    stubbed()
    out = find(saved(tmp_path / "red.png", colour=(255, 0, 0)))
    assert [o["label"] for o in out["data"]["objects"]] == ["cat"] and tuple(out["shown"][60, 100]) == (255, 0, 0)
    assert find(saved(tmp_path / "blue.png", colour=(0, 0, 255)))["data"]["objects"] == []


def test_another_threshold_or_class_does_not_run_the_network(stubbed, grey):
    calls = stubbed(DOG, PERSON)
    ticket = find(grey)["ticket"]
    _, table, data = detect_page.sift(ticket, 0.7, [], "boxes", EN)
    assert [o["label"] for o in data["objects"]] == ["dog"] and "not run again" in table
    *_, data = detect_page.sift(ticket, 0.5, ["person"], "boxes", EN)
    assert [o["label"] for o in data["objects"]] == ["person"]
    *_, data = detect_page.sift(ticket, 0, None, "boxes", EN)
    assert len(data["objects"]) == 40
    _, table, data = detect_page.sift(ticket, 1, [], "boxes", EN)
    assert data["objects"] == [] and "The surest guess is dog at 1.00" in table
    assert len(calls) == 1
    with pytest.raises(UserError, match="no class called"):
        detect_page.sift(ticket, 0.5, ["unicorn"], "boxes", EN)
    with pytest.raises(UserError, match="between 0 and 1"):
        detect_page.sift(ticket, 1.5, [], "boxes", EN)


def test_no_object_and_a_hundred(stubbed, grey):
    stubbed()
    out = find(grey, threshold=0)
    assert "Nothing reaches" in out["table"] and out["data"]["objects"] == [] and out["shown"].shape == (120, 200, 3)
    stubbed(*[(14, SURE - i / 100, (0.005 + 0.0049 * i, 0.5, 0.004, 0.5)) for i in range(130)])
    out = find(grey, weights="masks")
    assert len(out["data"]["objects"]) == 100 and "100 surest are kept" in out["table"]


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 60)])
def test_pictures_of_odd_shapes(stubbed, tmp_path, size):
    stubbed(DOG)
    out = find(saved(tmp_path / "odd.png", size))
    assert out["shown"].shape[0] >= 1 and len(out["data"]["objects"]) == 1
    if size == (3000, 60):  # made smaller to 2048 x 41 at the door
        assert "50 times as long as it is wide" in out["table"]


def test_bad_pictures_get_a_sentence(stubbed, tmp_path):
    stubbed(DOG)
    for name, content, words in (
        ("empty.png", b"", "empty"), ("text.jpg", b"no picture", "not a picture"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words):
            find(str(tmp_path / name))
    with pytest.raises(UserError, match="Choose a picture"):
        find(None)
    empty = detect_page.detect_if_any(None, "local", "voc", 288, 0.5, [], "boxes", EN, no_progress)
    assert empty[0] is None and empty[3] is None and len(empty) == 6


def test_the_input_size_reaches_the_network_and_has_its_price(stubbed, grey):
    calls = stubbed(DOG)
    out = find(grey, side=576)
    assert (calls[0]["size"].shortest, calls[0]["size"].longest) == (576, 768)
    assert "768×461 pixels for the network: 4 times" in out["cost"]
    assert "made for:" in detect_page.price(out["ticket"], 288, EN) and detect_page.price(None, 288, EN) == ""
    find(grey, weights="masks", side=800)
    assert (calls[1]["size"].shortest, calls[1]["size"].longest) == (800, 1333)


def test_weights_with_masks_show_segments(stubbed, grey):
    stubbed((18, SURE, (0.25, 0.5, 0.2, 0.4)))  # 18 is COCO's dog
    out = find(grey, weights="masks", what="segments")
    assert (
        out["what"]["visible"] is True and "dog <small" in out["table"] and out["data"]["segments"][0]["label"] == "dog"
    )
    assert tuple(out["shown"][60, 50]) != (120, 120, 120)


def test_settings_follow_the_weights(stubbed):
    stubbed()
    side, threshold, classes = detect_page.settings("masks")
    assert side["value"] == 800 and threshold == 0.5 and len(classes["choices"]) == 133 and classes["value"] == []
    assert detect_page.settings("auto")[0]["value"] == 288
    assert detect_page.settings("nowhere")[0]["value"] == 288  # unknown weights are refused when they are used


def test_the_export_is_coco_and_png(stubbed, grey):
    stubbed(DOG, PERSON)
    ticket = find(grey)["ticket"]
    document, picture = detect_page.export(ticket, 0.5, [], "boxes")
    images, notes = coco.read(Path(document).read_bytes())
    assert images[0].name == "grey.png" and images[0].labels == ("dog", "person") and notes == ()
    assert np.allclose(images[0].boxes[0], [30, 36, 40, 48], atol=0.01)
    data = json.loads(Path(document).read_text())
    assert [a["id"] for a in data["annotations"]] == [1, 2] and Path(document).name == "grey-coco.json"
    with Image.open(picture) as png:
        assert png.format == "PNG" and png.size == (200, 120)
    masked = find(grey, weights="masks")["ticket"]
    data = json.loads(Path(detect_page.export(masked, 0.5, [], "segments")[0]).read_text())
    assert data["annotations"][0]["segmentation"]["size"] == [120, 200]
    with pytest.raises(UserError, match="first"):
        detect_page.export(None, 0.5, [], "boxes")


def test_what_was_changed_during_a_run_counts_too(stubbed, grey):
    stubbed(DOG, PERSON)
    ticket, *_ = detect_page.detect(grey, "local", "voc", 288, 0.5, [], "boxes", EN, no_progress)
    unchanged = detect_page.catch_up(ticket, 0.5, [], "boxes", EN)
    assert all(isinstance(each, dict) for each in unchanged)  # gr.skip()
    assert len(detect_page.catch_up(ticket, 0.5, ["dog"], "boxes", EN)[2]["objects"]) == 1
    assert len(detect_page.catch_up(ticket, 0.0, [], "boxes", EN)[2]["objects"]) >= 2


def test_exported_files_stay_while_the_settings_are_theirs(stubbed):
    now = ["ticket", 0.5, [], "boxes"]
    assert detect_page.unless_of(None, *now)["visible"] is False
    assert detect_page.unless_of(now, "ticket", 0.6, [], "boxes")["visible"] is False
    assert "visible" not in detect_page.unless_of(now, *now)  # a slider's second report of the same value


def test_a_picture_that_made_room_says_so(stubbed, grey, monkeypatch):
    stubbed(DOG)
    monkeypatch.setattr(detect_page, "shelf", lambda: kept)
    kept = detect_page.Shelf(10)
    first = find(grey)["ticket"]
    find(grey)
    with pytest.raises(UserError, match="press Find objects again"):
        detect_page.sift(first, 0.5, [], "boxes", EN)
    assert all(value == gr.skip() for value in detect_page.sift(None, 0.5, [], "boxes", EN))


def test_every_example_is_there_small_and_accounted_for():
    told = (examples.FOLDER / "README.md").read_text(encoding="utf-8")
    files = [Path(p) for p in (*examples.PHOTOS, *examples.VIDEOS)]
    assert len(examples.PHOTOS) >= 6
    for file in files:
        assert f"| {file.name} |" in told, file.name
        assert file.stat().st_size < (100_000 if file.suffix == ".jpg" else 200_000), file.name
    for photo in examples.PHOTOS:
        with Image.open(photo) as image:
            assert max(image.size) <= 640
    extra = {p.name for p in examples.FOLDER.iterdir() if p.suffix in (".jpg", ".webm")} - {f.name for f in files}
    assert extra == set()


# --- Video


def film(path, frames=12, rate=4, size=(64, 48), code="VP80"):
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), rate, size)
    for k in range(frames):
        writer.write(np.full((size[1], size[0], 3), 8 * k % 256, np.uint8))
    writer.release()
    return str(path)


def watch(path, threshold=0.5, rate=4):
    return video_page.watch(path, "local", "voc", threshold, rate, EN, no_progress)


def test_frames_are_streamed_as_they_are_done(stubbed, tmp_path):
    calls = stubbed(DOG, PERSON)
    events = watch(film(tmp_path / "a.webm"))
    ticket, picture, strip, _, told = next(events)
    assert len(calls) == 1 and picture.shape == (48, 64, 3) and strip.count("<img") == 1 and "1 frame(s) so far" in told
    rest = list(events)
    assert len(calls) == 12 and len(rest) == 12 and not any(call["masks"] for call in calls)
    assert "12 frame(s)" in rest[-1][4] and rest[-2][3].count("<polyline") == 2
    reel = video_page.shelf().get(ticket)
    assert reel.seconds == pytest.approx([k / 4 for k in range(12)], abs=0.01) and len(reel.frames) == 12
    assert [c["dog"] for c in reel.counts] == [1] * 12


def test_stop_ends_the_work_after_the_frame_at_hand(stubbed, tmp_path):
    calls = stubbed(DOG)
    events = watch(film(tmp_path / "a.webm"))
    ticket, *_ = next(events)
    next(events)
    video_page.halt(EN)
    (last,) = events
    assert len(calls) == 2 and "Stopped. 2 frame(s) in" in last[4] and len(video_page.turns) == 0
    document, recorded = video_page.export(ticket)  # what was found so far
    assert len(json.loads(Path(document).read_text())["images"]) == 2
    with video_module.Video(recorded) as again:
        assert len(list(again.frames(4))) == 2
    video_page.halt(EN)  # nothing runs: nothing happens


def test_a_page_that_is_closed_stops_the_work(stubbed, tmp_path):
    calls = stubbed(DOG)
    events = watch(film(tmp_path / "a.webm"))
    ticket, *_ = next(events)
    events.close()
    assert len(calls) == 1 and list(events) == [] and len(video_page.turns) == 0
    (document,) = video_page.export(ticket)  # no film: it was not finished
    assert len(json.loads(Path(document).read_text())["images"]) == 1


def test_another_run_halts_the_one_before_of_the_same_visitor_only(stubbed, tmp_path):
    stubbed(DOG)
    one, two = film(tmp_path / "one.webm"), film(tmp_path / "two.webm")
    other = visitor("en")
    other.session_hash = "another"
    strangers = video_page.watch(one, "local", "voc", 0.5, 4, other, no_progress)
    next(strangers)
    first = watch(one)
    next(first)
    second = watch(two)
    next(second)
    assert len(list(first)) == 0  # no last word on a page that is not its own any more
    assert len(list(second)) == 12 and len(list(strangers)) == 12
    third = watch(one)
    next(third)
    video_page.halt_other(one, EN)  # the change that opening the page reports
    next(third)
    video_page.halt_other(two, EN)
    assert "Stopped." in list(third)[-1][4]


def test_all_frames_are_exported_with_unique_ids(stubbed, tmp_path):
    stubbed(DOG, PERSON)
    events = list(watch(film(tmp_path / "holiday.webm")))
    document, recorded = video_page.export(events[0][0])
    data = json.loads(Path(document).read_text())
    ids = [a["id"] for a in data["annotations"]]
    assert len(ids) == 24 == len(set(ids)) and len({i["file_name"] for i in data["images"]}) == 12
    assert data["images"][3]["file_name"] == "holiday-000003.png" and data["images"][0]["width"] == 64
    assert len(coco.read(json.dumps(data))[0]) == 12
    with video_module.Video(recorded) as again:
        assert len(list(again.frames(4))) == 12


def test_the_strip_thins_itself(stubbed, tmp_path):
    stubbed(DOG)
    (ticket, *_), *_ = watch(film(tmp_path / "a.webm", frames=70, rate=10, size=(32, 32)), rate=10)
    reel = video_page.shelf().get(ticket)
    assert len(reel.seconds) == 70 and 8 <= len(reel.frames) <= video_page.STRIP
    gaps = np.diff(reel.times)
    assert np.allclose(gaps, gaps[0], atol=0.02) and gaps[0] == pytest.approx(reel.stride / 10, abs=0.02)


def test_no_object_in_any_frame(stubbed, tmp_path):
    stubbed()
    events = list(watch(film(tmp_path / "a.webm"), threshold=0))
    assert "No object in any frame" in events[-2][3] and len(events) == 13
    document, _ = video_page.export(events[0][0])
    assert json.loads(Path(document).read_text())["annotations"] == []


def test_what_was_left_out_is_said(stubbed, tmp_path, monkeypatch):
    stubbed(DOG)
    bounds = replace(Limits(), video_frames=5)
    monkeypatch.setattr(video_module, "limits", lambda: bounds)
    *_, last = watch(film(tmp_path / "a.webm"))
    assert "The first 5 frames were looked at" in last[4] and "5 frame(s)" in last[4]


def cut(path):
    data = Path(film(path, frames=60)).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
    return str(path)


def test_a_truncated_video_gives_what_it_has(stubbed, tmp_path):
    stubbed(DOG)
    *_, last = watch(cut(tmp_path / "cut.webm"))
    assert "cut short" in last[4]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"no film at all", "not a video"), (b"\x1a\x45\xdf\xa3" + bytes(500), "cannot be read")],
)
def test_bad_videos_get_a_sentence_and_the_next_is_served(stubbed, tmp_path, content, words):
    stubbed(DOG)
    (tmp_path / "bad.webm").write_bytes(content)
    with pytest.raises(UserError, match=words):
        list(watch(str(tmp_path / "bad.webm")))
    assert len(list(watch(film(tmp_path / "good.webm", frames=2)))) == 3


def test_a_video_is_looked_at_once(stubbed, tmp_path):
    calls = stubbed(DOG)
    path = film(tmp_path / "a.webm", frames=3)
    asked = (path, "local", "voc", 0.5, 4, EN, no_progress)
    *_, last = video_page.watch_new(None, *asked)
    assert last[0] == (path, "local", "voc") and len(calls) == 3
    (again,) = video_page.watch_new(last[0], *asked)
    assert all(value == gr.skip() for value in again) and len(calls) == 3
    (cleared,) = video_page.watch_new(last[0], None, *asked[1:])
    assert cleared == (None, None, None, "", "", "")
    for rate in (0, None, 61):
        with pytest.raises(UserError, match="frames a second"):
            list(watch(path, rate=rate))
    with pytest.raises(UserError, match="Choose or record"):
        list(watch(None))
    with pytest.raises(UserError, match="Look at a video first"):
        video_page.export(None)


# --- Swap


def test_swap_streams_and_ends_with_the_differences(stubbed, grey):
    calls = stubbed(DOG, PERSON)
    events = list(swap_page.swap(grey, "voc", "reduced", EN, no_progress))
    assert len(events) == swap_page.ROUNDS + 2 and len(calls) == 2 * (swap_page.ROUNDS + 1)
    ours, theirs, text = events[-1]
    assert np.array_equal(ours, theirs) and "The same 2 object(s)" in text and re.search(r"Ratio: [\d.]+×", text)
    assert sorted(call["precision"] for call in calls) == ["float32"] * 6 + ["reduced"] * 6


def test_swap_shows_what_is_off(stubbed, grey, monkeypatch):
    """A planted fault: the library's boxes lie a tenth of the picture further right."""
    stubbed(DOG)
    real = swap_page.predict

    def off(request, seconds):
        found = real(request, seconds)
        if request.backend == "reference":
            found = replace(found, boxes=found.boxes + np.array([0.1, 0, 0, 0], np.float32))
        return found

    monkeypatch.setattr(swap_page, "predict", off)
    *_, (ours, theirs, text) = swap_page.swap(grey, "voc", "float32", EN, no_progress)
    assert text.count("20.0000 px") == 2 and not np.array_equal(ours, theirs)


def test_handlers_have_a_description():
    for handler in (
        detect_page.detect, detect_page.sift, detect_page.export, video_page.watch, video_page.export, swap_page.swap,
    ):  # fmt: skip
        assert handler.__doc__
    assert pipeline_module.finish.__doc__
