"""The embedders' share of `python -m pipelines.face.bench`: ours against the libraries, same weights, same chips."""

from __future__ import annotations

import importlib.util
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.common import bench, catalogue, checkpoint

from . import weights
from .config import InceptionResnetConfig
from .embedders import LocalEmbedder, ReferenceEmbedder
from .inception_resnet import FoldedInceptionResnetV1, InceptionResnetV1, prepare

BATCHES = (1, 8)


def embedding_rows(rounds: int = 15) -> list[bench.Row]:
    """A row a batch size of InceptionResnetV1, and of dlib's network where dlib is installed.

    InceptionResnetV1 takes the VGGFace2 weights if they are on this machine and random ones otherwise, which cost the
    same time. Both get the same float32 batch (NCHW): what each does to its layout counts.
    """
    rows = [_facenet_row(batch, rounds) for batch in BATCHES]
    if importlib.util.find_spec("dlib") is not None:
        rows += _dlib_rows(rounds)
    return rows


def _facenet_row(batch: int, rounds: int) -> bench.Row:
    from facenet_pytorch import InceptionResnetV1 as Reference

    state, origin = _state()
    classes = len(state["logits.bias"])
    reference = Reference(classify=True, num_classes=classes).eval()
    reference.load_state_dict(state)
    reference.classify = False
    config = InceptionResnetConfig(classes=classes)
    network = InceptionResnetV1(config)
    weights.assign(network, state, weights.keymap(config))
    folded = FoldedInceptionResnetV1(network.eval())
    images = _pictures(batch)
    with torch.inference_mode():
        worst = float((folded(images) - reference(images)).abs().max())
        local, theirs = bench.interleave(lambda: folded(images), lambda: reference(images), rounds)
    return bench.Row(
        f"InceptionResnetV1, batch {batch}, {origin} weights", local, theirs, {"largest difference": worst},
        bench.peak_mb(), bench.setup("facenet-pytorch"),
    )  # fmt: skip


def _dlib_rows(rounds: int) -> list[bench.Row]:
    entry = catalogue.resolve("face", "dlib", "embedder")
    local, reference = LocalEmbedder.load(entry), ReferenceEmbedder.load(entry)
    rows = []
    for batch in BATCHES:
        chips = np.random.default_rng(0).integers(0, 256, (batch, 150, 150, 3), dtype=np.uint8)
        worst = float(np.abs(local.embed(chips) - reference.embed(chips)).max())
        timings = bench.interleave(partial(local.embed, chips), partial(reference.embed, chips), rounds)
        checks = {"largest difference": worst}
        task = f"dlib descriptor, batch {batch}"
        rows.append(bench.Row(task, *timings, checks, bench.peak_mb(), bench.setup("dlib-bin")))
    return rows


def _pictures(batch: int) -> Tensor:
    # Pictures with structure at several scales, as faces have; values as `prepare` gives them.
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(batch, 3, side, side, generator=generator) for side in (4, 20, 160)]
    mixed = torch.stack([nn.functional.interpolate(part, size=160, mode="bilinear") for part in parts]).mean(0)
    return prepare((mixed * 255).to(torch.uint8))


def _state() -> tuple[dict[str, Tensor], str]:
    """A state dict in the published layout, and "published" or "random"."""
    entry = catalogue.manifest()["facenet-vggface2"]
    if checkpoint.locate(entry) is not None:
        return checkpoint.read(checkpoint.paths(entry)["model"]), "published"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = InceptionResnetV1(InceptionResnetConfig(classes=8631))
        # Statistics of real activations: with torch's initial ones they would shrink layer by layer towards
        # denormal numbers, which processors compute slowly.
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = 1.0
        with torch.no_grad():
            network.train()(_pictures(4))
    return network.state_dict(), "random"
