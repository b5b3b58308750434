"""The widgets that say how a picture is drawn, the request that they make, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import gradio as gr

from pipelines.common.errors import UserError
from pipelines.ui.i18n import label

from .contract import SAMPLER_TITLES, SAMPLERS, Backend, DiffusionRequest

# What `sampling` returns, in this order; `asked` takes their values, `restored` gives them back.
FIELDS = ("negative_prompt", "seed", "num_steps", "guidance_scale", "sampler", "width", "height", "precision")
STEPS, GUIDANCE = (2, 100), (-5.0, 30.0)  # of the sliders; a run that is restored may lie outside, and widens them
DICE = "() => String(Math.floor(Math.random() * 2 ** 31))"


def asked(prompt: str | None, backend: Backend, weights: str, *values: Any, **more: Any) -> DiffusionRequest:
    """The request that the widgets make. values: of `sampling`, in its order. more: other fields of the request.

    UserError: the seed is no number; all else is looked at by `pipeline.steps`.
    """
    given = dict(zip(FIELDS, values, strict=True))
    given["negative_prompt"] = given["negative_prompt"] or ""
    given["seed"] = seed_of(given["seed"])
    given["width"], given["height"] = (_number(given[side]) if given[side] else None for side in ("width", "height"))
    given["num_steps"] = _number(given["num_steps"])
    return DiffusionRequest(prompt or "", backend=backend, weights=weights, **{**given, **more})


def seed_of(text: Any) -> int:
    """A seed as it was typed; empty is 0. UserError: it is no whole number."""
    text = str(text if text is not None else "").strip()
    if not text:
        return 0
    if len(text) > 40 or not text.removeprefix("-").isdecimal():
        raise UserError("The seed must be a whole number between 0 and 2⁶³ − 1.")
    return int(text)


def _number(value: Any) -> int:
    """What is not whole is left for the check to refuse."""
    whole = isinstance(value, int | float) and value == value and abs(value) < 2**63 and int(value) == value
    return int(value) if whole else cast(int, value)


def sampling(page: str) -> list[Any]:
    """The widgets, `FIELDS` in order. page: of whose element ids they are part, such as "draw"."""
    usual = DiffusionRequest("")
    negative = gr.Textbox(
        "", lines=1, max_lines=4, label=label("Not to be seen: negative prompt"), elem_id=f"diffusion-{page}-negative"
    )
    # A text, not a number: a browser's numbers are exact up to 2⁵³ only, and a seed is exact or another picture.
    with gr.Row(equal_height=True):
        seed = gr.Textbox(
            str(usual.seed), lines=1, max_lines=1, label=label("Seed"), scale=4, min_width=120,
            elem_id=f"diffusion-{page}-seed",
        )  # fmt: skip
        dice = gr.Button(label("Roll a die"), scale=1, min_width=90, elem_id=f"diffusion-{page}-dice")
    dice.click(None, None, seed, js=DICE, api_visibility="private")
    steps = gr.Slider(*STEPS, usual.num_steps, step=1, label=label("Steps"), elem_id=f"diffusion-{page}-steps")
    guidance = gr.Slider(
        *GUIDANCE, usual.guidance_scale, step=0.5, label=label("Guidance: how strongly the prompt is followed"),
        elem_id=f"diffusion-{page}-guidance",
    )  # fmt: skip
    sampler = gr.Dropdown(
        [(SAMPLER_TITLES[name], name) for name in SAMPLERS], value=usual.sampler, label=label("Sampler"),
        elem_id=f"diffusion-{page}-sampler",
    )  # fmt: skip
    return [negative, seed, steps, guidance, sampler, *_size(page)]


def _size(page: str) -> list[Any]:
    """Width, height and precision."""
    with gr.Accordion(label("Size and precision"), open=False):
        with gr.Row():
            width, height = (
                gr.Number(
                    None, precision=0, label=label(text), placeholder=label("the weights' own"), min_width=110,
                    elem_id=f"diffusion-{page}-{text.lower()}",
                )
                for text in ("Width", "Height")
            )  # fmt: skip
        precision = gr.Radio(
            [("float32", "float32"), (label("Reduced, where that is faster here"), "reduced")], value="float32",
            label=label("Precision of the rebuilt network"), elem_id=f"diffusion-{page}-precision",
        )  # fmt: skip
    return [width, height, precision]


def restored(request: DiffusionRequest) -> Sequence[Any]:
    """Updates for the widgets, so that they say what a request says."""
    steps, guidance = request.num_steps, request.guidance_scale
    return [
        request.negative_prompt,
        str(request.seed),
        gr.update(value=steps, minimum=min(STEPS[0], steps), maximum=max(STEPS[1], steps)),
        gr.update(value=guidance, minimum=min(GUIDANCE[0], guidance), maximum=max(GUIDANCE[1], guidance)),
        request.sampler,
        request.width,
        request.height,
        request.precision,
    ]
