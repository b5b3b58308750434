"""The widgets that say how tokens are drawn, and the request that they make."""

from __future__ import annotations

from typing import Any, cast

import gradio as gr

from pipelines.ui.i18n import label

from .contract import Backend, TextRequest


def asked(
    backend: Backend, weights: str, new: float | None, temperature: float, top_k: float | None, top_p: float,
    min_p: float, penalty: float, stop: str | None, seed: float | None,
) -> TextRequest:  # fmt: skip
    """A request without its text, from the widgets."""
    stops = tuple(line.replace("\\n", "\n") for line in (stop or "").split("\n") if line)
    return TextRequest(
        weights=weights, backend=backend, max_new_tokens=_number(new), temperature=temperature, top_k=_number(top_k),
        top_p=top_p, min_p=min_p, repetition_penalty=penalty, stop=stops, seed=_number(seed),
        trace=backend == "local",
    )  # fmt: skip


def _number(value: float | None) -> int:
    """A number field: an empty one is 0, and what is not whole is left for the check to refuse."""
    value = 0 if value is None else value
    return int(value) if value == value and abs(value) < 2**63 and int(value) == value else cast(int, value)


def sampling() -> list[Any]:
    """New tokens, temperature, top-k, top-p, min-p, repetition penalty, stop strings and seed."""
    usual = TextRequest()
    with gr.Row():
        new = gr.Number(200, precision=0, label=label("New tokens"), min_width=100, elem_id="moe-write-new")
        seed = gr.Number(usual.seed, precision=0, label=label("Seed"), min_width=100, elem_id="moe-write-seed")
    temperature = gr.Slider(
        0, 3, usual.temperature, step=0.05, label=label("Temperature, 0: the likeliest"),
        elem_id="moe-write-temperature",
    )  # fmt: skip
    return [new, temperature, *_sieves(usual), seed]


def _sieves(usual: TextRequest) -> list[Any]:
    with gr.Accordion(label("Which tokens may come at all"), open=False):
        top_p = gr.Slider(
            0, 1, usual.top_p, step=0.01, label=label("Top-p: the likeliest that together reach this probability"),
            elem_id="moe-write-top-p",
        )  # fmt: skip
        top_k = gr.Number(
            usual.top_k, precision=0, label=label("Top-k: so many of the likeliest, 0 for all"),
            elem_id="moe-write-top-k",
        )  # fmt: skip
        min_p = gr.Slider(
            0, 1, usual.min_p, step=0.01, label=label("Min-p: at least this times the likeliest"),
            elem_id="moe-write-min-p",
        )  # fmt: skip
        penalty = gr.Slider(
            0.5, 2, usual.repetition_penalty, step=0.05, label=label("Repetition penalty: 1 for none"),
            elem_id="moe-write-penalty",
        )  # fmt: skip
        stop = gr.Textbox(
            "", lines=2, max_lines=4, label=label("Stop strings, one a line; \\n is a line break"),
            elem_id="moe-write-stop-strings",
        )  # fmt: skip
    return [top_k, top_p, min_p, penalty, stop]
