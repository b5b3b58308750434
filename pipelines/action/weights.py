"""Files of the authors' network -> ours, and ours as they are. Strict both ways: see `pipelines.common.convert`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.common.checkpoint import read_tensors
from pipelines.common.convert import ConversionError, KeyMap
from pipelines.common.errors import UserError

from .config import BrainConfig, GRUConfig, OadTRConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

Layout = Literal["own", "authors"]

# Published name -> ours, run in this order.
AUTHORS = (
    (r"^linear_encoding\.", "encoding."),
    (r"^cls_token$", "task_token"),
    (r"^position_encoding\.pe\.weight$", "positions"),
    # Their encoder numbers the attention and the feed-forward parts of all layers in one row.
    *((rf"^encoder\.net\.{2 * k}\.fn\.norm\.", f"encoder.{k}.norm1.") for k in range(12)),
    *((rf"^encoder\.net\.{2 * k + 1}\.fn\.norm\.", f"encoder.{k}.norm2.") for k in range(12)),
    *((rf"^encoder\.net\.{2 * k}\.fn\.fn\.", f"encoder.{k}.") for k in range(12)),
    *((rf"^encoder\.net\.{2 * k + 1}\.fn\.fn\.net\.0\.", f"encoder.{k}.linear1.") for k in range(12)),
    *((rf"^encoder\.net\.{2 * k + 1}\.fn\.fn\.net\.3\.", f"encoder.{k}.linear2.") for k in range(12)),
    (r"^(encoder\.\d+)\.proj\.", r"\1.out."),
    (r"^pre_head_ln\.", "norm."),
    (r"^decoder_cls_token$", "queries"),
    (r"^decoder\.norm\.", "decoder_norm."),
    (r"^decoder\.layers\.", "decoder."),
    (r"\.(query|key|value|out)_projection\.", r".\1."),
    (r"^(decoder\.\d+)\.conv([12])\.", r"\1.linear\2."),
    (r"^mlp_head\.", "head."),
    (r"^classifier\.", "future_head."),
)


def authors_keys() -> KeyMap:
    """wangxiang1230/OadTR, the default variant (VisionTransformer_v3)."""
    keys = KeyMap()
    keys.ignore(r"^decoder_position_encoding\.", "stored, but their forward pass never adds it to the queries")
    keys.ignore(r"^position_encoding\.position_ids$", "the numbers 0 to T, a buffer of the look-up of positions")
    for pattern, replacement in AUTHORS:
        keys.rename(pattern, replacement)
    return keys


def layout_of(published: Mapping[str, Any]) -> Layout:
    """Which layout the names of a file are in: told by what only the authors' has."""
    return "authors" if "linear_encoding.weight" in published else "own"


def build(config: BrainConfig) -> nn.Module:
    """The network of a configuration, with random weights, on torch's default device."""
    if isinstance(config, OadTRConfig):
        from .oadtr import OadTR

        return OadTR(config)
    from .gru import NoMemory, Recurrent

    return Recurrent(config) if isinstance(config, GRUConfig) else NoMemory(config)


def assign(network: nn.Module, published: Mapping[str, Tensor]) -> None:
    """Put published tensors into a network that may be on meta. ConversionError: the keys do not fit."""
    if layout_of(published) == "authors":
        keys, published = authors_keys(), {name: _matrix(name, value) for name, value in published.items()}
    else:
        keys = KeyMap()
    network.load_state_dict(keys.apply(published, network.state_dict()), strict=True, assign=True)


def _matrix(name: str, value: Tensor) -> Tensor:
    """Their decoder's feed-forward parts are convolutions over one place, (K, D, 1): a linear map's (K, D)."""
    is_convolution = ".conv" in name and value.ndim == 3 and value.shape[2] == 1
    return value[:, :, 0] if is_convolution else value


def load(config: BrainConfig, path: Path) -> nn.Module:
    """A file as a float32 network in eval mode on the CPU.

    path: safetensors, or a torch file that holds tensors only (the authors keep theirs under "model", beside an
    argparse object, which is refused).
    UserError: the file is damaged, unsafe to read, or holds another network.
    """
    import torch

    # nn.DataParallel, which their training offers, writes a prefix before every name.
    published = {name.removeprefix("module."): value for name, value in read_tensors(path).items()}
    with torch.device("meta"):  # no random initialisation, no second copy in memory
        network = build(config)
    try:
        assign(network, published)
    except ConversionError as error:
        summary = str(error).partition("\n")[0].rstrip(":")  # the whole list is in the cause
        raise UserError(f"{path.name} does not hold the network that is asked for: {summary}.") from error
    return network.eval().requires_grad_(False)
