"""Time travel: every latent of a run is kept; go back to any call, change something, and go on from there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.turns import Turns

from . import inside_program_page as programs
from . import settings_page as settings
from . import travel_view as view
from . import tree_file
from .contract import Backend, DiffusionRequest
from .insight import moment
from .pipeline import steps
from .running_page import follow, shelf, silence
from .travel import CHANGES, Tree, fork

EVERY = 0.25  # seconds between two looks at a growing film strip, at least
FRAMES = 24  # calls in the film strip; of longer runs some are left out
QUICK = 8.0  # seconds that the first run may take for a fork to be shown with nothing touched
EXAMPLE = ("a red apple, twemoji style", "a green apple, twemoji style", 5)  # the root, its first fork, and where
OUT = 8  # outputs of a run: ticket, picked, call, told, tree, moment, compare, strip

drawing, filming = Turns(), Turns()


@dataclass(frozen=True)
class Trip:
    """A visitor's tree. strips: frames of the film strip by run, as far as they are drawn; runs never change. seconds:
    of the last run's calls."""

    tree: Tree
    strips: dict[int, list[view.Frame]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        return self.tree.size + 10_000 * FRAMES * len(self.tree.nodes)


def kept(ticket: str | None) -> Trip:
    """The tree behind a ticket. UserError: there is none yet, or it had to make room."""
    if ticket is None:
        raise UserError("There is no tree yet; begin one first.")
    trip = shelf().get(ticket)
    if not isinstance(trip, Trip):
        raise UserError("This tree had to make room for others; load it from its file, or begin another one.")
    return trip


def put(trip: Trip, instead: str | None) -> str:
    """Keep a tree; the one that it has grown from is forgotten. Returns its ticket."""
    shelf().drop(instead)
    return shelf().put(trip, trip.nbytes)


# --- drawing ---------------------------------------------------------------------------------------------------------


def begin(
    ticket: str | None, prompt: str | None, backend: Backend, weights: str, negative: str, seed: str, count: float,
    guidance: float, sampler: str, width: float, height: float, precision: str, request: gr.Request,
    progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Draw the root of a new tree. The tree before it is forgotten when it is done."""
    blocks.announce(progress)
    values = (negative, seed, count, guidance, sampler, width, height, precision)
    asked = settings.asked(prompt, backend, weights, *values, history=True)
    yield from _grow(asked, Tree(), {}, ticket, None, 0, request)


def go_on(
    ticket: str | None, picked: int, call: float, prompt: str | None, backend: Backend, weights: str, negative: str,
    seed: str, count: float, guidance: float, sampler: str, width: float, height: float, precision: str,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Fork the picked run at a call, with whatever of the settings was changed."""
    trip = kept(ticket)
    trip.tree.check_room()  # before minutes go into a run that would find no place
    node = trip.tree.nodes[picked]
    blocks.announce(progress)
    values = (negative, seed, count, guidance, sampler, width, height, precision)
    wanted = settings.asked(prompt, backend, node.request.weights, *values)
    asked = fork(node, _call(call), {name: getattr(wanted, name) for name in CHANGES})
    yield from _grow(asked, trip.tree, trip.strips, ticket, picked, _call(call), request)


def first(
    ticket: str | None, prompt: str | None, backend: Backend, weights: str, negative: str, seed: str, count: float,
    guidance: float, sampler: str, width: float, height: float, precision: str, request: gr.Request,
    progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """The example when the page is opened: a root and, where that is soon done, a fork. The root stays picked, and the
    form as it is: a visitor may be typing already."""
    if ticket is not None:
        yield silence(OUT)
        return
    values = (negative, seed, count, guidance, sampler, width, height, precision)
    shown = silence(OUT)
    for shown in begin(None, prompt, backend, weights, *values, request, progress):
        yield shown
    ticket = shown[0]
    if not isinstance(ticket, str) or prompt != EXAMPLE[0]:
        return
    if kept(ticket).seconds > QUICK or EXAMPLE[2] not in kept(ticket).tree.nodes[0].calls:
        return
    speak, at = partial(say, request), EXAMPLE[2]
    for shown in go_on(ticket, 0, at, EXAMPLE[1], backend, weights, *values, request, progress):
        if isinstance(shown[0], str):
            trip = kept(shown[0])
            shown = (shown[0], 0, _slider(trip, 0, at), shown[3], *_shown(trip, 0, at, speak))
        yield shown


def _grow(
    asked: DiffusionRequest, tree: Tree, strips: dict[int, list[view.Frame]], ticket: str | None, parent: int | None,
    call: int, request: gr.Request,
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Draw one more run of a tree, with previews, and show it in its place."""
    speak, last = partial(say, request), None
    for seen in follow(steps(asked), request.session_hash, drawing):
        last = seen
        if not seen.ended and seen.due and seen.event is not None:
            told = view.note(speak("Call {n} of {all} …", n=seen.event.step, all=seen.event.steps))
            image = gr.skip() if seen.event.preview is None else view.figures([(seen.event.preview, "")])
            yield *silence(3), told, gr.skip(), image, *silence(2)
    if last is None or not last.ended:
        yield silence(OUT)
        return
    result = last.event.result if last.event is not None else None
    if result is None:
        told = view.note(speak("Stopped: nothing was added to the tree."))
        shown = silence(4) if parent is None else _shown(Trip(tree, strips), parent, call, speak)
        yield *silence(3), told, *shown
        return
    trip = Trip(tree.add(result, parent, call), strips, result.seconds["denoise"])
    index = len(trip.tree.nodes) - 1
    node = trip.tree.nodes[index]
    at = call if parent is not None and call in node.calls else node.first + len(node.calls) // 4 * (parent is None)
    text = speak("Run {run}: {n} calls in {seconds} s.", run=index + 1, n=result.calls, seconds=f"{last.seconds:.1f}")
    yield put(trip, ticket), index, _slider(trip, index, at), view.note(text), *_shown(trip, index, at, speak)


def _call(value: float | None) -> int:
    return int(value or 0)


def halt(request: gr.Request) -> None:
    """End the visitor's run after the call that it is at."""
    drawing.halt(request.session_hash)


# --- looking ---------------------------------------------------------------------------------------------------------


def _shown(trip: Trip, index: int, call: int, speak: view.Say) -> tuple[Any, ...]:
    """Tree, pictures, comparison and film strip, as far as that is drawn."""
    node = trip.tree.nodes[index]
    latents, end = moment(node, call)
    return (
        view.tree_picture(trip.tree, index, call, speak), view.moment(latents, end, node.image, call, speak),
        view.compare(trip.tree, index, speak), _strip(trip, index, call, speak),
    )  # fmt: skip


def _slider(trip: Trip, index: int, call: int) -> Any:
    calls = trip.tree.nodes[index].calls
    return gr.update(minimum=calls[0], maximum=max(calls[-1], calls[0] + 1), value=call)


def _strip(trip: Trip, index: int, call: int, speak: view.Say) -> str:
    wanted = len(view.frames_of(trip.tree.nodes[index].calls, FRAMES))
    return view.strip(trip.strips.get(index, []), call, wanted, speak)


def _near(trip: Trip, picked: int | None, call: float | None) -> tuple[int, int]:
    """The run and the call that are meant, brought to what there is."""
    index = min(max(int(picked or 0), 0), len(trip.tree.nodes) - 1)
    calls = trip.tree.nodes[index].calls
    return index, min(max(_call(call), calls[0]), calls[-1])


def pick(
    ticket: str | None, picked: int | None, call: float, request: gr.Request, event: gr.EventData
) -> tuple[Any, ...]:  # fmt: skip
    """Go to the run or the call that was clicked, in the tree or in the film strip. The settings become the run's."""
    data = event._data if isinstance(event._data, dict) else {}
    if ticket is None:
        return silence(15)
    trip = kept(ticket)
    filming.halt(request.session_hash, clear=True)  # what it is about to show is of the run before
    told = [data.get(name) for name in ("run", "call")]
    run, at = (value if isinstance(value, int) and not isinstance(value, bool) else None for value in told)
    index, place = _near(trip, picked if run is None else run, call if at is None else at)
    asked = trip.tree.nodes[index].request
    form = silence(9) if index == picked else (asked.prompt, *settings.restored(asked))
    return index, _slider(trip, index, place), *form, *_shown(trip, index, place, partial(say, request))


def look(ticket: str | None, picked: int | None, call: float, request: gr.Request) -> tuple[Any, ...]:
    """Another call of the same run."""
    if ticket is None:
        return silence(3)
    trip = kept(ticket)
    tree, pictures, _, strip = _shown(trip, *_near(trip, picked, call), partial(say, request))
    return tree, pictures, strip


def film(ticket: str | None, picked: int | None, call: float, request: gr.Request) -> Iterator[Any]:
    """Draw what is missing of a run's film strip, frame by frame, unless another one is asked for."""
    trip, speak, shown = shelf().get(ticket), partial(say, request), 0.0
    if not isinstance(trip, Trip):
        yield gr.skip()
        return
    index, at = _near(trip, picked, call)
    node = trip.tree.nodes[index]
    wanted = view.frames_of(node.calls, FRAMES)
    with filming.take(request.session_hash) as turn:
        for each in wanted[len(trip.strips.get(index, [])) :]:
            if turn.halted:
                break
            frame = view.frame(each, *moment(node, each))
            trip.strips[index] = [*trip.strips.get(index, [])[: wanted.index(each)], frame]
            if time.perf_counter() - shown >= EVERY:
                shown = time.perf_counter()
                yield _strip(trip, index, at, speak)
    yield gr.skip() if turn.replaced else _strip(trip, index, at, speak)


# --- the file --------------------------------------------------------------------------------------------------------


def save_file(ticket: str | None, request: gr.Request) -> Any:
    """The whole tree as one file."""
    data = tree_file.write(kept(ticket).tree)
    if len(data) > limits().upload_bytes:
        text = "The file has {size} MB, and this page takes back {most} MB; save a smaller tree if you want to go on."
        gr.Warning(say(request, text, size=len(data) // 10**6, most=limits().upload_bytes // 10**6))
    return gr.update(value=blocks.offer(data, "runs.safetensors"), visible=True)


def load(ticket: str | None, path: str | None, request: gr.Request) -> tuple[Any, ...]:
    """A tree that was saved here, instead of the one that is shown."""
    if not path:
        raise UserError("Choose a file of runs that was saved here first.")
    file, speak = Path(path), partial(say, request)
    if file.stat().st_size > limits().history_mb * 1_000_000 + tree_file.header_bytes():
        raise UserError("This file is larger than a full tree can be, so it was not read.")
    trip = Trip(tree_file.read(file.read_bytes()))
    for turns in (drawing, filming):  # a run of the tree before would end in its place
        turns.halt(request.session_hash, clear=True)
    index = len(trip.tree.nodes) - 1
    asked, at = trip.tree.nodes[index].request, trip.tree.nodes[index].first
    told = view.note(speak("{n} runs were loaded.", n=index + 1))
    form = (asked.prompt, *settings.restored(asked))
    shown = _shown(trip, index, at, speak)
    return put(trip, ticket), index, _slider(trip, index, at), told, *shown, *form


# --- the page --------------------------------------------------------------------------------------------------------


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    gr.Markdown(
        label(
            "Every step of a run is kept. Pick a moment in the tree or in the film strip, change the prompt, the "
            "guidance, the sampler or the noise, and go on from there: the run forks, and the tree grows."
        )
    )
    ticket, picked = gr.State(None, delete_callback=lambda t: shelf().drop(t)), gr.State(0)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            form, buttons, files = _left()
        with gr.Column(scale=4, min_width=320):
            told = gr.HTML(elem_id="diffusion-travel-told")
            tree = gr.HTML(elem_id="diffusion-travel-tree", js_on_load=view.ASK)
            call = gr.Slider(
                0, 19, 5, step=1, label=label("Go to the moment after this many calls"),
                elem_id="diffusion-travel-call",
            )  # fmt: skip
            pictures = gr.HTML(elem_id="diffusion-travel-moment")
            strip = gr.HTML(elem_id="diffusion-travel-strip", js_on_load=view.ASK)
            compare = gr.HTML(elem_id="diffusion-travel-compare")
    blocks.any_value(call)  # its range is the picked run's
    seen = [tree, pictures, compare, strip]
    _wire(tab, switches, (ticket, picked, call), form, buttons, files, told, seen)
    gr.api(guarded(programs.fork), api_name="diffusion_fork", **blocks.HEAVY)


def _left() -> tuple[list[Any], list[gr.Button], list[Any]]:
    """Prompt and settings; fork, stop and begin; save, the file, and load."""
    prompt = gr.Textbox(EXAMPLE[0], lines=2, max_lines=6, label=label("Prompt"), elem_id="diffusion-travel-prompt")
    with gr.Row():
        fork_it = gr.Button(label("Fork here"), variant="primary", min_width=110, elem_id="diffusion-travel-fork")
        stop = gr.Button(label("Stop"), min_width=70, elem_id="diffusion-travel-stop")
    new = gr.Button(label("Begin a new tree"), size="sm", elem_id="diffusion-travel-begin")
    values = settings.sampling("travel")
    gr.Markdown(
        label(
            "A fork goes on from the very latents, so without a change it draws the same picture to the last bit. "
            "Another seed keeps the predicted end and puts new noise on it; another sampler goes on at its nearest "
            "noise. The size and the weights stay the tree's."
        ),
        elem_classes="gh-note",
    )
    with gr.Row():
        save = gr.Button(label("Save the tree"), size="sm", min_width=110, elem_id="diffusion-travel-save")
        load = gr.UploadButton(
            label("Load a tree"),  # type: ignore[arg-type]
            size="sm",
            min_width=110,
            file_types=[".safetensors"],
            elem_id="diffusion-travel-load",
        )
    file = gr.File(
        label=label("The tree as one file"),
        interactive=False,
        visible=False,
        height=90,
        elem_id="diffusion-travel-file",
    )
    return [prompt, *values], [fork_it, stop, new], [save, file, blocks.only_uploads(load)]


def _wire(
    tab: gr.Tab, switches: blocks.Switches, state: tuple[Any, ...], form: list[Any], buttons: list[Any],
    files: list[Any], told: gr.HTML, seen: list[Any],
) -> None:  # fmt: skip
    (ticket, picked, call), (fork_it, stop, new), (save, file, upload) = state, buttons, files
    tree, pictures, _, strip = seen
    prompt, *values = form
    asked = [prompt, switches.implementation, switches.weights, *values]
    out = [*state, told, *seen]
    heavy: dict[str, Any] = {"api_visibility": "private", "show_progress_on": told, **blocks.HEAVY}
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", **blocks.LIGHT}

    def then_film(event: Any) -> Any:
        return event.then(guarded(film), [*state], strip, trigger_mode="multiple", **quick)

    then_film(fork_it.click(guarded(go_on), [*state, *asked], out, **heavy))
    then_film(new.click(guarded(begin), [ticket, *asked], out, **heavy))
    opened = then_film(tab.select(guarded(first), [ticket, *asked], out, **heavy))
    switches.refresh(opened)
    stop.click(guarded(halt), None, None, **quick)
    then_film(
        gr.on(
            [tree.click, strip.click], guarded(pick), [*state], [picked, call, *form, *seen],
            trigger_mode="always_last", **quick,
        )
    )  # fmt: skip
    then_film(
        call.input(guarded(look), [*state], [tree, pictures, strip], trigger_mode="always_last", **quick)
    )  # fmt: skip
    save.click(guarded(save_file), ticket, file, **quick)
    then_film(upload.upload(guarded(load), [ticket, upload], [*out, *form], **quick))
