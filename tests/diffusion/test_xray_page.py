"""X-ray: guidance, attention and deleted words, as the handlers show them of a stub and of a tiny network."""

import re
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.diffusion import inside_program_page as programs
from pipelines.diffusion import insight, xray_page
from pipelines.diffusion import xray_view as view
from pipelines.diffusion.config import TINY
from pipelines.diffusion.contract import Attention, Deletion, XRay
from pipelines.ui.i18n import say
from pipelines.ui.turns import Turns
from tests.stubs import StubDiffusion, no_progress, visitor

EN, ZH = visitor("en"), visitor("zh-CN")
SKIP = gr.skip()
NAMES = ("ticket", "told", "image", "call", "words", "rays", "layer", "tokens", "deleted")
FORM = dict(
    negative="", seed="3", count=5, guidance=3.0, sampler="euler", width=None, height=None, precision="float32"
)  # fmt: skip


def speak(text, **values):
    return say(EN, text, **values)


def draw(prompt="a red apple", call=2, scales="0, 1, 3", layer=0, one=False, backend="local", request=EN, **changes):
    form = {**FORM, **changes}
    steps = xray_page.draw(
        None, call, scales, layer, one, prompt, backend, "auto", *form.values(), request, no_progress
    )  # fmt: skip
    return [dict(zip(NAMES, step, strict=True)) for step in steps]


def shares(html):
    """Name, kind and percentage of each token."""
    found = re.findall(r'<figure data-kind="(\w+)">.*?<figcaption><[bi]>(.*?)</[bi]><br>([\d.]+)%', html)
    return [(name, kind, float(share)) for kind, name, share in found]


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_marks_are_shown_beside_the_words():
    maps = np.array([0.5, 0.1, 0.05, 0.35], np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    found = Attention(("start", "<b>cat</b>", "end", "padding"), ("start", "word", "end", "padding"), (maps,), maps)
    html = view.attention(found, np.zeros((16, 16, 3), np.uint8), 0, False, speak)
    assert shares(html) == [
        ("start mark", "start", 50.0), ("&lt;b&gt;cat&lt;/b&gt;", "word", 10.0), ("end mark", "end", 5.0),
        ("padding", "padding", 35.0),
    ]  # fmt: skip
    assert "take 90% of the attention, the words 10%" in html and "compare the percentages" in html
    one = view.attention(found, np.zeros((16, 16, 3), np.uint8), 1, True, speak)
    assert "one scale" in one and one != html


def test_a_map_covers_the_picture():
    values = np.array([[0.0, 1.0], [0.5, 0.25]])
    found = view.spread(values, np.zeros((4, 6, 3), np.uint8))
    assert found.shape == (4, 6) and found[0, 0] == 0.0 and found[1, 5] == 1.0 and found[3, 2] == 0.5


def test_guidance_marks_the_runs_own_scale():
    image = np.zeros((16, 16, 3), np.uint8)
    where = np.full((8, 8), 2.5, np.float32)
    found = XRay(706.0, image, image, image, np.zeros((4, 8, 8), np.float32), where, ((0.0, image), (3.0, image)))
    html = view.guidance(found, 4, 3.0, speak)
    assert html.count("<img") == 6 and "guidance 3 ◂" in html and "guidance 0 ◂" not in html
    assert "At time 706" in html and "after 4 calls" in html and "brightest 2.50" in html
    same = view.guidance(replace(found, where=np.zeros((8, 8), np.float32)), 4, 3.0, speak)  # nothing to divide by
    assert "brightest 0.00" in same


def test_deletions_are_told_beside_their_control():
    image, where = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.float32)

    class Result:
        pass

    result = Result()
    result.image = image
    found = [Deletion(0, "a", result, 2.0, where), Deletion(1, "<i>red</i>", result, 30.0, where)]
    assert "Other noise" not in view.deletions(image, found, speak)  # no verdict before the control is there
    html = view.deletions(image, [*found, Deletion(None, "", result, 40.0, where)], speak)
    assert "“&lt;i&gt;red&lt;/i&gt;”: 30.0 levels. Other noise alone changes 40.0." in html and "<i>" not in html
    assert "75% of the control" in html and "5% of the control" in html and html.count("<img") == 1 + 2 * 3
    assert view.deletions(None, [], speak) == ""


