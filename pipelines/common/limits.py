"""Every limit in one place. Each field can be set by the environment: GLASSHOUSE_<FIELD IN CAPITALS>."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from functools import cache


@dataclass(frozen=True)
class Limits:
    """Past a limit the visitor gets a sentence, never a crash or a silent cut."""

    upload_bytes: int = 30_000_000
    pixels: int = 50_000_000  # before decoding: 50 megapixels are 150 MB as RGB
    side: int = 2048  # longest side after decoding an upload; larger ones are made smaller, and the page says so
    array_pixels: int = 36_000_000  # of a picture handed to the API as an array
    faces: int = 256  # described in one picture
    session_gallery: int = 2_000  # embeddings in a visitor's session
    queue: int = 32  # visitors waiting
    sessions: int = 500  # visitors whose state is kept
    traces_mb: int = 400  # of replayed cascades, all visitors together
    memory_mb: int = 6_000  # of loaded models, least recently used go first


def from_environment(environ: dict[str, str] | None = None) -> Limits:
    """ValueError names the variable that is no positive whole number."""
    environ = dict(os.environ) if environ is None else environ
    limits = Limits()
    for field in fields(Limits):
        name = f"GLASSHOUSE_{field.name.upper()}"
        text = environ.get(name, "")
        if not text:
            continue
        if not text.isdigit() or int(text) == 0:
            raise ValueError(f"{name} must be a positive whole number, not {text!r}")
        limits = replace(limits, **{field.name: int(text)})
    return limits


@cache
def limits() -> Limits:
    """The limits of this process."""
    return from_environment()
