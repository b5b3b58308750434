"""Drawn pictures, tokens and numbers as HTML for the pages Draw and Swap. No gradio, no torch.

A `say` is called with a format string and its fields, and answers in the visitor's language.
"""

from __future__ import annotations

import base64
import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipelines.ui import draw

from .contract import DiffusionResult, PromptTokens

MOST = 200  # pieces of a prompt that are shown one by one: each is an element of the page


class Say(Protocol):
    def __call__(self, text: str, **values: object) -> str: ...


def plain(text: str) -> str:
    """Text as HTML: none of its markup, and a sign for what would not be seen or would turn the text around."""
    shown = ("\ufffd" if unicodedata.category(char) in ("Cc", "Cf", "Cs") else char for char in text)
    return html.escape("".join(shown))


def note(text: str) -> str:
    """A sentence as HTML."""
    return f'<p class="gh-note">{html.escape(text)}</p>'


def verdict(text: str, good: bool) -> str:
    """A sentence that says how something came out."""
    return f'<p class="gh-verdict {"gh-yes" if good else "gh-no"}">{html.escape(text)}</p>'


# --- the picture -----------------------------------------------------------------------------------------------------


def picture(image: np.ndarray, alt: str, png: bytes | None = None) -> str:
    """A picture as large as its column. png: the file that it is saved as, so that saving it by the browser's menu
    keeps its run, too; without it the picture is only looked at."""
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii") if png else draw.data_uri(image)
    height, width = image.shape[:2]
    # Decoded with the page, or the place would be empty between two previews.
    return (
        f'<div class="gh-canvas" style="aspect-ratio:{width}/{height}">'
        f'<img decoding="sync" src="{source}" alt="{html.escape(alt[:200])}"></div>'
    )


def empty(alt: str) -> str:
    """The place of a picture that is not there yet."""
    return f'<div class="gh-canvas" role="img" aria-label="{html.escape(alt)}" style="aspect-ratio:1"></div>'


def progress(step: int, steps: int, seconds: float, say: Say) -> str:
    """Calls of the denoiser so far, as a bar and in words."""
    if not step:
        return note(say("The first call of the network is under way …"))
    text = say("Call {n} of {of}, {seconds} s", n=step, of=steps, seconds=f"{seconds:.1f}")
    bar = f'<span class="gh-fill" style="width:{step / steps:.1%}"></span>'
    return (
        f'<div class="gh-track gh-progress" role="progressbar" aria-valuenow="{step}" aria-valuemax="{steps}" '
        f'aria-label="{html.escape(text)}">{bar}</div>{note(text)}'
    )


def stopped(step: int, steps: int, say: Say) -> str:
    """Where a run was stopped."""
    return note(
        say("Stopped after call {n} of {of}; the picture is the end that was predicted there.", n=step, of=steps)
    )


def summary(result: DiffusionResult, say: Say) -> str:
    """How long it took, and what drew it."""
    seconds, request, made = result.seconds, result.request, result.record["made_with"]
    whole = seconds["text"] + seconds["denoise"] + seconds["decode"]
    lead = say("Drawn in {seconds} s.", seconds=f"{whole:.2f}")
    told = say(
        "{calls} calls of the network took {denoise} s, reading the prompt {reading} s, decoding {decode} s; the first "
        "preview came after {first} s.", calls=result.calls, denoise=f"{seconds['denoise']:.2f}",
        reading=f"{seconds['text']:.2f}", decode=f"{seconds['decode']:.2f}", first=f"{seconds['first_preview']:.2f}",
    )  # fmt: skip
    what = (
        f"{result.record['weights']['title']}; {request.width}×{request.height}; {made['dtype']}, {made['device']}; "
        + ", ".join(f"{name} {made[name]}" for name in ("torch", "diffusers") if name in made)
    )
    return f'<p class="gh-verdict">{html.escape(lead)}</p>{note(told)}{note(what)}'


# --- the prompt ------------------------------------------------------------------------------------------------------


