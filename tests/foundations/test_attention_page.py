"""The Attention page and what it measures: exponents, bytes, errors and bits, each against numbers known before."""

import math
import re
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines.common import backends, catalogue
from pipelines.common.errors import UserError
from pipelines.foundations import attention_measure as measure
from pipelines.foundations import attention_page, attention_pipeline, quantised, train_attention
from pipelines.foundations.attention_config import KINDS, LanguageConfig
from pipelines.foundations.attention_model import ByteModel
from tests.stubs import no_progress

EN = SimpleNamespace(headers={}, session_hash="someone")
TINY = {kind: LanguageConfig(kind, 16, 1, 2, 8, 16) for kind in KINDS}


def test_the_exponent_of_known_laws():
    x = [128, 256, 512, 1024, 2048]
    assert measure.order_of_growth(x, [3 * v**1.5 for v in x]) == pytest.approx(1.5)
    assert measure.order_of_growth(x, [1, *(v**2 for v in x[1:])]) == pytest.approx(2)  # the four longest only
    assert np.isnan(measure.order_of_growth([128], [1.0]))


def test_the_most_bytes_at_once():
    with measure.Peak() as peak:
        a = torch.ones(1000)  # 4,000 bytes
        b = a + 1  # 8,000 at once
        del a
        c = b.view(10, 100)  # no bytes of its own
        d = c + 1
        del b, c, d
        torch.ones(500)
    assert peak.most == 8000 and peak.now == 0


def test_memory_grows_with_the_square_and_without_it():
    found = list(measure.costs(list(KINDS), 1024))
    assert [(each.length, each.kind) for each in found] == [(n, k) for n in (128, 256, 512, 1024) for k in KINDS]
    for kind in KINDS:
        peaks = [each.peak for each in found if each.kind == kind]
        power = measure.order_of_growth([256, 512, 1024], peaks[1:])
        assert (0.6 < power < 1.1) if kind in measure.LINEAR else (1.7 < power < 2.1), (kind, power)
    square = next(each for each in found if each.kind == "softmax" and each.length == 1024)
    assert square.peak >= 2 * 4 * 1024**2  # scores and weights
    assert all(each.seconds > 0 for each in found)


@pytest.mark.parametrize("kind", measure.LINEAR)
def test_time_grows_with_the_length(kind):
    """Of the processor's own time; the least of three tries, since other work on the same caches only adds."""
    tries = [list(measure.costs([kind], 16_384))[2:] for _ in range(3)]
    least = [min(each.seconds for each in same) for same in zip(*tries, strict=True)]
    power = measure.order_of_growth(measure.LENGTHS[2:], least, last=6)
    assert 0.7 < power < 1.15, least


def test_what_has_no_room_is_left_out(monkeypatch):
    monkeypatch.setattr(measure, "ROOM", 4_000_000)
    found = list(measure.costs(["softmax", "elu"], 1024))
    assert [each.length for each in found if each.kind == "elu"] == [128, 256, 512, 1024]
    assert [each.length for each in found if each.kind == "softmax"] == [128, 256, 512]
    with pytest.raises(ValueError, match="kinds are"):
        list(measure.costs(["hash"], 128))


def test_linear_attention_is_exact_where_nothing_is_sharp():
    dull, sharp = measure.errors([1e-6, 6.4])
    assert dull.shares["normalised"] < 1e-2 and dull.shares["mean"] < 1e-2
    assert sharp.shares["mean"] > 0.8 and all(0 < share < 1.5 for share in sharp.shares.values())


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Two models that say 8 bits for each byte: all weights but the norms' are zero."""
    monkeypatch.setattr(attention_pipeline, "MODELS", TINY)
    entries = {}
    for kind in ("elu", "flash"):
        model = ByteModel(TINY[kind])
        with torch.no_grad():
            for value in model.parameters():
                value.zero_()
        path = tmp_path / f"{kind}.safetensors"
        save_file({key: value.contiguous() for key, value in quantised.pack(model).items()}, path)
        entries[kind] = catalogue.Entry(
            f"attention-{kind}", "foundations", "attention", kind, "x", kind, "bundled", "x", "",
            (catalogue.File("model", str(path)),), facts={"bits": 2.125},
        )  # fmt: skip
    fresh = backends.Backends(10**9)
    monkeypatch.setattr(catalogue, "manifest", lambda: entries)
    monkeypatch.setattr(backends, "shared", lambda: fresh)


