"""Features of digits in the plane, on the circle and on the sphere, as SVG. No gradio, no torch: `say` translates."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

import numpy as np

from pipelines.ui import draw
from pipelines.ui.charts import INKS, Series, line_chart

from .margin_contract import Moment

Say = Callable[..., str]
HALF = 260  # of the square drawings, in their own units
DIGITS = (*INKS[:6], "#a855f7", "#7a5c00", "#84cc16", "#ef4444")
BARS = 90  # around the circle
ANGLES = [float(degrees) for degrees in range(0, 181, 2)]


def _svg(parts: Sequence[str], name: str, identity: str = "") -> str:
    return (
        f'<svg class="gh-square" {identity} viewBox="{-HALF} {-HALF} {2 * HALF} {2 * HALF}" role="img" '
        f'aria-label="{html.escape(name)}" style="width:100%;flex:1 1 280px;max-width:430px;height:auto" '
        f'font-size="19" text-anchor="middle">{"".join(parts)}</svg>'
    )


def _glyph(x: float, y: float, label: int, place: int, strange: bool, more: str = "") -> str:
    """A picture as its digit; those that took no part in the training are grey and underlined."""
    look = 'fill="#8f8f8f" text-decoration="underline"' if strange else f'fill="{DIGITS[label]}"'
    return f'<text x="{x:.0f}" y="{y:.0f}" data-n="{place}" {look} {more}>{label}</text>'


def _ring(x: float, y: float) -> str:
    """Marks the picture that was picked."""
    return f'<circle cx="{x:.0f}" cy="{y:.0f}" r="13" fill="none" stroke="currentColor" stroke-width="2.5"/>'


def reach(features: np.ndarray) -> float:
    """Half the side of a square about the origin that shows nearly all features, (N, 2)."""
    return float(np.quantile(np.abs(features).max(axis=1), 0.995)) * 1.08 + 1e-9


def plane(
    shown: Moment, land: tuple[np.ndarray, np.ndarray], picked: int, arrows: Sequence[np.ndarray], say: Say
) -> str:
    """The features as they are. land: of a square grid over `reach`, rows from the top: winner and whether it wins with
    its margin. arrows: steps against the gradient at the picked picture, the first with the margin."""
    side, classes = reach(shown.features), len(shown.weights)
    parts = [_ground(*land)]
    parts.append(f'<path d="M{-HALF} 0h{2 * HALF}M0 {-HALF}v{2 * HALF}" stroke="currentColor" opacity=".25"/>')
    places = np.clip(shown.features / side, -1, 1) * (HALF - 8) * (1, -1)
    parts += [
        _glyph(x, y + 5, int(label), n, label >= classes, 'font-size="15"')
        for n, ((x, y), label) in enumerate(zip(places, shown.labels, strict=True))
    ]
    x, y = places[picked]
    parts.append(_ring(x, y))
    parts += _arrows((x, y), arrows)
    return _svg(parts, say("Features of the test pictures in the plane"))


def _ground(winner: np.ndarray, sure: np.ndarray) -> str:
    """A picture of who wins where, pale where only without the margin."""
    inks = np.array([[int(ink[i : i + 2], 16) for i in (1, 3, 5)] for ink in DIGITS], np.uint8)
    image = np.dstack((inks[winner], np.where(sure, 90, 26).astype(np.uint8)))
    return (
        f'<image href="{_png(image)}" x="{-HALF}" y="{-HALF}" width="{2 * HALF}" height="{2 * HALF}" '
        'preserveAspectRatio="none"/>'
    )


def _png(image: np.ndarray) -> str:
    import base64
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image, "RGBA").save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _arrows(start: tuple[float, float], steps: Sequence[np.ndarray]) -> list[str]:
    """Their lengths compare with each other alone: the longest has a fixed length."""
    longest = max((float(np.linalg.norm(step)) for step in steps), default=0.0)
    parts = []
    for i, step in reversed(list(enumerate(steps))):
        length = float(np.linalg.norm(step))
        if longest <= 0 or length < 1e-6 * longest:
            continue
        dx, dy = step / longest * 110 * (1, -1)
        angle = math.degrees(math.atan2(dy, dx))
        end = start[0] + dx, start[1] + dy
        pattern = "" if i == 0 else "5 5"
        parts.append(
            f'<g stroke="currentColor" stroke-width="{4 - i}" fill="none"><line x1="{start[0]:.0f}" '
            f'y1="{start[1]:.0f}" x2="{end[0]:.0f}" y2="{end[1]:.0f}" stroke-dasharray="{pattern}"/>'
            f'<path d="M-10 -6L0 0L-10 6" '
            f'transform="translate({end[0]:.0f},{end[1]:.0f}) rotate({round(angle)})"/></g>'
        )
    return parts


def circle(shown: Moment, land: tuple[np.ndarray, np.ndarray], picked: int, say: Say) -> str:
    """Only the directions. land: of equal steps around the circle from the right, counter-clockwise: winner, and
    whether it wins with its margin. Bars outside count the pictures of each direction; a longer feature lies further
    out inside."""
    classes, inner, outer = len(shown.weights), 148.0, 162.0
    parts = [
        _arc(i, len(land[0]), inner, outer, DIGITS[winner], 1.0 if sure else 0.22)
        for i, (winner, sure) in enumerate(zip(*land, strict=True))
    ]
    angles = np.arctan2(shown.features[:, 1], shown.features[:, 0]) % (2 * math.pi)
    parts += _bars(angles, shown.labels, classes, outer + 3)
    rank = np.argsort(np.argsort(np.linalg.norm(shown.features, axis=1))) / len(angles)
    radius = 60 + (inner - 72) * rank
    x, y = radius * np.cos(angles), -radius * np.sin(angles)
    for n, label in enumerate(shown.labels.tolist()):
        look = "#8f8f8f" if label >= classes else DIGITS[label]
        parts.append(f'<circle cx="{x[n]:.0f}" cy="{y[n]:.0f}" r="3.2" data-n="{n}" fill="{look}"/>')
    parts.append(_ring(x[picked], y[picked]))
    for label, (u, v) in enumerate(shown.weights.tolist()):
        length = math.hypot(u, v) or 1.0
        u, v = u / length, -v / length
        parts.append(
            f'<line x1="0" y1="0" x2="{36 * u:.0f}" y2="{36 * v:.0f}" stroke="{DIGITS[label]}" stroke-width="3"/>'
            f'<text x="{48 * u:.0f}" y="{48 * v + 6:.0f}" fill="{DIGITS[label]}" font-weight="700">{label}</text>'
        )
    return _svg(parts, say("Directions of the features on the circle"))


def _arc(place: int, count: int, inner: float, outer: float, ink: str, opacity: float) -> str:
    first, last = 2 * math.pi * place / count, 2 * math.pi * (place + 1) / count + 0.002
    ends = [
        (r * math.cos(a), -r * math.sin(a)) for r, a in ((inner, first), (outer, first), (outer, last), (inner, last))
    ]
    return f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in ends)}z" fill="{ink}" opacity="{opacity}"/>'


def _bars(angles: np.ndarray, labels: np.ndarray, classes: int, foot: float) -> list[str]:
    """Stacked counts by direction; the fullest direction fills the room that there is."""
    place = np.minimum((angles / (2 * math.pi) * BARS).astype(int), BARS - 1)
    counts = np.zeros((BARS, 10), int)
    np.add.at(counts, (place, labels), 1)
    # The root keeps a direction with few pictures visible beside one with fifty.
    unit = (HALF - foot - 4) / math.sqrt(max(counts.sum(axis=1).max(), 1))
    parts = []
    for i in range(BARS):
        below = 0
        for label in range(10):
            if counts[i, label]:
                edge = foot + unit * math.sqrt(below), foot + unit * math.sqrt(below + counts[i, label])
                below += counts[i, label]
                parts.append(_arc(i, BARS, *edge, "#8f8f8f" if label >= classes else DIGITS[label], 0.85))
    return parts


def sphere(shown: Moment, picked: int, say: Say, turn: tuple[float, float] = (0.6, 0.4)) -> str:
    """Directions in three dimensions, seen from outside; `SPIN` turns it. turn: about the upright axis, and towards the
    visitor, in radians."""
    classes = len(shown.weights)
    unit = shown.features / np.linalg.norm(shown.features, axis=1, keepdims=True).clip(1e-9)
    parts = [f'<circle r="{HALF - 20}" fill="currentColor" fill-opacity=".05" stroke="currentColor" opacity=".5"/>']
    for n, (point, label) in enumerate(zip(unit, shown.labels.tolist(), strict=True)):
        parts.append(_placed(point, turn, _glyph(0, 0, label, n, label >= classes, 'font-size="15"')))
        if n == picked:
            parts.append(_placed(point, turn, _ring(0, -5)))
    for label, row in enumerate(shown.weights):
        sign = f'<circle r="11" fill="{DIGITS[label]}"/><text y="6" fill="#fff" font-weight="700">{label}</text>'
        parts.append(_placed(row / (np.linalg.norm(row) or 1.0), turn, sign))
    return _svg(parts, say("Directions of the features on the sphere"), 'data-sphere="1" tabindex="0"')


def _placed(point: np.ndarray, turn: tuple[float, float], drawing: str) -> str:
    """The same sums as SPIN's, so that a page without scripts shows the sphere too."""
    x, y, z = (float(v) for v in point)
    a, b = turn
    across, near = x * math.cos(a) + z * math.sin(a), -x * math.sin(a) + z * math.cos(a)
    up, near = y * math.cos(b) - near * math.sin(b), y * math.sin(b) + near * math.cos(b)
    size = HALF - 20
    return (
        f'<g data-p="{x:.3f},{y:.3f},{z:.3f}" transform="translate({across * size:.1f},{-up * size:.1f})" '
        f'opacity="{1 if near >= 0 else 0.2}">{drawing}</g>'
    )


