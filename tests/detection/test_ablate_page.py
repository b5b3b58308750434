"""The ablation page: what is taken out, and what is counted. Over tiny networks with random weights, and by hand."""

import gradio as gr
import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.detection import ablate_page
from pipelines.detection import examples_page as examples
from pipelines.detection import traces_page as traces
from pipelines.detection.config import PRESETS
from pipelines.detection.contract import Prediction
from tests.stubs import no_progress, visitor

pytestmark = pytest.mark.usefixtures("tiny")

EN = visitor("en")
SELF, POSITIONS, ENCODER = ablate_page.PARTS
RUN, TRUTH = ablate_page.AGAINST


def measured(photo, parts=(SELF,), queries=(), heads=(), threshold=1e-6, against=RUN, drawn=None, **more):
    return ablate_page.measure(
        photo, more.get("weights", "auto"), list(parts), list(queries), list(heads), threshold, 0.5,
        more.get("nms", False), against, drawn, more.get("request", EN), no_progress,
    )  # fmt: skip


def counts(table):
    """Row name -> (whole, cut)."""
    found = {}
    for row in table.split("<tr>")[2:]:
        cells = [cell.split("</td>")[0] for cell in row.split("<td>")[1:]]
        plain = cells[0].rpartition("</span>")[2].strip()
        values = (cells[1], cells[2].removeprefix("<b>").removesuffix("</b>"))
        found[plain] = tuple(None if v == "–" else float(v) for v in values)
    return found


@pytest.mark.parametrize("weights", ["sigmoid", "softmax"])
def test_nothing_taken_out_changes_nothing(photo, weights):
    *_, whole, cut, verdict, table = measured(photo, parts=(), weights=weights)
    assert np.array_equal(whole, cut) and "Nothing is taken out" in verdict
    found = counts(table)
    assert found["Boxes found"][0] == found["Boxes found"][1] == found["Correct"][0] > 0
    assert found["Doubles"] == found["Missed"] == found["False alarms"] == (0, 0)


@pytest.mark.parametrize("weights", ["sigmoid", "softmax"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parts": (SELF,)}, "the decoder&#x27;s self-attention"),
        ({"parts": (POSITIONS,)}, "the positions"),
        ({"parts": (ENCODER,)}, "the encoder"),
        ({"parts": (), "heads": ("1:all",)}, "4 head(s)"),
        ({"parts": (), "heads": ("0:1", "1:2")}, "2 head(s)"),
        ({"parts": (), "queries": (2,)}, "query #2"),
    ],
)
def test_every_part_that_can_be_taken_out(photo, weights, options, said):
    ticket, *_, whole, cut, verdict, _ = measured(photo, weights=weights, **options)
    pair = traces.shelf().get(ticket)
    changed = not np.allclose(np.nan_to_num(pair.whole.logits), np.nan_to_num(pair.cut.logits), atol=1e-6)
    assert changed and said in verdict and whole.shape == cut.shape == (120, 160, 3)


def test_a_removed_query_finds_nothing_any_more(photo):
    _, queries, _, *_, before = measured(photo, parts=())
    assert len(queries["choices"]) == 7 and queries["choices"][0][0].startswith("#")
    _, queries, _, *_, after = measured(photo, parts=(), queries=(2,))
    assert counts(before)["Boxes found"] == (35, 35) and counts(after)["Boxes found"] == (35, 30)  # of five classes
    assert queries["value"] == [2]
    _, run = traces.take(photo, "auto", None)
    surest = int(run.life.scores[-1].argmax())
    name = run.names[int(run.life.classes[-1, surest])]
    assert queries["choices"][0] == (f"#{surest} · {name} {run.life.scores[-1, surest]:.2f}", surest)
    ticket, queries, *_ = measured(photo, parts=(), queries=(2,), threshold=0.99)
    assert queries["choices"] == [("#2", 2)]  # nobody answers; what was taken out can still be put back
    queries, *_ = ablate_page.change_threshold(ticket, [2], 1e-6, 0.5, False, RUN, None, EN)
    assert len(queries["choices"]) == 7 and queries["value"] == [2]
    everyone = measured(photo, parts=(), queries=range(7))
    assert counts(everyone[-1])["Boxes found"][1] == 0 and counts(everyone[-1])["Correct"][1] == 0
    assert counts(everyone[-1])["Overlap of the correct ones"] == (1, None)


