"""A drawn picture as a PNG file that carries its whole run, and back to the request that draws it again.

The run is JSON in a text chunk of its own (iTXt, keyword `KEYWORD`), not compressed, so there is nothing to inflate. A
picture that was drawn from another one carries that one's fingerprint only: whoever replays it has to have it. What
comes from a file is believed in nothing: its length is bounded before it is read, its fields are exactly ours, and
their values pass the checks that every request passes.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import platform
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from hashlib import file_digest
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pipelines.common import catalogue
from pipelines.common.checkpoint import locate
from pipelines.common.errors import UserError
from pipelines.common.images import check_array
from pipelines.common.limits import limits

from . import canvas
from .checks import checked, whole
from .contract import DiffusionRequest, DiffusionResult, Start

FORMAT, VERSION, KEYWORD = "glasshouse-diffusion", 1, b"glasshouse"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
NUMBERS = 1 << 20  # of a fork's latents and memory together; the largest picture of Stable Diffusion has a quarter
SECTIONS = ("format", "version", "request", "start", "image", "mask", "weights", "made_with")
LEFT_OUT = {
    "image": "its fingerprint is a section", "mask": "likewise", "start": "a section, too",
    "previews": "changes nothing in the picture", "history": "likewise",
}  # fmt: skip
RECORDED = tuple(each.name for each in fields(DiffusionRequest) if each.name not in LEFT_OUT)
LIBRARIES = {"local": ("torch", "numpy"), "reference": ("torch", "numpy", "diffusers", "transformers")}


def record_bytes() -> int:
    """The longest record that is written or read: two prompts, escaped, and a fork's latents as text."""
    return 65_536 + 2 * 6 * limits().prompt_characters + 4 * 4 * NUMBERS // 3


# --- a run as JSON ---------------------------------------------------------------------------------------------------


def of_run(request: DiffusionRequest, entry: catalogue.Entry, backend: Any) -> dict[str, Any]:
    """The record of a run, JSON types only. request: as it was drawn, everything filled in."""
    import torch

    from .forms import device

    where = device(request.precision)
    return {
        "format": FORMAT,
        "version": VERSION,
        "request": fields_of(request),
        "start": None if request.start is None else _of_start(request.start),
        "image": None if request.image is None else canvas.fingerprint(request.image),
        "mask": None if request.mask is None else canvas.fingerprint(request.mask),
        "weights": {"id": entry.id, "title": entry.title, "files": hashes(entry)},
        "made_with": {
            "python": platform.python_version(),
            **{name: _version(name) for name in LIBRARIES[request.backend]},
            "device": str(backend.device),
            "dtype": where.dtype,
            "threads": str(torch.get_num_threads()),
        },
    }


def fields_of(request: DiffusionRequest) -> dict[str, Any]:
    """The request's fields that are JSON already."""
    return {name: getattr(request, name) for name in RECORDED}


def request_of(
    values: Any, start: Start | None = None, image: np.ndarray | None = None, mask: np.ndarray | None = None
) -> DiffusionRequest:
    """Back from what `fields_of` gave. UserError: a field is missing, unknown, or holds what cannot be drawn."""
    if not isinstance(values, dict) or set(values) != set(RECORDED):
        _damaged("its settings are not the ones of a drawing")
    return checked(DiffusionRequest(**values, start=start, image=image, mask=mask))


def hashes(entry: catalogue.Entry) -> dict[str, str]:
    """SHA-256 of each file of the weights by name, empty where they are not on this machine. A file is read once."""
    found = locate(entry) or {}
    known = {file.name: file.sha256 for file in entry.files}
    return {name: known[name] or _hash(path, path.stat().st_mtime_ns) for name, path in sorted(found.items())}


@cache
def _hash(path: Path, changed: int) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _of_start(start: Start) -> dict[str, Any]:
    return {"call": start.call, "latents": _of_array(start.latents), "memory": _of_array(start.memory)}


