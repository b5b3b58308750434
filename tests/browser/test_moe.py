"""The Text tab as a visitor meets it: in Chromium, by mouse and by keyboard, in two languages, with bad input."""

import json

import pytest

from tests.browser.conftest import ROOT
from tests.browser.test_detection import set_number, wait_text
from tests.browser.test_face import PATIENCE, open_tab, shot, toast

TEXT, TOLD, DETAIL = "#moe-write-text", "#moe-write-told", "#moe-write-detail"
TOKEN = f"{TEXT} [data-token]"


def open_text(page, tab=None):
    open_tab(page, "Text")
    page.wait_for_selector(TOKEN, timeout=PATIENCE)
    if tab:
        open_tab(page, tab)


def write(page, prompt=None, **numbers):
    """Press the button; `wait_written` is for what comes of it."""
    if prompt is not None:
        page.fill("#moe-write-prompt textarea", prompt)
    for name, value in numbers.items():
        page.fill(f"#moe-write-{name} input", str(value))
    page.evaluate("t => document.querySelectorAll(t).forEach(e => e.setAttribute('data-old', ''))", TOKEN)
    page.click("#moe-write-run")


def wait_written(page):
    """Until the tokens are others than those that were there when the button was pressed."""
    page.wait_for_function(
        "t => document.querySelector(t) && !document.querySelector('[data-old]')", arg=TOKEN, timeout=PATIENCE
    )


def test_a_story_is_written_with_nothing_touched(visit):
    page = visit()
    open_text(page)
    text = page.inner_text(TEXT)
    assert "Once upon a time, there was a little fox named Tim." in text and len(text) > 150
    assert "tokens a second" in page.inner_text(TOLD) and "trained here" in page.inner_text("#moe-card")
    given = page.locator(f"{TOKEN}.gh-given").count()
    assert 5 < given < page.locator(TOKEN).count()
    shares = page.locator("#moe-write-legend .gh-key").all_inner_texts()
    assert len(shares) == 8 and 96 <= sum(int(s.split()[-1].rstrip("%")) for s in shares) <= 104
    page.locator(TOKEN).nth(given + 3).click()
    page.wait_for_selector(f"{DETAIL} .gh-grid", timeout=PATIENCE)
    shot(page, "moe-write")


def test_a_token_is_asked_with_the_mouse_and_with_the_keyboard(visit):
    page = visit()
    open_text(page)
    page.locator(TOKEN).nth(12).click()
    wait_text(page, DETAIL, "Token 13 (")
    assert page.locator(f"{DETAIL} .gh-bar").count() == 8 and page.locator(f"{DETAIL} tbody tr").count() == 6
    assert page.locator(f"{DETAIL} tbody td .gh-tok").count() == 12  # two of eight in each of six layers
    assert page.locator(f"{TOKEN}[tabindex='0']").count() == 1
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    wait_text(page, DETAIL, "Token 15 (")
    page.keyboard.press("End")
    page.keyboard.press("Home")
    page.keyboard.press(" ")
    wait_text(page, DETAIL, "Token 1 (given)")
    assert page.locator(f"{TOKEN}[aria-selected='true']").get_attribute("data-token") == "0"
    before = page.locator(TOKEN).nth(12).get_attribute("title")
    set_number(page, "#moe-write-layer", 5)
    wait_text(page, "#moe-write-legend", "layer 5 of 6")
    wait_text(page, DETAIL, "in layer 5")
    assert page.locator(TOKEN).nth(12).get_attribute("title") != before
    page.locator("#moe-write-numbered input").check()
    page.wait_for_selector(f"{TEXT} .gh-numbers", timeout=PATIENCE)


def test_the_same_seed_writes_the_same_and_the_likeliest_needs_none(visit):
    page = visit()
    open_text(page)
    texts = []
    for seed in (3, 3, 4):
        write(page, "One day, a dog", new=30, seed=seed)
        wait_written(page)
        texts.append(page.inner_text(TEXT))
    assert texts[0] == texts[1] != texts[2]
    set_number(page, "#moe-write-temperature", 0)
    texts = []
    for seed in (3, 4):
        write(page, seed=seed)
        wait_written(page)
        texts.append(page.inner_text(TEXT))
    assert texts[0] == texts[1] and "30 tokens" in page.inner_text(TOLD)


