"""The handlers of the page Write, called as gradio calls them, with stubs in place of networks."""

import itertools
import re
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.moe import chat_page, pipeline, running_page, score_page, settings_page, write_page
from pipelines.moe.contract import Message, RoutingTrace, TextEvent, TextResult
from tests.moe.tiny import entry_of, write_folder
from tests.stubs import no_progress, visitor

EN, ZH = visitor("en"), visitor("zh-CN,zh;q=0.9")
NAMES = ("ticket", "picked", "layer", "text", "legend", "detail", "told")
SETTINGS = dict(new=3, temperature=0.8, top_k=0, top_p=0.95, min_p=0.0, penalty=1.0, stop="", seed=0)


def write(prompt="The", layer=1, numbered=False, backend="local", weights="stories", request=EN, **changes):
    values = {**SETTINGS, **changes}
    steps = write_page.write(prompt, layer, numbered, backend, weights, *values.values(), request, no_progress)
    return [dict(zip(NAMES, step, strict=True)) for step in steps]


# --- with a writer who says what it is told


class Words:
    """A tokenizer whose tokens are numbered words."""

    begin = (0,)

    def piece(self, number):
        return b"<|endoftext|>" if number == 0 else f" w{number}".encode()


def trace_of(count, prompt):
    logits = np.zeros((2, count, 4), np.float32)
    experts = np.tile(np.array([1, 3]), (2, count, 1))
    return RoutingTrace(np.arange(count), ("x",) * count, logits, experts, np.full((2, count, 2), 0.5), prompt)


@pytest.fixture
def writer(monkeypatch):
    """Writes `count` words, an event each; `.asked` has the requests and `.closed` how many writers have ended."""
    told = SimpleNamespace(asked=[], closed=0, count=3, finish="length", fed=0)

    def steps(request):
        told.asked.append(request)
        try:
            yield TextEvent("", 0)
            for n in range(1, told.count + 1):
                told.fed += 1
                text = "".join(f" w{i}" for i in range(3, 3 + n))
                last = n == told.count
                trace = trace_of(3 + n, 3) if request.trace else None
                result = TextResult(
                    request.prompt + text, text, tuple(range(3, 3 + n)), told.finish, 3, {}, 50.0, "stories",
                    request.backend, trace,
                )  # fmt: skip
                yield TextEvent(text, n, result if last else None)
        finally:
            told.closed += 1

    for module in (running_page, write_page):
        monkeypatch.setattr(module, "steps", steps)
        monkeypatch.setattr(module, "EVERY", 0.0)
    monkeypatch.setattr(running_page, "entry", lambda weights: weights)
    monkeypatch.setattr(running_page, "load", lambda entry, backend: SimpleNamespace(tokenizer=Words()))
    monkeypatch.setattr(running_page, "traced", read_again)
    monkeypatch.setattr(chat_page, "chats", lambda weights: weights == "chatty")
    return told


def read_again(text, weights):
    count = len(text.split())
    yield 0.5, None
    yield 1.0, None
    yield 1.0, replace(trace_of(count, count), tokens=np.arange(1, count + 1))


def test_the_text_grows_and_then_takes_colours(writer):
    shown = write(" w1 w2")
    assert [view_text(step["text"]) for step in shown] == [" w1 w2", " w1 w2 w3", " w1 w2 w3 w4", "▸  w1 w2 w3 w4 w5"]
    assert [step["ticket"] for step in shown[:-1]] == ["pending"] * 3 and shown[-1]["ticket"] not in ("pending", None)
    last = shown[-1]
    assert last["text"].count("gh-given") == 3 and last["text"].count('data-expert="2"') == 6
    assert "3 tokens, 50 tokens a second. As many tokens as were asked for." in last["told"]
    assert last["layer"]["maximum"] == 2 and writer.closed == 1 and len(running_page.turns) == 0


def view_text(page):
    return re.sub(r"<[^>]*>", "", page)


