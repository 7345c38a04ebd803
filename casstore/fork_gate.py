"""Holds a fork back until no transaction is open and no call in flight in this process.

A child has to close what it inherited, and closing a handle with an open transaction would release the parent's
reader slot: its snapshot could then be overwritten under it.
"""

from __future__ import annotations

import threading
from typing import Final, final

from casstore.presence import Presence

WAIT_S: Final = 10.0


@final
class ForkGate:
    """Whoever passes is on a list until it leaves."""

    def __init__(self) -> None:
        self._inside: dict[int, int] = {}  # who, by its id, so that this keeps nobody alive -> its thread
        self._forking = False
        # Taken as a lock (see `environment`), and again by the same thread: what is collected leaves, at any moment.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    @property
    def is_used(self) -> bool:
        """Whether somebody is inside."""
        return bool(self._inside)

    def enter(self, who: object) -> None:
        """Wait while a fork is under way; not where this thread is inside already, since the fork waits for it then."""
        me = threading.get_ident()
        while True:
            # First on the list, then a look: whoever forks does it the other way round, so one sees the other.
            self._inside[id(who)] = me
            if not self._forking or sum(thread == me for thread in list(self._inside.values())) > 1:
                return
            self.leave(who)
            with self._lock:
                self._changed.wait_for(lambda: not self._forking)

    def leave(self, who: object) -> None:
        """Whether it is inside or not."""
        self._inside.pop(id(who), None)
        if self._forking:
            with self._lock:
                self._changed.notify_all()

    def passed(self) -> Presence[None]:
        """Inside for a block."""
        return Presence(self.enter, self.leave)

    def before_fork(self) -> None:
        me = threading.get_ident()
        with self._lock:
            self._forking = True
            self._changed.wait_for(
                lambda: all(thread == me for thread in list(self._inside.values())), timeout=WAIT_S
            )

    def after_in_child(self) -> None:
        """Nobody forks any more; without the lock, which a thread of the parent may have held."""
        self._forking = False

    def after_in_parent(self) -> None:
        with self._lock:
            self._forking = False
            self._changed.notify_all()
