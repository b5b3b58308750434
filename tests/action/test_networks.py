"""OadTR gives the authors' numbers; what is hidden is as if it were not there; the losses are what was computed by
hand."""

import math

import pytest
import torch

from pipelines.action import linear_attention, weights
from pipelines.action.bench_authors import AuthorsForward
from pipelines.action.config import BRAINS, CLASSES, PRESETS, GRUConfig, NoMemoryConfig, OadTRConfig, preset
from pipelines.action.losses import FUTURE_WEIGHT, cross_entropy, loss
from pipelines.action.oadtr import Record
from pipelines.action.windows import run_sequence, shuffle, windows
from tests.action.brains import authors, lively, stream


@pytest.fixture(scope="module")
def theirs():
    state, values = authors()
    network = weights.build(PRESETS["tiny-authors"]).eval().requires_grad_(False)
    weights.assign(network, state)
    return network, values


def apart(found, wanted):
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))


# --- the authors' numbers --------------------------------------------------------------------------------------------


def test_parity_with_the_authors(theirs):
    network, values = theirs
    wanted = values["logits"], values["future"]
    assert [tuple(x.shape) for x in wanted] == [(3, 7), (3, 4, 7)]
    assert float(values["logits"].abs().max()) > 1.0  # not a comparison of zeros
    features = torch.cat((values["rgb"], values["flow"]), 2)
    assert apart(network(features), wanted) < 1e-5
    assert apart(AuthorsForward(network)(values["rgb"], values["flow"]), wanted) < 1e-5
    assert apart(network(features, record=Record()), wanted) < 1e-5  # attention written out


@pytest.mark.parametrize(
    "fault",
    [
        lambda n: n.positions.__setitem__(-1, n.positions[0]),  # the task token first, as in ViT
        lambda n: setattr(n.decoder[0].self_attention, "causal", False),
        lambda n: setattr(n.encoder[0], "heads", 4),
        lambda n: n.decoder[1].norm3.weight.mul_(1.01),
        lambda n: n.queries.mul_(0.0),
    ],
)
def test_a_planted_fault_breaks_parity(fault):
    state, values = authors()
    network = weights.build(PRESETS["tiny-authors"]).eval().requires_grad_(False)
    weights.assign(network, {name: value.clone() for name, value in state.items()})
    fault(network)
    found = network(torch.cat((values["rgb"], values["flow"]), 2))
    assert apart(found, (values["logits"], values["future"])) > 1e-4


def test_sizes():
    with torch.device("meta"):
        full = weights.build(PRESETS["thumos14"])
    assert sum(p.numel() for p in full.parameters()) == 74_700_844
    count = {name: sum(p.numel() for p in weights.build(PRESETS[name]).parameters()) for name in (
        "bundled", "bundled-linear", "bundled-gru", "bundled-none"
    )}  # fmt: skip
    assert count == {
        "bundled": 704_032, "bundled-linear": 704_032, "bundled-gru": 708_208, "bundled-none": 723_088
    }  # fmt: skip
    assert len(CLASSES) == 16 and CLASSES[0] == "background"
    assert [type(preset("tiny", brain)) for brain in BRAINS] == [OadTRConfig, GRUConfig, OadTRConfig, NoMemoryConfig]


@pytest.mark.parametrize("config", [{"heads": 3}, {"decoder_heads": 5}])
def test_heads_share_the_width(config):
    with pytest.raises(ValueError, match="evenly"):
        OadTRConfig(width=16, **{"heads": 4, "decoder_heads": 4, **config})


# --- every brain -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("brain", BRAINS)
def test_batch_equals_single(brain):
    name = "tiny" if brain == "oadtr" else f"tiny-{brain}"
    network, chunks = lively(name), stream(name, 24).view(3, 8, -1)
    now, later = network(chunks)
    assert now.shape == (3, 5) and later.shape == (3, 3, 5)
    for k in range(3):
        assert apart(network(chunks[k : k + 1]), (now[k : k + 1], later[k : k + 1])) < 1e-6


