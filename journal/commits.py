"""Group commit: appends of all threads of a process that wait at the same time share one durable commit.

A caller that is alone commits in its own thread. When several come at once, or nobody waits (`wait=False`), a thread
of the journal commits for all of them; it is started with the first such append. Callers whose commit is done mostly
come again soon, so that thread waits for those that it had the last time and those who came meanwhile, but at most half
as long as that commit took.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, final

from casstore import forks
from casstore.errors import ForkedHandle
from journal.backend import Unit
from journal.errors import OutcomeUnknown

GROUP_EVENTS: Final = 1024
PATIENCE: Final = 0.5  # of the time that the last group took
PATIENCE_S: Final = 0.02


class Pending(Unit):
    """A unit that waits for its commit. `size` is its number of events."""

    __slots__ = ("_callbacks", "_until_done", "awaited", "done", "size")

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.done = False
        self.awaited = False  # somebody waits, and may well come again
        self._until_done = threading.Lock()  # an Event costs five times as much
        self._until_done.acquire()
        self._callbacks: list[Callable[[], None]] = []

    def wait(self) -> None:
        """Return when it is done."""
        with self._until_done:
            pass

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call it once: by the thread that commits, or at once if that is done. It may neither block nor raise."""
        self.awaited = True
        self._callbacks.append(callback)
        if self.done:
            self._call_back()

    def settle(self) -> None:
        """It is written, or refused."""
        if not self.done:
            self.done = True
            self._until_done.release()
        self._call_back()

    def _call_back(self) -> None:
        """Both ends may come here at the same time; a pop gives each callback to one of them."""
        while self._callbacks:
            try:
                callback = self._callbacks.pop()
            except IndexError:
                return
            callback()


@final
class Committer:
    """`commit_group` writes a group, filling in what became of each."""

    def __init__(self, commit_group: Callable[[Sequence[Pending]], None]) -> None:
        self._commit_group = commit_group
        self._queue: deque[Pending] = deque()
        self._leader = threading.Lock()
        self._lock = threading.Lock()  # taken as a lock: an interrupt inside of a condition would leave it taken
        self._wake = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._idle = False  # the thread waits for the next append
        self._expected = 1  # how many callers will probably be there with the next commit
        self._patience_s = 0.0
        self._closed = False
        self._pid = forks.pid
        _all.add(self)

    def submit(self, pending: Pending) -> None:
        """Queue it."""
        self._queue.append(pending)

    def finish(self, pending: Pending) -> None:
        """Return when it is done. Where nobody commits the caller does it itself; else the thread takes along, with
        the next commit, all who came meanwhile: callers that lined up for the lock would go one by one.

        Raises: ForkedHandle in a child, where that thread does not exist.
        """
        if self._pid != forks.pid:
            raise ForkedHandle("the journal of this append", self._pid)
        pending.awaited = True
        if self._expected <= 1 and not self._leader.locked():
            with self._leader:
                while not pending.done:
                    self._drain()
            if self._queue:
                self.start_thread()
        else:
            self.start_thread()
            pending.wait()

    def start_thread(self) -> None:
        """Have the queue drained without anybody waiting."""
        with self._lock:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._rounds, name="journal-commit", daemon=True)
                with suppress(RuntimeError):  # there are as many threads as there can be: the next append tries again
                    thread.start()
                    self._thread = thread
            if self._idle or len(self._queue) >= self._expected:
                self._wake.notify()
            alone = self._closed or self._thread is None  # nobody else will: whoever queued it drains
        while alone and self._queue:
            with self._leader:
                self._drain()

    def close(self) -> None:
        """Commit what is queued, then stop."""
        if self._pid != forks.pid:
            return
        with self._lock:
            self._closed = True
            self._wake.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._leader:
            while self._queue:
                self._drain()

    def _rounds(self) -> None:
        while True:
            with self._lock:
                self._idle = True
                self._wake.wait_for(lambda: self._queue or self._closed)
                self._idle = False
                if not self._queue:
                    return
                if len(self._queue) < self._expected:
                    self._wake.wait_for(self._is_complete, timeout=self._patience_s)
            with self._leader:
                began = time.monotonic()
                self._expected = max(self._drain(), 1)
                self._patience_s = min((time.monotonic() - began) * PATIENCE, PATIENCE_S)

    def _is_complete(self) -> bool:
        return len(self._queue) >= self._expected or self._closed

    def _drain(self) -> int:
        """Commit what is queued, up to a limit; how many callers waited for it, or came meanwhile."""
        group: list[Pending] = []
        events = 0
        while self._queue and (not group or events + self._queue[0].size <= GROUP_EVENTS):
            group.append(self._queue.popleft())
            events += group[-1].size
        if not group:
            return 0
        failure: BaseException | None = None
        try:
            self._commit_group(group)
        except Exception as error:
            failure = error
        except BaseException as error:  # an interrupt: it may have come before or after the commit
            failure = OutcomeUnknown("an append", f"interrupted by {type(error).__name__}")
            raise
        finally:
            came = sum(pending.awaited for pending in self._queue.copy())  # now: done, those of the group come again
            for pending in group:
                if failure is not None and pending.error is None:
                    pending.error = failure
                pending.settle()
        return came + sum(pending.awaited for pending in group)


_all: weakref.WeakSet[Committer] = weakref.WeakSet()


@atexit.register
def _commit_rest() -> None:
    """At the end of the interpreter: its thread ends with it, and what nobody waited for was promised all the same."""
    for committer in list(_all):
        committer.close()
