"""The decoder's insides as pictures and HTML. No gradio, no torch: `say` translates."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw

from pipelines.ui import draw

from .insight import Heard, Life, answering, box_area, doubles, in_common, share_inside

if TYPE_CHECKING:
    from .contract import Trace
    from .view import Say

# Value -> title. A value that is a title too would be translated in the browser, and come back so.
VIEWS = {"path": "Path of its box", "looks": "Where it looks", "listens": "Whom it listens to"}
CONTROLS = {"blank": "A blank picture", "mean": "The mean of all queries"}
OWN, OTHER, TRAIL = "#14b8a6", "#e2e8f0", ("#fde68a", "#fbbf24", "#f59e0b", "#f97316", "#ef4444", "#ec4899")
THUMB = 250  # longest side of a small heat map, pixels


def pixels(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(n, 4) xyxy in [0, 1] -> pixels of the picture."""
    height, width = image.shape[:2]
    return np.asarray(boxes).reshape(-1, 4) * np.array([width, height, width, height])


def stroke(image: np.ndarray) -> int:
    """Width of a line that reads well on a picture of this size."""
    return max(2, round(max(image.shape[:2]) / 260))


def dimmed(image: np.ndarray, keep: float = 0.55) -> np.ndarray:
    """The picture, darker, so that what is drawn on it stands out."""
    return (image * keep).astype(np.uint8)


# --- the picture -----------------------------------------------------------------------------------------------------


def picture(
    image: np.ndarray, trace: Trace, told: Life, names: Mapping[int, str], query: int, layer: int, view: str,
    threshold: float,
) -> np.ndarray:  # fmt: skip
    """What one view shows of a query at a layer, at the picture's own size, so that a click on it is a point of it."""
    if view == "looks":
        return _looks(image, trace, told, query, layer)
    if view == "listens":
        return _listens(image, trace, told, names, query, layer)
    return _path(image, told, names, query, layer, threshold)


