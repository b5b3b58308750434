"""Race: the chart and the cards by hand, and what the handlers show of a tiny network's race."""

import re
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.diffusion import inside_program_page as programs
from pipelines.diffusion import race_page, running_page
from pipelines.diffusion import race_view as view
from pipelines.diffusion.contract import SAMPLER_TITLES, SAMPLERS, Lane, RaceEvent
from pipelines.diffusion.race import USUAL, WANDERING
from pipelines.ui.i18n import say
from pipelines.ui.turns import Turns
from tests.stubs import no_progress, visitor

EN, ZH = visitor("en"), visitor("zh-CN")
SKIP = gr.skip()
IMAGE = np.zeros((16, 16, 3), np.uint8)


def speak(text, **values):
    return say(EN, text, **values)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(running_page, "EVERY", 0.0)
    monkeypatch.setattr(race_page, "EVERY", 0.0)


def lane(name="ddim", errors=(), of=4):
    return Lane(name, of, of, len(errors), tuple(errors), IMAGE if errors else None)


# --- the chart -------------------------------------------------------------------------------------------------------


def heights(chart, line=0):
    """Of a line's points, downwards."""
    return [float(pair.split(",")[1]) for pair in re.findall(r'polyline points="([^"]+)"', chart)[line].split()]


def test_the_scale_is_logarithmic_down_to_a_floor():
    steps = np.diff(heights(view.chart([lane(errors=(1.0, 0.1, 0.01))], speak)))
    assert steps[0] == pytest.approx(steps[1], abs=0.11) and steps[0] > 0
    floor = heights(view.chart([lane(errors=(1.0, view.FLOOR, 0.0))], speak))
    assert floor[1] == floor[2]
    assert "<polyline" not in view.chart([], speak)


def test_samplers_that_wander_are_dashed_and_explained():
    lanes = [lane(name, (1.0, 0.5)) for name in SAMPLERS]
    svg = view.chart(lanes, speak).split("</svg>")[0]
    assert svg.count("<polyline") == 9 and svg.count(f'stroke-dasharray="{view.DASHED}"') == len(WANDERING) == 3
    assert svg.count("<title>") == 1 + 18 and "Euler ancestral: 2, 0.5" in svg
    assert "end in another picture by design" in view.footnote(lanes, speak)
    assert "by design" not in view.footnote([lane("ddim")], speak) and "Heun" not in view.footnote(
        [lane("ddim")], speak
    )
    assert "half as many steps" in view.footnote([lane("heun")], speak)


def test_the_nearest_is_told_of_those_that_aim_there():
    done = (lane("ddim", (1.0, 0.9, 0.8, 0.7)), lane("euler", (2.0, 1.0, 0.5, 0.3)), lane("euler_a", (1, 1, 1, 0.01)))
    assert "Euler came nearest to the long run: 0.3 after 4 calls." in view.verdict(RaceEvent(done, 9, 9), speak)
    assert "none is nearest" in view.verdict(RaceEvent(done[2:], 9, 9), speak)
    assert "The long run first: 3 of 9 calls." in view.verdict(RaceEvent(done, 3, 9), speak)
    half = (done[0], replace(done[1], calls=2))
    assert "6 of 8 calls, in lock-step." in view.verdict(RaceEvent(half, 9, 9), speak)


def test_every_sampler_has_one_title_everywhere():
    assert set(SAMPLER_TITLES) == set(SAMPLERS) and len(set(SAMPLER_TITLES.values())) == 9


# --- the handlers ----------------------------------------------------------------------------------------------------


def values(prompt="a red apple", negative="", names=("ddim", "heun"), calls=4, guidance=3.0, seed="1", long=6):
    return prompt, negative, list(names), calls, guidance, seed, long, "local", "auto"


def race(request=EN, **changes):
    return list(race_page.compete(*values(**changes), request, no_progress))


def test_a_race_is_drawn_as_it_goes(tiny_catalogue):
    shown = race()
    assert len(shown) == 7 + 4 + 1  # the long run's calls, the lanes', and the last look
    assert [chart != "" for _, chart, _ in shown] == [False] * 6 + [True] * 6
    assert "The long run first: 5 of 6 calls." in shown[5][0]
    told, chart, cards = shown[-1]
    assert "came nearest" in told and chart.count("stroke-linecap") == 4 + 3  # Heun's fourth call would begin a step
    assert cards.count("<img") == 3 and "4 of 4 calls" in cards and "3 of 3 calls" in cards
    assert len(race_page.turns) == 0


def test_the_first_visit_races_once(tiny_catalogue):
    assert [step[0] for step in race_page.compete_first(False, *values(), EN, no_progress)] == [True] * 12
    assert list(race_page.compete_first(True, *values(), EN, no_progress)) == [(SKIP,) * 4]


def test_stop_keeps_what_there_is(tiny_catalogue, monkeypatch):
    monkeypatch.setattr(race_page, "turns", Turns())
    running = race_page.compete(*values(), EN, no_progress)
    for _ in range(9):
        shown = next(running)
    race_page.halt(EN)
    rest = list(running)
    assert len(rest) == 1 and "Stopped." in rest[0][0] and rest[0][1].count("<circle") >= shown[1].count("<circle") > 0
    done = race_page.compete(*values(), EN, no_progress)
    while "came nearest" not in next(done)[0]:
        pass
    race_page.halt(EN)  # too late to stop anything
    (last,) = done
    assert "Stopped." not in last[0] and "came nearest" in last[0]
    old = race_page.compete(*values(), EN, no_progress)
    next(old)
    race()
    assert list(old) == [(SKIP,) * 3]  # another race has the page


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"names": ()}, "Choose samplers"), ({"names": ("best",)}, "Choose samplers"),
        ({"names": ("ddim", "ddim")}, "each once"), ({"calls": 0}, "number of steps"), ({"calls": None}, "steps"),
        ({"long": 0}, "long run"), ({"long": None}, "long run"), ({"guidance": 1e9}, "guidance"),
        ({"seed": "-1"}, "seed"), ({"seed": "x"}, "seed"), ({"prompt": "x" * 100_001}, "shorten it"),
    ],
)  # fmt: skip
def test_races_that_cannot_be_are_sentences(tiny_catalogue, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        race(**changes)


def test_a_race_in_chinese(tiny_catalogue):
    shown = race(ZH, names=("ddpm",))
    assert "先是长运行" in shown[0][0] and "无所谓谁最接近" in shown[-1][0] and "虚线" in shown[-1][2]


def test_programs_race(tiny_catalogue):
    found = list(programs.compete("a cat", ["euler", "heun"], 4, seed=2, reference_steps=3))
    assert [each["reference"] for each in found] == [0, 1, 2, 3, 3, 3, 3, 3] and found[0]["reference_calls"] == 3
    last = found[-1]["lanes"]
    assert [(each["sampler"], each["calls"], each["of"]) for each in last] == [("euler", 4, 4), ("heun", 3, 3)]
    assert [len(each["errors"]) for each in last] == [4, 3] and all(isinstance(e, float) for e in last[0]["errors"])
    usual = next(programs.compete("a cat", calls=2, reference_steps=1))
    assert tuple(each["sampler"] for each in usual["lanes"]) == USUAL
    for wrong in (["x"], [], "ddim", [3]):
        with pytest.raises(UserError, match="samplers"):
            next(programs.compete("a cat", wrong))