def test_the_settings_reach_the_request(writer):
    write("x", new=7, temperature=0.5, top_k=4, top_p=0.9, min_p=0.1, penalty=1.2, stop="end\\n\n\nfox", seed=9)
    asked = writer.asked[0]
    assert (asked.max_new_tokens, asked.temperature, asked.top_k, asked.top_p) == (7, 0.5, 4, 0.9)
    assert (asked.min_p, asked.repetition_penalty, asked.seed, asked.trace) == (0.1, 1.2, 9, True)
    assert asked.stop == ("end\n", "fox")  # a line of no length is no stop string
    assert settings_page.asked("local", "auto", None, 0, None, 1, 0, 1, None, None).max_new_tokens == 0


def test_stop_keeps_the_text_and_colours_it(writer):
    writer.count = 1000
    steps = write_page.write(" w1 w2", 1, False, "local", "stories", *SETTINGS.values(), EN, no_progress)
    for _ in range(4):
        next(steps)
    running_page.halt(EN)
    *between, last = list(steps)
    last = dict(zip(NAMES, last, strict=True))
    assert writer.fed == 4 and len(between) == 2  # after each part of the second reading a visitor can leave
    assert view_text(last["text"]) == " w1 w2 w3 w4 w5 w6"
    assert "Stopped. 4 tokens" in last["told"] and last["text"].count("gh-given") == 2


def stopped_after(writer, events):
    """The last of what a run shows that is stopped after so many events."""
    writer.count = 1000
    steps = write_page.write(" w1 w2", 1, False, "local", "stories", *SETTINGS.values(), EN, no_progress)
    for _ in range(events):
        next(steps)
    running_page.halt(EN)
    return [dict(zip(NAMES, step, strict=True)) for step in steps]


def test_stop_does_not_wait_for_a_long_reading(writer, monkeypatch):
    def endless(text, weights):
        told.append(text)
        for part in itertools.count(1):
            yield 1 - 1 / (part + 1), None

    def refused(text, weights):
        told.append(text)
        raise UserError("too long")
        yield

    told = []
    monkeypatch.setattr(running_page, "LOOK", 0.05)
    for reading in (endless, refused):
        monkeypatch.setattr(running_page, "traced", reading)
        last = stopped_after(writer, 3)[-1]
        assert "Stopped. 3 tokens" in last["told"] and "data-token" not in last["text"]
        assert view_text(last["text"]) == " w1 w2 w3 w4 w5" and last["ticket"] != "pending"
    assert len(told) == 2
    monkeypatch.setattr(running_page, "steps", lambda request: (TextEvent("", 0) for _ in range(1000)))
    (last,) = stopped_after(writer, 3)  # while the prompt is read: nothing was written that could be looked into
    assert "Stopped. 0 tokens" in last["told"] and len(told) == 2


def test_the_slider_of_layers_follows_the_weights(writer):
    assert write(" w1", layer=20)[-1]["layer"] == gr.update(maximum=2, value=2)
    assert write(" w1", layer=1)[-1]["layer"] == gr.update(maximum=2, value=1)


def test_a_visitor_who_leaves_ends_the_work(writer):
    writer.count = 1000
    steps = write_page.write("a", 1, False, "local", "stories", *SETTINGS.values(), EN, no_progress)
    next(steps)
    next(steps)
    steps.close()
    assert writer.fed <= 2 and writer.closed == 1 and len(running_page.turns) == 0


def test_a_second_run_takes_the_page_of_the_same_visitor_only(writer):
    writer.count = 1000
    first = write_page.write("a", 1, False, "local", "stories", *SETTINGS.values(), EN, no_progress)
    other = write_page.write(
        "a",
        1,
        False,
        "local",
        "stories",
        *SETTINGS.values(),
        SimpleNamespace(headers={}, session_hash="b"),
        no_progress,
    )
    next(first), next(other)
    second = write_page.write("b", 1, False, "local", "stories", *SETTINGS.values(), EN, no_progress)
    next(second)
    assert list(first) == [running_page.silence(7)] and writer.closed == 1  # the page is the second's
    next(second), next(other)
    second.close(), other.close()
    assert len(running_page.turns) == 0


def test_opening_the_tab_writes_once_and_only_stories(writer):
    def first(ticket, weights):
        return list(
            write_page.write_first(ticket, "a", 1, False, "local", weights, *SETTINGS.values(), EN, no_progress)
        )

    assert len(first(None, "stories")) == 4 and len(first("pending", "stories")) == 1
    assert len(first(None, "chatty")) == 1 and len(writer.asked) == 1


