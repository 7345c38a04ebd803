"""What gc asks of the world: which artifacts are needed, and to hold still for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final, runtime_checkable

from casstore.ids import ArtifactId


class Root(NamedTuple):
    """An artifact that an event names, and where: the run, the event's seq, the field.

    `live` is False for a run that ended and is kept by retention: its artifacts may be gone already.
    """

    id: ArtifactId
    run: str
    seq: int
    field: str
    live: bool = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which runs that ended are kept: those that ended at or after `completed_after_ms` (unix time; None: none), and
    the newest `keep_last` of each operation. With `final_only` a completed one keeps only its manifest and final
    snapshot; those that failed or were cancelled keep everything."""

    completed_after_ms: int | None = None
    keep_last: int = 0
    final_only: bool = False

    @property
    def by_age_only(self) -> bool:
        """Whether `RootSource.live_roots` can say it."""
        return not self.keep_last and not self.final_only


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
class RetainingSource(RootSource, Protocol):
    """A source that knows more than the age of runs. One that does not is never asked."""

    def retained_roots(self, retention: Retention) -> Iterator[Root]:
        """Everything that events of live runs name, and what `retention` keeps of those that ended."""
