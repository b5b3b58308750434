"""Where the networks run and in which precision, with the reason in words."""

from __future__ import annotations

import os
import time
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


# Instruction sets that add products of bytes in 32 bits. Older processors add two of them in 16, which saturate.
BYTE_PRODUCTS = {"avx512_vnni", "avx_vnni"}


def processor_flags() -> set[str]:
    """Instruction sets of the processor as Linux lists them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as stream:
            line = next((line for line in stream if line.startswith("flags")), "")
    except OSError:
        return set()
    return set(line.partition(":")[2].split())


@cache
def pick(reduced: bool = False, integers: bool = False) -> Device:
    """The best device here. `reduced` asks for smaller numbers where they are native and so a gain.

    float32 is the default everywhere because parity with the reference is promised in it. integers: the caller has an
    8-bit form of its network for processors that multiply bytes.
    """
    import torch

    wanted = os.environ.get("GLASSHOUSE_DEVICE", "")
    if wanted != "cpu" and torch.cuda.is_available():
        dtype = ("bfloat16" if torch.cuda.is_bf16_supported() else "float16") if reduced else "float32"
        return Device("cuda", dtype, f"a GPU is here ({torch.cuda.get_device_name()})")
    why = "no GPU here" if wanted != "cpu" else "GLASSHOUSE_DEVICE asks for it"
    threads = f"{cores()} processor core{'s' if cores() != 1 else ''}"
    dtype, tail = _reduced(integers) if reduced else ("float32", "")
    return Device("cpu", dtype, f"{why}; {threads}{tail}")


def _reduced(integers: bool) -> tuple[str, str]:
    """The smaller numbers that this processor is faster with, and the end of the sentence."""
    flags = processor_flags()
    if "amx_bf16" in flags:
        return "bfloat16", " with native bfloat16"
    if integers and flags & BYTE_PRODUCTS:
        return "int8", " with native 8-bit products"
    if "avx512_bf16" not in flags:
        return "float32", ", without native bfloat16"
    if bfloat16_gain() < 1.3:
        return "float32", ", whose native bfloat16 is no faster than float32"
    return "bfloat16", " with native bfloat16"


def bfloat16_gain() -> float:
    """How many times as fast as in float32 a matrix product is in bfloat16, by a trial of a tenth of a second.

    The instruction alone tells nothing: a Xeon of 2023 whose matrix unit (amx_bf16) is hidden from its virtual machine
    was measured at half the speed of float32 with it.
    """
    import torch

    pairs = [torch.ones(512, 512, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    best = [float("inf")] * 2
    for _ in range(12):  # in turn, and the best of each: whatever else the machine does falls on both
        for k, matrix in enumerate(pairs):
            start = time.perf_counter()
            matrix @ matrix
            best[k] = min(best[k], time.perf_counter() - start)
    return best[0] / best[1]


def generator(seed: int) -> torch.Generator:
    """Random numbers for a call: always a CPU generator, so that a seed means the same on every machine."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)
