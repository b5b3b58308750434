"""DETR: object detection as the prediction of a set. torch only.

Carion et al. 2020, "End-to-End Object Detection with Transformers": a ResNet, a transformer over its last feature map,
and a fixed number of object queries, each of which answers with a class (or "no object") and a box.

Letters: B batch, H x W the canvas in pixels, h x w the feature grid, D width, Q queries, K classes, L decoder layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import DetrConfig
from .contract import Ablation
from .output import NEVER, Output, Record
from .panoptic import MaskAttention, MaskHead
from .position import grid_padding, sine_positions
from .resnet import ResNet
from .transformer import MLP, DecoderLayer, EncoderLayer


class Detr(nn.Module):
    """The whole network, with the mask head if the configuration has one."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.heads
        self.backbone = ResNet(config.backbone)
        self.projection = nn.Conv2d(config.backbone.widths[-1], width, 1)
        self.encoder = nn.ModuleList(
            EncoderLayer(width, heads, config.feedforward) for _ in range(config.encoder_layers)
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(width, heads, config.feedforward) for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Embedding(config.queries, width)
        self.class_head = nn.Linear(width, config.classes + 1)
        self.box_head = MLP(width, width, width, 4)
        if config.panoptic:
            self.mask_attention = MaskAttention(width, heads)
            self.mask_head = MaskHead(width, heads, config.backbone.widths[:3])

    def forward(
        self,
        pixels: Tensor,
        padding: Tensor | None = None,
        ablation: Ablation | None = None,
        record: Record | None = None,
        masks: bool = True,
    ) -> Output:
        """pixels: (B, 3, H, W) normalised. padding: (B, H, W) bool, True where padded, or None where nothing is.

        ablation: what is taken out. record: gets the decoder's attention weights. masks: False skips the mask head.
        Boxes are relative to each picture without its padding; masks cover the canvas at stride 4.
        """
        ablation = ablation or Ablation()
        features = self.backbone(pixels)
        projected = self.projection(features[-1])  # (B, D, h, w)
        grid = (projected.shape[-2], projected.shape[-1])
        hidden = grid_padding(padding, grid)
        positions = sine_positions(hidden, grid, self.config.width, pixels.device).to(projected.dtype)
        if not ablation.positions:
            positions = torch.zeros_like(positions)
        hidden = None if hidden is None else hidden.flatten(1)  # (B, h * w)
        memory = projected.flatten(2).transpose(1, 2)  # (B, h * w, D)
        if ablation.encoder:
            for layer in self.encoder:
                memory = layer(memory, positions, hidden)
        slots = self._decode(memory, positions, hidden, ablation, record, grid)  # (L, B, Q, D)
        answering = slots.to(self.class_head.weight.dtype)  # the heads stay in float32 where the rest has 16 bits
        output = Output(self.class_head(answering), self.box_head(answering).sigmoid())
        if masks and self.config.panoptic:
            maps = self.mask_attention(slots[-1], memory, hidden).unflatten(-1, grid)
            output.masks = self.mask_head(projected, maps, features[:3])
        return self._drop(output, ablation)

    def _decode(
        self, memory: Tensor, positions: Tensor, hidden: Tensor | None, ablation: Ablation, record: Record | None,
        grid: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        """What each slot holds behind every layer, under the one norm that all layers share: (L, B, Q, D)."""
        queries = self.queries.weight[None]
        x = torch.zeros_like(queries).expand(len(memory), -1, -1)
        placed = memory + positions
        dropped = None
        # Were all slots dropped, each would see none; as none of their answers counts, they may as well see all.
        if 0 < len(ablation.queries) < self.config.queries:
            dropped = torch.zeros(1, self.config.queries, dtype=torch.bool, device=memory.device)
            dropped[:, sorted(ablation.queries)] = True
        layers = []
        for index, layer in enumerate(self.decoder):
            silent = [head for of_layer, head in ablation.heads if of_layer == index]
            weights: list[Tensor] | None = None if record is None else []
            x = layer(x, queries, memory, placed, hidden, dropped, silent, not ablation.self_attention, weights)
            layers.append(self.norm(x))
            if record is not None and weights is not None:
                record.self_attention += weights[:-1]  # none if self-attention was skipped
                record.cross_attention.append(weights[-1].unflatten(-1, grid))
        return torch.stack(layers)

    def _drop(self, output: Output, ablation: Ablation) -> Output:
        """The answers of dropped queries become "no object", and their masks empty."""
        if ablation.queries:
            dropped = sorted(ablation.queries)
            output.logits[:, :, dropped] = NEVER
            output.logits[:, :, dropped, -1] = 0.0
            if output.masks is not None:
                output.masks[:, dropped] = NEVER
        return output
