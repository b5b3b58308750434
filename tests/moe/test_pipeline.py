"""Requests and results: with a stub for what is shown and refused, with a tiny decoder for what is computed."""

import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.common import backends, catalogue
from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.moe import Message, RouterChange, TextRequest, read, run, score, steps
from pipelines.moe import pipeline as module
from pipelines.moe.pipeline import windows
from tests.stubs import StubText

CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


@pytest.fixture
def stubbed(monkeypatch):
    """Weights "stub" for both backends, over a StubText."""

    def use(says, **options):
        model = StubText(says, **options)
        for backend in backends.BACKENDS:
            stub = SimpleNamespace(load=lambda entry, device="cpu": model)
            monkeypatch.setitem(sys.modules, f"pipelines.moe.{backend}", stub)
        file = (catalogue.File("model", "README.md"),)  # any file that is there
        entry = catalogue.Entry("stub", "moe", "decoder", "stub", "mixtral", "tiny", "bundled", "own", "", file)
        monkeypatch.setattr(catalogue, "manifest", lambda: {"stub": entry})
        fresh = backends.Backends(10**9)
        monkeypatch.setattr(backends, "shared", lambda: fresh)
        return model

    return use


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_a_text_goes_on_with_its_prompt(stubbed, backend):
    stubbed(" there was a 🙂.")
    events = list(steps(TextRequest("Once", backend=backend, temperature=0)))
    result = events[-1].result
    assert result.text == "Once there was a 🙂." and result.continuation == " there was a 🙂."
    assert bytes(token - 1 for token in result.tokens) == result.continuation.encode()
    assert (result.finish, result.prompt_tokens, result.weights, result.backend) == ("end", 5, "stub", backend)
    assert (
        set(result.seconds) == {"load", "prefill", "decode"} and result.tokens_per_second > 0 and result.trace is None
    )
    assert [event.result for event in events[:-1]] == [None] * 19
    for event, later in pairwise(events):
        assert later.continuation.startswith(event.continuation) and "�" not in event.continuation
        assert later.tokens >= event.tokens


STRANGE = [
    "", " ", "🙂👩‍👩‍👧", "\x00\x1b[2J\u202e\x7f\r\n", "שלום עולם",
    "a\ufeff\ufffd", "<|endoftext|>", "é", "e\u0301", "\ufdd0",
]  # fmt: skip


@pytest.mark.parametrize("prompt", STRANGE)
def test_any_prompt_is_kept_as_it_was(stubbed, prompt):
    model = stubbed("!")
    result = run(TextRequest(prompt, temperature=0))
    assert result.text == prompt + "!" and result.finish == "end"
    assert model.fed[0][0] == 0 and 0 not in model.fed[0][1:] and result.prompt_tokens == 1 + len(prompt.encode())


def test_stop_strings_and_lengths(stubbed):
    stubbed("one. two. three")
    assert run(TextRequest("P", stop=[". t", "never"], temperature=0)).text == "Pone"
    result = run(TextRequest("P", max_new_tokens=5, temperature=0))
    assert (result.text, result.finish, len(result.tokens)) == ("Pone. ", "length", 5)
    nothing = run(TextRequest("P", max_new_tokens=0))
    assert (nothing.text, nothing.tokens, nothing.finish, nothing.tokens_per_second) == ("P", (), "length", 0)


def test_the_context_is_the_models(stubbed):
    model = stubbed("abcdefgh", context=6)
    result = run(TextRequest("PQR", temperature=0))  # and the mark before it: two places are left
    assert (result.text, result.finish) == ("PQRab", "context")
    with pytest.raises(
        UserError, match=r"The prompt has 6 tokens, and there is room for 5: shorten it to about \d char"
    ):
        run(TextRequest("PQRST"))
    model.fed.clear()
    assert (
        run(TextRequest("PQRST", max_new_tokens=0)).prompt_tokens == 6
        and model.fed == [tuple(b + 1 for b in b"\xffPQRST")][:0] + model.fed
    )


