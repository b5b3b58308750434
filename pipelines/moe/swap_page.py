"""Swap: one prompt through both implementations on the same weights, always the likeliest token: the two texts, the
largest difference of a logit, where they part if they do, and the speed of both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from pipelines.common import backends
from pipelines.common.backends import BACKENDS
from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.turns import Turns

from . import examples_page as examples
from . import view
from .checks import check_text, too_long
from .pipeline import entry, load
from .running_page import TEXT, silence

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 8  # tokens that one implementation writes before the other has its turn
MOST = 500  # new tokens: the library needs a minute for so many of a large model
WARM = 4  # tokens before anything is timed

turns = Turns()


@dataclass
class Side:
    """One implementation on its way through the text. logits: after the prompt and after each new token, as long as the
    other side has not seen them. seconds: of decoding."""

    model: Any
    stepper: Any = None
    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    choice: int = 0  # the likeliest token now
    prefill: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    ended: bool = False

    @property
    def speed(self) -> float:
        """Tokens a second of decoding."""
        return self.steps / self.seconds if self.seconds else 0.0

    @property
    def text(self) -> str:
        return self.model.tokenizer.decode(self.tokens)

    def begin(self, prompt: list[int], room: int) -> None:
        """Read the prompt."""
        self.stepper = self.model.open(room)
        self.prefill = self._feed(prompt)

    def write(self, count: int, most: int) -> None:
        """Up to `count` more tokens, each the likeliest."""
        for _ in range(count):
            if self.ended or len(self.tokens) >= most:
                self.ended = True
                return
            if self.choice in self.model.tokenizer.ends:
                self.ended = True
                return
            self.tokens.append(self.choice)
            self.seconds += self._feed([self.choice])
            self.steps += 1

    def _feed(self, tokens: list[int]) -> float:
        """Seconds that it took; waiting for other visitors is none of them."""
        with backends.step(self.model.device):
            start = time.perf_counter()
            logits = self.stepper.feed(tokens)
            self.choice = int(logits.argmax())  # within the time: a GPU has only been told so far
            seconds = time.perf_counter() - start
        self.logits.append(logits)
        return seconds


@dataclass
class Duel:
    """Both sides so far, of at most `most` new tokens. same: tokens that both wrote, from the start. compared: how many
    logits were. gap: their largest difference. margin: by how much our choice led where the texts part, None as long as
    they do not."""

    ours: Side
    theirs: Side
    most: int
    same: int = 0
    compared: int = 0
    gap: float = 0.0
    margin: float | None = None

    def compare(self) -> None:
        """Bring the numbers up to date with what both sides have written, and forget the logits."""
        count = min(len(self.ours.logits), len(self.theirs.logits))
        for ours, theirs in zip(self.ours.logits[:count], self.theirs.logits[:count], strict=True):
            if self.margin is not None:
                break  # the texts are not the same any more, so the logits need not be
            self.gap = max(self.gap, float((ours - theirs).abs().max()))
            self.compared += 1
            first, second = int(ours.argmax()), int(theirs.argmax())
            if self.compared > self.most:
                break  # these choose a token that nobody writes
            if first != second:
                self.margin = float(ours[first] - ours[second])
            elif first not in self.ours.model.tokenizer.ends:
                self.same += 1
        del self.ours.logits[:count], self.theirs.logits[:count]


def prepare(prompt: str | None, weights: str, new: float | None) -> tuple[Duel, list[int]]:
    """Both models, and the prompt's tokens. UserError: something of it cannot be served."""
    check_text(prompt or "", "prompt")
    count = int(new or 0)
    if not 1 <= count <= MOST:
        raise UserError(f"The number of new tokens must be a whole number between 1 and {MOST}.")
    chosen = entry(weights)
    ours, theirs = (Side(load(chosen, backend)) for backend in BACKENDS)
    tokenizer = ours.model.tokenizer
    tokens = [*tokenizer.begin, *tokenizer.encode(prompt or "")]
    if not tokens:
        raise UserError("These weights cannot begin a text of their own; write a prompt.")
    most = min(limits().prompt_tokens, ours.model.config.context - 1)
    if len(tokens) > most:
        raise UserError(too_long("prompt", len(prompt or ""), len(tokens), most))
    return Duel(ours, theirs, min(count, ours.model.config.context - len(tokens))), tokens


