"""Scores against cases that can be counted by hand, and hysteresis."""

import numpy as np
import pytest

from pipelines.action.config import CLASSES
from pipelines.action.hysteresis import Hysteresis, actions
from pipelines.action.score import events, false_actions, score_films, score_streams

WAVE, CLAP = CLASSES.index("wave"), CLASSES.index("clap")


def sure(labels, confidence: float = 0.9) -> np.ndarray:
    """Probabilities of somebody who says `labels` and is sure of it."""
    labels = np.asarray(labels)
    rest = (1 - confidence) / (len(CLASSES) - 1)
    return np.where(labels[..., None] == np.arange(len(CLASSES)), confidence, rest).astype(np.float32)


def test_events_are_runs():
    assert events(np.array([0, 3, 3, 4, 0, 0, 4])) == [(1, 3, 3), (3, 4, 4), (6, 7, 4)]


def test_a_perfect_answer_scores_one():
    labels = np.zeros((2, 60), int)
    labels[0, 10:20], labels[1, 30:45] = WAVE, CLAP
    score = score_streams(sure(labels), labels)
    assert score.mean == 1.0 and score.precision["wave"] == 1.0
    assert (score.recall, score.false, score.calm, score.delay) == (1.0, 0.0, 0.0, 0.0)
    assert np.isnan(score.precision["squat"])  # never asked for, and not in the mean


def test_late_missed_and_false_answers_are_counted():
    labels = np.zeros((1, 100), int)
    labels[0, 10:20] = labels[0, 40:50] = WAVE
    called = np.zeros((1, 100), int)
    called[0, 14:20] = WAVE  # 0.4 s late
    called[0, 40:50] = CLAP  # missed: another action
    called[0, 70:74] = CLAP  # four of eighty background chunks, all far from any action
    score = score_streams(sure(called), labels)
    assert score.recall == 0.5
    assert score.false == pytest.approx(4 / 80)
    assert score.calm == pytest.approx(4 / 60)
    assert score.delay == pytest.approx(0.4)


def test_an_answer_just_after_the_end_still_counts_but_not_later():
    labels = np.zeros((1, 40), int)
    labels[0, 10:20] = WAVE
    for at, recall in ((22, 1.0), (23, 0.0)):
        called = np.zeros((1, 40), int)
        called[0, at] = WAVE
        assert score_streams(sure(called), labels).recall == recall


def test_films_count_by_their_surest_chunk_and_by_their_mean():
    quiet, loud = sure(np.zeros(5, int)), sure(np.zeros(5, int))
    loud[2] = sure(np.array(WAVE))
    steady = quiet.copy()
    steady[:, WAVE] = 0.5
    clips, labels = [loud, steady, quiet], [0, WAVE, 0]
    score = score_films(clips, labels, ("wave",))
    assert score.surest["wave"] == 0.5  # the loud clip comes first
    assert score.mean["wave"] == 1.0
    # By chunks: one false chunk above five equal true ones.
    assert score.chunks["wave"] == pytest.approx(5 / 6)


def test_false_actions_a_minute():
    called = np.zeros((2, 600), int)
    called[0, 5:9] = WAVE
    called[0, 9:12] = CLAP  # another one, without a gap
    called[1, 0] = WAVE
    assert false_actions(called) == pytest.approx(1.5)


def test_hysteresis_begins_high_and_ends_low():
    row = np.full((8, len(CLASSES)), 0.01)
    row[:, WAVE] = (0.5, 0.6, 0.5, 0.37, 0.35, 0.5, 0.59, 0.61)
    np.testing.assert_array_equal(actions(row, 0.6, 0.36), [0, WAVE, WAVE, WAVE, 0, 0, 0, WAVE])
    state = Hysteresis(0.6)
    assert state.release == pytest.approx(0.36)
    assert [state.step(each) for each in row] == [0, WAVE, WAVE, WAVE, 0, 0, 0, WAVE]


def test_a_likelier_action_takes_over():
    row = np.full((3, len(CLASSES)), 0.01)
    row[:, WAVE], row[:, CLAP] = (0.7, 0.45, 0.3), (0.1, 0.5, 0.65)
    np.testing.assert_array_equal(actions(row, 0.6, 0.36), [WAVE, WAVE, CLAP])


def test_streams_are_independent():
    both = np.stack([sure(np.full(4, WAVE)), sure(np.zeros(4, int))])
    np.testing.assert_array_equal(actions(both, 0.6), [[WAVE] * 4, [0] * 4])
