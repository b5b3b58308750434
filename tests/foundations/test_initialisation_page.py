"""The page Scale: what its handler shows."""

import re

import pytest

from pipelines.common.errors import UserError
from pipelines.foundations import scale_page as page
from pipelines.foundations.config import NORMS, SCHEMES, StackOptions
from pipelines.foundations.initialisation import measure
from tests.stubs import visitor

EN, ZH = visitor("en"), visitor("zh-CN")


def look(scheme="lecun", norm="pre", divide=True, depth=3, width=16, seed=0, request=EN):
    return page.look(scheme, norm, divide, depth, width, seed, request)


def test_every_choice_has_a_name():
    assert tuple(page.SCHEMES) == SCHEMES and tuple(page.NAMES) == NORMS


def test_what_is_chosen_is_told_beside_its_neighbours():
    told, charts = look()
    found = measure(StackOptions(depth=3, width=16, scheme="lecun"), 0)
    assert f"the variance is {found.variance[-1]:.3g};" in told and f"has {found.entropy[0]:.0%} of" in told
    assert f"is {found.gradient[0] / found.gradient[-1]:.3g} times" in told
    assert charts.count("<svg viewBox") == 3 and charts.count("<polyline") == 15
    names = re.findall(r"</svg> ([^<]*)</span>", charts)
    assert names[:5] == ["pre-norm (chosen)", "pre-norm, not divided by √d", "no norm", "post-norm", "DeepNorm"]
    assert look("t5")[1].count("<polyline") == 12  # T5 has no division to change
    assert "最后一层" in look(request=ZH)[0] and look(seed=1)[0] != told


def test_bad_numbers_are_said_and_exploding_ones_are_drawn():
    for wrong in ({"depth": 0}, {"width": None}, {"seed": -1}, {"scheme": "odd"}, {"norm": "odd"}, {"width": 17}):
        with pytest.raises(UserError):
            look(**wrong)
    told, charts = look("one", "none", False, page.DEPTH, page.WIDTH)
    assert "nan" not in told + charts
    look("he", "post", True, 1, 16)
