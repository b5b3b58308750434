"""The recipe of the bundled model: `python -m pipelines.diffusion.train STAGE --out DIR [--minutes N]`.

Stages, in order:
- data: render the pictures (once; needs --packages, the node_modules of the npm packages that data.py names)
- autoencoder: pictures to latents and back
- latents: encode every picture once; from here on the encoder is fixed
- denoiser: U-Net and text encoder together
- decoder: sharpen the decoder, whenever there is time; the latents stay
- export: the averaged weights as a folder that diffusers can load

A run that is lost but for its export goes on from it: `data`, then `latents --init EXPORT`, `denoiser --init EXPORT`.
The training stages can be stopped at any time (a kill saves first) and are resumed by the same command. `--finish N`
runs N last steps with the learning rate falling to zero.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.common.training import TrainOptions

STAGES = ("data", "autoencoder", "latents", "denoiser", "decoder", "export")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.diffusion.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--packages", type=Path, help="node_modules with the npm packages (stage data)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this much training")
    parser.add_argument("--finish", type=int, default=0, help="end with this many steps of falling learning rate")
    parser.add_argument("--init", type=Path, help="an exported folder to begin from, where the run has no checkpoint")
    parser.add_argument("--batch", type=int, help="pictures a step, in place of the stage's own")
    parser.add_argument("--learning-rate", type=float, help="in place of the stage's own")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Runs one stage."""
    asked = parse(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    pictures = asked.out / "emoji.npz"
    from . import data

    if asked.stage == "data":
        if asked.packages is None:
            raise SystemExit("the data stage needs --packages, a node_modules folder with the npm packages")
        print(f"{len(data.prepare(asked.packages, pictures).names)} names in {len(data.STYLES)} styles -> {pictures}")
        return
    from . import train_autoencoder, train_denoiser

    if asked.stage == "export":
        train_denoiser.export(asked.out)
        return
    emoji = data.load(pictures)
    if asked.stage == "autoencoder":
        train_autoencoder.run(emoji, asked.out, _options(train_autoencoder.OPTIONS, asked))
    elif asked.stage == "latents":
        train_denoiser.prepare_latents(emoji, asked.out, asked.init)
    elif asked.stage == "denoiser":
        train_denoiser.run(emoji, asked.out, _options(train_denoiser.OPTIONS, asked), asked.init)
    else:
        latents = train_denoiser.load_latents(asked.out)
        train_autoencoder.run_decoder(emoji, latents, asked.out, _options(train_autoencoder.OPTIONS, asked))


def _options(own: TrainOptions, asked: argparse.Namespace) -> TrainOptions:
    """The stage's own options with what was asked for on the command line."""
    given = {
        "minutes": asked.minutes,
        "finish": asked.finish,
        "batch": asked.batch,
        "learning_rate": asked.learning_rate,
    }
    return replace(own, **{key: value for key, value in given.items() if value is not None})


if __name__ == "__main__":
    main()
