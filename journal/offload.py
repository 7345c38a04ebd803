"""Blocking calls of a task, made in threads; cut off by a cancellation only before they begin.

A thread cannot be stopped, and a write that is under way ends somehow. So a task that is cancelled meanwhile waits
for the end, knows the outcome, and raises CancelledError then.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar, final

from casstore.errors import StoreError
from journal.errors import JournalError

WORKERS: Final = 32  # threads that mostly wait for a commit; who waits at the same time shares it

T = TypeVar("T")


@final
class Outcome(Generic[T]):
    """How a call ended, and the first cancellation that came meanwhile."""

    __slots__ = ("_value", "cancelled", "error")

    def __init__(self) -> None:
        self._value: list[T] = []
        self.error: BaseException | None = None
        self.cancelled: asyncio.CancelledError | None = None

    def run(self, work: Callable[[], T]) -> None:
        """Call it and keep how it ends. Nothing is raised: not every exception may pass through a future."""
        try:
            self._value.append(work())
        except BaseException as error:
            self.error = error

    @property
    def value(self) -> T:
        """What the call returned."""
        return self._value[0]

    def get(self) -> T:
        """What the call returned. Raises: the cancellation, with a note of a failure; else what the call raised."""
        error, cancelled = self.error, self.cancelled
        self.error = self.cancelled = None  # an exception, its traceback and this object would be a cycle
        try:
            if cancelled is not None:
                if error is not None:
                    cancelled.add_note(f"the call that was waited for failed: {type(error).__name__}: {error}")
                raise cancelled
            if error is not None:
                raise error
            return self.value
        finally:
            del error, cancelled


@final
class Signal:
    """Something that a thread does and one task waits for."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def give(self) -> None:
        """It is done. From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._future.set_result, None)

    async def wait(self, drop: Callable[[], bool] = lambda: False) -> asyncio.CancelledError | None:
        """Return when it is done, with the first cancellation that came meanwhile.

        Where `drop` says at a cancellation that the thing will not be done at all, that is raised at once.
        """
        first: asyncio.CancelledError | None = None
        while not self._future.done():
            try:
                await asyncio.wait((self._future,))
            except asyncio.CancelledError as cancelled:
                if first is None:
                    first = cancelled
                    if drop():
                        raise
        return first


async def settle(
    pool: Executor, work: Callable[[], T], *, whole: bool, stop: Callable[[], None] = lambda: None
) -> Outcome[T]:
    """Make the call in a thread of the pool, in the context of the caller. `stop` is called at a cancellation.

    Raises: CancelledError where the call had not begun and is not made; never with `whole`.
    """
    outcome: Outcome[T] = Outcome()
    signal = Signal()

    def call() -> None:
        outcome.run(work)
        signal.give()

    begun = pool.submit(contextvars.copy_context().run, call)

    def drop() -> bool:
        stop()
        return not whole and begun.cancel()

    outcome.cancelled = await signal.wait(drop)
    return outcome


async def aside(work: Callable[[], T]) -> Outcome[T]:
    """Make the call in a thread of its own."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="journal-aside")
    try:
        return await settle(pool, work, whole=True)
    finally:
        pool.shutdown(wait=False)


class _Stopped(Exception):
    """The task that waits for the call was cancelled."""


@final
class Calls:
    """The calls of one AsyncJournal, a few at a time. `check` raises where none may be made any more."""

    def __init__(self, check: Callable[[], None], workers: int) -> None:
        self._check = check
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="journal-async")

    async def run(self, work: Callable[[], T]) -> T:
        """What the call returns. Raises: what it raises; CancelledError once it is over, or where it had not begun."""
        self._check()
        return (await settle(self._pool, work, whole=False)).get()

    async def run_long(self, work: Callable[[Callable[[], None]], T]) -> T:
        """As run, for what may take minutes: `work` is given a function to call now and then, which raises once the
        task is cancelled."""
        self._check()
        stopped = threading.Event()

        def go_on() -> None:
            if stopped.is_set():
                raise _Stopped

        outcome = await settle(self._pool, lambda: work(go_on), whole=False, stop=stopped.set)
        if isinstance(outcome.error, _Stopped):
            outcome.error = None
        return outcome.get()

    async def finish(self, work: Callable[[], T]) -> Outcome[T]:
        """Make the call whatever happens: to the end, and in this thread where the others are gone."""
        try:
            self._check()
        except (JournalError, StoreError):
            outcome: Outcome[T] = Outcome()
            outcome.run(work)
            return outcome
        return await settle(self._pool, work, whole=True)

    async def make(self, work: Callable[[], T], undo: Callable[[T, asyncio.CancelledError], object]) -> T:
        """As run, for what has to be given back: `undo` is called before a cancellation goes on, as nobody gets it."""
        self._check()
        outcome = await settle(self._pool, work, whole=False)
        cancelled = outcome.cancelled
        if cancelled is not None and outcome.error is None:
            made, given_up = outcome.value, cancelled
            undone = await self.finish(lambda: undo(made, given_up))
            if undone.error is not None:
                cancelled.add_note(f"it was not given back: {type(undone.error).__name__}: {undone.error}")
        return outcome.get()

    def close(self) -> None:
        """Return when every call is over. Blocks."""
        self._pool.shutdown(wait=True)


class Enterable(Protocol):
    """What `async with` takes."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


E = TypeVar("E", bound=Enterable)


@final
class Opening(Generic[E]):
    """To be awaited, or entered with `async with`, once."""

    def __init__(self, made: Coroutine[Any, Any, E]) -> None:
        self._made = made
        self._entered: E | None = None

    def __await__(self) -> Generator[Any, None, E]:
        return self._made.__await__()

    async def __aenter__(self) -> E:
        self._entered = await self._made
        await self._entered.__aenter__()
        return self._entered

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._entered is not None
        await self._entered.__aexit__(kind, error, trace)
