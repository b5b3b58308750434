"""Names of Deformable DETR with a MobileNetV2 backbone in transformers' files, to and from ours. torch only in types.

The bundled model is kept in the library's layout, so that the library itself can load it: a
DeformableDetrForObjectDetection with box refinement over timm's mobilenetv2_100.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.common.convert import ConversionError, KeyMap

from .config import DeformableDetrConfig

if TYPE_CHECKING:
    from torch import Tensor

BACKBONE = "model.backbone.conv_encoder.model"
BOX_HEAD = "model.decoder.bbox_embed"  # one for each layer in the library; ours is the same for all
ATTENTION = {
    "value": "value_proj", "offsets": "sampling_offsets", "weights": "attention_weights", "output": "output_proj",
}  # fmt: skip
SELF_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}


def names(config: DeformableDetrConfig) -> dict[str, str]:
    """Our modules and bare parameters -> the library's, as its files name them."""
    table = {
        "level_positions": "model.level_embed",
        "queries": "model.query_position_embeddings.weight",
        "reference": "model.reference_points",
        "projections": "model.input_proj",
        "class_head": "class_embed.0",
        "box_head": f"{BOX_HEAD}.0",
        "backbone.stem.conv": f"{BACKBONE}.conv_stem",
        "backbone.stem.norm": f"{BACKBONE}.bn1",
    }
    for stage, (expansion, _, repeats, _) in enumerate(config.backbone.stages):
        parts = {"expand": "pw", "depthwise": "dw", "project": "pwl"}
        if expansion == 1:  # timm numbers the norms as they come, and this block has no first convolution
            parts = {"depthwise": "dw", "project": "pw"}
        for block in range(repeats):
            ours, theirs = f"backbone.stages.{stage}.{block}", f"{BACKBONE}.blocks.{stage}.{block}"
            for number, (part, conv) in enumerate(parts.items()):
                table[f"{ours}.{part}.conv"] = f"{theirs}.conv_{conv}"
                table[f"{ours}.{part}.norm"] = f"{theirs}.bn{number + 1}"
    for layer in range(config.encoder_layers):
        table |= _layer("encoder", layer, "self_attn", ("self_attn_layer_norm", "final_layer_norm"))
    for layer in range(config.decoder_layers):
        norms = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
        table |= _layer("decoder", layer, "encoder_attn", norms)
        ours, theirs = f"decoder.{layer}.self_attention", f"model.decoder.layers.{layer}.self_attn"
        table |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in SELF_ATTENTION.items()}
    return table


def _layer(side: str, layer: int, attention: str, norms: tuple[str, ...]) -> dict[str, str]:
    ours, theirs = f"{side}.{layer}", f"model.{side}.layers.{layer}"
    table = {f"{ours}.attention.{a}": f"{theirs}.{attention}.{b}" for a, b in ATTENTION.items()}
    table |= {f"{ours}.norm{i + 1}": f"{theirs}.{norm}" for i, norm in enumerate(norms)}
    return table | {f"{ours}.feedforward.0": f"{theirs}.fc1", f"{ours}.feedforward.2": f"{theirs}.fc2"}


def keys(config: DeformableDetrConfig) -> KeyMap:
    """Names of the library's files, or of its modules, to ours. `one_box_head` must have looked at the tensors."""
    table = KeyMap().ignore(r"\.num_batches_tracked$", "a counter of training, which a frozen batch norm does not read")
    table.ignore(rf"^{re.escape(BOX_HEAD)}\.[1-9]", "copies of the box head of the first layer, which all layers share")
    table.rename(r"^model\.backbone\.model\.", f"{BACKBONE}.").rename(r"\.mlp\.fc", ".fc")
    table.rename(r"\.o_proj\.", ".out_proj.")
    for ours, theirs in names(config).items():
        table.rename(rf"^{re.escape(theirs)}(?=\.|$)", ours)
    return table


def one_box_head(published: Mapping[str, Tensor]) -> None:
    """ConversionError if the layers' box heads differ: a network of ours has one for all."""
    for key, tensor in published.items():
        found = re.fullmatch(rf"{re.escape(BOX_HEAD)}\.[1-9]\d*\.(.*)", key)
        if found is None:
            continue
        first = published.get(f"{BOX_HEAD}.0.{found[1]}")
        if first is None or first.shape != tensor.shape or not (tensor.is_meta or bool((first == tensor).all())):
            raise ConversionError(f"1 keys do not fit:\nnot the box head of the first layer: {key}")


def to_library(state: Mapping[str, Tensor], config: DeformableDetrConfig) -> dict[str, Tensor]:
    """A state dict of ours (of training, perhaps, with more groups of queries) as the library's file holds it."""
    table = names(config)
    published: dict[str, Tensor] = {}
    for key, tensor in state.items():
        module = max((name for name in table if key == name or key.startswith(f"{name}.")), key=len, default=None)
        if module is None:
            raise ConversionError(f"1 keys do not fit:\nnot known: {key}")
        published[table[module] + key[len(module) :]] = tensor[: config.queries] if key == "queries" else tensor
    for key in [key for key in published if key.startswith(f"{BOX_HEAD}.0.")]:
        for layer in range(1, config.decoder_layers):
            # A copy: safetensors refuses two names for the same memory.
            published[key.replace(f"{BOX_HEAD}.0.", f"{BOX_HEAD}.{layer}.")] = published[key].clone()
    return published
