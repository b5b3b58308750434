"""The page as a whole: it opens fast and before torch, speaks two languages, and every event is in order."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import gradio as gr
import pytest

import app
from pipelines import PIPELINES
from pipelines.common.errors import UserError
from pipelines.ui import i18n
from pipelines.ui.guard import guarded

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def page():
    return app.build()


def test_the_page_is_built_before_any_model_library():
    heavy = ("torch", "torchvision", "transformers", "diffusers", "facenet_pytorch", "dlib")
    code = f"import sys, app; app.build(); app.build(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def events(page):
    return list(page.fns.values())


def test_every_event_is_named_bounded_and_grouped(page):
    for event in events(page):
        if event.fn is None:
            continue
        if event.api_visibility == "public":
            assert event.concurrency_id in ("heavy", "light", "fetch", "video", "text", "foundations"), event.api_name
            assert event.api_name and event.api_name.split("_")[0] in PIPELINES, event.name
            assert event.fn.__doc__, f"{event.api_name} has no description"
            assert event.concurrency_limit is not None, event.api_name


def test_api_names_are_unique_and_as_published(page):
    names = [event.api_name for event in events(page) if event.fn is not None and event.api_visibility == "public"]
    assert len(names) == len(set(names))
    face = (
        "detect compare enrol identify gallery_export gallery_import gallery_forget gallery_erase effects replay swap"
    )
    assert {f"face_{name}" for name in [*face.split(), "fetch"]} <= set(names)
    detection = "detect export video video_export trace desk settle ablate swap fetch"
    assert {f"detection_{name}" for name in detection.split()} <= set(names)


def test_every_label_is_translated(monkeypatch):
    asked = set()
    original = gr.I18n.__call__
    monkeypatch.setattr(gr.I18n, "__call__", lambda self, key: (asked.add(key), original(self, key))[1])
    app.build()
    assert len(asked) > 20
    assert sorted(asked - i18n.chinese().keys()) == []


def spoken():
    """Every format string that reaches `say`, read from the source."""
    for path in (ROOT / "pipelines").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("say", "speak"):
                for argument in node.args:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield argument.value
            if isinstance(node, ast.ListComp) and getattr(getattr(node.elt, "func", None), "id", "") in (
                "say",
                "speak",
            ):
                for text in getattr(node.generators[0].iter, "elts", ()):  # [say(t) for t in ("Face", "Score")]
                    yield text.value


def test_every_sentence_is_translated_with_the_same_fields():
    sentences = set(spoken())
    assert len(sentences) > 60
    assert sorted(sentences - {""} - i18n.chinese().keys()) == []
    for english, chinese in i18n.chinese().items():
        assert fields(english) == fields(chinese), english


def fields(text):
    from string import Formatter

    return sorted(name for _, name, _, _ in Formatter().parse(text) if name)


def test_sentences_follow_the_browser(monkeypatch):
    from tests.stubs import visitor

    monkeypatch.setattr(i18n, "chinese", lambda: {"{n} face(s).": "{n} 张人脸。"})
    assert i18n.say(visitor("en-GB,en;q=0.9"), "{n} face(s).", n=2) == "2 face(s)."
    assert i18n.say(visitor("zh-CN,zh;q=0.9"), "{n} face(s).", n=2) == "2 张人脸。"
    assert i18n.say(None, "{n} face(s).", n=2) == "2 face(s)."


def test_errors_become_one_sentence_and_leak_nothing(caplog):
    @guarded
    def known():
        raise UserError("Choose <b>a picture</b> first.")

    @guarded
    def unknown():
        raise RuntimeError("secret /server/path")

    @guarded
    def streamed():
        yield 1
        raise UserError("Too late.")

    with pytest.raises(gr.Error) as caught:
        known()
    assert caught.value.message == "Choose &lt;b&gt;a picture&lt;/b&gt; first."
    with pytest.raises(gr.Error) as caught:
        unknown()
    assert "secret" not in caught.value.message and "in the log as" in caught.value.message
    assert "secret" in caplog.text
    values = streamed()
    assert next(values) == 1
    with pytest.raises(gr.Error, match="Too late"):
        next(values)


def test_the_spaces_front_matter_fits_the_requirements():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    front = dict(line.split(": ", 1) for line in text.split("---")[1].strip().splitlines())
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and front["python_version"] == '"3.12"'
    assert tuple(int(n) for n in front["sdk_version"].split(".")[:2]) >= (6, 31)
    assert front["license"] == "apache-2.0"
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(pictures) >= 5
    for path in pictures:
        assert (ROOT / path).is_file(), path


def test_no_path_of_a_developers_machine_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert len(listed) > 30
    home = str(Path.home()) + os.sep
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".json", ".txt") and path.is_file():
            assert home not in path.read_text(encoding="utf-8"), name
