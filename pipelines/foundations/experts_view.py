"""The toy mixture of experts as pictures, bars and curves. No gradio, no torch: `say` translates."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from pipelines.ui import draw
from pipelines.ui.charts import INKS, Series, ink, line_chart

from .experts_contract import NETWORKS, Picture

Say = Callable[..., str]
NAMES = {
    "experts": "mixture of experts",
    "size": "dense, of the same size",
    "cost": "dense, of the same cost",
    "frozen": "control: experts whose router never learns",
}
GRID = "display:grid;grid-template-columns:repeat(auto-fill,minmax(max(130px,29%),1fr));gap:.6rem 1rem"  # three, or two
LOW, HIGH = np.array([213, 94, 0], float), np.array([0, 114, 178], float)  # of the two colours, apart without red-green


def pictures(picture: Picture, say: Say) -> str:
    """The pattern, what each network makes of it, and which expert works where."""
    shown = [
        _square(_two(picture.wanted), say("the pattern"), ""),
        _square(_two(picture.answers["experts"]), say(NAMES["experts"]), _right(picture, "experts", say)),
        _square(_who(picture), say("who works where"), say("strong: the router is sure"), _numbers(picture)),
    ]
    shown += [
        _square(_two(picture.answers[name]), say(NAMES[name]), _right(picture, name, say)) for name in NETWORKS[1:]
    ]
    return f'<div style="{GRID}">{"".join(shown)}</div>'


def _right(picture: Picture, name: str, say: Say) -> str:
    return say("{share} right", share=f"{picture.curves[-1, 1 + NETWORKS.index(name)]:.1%}")


def _two(values: np.ndarray) -> np.ndarray:
    """(S, S) probability of the second colour -> RGB: grey where it is undecided."""
    share = values[..., None]
    full = LOW * (1 - share) + HIGH * share
    strength = np.abs(2 * share - 1) ** 0.7
    return np.round(full * strength + 225 * (1 - strength)).astype(np.uint8)


def _who(picture: Picture) -> np.ndarray:
    """(S, S, 3): each point in the colour of its likeliest expert, the paler the less sure the router is."""
    inks = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in INKS], float)
    even = 1 / len(picture.load)
    strength = (0.25 + 0.75 * np.clip((picture.sure - even) / (1 - even), 0, 1))[..., None]
    return np.round(inks[picture.expert] * strength + 255 * (1 - strength)).astype(np.uint8)


def _numbers(picture: Picture) -> str:
    """Each expert's number in the middle of its land."""
    parts = []
    for expert in range(len(picture.load)):
        rows, columns = np.nonzero(picture.expert == expert)
        if len(rows) < 12:
            continue
        # The cell of the land that is nearest to its mean: the mean itself may lie outside.
        nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        x, y = (columns[nearest] + 0.5) / len(picture.expert), (rows[nearest] + 0.5) / len(picture.expert)
        parts.append(
            f'<text x="{100 * x:.0f}" y="{100 * y + 4:.0f}" font-size="13" font-weight="700" text-anchor="middle" '
            f'fill="#111" stroke="#fff" stroke-width="3" paint-order="stroke">{expert + 1}</text>'
        )
    return "".join(parts)


def _square(image: np.ndarray, name: str, note: str, marks: str = "") -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return (
        f'<figure style="margin:0;max-width:210px"><svg viewBox="0 0 100 100" role="img" '
        f'aria-label="{html.escape(name)}" style="width:100%;height:auto;border-radius:6px"><image width="100" '
        f'height="100" href="data:image/png;base64,{data}" style="image-rendering:pixelated"/>{marks}</svg>'
        f'<figcaption style="font-size:.82rem">{html.escape(name)}<br><b>{html.escape(note)}</b></figcaption></figure>'
    )


def loads(picture: Picture, say: Say) -> str:
    """How the work is spread: a bar for each expert, the even share marked by the words below."""
    rows = []
    for expert, share in enumerate(picture.load.tolist()):
        rows.append(
            f'<div class="gh-bar gh-worked"><span>{expert + 1}</span><span class="gh-track">'
            f'<span class="gh-fill" style="--c:{ink(expert)};width:{share:.1%}"></span></span>'
            f"<span>{share:.0%}</span></div>"
        )
    text = say(
        "Even would be {even}. Balance loss: {balance} (1 is even, {most} is one expert for everything). Choices "
        "without room in the last batch: {refused}.", even=f"{1 / len(picture.load):.0%}",
        balance=f"{picture.curves[-1, 5]:.2f}", most=f"{len(picture.load) / picture.knobs.top:g}",
        refused=f"{picture.refused:.0%}",
    )  # fmt: skip
    return f'<div class="gh-bars">{"".join(rows)}</div><p class="gh-note">{html.escape(text)}</p>'


def chart(picture: Picture, turned: Sequence[tuple[float, str]], say: Say) -> str:
    """The share of points right over the steps. turned: (step, what) of each switch that was turned meanwhile."""
    steps = picture.curves[:, 0].tolist()
    lines = [
        Series(say(NAMES[name]), steps, (100 * picture.curves[:, 1 + i]).tolist()) for i, name in enumerate(NETWORKS)
    ]
    return line_chart(
        lines, say("step"), say("points right, %"), y_range=(35, 100), x_range=(0, max(picture.recipe.steps, 1)),
        at_x=turned, at_y=[(50, say("luck"))], height=220, title=say("Points right over the steps"),
    )  # fmt: skip


def table(picture: Picture, bills: Mapping[str, tuple[int, int, int]], say: Say) -> str:
    """Beside each other: hidden units, parameters, multiplications for a point, and what comes of them."""
    headers = [
        "", say("Hidden units"), say("Parameters"), say("Multiplications a point"), say("Points right"),
    ]  # fmt: skip
    rows = []
    for i, name in enumerate(NETWORKS):
        hidden, parameters, products = bills[name]
        rows.append([
            html.escape(say(NAMES[name])), str(hidden), str(parameters), str(products),
            f"{picture.curves[-1, 1 + i]:.1%}",
        ])  # fmt: skip
    note = say(
        "The dense network of the same size has as many parameters and uses all of them for every point; the one of "
        "the same cost does as many multiplications as the experts at the start. The control divides the plane "
        "too, but as chance had it."
    )
    return f'<div class="gh-scroll">{draw.table(headers, rows)}</div><p class="gh-note">{html.escape(note)}</p>'


def told(picture: Picture, stopped: bool, say: Say) -> str:
    """One line: how far it is, and who is ahead."""
    right = dict(zip(NETWORKS, picture.curves[-1, 1:5].tolist(), strict=True))
    text = say(
        "Step {step} of {steps}: the experts have {experts} of the points right, dense of the same size {size}, dense "
        "of the same cost {cost}; the busiest expert gets {most} of the work, the idlest {least}.", step=picture.step,
        steps=picture.recipe.steps, experts=f"{right['experts']:.1%}", size=f"{right['size']:.1%}",
        cost=f"{right['cost']:.1%}", most=f"{picture.load.max():.0%}", least=f"{picture.load.min():.0%}",
    )  # fmt: skip
    lead = say("Stopped.") + " " if stopped else ""
    return f'<p class="gh-verdict">{html.escape(lead + text)}</p>'
