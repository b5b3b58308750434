"""The One Euro filter held to hand-computed steps, and what it is for: rest without trembling, speed without lag."""

import math

import numpy as np
import pytest

from pipelines.action.pose_smoothing import Mean, OneEuro, Steady


def test_two_steps_by_hand():
    keep = OneEuro(least=0.5, rise=2.0, speed=1.0)
    assert keep(np.array([10.0]), 4.0, 1.0) == pytest.approx([10.0])
    # 0.1 s later, 2 further: 2 / 4 sizes in 0.1 s are 5 a second.
    share = 1 / (1 + 1 / (2 * math.pi * 1.0 * 0.1))
    velocity = share * 5.0
    cutoff = 0.5 + 2.0 * velocity
    value = 10.0 + 2.0 / (1 + 1 / (2 * math.pi * cutoff * 0.1))
    assert keep(np.array([12.0]), 4.0, 1.1) == pytest.approx([value])
    # 0.2 s later it stands still: the speed is 0, what is left of the old one counts.
    velocity += (0.0 - velocity) / (1 + 1 / (2 * math.pi * 0.2))
    value += (12.0 - value) / (1 + 1 / (2 * math.pi * (0.5 + 2.0 * velocity) * 0.2))
    assert keep(np.array([12.0]), 4.0, 1.3) == pytest.approx([value])


def test_each_number_is_filtered_by_itself():
    together, alone = OneEuro(0.05, 80.0), OneEuro(0.05, 80.0)
    for k in range(10):
        values = np.array([[100.0 + 5 * k, 50.0], [7.0, -3.0 * k]])
        both = together(values, 60.0, k / 30)
        one = alone(values[1, 1:], 60.0, k / 30)
    assert both[1, 1] == pytest.approx(one[0]) and both[0, 1] == 50.0


def test_trembling_is_taken_away_and_movement_is_not():
    rng, steady = np.random.default_rng(0), Steady()
    still = np.array([steady.points(200 + rng.normal(0, 0.5, 1), 100.0, k / 30)[0] for k in range(300)])
    assert still[100:].std() < 0.35 and np.abs(still[100:].mean() - 200) < 0.1
    steady = Steady()
    moving = np.array([steady.points(np.array([10.0 * k]), 100.0, k / 30)[0] for k in range(60)])
    assert np.abs(moving[30:] - 10.0 * np.arange(30, 60)).max() < 1.0  # a tenth of one frame's way behind
    steady = Steady()
    anchors = np.array([steady.anchors(np.array([10.0 * k]), 100.0, k / 30)[0] for k in range(60)])
    assert np.abs(anchors[30:] - 10.0 * np.arange(30, 60)).min() > 1.0  # the crop is steadier


def test_visibility_is_a_slow_mean():
    mean = Mean(0.1)
    assert mean(np.array([1.0])) == pytest.approx([1.0])
    assert mean(np.array([0.0])) == pytest.approx([0.9])
    assert mean(np.array([0.0])) == pytest.approx([0.81])
