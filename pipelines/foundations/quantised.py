"""What is shipped of a network: matrices in 8 bits with a scale a row, without what its masks make nothing of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Kept = Callable[[str], Tensor | None]


def all_of_it(name: str) -> Tensor | None:
    """Of a network without masks."""
    return None


def pack(network: nn.Module, kept: Kept = all_of_it) -> dict[str, Tensor]:
    """Tensors to save: matrices (outputs, inputs) as int8 with a float16 scale a row, the rest as float16.

    kept: the mask of a matrix by its name; what is outside is left out, and the rest a vector.
    """
    packed = {}
    for name, parameter in network.named_parameters():
        value: Tensor = parameter.detach()
        if value.ndim < 2:
            packed[name] = value.half()
            continue
        mask = kept(name)
        value = value if mask is None else value * mask
        scale = (value.abs().amax(dim=1) / 127).clamp_min(1e-6).half()
        whole = (value / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        packed[name], packed[f"{name}.scale"] = whole if mask is None else whole[mask], scale
    return packed


@torch.no_grad()
def unpack(network: nn.Module, packed: Mapping[str, Tensor], kept: Kept = all_of_it) -> None:
    """Fill the network. ValueError names what is missing, too much or of another size."""
    left = dict(packed)
    for name, value in network.named_parameters():
        found, scale = left.pop(name, None), left.pop(f"{name}.scale", None) if value.ndim > 1 else None
        if found is None or (value.ndim > 1) != (scale is not None):
            raise ValueError(f"the file has no whole {name}")
        mask = kept(name) if value.ndim > 1 else None
        if found.numel() != (value.numel() if mask is None else int(mask.sum())):
            raise ValueError(f"{name} is of another size in the file")
        whole = torch.zeros_like(value)
        if mask is None:
            whole.copy_(found.reshape(value.shape))
        else:
            whole[mask] = found.to(whole.dtype)
        value.copy_(whole if scale is None else whole * scale.float()[:, None])
    if left:
        raise ValueError(f"the file has too much: {', '.join(sorted(left))}")
