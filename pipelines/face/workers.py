"""Independent pieces of CPU work side by side: one thread a core, each running torch on that core alone.

torch itself splits every single operation between the cores and waits for the slowest at the end of each. MTCNN makes
hundreds of operations of well under a millisecond, half of them numpy's, so whole strips and batches are handed out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Answer = TypeVar("Answer")
_lock = threading.Lock()


def spread(function: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
    """[function(item) for item in items], on as many threads as torch would use here. The first error is raised.

    The function must not call `spread`: it could wait for a thread that waits for it.
    """
    items = list(items)
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        return [function(item) for item in items]
    with _lock:
        pool = _pool(threads)
    return list(pool.map(function, items))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    # set_num_threads sets the calling thread's number, and the one that a thread takes over when it first needs one:
    # each worker sets 1 and takes it (by asking for it), and only then is the number for other threads put back.
    barrier = threading.Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()
        barrier.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="face", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    barrier.wait()
    torch.set_num_threads(threads)
    return pool
