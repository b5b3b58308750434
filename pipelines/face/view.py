"""Results as pictures and HTML for the face pages. No gradio, no torch: `say` translates, draw draws.

A `say` is called with a format string and its fields, and answers in the visitor's language.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pipelines.ui import draw

from .contract import Comparison, Face, FaceResult

SHOWN_PEOPLE = 60  # thumbnails of a gallery on the page


class Say(Protocol):
    def __call__(self, text: str, **values: object) -> str: ...


def annotate(image: np.ndarray, faces: Sequence[Face], names: Sequence[str] | None = None) -> np.ndarray:
    """The picture with a numbered box and five points for each face; `names` follow the number."""
    if not faces:
        return image
    labels = [f"{i + 1} {names[i]}" if names and names[i] else str(i + 1) for i in range(len(faces))]
    boxes, points = np.stack([f.box for f in faces]), np.stack([f.landmarks for f in faces])
    return draw.boxes(image, boxes, labels, points=points)


def faces_table(image: np.ndarray, result: FaceResult, say: Say) -> str:
    """One row a face: crop, score, pose, sharpness, light; a sentence if there is none."""
    time = say("Found in {ms} ms.", ms=round(1000 * result.seconds.get("detect", 0)))
    if not result.faces:
        hint = say("No face was found. The Inside page shows where candidates were dropped, and why.")
        return f'<p class="gh-verdict">{hint}</p><p class="gh-note">{time}</p>'
    rows = [_face_row(image, face, i, say) for i, face in enumerate(result.faces)]
    headers = [say(t) for t in ("Face", "Score", "Pose, roughly: yaw, pitch, roll", "Sharpness", "Light")]
    count = say("{n} face(s).", n=len(result.faces))
    notes = "".join(f'<p class="gh-note">{html.escape(note)}</p>' for note in result.notes)
    return f'<p class="gh-verdict">{count} {time}</p>{notes}{draw.table(headers, rows)}'


def _face_row(image: np.ndarray, face: Face, i: int, say: Say) -> list[str]:
    pose = face.pose
    blur = say("blurred") if face.sharpness < 50 else say("soft") if face.sharpness < 150 else say("sharp")
    if face.light < 0.25:
        light = say("dark")
    elif face.light > 0.8:
        light = say("very bright")
    elif abs(face.light_balance) > 0.12:
        light = say("from the left") if face.light_balance > 0 else say("from the right")
    else:
        light = say("even")
    thumbnail = f'<img src="{draw.data_uri(draw.crop(image, face.box), 64)}" width="56" alt="{i + 1}">'
    badge = f'<b style="color:{draw.colour(i)}">{i + 1}</b>'
    return [
        f'<div style="display:flex;gap:.6rem;align-items:center">{badge}{thumbnail}</div>',
        f"{face.score:.4f}",
        f"{pose.yaw:+.0f}°, {pose.pitch:+.0f}°, {pose.roll:+.0f}°",
        f"{blur} ({face.sharpness:.0f})",
        f"{light} ({face.light:.2f})",
    ]


def records(result: FaceResult) -> dict[str, Any]:
    """The result as JSON: what the API returns beside the picture. Embeddings are left out, chips too."""
    return {
        "weights": result.weights,
        "detector": result.detector,
        "implementation": result.backend,
        "device": result.device,
        "seconds": {stage: round(value, 4) for stage, value in result.seconds.items()},
        "faces": [
            {
                "box": [round(float(v), 2) for v in face.box],
                "score": round(face.score, 5),
                "landmarks": [[round(float(v), 2) for v in point] for point in face.landmarks],
                "yaw": round(face.pose.yaw, 1),
                "pitch": round(face.pose.pitch, 1),
                "roll": round(face.pose.roll, 1),
                "sharpness": round(face.sharpness, 1),
                "light": round(face.light, 3),
                "light_balance": round(face.light_balance, 3),
            }
            for face in result.faces
        ],
    }


def chips(images: Sequence[np.ndarray | None], captions: Sequence[str], side: int = 112) -> str:
    """A row of captioned chips."""
    figures = [draw.chip(im, text, side) for im, text in zip(images, captions, strict=True) if im is not None]
    return f'<div class="gh-chips">{"".join(figures)}</div>'


def comparison(outcome: Comparison, facts: Mapping[str, Any], flip_average: bool, say: Say) -> str:
    """The similarity on a scale, the verdict, and what the threshold means."""
    verdict = say("The same person, says this threshold.") if outcome.same else say("Two people, says this threshold.")
    mark = "gh-yes" if outcome.same else "gh-no"
    low = float(facts.get("scale_low", -0.2))
    scale = draw.scale(
        outcome.similarity, outcome.threshold, low, 1.0, (say("different"), say("threshold"), say("same"))
    )
    worth = f'<p class="gh-note">{meaning(facts, flip_average, say)}</p>'
    return f'<p class="gh-verdict {mark}">{verdict}</p>{scale}{worth}{_rates(facts, flip_average, say)}'


def meaning(facts: Mapping[str, Any], flip_average: bool, say: Say) -> str:
    """What the threshold is worth: rates with the data that they were measured on, or that they were not."""
    flip = "_flip" if flip_average else ""
    if f"false_accept_rate{flip}" not in facts:
        text = say("No error rates were measured for these weights on this machine.")
    else:
        text = say(
            "At this threshold {far} of pairs of different people were taken for one person, and {frr} of pairs of one "
            "person for two.",
            far=f"{facts[f'false_accept_rate{flip}']:.2%}", frr=f"{facts[f'false_reject_rate{flip}']:.2%}",
        )  # fmt: skip
    source = html.escape(str(facts.get("measured_on", "")))
    published, warning = (html.escape(str(facts.get(key, ""))) for key in ("score", "warning"))
    return "<br>".join(part for part in (f"{text} {source}", published, warning) if part)


def _rates(facts: Mapping[str, Any], flip_average: bool, say: Say) -> str:
    """What other thresholds would have done on the same pairs, folded away."""
    rows = facts.get("rates_flip" if flip_average else "rates", ())
    if not rows:
        return ""
    headers = [say(t) for t in ("Threshold", "Strangers taken for one person", "One person taken for two")]
    cells = [[f"{threshold:.3f}", f"{accept:.2%}", f"{reject:.1%}"] for threshold, accept, reject in rows]
    return f"<details><summary>{say('Other thresholds')}</summary>{draw.table(headers, cells)}</details>"


def difference(ours: FaceResult, theirs: FaceResult, seconds: tuple[float, float], say: Say) -> str:
    """Two implementations on one picture: the largest difference and the time ratio."""
    a, b = ours.faces, theirs.faces
    if len(a) != len(b):
        text = say("Not the same faces: {ours} here, {theirs} in the library.", ours=len(a), theirs=len(b))
        return f'<p class="gh-verdict gh-no">{text}</p>{_times(seconds, say)}'
    rows = []
    if a:
        boxes = max(float(np.abs(x.box - y.box).max()) for x, y in zip(a, b, strict=True))
        points = max(float(np.abs(x.landmarks - y.landmarks).max()) for x, y in zip(a, b, strict=True))
        scores = max(abs(x.score - y.score) for x, y in zip(a, b, strict=True))
        rows = [
            [say("Box corner"), f"{boxes:.5f} px"],
            [say("Landmark"), f"{points:.5f} px"],
            [say("Score"), f"{scores:.2e}"],
        ]
        pairs = [(x.embedding, y.embedding) for x, y in zip(a, b, strict=True)]
        gaps = [float(np.abs(x - y).max()) for x, y in pairs if x is not None and y is not None]
        if gaps:
            rows.append([say("Embedding, any of its numbers"), f"{max(gaps):.2e}"])
    verdict = say("The same {n} face(s) in both.", n=len(a))
    table = draw.table([say("Largest difference of"), ""], rows) if rows else ""
    return f'<p class="gh-verdict gh-yes">{verdict}</p>{table}{_times(seconds, say)}'


def _times(seconds: tuple[float, float], say: Say) -> str:
    text = say(
        "Rebuilt here: {ours} ms. Library: {theirs} ms. Ratio: {ratio}× (median of interleaved runs, warm).",
        ours=round(1000 * seconds[0]), theirs=round(1000 * seconds[1]), ratio=f"{seconds[1] / seconds[0]:.2f}",
    )  # fmt: skip
    return f'<p class="gh-note">{text}</p>'


def note(text: str) -> str:
    """A sentence that may hold what a visitor typed, as HTML."""
    return f'<p class="gh-note">{html.escape(text)}</p>'


def people(gallery: Any, say: Say) -> str:
    """Everybody in a gallery, with thumbnails; a sentence if there is nobody."""
    persons = gallery.people() if gallery is not None else []
    if not persons:
        return f'<p class="gh-note">{say("Nobody is enrolled yet.")}</p>'
    head = say("{people} people, {faces} faces.", people=len(persons), faces=len(gallery))
    blank = np.full((112, 112, 3), 128, np.uint8)
    first = persons[:SHOWN_PEOPLE]
    shown = [blank if p.thumbnail is None else p.thumbnail for p in first]
    more = say("and {n} more", n=len(persons) - len(first)) if len(persons) > len(first) else ""
    faces = chips(shown, [f"{p.name} ({p.samples})" for p in first], 84)
    return f'<p class="gh-note">{head}</p>{faces}<p class="gh-note">{more}</p>'


def matches(
    image: np.ndarray, result: FaceResult, found: Sequence[Any], facts: Mapping[str, Any], people: int, say: Say
) -> str:
    """One row a face: who it is, how near, and who comes next; and how often a stranger would be given a name.

    people: how many are enrolled: each is one more chance of a false accept.
    """
    if not result.faces:
        return f'<p class="gh-verdict">{say("No face was found in this picture.")}</p>'
    chance = ""
    if "false_accept_rate_flip" in facts and people:
        share = 1 - (1 - float(facts["false_accept_rate_flip"])) ** people
        text = say(
            "With {n} people enrolled, a stranger would be given a name in about {p} of cases.",
            n=people,
            p=f"{share:.0%}",
        )
        chance = f'<p class="gh-note">{text}</p>'
    rows = []
    for i, (face, match) in enumerate(zip(result.faces, found, strict=True)):
        if match.name is None:
            who = f'<span class="gh-no">{say("unknown")}</span>'
        else:
            who = f'<b class="gh-yes">{html.escape(match.name)}</b>'
        nearest = _candidate(match.nearest, match.similarity)
        runner_up = _candidate(match.runner_up, match.runner_up_similarity)
        thumbnail = f'<img src="{draw.data_uri(draw.crop(image, face.box), 64)}" width="56" alt="">'
        badge = f'<b style="color:{draw.colour(i)}">{i + 1}</b>'
        rows.append([f'<div style="display:flex;gap:.6rem">{badge}{thumbnail}</div>', who, nearest, runner_up])
    return draw.table([say(t) for t in ("Face", "Who", "Nearest", "Next")], rows) + chance


def _candidate(name: str | None, similarity: float | None) -> str:
    return "–" if name is None or similarity is None else f"{html.escape(name)} {similarity:.3f}"


def effects_table(
    found: Sequence[Any], unaligned: tuple[np.ndarray, float], chip: np.ndarray, threshold: float, say: Say
) -> str:
    """One row a switch: the changed first face, the pair's similarity after it, and how far it moved.

    unaligned: the first face cropped without alignment, and the pair's similarity so.
    """
    if not found:
        return ""
    before = found[0].similarity_before
    crop_chip, loose = unaligned
    rows = [
        _effect_row(chip, say("as aligned"), before, None, threshold),
        _effect_row(crop_chip, say("without alignment (box only)"), loose, loose - before, threshold),
    ]
    rows += [_effect_row(e.chip, say(e.label), e.similarity_after, e.delta, threshold) for e in found]
    headers = [say(t) for t in ("First face", "Switch", "Similarity", "Change", "Side of the threshold")]
    over, under = say("same"), say("different")
    cells = [[*row[:4], over if row[4] else under] for row in rows]
    return draw.table(headers, cells)


def _effect_row(chip: np.ndarray, name: str, after: float, delta: float | None, threshold: float) -> list[Any]:
    picture = f'<img src="{draw.data_uri(chip, 80)}" width="72" alt="">'
    change = "" if delta is None else f'<span class="{"gh-yes" if delta >= 0 else "gh-no"}">{delta:+.3f}</span>'
    return [picture, html.escape(name), f"{after:.3f}", change, after >= threshold]
