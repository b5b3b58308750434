"""Recurrent networks and the Transformer against torch's own with the same weights; the tasks against their rules."""

import math

import numpy as np
import pytest
import torch

from pipelines.foundations import tasks
from pipelines.foundations.recurrent import KINDS, Recurrent
from pipelines.foundations.transformer import Encoder, Transformer, places

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_recurrent_layer_is_torchs(kind):
    torch.manual_seed(0)
    ours = Recurrent(kind, 5, 7).double()
    library = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](5, 7, batch_first=True).double()
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    with torch.no_grad():
        for name, value in zip(names, ours.parameters(), strict=True):
            value.add_(torch.randn_like(value) * 0.5)
            getattr(library, name).copy_(value)
    x, start = drawn(3, 11, 5), tuple(drawn(3, 7, seed=k) for k in range(2 if kind == "lstm" else 1))
    given = tuple(each[None] for each in start)
    expected, last = library(x, given if kind == "lstm" else given[0])
    found, state = ours(x, start)
    torch.testing.assert_close(found, expected, **CLOSE)
    for mine, theirs in zip(state, last if kind == "lstm" else (last,), strict=True):
        torch.testing.assert_close(mine, theirs[0], **CLOSE)
    for t in range(11):
        start = ours.step(x[:, t], start)
        torch.testing.assert_close(start[0], found[:, t], **CLOSE)


def test_an_lstm_begins_by_remembering():
    lstm = Recurrent("lstm", 2, 3)
    assert lstm.bias_input[3:6].tolist() == [1, 1, 1] and float(lstm.bias_input.detach().sum()) == 3
    assert [each.shape for each in lstm.start(4)] == [(4, 3)] * 2
    with pytest.raises(ValueError, match="kinds are"):
        Recurrent("mamba", 2, 3)


def put(layer, theirs, cross=None):
    """Our layer's weights into torch's."""
    pairs = [(layer.attention, theirs.self_attn), *([(layer.cross, cross)] if cross is not None else [])]
    with torch.no_grad():
        for mine, other in pairs:
            parts = (mine.query, mine.key, mine.value)
            other.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
            other.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
            other.out_proj.load_state_dict(mine.outward.state_dict())
        theirs.linear1.load_state_dict(layer.forward_layer.inward.state_dict())
        theirs.linear2.load_state_dict(layer.forward_layer.outward.state_dict())
        for number, norm in enumerate(layer.norms, 1):
            getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())


def shake(module):
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(7)).to(value) * 0.2)


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_transformer_is_torchs(norm_first):
    torch.manual_seed(0)
    ours = Transformer(13, 12, 3, 20, 2, norm_first).double().eval()
    shake(ours)
    options = {"batch_first": True, "norm_first": norm_first, "dropout": 0.0}
    encoder = [torch.nn.TransformerEncoderLayer(12, 3, 20, **options).double().eval() for _ in range(2)]
    decoder = [torch.nn.TransformerDecoderLayer(12, 3, 20, **options).double().eval() for _ in range(2)]
    for mine, theirs in zip(ours.encoder.layers, encoder, strict=True):
        put(mine, theirs)
    for mine, theirs in zip(ours.decoder.layers, decoder, strict=True):
        put(mine, theirs, theirs.multihead_attn)
    source, target = torch.randint(0, 13, (2, 9)), torch.randint(0, 13, (2, 6))
    memory, x = ours.embed(source), ours.embed(target)
    for layer in encoder:
        memory = layer(memory)
    memory = ours.encoder.norm(memory)
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    for layer in decoder:
        x = layer(x, memory, tgt_mask=future)
    expected = ours.decoder.norm(x) @ ours.embedding.weight.T
    torch.testing.assert_close(ours(source, target), expected, **CLOSE)
    said = ours.greedy(source, 3, 4)
    assert said.shape == (2, 4)
    again = ours(source, torch.cat([torch.full((2, 1), 3), said], dim=1)).argmax(-1)
    assert (again[:, :4] == said).all()


def test_places_by_the_formula():
    found = places(30, 8)
    assert found.shape == (30, 8)
    assert float(found[17, 4]) == pytest.approx(math.sin(17 / 10_000 ** (4 / 8)), abs=1e-5)
    assert float(found[17, 5]) == pytest.approx(math.cos(17 / 10_000 ** (4 / 8)), abs=1e-5)


def test_a_causal_encoder_hears_no_step_to_come():
    torch.manual_seed(0)
    encoder = Encoder(8, 2, 16, 2).double()
    x = drawn(1, 7, 8)
    other = x.clone()
    other[0, 4] += 1
    with torch.no_grad():
        for causal in (True, False):
            changed = (encoder(x, causal) != encoder(other, causal)).any(-1)[0]
            assert changed.tolist() == [not causal] * 4 + [True] * 3
    with pytest.raises(ValueError, match="heads"):
        Encoder(8, 3, 16, 1)


def test_the_tasks_are_what_they_say():
    rng = np.random.default_rng(0)
    copy = tasks.draw("copy", 20, 300, rng)
    assert (copy.answer == copy.given[:, :-1]).all() and (copy.given[:, -1] == tasks.MARK).all()
    assert copy.inputs.shape == (300, 40) and set(np.unique(copy.answer)) == set(range(8))
    assert np.bincount(copy.answer.ravel()).min() > 600  # 750 each
    order = tasks.draw("sort", 9, 50, rng)
    assert (np.diff(order.answer) >= 0).all()
    assert (np.sort(order.given[:, :-1], axis=1) == order.answer).all()
    recall = tasks.draw("recall", 6, 200, rng)
    assert recall.given.shape == (200, 14) and recall.answer.shape == (200, 1)
    for given, answer in zip(recall.given, recall.answer[:, 0], strict=True):
        keys, values = given[0:12:2].tolist(), given[1:12:2]
        assert len(set(keys)) == 6 and min(keys) >= tasks.KEYS and given[12] == tasks.MARK
        assert values[keys.index(given[13])] == answer
    assert recall.given.max() < tasks.TOKENS
    for task, length in (("copy", 0), ("recall", 9), ("reverse", 3)):
        with pytest.raises(ValueError, match="no task"):
            tasks.draw(task, length, 1, rng)


def test_what_must_wait_for_what():
    assert tasks.steps_in_a_row("transformer", 500) == tasks.steps_in_a_row("encdec", 500) == 2
    assert tasks.steps_in_a_row("lstm", 500) == 500 and tasks.steps_in_a_row("rnn", 1) == 1
