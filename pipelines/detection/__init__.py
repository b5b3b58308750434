"""Detection: boxes, and masks where the weights have them. Names are imported when they are first asked for."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "InputSize": "config",
    "Ablation": "contract",
    "DetectionRequest": "contract",
    "DetectionResult": "contract",
    "Prediction": "contract",
    "Segment": "contract",
    "Trace": "contract",
    "detect_video": "pipeline",
    "finish": "pipeline",
    "predict": "pipeline",
    "run": "pipeline",
    "trace": "pipeline",
    "Video": ".common.video",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
