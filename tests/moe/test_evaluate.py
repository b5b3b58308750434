"""Copying is counted in words, by hand."""

import numpy as np

from pipelines.moe.evaluate import copied
from pipelines.moe.train_data import held_out


def test_runs_of_words_by_hand():
    sources = ["a b c d e f", "x y z"]
    found = copied(["a b c d q", "d e f x y z", "q q"], sources, runs=(3, 4))
    # of 13 words, runs of 3: a b c d, then d e f and x y z; runs of 4: a b c d
    assert found.share == {3: 10 / 13, 4: 4 / 13}
    assert found.longest == [4, 6, 0]


def test_a_run_does_not_cross_from_source_to_source():
    assert copied(["b c d"], ["a b", "c d"], runs=(3,)).share == {3: 0.0}
    assert copied(["b c d"], ["a b c d"], runs=(3,)).share == {3: 1.0}


def test_a_fiftieth_is_kept_out_whatever_stands_around():
    kept = np.array([held_out(f"story {k}") for k in range(5000)])
    assert 60 <= kept.sum() <= 140 and kept.tolist() == [held_out(f"story {k}") for k in range(5000)]
