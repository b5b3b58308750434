"""The pages of a query's life and of the slots, their handlers called as gradio calls them, over tiny networks."""

from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from pipelines.common.errors import UserError
from pipelines.detection import ablate_page, desk_page, query_page, slots_page
from pipelines.detection import examples_page as examples
from pipelines.detection import traces_page as traces
from pipelines.ui import blocks, i18n
from tests.stubs import no_progress, visitor

pytestmark = pytest.mark.usefixtures("tiny")

EN, ZH = visitor("en"), visitor("zh-CN,zh;q=0.9")
PATH, LOOK, LISTEN = query_page.view.VIEWS
BLANK, MEAN = query_page.view.CONTROLS


def click(x, y):
    return SimpleNamespace(index=(x, y))


# --- query life ------------------------------------------------------------------------------------------------------


def traced(photo, weights="auto", view=PATH, control=BLANK, request=EN, threshold=0.0):
    return query_page.trace_queries(photo, weights, threshold, view, control, request, no_progress)


@pytest.mark.parametrize(("weights", "layers", "heads"), [("sigmoid", 2, 4), ("softmax", 3, 4)])
def test_tracing_shows_the_surest_query_at_the_last_layer(photo, weights, layers, heads):
    ticket, query, layer, picture, counts, steps, listens, maps = traced(photo, weights)
    run = traces.kept(ticket)
    assert query["value"] == int(run.life.scores[-1].argmax()) and len(query["choices"]) == 7
    assert query["choices"][0][1] == query["value"]
    assert (layer["maximum"], layer["value"]) == (layers, layers)
    assert picture.shape == (120, 160, 3) and counts.count("<b>7 answer(s)</b>") == layers
    assert steps.count("<tr>") == layers + 1 and f"Query {query['value']} ends as" in steps
    assert listens.count("<tr>") == 6 and "14.3%" in listens  # a fair share of seven
    assert maps.count("<img") == 2 * (heads + 1) and "Head 4" in maps and "coincide" in maps


def test_attention_maps_and_self_attention_of_the_trace_sum_to_one(photo):
    for weights in ("sigmoid", "softmax"):
        run = traces.kept(traced(photo, weights)[0])
        assert np.allclose(run.trace.self_attention.sum(-1), 1, atol=1e-5)
        assert (run.trace.cross_attention.sum((-1, -2)) <= 1 + 1e-5).all()
        assert run.blank.cross_attention.shape == run.trace.cross_attention.shape
        assert not np.allclose(run.blank.logits, run.trace.logits)


def test_layers_views_and_controls_change_what_is_shown(photo):
    ticket = traced(photo)[0]

    def look(query, layer, view, control):
        return query_page.look(ticket, query, layer, view, control, 0.0, EN)

    pictures = [look(2, layer, view, BLANK)[0] for layer in (1, 2) for view in (PATH, LOOK, LISTEN)]
    assert all(p.shape == (120, 160, 3) for p in pictures)
    assert len({p.tobytes() for p in pictures}) == 6
    blank, mean = look(2, 1, PATH, BLANK)[4], look(2, 1, PATH, MEAN)[4]
    assert "a blank picture" in blank and "the mean of all queries" in mean and blank != mean
    assert look(2, 99, PATH, BLANK)[1] == look(2, 2, PATH, BLANK)[1]  # a layer too many is the last
    with pytest.raises(UserError, match="0 to 6"):
        look(7, 1, PATH, BLANK)
    with pytest.raises(UserError, match="Choose a query"):
        look("all", 1, PATH, BLANK)
    assert all(value == gr.skip() for value in query_page.look("gone", 2, 1, PATH, BLANK, 0.0, EN))


def test_a_click_takes_the_query_whose_box_is_there(photo):
    ticket = traced(photo)[0]
    run = traces.kept(ticket)
    for query in range(7):
        box = run.life.boxes[-1, query]
        at = click((box[0] + box[2]) / 2 * 160, (box[1] + box[3]) / 2 * 120)
        found, *shown = query_page.pick(ticket, 2, PATH, BLANK, 0.0, EN, at)
        assert found == query and f"Query {query} ends as" in shown[2]
    with pytest.raises(UserError, match="Run the network"):
        query_page.pick(None, 2, PATH, BLANK, 0.0, EN, click(1, 1))
    query_page.pick(ticket, 2, PATH, BLANK, 0.0, EN, click(-50, 10_000))  # outside is the nearest point inside


def test_the_threshold_marks_the_silent(photo):
    ticket, query, *_ = traced(photo, threshold=0.999)
    assert all("silent" in text for text, _ in query["choices"])
    found, _, counts, *_ = query_page.change_threshold(ticket, 0, 2, PATH, BLANK, 0.0, EN)
    assert not any("silent" in text for text, _ in found["choices"]) and "7 answer(s)" in counts


