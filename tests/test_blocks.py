"""Files for visitors: whole at every moment, and only what was uploaded comes in."""

import threading
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from pipelines.ui import blocks


def test_equal_pictures_of_many_visitors_are_one_whole_file():
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    with gr.Blocks():
        component = blocks.picture_output("Faces")
    paths, broken = [], []

    def draw():
        for _ in range(5):
            path = component.postprocess(picture).path
            paths.append(path)
            try:
                Image.open(path).load()
            except OSError as error:
                broken.append(error)

    threads = [threading.Thread(target=draw) for _ in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(paths) == 30 and len(set(paths)) == 1 and broken == []
    assert component.postprocess(None) is None


def test_only_uploads_are_read(tmp_path):
    with gr.Blocks():
        component = blocks.picture_input("Picture")
    outside = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(outside)
    for path in (str(outside), "/dev/zero", "", None, blocks.get_upload_folder() + "/../../etc/passwd"):
        with pytest.raises(gr.Error, match="Upload the picture"):
            component.preprocess(SimpleNamespace(path=path, url=None))
    inside = blocks.offer(outside.read_bytes(), "upload.png")
    assert component.preprocess(SimpleNamespace(path=inside, url=None)) == inside
    assert component.preprocess(None) is None


def test_what_is_checked_is_checked_after_an_update_too(tmp_path):
    """gradio makes a widget anew for a visitor to whom it was updated, from its class and its arguments."""
    outside = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(outside)
    with gr.Blocks():
        made = blocks.picture_input("Picture"), blocks.only_uploads(gr.File()), blocks.any_value(gr.Slider(0, 1))
        drawn = blocks.picture_output("Faces")
    picture, file, slider = (type(each)(**each.constructor_args) for each in made)
    for widget in (picture, file):
        with pytest.raises(gr.Error, match="Upload the picture"):
            widget.preprocess(SimpleNamespace(path=str(outside), url=None))
    assert slider.preprocess(7) == 7
    again = type(drawn)(**drawn.constructor_args)
    value = np.zeros((8, 8, 3), np.uint8)
    assert again.postprocess(value).path == drawn.postprocess(value).path
    assert [each.get_block_name() for each in (*made, drawn)] == ["image", "file", "slider", "image"]
    assert type(drawn).get_component_class_id() == gr.Image.get_component_class_id()
