"""Is this a request that can be served? What holds whatever the weights are; no torch, no file is opened."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral, Real
from typing import Any

from pipelines.common import backends
from pipelines.common.errors import UserError
from pipelines.common.limits import limits

from .contract import Backend, Message, RouterChange, TextRequest
from .tokenizer import check_whole

HOTTEST = 100.0  # temperature: every token is nearly as likely as any other
PENALTIES = (0.1, 10.0)
SEEDS = 2**63


def checked(request: TextRequest) -> TextRequest:
    """The request in its own types. UserError: what holds whatever the weights are."""
    if not isinstance(request, TextRequest):
        raise UserError("What is to be written must be a TextRequest.")
    backends.check(request.backend)
    check_text(request.prompt, "prompt")
    messages = _checked_messages(request)
    _check_numbers(request)
    if not isinstance(request.trace, bool):
        raise UserError("Whether the experts are traced must be true or false.")
    change = checked_change(request.change)
    check_inside(request.backend, change, request.trace)
    return replace(request, messages=messages, stop=_checked_stops(request.stop), change=change)


def check_text(text: Any, what: str) -> None:
    """UserError unless this is a text of whole characters that is not too long. what: how the sentence calls it."""
    if not isinstance(text, str):
        raise UserError(f"The {what} must be text.")
    most = limits().prompt_characters
    if len(text) > most:
        raise UserError(f"The {what} has {len(text):,} characters; shorten it to {most:,}.")
    check_whole(text)


def _checked_messages(request: TextRequest) -> tuple[Message, ...]:
    messages = request.messages
    if not isinstance(messages, tuple | list) or not all(isinstance(each, Message) for each in messages):
        raise UserError("The messages of a chat must be a list of Message.")
    if not messages:
        return ()
    if request.prompt:
        raise UserError("Give a prompt or the messages of a chat, and leave the other empty.")
    if len(messages) > limits().messages:
        raise UserError(f"The chat has {len(messages):,} messages; keep the last {limits().messages}.")
    for message in messages:
        if message.role not in ("system", "user", "assistant"):
            raise UserError("The role of a message must be system, user or assistant.")
        check_text(message.text, "message")
    if messages[-1].role != "user" or not messages[-1].text.strip():
        raise UserError("The last message must be the user's and say something.")
    check_text("".join(message.text for message in messages), "chat")
    return tuple(messages)


def _check_numbers(request: TextRequest) -> None:
    if not _whole(request.max_new_tokens, 0, limits().new_tokens):
        raise UserError(f"The number of new tokens must be a whole number between 0 and {limits().new_tokens:,}.")
    if not _within(request.temperature, 0, HOTTEST):
        raise UserError(f"The temperature must lie between 0 and {HOTTEST:g}; 0 takes the likeliest token.")
    if not _whole(request.top_k, 0):
        raise UserError("Top-k must be a whole number from 0 on; 0 keeps all tokens.")
    if not _within(request.top_p, 0, 1):
        raise UserError("Top-p must lie between 0 and 1; 1 keeps all tokens.")
    if not _within(request.min_p, 0, 1):
        raise UserError("Min-p must lie between 0 and 1; 0 keeps all tokens.")
    if not _within(request.repetition_penalty, *PENALTIES):
        raise UserError(
            f"The repetition penalty must lie between {PENALTIES[0]:g} and {PENALTIES[1]:g}; 1 leaves all as it is."
        )
    if not _whole(request.seed, 0, SEEDS - 1):
        raise UserError("The seed must be a whole number between 0 and 2⁶³ − 1.")


def _checked_stops(stops: Any) -> tuple[str, ...]:
    if not isinstance(stops, tuple | list) or not all(isinstance(stop, str) for stop in stops):
        raise UserError("The stop strings must be a list of texts.")
    if not all(stops):
        raise UserError("A stop string needs at least one character; take the empty one out.")
    most, longest = limits().stops, limits().stop_characters
    if len(stops) > most or any(len(stop) > longest for stop in stops):
        raise UserError(
            f"There may be {most} stop strings of {longest} characters each; take some out or shorten them."
        )
    for stop in stops:
        check_whole(stop)
    return tuple(stops)


def checked_change(change: Any) -> RouterChange:
    """In its own types; whether these routers can be changed so, their configuration says (`steer.check`)."""
    if not isinstance(change, RouterChange):
        raise UserError("What is done to the routers must be a RouterChange.")
    if change.active is not None and not _whole(change.active, 1):
        raise UserError("The number of experts that work must be a whole number from 1 on.")
    if not _within(change.temperature, 0, HOTTEST):
        raise UserError(f"The router's temperature must be a number of at most {HOTTEST:g}.")
    if not isinstance(change.control, str):
        raise UserError("The control must be none, random or hash.")
    if not _whole(change.seed, 0, SEEDS - 1):
        raise UserError("The seed of the router's control must be a whole number between 0 and 2⁶³ − 1.")
    return replace(
        change,
        banned=_pairs(change.banned),
        forced=_pairs(change.forced),
        active=None if change.active is None else int(change.active),
        temperature=float(change.temperature),
    )


def _pairs(pairs: Any) -> frozenset[tuple[int, int]]:
    several = isinstance(pairs, frozenset | set | tuple | list)
    if not several or not all(
        isinstance(pair, tuple | list) and len(pair) == 2 and all(map(_whole, pair)) for pair in pairs
    ):
        raise UserError("Banned and forced experts must be pairs of a layer and an expert, both counted from 0.")
    return frozenset((int(layer), int(expert)) for layer, expert in pairs)


def check_inside(backend: Backend, change: RouterChange, trace: bool) -> None:
    """UserError: the library's networks are asked for what only ours can do."""
    if backend == "reference" and (trace or not change.nothing):
        raise UserError("Only our own networks can be looked into or changed inside; choose local.")


def _whole(value: Any, least: int = -SEEDS, most: float = float("inf")) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def _within(value: Any, least: float, most: float) -> bool:
    """A number in the range; nan is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and least <= float(value) <= most


def too_long(what: str, characters: int, tokens: int, most: int) -> str:
    """The sentence for a text of more tokens than there is room for."""
    fitting = max(1, characters * most // tokens)
    return (
        f"The {what} has {tokens:,} tokens, and there is room for {most:,}: shorten it to about {fitting:,} characters."
    )
