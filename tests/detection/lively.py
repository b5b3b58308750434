"""Random weights under which a comparison of two networks means something."""

import torch
from torch import nn


def enliven(network, seed=0):
    """Every number random, at a size that keeps activations alive: initial scales of 1, biases of 0 and weights near 0
    would hide what is swapped or left out. Works on our networks and on the library's. In eval mode.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    def normal(tensor, deviation):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation)

    with torch.no_grad():
        for module in network.modules():
            if hasattr(module, "running_var"):
                uniform(module.running_mean, -0.2, 0.2)
                uniform(module.running_var, 0.5, 1.5)
            if hasattr(module, "running_var") or isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                uniform(module.weight, 0.6, 1.4)
                uniform(module.bias, -0.2, 0.2)
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                # Wider than usual in the linear maps, or every query would look everywhere alike.
                gain = 3 if isinstance(module, nn.Linear) else 2
                normal(module.weight, (gain / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    uniform(module.bias, -0.1, 0.1)
            elif isinstance(module, nn.Embedding):
                normal(module.weight, 1.3)
    return network.eval()


def pictures(*sizes, seed=1):
    """(3, h, w) normalised pictures with structure at several scales: pure noise looks alike to a network."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size in sizes:
        coarse = [torch.randn(1, 3, side, side, generator=generator) for side in (3, 9, 40)]
        made.append(sum(nn.functional.interpolate(part, size=size, mode="bilinear")[0] for part in coarse))
    return made


def padded(images):
    """Pictures as one batch: pixels (B, 3, H, W) and padding (B, H, W), True where padded."""
    height, width = (max(image.shape[i] for image in images) for i in (1, 2))
    pixels = torch.zeros(len(images), 3, height, width)
    padding = torch.ones(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        pixels[i, :, : image.shape[1], : image.shape[2]] = image
        padding[i, : image.shape[1], : image.shape[2]] = False
    return pixels, padding
