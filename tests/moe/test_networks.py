"""The decoder's parts against their definitions: every fast path against the readable one, and absolute values."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pipelines.moe import router
from pipelines.moe.attention import sees
from pipelines.moe.cache import KeyValueCache
from pipelines.moe.config import PRESETS, MoeConfig
from pipelines.moe.decoder import Decoder, Record
from pipelines.moe.experts import Experts, expert
from pipelines.moe.rotary import rotate, rotation
from pipelines.moe.router import Routing, Steered
from tests.moe.tiny import lively

KINDS = ["tiny", "tiny-olmoe", "tiny-granite", "tiny-switch"]
WINDOW = replace(PRESETS["tiny"], window=5)


def text(count=23, batch=1, seed=1):
    return torch.randint(0, 320, (batch, count), generator=torch.Generator().manual_seed(seed))


# --- experts ---------------------------------------------------------------------------------------------------------


def made_experts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = Experts(PRESETS["tiny"])
    for parameter in layer.parameters():
        parameter.data.normal_(0.0, 0.3, generator=generator)
    return layer, generator


def choices(generator, tokens, active=2, count=4, share_kept=1.0, only=None):
    """A random routing; `only`: experts that may be chosen."""
    logits = torch.randn(tokens, count, generator=generator)
    if only is not None:
        logits[:, [k for k in range(count) if k not in only]] = -100.0
    found = router.route(logits, active, True)
    if share_kept == 1.0:
        return found
    kept = torch.rand(tokens, active, generator=generator) < share_kept
    return Routing(found.logits, found.experts, found.weights * kept, kept)


@pytest.mark.parametrize("tokens", [0, 1, 2, 37])
@pytest.mark.parametrize("share_kept", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("active", [1, 2, 4])
def test_sorted_experts_are_the_loop(tokens, share_kept, active):
    layer, generator = made_experts()
    routing = choices(generator, tokens, active, share_kept=share_kept)
    x = torch.randn(tokens, 32, generator=generator)
    with torch.no_grad():
        expected = layer.loop(x, routing)
        assert torch.allclose(layer.sorted(x, routing), expected, atol=1e-5, rtol=0)
        if tokens == 1:
            assert torch.allclose(layer.one(x, routing), expected, atol=1e-5, rtol=0)
        if share_kept == 0.0:
            assert not expected.any()  # a token whose experts are all full gets nothing
        elif tokens == 37:
            assert expected.abs().max() > 0.1


def test_experts_without_tokens_are_skipped():
    layer, generator = made_experts()
    routing = choices(generator, 9, active=2, only=(1, 3))
    assert routing.experts.unique().tolist() == [1, 3]
    x = torch.randn(9, 32, generator=generator)
    with torch.no_grad():
        layer.gate_up[0] = layer.gate_up[2] = float("nan")  # would show if it were touched
        found = layer(x, routing)
        assert torch.allclose(found, layer.loop(x, routing), atol=1e-5) and found.isfinite().all()
        assert layer(x[:1], Routing(routing.logits[:1], routing.experts[:1], routing.weights[:1])).isfinite().all()


def test_the_loop_is_the_definition():
    """By hand: sum over the chosen of weight x down(silu(gate x) * up x)."""
    layer, generator = made_experts()
    routing = choices(generator, 5)
    x = torch.randn(5, 32, generator=generator)
    with torch.no_grad():
        expected = torch.zeros(5, 32)
        for token in range(5):
            for number, weight in zip(routing.experts[token], routing.weights[token], strict=True):
                gate, value = layer.gate_up[number, :24] @ x[token], layer.gate_up[number, 24:] @ x[token]
                expected[token] += weight * (layer.down[number] @ (gate / (1 + (-gate).exp()) * value))
        assert torch.allclose(layer.loop(x, routing), expected, atol=1e-5)


@pytest.mark.parametrize("share_kept", [1.0, 0.6])
def test_gradients_of_the_sorted_path_are_the_loops(share_kept):
    layer, generator = made_experts()
    x = torch.randn(30, 32, generator=generator)
    logits = torch.randn(30, 4, generator=generator)
    kept = torch.rand(30, 2, generator=generator) < share_kept
    target = torch.randn(30, 32, generator=generator)
    found = []
    for path in (layer.loop, layer.sorted):
        given, raw = x.clone().requires_grad_(), logits.clone().requires_grad_()
        routing = router.route(raw, 2, True)
        routing = Routing(routing.logits, routing.experts, routing.weights * kept, kept)
        layer.zero_grad()
        (path(given, routing) * target).sum().backward()
        found.append([given.grad, raw.grad, layer.gate_up.grad.clone(), layer.down.grad.clone()])
    for loop, fast in zip(*found, strict=True):
        assert loop.abs().max() > 0.1 and torch.allclose(loop, fast, atol=1e-4, rtol=1e-4)


def test_a_wrong_order_of_gate_and_value_would_show():
    layer, generator = made_experts()
    x = torch.randn(3, 32, generator=generator)
    with torch.no_grad():
        right = expert(x, layer.gate_up[0], layer.down[0])
        assert (expert(x, layer.gate_up[0].roll(24, dims=0), layer.down[0]) - right).abs().max() > 0.01


# --- router ----------------------------------------------------------------------------------------------------------


def test_top_two_weights_by_hand():
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    p = (logits.exp() / logits.exp().sum())[0]
    mixtral, olmoe = router.route(logits, 2, True), router.route(logits, 2, False)
    assert mixtral.experts.tolist() == olmoe.experts.tolist() == [[1, 2]]
    assert olmoe.weights[0].tolist() == pytest.approx([p[1].item(), p[2].item()])
    # normalised equals Granite's softmax over the chosen logits alone
    assert mixtral.weights[0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])


def test_switch_takes_one_expert_at_its_probability():
    """Normalised, a single weight would be 1 and the router could not learn."""
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    found = router.route(logits, 1, False)
    assert found.experts.tolist() == [[1]]
    assert found.weights.item() == pytest.approx(math.exp(2) / sum(math.exp(x) for x in (0, 2, 1, -1)))


def test_capacity_serves_first_choices_first():
    # 4 tokens, 2 choices, 4 experts: an even share is 2, which factor 1 allows.
    experts = torch.tensor([[0, 1], [0, 1], [0, 2], [1, 0]])
    kept = router.within_capacity(experts, 4, 1.0)
    # First choices: 0, 0, 0 (full), 1. Second: 1 takes one more (token 0), then is full; 2 has room; 0 is full.
    assert kept.tolist() == [[True, True], [True, False], [False, True], [True, False]]
    assert router.within_capacity(experts, 4, 1.5).tolist() == [[True, True], [True, True], [True, True], [True, False]]
    assert router.within_capacity(experts, 4, 2.0).all()
    assert router.within_capacity(torch.empty(0, 2, dtype=torch.int64), 4, 1.0).shape == (0, 2)


def test_capacity_is_rounded_up():
    experts = torch.zeros(5, 1, dtype=torch.int64)  # 5 tokens to one of 4 experts: an even share is 1.25
    assert router.within_capacity(experts, 4, 1.0)[:, 0].tolist() == [True, True, False, False, False]


def test_dropout_leaves_out_its_share_of_channels_and_keeps_the_mean():
    layer = Decoder(PRESETS["tiny"]).layers[0]
    layer.dropout = 0.1
    torch.manual_seed(0)
    joined = layer.joined(torch.zeros(50, 3, 400), torch.ones(50, 3, 400)) / layer.multiplier
    out = joined == 0
    assert abs(float(out.float().mean()) - 0.1) < 0.01 and (out == out[:, :1]).all()
    assert joined[~out].unique().tolist() == pytest.approx([1 / 0.9]) and abs(float(joined.mean()) - 1) < 0.01
    assert (layer.eval().joined(torch.zeros(1, 3, 400), torch.ones(1, 3, 400)) == layer.multiplier).all()


def test_dropped_tokens_pass_by_in_training_and_nothing_is_dropped_after():
    network = lively("tiny-switch")
    assert network.config.active == 1 and network.config.capacity_factor == 1.25
    records = {}
    for training in (True, False):
        records[training] = Record()
        network.train(training)(text(40), record=records[training])
    for routing in records[False].routings:
        assert routing.kept is None
    for routing in records[True].routings:
        most = math.ceil(1.25 * 40 / 4)
        load = torch.bincount(routing.experts[routing.kept], minlength=4)
        assert load.max() <= most and not routing.kept.all()
        assert (routing.weights[~routing.kept] == 0).all() and (routing.weights[routing.kept] > 0).all()
        chosen = torch.bincount(routing.experts.flatten(), minlength=4)
        assert torch.equal(load, chosen.clamp(max=most))


def test_balance_loss_at_its_bounds():
    even = torch.eye(4).repeat(3, 1) * 50.0  # each token sure of its own expert, the experts in turn
    assert router.balance_loss(even, even.argmax(1, keepdim=True)).item() == pytest.approx(1.0)
    one = torch.tensor([[50.0, 0, 0, 0]]).repeat(8, 1)
    assert router.balance_loss(one, torch.zeros(8, 1, dtype=torch.int64)).item() == pytest.approx(4.0)
    flat = torch.zeros(8, 4)  # probabilities are even, so no load can be worse than 1
    assert router.balance_loss(flat, torch.zeros(8, 1, dtype=torch.int64)).item() == pytest.approx(1.0)


def test_pooling_layers_forgives_what_each_layer_does():
    """Two layers that use one expert each, but not the same: 4 by layer, 2 in one pool, times k."""
    logits = [torch.tensor([[50.0, 0, 0, 0]]).repeat(8, 1), torch.tensor([[0, 50.0, 0, 0]]).repeat(8, 1)]
    experts = [torch.full((8, 1), layer) for layer in (0, 1)]
    assert [router.balance_loss(*each).item() for each in zip(logits, experts, strict=True)] == pytest.approx([4, 4])
    assert router.pooled_balance_loss(logits, experts).item() == pytest.approx(2.0)
    pair = [torch.tensor([[0, 1]]).repeat(8, 1)] * 2
    assert router.pooled_balance_loss([torch.zeros(8, 4)] * 2, pair).item() == pytest.approx(2.0)  # k at an even load


def test_z_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 3.0, 3.0, 3.0]])
    expected = (math.log(4) ** 2 + (3 + math.log(4)) ** 2) / 2
    assert router.z_loss(logits).item() == pytest.approx(expected)


def test_a_steer_sees_tokens_and_their_positions_behind_a_cache():
    network, seen = lively("tiny"), []

    def steer(layer, logits, tokens, positions):
        seen.append((layer, tokens.tolist(), positions.tolist()))
        preference = torch.zeros_like(logits)
        preference[:, 3] = 1e9
        return Steered(logits, preference, 1)

    cache, record = KeyValueCache(network.config, 9), Record()
    with torch.no_grad():
        network(torch.tensor([[5, 6, 7]]), cache, steer=steer)
        network(torch.tensor([[8]]), cache, steer=steer, record=record)
    assert seen == [(0, [5, 6, 7], [0, 1, 2]), (1, [5, 6, 7], [0, 1, 2]), (0, [8], [3]), (1, [8], [3])]
    assert [routing.experts.tolist() for routing in record.routings] == [[[3]], [[3]]]


# --- positions and masks ---------------------------------------------------------------------------------------------


def test_rotation_by_hand():
    cosine, sine = rotation(torch.tensor([0, 3]), 4, 100.0)
    angles = [3.0, 0.3, 3.0, 0.3]  # 3 x 100^0 and 3 x 100^(-2/4), the halves repeated
    assert cosine[0].tolist() == [1, 1, 1, 1] and sine[0].tolist() == [0, 0, 0, 0]
    assert cosine[1].tolist() == pytest.approx([math.cos(a) for a in angles])
    turned = rotate(torch.tensor([1.0, 0, 0, 0]), cosine[1], sine[1])
    assert turned.tolist() == pytest.approx([math.cos(3), 0, math.sin(3), 0])


def test_rotated_products_know_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 8, generator=generator)
    cosine, sine = rotation(torch.arange(40), 8, 10_000.0)
    at = [rotate(a, cosine[k], sine[k]) @ rotate(b, cosine[k - 3], sine[k - 3]) for k in (3, 20, 39)]
    assert at[0].item() == pytest.approx(at[1].item(), abs=1e-4) == pytest.approx(at[2].item(), abs=1e-4)
    other = rotate(a, cosine[3], sine[3]) @ rotate(b, cosine[1], sine[1])
    assert abs(other.item() - at[0].item()) > 0.01


def test_which_tokens_are_seen():
    assert sees(0, 6, None) is None and sees(7, 1, None) is None and sees(0, 6, 6) is None
    assert sees(0, 4, 2).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert sees(2, 2, None).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert sees(3, 1, 2).int().tolist() == [[0, 0, 1, 1]]


def test_a_token_sees_nothing_behind_it():
    network, tokens = lively("tiny"), text()
    other = tokens.clone()
    other[0, 15:] = (other[0, 15:] + 7) % 320
    a, b = network(tokens), network(other)
    assert torch.allclose(a[:, :15], b[:, :15], atol=1e-5) and (a[:, 15:] - b[:, 15:]).abs().max() > 0.1


def test_a_window_forgets():
    """2 layers of 5 tokens reach back 8 tokens and no further."""
    network, tokens = lively(WINDOW), text()
    other = tokens.clone()
    other[0, 4] = (other[0, 4] + 7) % 320
    change = (network(tokens) - network(other)).abs().amax(dim=(0, 2))
    assert change[:4].max() == 0 and change[12] > 1e-4 and change[13:].max() < 1e-5


@pytest.mark.parametrize("kind", ["tiny", "tiny-olmoe", "tiny-granite", WINDOW])
def test_packed_documents_are_separate_texts(kind):
    network = lively(kind)
    parts = [text(9, seed=1), text(7, seed=2), text(7, seed=3)]
    packed = network(torch.cat(parts, 1), documents=torch.tensor([[0] * 9 + [1] * 7 + [2] * 7]))
    alone = torch.cat([network(part) for part in parts], 1)
    assert torch.allclose(packed, alone, atol=1e-4)
    assert (network(torch.cat(parts, 1)) - alone)[:, 9:].abs().max() > 0.1  # without the mask they are not


# --- the decoder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, WINDOW], ids=str)
@torch.no_grad()
def test_chunks_and_steps_are_the_whole(kind):
    network, tokens = lively(kind), text()
    whole = network(tokens)
    assert whole.abs().max() > 1
    for pieces in ([1] * 23, [10, 13], [4, 1, 1, 9, 8], [23], [1, 22]):
        cache, found = KeyValueCache(network.config, 23), []
        for part in tokens.split(pieces, dim=1):
            found.append(network(part, cache))
        assert cache.length == 23
        assert torch.allclose(torch.cat(found, 1), whole, atol=1e-4), pieces


@pytest.mark.parametrize("kind", [*KINDS, WINDOW], ids=str)
@torch.no_grad()
def test_a_batch_is_each_text_alone(kind):
    network, tokens = lively(kind), text(batch=4)
    whole = network(tokens)
    assert all(torch.allclose(network(tokens[k : k + 1])[0], whole[k], atol=1e-4) for k in range(4))
    cache = KeyValueCache(network.config, 23, batch=4)
    network(tokens[:, :20], cache)
    assert torch.allclose(network(tokens[:, 20:21], cache)[:, 0], whole[:, 20], atol=1e-4)


@torch.no_grad()
def test_a_cache_shows_a_fault():
    """What the equality above must catch: a position too many, and another visitor's cache."""
    network, tokens = lively("tiny"), text()
    whole = network(tokens)
    cache = KeyValueCache(network.config, 40)
    network(tokens[:, :10], cache)
    cache.advance(1)
    cache.keys[:, :, :, 10], cache.values[:, :, :, 10] = 0.0, 0.0
    assert (network(tokens[:, 10:], cache) - whole[:, 10:]).abs().max() > 0.01
    foreign = KeyValueCache(network.config, 40)
    network(text(10, seed=9), foreign)
    assert (network(tokens[:, 10:], foreign) - whole[:, 10:]).abs().max() > 0.01


