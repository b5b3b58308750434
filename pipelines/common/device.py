"""Where the networks run and in which precision, with the reason in words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Device:
    """device: a torch device string. dtype: name of a torch dtype. reason: one sentence for the model's card."""

    device: str
    dtype: str
    reason: str


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_flags() -> set[str]:
    """Instruction sets of the processor as Linux lists them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as stream:
            line = next((line for line in stream if line.startswith("flags")), "")
    except OSError:
        return set()
    return set(line.partition(":")[2].split())


@cache
def pick(reduced: bool = False) -> Device:
    """The best device here. `reduced` asks for 16-bit numbers where they are native and so a gain.

    float32 is the default everywhere because parity with the reference is promised in it.
    """
    import torch

    wanted = os.environ.get("GLASSHOUSE_DEVICE", "")
    if wanted != "cpu" and torch.cuda.is_available():
        dtype = ("bfloat16" if torch.cuda.is_bf16_supported() else "float16") if reduced else "float32"
        return Device("cuda", dtype, f"a GPU is here ({torch.cuda.get_device_name()})")
    threads = f"{cores()} processor core{'s' if cores() != 1 else ''}"
    if reduced and processor_flags() & {"avx512_bf16", "amx_bf16"}:
        return Device("cpu", "bfloat16", f"no GPU here; {threads} with native bfloat16")
    why = "no GPU here" if wanted != "cpu" else "GLASSHOUSE_DEVICE asks for it"
    tail = ", without native bfloat16" if reduced else ""
    return Device("cpu", "float32", f"{why}; {threads}{tail}")


def generator(seed: int) -> torch.Generator:
    """Random numbers for a call: always a CPU generator, so that a seed means the same on every machine."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)