def test_a_picture_is_traced_once(photo):
    first = query_page.trace_new(None, photo, "auto", 0.3, PATH, BLANK, EN, no_progress)
    assert first[0] == (photo, "auto") and len(first) == 9
    again = query_page.trace_new(first[0], photo, "auto", 0.3, PATH, BLANK, EN, no_progress)
    assert all(value == gr.skip() for value in again) and len(again) == 9
    emptied = query_page.trace_new(first[0], None, "auto", 0.3, PATH, BLANK, EN, no_progress)
    assert len(emptied) == 9 and emptied[0] is None and emptied[4] is None
    with pytest.raises(UserError, match="Choose a picture"):
        traced(None)


@pytest.mark.parametrize("size", [(1, 1), (2, 700), (700, 2)])
def test_odd_pictures_have_a_life_too(tmp_path, size):
    path = tmp_path / "odd.png"
    Image.new("RGB", size, (255, 0, 0)).save(path)
    for view in (PATH, LOOK, LISTEN):
        assert traced(str(path), view=view)[3].shape == (size[1], size[0], 3)
    assert desk_page.lay_out(str(path), "auto", [], None, EN, no_progress)[9].shape == (size[1], size[0], 3)
    options = (["encoder"], [], [], 0.1, 0.5, False, "run", None)
    assert ablate_page.measure(str(path), "auto", *options, EN, no_progress)[3].shape == (size[1], size[0], 3)


def test_the_inside_speaks_chinese(photo):
    *_, counts, steps, listens, maps = traced(photo, request=ZH)
    assert "7 个回答" in counts and "最终为" in steps and "均分份额" in listens and "空白图片" in maps


# --- the slot map ----------------------------------------------------------------------------------------------------


def test_the_slot_map_grows_and_is_kept(monkeypatch, photo):
    monkeypatch.setattr(examples, "PHOTOS", [photo, photo])
    events = list(slots_page.collect("auto", 0.0, EN, no_progress))
    assert len(events) == 2 and "6 of 12 views" in events[0][1] and "12 of 12 views" in events[1][1]
    chart, verdict = events[-1][0]["value"], events[-1][1]
    assert chart.dtype == np.uint8 and chart.shape[2] == 3 and "Control" in verdict
    monkeypatch.setattr(slots_page, "predict", None)  # a second visitor waits for no network
    ((again, _, _),) = slots_page.collect("sigmoid", 0.0, EN, no_progress)
    assert np.array_equal(again["value"], chart)
    assert not np.array_equal(slots_page.redraw("auto", 1.0), chart)
    marked, text = slots_page.ask("auto", 0.0, EN, click(20, 60))
    assert "on 12 of 12 views" in text and not np.array_equal(marked, chart)
    assert slots_page.ask("auto", 0.0, EN, click(1, 1))[1] == gr.skip()  # between the panels
    with pytest.raises(UserError, match="Draw the slot map"):
        slots_page.ask("softmax", 0.0, EN, click(20, 60))


def test_a_slot_map_that_was_stopped_is_not_kept(monkeypatch, photo):
    monkeypatch.setattr(examples, "PHOTOS", [photo])
    growing = slots_page.grow("auto")
    assert next(growing).pictures == 1
    growing.close()
    assert slots_page.redraw("auto", 0.0) == gr.skip()


# --- the pages -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    asked = set()
    with pytest.MonkeyPatch.context() as patch, gr.Blocks() as page:
        original = gr.I18n.__call__
        patch.setattr(gr.I18n, "__call__", lambda self, key: (asked.add(key), original(self, key))[1])
        switches = blocks.Switches(
            gr.Radio(["local"], value="local"), gr.Dropdown(["auto"], value="auto"), lambda e: None
        )
        with gr.Tabs():
            for module in (query_page, desk_page, ablate_page):
                with gr.Tab() as tab:
                    module.build(page, tab, switches)
    return page, asked


def test_every_label_is_translated(page):
    assert len(page[1]) > 40 and sorted(page[1] - i18n.chinese().keys()) == []


def test_events_are_named_and_grouped(page):
    public = [event for event in page[0].fns.values() if event.fn is not None and event.api_visibility == "public"]
    names = {event.api_name for event in public if event.api_name.startswith("detection_")}
    assert names == {f"detection_{name}" for name in ("trace", "slots", "desk", "settle", "ablate")}
    for event in public:
        if event.api_name in names:
            assert event.concurrency_id in ("heavy", "light") and event.fn.__doc__


def test_desk_and_ablation_share_one_truth(page):
    assert traces.drawn_truth(page[0]) is traces.drawn_truth(page[0])
    assert sum(isinstance(block, gr.State) for block in page[0].blocks.values()) == 8