@torch.no_grad()
def test_a_cache_can_be_cut_and_has_an_end():
    network, tokens = lively("tiny"), text()
    cache = KeyValueCache(network.config, 23)
    network(tokens, cache)
    with pytest.raises(ValueError, match="room for 23 positions, 24 are needed"):
        network(tokens[:, :1], cache)
    cache.cut(11)
    assert torch.allclose(network(tokens[:, 11:], cache), network(tokens)[:, 11:], atol=1e-4)
    with pytest.raises(ValueError, match="24 is not within the 23"):
        cache.cut(24)


@torch.no_grad()
def test_last_only_is_the_last():
    network, tokens = lively("tiny-granite"), text(batch=2)
    assert torch.allclose(network(tokens, last_only=True), network(tokens)[:, -1:], atol=1e-5)


@torch.no_grad()
def test_granites_multipliers_each_matter():
    network, tokens = lively("tiny-granite"), text()
    whole = network(tokens)
    for name in ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_divisor"):
        other = Decoder(replace(network.config, **{name: 1.0})).eval()
        other.load_state_dict(network.state_dict())
        change = (other(tokens) - whole).abs().max()
        assert change > 0.01, name
        if name == "logits_divisor":
            assert torch.allclose(other(tokens), whole * 2, atol=1e-5)


