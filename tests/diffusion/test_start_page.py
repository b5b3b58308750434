"""A picture to begin from, a mask over it, and a saved picture that is brought back; and what programs may ask."""

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from gradio.data_classes import FileData
from gradio.utils import get_upload_folder
from PIL import Image, PngImagePlugin

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.diffusion import draw_page, examples_page, program_page, replay_page, running_page, settings_page
from pipelines.diffusion.record import read_png
from pipelines.diffusion.start_page import Given, editor, read
from tests.diffusion.test_pages import EN, ZH, draw, named
from tests.stubs import no_progress

RED = np.zeros((16, 16, 3), np.uint8)
RED[..., 0] = 255
NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def png(array, mode=None):
    stream = io.BytesIO()
    Image.fromarray(array, mode).save(stream, "PNG")
    return stream.getvalue()


def layer(alpha):
    """A painted layer whose opacity is this (H, W) array."""
    return png(np.dstack((np.full((*alpha.shape, 3), 90, np.uint8), alpha)))


def strokes(height=16, width=16, rows=8):
    alpha = np.zeros((height, width), np.uint8)
    alpha[:rows] = 128
    return layer(alpha)


# --- what is in the editor


def test_a_picture_is_read_with_what_is_painted_over_it():
    image, mask = read(Given(png(RED), (strokes(),)))
    assert image.tolist() == RED.tolist() and mask.dtype == bool and mask.sum() == 128 and mask[:8].all()
    lower = np.zeros((16, 16), np.uint8)
    lower[12:] = 1
    assert read(Given(png(RED), (strokes(), layer(lower))))[1].sum() == 192  # of all layers


@pytest.mark.parametrize(
    "given", [None, Given(None, (strokes(),)), Given(b"", ()), Given(strokes(rows=0), (strokes(),))]
)
def test_without_a_picture_there_is_no_mask(given):
    assert read(given) == (None, None)


def test_nothing_painted_is_no_mask_and_everything_is_all():
    assert read(Given(png(RED), (strokes(rows=0),)))[1] is None
    assert read(Given(png(RED), ()))[1] is None
    assert read(Given(png(RED), (png(RED),)))[1].all()  # a layer without transparency


def test_a_mask_of_the_same_shape_is_fitted_and_another_refused(stub):
    image, mask = read(Given(png(np.tile(RED, (2, 2, 1))), (strokes(),)))
    assert mask.shape == image.shape[:2] == (32, 32) and mask[:16].all() and not mask[16:].any()
    with pytest.raises(UserError, match="must be of one size, and are 40×16 and 16×16 pixels"):
        draw(given=Given(png(RED), (strokes(16, 40),)))


