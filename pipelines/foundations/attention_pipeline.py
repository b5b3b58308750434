"""The shipped small language models at work: bits per byte of a visitor's text under each kind of attention."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from pipelines.common import backends, catalogue, checkpoint
from pipelines.common.errors import UserError

from . import one_core
from .attention_config import MODELS, ROW

ROLE = "attention"
ROOM = 2_048  # bytes of a text that are read


def present() -> dict[str, catalogue.Entry]:
    """Kind -> entry, of the models that are on this machine."""
    return {
        entry.preset: entry
        for entry in catalogue.entries("foundations", ROLE)
        if entry.preset in MODELS and checkpoint.locate(entry) is not None
    }


def _read(entry: catalogue.Entry) -> Any:
    from safetensors.torch import load_file

    from .attention_model import ByteModel
    from .quantised import unpack

    model = ByteModel(MODELS[entry.preset])
    unpack(model, load_file(checkpoint.paths(entry)["model"]))
    return model.eval()


def bits(text: str) -> Iterator[tuple[str, float]]:
    """(kind, bits per byte) of a text under each model that is here.

    As in training it is read in rows of ROW bytes, each from its own beginning, whose first byte is not counted.
    UserError: the text has fewer than 2 bytes or more than ROOM.
    """
    import numpy as np
    import torch

    data = (text or "").encode()
    if not 2 <= len(data) <= ROOM:
        raise UserError(f"Write a text of 2 to {ROOM:,} bytes; this one has {len(data):,}.")
    rows = [data[start : start + ROW] for start in range(0, len(data) - 1, ROW)]
    tokens = [torch.from_numpy(np.frombuffer(row, np.uint8).astype(np.int64))[None] for row in rows]
    for kind, entry in present().items():
        model = backends.shared().get(("foundations", entry.id), partial(_read, entry), 4 * entry.size)
        with one_core.step(), torch.no_grad():
            found = torch.cat([model.entropy(row)[0] for row in tokens]).mean() / np.log(2)
        yield kind, float(found)
