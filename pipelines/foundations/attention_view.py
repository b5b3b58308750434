"""What the Attention page shows: curves of seconds, bytes and errors, and a table of bits, as HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.ui.charts import Series, ink, line_chart

from .attention_config import KINDS
from .attention_measure import LENGTHS, LINEAR, Cost, Error, order_of_growth

Speak = Callable[..., str]


def growth(found: Sequence[Cost], chosen: Sequence[str], say: Speak) -> str:
    """Seconds and memory over the length, and the orders of growth."""
    times, peaks = [], []
    for place, kind in enumerate(KINDS):
        own = [each for each in found if each.kind == kind]
        if kind not in chosen:
            continue
        x = [each.length for each in own]
        times.append(Series(say(KINDS[kind]), x, [1e3 * each.seconds for each in own], True, True, ink(place), ""))
        peaks.append(Series(say(KINDS[kind]), x, [each.peak / 1e6 for each in own], True, True, ink(place), ""))
    ticks = [each for each in LENGTHS if not found or each <= max(each.length for each in found)]
    ticks = ticks if len(ticks) < 5 else ticks[::2]
    common = {"log_x": True, "log_y": True, "x_ticks": ticks}
    return (
        '<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:0 1.5rem">'
        + line_chart(times, say("Tokens"), say("Milliseconds of one core"), **common)  # type: ignore[arg-type]
        + line_chart(peaks, say("Tokens"), say("Memory in use at most, MB"), **common)  # type: ignore[arg-type]
        + "</div>"
        + orders(found, chosen, say)
    )


def orders(found: Sequence[Cost], chosen: Sequence[str], say: Speak) -> str:
    """The exponents of time and memory over length, fitted through the four longest."""
    heads = (
        say("Attention"),
        say("Time grows as T to the power of"),
        say("Memory as T to the power of"),
        say("Longest"),
    )
    lines = []
    for kind in (each for each in KINDS if each in chosen):
        own = [each for each in found if each.kind == kind]
        if len(own) < 3:
            continue
        x = [each.length for each in own]
        powers = [order_of_growth(x, values) for values in ([o.seconds for o in own], [o.peak for o in own])]
        name = html.escape(say(KINDS[kind]))
        cells = [f"<b>{name}</b>" if kind in LINEAR else name, *(f"{power:.2f}" for power in powers), f"{x[-1]:,}"]
        lines.append(f'<tr data-kind="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return _table(heads, lines)


def _table(heads: Sequence[str], lines: Sequence[str]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    return (
        f'<div class="gh-scroll"><table class="gh-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def error(found: Sequence[Error], say: Speak) -> str:
    """The error of the linear kinds over the sharpness, beside the mean that looks at nothing."""
    x = [each.sharpness for each in found]
    names = {"elu": say(KINDS["elu"]), "normalised": say(KINDS["normalised"]), "mean": say("Mean of all values seen")}
    inks = {kind: ink(place) for place, kind in enumerate(KINDS)} | {"mean": "#8f8f8f"}
    series = [
        Series(name, x, [each.shares[key] for each in found], marks=key != "mean", colour=inks[key],
               dash="7 4" if key == "mean" else "")
        for key, name in names.items()
    ]  # fmt: skip
    return line_chart(
        series, say("Sharpness: standard deviation of q·k / √D"), say("Error as a share of softmax attention"),
        log_x=True, y_range=(0.0, max(1.0, *(max(each.shares.values()) for each in found))),
    )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """One small language model. bits: a byte, of the stories kept out; parameters: how many."""

    bits: float | None
    parameters: int | None = None


def bits(trained: dict[str, Trained], text: dict[str, float], say: Speak) -> str:
    """Bits per byte of the stories kept out, and of the visitor's text; the least of a column in bold."""
    heads = (
        say("Attention"), say("Stories kept out, bits per byte"), say("Your text, bits per byte"), say("Parameters"),
    )  # fmt: skip
    kinds = [each for each in KINDS if each in trained]
    columns = [{kind: trained[kind].bits for kind in kinds}, {kind: text.get(kind) for kind in kinds}]
    least = [min((value for value in each.values() if value is not None), default=None) for each in columns]
    lines = []
    for kind in kinds:
        cells = [html.escape(say(KINDS[kind]))]
        for column, best in zip(columns, least, strict=True):
            value = column[kind]
            told = "–" if value is None else f"{value:.3f}"
            cells.append(f"<b>{told}</b>" if value is not None and value == best and len(kinds) > 1 else told)
        size = trained[kind].parameters
        cells.append("–" if size is None else f"{size:,}")
        lines.append(f'<tr data-kind="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return _table(heads, lines)