def test_another_layer_and_a_clicked_token(writer):
    ticket = write(" w1 w2")[-1]["ticket"]
    text, legend, detail = write_page.recolour(ticket, None, 2, True, EN)
    assert "gh-numbers" in text and "layer 2 of 2" in legend and detail == ""
    assert "第 2 层" in write_page.recolour(ticket, None, 2, True, ZH)[1]
    picked, detail = write_page.pick(ticket, 1, EN, SimpleNamespace(_data={"token": 4}))
    assert picked == 4 and " w4" in detail and detail.count("gh-worked") == 2
    for nonsense in ({"token": 99}, {"token": -1}, {"token": "<b>"}, {}, None):
        assert not isinstance(write_page.pick(ticket, 1, EN, SimpleNamespace(_data=nonsense))[1], str)
    with pytest.raises(UserError, match="make room"):
        write_page.recolour("gone", None, 1, False, EN)
    assert not isinstance(write_page.recolour("pending", None, 1, False, EN)[0], str)


def test_the_library_writes_without_colours(writer):
    last = write(" w1", backend="reference")[-1]
    assert (
        writer.asked[0].trace is False
        and "data-token" not in last["text"]
        and " w1 w3 w4 w5" in view_text(last["text"])
    )
    assert "our own network only" in last["legend"]


def test_programs_get_the_text_as_it_grows(writer):
    assert list(write_page.stream("a", max_new_tokens=3)) == ["", " w3", " w3 w4", " w3 w4 w5"]
    assert writer.asked[0].trace is False
    list(write_page.stream("", messages=[{"role": "user", "content": "hi"}]))
    assert writer.asked[1].messages == (Message("user", "hi"),)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"messages": ["hi"]}, "role and a content"), ({"messages": {"role": "user"}}, "role and a content"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "message must be text"),
        ({"messages": [{"content": "hi"}]}, "role of a message"), ({"stop": "and"}, "list of texts"),
    ],
)  # fmt: skip
def test_programs_that_send_nonsense_get_a_sentence(tiny_catalogue, options, words):
    with pytest.raises(UserError, match=words):
        next(write_page.stream("", **options))


# --- chat


def answer(history, message, **changes):
    values = {**SETTINGS, **changes}
    return list(chat_page.answer(history, message, 1, False, "local", "chatty", *values.values(), EN, no_progress))


