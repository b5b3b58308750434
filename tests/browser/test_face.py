"""The Face tab as a visitor meets it: in Chromium, with files, a camera, two languages and bad input."""

import json
import os
import re
import threading
from contextlib import suppress

import pytest
from PIL import Image
from playwright.sync_api import TimeoutError

from tests.browser.conftest import EXAMPLES, ROOT

FACE = EXAMPLES / "face"
SHOTS = os.environ.get("GLASSHOUSE_SCREENSHOTS")  # a folder: the README's pictures are taken by these very tests
PATIENCE = 90_000  # ms: on a busy machine the first visitor waits for torch


def shot(page, name):
    if SHOTS:
        page.wait_for_timeout(900)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def open_tab(page, name):
    """Where the screen is too narrow for all tabs, the rest are in a menu behind three dots. The row is laid out anew
    while the page grows: a tab may go into the menu while it is pressed, so it is tried again until it is open."""
    tab = page.get_by_role("tab", name=name, exact=True)
    menu = page.locator(".overflow-menu:not(.hide)").filter(
        has=page.locator(f".overflow-dropdown button:text-is('{name}')")
    )
    tab.or_(menu).first.wait_for(timeout=PATIENCE)
    for _ in range(10):
        with suppress(TimeoutError):
            if menu.count() and not tab.is_visible():
                menu.locator("> button").click(timeout=PATIENCE / 20)
                menu.locator(f".overflow-dropdown button:text-is('{name}')").click(timeout=PATIENCE / 20)
            else:
                tab.click(timeout=PATIENCE / 20)
            page.wait_for_function(
                """name => [...document.querySelectorAll('button.selected')].some(b => b.innerText.trim() === name)""",
                arg=name, timeout=PATIENCE / 10,
            )  # fmt: skip
            return
    raise AssertionError(f"the tab {name} could not be opened")


def wait_faces(page, count):
    page.wait_for_function(
        "n => document.querySelectorAll('#face-detect-table tbody tr').length === n", arg=count, timeout=PATIENCE
    )


def upload(page, block, path):
    """Replace the picture of a block, whatever is in it."""
    remove = page.locator(f"{block} button[aria-label='Remove Image']")
    if remove.count():
        remove.click()
    page.set_input_files(f"{block} input[type=file]", path)


def toast(page):
    page.wait_for_selector(".toast-body", timeout=PATIENCE)
    return page.locator(".toast-body").last.inner_text()


def test_the_first_example_is_shown_with_nothing_touched(visit):
    page = visit()
    wait_faces(page, 6)
    assert "6 face(s)" in page.inner_text("#face-detect-table")
    assert page.locator("#face-detect-shown img").count() == 1
    assert "dlib" in page.inner_text("#face-card") and "CC0" in page.inner_text("#face-card")
    shot(page, "face-detect")


def test_an_upload_is_searched_and_a_bad_one_loses_nothing(visit, tmp_path):
    page = visit()
    wait_faces(page, 6)
    upload(page, "#face-detect-picture", FACE / "astronaut.jpg")
    wait_faces(page, 1)
    bad = tmp_path / "text.jpg"
    bad.write_text("this is no picture")
    upload(page, "#face-detect-picture", bad)
    assert "not a picture" in toast(page)
    upload(page, "#face-detect-picture", FACE / "obama.jpg")
    wait_faces(page, 2)  # the second is a dark corner that MTCNN takes for a face


def test_a_webcam_snapshot_is_searched(visit):
    page = visit()
    wait_faces(page, 6)
    block = "#face-detect-picture"
    page.locator(f"{block} button[aria-label='Remove Image']").click()
    page.locator(f"{block} button[aria-label='Capture from camera']").click()
    page.get_by_text("Click to Access Webcam").first.click()
    shutter = page.locator(f"{block} button[aria-label='capture photo']")
    shutter.wait_for(timeout=PATIENCE)
    page.wait_for_function(
        "() => [...document.querySelectorAll('video')].some(v => v.currentTime > 0.5)", timeout=PATIENCE
    )
    shutter.click()
    wait_faces(page, 1)
    shot(page, "face-webcam")


