"""What is shown of a video: a strip of annotated frames, and how many objects were seen over time. No gradio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np

from pipelines.ui import draw

from .contract import DetectionResult
from .view import Say, colour, dot, word

THUMBNAIL = 150  # longest side of a frame in the strip, pixels
CHARTED = 6  # classes in the chart, the most seen first
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 190, 34, 750, 12, 162  # of the chart


def small(pixels: np.ndarray, side: int) -> np.ndarray:
    """A picture whose longest side is at most `side`."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    return cv2.resize(
        pixels, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )


def thumbnail(pixels: np.ndarray, result: DetectionResult) -> np.ndarray:
    """A frame for the strip, its objects framed in the colours of their classes but not named: too small for that."""
    shown = small(pixels, THUMBNAIL)
    scale = np.array([shown.shape[1] / pixels.shape[1], shown.shape[0] / pixels.shape[0]] * 2)
    return draw.boxes(shown, result.boxes[::-1] * scale, (), [colour(name) for name in result.labels[::-1]], width=2)


def strip(pictures: Sequence[np.ndarray], seconds: Sequence[float]) -> str:
    """A row of frames with their times."""
    figures = "".join(draw.chip(p, f"{s:.2f} s", THUMBNAIL) for p, s in zip(pictures, seconds, strict=True))
    return f'<div class="gh-chips" style="gap:.5rem">{figures}</div>'


def chart(seconds: Sequence[float], counts: Sequence[Counter[str]], say: Say) -> str:
    """Objects of each class over time, as steps, in SVG. seconds, counts: time and objects of every frame."""
    if not seconds:
        return ""
    total: Counter[str] = sum(counts, Counter())
    if not total:
        return f'<p class="gh-note">{say("No object in any frame.")}</p>'
    shown = [name for name, _ in total.most_common(CHARTED)]
    most = max(count[name] for name in shown for count in counts)
    step = (seconds[-1] - seconds[0]) / max(len(seconds) - 1, 1) or 1.0
    begin, end = seconds[0], seconds[-1] + step

    def x(time: float) -> float:
        return LEFT + (RIGHT - LEFT) * (time - begin) / (end - begin)

    def y(count: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * count / most

    lines = ""
    for k, name in enumerate(shown):
        shift = 1.6 * (k - (len(shown) - 1) / 2)  # equal counts lie side by side, not on top of each other
        points = " ".join(
            f"{x(time):.1f},{y(count[name]) + shift:.1f} {x(time + step):.1f},{y(count[name]) + shift:.1f}"
            for time, count in zip(seconds, counts, strict=True)
        )
        lines += f'<polyline points="{points}" fill="none" stroke="{colour(name)}" stroke-width="2"/>'
    levels = sorted({round(v) for v in np.linspace(0, most, min(most, 5) + 1)})
    grid = "".join(_level(y(n), n) for n in levels)
    grid += "".join(
        f'<text x="{x(t):.1f}" y="{BOTTOM + 20}" text-anchor="middle">{t:.1f} s</text>'
        for t in np.linspace(begin, end, 6)[:-1]
    )
    key = "".join(
        f'<span style="display:inline-flex;gap:.35rem;align-items:center">{dot(n)}{word(n, say)}</span>' for n in shown
    )
    return (
        f'<div style="display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.9rem">{key}</div>'
        f'<svg class="gh-scale" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{grid}{lines}</svg>'
    )


def _level(y: float, count: int) -> str:
    return (
        f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity=".15"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{count}</text>'
    )
