"""A tiny model with random weights in a model folder, for all tests of the pipeline."""

import sys
from types import SimpleNamespace

import pytest

from pipelines.common import catalogue
from pipelines.diffusion import running_page
from tests.alone import alone
from tests.diffusion.tiny import entry_of, write_folder
from tests.stubs import StubDiffusion


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """config.TINY in the diffusers layout: latents 4x8x8, pictures of 16x16, 16 tokens of width 32."""
    folder = tmp_path_factory.mktemp("diffusion") / "tiny"
    write_folder(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_entry(tiny_folder):
    return entry_of(tiny_folder)


@pytest.fixture
def tiny_catalogue(tiny_entry, monkeypatch):
    """The catalogue has one entry, "tiny", which is the tiny folder; nothing is loaded yet."""
    return alone(tiny_entry, monkeypatch)


@pytest.fixture
def stubs(monkeypatch):
    """stubs(ours, theirs): the catalogue has weights "stub" only, a StubDiffusion for each backend. Returns ours."""

    def use(ours=None, theirs=None):
        ours = StubDiffusion() if ours is None else ours
        for backend, model in (("local", ours), ("reference", ours if theirs is None else theirs)):
            module = SimpleNamespace(load=lambda entry, device="cpu", model=model: model)
            monkeypatch.setitem(sys.modules, f"pipelines.diffusion.{backend}", module)
        file = (catalogue.File("model", "README.md"),)  # any file that is there
        entry = catalogue.Entry(
            "stub", "diffusion", "model", "stub", "stable-diffusion", "tiny", "bundled", "own", "", file
        )
        alone(entry, monkeypatch)
        return ours

    return use


@pytest.fixture
def stub(stubs, monkeypatch):
    """Weights "stub" for both backends; pages show everything at once."""
    monkeypatch.setattr(running_page, "EVERY", 0.0)
    return stubs()
