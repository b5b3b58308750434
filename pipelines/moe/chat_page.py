"""Chat with weights that were taught to: messages in place of the prompt, answers as they grow."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import gradio as gr

from pipelines.common.checkpoint import paths
from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.i18n import label

from . import examples_page as examples
from .contract import Backend, Message
from .pipeline import entry
from .running_page import Written, follow, show, silence
from .settings_page import asked


def chats(weights: str) -> bool:
    """Whether these weights are here and come with a template of chats. Their tokenizer is read, nothing else."""
    try:
        return _chats(entry(weights).id)
    except UserError:
        return False


@cache
def _chats(weights: str) -> bool:
    from .tokenizer import TextTokenizer

    found = paths(entry(weights))
    return TextTokenizer.read(found["tokenizer"], found.get("tokenizer_config")).has_chat


def messages(history: Sequence[Any] | None) -> tuple[Message, ...]:
    """The chat so far, as the widget hands it over. UserError: something in it is no text."""
    return tuple(Message(str(turn["role"]), html.unescape(_words(turn["content"]))) for turn in history or ())


def turn(message: Message) -> dict[str, str]:
    """A message for the widget, which would take its signs for markup: even a harmless picture is fetched."""
    return {"role": message.role, "content": html.escape(message.text, quote=False)}


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = [content] if isinstance(content, dict) else content
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise UserError("A chat here is made of text alone; begin a new one.")
    return "".join(part["text"] for part in parts)


def answer(
    history: list[Any] | None, message: str | None, layer: float, numbered: bool, backend: Backend, weights: str,
    new: float, temperature: float, top_k: float, top_p: float, min_p: float, penalty: float, stop: str, seed: float,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Answer a message: the chat as it grows, an emptied box, and what `show` shows."""
    if not (message or "").strip():
        raise UserError("Write a message first.")
    blocks.announce(progress)
    said = (*messages(history), Message("user", str(message)))
    settings = asked(backend, weights, new, temperature, top_k, top_p, min_p, penalty, stop, seed)
    run = Written(replace(settings, messages=said))
    done = False
    for done in follow(run, request.session_hash):
        turns = [turn(message) for message in (*said, *([Message("assistant", run.text)] if run.text else []))]
        if done and not run.text:  # stopped before the first word: a chat of two questions in a row fits few templates
            turns.pop()
        yield turns, "" if run.text or not done else message, *show(run, done, layer, numbered, request)
    if not done:
        yield silence(9)


def answer_first(
    ticket: str | None, history: list[Any] | None, message: str | None, layer: float, numbered: bool,
    backend: Backend, weights: str, new: float, temperature: float, top_k: float, top_p: float, min_p: float,
    penalty: float, stop: str, seed: float, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """`answer` to an example when the tab is opened on weights that chat."""
    if ticket is not None or history or not chats(weights):
        yield silence(9)
    else:
        yield from answer(
            [], message or examples.questions()[0], layer, numbered, backend, weights, new, temperature, top_k, top_p,
            min_p, penalty, stop, seed, request, progress,
        )  # fmt: skip


def widgets() -> tuple[gr.Chatbot, gr.Textbox, gr.Button, gr.Button, gr.Button]:
    """The chat, the box of the next message, the buttons that send it, that stop the answer and that begin anew."""
    chat = gr.Chatbot(
        height=420, label=label("Chat"), render_markdown=False, feedback_options=None, buttons=["copy"],
        allow_file_downloads=False, elem_id="moe-write-chat",
    )  # fmt: skip
    box = gr.Textbox("", lines=2, max_lines=8, label=label("Message"), elem_id="moe-write-message")
    with gr.Row():
        send = gr.Button(label("Send"), variant="primary", min_width=90, elem_id="moe-write-send")
        stop = gr.Button(label("Stop"), min_width=90, elem_id="moe-write-stop-chat")
        anew = gr.Button(label("New chat"), min_width=90, elem_id="moe-write-anew")
    blocks.example_row(examples.questions(), box)
    return chat, box, send, stop, anew
