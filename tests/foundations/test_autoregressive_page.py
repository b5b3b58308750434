"""The Pixels page: what its handlers show of networks with known weights, and what it refuses."""

import re
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines.common import backends, catalogue
from pipelines.common.errors import UserError
from pipelines.foundations import pixels, pixels_drawing, pixels_page, pixels_pipeline, pixels_view
from tests.stubs import no_progress

EN = SimpleNamespace(headers={}, session_hash="someone")
LOG2 = np.log(2)


def speak(text, **values):
    return text.format(**values)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """FVSBN by rows that copies the pixel above (with the odds of e^8), an even one by columns, a small orderless."""
    above = pixels.build(pixels.MODELS["fvsbn"])
    with torch.no_grad():
        above.bias.fill_(-4.0)
        above.weight += torch.diag(torch.full((784 - 28,), 8.0), -28)
    networks = {
        "fvsbn": above,
        "fvsbn-columns": pixels.build(pixels.MODELS["fvsbn-columns"]),
        "orderless": pixels.build(pixels.MODELS["orderless"]),
    }
    entries = {}
    for name, network in networks.items():
        path = tmp_path / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in pixels.pack(network).items()}, path)
        entries[name] = catalogue.Entry(
            f"pixels-{name}", "foundations", "pixels", name, "x", name, "bundled", "x", "",
            (catalogue.File("model", str(path)),), facts={"test_nats": 97.0},
        )  # fmt: skip
    fresh = backends.Backends(10**9)
    monkeypatch.setattr(catalogue, "manifest", lambda: entries)
    monkeypatch.setattr(backends, "shared", lambda: fresh)
    return entries


def drawing():
    picture = np.zeros((28, 28), bool)
    picture[:, 5] = picture[:, 9] = True
    return picture


def test_nats_by_hand(shipped):
    found = pixels_pipeline.nats("fvsbn", drawing()[None], "rows")[0]
    dear, cheap = np.log1p(np.exp(4.0)), np.log1p(np.exp(-4.0))
    assert found.sum() == pytest.approx(2 * dear + 782 * cheap, rel=2e-3)
    assert found[0, 5] == pytest.approx(dear, rel=2e-3) and found[1, 5] == pytest.approx(cheap, rel=0.03)
    assert pixels_pipeline.nats("fvsbn-columns", drawing()[None], "rows").sum() == pytest.approx(784 * LOG2, rel=1e-5)


def test_nats_of_a_mixture_add_up_to_its_own(tmp_path, monkeypatch):
    from pipelines.foundations.autoregressive import log_likelihood

    small = pixels.PixelModel("made", "", (6,), "random", 3)
    network = pixels.build(small)
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    monkeypatch.setattr(pixels_pipeline, "load", lambda name: network)
    pictures = np.stack([drawing(), ~drawing()])
    found = pixels_pipeline.nats("any", pictures, "rows").sum((1, 2))
    exact = -log_likelihood(network, torch.from_numpy(pictures.reshape(2, -1)).float()).detach().numpy()
    assert found == pytest.approx(exact, rel=1e-5)


def test_a_mixture_walks_an_order_that_the_seed_draws(monkeypatch):
    network = pixels.build(pixels.PixelModel("made", "", (6,), "random", 3)).eval()
    monkeypatch.setattr(pixels_pipeline, "load", lambda name: network)
    known = pixels_drawing.kept("top", 0.5)
    walked = set()
    for seed in range(8):
        first = next(pixels_pipeline.completions("any", drawing(), known, "rows", 1.0, 1, seed))
        walked.add(tuple(np.flatnonzero(first.reached)))
    assert walked == {tuple(sorted(order[:56])) for order in network.orders.tolist()}


def test_a_drawing_is_completed_from_its_kept_half(shipped):
    known = pixels_drawing.kept("top", 0.5)
    *_, last = pixels_pipeline.completions("fvsbn", drawing(), known, "rows", 0.0, 2, 0)
    assert (last.pictures == drawing()).all() and last.reached.all() and last.unheard == 0 and last.done
    other = drawing()
    other[20:] = True  # what is not kept is not seen
    *_, last = pixels_pipeline.completions("fvsbn", other, known, "rows", 0.0, 1, 0)
    assert (last.pictures[0] == drawing()).all()
    *_, blind = pixels_pipeline.completions("fvsbn", drawing(), pixels_drawing.kept("bottom", 0.5), "rows", 0.0, 1, 0)
    assert (
        blind.unheard == 14 * 28
        and not blind.pictures[0][:14].any()
        and (blind.pictures[0][14:] == drawing()[14:]).all()
    )
    *_, any_half = pixels_pipeline.completions("orderless", drawing(), ~known, "rows", 1.0, 3, 0)
    assert any_half.unheard == 0 and (any_half.pictures[:, 14:] == drawing()[14:]).all()
    whole = list(pixels_pipeline.completions("fvsbn", drawing(), known | True, "rows", 1.0, 1, 0))
    assert (whole[-1].pictures[0] == drawing()).all() and whole[-1].unheard == 0
    stopped = list(pixels_pipeline.completions("fvsbn", drawing(), known, "rows", 1.0, 1, 0, halted=lambda: True))
    assert len(stopped) == 1 and not stopped[0].done


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bits": "0101"}, "784 characters"), ({"bits": None}, "784 characters"), ({"bits": "2" * 784}, "784"),
        ({"half": "middle"}, "What is kept"), ({"share": 101}, "between 0 and 100"), ({"visit": "up"}, "order"),
        ({"temperature": 9}, "temperature"), ({"count": 0}, "completions"), ({"seed": None}, "seed"),
        ({"seed": -1}, "seed"), ({"share": float("nan")}, "between 0 and 100"),
    ],
)  # fmt: skip
def test_what_cannot_be_completed_is_said(shipped, changes, sentence):
    usual = {
        "bits": pixels_drawing.as_text(drawing()), "half": "top", "share": 50, "visit": "rows", "temperature": 0.8,
        "count": 2, "seed": 0,
    }  # fmt: skip
    with pytest.raises(UserError, match=sentence):
        list(pixels_page.complete(*(usual | changes).values(), EN, no_progress))


