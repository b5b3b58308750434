"""What a gallery is made of, what may enter one, and the one file that it is carried in.

The file is a safetensors file: numbers without compression behind a JSON header, so there is nothing to unpickle,
nothing to inflate (no zip bomb) and no file name inside (no path tricks). Its metadata says which embedder made it.

Letters: n embeddings, p people, d numbers in an embedding, T side of a thumbnail.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from pipelines.common.errors import UserError

FORMAT = "glasshouse-gallery"
VERSION = "1"
THUMBNAIL = 48  # T, pixels
UNIT_TOLERANCE = 1e-3  # how far from 1 the length of an embedding may be
RESERVED = ("unknown", "未知")  # what the page calls a face that is nobody's
# Joiners are format characters too, but names in Persian and the Indic scripts are spelt with them.
JOINERS = "\u200c\u200d"
TENSORS = ("embeddings", "owner", "thumbnails", "pictured")


@dataclass(frozen=True)
class GalleryLimits:
    """people and embeddings in the whole gallery, embeddings of one person, characters in a name."""

    people: int = 1_000
    embeddings: int = 10_000
    per_person: int = 50
    name: int = 60

    def file_bytes(self, dimension: int) -> int:
        """The largest file that a full gallery can be; anything longer is refused unread."""
        per_embedding = 4 * dimension + 4
        per_person = THUMBNAIL * THUMBNAIL * 3 + 1 + 12 * self.name  # a character is at most \\uXXXX\\uXXXX in JSON
        return 65_536 + self.embeddings * per_embedding + self.people * per_person


@dataclass(frozen=True)
class Enrolment:
    """One person: embeddings (k, d) float32 of unit length; thumbnail (T, T, 3) uint8 RGB or None."""

    name: str
    embeddings: np.ndarray
    thumbnail: np.ndarray | None = None


def check_name(name: str, limits: GalleryLimits) -> str:
    """The name in Unicode's composed form, outer blanks off, inner runs of blanks made one.

    UserError: it is empty, too long, the word for nobody, or holds characters that are no part of a name.
    """
    cleaned = " ".join(unicodedata.normalize("NFC", name).split()) if isinstance(name, str) else ""
    if not cleaned:
        raise UserError("Give the person a name first.")
    if len(cleaned) > limits.name:
        raise UserError(f"A name may have at most {limits.name} characters; this one has {len(cleaned)}.")
    if cleaned.casefold() in RESERVED:
        raise UserError(f"“{cleaned}” is what a face is called that belongs to nobody; choose another name.")
    # Category C is control, format (which can reverse the text around it), surrogate, private and unassigned.
    bad = [c for c in cleaned if c in '<>/\\"' or (unicodedata.category(c)[0] == "C" and c not in JOINERS)]
    if bad or not any(unicodedata.category(c)[0] in "LN" for c in cleaned):
        raise UserError("A name needs a letter or digit, and no control characters, quotes, slashes or angle brackets.")
    return cleaned


def check_embeddings(embeddings: np.ndarray, dimension: int) -> np.ndarray:
    """(k, d) or (d,) -> (k, d) float32, contiguous.

    UserError: another dimension (the embedder was changed). ValueError: not finite or not of unit length, which is a
    fault of the caller and none of the visitor's.
    """
    vectors = np.ascontiguousarray(np.atleast_2d(np.asarray(embeddings, np.float32)))
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise UserError(
            f"This gallery holds embeddings of {dimension} numbers, and these have {vectors.shape[-1]}: "
            "go back to the weights that the gallery was made with, or start a new one."
        )
    if not _unit(vectors):
        raise ValueError("embeddings must be finite and of unit length")
    return vectors


def thumbnail(chip: np.ndarray | None) -> np.ndarray | None:
    """(S, S, 3) uint8 RGB -> (T, T, 3) uint8 RGB."""
    import cv2

    if chip is None:
        return None
    return np.ascontiguousarray(cv2.resize(chip, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA))


def check_room(people: int, embeddings: int, largest: int, limits: GalleryLimits) -> None:
    """UserError if a gallery of that many people and embeddings, `largest` of them one person's, is too big."""
    if people > limits.people:
        raise UserError(f"The gallery would hold {people} people; it has room for {limits.people}.")
    if embeddings > limits.embeddings:
        raise UserError(f"The gallery would hold {embeddings} pictures; it has room for {limits.embeddings}.")
    if largest > limits.per_person:
        raise UserError(f"One person would have {largest} pictures; {limits.per_person} are the most.")


