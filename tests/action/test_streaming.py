"""The streaming path says what the whole window says, chunk by chunk, and keeps nothing on what visitors share."""

import itertools

import numpy as np
import pytest
import torch

from pipelines.action.bench import OneChunk, difference, random_network
from pipelines.action.config import BRAINS, PRESETS
from pipelines.action.local import LocalAction
from pipelines.action.packed import Heads, PackedBytes, bytes_linear
from pipelines.action.streaming import FastOadTR
from pipelines.action.windows import shuffle
from tests.action.brains import lively, stream

NAMES = {brain: "tiny" if brain == "oadtr" else f"tiny-{brain}" for brain in BRAINS}


def apart(found, wanted):
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))


def whole(network, chunks):
    now, later = network(chunks[None])
    return now[0], later[0]


@pytest.fixture(scope="module")
def backend():
    return LocalAction({brain: lively(name) for brain, name in NAMES.items()})


# --- OadTR -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny-linear", "tiny-authors"])
@pytest.mark.parametrize("onednn", [None, False])
def test_streaming_equals_the_whole_window(name, onednn):
    """From the first chunk to well past the point at which the ring is written over."""
    network = lively(name)
    fast, size = FastOadTR(network, onednn), network.config.chunks
    past, chunks, seen = fast.start(), stream(name, 3 * size), []
    for k, chunk in enumerate(chunks):
        fast.push(chunk, past)
        found = fast.answer(past)
        seen.append(found[0])
        assert apart(found, whole(network, chunks[max(0, k + 1 - size) : k + 1])) < 1e-5
    assert float((torch.stack(seen).std(0)).min()) > 1e-2  # the answers do change


def test_features_of_any_size_stay_exact():
    """The first layer's norm is taken apart; large offsets would show a variance computed carelessly."""
    network = lively("tiny")
    fast, chunks = FastOadTR(network), stream("tiny", 8) * 30 + 100
    past = fast.start()
    for chunk in chunks:
        fast.push(chunk, past)
    assert apart(fast.answer(past), whole(network, chunks)) < 1e-4
    past = fast.start()
    for chunk in torch.zeros(8, 12):
        fast.push(chunk, past)
    assert apart(fast.answer(past), whole(network, torch.zeros(8, 12))) < 1e-5


@pytest.mark.parametrize("name", ["tiny", "tiny-linear"])
@pytest.mark.parametrize("most", [1, 3, 8, 50])
def test_a_cut_memory_is_a_short_window(name, most):
    network = lively(name)
    fast, chunks = FastOadTR(network), stream(name, 11)
    past = fast.start()
    for chunk in chunks:
        fast.push(chunk, past)
    assert apart(fast.answer(past, most), whole(network, chunks[-min(most, 8) :])) < 1e-5


def test_a_shuffled_memory_and_what_was_looked_at():
    network = lively("tiny")
    fast, chunks, order = FastOadTR(network), stream("tiny", 8), shuffle(8, 5)
    past = fast.start()
    for chunk in chunks:
        fast.push(chunk, past)
    record = []
    assert apart(fast.answer(past, order=order, record=record), whole(network, chunks[order])) < 1e-5
    assert apart(fast.answer(past), whole(network, chunks)) < 1e-5  # nothing stays
    assert [tuple(each.shape) for each in record] == [(4, 9)] * 2


def test_nothing_to_look_at():
    fast = FastOadTR(lively("tiny"))
    with pytest.raises(ValueError, match="no chunk"):
        fast.answer(fast.start())
    past = fast.start()
    fast.push(stream("tiny", 1)[0], past)
    with pytest.raises(ValueError, match="no chunk"):
        fast.answer(past, most=0)


@pytest.mark.parametrize(
    "fault",
    [
        lambda fast: fast._places[:, 0].add_(0.1),
        lambda fast: fast._placed[-1].add_(0.1),
        lambda fast: fast._encoding.bias.mul_(1.1),
        lambda fast: fast._shift.add_(0.1),
        lambda fast: fast._decoder[0].asked.mul_(1.1),
        lambda fast: fast._decoder[0].begin[:, 0].add_(0.1),
    ],
)
def test_a_planted_fault_is_seen(fault):
    network = lively("tiny")
    fast, chunks = FastOadTR(lively("tiny")), stream("tiny", 8)  # another with the same numbers
    past = fast.start()
    fault(fast)
    for chunk in chunks:
        fast.push(chunk, past)
    assert apart(fast.answer(past), whole(network, chunks)) > 1e-4


