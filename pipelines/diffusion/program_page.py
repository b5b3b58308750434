"""What other programs draw with: the page's drawing without the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from gradio.data_classes import FileData

from pipelines.common.errors import UserError
from pipelines.common.images import open_picture
from pipelines.ui import blocks

from . import start_page
from .contract import DiffusionRequest
from .pipeline import steps
from .record import write_png


def draw(
    prompt: str, negative_prompt: str = "", num_steps: int = 20, guidance_scale: float = 4.0,
    sampler: str = "dpm++2m", seed: int = 0, width: int | None = None, height: int | None = None,
    image: dict[str, Any] | None = None, strength: float = 0.8, mask: dict[str, Any] | None = None,
    weights: str = "auto", backend: str = "local", precision: str = "float32",
) -> Iterator[tuple[dict[str, Any] | None, dict[str, Any]]]:  # fmt: skip
    """Draw what a prompt says. image: a file to begin from; mask: a file of its size, white where it is drawn anew.

    Gives nothing and {"call", "of"} after each call of the network; at the end the picture as a PNG file with its run
    inside, and the run."""
    asked: dict[str, Any] = {"sampler": sampler, "backend": backend, "precision": precision}
    request = DiffusionRequest(
        prompt, negative_prompt, num_steps, guidance_scale, seed=seed, width=width, height=height, strength=strength,
        image=_picture(image), mask=_mask(mask), weights=weights, previews=False, **asked,
    )  # fmt: skip
    with closing(steps(request)) as events:
        for event in events:
            if event.result is None:
                yield None, {"call": event.step, "of": event.steps}
                continue
            path = blocks.offer(write_png(event.result), "picture.png")
            file = FileData(path=path, orig_name=Path(path).name, mime_type="image/png")
            yield file.model_dump(), dict(event.result.record)


def _picture(given: Any) -> Any:
    path = _path(given)
    return None if path is None else open_picture(path).pixels


def _mask(given: Any) -> Any:
    path = _path(given)
    return None if path is None else start_page.white(path)


def _path(given: Any) -> str | None:
    """Of an uploaded file. UserError: this is no file."""
    if given is None:
        return None
    if not isinstance(given, dict) or not isinstance(given.get("path"), str):
        raise UserError("A picture or mask must be an uploaded file.")
    return cast(str, blocks.within_uploads(given["path"]))
