"""The Detection tab as a visitor meets it: in Chromium, with files, a camera, two languages and bad input."""

import json
import threading
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import EXAMPLES, ROOT
from tests.browser.test_face import PATIENCE, open_tab, shot, toast, upload

PHOTOS = EXAMPLES / "detection"
TABLE = "#detection-detect-table"


def open_detection(page, tab=None):
    open_tab(page, "Detection")
    page.wait_for_selector(f"{TABLE} .gh-verdict", timeout=PATIENCE)
    if tab:
        open_tab(page, tab)


def set_number(page, block, value):
    box = page.locator(f"{block} input[type=number]")
    box.fill(str(value))
    box.press("Enter")
    box.blur()


def wait_text(page, block, text):
    page.wait_for_function(
        "([block, text]) => document.querySelector(block)?.innerText.includes(text)", arg=[block, text],
        timeout=PATIENCE,
    )  # fmt: skip


def saved_file(page, files, tmp_path, kind):
    """The exported file of this kind, downloaded."""
    link = page.locator(f"{files} a[download$='{kind}']").first
    with page.expect_download(timeout=PATIENCE) as download:
        link.click(timeout=PATIENCE)
    target = tmp_path / f"saved{kind}"
    download.value.save_as(target)
    return target


def test_the_first_example_is_shown_with_nothing_touched(visit):
    page = visit()
    open_detection(page)
    page.wait_for_selector(f"{TABLE} tbody tr", timeout=PATIENCE)
    assert "cow" in page.inner_text(TABLE) and page.locator("#detection-detect-shown img").count() == 1
    assert "trained here" in page.inner_text("#detection-card")
    assert "the size that it was made for" in page.inner_text("#detection-detect-cost")
    shot(page, "detection-detect")


def test_threshold_class_and_size(visit):
    page = visit()
    open_detection(page)
    set_number(page, "#detection-detect-threshold", 0)
    wait_text(page, TABLE, "100 object(s).")
    assert "the network was not run again" in page.inner_text(TABLE)
    page.click("#detection-detect-classes input")
    page.get_by_role("option", name="sheep", exact=True).click()
    page.wait_for_function(
        "t => [...document.querySelectorAll(`${t} tbody b`)].every(e => e.innerText === 'sheep')", arg=TABLE,
        timeout=PATIENCE,
    )  # fmt: skip
    set_number(page, "#detection-detect-threshold", 1)
    wait_text(page, TABLE, "Nothing reaches the threshold. The surest guess is sheep")
    set_number(page, "#detection-detect-side", 192)
    wait_text(page, TABLE, "256×192 pixels")
    assert "0.44 times the work" in page.inner_text("#detection-detect-cost")


def test_an_upload_is_searched_and_a_bad_one_loses_nothing(visit, tmp_path):
    page = visit()
    open_detection(page)
    picture = "#detection-detect-picture"
    upload(page, picture, PHOTOS / "motorcycle.jpg")
    wait_text(page, TABLE, "motorbike")
    bad = tmp_path / "text.jpg"
    bad.write_text("this is no picture")
    upload(page, picture, bad)
    assert "not a picture" in toast(page)
    panorama = tmp_path / "panorama.png"
    Image.fromarray(np.full((40, 2000, 3), 90, np.uint8)).save(panorama)
    upload(page, picture, panorama)
    wait_text(page, TABLE, "50 times as long as it is wide")
    upload(page, picture, PHOTOS / "sheep.jpg")
    wait_text(page, TABLE, "sheep")


def test_a_webcam_snapshot_is_searched(visit):
    page = visit()
    open_detection(page)
    block = "#detection-detect-picture"
    page.locator(f"{block} button[aria-label='Remove Image']").click()
    page.locator(f"{block} button[aria-label='Capture from camera']").click()
    page.get_by_text("Click to Access Webcam").locator("visible=true").first.click()
    shutter = page.locator(f"{block} button[aria-label='capture photo']")
    shutter.wait_for(timeout=PATIENCE)
    page.wait_for_function(
        "() => [...document.querySelectorAll('video')].some(v => v.currentTime > 0.5)", timeout=PATIENCE
    )
    shutter.click()
    wait_text(page, TABLE, "person")  # the astronaut, found or guessed


