"""The recipe of the small language models: rows of stories, byte by byte, the same for each kind of attention.

The text is that of the stories' two files, documents apart by a zero byte. Every fiftieth document, by a hash of its
text, is kept out and judged in rows of LENGTH bytes, each read from its own beginning.
"""

from __future__ import annotations

import json
import zlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.common.training import Machine, Trainer, TrainOptions

from .attention_config import MODELS, ROW
from .attention_model import ByteModel
from .quantised import pack, unpack

MARK = "<|endoftext|>"
LENGTH = ROW
JUDGED = 400  # rows at the end; a tenth of them at each check
OPTIONS = TrainOptions(
    learning_rate=6e-3, batch=8, weight_decay=0.05, warmup=100, ema_decay=0.995, log_every=100, check_every=400,
    finish=800,
)  # fmt: skip


def texts(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(training, kept out): uint8 bytes, a zero after each document."""
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for name in ("tinystories.txt", "tales.txt"):
        for document in (folder / name).read_text(encoding="utf-8").split(MARK):
            data = document.strip().encode()
            if data:
                parts[zlib.crc32(data) % 50 == 0].append(data + b"\0")
    train, kept = (np.frombuffer(b"".join(part), np.uint8) for part in parts)
    return train, kept


class Objective:
    """Mean nats of the bytes of rows that begin anywhere."""

    def __init__(self, model: ByteModel, data: np.ndarray) -> None:
        self.model, self.data = model, data

    def __call__(self, rng: np.random.Generator, count: int) -> dict[str, Tensor]:
        starts = rng.integers(0, len(self.data) - LENGTH, count)
        rows = np.stack([self.data[at : at + LENGTH] for at in starts])
        return {"loss": self.model.entropy(torch.from_numpy(rows).long()).mean()}


@torch.no_grad()
def bits_per_byte(model: ByteModel, data: np.ndarray, rows: int = JUDGED) -> float:
    """Of `rows` rows spread evenly over a text, (N,) uint8; the first byte of a row is not counted."""
    starts = np.linspace(0, len(data) - LENGTH, rows).astype(int)
    found = []
    for at in range(0, rows, 8):
        batch = np.stack([data[start : start + LENGTH] for start in starts[at : at + 8]])
        found.append(model.entropy(torch.from_numpy(batch).long()).double().mean(dim=1))
    return float(torch.cat(found).mean() / np.log(2))


def train(name: str, data: Path, out: Path, minutes: float) -> None:
    """Train one model, or go on with it, until its steps or the minutes are over. The log is OUT/attention-NAME.csv."""
    machine = Machine(torch.device("cpu"), 1, nullcontext)
    torch.manual_seed(OPTIONS.seed)
    model = ByteModel(MODELS[name])
    given, kept = texts(data)
    trainer = Trainer(
        out, f"attention-{name}", model, replace(OPTIONS, minutes=minutes), machine, ("loss", "bits"), adam=_by_adam
    )
    trainer.run(Objective(model, given), lambda step: {"bits": bits_per_byte(model, kept, JUDGED // 10)})


def _by_adam(name: str) -> bool:
    return "embedding" in name or "images" in name


def export(name: str, data: Path, out: Path, weights: Path) -> dict[str, float]:
    """Write WEIGHTS/NAME.safetensors in 8 bits; returns bits per byte before and after, also in WEIGHTS/NAME.json."""
    from safetensors.torch import save_file

    saved = torch.load(out / f"attention-{name}.pt", map_location="cpu", weights_only=True)
    model = ByteModel(MODELS[name]).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.copy_(saved["ema"][key])
    _, kept = texts(data)
    whole = bits_per_byte(model, kept)
    packed = pack(model)
    weights.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in packed.items()}, weights / f"{name}.safetensors")
    unpack(model, packed)
    found = {"bits_float": round(whole, 4), "bits": round(bits_per_byte(model, kept), 4)}
    (weights / f"{name}.json").write_text(json.dumps({**found, "steps": saved["step"]}) + "\n")
    return found
