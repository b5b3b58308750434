"""The page Margins: its training, its error rates, its drawings, and its handlers called as gradio calls them."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch

from pipelines.common.errors import UserError
from pipelines.foundations import margin_page as page
from pipelines.foundations import margin_training as training
from pipelines.foundations import margin_view as view
from pipelines.foundations.config import MARGIN_LOSSES, MarginRecipe
from pipelines.foundations.margin_softmax import LOSSES
from tests.stubs import visitor

EN, ZH = visitor("en"), visitor("zh-CN")
SHORT = MarginRecipe(steps=30)


def last(iterator):
    *_, found = iterator
    return found


@pytest.fixture(scope="module")
def trained():
    return last(training.train(SHORT))


def test_every_loss_has_its_sliders_and_the_other_way_round():
    assert set(MARGIN_LOSSES) == set(LOSSES) and len(LOSSES) == 6


def test_the_digits_are_the_packaged_ones():
    data = training.digits()
    assert data.train.shape == (1300, 64) and data.test.shape == (497, 64) and data.test_labels[11] == 4
    assert data.train.dtype == np.float32 and (data.train.min(), data.train.max()) == (0, 1)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_learns_the_digits(name):
    kind = MARGIN_LOSSES[name]
    recipe = MarginRecipe(name, kind.margin.value if kind.margin else 0, dimension=3, steps=100)
    first, *_, done = training.train(recipe)
    assert (first.step, done.step) == (0, 100) and len(done.losses) == 100
    assert first.accuracy < 0.35 and done.accuracy > 0.8, done.accuracy
    assert done.known < min(first.known, 0.2) and done.weights.shape == (8, 3)


def test_a_seed_is_one_training_and_a_look_changes_nothing(trained, monkeypatch):
    monkeypatch.setattr(training, "LOOK", 7)
    again = last(training.train(SHORT))
    assert np.array_equal(again.features, trained.features) and again.losses == trained.losses
    assert not np.array_equal(last(training.train(replace(SHORT, seed=1, steps=1))).features, trained.features)


def test_digits_that_are_kept_out_are_kept_out(monkeypatch):
    data = training.digits()
    other = replace(data, train=np.where(data.train_labels[:, None] >= 8, 1 - data.train, data.train))
    before = last(training.train(replace(SHORT, steps=5)))
    monkeypatch.setattr(training, "digits", lambda: other)
    after = last(training.train(replace(SHORT, steps=5)))
    assert np.array_equal(before.weights, after.weights)
    monkeypatch.setattr(
        training, "digits", lambda: replace(data, train=np.where(data.train_labels[:, None] >= 7, 0, data.train))
    )
    assert not np.array_equal(last(training.train(replace(SHORT, steps=5))).weights, before.weights)


def test_the_error_rate_by_hand():
    features, labels = np.array([[1, 0], [1, 0.01], [0, 1], [0.01, 1.0]]), np.array([0, 0, 1, 1])
    every = np.ones(4, bool)
    assert training.equal_error_rate(features, labels, every) == 0.0
    assert training.equal_error_rate(features[[0, 2, 1, 3]], labels, every) == 0.5
    more = np.concatenate([features, -features]), np.concatenate([labels, labels])
    assert (
        training.equal_error_rate(*more, np.arange(8) < 4) == 0.0 < training.equal_error_rate(*more, np.ones(8, bool))
    )
    cross = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])  # equal ones opposite, different ones at right angles
    assert training.equal_error_rate(cross, labels, every) == 1.0
    rng = np.random.default_rng(0)
    noise = training.equal_error_rate(rng.normal(size=(300, 3)), rng.integers(0, 5, 300), np.ones(300, bool))
    assert noise == pytest.approx(0.5, abs=0.02)
    assert math.isnan(training.equal_error_rate(features, labels, labels == 9))
    assert math.isnan(training.equal_error_rate(features, labels, labels == 0))  # no different ones


def test_the_error_rate_is_where_the_two_errors_meet():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 120)
    features = rng.normal(size=(120, 2)) + 2 * np.eye(4, 2)[labels]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [(float(unit[i] @ unit[j]), labels[i] == labels[j]) for i in range(120) for j in range(i)]
    gaps = []
    for threshold, _ in pairs[::7]:
        taken = np.mean([score >= threshold for score, same in pairs if not same])
        refused = np.mean([score < threshold for score, same in pairs if same])
        gaps.append((abs(taken - refused), (taken + refused) / 2))
    every = np.ones(120, bool)
    assert training.equal_error_rate(features, labels, every) == pytest.approx(min(gaps)[1], abs=0.005)


def test_the_gradient_is_a_difference_and_the_margin_makes_it_longer(trained):
    place = int(np.nonzero(trained.labels == 4)[0][0])
    found = training.probe(trained, place)
    loss = training.restored(trained).double()
    for axis in range(2):
        ends = []
        for sign in (1, -1):
            moved = torch.from_numpy(trained.features[place : place + 1].astype(float))
            moved[0, axis] += sign * 1e-5
            ends.append(loss(moved, torch.tensor([4])).item())
        assert found.gradient[axis] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-4)
    assert found.label == 4 and found.told[4] < found.plain[4]
    none = training.probe(trained, place, margin=0.0)
    assert np.allclose(none.gradient, none.unmoved) and none.loss < found.loss
    strange = int(np.nonzero(trained.labels == 9)[0][0])
    assert training.probe(trained, strange) is None


def test_center_loss_is_told_with_the_centres_it_was_trained_with():
    moment = last(training.train(MarginRecipe("center", 0.5, steps=30)))
    place = int(np.nonzero(moment.labels == 4)[0][0])
    found, feature = training.probe(moment, place), moment.features[place]
    pull = 0.5 * (feature - moment.centres[4])
    assert np.linalg.norm(pull) > 1e-2 and found.gradient - found.unmoved == pytest.approx(pull, rel=1e-3, abs=1e-5)
    assert last(training.train(replace(SHORT, steps=1))).centres is None


def test_territories_shrink_with_the_margin(trained):
    angles = np.linspace(0, 2 * np.pi, 720)
    points = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    sure = [training.territory(training.restored(trained, margin), points)[1].mean() for margin in (0.0, 0.1, 0.3)]
    assert sure[0] == 1.0 > sure[1] > sure[2]
    winner, _ = training.territory(training.restored(trained), points)
    unit = trained.weights / np.linalg.norm(trained.weights, axis=1, keepdims=True)
    assert np.array_equal(winner, (points.astype(np.float32) @ unit.T).argmax(1))


def test_the_curve_is_the_loss_own():
    angles = np.array([0.0, 60.0, 90.0])
    assert training.curve("am-softmax", 0.2, angles) == pytest.approx([0.8, 0.3, -0.2])
    assert training.curve("a-softmax", 4, angles)[2] == pytest.approx(-3)
    assert training.curve("a-softmax", 4, angles, blended=True)[2] == pytest.approx(-0.5)
    assert training.blend(0) == 1000 and training.blend(1) == 5


def test_the_drawings_have_every_picture_in_its_place(trained):
    grid = np.zeros((4, 4), int), np.ones((4, 4), bool)
    drawn = view.plane(trained, grid, 11, [np.array([1.0, 0.0]), np.array([0.0, -0.5])], str)
    assert drawn.count("data-n=") == 497 and drawn.count('stroke-dasharray="5 5"') == 1
    assert drawn.count('text-decoration="underline"') == int((trained.labels >= 8).sum())
    side = view.reach(trained.features)
    x, y = np.clip(trained.features[11] / side, -1, 1) * 252 * (1, -1)
    assert re.search(rf'<text x="{x:.0f}" y="{y + 5:.0f}" data-n="11"', drawn)
    # Uphill is up: the arrow of a step to the right goes right, that of a step down goes down.
    assert "rotate(0)" in drawn and "rotate(90)" in drawn
    round_ = view.circle(trained, (np.zeros(8, int), np.array([True] * 6 + [False] * 2)), 11, str)
    assert round_.count("data-n=") == 497 and round_.count('opacity="0.22"') == 2


def test_the_sphere_turns_as_a_sphere():
    features = np.eye(3)
    shown = SimpleNamespace(features=features, labels=np.arange(3), weights=np.eye(3))
    drawn = view.sphere(shown, 0, str, turn=(0.0, 0.0))
    places = re.findall(r'data-p="([^"]*)" transform="translate\(([^)]*)\)" opacity="([^"]*)"', drawn)
    assert [p for p, *_ in places[:2]] == ["1.000,0.000,0.000"] * 2 and len(places) == 7
    assert places[0][1] == "240.0,-0.0" and float(places[2][1].split(",")[1]) == -240
    away = view.sphere(shown, 0, str, turn=(math.pi, 0.0))
    assert 'data-p="0.000,0.000,1.000" transform="translate(0.0,-0.0)" opacity="0.2"' in away


def settings(**changes):
    values = dict(loss="arcface", margin=0.3, scale=16, dimension=2, unseen=2, steps=12, seed=0, picture=12)
    return {**values, **changes}.values()


def run(ticket=None, request=EN, **changes):
    return list(page.train(ticket, *settings(**changes), request))


def test_the_page_trains_and_shows(monkeypatch):
    monkeypatch.setattr(page, "EVERY", 0.0)
    shown = run()
    assert shown[0][0] == gr.skip() and isinstance(shown[-1][0], str)
    ticket, figures, curves, detail, told, table = shown[-1]
    assert figures.count("<svg") == 3 and curves.count("<svg viewBox") == 2
    assert "Test picture 12: a 4." in detail and "ArcFace, step 12 of 12." in told
    assert table.count("<tr>") == 3 and "not trained at all" in table
    again = run(ticket, loss="softmax")[-1]
    assert again[5].count("<tr>") == 4 and page.shelf().get(ticket) is None
    assert "第 12 步" in run(request=ZH)[-1][4] and len(page.turns) == 0


def test_all_losses_in_turn():
    *_, (*_, table) = page.train_all(None, *settings(steps=3, margin=0.1), EN)
    assert table.count("<tr>") == 8 and "m = 0.1, s = 16" in table and "m = 0.2, s = 16" in table


def test_stop_ends_with_what_there_is(monkeypatch):
    monkeypatch.setattr(page, "EVERY", 0.0)
    steps = page.train(None, *settings(steps=3000), EN)
    next(steps), next(steps)
    page.halt(EN)
    *_, done = steps
    assert "Stopped. ArcFace, step 50 of 3000" in done[4] or "Stopped. ArcFace, step 25 of 3000" in done[4]


def test_a_second_click_takes_the_place_of_the_first(monkeypatch):
    monkeypatch.setattr(page, "EVERY", 0.0)
    ticket = run()[-1][0]
    first = page.train(ticket, *settings(steps=3000), EN)
    next(first)
    second = page.train(ticket, *settings(loss="softmax", steps=50), EN)
    next(second)
    *_, ended = first
    assert ended == (gr.skip(),) * 6
    *_, done = second
    assert "Softmax, step 50 of 50" in done[4] and done[5].count("<tr>") == 4  # none of what was replaced


def test_no_click_is_lost():
    """A page drops what is asked for while an event of the kind `once` is pending."""
    with gr.Blocks() as blocks, gr.Tab("Margins") as tab:
        page.build(blocks, tab)
    modes = {}
    for event in blocks.fns.values():
        modes.setdefault(event.fn.__name__, set()).add(event.trigger_mode)
    assert modes["train"] == modes["train_all"] == modes["pick"] == {"multiple"}
    assert modes["look"] == modes["choose"] == {"always_last"}


def test_another_margin_after_the_training():
    ticket = run()[-1][0]
    mild, hard = (page.look(ticket, "arcface", m, 16, 12, EN) for m in (0.0, 0.9))
    assert "the same" in mild[2] and "times as much" in hard[2] and mild[0] != hard[0]
    other = page.look(ticket, "am-softmax", 0.4, 16, 12, EN)
    assert "m = 0.4" in other[1] and "m = 0.9" not in other[1] and "ArcFace" in other[3]
    assert "took no part" in page.look(ticket, "arcface", 0.3, 16, 7, EN)[2]
    assert page.look(None, "arcface", 0.3, 16, 12, EN) == (gr.skip(),) * 5
    with pytest.raises(UserError, match="make room"):
        page.look("gone", "arcface", 0.3, 16, 12, EN)


def test_bad_numbers_are_said_and_sliders_work_at_their_ends():
    for wrong in ({"margin": 2}, {"scale": 0}, {"unseen": None}, {"steps": math.nan}, {"seed": -1}, {"dimension": 4},
                  {"loss": "none"}, {"unseen": 9}):  # fmt: skip
        with pytest.raises(UserError):
            run(**wrong)
    for name, kind in MARGIN_LOSSES.items():
        for margin in (kind.margin.low, kind.margin.high) if kind.margin else (0,):
            for scale, dimension, unseen in ((1, 2, 0), (64, 3, 3)):
                done = run(loss=name, margin=margin, scale=scale, dimension=dimension, unseen=unseen, steps=1)[-1]
                assert "nan" not in done[1] and "step 1 of 1" in done[4], (name, margin)


def test_choosing_and_clicking():
    margin, scale = page.choose("l-softmax")
    assert (margin["minimum"], margin["maximum"], margin["step"], scale["visible"]) == (1, 4, 1, False)
    assert page.choose("softmax")[0] == gr.update(visible=False) and page.choose("arcface")[1]["visible"] is True
    assert page.pick(SimpleNamespace(_data={"picture": 4})) == 5
    for odd in (None, {}, {"picture": "x"}, {"picture": 9999}):
        assert page.pick(SimpleNamespace(_data=odd)) == gr.skip()
    ticket = run()[-1][0]
    assert list(page.train_first(ticket, *settings(), EN)) == [(gr.skip(),) * 6]
