"""Operate and Ledger: what their handlers show of a tiny network with random weights, and of books by hand."""

import re

import gradio as gr
import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.moe import (
    generate,
    insight,
    ledger_page,
    ledger_view,
    memory_page,
    operate_page,
    operate_view,
)
from pipelines.moe import traces_page as traces
from pipelines.moe.config import PRESETS
from pipelines.moe.contract import RouterChange, Taste
from pipelines.ui.i18n import say
from tests.stubs import no_progress, visitor

pytestmark = pytest.mark.usefixtures("tiny_catalogue")

EN = visitor("en")
TINY = PRESETS["tiny"]  # 2 layers of 4 experts, 2 of which work
TEXT = "The dog ran. The dog saw the dog. <b>Once</b> upon a time the dog ran to the park."


def speak(text, **values):
    return say(EN, text, **values)


def cells(table):
    """The rows of a table as plain text."""
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)[1:]
    return [[re.sub(r"<[^>]*>", "", cell).strip() for cell in re.findall(r"<td>(.*?)</td>", row, re.S)] for row in rows]


# --- operate: the change ---------------------------------------------------------------------------------------------


def change(layers=(), ban=(), force=(), active=2, temperature=1.0, control="none", seed=0):
    return operate_page.changed(TINY, list(layers), list(ban), list(force), active, temperature, control, seed)


def test_widgets_as_a_change():
    assert change() == RouterChange() and change().nothing
    assert change(ban=["1"]).banned == {(0, 0), (1, 0)}
    assert change(layers=["2"], ban=["1", "4"], force=["2"]) == RouterChange(
        frozenset({(1, 0), (1, 3)}), frozenset({(1, 1)})
    )
    assert change(active=3, temperature=2, control="hash", seed=7) == RouterChange(
        active=3, temperature=2.0, control="hash", seed=7
    )
    for wrong in ({"ban": ["5"]}, {"force": ["0"]}, {"layers": ["3"]}, {"ban": ["x"]}, {"layers": ["-1"]}):
        with pytest.raises(UserError, match="in the lists"):
            change(**wrong)
    for seed in (-1, None, 2**60):
        with pytest.raises(UserError, match="seed"):
            change(seed=seed)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ""),
        ({"ban": ["1", "3"]}, "without expert 1, 3 (all layers)"),
        ({"layers": ["2"], "force": ["2"]}, "always expert 2 (layer 2)"),
        ({"active": 1, "temperature": 0.5}, "1 of 4 work, router temperature 0.5"),
        ({"control": "hash", "ban": ["4"]}, "a hash router, without expert 4 (all layers)"),
        ({"control": "random"}, "a random router"),
    ],
)
def test_the_change_in_words(options, words):
    assert operate_view.in_words(change(**options), TINY, speak) == words


def test_experts_of_several_layers_in_words():
    mixed = RouterChange(frozenset({(0, 0), (1, 0), (0, 2)}))
    assert operate_view.in_words(mixed, TINY, speak) == "without expert 1 (all layers); 3 (layer 1)"


# --- operate: measured -----------------------------------------------------------------------------------------------


def widgets(layers=(), ban=("1",), force=(), active=2, temperature=1.0, control="none", seed=0):
    return list(layers), list(ban), list(force), active, temperature, control, seed


def measured(text=TEXT, **options):
    return list(operate_page.measure(text, "auto", *widgets(**options), EN, no_progress))


