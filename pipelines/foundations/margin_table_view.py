"""What a training under a margin came to, in words and tables. No gradio, no torch: `say` translates."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from pipelines.ui import draw

from .config import MARGIN_LOSSES, MarginRecipe
from .margin_contract import Moment, Probe
from .margin_view import DIGITS, Say, digit, percent


def settings(recipe: MarginRecipe) -> str:
    """m and s, as far as the loss has them."""
    kind = MARGIN_LOSSES[recipe.loss]
    parts = [f"m = {recipe.margin:g}"] if kind.margin is not None else []
    return ", ".join([*parts, f"s = {recipe.scale:g}"] if kind.scaled else parts) or "–"


def told(moment: Moment, stopped: bool, say: Say) -> str:
    """One line: how far the training is and what it came to."""
    recipe = moment.recipe
    text = say(
        "{loss}, step {step} of {steps}. Digits right: {right}. Equal error rate: {known} on known digits, {unknown} "
        "on digits it never saw.", loss=MARGIN_LOSSES[recipe.loss].title, step=moment.step, steps=recipe.steps,
        right=percent(moment.accuracy), known=percent(moment.known), unknown=percent(moment.unknown),
    )  # fmt: skip
    lead = say("Stopped.") + " " if stopped else ""
    return f'<p class="gh-verdict">{html.escape(lead + text)}</p>'


def table(done: Sequence[Moment], before: Moment | None, say: Say) -> str:
    """All trainings of the visitor, the newest last, above them the network before any training."""
    headers = [
        say("Loss"), say("Right class's logit"), say("Set to"), say("Dimensions"), say("Steps"), say("Digits right"),
        say("EER, known digits"), say("EER, unseen digits"), say("Paper"),
    ]  # fmt: skip
    rows = []
    if before is not None:
        name = html.escape(say("not trained at all"))
        rows.append([name, "–", "–", str(before.recipe.dimension), "0", percent(before.accuracy),
                     percent(before.known), percent(before.unknown), "–"])  # fmt: skip
    for one in done:
        kind = MARGIN_LOSSES[one.recipe.loss]
        rows.append([
            f"<b>{html.escape(kind.title)}</b>", html.escape(kind.formula), settings(one.recipe),
            str(one.recipe.dimension), str(one.step), percent(one.accuracy), percent(one.known), percent(one.unknown),
            html.escape(kind.source),
        ])  # fmt: skip
    note = say(
        "EER, the equal error rate: two pictures are called equal if the angle between their features is small enough; "
        "at the angle where as many equal pairs are refused as different ones are taken, this share of each is wrong. "
        "Known digits took part in the training, with other pictures; unseen ones are compared among themselves, as a "
        "face network compares people whom it was not trained on. By luck it would be 50 %."
    )
    return f'<div class="gh-scroll">{draw.table(headers, rows)}</div><p class="gh-note">{html.escape(note)}</p>'


def detail(found: Probe | None, pixels: np.ndarray, label: int, place: int, say: Say) -> str:
    """One picture: its angles, its logits with the margin and without, and what the gradient asks of its feature."""
    lead = say("Test picture {n}: a {label}.", n=place + 1, label=label)
    if found is None:
        text = say("This digit took no part in the training, so no class is the right one and there is no loss.")
        return f'<div class="gh-chips">{digit(pixels, say)}<p>{html.escape(f"{lead} {text}")}</p></div>'
    shares = np.exp(found.told - found.told.max())
    shares /= shares.sum()
    strength, plain = float(np.linalg.norm(found.gradient)), float(np.linalg.norm(found.unmoved))
    compare = "∞" if plain < 1e-12 else say("{times} times as much", times=f"{strength / plain:.3g}")
    if math.isclose(strength, plain, rel_tol=1e-3):
        compare = say("the same")
    text = say(
        "Angle to its class: {angle}°. Loss: {loss} nats. The gradient on its feature has the length {strength}; "
        "without the margin it would be {plain}: {compare}.", angle=f"{found.angles[found.label]:.1f}",
        loss=f"{found.loss:.3g}", strength=f"{strength:.3g}", plain=f"{plain:.3g}", compare=compare,
    )  # fmt: skip
    headers = [say("Class"), say("angle"), say("logit without margin"), say("logit with margin"), say("probability")]
    rows = []
    for each in dict.fromkeys([*np.argsort(found.angles, kind="stable")[:4].tolist(), found.label]):
        rows.append([
            f'<b style="color:{DIGITS[each]}">{each}</b>', f"{found.angles[each]:.1f}°", f"{found.plain[each]:.2f}",
            f"{found.told[each]:.2f}", percent(float(shares[each])),
        ])  # fmt: skip
    return (
        f'<div class="gh-chips">{digit(pixels, say)}</div><p>{html.escape(f"{lead} {text}")}</p>'
        f"{draw.table(headers, rows)}"
    )
