"""Results as pictures, tables and small charts for the detection pages. No gradio, no torch.

A `say` is called with a format string and its fields, and answers in the visitor's language.
"""

from __future__ import annotations

import colorsys
import html
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import cv2
import numpy as np

from pipelines.ui import draw

from .contract import DetectionResult, Prediction
from .labels import names, same

TAGGED = 30  # boxes of one picture that are named in it; all are in the table
_GOLDEN = 0.618034  # neighbours on a list come out far apart on the colour wheel


class Say(Protocol):
    def __call__(self, text: str, **values: object) -> str: ...


@cache
def colour(name: str) -> str:
    """The colour of a class, the same in every picture and for every weights; dark enough for white text."""
    first, order = _orders()
    common = same(name)
    if common in first:  # VOC's twenty, evenly around the wheel: 9 steps apart, so that those of a kind are not alike
        place = 9 * first[common] % len(first)
        hue, bright = place / len(first), place % 2
    else:
        index = order[common] if common in order else zlib.crc32(name.encode())
        hue, bright = index * _GOLDEN % 1, index % 2
    return _ink(hue, (0.14, 0.27)[bright])


def _ink(hue: float, most: float) -> str:
    """A strong colour whose relative luminance is at most `most`: white on 0.3 has a contrast of 3."""
    lightness = 0.52
    while True:
        rgb = colorsys.hls_to_rgb(hue, lightness, 0.8)
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        if float(np.dot(linear, (0.2126, 0.7152, 0.0722))) <= most:
            return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)
        lightness -= 0.01


@cache
def _orders() -> tuple[dict[str, int], dict[str, int]]:
    """Place of each class among VOC's, and among COCO's."""
    return tuple({same(name): i for i, name in enumerate(names(key))} for key in ("voc", "coco_panoptic"))  # type: ignore[return-value]


def _rgb(ink: str) -> np.ndarray:
    return np.array([int(ink[i : i + 2], 16) for i in (1, 3, 5)], np.float32)


# --- pictures --------------------------------------------------------------------------------------------------------


def boxes(image: np.ndarray, result: DetectionResult) -> np.ndarray:
    """The picture with its objects framed and named, over their masks if there are any; the surest lie on top."""
    canvas = image
    if result.masks is not None:
        inks = [colour(name) for name in result.labels]
        canvas = _tint(image, list(zip(result.masks, inks, strict=True)), 0.45)
    tags = [
        f"{name} {score:.2f}" if i < TAGGED else ""
        for i, (name, score) in enumerate(zip(result.labels, result.scores, strict=True))
    ]
    line = max(2, round(max(image.shape) / 215))
    canvas = _halo(canvas, result.boxes[:TAGGED], line)
    inks = [colour(name) for name in result.labels]
    return draw.boxes(canvas, result.boxes[::-1], tags[::-1], inks[::-1], width=line)


def _halo(canvas: np.ndarray, boxes: np.ndarray, line: int) -> np.ndarray:
    """Thin white lines on both sides of where boxes will be drawn: a dark frame is seen on grass, too."""
    around = boxes + np.array([-1, -1, 1, 1], np.float32)
    return draw.boxes(canvas, around, (), ["#ffffff"] * len(boxes), width=line + 2)


def segments(image: np.ndarray, result: DetectionResult) -> np.ndarray:
    """The picture under its panoptic map: every segment in the colour of its class, white lines between them."""
    if result.panoptic is None:
        return image
    parts = [(result.panoptic == segment.id, colour(segment.label)) for segment in result.segments]
    canvas = _tint(image, parts, 0.6)
    ids = result.panoptic
    edge = np.zeros(ids.shape, bool)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    width = max(1, round(max(ids.shape) / 500))
    canvas[cv2.dilate(edge.astype(np.uint8), np.ones((width, width), np.uint8)) > 0] = 255
    return canvas


def _tint(image: np.ndarray, parts: Sequence[tuple[np.ndarray, str]], strength: float) -> np.ndarray:
    """A copy with some masks coloured. parts: (H, W) bool and a colour each; later ones lie on top."""
    canvas = image.copy()
    for mask, ink in parts:
        canvas[mask] = np.round(image[mask] * (1 - strength) + _rgb(ink) * strength).astype(np.uint8)
    return canvas


