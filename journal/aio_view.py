"""AsyncRunReader: RunReader for a task. What reads is awaited, and no thread waits for events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, final
from uuid import UUID

from journal.envelopes import RunState
from journal.events import RecordedEvent
from journal.failures import RunStatus
from journal.feeding import Source
from journal.offload import Calls
from journal.run_view import RunReader

Follow = Callable[[Source[RecordedEvent], "float | None"], AsyncIterator[RecordedEvent]]


@final
class AsyncRunReader:
    """A run as it is at each call. Every method raises RunNotFound once the run is forgotten."""

    def __init__(self, reader: RunReader, calls: Calls, follow: Follow) -> None:
        self._reader, self._calls, self._follow = reader, calls, follow

    @property
    def sync(self) -> RunReader:
        """The reader itself, whose calls block."""
        return self._reader

    @property
    def run_id(self) -> UUID:
        """The run's id."""
        return self._reader.run_id

    async def state(self) -> RunState:
        """The state, from rows."""
        return await self._calls.run(lambda: self._reader.state)

    async def status(self) -> RunStatus | None:
        """How it ended; None while it lives."""
        return await self._calls.run(lambda: self._reader.status)

    async def events(self, from_seq: int = 1, to_seq: int | None = None) -> list[RecordedEvent]:
        """Its events, both ends inclusive."""
        return await self._calls.run(lambda: self._reader.events(from_seq, to_seq))

    async def facts(self) -> dict[str, Any]:
        """Every fact recorded so far, decoded afresh. Raises: Collected."""
        return await self._calls.run(self._reader.facts)

    async def context(self) -> Any:
        """The context at the last checkpoint, decoded afresh. Raises: Collected."""
        return await self._calls.run(self._reader.context)

    def watch(self, timeout: float | None = None, *, after: int | None = None) -> AsyncIterator[RecordedEvent]:
        """Events after the one at seq `after` (default: those that come from now on), of any process, as they come.

        Ends after RunCompleted, or when `timeout` seconds pass without an event of this run.
        """
        return self._follow(self._reader._watched(after), timeout)

    def __repr__(self) -> str:
        return f"Async{self._reader!r}"
