"""What a stream saw as HTML: skeletons, the ribbon of the past, forecasts and what came, bands of classes over time.

Letters: N chunks, T that a brain looks back, F future chunks, C classes.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipelines.ui import draw

from .config import CHUNKS_PER_SECOND, Brain
from .contract import Update
from .insight import Causality, Looked
from .recording import Foretold, Recording
from .teach import Lesson

Say = Callable[..., str]
BONES = (
    (11, 12), (11, 13), (13, 15), (12, 14), (14, 16), (11, 23), (12, 24), (23, 24), (23, 25), (25, 27), (24, 26),
    (26, 28),
)  # fmt: skip
INK, AHEAD = "#0d9488", "#d97706"
NAMES: dict[str, str] = {"oadtr": "OadTR", "gru": "GRU", "linear": "OadTR, linear"}


def note(text: str) -> str:
    """A quiet sentence."""
    return f'<p class="gh-note">{html.escape(text)}</p>'


def verdict(text: str, good: bool | None = None) -> str:
    """A sentence that stands out, green or amber."""
    colour = {True: " gh-yes", False: " gh-no", None: ""}[good]
    return f'<p class="gh-verdict{colour}">{html.escape(text)}</p>'


def names(labels: Sequence[str], say: Say) -> list[str]:
    """The classes in the visitor's language."""
    return [say(each) if "{" not in each else each for each in labels]


def skeleton(landmarks: np.ndarray | None, name: str, aspect: float, size: int = 44) -> str:
    """Somebody as lines in a square, however large they are in the picture; an empty square of nobody. aspect: the
    picture's width over its height."""
    lines = ""
    if landmarks is not None and np.isfinite(landmarks[11:29, :2]).all():
        body = landmarks[[0, *range(11, 17), *range(23, 29)], :2] * (aspect, 1)
        centre, span = (body.min(axis=0) + body.max(axis=0)) / 2, float(np.ptp(body, axis=0).max()) or 1.0
        place = (landmarks[:, :2] * (aspect, 1) - centre) / span * 84 + 50
        lines = "".join(
            f'<path d="M{place[a, 0]:.0f} {place[a, 1]:.0f}L{place[b, 0]:.0f} {place[b, 1]:.0f}"/>' for a, b in BONES
        )
        lines += f'<circle cx="{place[0, 0]:.0f}" cy="{place[0, 1]:.0f}" r="6" fill="currentColor"/>'
    said = html.escape(name)
    style = f"width:100%;max-width:{size}px;display:block"
    return (
        f'<svg viewBox="0 0 100 100" role="img" aria-label="{said}" style="{style}">'
        f'<title>{said}</title><g stroke="currentColor" stroke-width="6" stroke-linecap="round" fill="none">'
        f"{lines}</g></svg>"
    )


def ribbon(recording: Recording, index: int, found: Looked, say: Say) -> str:
    """The chunks that were looked back at, oldest first: skeleton, attention, and when."""
    chunks, labels = found.chunks, names(recording.labels, say)
    first, largest = index + 1 - len(chunks), max(float(chunks.max()), 1e-6)
    cells = []
    for k, share in enumerate(chunks):
        update = recording.update(first + k)
        ago = max(0.0, recording.update(index).timestamp - update.timestamp)
        said = say("{ago} s ago, attention {share} %: {name}", ago=f"{ago:.1f}", share=f"{100 * share:.1f}",
                   name=labels[int(update.probabilities.argmax())])  # fmt: skip
        bar = f'<i style="height:{100 * share / largest:.0f}%"></i>'
        mark = f"−{ago:.1f}" if (index - first - k) % 5 == 0 else ""
        cells.append(
            f'<div title="{html.escape(said)}">{skeleton(update.landmarks, said, update.aspect)}'
            f'<span class="gh-look">{bar}</span>'
            f"<small>{mark}</small></div>"
        )
    own = float(found.task.mean((0, 1))[-1])
    told = say("Under each pose stands how much the task token looked at it, over all layers and heads; on itself fell "
               "{own} %. With even attention each of {n} chunks would get {even} %.", own=f"{100 * own:.1f}",
               n=len(chunks), even=f"{100 * (1 - own) / len(chunks):.1f}")  # fmt: skip
    return f'<div class="gh-scroll"><div class="gh-ribbon">{"".join(cells)}</div></div>{note(told)}'


def heads(found: Looked, say: Say) -> str:
    """The task token's attention of every layer and head as a band each."""
    rows = []
    layers, count = found.task.shape[:2]
    for layer in range(layers):
        for head in range(count):
            weights = found.task[layer, head, :-1]
            name = say("layer {layer}, head {head}", layer=layer + 1, head=head + 1)
            rows.append((name, band(weights[None] / max(float(weights.max()), 1e-6), name)))
    return _bands(rows)


