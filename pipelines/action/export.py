"""Last stage of training: the averaged weights of every brain that was trained, as one folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

from . import train_files
from .config import BRAINS, CHUNKS_PER_SECOND, CLASSES
from .features import JOINTS
from .train_data import Recipe
from .train_files import configured, stage
from .weights import build

# Chosen on people and clips that were kept out, see the card: an action begins at the first probability and ends below
# the second.
THRESHOLD, RELEASE = 0.48, 0.29


def export(out: Path, folder: Path, seed: int) -> Path:
    """Writes <brain>.safetensors (float16) of each brain whose training is in `out`, and config.json, to `folder`.

    A training that went on with all people and clips is taken before the one that kept some out. SystemExit: nothing
    was trained, or weights do not fit into float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    brains = {}
    for brain in BRAINS:
        found = [out / f"{stage(brain, seed, everything)}-average.pt" for everything in (True, False)]
        checkpoint = next((path for path in found if path.exists()), None)
        if checkpoint is None:
            continue
        config = configured(brain)
        network = build(config)
        step = train_files.restore(checkpoint, network)
        train_files.restore_shares(network, Recipe().calm)
        half = {name: value.half().contiguous() for name, value in network.state_dict().items()}
        if not all(value.isfinite().all() for value in half.values()):
            raise SystemExit(f"the weights of {checkpoint.name} do not fit into float16")
        save_file(half, folder / f"{brain}.safetensors", metadata={"format": "pt"})
        (folder / f"{brain}.safetensors").chmod(0o644)  # safetensors writes for the owner only
        brains[brain] = asdict(config) | {"parameters": sum(value.numel() for value in half.values())}
        print(f"{brain}: {checkpoint.name}, step {step}, {brains[brain]['parameters'] / 1e6:.2f} M parameters")
    if not brains:
        raise SystemExit(f"no training in {out} is finished")
    content = {
        "labels": CLASSES, "joints": JOINTS, "chunks_per_second": CHUNKS_PER_SECOND, "threshold": THRESHOLD,
        "release": RELEASE, "brains": brains,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder
