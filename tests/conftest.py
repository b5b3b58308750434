"""Tests see no weights but those of the installed packages, whatever this machine has fetched before."""

import os

import pytest

# Before any library reads them.
os.environ.pop("GLASSHOUSE_GALLERY", None)
os.environ.pop("GLASSHOUSE_GALLERY_MANAGE", None)


@pytest.fixture(scope="session", autouse=True)
def empty_caches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GLASSHOUSE_CACHE", "TORCH_HOME", "HF_HOME"):
            patch.setenv(name, str(folder / name.lower()))
        # Uploads that tests hand to a page lie in gradio's folder, as a visitor's do.
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        yield
