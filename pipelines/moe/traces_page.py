"""What the pages that look inside share: a text read with the routers' decisions kept, and the example text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.ui import blocks
from pipelines.ui.i18n import label
from pipelines.ui.shelf import Shelf
from pipelines.ui.turns import Turns

from . import view
from .config import PRESETS, MoeConfig
from .contract import RoutingTrace
from .pipeline import entry, load

STORY = catalogue.ROOT / "assets" / "examples" / "moe" / "story.txt"

turns = Turns()  # of all pages that read a text: a visitor reads one at a time


@dataclass(frozen=True)
class Run:
    """A text under the model. texts: of each token, whole characters only. weights: their id. curves: what the memory
    page made of it."""

    trace: RoutingTrace
    texts: list[str]
    config: MoeConfig
    weights: str
    curves: tuple[list[int], dict[str, np.ndarray]] | None = None

    @property
    def nbytes(self) -> int:
        return self.trace.logits.nbytes + self.trace.experts.nbytes + self.trace.weights.nbytes + 200 * len(self.texts)


@cache
def shelf() -> Shelf:
    """Where the traces of all visitors are kept."""
    return Shelf(limits().traces_mb * 1_000_000)


@cache
def story() -> str:
    """The example text, which no training has seen."""
    return STORY.read_text(encoding="utf-8").strip()


def meant(weights: str) -> MoeConfig:
    """Configuration of the weights that are chosen, be they on this machine or not. Nothing is loaded."""
    known = {one.id: one for one in catalogue.entries("moe", "decoder")}
    try:
        chosen = known.get(weights) or entry(weights)
    except UserError:  # none is here yet: the page opens all the same
        return PRESETS["stories"]
    return PRESETS[chosen.preset]


def take(text: str | None, weights: str, request: gr.Request, progress: gr.Progress | None) -> Iterator[Run | None]:
    """Read a text: None after each part of it, at last the run, unless the visitor stops it or reads another.

    UserError: the text is empty or too long, or the weights are not here.
    """
    from .insight import traced

    blocks.announce(progress)
    chosen = entry(weights)
    with turns.take(request.session_hash) as turn, closing(traced(text or "", chosen.id)) as parts:  # type: ignore[type-var]
        for share, trace in parts:
            if turn.halted:
                return
            if trace is None and progress is not None:
                progress(share, desc=f"{share:.0%}")
            if trace is not None:
                backend = load(chosen, "local")
                yield Run(trace, spelled(backend, trace.tokens), backend.config, chosen.id)
            else:
                yield None


def spelled(backend: Any, tokens: np.ndarray) -> list[str]:
    """The text of each token."""
    return view.spelled([backend.tokenizer.piece(int(number)) for number in tokens])


def halt(request: gr.Request) -> None:
    """Stop was pressed."""
    turns.halt(request.session_hash)


def kept(ticket: str | None) -> Run:
    """The run behind a ticket. UserError: it had to make room."""
    run = shelf().get(ticket)
    if run is None:
        raise UserError("This text had to make room for others; read it again.")
    return run


def text_box(element: str, lines: int = 9) -> gr.Textbox:
    """Where a visitor writes the text that is read."""
    return gr.Textbox(story(), lines=lines, max_lines=lines + 4, label=label("Text"), elem_id=element)
