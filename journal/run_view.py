"""One run, to look at: what `Journal.run` gives. It records nothing and holds nothing open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, final
from uuid import UUID

from journal.envelopes import RunState
from journal.errors import RunNotFound
from journal.events import RecordedEvent, RunCompleted
from journal.failures import RunStatus
from journal.feeding import Source, follow_source
from journal.ids import check_int

if TYPE_CHECKING:
    from journal.log import Journal


@final
class RunReader:
    """A run as it is at each call. Every method raises RunNotFound once the run is forgotten."""

    def __init__(self, journal: Journal, run_id: UUID) -> None:
        self._journal, self.run_id = journal, run_id
        with journal._backend.look() as look:
            row = look.run(run_id)
        if row is None:
            raise RunNotFound(run_id)
        self._number = row.number

    @property
    def state(self) -> RunState:
        """The state, from rows."""
        self._check()
        return self._journal.run_state(self.run_id)

    @property
    def status(self) -> RunStatus | None:
        """How it ended; None while it lives."""
        return self.state.status

    def events(self, from_seq: int = 1, to_seq: int | None = None) -> list[RecordedEvent]:
        """Its events, both ends inclusive."""
        self._check()
        return self._journal.read(self.run_id, from_seq, to_seq)

    def facts(self) -> dict[str, Any]:
        """Every fact recorded so far, decoded afresh. Raises: Collected."""
        return {key: self._journal.store.get_value(name) for key, name in self.state.facts.items()}

    def context(self) -> Any:
        """The context at the last checkpoint, decoded afresh. Raises: Collected."""
        return self._journal.codec.from_plain(self._journal.store.get_value(self.state.checkpoint_id))

    def watch(self, timeout: float | None = None, *, after: int | None = None) -> Iterator[RecordedEvent]:
        """Events after the one at seq `after` (default: those that come from now on), of any process, as they come.

        Ends after RunCompleted, or when `timeout` seconds pass without an event of this run.
        """
        return follow_source(self._journal, self._watched(after), timeout)

    def _watched(self, after: int | None) -> Source[RecordedEvent]:
        """What `watch` follows."""
        head = self._check()
        return _Events(self, head if after is None else check_int("after", after, 0, 1 << 62))

    def _check(self) -> int:
        """The number of its events."""
        self._journal._check()
        with self._journal._backend.look() as look:
            row = look.numbered(self._number)
        if row is None:
            raise RunNotFound(self.run_id)
        return row.head

    def __repr__(self) -> str:
        return f"RunReader({self.run_id})"


@final
class _Events:
    """A Source: the events of one run after a seq."""

    def __init__(self, run: RunReader, seq: int) -> None:
        self._run, self._seq = run, seq
        self.ended = False

    def check(self) -> None:
        self._run._check()

    def page(self) -> list[RecordedEvent]:
        ended = self._run.status is not None  # before the events are read: then they are all that there will be
        found = self._run.events(self._seq + 1)
        if found:
            self._seq = found[-1].seq
        self.ended = ended or (bool(found) and type(found[-1].event) is RunCompleted)
        return found
