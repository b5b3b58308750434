"""Published files of the detectors -> networks. Strict both ways: see `pipelines.common.convert`.

Layouts: "transformers", the files on the hub, whose names differ from those of the library's modules today: both are
read, and so are both names of the backbone (timm's, and the library's own in the "no_timm" revisions). "authors", the
.pth files of facebookresearch/detr. "own", the names of the networks here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from pipelines.common.checkpoint import read_tensors
from pipelines.common.convert import ConversionError, KeyMap
from pipelines.common.errors import UserError

from . import deformable_layout
from .config import PRESETS, DeformableDetrConfig, DetrConfig, NetworkConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .deformable import DeformableDetr
    from .detr import Detr

Layout = Literal["transformers", "authors", "own"]

COUNTER = (r"\.num_batches_tracked$", "a counter of training, which a frozen batch norm does not read")

# Published name -> ours, run in this order.
AUTHORS = (
    (r"^detr\.", ""),
    (r"^backbone\.0\.body\.", "backbone."),
    (r"^input_proj\.", "projection."),
    (r"^query_embed\.", "queries."),
    (r"^class_embed\.", "class_head."),
    (r"^bbox_embed\.", "box_head."),
    (r"^transformer\.decoder\.norm\.", "norm."),
    (r"^transformer\.(encoder|decoder)\.layers\.", r"\1."),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.multihead_attn\.", ".cross_attention."),
    (r"\.out_proj\.", ".out."),
)
MASKS = (
    (r"^bbox_attention\.q_(linear|proj)\.", "mask_attention.query."),
    (r"^bbox_attention\.k_(linear|proj)\.", "mask_attention.key."),
    *((rf"^mask_head\.lay{i + 1}\.", f"mask_head.convs.{i}.") for i in range(5)),
    *((rf"^mask_head\.gn{i + 1}\.", f"mask_head.norms.{i}.") for i in range(5)),
    *((rf"^mask_head\.adapter{i + 1}\.", f"mask_head.adapters.{i}.") for i in range(3)),
    (r"^mask_head\.out_lay\.", "mask_head.out."),
    # The same in the library's modules today.
    *((rf"^mask_head\.conv{i + 1}\.conv\.", f"mask_head.convs.{i}.") for i in range(2)),
    *((rf"^mask_head\.conv{i + 1}\.norm\.", f"mask_head.norms.{i}.") for i in range(2)),
    *((rf"^mask_head\.fpn_stages\.{i}\.fpn_adapter\.", f"mask_head.adapters.{i}.") for i in range(3)),
    *((rf"^mask_head\.fpn_stages\.{i}\.refine\.conv\.", f"mask_head.convs.{i + 2}.") for i in range(3)),
    *((rf"^mask_head\.fpn_stages\.{i}\.refine\.norm\.", f"mask_head.norms.{i + 2}.") for i in range(3)),
    (r"^mask_head\.output_conv\.", "mask_head.out."),
)
NATIVE_RESNET = (
    (r"^backbone\.embedder\.embedder\.convolution\.", "backbone.conv1."),
    (r"^backbone\.embedder\.embedder\.normalization\.", "backbone.bn1."),
    *((rf"^backbone\.encoder\.stages\.{i}\.layers\.", f"backbone.layer{i + 1}.") for i in range(4)),
    *((rf"^(backbone\.layer\d\.\d+)\.layer\.{i}\.convolution\.", rf"\1.conv{i + 1}.") for i in range(3)),
    *((rf"^(backbone\.layer\d\.\d+)\.layer\.{i}\.normalization\.", rf"\1.bn{i + 1}.") for i in range(3)),
    (r"^(backbone\.layer\d\.\d+)\.shortcut\.convolution\.", r"\1.downsample.0."),
    (r"^(backbone\.layer\d\.\d+)\.shortcut\.normalization\.", r"\1.downsample.1."),
)
# The library's files say conv_encoder, out_proj and fc1; its modules today have no conv_encoder, o_proj and mlp.fc1.
TRANSFORMERS = (
    (r"^detr\.", ""),
    (r"^model\.", ""),
    (r"^backbone\.(conv_encoder\.)?model\.", "backbone."),
    (r"^input_projection\.", "projection."),
    (r"^query_position_embeddings\.", "queries."),
    (r"^class_labels_classifier\.", "class_head."),
    (r"^bbox_predictor\.", "box_head."),
    (r"^decoder\.layernorm\.", "norm."),
    (r"^(encoder|decoder)\.layers\.", r"\1."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"^(encoder\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.encoder_attn\.", ".cross_attention."),
    *((rf"(self|cross)_attention\.{n[0]}_proj\.", rf"\1_attention.{n}.") for n in ("query", "key", "value")),
    (r"(self|cross)_attention\.(out_proj|o_proj)\.", r"\1_attention.out."),
    (r"\.(mlp\.)?fc([12])\.", r".linear\2."),
)


def _renamed(*tables: tuple[tuple[str, str], ...]) -> KeyMap:
    keys = KeyMap().ignore(*COUNTER)
    for table in tables:
        for pattern, replacement in table:
            keys.rename(pattern, replacement)
    return keys


def authors_keys() -> KeyMap:
    """facebookresearch/detr: torch's own attention modules, which keep query, key and value in one matrix."""
    keys = _renamed(AUTHORS, MASKS)
    for kind in ("weight", "bias"):
        keys.split(f"*.in_proj_{kind}", tuple(f"*.{name}.{kind}" for name in ("query", "key", "value")))
    return keys


