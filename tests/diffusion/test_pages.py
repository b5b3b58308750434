"""The handlers of the page Draw, called as gradio calls them, over a stub in place of networks."""

import re
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.diffusion import draw_page, running_page, settings_page, view
from pipelines.diffusion.contract import SAMPLERS, DiffusionRequest, PromptTokens
from pipelines.diffusion.record import read_png
from pipelines.ui.turns import Turns
from tests.stubs import StubDiffusion, no_progress, visitor

EN, ZH = visitor("en"), visitor("zh-CN,zh;q=0.9")
NAMES = ("ticket", "picture", "told", "file")
SETTINGS = dict(
    negative="", seed="0", count=4, guidance=4.0, sampler="dpm++2m", width=None, height=None, precision="float32"
)


def values(**changes):
    assert not changes.keys() - SETTINGS.keys()
    return list({**SETTINGS, **changes}.values())


def start(prompt="red", given=None, strength=0.6, backend="local", weights="auto", request=EN, **changes):
    return draw_page.draw(prompt, given, strength, backend, weights, *values(**changes), request, no_progress)


def named(step):
    return dict(zip(NAMES, step, strict=True))


def draw(*args, **changes):
    return [named(step) for step in start(*args, **changes)]


def text(html):
    return re.sub(r"<[^>]*>", "", html)


# --- a drawing


def test_each_call_is_shown_and_the_end_carries_its_run(stub):
    shown = draw(seed="7")
    assert [step["ticket"] for step in shown[:-1]] == ["pending"] * 4  # none yet, and after three of four calls
    assert "first call" in shown[0]["told"] and [f"Call {n} of 4" in shown[n]["told"] for n in (1, 2, 3)] == [True] * 3
    assert all(step["file"]["interactive"] is False for step in shown[:-1])
    last = shown[-1]
    result = running_page.kept(last["ticket"])
    assert result.calls == 4 and result.request.seed == 7 and result.history is None
    assert "Drawn in" in last["told"] and "4 calls of the network" in last["told"] and "16×16" in last["told"]
    assert "data:image/png;base64," in last["picture"] and last["file"]["interactive"] is True
    assert last["file"]["value"].endswith("/red-7.png")
    with open(last["file"]["value"], "rb") as file:
        again = read_png(file.read())
    assert again == replace(result.request, previews=True, history=False)
    assert len(draw_page.turns) == 0


def test_previews_are_the_predicted_end(stub):
    shown = draw(prompt="blue", guidance=1)
    pictures = [step["picture"] for step in shown]
    assert pictures[0] == gr.skip() and all("data:image/webp" in each for each in pictures[1:4])
    colour = np.array([round((level + 1) * 127.5) for level in StubDiffusion.colour("blue")])
    image = running_page.kept(shown[-1]["ticket"]).image
    assert image.shape == (16, 16, 3) and np.abs(image.astype(int) - colour).max() <= 1


def test_the_settings_reach_the_request(monkeypatch):
    asked = []

    def steps(request):
        asked.append(request)
        yield from ()

    monkeypatch.setattr(draw_page, "steps", steps)
    list(start("x", strength=0.3, negative="y", seed=" 12 ", count=7, guidance=-5, sampler="heun", width=64, height=32))
    made = asked[0]
    assert (made.prompt, made.negative_prompt, made.seed, made.num_steps, made.guidance_scale) == ("x", "y", 12, 7, -5)
    assert (made.sampler, made.width, made.height, made.strength) == ("heun", 64, 32, 0.3)
    list(start(None, backend="reference", weights="emoji", negative=None, seed="", width=0, precision="reduced"))
    made = asked[1]
    assert (made.prompt, made.negative_prompt, made.seed, made.width) == ("", "", 0, None)
    assert (made.backend, made.weights, made.precision) == ("reference", "emoji", "reduced")


def test_the_usual_sampler_is_the_first():
    assert DiffusionRequest("").sampler == SAMPLERS[0]


