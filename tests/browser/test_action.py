"""The Action tab as a visitor meets it: an example by itself, a camera, files good and bad, two visitors at once.

How long an answer takes to reach the screen is read from the page's own clock and printed (pytest -s); on a machine
that does other things it says nothing about the demo, so it is not asserted.
"""

from contextlib import suppress

import pytest
from playwright.sync_api import TimeoutError

from tests.browser.camera import film_y4m
from tests.browser.conftest import CHROMIUM, EXAMPLES, FLAGS
from tests.browser.test_face import PATIENCE, open_tab, shot, toast

CLIPS = EXAMPLES / "action"
WATCH, TEACH = "#action-watch-player ", "#action-teach-player "


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """One whose camera shows somebody who does jumping jacks, over and over."""
    playwright = pytest.importorskip("playwright.sync_api")
    film = film_y4m(CLIPS / "jumping-jacks.webm", tmp_path_factory.mktemp("camera") / "jacks.y4m")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=CHROMIUM, args=[*FLAGS, f"--use-file-for-fake-video-capture={film}"]
        )
        yield browser
        browser.close()


def open_action(page, tab=None, name="Action"):
    open_tab(page, name)
    page.wait_for_selector(f"{WATCH}[data-part=told]", timeout=PATIENCE)
    if tab:
        open_tab(page, tab)


def state(page, player, wanted):
    page.wait_for_selector(f"{player}[data-state={wanted}]", timeout=PATIENCE)


def wait_told(page, player, text):
    page.wait_for_function(
        "([block, text]) => document.querySelector(block)?.innerText.includes(text)",
        arg=[f"{player}[data-part=told]", text], timeout=PATIENCE,
    )  # fmt: skip


def wait_text(page, block, text, patience=PATIENCE):
    page.wait_for_function(
        "([block, text]) => document.querySelector(block)?.innerText.includes(text)", arg=[block, text],
        timeout=patience,
    )  # fmt: skip


def answered(page, player):
    """Waits for the first answer that is drawn."""
    page.wait_for_function(
        "block => /\\d/.test(document.querySelector(block)?.innerText)", arg=f"{player}[data-part=counts]",
        timeout=PATIENCE,
    )  # fmt: skip


def drawn(page, player):
    """Whether the skeleton's colour is in the picture."""
    return page.evaluate(
        """block => {
          const canvas = document.querySelector(block), pen = canvas.getContext('2d');
          const all = pen.getImageData(0, 0, canvas.width, canvas.height).data;
          let count = 0;
          for (let k = 0; k < all.length; k += 4) {
            const away = [45, 212, 191].map((level, c) => Math.abs(all[k + c] - level));
            if (Math.max(...away) < 12) count++;
          }
          return count;
        }""",
        f"{player}[data-part=screen]",
    )


def recorded(page, button, pattern, at_least):
    """Records until that many repetitions (or seconds of idling) are told: where too few frames come, the page says so
    and a visitor tries again; what was late counts, too."""
    for _ in range(10):
        page.click(button)
        with suppress(TimeoutError):
            page.wait_for_function(
                """([block, pattern, least]) => {
                  const found = (document.querySelector(block)?.innerText || '').match(pattern);
                  return found && parseFloat(found[1]) >= least;
                }""",
                arg=["#action-teach-told", pattern, at_least], timeout=PATIENCE / 3,
            )  # fmt: skip
            return
    raise AssertionError(f"{at_least} were never told")


def test_an_example_plays_with_nothing_touched(visit):
    page = visit()
    open_action(page)
    answered(page, WATCH)
    wait_told(page, WATCH, "The video is over")
    assert page.locator(f"{WATCH}[data-part=labels] div").count() == 16
    assert drawn(page, WATCH) > 100, "a skeleton over the picture"
    assert page.locator(f"{WATCH}[data-part=keys] span").count() == 6
    assert page.inner_text(f"{WATCH}[data-part=action]") not in ("", "–")
    assert page.locator(f"{WATCH}[data-part=forecast] span").count() >= 1
    assert "trained here" in page.inner_text("#action-card")
    print("\nexample:", page.inner_text(f"{WATCH}[data-part=counts]"))
    shot(page, "action-watch")


def test_a_camera_is_watched_and_looked_back_at(visit):
    page = visit()
    open_action(page)
    page.click(f"{WATCH}[data-part=camera]")
    wait_told(page, WATCH, "The camera is on")
    answered(page, WATCH)
    page.wait_for_function(
        "block => parseInt(document.querySelector(block).innerText) > 10", arg=f"{WATCH}[data-part=counts]",
        timeout=PATIENCE,
    )  # fmt: skip
    print("\ncamera:", page.inner_text(f"{WATCH}[data-part=counts]"))
    page.click(f"{WATCH}[data-part=stop]")
    wait_told(page, WATCH, "Stopped")
    open_tab(page, "Memory and future")
    page.wait_for_selector("#action-ribbon-ribbon svg", timeout=PATIENCE)
    page.click("#action-ribbon-own")
    page.wait_for_function(
        "() => document.querySelectorAll('#action-ribbon-ribbon .gh-ribbon > div').length > 1", timeout=PATIENCE
    )
    shot(page, "action-camera")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("NotAllowedError", "The camera was refused"), ("NotFoundError", "No camera was found"),
     ("NotReadableError", "used by another program")],
)  # fmt: skip
def test_no_camera(visit, name, sentence):
    page = visit()
    open_action(page)
    page.evaluate(
        "name => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', name)); }", name
    )
    page.click(f"{WATCH}[data-part=camera]")
    wait_told(page, WATCH, sentence)
    page.click(f"{WATCH}[data-example='0']")
    answered(page, WATCH)


