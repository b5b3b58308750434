"""Caches of experts as curves and tables. No gradio, no torch: `say` translates."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.ui import draw

from .config import MoeConfig
from .contract import Simulation
from .memory import POLICIES, Machine, room_bytes, speed_of
from .view import Say, plain

# Colours that stay apart without red-green vision, and a dash for each besides.
INK = {"lru": "#0072b2", "lfu": "#d55e00", "ahead": "#009e73", "random": "#8f8f8f"}
DASH = {"lru": "", "lfu": "7 4", "ahead": "2 3", "random": "10 3 2 3"}
NAMES = {
    "lru": "least recently used goes",
    "lfu": "least frequently used goes",
    "ahead": "look-ahead: the bound",
    "random": "control: any one goes",
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 52, 14, 14, 42


def chart(sizes: Sequence[int], curves: Mapping[str, np.ndarray], slots: int, experts: int, say: Say) -> str:
    """Hit rate against the size of a layer's cache, one line a policy, the chosen size marked. As SVG in HTML."""
    low, high = sizes[0], max(sizes[-1], sizes[0] + 1)

    def x(size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (size - low) / (high - low)

    def y(rate: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate

    parts = []
    for rate in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(rate):.1f}" y2="{y(rate):.1f}" stroke="currentColor" '
            f'opacity=".15"/><text x="{LEFT - 6}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate:.0%}</text>'
        )
    step = -(-len(sizes) // 12)
    for size in sizes[::step]:
        parts.append(f'<text x="{x(size):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{size}</text>')
    axis = html.escape(say("experts of each layer kept in memory, of {experts}", experts=experts))
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{axis}</text>')
    parts.append(
        f'<line x1="{x(slots):.1f}" x2="{x(slots):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="currentColor" '
        f'opacity=".5" stroke-dasharray="3 3"/>'
    )
    for policy in reversed(POLICIES):
        rates = curves[policy]
        points = " ".join(f"{x(size):.1f},{y(rate):.1f}" for size, rate in zip(sizes, rates, strict=True))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{INK[policy]}" stroke-width="2.5" '
            f'stroke-dasharray="{DASH[policy]}"/>'
        )
        parts += [
            f'<circle cx="{x(size):.1f}" cy="{y(rate):.1f}" r="3" fill="{INK[policy]}">'
            f"<title>{html.escape(say(NAMES[policy]))}: {size}, {rate:.1%}</title></circle>"
            for size, rate in zip(sizes, rates, strict=True)
        ]
    name = html.escape(say("Hit rate against the size of the cache"))
    return (
        f'<svg class="gh-scale" style="max-width:{WIDTH}px" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{name}">{"".join(parts)}</svg>{_legend(say)}'
    )


def _legend(say: Say) -> str:
    items = []
    for policy in POLICIES:
        line = (
            f'<svg width="34" height="10" style="display:inline-block;vertical-align:middle">'
            f'<line x1="0" x2="34" y1="5" y2="5" stroke="{INK[policy]}" stroke-width="3" '
            f'stroke-dasharray="{DASH[policy]}"/></svg>'
        )
        items.append(f'<span style="white-space:nowrap">{line} {html.escape(say(NAMES[policy]))}</span>')
    return f'<div class="gh-keys">{"".join(items)}</div>'


def verdict(done: Mapping[str, Simulation], experts: int, say: Say) -> str:
    """One sentence on the chosen size. done: policy -> simulation."""
    text = say(
        "With {slots} of {experts} experts of each layer in memory, {lru} of the requests find theirs if the least "
        "recently used goes; no rule could reach more than {ahead}, and dropping any one reaches {random}.",
        slots=done["lru"].slots, experts=experts, lru=f"{done['lru'].hit_rate:.0%}",
        ahead=f"{done['ahead'].hit_rate:.0%}", random=f"{done['random'].hit_rate:.0%}",
    )  # fmt: skip
    return f'<p class="gh-verdict">{html.escape(text)}</p>'


@dataclass(frozen=True)
class Row:
    """A model in the table of speeds. rates: policy -> hit rate of this trace at its share of the experts."""

    title: str
    config: MoeConfig
    slots: int
    rates: Mapping[str, float]


def speeds(rows: Sequence[Row], machine: Machine, say: Say) -> str:
    """Memory and predicted tokens a second: all in memory, and under each policy. The first row is the traced model."""
    headers = [
        "", say("Kept, a layer"), say("Memory needed"), say("of all"), say("All in memory"),
        *(say(title) for title in ("Least recently used", "Least frequently used", "Look-ahead", "Any one")),
    ]  # fmt: skip
    cells = []
    for i, row in enumerate(rows):
        need, whole = (room_bytes(row.config, slots, machine.bits) for slots in (row.slots, row.config.experts))
        title = f"<b>{html.escape(row.title)}</b>" if i == 0 else html.escape(row.title)
        cells.append([
            title, f"{row.slots} / {row.config.experts}", _size(need), _size(whole),
            _rate(speed_of(row.config, 1.0, machine)),
            *(_rate(speed_of(row.config, row.rates[policy], machine)) for policy in POLICIES),
        ])  # fmt: skip
    note = say(
        "Tokens a second, predicted: a token's weights are read from memory at {memory} GB/s, and those of experts "
        "that are not there are first fetched from storage at {storage} GB/s, {bits} bits a weight. Sums, attention "
        "over long texts and fetching ahead are left out.",
        memory=f"{machine.memory:g}", storage=f"{machine.storage:g}", bits=f"{machine.bits:g}",
    )  # fmt: skip
    analogy = say(
        "Only the first row is a replay of its own routers. The others borrow its hit rates at about the same share of "
        "experts kept: an analogy, not a measurement, since their routers may have other habits."
    )
    return (
        f'<div class="gh-scroll">{draw.table(headers, cells)}</div>'
        f'<p class="gh-note">{html.escape(note)} {html.escape(analogy)}</p>'
    )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f}\u00a0GB" if count >= 1e9 else f"{count / 1e6:.0f}\u00a0MB"


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def fetched(done: Simulation, texts: Sequence[str], most: int, say: Say) -> str:
    """The text, each token the darker the more experts it had to wait for. most: experts that a token asks for."""
    parts = []
    for text, misses in zip(texts, done.misses.tolist(), strict=True):
        title = html.escape(say("{n} of {all} experts fetched", n=misses, all=most))
        parts.append(
            f'<span class="gh-shade" style="--s:{misses / most:.0%}" title="{title}">{plain(text) or "∅"}</span>'
        )
    note = say(
        "Where the waiting is, if the least recently used goes: the stronger the colour, the more of a token's "
        "{most} experts, over all layers, had to be fetched for it. The first tokens find an empty cache.", most=most,
    )  # fmt: skip
    return f'<p class="gh-note">{html.escape(note)}</p><div class="gh-text" dir="auto">{"".join(parts)}</div>'