def outcome(recording: Recording, index: int, say: Say) -> str:
    """The forecast behind a chunk beside what was said when the time had come."""
    labels, update = names(recording.labels, say), recording.update(index)
    cells = []
    for k, row in enumerate(update.anticipated):
        said, share = int(row.argmax()), float(row.max())
        then = recording.later(index, k + 1)
        later = None if then is None else recording.update(then).probabilities
        came = "…" if later is None else labels[int(later.argmax())]
        right = None if later is None else int(later.argmax()) == said
        sign = {True: "✓", False: "✗", None: ""}[right]
        kind = {True: "gh-yes", False: "gh-no", None: ""}[right]
        cells.append([
            f"+{(k + 1) / CHUNKS_PER_SECOND:.1f} s", f"{html.escape(labels[said])} {100 * share:.0f} %",
            html.escape(came), f'<b class="{kind}">{sign}</b>',
        ])  # fmt: skip
    headers = [say("When"), say("Foretold"), say("Came"), ""]
    return draw.table(headers, cells)


def scores(found: Foretold, say: Say) -> str:
    """How forecasts came out over the whole recording, by how far ahead."""

    def cell(value: float) -> str:
        return "–" if np.isnan(value) else f"{100 * value:.0f} %"

    rows = [
        [f"+{(k + 1) / CHUNKS_PER_SECOND:.1f} s", cell(found.hits[k]), cell(found.stayed[k]), cell(found.changed[k])]
        for k in range(len(found.hits))
    ]
    headers = [
        say("Ahead"), say("Forecasts that came true"), say("Control: nothing changes"),
        say("True where something changed (the control: 0 %)"),
    ]  # fmt: skip
    return draw.table(headers, rows)


def band(values: np.ndarray, name: str, ink: str = INK, height: str = ".9rem") -> str:
    """(rows, N) in [0, 1] as a picture that stretches with the page."""
    rows, count = values.shape
    colour = np.array([int(ink[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
    pixels = np.empty((rows, count, 4), np.uint8)
    pixels[..., :3] = colour
    pixels[..., 3] = np.round(255 * (0.05 + 0.95 * np.clip(np.nan_to_num(values), 0, 1)))
    said = html.escape(name)
    return (
        f'<img src="{draw.data_uri(pixels)}" alt="{said}" title="{said}" '
        f'style="width:100%;height:{height};image-rendering:pixelated;display:block;border-radius:3px">'
    )


def _bands(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<span>{html.escape(name)}</span><div>{picture}</div>" for name, picture in rows)
    return f'<div class="gh-bandrows">{cells}</div>'


def classes(probabilities: np.ndarray, labels: Sequence[str], say: Say, least: float = 0.1) -> str:
    """(N, C) as a band for each class that is ever as likely as `least`."""
    known = [k for k in range(1, probabilities.shape[1]) if probabilities[:, k].max() >= least]
    if not known:
        return note(say("No action is ever as likely as {share} %.", share=round(100 * least)))
    named = names(labels, say)
    return _bands([(named[k], band(probabilities[:, k][None], named[k])) for k in known])


def brain_name(brain: Brain, say: Say) -> str:
    """A brain as a visitor knows it."""
    return say("no memory") if brain == "none" else NAMES[brain]


def brains(rows: Sequence[tuple[str, float, float, float]], say: Say) -> str:
    """How far each brain moved: (name, distance, share of the same answers, share of those of the recording)."""
    headers = [
        say("Brain"), say("Moved by the cut or the shuffle"), say("Same class as with its whole memory"),
        say("Same class as the first brain said"),
    ]  # fmt: skip
    cells = [[html.escape(name), f"{moved:.3f}", f"{same:.0%}", f"{agrees:.0%}"] for name, moved, same, agrees in rows]
    return draw.table(headers, cells)


def side_by_side(answers: Mapping[str, Sequence[Update]], titles: Mapping[str, str], say: Say) -> str:
    """What each implementation says at the end of every second: its likeliest class."""
    ends = sorted({int(u.timestamp) for found in answers.values() for u in found})
    rows = []
    for second in ends:
        row = [f"{second}"]
        for found in answers.values():
            within = [u for u in found if int(u.timestamp) == second]
            last = within[-1] if within else None
            share = 0.0 if last is None else float(last.probabilities.max())
            row.append("–" if last is None else f"{html.escape(names([last.label], say)[0])} {share:.0%}")
        rows.append(row)
    return draw.table([say("second"), *(titles[name] for name in answers)], rows)


def lessons(taught: Sequence[Lesson], say: Say) -> str:
    """What a visitor taught, and how many of the repetitions a head fitted to the others found."""
    if not taught:
        return note(say("Nothing was taught yet."))
    rows = []
    for lesson in taught:
        held = "–" if np.isnan(lesson.kept_out) else f"{lesson.kept_out:.0%}"
        rows.append([f"<b>{html.escape(lesson.name)}</b>", str(lesson.repetitions), held])
    headers = [say("Taught"), say("Repetitions"), say("Found when it was left out of the teaching")]
    return draw.table(headers, rows)


def causality(found: Mapping[str, Causality], at: float, say: Say) -> str:
    """The check of every brain, and of the control that looks ahead."""
    rows = []
    for name, each in found.items():
        word = say("holds") if each.holds else say("the past changed")
        rows.append([
            html.escape(name), f'<b class="{"gh-yes" if each.holds else "gh-no"}">{html.escape(word)}</b>',
            f"{each.before:.2g}", f"{each.after:.2g}",
        ])  # fmt: skip
    headers = [say("Brain"), say("Causality"), say("Largest change before"), say("Largest change from then on")]
    told = say("From second {at} on, every chunk was replaced by noise, and the stream was read again.", at=f"{at:.1f}")
    return note(told) + draw.table(headers, rows)
