"""Draw: a picture from a prompt, watched while it takes shape; from another picture; and one that was saved, again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import gradio as gr

from pipelines.common.checkpoint import paths
from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.turns import Turns

from . import examples_page as examples
from . import program_page as programs
from . import replay_page as replays
from . import settings_page as settings
from . import start_page, view
from .contract import Backend, DiffusionEvent, DiffusionRequest, DiffusionResult
from .pipeline import entry, steps
from .prompt import load_tokenizer
from .prompt import read as read_prompt
from .record import write_png
from .running_page import PENDING, Seen, follow, keep, kept, shelf, silence
from .start_page import Given

COUNT = 4  # ticket, picture, what is told, file
turns = Turns()


def draw(
    prompt: str | None, given: Given | None, strength: float, backend: Backend, weights: str, negative: str | None,
    seed: str | None, count: float, guidance: float, sampler: str, width: float | None, height: float | None,
    precision: str, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Draw what a prompt says; the end that is predicted is shown at each step."""
    image, mask = start_page.read(given)
    asked = settings.asked(
        prompt, backend, weights, negative, seed, count, guidance, sampler, width, height, precision, image=image,
        mask=mask, strength=strength,
    )  # fmt: skip
    blocks.announce(progress)
    yield from _drawn(asked, request)


