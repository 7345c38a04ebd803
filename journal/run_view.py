"""One run, to look at: what `Journal.run` gives. It records nothing and holds nothing open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, final
from uuid import UUID

from journal.envelopes import RunState
from journal.errors import InvalidArgument, RunNotFound
from journal.events import RecordedEvent, RunCompleted
from journal.failures import RunStatus
from journal.ids import check_int

if TYPE_CHECKING:
    from journal.log import Journal

_POLL_S: Final = (0.001, 0.05)  # as a follower of the feed


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
        if timeout is not None and (isinstance(timeout, bool) or not timeout >= 0):
            raise InvalidArgument("timeout", "a number of seconds, 0 or more, is wanted")
        return self._watch(timeout, self.state.head if after is None else check_int("after", after, 0, 1 << 62))

    def _watch(self, timeout: float | None, seq: int) -> Iterator[RecordedEvent]:
        waited, pause = 0.0, _POLL_S[0]
        while True:
            ended = self.status is not None  # before the events are read: then they are all that there will be
            for item in self.events(seq + 1):
                yield item
                seq, waited, pause = item.seq, 0.0, _POLL_S[0]
                if type(item.event) is RunCompleted:
                    return
            if ended or (timeout is not None and waited >= timeout):
                return
            time.sleep(pause)
            waited += pause
            pause = min(pause * 2, _POLL_S[1])

    def _check(self) -> None:
        self._journal._check()
        with self._journal._backend.look() as look:
            if look.numbered(self._number) is None:
                raise RunNotFound(self.run_id)

    def __repr__(self) -> str:
        return f"RunReader({self.run_id})"
