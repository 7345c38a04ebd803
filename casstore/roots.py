"""What gc asks of the world: which artifacts are needed, and to hold still for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

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
