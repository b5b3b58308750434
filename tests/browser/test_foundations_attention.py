"""The Attention page as a visitor meets it, in Chromium."""

import re

import pytest

from pipelines import PIPELINES
from tests.browser.test_detection import wait_text
from tests.browser.test_face import PATIENCE, open_tab, shot

pytestmark = pytest.mark.skipif("foundations" not in PIPELINES, reason="the tab is not on the page")

ROWS = "#foundations-attention-growth tbody tr"
BITS = "#foundations-attention-bits tbody tr"


def open_attention(page):
    open_tab(page, "Foundations")
    open_tab(page, "Attention")
    page.wait_for_selector(ROWS, timeout=PATIENCE)


def test_growth_and_error_are_drawn_with_nothing_touched(visit):
    page = visit()
    open_attention(page)
    page.wait_for_function("r => document.querySelectorAll(r).length === 5", arg=ROWS, timeout=PATIENCE)
    assert page.locator("#foundations-attention-error polyline").count() == 3
    page.wait_for_function("r => document.querySelectorAll(r).length === 5", arg=BITS, timeout=PATIENCE)
    shot(page, "foundations-attention")
    said = page.inner_text(BITS.removesuffix(" tbody tr"))
    page.fill(
        "#foundations-attention-text textarea",
        "Quartz jugs vexed him by blowing fjords; sphinx of black onyx, judge my vow!",
    )
    page.click("#foundations-attention-judge")
    page.wait_for_function(
        "([block, text, r]) => document.querySelector(block).innerText !== text"
        " && !document.querySelector(block).innerText.includes('–') && document.querySelectorAll(r).length === 5",
        arg=[BITS.removesuffix(" tbody tr"), said, BITS], timeout=PATIENCE,
    )  # fmt: skip
    rare = [float(each.inner_text()) for each in page.locator(f"{BITS} td:nth-child(3)").all()]
    stories = [float(each.inner_text()) for each in page.locator(f"{BITS} td:nth-child(2)").all()]
    assert len(rare) == 5 and all(1 < bits < 3 < cost for bits, cost in zip(stories, rare, strict=True))


def test_a_choice_is_measured_and_stopped(visit):
    page = visit()
    open_attention(page)
    for kind in ("Softmax", "GAU (FLASH-Quad)", "FLASH", "Linear, softmax-normalised"):
        page.get_by_label(kind, exact=True).uncheck()
    page.click("#foundations-attention-run")
    page.wait_for_function(
        "r => document.querySelectorAll(r).length === 1 && document.querySelector(r).innerText.includes('4,096')",
        arg=ROWS, timeout=PATIENCE,
    )  # fmt: skip
    power = float(re.findall(r"[\d.]+", page.inner_text(f"{ROWS} td:nth-child(2)"))[0])
    assert 0.5 < power < 1.5
    page.get_by_label("Linear, elu + 1", exact=True).uncheck()
    page.click("#foundations-attention-run")
    wait_text(page, "body", "Choose at least one kind")