def transformers_keys() -> KeyMap:
    """transformers' DetrForObjectDetection and DetrForSegmentation: names of its files and of its modules."""
    return _renamed(TRANSFORMERS, NATIVE_RESNET, MASKS)


@overload
def build(config: DetrConfig) -> Detr: ...
@overload
def build(config: DeformableDetrConfig) -> DeformableDetr: ...
@overload
def build(config: NetworkConfig) -> Detr | DeformableDetr: ...


def build(config: NetworkConfig) -> Detr | DeformableDetr:
    """The network of a configuration, with random weights, on torch's default device."""
    if isinstance(config, DeformableDetrConfig):
        from .deformable import DeformableDetr

        return DeformableDetr(config)
    from .detr import Detr

    return Detr(config)


def keymap(config: NetworkConfig, layout: Layout = "transformers") -> KeyMap:
    """The table from a published layout to our names. ValueError: no such layout of this network."""
    if layout == "own":
        return KeyMap()
    if layout == "transformers":
        return transformers_keys() if isinstance(config, DetrConfig) else deformable_layout.keys(config)
    if layout == "authors" and isinstance(config, DetrConfig):
        return authors_keys()
    raise ValueError(f"no layout {layout!r} of {type(config).__name__}")


def layout_of(published: Mapping[str, Any]) -> Layout:
    """Which layout the names of a file are in: told by what only it has."""
    if any(key.endswith("self_attn.in_proj_weight") for key in published):
        return "authors"
    if any(".self_attention." in key for key in published):
        return "own"
    return "transformers"


def assign(network: nn.Module, published: Mapping[str, Tensor], keys: KeyMap) -> None:
    """Put published tensors into a network that may be on meta. ConversionError: the keys do not fit."""
    network.load_state_dict(keys.apply(published, network.state_dict()), strict=True, assign=True)


def load(config: str | NetworkConfig, path: Path) -> Detr | DeformableDetr:
    """A published file as a float32 network in eval mode on the CPU.

    config: a key of config.PRESETS or the configuration itself. path: safetensors, or a torch file that holds tensors
    only (the authors keep theirs under "model").
    UserError: the file is damaged, unsafe to read, or holds another network.
    """
    import torch

    chosen = PRESETS[config] if isinstance(config, str) else config
    published = read_tensors(path)
    with torch.device("meta"):  # no random initialisation, no second copy in memory
        network = build(chosen)
    try:
        deformable_layout.one_box_head(published)
        assign(network, published, keymap(chosen, layout_of(published)))
    except ConversionError as error:
        summary = str(error).partition("\n")[0].rstrip(":")  # the whole list is in the cause
        raise UserError(f"{path.name} does not hold the network that is asked for: {summary}.") from error
    return network.eval().requires_grad_(False)
