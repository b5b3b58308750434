"""The race of samplers as a chart and as cards. No gradio, no torch."""

from __future__ import annotations

import html
from collections.abc import Sequence

from pipelines.ui import charts, draw

from .contract import SAMPLER_TITLES, SAMPLERS, Lane, RaceEvent, SamplerName
from .race import WANDERING
from .travel_view import larger
from .view import Say, note

HEIGHT = 270  # pixels of the chart
FLOOR = 1e-4  # an error that is drawn at the bottom: less is the float32 of the same sums
CARD = 104  # pixels of a picture's side
DASHED = "6 4"


def ink(name: SamplerName) -> str:
    """A sampler's colour, whoever else runs; the eight repeat for the ninth, which is dashed."""
    return charts.ink(SAMPLERS.index(name))


def chart(lanes: Sequence[Lane], say: Say) -> str:
    """Distance from the long run's end against calls, logarithmic; dashed where it goes elsewhere by design."""
    series = [
        charts.Series(
            SAMPLER_TITLES[lane.sampler], range(1, len(lane.errors) + 1), [max(error, FLOOR) for error in lane.errors],
            marks=True, colour=ink(lane.sampler), dash=DASHED if lane.sampler in WANDERING else "",
        )
        for lane in lanes if lane.errors
    ]  # fmt: skip
    most = max(max((lane.of for lane in lanes), default=1), 2)
    return charts.line_chart(
        series, say("calls of the U-Net"), say("distance"), log_y=True, x_range=(1, most), height=HEIGHT,
        title=say("Distance from the long run's end against calls of the U-Net"),
    )  # fmt: skip


def cards(event: RaceEvent, say: Say) -> str:
    """The long run and each sampler: what it would end in, its calls, and how far from the long run it is."""
    first = ""
    if event.reference_image is not None:
        first = _card(event.reference_image, say("the long run"), say("{n} calls", n=event.reference_calls), "", True)
    lanes = "".join(_lane(lane, say) for lane in event.lanes)
    return f'<div class="gh-chips" style="align-items:flex-start">{first}{lanes}</div>'


def _lane(lane: Lane, say: Say) -> str:
    calls = say("{n} of {all} calls", n=lane.calls, all=lane.of)
    far = say("distance {far}", far=f"{lane.errors[-1]:.3g}") if lane.errors else ""
    if lane.sampler in WANDERING:
        far += " ⤳"
    return _card(lane.preview, SAMPLER_TITLES[lane.sampler], calls, far, False, ink(lane.sampler))


def _card(image: object, name: str, calls: str, far: str, plain: bool, colour: str = "currentColor") -> str:
    import numpy as np

    shown = (
        f'<img class="gh-chip" src="{draw.data_uri(larger(image, CARD), CARD)}" width="{CARD}" alt="">'
        if isinstance(image, np.ndarray)
        else f'<div style="width:{CARD}px;height:{CARD}px;border-radius:8px;opacity:.08;background:currentColor"></div>'
    )
    title = html.escape(name) if plain else f'<span style="color:{colour}">●</span> {html.escape(name)}'
    return (
        f'<figure style="width:{CARD + 12}px">{shown}<figcaption><b>{title}</b><br>{html.escape(calls)}<br>'
        f"{html.escape(far)}</figcaption></figure>"
    )


def verdict(event: RaceEvent, say: Say) -> str:
    """Who came nearest with the same number of calls; those that wander are left out of it."""
    if event.reference < event.reference_calls:
        return note(say("The long run first: {n} of {all} calls.", n=event.reference, all=event.reference_calls))
    if not event.lanes or not all(lane.done for lane in event.lanes):
        done = sum(lane.calls for lane in event.lanes)
        return note(say("{n} of {all} calls, in lock-step.", n=done, all=sum(lane.of for lane in event.lanes)))
    told = [lane for lane in event.lanes if lane.sampler not in WANDERING]
    if not told:
        return note(say("None of these samplers aims at the long run's end, so none is nearest."))
    best = min(told, key=lambda lane: lane.errors[-1])
    text = say("{sampler} came nearest to the long run: {far} after {n} calls.", sampler=SAMPLER_TITLES[best.sampler],
               far=f"{best.errors[-1]:.3g}", n=best.calls)  # fmt: skip
    return f'<p class="gh-verdict">{html.escape(text)}</p>'


def footnote(lanes: Sequence[Lane], say: Say) -> str:
    """What the numbers are, and which samplers are no worse for being far away."""
    text = say(
        "Distance: between the latents of the end that a call predicts and those that the long run ended in, root mean "
        "square. Every sampler starts in the same noise and asks the U-Net equally often."
    )
    if any(lane.sampler in WANDERING for lane in lanes):
        names = ", ".join(SAMPLER_TITLES[name] for name in WANDERING)
        text += " " + say(
            "Dashed lines (⤳): {names} draw fresh noise at every step and so end in another picture by design. Their "
            "distance says how far away it is, not how good.", names=names,
        )  # fmt: skip
    if any(lane.sampler == "heun" for lane in lanes):
        text += " " + say("Heun asks twice for a step, so it makes half as many steps.")
    return note(text)
