"""What the Pixels page shows: the board to draw on, completions, and nats, as HTML."""

from __future__ import annotations

import html
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.ui import draw

from .pixels import SIDE

Speak = Callable[..., str]

# A stroke is drawn in the browser and told when it ends. Space turns the pixel under the cursor, arrows move it.
BOARD_SCRIPT = f"""
const size = {SIDE}, brush = 1.25;
let bits = null, ink = '1', last = null, cursor = [14, 14];
const svg = () => element.querySelector('svg');
const read = () => {{ bits = [...svg().dataset.bits]; }};
function show() {{
  svg().dataset.bits = bits.join('');
  svg().querySelector('.gh-ink').setAttribute('d', bits.map((b, i) =>
    b === '1' ? `M${{i % size}} ${{Math.floor(i / size)}}h1v1h-1z` : '').join(''));
}}
function dot(x, y) {{
  for (let row = 0; row < size; row++) for (let column = 0; column < size; column++)
    if (Math.hypot(column + .5 - x, row + .5 - y) < brush) bits[row * size + column] = ink;
}}
function place(event) {{
  const box = svg().getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * size, (event.clientY - box.top) / box.height * size];
}}
element.addEventListener('pointerdown', event => {{
  if (!event.target.closest('svg')) return;
  read();
  [last, ink] = [place(event), event.button === 2 || event.shiftKey ? '0' : '1'];
  dot(...last);
  show();
  svg().setPointerCapture(event.pointerId);
  event.preventDefault();
  svg().focus();
}});
element.addEventListener('pointermove', event => {{
  if (!last) return;
  const next = place(event), steps = Math.ceil(Math.hypot(next[0] - last[0], next[1] - last[1]) * 3) || 1;
  for (let k = 1; k <= steps; k++)
    dot(last[0] + (next[0] - last[0]) * k / steps, last[1] + (next[1] - last[1]) * k / steps);
  last = next;
  show();
}});
function end() {{
  if (!last) return;
  last = null;
  trigger('click', {{bits: svg().dataset.bits}});
}}
element.addEventListener('pointerup', end);
element.addEventListener('pointercancel', end);
element.addEventListener('contextmenu', event => {{ if (event.target.closest('svg')) event.preventDefault(); }});
element.addEventListener('keydown', event => {{
  if (!event.target.closest('svg')) return;
  const step = {{ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}}[event.key];
  if (step) cursor = cursor.map((value, k) => Math.min(Math.max(value + step[k], 0), size - 1));
  else if (event.key === ' ' || event.key === 'Enter') {{
    read();
    const at = cursor[1] * size + cursor[0];
    bits[at] = bits[at] === '1' ? '0' : '1';
    show();
    trigger('click', {{bits: svg().dataset.bits}});
  }} else return;
  const mark = svg().querySelector('.gh-cursor');
  mark.setAttribute('x', cursor[0]);
  mark.setAttribute('y', cursor[1]);
  mark.setAttribute('visibility', 'visible');
  event.preventDefault();
}});
"""


@dataclass(frozen=True)
class Drawn:
    """One model's completions. pictures (N, 28, 28) bool; reached (28, 28) bool: drawn by now. note: what to know."""

    title: str
    pictures: np.ndarray
    reached: np.ndarray
    note: str = ""


@dataclass(frozen=True)
class Judged:
    """One model's nats: of the drawing, of its control, and the mean over the test set (None: not measured)."""

    title: str
    nats: float
    control: float
    test: float | None
    paper: float | None
    chosen: bool = False


def board(bits: str, label: str) -> str:
    """Where one draws. bits: 784 characters. The page shows equal HTML only once, so each board differs."""
    path = "".join(f"M{i % SIDE} {i // SIDE}h1v1h-1z" for i, bit in enumerate(bits) if bit == "1")
    style = (
        "width:100%;max-width:336px;touch-action:none;cursor:crosshair;background:#000;border-radius:6px;display:block"
    )
    return (
        f'<svg viewBox="0 0 {SIDE} {SIDE}" data-bits="{bits}" data-turn="{secrets.token_hex(4)}" tabindex="0" '
        f'role="application" aria-label="{html.escape(label)}" style="{style}" shape-rendering="crispEdges">'
        f'<path class="gh-ink" d="{path}" fill="#fff"/><rect class="gh-cursor" visibility="hidden" width="1" '
        'height="1" fill="none" stroke="#f59e0b" stroke-width=".25"/></svg>'
    )


