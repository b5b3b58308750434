"""Faces: detect, align, recognise. Names are imported when they are first asked for, so this costs nothing."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "CascadeOptions": "config",
    "Comparison": "contract",
    "Detections": "contract",
    "Face": "contract",
    "FaceRequest": "contract",
    "FaceResult": "contract",
    "Pose": "contract",
    "compare": "pipeline",
    "detect": "pipeline",
    "run": "pipeline",
    "Gallery": "gallery",
    "open_gallery": "gallery",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