@pytest.mark.parametrize("name", ["tiny", "tiny-linear", "tiny-gru"])
def test_hidden_chunks_are_as_if_not_there(name):
    network, chunks = lively(name), stream(name, 8)[None]
    for there in (1, 3, 7):
        hidden = torch.arange(8)[None] < 8 - there
        short = network(chunks[:, 8 - there :])
        assert apart(network(chunks, hidden), short) < 1e-6
        loud = torch.where(hidden[..., None], 100.0, chunks)
        assert apart(network(loud, hidden), short) < 1e-6
        assert apart(network(chunks), short) > 1e-3  # the memory counts


@pytest.mark.parametrize("name", ["tiny", "tiny-linear"])
def test_every_part_of_the_window_has_its_place(name):
    network, chunks = lively(name), stream(name, 8)[None]
    assert apart(network(chunks[:, shuffle(8, 0)]), network(chunks)) > 1e-3
    record = Record()
    network(chunks, record=record)
    assert [tuple(w.shape) for w in record.encoder] == [(1, 4, 9, 9)] * 2
    assert [tuple(w.shape) for w in record.cross] == [(1, 2, 3, 9)] * 2
    for w in record.encoder + record.cross:
        assert (w >= 0).all() and float((w.sum(-1) - 1).abs().max()) < 1e-6


def test_windows_outside_the_network_are_refused():
    with pytest.raises(ValueError, match="9 chunks, where 1 to 8 fit"):
        lively("tiny")(stream("tiny", 9)[None])
    with pytest.raises(ValueError, match="0 chunks"):
        lively("tiny")(stream("tiny", 0)[None])


def test_the_mean_of_the_queries_and_the_task_token_both_tell_the_present():
    network, chunks = lively("tiny"), stream("tiny", 8)[None]
    now, later = network(chunks)
    for half in (slice(0, 16), slice(16, 32)):
        other = lively("tiny")
        other.head.weight[:, half] = 0
        found = other(chunks)
        assert apart(found[:1], (now,)) > 1e-2 and apart(found[1:], (later,)) == 0.0


def test_future_queries_see_none_after_them():
    network, chunks = lively("tiny"), stream("tiny", 8)[None]
    before = network(chunks)[1]
    network.queries[0, 2] += 1.0
    after = network(chunks)[1]
    assert apart((after[:, :2],), (before[:, :2],)) == 0.0 and apart((after[:, 2],), (before[:, 2],)) > 1e-3


def test_whole_streams_at_once():
    for name in ("tiny", "tiny-linear", "tiny-gru", "tiny-none"):
        network, chunks = lively(name), stream(name, 13)
        now, later = run_sequence(network, chunks, batch=5)
        assert now.shape == (13, 5) and later.shape == (13, 3, 5)
        for k in (0, 4, 12):
            seen = chunks[: k + 1] if name == "tiny-gru" else chunks[max(0, k + 1 - network.config.chunks) : k + 1]
            assert apart(network(seen[None]), (now[k : k + 1], later[k : k + 1])) < 1e-6
        assert [tuple(x.shape) for x in run_sequence(network, chunks[:0])] == [(0, 5), (0, 3, 5)]


def test_windows_by_hand():
    seen, before = windows(torch.tensor([[1.0], [2.0], [3.0]]), 2)
    assert seen[..., 0].tolist() == [[0, 1], [1, 2], [2, 3]]
    assert before.tolist() == [[True, False], [False, False], [False, False]]


def test_shuffle_keeps_the_newest():
    assert shuffle(1, 0).tolist() == [0]
    order = shuffle(32, 3)
    assert sorted(order.tolist()) == list(range(32)) and order[-1] == 31 and order.tolist() != list(range(32))
    assert order.tolist() == shuffle(32, 3).tolist() != shuffle(32, 4).tolist()


