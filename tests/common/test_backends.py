"""Loading once, the memory budget, and one step at a time."""

import threading
import time

import pytest

from pipelines.common.backends import Backends, FairLock, step


def test_two_callers_share_one_load():
    cache, loads = Backends(100), []

    def load():
        time.sleep(0.05)
        loads.append(1)
        return object()

    got = []
    threads = [threading.Thread(target=lambda: got.append(cache.get("a", load, 1))) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(loads) == 1 and len(got) == 8 and len({id(value) for value in got}) == 1


def test_least_recently_used_goes_first():
    cache = Backends(100)
    for key in "abc":
        cache.get(key, object, 40 if key != "c" else 20)
    cache.get("a", object, 40)  # a is now newer than b
    cache.get("d", object, 30)
    assert cache.loaded() == ["c", "a", "d"]


def test_a_model_larger_than_the_budget_is_still_served():
    cache = Backends(10)
    cache.get("small", object, 5)
    big = cache.get("big", object, 50)
    assert big is not None and cache.loaded() == ["big"]


def test_a_failed_load_is_tried_again():
    cache = Backends(10)
    with pytest.raises(OSError):
        cache.get("a", lambda: open("/nowhere/at/all"), 1)  # noqa: SIM115
    assert cache.loaded() == []
    assert cache.get("a", lambda: "here", 1) == "here"


def test_steps_on_one_device_do_not_overlap():
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        for _ in range(20):
            with step("test"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert most == 1


def test_steps_are_served_in_the_order_of_arrival():
    turns, order, threads = FairLock(), [], []

    def visit(number):
        with turns:
            order.append(number)

    with turns:
        for number in range(5):
            threads.append(threading.Thread(target=visit, args=(number,)))
            threads[-1].start()
            while len(turns._waiting) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join(5)
    assert order == [0, 1, 2, 3, 4]
    with turns:  # free again, also after an exception
        pass
    with pytest.raises(KeyError), turns:
        raise KeyError
    assert not turns.locked()


def test_a_busy_visitor_does_not_keep_the_device():
    turns, done, stop = FairLock(), [], threading.Event()

    def busy(number):
        while not stop.is_set():
            with turns:
                done.append(number)
                time.sleep(0.001)

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    while len(done) < 60:
        time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join(5)
    assert min(done.count(0), done.count(1)) >= 10
