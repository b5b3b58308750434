"""Write: a story or a chat, streamed; then each token in the colour of its expert, and one token's whole way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, cast

import gradio as gr

from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import chat_page as chat
from . import examples_page as examples
from . import score_page as scoring
from . import settings_page as settings
from . import traces_page as traces
from . import view
from .contract import Backend, Message, TextRequest
from .pipeline import steps
from .running_page import EVERY, PENDING, TEXT, Written, drawn, follow, halt, kept, shelf, show, silence, turns

# One stop for the tabulator key; from there the arrow keys walk, and Enter or the space bar asks for a token.
WALK = """
const all = () => [...element.querySelectorAll('[data-token]')];
function go(token) { all().forEach(t => { t.tabIndex = -1; }); token.tabIndex = 0; token.focus(); }
function ask(token) {
  all().forEach(t => t.setAttribute('aria-selected', String(t === token)));
  trigger('click', {token: Number(token.dataset.token)});
}
function beside(token, down) {
  const here = token.getBoundingClientRect();
  const lines = all().map(t => [t, t.getBoundingClientRect()])
    .filter(([, r]) => down ? r.top > here.top + 4 : r.top < here.top - 4);
  lines.sort((a, b) => Math.abs(a[1].top - here.top) - Math.abs(b[1].top - here.top)
    || Math.abs(a[1].left - here.left) - Math.abs(b[1].left - here.left));
  return lines.length ? lines[0][0] : null;
}
element.addEventListener('click', event => {
  const token = event.target.closest('[data-token]');
  if (token) { go(token); ask(token); }
});
element.addEventListener('keydown', event => {
  const token = event.target.closest('[data-token]');
  if (!token) return;
  const tokens = all(), place = tokens.indexOf(token);
  if (event.key === 'Enter' || event.key === ' ') ask(token);
  else {
    const next = {ArrowRight: () => tokens[place + 1], ArrowLeft: () => tokens[place - 1], Home: () => tokens[0],
      End: () => tokens[tokens.length - 1], ArrowDown: () => beside(token, true), ArrowUp: () => beside(token, false)}
      [event.key];
    if (!next) return;
    const found = next();
    if (found) go(found);
  }
  event.preventDefault();
});
"""


def write(
    prompt: str | None, layer: float, numbered: bool, backend: Backend, weights: str, new: float, temperature: float,
    top_k: float, top_p: float, min_p: float, penalty: float, stop: str, seed: float, request: gr.Request,
    progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Go on with a prompt, shown as it grows; then each token in the colour of its expert."""
    blocks.announce(progress)
    drawing = settings.asked(backend, weights, new, temperature, top_k, top_p, min_p, penalty, stop, seed)
    run = Written(replace(drawing, prompt=prompt or ""))
    done = False
    for done in follow(run, request.session_hash):
        yield show(run, done, layer, numbered, request)
    if not done:
        yield silence(7)


