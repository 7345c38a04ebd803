"""Work on frames by a few threads, a little ahead of who takes the results: hashing and zstd let go of the GIL.

The threads do nothing but compute: what is worked on is read by whoever takes, and so are errors raised there. They end
with the iterator, at its end or where it is closed or dropped before.

Where address space is scarce the work is done without threads: one that finds no memory in its first steps is never
said to have started, and Python waits for that for ever.
"""

from __future__ import annotations

import os
import resource
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar, final

from casstore.adoption import fits

THREADS_MAX: Final = 4
_ROOM_BYTES: Final = 64 << 20  # of a thread: its stack, and what malloc sets aside for it

T = TypeVar("T")
R = TypeVar("R")


@final
class _Here(Executor):
    """Does the work at once, in the thread that submits it."""

    def submit(self, work: Callable[..., R], /, *given: Any, **named: Any) -> Future[R]:
        done: Future[R] = Future()
        try:
            done.set_result(work(*given, **named))
        except Exception as error:
            done.set_exception(error)
        return done


def threads(most: int = THREADS_MAX) -> Executor:
    """As many as there is work for."""
    count = min(most, os.cpu_count() or 1)
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return _Here() if limited and not fits(count * _ROOM_BYTES) else ThreadPoolExecutor(max_workers=count)


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
