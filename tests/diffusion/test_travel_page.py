"""Time travel: the tree as a picture, the film strip, and what the handlers make of clicks, changes and files."""

import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.common.limits import Limits
from pipelines.diffusion import inside_program_page as programs
from pipelines.diffusion import running_page, travel, travel_page
from pipelines.diffusion import travel_view as view
from pipelines.diffusion.contract import DiffusionRequest, DiffusionResult, History
from pipelines.diffusion.travel import Node, Tree
from pipelines.ui.i18n import say
from pipelines.ui.turns import Turns
from tests.stubs import no_progress, visitor

EN, ZH = visitor("en"), visitor("zh-CN,zh;q=0.9")
OUT = ("ticket", "picked", "call", "told", "tree", "moment", "compare", "strip")
FORM = dict(
    negative="", seed="3", count=4, guidance=4.0, sampler="ddim", width=None, height=None, precision="float32"
)  # fmt: skip
SKIP = gr.skip()


def speak(text, **values):
    return say(EN, text, **values)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(running_page, "EVERY", 0.0)
    monkeypatch.setattr(travel_page, "EVERY", 0.0)


def form(prompt="a red apple", **changes):
    assert not changes.keys() - FORM.keys()
    return [prompt, "local", "auto", *{**FORM, **changes}.values()]


def begin(ticket=None, request=EN, **changes):
    return [
        dict(zip(OUT, step, strict=True)) for step in travel_page.begin(ticket, *form(**changes), request, no_progress)
    ]


def go_on(ticket, picked, call, **changes):
    steps = travel_page.go_on(ticket, picked, call, *form(**changes), EN, no_progress)
    return [dict(zip(OUT, step, strict=True)) for step in steps]


def clicked(data):
    return SimpleNamespace(_data=data)


# --- the tree as a picture, by hand ----------------------------------------------------------------------------------


def by_hand(*forks):
    """A tree of runs with four calls; forks: (parent, call, changes)."""
    request = DiffusionRequest("a <b>red</b> apple", num_steps=4, seed=3)
    tree = Tree((Node(request, np.zeros((16, 16, 3), np.uint8), history(0)),))
    for parent, call, changes in forks:
        asked = replace(
            tree.nodes[parent].request, **changes, start=travel.Start(np.zeros((4, 8, 8), np.float32), call, EMPTY)
        )
        image = np.full((16, 16, 3), 51, np.uint8)
        result = DiffusionResult(image, asked, (), {}, 4, {}, history(call))
        tree = tree.add(result, parent, call)
    return tree


EMPTY = np.zeros((0, 4, 8, 8), np.float32)


def history(first, times=(999.0, 749.0, 499.0, 249.0)):
    left = len(times) - first
    zeros = np.zeros((left, 4, 8, 8), np.float32)
    return History(np.zeros((left + 1, 4, 8, 8), np.float32), zeros, (EMPTY,) * left, np.array(times[first:]))


def test_late_forks_stand_above_early_ones_so_that_no_line_crosses():
    tree = by_hand((0, 1, {"seed": 1}), (0, 3, {"seed": 2}), (1, 2, {"seed": 4}), (0, 3, {"seed": 5}))
    assert view.rows(tree) == [0, 2, 4, 1, 3]
    assert view.rows(Tree()) == []
    for row, index in enumerate(view.rows(tree)):  # what a connector passes on its way down begins to the right of it
        node = tree.nodes[index]
        if node.parent is not None:
            between = view.rows(tree)[view.rows(tree).index(node.parent) + 1 : row]
            assert all(tree.nodes[other].call >= node.call for other in between)


def test_calls_stand_at_their_time():
    node = by_hand().nodes[0]
    places = [view.place(node, call) for call in range(5)]
    assert places[0] == pytest.approx(view.LEFT + 0.001 * (view.RIGHT - view.LEFT))
    assert places[2] == pytest.approx(view.LEFT + 0.501 * (view.RIGHT - view.LEFT)) and places[4] == view.RIGHT
    assert np.allclose(np.diff(places[:4]), 0.25 * (view.RIGHT - view.LEFT))