def test_a_chat_answers_without_what_was_asked(stubbed):
    model = stubbed("Hi 🙂", template=CHAT)
    result = run(TextRequest(messages=(Message("system", "s"), Message("user", "<|endoftext|>")), temperature=0))
    assert result.text == result.continuation == "Hi 🙂" and result.finish == "end"
    assert bytes(token - 1 for token in model.fed[0]) == b"[system]s[user]<|endoftext|>[assistant]"
    stubbed("Hi")
    with pytest.raises(UserError, match="not taught to chat"):
        run(TextRequest(messages=(Message("user", "a"),)))


def test_a_visitor_who_leaves_stops_the_work(stubbed):
    model = stubbed("abcdef")
    writing = steps(TextRequest("PQ", temperature=0))
    assert [next(writing).continuation for _ in range(3)] == ["", "a", "ab"]
    writing.close()
    assert len(model.fed) == 2
    long = steps(TextRequest("P" * 3000, temperature=0))
    next(long)
    long.close()
    assert [len(each) for each in model.fed[2:]] == [512]


def test_a_trace_is_of_the_tokens_of_the_text(stubbed):
    model = stubbed("one. two")
    trace = run(TextRequest("P", stop=(".",), temperature=0, trace=True)).trace
    assert trace.pieces == ("<|endoftext|>", "P", "o", "n", "e") and trace.prompt == 2
    assert trace.tokens.tolist() == [0, 81, 112, 111, 102] and trace.tokens.dtype == np.int64
    assert trace.logits.shape == (2, 5, 4) and trace.weights.shape == (2, 5, 2)
    assert trace.experts[1, :, 0].tolist() == [0, 1, 0, 3, 2]  # of the stub: the id, modulo 4
    whole = run(TextRequest("P", max_new_tokens=2, temperature=0, trace=True)).trace
    assert whole.pieces[-2:] == ("o", "n") and whole.logits.shape == (2, 4, 4)
    assert model.fed[-1] == (111,)  # the last token was read for its experts alone


# --- what is refused -------------------------------------------------------------------------------------------------

NAN, INFINITE = float("nan"), float("inf")
ASK, ANSWER = Message("user", "a"), Message("assistant", "b")
REFUSED = [
    ({"prompt": None}, "prompt must be text"),
    ({"prompt": b"a"}, "prompt must be text"),
    ({"prompt": "a" * 100_001}, "has 100,001 characters; shorten it to 100,000"),
    ({"prompt": "a" * 100_000}, r"has 100,001 tokens, and there is room for 4,095: shorten it to about 4,09\d char"),
    ({"prompt": "🙂" * 9_000}, "has 36,001 tokens"),
    ({"prompt": "a\ud83d"}, "Character 2 of the text is half"),
    ({"weights": None}, "must be named"),
    ({"weights": "gpt"}, "no weights called"),
    ({"backend": "cloud"}, "local or reference"),
    ({"backend": ["local"]}, "local or reference"),
    *(({"max_new_tokens": bad}, "whole number between 0 and 4,096") for bad in (-1, 10_000, 2.0, "5", None, True)),
    *(({"temperature": bad}, "temperature must lie between 0 and 100") for bad in (-0.1, 100.1, NAN, INFINITE)),
    *(({"temperature": bad}, "temperature must lie between 0 and 100") for bad in ("hot", None, True, 1j)),
    *(({"top_k": bad}, "Top-k") for bad in (-1, 1.5, None)),
    *(({"top_p": bad}, "Top-p") for bad in (-0.1, 1.1, NAN)),
    *(({"min_p": bad}, "Min-p") for bad in (-0.1, 1.1, "a")),
    *(({"repetition_penalty": bad}, "repetition penalty") for bad in (0, -1, 11, NAN)),
    *(({"seed": bad}, "seed must be") for bad in (-1, 2**63, 0.5, None)),
    *(({"stop": bad}, "must be a list of texts") for bad in ("end", None, [1])),
    ({"stop": ("a", "")}, "at least one character"),
    ({"stop": ("a",) * 9}, "8 stop strings"),
    ({"stop": ("a" * 201,)}, "200 characters"),
    ({"stop": ("\udc00",)}, "half of a character"),
    ({"messages": "hi"}, "list of Message"),
    ({"messages": [{"role": "user"}]}, "list of Message"),
    ({"messages": [ASK], "prompt": "b"}, "or the messages"),
    ({"messages": [Message("robot", "a")]}, "system, user or assistant"),
    ({"messages": [Message("user", 5)]}, "must be text"),
    ({"messages": [ASK, ANSWER]}, "last message must be the user's"),
    ({"messages": [Message("user", " ")]}, "say something"),
    ({"messages": [ASK] * 65}, "keep the last 64"),
    ({"messages": [Message("user", "a" * 60_000)] * 2}, "chat has 120,000 characters"),
    ({"trace": 1}, "true or false"),
    ({"trace": True, "backend": "reference"}, "choose local"),
    ({"change": None}, "RouterChange"),
    ({"change": RouterChange(active=1), "backend": "reference"}, "choose local"),
]


