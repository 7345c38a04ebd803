"""The rows of a journal made anew from its records, compared with those that are there, and put right.

Everything but the records can be derived from them, with these exceptions: a run's id stands in its row and in the
index of ids, and where both are lost the run cannot be named; epochs stand in rows alone, so a lost row gets one that
fences every owner there was; claims are kept as they are; what a forgotten run left (floor, epoch) is kept too.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, final
from uuid import UUID

from casstore.steps import reach
from casstore.tables import ReadTransaction, Tables, WriteTransaction
from journal import records
from journal.admission import row_of
from journal.backend import RunRow, StateRow
from journal.errors import InvalidStream
from journal.events import Event, RunStarted
from journal.records import Context
from journal.rows import (
    CL,
    CUR,
    DONE,
    EV,
    FK,
    ID,
    LIVE,
    META,
    META_EPOCH,
    META_FORGETTING,
    META_NEXT_RUN,
    RS,
    RUN,
    ST,
    fact_key,
    number,
    pack_run,
    pack_state,
    status_byte,
    take_number,
    unpack_claim,
    unpack_left,
    unpack_number,
    unpack_run,
)
from journal.views import RunView, advance

PART_ROWS: Final = 4096  # changed in one transaction, but for a run that has more
_ROUNDS: Final = 3
EPOCHS_LOST: Final = 1 << 32  # above all that are known: no owner took its claim so often

DOUBLE_ID: Final = "double_run_id"

Rows = dict[tuple[bytes, bytes], bytes]  # (table, key) -> value
_GROWING: Final = (RS, ST, FK)  # with a run
_ID_SIZE_BYTES: Final = 16


class RowChange(NamedTuple):
    """A row that is not what the records say: `what` is missing, wrong or stray. `run` is the run's number."""

    table: str
    what: str
    run: int | None
    run_id: UUID | None


class RowProblem(NamedTuple):
    """Why a run, or a record, was left as it is."""

    code: str
    run: int | None
    run_id: UUID | None
    detail: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildReport:
    """What was looked at, what was changed (or would be), and what was left alone."""

    runs: int
    events: int
    changes: tuple[RowChange, ...]
    left: tuple[RowProblem, ...]


class Repair(NamedTuple):
    """What puts one run right: its own row as it was seen, and of each row what was seen and what is to be there.

    Whoever appends to a run, takes it over or forgets it changes its own row: while that is as it was, and so are the
    rows that are to be changed, what was derived still holds.
    """

    run: int | None
    seen: bytes | None
    rows: dict[tuple[bytes, bytes], tuple[bytes | None, bytes | None]]
    changes: list[RowChange]


def rebuild(tables: Tables, *, force: bool) -> RebuildReport:
    """Compare all rows with the records and put them right: from one look, in transactions of few runs each.

    Killed in between, some runs are right and the others as they were; the next rebuild does the rest. What others
    write meanwhile is not overwritten: such a run is looked at again, at last with the writers kept out.
    """
    done: list[RowChange] = []
    for _ in range(_ROUNDS):
        with tables.read() as txn:
            report, repairs = survey(txn, force=force)
        stale = False
        for batch in _parts(repairs):
            with tables.write() as writing:
                applied = [repair for repair in batch if _apply(writing, repair)]
                reach("rebuild.written")
            reach("rebuild.part")
            done += [change for repair in applied for change in repair.changes]
            stale = stale or len(applied) < len(batch)
        if not stale:
            return replace(report, changes=tuple(done))
    with tables.write() as writing:
        report, repairs = survey(writing, force=force)
        done += [change for repair in repairs if _apply(writing, repair) for change in repair.changes]
    return replace(report, changes=tuple(done))


