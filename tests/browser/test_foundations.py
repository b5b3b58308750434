"""The Foundations tab as a visitor meets it: live trainings in Chromium, by mouse and keyboard, in two languages."""

import pytest

from pipelines import PIPELINES
from tests.browser.test_detection import set_number, wait_text
from tests.browser.test_face import PATIENCE, open_tab, shot, toast

pytestmark = pytest.mark.skipif("foundations" not in PIPELINES, reason="the tab is not on the page")

MARGINS, EXPERTS = "#foundations-margins", "#foundations-experts"


def open_page(page, name, told, outer="Foundations"):
    open_tab(page, outer)
    open_tab(page, name)
    page.wait_for_selector(f"{told} .gh-verdict", timeout=PATIENCE)


def test_features_are_learnt_with_nothing_touched(visit):
    page = visit()
    open_page(page, "Margins", f"{MARGINS}-told")
    wait_text(page, f"{MARGINS}-told", "step 500 of 500")
    assert page.locator(f"{MARGINS}-figures [data-n]").count() == 2 * 497
    assert page.locator(f"{MARGINS}-table tbody tr").count() == 2
    shares = page.locator(f"{MARGINS}-table tbody tr").nth(1).locator("td").all_inner_texts()
    assert float(shares[5].rstrip("%")) > 85 and float(shares[6].rstrip("%")) < 15 < float(shares[7].rstrip("%"))
    shot(page, "foundations-margins")


def test_a_margin_is_moved_and_a_digit_is_asked(visit):
    page = visit()
    open_page(page, "Margins", f"{MARGINS}-told")
    wait_text(page, f"{MARGINS}-told", "step 500 of 500")
    wait_text(page, f"{MARGINS}-detail", "Test picture 12: a 4.")
    set_number(page, f"{MARGINS}-margin", 0)
    page.locator(f"{MARGINS}-margin input[type=range]").dispatch_event("pointerup")
    set_number(page, f"{MARGINS}-picture", 20)
    page.locator(f"{MARGINS}-picture input[type=range]").dispatch_event("pointerup")
    page.locator(f"{MARGINS}-figures [data-n='30']").first.dispatch_event("click")
    wait_text(page, f"{MARGINS}-detail", "Test picture 31")


def test_a_training_is_stopped_and_another_loss_has_its_sliders(visit):
    page = visit()
    open_page(page, "Margins", f"{MARGINS}-told")
    wait_text(page, f"{MARGINS}-told", "step 500 of 500")
    page.locator(f"{MARGINS}-loss input").click()
    page.get_by_role("option", name="Softmax", exact=True).click()
    page.wait_for_selector(f"{MARGINS}-scale", state="hidden", timeout=PATIENCE)
    set_number(page, f"{MARGINS}-steps", 3000)
    page.click(f"{MARGINS}-run")
    wait_text(page, f"{MARGINS}-told", "of 3000")
    page.click(f"{MARGINS}-stop")
    wait_text(page, f"{MARGINS}-told", "Stopped. Softmax")
    assert page.locator(f"{MARGINS}-table tbody tr").count() == 3


def test_three_dimensions_can_be_turned_by_key(visit):
    page = visit()
    open_page(page, "Margins", f"{MARGINS}-told")
    wait_text(page, f"{MARGINS}-told", "step 500 of 500")
    page.get_by_label("3: a sphere").check()
    set_number(page, f"{MARGINS}-steps", 50)
    page.click(f"{MARGINS}-run")
    page.wait_for_selector("[data-sphere]", timeout=PATIENCE)
    wait_text(page, f"{MARGINS}-told", "step 50 of 50")
    before = page.locator("[data-p]").first.get_attribute("transform")
    page.locator("[data-sphere]").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "old => document.querySelector('[data-p]').getAttribute('transform') !== old", arg=before, timeout=PATIENCE
    )


def test_experts_train_and_their_switches_work_meanwhile(visit):
    page = visit()
    open_page(page, "Experts", f"{EXPERTS}-told")
    wait_text(page, f"{EXPERTS}-told", "Step 800 of 800")
    assert page.locator(f"{EXPERTS}-pictures svg").count() == 6
    set_number(page, f"{EXPERTS}-steps", 5000)
    page.click(f"{EXPERTS}-run")
    wait_text(page, f"{EXPERTS}-told", "of 5000")
    page.get_by_label("two experts (top-2)").check()
    wait_text(page, f"{EXPERTS}-chart", "k = 2")
    page.click(f"{EXPERTS}-stop")
    wait_text(page, f"{EXPERTS}-told", "Stopped.")
    shot(page, "foundations-experts")


def test_in_chinese_and_with_bad_input(visit):
    page = visit("zh-CN")
    open_page(page, "间隔", f"{MARGINS}-told", "基础")
    wait_text(page, f"{MARGINS}-told", "第 500 步")
    page.fill(f"{MARGINS}-seed input", "")
    page.click(f"{MARGINS}-run")
    assert "must be a number" in toast(page)
