"""Text to image: latent diffusion (Rombach et al. 2022) from scratch, with time travel inside a picture. Names are
imported when they are first asked for."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "SAMPLERS": "contract",
    "DiffusionEvent": "contract",
    "DiffusionRequest": "contract",
    "DiffusionResult": "contract",
    "History": "contract",
    "PromptTokens": "contract",
    "Start": "contract",
    "run": "pipeline",
    "steps": "pipeline",
    "read_png": "record",
    "write_png": "record",
    "Tree": "travel",
    "fork": "travel",
    "attention": "insight",
    "deletions": "insight",
    "moment": "insight",
    "xray": "insight",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