def test_a_stop_string_ends_the_text(visit):
    page = visit()
    open_text(page)
    page.get_by_text("Which tokens may come at all").click()
    page.fill("#moe-write-stop-strings textarea", "\nand\n\n.")
    write(page, "Once there was a boy", new=100)
    wait_written(page)
    assert "A stop string came." in page.inner_text(TOLD)
    new = page.inner_text(TEXT).split("a boy")[1]
    assert "." not in new and "and" not in new


def test_stop_keeps_the_text_so_far(visit):
    page = visit()
    open_text(page)
    set_number(page, "#moe-write-temperature", 3)  # so wild that no story ends soon
    write(page, "The king", new=3000)
    page.wait_for_function(
        "t => parseInt(document.querySelector(t).innerText) >= 20", arg=TOLD, timeout=PATIENCE
    )  # fmt: skip
    page.click("#moe-write-stop")
    wait_text(page, TOLD, "Stopped.")
    wait_written(page)
    told, text = page.inner_text(TOLD), page.inner_text(TEXT)
    assert "The king" in text and len(text) > 60 and "Error" not in page.inner_text("body")
    page.wait_for_timeout(1000)
    assert page.inner_text(TOLD) == told and page.inner_text(TEXT) == text
    set_number(page, "#moe-write-temperature", 0.8)
    write(page, "A cat", new=5)  # the next work is served
    wait_text(page, TOLD, "5 tokens")


def fill_unfolded(page, box, text):
    """Into a box that was folded away until now: its example may reach it after a hand as fast as ours."""
    for _ in range(20):
        page.fill(box, text)
        page.wait_for_timeout(250)
        if page.input_value(box) == text:
            return
    pytest.fail(f"{box} does not keep what is typed")


def test_a_text_is_scored(visit):
    page = visit()
    open_text(page)
    page.get_by_text("Score a text").click()
    fill_unfolded(page, "#moe-write-scored textarea", "One day, a girl went to the zxqv. <b>She</b> was happy.")
    page.click("#moe-write-score")
    wait_text(page, "#moe-write-bits", "<b>She</b>")
    assert "bits per byte" in page.inner_text("#moe-write-bits")
    assert page.locator("#moe-write-bits .gh-shade").count() > 8
    page.fill("#moe-write-scored textarea", "")
    page.click("#moe-write-score")
    assert "nothing to read" in toast(page)


def test_odd_prompts_are_answered_as_text(visit):
    page = visit()
    open_text(page)
    for prompt, shown in (
        ("<img src=x onerror=alert(1)> ${1+1} {{value}} `q`", "<img src=x onerror=alert(1)> ${1+1} {{value}} `q`"),
        ("", ""), ("🦊🐻🦊", "🦊"), ("a\u0007b", "␇"), ("مرحبا بالعالم", "م"), ("a \u202e b", "\ufffd"),
    ):  # fmt: skip
        write(page, prompt, new=6)
        wait_written(page)
        assert shown in page.inner_text(TEXT).replace("◦", ""), prompt
        assert page.locator(f"{TEXT} img").count() == 0
    write(page, "No more", new=0)
    wait_text(page, TOLD, "0 tokens")
    assert page.locator(".toast-body").count() == 0


def test_bad_input_gets_a_sentence_and_loses_nothing(visit):
    page = visit()
    open_text(page)
    before = page.inner_text(TEXT)
    for prompt, new, words in (
        ("a " * 60_000, 6, "shorten it"), ("a dog", 10_000, "between 0 and 4,096"), ("a dog", -3, "between 0 and"),
    ):  # fmt: skip
        page.fill("#moe-write-prompt textarea", prompt)
        page.fill("#moe-write-new input", str(new))
        page.click("#moe-write-run")
        assert words in toast(page)
        page.locator(".toast-close").first.click()
        page.wait_for_selector(".toast-body", state="detached")
        assert page.inner_text(TEXT) == before
    write(page, "a dog", new=4)
    wait_text(page, TOLD, "4 tokens")