def tokens(prompt: PromptTokens, say: Say, negative: bool = False) -> str:
    """Each piece of a prompt; those that do not fit into the encoder are struck out, and a sentence says so."""
    if not prompt.pieces:
        return "" if negative else note(say("An empty prompt: the model draws what it likes."))
    read, cut = prompt.pieces[: prompt.used], prompt.pieces[prompt.used :]
    shown = [f'<span class="gh-quote">{plain(piece)}</span>' for piece in read]
    shown += [f'<s class="gh-quote gh-cut">{plain(piece)}</s>' for piece in cut[:MOST]]
    more = len(cut) - MOST
    tail = f" {html.escape(say('… and {n} more', n=f'{more:,}'))}" if more > 0 else ""
    lead = (
        say("{n} tokens of the negative prompt are read.", n=len(read))
        if negative
        else say("{n} tokens of the prompt are read.", n=len(read))
    )
    if cut:
        lead += " " + say(
            "{n} do not fit into the encoder: they are struck out, and the model never sees them.", n=f"{len(cut):,}"
        )
    mark = "gh-no" if cut else ""
    return (
        f'<p class="gh-note {mark}">{html.escape(lead)}</p><div class="gh-pieces" dir="auto">{" ".join(shown)}'
        f"{tail}</div>"
    )


# --- a picture that was brought back ---------------------------------------------------------------------------------


def replayed(before: np.ndarray, after: np.ndarray, notes: Sequence[str], say: Say) -> str:
    """Whether a replayed picture (H, W, 3) uint8 is the one of the file, and what is different here."""
    told = "".join(note(each) for each in notes)
    if before.shape != after.shape:
        text = say("The file's picture has been made another size since it was drawn, so there is nothing to compare.")
        return verdict(text, False) + told
    gap = np.abs(before.astype(np.int16) - after.astype(np.int16)).max(axis=-1)
    if not gap.any():
        return verdict(say("Replayed: the same picture, bit for bit."), True) + told
    text = say(
        "Replayed: {share} of the pixels differ from the file's, by up to {most} of 255 levels.",
        share=f"{np.mean(gap > 0):.2%}", most=int(gap.max()),
    )  # fmt: skip
    if not notes:
        told = note(
            say(
                "Weights and libraries are the same; another processor, another number of threads or a picture that "
                "was edited since are what is left."
            )
        )
    return verdict(text, False) + told


# --- two implementations ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """What both implementations made of one request.

    pixels: largest difference of a pixel's channel, of 255. share: of the pixels that differ at all. latents: largest
    difference of the last latents, and their largest size. denoise, text, decode: seconds of every round, ours and the
    library's.
    """

    pixels: int
    share: float
    latents: tuple[float, float]
    denoise: Sequence[tuple[float, float]]
    text: Sequence[tuple[float, float]]
    decode: Sequence[tuple[float, float]]


def swap(match: Match, say: Say) -> str:
    """Differences and times of both implementations."""
    if match.pixels == 0:
        lead = verdict(say("The same picture, bit for bit."), True)
    else:
        text = say(
            "Largest difference of a pixel: {n} of 255 levels; {share} of the pixels differ at all.", n=match.pixels,
            share=f"{match.share:.2%}",
        )  # fmt: skip
        lead = verdict(text, match.pixels <= 2)
    gap, size = match.latents
    numbers = say("Largest difference of the last latents: {gap}, where their numbers reach {size}.", gap=f"{gap:.1e}",
                  size=f"{size:.1f}")  # fmt: skip
    named = (
        (say("All calls of the denoiser"), match.denoise),
        (say("Reading the prompt"), match.text),
        (say("Decoding"), match.decode),
        (say("Together"), [tuple(map(sum, zip(*each, strict=True))) for each in _rounds(match)]),
    )
    rows = [[html.escape(name), *_times(pairs)] for name, pairs in named]
    heads = ["", say("Rebuilt here"), say("Library"), say("Ratio"), say("From round to round")]
    told = say(
        "Medians of {n} round(s), call by call in turn after a warm-up, so that whatever else the machine does falls "
        "on both. The samplers are ours on both sides; text encoder, denoiser and decoder are each side's own. "
        "Timings of a busy machine vary from run to run.", n=len(match.denoise),
    )  # fmt: skip
    return f"{lead}{note(numbers)}{draw.table(heads, rows)}{note(told)}"


def _rounds(match: Match) -> list[tuple[tuple[float, float], ...]]:
    return list(zip(match.denoise, match.text, match.decode, strict=True))


def _times(pairs: Sequence[Sequence[float]]) -> list[str]:
    """Both medians in milliseconds, the median of the rounds' ratios, and their range."""
    ours, theirs = np.array(pairs, np.float64).T
    ratios = theirs / np.maximum(ours, 1e-9)
    spread = f"{ratios.min():.2f}–{ratios.max():.2f}×"
    return [
        f"{1000 * np.median(ours):,.1f} ms", f"{1000 * np.median(theirs):,.1f} ms", f"{np.median(ratios):.2f}×",
        spread,
    ]  # fmt: skip
