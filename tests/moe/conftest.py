"""Tiny decoders with random weights in the layout of the published folders, for all tests of the pipeline."""

import pytest

from tests.alone import alone
from tests.moe.tiny import entry_of, write_folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder in Mixtral's layout: 2 layers, 4 experts of which 2 work, a tokenizer of at most 320 tokens."""
    folder = tmp_path_factory.mktemp("tiny") / "stories"
    write_folder(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_entry(tiny_folder):
    return entry_of(tiny_folder)


@pytest.fixture
def tiny_catalogue(tiny_entry, monkeypatch):
    """The catalogue has one entry, "stories", which is the tiny folder; nothing is loaded yet."""
    return alone(tiny_entry, monkeypatch)
