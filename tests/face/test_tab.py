"""The handlers of the pages, called as gradio calls them."""

from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import UserError
from pipelines.face import compare_page, detect_page, gallery_page, inside_page, processing_page, swap_page
from pipelines.face import examples_page as examples
from tests.stubs import no_progress, visitor

EN, ZH = visitor("en"), visitor("zh-CN,zh;q=0.9")
SLIDERS = (0.6, 0.7, 0.7, 20)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(gr, "Info", lambda *a, **k: None)


@pytest.fixture
def blank(tmp_path):
    path = tmp_path / "blank.png"
    Image.new("RGB", (120, 90), (200, 200, 200)).save(path)
    return str(path)


def test_detect_gives_picture_table_and_data():
    shown, table, data = detect_page.find(examples.path("group.jpg"), "local", *SLIDERS, EN, no_progress)
    assert shown.shape == (640, 1200, 3) and table.count("<tr>") == 7 and len(data["faces"]) == 6
    assert data["faces"][0]["score"] > 0.99 and len(data["faces"][0]["landmarks"]) == 5
    _, chinese, _ = detect_page.find(examples.path("group.jpg"), "local", *SLIDERS, ZH, no_progress)
    assert "张人脸" in chinese


def test_detect_without_a_face_says_where_to_look(blank):
    shown, table, data = detect_page.find(blank, "local", *SLIDERS, EN, no_progress)
    assert shown.shape == (90, 120, 3) and "No face was found" in table and data["faces"] == []


def test_detect_without_a_picture():
    with pytest.raises(UserError, match="Choose a picture"):
        detect_page.find(None, "local", *SLIDERS, EN, no_progress)
    assert detect_page.find_if_any(None, "local", *SLIDERS, EN, no_progress) == (None, "", None)


def test_compare_tells_same_from_different():
    text, data = compare_page.compare(*examples.PAIRS["One person, twice"], "local", "auto", False, EN, no_progress)
    assert data["same"] is True and "The same person" in text and "<svg" in text
    text, data = compare_page.compare(*examples.PAIRS["Two men"], "local", "auto", False, EN, no_progress)
    assert data["same"] is False and "Two people" in text
    _, data = compare_page.compare(*examples.PAIRS["Two women"], "local", "auto", True, EN, no_progress)
    assert data["same"] is False


def test_compare_runs_once_for_a_pair():
    """Both pictures of a pair report a change, and so does opening the page."""
    pair = (*examples.FIRST_PAIR, "local", "auto", False)
    last, text, data = compare_page.compare_new(None, *pair, EN, no_progress)
    assert last == pair and "The same person" in text and data["same"]
    assert all(value == gr.skip() for value in compare_page.compare_new(last, *pair, EN, no_progress))
    assert compare_page.compare_new(last, None, *pair[1:], EN, no_progress) == (None, "", None)


def test_compare_names_the_picture_without_a_face(blank):
    with pytest.raises(UserError, match="second picture"):
        compare_page.compare(examples.path("obama.jpg"), blank, "local", "auto", False, EN, no_progress)
    with pytest.raises(UserError, match="Choose the first"):
        compare_page.compare(None, blank, "local", "auto", False, EN, no_progress)


def enrolled(name, *photos, gallery=None):
    paths = [examples.path(photo) for photo in photos]
    return gallery_page.enrol(gallery, name, paths, "local", "auto", EN, no_progress)


def test_a_gallery_from_enrolment_to_erasure(blank, tmp_path):
    gallery, people, message, _, cleared = enrolled("Grace Hopper", "hopper.jpg")
    gallery, people, message, *_ = enrolled("Obama & Co", "obama.jpg", "obama2.jpg", gallery=gallery)
    assert len(gallery) == 3 and "2 picture(s)" in message and cleared == ""
    assert "Obama &amp; Co" in people and "Obama &amp; Co" in message
    gallery, shown, table = gallery_page.identify(gallery, examples.path("group.jpg"), "local", "auto", EN, no_progress)
    assert "With 2 people enrolled, a stranger would be given a name in about 2%" in table
    assert table.count("Grace Hopper</b>") == 3 and table.count(">unknown<") == 3 and shown.shape == (640, 1200, 3)
    path = gallery_page.export(gallery, "auto")
    again, people, message = gallery_page.import_file(None, path, "auto", EN)
    assert len(again) == 3 and "Imported 3" in message
    again, _, message = gallery_page.forget(again, " Grace  Hopper ", "auto", EN)
    assert len(again) == 2 and "1 face(s)" in message
    again, people, message = gallery_page.erase(again, "auto", EN)
    assert "Erased: 2 face(s). Left in the gallery: 0." in message and len(again) == 0 and "Nobody" in people
    assert len(gallery) == 3  # another session's gallery is another one


def test_enrolment_keeps_what_is_good_and_names_what_is_not(blank):
    paths = [examples.path("hopper.jpg"), blank]
    gallery, _, message, *_ = gallery_page.enrol(None, "Grace", paths, "local", "auto", EN, no_progress)
    assert len(gallery) == 1 and "blank.png" in message
    with pytest.raises(UserError, match="nobody was enrolled"):
        gallery_page.enrol(gallery, "Nobody", [blank], "local", "auto", EN, no_progress)
    with pytest.raises(UserError, match="name"):
        gallery_page.enrol(gallery, "  ", paths[:1], "local", "auto", EN, no_progress)
    with pytest.raises(UserError, match="Choose one or several"):
        gallery_page.enrol(gallery, "Grace", None, "local", "auto", EN, no_progress)
    assert len(gallery) == 1