def test_the_picture_of_a_tree():
    tree = by_hand((0, 2, {"prompt": "a <i>cat</i>", "guidance_scale": 9.0}))
    svg = view.tree_picture(tree, 1, 3, speak)
    assert svg.count("<image ") == 2 and svg.count("data-call=") == 4 + 2
    assert svg.count('aria-pressed="true"') == 1 and svg.count('tabindex="0"') == 2
    assert '<g data-run="1" data-call="3" style="cursor:pointer"><title>Run 2, after 3 calls</title>' in svg
    assert svg.count('r="6"') == 1  # the call that is looked at
    assert "<b>" not in svg and "<i>" not in svg and "&lt;i&gt;cat&lt;/i&gt;" in svg
    assert "after 2 calls: prompt “a &lt;i&gt;cat" in svg and "guidance 4 → 9" in svg


@pytest.mark.parametrize("text", ["word " * 400, "字" * 900, "x" * 900, "x" * 100_000])
def test_long_prompts_are_cut_in_the_picture_and_whole_in_its_title(text):
    tree = by_hand((0, 3, {"prompt": text}))
    svg = view.tree_picture(tree, 0, 0, speak)
    label = re.findall(r"</tspan>&#160; (.*?)</text>", svg)[1]
    assert label.endswith("…") and view._pixels(label) < view.RIGHT - view.LEFT and text in svg


def test_what_a_fork_changed_in_words():
    tree = by_hand((0, 1, {"sampler": "heun", "seed": 8, "num_steps": 9, "negative_prompt": "blue"}), (0, 2, {}))
    said = view.changed(tree.changes(1), speak)
    assert said == ["negative prompt “blue”", "sampler DPM-Solver++ 2M → Heun", "steps 4 → 9", "seed 3 → 8"]
    assert view.title(tree, 2, speak) == "after 2 calls: nothing changed"
    assert view.title(tree, 0, speak).endswith("DPM-Solver++ 2M, 4 steps, guidance 4, seed 3")


def test_a_run_beside_its_parent():
    tree = by_hand((0, 2, {"seed": 9}), (1, 3, {}))
    assert "is the root" in view.compare(tree, 0, speak)
    told = view.compare(tree, 1, speak)  # 0 beside 51
    assert "51.0 levels of 255 apart" in told and "forked from run 1 after 2 calls" in told and told.count("<img") == 3
    assert "The very same picture, to the last bit." in view.compare(tree, 2, speak)


def test_frames_of_long_runs_are_spread():
    assert view.frames_of(range(3, 9), 24) == [3, 4, 5, 6, 7, 8]
    spread = view.frames_of(range(200), 24)
    assert len(spread) == 24 and spread[0] == 0 and spread[-1] == 199 and max(np.diff(spread)) <= 9


