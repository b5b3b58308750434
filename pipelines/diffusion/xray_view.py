"""Guidance, attention and deleted words as HTML. No gradio, no torch."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

import numpy as np

from pipelines.ui import draw

from .contract import Attention, Deletion, XRay
from .travel_view import FULL, larger
from .view import Say, note

CHIP = 88  # pixels of a picture's side
LARGE = 132
LONGEST = 60  # letters of a word: a text without blanks is one
MOST = 96  # tokens that are shown one by one: all that an encoder of 77 places can hold


def visible(text: str) -> str:
    """A word's first letters, with what a page cannot show, or what would turn the text around it, as a replacement
    sign."""
    shown = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    return "".join(char if char.isprintable() else "\ufffd" for char in shown)


# --- guidance --------------------------------------------------------------------------------------------------------


def guidance(found: XRay, call: int, own: float, say: Say) -> str:
    """The latents, what each prompt alone predicts, and where the two differ. own: the run's guidance scale."""
    top = float(found.where.max())
    where = draw.overlay(larger(found.given, LARGE), spread(found.where / (top or 1.0), larger(found.given, LARGE)))
    pictures = [
        (larger(found.before, LARGE), say("the latents after {n} calls", n=call)),
        (larger(found.given, LARGE), say("predicted end, prompt alone (guidance 1)")),
        (larger(found.without, LARGE), say("predicted end, negative prompt alone (guidance 0)")),
        (where, say("where the two differ; brightest {top}", top=f"{top:.2f}")),
    ]
    text = say(
        "At time {time} of 1000. The negative prompt is what guidance pushes away from; an empty one stands for any "
        "picture at all. The third picture plus the guidance scale times the difference is where the run goes.",
        time=f"{found.timestep:.0f}",
    )  # fmt: skip
    ends = [
        (larger(image, LARGE), say("guidance {scale}", scale=f"{scale:g}") + (" ◂" if scale == own else ""))
        for scale, image in found.ends
    ]
    lead = say("The predicted end at other guidance scales, from the same latents; ◂ is the run's own:")
    return f'{chips(pictures, LARGE)}{note(text)}<p class="gh-note">{html.escape(lead)}</p>{chips(ends, CHIP)}'