def test_an_edited_gallery_file_is_refused_and_nothing_is_lost(tmp_path):
    gallery, *_ = enrolled("Grace Hopper", "hopper.jpg")
    data = Path(gallery_page.export(gallery, "auto")).read_bytes()
    edited = tmp_path / "edited.safetensors"
    renamed = data.replace(b"Grace Hopper", b"<script>ppr")
    assert renamed != data
    for content in (data[: len(data) // 2], renamed, b"{}", b""):
        edited.write_bytes(content)
        with pytest.raises(UserError):
            gallery_page.import_file(gallery, str(edited), "auto", EN)
        assert len(gallery) == 1
    with pytest.raises(UserError, match="empty"):
        gallery_page.export(None, "auto")


def test_a_gallery_of_other_weights_can_still_be_erased_and_exported(tmp_path, monkeypatch):
    gallery, *_ = enrolled("Grace Hopper", "hopper.jpg")
    with pytest.raises(UserError, match="not on this machine"):
        gallery_page.identify(gallery, examples.path("hopper.jpg"), "local", "facenet-casia", EN, no_progress)
    assert Path(gallery_page.export(gallery, "facenet-casia")).stat().st_size > 500
    _, _, message = gallery_page.erase(gallery, "facenet-casia", EN)
    assert "Erased: 1 face(s)" in message


def test_the_operators_gallery_is_shared_and_lasts(tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSHOUSE_GALLERY", str(tmp_path / "people.db"))
    gallery_page.lasting.cache_clear()
    try:
        enrolled("Grace Hopper", "hopper.jpg")
    except UserError as error:
        pytest.skip(str(error))  # this Python's sqlite3 takes no extensions, and pysqlite3 is not installed
    gallery_page.lasting.cache_clear()  # as after a restart
    gallery, people = gallery_page.welcome(None, "auto", EN)
    assert len(gallery) == 1 and "Grace Hopper (1)" in people
    with pytest.raises(UserError, match="visitors may not"):
        gallery_page.erase(None, "auto", EN)
    with pytest.raises(UserError, match="visitors may not"):
        gallery_page.export(None, "auto")
    monkeypatch.setenv("GLASSHOUSE_GALLERY_MANAGE", "1")
    _, _, message = gallery_page.erase(None, "auto", EN)  # by a visitor who has done nothing else yet
    assert "Erased: 1 face(s)" in message and len(gallery_page.welcome(None, "auto", EN)[0]) == 0
    gallery_page.lasting.cache_clear()


def test_effects_of_every_switch():
    first, second = examples.FIRST_PAIR
    table, data = processing_page.effects(
        first, second, ["clahe", "mirror"], ["flip", "mask"], 0, "local", "auto", EN, no_progress
    )
    assert [row["name"] for row in data] == ["clahe", "mirror", "flip", "mask"] and table.count("<tr>") == 7
    assert all(row["before"] == data[0]["before"] for row in data)
    assert data[3]["after"] < data[3]["before"] - 0.01  # a covered mouth moves the pair apart
    with pytest.raises(UserError, match="at least one"):
        processing_page.effects(first, second, [], [], 0, "local", "auto", EN, no_progress)


def test_replay_ask_and_move_a_threshold():
    ticket, _, funnel, shown, slider, _ = inside_page.replay(
        examples.path("obama.jpg"), *SLIDERS, "pnet_map", 3, EN, no_progress
    )
    run = inside_page.shelf().get(ticket)
    assert shown.shape == run.image.shape and "O-Net" in funnel and slider["maximum"] == len(run.levels) - 1

    class Click:
        index = (800, 1020)  # the dark corner in which MTCNN sees a face that is none

    picture, told = inside_page.ask(ticket, EN, Click())
    assert "A face was found here: number 2" in told and picture.shape == run.image.shape
    Click.index = (30, 30)
    _, told = inside_page.ask(ticket, EN, Click())
    assert "A face was found" not in told and "below 0.60" in told
    moved, _, _, text = inside_page.move(ticket, 0.6, 0.7, 0.95, EN, no_progress)
    assert len(run.faces) == 2 and len(inside_page.shelf().get(moved).faces) == 1 and "1 lost" in text
    for name in inside_page.view.VIEWS:
        assert inside_page.look(ticket, name, 2).shape == run.image.shape
    with pytest.raises(UserError, match="Replay"):
        inside_page.ask(None, EN, Click())


def test_views_of_a_picture_too_small_for_any_level(tmp_path):
    path = tmp_path / "one.png"
    Image.new("RGB", (1, 1)).save(path)
    ticket, _, _, shown, _, _ = inside_page.replay(str(path), *SLIDERS, "pyramid", 3, EN, no_progress)
    assert shown.shape == (1, 1, 3) and len(inside_page.shelf().get(ticket).faces) == 0
    for name in inside_page.view.VIEWS:
        assert inside_page.look(ticket, name, 2).shape == (1, 1, 3)


def test_swap_streams_and_ends_with_the_differences():
    pytest.importorskip("dlib")
    events = list(swap_page.swap(examples.path("astronaut.jpg"), "auto", EN, no_progress))
    assert len(events) == swap_page.ROUNDS + 2
    ours, theirs, text = events[-1]
    assert np.array_equal(ours, theirs) and "The same 1 face(s)" in text and "Ratio" in text
