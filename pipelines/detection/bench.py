"""python -m pipelines.detection.bench: ours against transformers, same weights and input, in turn."""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.common import bench, catalogue

from . import forms, local, reference, weights
from .config import PRESETS, DetrConfig, Scoring
from .contract import Prediction
from .fused import with_backbone
from .postprocess import class_scores, overlaps, to_pixels
from .preprocess import prepare

DETR = "detr-resnet-50"
CONFIDENT = 0.5  # score from which on a query's box counts
SHARP, SURE = 3.0, 4.0  # how much larger than usual the random queries of attention and the random class head are


def detr_rows(rounds: int, folder: Path) -> list[bench.Row]:
    """DETR with a ResNet-50 at its own size, 800 x 1066: in float32, and in the smaller numbers chosen here.

    Both get the same float32 batch (NCHW). Random weights, saved by the library in `folder` and read by our loader.
    """
    config = PRESETS[DETR]
    photo = forms.examples()[0]
    pixels = prepare([photo], config.input).pixels
    library = random_detr()
    library.save_pretrained(folder)
    ours = local.LocalDetector(weights.load(DETR, folder / "model.safetensors"), config)
    mask = torch.ones(1, *pixels.shape[-2:], dtype=torch.long)
    size = "x".join(map(str, pixels.shape[-2:]))
    rows = []
    with torch.inference_mode():
        theirs = partial(library, pixel_values=pixels, pixel_mask=mask)
        answer = theirs()
        wanted = _prediction(answer.logits[0], answer.pred_boxes[0])
        for precision in ("float32", "reduced"):
            chosen = forms.device(precision, config)
            network = ours.network(precision)
            given = pixels.to(next(network.parameters()).dtype)
            output = network(given)
            found = _prediction(output.logits[-1, 0], output.boxes[-1, 0])
            times = bench.interleave(partial(network, given), theirs, rounds)
            task = f"DETR ResNet-50, {size}, {chosen.dtype} against float32"
            rows.append(_row(task, times, differences(found, wanted)))
    return rows


def bundled_rows(rounds: int) -> list[bench.Row]:
    """The model that ships here: its network alone, a photo from bytes to boxes, and the preparation of one."""
    entry = catalogue.manifest()["detr-voc"]
    config = PRESETS[entry.preset]
    ours, theirs = local.load(entry), reference.load(entry)
    photo = forms.examples()[0]
    pixels = prepare([photo], config.input).pixels
    wanted = theirs.predict([photo], config.input)[0]
    checks = differences(ours.predict([photo], config.input)[0], wanted)
    library = partial(theirs._network, pixel_values=pixels)
    network = ours.network()
    rows = []
    with torch.inference_mode():
        times = bench.interleave(partial(network, pixels), library, rounds)
        size = "x".join(map(str, pixels.shape[-2:]))
        rows.append(_row(f"bundled model, {size}, network alone", times, checks))
        times = bench.interleave(
            partial(ours.predict, [photo], config.input), partial(theirs.predict, [photo], config.input), rounds
        )
        rows.append(_row(f"bundled model, a photo of {photo.shape[0]}x{photo.shape[1]}", times, checks))
        small = with_backbone(network, forms.in_bytes(network.backbone))
        found = small(pixels)
        checks = differences(_prediction(found.logits[-1, 0], found.boxes[-1, 0], "sigmoid"), wanted)
        times = bench.interleave(partial(small, pixels), library, rounds)
        rows.append(_row(f"bundled model, {size}, int8 (not offered)", times, checks))
    return rows


def preparation_row(rounds: int) -> bench.Row:
    """A photo made ready for DETR at its own size, ours against the library's processor."""
    from transformers import DetrImageProcessor

    photo, processor, size = forms.examples()[0], DetrImageProcessor(), PRESETS[DETR].input
    theirs = partial(processor, images=photo, input_data_format="channels_last", return_tensors="pt")
    pixels = prepare([photo], size).pixels
    checks = {"largest difference": float((pixels - theirs()["pixel_values"]).abs().max())}
    times = bench.interleave(partial(prepare, [photo], size), theirs, rounds)
    return _row(f"preparation to {'x'.join(map(str, pixels.shape[-2:]))}", times, checks)


def random_detr() -> Any:
    """The library's DetrForObjectDetection over its own ResNet-50, with random weights that answer.

    With the library's initial ones every query would give the same answer to every picture, and a difference would
    show nothing. Here the frozen norms do something, the slots differ, attention looks somewhere in particular, and
    the class head is sure of some.
    """
    from transformers import DetrForObjectDetection

    config = PRESETS[DETR]
    assert isinstance(config, DetrConfig)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        native = {"backbone.embedder.embedder.": None}  # a name that tells the library's own backbone from timm's
        network = DetrForObjectDetection(reference.library_config(config, Path(), native))
        for name, module in network.named_modules():
            if hasattr(module, "running_var"):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.6, 1.4)
                module.bias.uniform_(-0.2, 0.2)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, (SHARP if name.endswith("q_proj") else 1) * module.in_features**-0.5)
                module.bias.uniform_(-0.1, 0.1)
        network.model.query_position_embeddings.weight.normal_()
        network.class_labels_classifier.weight.mul_(SURE)
    return network.eval()


def differences(found: Prediction, wanted: Prediction) -> dict[str, Any]:
    """Largest and mean differences of logits and of boxes, the latter in the picture's size and of confident queries.

    overlap: IoU of their boxes with the same queries' boxes in `wanted`.
    """
    logits = np.abs(found.logits - wanted.logits)
    sure = class_scores(wanted).max(1) >= CONFIDENT
    checks = {"logits": float(logits.max()), "mean logits": float(logits.mean()), "confident": int(sure.sum())}
    boxes = np.abs(found.boxes - wanted.boxes)[sure]
    if len(boxes):
        shared = np.diagonal(overlaps(*(to_pixels(p.boxes[sure], (1, 1)) for p in (found, wanted))))
        checks |= {
            "boxes": float(boxes.max()), "mean boxes": float(boxes.mean()),
            "mean overlap": float(shared.mean()), "least overlap": float(shared.min()),
            "same class": float((class_scores(found).argmax(1) == class_scores(wanted).argmax(1))[sure].mean()),
        }  # fmt: skip
    return checks


def _prediction(logits: Tensor, boxes: Tensor, scoring: Scoring = "softmax") -> Prediction:
    return Prediction(logits.numpy(), boxes.numpy(), scoring)


def _row(task: str, times: tuple[bench.Timing, bench.Timing], checks: dict[str, Any]) -> bench.Row:
    return bench.Row(task, *times, checks, bench.peak_mb(), bench.setup("transformers", "timm"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["detr", "bundled"])
    arguments = parser.parse_args()
    rows = []
    with bench.torch_threads(arguments.threads):
        if arguments.only != "detr":
            rows += [*bundled_rows(arguments.rounds), preparation_row(arguments.rounds)]
        if arguments.only != "bundled":
            with tempfile.TemporaryDirectory() as folder:
                rows += detr_rows(arguments.rounds, Path(folder))
    print(bench.table(rows))
    for row in rows:
        print(row.json())


if __name__ == "__main__":
    main()
