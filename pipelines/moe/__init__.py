"""Text: mixture-of-experts decoders that write, and routers to operate on. Names are imported when they are first asked
for."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Effect": "contract",
    "Ledger": "contract",
    "Message": "contract",
    "Reading": "contract",
    "RouterChange": "contract",
    "RoutingTrace": "contract",
    "Simulation": "contract",
    "Taste": "contract",
    "TextEvent": "contract",
    "TextRequest": "contract",
    "TextResult": "contract",
    "read": "pipeline",
    "run": "pipeline",
    "score": "pipeline",
    "steps": "pipeline",
    "effect": "insight",
    "ledger": "insight",
    "tastes": "insight",
    "simulate": "memory",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
