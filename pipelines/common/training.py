"""The loop that the trainings share: resume, log, average the weights, save without ever leaving half a file.

A run is a folder: `<stage>.pt` is the checkpoint (everything to go on from), `<stage>.csv` the log. The learning rate
is constant after a warm-up, so that a run can be continued for as long as one likes; `finish` steps of linear decay
end it. Every draw of a batch is seeded by (seed, step, worker), so that a resumed run sees what an unbroken one would
have seen.

On the CPU a batch is shared by `workers` threads of one core each, which meet once a step. Splitting each operation
over the cores instead makes them meet thousands of times a step, and with anything else running on the machine, that
is half the speed.
"""

from __future__ import annotations

import csv
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .muon import Muon

Loss = Callable[[np.random.Generator, int], dict[str, Tensor]]
Check = Callable[[int], dict[str, float]]


@dataclass(frozen=True)
class TrainOptions:
    """How fast and how long. `minutes` counts training time; a pause between two steps counts as a minute at most."""

    learning_rate: float
    batch: int
    weight_decay: float = 0.0
    warmup: int = 200
    ema_decay: float = 0.999
    ema_every: int = 1
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    seed: int = 0
    minutes: float = float("inf")
    finish: int = 0
    log_every: int = 50
    check_every: int = 500
    save_minutes: float = 4.0


@dataclass(frozen=True)
class Machine:
    """Where and how to compute; `dtype` is what matrix products are fastest in."""

    device: torch.device
    workers: int
    autocast: Callable[[], AbstractContextManager]
    dtype: torch.dtype = torch.float32


def standing(rng: np.random.Generator) -> tuple[int, int]:
    """(step, worker) that a generator given to a loss was made for: where in the run the draw stands."""
    _, step, worker = rng.bit_generator.seed_seq.entropy  # type: ignore[attr-defined]
    return int(step), int(worker)


def pick_machine(mixed: bool = False) -> Machine:
    """A GPU with bfloat16 autocast if there is one, else two cores: in float32, or, where `mixed` is asked for and
    this processor is faster with it, with bfloat16 autocast too.
    """
    if torch.cuda.is_available():
        return Machine(torch.device("cuda"), 1, lambda: torch.autocast("cuda", torch.bfloat16))
    if mixed and bfloat16_pays():
        return Machine(torch.device("cpu"), 2, lambda: torch.autocast("cpu", torch.bfloat16), torch.bfloat16)
    return Machine(torch.device("cpu"), 2, nullcontext)