@pytest.mark.parametrize(("values", "said"), REFUSED)
def test_a_request_that_cannot_be_served_is_a_sentence(stubbed, values, said):
    model = stubbed("x", context=4096, template=CHAT)
    with pytest.raises(UserError, match=said) as caught:
        run(TextRequest(**values))
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 300 and not model.fed


ALL = frozenset((0, expert) for expert in range(4))
ROUTERS = [
    ({"banned": ALL}, "Every expert of layer 1 is banned"),
    ({"banned": frozenset(list(ALL)[:3])}, "1 expert"),
    ({"banned": ALL - {(0, 1)}, "forced": {(0, 1)}, "active": 2}, "1 expert"),
    ({"banned": {(1, 2)}, "forced": {(1, 2)}}, "both banned and forced"),
    ({"forced": {(0, 0), (0, 1), (0, 2)}}, "3 experts are forced"),
    *(({"banned": {bad}}, "2 layers of 4 experts") for bad in ((2, 0), (0, 4), (-1, 0), (0, -1))),
    ({"forced": {(2, 0)}}, "2 layers of 4 experts"),
    ({"active": 5}, "Between 1 and 4 experts"),
    *(({"active": bad}, "from 1 on") for bad in (0, 1.5, "2", True)),
    *(({"temperature": bad}, "temperature") for bad in (0, -1, NAN, 101, "hot", None)),
    *(({"control": bad}, "none, random or hash") for bad in ("magic", 3, None)),
    *(({"banned": bad}, "pairs") for bad in (3, [1], "ab", ["ab"], None, [(0, True)])),
    *(({"forced": bad}, "pairs") for bad in ([(0, 1, 2)], [(0, 0.5)])),
    ({"active": 1, "seed": -1}, "seed of the router"),
]


@pytest.mark.parametrize(("change", "said"), ROUTERS)
def test_routers_that_cannot_be_changed_so_are_a_sentence(tiny_catalogue, change, said):
    for call in (
        lambda: run(TextRequest("a", change=RouterChange(**change))),
        lambda: read("a", change=RouterChange(**change)),
    ):
        with pytest.raises(UserError, match=said) as caught:
            call()
        assert str(caught.value).endswith(".")


@pytest.mark.parametrize("request_", [None, "Once", {"prompt": "a"}])
def test_what_is_no_request_is_a_sentence(request_):
    with pytest.raises(UserError, match="must be a TextRequest"):
        steps(request_)


def test_values_are_checked_before_anything_is_loaded():
    with pytest.raises(UserError, match="temperature"):
        steps(TextRequest(temperature=-1))  # at once, and not with the first event