SPIN = """
let a = 0.6, b = 0.4, held = null, moved = false;
function turn() {
  element.querySelectorAll('[data-p]').forEach(g => {
    const [x, y, z] = g.dataset.p.split(',').map(Number), size = 240;
    const across = x * Math.cos(a) + z * Math.sin(a), deep = -x * Math.sin(a) + z * Math.cos(a);
    const up = y * Math.cos(b) - deep * Math.sin(b), near = y * Math.sin(b) + deep * Math.cos(b);
    g.setAttribute('transform', `translate(${across * size},${-up * size})`);
    g.setAttribute('opacity', near >= 0 ? 1 : 0.2);
  });
}
new MutationObserver(turn).observe(element, {childList: true, subtree: true});
element.addEventListener('pointerdown', e => {
  if (e.target.closest('[data-sphere]')) { held = [e.clientX, e.clientY]; moved = false; }
});
window.addEventListener('pointerup', () => { held = null; });
element.addEventListener('pointermove', e => {
  if (!held) return;
  if (Math.hypot(e.clientX - held[0], e.clientY - held[1]) > 2) moved = true;
  a += (e.clientX - held[0]) / 150; b += (e.clientY - held[1]) / 150; held = [e.clientX, e.clientY]; turn();
});
element.addEventListener('keydown', e => {
  const way = {ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1]}[e.key];
  if (!way || !e.target.closest('[data-sphere]')) return;
  a += way[0]; b += way[1]; turn(); e.preventDefault();
});
element.addEventListener('click', e => {
  const sign = e.target.closest('[data-n]');
  if (sign && !moved) trigger('click', {picture: Number(sign.dataset.n)});
  moved = false;
});
"""