def test_a_change_beside_its_controls():
    shown = measured()
    assert len(shown) == 3  # the visitor's own first, then a control each
    verdict, _, shaded = shown[0]
    found = insight.effect(TEXT, change(ban=["1"]))
    assert f"({found.plain.bits_per_byte:.3f} to {found.changed.bits_per_byte:.3f})" in verdict
    assert f"by {found.divergence.mean():.3f} bits" in verdict and "Without expert 1 (all layers): " in verdict
    rows = cells(shown[-1][1])
    assert [row[0] for row in rows] == [
        "The model's own routers".replace("'", "&#x27;"), "Your change: without expert 1 (all layers)",
        "Control: a random router", "Control: a hash router",
    ]  # fmt: skip
    more = found.changed.bits_per_byte - found.plain.bits_per_byte
    assert rows[1][1:] == [
        f"{found.changed.bits_per_byte:.3f}", f"{more:+.3f}", f"{found.divergence.mean():.3f}",
        f"{found.moved.mean():.0%}",
    ]  # fmt: skip
    for row, control in zip(rows[2:], ("random", "hash"), strict=True):
        assert row[3] == f"{insight.effect(TEXT, RouterChange(control=control)).divergence.mean():.3f}"
    assert shaded.count('class="gh-shade"') == len(found.plain.tokens)
    assert "<b>" not in shaded and "&lt;" in shaded


def test_nothing_changed_reads_as_nothing():
    verdict, table, shaded = measured(ban=())[0]
    assert "Nothing is changed" in verdict and cells(table)[1][1:] == [cells(table)[0][1], "+0.000", "0.000", "0%"]
    assert shaded.count("--s:0%") == shaded.count('class="gh-shade"')


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"text": ""}, "write a text"),
        ({"text": "a\ud800"}, "lone surrogate"),
        ({"text": "x" * 100_001}, "shorten it"),
        ({"ban": ("1", "2", "3", "4")}, "Every expert of layer 1 is banned"),
        ({"ban": ("1",), "force": ("1",)}, "both banned and forced"),
        ({"temperature": 0}, "temperature"),
        ({"active": 9}, "Between 1 and 4"),
        ({"control": "best"}, "control"),
    ],
)
def test_what_cannot_be_operated_is_said(options, sentence):
    text = options.pop("text", TEXT)
    with pytest.raises(UserError, match=sentence):
        measured(text, **options)
    if "x" not in text and text == TEXT:
        with pytest.raises(UserError, match=sentence):
            written(**options)


# --- operate: written ------------------------------------------------------------------------------------------------


def written(prompt="Once upon", count=12, **options):
    return list(operate_page.write(prompt, "auto", *widgets(**options), count, EN, no_progress))


def test_two_texts_from_one_seed(monkeypatch):
    monkeypatch.setattr(operate_page, "EVERY", 0.0)
    shown = written(control="random", ban=())
    left, right, apart = shown[-1]
    assert len(shown) > 6 and "gh-caret" in shown[0][0] and "gh-caret" not in left + right
    assert "As it is" in left and "A random router" in right
    assert "One seed, two texts: they part after" in apart and shown[0][2] == ""
    again = written(control="random", ban=())[-1]
    assert again == shown[-1]  # the seed is all there is to it
    same = written(ban=())[-1]
    assert "the same, word for word" in same[2] and "Nothing is changed" in same[1]
    assert written(seed=1, ban=())[-1][0] != same[0]


def test_stop_ends_both_texts_and_a_newer_run_replaces(monkeypatch):
    monkeypatch.setattr(operate_page, "EVERY", 0.0)
    run = operate_page.write("Once", "auto", *widgets(), 300, EN, no_progress)
    next(run)
    assert len(operate_page.writing) == 1
    operate_page.halt(EN)
    rest = list(run)
    assert len(rest) == 1 and "gh-caret" not in rest[0][0] and len(operate_page.writing) == 0
    run = operate_page.write("Once", "auto", *widgets(), 300, EN, no_progress)
    next(run)
    other = operate_page.write("Once", "auto", *widgets(), 2, EN, no_progress)
    next(other)
    assert list(run) == [(gr.skip(),) * 3]  # the page is the newer run's
    assert list(other)
    gone = operate_page.write("Once", "auto", *widgets(), 300, EN, no_progress)
    next(gone)
    gone.close()  # the visitor has left
    assert len(operate_page.writing) == 0


