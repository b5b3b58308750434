"""The page Swap: both implementations in lock-step, over stubs; and what it tells of them."""

import re

import gradio as gr
import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.diffusion import DiffusionRequest, swap_page, view
from tests.diffusion.test_pages import EN, ZH, text, values
from tests.stubs import StubDiffusion, no_progress


class Other(StubDiffusion):
    """A library whose pictures are brighter by `gap` levels, and whose calls are written into the same book."""

    def __init__(self, book, name, gap=0):
        super().__init__()
        self.book, self.name, self.gap = book, name, gap

    def denoise(self, *args, **options):
        self.book.append(self.name)
        return super().denoise(*args, **options)

    def decode(self, latents):
        image = super().decode(latents)
        return (image.astype(int) + self.gap).clip(0, 255).astype(np.uint8)


@pytest.fixture
def sides(stubs, monkeypatch):
    """sides(gap) -> the book of calls, "ours" and "theirs" in order."""
    monkeypatch.setattr(swap_page, "EVERY", 0.0)

    def use(gap=0):
        book = []
        stubs(Other(book, "ours"), Other(book, "theirs", gap))
        return book

    return use


def swap(rounds=2, prompt="blue", request=EN, **changes):
    return list(swap_page.swap(prompt, "auto", rounds, *values(**changes), request, no_progress))


def test_the_same_networks_draw_the_same(sides):
    sides()
    shown = swap(guidance=1)
    told = shown[-1][2]
    assert "The same picture, bit for bit." in told and "gh-yes" in told and "0.0e+00" in told
    assert "Medians of 2 round(s)" in told and told.count("<tr>") == 5
    assert shown[-1][0] == shown[-1][1] and "<img" in shown[-1][0]
    assert "Warming both up" in shown[0][2]
    assert any("Round 2 of 2, call 3 of 4" in step[2] for step in shown)


def test_a_planted_difference_is_told(sides):
    sides(gap=-3)
    told = swap(guidance=1)[-1][2]
    assert "Largest difference of a pixel: 3 of 255 levels; 100.00% of the pixels differ at all." in told
    assert "gh-no" in told


def test_both_take_turns_call_by_call(sides):
    book = sides()
    swap(rounds=2, count=4)
    warm, first, second = book[:4], book[4:12], book[12:]
    for each, count in ((warm, 4), (first, 8), (second, 8)):
        assert len(each) == count
        assert {tuple(sorted(each[n : n + 2])) for n in range(0, count, 2)} == {("ours", "theirs")}
    begin = [pair[0] for pair in (first, second)]
    assert sorted(begin) == ["ours", "theirs"]  # who is first changes from round to round
    assert first[::2][:2] == first[::2][2:] != [first[0]] * 2  # and from call to call


def test_the_precision_is_ours_alone(sides, stubs):
    ours, theirs = Other([], "ours"), Other([], "theirs")
    stubs(ours, theirs)
    list(swap_page.duel(DiffusionRequest("blue", num_steps=2, precision="reduced"), 1))
    assert {each[3] for each in ours.asked} == {"reduced"} and {each[3] for each in theirs.asked} == {"float32"}


def test_times_are_medians_with_their_range():
    match = view.Match(1, 0.5, (2e-5, 3.0), [(1.0, 2.0), (1.0, 3.0), (1.0, 7.0)], [(0.1, 0.1)] * 3, [(0.2, 0.1)] * 3)
    html = view.swap(match, lambda words, **fields: words.format(**fields))
    cells = [re.findall("<td>(.*?)</td>", row) for row in html.split("<tr>")[2:]]
    assert cells[0][1:] == ["1,000.0 ms", "3,000.0 ms", "3.00×", "2.00–7.00×"]
    assert cells[2][1:] == ["200.0 ms", "100.0 ms", "0.50×", "0.50–0.50×"]
    assert cells[3][1:3] == ["1,300.0 ms", "3,200.0 ms"]
    assert "gh-yes" in html and "2.0e-05" in html and "reach 3.0" in html


@pytest.mark.parametrize("rounds", [0, 10, 1.5, None, float("nan"), "two"])
def test_odd_rounds_get_a_sentence(sides, rounds):
    book = sides()
    with pytest.raises(UserError, match="rounds must be a whole number between 1 and 9"):
        swap(rounds=rounds)
    assert book == [] and len(swap_page.turns) == 0


def test_bad_settings_get_a_sentence(sides):
    book = sides()
    for changes, words in (
        ({"count": 0}, "between 1 and 200"),
        ({"height": 9}, "multiple of 2"),
        ({"seed": "x"}, "seed"),
        ({"count": 1000}, "between 1 and 200"),
    ):
        with pytest.raises(UserError, match=words):
            swap(**changes)
    assert book == []


def test_stop_tells_what_the_finished_rounds_say(sides):
    book = sides()
    steps = swap_page.swap("blue", "auto", 9, *values(), EN, no_progress)
    while len(book) < 4 + 8 + 3:
        next(steps)
    swap_page.halt(EN)
    *_, last = steps
    assert len(book) == 16 and text(last[2]).startswith("Stopped.") and "Medians of 1 round(s)" in last[2]
    assert len(swap_page.turns) == 0


def test_stop_while_warming_and_leaving(sides):
    book = sides()
    steps = swap_page.swap("blue", "auto", 9, *values(), ZH, no_progress)
    next(steps)
    swap_page.halt(EN)
    assert list(steps)[-1] == (gr.skip(), gr.skip(), view.note("已停止。"))
    count = len(book)
    steps = swap_page.swap("blue", "auto", 9, *values(), EN, no_progress)
    next(steps)
    steps.close()
    assert len(book) <= count + 1 and len(swap_page.turns) == 0