def said(*rows):
    """What a network of two classes says: class, logit, cxcywh."""
    logits = np.full((len(rows), 2), -20, np.float32)
    for i, (k, logit, _) in enumerate(rows):
        logits[i, k] = logit
    return Prediction(logits, np.array([box for *_, box in rows], np.float32), "sigmoid")


def test_the_counts_of_two_runs_by_hand():
    left, near, right = (0.25, 0.5, 0.4, 0.8), (0.26, 0.5, 0.4, 0.8), (0.75, 0.5, 0.4, 0.8)
    whole = said((0, 3, left), (1, 2, right))
    cut = said((0, 3, left), (0, 2, near), (0, 2.5, right), (1, 2, (0.5, 0.1, 0.1, 0.1)))
    pair = ablate_page.Pair(np.zeros((50, 100, 3), np.uint8), "", PRESETS["voc"], whole, cut, "x", None)
    ticket = traces.shelf().put(pair, pair.nbytes)
    *_, verdict, table = ablate_page.count(ticket, 0.5, 0.5, False, RUN, None, EN)
    assert counts(table) == {
        "Boxes found": (2, 4), "Correct": (2, 1), "Doubles": (0, 1), "Changed classes": (0, 1), "False alarms": (0, 1),
        "Missed": (0, 0), "Overlap of the correct ones": (1, 1),
    }  # fmt: skip
    assert "Without x: doubles +1, missed +0, false alarms +1, changed classes +1." in verdict
    assert table.count('class="gh-no"') == 4 and "gh-yes" not in table  # more boxes are neither good nor bad
    *_, table = ablate_page.count(ticket, 0.5, 0.5, True, RUN, None, EN)
    assert counts(table)["Doubles"] == (0, 0) and counts(table)["Boxes found"] == (2, 3)
    *_, table = ablate_page.count(ticket, 0.5, 0.99, True, RUN, None, EN)
    assert counts(table)["Doubles"] == (0, 1)
    *_, table = ablate_page.count(ticket, 0.94, 0.5, False, RUN, None, EN)  # one of each passes
    assert counts(table)["Boxes found"] == (1, 1) and counts(table)["Missed"] == (0, 0)
    assert all(value == gr.skip() for value in ablate_page.count("gone", 0.0, 0.5, False, RUN, None, EN))


def test_counted_against_the_drawn_truth(photo):
    ticket, *_ = measured(photo, parts=())
    with pytest.raises(UserError, match="lay it out at the Hungarian desk"):
        ablate_page.count(ticket, 0.0, 0.5, False, TRUTH, None, EN)
    boxes = np.array([[20, 20, 60, 80], [70, 10, 150, 100]], np.float32)
    drawn = traces.Drawn(traces.digest(traces.shelf().get(ticket).image), boxes, ("bird", "boat"))
    *_, table = ablate_page.count(ticket, 1.0, 0.5, False, TRUTH, drawn, EN)
    assert counts(table)["Missed"] == (2, 2) and "the truth drawn at the desk" in table
    other = traces.Drawn("of another picture", drawn.boxes, drawn.labels)
    with pytest.raises(UserError, match="lay it out at the Hungarian desk"):
        ablate_page.count(ticket, 1.0, 0.5, False, TRUTH, other, EN)


def test_counted_against_the_truth_of_an_example():
    ticket, *_ = measured(examples.path("horses.jpg"), parts=())
    *_, table = ablate_page.count(ticket, 1.0, 0.5, False, TRUTH, None, EN)
    assert counts(table)["Missed"] == (5, 5) and "comes with this example" in table


def test_heads_and_queries_that_are_not_there(photo):
    for heads in (["5:0"], ["0:9"], ["all"], ["x:1"], ["-1:0"]):
        with pytest.raises(UserError):
            measured(photo, heads=heads)
    with pytest.raises(UserError, match="0 to 6"):
        measured(photo, queries=[7])
    with pytest.raises(UserError, match="Choose a picture"):
        measured(None)


def test_an_ablation_is_measured_once(photo):
    first = ablate_page.measure_new(
        None, photo, "auto", [SELF], [], [], 0.3, 0.5, False, RUN, None, EN, no_progress
    )  # fmt: skip
    assert len(first) == 8
    again = ablate_page.measure_new(
        first[0], photo, "auto", [SELF], [], [], 0.3, 0.5, False, RUN, None, EN, no_progress
    )  # fmt: skip
    assert all(value == gr.skip() for value in again) and len(again) == 8
