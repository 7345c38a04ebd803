"""The verbs of `Journal` on whole runs that are not part of running them. Journal inherits them from RunUpkeep."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import UUID

from journal import forgetting, run_files
from journal.ids import parse_run_id
from journal.rebuilding import RebuildReport
from journal.run_files import RunExport, RunImport
from journal.run_view import RunReader

if TYPE_CHECKING:
    from journal.backend import JournalBackend


class RunUpkeep:
    """See Journal. What it needs of it stands here."""

    _backend: JournalBackend

    def _check(self, *, write: bool = False) -> None:
        raise NotImplementedError

    def run(self: Any, run_id: UUID | str) -> RunReader:
        """A run to look at: state, events, facts, context, and its new events as they come. Raises: RunNotFound."""
        self._check()
        return RunReader(self, parse_run_id(run_id))

    def forget(self, run_id: UUID | str) -> int:
        """Remove the events of a run that has ended, on purpose; the number of them. gc then takes its artifacts.

        Durable on return. Killed on the way, the run is whole or gone; what is left of a long one is invisible and
        goes with the next forget. Positions are not given out again: feeds go on after them. A new run of the same
        id has nothing of the old one. Raises: RunNotFound, RunLive, InvalidStream (damage: nothing is removed).
        """
        self._check(write=True)
        return forgetting.forget(self._backend, parse_run_id(run_id))

    def rebuild(self, *, dry_run: bool = False, force: bool = False) -> RebuildReport:
        """Make the rows of all runs anew from their events and put right those that differ, some runs at a time, so
        that writers go on. Durable on return; killed on the way, the next rebuild does the rest.

        Left alone, and told of in `left`, are runs whose records are not whole or do not decode, whose id is lost
        with both rows that hold it, or, without `force`, whose row can be read and says that its records were others.
        A run whose row was lost gets an epoch that fences its owners. Claims and cursors are not derived.
        """
        self._check(write=not dry_run)
        return self._backend.rebuild(dry_run=dry_run, force=force)

    def export(
        self: Any, run_id: UUID | str, out: str | os.PathLike[str] | BinaryIO, *,
        progress: Callable[[int], None] | None = None,
    ) -> RunExport:  # fmt: skip
        """Write a run into one CAR file: its events with their times, all artifacts that they name, and what those
        link to. A path is replaced at the end and durable; a live run is written as far as it is now.

        The events are put into the store for it, where the next gc takes them again.
        Raises: RunNotFound, Collected (of a run that ended long ago), Corrupt, StoreFull, InvalidStream, OSError.
        """
        self._check(write=True)
        return run_files.export_run(self, parse_run_id(run_id), out, progress)

    def import_(
        self: Any, src: str | os.PathLike[str] | BinaryIO, *, pin: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> RunImport:  # fmt: skip
        """Take the run of such a file: its artifacts into the store, then, in one append, the events that are not
        there yet. Durable on return; once more it changes nothing.

        Events and their times are as in the file; run number, positions, chain head, claims and the tokens of
        appends are this journal's. A run that ended before the retention keeps its artifacts only under a `pin`.
        Raises: InvalidRunFile, InvalidCar, MissingArtifact, Conflict (the run has other events here), InvalidEvent
        leaves (the file's stream is illegal), Claimed, StoreFull, OSError. After an error no event was written.
        """
        self._check(write=True)
        return run_files.import_run(self, src, pin, progress)
