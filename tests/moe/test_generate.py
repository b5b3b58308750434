"""Tokens one after another: what is shown when, why it ends, what closing stops, the library's tokens."""

from dataclasses import replace

import pytest
import torch

from pipelines.common import backends
from pipelines.moe import generate as module
from pipelines.moe.config import PRESETS
from pipelines.moe.generate import Clock, Job, generate, part_of
from pipelines.moe.local import LocalText
from pipelines.moe.sampling import Sampling
from pipelines.moe.tokenizer import TextTokenizer
from tests.moe.tiny import library, lively
from tests.stubs import StubText

GREEDY = Sampling(temperature=0.0)
PROMPT = (0, 82)  # the mark, and "Q"


def write(model, prompt=PROMPT, most=50, part=512, clock=None, room=10_000, **options):
    job = Job(tuple(prompt), most, room, **{"sampling": GREEDY} | options)
    return list(generate(model.open(room), model.tokenizer, job, part, clock))


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_a_character_of_four_tokens_is_shown_when_it_is_whole():
    events = write(StubText("x🙂y"))
    assert [each.text for each in events] == ["", "x", "x", "x", "x", "x🙂", "x🙂y", "x🙂y"]
    assert [len(each.tokens) for each in events] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert [each.finish for each in events] == [None] * 7 + ["end"] and 0 not in events[-1].tokens


def test_a_text_that_ends_in_half_a_character_says_so_at_the_end_only():
    events = write(StubText("x🙂"), most=3)
    assert [each.text for each in events] == ["", "x", "x", "x", "x�"] and events[-1].finish == "length"


def test_a_stop_string_over_several_tokens_is_never_seen():
    events = write(StubText("one two\nthree"), stops=("o\nt", "absent"))
    assert [each.text for each in events] == [
        "", "", "on", "one", "one ", "one t", "one tw", "one tw", "one tw", "one tw", "one tw",
    ]  # fmt: skip
    last = events[-1]
    assert last.finish == "stop" and bytes(token - 1 for token in last.tokens) == b"one tw"
    assert len(events[-2].tokens) == 9  # the stop string was complete with the ninth token, and no tenth was made


@pytest.mark.parametrize(("says", "stop", "text"), [("🙂b", "🙂", ""), ("a🙂b", "b", "a🙂"), ("aé🙂b", "🙂", "aé")])
def test_the_tokens_are_those_of_the_text(says, stop, text):
    last = write(StubText(says), stops=(stop,))[-1]
    assert last.text == text and bytes(token - 1 for token in last.tokens) == text.encode() and last.finish == "stop"


def test_what_was_held_back_for_a_stop_string_is_shown_when_none_came():
    assert write(StubText("one t"), stops=("two",))[-1].text == "one t"
    assert write(StubText("one two"), stops=("two",), most=6)[-1].text == "one tw"


def test_an_answer_does_not_begin_with_sentencepieces_space():
    model = StubText("  hi")
    assert write(model)[-1].text == "  hi" and write(model, answer=True)[-1].text == "  hi"
    model.tokenizer.strips = True
    assert write(model)[-1].text == "  hi" and write(model, answer=True)[-1].text == " hi"


# --- why it ends -----------------------------------------------------------------------------------------------------


def test_length_and_context_and_nothing_at_all():
    model = StubText("abcdefgh")
    assert (write(model, (0,), most=3)[-1].text, write(model, (0,), most=3)[-1].finish) == ("abc", "length")
    # A context of 6 positions: 2 of the prompt and 4 new ones, the last of which is not fed any more.
    model.fed.clear()
    last = write(model, (0, 60), room=6)[-1]
    assert (last.text, last.finish) == ("abcd", "context") and [len(each) for each in model.fed] == [2, 1, 1, 1]
    model.fed.clear()
    events = write(model, (0, 60), most=0)
    assert [(each.text, each.finish) for each in events] == [("", None), ("", "length")] and len(model.fed) == 1
    assert write(StubText(""))[-1] == module.Written("", (), "end")


def test_a_trace_has_the_last_token_too():
    model = StubText("abc")
    write(model, (0,), most=2, last=True)
    assert [len(each) for each in model.fed] == [1, 1, 1]


def test_any_of_the_ends_ends():
    model = StubText("abc")
    model.tokenizer.ends = frozenset({0, ord("c") + 1})
    assert write(model, (0,))[-1] == module.Written("ab", (98, 99), "end")


# --- closing and turns -----------------------------------------------------------------------------------------------


def test_a_long_prompt_is_read_in_parts_and_closing_stops_between_them():
    model = StubText("x")
    prompt = tuple(range(60, 80))
    events = write(model, prompt, part=8)
    assert [len(each) for each in model.fed] == [8, 8, 4, 1] and sum(model.fed[:3], ()) == prompt
    assert [each.text for each in events] == ["", "", "", "x", "x"]
    model.fed.clear()
    writing = generate(model.open(99), model.tokenizer, Job(prompt, 50, 99, GREEDY), 8)
    next(writing)
    writing.close()
    assert len(model.fed) == 1