@pytest.mark.parametrize(
    ("text", "scales"),
    [("0, 1, 4", (0.0, 1.0, 4.0)), ("-1;2.5 3", (-1.0, 2.5, 3.0)), ("1，2、3", (1.0, 2.0, 3.0))],
)  # fmt: skip
def test_scales_as_typed(text, scales):
    assert xray_page.scales_of(text) == scales


# --- a run that is looked into ---------------------------------------------------------------------------------------


def test_a_run_is_drawn_and_looked_into(stub):
    shown = draw()
    assert [f"Call {n} of 5" in step["told"] for n, step in enumerate(shown[:-1])] == [True] * 6
    last = shown[-1]
    assert "5 calls in" in last["told"] and last["call"] == gr.update(minimum=0, maximum=4, value=2)
    assert last["words"]["choices"] == [("1. a", "0"), ("2. red", "1"), ("3. apple", "2")]
    assert last["words"]["value"] == ["0", "1", "2"] and last["deleted"] == ""
    assert last["rays"].count("<img") == 4 + 3 and "guidance 3 ◂" in last["rays"]
    assert shares(last["tokens"]) == [
        ("start mark", "start", 6.2), ("a", "word", 6.2), ("red", "word", 6.2), ("apple", "word", 6.2),
        ("end mark", "end", 6.2), ("padding", "padding", 68.8),
    ]  # fmt: skip
    assert [value for _, value in last["layer"]["choices"]] == [0, 1, 2] and last["layer"]["value"] == 0


def test_another_call_asks_the_network_and_another_layer_does_not(stub):
    ticket = draw()[-1]["ticket"]
    asked = len(stub.asked)
    rays, _layer, tokens = xray_page.look(ticket, 4, "1", 0, False, EN)
    assert rays.count("<img") == 5 and len(stub.asked) == asked + 2  # both prompts as one batch, and the attention
    again = xray_page.relook(ticket, 4, 2, True, EN)
    assert "one scale" in again and again != tokens and len(stub.asked) == asked + 2
    assert xray_page.look(ticket, 99, "1", 7, False, EN)[1]["value"] == 0  # a layer of other weights
    assert xray_page.look(None, 1, "1", 0, False, EN) == (SKIP,) * 3
    assert xray_page.relook(None, 1, 0, False, EN) == SKIP


def test_a_real_network_is_looked_into(tiny_catalogue):
    last = draw(call=1)[-1]
    found = shares(last["tokens"])
    assert sum(share for _, _, share in found) == pytest.approx(100, abs=0.6) and found[0][1] == "start"
    assert [kind for _, kind, _ in found][-2:] == ["end", "padding"] and last["rays"].count("<img") == 7


