"""The verbs of `Journal` on whole runs that are not part of running them. Journal inherits them from RunUpkeep."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from journal import forgetting
from journal.ids import parse_run_id

if TYPE_CHECKING:
    from journal.backend import JournalBackend


class RunUpkeep:
    """See Journal. What it needs of it stands here."""

    _backend: JournalBackend

    def _check(self, *, write: bool = False) -> None:
        raise NotImplementedError

    def forget(self, run_id: UUID | str) -> int:
        """Remove the events of a run that has ended, on purpose; the number of them. gc then takes its artifacts.

        Durable on return. Killed on the way, the run is whole or gone; what is left of a long one is invisible and
        goes with the next forget. Positions are not given out again: feeds go on after them. A new run of the same
        id has nothing of the old one. Raises: RunNotFound, RunLive, InvalidStream (damage: nothing is removed).
        """
        self._check(write=True)
        return forgetting.forget(self._backend, parse_run_id(run_id))
