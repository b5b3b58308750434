"""Finding, fetching and verifying weights, against a real server on the loopback address."""

import functools
import hashlib
import http.server
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines.common import catalogue, checkpoint
from pipelines.common.catalogue import Entry, File
from pipelines.common.errors import UserError

DATA = np.random.default_rng(0).bytes(3_000_000)
PAGE = b"<html>Please log in to this network.</html>"
DIGEST = hashlib.sha256(DATA).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    requests = 0
    slow = 0.0

    def do_GET(self):
        type(self).requests += 1
        if self.path == "/missing":
            self.send_error(404)
            return
        full = PAGE if self.path == "/login" else DATA
        self.send_response(200)
        self.send_header("content-length", str(len(full)))
        self.end_headers()
        body = full[:1_500_000] if self.path == "/cut" else full
        for start in range(0, len(body), 300_000):
            self.wfile.write(body[start : start + 300_000])
            time.sleep(self.slow)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSHOUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    Server.requests, Server.slow = 0, 0.0
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def entry(url, sha256=DIGEST, name="model.bin"):
    file = File("model", name, url=url, sha256=sha256)
    return Entry("test-entry", "face", "embedder", "Test", "x", "x", "url", "x", "MIT", (file,))


def left(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock")


def test_fetch_streams_verifies_and_keeps(server, tmp_path):
    one = entry(f"{server}/model.bin")
    assert checkpoint.locate(one) is None
    events = list(checkpoint.fetch(one))
    done = [e.done for e in events[:-1]]
    assert done == sorted(done) and done[-1] == len(DATA) and all(e.total in (0, len(DATA)) for e in events[:-1])
    assert checkpoint.paths(one)["model"].read_bytes() == DATA
    assert left(tmp_path) == ["model.bin", "model.bin.sha256"]
    list(checkpoint.fetch(one))
    assert Server.requests == 1


@pytest.mark.parametrize(
    ("path", "sha256", "words"),
    [
        ("/cut", DIGEST, "connection|broke off"),
        ("/cut", "", "connection|broke off"),
        ("/model.bin", "0" * 64, "not the file"),
        ("/missing", "", "refused .*404"),
    ],
)
def test_a_broken_download_is_never_kept(server, tmp_path, path, sha256, words):
    one = entry(server + path, sha256)
    with pytest.raises(UserError, match=words):
        list(checkpoint.fetch(one))
    assert left(tmp_path) == [] and checkpoint.locate(one) is None


def test_a_login_page_is_no_weights(server, tmp_path):
    for name in ("model.pt", "model.safetensors"):
        one = entry(f"{server}/login", "", name)
        with pytest.raises(UserError, match="no weights file"):
            list(checkpoint.fetch(one))
        assert left(tmp_path) == [] and checkpoint.locate(one) is None


def test_a_fetch_may_be_closed_in_another_thread(server, tmp_path):
    """Gradio goes on with a generator in whichever thread is free: the lock must come off all the same."""
    one = entry(f"{server}/model.bin")
    events = checkpoint.fetch(one)
    while next(events).done == 0:
        pass
    thread = threading.Thread(target=events.close)
    thread.start()
    thread.join()
    assert list(checkpoint.fetch(one))[-1].message == "Test is ready."


def test_no_network_says_so_within_ten_seconds(server, tmp_path):
    start = time.perf_counter()
    with pytest.raises(UserError, match="no connection"):
        list(checkpoint.fetch(entry("http://127.0.0.1:9/model.bin")))
    assert time.perf_counter() - start < 10  # the promise to the visitor, not a benchmark


def test_a_name_lookup_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(checkpoint, "CONNECT_SECONDS", 0.2)
    with pytest.raises(checkpoint.FutureTimeout):
        checkpoint._within(0.2, lambda: time.sleep(1))


def test_closing_the_generator_leaves_nothing(server, tmp_path):
    events = checkpoint.fetch(entry(f"{server}/model.bin"))
    while next(events).done == 0:
        pass
    events.close()
    assert left(tmp_path) == []


def test_two_visitors_fetch_once(server, tmp_path):
    Server.slow = 0.2
    one = entry(f"{server}/model.bin")
    messages = [[], []]
    threads = [
        threading.Thread(target=lambda box=box: box.extend(e.message for e in checkpoint.fetch(one)))
        for box in messages
    ]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert Server.requests == 1
    assert any("Another visitor" in text for text in messages[0] + messages[1])
    assert all(box[-1] == "Test is ready." for box in messages)


def test_a_file_changed_on_disk_is_refused(server):
    one = entry(f"{server}/model.bin", sha256="")  # no published hash: the one of the download counts
    list(checkpoint.fetch(one))
    path = checkpoint.paths(one)["model"]
    path.write_bytes(DATA[:-1] + b"!")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.paths(one)


def test_auto_downloads_nothing_and_prefers_the_order_of_the_file(server, monkeypatch):
    here, away = catalogue.manifest()["dlib"], entry(f"{server}/model.bin")
    monkeypatch.setattr(catalogue, "manifest", lambda: {away.id: away, here.id: here})
    assert catalogue.resolve("face", "auto", "embedder").id == "dlib"
    assert Server.requests == 0
    list(checkpoint.fetch(away))
    assert catalogue.resolve("face", "auto", "embedder").id == "test-entry"


def test_unknown_and_absent_weights_are_named(server, monkeypatch):
    with pytest.raises(UserError, match="no weights called “nonsense”"):
        catalogue.resolve("face", "nonsense")
    away = entry(f"{server}/model.bin")
    monkeypatch.setattr(catalogue, "manifest", lambda: {away.id: away})
    with pytest.raises(UserError, match="fetch it"):
        catalogue.resolve("face", "test-entry")
    with pytest.raises(UserError, match="None of these weights"):
        catalogue.resolve("face", "auto")


def test_the_shipped_manifest_is_whole():
    entries = catalogue.manifest()
    assert {"mtcnn", "dlib", "facenet-vggface2", "facenet-casia"} <= entries.keys()
    for one in entries.values():
        assert one.licence and one.title and one.facts.get("trained_on")
        for file in one.files:
            assert file.sha256 == "" or len(file.sha256) == 64
            assert (one.source == "url") == file.url.startswith("https://")
    with pytest.raises(ValueError, match="sauce"):
        catalogue.parse({"entry": [{"id": "x", "sauce": "hub"}]})


def test_read_takes_tensors_and_refuses_objects(tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.arange(3.0)}, tmp_path / "a.pt")
    assert checkpoint.read(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]
    assert checkpoint.read(tmp_path / "a.pt")["a"].tolist() == [0, 1, 2]
    for name in ("a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
        with pytest.raises(UserError, match="damaged"):
            checkpoint.read(tmp_path / name)
    torch.save({"a": functools.partial(print, "hello")}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="refused"):
        checkpoint.read(tmp_path / "bad.pt")


def test_a_json_file_is_an_object_or_a_sentence(tmp_path):
    file = tmp_path / "config.json"
    with pytest.raises(UserError, match=r"^The weights' folder has no config\.json: fetch"):
        checkpoint.read_json(file)
    for bad in ("{", "[1]", "\ufffe"):
        file.write_text(bad, encoding="utf-8")
        with pytest.raises(UserError, match=r"^unet/config\.json of the model folder is damaged"):
            checkpoint.read_json(file, "unet/config.json", "model folder")
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.read_json(file)
    file.write_text('{"a": 1}')
    assert checkpoint.read_json(file) == {"a": 1}