def test_the_export_is_coco_and_png(visit, tmp_path):
    page = visit()
    open_detection(page)
    set_number(page, "#detection-detect-threshold", 0.05)
    wait_text(page, TABLE, "7 object(s).")  # and not the 3 of the threshold before
    page.click("#detection-detect-export")
    document = json.loads(saved_file(page, "#detection-detect-files", tmp_path, ".json").read_text())
    ids = [a["id"] for a in document["annotations"]]
    assert len(ids) == len(set(ids)) == 7
    expect(page.locator(f"{TABLE} tbody tr")).to_have_count(7)
    assert document["images"][0]["width"] == 640
    with Image.open(saved_file(page, "#detection-detect-files", tmp_path, ".png")) as picture:
        assert picture.format == "PNG" and picture.width == 640


def test_a_video_streams_and_is_exported(visit, tmp_path):
    page = visit()
    open_detection(page, "Video")
    page.wait_for_selector("#detection-video-strip img", timeout=PATIENCE)  # the example, with nothing touched
    wait_text(page, "#detection-video-told", "24 frame(s) in")
    assert "the network took" in page.inner_text("#detection-video-told")
    assert 8 <= page.locator("#detection-video-strip img").count() <= 16
    shot(page, "detection-video")
    page.click("#detection-video-export")
    document = json.loads(saved_file(page, "#detection-video-files", tmp_path, ".json").read_text())
    assert len(document["images"]) == 24
    film = saved_file(page, "#detection-video-files", tmp_path, ".webm")
    capture = cv2.VideoCapture(str(film))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 24


def test_stop_ends_the_work_on_a_video(visit):
    page = visit()
    open_detection(page, "Video")
    page.wait_for_selector("#detection-video-strip img", timeout=PATIENCE)
    page.click("#detection-video-stop")  # the run that opening the page began
    wait_text(page, "#detection-video-told", "Stopped.")
    set_number(page, "#detection-video-rate", 8)
    page.click("#detection-video-run")
    wait_text(page, "#detection-video-told", "so far")
    page.click("#detection-video-stop")
    wait_text(page, "#detection-video-told", "Stopped.")
    told = page.inner_text("#detection-video-told")
    page.wait_for_timeout(1500)
    assert page.inner_text("#detection-video-told") == told and "Error" not in told
    open_tab(page, "Detect")
    set_number(page, "#detection-detect-threshold", 0)
    wait_text(page, TABLE, "100 object(s).")  # the next work is served