def test_compare_shows_itself_and_follows_the_pair(visit):
    page = visit()
    wait_faces(page, 6)
    open_tab(page, "Compare")
    page.wait_for_selector("#face-compare-result svg", timeout=PATIENCE)
    page.wait_for_selector("text=The same person", timeout=PATIENCE)
    shot(page, "face-compare")
    page.get_by_role("button", name="Two men").click()
    page.wait_for_selector("text=Two people", timeout=PATIENCE)
    page.get_by_role("button", name="One person, twice").click()
    page.wait_for_selector("text=The same person", timeout=PATIENCE)


def enrol(page, name, *photos):
    page.fill("#face-gallery-name textarea, #face-gallery-name input", name)
    page.set_input_files("#face-gallery-files input[type=file]", [FACE / photo for photo in photos])
    page.wait_for_selector(f"#face-gallery-files >> text={photos[-1][:5]}", timeout=PATIENCE)
    page.click("#face-gallery-enrol")
    page.wait_for_selector(f"#face-gallery-people >> text={name}", timeout=PATIENCE)


def test_enrol_identify_export_import_erase(visit, tmp_path):
    page = visit()
    wait_faces(page, 6)
    open_tab(page, "Gallery")
    enrol(page, "Grace Hopper", "hopper.jpg")
    enrol(page, "爱琳", "astronaut.jpg")
    page.click("#face-gallery-identify")
    page.wait_for_selector("#face-gallery-table tbody tr", timeout=PATIENCE)
    table = page.inner_text("#face-gallery-table")
    assert len(re.findall(r"Grace Hopper\t", table)) == 3 and table.count("爱琳\t") == 3
    shot(page, "face-gallery")
    page.click("#face-gallery-more button")
    page.click("#face-gallery-export")
    with page.expect_download(timeout=PATIENCE) as download:
        page.locator("#face-gallery-more a[download]").first.click(timeout=PATIENCE)
    saved = tmp_path / "gallery.safetensors"
    download.value.save_as(saved)
    page.click("#face-gallery-erase")
    page.wait_for_selector("text=Erased: 2 face(s). Left in the gallery: 0.", timeout=PATIENCE)
    page.set_input_files("#face-gallery-more input[type=file]", saved)
    page.wait_for_selector("text=Imported 2 face(s).", timeout=PATIENCE)
    edited = tmp_path / "edited.safetensors"
    edited.write_bytes(saved.read_bytes()[:-40])
    page.set_input_files("#face-gallery-more input[type=file]", edited)
    assert "gallery" in toast(page)
    assert page.locator("#face-gallery-people figure").count() == 2


def test_galleries_of_two_visitors_are_apart(visit):
    one, two = visit(), visit()
    for page in (one, two):
        wait_faces(page, 6)
        open_tab(page, "Gallery")
    enrol(one, "Grace Hopper", "hopper.jpg")
    enrol(two, "Eileen", "astronaut.jpg")
    assert "Grace" not in two.inner_text("#face-gallery-people")
    assert "Eileen" not in one.inner_text("#face-gallery-people")


def test_processing_measures_every_switch(visit):
    page = visit()
    wait_faces(page, 6)
    open_tab(page, "Face processing")
    page.click("#face-processing-run")
    page.wait_for_selector("#face-processing-table tbody tr", timeout=PATIENCE)
    assert page.locator("#face-processing-table tbody tr").count() == 12
    shot(page, "face-processing")