def survey(txn: ReadTransaction, *, force: bool) -> tuple[RebuildReport, list[Repair]]:
    """What differs from the records in one look, and what would put it right.

    A run whose records are not whole is left alone, and so, but with `force`, is one whose row can be read and says
    that there were other records. While any is left, no row is removed as a stray one.
    """
    found = _Journal(txn)
    found.read()
    repairs: dict[int, Repair] = {}

    def change(name: tuple[bytes, bytes], what: str, run: int, run_id: UUID | None, value: bytes | None) -> None:
        repair = repairs.get(run)
        if repair is None:
            seen = txn.get(RUN, number(run)) if run > 0 else None
            repair = repairs[run] = Repair(run if run > 0 else None, seen, {}, [])
        repair.rows[name] = txn.get(*name), value
        repair.changes.append(RowChange(name[0].decode(), what, repair.run, run_id))

    if found.next_run <= found.newest_run:  # first, so that no new run gets a number that is taken
        change((META, META_NEXT_RUN), "wrong", 0, None, number(found.newest_run + 1))
    if found.bad_epoch:
        change((META, META_EPOCH), "wrong", 0, None, number(found.lost_epoch))
    wanted: set[tuple[bytes, bytes]] = set()
    strays: dict[tuple[bytes, bytes], int] = {}
    contested, held = found.contested(), dict[UUID, list[tuple[int, _Derived]]]()

    def compare(run: int, derived: _Derived) -> None:
        there = found.rows(run)
        for name, value in derived.rows.items():
            if there.get(name) != value:
                change(name, "wrong" if name in there else "missing", run, derived.run_id, value)
                wanted.add(name)
        claim = (CL, number(run))
        kept = claim if derived.live and _is_claim(there.get(claim, b"")) else None
        strays.update((name, run) for name in there if name not in derived.rows and name != kept)

    for run in sorted(found.places):
        try:
            derived = _derive(found, run, force=force)
        except InvalidStream as error:
            found.problems.append(_problem(error, run, contested))
            continue
        if derived.run_id in contested:
            held.setdefault(derived.run_id, []).append((run, derived))
        else:
            compare(run, derived)
    for run_id, claimants in held.items():
        if len(claimants) == 1:
            compare(*claimants[0])
            continue
        numbers = [run for run, _ in claimants]
        found.problems += [RowProblem(DOUBLE_ID, run, run_id, doubled(numbers)) for run in numbers]
    for run, rows in sorted(found.loose().items()):
        if run in found.run_rows:
            found.problems.append(RowProblem("no_records", run, found.run_rows[run].run_id, "rows, but no records"))
        strays.update(dict.fromkeys(rows, run))
    if not found.problems:
        for name, run in strays.items():
            if name not in wanted:
                change(name, "stray", run, None, None)
    changes = tuple(item for repair in repairs.values() for item in repair.changes)
    events = sum(map(len, found.places.values()))
    left = (*found.problems, *found.cursors())
    report = RebuildReport(runs=len(found.places), events=events, changes=changes, left=left)
    return report, list(repairs.values())


def _problem(error: InvalidStream, run: int, contested: dict[UUID, list[int]]) -> RowProblem:
    """What is wrong with a run that cannot be derived. A chain that begins with another id is wrong as well."""
    if error.rule == "wrong_chain" and error.run_id in contested:
        return RowProblem(DOUBLE_ID, run, error.run_id, doubled(contested[error.run_id]))
    return RowProblem(error.rule, run, error.run_id, error.detail)


def doubled(numbers: Iterable[int]) -> str:
    """What to say of runs that claim one id."""
    return "the run numbers " + " and ".join(map(str, sorted(numbers))) + " claim this id, and a run has one"


def _parts(repairs: Iterable[Repair]) -> Iterator[list[Repair]]:
    """Writers wait for no more than so many rows, or those of one run."""
    part: list[Repair] = []
    rows = 0
    for repair in repairs:
        if part and rows + len(repair.rows) > PART_ROWS:
            yield part
            part, rows = [], 0
        part.append(repair)
        rows += len(repair.rows)
    if part:
        yield part


def _apply(txn: WriteTransaction, repair: Repair) -> bool:
    """Whether what was seen is still there, and so what is to be there now is."""
    if repair.run is not None and txn.get(RUN, number(repair.run)) != repair.seen:
        return False
    if any(txn.get(*name) != seen for name, (seen, _) in repair.rows.items()):
        return False
    for (table, key), (seen, value) in repair.rows.items():
        if value is not None:
            txn.put(table, key, value)
        elif seen is not None:
            txn.delete(table, key)
    return True


# -- what is there --------------------------------------------------------------------------------------


