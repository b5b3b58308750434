"""The Text tab's API as programs call it, and what the server does when somebody leaves in the middle of a text."""

import itertools
import json
import threading
import time
from types import SimpleNamespace

import httpx
import pytest

from tests.browser.test_detection import wait_text
from tests.browser.test_face import PATIENCE
from tests.browser.test_moe import TOLD


def test_the_api_serves_programs(server):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(server, verbose=False)
    texts = list(client.submit("Once upon a time", max_new_tokens=20, temperature=0, api_name="/moe_write"))
    assert len(texts) >= 2 and all(b.startswith(a) for a, b in itertools.pairwise(texts)) and texts[-1]
    bits = client.predict("One day, a girl named Lily went to the park.", api_name="/moe_score")
    assert 0.1 < bits < 2 < client.predict("zxqv jjkw 99 ]]", api_name="/moe_score")
    for options, words in (
        ({"max_new_tokens": 10_000}, "between 0 and 4,096"), ({"temperature": 101}, "temperature"),
        ({"stop": [""]}, "stop"), ({"backend": "other"}, "no implementation"), ({"top_p": "much"}, "Top-p"),
        ({"messages": [{}]}, "role"),
    ):  # fmt: skip
        with pytest.raises(AppError, match=words):
            client.predict("a" if "messages" not in options else "", **options, api_name="/moe_write")
    with pytest.raises(AppError, match="nothing to read"):
        client.predict("", api_name="/moe_score")
    # Weights may have more layers and experts than the widgets list: the handler judges, not the widget.
    pickers = client.predict("The dog ran. The dog ran.", "auto", 60, 60, 1.25, api_name="/moe_ledger")
    assert "Expert 8 of layer 6" in "".join(map(str, pickers))
    with pytest.raises(AppError, match="in the lists"):
        client.predict("The dog", "auto", [], ["60"], [], 2, 1, "none", 0, api_name="/moe_measure")


def by_hand(server, prompt):
    """A request put together by hand: all that the endpoint takes, in order, as ASCII."""
    data = [prompt, "auto", "local", 3, 0.8, 0, 0.95, 0, 1, None, 0, None]
    return httpx.post(
        f"{server}/gradio_api/call/moe_write", content=json.dumps({"data": data}), timeout=30,
        headers={"content-type": "application/json"},
    )  # fmt: skip


def test_half_a_character_is_no_crash(server):
    """A lone surrogate, as a program may send it: a sentence or a refusal, and the next request is served."""
    call = by_hand(server, "a \ud83d b")
    assert "Traceback" not in call.text
    if call.status_code == 200:
        answer = httpx.get(f"{server}/gradio_api/call/moe_write/{call.json()['event_id']}", timeout=60).text
        assert "event: error" in answer and "Traceback" not in answer
    event = by_hand(server, "a").json()["event_id"]
    assert "event: complete" in httpx.get(f"{server}/gradio_api/call/moe_write/{event}", timeout=60).text


# --- a writer that never ends, in this process: what the server does can be watched


@pytest.fixture
def slow(monkeypatch):
    """(address, what is known of the writers) of a page whose model writes a word every 20 ms, for ever."""
    import app
    from pipelines.moe import chat_page, running_page, write_page
    from pipelines.moe.contract import TextEvent

    told = SimpleNamespace(closed=threading.Event(), ended=0.0, asked=[], chats=False)

    def steps(request):
        told.asked.append(request)
        told.closed.clear()
        try:
            for n in range(1, 100_000):
                time.sleep(0.02)
                yield TextEvent(" w" * min(n, 40), n)
        finally:
            told.ended = time.perf_counter()
            told.closed.set()

    for module in (running_page, write_page):
        monkeypatch.setattr(module, "steps", steps)
    monkeypatch.setattr(running_page, "_look_inside", lambda run, turn: iter(()))
    monkeypatch.setattr(chat_page, "chats", lambda weights: told.chats)

    def launch():
        page = app.build(names=("moe",))
        page.queue(default_concurrency_limit=2)
        pages.append(page)
        return page.launch(prevent_thread_lock=True, quiet=True, **app.launch_options())[1]

    pages = []
    yield SimpleNamespace(launch=launch, told=told)
    for page in pages:
        page.close()


def test_a_visitor_who_leaves_frees_the_work_within_a_second(slow, chromium):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(slow.launch())
    page.wait_for_function("t => parseInt(document.querySelector(t)?.innerText) >= 5", arg=TOLD, timeout=PATIENCE)
    assert not slow.told.closed.is_set()
    start = time.perf_counter()
    context.close()
    assert slow.told.closed.wait(10) and slow.told.ended - start < 1.0


def test_a_program_that_leaves_frees_the_work_within_a_second(slow):
    address = slow.launch().rstrip("/")
    event = by_hand(address, "a").json()["event_id"]
    with httpx.stream("GET", f"{address}/gradio_api/call/moe_write/{event}", timeout=30) as answer:
        lines = answer.iter_lines()
        assert any(line.startswith("data:") and "w w" in line for line in lines)
        start = time.perf_counter()
    assert slow.told.closed.wait(10) and slow.told.ended - start < 1.0


def test_weights_that_chat_get_a_chat(slow, chromium):
    slow.told.chats = True
    page = chromium.new_context(locale="en-GB").new_page()
    page.goto(slow.launch())
    wait_text(page, "#moe-write-chat", "mixture of experts")  # an example is asked with nothing touched
    wait_text(page, "#moe-write-chat", "w w w")
    assert not page.locator("#moe-write-prompt").is_visible()
    page.click("#moe-write-stop-chat")
    wait_text(page, TOLD, "Stopped.")
    page.fill("#moe-write-message textarea", "<img src=x onerror=alert(1)> & more")
    page.click("#moe-write-send")
    wait_text(page, "#moe-write-chat", "<img src=x onerror=alert(1)> & more")
    assert page.locator("#moe-write-chat img").count() == 0
    page.wait_for_function("t => parseInt(document.querySelector(t)?.innerText) >= 5", arg=TOLD, timeout=PATIENCE)
    roles = [message.role for message in slow.told.asked[-1].messages]
    assert roles == ["user", "assistant", "user"] and slow.told.asked[-1].messages[-1].text.endswith("& more")
    page.click("#moe-write-anew")
    page.wait_for_function("() => !document.querySelector('#moe-write-chat').innerText.includes('more')")
    assert slow.told.closed.wait(10)
    page.wait_for_timeout(500)
    assert "more" not in page.inner_text("#moe-write-chat")  # the answer that was under way does not come back
    page.context.close()
