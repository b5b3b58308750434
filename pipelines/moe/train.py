"""Trains the bundled story model: a Mixtral of 20 million parameters that writes simple English stories.

    python -m pipelines.moe.train data --stories DIR --out RUN      tokenizer and tokens, from the stories
    python -m pipelines.moe.train model --out RUN [--minutes N] [--finish STEPS]
    python -m pipelines.moe.train blend --out RUN --other CHECKPOINT
    python -m pipelines.moe.train export --out RUN --weights DIR    Mixtral layout, float16

A run is a folder; a stopped training goes on where it was. `--finish STEPS` lets the rate fall to nothing, which ends
it. The data is small for this many parameters, so dropout and weight decay are strong, and the checkpoint with the best
validation is kept beside the last one. `blend` averages the last one with another of the same run, such as a copy that
was made before the rate fell: the fall fits the training text closer, and half of it is better than all.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.common.training import Machine, Trainer, TrainOptions, pick_machine, standing

from .config import PRESETS, MoeConfig
from .decoder import Decoder, Record
from .router import balance_loss, z_loss
from .train_data import Part, Stories, prepare

LENGTH = 384
TALES_SHARE = 0.2
DROPOUT = 0.1
OPTIONS = TrainOptions(
    learning_rate=2e-3, batch=12, weight_decay=0.2, warmup=60, ema_decay=0.995, check_every=250, log_every=50
)


class Objective:
    """What is minimised: cross-entropy, and the router's losses that keep the experts equally busy."""

    def __init__(self, model: Decoder, stories: Stories, machine: Machine, seed: int, batch: int) -> None:
        self.model, self.stories, self.machine, self.seed, self.batch = model, stories, machine, seed, batch

    def __call__(self, rng: np.random.Generator, count: int) -> dict[str, Tensor]:
        """Named terms of `count` rows: the next ones in the order of the epochs, whatever the number of workers."""
        step, worker = standing(rng)
        rows = self.stories.rows(step * self.batch + worker * count, count, LENGTH, self.seed)
        tokens = torch.from_numpy(rows).to(self.machine.device)  # (B, T + 1)
        given, wanted = tokens[:, :-1], tokens[:, 1:]
        record = Record()
        with self.machine.autocast():
            logits = self.model(given, record=record, documents=(given == 0).cumsum(1))
        entropy = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())
        config, routings = self.model.config, record.routings
        # A row at a time: over the whole batch an expert for tales would count as busy, and be idle in every story.
        balance = torch.stack([
            balance_loss(each.logits.unflatten(0, given.shape), each.experts.unflatten(0, given.shape)).mean()
            for each in routings
        ]).mean()  # fmt: skip
        small = torch.stack([z_loss(each.logits) for each in routings]).mean()
        loss = entropy + config.balance_coefficient * balance + config.z_coefficient * small
        return {"loss": loss, "entropy": entropy, "balance": balance, "z": small}


@torch.no_grad()
def bits_per_byte(model: Decoder, part: Part, machine: Machine, most: int = 10**9, batch: int = 16) -> dict[str, float]:
    """Bits per byte of the part's first documents, each read from its own beginning, and the least and greatest share
    of an expert in any layer, 1 being even."""
    order = sorted(range(min(len(part), most)), key=lambda k: len(part.document(k)))
    bits, load = 0.0, torch.zeros(model.config.layers, model.config.experts)
    for at in range(0, len(order), batch):
        group = [torch.from_numpy(part.document(k)) for k in order[at : at + batch]]
        tokens = torch.nn.utils.rnn.pad_sequence(group, batch_first=True).to(machine.device)
        real = torch.nn.utils.rnn.pad_sequence([torch.ones(len(g)) for g in group], batch_first=True)[:, 1:].bool()
        record = Record()
        with machine.autocast():
            logits = model(tokens[:, :-1], record=record)
        entropy = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none").cpu()
        bits += float(entropy[real.flatten()].double().sum()) / np.log(2)
        for layer, routing in enumerate(record.routings):
            chosen = routing.experts.cpu()[real.flatten()].flatten()
            load[layer] += torch.bincount(chosen, minlength=model.config.experts)
    share = load / load.mean(dim=1, keepdim=True)
    return {"bits": bits / part.bytes[order].sum(), "least": float(share.min()), "most": float(share.max())}


def train(out: Path, config: MoeConfig, options: TrainOptions) -> None:
    """Until the minutes are over; the log is RUN/model.csv, the best validation so far RUN/best.pt."""
    machine = pick_machine()
    model = Decoder(config)
    model.initialise(torch.Generator().manual_seed(options.seed))
    model.set_dropout(DROPOUT)
    model.to(machine.device)
    stories = Stories(out, TALES_SHARE)
    columns = ("loss", "entropy", "balance", "z", "bits", "bits_tales", "bits_seen", "least", "most")
    trainer = Trainer(out, "model", model, options, machine, columns, adam=_ends)

    def check(step: int) -> dict[str, float]:
        return judge(model, stories, machine, step, out)

    trainer.run(Objective(model, stories, machine, options.seed, options.batch), check)
    model.eval()
    with trainer.averaged(), torch.no_grad():
        check(trainer.step)  # the last steps may be the best


def judge(model: Decoder, stories: Stories, machine: Machine, step: int, out: Path) -> dict[str, float]:
    """What the log says of a model; one that is better than all before becomes RUN/best.pt."""
    found = bits_per_byte(model, stories.parts["tinystories_validation"], machine)
    found["bits_tales"] = bits_per_byte(model, stories.parts["tales_validation"], machine)["bits"]
    found["bits_seen"] = bits_per_byte(model, stories.parts["tinystories_train"], machine, 100)["bits"]
    best = out / "best.json"
    if not best.exists() or found["bits"] < json.loads(best.read_text())["bits"]:
        torch.save({"model": model.state_dict(), "step": step}, out / "best.tmp")
        (out / "best.tmp").replace(out / "best.pt")
        best.write_text(json.dumps({"step": step, **found}))
    return found


def blend(out: Path, other: Path, config: MoeConfig) -> dict[str, float]:
    """Equal parts of the averaged weights of RUN/model.pt and of `other`, judged like any checkpoint."""
    last, before = (torch.load(path, map_location="cpu", weights_only=True) for path in (out / "model.pt", other))
    model = Decoder(config)
    model.load_state_dict({name: (value + before["ema"][name]) / 2 for name, value in last["ema"].items()})
    with torch.no_grad():
        return judge(model.eval(), Stories(out, TALES_SHARE), pick_machine(), last["step"], out)


def _ends(name: str) -> bool:
    return name.startswith(("embedding.", "head."))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("data", "model", "blend", "export"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stories", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--preset", default="stories", choices=sorted(PRESETS))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--finish", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = PRESETS[args.preset]
    if args.stage == "data":
        if args.stories is None:
            parser.error("data needs --stories: the folder of tinystories.txt and tales.txt")
        prepare(args.stories, args.out, config.vocabulary)
    elif args.stage == "model":
        train(args.out, config, replace(OPTIONS, minutes=args.minutes, finish=args.finish, seed=args.seed))
    elif args.stage == "blend":
        if args.other is None:
            parser.error("blend needs --other: a checkpoint of the same run")
        print(blend(args.out, args.other, config))
    else:
        from .export import export

        if args.weights is None:
            parser.error("export needs --weights: the folder to write")
        export(args.out / "best.pt", config, args.weights)
        shutil.copy(args.out / "tokenizer.json", args.weights / "tokenizer.json")


if __name__ == "__main__":
    main()
