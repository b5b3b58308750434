"""Memory: the visitor's trace replayed over caches of experts, and what that would mean in tokens a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common import catalogue
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import memory_view as view
from . import traces_page as traces
from .config import PRESETS, MoeConfig
from .memory import POLICIES, Machine, curves, simulate

QUICK: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "trigger_mode": "always_last"}
BITS = ("32", "16", "8", "4")
PUBLISHED = ("mixtral-8x7b", "olmoe-1b-7b", "granite-3.1-1b-a400m")


def replay(
    text: str, weights: str, slots: float, memory: float, storage: float, bits: str, request: gr.Request,
    progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Read a text and replay its routing over caches of every size: hit rates of four policies, and predicted tokens a
    second. slots: experts kept of each layer; memory, storage: GB a second; bits: of a weight."""
    machine = _machine(memory, storage, bits)
    for run in traces.take(text, weights, request, progress):
        if run is None:
            yield tuple(gr.skip() for _ in range(6))
            continue
        run = replace(run, curves=curves(run.trace.experts, run.config.experts))
        ticket = traces.shelf().put(run, run.nbytes)
        kept = _within(slots, run.config)
        picker = gr.update(minimum=run.config.active, maximum=run.config.experts, value=kept)
        yield ticket, picker, *_shown(run, kept, machine, request)


def replay_new(
    last: tuple[Any, ...] | None, text: str, weights: str, slots: float, memory: float, storage: float, bits: str,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """`replay` with no button pressed: when the page is opened, once for each text."""
    if not text or last == (text, weights):
        yield tuple(gr.skip() for _ in range(7))
        return
    for shown in replay(text, weights, slots, memory, storage, bits, request, progress):
        yield (text, weights), *shown


def look(
    ticket: str | None, slots: float, memory: float, storage: float, bits: str, request: gr.Request
) -> tuple[Any, ...]:  # fmt: skip
    """Another cache or another machine for the same trace."""
    if ticket is None:
        return tuple(gr.skip() for _ in range(4))
    run = traces.kept(ticket)
    return _shown(run, _within(slots, run.config), _machine(memory, storage, bits), request)


def _within(slots: float, config: MoeConfig) -> int:
    return min(max(int(slots or 0), config.active), config.experts)


def _machine(memory: float | None, storage: float | None, bits: str) -> Machine:
    """UserError: a bandwidth that no machine has."""
    return Machine(float(memory or 0), float(storage or 0), float(bits) if bits in BITS else 0.0)


def _shown(run: traces.Run, slots: int, machine: Machine, request: gr.Request) -> tuple[str, ...]:
    speak, config, experts = partial(say, request), run.config, run.trace.experts
    assert run.curves is not None
    sizes, found = run.curves
    done = {policy: simulate(experts, config, slots, policy, machine) for policy in POLICIES}
    titles = {one.id: one.title for one in catalogue.entries("moe", "decoder")}
    rows = [view.Row(titles.get(run.weights, run.weights), config, slots, _rates(sizes, found, slots))]
    for name in PUBLISHED:
        if name == run.weights:
            continue
        other = PRESETS[name]
        kept = min(max(round(slots / config.experts * other.experts), other.active), other.experts)
        share = kept / other.experts * config.experts
        rows.append(view.Row(titles.get(name, name), other, kept, _rates(sizes, found, share)))
    return (
        view.verdict(done, config.experts, speak),
        view.chart(sizes, found, slots, config.experts, speak),
        view.speeds(rows, machine, speak),
        view.fetched(done["lru"], run.texts, experts.shape[0] * experts.shape[2], speak),
    )


def _rates(sizes: list[int], found: dict[str, np.ndarray], slots: float) -> dict[str, float]:
    """Each policy's hit rate at a size, between two sizes in proportion; a smaller cache than the smallest has its."""
    return {policy: float(np.interp(slots, sizes, rates)) for policy, rates in found.items()}


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    config, usual = traces.meant("auto"), Machine()
    gr.Markdown(
        label(
            "A token needs few experts, but the next one may need others: must all be in memory? Your text's routing "
            "is replayed over caches that hold only some experts of each layer and fetch the others when needed."
        )
    )
    ticket, last = gr.State(None, delete_callback=lambda t: traces.shelf().drop(t)), gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            text = traces.text_box("moe-memory-text", 6)
            with gr.Row():
                button = gr.Button(label("Replay its routing"), variant="primary", scale=3, elem_id="moe-memory-run")
                stop = gr.Button(label("Stop"), scale=1, min_width=80, elem_id="moe-memory-stop")
            slots = gr.Slider(
                config.active, config.experts, max(config.active, config.experts // 2), step=1,
                label=label("Experts of each layer kept in memory"), elem_id="moe-memory-slots",
            )  # fmt: skip
            blocks.any_value(slots)
            with gr.Row():
                memory = gr.Number(
                    usual.memory, label=label("Memory, GB a second"), min_width=140, elem_id="moe-memory-memory"
                )
                storage = gr.Number(
                    usual.storage, label=label("Storage, GB a second"), min_width=140, elem_id="moe-memory-storage"
                )
            bits = gr.Radio(
                [(count, count) for count in BITS], value="16", label=label("Bits of a weight"),
                elem_id="moe-memory-bits",
            )  # fmt: skip
        with gr.Column(scale=3, min_width=420):
            verdict = gr.HTML(elem_id="moe-memory-verdict")
            chart = gr.HTML(elem_id="moe-memory-chart")
    gr.Markdown(label("### What that would mean in tokens a second"))
    table = gr.HTML(elem_id="moe-memory-speeds")
    gr.Markdown(label("### Where the waiting is"))
    fetched = gr.HTML(elem_id="moe-memory-fetched")
    settings, seen = [slots, memory, storage, bits], [verdict, chart, table, fetched]
    inputs, outputs = [text, switches.weights, *settings], [ticket, slots, *seen]
    button.click(guarded(replay), inputs, outputs, api_name="moe_memory", **blocks.HEAVY)
    first = tab.select(guarded(replay_new), [last, *inputs], [last, *outputs], **QUICK, **blocks.HEAVY)
    switches.refresh(first)
    stop.click(guarded(traces.halt), None, None, api_visibility="private", show_progress="hidden", **blocks.LIGHT)
    gr.on(
        [slots.input, memory.submit, memory.blur, storage.submit, storage.blur, bits.input], guarded(look),
        [ticket, *settings], seen, **QUICK, **blocks.LIGHT,
    )  # fmt: skip
