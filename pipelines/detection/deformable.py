"""Deformable DETR (Zhu et al. 2021): one stage, box refinement from layer to layer, heads shared by the layers.

Shapes: B batch, C channels, D width, H heads, P points, V levels, S cells of all levels, Q queries, G groups of them,
K classes, L decoder layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import DeformableDetrConfig
from .contract import Ablation
from .deformable_sampling import Shapes, sample, spread
from .mobilenet import MobileNetV2
from .output import NEVER, Output, Record
from .position import grid_padding, sine_positions
from .transformer import MLP, Attention

NOTHING = Ablation()


@dataclass
class Memory:
    """What the decoder reads: cells (B, S, D) and the levels' shapes.

    outside (B, S): bool, where a cell lies in the padding. valid (B, V, 2): the share of each level's width and height
    that is picture.
    """

    cells: Tensor
    shapes: Shapes
    outside: Tensor | None
    valid: Tensor


class DeformableAttention(nn.Module):
    """Each query asks for P places a level and head, as offsets from its reference, and how much each counts."""

    def __init__(self, width: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.value = nn.Linear(width, width)
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.output = nn.Linear(width, width)
        self.initialise()

    def initialise(self) -> None:
        """At first head h looks 1, 2, ... cells away in its own direction, all places alike (section A.3)."""
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack((angles.cos(), angles.sin()), -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        rays = directions[:, None, None] * steps[None, None, :, None]
        with torch.no_grad():
            self.offsets.bias.copy_(rays.expand(-1, self.levels, -1, -1).flatten())

    def forward(
        self, queries: Tensor, references: Tensor, memory: Memory, drop: tuple[int, ...] = (),
        record: list[Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """queries (B, Q, D), positions added already; references (B, Q, V, 2 or 4) xy or cxcywh in [0, 1] of the
        canvas. drop: heads whose output is zeroed."""
        B, Q, _ = queries.shape
        grouped = (B, Q, self.heads, self.levels, self.points)
        values = self.value(memory.cells)
        if memory.outside is not None:
            values = values.masked_fill(memory.outside[..., None], 0.0)
        values = values.view(B, values.shape[1], self.heads, -1)
        offsets = self.offsets(queries).view(*grouped, 2)
        weights = self.weights(queries).view(B, Q, self.heads, -1).softmax(-1).view(grouped)
        at = references[:, :, None, :, None]
        if references.shape[-1] == 2:  # offsets count cells
            cells = offsets.new_tensor([[w, h] for h, w in memory.shapes])
            places = at + offsets / cells[:, None]
        else:  # offsets count half boxes, shared out over the points
            places = at[..., :2] + offsets / self.points * at[..., 2:] * 0.5
        if record is not None:
            record.append(spread(memory.shapes, places, weights))
        out = sample(values, memory.shapes, places, weights)
        if drop:
            out = out.reshape(B, Q, self.heads, -1).clone()
            out[:, :, list(drop)] = 0.0
            out = out.flatten(2)
        return self.output(out)


class FeedForward(nn.Sequential):
    """Two linear maps with a ReLU between."""

    def __init__(self, width: int, hidden: int):
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))


class EncoderLayer(nn.Module):
    """Every cell looks at a few cells of all levels around it."""

    def __init__(self, config: DeformableDetrConfig):
        super().__init__()
        self.attention = DeformableAttention(config.width, config.heads, config.levels, config.points)
        self.feedforward = FeedForward(config.width, config.feedforward)
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)

    def forward(self, memory: Memory, positions: Tensor, references: Tensor) -> Memory:
        x = memory.cells
        x = self.norm1(x + self.attention(x + positions, references, memory))
        x = self.norm2(x + self.feedforward(x))
        return Memory(x, memory.shapes, memory.outside, memory.valid)


class DecoderLayer(nn.Module):
    """Queries look at each other, then each at its places of the picture."""

    def __init__(self, config: DeformableDetrConfig):
        super().__init__()
        self.self_attention = Attention(config.width, config.heads)
        self.attention = DeformableAttention(config.width, config.heads, config.levels, config.points)
        self.feedforward = FeedForward(config.width, config.feedforward)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.width) for _ in range(3))

    def forward(
        self, x: Tensor, positions: Tensor, references: Tensor, memory: Memory, groups: int, removed: Tensor | None,
        layer: int, ablation: Ablation, record: Record | None,
    ) -> Tensor:  # fmt: skip
        if ablation.self_attention:
            said, placed = (y.unflatten(1, (groups, -1)).flatten(0, 1) for y in (x, x + positions))
            if record is None:
                heard = self.self_attention(placed, placed, said, removed)
            else:
                heard, weights = self.self_attention.plain(placed, placed, said, removed)
                record.self_attention.append(weights)
            x = x + heard.unflatten(0, (-1, groups)).flatten(1, 2)
        x = self.norm1(x)
        drop = tuple(sorted(head for number, head in ablation.heads if number == layer))
        looked = self.attention(x + positions, references, memory, drop, record.cross_attention if record else None)
        x = self.norm2(x + looked)
        return self.norm3(x + self.feedforward(x))


class DeformableDetr(nn.Module):
    """Pixels -> class logits (L, B, Q, K) and boxes (L, B, Q, 4) of every decoder layer.

    With `groups` > 1 (training, Chen et al. 2023, "Group DETR") there are so many sets of queries, which do not see
    each other; only the first is kept for use.
    """

    def __init__(self, config: DeformableDetrConfig, groups: int = 1):
        super().__init__()
        self.config = config
        self.backbone = MobileNetV2(config.backbone)
        channels = list(self.backbone.channels)
        projections = [nn.Conv2d(c, config.width, 1) for c in channels]
        for k in range(config.levels - len(channels)):
            projections.append(nn.Conv2d(channels[-1] if k == 0 else config.width, config.width, 3, 2, 1))
        norm_groups = 32 if config.width % 32 == 0 else 8
        self.projections = nn.ModuleList(
            nn.Sequential(layer, nn.GroupNorm(norm_groups, config.width)) for layer in projections
        )
        self.level_positions = nn.Parameter(torch.empty(config.levels, config.width))
        self.queries = nn.Parameter(torch.empty(groups * config.queries, 2 * config.width))
        self.reference = nn.Linear(config.width, 2)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.class_head = nn.Linear(config.width, config.classes)
        self.box_head = MLP(config.width, config.width, config.width, 4)  # added to the reference before the sigmoid
        self.initialise()

    def initialise(self) -> None:
        """Random weights as the paper's authors choose them."""
        for block in (self.encoder, self.decoder):
            for parameter in block.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.initialise()
        for module in self.projections.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.level_positions)
        nn.init.normal_(self.queries)
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)
        nn.init.constant_(self.class_head.bias, -math.log(99))  # every class starts at 1 %
        last = self.box_head.layers[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([0.0, 0.0, -2.0, -2.0]))  # boxes start small

    def forward(
        self, pixels: Tensor, padding: Tensor | None = None, ablation: Ablation | None = None,
        record: Record | None = None,
    ) -> Output:  # fmt: skip
        """pixels (B, 3, H, W) normalised; padding (B, H, W) bool, True where there is no picture, or None."""
        ablation = ablation or NOTHING
        features = self.backbone(pixels)
        return self.decode(self.encode(features, padding, ablation), ablation=ablation, record=record)

    def encode(self, features: list[Tensor], padding: Tensor | None = None, ablation: Ablation = NOTHING) -> Memory:
        """Backbone features, each (B, C, h, w), to what the decoder reads."""
        maps = [projection(f) for projection, f in zip(self.projections, features, strict=False)]
        for projection in self.projections[len(features) :]:
            maps.append(projection(features[-1] if len(maps) == len(features) else maps[-1]))
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        outside = [grid_padding(padding, shape) for shape in shapes]
        valid = torch.stack([_valid(mask, m) for mask, m in zip(outside, maps, strict=True)], 1)
        positions = [
            sine_positions(mask, shape, self.config.width, maps[0].device, 0.5) + level
            for mask, shape, level in zip(outside, shapes, self.level_positions, strict=True)
        ]
        cells = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        flat = None if padding is None else torch.cat([mask.flatten(1) for mask in outside if mask is not None], 1)
        memory = Memory(cells, shapes, flat, valid)
        if ablation.encoder:
            references, placed = _centres(memory), torch.cat(positions, 1)
            if not ablation.positions:
                placed = torch.zeros_like(placed)
            for layer in self.encoder:
                memory = layer(memory, placed, references)
        return memory

    def decode(
        self, memory: Memory, groups: int = 1, ablation: Ablation = NOTHING, record: Record | None = None
    ) -> Output:
        """The decoder over the first `groups` sets of queries."""
        B, count = len(memory.cells), self.config.queries
        positions, x = self.queries[: groups * count].expand(B, -1, -1).chunk(2, -1)
        references = self.reference(positions).sigmoid()
        dropped = sorted(ablation.queries)
        removed = None
        # Were all dropped, each would see none; as none of their answers counts, they may as well see all.
        if 0 < len(dropped) < count:
            removed = torch.zeros(1, count, dtype=torch.bool, device=x.device)
            removed[:, dropped] = True
        logits, boxes = [], []
        for number, layer in enumerate(self.decoder):
            scaled = references[:, :, None] * memory.valid.repeat(1, 1, references.shape[-1] // 2)[:, None]
            x = layer(x, positions, scaled, memory, groups, removed, number, ablation, record)
            delta, start = self.box_head(x), inverse_sigmoid(references)
            moved = torch.cat((delta[..., :2] + start[..., :2], delta[..., 2:] + _size(start)), -1).sigmoid()
            logits.append(self.class_head(x))
            boxes.append(moved)
            references = moved.detach()
        output = Output(torch.stack(logits), torch.stack(boxes))
        if dropped:
            output.logits[:, :, dropped] = NEVER
        return output


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit, with x kept away from 0 and 1."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def _size(start: Tensor) -> Tensor | float:
    return start[..., 2:] if start.shape[-1] == 4 else 0.0


def _valid(outside: Tensor | None, features: Tensor) -> Tensor:
    """(B, 2): the share of the width and of the height that is picture."""
    if outside is None:
        return features.new_ones(len(features), 2)
    inside = ~outside
    return torch.stack((inside[:, 0].float().mean(1), inside[:, :, 0].float().mean(1)), -1).to(features.dtype)


def _centres(memory: Memory) -> Tensor:
    """(B, S, V, 2): the middle of every cell as a place on every level's canvas."""
    places = []
    for v, (h, w) in enumerate(memory.shapes):
        y = torch.arange(h, device=memory.valid.device) + 0.5
        x = torch.arange(w, device=memory.valid.device) + 0.5
        grid = torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1).view(1, -1, 2)
        size = memory.valid[:, None, v] * memory.valid.new_tensor([w, h])
        places.append(grid / size)
    return torch.cat(places, 1)[:, :, None] * memory.valid[:, None]
