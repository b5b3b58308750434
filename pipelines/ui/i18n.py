"""English and Chinese. The English text itself is the key; zh.json beside this file has the Chinese."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import gradio as gr


@cache
def chinese() -> dict[str, str]:
    """English -> Chinese."""
    return json.loads((Path(__file__).parent / "zh.json").read_text(encoding="utf-8"))


@cache
def catalogue() -> gr.I18n:
    """What `launch(i18n=...)` gets; the browser's language decides."""
    zh = chinese()
    return gr.I18n(en={text: text for text in zh}, zh=zh, **{"zh-CN": zh, "zh-TW": zh})


def label(text: str) -> gr.i18n.I18nData:
    """A label, button or heading whose language the browser picks. tests/test_app.py checks that it is translated."""
    return catalogue()(text)


@cache
def _english() -> dict[str, str]:
    return {translated: text for text, translated in chinese().items()}


def untranslated(text: str) -> str:
    """The English key of a text: gradio's page translates the values of a choice too, where they are keys."""
    return _english().get(text, text)


def say(request: gr.Request | None, text: str, **values: object) -> str:
    """A sentence made on the server, in the language that the visitor's browser asks for.

    `text` is a format string; its Chinese counterpart has the same fields.
    """
    languages = request.headers.get("accept-language", "") if request is not None and request.headers else ""
    template = chinese().get(text, text) if languages.lower().startswith("zh") else text
    return template.format(**values)
