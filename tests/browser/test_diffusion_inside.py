"""Inside a drawing, as a visitor meets it: time travel, x-ray and race, by mouse and keyboard, in two languages."""

import pytest

from pipelines import PIPELINES
from tests.browser.test_detection import set_number, wait_text
from tests.browser.test_face import open_tab, shot, toast

pytestmark = pytest.mark.skipif("diffusion" not in PIPELINES, reason="the tab is not on the page")

PATIENCE = 240_000  # ms: several pictures are drawn, and the first visitor waits for torch
TREE, STRIP, MOMENT = "#diffusion-travel-tree", "#diffusion-travel-strip", "#diffusion-travel-moment"


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr("tests.browser.test_detection.PATIENCE", PATIENCE)
    monkeypatch.setattr("tests.browser.test_face.PATIENCE", PATIENCE)


def count(page, selector, number):
    page.wait_for_function(
        "([s, n]) => document.querySelectorAll(s).length === n", arg=[selector, number], timeout=PATIENCE
    )


def open_page(page, name, tab="Text to image"):
    open_tab(page, tab)
    open_tab(page, name)


def begin(page, steps):
    """A new tree of one run."""
    open_page(page, "Time travel")
    page.wait_for_selector(f"{TREE} image", timeout=PATIENCE)
    set_number(page, "#diffusion-travel-steps", steps)
    page.click("#diffusion-travel-begin")
    count(page, f"{TREE} g[data-run='0'][data-call]", steps)
    count(page, f"{STRIP} [data-call]", steps)


def seed(page, text):
    page.locator("#diffusion-travel-seed").locator("input, textarea").fill(text)


def load(page, path):
    with page.expect_file_chooser() as chooser:
        page.click("#diffusion-travel-load")
    chooser.value.set_files(path)


def test_a_tree_is_there_with_nothing_touched(visit):
    page = visit()
    open_page(page, "Time travel")
    page.wait_for_selector(f"{TREE} image", timeout=PATIENCE)
    wait_text(page, MOMENT, "after 5 calls")
    assert page.locator(f"{MOMENT} img").count() == 3
    assert page.input_value("#diffusion-travel-prompt textarea") == "a red apple, twemoji style"
    page.wait_for_function(f'document.querySelectorAll("{STRIP} [data-call]").length === 20', timeout=PATIENCE)
    shot(page, "diffusion-travel")


def test_forks_are_made_looked_at_and_compared(visit):
    page = visit()
    begin(page, 6)
    page.locator(f"{TREE} g[data-run='0'][data-call='3']").click()
    wait_text(page, MOMENT, "after 3 calls")
    page.click("#diffusion-travel-fork")  # nothing is changed
    wait_text(page, "#diffusion-travel-compare", "to the last bit")
    page.locator(f"{TREE} g[role='button'][data-run='0']").focus()
    page.keyboard.press("Enter")
    wait_text(page, "#diffusion-travel-compare", "is the root")
    page.locator(f"{STRIP} [data-call='2']").click()
    wait_text(page, MOMENT, "after 2 calls")
    page.fill("#diffusion-travel-prompt textarea", "a <b>green</b> leaf")
    seed(page, "77")
    page.click("#diffusion-travel-fork")
    count(page, f"{TREE} image", 3)
    page.wait_for_function(  # a title of the drawing: read out and shown on hovering, no part of the inner text
        "([s, w]) => document.querySelector(s).textContent.includes(w)",
        arg=[TREE, "after 2 calls: prompt “a <b>green</b> leaf”, seed 0 → 77"], timeout=PATIENCE,
    )  # fmt: skip
    wait_text(page, "#diffusion-travel-compare", "levels of 255 apart")
    page.locator(f"{TREE} g[role='button'][data-run='1']").click()
    wait_text(page, "#diffusion-travel-compare", "Run 2, forked from run 1 after 3 calls")
    assert page.input_value("#diffusion-travel-prompt textarea") == "a red apple, twemoji style"  # the run's own again
    assert page.locator(f"{TREE} [aria-pressed='true']").get_attribute("data-run") == "1"


