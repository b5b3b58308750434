"""Trains what the Foundations tab ships.

    python -m pipelines.foundations.train TOPIC NAME --data DIR --out RUN [--minutes N]
    python -m pipelines.foundations.train TOPIC NAME --data DIR --out RUN --weights DIR     write the trained model

TOPIC: pixels, the autoregressive models (DIR has MNIST's train.npz and test.npz); attention, the small language models
(DIR has tinystories.txt and tales.txt); or recurrence, the curves of networks on longer and longer tasks (without
--data). NAME: one of the topic's, or "all", one after another. RUN is a folder; a stopped training goes on where it
was, and one that is done is left as it is. A pixels run that is lost but for its export goes on from it: `--init DIR`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topic", choices=("pixels", "attention", "recurrence"))
    parser.add_argument("name")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--init", type=Path, help="pixels: a folder of exported models to begin from, in a new run")
    args = parser.parse_args()
    topic, known = _topic(args.topic)
    if args.data is None and args.topic != "recurrence":
        parser.error("--data names the folder of what it is trained on")
    if args.init is not None and args.topic != "pixels":
        parser.error("--init is for the pixels models")
    more = {"init": args.init} if args.init is not None else {}
    names = list(known) if args.name == "all" else [args.name]
    if not set(names) <= set(known):
        parser.error(f"the models are {', '.join(known)}, or all")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        if args.weights is not None:
            print(name, topic.export(name, args.data, args.out, args.weights), flush=True)
        else:
            print(name, flush=True)
            topic.train(name, args.data, args.out, args.minutes, **more)


def _topic(name: str) -> tuple[Any, Iterable[str]]:
    """The recipes of a topic, and the names of its models."""
    if name == "pixels":
        from . import train_pixels

        return train_pixels, train_pixels.MODELS
    if name == "recurrence":
        from . import train_recurrence

        return train_recurrence, train_recurrence.MODELS
    from . import train_attention

    return train_attention, train_attention.MODELS


if __name__ == "__main__":
    main()
