"""The handlers of the page Swap, called as gradio calls them, with stubs in place of networks."""

import itertools
import re
from types import SimpleNamespace

import pytest
import torch

from pipelines.common.errors import UserError
from pipelines.moe import swap_page
from tests.moe.test_pages import view_text
from tests.stubs import no_progress, visitor

EN = visitor("en")


class Chooser:
    """A network of 6 words that finds `words[n]` likeliest after n new tokens; 5 ends a text. extra: on each logit of
    word 0."""

    device, vocabulary = "cpu", 6

    def __init__(self, words, extra=0.0):
        self.words, self.extra = words, extra
        self.config = SimpleNamespace(context=64)
        self.tokenizer = SimpleNamespace(
            begin=(0,), ends=frozenset({5}), encode=lambda text: [1] * len(text.split()),
            decode=lambda ids: "".join(f" {i}" for i in ids),
        )  # fmt: skip

    def open(self, room):
        places = itertools.count()

        def feed(tokens):
            logits = torch.zeros(6)
            logits[self.words[min(next(places), len(self.words) - 1)]] = 2.0
            logits[0] += self.extra
            return logits

        return SimpleNamespace(feed=feed)


def swapped(monkeypatch, ours, theirs, prompt="a b", new=4, request=EN):
    models = {"local": ours, "reference": theirs}
    monkeypatch.setattr(swap_page, "entry", lambda weights: weights)
    monkeypatch.setattr(swap_page, "load", lambda entry, backend: models[backend])
    return list(swap_page.swap(prompt, "stories", new, request, no_progress))[-1]


def test_the_same_text_and_the_largest_difference(monkeypatch):
    ours, theirs, table = swapped(monkeypatch, Chooser([2, 3, 4, 1]), Chooser([2, 3, 4, 1], 0.25))
    assert view_text(ours) == view_text(theirs) == "a b 2 3 4 1"
    assert "all 4 tokens" in table and "2.50e-01" in table and "Tokens a second" in table


def test_texts_that_part_say_where(monkeypatch):
    ours, theirs, table = swapped(monkeypatch, Chooser([2, 3, 4, 1]), Chooser([2, 3, 1, 1]))
    assert view_text(ours) == "a b 2 3 4 1" and view_text(theirs) == "a b 2 3 1 1"
    assert "part after 2 tokens: the two likeliest were 2.0e+00" in table


def test_a_text_may_end_early_in_both_or_in_one(monkeypatch):
    *_, table = swapped(monkeypatch, Chooser([2, 5]), Chooser([2, 5]))
    assert "all 1 tokens" in table
    *_, table = swapped(monkeypatch, Chooser([2, 5]), Chooser([2, 3]))
    assert "part after 1 tokens" in table
    *_, told = swapped(monkeypatch, Chooser([5]), Chooser([5]))
    assert "ends the text at once" in told


def test_what_follows_the_last_token_is_no_parting(monkeypatch):
    *_, table = swapped(monkeypatch, Chooser([2, 3, 4, 1, 1]), Chooser([2, 3, 4, 1, 3]))
    assert "all 4 tokens" in table and "5 tokens" in table


def test_bad_swaps_get_a_sentence(monkeypatch):
    for changes, words in (
        ({"new": 0}, "between 1 and"), ({"new": 10_000}, "between 1 and"), ({"new": None}, "between 1 and"),
        ({"prompt": "a " * 100}, "shorten it"), ({"prompt": "\ud83d"}, "surrogate"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            swapped(monkeypatch, Chooser([2]), Chooser([2]), **changes)
    assert len(swap_page.turns) == 0


def test_swap_of_a_tiny_network(tiny_catalogue):
    pytest.importorskip("transformers")
    *_, (ours, theirs, table) = swap_page.swap("The dog", "stories", 12, EN, no_progress)
    assert view_text(ours) == view_text(theirs) and "The same text in both" in table
    gap = float(re.search(r"(\d\.\d\de-\d\d)", table)[1])
    assert gap < 1e-4


def test_swap_stops(monkeypatch):
    models = {"local": Chooser([2]), "reference": Chooser([2])}
    monkeypatch.setattr(swap_page, "entry", lambda weights: weights)
    monkeypatch.setattr(swap_page, "load", lambda entry, backend: models[backend])
    steps = swap_page.swap("a", "stories", 50, EN, no_progress)
    next(steps)
    swap_page.halt(EN)
    *_, last = steps
    assert "Stopped." in last[2] and len(swap_page.turns) == 0