def write_first(
    ticket: str | None, prompt: str | None, layer: float, numbered: bool, backend: Backend, weights: str, new: float,
    temperature: float, top_k: float, top_p: float, min_p: float, penalty: float, stop: str, seed: float,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """`write` when the tab is opened on weights that tell stories, unless something was written already."""
    if ticket is not None or chat.chats(weights):
        yield silence(7)
    else:
        yield from write(
            prompt, layer, numbered, backend, weights, new, temperature, top_k, top_p, min_p, penalty, stop, seed,
            request, progress,
        )  # fmt: skip


# --- one token -------------------------------------------------------------------------------------------------------


def recolour(
    ticket: str | None, picked: int | None, layer: float, numbered: bool, request: gr.Request
) -> tuple[Any, ...]:  # fmt: skip
    """Another layer, or numbers on or off, for what was written already."""
    if ticket in (None, PENDING):
        return gr.skip(), gr.skip(), gr.skip()
    return drawn(kept(ticket), layer, numbered, picked, partial(say, request))


def pick(ticket: str | None, layer: float, request: gr.Request, event: gr.EventData) -> tuple[Any, Any]:
    """What the routers said of the token that was clicked."""
    token = event._data.get("token") if isinstance(event._data, dict) else None
    if ticket in (None, PENDING) or not isinstance(token, int):
        return gr.skip(), gr.skip()
    run = kept(ticket)
    if run.trace is None or not 0 <= token < len(run.texts):
        return gr.skip(), gr.skip()
    place = min(max(int(layer or 1), 1), run.trace.logits.shape[0]) - 1
    return token, view.detail(run.trace, run.texts, token, place, partial(say, request))


def mode(weights: str) -> tuple[Any, Any]:
    """A prompt for weights that go on with a text, a chat for those that were taught to."""
    talks = chat.chats(weights)
    return gr.update(visible=not talks), gr.update(visible=talks)


def begin_anew(request: gr.Request) -> tuple[Any, ...]:
    """An empty chat, and an empty page beside it; an answer that is on its way has no last word."""
    turns.halt(request.session_hash, clear=True)
    return [], "", "", "", "", ""


# --- for programs ----------------------------------------------------------------------------------------------------


def stream(
    prompt: str, weights: str = "auto", backend: str = "local", max_new_tokens: int = 100, temperature: float = 0.8,
    top_k: int = 0, top_p: float = 0.95, min_p: float = 0.0, repetition_penalty: float = 1.0,
    stop: list[str] | None = None, seed: int = 0, messages: list[dict[str, str]] | None = None,
) -> Iterator[str]:  # fmt: skip
    """Write on from a prompt, or answer a chat (messages of role and content, with an empty prompt): the new text so
    far, again and again as it grows."""
    request = TextRequest(
        prompt, weights, cast(Backend, backend), _messages(messages), max_new_tokens, temperature, top_k, top_p, min_p,
        repetition_penalty, cast("tuple[str, ...]", stop or ()), seed,
    )  # fmt: skip
    shown = 0.0
    with closing(steps(request)) as events:
        for event in events:
            if event.result is not None or time.perf_counter() - shown >= EVERY:
                shown = time.perf_counter()
                yield event.continuation


def _messages(given: Any) -> tuple[Message, ...]:
    """What a program sends as a chat. UserError: it is none."""
    if given and not (isinstance(given, list) and all(isinstance(each, dict) for each in given)):
        raise UserError("The messages of a chat must be a list, each with a role and a content.")
    return tuple(Message(each.get("role"), each.get("content")) for each in given or ())


# --- widgets ---------------------------------------------------------------------------------------------------------


def _story() -> tuple[gr.Textbox, gr.Button, gr.Button]:
    """The prompt, the button that goes on with it and the one that stops."""
    prompt = gr.Textbox(
        examples.stories()[0], lines=3, max_lines=10, label=label("The text begins with"), elem_id="moe-write-prompt"
    )
    with gr.Row():
        button = gr.Button(label("Write on"), variant="primary", scale=2, min_width=90, elem_id="moe-write-run")
        stop = gr.Button(label("Stop"), min_width=90, elem_id="moe-write-stop")
    examples.prompts(prompt)
    return prompt, button, stop


def _looks() -> list[Any]:
    """The layer whose experts give the colours, and whether tokens bear their numbers."""
    layer = gr.Slider(
        1, traces.meant("auto").layers, 1, step=1, label=label("Colours: experts of layer"), elem_id="moe-write-layer"
    )
    numbered = gr.Checkbox(
        False, label=label("Expert numbers in the text"), container=False, elem_id="moe-write-numbered"
    )
    return [layer, numbered]


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    ticket = gr.State(None, delete_callback=lambda t: shelf().drop(t))
    picked = gr.State(None)
    talks = chat.chats("auto")
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            with gr.Column(visible=not talks) as telling:
                prompt, button, stop = _story()
            with gr.Column(visible=talks) as talking:
                talk, box, send, stop_chat, anew = chat.widgets()
            drawing = settings.sampling()
        with gr.Column(scale=3, min_width=320):
            told = gr.HTML(elem_id="moe-write-told")
            text = gr.HTML(elem_id="moe-write-text", js_on_load=WALK)
            looks = _looks()
            legend = gr.HTML(elem_id="moe-write-legend")
            detail = gr.HTML(elem_id="moe-write-detail")
    scoring.build(switches)
    layer, numbered = looks
    inputs = [*looks, switches.implementation, switches.weights, *drawing]
    seen = [text, legend, detail]
    outputs = [ticket, picked, layer, *seen, told]
    talked = [talk, box, *outputs]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress_on": told, **TEXT}
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", **blocks.LIGHT}
    button.click(guarded(write), [prompt, *inputs], outputs, **quiet)
    gr.on([send.click, box.submit], guarded(chat.answer), [talk, box, *inputs], talked, **quiet)
    anew.click(guarded(begin_anew), None, [talk, box, *seen, told], **quick)
    # The example is written when the tab is opened, not with the page: other tabs' visitors pay nothing.
    modes = [telling, talking]
    opened = tab.select(guarded(mode), switches.weights, modes, **quick)
    first = opened.then(guarded(write_first), [ticket, prompt, *inputs], outputs, **quiet)
    greeted = first.then(guarded(chat.answer_first), [ticket, talk, box, *inputs], talked, **quiet)
    switches.refresh(greeted)  # now that a model has been loaded, the card can say where it runs
    switches.weights.change(guarded(mode), switches.weights, modes, **quick)
    gr.on([stop.click, stop_chat.click], guarded(halt), None, None, **quick)
    gr.on(
        [layer.input, numbered.input], guarded(recolour), [ticket, picked, *looks], seen, trigger_mode="always_last",
        **quick,
    )  # fmt: skip
    text.click(guarded(pick), [ticket, layer], [picked, detail], trigger_mode="always_last", **quick)
    gr.api(guarded(stream), api_name="moe_write", **TEXT)
