"""Texts and experts as HTML: nothing of a visitor's text is markup, no number is lost, no character is cut."""

import re

import numpy as np
import pytest

from pipelines.moe import view
from pipelines.moe.contract import Reading, RoutingTrace


def say(text, **values):
    return text.format(**values)


def trace_of(experts, weights=None, count=8, prompt=1):
    """experts (L, N, k)."""
    experts = np.array(experts, np.int64)
    layers, tokens, _ = experts.shape
    logits = np.zeros((layers, tokens, count), np.float32)
    shares = np.full(experts.shape, 0.5, np.float32) if weights is None else np.array(weights, np.float32)
    return RoutingTrace(np.arange(tokens) + 40, ("x",) * tokens, logits, experts, shares, prompt)


TWO = trace_of([[[3, 1], [0, 2], [3, 0]], [[7, 6], [5, 4], [2, 1]]], prompt=1)


def test_a_text_is_text_and_no_markup():
    bad = '<img src=x onerror=alert(1)> & "q" <script>'
    for page in (view.writing(bad, bad), view.tokens(TWO, [bad] * 3, 0, 0, True, say),
                 view.detail(TWO, [bad] * 3, 0, 0, say)):  # fmt: skip
        assert "<img" not in page and "<script" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page


@pytest.mark.parametrize(
    ("given", "shown"),
    [("a\nb", "a↵\nb"), ("\x00\x07", "␀␇"), ("\ud83d", "\ufffd"), ("\u202etxt", "\ufffdtxt"), ("🦊é", "🦊é"),
     ("\x7f", "␡"), ("\x85", "\ufffd")],
)  # fmt: skip
def test_what_a_page_cannot_show_is_made_visible(given, shown):
    assert view.visible(given) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        ([b"Once", b" upon"], ["Once", " upon"]),
        ([b"\xf0\x9f", b"\xa6\x8a", b"!"], ["🦊", "◦", "!"]),
        ([b"\xf0", b"\x9f", b"\xa6", b"\x8a"], ["🦊", "◦", "◦", "◦"]),
        ([b"a\xc3", b"\xa9b"], ["aéb", "◦"]),
        ([b"a", b"\xc3"], ["a", "\ufffd"]),
        ([b"\xf0\x9f", b"x"], ["\ufffdx", "◦"]),
        ([b"\xa6", b"x"], ["\ufffd", "x"]),
        ([], []),
        ([b"", b"a"], ["", "a"]),
    ],
)
def test_no_character_is_shown_in_halves(pieces, texts):
    assert view.spelled(pieces) == texts


def cut(pieces):
    """One text a token, whatever that does to characters: the fault that `spelled` mends."""
    return [piece.decode(errors="replace") for piece in pieces]


def test_cut_characters_would_be_seen():
    assert view.spelled([b"\xf0\x9f", b"\xa6\x8a"]) != cut([b"\xf0\x9f", b"\xa6\x8a"])


def test_each_token_names_its_strongest_expert_of_the_layer():
    page = view.tokens(TWO, ["a", "b", "c"], 0, 2, False, say)
    assert re.findall(r'data-expert="(\d)"', page) == ["4", "1", "4"]
    assert re.findall(r'data-expert="(\d)"', view.tokens(TWO, ["a", "b", "c"], 1, None, False, say)) == ["8", "6", "3"]
    assert page.count("gh-given") == 1 and 'title="Token 2, expert 1 with weight 0.50"' in page
    assert re.findall(r'aria-selected="(\w+)"', page) == ["false", "false", "true"]
    assert re.findall(r'tabindex="(-?\d)"', page) == ["-1", "-1", "0"]  # one stop for the tabulator key
    assert "gh-numbers" not in page and "gh-numbers" in view.tokens(TWO, ["a"], 0, None, True, say)


def test_eight_colours_then_patterns_then_a_double_line():
    painted = [view.paint(expert) for expert in range(64)]
    assert len(set(painted)) == 64 and len({style for _, style in painted[:8]}) == 8
    assert painted[0][0] == "gh-p0" and painted[8][0] == "gh-p1" and painted[32][0] == "gh-p0 gh-double"


def luminance(colour):
    rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return sum(
        w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
        for w, c in zip((0.2126, 0.7152, 0.0722), rgb, strict=True)
    )


def mixed(colour, ground, share):
    parts = [(int(colour[i : i + 2], 16), int(ground[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a * share + b * (1 - share)):02x}" for a, b in parts)


@pytest.mark.parametrize(("ink", "ground"), [("#1e293b", "#ffffff"), ("#f1f5f9", "#0b0f19")])
def test_text_can_be_read_on_every_colour_in_both_themes(ink, ground):
    for colour in view.PALETTE:
        light, dark = sorted((luminance(ink), luminance(mixed(colour, ground, 0.3))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


def test_the_legend_counts_first_choices():
    page = view.legend(TWO, 0, say)
    shares = re.findall(r"</span> (\d+)%", page)
    assert shares == ["33", "0", "0", "67", "0", "0", "0", "0"] and "layer 1 of 2" in page


def test_one_token_shows_its_probabilities_and_its_way():
    trace = trace_of([[[3, 1]], [[0, 2]]], [[[0.75, 0.25]], [[0.6, 0.4]]], count=4)
    trace.logits[0, 0] = np.log([0.1, 0.2, 0.3, 0.4])
    page = view.detail(trace, ["fox"], 0, 0, say)
    assert re.findall(r"<span>(\d+\.\d)%</span>", page) == ["10.0", "20.0", "30.0", "40.0"]
    assert page.count("gh-worked") == 2
    rows = re.findall(r"<tr.*?</tr>", page.split("<tbody>")[1])
    assert [re.findall(r">(\d+)</span></td>", row) for row in rows] == [["25", "75"], ["60", "40"]]
    assert "number 40 of the vocabulary" in page and page.count("gh-here") == 1


def test_very_long_texts_show_their_end():
    long = trace_of(np.zeros((1, view.MOST + 5, 1), int), prompt=2)
    page = view.tokens(long, ["w"] * (view.MOST + 5), 0, 0, False, say)
    assert page.count("data-token") == view.MOST and 'data-token="5" ' in page and 'data-token="4" ' not in page
    assert 'tabindex="0"' in page  # the picked one is not there: another takes the stop


def test_a_score_names_bits_and_the_largest_surprises():
    reading = Reading(np.arange(3), ("a", "b", "c"), np.array([1.0, 6.0, 13.0], np.float32), 4, "w")
    page = view.score(reading, ["a", "<b>", "c"], 0.5, say)
    assert "5.000 bits per byte" in page and "3 tokens, 4 bytes, 20 bits" in page
    assert re.findall(r"--s:(\d+)%", page) == ["6", "38", "75"] and "<b>" not in page
    assert re.findall(r"</span> (\d+\.\d)", page) == ["13.0", "6.0", "1.0"]


def test_the_swap_says_where_texts_part():
    same = view.swap(20, 21, 3.2e-6, None, (100.0, 20.0), (0.01, 0.04), say)
    assert "The same text in both, all 20 tokens." in same and "5.0×" in same and "3.20e-06" in same and "4.0×" in same
    parted = view.swap(7, 8, 0.01, 0.0004, (100.0, 20.0), (0.01, 0.04), say)
    assert "part after 7 tokens" in parted and "4.0e-04 apart" in parted and "gh-no" in parted
