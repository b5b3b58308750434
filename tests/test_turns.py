"""One run at a time for each visitor: who is halted, who has a last word, and that nobody is forgotten."""

import threading
import time

import pytest

from pipelines.ui import turns as module
from pipelines.ui.turns import Turns


def test_a_second_run_halts_the_first_of_the_same_visitor_only():
    turns = Turns()
    with turns.take("a") as first, turns.take("b") as other:
        with turns.take("a") as second:
            assert (first.halted, first.replaced) == (True, True)
            assert not second.halted and not other.halted and len(turns) == 2
        assert len(turns) == 1  # the first, which was replaced, does not come back
        turns.halt("a")
        assert not second.halted
    assert len(turns) == 0


def test_a_run_that_was_replaced_leaves_the_newer_one_its_turn():
    turns = Turns()
    first = turns.take("a")
    first.__enter__()
    with turns.take("a") as second:
        first.__exit__(None, None, None)
        assert len(turns) == 1
        turns.halt("a")
        assert second.halted


@pytest.mark.parametrize(
    ("options", "halted", "replaced"),
    [
        ({}, True, False), ({"keep": "this"}, False, False), ({"keep": "that"}, True, False),
        ({"clear": True}, True, True),
    ],
)  # fmt: skip
def test_stop(monkeypatch, options, halted, replaced):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    turns = Turns()
    with turns.take("a", "this") as turn:
        turns.halt("b", **options)
        assert not turn.halted
        turns.halt("a", **options)
        assert (turn.halted, turn.replaced) == (halted, replaced)


def test_to_clear_is_to_wait_for_the_end():
    turns, order = Turns(), []

    def run():
        with turns.take("a") as turn:
            begun.set()
            while not turn.halted:
                time.sleep(0.001)
            time.sleep(0.05)
            order.append("the last word is out")

    begun = threading.Event()
    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(5)
    turns.halt("a", clear=True)
    order.append("cleared")
    thread.join()
    assert order == ["the last word is out", "cleared"]


def test_a_run_that_fails_gives_its_turn_back():
    turns = Turns()
    with pytest.raises(ValueError, match="broken"), turns.take(None):
        raise ValueError("broken")
    assert len(turns) == 0
    turns.halt(None)