# --- linear attention ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["softmax", "linear"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_its_weights(kind, causal, masked):
    drawn = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 6, 4, generator=drawn) for _ in range(3))
    hidden = torch.tensor([[True, False, False, False, False, False], [False] * 6]) if masked else None
    if causal and masked:
        hidden = hidden & (torch.arange(6) > 0)  # the first token must see itself
    w = linear_attention.weights(kind, q, k, hidden, causal)
    assert apart((linear_attention.attend(kind)(q, k, v, hidden, causal, 0.0),), (w @ v,)) < 1e-6
    assert float((w.sum(-1) - 1).abs().max()) < 1e-6
    if causal:
        assert float(w.triu(1).abs().max()) == 0.0
    if masked and not causal:
        assert float(w[0, :, :, 0].abs().max()) == 0.0 < float(w[1, :, :, 0].min())


@pytest.mark.parametrize("kind", ["softmax", "linear"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_drops_out_in_training(kind, causal):
    q, k, v = torch.randn(3, 1, 1, 50, 4, generator=torch.Generator().manual_seed(0))
    plain, other = (linear_attention.attend(kind)(q, k, v, None, causal, rate) for rate in (0.0, 0.5))
    assert apart((plain,), (other,)) > 1e-2


def test_linear_weights_by_hand():
    q, k = torch.tensor([[[[1.0]]]]), torch.tensor([[[[0.0], [-1.0]]]])
    # elu + 1: 2 for 1, 1 for 0, 1/e for -1.
    assert linear_attention.weights("linear", q, k).flatten().tolist() == pytest.approx(
        [1 / (1 + math.exp(-1)), math.exp(-1) / (1 + math.exp(-1))]
    )


# --- losses ----------------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    assert float(cross_entropy(logits, torch.tensor([0, 1]))) == pytest.approx((math.log(2) - math.log(0.8)) / 2)
    assert float(cross_entropy(logits, torch.tensor([0, -1]))) == pytest.approx(math.log(2))
    assert float(cross_entropy(logits, torch.tensor([-1, -1]))) == 0.0
    # Two classes at once count both, as in the authors' targets.
    both = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert float(cross_entropy(logits, both)) == pytest.approx(math.log(2) + math.log(4))


def test_the_ambiguous_class_takes_no_part():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    marked = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert float(cross_entropy(logits, marked, ambiguous=2)) == pytest.approx(-math.log(0.5 / 0.75))
    assert float(cross_entropy(logits, torch.tensor([2, 2]), ambiguous=2)) == 0.0


def test_smoothing_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    wanted = -(0.8 * math.log(0.5) + 0.1 * math.log(0.25) * 2)
    smooth = 0.3  # each class gets 0.1, the right one 0.7 besides
    assert float(cross_entropy(logits, torch.tensor([0]), smoothing=smooth)) == pytest.approx(wanted)


def test_the_future_counts_half():
    now, later = torch.randn(2, 5), torch.randn(2, 3, 5)
    current, future = torch.tensor([1, 4]), torch.tensor([[0, 1, 2], [3, 4, -1]])
    found = loss((now, later), current, future)
    assert FUTURE_WEIGHT == 0.5
    assert float(found.current) == pytest.approx(float(torch.nn.functional.cross_entropy(now, current)), rel=1e-6)
    wanted = torch.nn.functional.cross_entropy(later.flatten(0, 1), future.flatten(), ignore_index=-1)
    assert float(found.future) == pytest.approx(float(wanted), rel=1e-6)
    assert float(found.total) == pytest.approx(float(found.current) + 0.5 * float(found.future), rel=1e-6)


@pytest.mark.parametrize("brain", BRAINS)
def test_every_parameter_learns(brain):
    network = lively("tiny" if brain == "oadtr" else f"tiny-{brain}").requires_grad_(True)
    now, later = network(stream("tiny", 16).view(2, 8, -1))
    loss((now, later), torch.tensor([1, 2]), torch.tensor([[0, 1, 2], [3, 4, 0]])).total.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