def test_the_film_strip_marks_the_call():
    frames = [view.frame(call, np.zeros((8, 8, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)) for call in (0, 5, 9)]
    html = view.strip(frames, 6, 3, speak)
    assert re.findall(r'data-call="(\d+)" aria-selected="true"', html) == ["5"] and html.count("<img") == 6
    assert "…" not in html and "…" in view.strip(frames, 6, 4, speak) and view.strip([], 0, 4, speak) == ""


# --- what the handlers do --------------------------------------------------------------------------------------------


def test_a_run_begins_a_tree_and_a_fork_grows_it(tiny_catalogue):
    shown = begin()
    assert [step["told"] for step in shown[:-1]] == [
        f'<p class="gh-note">Call {n} of 4 …</p>' for n in range(5)
    ]  # fmt: skip
    assert all(step["ticket"] == SKIP for step in shown[:-1]) and "<img" in shown[1]["moment"]
    root = shown[-1]
    assert root["picked"] == 0 and root["call"] == gr.update(minimum=0, maximum=3, value=1)
    assert root["tree"].count("<image ") == 1 and root["moment"].count("<img") == 3
    last = go_on(root["ticket"], 0, 2, prompt="a green apple", seed="9")[-1]
    assert running_page.shelf().get(root["ticket"]) is None  # the grown tree took its place
    tree = travel_page.kept(last["ticket"]).tree
    assert tree.changes(1) == {"prompt": ("a red apple", "a green apple"), "seed": (3, 9)}
    assert (tree.nodes[1].parent, tree.nodes[1].call, last["picked"]) == (0, 2, 1)
    assert last["call"] == gr.update(minimum=2, maximum=3, value=2) and last["tree"].count("<image ") == 2
    assert "forked from run 1 after 2 calls" in last["compare"] and "Run 2: 2 calls" in last["told"]


def test_a_fork_without_a_change_is_the_same_picture(tiny_catalogue):
    root = begin()[-1]
    last = go_on(root["ticket"], 0, 3)[-1]
    assert "to the last bit" in last["compare"] and "nothing changed" in last["compare"]


def test_a_new_tree_takes_the_place_of_the_old_one(tiny_catalogue):
    first = begin()[-1]["ticket"]
    second = begin(first, prompt="a cat")[-1]["ticket"]
    assert running_page.shelf().get(first) is None and len(travel_page.kept(second).tree.nodes) == 1


def test_the_first_visit_shows_a_tree_with_a_fork(tiny_catalogue):
    values = [travel_page.EXAMPLE[0], "local", "auto", *{**FORM, "count": 8}.values()]
    steps = list(travel_page.first(None, *values, EN, no_progress))
    last = dict(zip(OUT, steps[-1], strict=True))
    assert last["tree"].count("<image ") == 2 and last["picked"] == 0 and last["call"]["value"] == 5
    assert travel_page.kept(last["ticket"]).tree.nodes[1].request.prompt == travel_page.EXAMPLE[1]
    assert list(travel_page.first(last["ticket"], *values, EN, no_progress)) == [(SKIP,) * 8]
    slow = list(travel_page.first(None, "a dog", *values[1:], EN, no_progress))  # not the example: nothing is added
    assert slow[-1][4].count("<image ") == 1


def test_a_click_goes_to_a_run_and_a_call(tiny_catalogue):
    ticket = go_on(begin()[-1]["ticket"], 0, 2, seed="9", prompt="a cat")[-1]["ticket"]
    shown = travel_page.pick(ticket, 1, 3, EN, clicked({"run": 0, "call": 1}))
    index, slider, prompt, negative, seed, *_ = shown
    assert (index, slider["value"], slider["minimum"], prompt, negative, seed) == (0, 1, 0, "a red apple", "", "3")
    assert len(shown) == 2 + 9 + 4 and "after 1 calls" in shown[12]
    same = travel_page.pick(ticket, 0, 1, EN, clicked({"call": 3}))  # a frame: the settings that were typed stay
    assert same[0] == 0 and same[1]["value"] == 3 and same[2:11] == (SKIP,) * 9
    far = travel_page.pick(
        ticket, 0, 1, EN, clicked({"run": 1})
    )  # the call of the other run is brought into this one's
    assert far[0] == 1 and far[1]["value"] == 2 and far[2] == "a cat"
    for odd in ({"run": 99, "call": -5}, {"run": "1"}, {"run": True}, None, "x"):
        found = travel_page.pick(ticket, 0, 1, EN, clicked(odd))
        assert found[0] in (0, 1) and 0 <= found[1]["value"] <= 3
    assert travel_page.pick(None, 0, 1, EN, clicked({"run": 0})) == (SKIP,) * 15
    with pytest.raises(UserError, match="had to make room"):  # and no click that does nothing
        travel_page.pick("gone", 0, 1, EN, clicked({"run": 0}))


def test_the_slider_looks_at_another_moment(tiny_catalogue):
    ticket = begin()[-1]["ticket"]
    first, last = (travel_page.look(ticket, 0, call, EN) for call in (0, 3))
    assert "after 0 calls" in first[1] and "after 3 calls" in last[1] and first[1] != last[1]
    assert travel_page.look(None, 0, 0, EN) == (SKIP,) * 3
    assert "after 3 calls" in travel_page.look(ticket, 7, 99, EN)[1]  # brought to what there is


def test_the_film_strip_is_drawn_once(tiny_catalogue, monkeypatch):
    ticket = begin()[-1]["ticket"]
    asked = []
    original = travel_page.moment
    monkeypatch.setattr(travel_page, "moment", lambda node, call: (asked.append(call), original(node, call))[1])
    shown = list(travel_page.film(ticket, 0, 2, EN))
    assert asked == [0, 1, 2, 3] and [html.count("data-call=") for html in shown] == [1, 2, 3, 4, 4]
    assert list(travel_page.film(ticket, 0, 2, EN))[-1] == shown[-1] and asked == [0, 1, 2, 3]
    assert list(travel_page.film(None, 0, 2, EN)) == [SKIP]


def test_another_look_ends_the_film_that_is_being_drawn(tiny_catalogue, monkeypatch):
    monkeypatch.setattr(travel_page, "filming", Turns())
    ticket = begin()[-1]["ticket"]
    film = travel_page.film(ticket, 0, 0, EN)
    assert next(film).count("data-call=") == 1
    assert list(travel_page.film(ticket, 0, 3, EN))[-1].count("data-call=") == 4  # the newer one draws the rest
    assert list(film)[-1] == SKIP and len(travel_page.kept(ticket).strips[0]) == 4


def test_stop_adds_nothing(tiny_catalogue, monkeypatch):
    monkeypatch.setattr(travel_page, "drawing", Turns())
    ticket = begin()[-1]["ticket"]
    run = travel_page.go_on(ticket, 0, 1, *form(prompt="a cat"), EN, no_progress)
    next(run)
    travel_page.halt(EN)
    last = dict(zip(OUT, list(run)[-1], strict=True))
    assert "Stopped" in last["told"] and last["ticket"] == SKIP and last["tree"].count("<image ") == 1
    assert len(travel_page.kept(ticket).tree.nodes) == 1 and len(travel_page.drawing) == 0
    fresh = travel_page.begin(None, *form(), EN, no_progress)
    next(fresh)
    travel_page.halt(EN)
    assert list(fresh)[-1][4:] == (SKIP,) * 4  # there is no tree to go back to


def test_a_run_that_lost_its_page_says_nothing(tiny_catalogue, monkeypatch):
    monkeypatch.setattr(travel_page, "drawing", Turns())
    old = travel_page.begin(None, *form(), EN, no_progress)
    next(old)
    begin()
    assert list(old)[-1] == (SKIP,) * 8


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": "x"}, "seed"), ({"count": 0}, "number of steps"), ({"guidance": 1000}, "guidance"),
        ({"prompt": "x" * 100_001}, "shorten it"), ({"prompt": "a\ud800"}, "surrogate"),
        ({"sampler": "best"}, "sampler"), ({"precision": "none"}, "precision"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_or_forked_is_a_sentence(tiny_catalogue, changes, sentence):
    ticket = begin()[-1]["ticket"]
    for attempt in (lambda: begin(ticket, **changes), lambda: go_on(ticket, 0, 1, **changes)):
        with pytest.raises(UserError, match=sentence):
            attempt()
    assert len(travel_page.kept(ticket).tree.nodes) == 1


def test_a_fork_needs_a_tree_and_a_call(tiny_catalogue):
    with pytest.raises(UserError, match="begin one first"):
        go_on(None, 0, 0)
    with pytest.raises(UserError, match="had to make room"):
        go_on("gone", 0, 0)
    with pytest.raises(UserError, match="calls 0 to 3"):
        go_on(begin()[-1]["ticket"], 0, 9)


def test_a_full_tree_is_a_sentence_and_keeps_what_it_has(tiny_catalogue, monkeypatch):
    ticket = begin()[-1]["ticket"]
    monkeypatch.setattr(travel, "limits", lambda: replace(Limits(), tree_runs=1))
    monkeypatch.setattr(travel_page, "steps", lambda request: pytest.fail("drawn in vain"))
    with pytest.raises(UserError, match="1 runs already"):
        go_on(ticket, 0, 1)
    assert len(travel_page.kept(ticket).tree.nodes) == 1


def test_sentences_in_chinese(tiny_catalogue):
    last = begin(request=ZH)[-1]
    assert "第 1 次运行：4 次调用" in last["told"] and "噪声 →" in last["tree"] and "4 步" in last["compare"]


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_tree_is_saved_and_comes_back(tiny_catalogue):
    ticket = go_on(begin()[-1]["ticket"], 0, 2, prompt="a green apple")[-1]["ticket"]
    file = travel_page.save_file(ticket, EN)
    assert file["visible"] and Path(file["value"]).name == "runs.safetensors"
    shown = dict(zip((*OUT, "prompt"), travel_page.load(None, file["value"], EN)[:9], strict=True))
    again = travel_page.kept(shown["ticket"]).tree
    before = travel_page.kept(ticket).tree
    for one, other in zip(again.nodes, before.nodes, strict=True):  # the order of a header's texts is not kept
        assert (one.parent, one.call, one.request.prompt) == (other.parent, other.call, other.request.prompt)
        ours, theirs = travel.arrays(one), travel.arrays(other)
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert "2 runs were loaded" in shown["told"] and shown["picked"] == 1 and shown["prompt"] == "a green apple"
    assert "to the last bit" in go_on(shown["ticket"], 1, 3, prompt="a green apple")[-1]["compare"]


def test_a_loaded_tree_is_not_overwritten_by_the_run_before_it(tiny_catalogue, monkeypatch):
    monkeypatch.setattr(travel_page, "drawing", Turns())
    ticket = begin()[-1]["ticket"]
    file = travel_page.save_file(ticket, EN)["value"]
    running, ended = travel_page.go_on(ticket, 0, 1, *form(prompt="a cat"), EN, no_progress), []
    next(running)
    turn = travel_page.drawing._running[EN.session_hash]
    finish = threading.Thread(target=lambda: (halted(turn), ended.extend(running)), daemon=True)
    finish.start()
    loaded = travel_page.load(ticket, file, EN)
    finish.join(30)
    assert ended == [(SKIP,) * 8]
    assert len(travel_page.kept(loaded[0]).tree.nodes) == 1


def halted(turn):
    """Waits until a run is told to end, as its own thread would see it before its next call."""
    while not turn.halted:
        time.sleep(0.01)


def test_bad_files_are_sentences_and_leave_the_tree(tiny_catalogue, tmp_path, monkeypatch):
    ticket = begin()[-1]["ticket"]
    data = Path(travel_page.save_file(ticket, EN)["value"]).read_bytes()
    for name, content in (
        ("text", b"hello"),
        ("cut", data[:-9]),
        ("empty", b""),
        ("edited", data.replace(b"ddim", b"dxim")),
    ):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(UserError):
            travel_page.load(ticket, str(path), EN)
    assert len(travel_page.kept(ticket).tree.nodes) == 1
    with pytest.raises(UserError, match="Choose a file"):
        travel_page.load(ticket, None, EN)
    huge = tmp_path / "huge.safetensors"
    with huge.open("wb") as stream:
        stream.truncate(10**9)  # sparse; it must not be read
    with pytest.raises(UserError, match="larger than a full tree"):
        travel_page.load(ticket, str(huge), EN)
    with pytest.raises(UserError, match="begin one first"):
        travel_page.save_file(None, EN)


# --- programs --------------------------------------------------------------------------------------------------------


def test_programs_fork(tiny_catalogue):
    found = list(programs.fork("a red apple", 2, {"seed": 5}, num_steps=4, sampler="euler", seed=3))
    assert found[0] == (None, None, {"part": "root", "call": 0, "of": 4})
    assert [told["part"] for _, _, told in found[:-1]] == ["root"] * 5 + ["fork"] * 3
    root, fork, told = found[-1]
    assert root["path"].endswith("root.png") and told["calls"] == 2 and told["apart"] > 0
    from pipelines.diffusion.record import read_png

    assert read_png(Path(fork["path"]).read_bytes()).start.call == 2
    same = list(programs.fork("a red apple", 2, None, num_steps=4, seed=3))[-1]
    assert same[2]["apart"] == 0.0


@pytest.mark.parametrize(
    ("call", "changes", "sentence"),
    [(-1, {}, "whole number"), ("x", {}, "whole number"), (1.5, {}, "whole number"), (9, {}, "calls 0 to 3"),
     (1, {"width": 9}, "cannot change"), (1, "seed", "must be an object"), (1, {"seed": -1}, "seed")],
)  # fmt: skip
def test_programs_that_ask_for_what_cannot_be(tiny_catalogue, call, changes, sentence):
    asked = programs.fork("a", call, changes, num_steps=4)
    with pytest.raises(UserError, match=sentence):
        list(asked) if call == 9 else next(asked)  # all but the number of calls is known before anything is drawn
