"""X-ray: what guidance adds at a call, where every token is looked at from, and what each word was good for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.turns import Turns

from . import inside_program_page as programs
from . import insight
from . import settings_page as settings
from . import xray_view as view
from .contract import Attention, Backend, Deletion, DiffusionEvent, DiffusionRequest
from .pipeline import steps
from .running_page import follow, nbytes, shelf, silence
from .travel import Node
from .view import note, picture

PROMPT = "a red apple, twemoji style"
OFFERED = 60  # words that can be chosen: few encoders read more
DRAWN = 9  # outputs of `draw`: ticket, told, image, call, words, rays, layer, tokens, deleted

drawing, deleting = Turns(), Turns()


@dataclass
class Slide:
    """A run that is looked into. looked: the attention at the call that was looked at last."""

    node: Node
    looked: tuple[int, Attention] | None = None

    def attention(self, call: int) -> Attention:
        """At a call; asks the network once. UserError: as `insight.attention`."""
        if self.looked is None or self.looked[0] != call:
            self.looked = call, insight.attention(self.node, call)
        return self.looked[1]


def kept(ticket: str | None) -> Slide:
    """The run behind a ticket. UserError: there is none yet, or it had to make room."""
    if ticket is None:
        raise UserError("There is no run to be looked into yet; draw one first.")
    slide = shelf().get(ticket)
    if not isinstance(slide, Slide):
        raise UserError("This run had to make room for others; draw it again.")
    return slide


# --- a run, and what guidance and attention do at a call of it -------------------------------------------------------


def draw(
    ticket: str | None, call: float, scales: str, layer: int, one_scale: bool, prompt: str | None, backend: Backend,
    weights: str, negative: str, seed: str, count: float, guidance: float, sampler: str, width: float, height: float,
    precision: str, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Draw a picture with every call kept, and look into one of them."""
    wanted = scales_of(scales)
    blocks.announce(progress)
    values = (negative, seed, count, guidance, sampler, width, height, precision)
    asked = settings.asked(prompt, backend, weights, *values, history=True)
    speak, last = partial(say, request), None
    for last in follow(steps(asked), request.session_hash, drawing):
        if not last.ended and last.due and last.event is not None:
            told = note(speak("Call {n} of {all} …", n=last.event.step, all=last.event.steps))
            image = gr.skip() if last.event.preview is None else picture(last.event.preview, asked.prompt)
            yield gr.skip(), told, image, *silence(DRAWN - 3)
    if last is None or not last.ended:
        yield silence(DRAWN)
        return
    result = last.event.result if last.event is not None else None
    if result is None or result.history is None:
        yield gr.skip(), note(speak("Stopped.")), *silence(DRAWN - 2)
        return
    slide = Slide(Node(result.request, result.image, result.history))
    shelf().drop(ticket)
    ticket = shelf().put(slide, nbytes(result) + _room(result.history.latents))
    told = note(speak("{n} calls in {seconds} s.", n=result.calls, seconds=f"{last.seconds:.1f}"))
    calls = slide.node.calls
    at = _at(slide, call)
    slider = gr.update(minimum=calls[0], maximum=max(calls[-1], calls[0] + 1), value=at)
    above = ticket, told, picture(result.image, asked.prompt), slider, _offered(result.request.prompt)
    yield *above, *_seen(slide, at, wanted, layer, one_scale, speak), ""


def _room(latents: np.ndarray) -> int:
    """Bytes that the attention of one call may take: 80 labels over some eight times the cells, all layers together."""
    return 80 * 8 * 4 * latents.shape[-1] * latents.shape[-2]


