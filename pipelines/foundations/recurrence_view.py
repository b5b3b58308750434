"""What the Recurrence page shows of the networks that were trained beforehand: curves and a table, as HTML."""

from __future__ import annotations

import html
from collections.abc import Callable

from pipelines.ui.charts import Series, ink, line_chart

from .recurrence_curves import KINDS, Curves, Point
from .tasks import VALUES

Speak = Callable[..., str]
NAMES = {
    "rnn": "RNN", "lstm": "LSTM", "gru": "GRU", "transformer": "Transformer", "encdec": "Encoder-decoder",
}  # fmt: skip


def beforehand(found: Curves | None, speak: Speak) -> str:
    """Accuracy over the length, the gradient over the distance at the greatest length, and a row a network."""
    if found is None:
        return f'<div class="gh-note">{html.escape(speak("The trained networks are not on this machine."))}</div>'
    longest = max(one.length for one in found.points)
    own = {kind: sorted((one for one in found.points if one.kind == kind), key=lambda one: one.length)
           for kind in KINDS}  # fmt: skip
    right = [
        Series(NAMES[kind], [one.length for one in each], [one.accuracy for one in each], True, True, ink(place), "")
        for place, (kind, each) in enumerate(own.items()) if each
    ]  # fmt: skip
    heard = [
        Series(NAMES[one.kind], range(len(one.distance)), one.distance, False, True, ink(KINDS.index(one.kind)), "")
        for one in found.points if one.length == longest
    ]  # fmt: skip
    lengths = sorted({one.length for one in found.points})
    charts = (
        line_chart(right, speak("Length of the task"), speak("Right symbols, in fresh examples"), log_x=True,
                   x_ticks=lengths, y_range=(0.0, 1.0), at_y=[(1 / VALUES, speak("a guess"))]),
        line_chart(heard, speak("Steps before the answer's last symbol, at length {length}", length=longest),
                   speak("Norm of the gradient"), log_y=True),
    )  # fmt: skip
    size = round(max(one.size for one in found.points), -3)
    note = speak(
        "Each point is one network of at most {size} parameters, trained for {steps} steps of {batch} examples from "
        "one seed: no average, so that single points may be luck.",
        size=f"{size:,}", steps=found.steps, batch=found.batch,
    )  # fmt: skip
    grid = "display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:0 1.5rem"
    return (
        f'<div style="{grid}">{"".join(charts)}</div>{_table(own, lengths, speak)}'
        f'<div class="gh-note">{html.escape(note)}</div>'
    )


def _table(own: dict[str, list[Point]], lengths: list[int], speak: Speak) -> str:
    heads = (
        speak("Network"), speak("Parameters"), *(speak("Right at {length}", length=each) for each in lengths),
        speak("Steps one after another"), speak("Seconds of one core"),
    )  # fmt: skip
    lines = []
    for kind, points in own.items():
        if not points:
            continue
        right = {one.length: f"{one.accuracy:.0%}" for one in points}
        waits = (
            " / ".join(str(one.waits) for one in points)
            if points[0].waits != points[-1].waits
            else str(points[0].waits)
        )
        cells = (
            NAMES[kind], f"{points[0].size:,}", *(right.get(each, "–") for each in lengths), waits,
            f"{sum(one.seconds for one in points):.0f}",
        )  # fmt: skip
        lines.append(f'<tr data-kind="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    return (
        f'<div class="gh-scroll"><table class="gh-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
