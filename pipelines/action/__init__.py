"""Action: online action detection on a webcam stream or a video. Names are imported when they are first asked for."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Answer": "contract",
    "StreamOptions": "contract",
    "Update": "contract",
    "open_stream": "pipeline",
    "watch": "pipeline",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
