"""The decoder, one token at a time: the same network as a short list of operations on memory that is taken once.

A processor decodes as fast as it reads the weights of the experts that work, if nothing else takes its time. The
modules take more than that: two hundred operators that each make a new tensor, the library's RMSNorm in six passes, the
routing as tensors of two numbers. Here queries, keys and values are one product, a norm is two operators, the choice of
experts is made on Python's numbers, and an expert's answer is added to the stream by the product that makes it.

Several tokens at once (a prompt) go through `prefill`. Steered or recorded prompts, and devices on which a look at the
routers' numbers would wait for the rest, take the modules.

Letters: D width, H heads, G key-value heads, d head width, S positions that are seen, E experts, I expert width.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import KeyValueCache
from .config import MoeConfig
from .decoder import Decoder, DecoderLayer, Record, scaled
from .prefill import Layer, read
from .rotary import rotation
from .router import Steer, decide


class TextCache(KeyValueCache):
    """The keys and values of one text, and the memory in which its steps are computed. Belongs to one call.

    What steps are computed in is float32; keys and values are kept in the precision of the weights.
    """

    def __init__(self, config: MoeConfig, room: int, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__(config, room, device=device, dtype=dtype)
        self.window = config.window or room
        heads, shared, half = config.heads, config.key_value_heads, config.head_width // 2
        table = rotation(torch.arange(room, device=device), config.head_width, config.rope_base)
        self.cosine, self.sine = (each[:, :half].contiguous() for each in table)  # (room, d/2)

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, device=device)

        self.stream, self.normed, self.zero = empty(config.width), empty(config.width), empty(config.width).zero_()
        self.projected = empty((heads + 2 * shared) * config.head_width)  # queries, keys, values
        self.turned = empty(heads + shared, 2, half)
        self.router = empty(config.experts)
        # Views of the two: what is turned, as halves of a head, and where its parts end up.
        straight = self.projected[: self.turned.numel()].view_as(self.turned)
        self.straight, self.halves = straight, (straight[:, 0], straight[:, 1], self.turned[:, 0], self.turned[:, 1])
        self.queries = self.turned[:heads].view(1, shared, heads // shared, config.head_width)
        self.new_keys = self.turned[heads:].view(shared, config.head_width)
        self.new_values = self.projected[self.turned.numel() :].view(shared, config.head_width)
        self._hidden = {config.active: Hidden.of(config.active, config.expert_width, device)}

    def hidden(self, count: int, width: int) -> Hidden:
        """Room for what `count` experts have inside; a changed router may want more of them or fewer."""
        if count not in self._hidden:
            self._hidden[count] = Hidden.of(count, width, self.stream.device)
        return self._hidden[count]

    def places(self) -> tuple[tuple[Tensor, ...], ...]:
        """For each layer: where the next key and value belong, (G, d), and all that the next token sees, (1, G, S, d).

        ValueError: there is no room left.
        """
        at, end = self.length, self.length + 1
        if end > self.room:
            raise ValueError(f"the cache has room for {self.room} positions, {end} are needed")
        first = max(0, end - self.window)
        both = (self.keys, self.values)
        new = [each[:, 0, :, at].unbind() for each in both]
        return (*new, *(each[:, :, :, first:end].unbind() for each in both))


@dataclass(frozen=True)
class Hidden:
    """What the experts of one token have inside. rows: (2 I,) each, the gate and then the value; gates, values: (n, I),
    the same numbers; answers: the rows of `gates`."""

    rows: tuple[Tensor, ...]
    gates: Tensor
    values: Tensor
    answers: tuple[Tensor, ...]

    @staticmethod
    def of(count: int, width: int, device: torch.device | str) -> Hidden:
        both = torch.empty(count, 2, width, device=device)
        return Hidden(both.flatten(1).unbind(), both[:, 0], both[:, 1], both[:, 0].unbind())


class FastDecoder:
    """A Decoder made ready for decoding. Keeps nothing of a text: see `start`.

    The decoder goes on working, and its matrices are not held twice: those of queries, keys and values become parts of
    one. To be made anew if the decoder's weights move or change.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.config = decoder, decoder.config
        with torch.inference_mode(False), torch.no_grad():
            self._layers = [_prepared(layer) for layer in decoder.layers if isinstance(layer, DecoderLayer)]
            self._embedding, self._head = decoder.embedding.weight.detach(), decoder.head.weight.detach()
            self._norm = decoder.norm.weight.detach().float()
        self._here = self._embedding.device.type == "cpu"

    def start(self, room: int) -> TextCache:
        """The cache of a new text of at most `room` tokens."""
        with torch.inference_mode():
            return TextCache(self.config, room, self._embedding.device, self._embedding.dtype)

    def feed(
        self, tokens: Tensor, cache: TextCache, steer: Steer | None = None, record: Record | None = None
    ) -> Tensor:
        """tokens (T,) int64, behind what `cache` holds -> (V,) float32 logits after the last of them.

        steer, record: as of `Decoder.forward`. ValueError: the cache has no room for them.
        """
        with torch.inference_mode():
            if self._here and tokens.shape[0] == 1:
                return self._step(tokens, cache, steer, record)
            if self._here and steer is None and record is None:
                return self.read(tokens[None], cache, last_only=True)[0, -1].float()
            logits = self.decoder(tokens[None], cache, steer=steer, record=record, last_only=True)
            return logits[0, -1].float()

    def read(self, tokens: Tensor, cache: KeyValueCache, last_only: bool = False) -> Tensor:
        """`Decoder.forward` for texts of some length: tokens (B, T) int64 -> logits (B, T, V), or (B, 1, V)."""
        config = self.config
        with torch.inference_mode():
            embedded = scaled(F.embedding(tokens, self._embedding), config.embedding_multiplier)
            stream = read(config, self._layers, embedded, cache, last_only)
            normed = F.rms_norm(stream, self._norm.shape, self._norm.to(stream.dtype), config.norm_epsilon)
            return scaled(F.linear(normed, self._head), 1 / config.logits_divisor)

    def _step(self, tokens: Tensor, cache: TextCache, steer: Steer | None, record: Record | None) -> Tensor:
        config, stream = self.config, cache.stream
        places = zip(*cache.places(), strict=True)
        turn = cache.cosine[cache.length], cache.sine[cache.length]
        stream.copy_(self._embedding[int(tokens)])
        if config.embedding_multiplier != 1.0:
            stream.mul_(config.embedding_multiplier)
        for number, (layer, place) in enumerate(zip(self._layers, places, strict=True)):
            self._normalise(layer.attention_norm, cache)
            mixed = self._attend(layer, cache, turn, *place)
            _add_product(stream, layer.out, mixed, config.residual_multiplier)
            self._normalise(layer.moe_norm, cache)
            _product(layer.router, cache.normed, cache.router)
            if steer is None and record is None:
                chosen = strongest(cache.router.tolist(), config.active, config.normalise_weights)
            else:
                chosen = self._decided(number, tokens, cache, steer, record)
            self._answer(layer, cache, chosen)
        cache.advance(1)
        self._normalise(self._norm, cache)
        logits = torch.empty(config.vocabulary)
        _product(self._head, cache.normed, logits)
        return logits if config.logits_divisor == 1.0 else logits.div_(config.logits_divisor)

    def _normalise(self, weight: Tensor, cache: TextCache) -> None:
        """RMSNorm of the stream into `normed`."""
        x = cache.stream
        scale = 1 / sqrt(x.dot(x).item() / x.shape[0] + self.config.norm_epsilon)
        torch.addcmul(cache.zero, x, weight, value=scale, out=cache.normed)

    def _attend(
        self,
        layer: Layer,
        cache: TextCache,
        turn: tuple[Tensor, Tensor],
        new_keys: Tensor,
        new_values: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """What the new token takes from those it sees, (H d,) float32; its own key and value are put into place."""
        config, (cosine, sine) = self.config, turn
        _product(layer.mix, cache.normed, cache.projected)
        if layer.query_key_norms is not None:
            for part, weight in zip(self._queries_and_keys(cache), layer.query_key_norms, strict=True):
                part.copy_(F.rms_norm(part, part.shape, weight, config.norm_epsilon))
        if config.clip is not None:
            cache.projected.clamp_(-config.clip, config.clip)
        first, second, turned_first, turned_second = cache.halves
        torch.mul(cache.straight, cosine, out=cache.turned)
        turned_first.addcmul_(second, sine, value=-1)
        turned_second.addcmul_(first, sine)
        new_keys.copy_(cache.new_keys)
        new_values.copy_(cache.new_values)
        queries = cache.queries.to(keys.dtype)  # (1, G, H / G, d): the heads of a group, as if they were tokens
        return F.scaled_dot_product_attention(queries, keys, values, scale=layer.scale).float().flatten()

    def _queries_and_keys(self, cache: TextCache) -> tuple[Tensor, Tensor]:
        queries = self.config.heads * self.config.head_width
        return cache.projected[:queries], cache.projected[queries : cache.turned.numel()]

    def _decided(
        self, number: int, tokens: Tensor, cache: TextCache, steer: Steer | None, record: Record | None
    ) -> list[tuple[int, float]]:
        """The choice by the readable router, which can be changed and recorded."""
        logits = cache.router[None].clone()  # a record outlives the step
        routing = decide(self.config, number, logits, tokens[None], cache.length, steer, training=False)
        if record is not None:
            record.routings.append(routing)
        return list(zip(routing.experts[0].tolist(), routing.weights[0].tolist(), strict=True))

    def _answer(self, layer: Layer, cache: TextCache, chosen: list[tuple[int, float]]) -> None:
        """Adds what the chosen experts say to the stream. chosen: (expert, weight)."""
        hidden = cache.hidden(len(chosen), self.config.expert_width)
        for (expert, _), row in zip(chosen, hidden.rows, strict=True):
            _product(layer.gate_up[expert], cache.normed, row)
        F.silu(hidden.gates, inplace=True).mul_(hidden.values)
        for (expert, weight), answer in zip(chosen, hidden.answers, strict=True):
            _add_product(cache.stream, layer.down[expert], answer, weight * self.config.residual_multiplier)


def strongest(logits: list[float], active: int, normalise: bool) -> list[tuple[int, float]]:
    """`router.route` for one token: (expert, weight), the strongest first. On a few dozen numbers Python is done before
    tensors would have begun."""
    order = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[:active]
    top = logits[order[0]]
    total = sum(exp(logits[expert] - top) for expert in (order if normalise else range(len(logits))))
    return [(expert, exp(logits[expert] - top) / total) for expert in order]


def _prepared(layer: DecoderLayer) -> Layer:
    attention, moe = layer.attention, layer.moe
    parts = [attention.query, attention.key, attention.value]
    mix = torch.cat([part.weight.detach() for part in parts])
    for part, rows in zip(parts, mix.split([part.weight.shape[0] for part in parts]), strict=True):
        part.weight.data = rows
    norms = None
    if attention.config.query_key_norm:
        norms = (attention.query_norm.weight.detach().float(), attention.key_norm.weight.detach().float())
    return Layer(
        layer.attention_norm.weight.detach().float(), mix, norms, attention.out.weight.detach(),
        layer.moe_norm.weight.detach().float(), moe.router.weight.detach(),
        moe.experts.gate_up.detach().unbind(), moe.experts.down.detach().unbind(), attention.scale,
    )  # fmt: skip


def _product(matrix: Tensor, x: Tensor, out: Tensor) -> None:
    """out = matrix x, both vectors float32. 16-bit matrices go the way of `linear`, twice as fast as `mv` with them."""
    if matrix.dtype == torch.float32:
        torch.mv(matrix, x, out=out)
    else:
        out.copy_(F.linear(x.to(matrix.dtype), matrix))


def _add_product(out: Tensor, matrix: Tensor, x: Tensor, scale: float) -> None:
    """out += scale matrix x."""
    if matrix.dtype == torch.float32:
        out.addmv_(matrix, x, alpha=scale)
    else:
        out.add_(F.linear(x.to(matrix.dtype), matrix), alpha=scale)