@final
class _Journal:
    """Where the records of each run stand, and the rows; those that grow with a run are read run by run."""

    def __init__(self, txn: ReadTransaction) -> None:
        self.txn = txn
        self.ids_of: dict[int, list[UUID]] = {}
        self.run_rows: dict[int, RunRow] = {}
        self.places: dict[int, array[int]] = {}
        self.problems: list[RowProblem] = []
        self.next_run = 1
        self.newest_run = 0
        self.lost_epoch = EPOCHS_LOST
        self.bad_epoch = False
        self._forgetting: set[int] = set()
        self._rows: dict[int, Rows] = {}  # -1: no run's number can be read in them

    def read(self) -> None:
        for key, value in self.txn.scan(META, META_FORGETTING):
            if not key.startswith(META_FORGETTING):
                break
            try:
                self._forgetting.add(unpack_number(key[len(META_FORGETTING) :]))
                unpack_left(value)
            except InvalidStream as error:
                self.problems.append(RowProblem("bad_row", None, None, error.detail))
        for key, data in self.txn.scan(EV):
            try:
                place, run = unpack_number(key), records.peek(data)[1]
            except InvalidStream as error:
                self.problems.append(RowProblem("bad_record", None, None, error.detail))
                continue
            if run not in self._forgetting:
                self.places.setdefault(run, array("Q")).append(place)
        for table in (ID, RUN, LIVE, DONE, CL, *_GROWING):
            for key, value in self.txn.scan(table):
                run = _run_of(table, key, value)
                if table not in _GROWING or (run not in self.places and run not in self._forgetting):
                    self._rows.setdefault(run, Rows())[table, key] = value
                if table == ID and run >= 0:
                    self.ids_of.setdefault(run, []).append(UUID(bytes=key))
                elif table == RUN and run >= 0:
                    self._read_run(run, value)
        self.newest_run = max([0, *self.run_rows, *self.places, *self._forgetting])
        self.next_run = self._number(META_NEXT_RUN, 1)
        epoch = self._number(META_EPOCH, 0)
        self.bad_epoch = epoch == 0 and self.txn.get(META, META_EPOCH) is not None
        self.lost_epoch = max(self.lost_epoch, epoch + EPOCHS_LOST)

    def _read_run(self, run: int, value: bytes) -> None:
        try:
            self.run_rows[run] = row = unpack_run(run, value)
        except InvalidStream:
            return
        self.lost_epoch = max(self.lost_epoch, row.epoch + EPOCHS_LOST)

    def contested(self) -> dict[UUID, list[int]]:
        """Run ids that more than one run claims, by its row or by the index of ids, and which."""
        claims: dict[UUID, set[int]] = {}
        for run, row in self.run_rows.items():
            claims.setdefault(row.run_id, set()).add(run)
        for run, names in self.ids_of.items():
            for name in names:
                claims.setdefault(name, set()).add(run)
        return {name: sorted(runs) for name, runs in claims.items() if len(runs) > 1}

    def cursors(self) -> Iterator[RowProblem]:
        """Those that cannot be read: nothing says where they stood."""
        for key, value in self.txn.scan(CUR):
            try:
                unpack_number(value)
            except InvalidStream as error:
                yield RowProblem("bad_row", None, None, f"the cursor {key.decode(errors='replace')!r}: {error.detail}")

    def _number(self, name: bytes, absent: int) -> int:
        given = self.txn.get(META, name)
        try:
            return absent if given is None else unpack_number(given)
        except InvalidStream:
            return 0

    def rows(self, run: int) -> Rows:
        """Every row of a run that has records."""
        found, prefix = dict(self._rows.get(run, {})), number(run)
        for table in _GROWING:
            for key, value in self.txn.scan(table, prefix):
                if not key.startswith(prefix):
                    break
                found[table, key] = value
        return found

    def loose(self) -> dict[int, Rows]:
        """Rows of runs that have no records."""
        return {run: rows for run, rows in self._rows.items() if run not in self.places}

    def record(self, place: int) -> bytes:
        found = self.txn.get(EV, number(place))
        assert found is not None
        return found


def _run_of(table: bytes, key: bytes, value: bytes) -> int:
    """The number of the run that a row is of, -1 where it cannot be read."""
    try:
        if table == ID:
            return unpack_number(value) if len(key) == _ID_SIZE_BYTES else -1
        return take_number(key, take_number(key, 1)[1] if table == DONE else 0)[0]
    except (ValueError, InvalidStream):
        return -1


def _is_claim(data: bytes) -> bool:
    try:
        unpack_claim(data)
    except InvalidStream:
        return False
    return True


# -- what should be there -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Derived:
    run_id: UUID
    live: bool
    rows: Rows = field(default_factory=dict)


