"""Who is it: a gallery of named embeddings, searched by cosine similarity.

`Gallery` lives in memory and belongs to one visitor's session; `gallery_sqlite.LastingGallery` has the same methods
over a file that an operator names. Letters: n embeddings, q queries, d numbers in an embedding.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common.errors import UserError

from .gallery_format import (
    Enrolment,
    GalleryLimits,
    check_embeddings,
    check_name,
    check_room,
    decode,
    encode,
    thumbnail,
)

if TYPE_CHECKING:
    from .gallery_sqlite import LastingGallery

VARIABLE = "GLASSHOUSE_GALLERY"
Chips = Sequence[np.ndarray] | np.ndarray | None  # (S, S, 3) uint8 RGB each
QUERIES_AT_ONCE = 32  # bounds the table of similarities to 32 x n


@dataclass(frozen=True)
class Match:
    """Who a face is.

    name: the nearest person if similarity reaches the threshold, else None: unknown.
    nearest, similarity: the nearest person whatever the threshold, and the cosine in [-1, 1]; None in an empty gallery.
    runner_up, runner_up_similarity: the nearest of the other people; None if there is no other.
    """

    name: str | None
    nearest: str | None = None
    similarity: float | None = None
    runner_up: str | None = None
    runner_up_similarity: float | None = None


@dataclass(frozen=True)
class Person:
    """samples: how many embeddings. thumbnail: (T, T, 3) uint8 RGB of the first picture, None if none was given."""

    name: str
    samples: int
    thumbnail: np.ndarray | None


def match(ranked: Sequence[tuple[str, float]], threshold: float) -> Match:
    """ranked: (name, similarity) of the nearest two people or fewer, nearest first."""
    if not ranked:
        return Match(None)
    (nearest, similarity), *others = ranked
    runner_up, second = others[0] if others else (None, None)
    return Match(nearest if similarity >= threshold else None, nearest, similarity, runner_up, second)


def prepare(name: str, embeddings: np.ndarray, chips: Chips, dimension: int, limits: GalleryLimits) -> Enrolment:
    """A checked enrolment; the first chip becomes the thumbnail. UserError as `check_name` and `check_embeddings`."""
    vectors = check_embeddings(embeddings, dimension)
    if len(vectors) == 0:
        raise UserError("There is no face in this picture to enrol.")
    face = thumbnail(chips[0]) if chips is not None and len(chips) else None
    return Enrolment(check_name(name, limits), vectors, face)


class Gallery:
    """Named embeddings in memory, for one visitor.

    A person is as near as the nearest of their pictures. The mean of them would blur somebody enrolled with and without
    glasses into a face that is neither, and one bad picture would pull all the good ones down; the price is that more
    pictures mean more chances of a false accept, so a person may have only `limits.per_person`.

    Methods may be called from several threads. Embeddings that leave are overwritten before their memory is given back.
    """

    def __init__(self, weights: str, dimension: int, limits: GalleryLimits | None = None) -> None:
        self.weights = weights
        self.dimension = dimension
        self.limits = limits or GalleryLimits()
        self._lock = threading.RLock()
        self._clear()

    @classmethod
    def load(cls, data: bytes, weights: str, dimension: int, limits: GalleryLimits | None = None) -> Gallery:
        """A gallery from an exported file. UserError: see `gallery_format.decode`."""
        gallery = cls(weights, dimension, limits)
        gallery.include(data)
        return gallery

    def __len__(self) -> int:
        """How many embeddings."""
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        # Gradio deep-copies what a session starts with, and a lock can't be copied.
        with self._lock:
            return {**self.__dict__, "_lock": None, "_vectors": self._vectors.copy(), "_owner": self._owner.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def check(self, weights: str) -> None:
        """UserError unless embeddings of these weights may be compared with the ones in here."""
        if weights != self.weights:
            raise UserError(
                f"This gallery was made with the weights “{self.weights}”: choose those again, or erase it first."
            )

    def enrol(self, name: str, embeddings: np.ndarray, chips: Chips = None) -> int:
        """Add one or several pictures (k, d) of a person; returns how many the person has now.

        UserError: the name is none, the embeddings are of another embedder, or there is no room.
        """
        person = prepare(name, embeddings, chips, self.dimension, self.limits)
        with self._lock:
            self._add([person])
            return int(np.count_nonzero(self._owner[: self._count] == self._names.index(person.name)))

    def enrol_many(self, people: Iterable[tuple[str, np.ndarray]]) -> int:
        """Add many (name, embeddings), all or nothing; returns how many embeddings came in."""
        checked = [prepare(name, vectors, None, self.dimension, self.limits) for name, vectors in people]
        with self._lock:
            return self._add(checked)

    def include(self, data: bytes) -> int:
        """Add everybody in an exported file, all or nothing; returns how many embeddings came in.

        A name that is enrolled already gets the file's pictures on top. UserError: see `gallery_format.decode`.
        """
        people = decode(data, self.weights, self.dimension, self.limits)
        with self._lock:
            return self._add(people)

    def identify(self, embeddings: np.ndarray, threshold: float) -> list[Match]:
        """The nearest person of each embedding (q, d), and the next one."""
        queries = np.zeros((0, self.dimension), np.float32) if len(embeddings) == 0 else embeddings
        queries = check_embeddings(queries, self.dimension)
        with self._lock:
            vectors, owner = self._vectors[: self._count], self._owner[: self._count]
            found: list[Match] = []
            for start in range(0, len(queries), QUERIES_AT_ONCE):
                some = queries[start : start + QUERIES_AT_ONCE]
                # For one query vecdot reads the table as fast as a matrix product does, without waking other threads.
                similarities = some @ vectors.T if len(some) > 1 else np.vecdot(vectors, some)[None]  # (q, n)
                found += [match(self._nearest_two(row, owner), threshold) for row in similarities]
        return found

    def people(self) -> list[Person]:
        """Everybody, in the order of their first enrolment."""
        with self._lock:
            counts = np.bincount(self._owner[: self._count], minlength=len(self._names))
            return [Person(n, int(c), t) for n, c, t in zip(self._names, counts, self._thumbnails, strict=True)]

    def remove(self, name: str) -> int:
        """Forget one person; returns how many embeddings are gone, 0 if nobody has that name."""
        with self._lock:
            if name not in self._names:
                return 0
            place = self._names.index(name)
            owner = self._owner[: self._count]
            stay = owner != place
            gone = int(np.count_nonzero(~stay))
            vectors, owner = self._vectors[: self._count][stay], owner[stay]
            self._count -= gone
            self._vectors.fill(0)
            self._vectors[: self._count] = vectors
            self._owner[: self._count] = owner - (owner > place)
            face = self._thumbnails.pop(place)
            if face is not None:
                face.fill(0)
            del self._names[place]
            return gone

    def erase(self) -> int:
        """Forget everybody; returns how many embeddings are gone. Numbers and chips are overwritten, then dropped."""
        with self._lock:
            gone = self._count
            self._vectors.fill(0)
            self._owner.fill(0)
            for face in self._thumbnails:
                if face is not None:
                    face.fill(0)
            self._clear()
            return gone

    def export(self) -> bytes:
        """The gallery as one file, for `load` and `include`."""
        with self._lock:
            return encode(self._enrolments(), self.weights, self.dimension)

    def _clear(self) -> None:
        self._vectors = np.zeros((0, self.dimension), np.float32)
        self._owner = np.zeros(0, np.int32)  # index into _names
        self._count = 0
        self._names: list[str] = []
        self._thumbnails: list[np.ndarray | None] = []

    def _enrolments(self) -> list[Enrolment]:
        owner = self._owner[: self._count]
        rows = [np.flatnonzero(owner == i) for i in range(len(self._names))]
        # Copies: what is handed out must outlive an erasure of this gallery.
        return [
            Enrolment(name, self._vectors[index], None if face is None else face.copy())
            for name, index, face in zip(self._names, rows, self._thumbnails, strict=True)
        ]

    def _add(self, people: Sequence[Enrolment]) -> int:
        arriving = sum(len(person.embeddings) for person in people)
        samples = {person.name: person.samples for person in self.people()}
        for person in people:
            samples[person.name] = samples.get(person.name, 0) + len(person.embeddings)
        check_room(len(samples), self._count + arriving, max(samples.values(), default=0), self.limits)
        self._reserve(self._count + arriving)
        index = {name: i for i, name in enumerate(self._names)}
        for person in people:
            if person.name not in index:
                index[person.name] = len(self._names)
                self._names.append(person.name)
                self._thumbnails.append(None)
            place = index[person.name]
            if self._thumbnails[place] is None:
                self._thumbnails[place] = person.thumbnail
            end = self._count + len(person.embeddings)
            self._vectors[self._count : end] = person.embeddings
            self._owner[self._count : end] = place
            self._count = end
        return arriving

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._vectors):
            return
        capacity = max(rows, 2 * len(self._vectors))
        vectors, owner = np.zeros((capacity, self.dimension), np.float32), np.zeros(capacity, np.int32)
        vectors[: self._count], owner[: self._count] = self._vectors[: self._count], self._owner[: self._count]
        self._vectors.fill(0)
        self._vectors, self._owner = vectors, owner

    def _nearest_two(self, similarities: np.ndarray, owner: np.ndarray) -> list[tuple[str, float]]:
        """similarities: (n,) float32, overwritten. At most two people, nearest first."""
        ranked: list[tuple[str, float]] = []
        for _ in range(min(2, len(self._names))):
            best = int(np.argmax(similarities))
            ranked.append((self._names[owner[best]], float(np.clip(similarities[best], -1, 1))))
            similarities[owner == owner[best]] = -np.inf
        return ranked


def open_gallery(
    weights: str, dimension: int, environ: Mapping[str, str] = os.environ, limits: GalleryLimits | None = None
) -> Gallery | LastingGallery:
    """The operator's lasting gallery if GLASSHOUSE_GALLERY names a file, else a new one in memory for this session.

    UserError: the file can't be used: another embedder's, no gallery, or this Python can't search it.
    """
    path = environ.get(VARIABLE, "")
    if not path:
        return Gallery(weights, dimension, limits)
    from .gallery_sqlite import LASTING_LIMITS, LastingGallery

    return LastingGallery(path, weights, dimension, limits or LASTING_LIMITS)
