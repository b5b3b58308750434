"""Line charts as HTML: numbers in, a string out. Lines stretch with the page and text does not, so that a chart can be
read on a phone; both themes lend it their colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Colours that stay apart without red-green vision (Okabe and Ito 2008), and a dash for each besides.
INKS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f8f8f", "#7a5c00")
DASHES = ("", "7 4", "2 3", "10 3 2 3", "12 4", "4 4", "1 4", "14 3 4 3")
SPAN, EDGE = 1000.0, 15.0  # the side of the drawing in its own units, and its margin: a line on the border shows whole
MOST = 800  # points drawn of one line
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclass(frozen=True)
class Series:
    """One line. x, y: as many numbers each; the line breaks where one can't be drawn (not finite, or not above zero on
    a logarithmic axis). name: plain text for the legend, "" for none. marks: a dot at each point, which tells its
    numbers. line: False leaves the dots alone. colour, dash: of CSS and SVG; by the line's place if None."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marks: bool = False
    line: bool = True
    colour: str | None = None
    dash: str | None = None


def ink(index: int) -> str:
    """The colour of the index-th line; they repeat."""
    return INKS[index % len(INKS)]


def dash(index: int) -> str:
    """The dash of the index-th line, as SVG's stroke-dasharray; "" is a whole line."""
    return DASHES[index % len(DASHES)]


