"""Trains the bundled brains, which tell what somebody does from thirteen joints a chunk.

    python -m pipelines.action.train data --data DIR --out RUN            the recordings as one compact file
    python -m pipelines.action.train model --brain oadtr --out RUN        people and clips of one part kept out
    python -m pipelines.action.train model --brain oadtr --out RUN --everything   goes on from there with all of them
    python -m pipelines.action.train score --brain oadtr --out RUN        on what was kept out
    python -m pipelines.action.train export --out RUN --weights DIR       safetensors and config.json

A run is a folder; a stopped training goes on where it was, and `--minutes N` stops it. The rate falls from the first
step to nothing at the last. What is kept out is decided by the person and by a hash of the video's name.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.common.training import Machine, Trainer, TrainOptions, pick_machine, standing

from . import score, train_files
from .config import BRAINS, Brain
from .gru import Recurrent
from .losses import Loss, cross_entropy, loss
from .oadtr import OadTR
from .skeletons import MOVEMENTS
from .train_data import Draw, Recipe, Source, classes, windows
from .train_files import configured, stage
from .weights import build
from .windows import config_of

SMOOTHING = 0.05
EVERY_WEIGHT = 0.5  # of the heads that only training has, see Taught
# Windows of several lengths: short ones cost less, teach the cold start, and let the visitor cut the memory. A stream
# longer than the window is the rule, so half of them are whole.
LENGTHS = (8, 12, 16, 24, 32)
SHARES = (0.1, 0.25, 0.4, 0.1, 0.15)
OPTIONS = TrainOptions(
    learning_rate=2e-3, batch=64, weight_decay=0.1, warmup=100, ema_decay=0.998, check_every=500, log_every=50,
    save_minutes=1.0,
)  # fmt: skip
STEPS: dict[Brain, int] = {"oadtr": 5000, "linear": 5000, "gru": 1500, "none": 800}
MORE = 600  # steps of --everything
WINDOWS: tuple[Brain, ...] = ("oadtr", "linear")  # the others answer every chunk of a stream at once


class Taught(nn.Module):
    """A network, and heads that only training has. Two name every chunk of the window, its class and its movement, from
    what OadTR's encoder has made of it: one window then has as many labels to learn from as chunks, not one, at no cost
    to speak of. The third names the current movement from what the network's own head reads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        if isinstance(network, OadTR):
            config = network.config
            self.chunk_head = nn.Linear(config.width, config.classes)
            self.movement_head = nn.Linear(config.width, MOVEMENTS)
            self.now_head = nn.Linear(network.head.in_features, MOVEMENTS)
            network.head.register_forward_pre_hook(self._read)
            network.norm.register_forward_hook(self._keep)

    def chunk_logits(self) -> tuple[Tensor, Tensor]:
        """Of the forward pass just done: classes (B, T, C) and movements (B, T, M = MOVEMENTS)."""
        return self.chunk_head(self._memory[:, :-1]), self.movement_head(self._memory[:, :-1])

    def now_logits(self) -> Tensor:
        """Of the forward pass just done: the current chunk's movement, (B, M)."""
        return self.now_head(self._now)

    def _read(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._now = given[0]

    def _keep(self, module: nn.Module, given: tuple[Tensor, ...], memory: Tensor) -> None:
        self._memory = memory


class Objective:
    """What is minimised: the authors' loss over windows, or over every chunk of whole streams."""

    def __init__(self, taught: Taught, brain: Brain, source: Source, machine: Machine, seed: int) -> None:
        self.taught, self.network = taught, taught.network
        self.brain, self.source, self.machine, self.seed = brain, source, machine, seed
        self.drawn = lru_cache(maxsize=2)(self._drawn)

    def __call__(self, rng: np.random.Generator, count: int) -> dict[str, Tensor]:
        """Named terms of `count` windows that end in other places of the same streams for some steps."""
        step, worker = standing(rng)
        reused = self.source.recipe.draws if self.brain in WINDOWS else 2  # whole streams are learnt from all at once
        draw = self.drawn(step // reused, worker)
        if self.brain not in WINDOWS:
            terms, every = self._whole(draw), torch.zeros(())
        else:
            terms, every = self._windows(rng, draw, count)
        total = terms.total + EVERY_WEIGHT * every
        return {"loss": total, "current": terms.current, "future": terms.future, "every": every}

    def _drawn(self, number: int, worker: int) -> Draw:
        return self.source.draw(np.random.default_rng((self.seed, 1, number, worker)))

    def _windows(self, rng: np.random.Generator, draw: Draw, count: int) -> tuple[Loss, Tensor]:
        config, recipe = config_of(self.network), self.source.recipe
        past = min(int(rng.choice(LENGTHS, p=SHARES)), config.chunks)
        taken = windows(rng, draw, count, past, config.future, recipe.calm)
        features, movements, ahead, hidden = (torch.from_numpy(each).to(self.machine.device) for each in taken)
        labels = torch.from_numpy(classes(taken[1])).to(self.machine.device)
        with self.machine.autocast():
            logits = self.network(features, hidden)
            named, moved = (each.flatten(0, 1) for each in self.taught.chunk_logits())
            now = self.taught.now_logits()
        every = cross_entropy(named, labels.flatten(), smoothing=SMOOTHING)
        every = every + cross_entropy(moved, movements.flatten(), smoothing=SMOOTHING)
        every = every + cross_entropy(now, movements[:, -1], smoothing=SMOOTHING)
        return loss(logits, labels[:, -1], ahead, smoothing=SMOOTHING), every

    def _whole(self, draw: Draw) -> Loss:
        future = config_of(self.network).future
        features = torch.from_numpy(draw.features).to(self.machine.device)
        labels = torch.from_numpy(draw.labels).to(self.machine.device)
        with self.machine.autocast():
            now, ahead = self._answers(features)
        later = labels.unfold(1, future, 1)[:, 1:]  # (B, T - F, F)
        count = later.shape[1]
        # A chunk of background counts as often as a window that ends in it would be taken.
        kept = torch.rand(labels[:, :count].shape, device=labels.device) < self.source.recipe.calm
        current = torch.where((labels[:, :count] > 0) | kept, labels[:, :count], -1)
        logits = now[:, :count].flatten(0, 1), ahead[:, :count].flatten(0, 1)
        return loss(logits, current.flatten(), later.flatten(0, 1), smoothing=SMOOTHING)

    def _answers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> logits of every chunk (B, T, C) and of those after it (B, T, F, C)."""
        if isinstance(self.network, Recurrent):
            return self.network.run(features)[:2]
        now, ahead = self.network(features.flatten(0, 1)[:, None])
        return now.unflatten(0, features.shape[:2]), ahead.unflatten(0, features.shape[:2])


def train(
    out: Path, brain: Brain, options: TrainOptions, everything: bool, recipe: Recipe, start: Path | None = None
) -> None:
    """Until the steps are done or the minutes over; the log is RUN/<stage>.csv, see `stage`.

    start: weights to begin with, of this brain, or of OadTR for the linear one, whose weights mean the same.
    """
    machine = replace(pick_machine(), workers=1)
    if machine.device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    network = build(configured(brain)).to(machine.device)
    name = stage(brain, options.seed, everything)
    if start is None and everything:
        start = out / f"{stage(brain, options.seed, False)}.pt"
    if start is not None and not (out / f"{name}.pt").exists():
        train_files.restore(start, network)
    kept_in, kept_out = train_files.split(out)
    source = Source(*(train_files.load(out) if everything else kept_in), recipe)
    taught = Taught(network).to(machine.device)
    trainer = Trainer(out, name, taught, options, machine, COLUMNS, adam=_adam)
    measured = score.Measured(*kept_out, streams=16, chunks=300)  # fewer have two events of a class, and tell nothing

    def check(step: int) -> dict[str, float]:
        return {} if everything else measured.summary(network)

    trainer.run(Objective(taught, brain, source, machine, options.seed), check)
    network.eval()
    with trainer.averaged():
        train_files.keep(out / f"{name}-average.pt", network, trainer.step)


COLUMNS = ("loss", "current", "future", "every", *score.SUMMARY)


def _adam(name: str) -> bool:
    """What reads the input, writes the output, or is looked up; and the GRU, whose matrices are three in one."""
    name = name.removeprefix("network.")
    ends = (*train_files.TRAINING_ONLY, "encoding.", "embedding.", "head.", "future_head.", "gru.", "layers.0.")
    return name.startswith(ends) or name in ("positions", "task_token", "queries")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("data", "model", "score", "export"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--brain", default="oadtr", choices=BRAINS)
    parser.add_argument("--everything", action="store_true")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--steady", action="store_true", help="the rate does not fall, until the minutes are over")
    parser.add_argument("--start", type=Path, help="weights to begin with")
    parser.add_argument("--rate", type=float, default=OPTIONS.learning_rate, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.stage == "data":
        if args.data is None:
            parser.error("data needs --data: the folder of skeletons.npz, labels.csv and jhmdb_pose.npz")
        train_files.prepare(args.data, args.out)
    elif args.stage == "model":
        steps = 0 if args.steady else args.steps or (MORE if args.everything else STEPS[args.brain])
        rate = args.rate / (2 if args.everything else 1)
        options = replace(OPTIONS, minutes=args.minutes, finish=steps, seed=args.seed, learning_rate=rate)
        train(args.out, args.brain, options, args.everything, Recipe(), args.start)
    elif args.stage == "score":
        network = build(configured(args.brain))
        train_files.restore(args.out / f"{stage(args.brain, args.seed, False)}-average.pt", network)
        train_files.restore_shares(network, Recipe().calm)
        score.report(network.eval(), *train_files.split(args.out)[1])
    else:
        if args.weights is None:
            parser.error("export needs --weights: the folder to write")
        from .export import export

        export(args.out, args.weights, args.seed)


if __name__ == "__main__":
    main()