def picture(values: np.ndarray, known: np.ndarray, reached: np.ndarray | None = None) -> np.ndarray:
    """(28, 28, 3) uint8: kept pixels grey-blue and white, drawn ones orange on black, those to come dark grey."""
    shown = np.zeros((*values.shape, 3), np.uint8)
    shown[values & ~known] = (253, 186, 80)
    shown[known] = (30, 41, 75)
    shown[values & known] = (255, 255, 255)
    if reached is not None:
        shown[~reached & ~known] = (70, 70, 70)
    return shown


def _image(pixels: np.ndarray, text: str, width: int) -> str:
    """Made larger here: in its own size, compression would blur it."""
    source, size = draw.data_uri(pixels.repeat(8, 0).repeat(8, 1)), f'width="{width}" height="{width}"'
    return (
        f'<img src="{source}" alt="{html.escape(text)}" {size} '
        'style="image-rendering:pixelated;border-radius:4px;display:block">'
    )


def completions(rows: Sequence[Drawn], known: np.ndarray, waiting: Sequence[str] = ()) -> str:
    """A row of pictures a model. waiting: titles of those still to come."""
    parts = []
    for row in rows:
        images = "".join(
            _image(picture(one, known, row.reached), f"{row.title} {i + 1}", 74) for i, one in enumerate(row.pictures)
        )
        note = f'<div class="gh-note">{html.escape(row.note)}</div>' if row.note else ""
        parts.append(
            f'<section data-model style="margin:0 0 .7rem"><b>{html.escape(row.title)}</b>{note}'
            f'<div style="display:flex;flex-wrap:wrap;gap:6px;margin-top:.2rem">{images}</div></section>'
        )
    parts += [f'<section class="gh-note">{html.escape(title)} …</section>' for title in waiting]
    return "".join(parts)


def heat(nats: np.ndarray, bits: np.ndarray, title: str, say: Speak) -> str:
    """What each pixel costs, brightest at 3 nats (a chance of 1 in 20) and above, and the dearest in words."""
    shown = draw.heat(np.minimum(nats / 3.0, 1.0))
    row, column = np.unravel_index(int(nats.argmax()), nats.shape)
    worst = say(
        "The dearest pixel: row {row}, column {column}, {nats} nats, so {value} came with a chance of {chance}.",
        row=row + 1, column=column + 1, nats=f"{nats.max():.1f}", chance=f"{np.exp(-nats.max()):.2%}",
        value=say("white") if bits[row, column] else say("black"),
    )  # fmt: skip
    total = say("{title}: {nats} nats for the whole drawing, {bits} bits for each of 784 pixels.",
                title=title, nats=f"{nats.sum():.1f}", bits=f"{nats.sum() / np.log(2) / nats.size:.3f}")  # fmt: skip
    return (
        f'<div class="gh-verdict">{html.escape(total)}</div>{_image(shown, total, 280)}'
        f'<div class="gh-note">{html.escape(worst)}</div>'
    )


def table(rows: Sequence[Judged], say: Speak) -> str:
    """Nats under every model, beside the control and the test set's mean."""
    heads = (say("Model"), say("Your drawing"), say("Same pixels, scattered"), say("Test set, mean"), say("Paper"))
    lines = []
    for row in rows:
        name = f"<b>{html.escape(row.title)}</b>" if row.chosen else html.escape(row.title)
        rest = ["–" if value is None else f"{value:.1f}" for value in (row.nats, row.control, row.test, row.paper)]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in (name, *rest)) + "</tr>")
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    return (
        f'<div class="gh-scroll"><table class="gh-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
