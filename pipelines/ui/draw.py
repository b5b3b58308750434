"""Pictures and small charts for the page: numpy and strings in, numpy and HTML out."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#14b8a6", "#f59e0b", "#6366f1", "#ef4444", "#84cc16", "#ec4899", "#06b6d4", "#a855f7")
# From dark to light through one hue family, so that more is always brighter, also without colour vision.
_HEAT = np.array([[13, 8, 62], [84, 15, 109], [187, 55, 84], [249, 142, 8], [252, 255, 164]], dtype=np.float32)


def colour(index: int) -> str:
    """A colour for the index-th thing; they repeat."""
    return COLOURS[index % len(COLOURS)]


def boxes(
    image: np.ndarray,
    xyxy: np.ndarray,
    labels: Sequence[str] = (),
    colours: Sequence[str] | None = None,
    points: np.ndarray | None = None,
    width: int | None = None,
) -> np.ndarray:
    """A copy of the picture with boxes drawn in.

    image (H, W, 3) uint8 RGB; xyxy (n, 4) pixels, may reach outside; points (n, k, 2) pixels.
    """
    height, breadth = image.shape[:2]
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    unit = max(height, breadth) / 640
    line = width or max(1, round(2.2 * unit))
    font = ImageFont.load_default(size=max(11, round(15 * unit)))
    tags = []
    for i, box in enumerate(np.asarray(xyxy, dtype=np.float64).reshape(-1, 4)):
        ink = colours[i] if colours else colour(i)
        # Coordinates far outside would overflow the rasteriser.
        x1, y1, x2, y2 = np.clip(box, [-9, -9, -9, -9], [breadth + 9, height + 9, breadth + 9, height + 9]).tolist()
        if x2 <= x1 or y2 <= y1:
            continue
        draw.rectangle((x1, y1, x2, y2), outline=ink, width=line)
        if points is not None:
            _dots(draw, points[i], ink, max(1.5, 1.8 * unit))
        if i < len(labels) and labels[i]:
            tags.append(((x1, y1), labels[i], ink))
    for corner, text, ink in tags:  # after all lines, which would run through them
        _tag(draw, corner, text, ink, font, (breadth, height))
    return np.asarray(canvas)


def _dots(draw: ImageDraw.ImageDraw, xy: np.ndarray, ink: str, radius: float) -> None:
    for x, y in np.asarray(xy, dtype=np.float64):
        if abs(x) < 1e5 and abs(y) < 1e5:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink, outline="#ffffff")


def _tag(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, ink: str, font: Any, size: tuple[int, int]
) -> None:
    # The built-in font has no glyphs past Latin-1: other scripts are named in the list beside the picture.
    text = text.encode("latin-1", "ignore").decode("latin-1").strip()
    if not text:
        return
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    wide, high = right - left + 6, bottom - top + 6
    x = min(max(corner[0], 0), max(size[0] - wide, 0))
    y = corner[1] - high if corner[1] - high >= 0 else max(corner[1], 0)
    draw.rectangle((x, y, x + wide, y + high), fill=ink)
    draw.text((x + 3 - left, y + 3 - top), text, fill="#ffffff", font=font)


def heat(values: np.ndarray) -> np.ndarray:
    """(h, w) float in [0, 1] -> (h, w, 3) uint8 RGB, dark to bright."""
    place = np.clip(np.nan_to_num(values), 0, 1)[..., None] * (len(_HEAT) - 1)
    low = np.minimum(place.astype(int), len(_HEAT) - 2)
    share = place - low
    return np.round(_HEAT[low[..., 0]] * (1 - share) + _HEAT[low[..., 0] + 1] * share).astype(np.uint8)


def overlay(image: np.ndarray, values: np.ndarray, strength: float = 0.75) -> np.ndarray:
    """Lay a map over a grey copy of the picture: stronger where the map is higher.

    image (H, W, 3) uint8 RGB; values (H, W) float in [0, 1].
    """
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    share = strength * np.sqrt(np.clip(values, 0, 1))[..., None]
    return np.round(grey * (1 - share) * 0.8 + heat(values) * share).astype(np.uint8)


def data_uri(image: np.ndarray, side: int | None = None) -> str:
    """A picture as the text of an <img src>; `side` bounds its longest side in pixels."""
    picture = Image.fromarray(image)
    if side is not None:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def crop(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The part of the picture under a box, at least one pixel."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = np.asarray(box, dtype=np.float64)
    left, top = int(np.clip(x1, 0, width - 1)), int(np.clip(y1, 0, height - 1))
    return image[top : max(top + 1, int(np.clip(y2, 0, height))), left : max(left + 1, int(np.clip(x2, 0, width)))]


def chip(image: np.ndarray, caption: str = "", side: int = 112) -> str:
    """A captioned thumbnail as HTML; the caption is escaped."""
    text = html.escape(caption)
    return (
        f'<figure><img class="gh-chip" src="{data_uri(image, side)}" width="{side}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table. Headers are escaped; cells are HTML already, so escape what a visitor typed."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in headers)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="gh-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def scale(value: float, threshold: float, low: float, high: float, labels: tuple[str, str, str]) -> str:
    """A horizontal scale as SVG with the threshold and a value on it; labels: under, threshold, over."""
    width, left, right = 760, 20, 740

    def x(number: float) -> float:
        return left + (right - left) * (min(max(number, low), high) - low) / (high - low)

    ticks = "".join(
        f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="58" y2="63" stroke="currentColor"/>'
        f'<text x="{x(t):.1f}" y="77" text-anchor="middle">{t:g}</text>'
        for t in np.round(np.linspace(low, high, 6), 3)
    )
    under, middle, over = (html.escape(text) for text in labels)
    return f"""<svg class="gh-scale" viewBox="0 0 {width} 84" role="img" aria-label="{value:.3f}">
<rect x="{left}" y="44" width="{x(threshold) - left:.1f}" height="14" rx="4" fill="#f59e0b" opacity=".55"/>
<rect x="{x(threshold):.1f}" y="44" width="{right - x(threshold):.1f}" height="14" rx="4" fill="#10b981" opacity=".6"/>
<text x="{left}" y="38">{under}</text><text x="{right}" y="38" text-anchor="end">{over}</text>
<line x1="{x(threshold):.1f}" x2="{x(threshold):.1f}" y1="40" y2="62" stroke="currentColor" stroke-width="2"/>
<text x="{x(threshold):.1f}" y="14" text-anchor="middle" opacity=".75">{middle} {threshold:.3f}</text>
<path d="M{x(value):.1f} 58 l-8 -16 h16 z" fill="#0f172a" stroke="#fff" stroke-width="1.5"/>
<text x="{x(value):.1f}" y="30" text-anchor="middle" font-weight="700">{value:.3f}</text>{ticks}</svg>"""