def test_the_cascade_replays_and_answers_a_click(visit):
    page = visit()
    wait_faces(page, 6)
    open_tab(page, "Inside")
    page.wait_for_selector("#face-inside-funnel .gh-funnel", timeout=PATIENCE)
    assert "2 of 7 left" in page.inner_text("#face-inside-funnel")
    picture = page.locator("#face-inside-shown img")
    page.wait_for_function("document.querySelector('#face-inside-shown img')?.naturalHeight === 1137", timeout=PATIENCE)
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] * 0.882, "y": box["height"] * 0.9})
    page.wait_for_selector("#face-inside-told table", timeout=PATIENCE)
    assert "A face was found here: number 2" in page.inner_text("#face-inside-told")
    shot(page, "face-inside")
    onet = page.locator("#face-inside-onet input[type=number]")
    onet.fill("0.95")
    onet.press("Enter")
    page.wait_for_selector("text=1 lost", timeout=PATIENCE)
    assert "1 of 7 left" in page.inner_text("#face-inside-funnel")


def test_swap_finds_the_same_faces(visit):
    pytest.importorskip("dlib")
    page = visit()
    wait_faces(page, 6)
    open_tab(page, "Swap")
    page.click("#face-swap-run")
    page.wait_for_selector("text=The same 6 face(s) in both.", timeout=PATIENCE)
    assert "Ratio" in page.inner_text("#face-swap-result")
    shot(page, "face-swap")


def test_weights_that_are_not_here_say_so_and_the_demo_goes_on(visit):
    page = visit()
    wait_faces(page, 6)
    page.click("#face-weights input")
    page.get_by_role("option", name=re.compile("VGGFace2")).click()
    page.wait_for_selector("#face-fetch:visible", timeout=PATIENCE)
    open_tab(page, "Compare")
    assert "fetch it under Weights first" in toast(page)
    page.click("#face-fetch")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.toast-body')].some(e => /no connection|refused/.test(e.innerText))",
        timeout=20_000,
    )
    open_tab(page, "Detect")
    upload(page, "#face-detect-picture", FACE / "astronaut.jpg")
    wait_faces(page, 1)


def test_the_page_speaks_chinese(visit):
    page = visit("zh-CN")
    wait_faces(page, 6)
    text = page.inner_text("body")
    words = json.loads((ROOT / "pipelines" / "ui" / "zh.json").read_text(encoding="utf-8"))
    for english in ("Find faces", "Compare", "Gallery", "Inside", "Implementation", "Rebuilt here"):
        assert words[english] in text, english
    assert "6 张人脸" in text and "__i18n__" not in text
    open_tab(page, words["Compare"])
    page.wait_for_selector(f"text={words['The same person, says this threshold.']}", timeout=PATIENCE)
    shot(page, "face-compare-zh")


def test_the_api_serves_programs(server, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(server, verbose=False, download_files=str(tmp_path))
    shown, table, data = client.predict(
        handle_file(FACE / "hopper.jpg"), "local", 0.6, 0.7, 0.7, 20, api_name="/face_detect"
    )
    assert len(data["faces"]) == 1 and "<table" in table
    assert Image.open(shown).size == (512, 600)
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    with pytest.raises(AppError, match="empty"):
        client.predict(handle_file(empty), "local", 0.6, 0.7, 0.7, 20, api_name="/face_detect")
    with pytest.raises(AppError, match=r"between 0 and 1|maximum"):
        client.predict(handle_file(FACE / "hopper.jpg"), "local", 0.6, 0.7, 1.7, 20, api_name="/face_detect")


def test_ten_programs_at_once_are_all_served(server, tmp_path):
    from gradio_client import Client, handle_file

    counts = []

    def ask():
        client = Client(server, verbose=False, download_files=str(tmp_path))
        *_, data = client.predict(
            handle_file(FACE / "astronaut.jpg"), "local", 0.6, 0.7, 0.7, 20, api_name="/face_detect"
        )
        counts.append(len(data["faces"]))

    threads = [threading.Thread(target=ask) for _ in range(10)]
    [t.start() for t in threads]
    [t.join(120) for t in threads]
    assert counts == [1] * 10
