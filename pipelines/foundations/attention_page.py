"""Attention: what each kind costs as the text grows, what the cheap ones lose, and what that means in bits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.turns import Turns

from . import attention_pipeline as models
from . import attention_view as view
from .attention_config import KINDS
from .attention_measure import LENGTHS, Cost, costs, errors
from .config import LIVE

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
SHARPNESS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
FIRST = 1024  # the longest when the page is opened
TEXT = "Once upon a time there was a little fox who could not sleep. The moon was too bright, and the owl was too loud."

turns = Turns()


def measure(
    kinds: list[str], longest: float, causal: bool, request: gr.Request, progress: gr.Progress = gr.Progress()
) -> Iterator[str]:
    """Time and memory of each kind of attention, from 128 tokens to the longest, as they are measured."""
    blocks.announce(progress)
    if not kinds or not set(kinds) <= set(KINDS):
        raise UserError("Choose at least one kind of attention in the list.")
    if longest is None or not LENGTHS[0] <= longest <= LENGTHS[-1]:
        raise UserError(f"The longest text must have between {LENGTHS[0]} and {LENGTHS[-1]:,} tokens.")
    kinds = [each for each in KINDS if each in kinds]
    found: list[Cost] = []
    speak = partial(say, request)
    with turns.take(request.session_hash) as turn:
        for one in costs(kinds, int(longest), bool(causal), lambda: turn.halted):
            found.append(one)
            if not turn.replaced:
                yield view.growth(found, kinds, speak)


def score(text: str, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Iterator[str]:
    """Bits per byte of a text under each small language model."""
    blocks.announce(progress)
    yield from _scored(text, request)


def _scored(text: str, request: gr.Request) -> Iterator[str]:
    speak, here = partial(say, request), models.present()
    if not here:
        note = view.html.escape(speak("The trained models are not on this machine."))
        yield f'<div class="gh-note">{note}</div>'
        return
    trained = {
        kind: view.Trained(*(entry.facts.get(name) for name in ("bits", "parameters"))) for kind, entry in here.items()
    }
    found: dict[str, float] = {}
    for kind, value in models.bits(text):
        found[kind] = value
        yield view.bits(trained, found, speak)


def first(
    seen: bool, kinds: list[str], causal: bool, text: str, request: gr.Request
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """All three with their defaults when the page is opened for the first time."""
    same = gr.skip()
    if seen:
        yield same, same, same, same
        return
    yield True, same, view.error(errors(SHARPNESS), partial(say, request)), same
    for shown in measure(kinds, FIRST, causal, request, None):  # type: ignore[arg-type]
        yield True, shown, same, same
    for table in _scored(text, request):
        yield True, same, same, table


def halt(request: gr.Request) -> None:
    """Stop was pressed."""
    turns.halt(request.session_hash)


def clear(request: gr.Request) -> None:
    """Make way for what is asked for next: work for what is on the page now would stand before it in the queue."""
    turns.halt(request.session_hash, clear=True)


def build(page: gr.Blocks, tab: gr.Tab) -> None:
    gr.Markdown(
        label(
            "Softmax attention compares each token with each: twice the text, four times the work. Measure up to "
            "16,384 tokens and read the exponents: about 2 for softmax and the gated unit, about 1 for the linear "
            "kinds and FLASH. (Vaswani et al. 2017; Shen et al. 2018; Katharopoulos et al. 2020; Hua et al. 2022.)"
        )
    )
    seen = gr.State(False)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            kinds = gr.CheckboxGroup(
                [(label(title), kind) for kind, title in KINDS.items()], value=list(KINDS), label=label("Attention"),
                elem_id="foundations-attention-kinds",
            )  # fmt: skip
            longest = gr.Dropdown(
                [(f"{length:,}", length) for length in LENGTHS], value=4096, label=label("Longest text, tokens"),
                elem_id="foundations-attention-longest",
            )  # fmt: skip
            causal = gr.Checkbox(
                True, label=label("Causal: no token hears those to come"), elem_id="foundations-attention-causal"
            )
            with gr.Row():
                run = gr.Button(
                    label("Measure"), variant="primary", scale=2, min_width=90, elem_id="foundations-attention-run"
                )
                stop = gr.Button(label("Stop"), min_width=80, elem_id="foundations-attention-stop")
        with gr.Column(scale=3, min_width=320):
            growth = gr.HTML(elem_id="foundations-attention-growth")
    gr.Markdown(
        label(
            "### What the cheap ones lose\nRandom queries and keys, made sharper from left to right. The grey rule to "
            "beat is the mean of all values, which looks at nothing: where a line lies near it, the attention does too."
        )
    )
    error = gr.HTML(elem_id="foundations-attention-error")
    gr.Markdown(
        label(
            "### What that means in bits\nSmall models that differ in their attention only, trained on the same "
            "stories, on no more than 1.6 million bytes: none is near what it could reach, and the order may change "
            "with more."
        )
    )
    text = gr.Textbox(TEXT, lines=3, max_lines=8, label=label("Text"), elem_id="foundations-attention-text")
    judge = gr.Button(label("Measure on this text"), elem_id="foundations-attention-judge")
    bits = gr.HTML(elem_id="foundations-attention-bits")
    begun = run.click(guarded(clear), None, None, **QUIET, **blocks.LIGHT)
    # Multiple: the page may not have heard yet that the run before has ended, and would drop the click.
    begun.then(
        guarded(measure), [kinds, longest, causal], growth, api_name="foundations_attention_costs",
        trigger_mode="multiple", **LIVE,
    )  # fmt: skip
    judge.click(guarded(score), text, bits, api_name="foundations_attention_bits", **LIVE)
    stop.click(guarded(halt), None, None, **QUIET, **blocks.LIGHT)
    tab.select(
        guarded(first), [seen, kinds, causal, text], [seen, growth, error, bits], trigger_mode="once", **QUIET,
        **LIVE,
    )  # fmt: skip