def _path(
    image: np.ndarray, told: Life, names: Mapping[int, str], query: int, layer: int, threshold: float
) -> np.ndarray:
    """The boxes of all layers up to this one, and the way of their centres; the layer's other answers, thin."""
    others = [q for q in answering(told, layer, threshold) if q != query]
    thin = max(1, stroke(image) // 2)
    canvas = draw.boxes(
        dimmed(image, 0.7), pixels(told.boxes[layer, others], image), colours=[OTHER] * len(others), width=thin
    )
    before = pixels(told.boxes[:layer, query], image)
    canvas = draw.boxes(canvas, before, [str(i + 1) for i in range(layer)], _trail(layer), width=thin + 1)
    label = f"#{query} {names.get(int(told.classes[layer, query]), '')} {told.scores[layer, query]:.2f}"
    canvas = draw.boxes(canvas, pixels(told.boxes[layer, query], image), [label], [OWN], width=stroke(image) + 1)
    return _way(canvas, pixels(told.boxes[: layer + 1, query], image))


def _trail(count: int) -> list[str]:
    return [TRAIL[min(i, len(TRAIL) - 1)] for i in range(count)]


def _way(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A line through the boxes' centres, with a dot at each."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    width = stroke(image)
    points = [(float(x), float(y)) for x, y in centres]
    if len(points) > 1:
        pen.line(points, fill="#ffffff", width=width)
    for (x, y), ink in zip(points, [*_trail(len(points) - 1), OWN], strict=True):
        r = 2 * width
        pen.ellipse((x - r, y - r, x + r, y + r), fill=ink, outline="#ffffff", width=max(1, width // 2))
    return np.asarray(canvas)


def _looks(image: np.ndarray, trace: Trace, told: Life, query: int, layer: int) -> np.ndarray:
    """The mean of the heads' cross-attention over the picture, and the query's box at this layer."""
    shown = overlay(image, trace.cross_attention[layer, :, query].mean(axis=0))
    return draw.boxes(shown, pixels(told.boxes[layer, query], image), [f"#{query}"], [OWN], width=stroke(image))


def _listens(
    image: np.ndarray, trace: Trace, told: Life, names: Mapping[int, str], query: int, layer: int
) -> np.ndarray:
    """Lines to the queries that this one listens to most, the stronger the thicker."""
    from .insight import heard

    canvas = dimmed(image)
    found = [one for one in heard(trace, layer, query) if one.query != query]
    most = max((one.weight for one in found), default=1.0)
    mine = pixels(told.boxes[layer, query], image)
    for rank, one in reversed(list(enumerate(found))):
        box = pixels(told.boxes[layer, one.query], image)
        ink, width = draw.colour(rank + 1), max(1, round(stroke(image) * one.weight / most))
        canvas = draw.boxes(canvas, box, [f"#{one.query} {one.weight:.0%}"], [ink], width=width)
        canvas = line(canvas, _centre(mine[0]), _centre(box[0]), ink, width)
    name = names.get(int(told.classes[layer, query]), "")
    return draw.boxes(canvas, mine, [f"#{query} {name}"], [OWN], width=stroke(image) + 1)


def _centre(box: np.ndarray) -> tuple[float, float]:
    return float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2


def line(
    image: np.ndarray, start: tuple[float, float], end: tuple[float, float], ink: str, width: int, dash: float = 0.0
) -> np.ndarray:
    """A copy of the picture with a line, broken into dashes of `dash` pixels if that is above 0."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    a, b = np.array(start), np.array(end)
    length = float(np.hypot(*(b - a)))
    pieces = [(0.0, 1.0)]
    if dash > 0 and length > 0:
        edges = np.arange(0, length, 2 * dash) / length
        pieces = [(float(e), min(float(e) + dash / length, 1.0)) for e in edges]
    for low, high in pieces:
        pen.line((*(a + (b - a) * low), *(a + (b - a) * high)), fill=ink, width=width)
    return np.asarray(canvas)


def overlay(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """An attention map (h, w) over the picture, smoothly enlarged, brightest at its own highest value."""
    height, width = image.shape[:2]
    large = cv2.resize(np.ascontiguousarray(attention, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return draw.overlay(image, np.clip(large / max(float(attention.max()), 1e-12), 0, 1), 0.9)


# --- heads -----------------------------------------------------------------------------------------------------------


def heads(
    image: np.ndarray, trace: Trace, told: Life, query: int, layer: int, control: np.ndarray, name: str, blank: bool,
    say: Say,
) -> str:  # fmt: skip
    """Every head's cross-attention and their mean over the picture, and the control's below it.

    control: (H, h, w), what to hold it against; name: its name; blank: whether it was shown a blank picture. Above each
    map stands how much of it lies in the query's box; each is brightest at its own highest value.
    """
    box = told.boxes[layer, query]
    own = _with_mean(trace.cross_attention[layer, :, query])
    other = _with_mean(control)
    scale = THUMB / max(image.shape[:2])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    ground = [small, np.full_like(small, 128) if blank else small]
    titles = [*(say("Head {n}", n=i + 1) for i in range(len(own) - 1)), say("All heads, mean")]
    cells = [
        "".join(
            _map(ground[row], maps[i], box, title if row == 0 else "", say) for row, maps in enumerate((own, other))
        )
        for i, title in enumerate(titles)
    ]
    inside = [float(share_inside(maps[-1], box)) for maps in (own, other)]
    text = say(
        "{own} of what query {query} looks at lies in its box, which is {area} of the picture. Control, {control}: "
        "{other}, and {common} of the two maps coincide.",
        own=f"<b>{inside[0]:.0%}</b>", query=query, area=f"{box_area(box):.0%}", control=html.escape(name).lower(),
        other=f"<b>{inside[1]:.0%}</b>", common=f"<b>{in_common(own[-1], other[-1]):.0%}</b>",
    )  # fmt: skip
    columns = -(-len(titles) // (1 + len(titles) // 7))  # of eight heads and their mean, five and four
    grid = f"display:grid;grid-template-columns:repeat({columns},minmax(0,1fr));gap:.9rem .7rem"
    figures = "".join(f"<div>{cell}</div>" for cell in cells)
    return f'<p class="gh-verdict">{text}</p><div style="{grid}">{figures}</div>'


def _with_mean(maps: np.ndarray) -> np.ndarray:
    """(H, h, w) -> (H + 1, h, w), the mean last."""
    return np.concatenate([maps, maps.mean(axis=0, keepdims=True)])


def _map(image: np.ndarray, attention: np.ndarray, box: np.ndarray, title: str, say: Say) -> str:
    shown = overlay(image, attention)
    shown = draw.boxes(shown, pixels(box, image), colours=[OWN], width=2)
    share = f"{float(share_inside(attention, box)):.0%}"
    caption = (
        f"<b>{title}</b> · {say('{share} in the box', share=share)}" if title else say("control: {share}", share=share)
    )
    return (
        '<figure style="margin:0 0 .35rem">'
        f'<figcaption style="font-size:.82rem;white-space:nowrap">{caption}</figcaption>'
        f'<img src="{draw.data_uri(shown)}" style="width:100%;border-radius:8px" alt="{html.escape(title)}"></figure>'
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def layers(told: Life, layer: int, threshold: float, say: Say) -> str:
    """Answers, doubles and changes of class of every layer; the one that is shown is marked."""
    cells = []
    for i in range(told.layers):
        found = answering(told, i, threshold)
        flips = int(told.flips[i][found].sum())
        lines = [say("doubles: {n}", n=doubles(told, i, threshold))]
        if i:
            lines.append(say("changed class here: {n}", n=flips))
        mark = ' style="outline:2px solid #14b8a6"' if i == layer else ""
        head = say("Layer {n}", n=i + 1)
        count = say("{n} answer(s)", n=len(found))
        cells.append(f"<div{mark}><span>{head}</span><b>{count}</b><span>{'<br>'.join(lines)}</span></div>")
    return f'<div class="gh-funnel">{"".join(cells)}</div>'


def steps(told: Life, names: Mapping[int, str], query: int, layer: int, threshold: float, say: Say) -> str:
    """One query layer by layer: class, score, overlap with its last box; where the class flips is marked."""
    rows = []
    for i in range(told.layers):
        name = html.escape(names.get(int(told.classes[i, query]), "?"))
        if told.flips[i, query]:
            name = f'<b class="gh-no">⟲ {name}</b>'
        score = f"{told.scores[i, query]:.3f}"
        if told.scores[i, query] < threshold:
            score = f'<span style="opacity:.5">{score}</span>'
        number = f"<b>▸ {i + 1}</b>" if i == layer else f"{i + 1}"
        rows.append([number, name, score, _bar(float(told.overlaps[i, query]))])
    flips = int(told.flips[:, query].sum())
    last = names.get(int(told.classes[-1, query]), "?")
    verdict = say("Query {query} ends as “{name}”.", query=query, name=html.escape(last))
    if flips:
        verdict += " " + say("Its class flips {n} time(s), marked ⟲.", n=flips)
    else:
        verdict += " " + say("Its class never flips.")
    headers = [say(t) for t in ("Layer", "Likeliest class", "Score", "Overlap with its last box (IoU)")]
    return f'<p class="gh-verdict">{verdict}</p>{draw.table(headers, rows)}'


def _bar(value: float) -> str:
    return (
        '<span style="display:inline-block;width:6rem;height:.55rem;border-radius:4px;background:#94a3b844;'
        'vertical-align:middle;margin-right:.5rem"><span style="display:block;height:100%;border-radius:4px;'
        f'background:{OWN};width:{100 * min(max(value, 0), 1):.0f}%"></span></span>{value:.2f}'
    )


def listens(
    found: Sequence[Heard], told: Life, names: Mapping[int, str], query: int, layer: int, say: Say
) -> str:  # fmt: skip
    """Whom a query listens to at a layer, held against what each would get if it listened to all alike."""
    if not found:
        return f'<p class="gh-note">{say("Nobody: self-attention was taken out.")}</p>'
    fair = 1 / told.scores.shape[1]
    rows = []
    for one in found:
        name = html.escape(names.get(int(told.classes[layer, one.query]), "?"))
        who = say("itself") if one.query == query else f"#{one.query}"
        what = f"{name} {told.scores[layer, one.query]:.2f}"
        rows.append([who, what, f"{one.weight:.1%}", f"{one.weight / fair:.1f}×"])
    headers = [say(t) for t in ("Listens to", "which says here", "Share", "Against a fair share")]
    note = say("A fair share, the same for all {n} queries, would be {share}.", n=round(1 / fair), share=f"{fair:.1%}")
    return f'{draw.table(headers, rows)}<p class="gh-note">{note}</p>'