# --- tables ----------------------------------------------------------------------------------------------------------


def objects(
    image: np.ndarray, result: DetectionResult, guess: DetectionResult | None, again: bool, say: Say
) -> str:  # fmt: skip
    """One row an object: crop, label, score, box, which query found it; a sentence if there is none.

    guess: the surest object below the threshold, for that sentence. again: the network was not run for this result.
    """
    if not len(result):
        text = say("Nothing reaches the threshold.")
        if guess is not None and len(guess):
            text += " " + say(
                "The surest guess is {label} at {score}.", label=word(guess.labels[0], say),
                score=f"{guess.scores[0]:.2f}",
            )  # fmt: skip
        return f'<p class="gh-verdict">{text}</p>{_times(result, again, say)}{_notes(result.notes)}'
    count = say("{n} object(s).", n=len(result))
    headers = [say(t) for t in ("Object", "Score", "Box: left, top, right, bottom", "Query")]
    table = draw.table(headers, [_row(image, result, i, say) for i in range(len(result))])
    head = f'<p class="gh-verdict">{count} {_counts(result, say)}</p>'
    return (
        f"{head}{_times(result, again, say)}{_notes(result.notes)}"
        f'<div style="max-height:30rem;overflow-y:auto">{table}</div>'
    )


def _row(image: np.ndarray, result: DetectionResult, i: int, say: Say) -> list[str]:
    name, box = result.labels[i], result.boxes[i]
    thumbnail = f'<img src="{draw.data_uri(draw.crop(image, box), 64)}" style="max-width:64px;max-height:48px" alt="">'
    return [
        f'<div style="display:flex;gap:.6rem;align-items:center"><span style="width:64px">{thumbnail}</span>'
        f"{dot(name)}<b>{word(name, say)}</b></div>",
        f"{result.scores[i]:.3f}",
        ", ".join(f"{v:.0f}" for v in box),
        str(int(result.queries[i])),
    ]


def dot(name: str) -> str:
    """A small square in the colour of a class."""
    return (
        f'<span style="flex:none;display:inline-block;width:.8em;height:.8em;border-radius:3px;'
        f'background:{colour(name)}"></span>'
    )


def word(name: str, say: Say) -> str:
    """A class name in the visitor's language, as far as it is known there; stuff without COCO's tails."""
    common = same(name)
    text = say(common) if "{" not in common else common
    if text == common:
        text = name.removesuffix("-merged").removesuffix("-other").removesuffix("-stuff")
    return html.escape(text)


def _counts(result: DetectionResult, say: Say) -> str:
    if len(result) < 3:
        return ""
    found = Counter(result.labels).most_common(5)
    return f"<small>{', '.join(f'{word(name, say)} {n}' for name, n in found)}</small>"


def _times(result: DetectionResult, again: bool, say: Say) -> str:
    height, width = result.size
    if again:
        text = say("Sorted anew in {ms} ms; the network was not run again.", ms=_ms(result.seconds["finish"]))
    else:
        text = say(
            "The network saw {width}×{height} pixels and took {ms} ms.", width=width, height=height,
            ms=_ms(result.seconds.get("network", 0.0)),
        )  # fmt: skip
    return f'<p class="gh-note">{text}</p>'


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if seconds >= 0.01 else f"{1000 * seconds:.1f}"


def note(text: str) -> str:
    """A sentence as HTML."""
    return f'<p class="gh-note">{html.escape(text)}</p>'


def _notes(notes: Sequence[str]) -> str:
    return "".join(map(note, notes))


