"""OadTR chunk by chunk: what is not new is not computed again, wherever that changes nothing. torch only.

With learned absolute positions every chunk moves one place with each new one, so beyond the first layer's attention
nothing of the past can be kept. What is exact, and done here:

- A chunk's linear encoding is computed once.
- So are its queries, keys and values of the first layer, but for the norm before them. With W the projection, g and b
  the norm's gain and bias, e the encoding and p the position, they are (W' e + W' p) / sigma(e + p) + W b, where
  W' = W diag(g) (I - 1/D): W' e belongs to the chunk, W' p to the place, and one standard deviation is left to compute.
- The decoder's first self-attention sees nothing but learned queries: it is a constant, and so is what its
  cross-attention asks.
- A softmax over q . (K m + k) is one over (K^T q) . m, as q . k is the same for all m: with 8 queries and 65 tokens it
  is cheaper to take K to the queries than to the memory. Weights sum to 1, so values wait for the sum as well.

What is left is the encoder behind its first projection, for all tokens (the decoder reads every one of them, so not
even its last layer is the task token's alone), and a decoder of a few rows, which costs what reading its weights costs.
At the authors' size that is 2.9 of 5.0 billion operations a chunk, and 273 of 298 MB of weights: a core that does 145
billion operations a second and reads 14 GB takes 39 ms at the least, where theirs takes 80. `reduced` goes below that,
and is not exact. `OadTR.forward` is the readable path, and tests hold this one to it.

Letters: n chunks that are there, at most T; S = n + 1 tokens, F future queries, C classes, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.common.fused import FusedLinear, onednn_products

from . import linear_attention
from .config import OadTRConfig
from .oadtr import DecoderLayer, EncoderLayer, MultiHead, OadTR
from .packed import Heads, Map, PackedBytes, bytes_linear


class Past:
    """The last T chunks of one stream: their encodings (D) and first projections (3 D). Belongs to one visitor.

    Each row is written twice, T rows apart, so that any window is one piece of memory.
    """

    def __init__(self, config: OadTRConfig, device: torch.device) -> None:
        self._chunks = config.chunks
        self._encodings = torch.zeros(2 * config.chunks, config.width, device=device)
        self._projections = torch.zeros(2 * config.chunks, 3 * config.width, device=device)
        self._next, self.count = 0, 0

    def push(self, encoding: Tensor, projection: Tensor) -> None:
        """The newest chunk: (D,) and (3 D,)."""
        for row in (self._next, self._next + self._chunks):
            self._encodings[row] = encoding
            self._projections[row] = projection
        self._next = (self._next + 1) % self._chunks
        self.count = min(self.count + 1, self._chunks)

    def last(self, most: int) -> tuple[Tensor, Tensor]:
        """The newest chunks that are there, at most so many, oldest first: (n, D) and (n, 3 D), views."""
        end = self._next + self._chunks
        rows = slice(end - min(self.count, most), end)
        return self._encodings[rows], self._projections[rows]


@dataclass(frozen=True)
class _Encoder:
    """A layer of the encoder; project is None in the first, whose projections come from the past."""

    norm1: nn.LayerNorm
    project: Map | None
    out: Map
    norm2: nn.LayerNorm
    up: Map
    down: Map


@dataclass(frozen=True)
class _Decoder:
    """A layer of the decoder. begin: (F, D) behind self-attention, and asked (H, F, D): what cross-attention asks of
    the memory itself, where both are constant."""

    layer: DecoderLayer
    qkv: Map | None
    self_out: Map | None
    query: Map
    key: Heads  # the projection's transpose: D / H -> D
    value: Heads  # D -> D / H
    out: Map
    up: Map
    down: Map
    begin: Tensor | None = None
    asked: Tensor | None = None


class FastOadTR:
    """An OadTR made ready for streams. Keeps nothing of a stream: see `start`.

    Float32, in eval mode. Of linear attention the decoder's keys and values are computed as they are: its kernel stands
    between them and the queries. onednn: whether maps are packed for oneDNN, None where it is usable. reduced:
    weights in 8 bits where this processor multiplies bytes, which is not exact any more (`self.reduced` says what it
    came to). To be made anew if the network's weights move or change.
    """

    def __init__(self, network: OadTR, onednn: bool | None = None, reduced: bool = False) -> None:
        self.network, self.config = network, network.config
        self.reduced = reduced and network.positions.device.type == "cpu" and bytes_linear()
        if onednn is None:
            onednn = network.positions.device.type == "cpu" and onednn_products(torch.float32)
        self._map: Callable[..., Map] = PackedBytes if self.reduced else partial(FusedLinear, onednn=onednn)
        with torch.inference_mode(False), torch.no_grad():
            self._tables(network)
            self._encoder = [self._encoder_layer(layer, k == 0) for k, layer in enumerate(_encoders(network))]
            self._decoder = [self._decoder_layer(layer, k == 0) for k, layer in enumerate(_decoders(network))]

    def start(self) -> Past:
        """The past of a new stream: nothing."""
        with torch.inference_mode():
            return Past(self.config, self.network.positions.device)

    def push(self, features: Tensor, past: Past) -> None:
        """The newest chunk, (in_features,): all that is ever computed of it alone."""
        with torch.inference_mode():
            encoding = self._encoding(features[None])
            past.push(encoding[0], self._centred(encoding)[0])

    def answer(
        self, past: Past, most: int | None = None, order: Tensor | None = None, record: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (C,) and (F, C) behind the newest chunk.

        most: chunks that are looked back at; None all T. order: (n,) int64, in which the chunks come. record: gets what
        the task token looked at, (H, S) of each layer of the encoder.
        ValueError: nothing was pushed, or `most` is below 1.
        """
        most = self.config.chunks if most is None else most
        if past.count == 0 or most < 1:
            raise ValueError("no chunk to look at")
        with torch.inference_mode():
            encodings, projections = past.last(most)
            if order is not None:
                encodings, projections = encodings[order], projections[order]
            memory = self._encode(encodings, projections, record)
            x = self.network.queries[0]
            for layer in self._decoder:
                x = self._decode(layer, x, memory)
            x = self._normed(self.network.decoder_norm, x)
            head, future = self.network.head, self.network.future_head
            joined = torch.cat((memory[-1], x.mean(0)))
            return F.linear(joined, head.weight, head.bias), F.linear(x, future.weight, future.bias)

    # --- made ready --------------------------------------------------------------------------------------------------

    def _tables(self, network: OadTR) -> None:
        """What the first layer knows of every place; in float64, as it is computed once."""
        first = next(iter(_encoders(network)))
        weight, norm = first.qkv.weight.double(), first.norm1
        gained = weight * norm.weight.double()
        centred = gained - gained.mean(1, keepdim=True)
        places = network.positions.double()
        token = network.task_token[0, 0].double() + places[-1]
        kind = network.positions.dtype
        self._encoding = self._map(network.encoding.weight, network.encoding.bias)
        self._centred = self._map(centred.to(kind))  # D -> 3 D, W' above
        self._token = token.to(kind)  # (D,), the task token at its place
        self._places = network.positions[:-1].detach()  # (T, D)
        self._placed = torch.cat((places[:-1], token[None])).matmul(centred.T).to(kind)  # (T + 1, 3 D)
        self._shift = (weight @ norm.bias.double()).to(kind)  # (3 D,)
        self._epsilon = norm.eps

    def _encoder_layer(self, layer: EncoderLayer, first: bool) -> _Encoder:
        project = None if first else self._map(layer.qkv.weight)
        out, up, down = (self._map(m.weight, m.bias) for m in (layer.out, layer.linear1, layer.linear2))
        return _Encoder(layer.norm1, project, out, layer.norm2, up, down)

    def _decoder_layer(self, layer: DecoderLayer, first: bool) -> _Decoder:
        own, cross = layer.self_attention, layer.cross_attention
        heads = cross.heads
        query, out, up, down = (
            self._map(m.weight, m.bias) for m in (cross.query, cross.out, layer.linear1, layer.linear2)
        )
        key = Heads(cross.key.weight.unflatten(0, (heads, -1)).transpose(1, 2), None, self.reduced)
        value = Heads(cross.value.weight.unflatten(0, (heads, -1)), cross.value.bias.view(heads, -1), self.reduced)
        if not first:
            parts = (own.query, own.key, own.value)
            qkv = self._map(torch.cat([m.weight for m in parts]), torch.cat([m.bias for m in parts]))
            self_out = self._map(own.out.weight, own.out.bias)
            return _Decoder(layer, qkv, self_out, query, key, value, out, up, down)
        queries = self.network.queries
        begin = layer.norm1(queries + own(queries, queries))[0]
        asked = key(_by_head(query(begin), heads))
        return _Decoder(layer, None, None, query, key, value, out, up, down, begin, asked)

    # --- run ---------------------------------------------------------------------------------------------------------

    def _encode(self, encodings: Tensor, projections: Tensor, record: list[Tensor] | None) -> Tensor:
        """What the decoder sees, (S, D), from the chunks that are there."""
        count = len(encodings)
        x = torch.empty(count + 1, self.config.width, dtype=encodings.dtype, device=encodings.device)
        torch.add(encodings, self._places[-count:], out=x[:-1])
        x[-1] = self._token
        qkv = self._placed[-count - 1 :].clone()
        qkv[:-1] += projections
        scale = torch.native_layer_norm(x, x.shape[1:], None, None, self._epsilon)[2]  # 1 / sigma: ten times torch.var
        qkv = torch.addcmul(self._shift, qkv, scale)
        for layer in self._encoder:
            if layer.project is not None:
                qkv = layer.project(self._normed(layer.norm1, x))
            x = layer.out.add(self._mix(qkv, record), x)
            x = layer.down.add(layer.up.gelu(self._normed(layer.norm2, x)), x)
        return self._normed(self.network.norm, x)

    def _mix(self, qkv: Tensor, record: list[Tensor] | None) -> Tensor:
        kind = self.config.attention
        q, k, v = qkv.unflatten(1, (3, 1, self.config.heads, -1)).permute(1, 2, 3, 0, 4)  # (1, H, S, D / H) each
        if record is not None:
            record.append(linear_attention.weights(kind, q[:, :, -1:], k)[0, :, 0])
        return linear_attention.attend(kind)(q, k, v, None, False, 0.0)[0].transpose(0, 1).flatten(1)

    def _decode(self, layer: _Decoder, x: Tensor, memory: Tensor) -> Tensor:
        if layer.begin is not None:
            x = layer.begin
        elif layer.qkv is not None and layer.self_out is not None:
            own = layer.layer.self_attention
            q, k, v = layer.qkv(x).unflatten(1, (3, 1, own.heads, -1)).permute(1, 2, 3, 0, 4)
            found = linear_attention.attend(own.attention)(q, k, v, None, True, 0.0)
            x = self._normed(layer.layer.norm1, layer.self_out.add(found[0].transpose(0, 1).flatten(1), x))
        x = self._normed(layer.layer.norm2, layer.out.add(self._cross(layer, x, memory), x))
        return self._normed(layer.layer.norm3, layer.down.add(layer.up.gelu(x), x))

    def _cross(self, layer: _Decoder, x: Tensor, memory: Tensor) -> Tensor:
        """What the queries find in the memory, heads side by side: (F, D)."""
        if self.config.attention == "linear":
            return _plain_cross(layer.layer.cross_attention, x, memory)
        heads = layer.layer.cross_attention.heads
        asked = layer.key(_by_head(layer.query(x), heads)) if layer.asked is None else layer.asked  # (H, F, D)
        scale = (self.config.width // heads) ** -0.5
        weights = (asked.flatten(0, 1) @ memory.T).mul_(scale).softmax(1)  # (H F, S)
        seen = (weights @ memory).unflatten(0, (heads, -1))  # (H, F, D)
        return layer.value(seen).transpose(0, 1).flatten(1)

    @staticmethod
    def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(F, D) -> (H, F, D / H)."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


def _plain_cross(cross: MultiHead, x: Tensor, memory: Tensor) -> Tensor:
    projected = (cross.query(x), cross.key(memory), cross.value(memory))
    q, k, v = (y.unflatten(1, (cross.heads, -1)).transpose(0, 1)[None] for y in projected)
    return linear_attention.attend(cross.attention)(q, k, v, None, False, 0.0)[0].transpose(0, 1).flatten(1)


def _encoders(network: OadTR) -> list[EncoderLayer]:
    return [layer for layer in network.encoder if isinstance(layer, EncoderLayer)]


def _decoders(network: OadTR) -> list[DecoderLayer]:
    return [layer for layer in network.decoder if isinstance(layer, DecoderLayer)]