def test_a_text_is_scored_under_each_model(shipped):
    assert dict(attention_pipeline.bits("naïve 🦊")) == {"elu": pytest.approx(8.0), "flash": pytest.approx(8.0)}
    *_, table = attention_page.score("A fox.", EN, no_progress)
    assert table.count("8.000") == 2 and table.count("2.125") == 2 and table.count("data-kind") == 2
    for text in ("", "x", None, "a" * 3000):
        with pytest.raises(UserError, match="2 to 2,048 bytes"):
            list(attention_page.score(text, EN, no_progress))


def test_a_long_text_is_read_in_rows_as_in_training(shipped, monkeypatch):
    kept = [attention_pipeline._read(entry) for entry in attention_pipeline.present().values()]
    for model in kept:
        torch.manual_seed(0)
        for value in model.parameters():
            torch.nn.init.normal_(value, std=0.3)
    monkeypatch.setattr(attention_pipeline, "_read", lambda entry: kept[0])
    text = "The fox and the owl. " * 25  # 525 bytes: two whole rows and a part of one
    found = dict(attention_pipeline.bits(text))["elu"]
    data = torch.tensor(list(text.encode()))[None]
    with torch.no_grad():
        rows = [kept[0].entropy(data[:, start : start + 256])[0] for start in (0, 256, 512)]
    assert found == pytest.approx(float(torch.cat(rows).mean()) / math.log(2), rel=1e-5)
    assert len(torch.cat(rows)) == 525 - 3


def test_without_models_the_page_says_so(monkeypatch):
    monkeypatch.setattr(catalogue, "manifest", dict)
    (said,) = attention_page.score("A fox.", EN, no_progress)
    assert "not on this machine" in said


def test_the_page_draws_as_it_measures():
    shown = list(attention_page.measure(["elu", "softmax"], 512, True, EN, no_progress))
    assert len(shown) == 6 and "<tr data-kind" not in shown[2] and shown[-1].count("<tr data-kind") == 2
    assert shown[-1].count("<svg viewBox") == 2 and "Linear, elu + 1" in shown[-1]
    power = float(re.findall(r'data-kind="softmax">.*?</td>.*?<td>.*?</td><td>([\d.]+)</td>', shown[-1])[0])
    assert 1.5 < power < 2.1
    for kinds, longest in (([], 512), (["hash"], 512), (["elu"], 64), (["elu"], 10**6), (["elu"], None)):
        with pytest.raises(UserError, match=r"Choose at least one|between 128 and 16,384"):
            list(attention_page.measure(kinds, longest, True, EN, no_progress))
    *_, twice = attention_page.measure(["softmax", "elu", "elu"], 128, True, EN, no_progress)
    assert twice.count("<polyline") == 4  # each kind once, seconds and bytes
    assert list(attention_page.first(True, ["elu"], True, "A fox.", EN)) == [(gr.skip(),) * 4]


def test_stop_ends_a_measurement():
    run = attention_page.measure(["elu"], 16_384, True, EN, no_progress)
    next(run)
    attention_page.halt(EN)
    assert len(list(run)) == 0


def test_the_recipe_learns_and_its_file_tells_the_same(tmp_path, monkeypatch):
    story = "One day the fox saw the moon and the owl number {}. They were happy.\n"
    for name in ("tinystories.txt", "tales.txt"):
        (tmp_path / name).write_text("<|endoftext|>".join(story.format(k) for k in range(400)))
    given, kept = train_attention.texts(tmp_path)
    assert len(given) + len(kept) == 2 * sum(len(story.format(k).strip()) + 1 for k in range(400)) and len(kept) > 100
    assert int((given == 0).sum() + (kept == 0).sum()) == 800
    monkeypatch.setattr(train_attention, "LENGTH", 48)
    monkeypatch.setattr(train_attention, "MODELS", TINY)
    monkeypatch.setattr(
        train_attention, "OPTIONS", train_attention.TrainOptions(3e-3, 8, warmup=5, finish=60, ema_decay=0.9)
    )
    # 8 bits and more before
    train_attention.train("flash", tmp_path, tmp_path, 5)
    found = train_attention.export("flash", tmp_path, tmp_path, tmp_path / "weights")
    assert found["bits"] < 6.5 and found["bits"] == pytest.approx(found["bits_float"], rel=0.03)