def _derive(found: _Journal, run: int, *, force: bool) -> _Derived:
    """Every row of a run. Raises: InvalidStream: it cannot be said what they are."""
    data = [found.record(place) for place in found.places[run]]
    there = found.run_rows.get(run)
    run_id = _run_id(found, run, data, there)
    view, key = RunView(run_id=run_id), number(run)
    epoch = found.lost_epoch if there is None else there.epoch
    rows, row = Rows(), None
    for place, batch in _batches(run_id, run, found.places[run], data):
        rows[RS, key + number(view.head + 1)] = number(place)
        row = _take_batch(view, row, batch, run=run, epoch=epoch)
    assert row is not None
    if there is not None and not force and (there.chain, there.head) != (row.chain, row.head):
        detail = f"its row tells of {there.head} events, the records of {row.head}, or a record was changed"
        raise InvalidStream("wrong_chain", run_id, None, detail)
    rows[RUN, key] = pack_run(row)
    rows[ID, run_id.bytes] = key
    if row.status is None:
        rows[LIVE, key] = b""
    else:
        rows[DONE, status_byte(row.status) + number(row.updated_ms) + key] = b""
    for state_id, state in _states(view):
        rows[ST, key + state_id.encode()] = pack_state(state)
    for fact, bound in view.new_facts.items():
        rows[FK, key + fact_key(fact)] = number(bound.seq)
    return _Derived(run_id, row.status is None, rows)


def _run_id(found: _Journal, run: int, data: list[bytes], there: RunRow | None) -> UUID:
    """From the row or the index; where they differ the chain, which begins with it, decides."""
    names = found.ids_of.get(run, [])
    if there is None or names == [there.run_id]:
        candidates = names
    else:
        candidates = [name for name in dict.fromkeys((there.run_id, *names)) if _chain(name, data) == there.chain]
        if not candidates and not names:
            candidates = [there.run_id]
    if len(candidates) != 1:
        raise InvalidStream("unknown_run_id", None, None, f"{len(candidates)} ids may be that of run number {run}")
    return candidates[0]


def _chain(run_id: UUID, data: list[bytes]) -> bytes:
    chain = records.chain_seed(run_id)
    for one in data:
        chain = records.chain(chain, one)
    return chain


_Batch = list[tuple[bytes, records.Record]]


def _batches(run_id: UUID, run: int, places: array[int], data: list[bytes]) -> Iterator[tuple[int, _Batch]]:
    """The appends of a run: first position, records. Raises: InvalidStream: one is missing, or does not decode."""
    context, started_ms = Context(), 0
    batch: _Batch = []
    length = first = 0
    for seq, (place, one) in enumerate(zip(places, data, strict=True), 1):
        record = records.decode_record(one, started_ms=started_ms, resolve=context, run_id=run_id)
        if record.seq != seq:
            raise InvalidStream("bad_sequence", run_id, seq, f"event {record.seq} stands in its place")
        if len(batch) == length:
            if record.batch is None:
                raise InvalidStream("bad_sequence", run_id, seq, "it should be the first of its append")
            batch, length, first = [], record.batch.length, place
        elif record.batch is not None or place != first + len(batch):
            raise InvalidStream("bad_sequence", run_id, seq, "an append before it is not whole")
        if type(record.event) is RunStarted:
            started_ms = record.timestamp_ms
        context = context.after(seq, record.event)
        batch.append((one, record))
        if len(batch) == length:
            yield first, batch
    if len(batch) != length:
        raise InvalidStream("bad_sequence", run_id, len(data) + 1, "the last append is not whole")


def _take_batch(view: RunView, before: RunRow | None, batch: _Batch, *, run: int, epoch: int) -> RunRow:
    """As the append did it."""
    view.last_error = None
    chain = records.chain_seed(view.run_id) if before is None else before.chain
    events: list[Event] = []
    for data, record in batch:
        advance(view, record.seq, record.event, raises=InvalidStream)
        chain = records.chain(chain, data)
        events.append(record.event)
    last_ms = batch[-1][1].timestamp_ms
    started_ms = batch[0][1].timestamp_ms if before is None else before.started_ms
    return row_of(view, before, number=run, epoch=epoch, started_ms=started_ms, updated_ms=last_ms, chain=chain,
                  events=events)  # fmt: skip


def _states(view: RunView) -> Iterator[tuple[str, StateRow]]:
    for place, (state_id, seq) in enumerate(view.new_completed.items(), 1):
        yield state_id, StateRow(view.attempts(state_id), seq, place)
    for state_id, attempts in view.new_attempts.items():
        if state_id not in view.new_completed:
            yield state_id, StateRow(attempts, 0, 0)