def test_what_these_weights_do_not_allow_is_said_in_its_place(stubs):
    stubs(StubDiffusion(unet=replace(TINY.unet, time_cond_proj_dim=24)))
    last = draw()[-1]
    assert "cannot be taken apart" in last["rays"] and len(shares(last["tokens"])) == 6
    library = draw(backend="reference")[-1]
    assert "our own network only" in library["tokens"] and shares(library["tokens"]) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scales": "1, two"}, "commas between"), ({"scales": ""}, "1 to 12"), ({"scales": "nan"}, "1 to 12"),
        ({"scales": "1000"}, "between -100 and 100"), ({"scales": "1 " * 13}, "1 to 12"), ({"seed": "no"}, "seed"),
        ({"count": 0}, "number of steps"), ({"prompt": "x" * 100_001}, "shorten it"),
    ],
)  # fmt: skip
def test_what_cannot_be_x_rayed_is_a_sentence(stub, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        draw(**changes)
    assert stub.asked == []  # said before anything is drawn


def test_stop_and_a_run_that_lost_its_page(stub, monkeypatch):
    monkeypatch.setattr(xray_page, "drawing", Turns())
    args = (None, 2, "1", 0, False, "a cat", "local", "auto", *FORM.values(), EN, no_progress)
    run = xray_page.draw(*args)
    next(run)
    xray_page.halt(EN)
    last = list(run)[-1]
    assert "Stopped." in last[1] and last[0] == SKIP
    old = xray_page.draw(*args)
    next(old)
    draw()
    assert list(old)[-1] == (SKIP,) * 9
    assert list(xray_page.draw_first("ticket", *args[1:])) == [(SKIP,) * 9]


# --- a word less -----------------------------------------------------------------------------------------------------


def test_words_are_deleted_one_by_one_and_the_control_comes_last(stub):
    ticket = draw()[-1]["ticket"]
    shown = list(xray_page.delete(ticket, ["2", "0"], EN, no_progress))
    tables = [table for _, table in shown if table != SKIP]
    assert [table.count("without “") for table in tables] == [1, 2, 2, 2]  # the words, the control, the last look
    assert "without “a”" in tables[0] and "without “apple”" in tables[1] and "Control" in tables[2]
    assert "Done." in shown[-1][0] and any("Run 2 of 4" in told for told, _ in shown[:-1] if told != SKIP)
    mean = [round((level + 1) * 127.5) for level in StubDiffusion.colour("a red apple")]
    other = [round((level + 1) * 127.5) for level in StubDiffusion.colour("a red")]
    slide = xray_page.kept(ticket)
    deletion = next(each for each in insight.deletions(slide.node.request, [2]) if isinstance(each, Deletion))
    assert deletion.apart > 0 and mean != other and f"{deletion.apart:.1f}" in tables[1]


def test_stopped_deletions_keep_what_there_is(stub, monkeypatch):
    monkeypatch.setattr(xray_page, "deleting", Turns())
    run = xray_page.delete(draw()[-1]["ticket"], ["0", "1"], EN, no_progress)
    for _, table in run:
        if table != SKIP:
            break
    xray_page.halt(EN)
    told, table = list(run)[-1]
    assert "Stopped." in told and table.count("without “") == 1 and "Control" not in table


def test_deletions_that_cannot_be_are_sentences(stub):
    ticket = draw()[-1]["ticket"]
    for chosen in ([], None, ["x"]):
        with pytest.raises(UserError, match="1 to 12 words"):
            list(xray_page.delete(ticket, chosen, EN, no_progress))
    with pytest.raises(UserError, match="3 words"):
        list(xray_page.delete(ticket, ["7"], EN, no_progress))
    with pytest.raises(UserError, match="draw one first"):
        list(xray_page.delete(None, ["0"], EN, no_progress))
    with pytest.raises(UserError, match="had to make room"):
        list(xray_page.delete("gone", ["0"], EN, no_progress))


def test_long_prompts_offer_their_first_words(stub):
    offered = draw(prompt="word " * 3_000)[-1]["words"]
    assert len(offered["choices"]) == 60 and len(offered["value"]) == 12
    assert draw(prompt="")[-1]["words"]["choices"] == []


def test_sentences_in_chinese(stub):
    last = draw(request=ZH)[-1]
    assert "起始标记" in last["tokens"] and "5 次调用" in last["told"] and "负面提示词" in last["rays"]


# --- programs --------------------------------------------------------------------------------------------------------


def test_programs_look_inside(tiny_catalogue):
    found = list(programs.xray("a red apple", 1, num_steps=3, seed=3))
    assert [told for _, told in found[:-1]] == [{"part": "root", "call": n, "of": 3} for n in range(4)]
    file, told = found[-1]
    assert file["path"].endswith("picture.png") and np.array(told["where"]).shape == (8, 8)
    kinds = [each["kind"] for each in told["attention"]]
    assert kinds[0] == "start" and kinds[-1] == "padding"
    assert sum(each["share"] for each in told["attention"]) == pytest.approx(1, abs=1e-4)
    assert np.allclose(np.sum([each["map"] for each in told["attention"]], axis=0), 1, atol=1e-4)
    with pytest.raises(UserError, match="whole number"):
        next(programs.xray("a", -1))
    with pytest.raises(UserError, match="choose local"):
        next(programs.xray("a", 1, backend="reference"))
    with pytest.raises(UserError, match="calls 0 to 2"):
        list(programs.xray("a", 3, num_steps=3))