def draw_first(
    ticket: str | None, call: float, scales: str, layer: int, one_scale: bool, prompt: str | None, backend: Backend,
    weights: str, negative: str, seed: str, count: float, guidance: float, sampler: str, width: float, height: float,
    precision: str, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """`draw` when the page is opened for the first time."""
    if ticket is not None:
        yield silence(DRAWN)
        return
    yield from draw(
        None, call, scales, layer, one_scale, prompt, backend, weights, negative, seed, count, guidance, sampler, width,
        height, precision, request, progress,
    )  # fmt: skip


def look(
    ticket: str | None, call: float, scales: str, layer: int, one_scale: bool, request: gr.Request
) -> tuple[Any, ...]:  # fmt: skip
    """Another call, or other guidance scales, of the run that was drawn."""
    if ticket is None:
        return silence(3)
    slide = kept(ticket)
    return _seen(slide, _at(slide, call), scales_of(scales), layer, one_scale, partial(say, request))


def relook(ticket: str | None, call: float, layer: int, one_scale: bool, request: gr.Request) -> Any:
    """Another layer, or another brightness, of the attention."""
    if ticket is None:
        return gr.skip()
    slide = kept(ticket)
    return _tokens(slide, _at(slide, call), layer, one_scale, partial(say, request))[1]


def _at(slide: Slide, call: float | None) -> int:
    calls = slide.node.calls
    return min(max(int(call or 0), calls[0]), calls[-1])


def _seen(
    slide: Slide, call: int, scales: tuple[float, ...], layer: int, one_scale: bool, speak: view.Say
) -> tuple[Any, ...]:  # fmt: skip
    """What guidance does, the list of layers, and the tokens. What these weights do not allow is said in its place."""
    request = slide.node.request
    try:
        rays = view.guidance(insight.xray(slide.node, call, scales), call, request.guidance_scale, speak)
    except insight.FollowedInside as error:
        rays = note(str(error))
    return rays, *_tokens(slide, call, layer, one_scale, speak)


def _tokens(slide: Slide, call: int, layer: int, one_scale: bool, speak: view.Say) -> tuple[Any, str]:
    if slide.node.request.backend != "local":
        return gr.skip(), note(speak("Attention is known for our own network only; choose “Rebuilt here” above."))
    found = slide.attention(call)
    sizes = [f"{n}: {each.shape[1]}×{each.shape[2]}" for n, each in enumerate(found.layers, 1)]
    choices = [(label("Mean of all layers"), 0), *((name, n) for n, name in enumerate(sizes, 1))]
    place = layer if isinstance(layer, int) and 0 <= layer <= len(found.layers) else 0
    html = view.attention(found, slide.node.image, place, bool(one_scale), speak)
    return gr.update(choices=choices, value=place), html


def scales_of(text: str | None) -> tuple[float, ...]:
    """Guidance scales as they were typed. UserError: they are no numbers that `insight.xray` shows."""
    try:
        found = tuple(float(each) for each in re.split(r"[\s,;，、；]+", text or "") if each)
    except ValueError:
        raise UserError("Write guidance scales as numbers with commas between them, such as 0, 1, 4, 8.") from None
    insight.check_scales(found)
    return found


def halt(request: gr.Request) -> None:
    """End what the visitor's page is doing after the call that it is at."""
    drawing.halt(request.session_hash)
    deleting.halt(request.session_hash)


# --- a word less -----------------------------------------------------------------------------------------------------


def _offered(prompt: str) -> Any:
    """The list of words; the first ones chosen."""
    found = insight.words(prompt)[:OFFERED]
    choices = [(f"{n}. {view.visible(word)}", str(n - 1)) for n, word in enumerate(found, 1)]
    return gr.update(choices=choices, value=[value for _, value in choices[: insight.MOST_WORDS]])


def delete(
    ticket: str | None, chosen: list[str] | None, request: gr.Request, progress: gr.Progress = gr.Progress()
) -> Iterator[tuple[Any, Any]]:
    """Draw the prompt without each of the chosen words from the same noise, and whole from other noise as a control."""
    slide, speak = kept(ticket), partial(say, request)
    picked = sorted({int(value) for value in chosen or [] if str(value).isdecimal()})
    asked: DiffusionRequest = replace(slide.node.request, history=False, previews=False)
    plain, found, last = None, list[Deletion](), None
    for last in follow(insight.deletions(asked, picked), request.session_hash, deleting):
        if last.ended or last.event is None:
            continue
        if isinstance(last.event, Deletion):
            found.append(last.event)
            yield gr.skip(), view.deletions(plain, found, speak)
            continue
        if plain is None and last.event.result is not None:
            plain = last.event.result.image
        if last.due:
            yield _progress(last.event, len(found) + (plain is not None), len(picked) + 2, speak), gr.skip()
    if last is None or not last.ended:
        yield silence(2)  # type: ignore[misc]
        return
    done = bool(found) and found[-1].word is None
    told = speak("Done.") if done else speak("Stopped.")
    yield note(told), view.deletions(plain, found, speak)


def _progress(event: DiffusionEvent, done: int, all_runs: int, speak: view.Say) -> str:
    text = speak("Run {run} of {runs}: call {n} of {all} …", run=min(done + 1, all_runs), runs=all_runs, n=event.step,
                 all=event.steps)  # fmt: skip
    return note(text)


# --- the page --------------------------------------------------------------------------------------------------------


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    gr.Markdown(
        label(
            "At every call the network is asked twice: with your prompt, and with the negative one. Guidance follows "
            "the difference. Look at it at any call, see where each token is looked at from, and delete a word."
        )
    )
    ticket = gr.State(None, delete_callback=lambda t: shelf().drop(t))
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            form, run, stop = _left()
        with gr.Column(scale=4, min_width=320):
            told = gr.HTML(elem_id="diffusion-xray-told")
            call = blocks.any_value(gr.Slider(0, 19, 5, step=1, label=label("Look at the call after this many"),
                                  elem_id="diffusion-xray-call"))  # fmt: skip
            rays = gr.HTML(elem_id="diffusion-xray-rays")
            scales = gr.Textbox(
                ", ".join(f"{each:g}" for each in insight.SCALES), max_lines=1, label=label("Guidance scales"),
                elem_id="diffusion-xray-scales",
            )  # fmt: skip
            layer, one_scale, tokens = _attention()
            words, button, stop_words, progress, deleted = _deletion()
    image = form[0]
    looks = [call, scales, layer, one_scale]
    inputs = [ticket, *looks, form[1], switches.implementation, switches.weights, *form[2:]]
    outputs = [ticket, told, image, call, words, rays, layer, tokens, deleted]
    heavy: dict[str, Any] = {"api_visibility": "private", "show_progress_on": told, **blocks.HEAVY}
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    run.click(guarded(draw), inputs, outputs, **heavy)
    switches.refresh(tab.select(guarded(draw_first), inputs, outputs, **heavy))
    gr.on([stop.click, stop_words.click], guarded(halt), None, None, **quick, **blocks.LIGHT)
    gr.on(
        [call.input, scales.submit, scales.blur], guarded(look), [ticket, *looks], [rays, layer, tokens],
        trigger_mode="always_last", **heavy,
    )  # fmt: skip
    gr.on(
        [layer.input, one_scale.input], guarded(relook), [ticket, call, layer, one_scale], tokens,
        trigger_mode="always_last", **quick, **blocks.LIGHT,
    )  # fmt: skip
    button.click(guarded(delete), [ticket, words], [progress, deleted], **{**heavy, "show_progress_on": progress})
    gr.api(guarded(programs.xray), api_name="diffusion_xray", **blocks.HEAVY)


def _left() -> tuple[list[Any], gr.Button, gr.Button]:
    """The picture, the prompt and the settings; draw and stop."""
    prompt = gr.Textbox(PROMPT, lines=2, max_lines=6, label=label("Prompt"), elem_id="diffusion-xray-prompt")
    with gr.Row():
        run = gr.Button(label("Draw and look inside"), variant="primary", scale=2, min_width=120,
                        elem_id="diffusion-xray-run")  # fmt: skip
        stop = gr.Button(label("Stop"), min_width=70, elem_id="diffusion-xray-stop")
    image = gr.HTML(elem_id="diffusion-xray-image")
    return [image, prompt, *settings.sampling("xray")], run, stop


def _attention() -> tuple[Any, Any, Any]:
    gr.Markdown(label("### Where each token is looked at from"))
    with gr.Row():
        layer = blocks.any_value(gr.Dropdown(
            [(label("Mean of all layers"), 0)], value=0, label=label("Cross-attention of"),
            elem_id="diffusion-xray-layer",
        ))  # fmt: skip
        one_scale = gr.Checkbox(False, label=label("One scale for all maps"), elem_id="diffusion-xray-one")
    return layer, one_scale, gr.HTML(elem_id="diffusion-xray-tokens")


def _deletion() -> tuple[Any, ...]:
    gr.Markdown(label("### A word less, from the same noise"))
    words = blocks.any_value(
        gr.CheckboxGroup([], label=label("Words to delete, one at a time"), elem_id="diffusion-xray-words")
    )
    with gr.Row():
        button = gr.Button(label("Delete each of them"), variant="primary", scale=2, min_width=120,
                           elem_id="diffusion-xray-delete")  # fmt: skip
        stop = gr.Button(label("Stop"), min_width=70, elem_id="diffusion-xray-stop-words")
    return words, button, stop, gr.HTML(elem_id="diffusion-xray-progress"), gr.HTML(elem_id="diffusion-xray-deleted")