def test_a_halted_measurement_ends_after_the_pass():
    run = operate_page.measure(TEXT, "auto", *widgets(), EN, no_progress)
    next(run)
    operate_page.halt(EN)
    assert list(run) == []


def test_the_page_runs_its_example_once():
    shown = list(operate_page.first(False, TEXT, "Once", "auto", *widgets(), 5, EN, no_progress))
    assert all(len(row) == 7 and row[0] is True for row in shown)
    assert "bits per byte" in shown[0][1] and "Once" in shown[-1][4]
    assert "One seed" in shown[-1][6] or "word for word" in shown[-1][6]
    again = list(operate_page.first(True, TEXT, "Once", "auto", *widgets(), 5, EN, no_progress))
    assert again == [tuple(gr.skip() for _ in range(7))]


def test_other_weights_have_other_experts():
    layers, ban, force, active = operate_page.choices("auto")
    assert [value for _, value in layers["choices"]] == ["1", "2"] and layers["value"] == []
    assert len(ban["choices"]) == len(force["choices"]) == active["maximum"] == 4 and active["value"] == 2
    assert traces.meant("no such weights") == PRESETS["stories"]


# --- ledger ----------------------------------------------------------------------------------------------------------


def booked(text=TEXT, layer=1, expert=1, factor=1.25):
    *parts, done = ledger_page.book(text, "auto", layer, expert, factor, EN, no_progress)
    assert parts == [(gr.skip(),) * 8] * len(parts) and parts  # after each part of the text a visitor can leave
    return done


def test_the_books_of_a_text():
    ticket, layer, expert, identity, books, tastes, places, dropped = booked(layer=2, expert=3)
    run = traces.kept(ticket)
    found = insight.ledger(run.trace)
    assert (layer["maximum"], layer["value"], expert["maximum"], expert["value"]) == (2, 2, 4, 3)
    assert f"in {found.identity.mean():.0%} of the places; luck would in {found.chance.mean():.0%}" in identity
    for row in found.load:
        for share in row:
            assert f">{share:.0%}</td>" in books
    assert f"{found.balance.mean():.3f} on average" in books and f"{found.pooled:.3f}" in books
    assert books.count("outline:2px") == 1
    got = (run.trace.experts[1] == 2).any(-1).sum()
    assert places.count('class="gh-tok') == got
    assert "Expert 3 of layer 2" in tastes
    assert f"{found.dropped.mean():.1%} of all choices" in dropped
    marked = found.dropped[1].any(-1).sum()
    assert dropped.count("no room in expert") == marked
    assert dropped.count("line-through") == found.dropped[1].all(-1).sum()
    again = ledger_page.look(ticket, 1, 1, 4.0, EN)
    assert "0.0% of all choices" in again[4] and "Expert 1 of layer 1" in again[2]


def test_the_books_are_kept_once_for_each_text():
    *_, first = ledger_page.book_new(None, TEXT, "auto", 1, 1, 1.25, EN, no_progress)
    assert len(first) == 9 and first[0] == (TEXT, "auto")
    assert list(ledger_page.book_new(first[0], TEXT, "auto", 1, 1, 1.25, EN, no_progress)) == [(gr.skip(),) * 9]
    *_, other = ledger_page.book_new(first[0], TEXT + "!", "auto", 1, 1, 1.25, EN, no_progress)
    assert len(other) == 9 and other[0] == (TEXT + "!", "auto")


def test_reading_stops_when_asked_and_when_the_visitor_leaves(monkeypatch):
    monkeypatch.setattr(generate, "part_of", lambda config: 8)
    text = TEXT * 3
    assert len(list(ledger_page.book(text, "auto", 1, 1, 1.25, EN, no_progress))) > 10
    run = ledger_page.book(text, "auto", 1, 1, 1.25, EN, no_progress)
    next(run)
    assert len(traces.turns) == 1
    traces.halt(EN)
    assert list(run) == [] and len(traces.turns) == 0
    left = memory_page.replay(text, "auto", 2, 20, 3, "16", EN, no_progress)
    next(left)
    left.close()
    assert len(traces.turns) == 0
    # in parts or as a whole, the routers decide the same
    *_, (_, parts) = insight.traced(text)
    assert np.array_equal(parts.experts, insight.effect(text, RouterChange()).plain.trace.experts)


