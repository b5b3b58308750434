"""Watch: a camera, a video or an example, and what somebody does in it, as it happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label

from . import player_page
from .pipeline import ARCHITECTURES, ROLE, resolve, usual_threshold

QUIETLY: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", **blocks.LIGHT}


@dataclass(frozen=True)
class Shared:
    """What the pages of the tab share. switches: of the tab. threshold: at which an action begins. setup: where the
    players read their settings. course: ticket of what the visitor taught. ticket: of the stream that was played last,
    filled by `ticket_first`."""

    switches: blocks.Switches
    threshold: gr.Slider
    setup: gr.HTML
    course: gr.State
    ticket: gr.Textbox

    @property
    def settings(self) -> list[Any]:
        return [self.switches.weights, self.switches.implementation, self.threshold, self.course]


def ticket_first(inputs: int) -> str:
    """JavaScript that puts the ticket of the stream that was played last in the place of the first of the inputs."""
    return f"(...given) => [(window.glasshouse && window.glasshouse.action) || '', ...given.slice(1, {inputs})]"


def meant(weights: str, backend: str) -> float:
    """The threshold that suits what is chosen."""
    try:
        entry = resolve(weights, "reference" if backend == "reference" else "local")
    except UserError:  # the stream will say what is wrong
        return 0.5
    return usual_threshold(entry)


def suited(weights: str, backend: str) -> str:
    """The weights that the implementation can run: those that are chosen, else the first of its own."""
    kind = ARCHITECTURES["reference" if backend == "reference" else "local"]
    own = [entry.id for entry in catalogue.entries("action", ROLE) if entry.architecture == kind]
    if weights in own or (weights == "auto" and backend == "local") or not own:
        return weights
    return "auto" if backend == "local" else own[0]


def build(page: gr.Blocks, tab: gr.Tab, shared: Shared) -> None:
    gr.Markdown(
        label(
            "Stand so that your arms are in the picture, and wave, clap, punch, knock, swipe, sit down or stand up. "
            "Each tenth of a second the network names what you do and foretells the next 0.8 seconds. Frames are "
            "looked at and forgotten; only poses of the last minute are kept, for the other pages."
        )
    )
    playing = player_page.player("watch", auto=True)
    # Once something plays, a model has been loaded and the card can say where it runs.
    shared.switches.refresh(playing.play(guarded(player_page.setup), shared.settings, shared.setup, **QUIETLY))


def wire(page: gr.Blocks, shared: Shared) -> None:
    """Keep the setup element up to date."""
    switches = shared.switches
    gr.on([page.load, shared.threshold.change], guarded(player_page.setup), shared.settings, shared.setup, **QUIETLY)
    # Each implementation has weights of its own: what can't run is not left chosen.
    switches.implementation.change(
        guarded(suited), [switches.weights, switches.implementation], switches.weights, **QUIETLY
    )
    gr.on(
        [switches.weights.change, switches.implementation.change], guarded(meant),
        [switches.weights, switches.implementation], shared.threshold, **QUIETLY,
    ).then(guarded(player_page.setup), shared.settings, shared.setup, **QUIETLY)  # fmt: skip
