"""Last stage of training: the averaged weights, their scores calibrated, as a folder that transformers can load.

The scores of a detector trained with soft targets rank well but mean little. Here the class head is scaled and shifted
(Platt 1999) such that, over the validation photos, half of the boxes that score 0.5 are right. No rank changes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from .config import IMAGENET_MEAN, IMAGENET_STD, DeformableDetrConfig
from .deformable import DeformableDetr
from .deformable_layout import to_library
from .postprocess import overlaps
from .train_network import Learner, Validation

OVERLAP = 0.5  # at which a box is right


def export(source: Path, folder: Path, config: DeformableDetrConfig) -> Path:
    """Writes `folder`/export from the run's checkpoint; the truth and the class names come from `source`/val.json."""
    learner = Learner(config)
    saved = torch.load(folder / "network.pt", map_location="cpu", weights_only=True)
    learner.load_state_dict(saved["ema"], strict=False)  # the frozen stages are not in it; they are ImageNet's
    missing = {name for name, p in learner.named_parameters() if p.requires_grad} ^ saved["ema"].keys()
    if missing:
        raise SystemExit(f"the checkpoint is of another network: {sorted(missing)[:5]}")
    learner.eval()
    validation = Validation(source, learner)
    slope, shift = calibrate(validation.truth, validation.detections(learner))
    with torch.no_grad():
        learner.detr.class_head.weight *= slope
        learner.detr.class_head.bias.mul_(slope).add_(shift)
    network = unfolded(learner.detr, config)
    target = folder / "export"
    target.mkdir(exist_ok=True)
    state = {name: value.half().contiguous() for name, value in to_library(network.state_dict(), config).items()}
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    names = [c["name"] for c in sorted(validation.truth["categories"], key=lambda c: c["id"])]
    (target / "config.json").write_text(json.dumps(library_config(config, names), indent=2) + "\n")
    (target / "preprocessor_config.json").write_text(json.dumps(processor_config(config), indent=2) + "\n")
    print(f"step {saved['step']}: score = sigmoid({slope:.3f} logit {shift:+.3f}) -> {target}")
    return target


def unfolded(trained: DeformableDetr, config: DeformableDetrConfig) -> DeformableDetr:
    """The network with batch norms again, as its layout has them: each keeps its convolution's bias and changes nothing
    else."""
    network = DeformableDetr(config)
    plain = dict(trained.named_parameters())
    for name, parameter in network.named_parameters():
        value = plain[name].detach()
        parameter.data.copy_(value[: config.queries] if name == "queries" else value)
    for name, buffer in network.named_buffers():
        layer, _, kind = name.rpartition(".norm.")
        if kind == "bias":
            buffer.copy_(plain[f"{layer}.conv.bias"].detach())
        elif kind == "weight":
            buffer.fill_((1 + 1e-5) ** 0.5)  # against the norm's epsilon
    return network


def calibrate(truth: dict[str, Any], detections: list[dict[str, Any]]) -> tuple[float, float]:
    """Slope and shift of the logit that make scores the share of boxes that are right, by logistic regression.

    A box is right if it overlaps an object of its class that no better one has taken; one on a difficult object counts
    neither way.
    """
    logits, right = [], []
    for score, verdict in judged(truth, detections):
        if verdict is not None:
            logits.append(np.log(max(score, 1e-6) / max(1 - score, 1e-6)))
            right.append(verdict)
    x = torch.tensor(np.array(logits), dtype=torch.float64)
    y = torch.tensor(right, dtype=torch.float64)
    slope = torch.ones((), dtype=torch.float64, requires_grad=True)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([slope, shift], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(slope * x + shift, y)
        loss.backward()
        return loss

    solver.step(closure)
    return slope.item(), shift.item()


def judged(truth: dict[str, Any], detections: list[dict[str, Any]]) -> list[tuple[float, bool | None]]:
    """Every detection's score and whether it is right, None where it lies on a difficult object; greedy by score."""
    objects: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for annotation in truth["annotations"]:
        objects.setdefault((annotation["image_id"], annotation["category_id"]), []).append(annotation)
    taken: set[int] = set()
    out: list[tuple[float, bool | None]] = []
    for found in sorted(detections, key=lambda d: -d["score"]):
        near = objects.get((found["image_id"], found["category_id"]), [])
        shared = overlaps(_corners([found["bbox"]]), _corners([each["bbox"] for each in near]))[0]
        free = [(o, a) for o, a in zip(shared, near, strict=True) if o >= OVERLAP and a["id"] not in taken]
        best = max(free, key=lambda pair: (not pair[1].get("difficult", 0), pair[0]), default=None)
        if best is None:
            out.append((found["score"], False))
        elif best[1].get("difficult", 0):
            out.append((found["score"], None))  # not taken: any number may fall on it
        else:
            taken.add(best[1]["id"])
            out.append((found["score"], True))
    return out


def _corners(xywh: list[list[float]]) -> np.ndarray:
    boxes = np.array(xywh, np.float32).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def library_config(config: DeformableDetrConfig, names: list[str]) -> dict[str, Any]:
    """config.json of transformers' DeformableDetrForObjectDetection."""
    return {
        "architectures": ["DeformableDetrForObjectDetection"], "model_type": "deformable_detr",
        "backbone_config": {
            "model_type": "timm_backbone", "backbone": "mobilenetv2_100", "out_indices": [3, 4], "features_only": True,
            "use_pretrained_backbone": False, "num_channels": 3,
            # Otherwise the library puts its own norms in place of timm's, which hold the ReLU6.
            "freeze_batch_norm_2d": True,
        },
        "d_model": config.width, "num_queries": config.queries, "num_feature_levels": config.levels,
        "encoder_layers": config.encoder_layers, "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.heads, "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.feedforward, "decoder_ffn_dim": config.feedforward,
        "encoder_n_points": config.points, "decoder_n_points": config.points,
        "with_box_refine": True, "two_stage": False, "dropout": 0.0, "activation_function": "relu",
        "id2label": {str(k): name for k, name in enumerate(names)}, "label2id": {n: k for k, n in enumerate(names)},
        "dtype": "float16",
    }  # fmt: skip


def processor_config(config: DeformableDetrConfig) -> dict[str, Any]:
    """preprocessor_config.json for it."""
    return {
        "image_processor_type": "DeformableDetrImageProcessor", "do_resize": True, "do_rescale": True,
        "do_normalize": True, "do_pad": True, "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD),
        "size": {"shortest_edge": config.input.shortest, "longest_edge": config.input.longest},
    }  # fmt: skip
