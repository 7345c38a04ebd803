"""Following what is appended, with one rule for threads and for tasks; and the feed of all runs.

Whoever follows in the process that appends is woken by the commit. Commits of other processes are seen by asking for
the backend's version, which costs a few microseconds: soon after an event, and less often the longer there is none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, final
from uuid import UUID

from journal import reading
from journal.appends import check_cursor
from journal.errors import InvalidArgument, RunNotFound
from journal.events import RecordedEvent
from journal.ids import U64_MAX, check_int, parse_run_id

if TYPE_CHECKING:
    from journal.backend import JournalBackend

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
PAUSE_S: Final = (0.001, 0.05)  # shortest and longest
_PAUSES: Final = 4  # a pause is so small a part of the silence: whatever comes waits no longer than a quarter of it


@final
class Bell:
    """Rung after each commit of this journal's appends. Where nobody listens that costs a look at an empty tuple."""

    def __init__(self) -> None:
        self._listeners: tuple[Callable[[], object], ...] = ()
        self._lock = threading.Lock()

    def ring(self) -> None:
        """Tell all who listen. From any thread."""
        for listener in self._listeners:
            listener()

    @contextmanager
    def heard_by(self, listener: Callable[[], object]) -> Iterator[None]:
        """`listener` is called, by the thread that commits, for as long as the block lasts. It may neither block nor
        raise."""
        with self._lock:
            self._listeners = (*self._listeners, listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners = tuple(one for one in self._listeners if one is not listener)


class Source(Protocol[T_co]):
    """What is followed. `ended` says, after a page, that there will be no more."""

    ended: bool

    def check(self) -> None:
        """Raises: what ends a follower that waits (the journal is closed, the run is gone)."""

    def page(self) -> Sequence[T_co]:
        """The events after those of earlier pages, as many as are read at once; empty where there are none yet."""


@final
class Following(Generic[T]):
    """When a follower looks, how long it waits in between, and when it gives up: `timeout` seconds without an event.

    Ask `changed`; if so, take the `page`; then wait for `pause_s`, or less, and ask again.
    """

    def __init__(
        self, backend: JournalBackend, source: Source[T], timeout: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._backend, self._source, self._timeout, self._clock = backend, source, timeout, clock
        self._version = -1
        self._more = False
        self._heard = clock()

    def changed(self) -> bool:
        """Whether a page is worth its while. Takes microseconds. Raises: what the source's `check` does."""
        self._source.check()
        before, self._version = self._version, self._backend.version()
        return self._more or self._version != before

    def page(self) -> Sequence[T]:
        """The next events."""
        found = self._source.page()
        self._more = bool(found)
        return found

    def pause_s(self) -> float | None:
        """Seconds to wait, 0 where more may be there at once; None where nothing will come, or it took too long."""
        if self._source.ended:
            return None
        now = self._clock()
        if self._more:
            self._heard = now
            return 0.0
        silence = now - self._heard
        if self._timeout is not None and silence >= self._timeout:
            return None
        pause = min(max(silence / _PAUSES, PAUSE_S[0]), PAUSE_S[1])
        return pause if self._timeout is None else min(pause, self._timeout - silence)


def follow(following: Following[T], bell: Bell) -> Iterator[T]:
    """Events as they come; a thread waits for them."""
    rung = threading.Event()
    with bell.heard_by(rung.set):
        while True:
            if following.changed():
                yield from following.page()
            pause = following.pause_s()
            if pause is None:
                return
            if pause and rung.wait(pause):
                rung.clear()


async def follow_in_tasks(
    following: Following[T], bell: Bell, check: Callable[[], None],
    elsewhere: Callable[[Callable[[], Sequence[T]]], Awaitable[Sequence[T]]],
) -> AsyncIterator[T]:  # fmt: skip
    """Events as they come; no thread waits. `elsewhere` makes a call that reads, in another thread; `check` raises
    where there is no other thread any more."""
    import asyncio  # slow, and of no use to who has no loop

    loop, rung = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(rung.set)

    with bell.heard_by(wake):
        while True:
            check()
            if following.changed():
                for item in await elsewhere(following.page):
                    yield item
            pause = following.pause_s()
            if pause is None:
                return
            if pause:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await rung.wait()
                rung.clear()


# -- the feed of all runs -------------------------------------------------------------------------------


@final
class _All:
    """A Source: the events of all runs after a position."""

    ended = False

    def __init__(self, feed: RunFeed, after: int) -> None:
        self._feed, self._after = feed, after

    def check(self) -> None:
        self._feed._check()

    def page(self) -> list[RecordedEvent]:
        self._feed._check()
        found = reading.feed_page(self._feed._backend, self._after)
        if found:
            self._after = found[-1].position
        return found


class RunFeed:
    """See Journal, which inherits these. What they need of it stands here."""

    _backend: JournalBackend
    _bell: Bell

    def _check(self, *, write: bool = False) -> None:
        raise NotImplementedError

    def position(self) -> int:
        """The position of the newest event, 0 when there is none."""
        self._check()
        with self._backend.look() as look:
            return look.position()

    def __len__(self) -> int:
        """The number of events that are kept: positions of forgotten runs are not given out again."""
        self._check()
        with self._backend.look() as look:
            return look.count()

    def __bool__(self) -> bool:
        return True

    def position_of(self, run_id: UUID | str, seq: int) -> int:
        """The position of one event. Raises: RunNotFound."""
        self._check()
        wanted = parse_run_id(run_id)
        check_int("seq", seq, 0, U64_MAX)
        with self._backend.look() as look:
            row = look.run(wanted)
            place = look.place(row.number, seq) if row is not None and 1 <= seq <= row.head else None
        if place is None:
            raise RunNotFound(wanted)
        return place

    def feed(
        self, after: int = 0, *, follow: bool = False, timeout: float | None = None
    ) -> Iterator[RecordedEvent]:  # fmt: skip
        """Events of all runs in commit order, those after a position: it never misses one that comes later.

        With `follow` it waits for more, of any process, until `timeout` seconds pass without one.
        """
        return follow_source(self, self._feed_source(after), timeout if follow else 0.0)

    def _feed_source(self, after: int) -> Source[RecordedEvent]:
        """What a feed follows."""
        self._check()
        return _All(self, check_int("after", after, 0, 1 << 63))

    def cursor(self, name: str) -> int:
        """The position kept under a name, 0 where there is none."""
        self._check()
        with self._backend.look() as look:
            return look.cursor(check_cursor(name)) or 0

    def move_cursor(self, name: str, position: int) -> None:
        """Keep a position under a name. Durable on return."""
        self._check(write=True)
        self._backend.set_cursor(check_cursor(name), check_int("position", position, 0, 1 << 63))


def following_of(journal: Any, source: Source[T], timeout: float | None) -> Following[T]:
    """How a source of a journal is followed. Raises: InvalidArgument."""
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0):
        raise InvalidArgument("timeout", "a number of seconds, 0 or more, is wanted")
    return Following(journal._backend, source, timeout)


def follow_source(journal: Any, source: Source[T], timeout: float | None) -> Iterator[T]:
    """Events of a source of a journal as they come, until `timeout` seconds pass without one."""
    return follow(following_of(journal, source, timeout), journal._bell)
