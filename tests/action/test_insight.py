"""What the insight says of a network equals what was done to it by hand; a leak from the future is seen."""

import numpy as np
import pytest
import torch

from pipelines.action import insight
from pipelines.action.config import BRAINS
from pipelines.action.local import LocalAction
from pipelines.action.windows import shuffle
from pipelines.common.errors import UserError
from tests.action.brains import lively, stream

CHUNKS = stream("tiny", 8).numpy()


@pytest.fixture(scope="module")
def backend():
    names = {brain: "tiny" if brain == "oadtr" else f"tiny-{brain}" for brain in BRAINS}
    return LocalAction({brain: lively(name) for brain, name in names.items()})


@pytest.mark.parametrize("brain", ["oadtr", "linear"])
def test_looked(backend, brain):
    found = insight.looked(backend, CHUNKS, brain)
    assert found.task.shape == (2, 4, 9) and found.future.shape == (2, 2, 3, 9)
    assert np.abs(found.task.sum(2) - 1).max() < 1e-6 and np.abs(found.future.sum(3) - 1).max() < 1e-6
    memory = backend.open(brain, attention=True)
    for chunk in CHUNKS:
        streamed = memory.push(chunk).attention
    assert np.abs(streamed - found.chunks).max() < 1e-5
    assert insight.looked(backend, CHUNKS[:3], brain).chunks.shape == (3,)


def test_looked_follows_the_attention():
    """A first layer whose queries and keys see one number of the encoding: the task token must look at that chunk."""
    network = lively("tiny")
    first = network.encoder[0]
    first.qkv.weight.zero_()
    first.norm1.weight.fill_(1.0)
    first.norm1.bias.zero_()
    first.qkv.weight[:16, 0] = 30.0  # queries; the task token's first number is made large below
    first.qkv.weight[16:32, 1] = 30.0  # keys
    network.positions.zero_()
    network.task_token.zero_()
    network.task_token[0, 0, 0] = 3.0
    network.encoding.weight.zero_()
    network.encoding.bias.zero_()
    network.encoding.weight[1, 0] = 1.0
    chunks = np.zeros((8, 12), np.float32)
    chunks[:, 0] = -1.0
    chunks[5, 0] = 1.0
    found = insight.looked(LocalAction({"oadtr": network}), chunks)
    assert (found.task[0].argmax(1) == 5).all() and float(found.task[0, :, 5].min()) > 0.99


def test_brains_without_attention(backend):
    for brain in ("gru", "none"):
        with pytest.raises(UserError, match="no attention"):
            insight.looked(backend, CHUNKS, brain)


@pytest.mark.parametrize("brain", BRAINS)
def test_by_memory(backend, brain):
    found = insight.by_memory(backend, CHUNKS, brain)
    assert found.shape == (8, 5)
    for most in range(1, 9):
        wanted = backend.window(CHUNKS[-most:], brain).probabilities
        assert np.abs(found[most - 1] - wanted).max() < 1e-5
    spread = float(np.abs(found - found[0]).max())
    assert spread == 0.0 if brain == "none" else spread > 1e-3


@pytest.mark.parametrize("brain", BRAINS)
def test_shuffled(backend, brain):
    found = insight.shuffled(backend, CHUNKS, brain, times=3, seed=7)
    assert found.drawn.shape == (3, 5)
    assert np.abs(found.plain - backend.window(CHUNKS, brain).probabilities).max() < 1e-5
    wanted = backend.window(CHUNKS[shuffle(8, 9).numpy()], brain).probabilities
    assert np.abs(found.drawn[2] - wanted).max() < 1e-5
    assert found.moved == 0.0 if brain == "none" else 0.001 < found.moved < 1


def test_moved_by_hand():
    found = insight.Shuffled(np.array([0.5, 0.5]), np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert found.moved == 0.25


# --- causality -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("brain", BRAINS)
def test_brains_are_causal(backend, brain):
    chunks = stream("tiny", 20).numpy()
    whole = insight.causality(lambda features: backend.sequence(features, brain)[0], chunks, 12)
    assert whole.holds and whole.before == 0.0 and whole.after > 1e-3

    def streamed(features):
        memory = backend.open(brain)
        return np.stack([memory.push(chunk).probabilities for chunk in features])

    assert insight.causality(streamed, chunks, 12).holds


@pytest.mark.parametrize("at", [1, 7, 19])
def test_a_leak_from_the_future_is_seen(backend, at):
    chunks = stream("tiny", 20).numpy()

    def leaking(features):  # one chunk ahead
        return backend.sequence(np.concatenate((features[1:], features[-1:])))[0]

    def averaging(features):  # scaled by the mean of the whole stream, as a careless preparation might
        return backend.sequence(features / np.abs(features).mean())[0]

    for run in (leaking, averaging):
        found = insight.causality(run, chunks, at)
        assert not found.holds and found.before > 1e-6


def test_causality_needs_a_past_and_a_future():
    for at in (0, 5):
        with pytest.raises(ValueError, match="no past and future in a stream of 5"):
            insight.causality(lambda x: x, np.zeros((5, 2)), at)


def test_poses_with_holes_and_answers_that_break(backend):
    """Landmarks are NaN where nobody is; an answer that becomes NaN counts as changed."""
    poses = np.random.default_rng(0).random((10, 33, 4)).astype(np.float32)
    poses[2:4] = np.nan
    assert insight.causality(lambda x: np.nan_to_num(x).cumsum(0), poses, 6).holds
    broken = insight.causality(
        lambda x: np.full(10, np.nan) if x[9, 0, 0] != poses[9, 0, 0] else np.zeros(10), poses, 6
    )
    assert not broken.holds and torch.inf == broken.before
