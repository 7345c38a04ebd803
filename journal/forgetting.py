"""Remove an ended run's events on purpose. The only way in which events ever go."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from casstore.steps import reach
from journal import records
from journal.backend import JournalBackend, Look, RunRow
from journal.errors import InvalidStream, RunLive, RunNotFound

FORGET_EVENTS: Final = 4096  # a transaction: writers wait for no more than these


def forget(backend: JournalBackend, run_id: UUID) -> int:
    """Remove a run that has ended; the number of its events.

    The first transaction hides the run from every list and read, for good; a long run's records go in further ones.
    Killed in between, the rest is invisible and goes with the next `forget` of any run, or of the same once more.
    Raises: RunNotFound, RunLive, InvalidStream (a row of the run leads to records of another: nothing is removed).
    """
    with backend.look() as look:
        left = list(look.forgetting())
        row = look.run(run_id)
        if row is not None and row.status is None:
            raise RunLive(run_id, row.head)
        if row is not None:
            _check_own(look, row)
    for _, number, _ in left:
        _finish(backend, number)
    if row is not None:
        _finish(backend, row.number)
        return row.head
    for name, _, head in left:
        if name == run_id:
            return head
    raise RunNotFound(run_id)


def _finish(backend: JournalBackend, number: int) -> None:
    while not backend.forget(number, FORGET_EVENTS):
        reach("forget.part")
    reach("forget.done")


def _check_own(look: Look, row: RunRow) -> None:
    """Where a row of a batch is lost, the one before it leads on into what other runs wrote: that must not go."""
    for seq, _, data in look.records(row.number, 1, row.head):
        if records.peek(data)[1:] != (row.number, seq):
            raise InvalidStream("bad_sequence", row.run_id, seq, "the run's rows lead to the record of another event")
