"""Streams that pages feed: places, tickets, frames that are no frames, and nobody's backlog."""

import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image

from pipelines.action import live as module
from pipelines.action.clock import NewestFirst
from pipelines.action.live import IDLE, Live
from pipelines.action.teach import Lesson
from pipelines.common.bench import torch_threads
from pipelines.common.errors import UserError
from tests.action.small import LABELS, small


@pytest.fixture
def entry(tmp_path, monkeypatch):
    with torch_threads(1):
        yield small(tmp_path, monkeypatch)


def coded(width=64, height=48, kind="JPEG"):
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (90, 90, 90)).save(stream, kind)
    return base64.b64encode(stream.getvalue()).decode()


def test_a_stream_from_its_ticket_to_its_end(entry):
    live = Live()
    ticket = live.open(threshold=0.2)
    looks = [live.look(ticket, "data:image/jpeg;base64," + coded(), k / 10) for k in range(4)]
    assert [look.update is not None for look in looks] == [False, True, True, True]
    assert looks[1].update.labels == LABELS and looks[1].update.chunk == 0 and all(look.served for look in looks)
    assert looks[3].seconds > looks[3].waited + looks[3].decoded > looks[3].waited >= 0
    assert len(live) == 1 and len(live.past(ticket)[1]) == 3
    assert live.finish(ticket).chunk == 3 and live.finish(ticket) is None
    assert len(live) == 0 and [m.update.chunk for m in live.past(ticket)[1]] == [0, 1, 2, 3]
    with pytest.raises(UserError, match="over; start it again"):
        live.look(ticket, coded(), 1.0)
    live.drop(ticket)
    assert live.past(ticket) is None and live.past(None) is None and live.finish(["x"]) is None


def test_every_visitor_has_a_memory_of_their_own(entry):
    live = Live()
    a, b = live.open(), live.open()
    for k in range(5):
        live.look(a, coded(), k / 10)
    assert len(live.past(a)[1]) == 4 and live.past(b)[1] == []
    assert a != b and live.past(a)[0] is not live.past(b)[0]


def test_places_are_given_to_others_when_nobody_sits_there(entry, monkeypatch):
    now = [0.0]
    live = Live(lambda: now[0])
    tickets = [live.open() for _ in range(6)]
    with pytest.raises(UserError, match="All 6 places"):
        live.open()
    now[0] = IDLE - 1
    for ticket in tickets[1:]:
        live.look(ticket, coded(), 0.0)
    now[0] = IDLE + 1
    assert live.open() not in tickets and len(live) == 6
    with pytest.raises(UserError, match="over; start it again"):
        live.look(tickets[0], coded(), 0.0)
    now[0] = 601.0
    with pytest.raises(UserError, match="10 minutes"):
        live.look(tickets[1], coded(), 0.0)
    assert len(live) == 5


def test_what_is_over_does_not_pile_up(entry, monkeypatch):
    monkeypatch.setattr(module, "PAST", 2)
    live = Live()
    for _ in range(6):
        live.finish(live.open())
    assert len(live._seats) <= 3


@pytest.mark.parametrize(
    "given", [None, 7, "", "no base64!", base64.b64encode(b"no picture").decode(), coded(kind="GIF"), "A" * 2_000_000,
              coded(3000, 2000)],
)  # fmt: skip
def test_frames_that_are_none(entry, given):
    live = Live()
    ticket = live.open()
    with pytest.raises(UserError, match="frame"):
        live.look(ticket, given, 0.0)
    assert live.look(ticket, coded(), 0.1).served, "nothing is lost"


def test_a_lesson_reaches_a_stream_whose_frames_never_pause(entry):
    live = Live()
    ticket = live.open()
    seat, done = live._seats[ticket], threading.Event()
    given = tuple(np.zeros(32) for _ in range(3))
    lesson = Lesson("a", "small", "oadtr", given[0], given[1] + 1, given[2], 0.0, np.zeros((1, 32)), 1.0)

    def teach():
        live.learn(ticket, (lesson,))
        done.set()

    with seat.turns.turn(), seat.lock:
        thread = threading.Thread(target=teach)
        thread.start()
        assert not done.wait(0.05), "not while a frame is looked at"
        waiting = [threading.Thread(target=live.look, args=(ticket, coded(), k / 10)) for k in range(3)]
        for each in waiting:
            each.start()
    for each in (thread, *waiting):
        each.join(20)
    assert done.is_set() and seat.stream.pupil is not None


def test_a_stream_does_not_end_under_the_frame_that_is_looked_at(entry):
    now = [0.0]
    live = Live(lambda: now[0])
    ticket = live.open()
    live.look(ticket, coded(), 0.0)
    live.look(ticket, coded(), 0.1)
    seat, refused = live._seats[ticket], threading.Event()

    def too_long():
        with pytest.raises(UserError, match="10 minutes"):
            live.look(ticket, coded(), 0.2)
        refused.set()

    now[0] = 601.0
    with seat.lock:  # as `look` holds it
        assert len(live._seats) == 1 and live.open() and not seat.stream.closed, "idle, but for this frame"
        thread = threading.Thread(target=too_long)
        thread.start()
        assert not refused.wait(0.05) and not seat.stream.closed
    thread.join(20)
    assert refused.is_set() and seat.stream.closed and len(live.past(ticket)[1]) == 1


def test_the_newest_wins_and_there_is_no_backlog():
    turns, served, begun, go = NewestFirst(), [], threading.Event(), threading.Event()

    def first():
        with turns.turn() as mine:
            begun.set()
            go.wait(10)
            served.append((0, mine))

    def later(k):
        with turns.turn() as mine:
            served.append((k, mine))

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert begun.wait(10)
    for k in range(1, 6):
        threads.append(threading.Thread(target=later, args=(k,)))
        threads[-1].start()
        while turns._newest < k + 1:  # each waits before the next one comes
            pass
    for thread in threads[1:5]:
        thread.join(10)
    assert sorted(served) == [(k, False) for k in range(1, 5)], "sent away while the first was still served"
    go.set()
    for thread in threads:
        thread.join(10)
    assert (0, True) in served and (5, True) in served and len(served) == 6


def test_a_picture_is_rgb():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(stream, "PNG")
    frame = module.read(base64.b64encode(stream.getvalue()).decode())
    assert frame.shape == (8, 8, 3) and np.array_equal(frame[0, 0], (255, 0, 0))