def spread(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(h, w) -> the picture's (H, W): each cell as a square of one value."""
    rows = (np.arange(image.shape[0]) * values.shape[0]) // image.shape[0]
    columns = (np.arange(image.shape[1]) * values.shape[1]) // image.shape[1]
    return values[rows][:, columns]


def chips(pictures: Iterable[tuple[np.ndarray, str]], side: int) -> str:
    """Captioned pictures in a row that wraps, their upper edges in line."""
    cells = "".join(draw.chip(image, text, side) for image, text in pictures)
    return f'<div class="gh-chips" style="align-items:flex-start">{cells}</div>'


# --- attention -------------------------------------------------------------------------------------------------------


def names(found: Attention, say: Say) -> list[str]:
    """The tokens' labels, the marks named in the visitor's language."""
    marks = {"start": say("start mark"), "end": say("end mark"), "padding": say("padding")}
    return [
        marks[kind] if kind != "word" else visible(text) for text, kind in zip(found.labels, found.kinds, strict=True)
    ]


def maps_of(found: Attention, layer: int) -> np.ndarray:
    """(labels, rows, columns): of one layer, counted from 1, or the mean of all for 0 or a layer that is not there."""
    return found.layers[layer - 1] if 1 <= layer <= len(found.layers) else found.mean


def attention(found: Attention, image: np.ndarray, layer: int, one_scale: bool, say: Say) -> str:
    """Every token's share over the picture, the marks and the padding among them.

    image (H, W, 3) uint8: what the maps are laid over. one_scale: whether all maps are as bright as their shares, or
    each is as bright as can be.
    """
    maps = maps_of(found, layer)[:MOST]
    shares = maps.mean(axis=(1, 2))
    canvas = larger(image, CHIP)
    cells = []
    for name, kind, each, share in zip(names(found, say), found.kinds, maps, shares, strict=False):
        top = float(maps.max() if one_scale else each.max()) or 1.0
        picture = draw.overlay(canvas, spread(each / top, canvas))
        text = html.escape(name)
        title = f"<i>{text}</i>" if kind != "word" else f"<b>{text}</b>"
        edge = "" if kind == "word" else "border:2px dashed var(--border-color-primary);"
        cells.append(
            f'<figure data-kind="{kind}"><img class="gh-chip" style="{edge}" src="{draw.data_uri(picture, CHIP)}" '
            f'width="{CHIP}" alt=""><figcaption>{title}<br>{share:.1%}</figcaption></figure>'
        )
    row = f'<div class="gh-chips" style="align-items:flex-start">{"".join(cells)}</div>'
    return f"{_told(found, shares, say)}{row}{_scale(one_scale, say)}"


def _told(found: Attention, shares: np.ndarray, say: Say) -> str:
    marks = float(sum(share for share, kind in zip(shares, found.kinds, strict=False) if kind != "word"))
    text = say(
        "The start mark, the end mark and the padding take {marks} of the attention, the words {words}.",
        marks=f"{marks:.0%}", words=f"{1 - marks:.0%}",
    )  # fmt: skip
    more = say(
        "That is usual: a cell's shares must sum to 1, and the marks are where it looks when no word is of use. The "
        "end mark and the padding have read the whole prompt, too, so a word may work through them; a bright map shows "
        "where a token is looked at from, not that the picture needs it. Delete the word below to see that."
    )
    return f'<p class="gh-verdict">{html.escape(text)}</p><p class="gh-note">{html.escape(more)}</p>'


def _scale(one_scale: bool, say: Say) -> str:
    text = (
        say("All maps have one scale: what is dark gets little attention.") if one_scale
        else say("Each map is as bright as can be; compare the percentages, not the brightness.")
    )  # fmt: skip
    return note(text)


# --- a word less -----------------------------------------------------------------------------------------------------


def deletions(plain: np.ndarray | None, found: Sequence[Deletion], say: Say) -> str:
    """The whole prompt's picture, then what each word was good for; the control last, once it is there."""
    if plain is None:
        return ""
    control = next((each.apart for each in found if each.word is None), None)
    rows = [[f"<b>{html.escape(say('whole prompt'))}</b>", _picture(plain), "", ""]]
    for each in found:
        name = (
            f"<b>{html.escape(say('Control: whole prompt, other noise'))}</b>" if each.word is None
            else html.escape(say("without “{word}”", word=visible(each.text)))
        )  # fmt: skip
        far = f"{each.apart:.1f}"
        if control and each.word is not None:
            far += (
                f"<br><small>{html.escape(say('{share} of the control', share=f'{each.apart / control:.0%}'))}</small>"
            )
        rows.append([name, _picture(each.result.image), _picture(draw.heat(each.where / FULL)), far])
    heads = ["", say("what was drawn"), say("where it changed"), say("levels of 255")]
    return f'{_most(found, control, say)}<div class="gh-scroll">{draw.table(heads, rows)}</div>'


def _picture(image: np.ndarray) -> str:
    return f'<img src="{draw.data_uri(larger(image, CHIP), CHIP)}" width="{CHIP}" alt="">'


def _most(found: Sequence[Deletion], control: float | None, say: Say) -> str:
    words = [each for each in found if each.word is not None]
    if control is None or not words:
        return ""
    most = max(words, key=lambda each: each.apart)
    text = say(
        "The word that changed the picture most is “{word}”: {far} levels. Other noise alone changes {control}.",
        word=visible(most.text), far=f"{most.apart:.1f}", control=f"{control:.1f}",
    )  # fmt: skip
    return f'<p class="gh-verdict">{html.escape(text)}</p>'