@pytest.mark.parametrize("file", [b"no picture", png(NOISE)[:300], b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_damaged_files_get_a_sentence(file):
    with pytest.raises(UserError, match=r"can be read|damaged"):
        read(Given(file, ()))
    with pytest.raises(UserError, match="paint it again"):
        read(Given(png(RED), (file,)))


def test_an_editor_hands_on_blobs_once_and_uploads_only(tmp_path):
    with gr.Blocks():
        component = editor("test")
    component.blob_storage["a"] = SimpleNamespace(background=b"x", layers=[b"y", None], composite=b"z")
    payload = SimpleNamespace(id="a", background=None, layers=[], composite=None)
    assert component.preprocess(payload) == Given(b"x", (b"y",)) and component.blob_storage == {}
    assert component.preprocess(payload) is None and component.preprocess(None) is None
    outside = tmp_path / "secret.png"
    outside.write_bytes(png(RED))
    for background, layers in ((str(outside), []), (None, [str(outside)])):
        given = SimpleNamespace(
            id=None, background=FileData(path=background or draw_file(png(RED))),
            layers=[FileData(path=path) for path in layers],
        )  # fmt: skip
        with pytest.raises(gr.Error, match="Upload the picture"):
            component.preprocess(given)


def draw_file(data, name="a.png"):
    path = Path(get_upload_folder()) / "tests-diffusion" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def test_the_editor_stays_itself_when_a_session_updates_it():
    from pipelines.diffusion import start_page

    with gr.Blocks():
        component = editor("test")
    again = type(component)(**component.constructor_args)  # as gradio does it
    assert again.get_block_name() == "imageeditor" and type(again).preprocess is type(component).preprocess
    again.blob_storage["a"] = SimpleNamespace(background=b"x", layers=[], composite=None)
    assert again.preprocess(SimpleNamespace(id="a")) == Given(b"x", ())
    assert not Path(start_page.__file__).with_suffix(".pyi").exists()  # gradio writes one for a plain subclass


# --- from a picture


def test_a_picture_is_begun_from_and_its_strength_counts(stub):
    last = draw(given=Given(png(RED), ()), strength=0.5, count=4)[-1]
    result = running_page.kept(last["ticket"])
    assert result.calls == 2 and result.request.image.tolist() == RED.tolist() and result.request.mask is None


def test_what_is_not_painted_over_is_kept_to_the_bit(stub):
    last = draw("blue", given=Given(png(RED), (strokes(),)), strength=1)[-1]
    image = running_page.kept(last["ticket"]).image
    assert image[8:].tolist() == RED[8:].tolist() and (image[:8] != RED[:8]).any(axis=-1).all()
    everything = draw("blue", given=Given(png(RED), (png(RED),)), strength=1)[-1]  # painted over all
    assert (running_page.kept(everything["ticket"]).image != RED).any(axis=-1).all()


def test_the_drawing_becomes_the_start(stub):
    ticket = draw("blue")[-1]["ticket"]
    taken = draw_page.take(ticket)
    assert taken["layers"] == [] and taken["background"] == taken["composite"]
    image, mask = read(Given(taken["background"], ()))
    assert image.tolist() == running_page.kept(ticket).image.tolist() and mask is None


def test_the_examples_are_what_the_bundled_model_draws():
    assert len(examples_page.prompts()) == len(set(examples_page.prompts())) == 12
    assert 1 <= len(examples_page.pictures()) <= 3
    for path in examples_page.pictures():
        request = read_png(Path(path).read_bytes())
        assert request.weights == "emoji" and (request.width, request.height) == (128, 128)


# --- brought back


FIELDS = ("prompt", "strength", "backend", "weights", "start", *settings_page.FIELDS)


def saved(tmp_path, step):
    path = tmp_path / "back.png"
    path.write_bytes(Path(step["file"]["value"]).read_bytes())
    return str(path)


def replay(path, given=None, request=EN):
    return [named(step) for step in draw_page.replay(path, given, request, no_progress)]


def test_a_saved_picture_brings_its_settings_and_itself_back(stub, tmp_path):
    path = saved(
        tmp_path, draw("blue", negative="n", seed=str(2**63 - 1), guidance=2.5, sampler="euler_a", count=3)[-1]
    )
    back = dict(zip(FIELDS, replay_page.restore(path), strict=True))
    assert (back["prompt"], back["negative_prompt"], back["sampler"]) == ("blue", "n", "euler_a")
    assert (back["seed"], back["num_steps"]["value"], back["guidance_scale"]["value"]) == (str(2**63 - 1), 3, 2.5)
    assert (back["backend"], back["weights"], back["width"], back["start"]) == ("local", "stub", 16, None)
    *under_way, last = replay(path)
    assert "Replayed: the same picture, bit for bit." in last["told"] and "gh-yes" in last["told"]
    assert len(under_way) == 3 and all("Replayed" not in step["told"] for step in under_way)
    assert "逐位相同" in replay(path, request=ZH)[-1]["told"]


def test_one_changed_pixel_is_told(stub, tmp_path):
    path = saved(tmp_path, draw("blue")[-1])
    with Image.open(path) as picture:
        text, pixels = picture.text["glasshouse"], np.array(picture)
    pixels[3, 5, 1] ^= 7
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("glasshouse", text)
    Image.fromarray(pixels).save(path, pnginfo=chunks)
    told = replay(path)[-1]["told"]
    assert "0.39% of the pixels differ" in told and "gh-no" in told and "edited since" in told


def forge(path, **changes):
    """The file with other sections in its record."""
    with Image.open(path) as picture:
        record, pixels = json.loads(picture.text["glasshouse"]), np.array(picture)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("glasshouse", json.dumps({**record, **{key: made(record) for key, made in changes.items()}}))
    Image.fromarray(pixels).save(path, pnginfo=chunks)


def test_other_versions_are_named(stub, tmp_path):
    path = saved(tmp_path, draw("blue")[-1])
    forge(path, made_with=lambda record: record["made_with"] | {"torch": "0.4.1"})
    told = replay(path)[-1]["told"]
    assert "bit for bit" in told and "It was drawn with torch 0.4.1, and here is" in told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"request": lambda record: record["request"] | {"num_steps": 10**9}}, "between 1 and 200"),
        ({"request": lambda record: record["request"] | {"width": 10**6}}, "at most 1,024"),
        ({"request": lambda record: record["request"] | {"run": "rm"}}, "settings are not the ones"),
        ({"format": lambda record: "other"}, "of another kind"),
        ({"version": lambda record: 99}, "version that this demo does not know"),
        ({"made_with": lambda record: "x" * 10**7}, "longer than a run can be"),
    ],
)
def test_a_forged_record_gets_a_sentence(stub, tmp_path, changes, words):
    path = saved(tmp_path, draw("blue")[-1])
    forge(path, **changes)
    with pytest.raises(UserError, match=words):
        replay_page.restore(path)