def test_other_types_of_numbers_and_lists_are_taken(tiny_catalogue):
    plain = TextRequest("The dog", max_new_tokens=6, seed=4, change=RouterChange(banned=frozenset({(0, 1)}), active=1))
    other = TextRequest(
        "The dog", max_new_tokens=np.int64(6), temperature=np.float32(0.8), top_k=np.int32(0), seed=np.uint8(4),
        stop=[], messages=[], change=RouterChange(banned=[[np.int64(0), 1]], active=np.int64(1)),
    )  # fmt: skip
    assert run(plain).tokens == run(other).tokens


# --- a real network --------------------------------------------------------------------------------------------------


def test_greedy_text_of_a_tiny_network(tiny_catalogue):
    result = run(TextRequest("The dog ran", max_new_tokens=12, temperature=0, trace=True))
    model = module.load(module.entry(), "local")
    tokens = [0, *model.tokenizer.encode("The dog ran")]
    given = len(tokens)
    while len(tokens) < given + len(result.tokens):
        tokens.append(int(model.logits(tokens)[0][-1].argmax()))
    assert tuple(tokens[given:]) == result.tokens and result.prompt_tokens == given
    logits, experts, weights = model.logits(tokens, trace=True)[1]
    assert np.allclose(result.trace.logits, logits, atol=1e-4) and np.array_equal(result.trace.experts, experts)
    assert np.allclose(result.trace.weights, weights, atol=1e-4) and result.trace.tokens.tolist() == tokens
    same = run(TextRequest("The dog ran", max_new_tokens=12, temperature=0, backend="reference"))
    assert same.tokens == result.tokens and same.text == result.text


@pytest.mark.parametrize("temperature", [1e-9, 0.01, 1.0, 100.0])
def test_a_seed_is_a_text_at_any_temperature(tiny_catalogue, temperature):
    request = TextRequest("A", max_new_tokens=20, temperature=temperature, seed=9)
    assert run(request).tokens == run(request).tokens and len(run(request).tokens) > 0


def test_a_change_of_the_routers_reaches_them(tiny_catalogue):
    banned = frozenset({(0, 0), (1, 3)})
    trace = run(TextRequest("The dog ran to the park", max_new_tokens=5, trace=True, change=RouterChange(banned))).trace
    assert 0 not in trace.experts[0] and 3 not in trace.experts[1] and {0} < set(trace.experts[1].flatten())
    one = run(TextRequest("The dog", max_new_tokens=2, trace=True, change=RouterChange(active=1))).trace
    assert one.experts.shape[-1] == 1


# --- reading ---------------------------------------------------------------------------------------------------------


def bits_by_definition(model, tokens):
    """One pass for each token."""
    rows = [model.logits(tokens[: k + 1])[0][-1].double().log_softmax(0) for k in range(len(tokens) - 1)]
    return [-float(row[token]) / np.log(2) for row, token in zip(rows, tokens[1:], strict=True)]


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_bits_are_those_of_each_token_after_all_before_it(tiny_catalogue, backend):
    text = "The dog ran. 🙂 שלום"
    reading = read(text, backend=backend)
    model = module.load(module.entry(), backend)
    tokens = model.tokenizer.encode(text)
    assert np.allclose(reading.bits, bits_by_definition(model, [0, *tokens]), atol=1e-4)
    assert reading.bytes == len(text.encode()) == 26 and reading.tokens.tolist() == tokens
    assert reading.bits.dtype == np.float32 and "".join(reading.pieces).startswith("The dog ran. ")
    assert score(text, backend=backend) == pytest.approx(float(reading.bits.sum()) / 26) and reading.trace is None


def test_a_model_that_knows_the_text_needs_no_bits(stubbed):
    stubbed("abc")
    assert score("abc") == pytest.approx(0, abs=1e-5)
    # The mark, then z: as likely as each of 319 others against one with 20 more.
    assert read("z").bits[0] == pytest.approx(20 / np.log(2), abs=1e-4)


