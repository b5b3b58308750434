"""A library that was silenced is as loud as before afterwards, also where loading failed."""

import logging

import pytest

from pipelines.common.quiet import quiet


class Library:
    """What transformers and diffusers have in common as `utils.logging`."""

    def __init__(self, verbosity):
        self.verbosity, self.bars = verbosity, True

    def get_verbosity(self):
        return self.verbosity

    def set_verbosity(self, verbosity):
        self.verbosity = verbosity

    def disable_progress_bar(self):
        self.bars = False

    def enable_progress_bar(self):
        self.bars = True


def test_two_libraries_are_silenced_for_a_while():
    first, second = Library(logging.INFO), Library(logging.WARNING)
    with pytest.raises(ValueError, match="broken"), quiet(first, second):
        assert not first.bars and not second.bars and first.verbosity == second.verbosity == logging.ERROR
        raise ValueError("broken")
    assert first.bars and second.bars and (first.verbosity, second.verbosity) == (logging.INFO, logging.WARNING)
