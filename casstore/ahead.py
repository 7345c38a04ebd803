"""Work on frames by a few threads, a little ahead of who takes the results: hashing and zstd let go of the GIL.

The threads do nothing but compute: what is worked on is read by whoever takes, and so are errors raised there. They end
with the iterator, at its end or where it is closed or dropped before.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

THREADS_MAX: Final = 4

T = TypeVar("T")
R = TypeVar("R")


def threads() -> ThreadPoolExecutor:
    """As many as there is work for."""
    return ThreadPoolExecutor(max_workers=min(THREADS_MAX, os.cpu_count() or 1))


def in_order(work: Callable[[T], R], items: Iterable[T], *, most: int) -> Iterator[tuple[T, R]]:
    """Each item with what `work` makes of it, up to `most` of them taken ahead. An error comes in its turn, after all
    that came before it, also one of `items`."""
    ahead: deque[tuple[T, Future[R]]] = deque()
    failed: Exception | None = None
    with threads() as pool:
        source = iter(items)
        while True:
            while failed is None and len(ahead) < most:
                try:
                    item = next(source)
                except StopIteration:
                    break
                except Exception as error:
                    failed = error
                    break
                ahead.append((item, pool.submit(work, item)))
            if not ahead:
                break
            item, done = ahead.popleft()
            yield item, done.result()
    if failed is not None:
        raise failed
