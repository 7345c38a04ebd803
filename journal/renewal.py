"""Renew the claims of runs whose attempt is open, so that a slow handler keeps its run.

One daemon thread per journal, started with the first open attempt. It holds runs weakly: one that nobody holds any
more is not renewed, and its claim expires.
"""

from __future__ import annotations

import threading
import weakref
from typing import Final, Protocol

from casstore import forks

PER_TTL: Final = 3  # renewals per lifetime of a claim: two may fail


class Renewable(Protocol):
    """What the timer renews. `renew_claim` raises nothing: a claim that is lost is found at the next append."""

    def renew_claim(self) -> None: ...


class Renewer:
    """`interval_s` seconds between two rounds."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = forks.pid
        self._closed = False
        self._runs: weakref.WeakSet[Renewable] = weakref.WeakSet()

    def add(self, run: Renewable) -> None:
        """Renew it from now on. After close, or in a forked child, nothing happens."""
        if self._pid != forks.pid:  # the thread is the parent's, and so is the journal's handle
            return
        with self._lock:
            if self._closed:
                return
            self._runs.add(run)
            if self._thread is None:
                thread = threading.Thread(target=_rounds, args=(weakref.ref(self), self._stop, self._interval_s),
                                          name="journal-renewal", daemon=True)  # fmt: skip
                thread.start()  # first: where there can be no more threads the next run tries again
                self._thread = thread

    def discard(self, run: Renewable) -> None:
        """Renew it no more. A round that is under way may still do it once."""
        if self._pid == forks.pid:
            with self._lock:
                self._runs.discard(run)

    def renew_all(self) -> None:
        """One round, now."""
        with self._lock:
            runs = list(self._runs)
        for run in runs:
            run.renew_claim()

    def close(self) -> None:
        """Stop; waits for a round under way. Idempotent."""
        if self._pid != forks.pid:
            return
        with self._lock:
            self._closed = True
            self._runs.clear()
            thread, self._thread = self._thread, None
        self._stop.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()


def _rounds(owner: weakref.ref[Renewer], stop: threading.Event, interval_s: float) -> None:
    while not stop.wait(interval_s):
        renewer = owner()
        if renewer is None:
            return
        renewer.renew_all()
        del renewer
