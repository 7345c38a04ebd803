"""What gc asks of the world: which artifacts are needed, and to hold still for a moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final, runtime_checkable

from casstore.ids import ArtifactId


class Root(NamedTuple):
    """An artifact that an event names, and where: the run, the event's seq, the field.

    `live` is False for a run that ended and is kept by retention: its artifacts may be gone already. Then `status`
    (completed, failed or cancelled) and `ended_ms` (unix time) say how and when it ended, "" and 0 where the source
    does not know.
    """

    id: ArtifactId
    run: str
    seq: int
    field: str
    live: bool = True
    status: str = ""
    ended_ms: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which runs that ended are kept: those that ended at or after `completed_after_ms` (unix time; None: none), or
    after what `exceptions` say of their status, and the newest `keep_last` of each operation; of all these only those
    that ended at or after `not_before_ms`. With `final_only` a completed one keeps only its manifest and final
    snapshot, with `keep_outputs` also what it wrote as outputs; those that failed or were cancelled keep everything.
    """

    completed_after_ms: int | None = None
    keep_last: int = 0
    final_only: bool = False
    keep_outputs: bool = False
    exceptions: tuple[tuple[str, int | None], ...] = ()
    not_before_ms: int = 0

    @property
    def by_age_only(self) -> bool:
        """Whether `RootSource.live_roots` can say it."""
        return not (self.keep_last or self.final_only or self.exceptions or self.not_before_ms)

    @property
    def is_plain(self) -> bool:
        """Whether it is said by age, number and `final_only` alone."""
        return not (self.exceptions or self.not_before_ms or self.keep_outputs)

    def after_ms(self, status: str) -> int | None:
        """Runs that ended so are kept by their age if they ended at or after this; None: none are."""
        for name, after_ms in self.exceptions:
            if name == status:
                return after_ms
        return self.completed_after_ms

    def oldest_ms(self, status: str) -> int | None:
        """None that ended so before this is kept, whatever its place among its operation's; None: none is at all."""
        after_ms = self.after_ms(status)
        if self.keep_last:
            return self.not_before_ms
        return None if after_ms is None else max(after_ms, self.not_before_ms)

    def keeps(self, status: str, ended_ms: int, place: int) -> bool:
        """Whether a run is kept that is the `place`-th newest (from 1) of its operation to have ended."""
        after_ms = self.after_ms(status)
        by_age = after_ms is not None and ended_ms >= after_ms
        return ended_ms >= self.not_before_ms and (by_age or place <= self.keep_last)


@runtime_checkable
class RootSource(Protocol):
    """A source of roots, such as a journal. Each method raises when it cannot tell: gc then removes nothing."""

    @property
    def uuid(self) -> str:
        """The uuid of the home that it belongs to."""

    def position(self) -> int:
        """The position of the last event."""

    def live_roots(self, *, completed_after_ms: int | None) -> Iterator[Root]:
        """Everything that events of live runs name, and of runs that ended at or after that unix time."""

    def roots_after(self, position: int) -> tuple[int, list[Root]]:
        """(position of the last event, what the events after `position` name, whatever their run)."""

    def exclusive(self) -> AbstractContextManager[None]:
        """No event is appended by any process meanwhile."""


@runtime_checkable
class WitnessSource(RootSource, Protocol):
    """A source that can say, at the cost of what came since, that nothing went away: a gc that has nothing to do then
    need not read everything. The roots of one that cannot are read by every gc."""

    def witness(self, retention: Retention) -> bytes:
        """What `roots_since` of a later gc compares with, a few bytes. Asked before any root is read."""

    def roots_since(self, witnessed: bytes, retention: Retention) -> Sequence[Root] | None:
        """What events after that moment name; None where something that was a root with what it was asked for then
        may be none with this `retention`, or this cannot be told."""


@runtime_checkable
class RetainingSource(RootSource, Protocol):
    """A source that knows more than the age of runs. One that does not is never asked."""

    def retained_roots(self, retention: Retention) -> Iterator[Root]:
        """Everything that events of live runs name, then what `retention` keeps of those that ended, run by run, the
        one that ended last first."""


@runtime_checkable
class EndingSource(RootSource, Protocol):
    """A source that can cheaply count the runs that ended; one that cannot is not asked (`Store.gc_due`)."""

    def ended_between(self, status: str, after_ms: int, until_ms: int) -> int:
        """How many runs ended with that status after one unix time, and at or before another."""
