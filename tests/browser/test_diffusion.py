"""The pages Draw and Swap of the Text to image tab as a visitor meets them: in Chromium, with files, a brush, two
languages, bad input and company."""

import itertools
import json
import threading

import httpx
import pytest
from PIL import Image

from pipelines import PIPELINES
from tests.browser.conftest import EXAMPLES, ROOT
from tests.browser.test_detection import set_number
from tests.browser.test_face import open_tab, shot, toast

pytestmark = pytest.mark.skipif("diffusion" not in PIPELINES, reason="the tab is not on the page")

TOLD, PICTURE, TOKENS = "#diffusion-draw-told", "#diffusion-draw-picture", "#diffusion-draw-tokens"
START, BACK = "#diffusion-draw-start", "#diffusion-draw-back"
# Every state that the page goes through, however short it is there.
WATCH = """([told, picture]) => {
  window.seen = [];
  new MutationObserver(() => {
    const text = document.querySelector(told)?.innerText || '';
    const source = document.querySelector(picture + ' img')?.getAttribute('src') || '';
    if (text && source) window.seen.push({told: text, source: source});
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
# Whether something was told since `forget`.
FRESH = "s => !!document.querySelector(s + ' p') && !document.querySelector(s + ' [data-old]')"
PATIENCE = 240_000  # ms: a picture is two dozen passes through a network, and other work may share the machine


def wait_text(page, place, words):
    page.wait_for_function(
        "([s, w]) => (document.querySelector(s)?.innerText || '').includes(w)", arg=[place, words], timeout=PATIENCE
    )


def wait_like(page, pattern):
    """Until what is told is new (see `forget`) and like this: a call may be over before it is looked for."""
    page.wait_for_function(
        "([s, p]) => !document.querySelector(s + ' [data-old]') && "
        "new RegExp(p).test(document.querySelector(s)?.innerText || '')",
        arg=[TOLD, pattern], timeout=PATIENCE,
    )  # fmt: skip


def open_draw(page):
    """The tab with its first drawing stopped, or done: tests that need no whole picture do not wait for one."""
    open_tab(page, "Text to image")
    wait_like(page, "Call|Drawn in")
    page.click("#diffusion-draw-stop")
    wait_like(page, "Stopped|Drawn in")


def forget(page):
    """Mark what was told, so that what comes is seen to be new. To take it off the page would break the page, which
    holds on to its nodes."""
    page.evaluate(
        "s => document.querySelectorAll(s + ' .gh-note, ' + s + ' .gh-verdict').forEach("
        "e => e.setAttribute('data-old', ''))",
        TOLD,
    )


def draw(page, prompt=None, steps=2):
    """Draw to the end."""
    if prompt is not None:
        page.fill("#diffusion-draw-prompt textarea", prompt)
    set_number(page, "#diffusion-draw-steps", steps)
    forget(page)
    page.click("#diffusion-draw-run")
    wait_like(page, "Drawn in")


def source(page):
    return page.locator(f"{PICTURE} img").get_attribute("src")


def save(page, path):
    with page.expect_download(timeout=PATIENCE) as download:
        page.click("#diffusion-draw-file")
    download.value.save_as(path)
    return download.value.suggested_filename


def bring_back(page, path):
    remove = page.locator(f"{BACK} button[aria-label*='lear'], {BACK} button[aria-label*='emove']")
    if remove.count():
        remove.first.click()
    page.set_input_files(f"{BACK} input[type=file]", path)


def dismiss(page):
    page.locator(".toast-close").first.click()
    page.wait_for_selector(".toast-body", state="detached")


def test_a_picture_is_drawn_with_nothing_touched(visit, tmp_path):
    page = visit()
    page.evaluate(WATCH, [TOLD, PICTURE])
    open_tab(page, "Text to image")
    wait_text(page, TOLD, "Drawn in")
    seen = [each for each in page.evaluate("window.seen") if "of 20" in each["told"]]
    assert len(seen) >= 3  # with a look at the end that is predicted
    assert all(each["source"].startswith("data:image/webp") for each in seen)
    assert len({each["source"] for each in seen}) >= 3
    assert "20 calls of the network" in page.inner_text(TOLD) and source(page).startswith("data:image/png")
    wait_text(page, TOKENS, "tokens of the prompt are read")
    assert "trained here" in page.inner_text("#diffusion-card")
    shot(page, "diffusion-draw")
    assert save(page, tmp_path / "a.png").endswith("-0.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (128, 128) and '"seed": 0' in picture.text["glasshouse"]


def test_stop_keeps_the_picture_and_the_next_work_is_served(visit):
    page = visit()
    open_draw(page)
    set_number(page, "#diffusion-draw-steps", 100)
    forget(page)
    page.click("#diffusion-draw-run")
    wait_like(page, r"Call ([3-9]|\d\d) of 100")
    page.click("#diffusion-draw-stop")
    wait_text(page, TOLD, "Stopped after call")
    told, kept = page.inner_text(TOLD), source(page)
    assert kept.startswith("data:image/webp") and page.locator("#diffusion-draw-file").is_disabled()
    page.wait_for_timeout(1500)
    assert page.inner_text(TOLD) == told and source(page) == kept
    page.get_by_text("Begin from a picture").click()
    page.click("#diffusion-draw-take")
    assert "to its end first" in toast(page)
    draw(page)


def test_a_saved_picture_comes_back_bit_for_bit(visit, tmp_path):
    page = visit()
    open_draw(page)
    page.fill("#diffusion-draw-seed textarea, #diffusion-draw-seed input", "9223372036854775807")
    page.fill("#diffusion-draw-negative textarea, #diffusion-draw-negative input", "blue")
    draw(page, "a fox, noto style", steps=3)
    save(page, tmp_path / "fox.png")
    other = visit()
    open_draw(other)
    bring_back(other, tmp_path / "fox.png")
    wait_text(other, TOLD, "Replayed: the same picture, bit for bit.")
    assert other.input_value("#diffusion-draw-prompt textarea") == "a fox, noto style"
    assert other.locator("#diffusion-draw-seed textarea, #diffusion-draw-seed input").input_value() == str(2**63 - 1)
    assert other.locator("#diffusion-draw-negative textarea, #diffusion-draw-negative input").input_value() == "blue"
    assert other.locator("#diffusion-draw-steps input[type=number]").input_value() == "3"
    assert source(other) == source(page)
    shot(other, "diffusion-replay")


def test_what_is_painted_over_is_drawn_anew(visit):
    page = visit()
    open_draw(page)
    page.get_by_text("Begin from a picture").click()
    page.locator("#diffusion-draw-begin .gallery button, #diffusion-draw-begin table button").last.click()
    page.wait_for_timeout(2500)
    canvas = page.locator(f"{START} canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 40, steps=8)
    page.mouse.up()
    page.wait_for_timeout(1500)
    draw(page, "a cat face, twemoji style", steps=4)
    first = source(page)
    shot(page, "diffusion-inpainting")
    draw(page, "a snowman", steps=4)  # from the same picture and strokes, which stay
    assert source(page) != first and "2 calls of the network" in page.inner_text(TOLD)  # 0.6 of 4


def test_the_drawing_becomes_the_start(visit):
    page = visit()
    open_draw(page)
    draw(page, "a rocket", steps=2)
    page.get_by_text("Begin from a picture").click()
    page.click("#diffusion-draw-take")
    page.wait_for_timeout(2000)
    set_number(page, "#diffusion-draw-strength", 0.5)
    draw(page, "a red heart", steps=4)
    assert "2 calls of the network" in page.inner_text(TOLD)


def test_tokens_past_the_limit_are_struck_out(visit):
    page = visit()
    open_draw(page)
    page.fill("#diffusion-draw-prompt textarea", "a red apple " * 30)
    wait_text(page, TOKENS, "do not fit into the encoder")
    assert page.locator(f"{TOKENS} s").count() == 60 and page.locator(f"{TOKENS} span.gh-quote").count() == 30
    page.fill("#diffusion-draw-prompt textarea", "<img src=x onerror=alert(1)> 🦊")
    page.wait_for_selector(f"{TOKENS} s", state="detached", timeout=PATIENCE)
    assert "onerror" in "".join(page.inner_text(TOKENS).split())  # each piece is a chip of its own
    assert page.locator(f"{TOKENS} img").count() == 0


@pytest.mark.parametrize("prompt", ["", "🦊🐻", "zxqv jjkw", "word " * 10_000])
def test_odd_prompts_are_answered(visit, prompt):
    page = visit()
    open_draw(page)
    draw(page, prompt)
    assert source(page).startswith("data:image/png") and page.locator(".toast-body").count() == 0


def test_bad_input_gets_a_sentence_and_loses_nothing(visit, tmp_path):
    page = visit()
    open_draw(page)
    draw(page)
    before = source(page)
    page.get_by_text("Size and precision").first.click()
    for place, value, words, usual in (
        ("#diffusion-draw-width input", "100", "multiple of 8; take 96 or 104", ""),
        ("#diffusion-draw-height input", "100000", "at most 1,024", ""),
        ("#diffusion-draw-seed textarea, #diffusion-draw-seed input", "seven", "seed must be a whole number", "0"),
        ("#diffusion-draw-prompt textarea", "a" * 100_001, "shorten it", "a dog"),
    ):
        page.fill(place, value)
        page.click("#diffusion-draw-run")
        assert words in toast(page)
        dismiss(page)
        assert source(page) == before
        page.fill(place, usual)
    plain, forged = tmp_path / "plain.png", tmp_path / "forged.png"
    Image.new("RGB", (9, 9)).save(plain)
    from PIL import PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("glasshouse", "{" * 100_000)
    Image.new("RGB", (9, 9)).save(forged, pnginfo=chunks)
    for path, words in ((plain, "carries no run"), (forged, "damaged or was edited"), (__file__, "no PNG")):
        bring_back(page, path)
        assert words in toast(page)
        dismiss(page)
        assert source(page) == before
    draw(page, "a dog")


def test_swap_draws_the_same_picture(visit):
    pytest.importorskip("diffusers")
    page = visit()
    open_draw(page)
    open_tab(page, "Swap")
    set_number(page, "#diffusion-swap-steps", 4)
    set_number(page, "#diffusion-swap-rounds", 2)
    page.click("#diffusion-swap-run")
    wait_text(page, "#diffusion-swap-result", "Medians of 2 round(s)")
    result = page.inner_text("#diffusion-swap-result")
    assert "bit for bit" in result or "Largest difference of a pixel: 1 of 255" in result
    assert "×" in result and "vary from run to run" in result
    assert page.locator("#diffusion-swap-ours img").count() == page.locator("#diffusion-swap-theirs img").count() == 1
    shot(page, "diffusion-swap")


def test_weights_that_are_not_here_say_so(visit):
    page = visit()
    open_draw(page)
    page.click("#diffusion-weights input")
    page.get_by_role("option", name="Stable Diffusion 1.5", exact=False).first.click()
    wait_text(page, "#diffusion-card", "not on this machine")
    page.click("#diffusion-draw-run")
    assert "fetch it under Weights first" in toast(page)


def test_the_tab_speaks_chinese(visit):
    page = visit("zh-CN")
    words = json.loads((ROOT / "pipelines" / "ui" / "zh.json").read_text(encoding="utf-8"))
    open_tab(page, words["Text to image"])
    wait_like(page, "次调用|绘制用时")
    text = page.inner_text("body")
    for english in ("Draw", "Swap", "Draw it", "Stop", "Seed", "Steps", "Sampler", "Begin from a picture"):
        assert words[english] in text, english
    assert "__i18n__" not in text
    page.click("#diffusion-draw-stop")


def test_on_a_phone_nothing_is_wider_than_the_screen(visit):
    page = visit()
    page.set_viewport_size({"width": 390, "height": 800})
    open_draw(page)
    page.get_by_text("Begin from a picture").click()
    page.wait_for_timeout(1000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_visitors_wait_in_order_and_see_their_place(visit):
    """Each is told a place while it waits, and all are served in the order in which they asked."""
    pages = [visit() for _ in range(3)]
    for page in pages:
        open_draw(page)
        set_number(page, "#diffusion-draw-steps", 100)
        forget(page)
    for page in pages:
        page.click("#diffusion-draw-run")
        page.wait_for_timeout(150)
    pages[2].wait_for_function(
        "s => /queue: [23]\\/[23]/.test(document.querySelector(s).innerText)", arg=TOLD, timeout=PATIENCE
    )
    for before, page in itertools.pairwise(pages):
        page.wait_for_function(FRESH, arg=TOLD, timeout=PATIENCE)
        told = "s => document.querySelector(s).innerText"
        assert before.evaluate(FRESH, TOLD) and "Drawn in" in before.evaluate(told, TOLD)
    wait_like(pages[2], "Drawn in")


# --- programs


def test_the_api_serves_programs(server, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(server, verbose=False, download_files=tmp_path)
    path, run = client.predict("a red apple", num_steps=2, seed=3, api_name="/diffusion_draw")
    with Image.open(path) as picture:
        assert picture.size == (128, 128) and json.loads(picture.text["glasshouse"]) == run
    assert run["request"]["seed"] == 3
    start = EXAMPLES / "diffusion" / "red-heart.png"
    white = tmp_path / "white.png"
    Image.new("L", (128, 128), 255).save(white)
    _, run = client.predict(
        "a fox", num_steps=2, image=handle_file(start), mask=handle_file(white), strength=1, api_name="/diffusion_draw"
    )
    assert run["image"] and run["mask"]
    small = tmp_path / "small.png"
    Image.new("L", (64, 64), 255).save(small)
    for options, words in (
        ({"num_steps": 0}, "between 1 and 200"), ({"num_steps": 1000}, "between 1 and 200"),
        ({"guidance_scale": 101}, "guidance"), ({"width": 100}, "multiple of 8"), ({"width": 4096}, "at most 1,024"),
        ({"backend": "other"}, "no implementation"),
        ({"image": handle_file(start), "mask": handle_file(small)}, "one size"),
        ({"image": {"path": "/etc/passwd"}}, "Upload the picture"), ({"sampler": "x"}, "no sampler"),
    ):  # fmt: skip
        with pytest.raises(AppError, match=words):
            client.predict("a", **options, api_name="/diffusion_draw")


def test_ten_programs_at_once_are_all_served(server):
    answers = []

    def ask(number):
        data = ["a dog", "", 2, 4.0, "dpm++2m", number, None, None, None, 0.8, None, "auto", "local", "float32"]
        call = httpx.post(f"{server}/gradio_api/call/diffusion_draw", json={"data": data}, timeout=60)
        event = call.json()["event_id"]
        answer = httpx.get(f"{server}/gradio_api/call/diffusion_draw/{event}", timeout=PATIENCE / 1000)
        answers.append((number, "event: complete" in answer.text and f'"seed": {number},' in answer.text))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE / 1000)
    assert sorted(answers) == [(number, True) for number in range(10)]