def test_closing_stops_before_the_next_token():
    model = StubText("abcdef")
    writing = generate(model.open(99), model.tokenizer, Job(PROMPT, 50, 99, GREEDY))
    assert [next(writing).text for _ in range(3)] == ["", "a", "ab"]
    writing.close()
    assert len(model.fed) == 2


def test_each_step_has_the_device_and_nothing_between_them_has(monkeypatch):
    monkeypatch.setattr(backends, "_steps", {})
    model, held = StubText("one"), []
    stepper = model.open(99)
    feed = stepper.feed

    def watched(tokens):
        held.append(backends._steps["here"].locked())
        return feed(tokens)

    stepper.feed = watched
    between = []
    for _ in generate(stepper, model.tokenizer, Job((0,), 50, 99, GREEDY, device="here")):
        between.append(backends._steps["here"].locked())
    assert held == [True] * 4 and between == [False] * 5


def test_two_visitors_take_turns():
    first, second = StubText("abc"), StubText("xyz")
    writers = [generate(m.open(99), m.tokenizer, Job((0,), 9, 99, GREEDY)) for m in (first, second)]
    texts = [next(writer).text for _ in range(4) for writer in writers]
    assert texts == ["", "", "a", "x", "ab", "xy", "abc", "xyz"]


def test_times_leave_out_who_reads(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    model, clock = StubText("abcde"), Clock()
    stepper = model.open(99)
    feed = stepper.feed

    def slow(tokens):
        now[0] += 0.5 * len(tokens)
        return feed(tokens)

    stepper.feed = slow
    for _ in generate(stepper, model.tokenizer, Job((0, 70, 71), 4, 99, GREEDY), 2, clock):
        now[0] += 100.0  # a reader who takes their time
    assert (clock.prefill, clock.decode, clock.steps, clock.rate) == (1.5, 1.5, 3, 2.0)
    assert Clock().rate == 0.0


# --- real networks ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["tiny", "tiny-window", "tiny-granite"])
def real(request):
    config = replace(PRESETS["tiny"], window=7) if request.param == "tiny-window" else PRESETS[request.param]
    model = LocalText(lively(config), StubText("").tokenizer)
    model.tokenizer.ends = frozenset()
    return model


def greedy(model, prompt, count):
    """By its definition: the whole text anew for each token, no cache."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model.logits(tokens)[0][-1].argmax()))
    return tuple(tokens[len(prompt) :])


def test_the_cache_and_the_parts_change_no_token(real):
    prompt = tuple(range(40, 69))
    wanted = greedy(real, prompt, 20)
    assert len(set(wanted)) >= 4
    for part in (512, 8, 1):
        assert write(real, prompt, most=20, part=part, room=60)[-1].tokens == wanted, part


def test_a_seed_is_a_text_and_a_temperature_of_100_is_still_one(real):
    def text(seed, temperature=1.0):
        return write(real, most=30, room=99, seed=seed, sampling=Sampling(temperature, top_p=1.0))[-1].tokens

    assert text(3) == text(3) != text(4) and len(text(3)) == 30
    assert len(set(text(3, 100.0))) > 20  # of 320 that are nearly equally likely


@pytest.mark.parametrize("penalty", [1.0, 1.6])
def test_greedy_tokens_are_the_librarys(penalty):
    from pipelines.moe.reference import ReferenceText

    network = library("mixtral")
    model = ReferenceText(network, PRESETS["tiny"], StubText("").tokenizer)
    model.tokenizer.ends = frozenset()
    prompt = (0, 70, 71, 72, 90, 91)
    given = torch.tensor([prompt])
    theirs = network.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=25, do_sample=False, repetition_penalty=penalty,
        eos_token_id=None, pad_token_id=0,
    )[0, 6:]  # fmt: skip
    ours = write(model, prompt, most=25, sampling=Sampling(0.0, repetition_penalty=penalty))[-1].tokens
    assert ours == tuple(theirs.tolist())


def test_the_penalty_sees_the_prompt(monkeypatch):
    """Planted fault: a penalty that only new tokens get writes something else."""
    from pipelines.moe import sampling

    plain = sampling.penalised

    def forgetful(logits, seen, penalty):
        seen = seen.clone()
        seen[[0, 70, 71, 72, 90, 91]] = False
        return plain(logits, seen, penalty)

    monkeypatch.setattr(sampling, "penalised", forgetful)
    model = StubText("")
    model.tokenizer.ends = frozenset()
    row = torch.linspace(1, 1.5, 320)
    row[70] += 1
    model._row = lambda tokens: row
    how = Sampling(0.0, repetition_penalty=2.0)
    assert write(model, (0, 70), most=2, sampling=how)[-1].tokens[0] == 70
    monkeypatch.setattr(sampling, "penalised", plain)
    assert write(model, (0, 70), most=3, sampling=how)[-1].tokens == (319, 318, 317)


def test_parts_suit_the_model():
    parts = {name: part_of(PRESETS[name]) for name in ("stories", "bench", "granite-3.1-1b-a400m", "mixtral-8x7b")}
    assert parts == {"stories": 512, "bench": 512, "granite-3.1-1b-a400m": 64, "mixtral-8x7b": 32}


def test_the_tokenizer_is_the_real_one():
    assert isinstance(StubText("").tokenizer, TextTokenizer) and StubText("").tokenizer.encode("a") == [98]