def _of_array(array: np.ndarray) -> dict[str, Any]:
    data = np.ascontiguousarray(array, "<f4").tobytes()
    return {"shape": list(array.shape), "float32": base64.b64encode(data).decode("ascii")}


# --- PNG -------------------------------------------------------------------------------------------------------------


def write_png(result: DiffusionResult) -> bytes:
    """The picture as a PNG file with its run inside. UserError: the run is too large to be carried."""
    from PIL import Image, PngImagePlugin

    text = json.dumps(result.record, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > record_bytes():
        raise UserError("This run is too large to be carried in a picture; save its tree instead.")
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(KEYWORD.decode(), text)
    stream = io.BytesIO()
    Image.fromarray(result.image).save(stream, "PNG", pnginfo=chunks)
    return stream.getvalue()


def read_png(data: bytes, image: np.ndarray | None = None, mask: np.ndarray | None = None) -> DiffusionRequest:
    """The request that draws a PNG file's picture again, bit for bit on the same machine; `notes` says what is
    different here.

    image, mask: what the run began from, where it did. UserError: the file is none of ours, damaged, edited or too
    large, or the picture that it was drawn from is missing or is another one.
    """
    return replay(read_record(data), image, mask)


def read_record(data: bytes) -> dict[str, Any]:
    """The record of a PNG file, its sections and their types checked. UserError: as `read_png`."""
    try:
        record = json.loads(_text(data), parse_constant=_no_number)
    except (ValueError, RecursionError):
        _damaged("it is no JSON")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        _damaged("it is of another kind")
    if record.get("version") != VERSION or isinstance(record["version"], bool):
        raise UserError("The run in this picture is of a version that this demo does not know; draw it anew.")
    if set(record) != set(SECTIONS):
        _damaged("a section is missing or there is one too many")
    for name in ("image", "mask"):
        if record[name] is not None and not _is_hash(record[name]):
            _damaged(f"the fingerprint of its {name} is none")
    weights, made = record["weights"], record["made_with"]
    if not _texts(weights, 3, {"files"}) or not _texts(weights.get("files"), 64) or not _texts(made, 16):
        _damaged("what it says of weights and versions cannot be read")
    if not all(map(_is_hash, weights["files"].values())) or set(weights) != {"id", "title", "files"}:
        _damaged("what it says of the weights' files cannot be read")
    return record


def replay(
    record: Mapping[str, Any], image: np.ndarray | None = None, mask: np.ndarray | None = None
) -> DiffusionRequest:
    """The request of a record. UserError: as `read_png`."""
    image = None if image is None else check_array(image)
    if mask is not None and (
        not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2 or not mask.size
    ):
        raise UserError("The mask must be an array of shape (height, width) and type bool.")
    request = request_of(record["request"], _start(record["start"]))
    if request.weights != record["weights"]["id"] or request.width is None or request.height is None:
        _damaged("its settings and what it says of the weights do not fit together")
    size, kept = (request.width, request.height), []
    needed = (
        (record["image"], image, canvas.cover, "start picture"),
        (record["mask"], mask, canvas.cover_mask, "mask"),
    )
    for expected, given, fit, name in needed:
        if expected is not None and given is None:
            raise UserError(f"This picture was drawn with a {name} that its file does not hold; give that, too.")
        fitting = None if expected is None or given is None else fit(given, *size)
        if fitting is not None and canvas.fingerprint(fitting) != expected:
            raise UserError(f"The {name} is another one than this picture was drawn with; give that one.")
        kept.append(fitting)
    return checked(replace(request, image=kept[0], mask=kept[1]))


def notes(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What is different here from where a record was made, a sentence each. Where it is empty, only another
    processor, device or number of threads can change a bit of the picture."""
    said = []
    entry = catalogue.manifest().get(record["weights"]["id"])
    here = {} if entry is None else hashes(entry)
    if not here:
        said.append("The weights that drew this picture are not on this machine.")
    elif here != record["weights"]["files"]:
        said.append("The weights of this name are others here than those that drew this picture, so it will differ.")
    made = record["made_with"]
    for name in LIBRARIES["reference"]:
        if name in made and made[name] != _version(name):
            said.append(f"It was drawn with {name} {_printable(made[name])}, and here is {_version(name)}.")
    return tuple(said)


# --- from a file -----------------------------------------------------------------------------------------------------


def _text(data: bytes) -> str:
    """The record's text. UserError: there is none, or it cannot be read."""
    if not isinstance(data, bytes | bytearray) or not data.startswith(SIGNATURE):
        raise UserError("This is no PNG file; choose one that was saved here.")
    if len(data) > limits().upload_bytes:
        raise UserError(f"The file is larger than {limits().upload_bytes // 1_000_000} MB; choose a smaller one.")
    found = [body for kind, body in _chunks(data) if kind == b"iTXt" and body.partition(b"\0")[0] == KEYWORD]
    if not found:
        raise UserError("This picture carries no run; choose one that was saved here and not changed since.")
    if len(found) > 1:
        _damaged("there are two of them")
    if len(found[0]) > record_bytes():
        _damaged("it is longer than a run can be")
    flags, rest = found[0][len(KEYWORD) + 1 :][:2], found[0][len(KEYWORD) + 3 :]
    parts = rest.split(b"\0", 2)  # language, translated keyword, text
    if flags != b"\0\0" or len(parts) != 3:
        _damaged("it is packed in a way that is not ours")
    try:
        return parts[2].decode("utf-8")
    except UnicodeDecodeError:
        _damaged("it is no text")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk: length, kind, body, CRC-32 of the latter two (PNG specification, 5.3)."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        body, check = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(check) < 4 or (kind == b"iTXt" and zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(check, "big")):
            raise UserError("The PNG file is damaged or cut short; choose the file as it was saved here.")
        yield kind, bytes(body) if kind == b"iTXt" else b""
        if kind == b"IEND":
            return
        at += 12 + length


def _start(section: Any) -> Start | None:
    if section is None:
        return None
    if not isinstance(section, dict) or set(section) != {"call", "latents", "memory"} or not whole(section["call"], 0):
        _damaged("where it was forked cannot be read")
    return Start(_array(section["latents"], 3), section["call"], _array(section["memory"], 4))


def _array(section: Any, axes: int) -> np.ndarray:
    if not isinstance(section, dict) or set(section) != {"shape", "float32"}:
        _damaged("its latents cannot be read")
    shape, text = section["shape"], section["float32"]
    if not isinstance(shape, list) or len(shape) != axes or not all(whole(side, 0, NUMBERS) for side in shape):
        _damaged("its latents have no shape")
    count = 1
    for side in shape:  # whole numbers of any length: no overflow
        count *= side
    if count > NUMBERS or not isinstance(text, str) or len(text) > 4 * 4 * NUMBERS // 3 + 4:
        _damaged("its latents are too many")
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError:  # binascii.Error and UnicodeEncodeError are such
        _damaged("its latents are no numbers")
    if len(data) != 4 * count:
        _damaged("its latents have another shape")
    return np.frombuffer(data, "<f4").astype(np.float32).reshape(shape)


def _texts(section: Any, most: int, but: set[str] | None = None) -> bool:
    """Whether this is an object of at most `most` short texts; `but`: fields that are looked at elsewhere."""
    if not isinstance(section, dict) or len(section) > most:
        return False
    others = [value for key, value in section.items() if key not in (but or ())]
    return all(isinstance(each, str) and len(each) <= 200 for each in (*section, *others))


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _printable(text: str) -> str:
    return "".join(char for char in text[:40] if char.isprintable()) or "?"


def _damaged(what: str) -> NoReturn:
    raise UserError(f"The run in this picture is damaged or was edited, so nothing of it was read: {what}.")
