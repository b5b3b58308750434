"""The memory page: what its handlers show of a tiny network with random weights, and of traces by hand."""

import re

import gradio as gr
import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.moe import memory_page, memory_view
from pipelines.moe import traces_page as traces
from pipelines.moe.config import PRESETS
from pipelines.moe.memory import POLICIES, Machine, curves, simulate
from tests.moe.test_inside_pages import EN, TEXT, TINY, cells, speak
from tests.stubs import no_progress

pytestmark = pytest.mark.usefixtures("tiny_catalogue")


def replayed(text=TEXT, slots=3, memory=20.0, storage=3.0, bits="16"):
    *_, done = memory_page.replay(text, "auto", slots, memory, storage, bits, EN, no_progress)
    return done


def test_a_trace_is_replayed():
    ticket, slots, verdict, chart, table, fetched = replayed()
    run = traces.kept(ticket)
    assert (slots["minimum"], slots["maximum"], slots["value"]) == (2, 4, 3)
    done = simulate(run.trace.experts, TINY, 3, "lru")
    assert f"With 3 of 4 experts of each layer in memory, {done.hit_rate:.0%} of the requests" in verdict
    assert chart.count("<polyline") == 4 and chart.count("<circle") == 12
    rows = cells(table)
    assert len(rows) == 4 and rows[0][0] == "stories" and rows[0][1] == "3 / 4"
    assert rows[0][5] == f"{done.tokens_per_second:.0f}"
    assert rows[1][1] == "6 / 8" and rows[2][1] == "48 / 64" and rows[3][1] == "24 / 32"  # the same share
    assert fetched.count('class="gh-shade"') == len(run.texts)
    assert fetched.count("4 of 4 experts fetched") >= 1  # the first token finds an empty cache
    looked = memory_page.look(ticket, 4, 20.0, 3.0, "16", EN)
    assert "With 4 of 4" in looked[0]


def test_a_slower_disk_costs_and_all_in_memory_does_not():
    ticket = replayed()[0]
    slow, fast = (cells(memory_page.look(ticket, 2, 20.0, rate, "16", EN)[2])[1] for rate in (0.1, 1000))
    assert slow[4] == fast[4] and float(slow[5]) < float(fast[5])
    half = cells(memory_page.look(ticket, 2, 20.0, 3.0, "8", EN)[2])[1]
    assert float(half[4]) == pytest.approx(2 * float(slow[4]), rel=0.06)


def test_what_cannot_be_replayed_is_said():
    for options in ({"memory": 0}, {"storage": -1}, {"memory": None}, {"storage": float("nan")}):
        with pytest.raises(UserError, match="bandwidth"):
            replayed(**options)
    with pytest.raises(UserError, match="bits"):
        replayed(bits="many")
    with pytest.raises(UserError, match="write a text"):
        replayed("")
    assert replayed(slots=99)[1]["value"] == 4 and replayed(slots=None)[1]["value"] == 2
    assert memory_page.look(None, 2, 1, 1, "16", EN) == (gr.skip(),) * 4
    *_, last = memory_page.replay_new(None, TEXT, "auto", 3, 20, 3, "16", EN, no_progress)
    assert list(memory_page.replay_new(last[0], TEXT, "auto", 3, 20, 3, "16", EN, no_progress)) == [(gr.skip(),) * 7]


def test_the_curves_are_where_the_numbers_are():
    experts = np.random.default_rng(0).random((2, 40, 4)).argsort(-1)[..., :2]
    sizes, found = curves(experts, 4)
    chart = memory_view.chart(sizes, found, 3, 4, speak)
    points = dict(zip(("random", "ahead", "lfu", "lru"), re.findall(r'points="([^"]*)"', chart), strict=True))
    for policy, line in points.items():
        heights = [float(point.split(",")[1]) for point in line.split()]
        # from 258 at the foot to 14 at the top
        assert heights == pytest.approx([258 - 244 * rate for rate in found[policy]], abs=0.06)
    assert "Infinity" not in memory_view.chart([4], {k: v[-1:] for k, v in found.items()}, 4, 4, speak)


def test_a_cache_that_holds_all_is_told_from_memory_alone():
    config = PRESETS["mixtral-8x7b"]
    row = memory_view.Row("Mixtral", config, 8, dict.fromkeys(POLICIES, 1.0))
    table = cells(memory_view.speeds([row], Machine(), speak))
    assert table[0][2] == table[0][3] == "93.4\u00a0GB" and table[0][4] == table[0][5] == "0.78"


def test_the_page_opens_without_weights(monkeypatch):
    from pipelines.common import catalogue

    monkeypatch.setattr(catalogue, "manifest", dict)
    with pytest.raises(UserError, match="None of these weights"):
        replayed()
