"""weights/manifest.toml as entries: which checkpoints exist, which are on this machine, and what "auto" means."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from .errors import UserError

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "weights"
MANIFEST = WEIGHTS / "manifest.toml"

Source = Literal["bundled", "package", "hub", "url"]
SOURCES = ("bundled", "package", "hub", "url")


@dataclass(frozen=True)
class File:
    """One file of a checkpoint.

    name: what the loader calls it. path: below weights/ (bundled), below the package's folder (package), in the
    repository on the hub (hub), or the file name to keep it under (url). url: where to fetch it (url only).
    sha256: hex digest where it is known, else "". size: bytes, 0 if unknown. fuller: paths of the same in more digits,
    which are never fetched, but taken before `path` where they are on this machine already.
    """

    name: str
    path: str
    url: str = ""
    sha256: str = ""
    size: int = 0
    fuller: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One checkpoint of the catalogue.

    role: what it is within its pipeline, e.g. detector or embedder. preset: a key of that pipeline's config.PRESETS.
    origin: package name (package) or owner/name (hub). facts: what the card shows and what a pipeline needs to know
    of these weights besides their shape, e.g. a decision threshold with the data it was measured on.
    """

    id: str
    pipeline: str
    role: str
    title: str
    architecture: str
    preset: str
    source: Source
    layout: str
    licence: str
    files: tuple[File, ...]
    origin: str = ""
    revision: str = "main"
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def size(self) -> int:
        """Bytes of all files, 0 if unknown."""
        return sum(file.size for file in self.files)

    @property
    def fetchable(self) -> bool:
        return self.source in ("hub", "url")


def parse(document: Mapping[str, Any]) -> dict[str, Entry]:
    """Entries of a manifest by id, in the file's order. ValueError names the entry and what is wrong with it."""
    entries: dict[str, Entry] = {}
    for raw in document.get("entry", []):
        fields = dict(raw)
        fields["files"] = tuple(File(**{**f, "fuller": tuple(f.get("fuller", ()))}) for f in fields.get("files", []))
        try:
            entry = Entry(**fields)
        except TypeError as error:
            raise ValueError(f"manifest entry {raw.get('id')!r}: {error}") from None
        if entry.source not in SOURCES:
            raise ValueError(f"manifest entry {entry.id!r}: source {entry.source!r} is none of {SOURCES}")
        if entry.id in entries:
            raise ValueError(f"manifest entry {entry.id!r} stands twice")
        if any(file.fuller and file.sha256 for file in entry.files):
            raise ValueError(f"manifest entry {entry.id!r}: a hash is of one file, and this one may be another")
        if not entry.files:
            raise ValueError(f"manifest entry {entry.id!r} has no files")
        entries[entry.id] = entry
    return entries


@cache
def manifest() -> dict[str, Entry]:
    """The shipped catalogue."""
    return parse(tomllib.loads(MANIFEST.read_text(encoding="utf-8")))


def entries(pipeline: str, role: str | None = None) -> list[Entry]:
    """Entries of one pipeline, best first (the order of the file)."""
    return [e for e in manifest().values() if e.pipeline == pipeline and (role is None or e.role == role)]


def resolve(pipeline: str, weights: str, role: str | None = None) -> Entry:
    """The entry that a request means. "auto" is the first that is on this machine; nothing is downloaded.

    UserError: the name is unknown, the entry is not here, or "auto" finds none.
    """
    from .checkpoint import locate

    known = entries(pipeline, role)
    if weights == "auto":
        for entry in known:
            if locate(entry) is not None:
                return entry
        raise UserError("None of these weights is on this machine; fetch one under Weights first.")
    for entry in known:
        if entry.id == weights:
            if locate(entry) is None:
                how = "fetch it under Weights first" if entry.fetchable else "install requirements.txt again"
                raise UserError(f"The weights “{entry.title}” are not on this machine: {how}, or choose auto.")
            return entry
    names = ", ".join(entry.id for entry in known)
    raise UserError(f"There are no weights called “{weights[:60]}” here; choose auto or one of: {names}.")
