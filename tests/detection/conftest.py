"""Tiny networks with random weights behind the real pipeline, for the tests of the pages."""

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.common import backends, catalogue
from pipelines.detection import local, slots_page
from pipelines.detection.config import PRESETS
from pipelines.detection.slots import Cache
from pipelines.detection.weights import build
from tests.detection.lively import enliven


def network(preset):
    torch.manual_seed(3)
    made = enliven(build(PRESETS[preset]))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("offsets.weight"):  # at their initial 0 nobody would look elsewhere for another position
                parameter.normal_(std=0.2)
    return made


@pytest.fixture
def tiny(monkeypatch):
    """Weights "sigmoid" (7 queries, 2 layers of 4 heads) and "softmax" (7 queries, 3 layers), each with 5 classes."""
    file = (catalogue.File("model", "README.md"),)  # any file that is there
    entries = [
        catalogue.Entry(name, "detection", "detector", name, "detr", preset, "bundled", "own", "", file)
        for name, preset in (("sigmoid", "tiny-deformable"), ("softmax", "tiny"))
    ]
    monkeypatch.setattr(catalogue, "manifest", lambda: {e.id: e for e in entries})
    monkeypatch.setattr(
        local, "load", lambda entry, device: local.LocalDetector(network(entry.preset), PRESETS[entry.preset])
    )
    fresh, maps = backends.Backends(10**9), Cache()
    monkeypatch.setattr(backends, "shared", lambda: fresh)
    monkeypatch.setattr(slots_page, "maps", lambda: maps)
    told = []
    monkeypatch.setattr(gr, "Info", told.append)
    return told


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    path = tmp_path / "mine.png"
    Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC).save(path)
    return str(path)
