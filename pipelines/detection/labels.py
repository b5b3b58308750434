"""Which category each output of a class head means: assets/labels/*.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from pipelines.common.catalogue import ROOT

FOLDER = ROOT / "assets" / "labels"

# One thing, two names: VOC's and COCO's.
SYNONYMS = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


@dataclass(frozen=True)
class Category:
    """id: as the training data numbers it. thing: countable (a cat) or stuff (sky)."""

    id: int
    name: str
    thing: bool = True


@cache
def categories(key: str) -> Mapping[int, Category]:
    """Class index -> category, of the label file that `config.labels` names. COCO's indices have gaps.

    ValueError: the file does not say how its classes are numbered, or an id stands twice.
    """
    document = json.loads((FOLDER / f"{key}.json").read_text(encoding="utf-8"))
    listed = [Category(c["id"], c["name"], c.get("thing", True)) for c in document["categories"]]
    if document["classes"] not in ("order", "id"):
        raise ValueError(f"labels {key!r}: classes are numbered by order or by id, not {document['classes']!r}")
    by_id = {category.id: category for category in listed}
    if len(by_id) != len(listed):
        raise ValueError(f"labels {key!r}: an id stands twice")
    return MappingProxyType(dict(enumerate(listed)) if document["classes"] == "order" else by_id)


def names(key: str) -> tuple[str, ...]:
    """Names of all categories, in the order of the class indices."""
    return tuple(categories(key)[index].name for index in sorted(categories(key)))


def indices(key: str, wanted: tuple[str, ...]) -> frozenset[int]:
    """Class indices of the categories of these names. KeyError: a name that the file does not have."""
    by_name = {category.name: index for index, category in categories(key).items()}
    return frozenset(by_name[name] for name in wanted)


def same(name: str) -> str:
    """A name under which VOC's and COCO's categories meet."""
    plain = name.strip().lower()
    return SYNONYMS.get(plain, plain)