def encode(people: Sequence[Enrolment], weights: str, dimension: int) -> bytes:
    """The file of a gallery."""
    from safetensors.numpy import save

    counts = [len(person.embeddings) for person in people]
    blank = np.zeros((THUMBNAIL, THUMBNAIL, 3), np.uint8)
    faces = [blank if person.thumbnail is None else person.thumbnail for person in people]
    tensors = {
        "embeddings": np.concatenate([np.zeros((0, dimension), np.float32), *(p.embeddings for p in people)]),
        "owner": np.repeat(np.arange(len(people), dtype=np.int32), counts),
        "thumbnails": np.stack([*faces, blank])[: len(people)].copy(),  # np.stack takes no empty list
        "pictured": np.array([person.thumbnail is not None for person in people], np.uint8),
    }
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "weights": weights,
        "dimension": str(dimension),
        "people": json.dumps([person.name for person in people]),
    }
    return save(tensors, metadata)


def decode(data: bytes, weights: str, dimension: int, limits: GalleryLimits) -> list[Enrolment]:
    """The people in a gallery's file, every one of them checked.

    UserError: it is no gallery, was made with other weights, is cut short, edited, or too big. Then nothing is read.
    """
    if len(data) > limits.file_bytes(dimension):
        raise UserError("This file is larger than a full gallery can be, so it was not read.")
    metadata = _metadata(data)
    if metadata.get("format") != FORMAT:
        raise UserError("This is not a gallery file; choose one that was exported here.")
    if metadata.get("version") != VERSION:
        raise UserError("This gallery file is of a version that this demo does not know; export it again here.")
    if metadata.get("weights") != weights:
        made_with = _printable(metadata.get("weights", ""))
        raise UserError(
            f"This gallery was made with the weights “{made_with}”, whose numbers mean nothing to “{weights}”: "
            "choose those weights first, or enrol the people again."
        )
    if metadata.get("dimension") != str(dimension):
        _damaged("the length of its embeddings does not fit its weights")
    names = _names(metadata.get("people", ""), limits)
    return _people(names, _tensors(data, len(names), dimension), limits)


def _damaged(what: str) -> NoReturn:
    raise UserError(f"This gallery file is damaged or was edited, so nothing of it was read: {what}.")


def _printable(text: str) -> str:
    return "".join(c for c in text[:60] if c.isprintable()) or "?"


def _metadata(data: bytes) -> dict[str, str]:
    """`__metadata__` of a safetensors header: eight bytes of length, little endian, then JSON."""
    length = int.from_bytes(data[:8], "little")
    try:
        # A plain JSON or zip file read as a length gives an absurd number, and ends here.
        if len(data) < 10 or length > len(data) - 8:
            raise ValueError("no header")
        metadata = json.loads(data[8 : 8 + length].decode("utf-8"))["__metadata__"]
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError("This is not a gallery file, or it was cut short; choose one that was exported here.") from None
    return metadata


def _names(text: str, limits: GalleryLimits) -> list[str]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        _damaged("the list of names cannot be read")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        _damaged("the list of names is none")
    check_room(len(names), 0, 0, limits)
    try:
        names = [check_name(name, limits) for name in names]
    except UserError as error:
        _damaged(str(error).rstrip("."))
    if len(set(names)) != len(names):
        _damaged("a name stands in it twice")
    return names


def _tensors(data: bytes, people: int, dimension: int) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        _damaged("its tables do not fit together")
    if set(tensors) != set(TENSORS):
        _damaged("a table is missing or there is one too many")
    count = len(tensors["owner"]) if tensors["owner"].ndim == 1 else -1
    expected = {
        "embeddings": (np.float32, (count, dimension)),
        "owner": (np.int32, (count,)),
        "thumbnails": (np.uint8, (people, THUMBNAIL, THUMBNAIL, 3)),
        "pictured": (np.uint8, (people,)),
    }
    for name, (dtype, shape) in expected.items():
        if tensors[name].dtype != dtype or tensors[name].shape != shape:
            _damaged(f"the table “{name}” has another size than the names and embeddings call for")
    return tensors


def _people(names: list[str], tensors: dict[str, np.ndarray], limits: GalleryLimits) -> list[Enrolment]:
    vectors, owner = tensors["embeddings"], tensors["owner"]
    if not _unit(vectors):
        _damaged("an embedding is not of unit length")
    if len(owner) and not 0 <= owner.min() <= owner.max() < len(names):
        _damaged("an embedding belongs to nobody on the list of names")
    counts = np.bincount(owner, minlength=len(names))
    if len(names) and counts.min() == 0:
        _damaged("somebody on the list of names has no embedding")
    check_room(len(names), len(owner), int(counts.max(initial=0)), limits)
    order = np.argsort(owner, kind="stable")
    parts = np.split(vectors[order], np.cumsum(counts)[:-1]) if names else []
    shown = zip(tensors["thumbnails"], tensors["pictured"], strict=True)
    faces = [face.copy() if pictured else None for face, pictured in shown]
    return [Enrolment(*fields) for fields in zip(names, parts, faces, strict=True)]


def _unit(vectors: np.ndarray) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
    return bool(np.all(np.abs(lengths - 1) <= UNIT_TOLERANCE))  # False for NaN and infinity too