def test_what_is_no_picture_of_ours_gets_a_sentence(tmp_path):
    plain, text = tmp_path / "plain.png", tmp_path / "a.txt"
    plain.write_bytes(png(RED))
    text.write_text("hello")
    for path, words in ((plain, "carries no run"), (text, "no PNG"), (None, "Drop a picture")):
        with pytest.raises(UserError, match=words):
            replay_page.restore(None if path is None else str(path))


def test_unknown_weights_leave_the_switch_and_get_a_sentence(stub, tmp_path, monkeypatch):
    path = saved(tmp_path, draw("blue")[-1])
    entry = catalogue.manifest()["stub"]
    monkeypatch.setattr(catalogue, "manifest", lambda: {"other": replace(entry, id="other")})
    assert dict(zip(FIELDS, replay_page.restore(path), strict=True))["weights"] == gr.skip()
    with pytest.raises(UserError, match="weights are none that this demo knows"):
        replay(path)


def test_a_picture_that_began_in_another_asks_for_that_one(stub, tmp_path):
    given = Given(png(RED), (strokes(),))
    path = saved(tmp_path, draw("blue", given=given, strength=0.8)[-1])
    back = dict(zip(FIELDS, replay_page.restore(path), strict=True))
    assert back["start"] == gr.skip() and back["strength"] == 0.8  # what is in the editor stays there
    with pytest.raises(UserError, match="drawn with a start picture that its file does not hold"):
        replay(path)
    with pytest.raises(UserError, match="start picture is another one"):
        replay(path, Given(png(RED // 2), (strokes(),)))
    assert "the same picture, bit for bit" in replay(path, given)[-1]["told"]


# --- programs


def test_programs_get_progress_the_file_and_the_run(stub):
    said = list(program_page.draw("blue", num_steps=3, seed=5))
    assert said[:-1] == [(None, {"call": n, "of": 3}) for n in range(3)]
    file, record = said[-1]
    assert record["request"]["seed"] == 5 and record["weights"]["id"] == "stub"
    assert read_png(Path(file["path"]).read_bytes()).prompt == "blue" and file["meta"] == {"_type": "gradio.FileData"}


def test_programs_hand_in_files_that_they_uploaded(stub, tmp_path):
    white = np.zeros((16, 16), np.uint8)
    white[:8] = 255
    image, mask = ({"path": draw_file(png(each), name)} for each, name in ((RED, "i.png"), (white, "m.png")))
    *_, (file, _) = program_page.draw("blue", image=image, mask=mask, strength=1.0)
    with Image.open(file["path"]) as picture:
        assert np.array(picture)[8:].tolist() == RED[8:].tolist()
    (tmp_path / "i.png").write_bytes(png(RED))
    for given in ({"path": str(tmp_path / "i.png")}, {"path": "/etc/passwd"}, {"path": ""}):
        with pytest.raises(gr.Error, match="Upload the picture"):
            next(program_page.draw("blue", image=given))
    for given in ("/etc/passwd", {"path": 3}, [], 7):
        with pytest.raises(UserError, match="must be an uploaded file"):
            next(program_page.draw("blue", image=given))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask": np.zeros((16, 16), np.uint8)}, "mask is empty"),
        ({"mask": np.full((8, 8), 255, np.uint8)}, "must be of one size, and are 8×8 and 16×16"),
        ({"num_steps": 0}, "between 1 and 200"),
        ({"num_steps": "ten"}, "between 1 and 200"),
        ({"seed": None}, "seed must be a whole number"),
        ({"prompt": None}, "prompt must be text"),
        ({"prompt": "a \ud83d b"}, "only half of one"),
        ({"backend": "other"}, "no implementation"),
        ({"sampler": ["ddim"]}, "no sampler"),
        ({"weights": 3}, "weights must be named"),
    ],
)
def test_programs_get_sentences(stub, changes, words):
    if isinstance(changes.get("mask"), np.ndarray):
        changes = {"mask": {"path": draw_file(png(changes["mask"]), "mask.png")}}
        changes["image"] = {"path": draw_file(png(RED), "red.png")}
    with pytest.raises(UserError, match=words):
        list(program_page.draw(**{"prompt": "blue", **changes}))


def test_an_all_white_mask_draws_all_anew(stub):
    files = [{"path": draw_file(png(each), name)} for each, name in ((RED, "i.png"), (RED | 255, "w.png"))]
    *_, (file, _) = program_page.draw("blue", image=files[0], mask=files[1], strength=1.0)
    with Image.open(file["path"]) as picture:
        assert (np.array(picture) != RED).any(axis=-1).all()
