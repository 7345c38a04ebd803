"""How large a memory map is, and a larger one, of another process, taken over while threads read and write."""

from __future__ import annotations

import mmap
import resource
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, final

from casstore.errors import Busy

_SHARE: Final = 8  # of a limited address space: store and journal, a copy of each, and as much for all the rest
_ROOM_BYTES_MIN: Final = 8 << 20  # beyond the file; gc needs some to free the rest
_GRAIN: Final = 1 << 16  # pages of all machines


def map_sizes(size: int, most: int) -> Iterator[int]:
    """How large a map may be for a file of so many bytes, the largest first. A map that takes all the address space
    that there is leaves none to the environment that is opened next, nor to the program."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    room = most if limit == resource.RLIM_INFINITY else min(most, limit // _SHARE)
    least = min(room, _ROOM_BYTES_MIN)
    while room >= least:
        yield min(most, size + room) & -_GRAIN
        room //= 2


def fits(size: int) -> bool:
    """Whether there is address space for so large a map."""
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ).close()
    except (OSError, MemoryError):
        return False
    return True


@final
class MapUsers:
    """Who has a transaction open in this process: adopting a larger map, which another process runs with, takes the
    old one away from under them, so it waits until there is none, and nobody begins one meanwhile."""

    def __init__(self, resized: type[Exception]) -> None:
        """`resized` is what a transaction raises that cannot begin without a larger map."""
        self._resized = resized
        self._open: dict[int, int] = {}  # who, by its id, so that this keeps nobody alive -> its thread
        self._adopting = False
        # Taken as a lock (see `environment`), and again by the same thread: what is collected leaves, at any moment.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def begin(self, who: object, begin: Callable[[], Any], adopt: Callable[[], None]) -> Any:
        """What `begin` returns, at a moment when the map stays where it is; `adopt` takes the larger one. Raises: Busy,
        and what `begin` raises."""
        while True:
            self._open[id(who)] = threading.get_ident()
            try:
                # First on the list, then a look: whoever adopts does it the other way round, so one sees the other.
                if not self._adopting:
                    return begin()
            except self._resized:
                self.end(who)
                self._adopt(adopt)
                continue
            except BaseException:
                self.end(who)
                raise
            self.end(who)
            with self._lock:
                self._changed.wait_for(lambda: not self._adopting)

    def end(self, who: object) -> None:
        """It is committed or aborted."""
        self._open.pop(id(who), None)
        if self._adopting:
            with self._lock:
                self._changed.notify_all()

    def _adopt(self, adopt: Callable[[], None]) -> None:
        if threading.get_ident() in list(self._open.values()):
            raise Busy("another process has enlarged the store while this thread reads")
        with self._lock:
            if self._adopting:  # another thread is at it
                self._changed.wait_for(lambda: not self._adopting)
                return
            self._adopting = True
            try:
                self._changed.wait_for(lambda: not self._open)
                adopt()
            finally:
                self._adopting = False
                self._changed.notify_all()
