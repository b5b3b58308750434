"""Between a handler and the visitor: a UserError becomes its sentence, anything else an apology with a log number."""

from __future__ import annotations

import functools
import html
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from pipelines.common.errors import UserError

log = logging.getLogger("glasshouse")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except UserError as error:
        # The message is shown as HTML and may quote what the visitor typed.
        raise gr.Error(html.escape(str(error), quote=False), title="", print_exception=False) from error
    except Exception as error:
        number = secrets.token_hex(4)
        log.exception("request failed, number %s", number)
        sentence = f"Something went wrong inside; it is in the log as {number}. Nothing of yours was lost; try again."
        raise gr.Error(sentence, title="", print_exception=False) from error


def guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an event handler, a plain function or a generator, so that no exception text of ours leaks."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _translated():
                yield from handler(*args, **kwargs)

        return generator

    @functools.wraps(handler)
    def function(*args: Any, **kwargs: Any) -> Any:
        with _translated():
            return handler(*args, **kwargs)

    return function