@pytest.mark.parametrize("prompt", ["", "🦊", "zxqv jjkw", "word " * 10_000, "<img src=x onerror=alert(1)>"])
def test_any_prompt_is_answered(stub, prompt):
    last = draw(prompt)[-1]
    assert running_page.kept(last["ticket"]).request.prompt == prompt
    assert "<img src=x" not in last["picture"] + last["told"]


@pytest.mark.parametrize("guidance", [-5, 0, 1, 100])
def test_any_guidance_is_answered(stub, guidance):
    assert running_page.kept(draw(guidance=guidance)[-1]["ticket"]).request.guidance_scale == guidance


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 0}, "between 1 and 200"),
        ({"count": 1000}, "between 1 and 200"),
        ({"count": 2.5}, "whole number"),
        ({"count": float("nan")}, "whole number"),
        ({"guidance": 101}, "between -100 and 100"),
        ({"seed": "seven"}, "whole number between 0 and 2⁶³"),
        ({"seed": "-1"}, "whole number between 0 and 2⁶³"),
        ({"seed": str(2**63)}, "whole number between 0 and 2⁶³"),
        ({"seed": "1" * 5000}, "whole number between 0 and 2⁶³"),
        ({"width": 17}, "multiple of 2; take 16 or 18"),
        ({"height": 5000}, "at most 1,024"),
        ({"sampler": "magic"}, "no sampler called"),
        ({"prompt": "a" * 100_001}, "shorten it to 100,000"),
        ({"strength": 0}, "strength must lie above 0"),
        ({"weights": "other"}, "other"),
        ({"backend": "reference", "precision": "reduced"}, "reference runs in float32"),
    ],
)
def test_bad_settings_get_a_sentence(stub, changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        draw(**changes)
    assert stub.asked == [] and len(draw_page.turns) == 0


def test_a_missing_part_of_the_model_gets_a_sentence(tiny_catalogue, monkeypatch):
    files = tuple(file for file in tiny_catalogue.files if file.name != "unet")
    gone = replace(tiny_catalogue, files=(*files, catalogue.File("unet", "nowhere/unet.safetensors")))
    monkeypatch.setattr(catalogue, "manifest", lambda: {"tiny": gone})
    with pytest.raises(UserError, match="not on this machine"):
        draw(weights="tiny")


# --- stop


def test_stop_keeps_what_is_there_and_asks_no_more(stub):
    steps = start(count=50)
    for _ in range(4):
        next(steps)
    draw_page.halt(EN)
    (last,) = [named(step) for step in steps]
    assert len(stub.asked) == 4 and "Stopped after call 4 of 50" in last["told"]
    assert "data:image/webp" in last["picture"] and last["ticket"] == "pending" and last["file"]["value"] is None
    assert len(draw_page.turns) == 0
    with pytest.raises(UserError, match="to its end first"):
        draw_page.take(last["ticket"])


def test_leaving_ends_the_work(stub):
    steps = start(count=50)
    next(steps), next(steps)
    steps.close()
    assert len(stub.asked) == 1 and len(draw_page.turns) == 0


def test_a_new_run_takes_the_page_from_the_old_one(stub):
    old = start(count=50)
    next(old), next(old)
    new = start(count=4)
    next(new)
    assert list(old) == [tuple(gr.skip() for _ in NAMES)]  # it has no last word
    assert "Drawn in" in named(list(new)[-1])["told"]


def test_the_first_drawing_comes_once(stub):
    def first(ticket):
        return list(draw_page.draw_first(ticket, "red", None, 0.6, "local", "auto", *values(), EN, no_progress))

    assert "Drawn in" in first(None)[-1][2]
    assert first("pending") == first("any") == [tuple(gr.skip() for _ in NAMES)]


# --- what runs share


def events(count):
    yield from range(count)


def test_follow_gives_every_event_and_a_last_word(monkeypatch):
    turns = Turns()
    seen = list(running_page.follow(events(5), "a", turns))
    assert [each.event for each in seen] == [0, 1, 2, 3, 4, 4] and [each.ended for each in seen] == [False] * 5 + [True]
    assert [each.due for each in seen[:5]] == [True, False, False, False, False]  # quicker than is shown
    assert not seen[-1].halted and len(turns) == 0
    assert [(each.event, each.ended) for each in running_page.follow(events(0), "a", turns)] == [(None, True)]


def test_follow_tells_a_halted_run_from_a_finished_one():
    turns = Turns()
    steps = running_page.follow(events(9), "a", turns)
    next(steps)
    turns.halt("a")
    (last,) = steps
    assert last.ended and last.halted and last.event == 1


def test_a_picture_that_made_room_says_so():
    for ticket in (None, "pending", "no such"):
        with pytest.raises(UserError, match="make room"):
            running_page.kept(ticket)


# --- tokens


def say(words, **fields):
    return words.format(**fields)


def test_tokens_past_the_limit_are_struck_out(stub):
    last = draw(" ".join(f"w{n}" for n in range(16)))[-1]
    html = view.tokens(running_page.kept(last["ticket"]).tokens[0], say)
    assert html.count("<s ") == 2 and html.count("<span ") == 14
    assert re.findall(r"<s [^>]*>(\w+)</s>", html) == ["w14", "w15"]
    assert "14 tokens of the prompt are read. 2 do not fit" in html


def test_thousands_of_tokens_are_counted_and_not_all_shown():
    html = view.tokens(PromptTokens(("a",) * 10_000, 14), say)
    assert html.count("<s ") == view.MOST and "9,986 do not fit" in html and "… and 9,786 more" in html


def test_tokens_are_text_and_not_markup():
    html = view.tokens(PromptTokens(("<b>", "\u202e", "\x07", "&"), 4), say)
    assert "&lt;b&gt;" in html and "<b>" not in html and "\u202e" not in html and html.count("\ufffd") == 2
    assert "empty prompt" in view.tokens(PromptTokens((), 0), say)
    assert view.tokens(PromptTokens((), 0), say, negative=True) == ""


def test_prompts_are_spelled_while_they_are_typed(tiny_catalogue):
    html = draw_page.spell("a red apple", "the house", "auto", EN)
    assert "tokens of the prompt are read" in html and "tokens of the negative prompt are read" in html
    assert "".join(re.findall(r"gh-quote\">([^<]*)<", html)) == "aredapplethehouse"
    assert "struck out" in draw_page.spell("a red apple " * 20, "", "auto", EN)
    assert draw_page.spell("a", "", "no such", EN) == ""
    with pytest.raises(UserError, match="shorten"):
        draw_page.spell("a" * 100_001, "", "auto", EN)


def test_a_file_is_named_by_the_prompt():
    name = draw_page.named(DiffusionRequest("A Red/../Apple: 🦊 <b>" + "x" * 90, seed=3))
    assert re.fullmatch(r"a-red-apple-b-x{1,40}-3\.png", name) and len(name) < 50
    assert draw_page.named(DiffusionRequest("🦊")) == "picture-0.png"


def test_the_page_speaks_chinese(stub):
    shown = draw(request=ZH)
    assert "第 2 次调用，共 4 次" in shown[2]["told"] and "绘制用时" in shown[-1]["told"]


def test_numbers_that_a_browser_cannot_hold_are_kept(stub):
    seed = 2**63 - 1
    result = running_page.kept(draw(seed=str(seed))[-1]["ticket"])
    assert result.request.seed == seed
    assert settings_page.restored(result.request)[1] == "9223372036854775807"


def test_a_restored_run_widens_the_sliders():
    updates = dict(
        zip(
            settings_page.FIELDS,
            settings_page.restored(DiffusionRequest("", num_steps=200, guidance_scale=-60.0)),
            strict=True,
        )
    )
    assert (updates["num_steps"]["maximum"], updates["num_steps"]["value"]) == (200, 200)
    assert (updates["guidance_scale"]["minimum"], updates["guidance_scale"]["maximum"]) == (-60.0, 30.0)
    assert settings_page.restored(DiffusionRequest("", num_steps=1))[2]["minimum"] == 1
