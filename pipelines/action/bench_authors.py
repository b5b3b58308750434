"""OadTR step by step as its authors run it, for bench.py to time: nothing is fused or kept for the next chunk.

Ported operation by operation from what Wang et al. published (github.com/wangxiang1230/OadTR, the default variant in
evaluation mode): the two streams joined at every call, einsum attention with a mask built anew, the decoder's
feed-forward parts as convolutions over one place. Tests hold it to the authors' numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .oadtr import DecoderLayer, EncoderLayer, MultiHead, OadTR


class AuthorsForward:
    """The forward pass over the parameters of an OadTR with softmax attention."""

    def __init__(self, network: OadTR) -> None:
        self.network = network
        # As they are stored: (K, D, 1).
        self._convolutions = [
            (layer.linear1.weight[:, :, None], layer.linear2.weight[:, :, None])
            for layer in network.decoder
            if isinstance(layer, DecoderLayer)
        ]

    def __call__(self, rgb: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """rgb (B, T, R), flow (B, T, O), R + O = in_features -> logits (B, C), future (B, F, C)."""
        net = self.network
        x = net.encoding(torch.cat((rgb, flow), 2))
        x = torch.cat((x, net.task_token.expand(x.shape[0], -1, -1)), dim=1)
        places = torch.arange(x.shape[1])[None]
        x = x + F.embedding(places, net.positions)
        for layer in net.encoder:
            x = _encoder_layer(layer, x)
        x = net.norm(x)
        queries = net.queries.expand(x.shape[0], -1, -1)
        for layer, (up, down) in zip(net.decoder, self._convolutions, strict=True):
            queries = _decoder_layer(layer, up, down, queries, x)
        queries = net.decoder_norm(queries)
        future = net.future_head(queries)
        return net.head(torch.cat((x[:, -1], queries.mean(dim=1)), dim=1)), future


def _encoder_layer(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, EncoderLayer)
    batch, tokens, width = x.shape
    qkv = layer.qkv(layer.norm1(x)).reshape(batch, tokens, 3, layer.heads, width // layer.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = ((q @ k.transpose(-2, -1)) * (width // layer.heads) ** -0.5).softmax(dim=-1)
    x = layer.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width)) + x
    return layer.linear2(F.gelu(layer.linear1(layer.norm2(x)))) + x


def _decoder_layer(layer: nn.Module, up: Tensor, down: Tensor, x: Tensor, memory: Tensor) -> Tensor:
    assert isinstance(layer, DecoderLayer)
    x = layer.norm1(x + _attend(layer.self_attention, x, x))
    x = layer.norm2(x + _attend(layer.cross_attention, x, memory))
    y = F.gelu(F.conv1d(x.transpose(-1, 1), up, layer.linear1.bias))
    return layer.norm3(x + F.conv1d(y, down, layer.linear2.bias).transpose(-1, 1))


def _attend(module: MultiHead, x: Tensor, memory: Tensor) -> Tensor:
    batch, asking, _ = x.shape
    there, heads = memory.shape[1], module.heads
    q = module.query(x).view(batch, asking, heads, -1)
    k = module.key(memory).view(batch, there, heads, -1)
    v = module.value(memory).view(batch, there, heads, -1)
    scores = torch.einsum("blhe,bshe->bhls", q, k)
    if module.causal:
        mask = torch.triu(torch.ones(batch, 1, asking, asking, dtype=torch.bool), diagonal=1)
        scores.masked_fill_(mask, -torch.inf)
    weights = torch.softmax(q.shape[-1] ** -0.5 * scores, dim=-1)
    found = torch.einsum("bhls,bshd->blhd", weights, v).contiguous()
    return module.out(found.view(batch, asking, -1))