def test_bad_videos_get_a_sentence(visit, tmp_path):
    page = visit()
    open_detection(page, "Video")
    page.wait_for_selector("#detection-video-strip img", timeout=PATIENCE)
    page.click("#detection-video-stop")
    data = (PHOTOS / "pan.webm").read_bytes()
    for name, content, words in (
        ("text.mp4", b"this is no video", "not a video"),
        ("cut.mp4", b"\x00\x00\x00\x18ftypmp42" + bytes(3000), "cannot be read"),
        ("half.webm", data[: len(data) // 2], None),
    ):
        (tmp_path / name).write_bytes(content)
        # While a clip gives way to the next, the page holds both, each with its button.
        page.locator("#detection-video-video button[aria-label='Clear']").first.click()
        page.set_input_files("#detection-video-video input[type=file]", tmp_path / name)
        if words:
            page.wait_for_function(
                "w => [...document.querySelectorAll('.toast-body')].some(e => e.innerText.includes(w))", arg=words,
                timeout=PATIENCE,
            )  # fmt: skip
        else:
            wait_text(page, "#detection-video-told", "cut short")


def test_swap_finds_the_same_objects(visit):
    pytest.importorskip("timm")
    page = visit()
    open_detection(page, "Swap")
    page.click("#detection-swap-run")
    wait_text(page, "#detection-swap-result", "in both.")
    assert "The same" in page.inner_text("#detection-swap-result") and "Ratio" in page.inner_text(
        "#detection-swap-result"
    )
    shot(page, "detection-swap")


def test_weights_that_are_not_here_say_so_and_the_demo_goes_on(visit):
    page = visit()
    open_detection(page)
    page.click("#detection-weights input")
    page.get_by_role("option", name="DETR, ResNet-50, with masks").click()
    assert "fetch it under Weights first" in toast(page)
    wait_text(page, "#detection-card", "not on this machine")
    assert page.locator("#detection-detect-side input[type=number]").input_value() == "800"
    page.click("#detection-weights input")
    page.get_by_role("option", name="Automatic").click()
    wait_text(page, "#detection-card", "trained here")
    wait_text(page, TABLE, "object")


def test_the_tab_speaks_chinese(visit):
    page = visit("zh-CN")
    words = json.loads((ROOT / "pipelines" / "ui" / "zh.json").read_text(encoding="utf-8"))
    open_tab(page, words["Detection"])
    page.wait_for_selector(f"{TABLE} tbody tr", timeout=PATIENCE)
    text = page.inner_text("body")
    for english in ("Find objects", "Video", "Hungarian desk", "Threshold", "Only these classes"):
        assert words[english] in text, english
    assert "个物体" in text and "牛" in text and "__i18n__" not in text


# --- programs


def ask(client, path, threshold=0.3, side=288, classes=(), backend="local"):
    from gradio_client import handle_file

    *_, data = client.predict(
        handle_file(path), backend, "auto", side, threshold, list(classes), "boxes", api_name="/detection_detect"
    )
    return data["objects"]


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    from gradio_client import Client

    return Client(server, verbose=False, download_files=str(tmp_path_factory.mktemp("answers")))


def test_the_api_serves_programs(client, tmp_path):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    assert [o["label"] for o in ask(client, PHOTOS / "motorcycle.jpg")] == ["motorbike"]
    assert ask(client, PHOTOS / "motorcycle.jpg", classes=["dog"]) == []
    assert len(ask(client, PHOTOS / "motorcycle.jpg", threshold=0)) == 100
    files = client.predict(0.3, [], "boxes", api_name="/detection_export")
    assert [Path(f).suffix for f in files] == [".json", ".png"]
    for options, words in (({"threshold": 1.5}, "between 0 and 1|maximum"), ({"classes": ["unicorn"]}, "no class")):
        with pytest.raises(AppError, match=words):
            ask(client, PHOTOS / "motorcycle.jpg", **options)
    *_, told = client.predict(handle_file(PHOTOS / "dog.webm"), "local", "auto", 0.3, 4, api_name="/detection_video")
    assert "6 frame(s)" in told
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    with pytest.raises(AppError, match="empty"):
        client.predict(handle_file(empty), "local", "auto", 0.3, 4, api_name="/detection_video")


def test_ten_programs_at_once_are_all_served(server, tmp_path):
    from gradio_client import Client

    found = []

    def one():
        client = Client(server, verbose=False, download_files=str(tmp_path))
        found.append([o["label"] for o in ask(client, PHOTOS / "motorcycle.jpg")])

    threads = [threading.Thread(target=one) for _ in range(10)]
    [t.start() for t in threads]
    [t.join(120) for t in threads]
    assert found == [["motorbike"]] * 10


def test_a_request_by_hand_cannot_read_files_of_the_server(server, tmp_path):
    secret = tmp_path / "secret.webm"
    secret.write_bytes((PHOTOS / "dog.webm").read_bytes())
    photo = tmp_path / "secret.jpg"
    photo.write_bytes((PHOTOS / "dogs.jpg").read_bytes())
    for name, data in (
        ("detection_video", [{"path": str(secret)}, "local", "auto", 0.3, 4]),
        ("detection_detect", [{"path": str(photo)}, "local", "auto", 288, 0.3, [], "boxes"]),
        ("detection_swap", [{"path": str(photo)}, "auto", "float32"]),
    ):
        call = httpx.post(f"{server}/gradio_api/call/{name}", json={"data": data}).json()
        answer = httpx.get(f"{server}/gradio_api/call/{name}/{call['event_id']}", timeout=60).text
        assert "event: error" in answer and "event: complete" not in answer, (name, answer)
        assert str(Path(tmp_path)) not in answer