def test_swap_writes_the_same_text(visit):
    pytest.importorskip("transformers")
    page = visit()
    open_text(page, "Swap")
    set_number(page, "#moe-swap-new", 40)
    page.click("#moe-swap-run")
    wait_text(page, "#moe-swap-result", "The same text in both")
    assert page.inner_text("#moe-swap-ours") == page.inner_text("#moe-swap-theirs")
    assert "little fox named Tim" in page.inner_text("#moe-swap-ours")
    result = page.inner_text("#moe-swap-result")
    assert "Tokens a second" in result and "×" in result and "vary from run to run" in result
    shot(page, "moe-swap")


def test_the_library_writes_too(visit):
    pytest.importorskip("transformers")
    page = visit()
    open_text(page)
    page.locator("#moe-implementation").get_by_text("transformers").click()
    write(page, "The bear", new=8)
    wait_text(page, "#moe-write-legend", "our own network only")
    assert page.inner_text(TEXT).strip().startswith("The bear") and "8 tokens" in page.inner_text(TOLD)


def test_the_routers_are_operated_on(visit):
    page = visit()
    open_text(page, "Operate")
    wait_text(page, "#moe-operate-table", "Control: a hash router")  # the example, with nothing touched
    wait_text(page, "#moe-operate-apart", "they part after")
    assert "Without expert 1, 2 (all layers)" in page.inner_text("#moe-operate-verdict")
    shot(page, "moe-operate")
    page.locator("#moe-operate-ban").get_by_label("1", exact=True).uncheck()
    wait_text(page, "#moe-operate-verdict", "Without expert 2 (all layers)")
    for expert in "1345678":
        page.locator("#moe-operate-ban").get_by_label(expert, exact=True).check()
    assert "expert(s) left" in toast(page) or "Every expert" in toast(page)


def test_the_books_and_the_memory_follow_the_text(visit):
    page = visit()
    open_text(page, "Ledger")
    wait_text(page, "#moe-ledger-dropped", "of all choices would have been refused")
    assert page.locator("#moe-ledger-books tbody tr").count() == 6
    set_number(page, "#moe-ledger-layer", 4)
    wait_text(page, "#moe-ledger-tastes", "of layer 4")
    shot(page, "moe-ledger")
    open_tab(page, "Memory")
    wait_text(page, "#moe-memory-verdict", "With 4 of 8 experts")
    assert page.locator("#moe-memory-chart polyline").count() == 4
    set_number(page, "#moe-memory-slots", 8)
    wait_text(page, "#moe-memory-verdict", "With 8 of 8 experts")
    shot(page, "moe-memory")
    page.fill("#moe-memory-text textarea", "")
    page.click("#moe-memory-run")
    assert "write a text" in toast(page)


def test_weights_that_are_not_here_say_so(visit):
    page = visit()
    open_text(page)
    page.click("#moe-weights input")
    page.get_by_role("option", name="OLMoE 1B-7B").click()
    wait_text(page, "#moe-card", "not on this machine")
    page.click("#moe-write-run")
    assert "fetch it under Weights first" in toast(page)


def test_the_tab_speaks_chinese(visit):
    page = visit("zh-CN")
    words = json.loads((ROOT / "pipelines" / "ui" / "zh.json").read_text(encoding="utf-8"))
    open_tab(page, words["Text"])
    page.wait_for_selector(TOKEN, timeout=PATIENCE)
    text = page.inner_text("body")
    for english in ("Write on", "Stop", "New tokens", "Colours: experts of layer", "Score a text", "given", "Swap"):
        assert words[english] in text, english
    assert "每秒" in page.inner_text(TOLD) and "__i18n__" not in text
    page.locator(TOKEN).nth(5).click()
    wait_text(page, DETAIL, "第 6 个词元")


def test_on_a_phone_nothing_is_wider_than_the_screen(visit):
    page = visit()
    page.set_viewport_size({"width": 390, "height": 800})
    open_text(page)
    page.locator(TOKEN).nth(5).click()
    page.wait_for_selector(f"{DETAIL} .gh-grid", timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