def test_a_chat_grows_and_goes_back_unharmed(writer):
    bad = "<img src=x onerror=alert(1)> &amp; **b**"
    shown = answer([], bad)
    history, box = shown[-1][:2]
    assert [turn["role"] for turn in history] == ["user", "assistant"] and box == ""
    assert history[0]["content"] == "&lt;img src=x onerror=alert(1)&gt; &amp;amp; **b**"
    as_sent = [{"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in history]
    answer(as_sent, "more")
    assert writer.asked[1].messages == (
        Message("user", bad),
        Message("assistant", " w3 w4 w5"),
        Message("user", "more"),
    )
    assert writer.asked[1].prompt == ""
    with pytest.raises(UserError, match="Write a message"):
        answer([], "  \n")
    with pytest.raises(UserError, match="text alone"):
        answer([{"role": "user", "content": [{"type": "file", "file": {"path": "x"}}]}], "what is this")


def test_a_new_chat_stays_empty(writer):
    writer.count = 1000
    steps = chat_page.answer([], "hello", 1, False, "local", "chatty", *SETTINGS.values(), EN, no_progress)
    next(steps), next(steps)
    assert write_page.begin_anew(EN) == ([], "", "", "", "", "")
    assert list(steps) == [running_page.silence(9)] and writer.closed == 1  # the old answer has no last word
    write_page.begin_anew(EN)  # nothing runs: nothing happens
    assert answer([], "again")[-1][0][0]["content"] == "again"


def test_a_chat_that_is_stopped_at_once_gives_the_message_back(writer):
    steps = chat_page.answer([], "hello", 1, False, "local", "chatty", *SETTINGS.values(), EN, no_progress)
    assert next(steps)[:2] == ([{"role": "user", "content": "hello"}], "")
    running_page.turns.halt("test")
    writer.count = 0
    *_, last = list(steps)
    assert "Stopped." in last[-1]


def test_weights_with_a_template_open_the_chat(tmp_path, monkeypatch):
    write_folder(tmp_path / "a")
    plain = entry_of(tmp_path / "a", "plain")
    write_folder(tmp_path / "b")
    config = tmp_path / "b" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", '{"chat_template": "{{ messages }}",', 1))
    chatty = entry_of(tmp_path / "b", "chatty")
    monkeypatch.setattr(chat_page, "entry", lambda weights: {"plain": plain, "chatty": chatty}[weights])
    chat_page._chats.cache_clear()
    assert chat_page.chats("chatty") and not chat_page.chats("plain")
    assert [update["visible"] for update in write_page.mode("chatty")] == [False, True]
    assert [update["visible"] for update in write_page.mode("plain")] == [True, False]

    def absent(weights):
        raise UserError("not here")

    monkeypatch.setattr(chat_page, "entry", absent)
    assert not chat_page.chats("plain")


# --- with a tiny network


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": ""}, {"prompt": "🦊🐻"}, {"prompt": "\x00\x07\x1b[31m"}, {"prompt": "مرحبا \u202eabc"}, {"new": 0},
        {"temperature": 0}, {"temperature": 100}, {"stop": "\n\n"}, {"prompt": "<|endoftext|>"}, {"prompt": "   "},
    ],
)  # fmt: skip
def test_odd_input_gets_an_answer(tiny_catalogue, changes):
    last = write(**{"prompt": "The dog", **changes})[-1]
    assert last["ticket"] != "pending" and "tokens a second" in last["told"]
    (last["text"] + last["legend"]).encode()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": "a" * 100_001}, "shorten it"), ({"prompt": "a \ud83d b"}, "lone surrogate"),
        ({"new": 10_000}, "between 0 and"), ({"new": -1}, "between 0 and"), ({"new": 1.5}, "whole number"),
        ({"new": float("nan")}, "whole number"), ({"temperature": -1}, "temperature"), ({"top_p": 2}, "Top-p"),
        ({"weights": "none"}, "no weights called"), ({"backend": "other"}, "no implementation"),
        ({"stop": "x" * 1000}, "stop"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(tiny_catalogue, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        write(**changes)
    assert len(running_page.turns) == 0


def test_the_colours_are_the_networks_own(tiny_catalogue):
    last = write("The dog ran", new=5, temperature=0)[-1]
    run = running_page.kept(last["ticket"])
    reading = pipeline.read("The dog ran" + run.text, "stories", trace=True)
    ours, again = run.trace.experts[:, 1:, 0], reading.trace.experts[:, :, 0]
    assert run.trace.prompt >= 2 and len(run.texts) == run.trace.tokens.size == run.trace.prompt + 5
    same = run.trace.tokens[1:].tolist() == reading.tokens.tolist()  # else the text is cut into other tokens
    assert not same or (ours == again).all()


def counted(text, stop_after=None):
    """What the box shows, part by part."""
    shown = []
    for step in score_page.read(text, "local", "stories", EN, no_progress):
        shown.append(step)
        if len(shown) == stop_after:
            score_page.halt(EN)
    return shown


def test_a_score(tiny_catalogue):
    page = counted("The dog ran.")[-1]
    bits = pipeline.score("The dog ran.", "stories")
    assert f"{bits:.3f} bits per byte" in page and score_page.score("The dog ran.", "stories") == pytest.approx(bits)
    with pytest.raises(UserError, match="nothing to read"):
        counted("")


def test_a_score_stops_between_two_windows(tiny_catalogue, monkeypatch):
    passes = len(pipeline.windows(pipeline.read("The dog ran. " * 80, "stories").tokens.size + 1, 16))
    monkeypatch.setattr(pipeline, "LOGITS", 16 * 320)
    assert passes > 5
    assert len(counted("The dog ran. " * 80)) == passes + 1
    stopped = counted("The dog ran. " * 80, stop_after=2)
    assert len(stopped) == 3 and not any(isinstance(step, str) for step in stopped) and len(score_page.turns) == 0
