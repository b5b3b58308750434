"""The Scale and Recurrence pages as a visitor meets them, in Chromium."""

import re

import pytest

from pipelines import PIPELINES
from tests.browser.test_detection import wait_text
from tests.browser.test_face import PATIENCE, open_tab, shot

pytestmark = pytest.mark.skipif("foundations" not in PIPELINES, reason="the tab is not on the page")

SCALE, RECURRENCE = "#foundations-scale", "#foundations-recurrence"


def test_a_stack_is_measured_and_the_undivided_training_diverges(visit):
    page = visit()
    open_tab(page, "Foundations")
    open_tab(page, "Scale")
    wait_text(page, f"{SCALE}-told", "Behind the last layer the variance is")
    before = page.inner_text(f"{SCALE}-told")
    page.get_by_label("no norm", exact=True).first.check()
    page.wait_for_function(
        "([block, text]) => document.querySelector(block).innerText !== text", arg=[f"{SCALE}-told", before],
        timeout=PATIENCE,
    )  # fmt: skip
    page.click(f"{SCALE}-run")
    wait_text(page, f"{SCALE}-train-told", "Without it: diverged at step")
    page.wait_for_function(
        "block => { const m = /With the division: ([\\d.]+) nats/.exec(document.querySelector(block).innerText);"
        " return m && Number(m[1]) < 3 }", arg=f"{SCALE}-train-told", timeout=PATIENCE,
    )  # fmt: skip
    shot(page, "foundations-scale")
    page.click(f"{SCALE}-stop")
    page.wait_for_function(
        "block => /^(Stopped|Step 300 of 300)/.test(document.querySelector(block).innerText)",
        arg=f"{SCALE}-train-told", timeout=PATIENCE,
    )  # fmt: skip


def test_networks_learn_and_the_longer_tasks_are_shown(visit):
    page = visit()
    open_tab(page, "Foundations")
    open_tab(page, "Recurrence")
    rows = f"{RECURRENCE}-table tbody tr"
    page.wait_for_selector(f"{RECURRENCE}-shipped tbody tr", timeout=PATIENCE)
    assert page.locator(f"{RECURRENCE}-shipped tbody tr").count() == 5
    copy = page.inner_text(f"{RECURRENCE}-shipped")
    assert len(re.findall(r"\d+%", copy)) >= 15
    page.wait_for_function("r => document.querySelectorAll(r).length === 5", arg=rows, timeout=PATIENCE)
    wait_text(page, f"{RECURRENCE}-chart", "Norm of the gradient")  # the first training is over
    shot(page, "foundations-recurrence")
    page.get_by_label("Recall", exact=True).check()
    page.wait_for_function(
        "([block, text]) => document.querySelector(block).innerText !== text", arg=[f"{RECURRENCE}-shipped", copy],
        timeout=PATIENCE,
    )  # fmt: skip
    page.click(f"{RECURRENCE}-run")
    page.wait_for_function(
        "block => !document.querySelector(block).innerText.includes('Norm of')", arg=f"{RECURRENCE}-chart",
        timeout=PATIENCE,
    )  # fmt: skip
    page.click(f"{RECURRENCE}-stop")
    assert "Error" not in page.inner_text("body")
