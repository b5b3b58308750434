"""Published files of the face embedders -> networks. Strict both ways: see `pipelines.common.convert`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, overload

from pipelines.common.checkpoint import read
from pipelines.common.convert import ConversionError, KeyMap
from pipelines.common.errors import UserError

from .config import PRESETS, DlibResnetConfig, InceptionResnetConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .dlib_resnet import DlibResnet
    from .inception_resnet import InceptionResnetV1

EmbedderConfig = InceptionResnetConfig | DlibResnetConfig


def facenet_keys(config: InceptionResnetConfig) -> KeyMap:
    """facenet-pytorch's layout: our names are its names; the head of a file goes if the configuration has none."""
    keys = KeyMap().ignore(r"\.num_batches_tracked$", "a counter of training, which files of old torch lack")
    if config.classes is None:
        keys.ignore(r"^logits\.", "the training head: embeddings do not need it")
    return keys


def dlib_keys() -> KeyMap:
    """Names of `dlib_file.parse`: layers of a kind numbered from input to output."""
    keys = KeyMap().rename(r"^con_4\.0\.", "conv.").rename(r"^affine_\.0\.", "affine.")
    for number in range(1, 29):
        block, part = divmod(number - 1, 2)
        keys.rename(rf"^con_4\.{number}\.", f"blocks.{block}.conv{part + 1}.")
        keys.rename(rf"^affine_\.{number}\.", f"blocks.{block}.affine{part + 1}.")
    # dlib multiplies the row of inputs from the left: (inputs, outputs). torch stores (outputs, inputs).
    return keys.rename(r"^fc_2\.0\.", "linear.").transpose(r"^linear\.weight$", 1, 0)


def build(config: EmbedderConfig) -> InceptionResnetV1 | DlibResnet:
    """The network of a configuration, with random weights, on torch's default device."""
    if isinstance(config, DlibResnetConfig):
        from .dlib_resnet import DlibResnet

        return DlibResnet(config)
    from .inception_resnet import InceptionResnetV1

    return InceptionResnetV1(config)


def keymap(config: EmbedderConfig) -> KeyMap:
    """The table for the published layout of a configuration."""
    return dlib_keys() if isinstance(config, DlibResnetConfig) else facenet_keys(config)


def assign(network: nn.Module, published: Mapping[str, Tensor], keys: KeyMap) -> None:
    """Put published tensors into a network that may be on meta. ConversionError: the keys do not fit."""
    # torch fills in the batch norms' counters by itself; everything else must be there.
    wanted = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    network.load_state_dict(keys.apply(published, wanted), strict=True, assign=True)


@overload
def load(config: InceptionResnetConfig, path: Path) -> InceptionResnetV1: ...
@overload
def load(config: DlibResnetConfig, path: Path) -> DlibResnet: ...
@overload
def load(config: str, path: Path) -> InceptionResnetV1 | DlibResnet: ...


def load(config: str | EmbedderConfig, path: Path) -> InceptionResnetV1 | DlibResnet:
    """A published file as a network in eval mode on the CPU.

    config: a key of config.PRESETS or the configuration itself. path: a .dat of dlib, a .pt of facenet-pytorch, or
    safetensors with the latter's names. MTCNN is loaded by the detector (local.py).
    UserError: the file is damaged, unsafe to read, or holds another network.
    """
    import torch

    chosen = PRESETS[config] if isinstance(config, str) else config
    if not isinstance(chosen, (InceptionResnetConfig, DlibResnetConfig)):
        raise TypeError(f"{type(chosen).__name__} is no embedder")
    if isinstance(chosen, DlibResnetConfig):
        from .dlib_file import read as read_dlib

        # A copy: the parser's arrays are read-only views into the bytes of the whole file.
        published = {key: torch.from_numpy(values.copy()) for key, values in read_dlib(path).items()}
    else:
        published = read(path)
    with torch.device("meta"):  # no random initialisation, no second copy in memory
        network = build(chosen)
    try:
        assign(network, published, keymap(chosen))
    except ConversionError as error:
        summary = str(error).partition("\n")[0].rstrip(":")  # the whole list is in the cause
        raise UserError(f"{path.name} does not hold the network that is asked for: {summary}.") from error
    return network.eval().requires_grad_(False)
