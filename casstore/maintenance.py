"""gc in the background of a program that has its store open anyway: one thread that looks now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, final

from casstore import forks
from casstore.errors import Busy, CodedError, InvalidArgument
from casstore.policies import Due, Policy, exact_seconds
from casstore.reports import GcReport
from casstore.roots import RootSource

if TYPE_CHECKING:
    from casstore.store import Store

_OVER: Final = ("closed", "journal_closed")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One look. `due` says whether a gc was worth it and why; `report` is the gc, None where there was none; `error`
    is what ended the look, None for nothing."""

    due: Due
    report: GcReport | None = None
    error: Exception | None = None


@final
class Maintenance:
    """Collects in the background, by the policy in HOME/gc.toml or by `policy`, whenever `store.gc_due` says so.

    >>> with Maintenance(jrn.store, jrn, every=60, on_error=log.exception):    # doctest: +SKIP
    ...     orchestrate(jrn)

    Leaving the block ends the thread: a gc under way stops at the next batch. Close it before the store. Claims,
    leases and pins are not touched. No error is swallowed: it goes to `on_error` and stays in `last_error` until a look
    goes well, and the next look is at its time all the same. Another gc, of whatever process, is no error: it is what
    was wanted. A child of a fork has no such thread; make another one there.
    """

    def __init__(
        self, store: Store, roots: RootSource, *, policy: Policy | None = None, every: float = 60.0,
        on_tick: Callable[[Tick], None] | None = None, on_error: Callable[[Exception], None] | None = None,
    ) -> None:  # fmt: skip
        if not exact_seconds(every, "every") > 0:
            raise InvalidArgument("every", "must be a number of seconds above 0")
        self._store, self._roots, self._policy, self._every_s = store, roots, policy, float(every)
        self._on_tick, self._on_error = on_tick, on_error
        self._stop = threading.Event()
        self._one = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = forks.pid
        self.last_error: Exception | None = None
        self.last_tick: Tick | None = None

    def start(self) -> None:
        """Begin; the first look is at once. Once started or closed, nothing happens."""
        if self._thread is None and not self._stop.is_set():
            thread = threading.Thread(target=self._rounds, name="casstore-maintenance", daemon=True)
            thread.start()  # first: where there can be no more threads this can be tried again
            self._thread = thread

    def close(self) -> None:
        """Stop, and wait for the gc that may be under way to stop. Idempotent."""
        self._stop.set()
        if self._thread is not None and self._pid == forks.pid and self._thread is not threading.current_thread():
            self._thread.join()

    def tick(self) -> Tick:
        """One look, now, in the caller's thread: a gc where it is worth it. Raises nothing that is an Exception."""
        with self._one:
            tick = self._look()
            self.last_tick, self.last_error = tick, tick.error
            if tick.error is not None:
                self._tell(self._on_error, tick.error)
            self._tell(self._on_tick, tick)
            return tick

    def _look(self) -> Tick:
        due = Due(due=False, reason="the look failed")
        try:
            policy = self._policy or self._store.policy()
            due = self._store.gc_due(self._roots, policy=policy)
            if not due.due or self._stop.is_set():
                return Tick(due=due)
            return Tick(due=due, report=self._store.gc(self._roots, policy=policy, stop=self._stop.is_set))
        except Busy as busy:
            return Tick(due=Due(due=False, reason=str(busy)))
        except Exception as error:
            return Tick(due=due, error=error)

    def _tell(self, listener: Callable[..., None] | None, what: object) -> None:
        """A listener that fails must not end the thread, and its error must not be lost either."""
        if listener is None:
            return
        try:
            listener(what)
        except Exception as error:
            self.last_error = error
            if listener is not self._on_error and self._on_error is not None:
                with suppress(Exception):
                    self._on_error(error)

    def _rounds(self) -> None:
        while not self._stop.is_set():
            tick = self.tick()
            if isinstance(tick.error, CodedError) and tick.error.code in _OVER:
                return  # store or journal was closed before this: there is nothing left to look after
            self._stop.wait(self._every_s)

    def __enter__(self) -> Maintenance:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
