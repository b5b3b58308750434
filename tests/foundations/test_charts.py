"""Charts: points land where the numbers are, lines break where there is none, names are escaped."""

import math
import re

import pytest

from pipelines.ui.charts import EDGE, MOST, SPAN, Axis, Series, axis_of, ink, line_chart, number

INNER = SPAN - 2 * EDGE


def lines(chart):
    return [
        [tuple(float(v) for v in point.split(",")) for point in found.split()]
        for found in re.findall(r'<polyline points="([^"]*)"', chart)
    ]


def place(x, y):
    return pytest.approx((EDGE + INNER * x, SPAN - EDGE - INNER * y), abs=0.06)


def test_points_are_where_the_numbers_are():
    (line,) = lines(line_chart([Series("a", [0, 1, 4], [10, 30, 20])], "x", "y"))
    assert line == [place(0, 0), place(0.25, 1), place(1, 0.5)]
    (line,) = lines(line_chart([Series("a", [1, 10, 100], [2, 8, 32])], "x", "y", log_x=True, log_y=True))
    assert line == [place(0, 0), place(0.5, 0.5), place(1, 1)]
    (line,) = lines(line_chart([Series("a", [0, 1], [0.25, 1])], "x", "y", x_range=(0, 2), y_range=(0, 1)))
    assert line == [place(0, 0.25), place(0.5, 1)]


def test_the_first_line_lies_on_top_and_all_look_different():
    chart = line_chart([Series(name, [0, 1], [0, i]) for i, name in enumerate("abc")], "x", "y")
    drawn = re.findall(r'<polyline[^>]*stroke="([^"]*)"[^>]*stroke-dasharray="([^"]*)"', chart)
    assert [colour for colour, _ in drawn] == [ink(2), ink(1), ink(0)] and len(set(drawn)) == 3
    assert chart.index("> a</span>") < chart.index("> b</span>") < chart.index("> c</span>")  # the legend


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf])
def test_a_line_breaks_where_there_is_no_number(hole):
    chart = line_chart([Series("a", [0, 1, 2, 3, 4], [1, 2, hole, 2, 3], marks=True)], "x", "y")
    assert [len(line) for line in lines(chart)] == [2, 2] and chart.count("<path") == 4
    assert "nan" not in chart and "inf" not in chart


def test_what_is_not_above_zero_has_no_place_on_a_logarithm():
    (line,) = lines(line_chart([Series("a", [1, 2, 3, 4], [0, -1, 1, 10])], "x", "y", log_y=True))
    assert line[0] == place(2 / 3, 0) and line[-1] == place(1, 1)
    assert math.isnan(Axis(1, 10, log=True).share(0)) and Axis(1, 100, log=True).share(10) == 0.5


def test_lonely_points_equal_numbers_and_nothing_at_all_are_drawn():
    (line,) = lines(line_chart([Series("a", [5], [7])], "x", "y"))
    assert line[0] == place(0.5, 0.5) and len(line) == 2
    (line,) = lines(line_chart([Series("a", [0, 1], [0, 0])], "x", "y"))
    assert line == [place(0, 0.5), place(1, 0.5)]
    assert lines(line_chart([], "x", "y", log_y=True)) == [] == lines(line_chart([Series("a", [], [])], "x", "y"))
    assert lines(line_chart([Series("a", [0, 1], [math.nan, math.nan])], "x", "y")) == []
    assert axis_of([3e-9, 3e-9]).high > axis_of([3e-9, 3e-9]).low
    assert lines(line_chart([Series("a", [0, 1], [1, 2], line=False, marks=True)], "x", "y")) == []


def test_a_long_line_keeps_its_peaks():
    values = [0.0] * 5000
    values[1234], values[4000] = 9.0, -3.0
    (line,) = lines(line_chart([Series("a", range(5000), values)], "x", "y"))
    assert len(line) <= MOST and line == sorted(line)
    heights = [y for _, y in line]
    assert (min(heights), max(heights)) == (EDGE, SPAN - EDGE) and line[-1][0] == SPAN - EDGE


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (Axis(-0.3, 0.32), [-0.2, 0, 0.2]),
        (Axis(3, 996), [200, 400, 600, 800]),
        (Axis(0.001, 20, True), [0.001, 0.01, 0.1, 1, 10]),
        (Axis(128, 2000, True), [200, 500, 1000, 2000]),
        (Axis(3, 4, True), [3, 4]),
    ],
)
def test_ticks_are_round(axis, ticks):
    assert axis.ticks() == pytest.approx(ticks)


def test_ticks_stay_few():
    for low, high in ((1e-9, 1e9), (1, 2), (0.1, 900), (1e-300, 1e300)):
        assert 2 <= len(Axis(low, high, True).ticks()) <= 7, (low, high)
        assert 2 <= len(Axis(low, high).ticks()) <= 7, (low, high)


def test_numbers_are_written_short():
    told = [0, 0.25, -3, 3000, 16384, 20000, 2e6, 1e-6, 2.5e-5, -1e-4, 1e9, 0.001]
    wanted = ["0", "0.25", "−3", "3000", "16384", "20k", "2M", "10⁻⁶", "2.5·10⁻⁵", "−10⁻⁴", "10⁹", "0.001"]
    assert [number(value) for value in told] == wanted


def test_names_are_text_and_the_picture_has_one():
    bad = '<script>"&'
    chart = line_chart([Series(bad, [0, 1], [0, 1], marks=True)], bad, bad, title=bad, at_x=[(0.5, bad)])
    assert "<script>" not in chart and chart.count("&lt;script&gt;&quot;&amp;") == 8
    assert 'role="img" aria-label="loss over steps"' in line_chart([], "x", "y", title="loss over steps")
    assert "<title>loss / step</title>" in line_chart([], "step", "loss")


def test_lines_across_and_given_ticks():
    chart = line_chart(
        [Series("a", [0, 10], [0, 1])],
        "x",
        "y",
        at_x=[(5, "half")],
        at_y=[(0.25, "low")],
        x_ticks=[0, 5, 99],
        y_ticks=[],
    )
    assert chart.count('stroke-dasharray="4 4"') == 2 and 'x1="500.0"' in chart and 'y1="742.5"' in chart
    assert ">half<" in chart and ">low<" in chart and ">5<" in chart and ">99<" not in chart