def test_the_film_strip_is_walked_with_the_keyboard(visit):
    page = visit()
    begin(page, 4)
    page.locator(f"{STRIP} [data-call='1']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    wait_text(page, MOMENT, "after 2 calls")
    set_number(page, "#diffusion-travel-call", 3)
    wait_text(page, MOMENT, "after 3 calls")
    assert page.locator(f"{STRIP} [aria-selected='true']").get_attribute("data-call") == "3"


def test_a_tree_is_saved_and_loaded_and_bad_files_are_refused(visit, tmp_path):
    page = visit()
    begin(page, 4)
    page.click("#diffusion-travel-save")
    link = page.locator("#diffusion-travel-file a").first
    with page.expect_download(timeout=PATIENCE) as download:
        link.click(timeout=PATIENCE)
    file = tmp_path / "runs.safetensors"
    download.value.save_as(file)
    load(page, file)
    wait_text(page, "#diffusion-travel-told", "1 runs were loaded.")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(file.read_bytes()[:-7])
    load(page, bad)
    assert "nothing of it was read" in toast(page)
    assert page.locator(f"{TREE} image").count() == 1
    seed(page, "-3")
    page.click("#diffusion-travel-fork")
    page.wait_for_selector("text=between 0 and 2⁶³ − 1", timeout=PATIENCE)


def test_an_x_ray_shows_guidance_and_every_token(visit):
    page = visit()
    open_page(page, "X-ray")
    page.wait_for_selector("#diffusion-xray-tokens img", timeout=PATIENCE)
    assert page.locator("#diffusion-xray-rays img").count() == 4 + 6
    kinds = page.locator("#diffusion-xray-tokens [data-kind]").evaluate_all("all => all.map(e => e.dataset.kind)")
    assert kinds[0] == "start" and kinds[-2:] == ["end", "padding"] and kinds.count("word") >= 5
    assert "of the attention, the words" in page.inner_text("#diffusion-xray-tokens")
    page.fill("#diffusion-xray-scales input, #diffusion-xray-scales textarea", "0, 30")
    set_number(page, "#diffusion-xray-call", 15)
    wait_text(page, "#diffusion-xray-rays", "after 15 calls")
    wait_text(page, "#diffusion-xray-rays", "guidance 30")
    page.locator("#diffusion-xray-one input").check()
    wait_text(page, "#diffusion-xray-tokens", "All maps have one scale")
    shot(page, "diffusion-xray")


def test_words_are_deleted_beside_a_control(visit):
    page = visit()
    open_page(page, "X-ray")
    page.wait_for_selector("#diffusion-xray-tokens img", timeout=PATIENCE)
    set_number(page, "#diffusion-xray-steps", 3)
    page.fill("#diffusion-xray-prompt textarea", "a red apple")
    page.click("#diffusion-xray-run")
    wait_text(page, "#diffusion-xray-told", "3 calls in")
    count(page, "#diffusion-xray-words input", 3)
    page.locator("#diffusion-xray-words input").first.uncheck()
    page.click("#diffusion-xray-delete")
    wait_text(page, "#diffusion-xray-progress", "Done.")
    assert page.locator("#diffusion-xray-deleted tbody tr").count() == 4
    told = page.inner_text("#diffusion-xray-deleted")
    assert "without “red”" in told and "without “a”" not in told and "Control: whole prompt, other noise" in told
    page.fill("#diffusion-xray-scales input, #diffusion-xray-scales textarea", "one")
    page.keyboard.press("Enter")
    assert "commas between" in toast(page)


def test_samplers_race_and_are_stopped(visit):
    page = visit()
    open_page(page, "Race")
    wait_text(page, "#diffusion-race-told", "The long run first")
    page.click("#diffusion-race-stop")
    wait_text(page, "#diffusion-race-told", "Stopped.")
    set_number(page, "#diffusion-race-long", 10)
    set_number(page, "#diffusion-race-calls", 3)
    page.click("#diffusion-race-run")
    wait_text(page, "#diffusion-race-told", "came nearest to the long run")
    assert page.locator("#diffusion-race-chart polyline").count() == 5
    assert page.locator("#diffusion-race-chart polyline[stroke-dasharray='6 4']").count() == 1
    assert page.locator("#diffusion-race-cards img").count() == 6
    assert "by design" in page.inner_text("#diffusion-race-cards")
    shot(page, "diffusion-race")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_pages_in_chinese_and_on_a_phone(visit, width):
    page = visit("zh-CN")
    page.set_viewport_size({"width": width, "height": 900})
    open_page(page, "时间旅行", "文生图")
    page.wait_for_selector(f"{TREE} image", timeout=PATIENCE)
    assert "噪声 →" in page.inner_text(TREE) and page.inner_text("#diffusion-travel-fork") == "从这里分叉"
    open_tab(page, "透视")
    page.wait_for_selector("#diffusion-xray-tokens img", timeout=PATIENCE)
    assert "起始标记" in page.inner_text("#diffusion-xray-tokens")
    open_tab(page, "竞速")
    wait_text(page, "#diffusion-race-told", "长运行")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("#diffusion-race-stop")
