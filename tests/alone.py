"""A catalogue of one entry, for tests of a pipeline on a tiny model."""

from pipelines.common import backends, catalogue


def alone(entry, monkeypatch):
    """The catalogue has this entry only; nothing is loaded yet."""
    fresh = backends.Backends(10**9)
    monkeypatch.setattr(catalogue, "manifest", lambda: {entry.id: entry})
    monkeypatch.setattr(backends, "shared", lambda: fresh)
    return entry
