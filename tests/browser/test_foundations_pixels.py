"""The Pixels page as a visitor meets it: in Chromium, by mouse and by keyboard."""

import pytest

from pipelines import PIPELINES
from tests.browser.test_detection import wait_text
from tests.browser.test_face import PATIENCE, open_tab, shot, toast

pytestmark = pytest.mark.skipif("foundations" not in PIPELINES, reason="the tab is not on the page")

BOARD = "#foundations-pixels-board svg"


def open_pixels(page):
    open_tab(page, "Foundations")
    open_tab(page, "Pixels")
    wait_text(page, "#foundations-pixels-heat", "nats for the whole drawing")


def bits(page):
    return page.get_attribute(BOARD, "data-bits")


def total(page):
    return page.inner_text("#foundations-pixels-heat .gh-verdict")


def wait_other(page, before):
    page.wait_for_function(
        "t => document.querySelector('#foundations-pixels-heat .gh-verdict')?.innerText !== t", arg=before,
        timeout=PATIENCE,
    )  # fmt: skip


def test_an_example_is_completed_with_nothing_touched(visit):
    page = visit()
    open_pixels(page)
    page.wait_for_selector("#foundations-pixels-gallery img", timeout=PATIENCE)
    assert bits(page).count("1") > 50
    assert page.locator("#foundations-pixels-table tbody tr").count() >= 1
    shot(page, "foundations-pixels")


def test_a_digit_is_drawn_with_the_mouse_and_changed_with_the_keyboard(visit):
    page = visit()
    open_pixels(page)
    before = total(page)
    page.click("#foundations-pixels-clear")
    page.wait_for_function("b => !document.querySelector(b).dataset.bits.includes('1')", arg=BOARD, timeout=PATIENCE)
    wait_other(page, before)
    before, box = total(page), page.locator(BOARD).bounding_box()
    unit = box["width"] / 28
    page.mouse.move(box["x"] + 14 * unit, box["y"] + 5 * unit)
    page.mouse.down()
    page.mouse.move(box["x"] + 14 * unit, box["y"] + 22 * unit, steps=8)
    page.mouse.up()
    drawn = bits(page)
    assert drawn[10 * 28 + 14] == drawn[20 * 28 + 13] == "1" and drawn[10 * 28 + 3] == "0"
    assert 34 <= drawn.count("1") <= 60
    wait_other(page, before)
    before = total(page)
    for key in ("ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowUp", " "):  # from the middle, 14 14
        page.keyboard.press(key)
    assert bits(page)[13 * 28 + 11] == "1" and bits(page).count("1") == drawn.count("1") + 1
    wait_other(page, before)
    assert "Error" not in page.inner_text("body")


def test_another_half_and_a_bad_seed(visit):
    page = visit()
    open_pixels(page)
    page.wait_for_selector("#foundations-pixels-gallery img", timeout=PATIENCE)
    page.get_by_label("Bottom", exact=True).check()
    page.click("#foundations-pixels-run")
    wait_text(page, "#foundations-pixels-gallery", "before it has heard of")  # what reads by rows
    page.fill("#foundations-pixels-seed input", "-4")
    page.click("#foundations-pixels-run")
    assert "seed" in toast(page)
    assert page.locator("#foundations-pixels-gallery img").count() >= 4