def test_what_is_computed_of_a_chunk_alone(monkeypatch):
    """Each chunk passes the two big projections of the first layer once, whatever the window."""
    fast, rows = FastOadTR(lively("tiny"), onednn=False), []
    true = torch.nn.functional.linear

    def counting(x, weight, bias=None):
        if weight.shape[1] == 12:  # the linear encoding's
            rows.append(x.numel() // 12)
        return true(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counting)
    past = fast.start()
    for chunk in stream("tiny", 20):
        fast.push(chunk, past)
        fast.answer(past)
    assert rows == [1] * 20
    assert fast._encoder[0].project is None and fast._decoder[0].qkv is None


def test_eight_bits_are_near(monkeypatch):
    """Not exact: within some percent of the logits, where the processor multiplies bytes; else in float32."""
    if not bytes_linear():
        pytest.skip("no products of bytes on this processor")
    network = lively("tiny-authors")
    chunks, small, plain = stream("tiny-authors", 20), FastOadTR(network, reduced=True), FastOadTR(network)
    assert small.reduced and not plain.reduced
    answers = []
    for fast in (small, plain):
        past = fast.start()
        for chunk in chunks:
            fast.push(chunk, past)
        answers.append(torch.cat((fast.answer(past)[0], fast.answer(past)[1].flatten())))
    error = float((answers[0] - answers[1]).norm() / answers[1].norm())
    assert 1e-4 < error < 0.05
    monkeypatch.setattr("pipelines.action.streaming.bytes_linear", lambda: False)
    assert not FastOadTR(network, reduced=True).reduced


def test_maps_in_eight_bits():
    if not bytes_linear():
        pytest.skip("no products of bytes on this processor")
    drawn = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(24, 64, generator=drawn), torch.randn(24, generator=drawn)
    x, other = torch.randn(5, 64, generator=drawn), torch.randn(5, 24, generator=drawn)
    one, plain = PackedBytes(weight, bias), torch.nn.functional.linear(x, weight, bias)
    for found, wanted in (
        (one(x), plain), (one.gelu(x), torch.nn.functional.gelu(plain)), (one.add(x, other), plain + other)
    ):  # fmt: skip
        assert float((found - wanted).norm() / wanted.norm()) < 0.02
    assert apart((one(x[:1]),), (plain[:1],)) < 0.4 and one(x).dtype == torch.float32
    heads = [Heads(weight.view(3, 8, 64), bias.view(3, 8), reduced) for reduced in (False, True)]
    wanted = torch.stack(
        [torch.nn.functional.linear(x, weight[8 * h : 8 * h + 8], bias[8 * h : 8 * h + 8]) for h in range(3)]
    )
    given = x.expand(3, -1, -1)
    assert apart((heads[0](given),), (wanted,)) < 1e-5
    assert float((heads[1](given) - wanted).norm() / wanted.norm()) < 0.02


def test_the_benchmark_compares_the_same_work():
    chunk = OneChunk(random_network(PRESETS["tiny-authors"]))
    before = chunk.fast.answer(chunk.past)
    assert difference(before, chunk.whole()) < 1e-5 and difference(chunk.whole(), chunk.port()) < 1e-5
    assert float(before[0].abs().max()) > 0.1
    chunk.streaming()
    assert difference(chunk.fast.answer(chunk.past), before) > 1e-4  # the stream went on


# --- every brain through the backend ---------------------------------------------------------------------------------


@pytest.mark.parametrize("brain", BRAINS)
def test_a_memory_says_what_the_whole_stream_says(backend, brain):
    chunks = stream("tiny", 30).numpy()
    now, later = backend.sequence(chunks, brain)
    memory = backend.open(brain)
    for k, chunk in enumerate(chunks):
        found = memory.push(chunk)
        assert np.abs(found.probabilities - now[k]).max() < 1e-5
        assert np.abs(found.anticipated - later[k]).max() < 1e-5
        assert found.attention is None and found.probabilities.dtype == np.float32
    assert now.std(0).min() > 1e-4


@pytest.mark.parametrize("brain", ["oadtr", "linear", "gru"])
def test_memories_that_are_cut_and_shuffled(backend, brain):
    chunks = stream("tiny", 20).numpy()
    memory = backend.open(brain, memory=3)
    for chunk in chunks:
        found = memory.push(chunk)
    assert np.abs(found.probabilities - backend.window(chunks[-3:], brain).probabilities).max() < 1e-5
    memory.memory, memory.shuffled, memory.seed = 8, True, 4  # a slider is moved in mid-stream
    found = memory.push(chunks[0])
    left = np.concatenate((chunks[-7:], chunks[:1]))[shuffle(8, 4).numpy()]
    assert np.abs(found.probabilities - backend.window(left, brain).probabilities).max() < 1e-5
    memory.memory, memory.shuffled = None, False  # and back: nothing was lost
    found = memory.push(chunks[1])
    wanted = backend.sequence(np.concatenate((chunks, chunks[:2])), brain)[0][-1]
    assert np.abs(found.probabilities - wanted).max() < 1e-5


@pytest.mark.parametrize("brain", BRAINS)
def test_two_visitors_and_a_new_beginning(backend, brain):
    chunks = stream("tiny", 12).numpy()
    one, two = backend.open(brain), backend.open(brain)
    first = [one.push(chunk).probabilities for chunk in chunks]
    for chunk in chunks[::-1]:
        two.push(chunk)
    assert np.array_equal(one.push(chunks[0]).probabilities, _after(backend, brain, [*chunks, chunks[0]]))
    one.reset()
    assert all(np.array_equal(one.push(c).probabilities, p) for c, p in zip(chunks, first, strict=True))


def _after(backend, brain, chunks):
    memory = backend.open(brain)
    return [memory.push(chunk).probabilities for chunk in chunks][-1]


def test_the_caller_may_use_its_array_again(backend):
    for brain in BRAINS:
        chunks, scratch = stream("tiny", 9).numpy(), np.zeros(12, np.float32)
        memory = backend.open(brain, memory=None if brain == "none" else 5)
        for chunk in chunks:
            scratch[:] = chunk
            found = memory.push(scratch)
        left = chunks[-1:] if brain == "none" else chunks[-5:]
        assert np.abs(found.probabilities - backend.window(left, brain).probabilities).max() < 1e-5


@pytest.mark.parametrize("brain", ["oadtr", "linear"])
def test_attention_of_the_task_token(backend, brain):
    chunks = stream("tiny", 10).numpy()
    memory = backend.open(brain, attention=True)
    for k, chunk in enumerate(chunks):
        found = memory.push(chunk).attention
        there = min(k + 1, 8)
        assert found.shape == (8,) and (found[8 - there :] > 0).all() and (found[: 8 - there] == 0).all()
        assert 0.2 < float(found.sum()) < 1.0  # the rest fell on the task token itself
    memory.memory = 3
    assert (memory.push(chunks[0]).attention > 0).tolist() == [False] * 5 + [True] * 3


def test_a_shuffled_memory_gives_attention_back_to_its_chunks(backend):
    """One chunk is loud: its share must lie at its own place, wherever it was moved to."""
    chunks = stream("tiny", 8).numpy()
    plain, moved = backend.open(attention=True), backend.open(attention=True, shuffled=True, seed=1)
    for chunk in chunks:
        plain.push(chunk)
        found = moved.push(chunk).attention
    network, order = backend.network(), shuffle(8, 1)
    fast = FastOadTR(network)
    past, record = fast.start(), []
    for chunk in chunks[order.numpy()]:
        fast.push(torch.from_numpy(chunk), past)
    fast.answer(past, record=record)
    looked = torch.stack(record).mean((0, 1))[:-1]
    assert all(found[order[k]] == pytest.approx(float(looked[k]), abs=1e-6) for k in range(8))


def test_memory_does_not_grow(backend):
    chunks = stream("tiny", 40).numpy()
    for brain in BRAINS:
        memory = backend.open(brain)
        sizes = []
        for chunk in itertools.chain(chunks, chunks):
            memory.push(chunk)
            held = (
                memory._chunks if hasattr(memory, "_chunks") else [memory._past._encodings, memory._past._projections]
            )
            sizes.append(sum(each.numel() for each in held))
        assert len(set(sizes[8:])) == 1
