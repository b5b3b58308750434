"""The curves that the Recurrence page shows of larger networks: how they are trained, kept, read and drawn."""

import re

import numpy as np
import pytest

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.foundations import recurrence_curves, recurrence_page, tasks, train_recurrence
from tests.stubs import visitor

EN, ZH = visitor("en"), visitor("zh-CN")


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A run of two networks of the copy task, exported, and the catalogue's entry of it."""
    course = train_recurrence.course
    monkeypatch.setattr(
        train_recurrence, "course", lambda kind, task, length, steps: course(kind, task, length, 120, size=6_000)
    )
    for module in (train_recurrence, recurrence_curves):
        monkeypatch.setattr(module, "LENGTHS", {"copy": (1, 3)})
        monkeypatch.setattr(module, "KINDS", ("gru", "transformer"))
    monkeypatch.setattr(train_recurrence, "JUDGED", 100)
    train_recurrence.train("copy", None, tmp_path, 5)
    found = train_recurrence.export("copy", None, tmp_path, tmp_path / "weights")
    path = tmp_path / "weights" / "curves.json"
    entry = catalogue.Entry(
        "recurrence-curves", "foundations", "recurrence", "Curves", "x", "curves", "bundled", "x", "",
        (catalogue.File("curves", str(path)),),
    )  # fmt: skip
    monkeypatch.setattr(catalogue, "manifest", lambda: {"recurrence-curves": entry})
    return tmp_path, found


def test_a_run_is_kept_and_not_done_twice(shipped, capsys):
    folder, found = shipped
    assert set(found) == {"gru 1", "gru 3", "transformer 1", "transformer 3"}
    assert found["transformer 1"] > 0.5 > 1 / tasks.VALUES  # enough to say one symbol again
    capsys.readouterr()
    train_recurrence.train("copy", None, folder, 5)
    assert capsys.readouterr().out == ""
    (folder / "recurrence-copy-1-gru.json").unlink()
    train_recurrence.train("copy", None, folder, 5)
    assert re.fullmatch(r"copy 1 gru: [\d.]+ in \d+ s\n", capsys.readouterr().out)


def test_what_is_exported_is_what_is_read(shipped):
    _, found = shipped
    curves = recurrence_curves.shipped("copy")
    assert recurrence_curves.shipped("sort") is None and curves.steps == train_recurrence.STEPS["copy"]
    assert [(one.kind, one.length) for one in curves.points] == [
        ("gru", 1), ("gru", 3), ("transformer", 1), ("transformer", 3),
    ]  # fmt: skip
    for one in curves.points:
        assert one.accuracy == found[f"{one.kind} {one.length}"] and one.size <= 6_000
        assert len(one.distance) == 2 * one.length and min(one.distance) > 0
    assert [one.waits for one in curves.points] == [2, 6, 2, 2]
    batch = tasks.draw("recall", 5, 1, np.random.default_rng(0))
    assert recurrence_curves.read("recall", 5) == batch.inputs.shape[1]


def test_the_page_draws_them(shipped):
    shown = recurrence_page.beforehand("copy", EN)
    rows = re.findall(r'<tr data-kind="(\w+)">(.*?)</tr>', shown)
    assert [kind for kind, _ in rows] == ["gru", "transformer"] and shown.count("<svg viewBox") == 2
    cells = re.findall(r"<td>(.*?)</td>", rows[0][1])
    assert cells[4] == "2 / 6" and cells[2].endswith("%")
    assert "120 steps" not in shown and f"{train_recurrence.STEPS['copy']} steps of 32 examples" in shown
    assert "任务的长度" in recurrence_page.beforehand("copy", ZH)
    with pytest.raises(UserError, match="tasks in the list"):
        recurrence_page.beforehand("sing", EN)


def test_without_them_the_page_says_so(monkeypatch):
    monkeypatch.setattr(catalogue, "manifest", dict)
    assert "not on this machine" in recurrence_page.beforehand("copy", EN)


def test_what_is_shipped_is_whole():
    for task, lengths in recurrence_curves.LENGTHS.items():
        found = recurrence_curves.shipped(task)
        assert found is not None and {one.kind for one in found.points} == set(recurrence_curves.KINDS)
        assert {one.length for one in found.points} <= set(lengths)
        for one in found.points:
            assert 0 <= one.accuracy <= 1 and len(one.distance) == recurrence_curves.read(task, one.length)
        sizes = [one.size for one in found.points]
        assert max(sizes) <= train_recurrence.SIZE and min(sizes) > 0.85 * max(sizes)