def legend(result: DetectionResult, say: Say) -> str:
    """The segments of a panoptic map: colour, name, score, share of the picture; largest first."""
    if result.panoptic is None:
        return ""
    if not result.segments:
        return f'<p class="gh-note">{say("No segment reaches the threshold.")}</p>'
    order = sorted(result.segments, key=lambda segment: -segment.area)
    items = "".join(
        f'<span style="display:inline-flex;gap:.35rem;align-items:center">{dot(s.label)}{word(s.label, say)} '
        f'<small style="opacity:.7">{s.score:.2f}, {s.area / result.panoptic.size:.0%}</small></span>'
        for s in order
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:.3rem 1rem;font-size:.9rem">{items}</div>'


def records(result: DetectionResult) -> dict[str, Any]:
    """The result as JSON: what the API returns beside the picture. Masks are left out; the export has them."""
    return {
        "weights": result.weights,
        "implementation": result.backend,
        "device": result.device,
        "input": {"height": result.size[0], "width": result.size[1]},
        "seconds": {stage: round(value, 4) for stage, value in result.seconds.items()},
        "notes": list(result.notes),
        "objects": [
            {
                "label": result.labels[i],
                "category": int(result.categories[i]),
                "score": round(float(result.scores[i]), 5),
                "box": [round(float(v), 2) for v in result.boxes[i]],
                "query": int(result.queries[i]),
            }
            for i in range(len(result))
        ],
        "segments": [
            {"label": s.label, "category": s.category, "thing": s.thing, "score": round(s.score, 5), "area": s.area}
            for s in result.segments
        ],
    }


# --- two implementations ---------------------------------------------------------------------------------------------


def difference(
    ours: Prediction, theirs: Prediction, found: DetectionResult, library: DetectionResult, size: tuple[int, int],
    seconds: tuple[float, float], say: Say,
) -> str:  # fmt: skip
    """Two implementations on one picture: the same objects or not, the largest differences, the ratio of the times.

    found, library: the objects of each at the threshold. size: (height, width) of the picture. seconds: median time of
    our network and of the library's.
    """
    here, there = _keyed(found), _keyed(library)
    both = here.keys() & there.keys()
    if here.keys() == there.keys():
        verdict, mark = say("The same {n} object(s) in both.", n=len(both)), "gh-yes"
    else:
        verdict = say(
            "Not the same objects: {ours} here, {theirs} in the library, {both} of them in both.",
            ours=len(here), theirs=len(there), both=len(both),
        )  # fmt: skip
        mark = "gh-no"
    pixels = np.abs(ours.boxes - theirs.boxes) * np.array([size[1], size[0], size[1], size[0]], np.float32)
    rows = [
        [say("Class logit, all queries"), f"{_largest(ours.logits - theirs.logits):.2e}"],
        [say("Box (centre, width, height), all queries"), f"{_largest(pixels):.4f} px"],
    ]
    if both:
        edges = np.stack([found.boxes[here[key]] - library.boxes[there[key]] for key in both])
        scores = np.array([found.scores[here[key]] - library.scores[there[key]] for key in both])
        rows += [
            [say("Box edge, the objects shown"), f"{_largest(edges):.4f} px"],
            [say("Score, the objects shown"), f"{_largest(scores):.2e}"],
        ]
    if ours.masks is not None and theirs.masks is not None and ours.masks.shape == theirs.masks.shape:
        rows.append([say("Mask logit, all queries"), f"{_largest(ours.masks - theirs.masks):.2e}"])
    times = say(
        "Rebuilt here: {ours} ms. Library: {theirs} ms. Ratio: {ratio}× (median of interleaved runs, warm).",
        ours=round(1000 * seconds[0]), theirs=round(1000 * seconds[1]), ratio=f"{seconds[1] / seconds[0]:.2f}",
    )  # fmt: skip
    table = draw.table([say("Largest difference of"), ""], rows)
    notes = _notes([*found.notes, *(note for note in library.notes if note not in found.notes)])
    return f'<p class="gh-verdict {mark}">{verdict}</p>{table}<p class="gh-note">{times}</p>{note(found.device)}{notes}'


def _keyed(result: DetectionResult) -> dict[tuple[int, str], int]:
    """(query, label) -> place in the result: the two implementations may sort equal scores differently."""
    return {(int(q), name): i for i, (q, name) in enumerate(zip(result.queries, result.labels, strict=True))}


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0))
