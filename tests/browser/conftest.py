"""A server as visitors get it, and Chromium to visit it. Skips, with the reason, where no Chromium is installed."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.browser.camera import write_y4m

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "assets" / "examples"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]


def pytest_collection_modifyitems(items):
    if CHROMIUM is None:
        for item in items:
            if Path(item.path).parent == Path(__file__).parent:
                item.add_marker(
                    pytest.mark.skip(reason="no Chromium on this machine (Debian: apt-get install chromium)")
                )


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="session")
def server(server_process):
    """Address of `python app.py`, started as a visitor's server would be."""
    return server_process[0]


@pytest.fixture(scope="session")
def server_process(tmp_path_factory):
    """(address, process) of the app."""
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    environ = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(log.parent / "gradio")}
    # No test may fetch weights, on whatever machine it runs: this proxy does not answer.
    environ.update(HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY="127.0.0.1,localhost")
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--host", "127.0.0.1"], cwd=ROOT, env=environ, stdout=stream, stderr=stream
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1500):
            if process.poll() is not None:
                pytest.fail(f"the app ended at once:\n{log.read_text()}")
            try:
                urllib.request.urlopen(address, timeout=2).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail(f"no answer from the app:\n{log.read_text()}")
        yield address, process
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api")
    film = write_y4m(EXAMPLES / "face" / "astronaut.jpg", tmp_path_factory.mktemp("camera") / "camera.y4m")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=CHROMIUM, args=[*FLAGS, f"--use-file-for-fake-video-capture={film}"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(server, chromium):
    """visit(locale) -> a page of the app; whatever the browser's console calls an error fails the test."""
    contexts, errors = [], []

    def open_page(locale="en-GB", **options):
        context = chromium.new_context(
            viewport={"width": 1280, "height": 1100}, locale=locale, permissions=["camera"], **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server)
        page.wait_for_selector("text=Glasshouse")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