def draw_first(
    ticket: str | None, prompt: str | None, given: Given | None, strength: float, backend: Backend, weights: str,
    negative: str | None, seed: str | None, count: float, guidance: float, sampler: str, width: float | None,
    height: float | None, precision: str, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """`draw` when the tab is opened, unless something was drawn already."""
    if ticket is not None:
        yield silence(COUNT)
        return
    yield from draw(
        prompt, given, strength, backend, weights, negative, seed, count, guidance, sampler, width, height, precision,
        request, progress,
    )  # fmt: skip


def replay(
    path: str | None, given: Given | None, request: gr.Request, progress: gr.Progress = gr.Progress()
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Draw a dropped picture again, as its record says, and say whether it is the same."""
    asked = replays.asked(path, given)
    blocks.announce(progress)
    for shown in _drawn(asked, request):
        ticket, picture, told, *others = shown
        if isinstance(ticket, str) and ticket != PENDING:
            told = replays.verdict(str(path), kept(ticket).image, request) + told
        yield ticket, picture, told, *others


def _drawn(asked: DiffusionRequest, request: gr.Request) -> Iterator[tuple[Any, ...]]:
    """What the page shows of a run, `COUNT` values each time."""
    seen: Seen[DiffusionEvent] | None = None
    for seen in follow(steps(asked), request.session_hash, turns):
        if seen.ended or (seen.due and seen.event is not None and seen.event.result is None):
            yield _shown(asked, seen, request)
    if seen is None or not seen.ended:
        yield silence(COUNT)


def _shown(asked: DiffusionRequest, seen: Seen[DiffusionEvent], request: gr.Request) -> tuple[Any, ...]:
    speak, event = partial(say, request), seen.event
    if event is None:  # stopped before anything was begun
        return PENDING, gr.skip(), view.note(speak("Stopped.")), gr.skip()
    if seen.ended and event.result is not None:
        return _result(event.result, speak)
    # Nothing of another run stays beside the one that is under way.
    closed = gr.update(value=None, interactive=False)
    picture = gr.skip() if event.preview is None else view.picture(event.preview, asked.prompt)
    if seen.ended:
        return PENDING, picture, view.stopped(event.step, event.steps, speak), closed
    return PENDING, picture, view.progress(event.step, event.steps, seen.seconds, speak), closed


def _result(result: DiffusionResult, speak: view.Say) -> tuple[Any, ...]:
    png = write_png(result)
    file = gr.update(value=blocks.offer(png, named(result.request)), interactive=True)
    return (
        keep(result),
        view.picture(result.image, result.request.prompt, png),
        view.summary(result, speak),
        file,
    )


def named(request: DiffusionRequest) -> str:
    """A name for the picture's file: the prompt's first words in letters that every system takes, and the seed."""
    words = re.sub("[^a-z0-9]+", "-", request.prompt.lower())[:40].strip("-")
    return f"{words or 'picture'}-{request.seed}.png"


# --- beside the drawing ----------------------------------------------------------------------------------------------


def spell(prompt: str | None, negative: str | None, weights: str, request: gr.Request) -> str:
    """The prompts as the text encoder will get them, while they are being typed."""
    from .checks import check_text
    from .local import config_of

    check_text(prompt or "", "prompt")
    check_text(negative or "", "negative prompt")
    try:
        chosen = entry(weights)
        found = paths(chosen)
        tokenizer = load_tokenizer(found["vocab"].parent, config_of(chosen, found).text)
    except UserError:  # they are not here: the drawing says so when it is asked for
        return ""
    speak = partial(say, request)
    read, avoided = (read_prompt(tokenizer, text or "")[0] for text in (prompt, negative))
    return view.tokens(read, speak) + view.tokens(avoided, speak, negative=True)


def take(ticket: str | None) -> dict[str, Any]:
    """The drawing as the picture to begin from, with nothing painted over."""
    if ticket in (None, PENDING):
        raise UserError("Draw a picture to its end first.")
    path = blocks.offer(write_png(kept(ticket)), "drawing.png")
    return {"background": path, "layers": [], "composite": path}


def halt(request: gr.Request) -> None:
    """End the visitor's run after the call that it is at."""
    turns.halt(request.session_hash)


# --- widgets ---------------------------------------------------------------------------------------------------------


def _asking() -> tuple[gr.Textbox, gr.Button, gr.Button]:
    """The prompt, the button that draws and the one that stops."""
    prompt = gr.Textbox(
        examples.prompts()[0], lines=2, max_lines=8, label=label("What is to be seen: prompt"),
        elem_id="diffusion-draw-prompt",
    )  # fmt: skip
    with gr.Row():
        button = gr.Button(label("Draw it"), variant="primary", scale=2, min_width=90, elem_id="diffusion-draw-run")
        stop = gr.Button(label("Stop"), min_width=90, elem_id="diffusion-draw-stop")
    examples.prompt_row(prompt)
    return prompt, button, stop


def _showing() -> list[Any]:
    """Picture, what is told of it, its file, and where one is brought back."""
    picture = gr.HTML(view.empty(""), elem_id="diffusion-draw-picture")
    told = gr.HTML(elem_id="diffusion-draw-told", min_height=60)
    file = gr.DownloadButton(
        cast(Any, label("Save the picture, with its whole run inside")), interactive=False, size="sm",
        elem_id="diffusion-draw-file",
    )  # fmt: skip
    return [picture, told, file]


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    ticket = gr.State(None, delete_callback=lambda t: shelf().drop(t))
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            prompt, button, stop = _asking()
            tokens = gr.HTML(elem_id="diffusion-draw-tokens")
            sampling = settings.sampling("draw")
        with gr.Column(scale=3, min_width=320):
            picture, told, file = _showing()
            start, strength, taken = start_page.widgets("draw")
            back = replays.widget("draw")
    chosen = [switches.implementation, switches.weights]
    inputs = [prompt, start, strength, *chosen, *sampling]
    outputs = [ticket, picture, told, file]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress_on": told, **blocks.HEAVY}
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", **blocks.LIGHT}
    gr.on([button.click, prompt.submit], guarded(draw), inputs, outputs, **quiet)
    # The example is drawn when the tab is opened, not with the page: other tabs' visitors pay nothing.
    first = tab.select(guarded(draw_first), [ticket, *inputs], outputs, **quiet)
    switches.refresh(first)  # now that a model has been loaded, the card can say where it runs
    stop.click(guarded(halt), None, None, **quick)
    typed = [tab.select, prompt.change, sampling[0].change, switches.weights.change]
    gr.on(typed, guarded(spell), [prompt, sampling[0], switches.weights], tokens, trigger_mode="always_last", **quick)
    taken.click(guarded(take), ticket, start, **quick)
    restored = back.upload(guarded(replays.restore), back, [prompt, strength, *chosen, start, *sampling], **quick)
    restored.success(guarded(replay), [back, start], outputs, **quiet)
    gr.api(guarded(programs.draw), api_name="diffusion_draw", **blocks.HEAVY)
