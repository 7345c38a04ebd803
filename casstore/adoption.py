"""A larger memory map, as another process runs with, taken over while threads read and write."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, final

from casstore.errors import Busy


@final
class MapUsers:
    """Who has a transaction open in this process: adopting a larger map, which another process runs with, takes the
    old one away from under them, so it waits until there is none, and nobody begins one meanwhile."""

    def __init__(self, adopt: Callable[[], None], resized: type[Exception]) -> None:
        """`adopt` takes the larger map; `resized` is what a transaction raises that cannot begin without it."""
        self._adopt_now, self._resized = adopt, resized
        self._open: dict[object, int] = {}  # who -> its thread
        self._adopting = False
        self._changed = threading.Condition(threading.Lock())

    def begin(self, who: object, begin: Callable[[], Any]) -> Any:
        """What `begin` returns, at a moment when the map stays where it is. Raises: Busy, and what `begin` raises."""
        while True:
            self._open[who] = threading.get_ident()
            try:
                # First on the list, then a look: whoever adopts does it the other way round, so one sees the other.
                if not self._adopting:
                    return begin()
            except self._resized:
                self.end(who)
                self._adopt()
                continue
            except BaseException:
                self.end(who)
                raise
            self.end(who)
            with self._changed:
                self._changed.wait_for(lambda: not self._adopting)

    def end(self, who: object) -> None:
        """It is committed or aborted."""
        del self._open[who]
        if self._adopting:
            with self._changed:
                self._changed.notify_all()

    def _adopt(self) -> None:
        if threading.get_ident() in list(self._open.values()):
            raise Busy("another process has enlarged the store while this thread reads")
        with self._changed:
            if self._adopting:  # another thread is at it
                self._changed.wait_for(lambda: not self._adopting)
                return
            self._adopting = True
            try:
                self._changed.wait_for(lambda: not self._open)
                self._adopt_now()
            finally:
                self._adopting = False
                self._changed.notify_all()