def test_the_page_shows_a_row_for_each_model_that_is_here(shipped):
    bits = pixels_drawing.as_text(drawing())
    *_, last = pixels_page.complete(bits, "top", 50, "rows", 0.8, 3, 0, EN, no_progress)
    assert last.count("<section data-model") == 2 and last.count("<img") == 6  # FVSBN by columns is for its own order
    assert "FVSBN" in last and "Orderless deep NADE" in last
    *_, last = pixels_page.complete(bits, "left", 50, "columns", 0.8, 1, 0, EN, no_progress)
    assert "FVSBN by columns" in last and "before it has heard" not in last
    heat, table, orders = pixels_page.measure(bits, "fvsbn", "rows", EN)
    own = pixels_pipeline.nats("fvsbn", drawing()[None], "rows").sum()
    assert f"FVSBN: {own:.1f} nats" in heat and "white came with a chance of 1.8" in heat
    rows = re.findall(r"<tr><td>(.*?)</td></tr>", table)
    assert len(rows) == 3 and rows[0].split("</td><td>")[1] == f"{own:.1f}" and "97.5" in rows[0]
    assert float(rows[0].split("</td><td>")[2]) > own + 100  # scattered: each pixel comes as a surprise
    assert orders.count("<tr><td>") == 6  # two by FVSBN, four by the orderless
    *_, opened = pixels_page.first(False, bits, "fvsbn", "rows", "top", 50, 0.8, 1, 0, EN)
    assert opened[0] is True and opened[4].count("<img") == 2
    assert list(pixels_page.first(True, bits, "fvsbn", "rows", "top", 50, 0.8, 1, 0, EN)) == [(gr.skip(),) * 5]


def test_the_page_opens_without_weights(monkeypatch):
    monkeypatch.setattr(catalogue, "manifest", dict)
    bits = pixels_drawing.as_text(drawing())
    assert "not on this machine" in pixels_page.measure(bits, "fvsbn", "rows", EN)[0]
    assert list(pixels_page.complete(bits, "top", 50, "rows", 0.8, 3, 0, EN, no_progress)) == []
    with pytest.raises(UserError, match="There is no model"):
        pixels_page.judge(bits, "fvsbn")


def test_the_board_keeps_what_is_drawn():
    bits = pixels_drawing.as_text(drawing())
    one, two = pixels_view.board(bits, "Board"), pixels_view.board(bits, "Board")
    assert one != two and f'data-bits="{bits}"' in one and one.count("h1v1h-1z") == 56 and "M5 0h1" in one
    event = SimpleNamespace(_data={"bits": bits})
    assert pixels_page.store(EN, event) == bits
    assert pixels_page.store(EN, SimpleNamespace(_data=None)) == gr.skip()
    with pytest.raises(UserError, match="784"):
        pixels_page.store(EN, SimpleNamespace(_data={"bits": "<b>"}))
    with pytest.raises(UserError, match="examples are"):
        pixels_page.put("nine", EN)
    assert pixels_page.put("", EN)[0] == "0" * 784
    assert (pixels_drawing.from_text(pixels_page.put("3", EN)[0]) == pixels_drawing.example("3")).all()


def test_a_stroke_ends_a_completion_and_does_not_wait_for_it(shipped, monkeypatch):
    bits = pixels_drawing.as_text(drawing())
    run = pixels_page._completed
    with pixels_page.turns.take(EN.session_hash) as turn:
        shown = run(turn, drawing(), pixels_drawing.kept("top", 0.5), ("rows", 0.8, 1, 0), speak)
        next(shown)
        monkeypatch.setattr(turn.over, "wait", lambda *_: pytest.fail("it was waited for"))
        pixels_page.store(EN, SimpleNamespace(_data={"bits": bits}))
        pixels_page.put("3", EN)
        assert turn.halted
        *_, last = shown
    assert "…" not in last and last.count("<section data-model") == 1  # nothing is announced that does not come


def test_halves_and_the_control():
    for half, corner in (("top", (0, 27)), ("left", (27, 0)), ("right", (0, 27)), ("bottom", (27, 0))):
        known = pixels_drawing.kept(half, 0.25)
        assert known.sum() == 7 * 28 and known[corner]
    assert pixels_drawing.kept("scattered", 0.3).sum() == 235 and not pixels_drawing.kept("top", 0).any()
    for digit in pixels_drawing.EXAMPLES:
        picture = pixels_drawing.example(digit)
        assert 50 < picture.sum() < 170 and picture[4:24, 4:24].sum() >= picture.sum() - 12
        control = pixels_drawing.scattered(picture)
        assert control.sum() == picture.sum() and (control != picture).any()


def test_a_completion_shows_whose_pixel_it_is():
    known, values = pixels_drawing.kept("top", 0.5), drawing()
    shown = pixels_view.picture(values, known, known)
    assert shown[0, 5].tolist() == [255, 255, 255] and shown[0, 0].tolist() == [30, 41, 75]
    assert shown[20, 0].tolist() == [70, 70, 70]
    shown = pixels_view.picture(values, known)
    assert shown[20, 5].tolist() == [253, 186, 80] and shown[20, 0].tolist() == [0, 0, 0]
