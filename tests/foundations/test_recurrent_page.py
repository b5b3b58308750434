"""The Recurrence page: equal sizes, gradients by finite differences, and what it shows and refuses."""

import re
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch

from pipelines.common.errors import UserError
from pipelines.foundations import recurrence_page, recurrence_training, tasks
from pipelines.foundations.transformer import Transformer
from tests.stubs import no_progress

EN = SimpleNamespace(headers={}, session_hash="someone")


def test_the_networks_are_of_equal_size():
    sizes = [
        recurrence_training.parameters(recurrence_training.Reader(kind, recurrence_training.equal_width(kind)))
        for kind in recurrence_page.KINDS
    ]
    assert max(sizes) <= 24_000 and min(sizes) > 0.8 * max(sizes), sizes


@pytest.mark.parametrize("kind", ["rnn", "transformer", "encdec"])
def test_the_gradient_over_distance_by_differences(kind):
    torch.manual_seed(0)
    network = recurrence_training.Reader(kind, 8).double()
    batch = tasks.draw("copy", 3, 1, np.random.default_rng(0))
    found = recurrence_training.gradients(network, batch)
    assert found.shape == (6,) and (found > 0).all()
    x = network.embed(torch.from_numpy(batch.inputs), 3).detach()
    wanted = int(batch.answer[0, -1])

    def loss(given):
        return -network.read(given, 3)[0, -1].log_softmax(-1)[wanted].item()

    for back in (0, 4):
        slope = []
        for feature in range(8):
            nudge = torch.zeros_like(x)
            nudge[0, 5 - back, feature] = 1e-6
            slope.append((loss(x + nudge) - loss(x - nudge)) / 2e-6)
        assert found[back] == pytest.approx(np.linalg.norm(slope), rel=1e-4)


def test_the_encoder_decoder_reads_what_the_others_read():
    """The whole of Vaswani et al. with the same weights: the source is the task but for its last symbol, with which the
    target begins; a symbol of the answer is said from what is before it."""
    torch.manual_seed(0)
    network = recurrence_training.Reader("encdec", 8).double()
    batch = tasks.draw("recall", 3, 2, np.random.default_rng(0))
    whole = Transformer(tasks.TOKENS, 8, recurrence_training.HEADS, 32, 1, norm_first=True).double()
    whole.encoder.load_state_dict(network.encoder.state_dict())
    whole.decoder.load_state_dict(network.body.state_dict())
    whole.embedding.weight.data = network.embedding.weight.data / 8**0.5
    source, target = (torch.from_numpy(part) for part in (batch.given[:, :-1], batch.given[:, -1:]))
    expected = network.head(whole.decoder(whole.embed(target), whole.encode(source)))
    torch.testing.assert_close(network(torch.from_numpy(batch.inputs), 1), expected)
    copied = torch.from_numpy(tasks.draw("copy", 4, 1, np.random.default_rng(0)).inputs)
    other = copied.clone()
    other[0, -2] = (other[0, -2] + 1) % tasks.VALUES
    changed = (network(copied, 4) != network(other, 4)).any(-1)[0]
    assert changed.tolist() == [False, False, True, True]


def test_it_learns_while_it_shows():
    shown = list(recurrence_page.run("copy", 2, ["gru", "transformer", "encdec"], 120, 0, EN, no_progress))
    assert len(shown) == 7  # after step 1, and every 20
    last_chart, last_table = shown[-1]
    assert "Norm of the gradient" in last_chart and "Norm of the gradient" not in shown[0][0]
    rows = re.findall(r'<tr data-kind="(\w+)">(.*?)</tr>', last_table)
    assert [kind for kind, _ in rows] == ["gru", "transformer", "encdec"]
    cells = [re.findall(r"<td>(.*?)</td>", row) for _, row in rows]
    assert cells[0][2] == "4" and cells[1][2] == cells[2][2] == "2"  # four symbols read one by one; two layers
    assert max(float(row[3].rstrip("%")) for row in cells) > 40  # a guess is right in 12 %


def test_a_network_begins_as_its_seed_says_whoever_is_beside_it():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    alone, beside = (
        [each.losses[0] for each in next(recurrence_training.train(kinds, "copy", 3, 1, seed=7)) if each.kind == "gru"]
        for kinds in (["gru"], ["rnn", "transformer", "gru"])
    )
    assert alone == beside and (torch.get_rng_state() == before).all()
    (other,) = next(recurrence_training.train(["gru"], "copy", 3, 1, seed=8))
    assert other.losses[0] != alone[0]
    *_, (_, table) = recurrence_page.run("copy", 2, ["gru", "rnn", "gru"], 1, 0, EN, no_progress)
    assert re.findall(r'data-kind="(\w+)"', table) == ["rnn", "gru"]


def test_stop_ends_a_training():
    training = recurrence_page.run("sort", 3, ["rnn"], 2_000, 0, EN, no_progress)
    next(training)
    recurrence_page.halt(EN)
    assert len(list(training)) == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": "sing"}, "Choose a task"), ({"kinds": []}, "Choose a task"), ({"kinds": ["bert"]}, "Choose a task"),
        ({"length": 0}, "between 1 and 40"), ({"length": None}, "between 1 and 40"),
        ({"task": "recall", "length": 9}, "between 1 and 8"), ({"steps": 0}, "steps can be trained"),
        ({"steps": 10**6}, "steps can be trained"), ({"seed": -1}, "seed"), ({"seed": None}, "seed"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_said(changes, sentence):
    usual = {"task": "copy", "length": 3, "kinds": ["rnn"], "steps": 20, "seed": 0} | changes
    with pytest.raises(UserError, match=sentence):
        list(recurrence_page.run(*usual.values(), EN, no_progress))


def test_the_example_is_trained_once(monkeypatch):
    monkeypatch.setattr(recurrence_page, "FIRST", 20)
    *_, last = recurrence_page.first(False, "recall", 2, ["rnn"], 0, EN)
    assert last[0] is True and last[1].count("<svg viewBox") == 2
    assert list(recurrence_page.first(True, "recall", 2, ["rnn"], 0, EN)) == [(gr.skip(),) * 3]
