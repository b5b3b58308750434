"""Reference libraries without their own bars and lines, which would stand between the demo's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet(*libraries: Any) -> Iterator[None]:
    """Without the bars of these libraries and their lines for each file; afterwards they are as loud as before.

    libraries: the `utils.logging` modules of transformers, diffusers and their like.
    """
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity(logging.ERROR)
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            library.enable_progress_bar()
