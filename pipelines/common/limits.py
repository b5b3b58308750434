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
    objects: int = 100  # of one picture; no DETR has more queries
    mask_pixels: int = 500_000_000  # of all masks of one picture together, a byte each
    video_seconds: int = 60  # looked at, from the start
    video_frames: int = 240  # looked at in one video
    stream_seconds: int = 600  # of a video or a webcam that is followed frame by frame
    live_streams: int = 6  # of webcams and files that are followed at the same time, all visitors together
    prompt_characters: int = 100_000  # of a prompt, a chat or a text to read: counted before any work is done on it
    prompt_tokens: int = 8_192  # 0.4 B active parameters read so many in some two minutes on two cores
    new_tokens: int = 4_096  # as many as the bundled model has places for
    reading_tokens: int = 32_768  # of a text that is read and not written: 100,000 characters of a Latin script
    messages: int = 64  # of one chat
    stops: int = 8  # strings that end a text
    stop_characters: int = 200  # of one of them
    steps: int = 200  # of a sampler, for one picture
    drawing_side: int = 1_024  # of a picture to be drawn: at it, each of the widest features in decoding takes 1 GB
    history_mb: int = 100  # of latents that are kept of one run, or of one tree of runs with their pictures
    tree_runs: int = 64  # of one tree of forks
    session_gallery: int = 2_000  # embeddings in a visitor's session
    queue: int = 32  # visitors waiting
    sessions: int = 500  # visitors whose state is kept
    predictions_mb: int = 200  # of pictures and what a detector said of them, all visitors together
    courses_mb: int = 180  # of what visitors taught, all visitors together
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
