"""A changed router does exactly what it was told, in one pass, token by token, and in a batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.common.errors import UserError
from pipelines.moe.cache import KeyValueCache
from pipelines.moe.config import PRESETS
from pipelines.moe.contract import RouterChange
from pipelines.moe.decoder import Decoder, Record
from pipelines.moe.steer import hash_table, hashed, noise, steer

TINY = PRESETS["tiny"]  # 2 layers of 4 experts, 2 of which work
TOKENS = torch.randint(0, TINY.vocabulary, (1, 40), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def network():
    made = Decoder(TINY)
    made.initialise(torch.Generator().manual_seed(1), spread=0.3)
    return made.eval()


def routed(network, change, tokens=TOKENS):
    """(logits of the text, a routing for each layer)."""
    record = Record()
    with torch.inference_mode():
        return network(tokens, steer=steer(change, network.config), record=record), record.routings


def test_nothing_is_nothing(network):
    assert steer(RouterChange(), TINY) is None and steer(RouterChange(seed=7), TINY) is None
    plain, before = routed(network, RouterChange())
    # the model's own number, asked for: the long way through the steering must come to the same
    same, after = routed(network, RouterChange(active=2))
    assert torch.equal(plain, same)
    assert all(torch.equal(a.experts, b.experts) for a, b in zip(before, after, strict=True))


def test_a_banned_expert_gets_nothing(network):
    _, before = routed(network, RouterChange())
    _, after = routed(network, RouterChange(banned=frozenset({(1, 2)})))
    assert (before[1].experts == 2).sum() > 0
    assert (after[1].experts == 2).sum() == 0
    assert torch.equal(before[0].experts, after[0].experts)  # the layer before is not touched
    assert torch.allclose(after[1].weights.sum(-1), torch.ones(40))
    spared = (before[1].experts != 2).all(-1)
    assert spared.any() and torch.equal(before[1].experts[spared], after[1].experts[spared])


def test_a_forced_expert_gets_every_token_with_the_routers_weight(network):
    _, routings = routed(network, RouterChange(forced=frozenset({(0, 3)})))
    first = routings[0]
    assert (first.experts == 3).any(-1).all()
    chosen = first.logits.softmax(-1).gather(-1, first.experts)
    assert torch.allclose(first.weights, chosen / chosen.sum(-1, keepdim=True), atol=1e-6)
    other = torch.where(first.experts[:, 0] == 3, first.experts[:, 1], first.experts[:, 0])
    masked = first.logits.clone()
    masked[:, 3] = -torch.inf
    assert torch.equal(other, masked.argmax(-1))  # and beside it works the best of the others


def test_two_forced_experts_stand_in_the_routers_order(network):
    _, routings = routed(network, RouterChange(forced=frozenset({(0, 0), (0, 1)})))
    expected = routings[0].logits[:, :2].argsort(dim=-1, descending=True)
    assert torch.equal(routings[0].experts, expected)


@pytest.mark.parametrize("active", [1, 3, 4])
def test_how_many_work(network, active):
    _, routings = routed(network, RouterChange(active=active))
    for routing in routings:
        assert routing.experts.shape == (40, active)
        assert all(len(set(row)) == active for row in routing.experts.tolist())
        assert torch.allclose(routing.weights.sum(-1), torch.ones(40))


def test_temperature_evens_the_weights_and_keeps_the_choice(network):
    _, plain = routed(network, RouterChange())
    _, hot = routed(network, RouterChange(temperature=100.0))
    _, cold = routed(network, RouterChange(temperature=0.01))
    assert torch.equal(plain[0].experts, hot[0].experts) and torch.equal(plain[0].experts, cold[0].experts)
    assert hot[0].weights[:, 0].max() < 0.52 < plain[0].weights[:, 0].max() < cold[0].weights[:, 0].max()
    assert torch.allclose(hot[0].logits * 100, plain[0].logits, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        RouterChange(control="random", seed=3),
        RouterChange(control="hash", seed=3),
        RouterChange(banned=frozenset({(0, 1)}), forced=frozenset({(1, 0)}), active=3, temperature=2.0),
        RouterChange(control="hash", banned=frozenset({(0, 1)}), forced=frozenset({(0, 2)})),
    ],
)
def test_the_same_whole_token_by_token_and_in_a_batch(network, change):
    whole, routings = routed(network, change)
    cache, record = KeyValueCache(TINY, room=40), Record()
    given = steer(change, TINY)
    with torch.inference_mode():
        parts = [network(TOKENS[:, :30], cache, steer=given, record=record)]
        parts += [network(TOKENS[:, i : i + 1], cache, steer=given, record=record) for i in range(30, 40)]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-4)
    stepped = torch.cat([r.experts for r in record.routings[0::2]])
    assert torch.equal(stepped, routings[0].experts)
    batch = torch.cat([TOKENS.flip(1), TOKENS])
    both, routings = routed(network, change, batch)
    assert torch.allclose(both[1:], whole, atol=1e-4)
    assert torch.equal(routings[1].experts[40:], stepped_layer(record, 1))


def stepped_layer(record, layer):
    return torch.cat([r.experts for r in record.routings[layer::2]])


def test_the_random_router_knows_the_place_and_nothing_else(network):
    change = RouterChange(control="random", seed=3)
    _, one = routed(network, change)
    _, other = routed(network, change, TOKENS.flip(1))
    assert torch.equal(one[0].experts, other[0].experts)
    assert not torch.equal(one[0].experts, one[1].experts)
    _, seeded = routed(network, replace(change, seed=4))
    assert not torch.equal(one[0].experts, seeded[0].experts)


def test_noise_is_normal_even_and_fixed():
    drawn = noise(0, 2, torch.arange(5000), 8)
    assert drawn.shape == (5000, 8) and drawn.dtype == torch.float32 and drawn.isfinite().all()
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.02 and 3.5 < drawn.abs().max() < 6
    load = torch.bincount(drawn.topk(2).indices.flatten(), minlength=8) / 10_000
    assert (load - 1 / 8).abs().max() < 0.015
    together = np.corrcoef(drawn.T.numpy())
    assert np.abs(together - np.eye(8)).max() < 0.06  # no expert's noise tells another's
    assert np.abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.06
    # a seed means the same on every machine
    assert drawn[17, :3].tolist() == pytest.approx(PINNED, abs=1e-5)
    assert torch.equal(noise(0, 2, torch.tensor([17]), 8)[0], drawn[17])


PINNED = [0.645760, 1.409508, -0.727926]


def test_the_hash_router_knows_the_token_and_nothing_else(network):
    change = RouterChange(control="hash", seed=3)
    tokens = TOKENS.clone()
    tokens[0, 30:] = tokens[0, :10]
    _, routings = routed(network, change, tokens)
    for routing in routings:
        assert torch.equal(routing.experts[30:], routing.experts[:10])
        assert torch.allclose(routing.weights, torch.full((40, 2), 0.5), atol=1e-3)
    assert not torch.equal(routings[0].experts, routings[1].experts)


@pytest.mark.parametrize(("vocabulary", "experts"), [(320, 4), (4096, 8), (640, 64)])
def test_the_hash_table_is_even_over_the_vocabulary(vocabulary, experts):
    order = hashed(hash_table(1, 0, vocabulary, experts), torch.arange(vocabulary))
    assert order.shape == (vocabulary, experts)
    assert torch.equal(order.sort(-1).values, torch.arange(experts).expand_as(order))
    for place in range(experts):
        assert torch.bincount(order[:, place]).tolist() == [vocabulary // experts] * experts
    assert len({tuple(row) for row in order[:experts, :1].tolist()}) == experts
    odd = hashed(hash_table(1, 0, vocabulary + 1, experts), torch.tensor([vocabulary]))
    assert sorted(odd[0].tolist()) == list(range(experts))


def test_bans_hold_for_the_controls_and_stand_ins_weigh_as_much(network):
    for control in ("random", "hash"):
        change = RouterChange(control=control, banned=frozenset({(0, 0), (0, 1)}))
        _, routings = routed(network, change)
        assert routings[0].experts.sort(-1).values.tolist() == [[2, 3]] * 40
    assert torch.allclose(routings[0].weights, torch.full((40, 2), 0.5), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (RouterChange(active=0), "Between 1 and 4"),
        (RouterChange(active=5), "Between 1 and 4"),
        (RouterChange(temperature=0.0), "temperature"),
        (RouterChange(temperature=float("nan")), "temperature"),
        (RouterChange(temperature=float("inf")), "temperature"),
        (RouterChange(control="best"), "control"),
        (RouterChange(banned=frozenset({(2, 0)})), "2 layers of 4 experts"),
        (RouterChange(forced=frozenset({(0, -1)})), "2 layers of 4 experts"),
        (RouterChange(banned=frozenset({(1, 3)}), forced=frozenset({(1, 3)})), "Expert 4 of layer 2 is both"),
        (RouterChange(banned=frozenset((1, e) for e in range(4))), "Every expert of layer 2 is banned"),
        (RouterChange(banned=frozenset((0, e) for e in range(3))), r"Layer 1 has 1 expert\(s\) left, and 2 work"),
        (RouterChange(forced=frozenset((0, e) for e in range(3))), "3 experts are forced in layer 1"),
    ],
)
def test_what_cannot_be_done_is_said(change, sentence):
    with pytest.raises(UserError, match=sentence):
        steer(change, TINY)


def test_one_expert_may_do_everything():
    change = RouterChange(banned=frozenset((0, e) for e in range(3)), active=1)
    assert steer(change, TINY) is not None
