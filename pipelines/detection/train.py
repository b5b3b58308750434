"""The recipe of the bundled model: `python -m pipelines.detection.train --data DIR`.

DIR is a folder in COCO format: train.json, val.json and images/. Stages, all of them unless one is named:
- features: the frozen half of the backbone over some views of every photo, once
- network: the rest of the network on these features
- export: the averaged weights, scores calibrated on val.json, as a folder that transformers can load

Every stage can be stopped at any time (a kill saves first) and is resumed by the same command. `--finish N` ends the
network's training with N steps of falling learning rate.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

STAGES = ("features", "network", "export")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.detection.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", nargs="?", choices=STAGES, help="only this one")
    parser.add_argument("--data", type=Path, required=True, help="a folder in COCO format")
    parser.add_argument("--out", type=Path, default=Path("runs/detection"), help="the run's folder")
    parser.add_argument("--views", type=int, default=8, help="views kept of every photo")
    parser.add_argument("--minutes", type=float, default=240.0, help="stop after this much training")
    parser.add_argument("--finish", type=int, default=0, help="end with this many steps of falling learning rate")
    parser.add_argument("--learning-rate", type=float, help="in place of the recipe's own")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Runs one stage, or all."""
    asked = parse(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    from . import train_features, train_network
    from .config import PRESETS, DeformableDetrConfig
    from .data import read_coco

    config = PRESETS["voc"]
    assert isinstance(config, DeformableDetrConfig)
    photos, index = read_coco(asked.data, "train")
    config = replace(config, classes=len(index))
    if asked.stage in (None, "features"):
        train_features.write(photos, asked.views, asked.out, config.backbone)
    if asked.stage in (None, "network"):
        options = replace(train_network.OPTIONS, minutes=asked.minutes, finish=asked.finish)
        if asked.learning_rate:
            options = replace(options, learning_rate=asked.learning_rate)
        train_network.run(asked.data, asked.out, config, options)
    if asked.stage in (None, "export"):
        from .export import export

        export(asked.data, asked.out, config)


if __name__ == "__main__":
    main()