def bfloat16_pays(rounds: int = 5) -> bool:
    """Whether a 3x3 convolution and its backward pass are faster in bfloat16 than in float32 here, by trying.

    The processor's flags don't tell: among those with avx512_bf16, some run oneDNN's bfloat16 convolutions at half the
    speed of its float32 ones, others at twice that speed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    try:
        for _ in range(rounds):
            for dtype in best:
                x = torch.ones((8, 128, 16, 16), dtype=dtype, requires_grad=True)
                weight = torch.ones((128, 128, 3, 3), dtype=dtype, requires_grad=True)
                started = time.perf_counter()
                torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), (x, weight))
                best[dtype] = min(best[dtype], time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return best[torch.bfloat16] < 0.8 * best[torch.float32]


class Trainer:
    """Trains `model`, resuming from the folder's checkpoint of this stage if there is one."""

    def __init__(
        self,
        folder: Path,
        stage: str,
        model: nn.Module,
        options: TrainOptions,
        machine: Machine,
        columns: tuple[str, ...],
        scale: Callable[[str], float] = lambda name: 1.0,
        adam: Callable[[str], bool] | None = None,
    ) -> None:
        """columns: what the log holds besides step and seconds. scale: of the learning rate, by parameter name.

        adam: whether AdamW takes the weight of that name, see `build_optimizers`; None takes embeddings and the first
        and last convolutions.
        """
        self.path, self.log_path = folder / f"{stage}.pt", folder / f"{stage}.csv"
        self.model, self.options, self.machine, self.columns = model, options, machine, columns
        self.named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.ema = {name: parameter.detach().clone() for name, parameter in self.named.items()}
        self.optimizers = build_optimizers(self.named, options, machine, scale, adam or _ends)
        self.pool = ThreadPoolExecutor(machine.workers, initializer=_one_core if machine.workers > 1 else None)
        self.step, self.seconds, self.finish_from, self.stopped = 0, 0.0, -1, False
        if self.path.exists():
            self._resume()
        if not options.finish:
            self.finish_from = -1  # goes on after a finish, which may come again
        elif self.finish_from < 0:
            self.finish_from = self.step

    def run(self, loss: Loss, check: Check) -> None:
        """Until the minutes are over, the finishing steps are done, or a polite kill (SIGTERM).

        `loss(rng, count)` draws `count` examples and returns named terms, the one called "loss" being minimised;
        `check(step)` runs on the averaged weights and returns numbers for the log.
        """
        opts, spent, saved = self.options, 0.0, 0.0
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopped", True))
        sums: dict[str, list[float]] = {}
        while not self.stopped and spent < 60 * opts.minutes and self._remaining() > 0:
            started = time.monotonic()
            for key, value in self._update(loss).items():
                sums.setdefault(key, []).append(float(value))
            numbers = self._checked(check) if self.step % opts.check_every == 0 else {}
            if self.step % opts.log_every == 0:
                self._log({**{key: sum(values) / len(values) for key, values in sums.items()}, **numbers})
                sums = {}
            passed = min(time.monotonic() - started, 60.0)
            spent, saved, self.seconds = spent + passed, saved + passed, self.seconds + passed
            if saved > 60 * opts.save_minutes:
                self.save()
                saved = 0.0
        self.save()

    def averaged(self) -> AbstractContextManager:
        """Within it, the model holds the averaged weights."""
        return _Swapped(self.named, self.ema)

    def save(self) -> None:
        """Writes beside the checkpoint, then renames: a kill at any moment leaves a whole file."""
        states = {parameter: state for each in self.optimizers for parameter, state in each.state.items()}
        state = {
            "model": {name: parameter.detach() for name, parameter in self.named.items()},
            "ema": self.ema,
            "optimizer": {name: states.get(parameter, {}) for name, parameter in self.named.items()},
            "step": self.step,
            "seconds": self.seconds,
            "finish_from": self.finish_from,
        }
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.path)

    def _resume(self) -> None:
        """Optimiser states are kept by parameter name, so that another number of workers can go on."""
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(saved["model"][name])
                self.ema[name].copy_(saved["ema"][name])
        for optimizer in self.optimizers:
            for name, parameter in self.named.items():
                if any(parameter is each for group in optimizer.param_groups for each in group["params"]):
                    state = saved["optimizer"][name]
                    optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
        self.step, self.seconds, self.finish_from = saved["step"], saved["seconds"], saved["finish_from"]

    def _remaining(self) -> float:
        """The share of the finishing steps still to do, 1 where none were asked for."""
        finish = self.options.finish
        return 1.0 - (self.step - self.finish_from) / finish if finish else 1.0

    def _update(self, loss: Loss) -> dict[str, Tensor]:
        opts, workers = self.options, self.machine.workers
        rate = opts.learning_rate * min(1.0, (self.step + 1) / opts.warmup) * self._remaining()
        for group in (group for each in self.optimizers for group in each.param_groups):
            group["lr"] = rate * group["scale"]
        seeds = [np.random.default_rng((opts.seed, self.step, worker)) for worker in range(workers)]
        results = list(self.pool.map(lambda rng: self._gradients(loss, rng, opts.batch // workers), seeds))
        for parameter, *grads in zip(self.named.values(), *(grads for _, grads in results), strict=True):
            given = [grad for grad in grads if grad is not None]  # none from what is frozen at this step
            parameter.grad = torch.stack(given).mean(dim=0) if given else torch.zeros_like(parameter)
        nn.utils.clip_grad_norm_(self.named.values(), opts.clip)
        list(self.pool.map(lambda optimizer: optimizer.step(), self.optimizers))
        for parameter in self.named.values():
            parameter.grad = None
        self.step += 1
        if self.step % opts.ema_every == 0:
            self._average()
        return {key: torch.stack([terms[key] for terms, _ in results]).mean() for key in results[0][0]}

    def _gradients(
        self, loss: Loss, rng: np.random.Generator, count: int
    ) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
        """One worker's share. `autograd.grad` and not `backward`, which would add into gradients the workers share."""
        terms = loss(rng, count)
        grads = torch.autograd.grad(terms["loss"], list(self.named.values()), allow_unused=True)
        return {key: value.detach() for key, value in terms.items()}, grads

    @torch.no_grad()
    def _average(self) -> None:
        """The window grows with the run, so that its first thousand steps don't haunt it, and is a twentieth of the
        finishing steps while those run, so that the average arrives where they lead."""
        window = min(1 / (1 - self.options.ema_decay), (20 + self.step) / 19)
        if self.options.finish:
            window = max(1.0, min(window, self.options.finish / 20))
        decay = (1 - 1 / window) ** self.options.ema_every
        torch._foreach_lerp_(list(self.ema.values()), [each.detach() for each in self.named.values()], 1.0 - decay)

    def _checked(self, check: Check) -> dict[str, float]:
        self.model.eval()
        with self.averaged(), torch.no_grad():
            numbers = check(self.step)
        self.model.train()
        return numbers

    def _log(self, numbers: dict[str, float]) -> None:
        """One row: the step, seconds of training so far, and what was measured."""
        row = {"step": str(self.step), "seconds": f"{self.seconds:.0f}", **{k: f"{v:.5f}" for k, v in numbers.items()}}
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        fresh = not self.log_path.exists()
        with self.log_path.open("a", newline="") as file:
            writer = csv.DictWriter(file, ["step", "seconds", *self.columns])
            if fresh:
                writer.writeheader()
            writer.writerow(row)


def build_optimizers(
    named: dict[str, nn.Parameter],
    options: TrainOptions,
    machine: Machine,
    scale: Callable[[str], float],
    adam: Callable[[str], bool],
) -> list[torch.optim.Optimizer]:
    """Muon for the weights of hidden layers, an optimiser a worker with about equal work; AdamW for norms, biases, and
    the weights that `adam` names: embeddings, and what reads the input or writes the output."""
    chosen = {name for name, p in named.items() if p.ndim < 2 or adam(name)}
    hidden = sorted((name for name in named if name not in chosen), key=lambda name: -named[name].numel())
    optimizers: list[torch.optim.Optimizer] = [
        Muon(
            _groups(named, share, scale),
            options.learning_rate,
            weight_decay=options.weight_decay,
            dtype=machine.dtype,
        )
        for share in (hidden[worker :: machine.workers] for worker in range(machine.workers))
        if share
    ]
    rest = _groups(named, sorted(chosen), scale)
    return [*optimizers, torch.optim.AdamW(rest, options.learning_rate, options.betas, weight_decay=0.0, fused=True)]


def _ends(name: str) -> bool:
    return any(word in name for word in ("embedding.", "conv_in.", "conv_out."))


def _groups(named: dict[str, nn.Parameter], names: list[str], scale: Callable[[str], float]) -> list[dict[str, Any]]:
    """Parameter groups, one for each scale of the learning rate."""
    scales = sorted({scale(name) for name in names})
    return [{"params": [named[n] for n in names if scale(n) == each], "scale": each} for each in scales]


def _one_core() -> None:
    torch.set_num_threads(1)


class _Swapped:
    """Puts other weights into parameters for the length of a `with` block."""

    def __init__(self, named: dict[str, nn.Parameter], weights: dict[str, Tensor]) -> None:
        self.named, self.weights = named, weights

    @torch.no_grad()
    def __enter__(self) -> None:
        self.kept = {name: parameter.detach().clone() for name, parameter in self.named.items()}
        for name, parameter in self.named.items():
            parameter.copy_(self.weights[name])

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for name, parameter in self.named.items():
            parameter.copy_(self.kept[name])