def curves(lines: Sequence[tuple[str, np.ndarray]], scale: float, say: Say) -> str:
    """The right class's logit over the angle. lines: a name and values at ANGLES before the scale, the chosen first."""
    drawn = [
        Series(
            name, ANGLES, (scale * values).tolist(), colour=INKS[(1, 2, 3, 4, 5)[i % 5]], dash="" if i == 0 else None
        )
        for i, (name, values) in enumerate(lines)
    ]
    wrong = scale * np.cos(np.deg2rad(ANGLES))
    drawn.append(Series(say("a wrong class"), ANGLES, wrong.tolist(), colour="#8f8f8f", dash="2 4"))
    return line_chart(
        drawn, say("angle between the feature and the class, degrees"), say("logit"), x_ticks=range(0, 181, 30),
        height=220, title=say("Logit of the right class over the angle"),
    )  # fmt: skip


def losses_by_scale(values: np.ndarray, scales: Sequence[float], sign: str, classes: int, say: Say) -> str:
    """The loss over the angle for several lengths, the chosen one first; the wrong classes are all at 90 degrees.
    values: the right class's at ANGLES, unscaled. sign: s, or the length of the feature where there is no s."""
    lines = []
    for i, scale in enumerate(dict.fromkeys(scales)):
        loss = np.logaddexp(0.0, math.log(classes - 1) - scale * values)
        colour, pattern = INKS[(1, 0, 2, 3, 4)[i % 5]], "" if i == 0 else None
        lines.append(Series(f"{sign} = {scale:g}", ANGLES, loss.tolist(), colour=colour, dash=pattern))
    return line_chart(
        lines, say("angle between the feature and the class, degrees"), say("loss, nats"), x_ticks=range(0, 181, 30),
        y_range=(0, 10), height=200, title=say("Loss over the angle for several scales"),
    )  # fmt: skip


def percent(value: float) -> str:
    """A share, or a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.1%}"


def digit(pixels: np.ndarray, say: Say) -> str:
    """(64,) float in [0, 1] -> the picture, ink on paper."""
    image = np.repeat(255 - np.round(pixels.reshape(8, 8, 1) * 255).astype(np.uint8), 3, axis=2)
    name = html.escape(say("the picture"))
    return (
        f'<img class="gh-chip" src="{draw.data_uri(image)}" width="72" height="72" alt="{name}" '
        'style="image-rendering:pixelated">'
    )