def duel(prompt: str | None, weights: str, new: float | None) -> Iterator[Duel]:
    """Both implementations in turn, warm before the clock runs; yields after each chunk. UserError: as `prepare`."""
    both, tokens = prepare(prompt, weights, new)
    most = both.most
    for side in (both.ours, both.theirs):
        warm = Side(side.model)
        warm.begin(tokens[:32], len(tokens) + WARM)
        yield both
        warm.write(WARM, WARM)
        yield both
    for side in (both.ours, both.theirs):
        side.begin(tokens, len(tokens) + most)
        yield both
    turn = 0
    while not (both.ours.ended and both.theirs.ended):
        order = (both.ours, both.theirs) if turn % 2 else (both.theirs, both.ours)
        for side in order:
            side.write(CHUNK, most)
            yield both
        both.compare()
        turn += 1
    both.compare()
    yield both


def swap(
    prompt: str | None, weights: str, new: float, request: gr.Request, progress: gr.Progress = gr.Progress()
) -> Iterator[tuple[str, str, str]]:  # fmt: skip
    """Write with both implementations, always the likeliest token: both texts, and what they differ in."""
    blocks.announce(progress)
    speak, shown, both = partial(say, request), 0.0, None
    with turns.take(request.session_hash) as turn:
        for both in duel(prompt, weights, new):
            if turn.halted:
                break
            if time.perf_counter() - shown > 0.1:
                shown = time.perf_counter()
                yield *_texts(prompt, both, True), view.note(speak("Writing, each in its turn …"))
        if turn.replaced or both is None:
            yield silence(3)  # type: ignore[misc]
            return
        halted = turn.halted
    both.compare()
    if not (both.ours.steps and both.theirs.steps):
        why = speak("Stopped.") if halted else speak("The likeliest token ends the text at once; write another prompt.")
        yield *_texts(prompt, both, False), view.note(why)
        return
    speeds, prefill = (both.ours.speed, both.theirs.speed), (both.ours.prefill, both.theirs.prefill)
    table = view.swap(both.same, both.compared, both.gap, both.margin, speeds, prefill, speak)
    yield *_texts(prompt, both, False), (view.note(speak("Stopped.")) if halted else "") + table


def _texts(prompt: str | None, both: Duel, busy: bool) -> tuple[str, str]:
    ours, theirs = (view.writing(prompt or "", side.text, busy) for side in (both.ours, both.theirs))
    return ours, theirs


def halt(request: gr.Request) -> None:
    """End the visitor's run after the chunk that it is at."""
    turns.halt(request.session_hash)


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    gr.Markdown(
        label(
            "The same weights and the same prompt through the network rebuilt here and through the transformers "
            "library, always the likeliest token."
        )
    )
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox(
                examples.stories()[0], lines=3, max_lines=10, label=label("The text begins with"),
                elem_id="moe-swap-prompt",
            )  # fmt: skip
            examples.prompts(prompt)
        with gr.Column():
            new = gr.Slider(8, MOST, 64, step=8, label=label("New tokens"), elem_id="moe-swap-new")
            with gr.Row():
                button = gr.Button(label("Run both"), variant="primary", min_width=90, elem_id="moe-swap-run")
                stop = gr.Button(label("Stop"), min_width=90, elem_id="moe-swap-stop")
            result = gr.HTML(elem_id="moe-swap-result")
    with gr.Row():
        with gr.Column():
            gr.Markdown(label("### Rebuilt here"))
            ours = gr.HTML(elem_id="moe-swap-ours")
        with gr.Column():
            gr.Markdown(label("### Reference library"))
            theirs = gr.HTML(elem_id="moe-swap-theirs")
    button.click(
        guarded(swap), [prompt, switches.weights, new], [ours, theirs, result], api_name="moe_swap",
        show_progress_on=result, **TEXT,
    )  # fmt: skip
    stop.click(guarded(halt), None, None, api_visibility="private", show_progress="hidden", **blocks.LIGHT)