@dataclass(frozen=True)
class Axis:
    """Numbers to places in the drawing. low, high: of what is shown, low < high, above zero if logarithmic."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """How far along the axis: 0 at the low end, 1 at the high end, NaN for what it can't show."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return math.nan
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers within the axis, seven at most."""
        if self.log:
            return _log_ticks(self.low, self.high)
        step = _step((self.high - self.low) / 5)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [count * step for count in range(first, last + 1)]


def _step(rough: float) -> float:
    """The next 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    powers = list(range(first, last + 1))
    if len(powers) >= 3:
        return [10.0**power for power in powers[:: -(-len(powers) // 7)]]
    fine = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
    found = [tick for tick in fine if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return found if len(found) >= 2 else [low, high]


def number(value: float) -> str:
    """A tick as text: 0.25, 3000, 16384, 20k, 2M, 10⁻⁶."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e9:
        power = math.floor(math.log10(size) + 1e-9)
        factor = f"{value / 10.0**power:.3g}"
        exponent = str(power).translate(_SUPERSCRIPTS)
        lead = {"1": "", "-1": "−"}.get(factor, f"{factor}·".replace("-", "−"))
        return f"{lead}10{exponent}"
    for least, unit, sign in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= least and abs(round(value / unit, 2) - value / unit) < 1e-9:
            return f"{value / unit:.5g}{sign}".replace("-", "−")
    return (f"{value:.0f}" if size >= 1e4 else f"{value:.4g}").replace("-", "−")


def axis_of(values: Sequence[float], log: bool = False, given: tuple[float, float] | None = None) -> Axis:
    """An axis that shows all the values that it can, or the given range. With nothing to show it is a plain one."""
    if given is not None:
        low, high = given
    else:
        seen = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        low, high = (min(seen), max(seen)) if seen else (1.0, 10.0) if log else (0.0, 1.0)
    if log and high / low < 1.0001:
        low, high = low / 2, high * 2
    elif not log and high - low <= 1e-9 * max(abs(low), abs(high), 1e-30):
        room = abs(low) / 2 or 0.5
        low, high = low - room, high + room
    return Axis(low, high, log)


def line_chart(
    series: Sequence[Series], x_label: str, y_label: str, log_x: bool = False, log_y: bool = False, *,
    title: str = "", x_range: tuple[float, float] | None = None, y_range: tuple[float, float] | None = None,
    x_ticks: Sequence[float] | None = None, y_ticks: Sequence[float] | None = None,
    at_x: Sequence[tuple[float, str]] = (), at_y: Sequence[tuple[float, str]] = (), height: int = 240,
    legend: bool = True,
) -> str:  # fmt: skip
    """A chart of lines over one pair of axes, as HTML.

    x_label, y_label, title: plain text, escaped here; title is read out in place of the picture. x_range, y_range: what
    the axes show, by default all points. x_ticks, y_ticks: where the axes have numbers, by default round ones. at_x,
    at_y: (place, name) of dashed lines across. height: of the drawing, in pixels. legend: names below it.
    """
    across = axis_of([v for one in series for v in one.x], log_x, x_range)
    up = axis_of([v for one in series for v in one.y], log_y, y_range)
    grid_x = [t for t in (across.ticks() if x_ticks is None else x_ticks) if -1e-6 <= across.share(t) <= 1 + 1e-6]
    grid_y = [t for t in (up.ticks() if y_ticks is None else y_ticks) if -1e-6 <= up.share(t) <= 1 + 1e-6]
    parts = [_rule(_x(across, tick), True, "currentColor", 0.1) for tick in grid_x]
    parts += [_rule(_y(up, tick), False, "currentColor", 0.16) for tick in grid_y]
    parts += [_rule(_x(across, place), True, "currentColor", 0.6, "4 4") for place, _ in at_x]
    parts += [_rule(_y(up, place), False, "currentColor", 0.6, "4 4") for place, _ in at_y]
    # The first line is the one that matters most: it is drawn last, over the others.
    parts += [_drawn(one, i, across, up) for i, one in reversed(list(enumerate(series)))]
    name = html.escape(title or f"{y_label} / {x_label}")
    drawing = (
        f'<svg viewBox="0 0 {SPAN:g} {SPAN:g}" preserveAspectRatio="none" role="img" aria-label="{name}" '
        f'style="position:absolute;inset:0;width:100%;height:100%"><title>{name}</title>{"".join(parts)}</svg>'
    )
    texts = [_text(number(tick), f"right:calc(100% + 4px);top:{_y(up, tick) / SPAN:.2%}", "0,-50%") for tick in grid_y]
    texts += [_text(number(tick), f"left:{_x(across, tick) / SPAN:.2%};top:100%", "-50%,2px") for tick in grid_x]
    texts += [_named_x(_x(across, place) / SPAN, name) for place, name in at_x if name]
    texts += [
        _text(name, f"right:4px;top:{_y(up, place) / SPAN:.2%}", "0,-105%") for place, name in at_y if name
    ]  # fmt: skip
    names = keys(series) if legend else ""
    return (
        f'<figure class="gh-chart" style="margin:.3rem 0 .6rem;font-size:12px;max-width:46rem">'
        f'<div style="opacity:.8">{html.escape(y_label)}</div>'
        f'<div style="position:relative;height:{height}px;margin:4px 14px 20px 46px">{drawing}{"".join(texts)}</div>'
        f'<div style="text-align:center;opacity:.8">{html.escape(x_label)}</div>{names}</figure>'
    )


def keys(series: Sequence[Series]) -> str:
    """The legend of a chart: a stroke and a name for each line that has one."""
    items = []
    for i, one in enumerate(series):
        if not one.name:
            continue
        colour, pattern = _looks(one, i)
        stroke = f'stroke="{colour}" stroke-width="3" stroke-dasharray="{pattern}"'
        sign = f'<line x1="0" x2="28" y1="5" y2="5" {stroke}/>' if one.line else ""
        sign += f'<circle cx="14" cy="5" r="4" fill="{colour}"/>' if one.marks else ""
        items.append(
            f'<span><svg width="28" height="10" aria-hidden="true" style="display:inline-block;vertical-align:middle">'
            f"{sign}</svg> {html.escape(one.name)}</span>"
        )
    return f'<div class="gh-keys" style="margin-top:.3rem">{"".join(items)}</div>' if items else ""


def _looks(one: Series, index: int) -> tuple[str, str]:
    return one.colour or ink(index), dash(index) if one.dash is None else one.dash


def _x(axis: Axis, value: float) -> float:
    return EDGE + (SPAN - 2 * EDGE) * axis.share(value)


def _y(axis: Axis, value: float) -> float:
    return SPAN - EDGE - (SPAN - 2 * EDGE) * axis.share(value)


def _rule(place: float, upright: bool, colour: str, opacity: float, pattern: str = "") -> str:
    ends = f'x1="{place:.1f}" x2="{place:.1f}" y1="0" y2="{SPAN:g}"' if upright else (
        f'x1="0" x2="{SPAN:g}" y1="{place:.1f}" y2="{place:.1f}"'
    )  # fmt: skip
    return (
        f'<line {ends} stroke="{colour}" opacity="{opacity}" stroke-dasharray="{pattern}" '
        'vector-effect="non-scaling-stroke"/>'
    )


def _text(text: str, where: str, shift: str) -> str:
    style = f"position:absolute;{where};transform:translate({shift});white-space:nowrap;line-height:1.2;opacity:.8"
    return f'<span style="{style}">{html.escape(text)}</span>'


def _named_x(share: float, name: str) -> str:
    """Beside an upright line, on the side where there is room."""
    return _text(name, f"left:{share:.2%};top:0", "6px,0" if share < 0.6 else "calc(-100% - 6px),0")


def _drawn(one: Series, index: int, across: Axis, up: Axis) -> str:
    colour, pattern = _looks(one, index)
    common = f'fill="none" stroke="{colour}" vector-effect="non-scaling-stroke" stroke-linejoin="round"'
    places = [(_x(across, x), _y(up, y)) for x, y in zip(one.x, one.y, strict=True)]
    parts = []
    for piece in _pieces(places) if one.line else ():
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in _thin(piece))
        parts.append(f'<polyline points="{points}" {common} stroke-width="2.2" stroke-dasharray="{pattern}"/>')
    if one.marks:
        for (x, y), u, v in zip(places, one.x, one.y, strict=True):
            if math.isnan(x) or math.isnan(y):
                continue
            # A stroke of no length with round ends: a circle would be stretched with the drawing.
            said = html.escape(f"{one.name}: {u:.4g}, {v:.4g}" if one.name else f"{u:.4g}, {v:.4g}")
            parts.append(
                f'<path d="M{x:.1f} {y:.1f}h0" {common} stroke-width="7" stroke-linecap="round">'
                f"<title>{said}</title></path>"
            )
    return "".join(parts)


def _pieces(places: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The line between its breaks. A piece of one point gets a twin, or it would not show."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in places:
        if math.isnan(x) or math.isnan(y):
            pieces.append([])
        else:
            pieces[-1].append((x, min(max(y, -9 * SPAN), 9 * SPAN)))
    return [piece if len(piece) > 1 else [piece[0], (piece[0][0] + 0.5, piece[0][1])] for piece in pieces if piece]


def _thin(piece: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST points, peaks and valleys among them."""
    if len(piece) <= MOST:
        return piece
    size = math.ceil(len(piece) / (MOST // 2 - 1))
    kept = [piece[0]]
    for start in range(1, len(piece) - 1, size):
        bucket = range(start, min(start + size, len(piece) - 1))
        ends = {min(bucket, key=lambda i: piece[i][1]), max(bucket, key=lambda i: piece[i][1])}
        kept += [piece[i] for i in sorted(ends)]
    return [*kept, piece[-1]]