def test_a_trace_of_a_reading_is_of_the_text_alone(tiny_catalogue):
    trace = read("The dog", trace=True).trace
    model = module.load(module.entry(), "local")
    tokens = model.tokenizer.encode("The dog")
    logits, experts, _ = model.logits([0, *tokens], trace=True)[1]
    assert trace.tokens.tolist() == tokens and trace.prompt == len(tokens)
    assert np.array_equal(trace.logits, logits[:, 1:]) and np.array_equal(trace.experts, experts[:, 1:])


def test_weights_that_put_nothing_before_a_text(stubbed):
    model = stubbed("abc")
    model.tokenizer.begin = ()
    assert read("ac").bits.tolist() == [0, pytest.approx(20 / np.log(2), abs=1e-4)]  # nothing foretells the first
    assert run(TextRequest("a", temperature=0)).text == "abc" and model.fed[0] == (98,)
    with pytest.raises(UserError, match="cannot begin a text of their own; write a prompt"):
        run(TextRequest(""))


def test_windows_count_every_token_once():
    assert windows(5, 8) == [(0, 0, 5)] and windows(8, 8) == [(0, 0, 8)] and windows(0, 8) == [(0, 0, 0)]
    assert windows(17, 8) == [(0, 0, 8), (4, 8, 12), (8, 12, 16), (12, 16, 17)]
    for count in range(2, 60):
        for size in range(2, 20):
            found = windows(count, size)
            counted = [k for _, new, end in found for k in range(new, end)]
            assert counted == list(range(count)) and all(end - first <= size for first, _, end in found)
            assert all(new - first >= size // 2 for first, new, _ in found[1:])


def check_windows(model):
    text = "The dog ran to the park. He saw a big bird and said hello to the old man. " * 3
    whole = read(text, trace=True)
    model.config = replace(model.config, context=40)
    parts = read(text, trace=True)
    model.config = replace(model.config, context=4096)
    assert len(whole.tokens) > 90 and np.array_equal(whole.tokens, parts.tokens)
    # Each of the 2 layers looks 9 tokens back: with 20 before it, a token is told as in the whole.
    assert np.allclose(whole.bits, parts.bits, atol=1e-3)
    assert np.allclose(whole.trace.logits, parts.trace.logits, atol=1e-3) and parts.trace.experts.shape == (
        2,
        len(whole.tokens),
        2,
    )


@pytest.fixture
def near_sighted(tiny_catalogue):
    """The tiny network with a window of 10 tokens."""
    model = module.load(module.entry(), "local")
    model.config = replace(model.config, window=10)
    model.decoder.config = model.config
    return model


def test_a_text_longer_than_the_context_is_read_in_windows(near_sighted):
    check_windows(near_sighted)


def test_windows_without_overlap_are_noticed(near_sighted, monkeypatch):
    def apart(count, size):
        return [(k, k, min(k + size, count)) for k in range(0, count, size)]

    monkeypatch.setattr(
        module, "windows", lambda count, size: [(max(f - 1, 0), n, e) for f, n, e in apart(count, size)]
    )
    with pytest.raises(AssertionError):
        check_windows(near_sighted)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "nothing to read"), (None, "must be text"), ("a" * 100_001, "shorten it"), ("\udfff", "half of a"),
     ("🙂" * 9_000, "has 36,000 tokens, and there is room for 32,768")],
)  # fmt: skip
def test_a_text_that_cannot_be_read_is_a_sentence(stubbed, text, said):
    stubbed("x")
    with pytest.raises(UserError, match=said):
        score(text)


def test_limits_leave_room_for_the_bundled_model():
    from pipelines.moe.config import PRESETS

    assert limits().new_tokens == PRESETS["stories"].context == 4096 and limits().prompt_tokens >= 4096
    assert torch.float32.itemsize * module.LOGITS == 400_000_000
