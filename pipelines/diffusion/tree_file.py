"""A tree of runs as one file, and back. See `travel`.

What comes from a file is believed in nothing: its length is bounded before it is read, requests pass the checks that
every request passes, and every array has to have the shape that its run calls for.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.limits import limits

from .checks import MEMORY, whole
from .contract import DiffusionRequest, History, Start
from .record import fields_of, request_of
from .travel import Node, Tree, arrays, config_of, fits

FORMAT, VERSION = "glasshouse-runs", "1"
# Type and number of axes of each array of a run.
KINDS: dict[str, tuple[Any, int]] = {
    "picture": (np.uint8, 3), "latents": (np.float32, 4), "clean": (np.float32, 4), "memory": (np.float32, 4),
    "remembered": (np.int32, 1), "timesteps": (np.float64, 1), "image": (np.uint8, 3), "mask": (np.bool_, 2),
    "start": (np.float32, 3), "start_memory": (np.float32, 4),
}  # fmt: skip
ALWAYS = ("picture", "latents", "clean", "memory", "remembered", "timesteps")
SHARED = ("weights", "width", "height", "strength")  # what no fork changes
NODE = {"request", "parent", "call", "start"}


def header_bytes() -> int:
    """The longest description of a full tree that is written or read."""
    return 65_536 + limits().tree_runs * 4_096 + 24 * limits().prompt_characters


def write(tree: Tree) -> bytes:
    """The file of a tree. UserError: it is empty or its texts are too long."""
    from safetensors.numpy import save

    if not tree.nodes:
        raise UserError("There is no run to be saved yet; draw one first.")
    described = [
        {
            "request": fields_of(node.request), "parent": node.parent, "call": node.call,
            "start": None if node.request.start is None else node.request.start.call,
        }
        for node in tree.nodes
    ]  # fmt: skip
    text = json.dumps(described, ensure_ascii=False, allow_nan=False)
    if 2 * len(text.encode()) > header_bytes():  # it is quoted once more in the header
        raise UserError("The prompts of this tree are too long to be saved together; begin another one.")
    tensors = {f"{i}.{name}": array for i, node in enumerate(tree.nodes) for name, array in arrays(node).items()}
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return save(tensors, {"format": FORMAT, "version": VERSION, "runs": text})


def read(data: bytes) -> Tree:
    """The tree of a file, every run of it checked against its weights, which have to be on this machine.

    UserError: it is no such file, is damaged, was edited, or is too large. Then nothing of it is read.
    """
    if not isinstance(data, bytes | bytearray):
        raise UserError("This is no file of runs; choose one that was saved here.")
    if len(data) > limits().history_mb * 1_000_000 + header_bytes():
        raise UserError("This file is larger than a full tree can be, so it was not read.")
    described = _described(bytes(data))
    tensors = _tensors(bytes(data))
    nodes = [_node(i, each, tensors) for i, each in enumerate(described)]
    if len(tensors) != sum(len(arrays(node)) for node in nodes):
        _damaged("it holds arrays that belong to no run")
    tree = Tree(tuple(nodes))
    if tree.size > limits().history_mb * 1_000_000:
        raise UserError("This tree is larger than a full one can be, so it was not read.")
    for i, node in enumerate(nodes):
        if node.parent is not None and (node.parent >= i or node.call not in nodes[node.parent].calls):
            _damaged("a run was forked from none")
        if (node.parent is None) != (i == 0):
            _damaged("it has no root, or several")
        if any(getattr(node.request, name) != getattr(nodes[0].request, name) for name in SHARED):
            _damaged("a run has another size or other weights than the root")
        if not fits(node, config_of(node.request)):
            _damaged("an array has another size than its run calls for")
    return tree


def _described(data: bytes) -> list[dict[str, Any]]:
    length = int.from_bytes(data[:8], "little")
    try:
        if len(data) < 10 or length > min(len(data) - 8, header_bytes()):
            raise ValueError("no header")
        metadata = json.loads(data[8 : 8 + length].decode("utf-8"))["__metadata__"]
        found = metadata["format"], metadata["version"], metadata["runs"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UserError("This is no file of runs, or it was cut short; choose one that was saved here.") from None
    if found[0] != FORMAT:
        raise UserError("This is no file of runs; choose one that was saved here.")
    if found[1] != VERSION:
        raise UserError("This file of runs is of a version that this demo does not know; save the tree again here.")
    try:
        described = json.loads(found[2])
    except (ValueError, TypeError, RecursionError):
        _damaged("the list of runs cannot be read")
    if not isinstance(described, list) or not 1 <= len(described) <= limits().tree_runs:
        _damaged(f"there are no runs in it, or more than {limits().tree_runs}")
    for each in described:
        if not isinstance(each, dict) or set(each) != NODE or not whole(each["call"], 0):
            _damaged("a run cannot be read")
        if not all(each[name] is None or whole(each[name], 0) for name in ("parent", "start")):
            _damaged("a run cannot be read")
    return described


def _names(described: dict[str, Any]) -> tuple[str, ...]:
    """The arrays that a run has at least; some have a given picture and its mask, too."""
    return (*ALWAYS, *(("start", "start_memory") if described["start"] is not None else ()))


def _tensors(data: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        _damaged("its arrays do not fit together")


def _node(index: int, described: dict[str, Any], tensors: dict[str, np.ndarray]) -> Node:
    wanted = _names(described)
    found = {name: tensors[f"{index}.{name}"] for name in KINDS if f"{index}.{name}" in tensors}
    if not set(wanted) <= set(found):
        _damaged("an array is missing")
    for name, array in found.items():
        if array.dtype != KINDS[name][0] or array.ndim != KINDS[name][1]:
            _damaged("an array is of another kind")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            _damaged("an array holds what is no number")
    start = None
    if described["start"] is not None:
        start = Start(found["start"], described["start"], found["start_memory"])
    request = _request(described, start, found)
    return Node(request, found["picture"], _history(request, found), described["parent"], described["call"])


def _request(described: dict[str, Any], start: Start | None, found: dict[str, np.ndarray]) -> DiffusionRequest:
    try:
        return request_of(described["request"], start, found.get("image"), found.get("mask"))
    except UserError as error:
        _damaged(str(error).rstrip("."))


def _history(request: DiffusionRequest, found: dict[str, np.ndarray]) -> History:
    counts = found["remembered"]
    if not set(counts.tolist()) <= set(MEMORY.get(request.sampler, (0,))) or counts.sum() != len(found["memory"]):
        _damaged("what the sampler remembered does not fit together")
    memory = tuple(np.split(found["memory"], np.cumsum(counts)[:-1]))
    return History(found["latents"], found["clean"], memory, found["timesteps"])


def _damaged(what: str) -> NoReturn:
    raise UserError(f"This file of runs is damaged or was edited, so nothing of it was read: {what}.")
