"""Check a journal: damage becomes findings, never an exception, and is never repaired by guess."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple
from uuid import UUID

from casstore import Store
from journal import reading, records
from journal.backend import JournalBackend, Look, RunRow
from journal.envelopes import analyze
from journal.errors import InvalidStream, RunNotFound
from journal.events import RecordedEvent, links
from journal.rebuilding import DOUBLE_ID, doubled


class Finding(NamedTuple):
    """Something wrong with a run, `code` as of the error that reading it would raise."""

    code: str
    run_id: UUID | None
    seq: int | None
    detail: str


def verify(
    backend: JournalBackend, store: Store, progress: Callable[[int, int], None] | None = None
) -> list[Finding]:
    """Every run is read, replayed and compared with its rows; what live runs name must be in the store."""
    try:
        with backend.look() as look:
            numbers = list(look.numbers())
            newest = look.position()
    except InvalidStream as error:  # a key that cannot be read hides the runs behind it
        return [_finding(error)]
    findings: list[Finding] = []
    seen: dict[int, int] = {}
    for done, number in enumerate(numbers, 1):
        try:
            with backend.look() as look:
                row = look.numbered(number)
                problem = None if row is None else _check_id(look, row)
            if row is None:
                continue
            if problem is not None:
                findings.append(problem)
                continue
            events = list(reading.read_run(backend, row.run_id, 1, row.head))
            seen[number] = sum(item.position <= newest for item in events)
            findings += _check_run(backend, row, events)
            if row.status is None:
                findings += _missing(store, events)
        except RunNotFound:
            continue  # forgotten meanwhile
        except InvalidStream as error:
            findings.append(_finding(error))
        if progress is not None:
            progress(done, len(numbers))
    try:
        findings += _check_feed(backend, newest, seen, bool(findings))
    except InvalidStream as error:
        findings.append(_finding(error))
    named = {found.run_id for found in findings if found.run_id is not None}
    return findings + [found for found in _check_rows(backend) if found.run_id not in named]


def _finding(error: InvalidStream) -> Finding:
    return Finding(error.code, getattr(error, "run_id", None), getattr(error, "seq", None), str(error))


def _check_id(look: Look, row: RunRow) -> Finding | None:
    """The id of a run leads to it: its events are read by that."""
    named = look.run(row.run_id)
    if named is not None and named.number == row.number:
        return None
    if named is not None and named.run_id == row.run_id:
        return Finding(DOUBLE_ID, row.run_id, None, doubled((named.number, row.number)))
    return Finding("wrong_row", row.run_id, None, reading.astray(row, named))


def _check_run(backend: JournalBackend, seen: RunRow, events: list[RecordedEvent]) -> Iterator[Finding]:
    replayed = analyze(events)
    run_id, head = seen.run_id, seen.head
    with backend.look() as look:
        row = look.numbered(seen.number)
        if row is None or row.head != head:
            return  # it has moved on; what was read was legal
        chain = records.chain_seed(run_id)
        for _, _, data in look.records(row.number, 1, head):
            chain = records.chain(chain, data)
        if chain != row.chain:
            yield Finding("wrong_chain", run_id, None, "a record was changed, lost or put elsewhere")
    if reading.run_state(backend, run_id) != replayed:
        with backend.look() as look:
            again = look.numbered(seen.number)
        if again is not None and again.head == head:
            yield Finding("wrong_row", run_id, None, "the run's rows do not say what its events say")


def _check_rows(backend: JournalBackend) -> Iterator[Finding]:
    """Rows that no reader came by: those of lists, states, facts and ids, and rows of nothing; these only where all
    runs can be told what is theirs."""
    report = backend.rebuild(dry_run=True)
    for problem in report.left:
        yield Finding(problem.code, problem.run_id, None, problem.detail)
    for table, what, number, run_id in report.changes:
        yield Finding("wrong_row", run_id, None, f"a row of run number {number} in {table} is {what}")


def _missing(store: Store, events: list[RecordedEvent]) -> Iterator[Finding]:
    named = [(item.seq, field, name) for item in events for field, name in links(item.event)]
    for (seq, field, name), touched in zip(named, store.touched([name for _, _, name in named]), strict=True):
        if touched is None and name not in store:  # it may be staged
            text = f"artifact {name}, named by {field} of event {seq}, is not in the store"
            yield Finding("missing_artifact", None if not events else events[0].run_id, seq, text)


def _check_feed(backend: JournalBackend, newest: int, seen: dict[int, int], damaged: bool) -> Iterator[Finding]:
    """Every record up to the newest belongs to an event that was read, unless a run could not be read.

    Those of runs that were forgotten since, or are being forgotten, count on neither side.
    """
    if damaged:
        return
    with backend.look() as look:
        leaving = {number for _, number, _ in look.forgetting()}
        held = sum(count for number, count in seen.items() if look.numbered(number) is not None)
        count = 0
        for position, data in look.after(0):
            if position > newest:
                break
            count += not leaving or records.peek(data)[1] not in leaving
    if count != held:
        text = f"{count} records up to position {newest}, but the runs hold {held}"
        yield Finding("wrong_count", None, None, text)
