"""Files of a checkpoint: find, fetch, verify, read.

A download goes to a temporary file, is hashed while it streams, and is renamed only when it is whole: what bears the
final name is complete. Files are read as safetensors or with torch's `weights_only=True`, never unpickled freely.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .catalogue import WEIGHTS, Entry, File
from .errors import UserError

CHUNK = 1 << 20
CONNECT_SECONDS = 8.0  # a visitor without a network is told so within 10 s
_verified: set[tuple[str, int, int]] = set()
_verified_lock = threading.Lock()


@dataclass(frozen=True)
class Progress:
    """done and total in bytes (total 0 if unknown), and a sentence for the progress bar."""

    done: int
    total: int
    message: str


def cache_dir() -> Path:
    """Where fetched files are kept: GLASSHOUSE_CACHE, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "glasshouse"
    return Path(os.environ.get("GLASSHOUSE_CACHE", default))


def _package_dir(package: str) -> Path | None:
    # find_spec does not run the package: face_recognition_models fails to import without setuptools' pkg_resources.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _torch_hub_dir() -> Path:
    home = os.environ.get("TORCH_HOME", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torch")
    return Path(home) / "checkpoints"


def _locate_file(entry: Entry, file: File) -> Path | None:
    tried = (_locate_path(entry, path) for path in (*file.fuller, file.path))
    return next((path for path in tried if path is not None), None)


def _locate_path(entry: Entry, name: str) -> Path | None:
    if entry.source == "bundled":
        candidates = [WEIGHTS / name]
    elif entry.source == "package":
        folder = _package_dir(entry.origin)
        candidates = [] if folder is None else [folder / name]
    elif entry.source == "url":
        # facenet-pytorch keeps its own downloads in torch's folder under the same names.
        candidates = [cache_dir() / entry.id / name, _torch_hub_dir() / name]
    else:
        from huggingface_hub import try_to_load_from_cache

        hit = try_to_load_from_cache(entry.origin, name, revision=entry.revision)
        candidates = [Path(hit)] if isinstance(hit, str) else []
    return next((path for path in candidates if path.is_file()), None)


def locate(entry: Entry) -> dict[str, Path] | None:
    """Paths of the entry's files by name, or None unless every one is on this machine. Hashes nothing."""
    paths = {file.name: _locate_file(entry, file) for file in entry.files}
    return None if None in paths.values() else {name: path for name, path in paths.items() if path is not None}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _recorded_hash(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def paths(entry: Entry) -> dict[str, Path]:
    """Verified paths of the entry's files by name: call this before loading.

    A file is hashed once in a process. UserError: a file is missing or is not the one that the catalogue means.
    """
    found = locate(entry)
    if found is None:
        raise UserError(f"The weights “{entry.title}” are not on this machine.")
    for file in entry.files:
        path = found[file.name]
        record = _recorded_hash(path)
        expected = file.sha256 or (record.read_text().strip() if record.is_file() else "")
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        if not expected or key in _verified:
            continue
        if _sha256(path) != expected:
            raise UserError(
                f"A file of the weights “{entry.title}” is damaged: delete it and fetch or install it again."
            )
        with _verified_lock:
            _verified.add(key)
    return found


def fetch(entry: Entry) -> Iterator[Progress]:
    """Download what is missing of a hub or url entry, yielding progress; closing the generator stops it cleanly.

    UserError: no network, a server's refusal, a file cut short or with another hash. Nothing broken is kept.
    """
    if not entry.fetchable:
        raise UserError(f"The weights “{entry.title}” come with the installation; there is nothing to fetch.")
    for file in entry.files:
        if _locate_file(entry, file) is None:
            yield from _fetch_hub(entry, file) if entry.source == "hub" else _fetch_url(entry, file)
    paths(entry)
    yield Progress(entry.size or 1, entry.size or 1, f"{entry.title} is ready.")


def _fetch_url(entry: Entry, file: File) -> Iterator[Progress]:
    from filelock import FileLock, Timeout

    target = cache_dir() / entry.id / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not thread-local: gradio may take a generator on in another thread than it was begun in.
    lock = FileLock(str(target) + ".lock", thread_local=False)
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            yield Progress(0, file.size, "Another visitor is fetching this file; waiting for it.")
    try:
        if target.is_file():  # the other visitor has finished it
            return
        yield from _stream(entry, file, target)
    finally:
        lock.release()


def _stream(entry: Entry, file: File, target: Path) -> Iterator[Progress]:
    import httpx

    partial = target.with_name(target.name + ".partial")
    digest = hashlib.sha256()
    done = 0
    yield Progress(0, file.size, f"Connecting for {file.path} …")
    client = httpx.Client(follow_redirects=True, timeout=httpx.Timeout(30.0, connect=CONNECT_SECONDS))
    try:
        request = client.build_request("GET", file.url)
        response = _within(CONNECT_SECONDS, lambda: client.send(request, stream=True))
        response.raise_for_status()
        total = int(response.headers.get("content-length", 0)) or file.size
        with partial.open("wb") as stream:
            for chunk in response.iter_bytes(CHUNK):
                stream.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                yield Progress(done, total, f"Fetching {file.path}")
        if total and done != total:
            raise UserError(f"The download of {file.path} broke off; nothing was kept. Try again.")
        if file.sha256 and digest.hexdigest() != file.sha256:
            raise UserError(f"The download of {file.path} is not the file that was published; nothing was kept.")
        _check_weights(partial, file)
        _recorded_hash(target).write_text(digest.hexdigest())
        partial.replace(target)
    except httpx.HTTPStatusError as error:
        raise UserError(f"The server refused {file.path} (status {error.response.status_code}).") from error
    except (httpx.HTTPError, FutureTimeout, OSError) as error:
        raise UserError("There is no connection to the weights' server; the demo goes on with what is here.") from error
    finally:
        client.close()
        partial.unlink(missing_ok=True)


def _check_weights(path: Path, file: File) -> None:
    """A network's login page answers with status 200 too: what has no published hash must at least be weights."""
    if file.sha256 or Path(file.path).suffix not in (".pt", ".pth", ".safetensors"):
        return
    try:
        tensors = read(path, Path(file.path).suffix)
    except UserError:
        tensors = {}
    if not tensors:
        raise UserError(f"What the server sent for {file.path} is no weights file; nothing was kept.")


def _fetch_hub(entry: Entry, file: File) -> Iterator[Progress]:
    """huggingface_hub does the work (its own lock, temporary file, resume); its bar is turned into our progress."""
    from huggingface_hub import hf_hub_download
    from tqdm.auto import tqdm

    bars: list[Any] = []

    class Recording(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": False, "file": open(os.devnull, "w")})  # noqa: SIM115
            bars.append(self)

    pool = ThreadPoolExecutor(1)
    job: Future[str] = pool.submit(
        hf_hub_download, entry.origin, file.path, revision=entry.revision, etag_timeout=CONNECT_SECONDS / 2,
        tqdm_class=Recording,
    )  # fmt: skip
    pool.shutdown(wait=False)
    waited = 0.0
    while not job.done():
        try:
            job.result(timeout=0.5)
        except FutureTimeout:
            waited += 0.5
            if not bars and waited >= CONNECT_SECONDS:
                break
            done = int(bars[-1].n) if bars else 0
            yield Progress(done, file.size, f"Fetching {file.path}")
        except Exception:
            break
    error = job.exception() if job.done() else FutureTimeout()
    if error is not None:
        raise UserError("There is no connection to the weights' hub; the demo goes on with what is here.") from error


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    # A name look-up has no time limit of its own, so the call gets a thread and the thread a deadline.
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return future.result(timeout=seconds)


def read_json(path: Path, name: str = "", place: str = "weights' folder") -> dict[str, Any]:
    """The JSON object in a file that comes with weights. name, place: how the sentences call the file and its folder.

    UserError: the file is missing or is none.
    """
    name = name or path.name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The {place} has no {name}: fetch these weights again.") from error
    except ValueError as error:
        raise UserError(f"{name} of the {place} is damaged: delete it and fetch these weights again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{name} of the {place} is damaged: delete it and fetch these weights again.")
    return content


def read(path: Path, suffix: str = "") -> dict[str, Any]:
    """Tensors of a .safetensors file or of a torch file, on the CPU. `suffix` overrules the path's own.

    UserError: the file holds more than tensors (authors' .ckpt and .pth sometimes do) or is not readable.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if (suffix or path.suffix) == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"{path.name} is damaged or no file of weights: delete it and fetch or install it again."
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path.name} holds Python objects besides tensors, which could run code when read, so it is refused: "
            "convert it to safetensors where it was made."
        ) from error


def read_tensors(path: Path) -> dict[str, Any]:
    """`read` for a file of weights as authors publish them, be they under "model" or by themselves: float32 tensors by
    name. UserError: as `read`, or it holds something else."""
    from torch import Tensor

    content: Any = read(path)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path.name} is no file of weights: it does not hold tensors by name.")
    return {name: value.float() if value.is_floating_point() else value for name, value in content.items()}