def test_files_good_and_bad(visit, tmp_path):
    page = visit()
    open_action(page)
    bad = tmp_path / "film.webm"
    bad.write_text("this is no film")
    page.set_input_files(f"{WATCH}input[type=file]", bad)
    wait_told(page, WATCH, "cannot play this video")
    whole = (CLIPS / "backflip.webm").read_bytes()
    cut = tmp_path / "cut.webm"
    cut.write_bytes(whole[: len(whole) // 3])
    page.set_input_files(f"{WATCH}input[type=file]", cut)
    answered(page, WATCH)
    page.set_input_files(f"{WATCH}input[type=file]", CLIPS / "backflip.webm")
    wait_told(page, WATCH, "The video is playing")
    wait_told(page, WATCH, "The video is over")
    assert page.locator(f"{WATCH}[data-part=nobody]").is_visible(), "the man has left at the end"


def test_two_visitors_at_once(visit):
    pages = [visit(), visit()]
    for page in pages:
        open_action(page)
    for page in pages:
        page.click(f"{WATCH}[data-part=camera]")
    for page in pages:
        answered(page, WATCH)
    tickets = {page.evaluate("() => window.glasshouse.action") for page in pages}
    assert len(tickets) == 2 and all(tickets)
    for page in pages:
        page.click(f"{WATCH}[data-part=stop]")
        wait_told(page, WATCH, "Stopped")


def test_brains_and_their_control(visit):
    page = visit()
    open_action(page, "Brains")
    wait_text(page, "#action-brains-causality", "control: shown one chunk of the future")
    table = page.inner_text("#action-brains-causality")
    assert "holds" in table and "the past changed" in table
    page.locator("#action-brains-shuffled input").check()
    page.wait_for_function(
        "() => document.querySelector('#action-brains-bands table')?.innerText.match(/0\\.[0-9]*[1-9]/)",
        timeout=PATIENCE,
    )
    shot(page, "action-brains")


def test_the_ribbon_follows_the_moment(visit):
    page = visit()
    open_action(page, "Memory and future")
    page.wait_for_selector("#action-ribbon-ribbon svg", timeout=PATIENCE)
    wait_text(page, "#action-ribbon-told", "32 chunks")
    box = page.locator("#action-ribbon-index input[type=number]")
    box.fill("20")
    box.press("Enter")
    wait_text(page, "#action-ribbon-ribbon", "At 2.1 s")
    assert page.locator("#action-ribbon-ribbon .gh-ribbon > div").count() == 21
    assert page.locator("#action-ribbon-outcome tbody tr").count() == 8
    shot(page, "action-ribbon")


def test_an_action_is_taught_exported_and_erased(visit):
    page = visit()
    open_action(page, "Teach")
    page.click("#action-teach-learn")
    assert "name first" in toast(page)
    page.click(f"{TEACH}[data-part=camera]")
    wait_told(page, TEACH, "The camera is on")
    for k in range(3):
        recorded(page, "#action-teach-repeat", r"Recorded: (\d+) of", k + 1)
    recorded(page, "#action-teach-idle", r"([\d.]+) s of idling", 3)
    page.fill("#action-teach-name textarea, #action-teach-name input", "star jump")
    page.click("#action-teach-learn")
    wait_text(page, "#action-teach-told", "“star jump” is learnt")
    wait_text(page, f"{TEACH}[data-part=labels]", "star jump")
    shot(page, "action-teach")
    page.click("#action-teach-export")
    page.wait_for_selector("#action-teach-file a[download]", timeout=PATIENCE)
    page.click("#action-teach-erase")
    wait_text(page, "#action-teach-told", "Nothing was taught yet")


def test_both_implementations_over_one_clip(visit):
    page = visit()
    open_action(page, "Swap")
    page.click("#action-swap-run")
    wait_text(page, "#action-swap-told", "another model")
    assert page.locator("#action-swap-told tbody tr").count() == 4
    shot(page, "action-swap")


def test_a_chinese_visitor_on_a_phone(visit):
    page = visit("zh-CN")
    page.set_viewport_size({"width": 390, "height": 844})
    open_tab(page, "动作")
    # What is said of the weights fills the first screen of a phone; an example plays once the player is seen.
    page.locator(f"{WATCH}[data-part=told]").scroll_into_view_if_needed(timeout=PATIENCE)
    wait_told(page, WATCH, "视频已放完")
    labels = page.inner_text(f"{WATCH}[data-part=labels]")
    assert "挥手" in labels and "鼓掌" in labels
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth + 1"), "nothing sticks out"
    shot(page, "action-watch-zh")