@torch.no_grad()
def test_olmoe_clips_and_normalises():
    network = lively("tiny-olmoe")
    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0)) * 10
    found = network.layers[0].attention.projected(x)
    assert all(each.abs().max().item() == 0.5 for each in found)  # the clip of this preset, reached
    free = Decoder(replace(network.config, clip=None)).eval()
    free.load_state_dict(network.state_dict())
    queries = free.layers[0].attention.projected(x)[0]  # (1, H, T, d), over all heads together
    ones = queries.transpose(1, 2).flatten(2) / free.layers[0].attention.query_norm.weight
    assert torch.allclose(ones.square().mean(-1), torch.ones(1, 6), atol=1e-4)


def test_the_sizes_are_those_of_the_papers():
    for name, millions, active in (
        ("mixtral-8x7b", 46_703, 12_880), ("olmoe-1b-7b", 6_919, 1_282), ("granite-3.1-1b-a400m", 1_335, 429),
        ("bench", 63.33, 20.86), ("stories", 22.17, 8.01),
    ):  # fmt: skip
        total, working = PRESETS[name].parameters
        assert (total / 1e6, working / 1e6) == pytest.approx((millions, active), rel=1e-3), name
    for name, config in PRESETS.items():
        with torch.device("meta"):
            network = Decoder(config)
        assert sum(p.numel() for p in network.parameters()) == config.parameters[0], name


def test_what_cannot_be_is_refused():
    for changes, words in (
        ({"key_value_heads": 3}, "8 heads do not share 3"), ({"active": 9}, "9 of 8 experts"),
        ({"active": 0}, "0 of 8"), ({"head_width": 7}, "head_width must be even"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            MoeConfig(**changes)


def test_the_tied_head_is_the_embedding():
    network = lively("tiny-granite")
    assert network.head.weight is network.embedding.weight
    x = network.norm(torch.ones(1, 1, 32))
    assert torch.equal(network.head(x), F.linear(x, network.embedding.weight))