def test_what_cannot_be_booked_is_said():
    for text, sentence in (
        ("", "write a text"),
        ("x" * 100_001, "shorten"),
        ("Q" * 2_001, "2,001 tokens, and there is room for 2,000"),
    ):
        with pytest.raises(UserError, match=sentence):
            booked(text)
    ticket = booked()[0]
    for layer, expert in ((3, 1), (1, 5), (-1, 1)):
        with pytest.raises(UserError, match="2 layers of 4 experts"):
            ledger_page.look(ticket, layer, expert, 1.25, EN)
    with pytest.raises(UserError, match="capacity"):
        ledger_page.look(ticket, 1, 1, 0, EN)
    with pytest.raises(UserError, match="make room"):
        ledger_page.look("gone", 1, 1, 1.25, EN)
    assert ledger_page.look(None, 1, 1, 1.25, EN) == (gr.skip(),) * 5
    assert booked(layer=9, expert=9)[1]["value"] == 2  # sliders of other weights


def test_half_characters_and_markup_are_shown_as_text():
    ticket, *shown = booked("狗 🙂 <script>alert(1)</script>")
    assert "狗" in "".join(traces.kept(ticket).texts)
    assert "<script" not in "".join(str(one) for one in shown) and "&lt;" in shown[-1]


def one_ledger(identity, chance):
    shape = np.full((2, 4), 0.25, np.float32)
    ones = np.ones(2, np.float32)
    return insight.Ledger(
        shape, ones, ones, ones, 2.0, ones, np.zeros((2, 3, 2), bool), np.full(2, identity, np.float32),
        np.full(2, chance, np.float32),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("identity", "chance", "words"),
    [
        (0.9, 0.2, "vocabulary more than topics"),
        (0.6, 0.3, "part of the routing"),
        (0.3, 0.25, "next to nothing"),
        (float("nan"), float("nan"), "cannot be told"),
    ],
)
def test_specialists_are_not_imagined(identity, chance, words):
    assert words in ledger_view.identity(one_ledger(identity, chance), speak)


def test_tastes_say_how_sure_they_are():
    found = [
        Taste("the", 9, 1.0, 4.0, 1e-6, "liked"), Taste("<a>", 5, 0.4, 1.6, 0.3, "chance"),
        Taste("\n", 1, 1.0, 4.0, 0.25, "few"), Taste("not", 4, 0.0, 0.0, 1.0, "chance"),
    ]  # fmt: skip
    table = ledger_view.tastes(found, 0, 1, speak)
    assert "Expert 2 of layer 1: 1 of 4 different tokens come too often for luck, 1 have too few places" in table
    rows = cells(table)
    assert len(rows) == 3  # what the expert never gets is not listed
    assert rows[0] == ["the", "9", "100%", "4.0×", "1e-06", "too often for luck"]
    assert rows[1][0] == "&lt;a&gt;" and rows[1][-1] == "could be luck" and rows[2][-1] == "too few places to say"


# --- all ------------------------------------------------------------------------------------------------------------


def test_every_page_opens_without_weights(monkeypatch):
    from pipelines.common import catalogue

    monkeypatch.setattr(catalogue, "manifest", dict)
    assert traces.meant("auto") == PRESETS["stories"]
    for run in (booked, measured):
        with pytest.raises(UserError, match="None of these weights"):
            run()


def test_the_example_is_a_text_that_repeats_itself():
    text = traces.story()
    assert 800 < len(text) < 2000 and text.count("Nell") > 5
