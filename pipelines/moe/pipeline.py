"""Picks the backend, writes or reads. What the tab, the bench, the tests and other programs call."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common import backends, catalogue
from pipelines.common.errors import UserError
from pipelines.common.limits import limits

from .checks import check_inside, check_text, checked, checked_change, too_long
from .contract import Backend, Reading, RouterChange, RoutingTrace, TextEvent, TextRequest, TextResult

if TYPE_CHECKING:
    from torch import Tensor

    from .generate import Clock, Job, Stepper, Written

LOGITS = 100_000_000  # numbers that one pass over a text may leave: 400 MB


def steps(request: TextRequest) -> Generator[TextEvent, None, None]:
    """Write, token by token; the last event has the result. Closing the generator stops the work at the next token, or
    the next part of a long prompt: for those, too, there are events, which have no text yet.

    UserError: a value of the request is out of range (at once), or the weights cannot serve it (with the first event).
    """
    return _steps(checked(request))


def run(request: TextRequest) -> TextResult:
    """Write to the end. UserError: as `steps`."""
    for event in steps(request):
        if event.result is not None:
            return event.result
    raise AssertionError("the last event has the result")


def score(text: str, weights: str = "auto", backend: Backend = "local") -> float:
    """Bits per byte of a text: how much it surprises the model that reads it, over its UTF-8 bytes. UserError: as
    `read`."""
    return read(text, weights, backend).bits_per_byte


def read(
    text: str,
    weights: str = "auto",
    backend: Backend = "local",
    change: RouterChange | None = None,
    trace: bool = False,
) -> Reading:
    """A given text under the model, behind what its tokenizer puts before one (without anything there, the first token
    counts no bits); that the text ends is not counted.

    A text longer than the model's context, or than `LOGITS` allows, is read in windows that overlap by half, and each
    token counts where most of the text stands before it.

    UserError: the text is empty or too long, the weights are not here or cannot do it.
    """
    for _, found in reading(text, weights, backend, change, trace):
        if found is not None:
            return found
    raise AssertionError("the last part has the reading")


def reading(
    text: str,
    weights: str = "auto",
    backend: Backend = "local",
    change: RouterChange | None = None,
    trace: bool = False,
) -> Generator[tuple[float, Reading | None], None, None]:
    """`read`, window by window: (share that is read, None) after each, at last (1, the reading). Closing the generator
    stops the work before the next window."""
    check_text(text, "text")
    if not text:
        raise UserError("There is nothing to read yet; write a text.")
    change = checked_change(RouterChange() if change is None else change)
    backends.check(backend)
    check_inside(backend, change, trace)
    chosen = entry(weights)
    model = load(chosen, backend)
    _check_routers(change, model)
    tokens = model.tokenizer.encode(text)
    if not tokens:  # a tokenizer may drop characters
        raise UserError("These weights have no token for any of this text; write another.")
    if len(tokens) > limits().reading_tokens:
        raise UserError(too_long("text", len(text), len(tokens), limits().reading_tokens))
    given = [*model.tokenizer.begin, *tokens]
    bits, parts = np.zeros(len(given), np.float32), []
    for end, arrays in _read(model, given, change, trace, bits):
        parts.append(arrays)
        yield end / len(given), None
    ids, pieces, before = np.array(tokens, np.int64), model.tokenizer.pieces(tokens), len(model.tokenizer.begin)
    routed = None
    if trace:
        logits, experts, shares = (np.concatenate(part, axis=1)[:, before:] for part in zip(*parts, strict=True))
        routed = RoutingTrace(ids, pieces, logits, experts, shares, len(ids))
    yield 1.0, Reading(ids, pieces, bits[before:], len(text.encode()), chosen.id, routed)


def entry(weights: str = "auto") -> catalogue.Entry:
    """The checkpoint that a request means. UserError: it is unknown or not on this machine."""
    if not isinstance(weights, str):
        raise UserError("The weights must be named; choose auto or one of the list.")
    return catalogue.resolve("moe", weights, "decoder")


def load(entry: catalogue.Entry, backend: Backend) -> Any:
    """The shared backend object over one checkpoint, loaded on first use."""
    assert __package__ is not None
    return backends.implementation(__package__, entry, backend)


def _check_routers(change: RouterChange, model: Any) -> None:
    if not change.nothing:
        from .steer import check

        check(change, model.config)


# --- writing ---------------------------------------------------------------------------------------------------------


def _steps(request: TextRequest) -> Generator[TextEvent, None, None]:
    from .generate import Clock, generate, part_of

    start = time.perf_counter()
    chosen = entry(request.weights)
    model = load(chosen, request.backend)
    loading = time.perf_counter() - start
    _check_routers(request.change, model)
    job, clock = _job(request, model), Clock()
    room = min(job.room, len(job.prompt) + job.most)
    stepper = model.open(room, request.change, request.trace)
    with closing(generate(stepper, model.tokenizer, job, part_of(model.config), clock)) as writing:
        for written in writing:
            result = None
            if written.finish is not None:
                result = _result(request, chosen, model, job, stepper, written, clock, loading)
            yield TextEvent(written.text, len(written.tokens), result)


def _job(request: TextRequest, model: Any) -> Job:
    """UserError: the prompt has no token, or too many."""
    from .generate import Job
    from .sampling import Sampling

    tokenizer, context = model.tokenizer, model.config.context
    if request.messages:
        tokens = tuple(tokenizer.chat(request.messages))
    else:
        tokens = (*tokenizer.begin, *tokenizer.encode(request.prompt))
    if not tokens:
        raise UserError("These weights cannot begin a text of their own; write a prompt.")
    most = min(limits().prompt_tokens, context - min(1, request.max_new_tokens))
    if len(tokens) > most:
        given = len(request.prompt) or sum(len(message.text) for message in request.messages)
        raise UserError(too_long("chat" if request.messages else "prompt", given, len(tokens), most))
    sampling = Sampling(
        float(request.temperature), int(request.top_k), float(request.top_p), float(request.min_p),
        float(request.repetition_penalty),
    )  # fmt: skip
    return Job(
        tokens, int(request.max_new_tokens), context, sampling, request.stop, int(request.seed),
        answer=bool(request.messages), last=request.trace, device=model.device,
    )  # fmt: skip


def _result(
    request: TextRequest, chosen: catalogue.Entry, model: Any, job: Job, stepper: Stepper, written: Written,
    clock: Clock, loading: float,
) -> TextResult:  # fmt: skip
    assert written.finish is not None
    trace = None
    if request.trace:
        ids = (*job.prompt, *written.tokens)
        logits, experts, shares = (each[:, : len(ids)] for each in stepper.trace())
        pieces = model.tokenizer.pieces(ids)
        trace = RoutingTrace(np.array(ids, np.int64), pieces, logits, experts, shares, len(job.prompt))
    return TextResult(
        written.text if job.answer else request.prompt + written.text, written.text, written.tokens, written.finish,
        len(job.prompt), {"load": loading, "prefill": clock.prefill, "decode": clock.decode}, clock.rate, chosen.id,
        request.backend, trace,
    )  # fmt: skip


# --- reading ---------------------------------------------------------------------------------------------------------


def windows(count: int, size: int) -> list[tuple[int, int, int]]:
    """Passes over `count` tokens, each of at most `size`: (first, first that counts, end). They overlap by half, and
    every token counts once."""
    found, end = [(0, 0, min(size, count))], min(size, count)
    while end < count:
        first = end - size // 2
        found.append((first, end, min(first + size, count)))
        end = found[-1][2]
    return found


def _read(
    model: Any, tokens: list[int], change: RouterChange, trace: bool, bits: np.ndarray
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Fills `bits` (all tokens,) float32 from the second on; after each pass (tokens read, the arrays of the routers
    over those that are new)."""
    size = max(2, min(model.config.context, LOGITS // model.config.vocabulary))
    for first, new, end in windows(len(tokens), size):
        with backends.step(model.device):
            logits, arrays = model.logits(tokens[first:end], change, trace)
        told = max(new, 1)
        bits[told:end] = _surprise(logits[told - 1 - first : end - 1 - first], tokens[told:end])
        yield end, [each[:, new - first :] for each in arrays] if trace else []


def _surprise(logits: Tensor, tokens: list[int]) -> np.ndarray:
    """Bits of each token under the logits before it, (n, V); a few rows at a time, for each copy is as large."""
    import torch

    found = []
    for start in range(0, len(tokens), 128):
        rows = logits[start : start + 128].double()
        chosen = torch.tensor(tokens[start : start + 128], device=rows.device)
        found.append((rows.logsumexp(dim=1) - rows.gather(1, chosen[:, None])[:, 0]) / np.log(2))
    return torch.cat(found).float().cpu().numpy() if found else np.zeros(0, np.float32)
