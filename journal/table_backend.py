"""The journal's backend over ordered tables: LMDB's, or those in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Final, final
from uuid import UUID

from casstore import stage
from casstore.errors import DamagedStore, StoreError
from casstore.ids import ArtifactId
from casstore.steps import reach
from casstore.tables import ReadTransaction, Tables, WriteTransaction
from journal.backend import ClaimRow, Look, RunRow, RunWrite, StateRow, Unit
from journal.errors import InvalidStream, JournalError, RunLive
from journal.failures import RunStatus
from journal.rebuilding import RebuildReport, rebuild, survey
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
    META_FLOOR,
    META_FORGETTING,
    META_NEXT_RUN,
    META_UUID,
    RS,
    RUN,
    ST,
    fact_key,
    id_of,
    key_number,
    number,
    numbers,
    pack_claim,
    pack_run,
    pack_state,
    state_name,
    status_byte,
    unpack_claim,
    unpack_left,
    unpack_number,
    unpack_run,
    unpack_stamp,
    unpack_state,
)

_SCAN_FROM: Final = 3
_STRETCH: Final = 1024
_KNOWN_MAX: Final = 4096
_GREATEST: Final = b"\xff" * 9
_ENDED: Final = tuple(map(status_byte, RunStatus))


@final
class TableLook:
    """See `journal.backend.Look`."""

    def __init__(self, txn: ReadTransaction, known: dict[bytes, RunRow] | None = None) -> None:
        """`known`: rows by their bytes."""
        self._txn = txn
        self._known = {} if known is None else known

    def run(self, run_id: UUID) -> RunRow | None:
        found = self._txn.get(ID, run_id.bytes)
        row = None if found is None else self.numbered(unpack_number(found))
        if row is not None and row.run_id != run_id:
            raise InvalidStream("bad_row", run_id, None, f"its id leads to the events of {row.run_id}")
        return row

    def numbered(self, number_: int) -> RunRow | None:
        found = self._txn.get(RUN, number(number_))
        if found is None:
            return None
        row = self._known.get(found)
        return row if row is not None and row.number == number_ else unpack_run(number_, found)

    def stamp(self, number_: int) -> tuple[int, int] | None:
        """(head, epoch) of a run."""
        found = self._txn.get(RUN, number(number_))
        if found is None:
            return None
        row = self._known.get(found)
        return unpack_stamp(found) if row is None else (row.head, row.epoch)

    def next_number(self) -> int:
        """One that was never given out, whatever damage made of the counter: what is there would be overwritten."""
        found = self._txn.get(META, META_NEXT_RUN)
        counted = 1 if found is None else unpack_number(found)
        given = (self._txn.last(RUN), self._txn.last(RS))
        return max(counted, *(0 if key is None else key_number(key, 0)[0] + 1 for key in given))

    def first_epoch(self) -> int:
        found = self._txn.get(META, META_EPOCH)
        return 0 if found is None else unpack_number(found)

    def forgetting(self) -> Iterator[tuple[UUID, int, int]]:
        for rest, value in self.under(META, META_FORGETTING):
            head = unpack_left(value)[1]
            yield id_of(value[:16]), unpack_number(rest), head

    def claim(self, number_: int) -> ClaimRow | None:
        found = self._txn.get(CL, number(number_))
        return None if found is None else unpack_claim(found)

    def state(self, number_: int, state_id: str) -> StateRow | None:
        found = self._txn.get(ST, number(number_) + state_id.encode())
        return None if found is None else unpack_state(found)

    def states(self, number_: int) -> Iterator[tuple[str, StateRow]]:
        for rest, value in self.under(ST, number(number_)):
            yield state_name(rest), unpack_state(value)

    def fact(self, number_: int, key: str) -> int | None:
        found = self._txn.get(FK, number(number_) + fact_key(key))
        return None if found is None else unpack_number(found)

    def facts(self, number_: int) -> Iterator[int]:
        for _, value in self.under(FK, number(number_)):
            yield unpack_number(value)

    def version(self) -> int:
        return self._txn.version()

    def position(self) -> int:
        newest = next(self._txn.scan(EV, reverse=True), None)
        last: int = 0 if newest is None else unpack_number(newest[0])
        return max(last, self.floor())

    def floor(self) -> int:
        """The newest position whose record was removed."""
        found = self._txn.get(META, META_FLOOR)
        return 0 if found is None else unpack_number(found)

    def count(self) -> int:
        return self._txn.count(EV)

    def tallies(self) -> tuple[int, int]:
        for key in (next(self._txn.keys(DONE), None), self._txn.last(DONE)):
            if key is not None and key[:1] not in _ENDED:
                raise InvalidStream("bad_row", None, None, f"a run is listed as ended with no status, {key.hex()}")
        return self._txn.count(LIVE), self._txn.count(DONE)

    def registered(self) -> tuple[int, int]:
        return self._txn.count(RUN), self._txn.count(ID)

    def place(self, number_: int, seq: int) -> int | None:
        batch = self._batch(number_, seq)
        return None if batch is None else batch[1] + seq - batch[0]

    def record(self, number_: int, seq: int) -> bytes | None:
        position = self.place(number_, seq)
        return None if position is None else self._txn.get(EV, number(position))

    def records(self, number_: int, first: int, last: int) -> Iterator[tuple[int, int, bytes]]:
        for seq, positions, found in self.stretches(number_, first, last):
            for at, data in enumerate(found):
                yield seq + at, positions[at], data

    def stretches(self, number_: int, first: int, last: int) -> Iterator[tuple[int, Sequence[int], list[bytes]]]:
        start, size, spans = first, 0, list[tuple[int, int]]()
        for seq, position, length in self._batches(number_, first, last):
            if size >= _STRETCH or seq != start + size:
                yield from self._fetch(start, spans)
                start, size, spans = seq, 0, []
            if spans and spans[-1][1] == position:  # nobody else appended in between
                spans[-1] = spans[-1][0], position + length
            else:
                spans.append((position, position + length))
            size += length
        yield from self._fetch(start, spans)

    def _batches(self, number_: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """(seq, position, length) of what lies in [first, last] of each batch; in pieces where it is long."""
        batch = self._batch(number_, first) if first <= last else None
        if batch is None:
            return
        prefix = number(number_)
        start, position = batch
        rows = self.under(RS, prefix, prefix + number(start))
        next(rows)
        following = start
        while following <= last:
            row = next(rows, None)
            following = last + 1 if row is None else key_number(row[0], 0)[0]
            end = min(last + 1, following)
            for seq in range(max(start, first), end, _STRETCH):
                yield seq, position + seq - start, min(_STRETCH, end - seq)
            if row is not None:
                start, position = following, unpack_number(row[1])

    def _fetch(self, seq: int, spans: list[tuple[int, int]]) -> Iterator[tuple[int, Sequence[int], list[bytes]]]:
        """The records at spans of positions, of which `seq` is the first; several lists where some are missing."""
        positions, found = list[int](), list[bytes]()
        for begin, end in spans:
            if end - begin >= _SCAN_FROM:
                rows = list(islice(self._txn.scan(EV, number(begin)), end - begin))
                # Keys only rise: where the last is as far from the first as it should be, none between is missing.
                if len(rows) == end - begin and rows[0][0] == number(begin) and rows[-1][0] == number(end - 1):
                    positions += range(begin, end)
                    found += [data for _, data in rows]
                    continue
            for position in range(begin, end):
                one = self._txn.get(EV, number(position))
                if one is not None:
                    positions.append(position)
                    found.append(one)
                    continue
                if found:
                    yield seq, positions, found
                seq, positions, found = seq + len(found) + 1, [], []
        if found:
            yield seq, positions, found

    def after(self, position: int) -> Iterator[tuple[int, bytes]]:
        for key, value in self._txn.scan(EV, number(position + 1)):
            yield unpack_number(key), value

    def live(self, *, before: int | None = None) -> Iterator[int]:
        return self._numbers(LIVE, before)

    def numbers(self, *, before: int | None = None) -> Iterator[int]:
        return self._numbers(RUN, before)

    def ended(self, status: RunStatus, *, before: tuple[int, int] | None = None) -> Iterator[tuple[int, int]]:
        prefix = status_byte(status)
        start = prefix + (_GREATEST if before is None else number(before[0]) + number(before[1]))
        for key, _ in self._txn.scan(DONE, start, reverse=True):
            if not key.startswith(prefix):
                return
            if before is not None and key == start:
                continue
            ended_ms, place = key_number(key, 1)
            yield ended_ms, key_number(key, place)[0]

    def named(self, first: UUID, last: UUID) -> Iterator[UUID]:
        for key, _ in self._txn.scan(ID, first.bytes):
            if key > last.bytes:
                return
            yield id_of(key)

    def cursor(self, name: str) -> int | None:
        found = self._txn.get(CUR, name.encode())
        return None if found is None else unpack_number(found)

    def is_staged(self, id: ArtifactId) -> bool:
        return stage.is_staged(self._txn, id.digest)

    def _batch(self, number_: int, seq: int) -> tuple[int, int] | None:
        """(first seq, position) of the batch in which a seq stands, if it stands in any."""
        prefix = number(number_)
        found = next(self._txn.scan(RS, prefix + number(seq), reverse=True), None)
        if found is None or not found[0].startswith(prefix):
            return None
        return key_number(found[0], len(prefix))[0], unpack_number(found[1])

    def _numbers(self, table: bytes, before: int | None) -> Iterator[int]:
        start = b"" if before is None else number(before)
        for key, _ in self._txn.scan(table, start, reverse=True):
            if key != start:
                yield unpack_number(key)

    def under(self, table: bytes, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        for key, value in self._txn.scan(table, start or prefix):
            if not key.startswith(prefix):
                return
            yield key[len(prefix) :], value


@final
class TableBackend:
    """See `journal.backend.JournalBackend`."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._known: dict[bytes, RunRow] = {}  # rows written by this process, which the next append would decode

    def bind(self, uuid: str) -> str:
        with self._tables.read() as txn:
            found = txn.get(META, META_UUID)
        if found is not None:
            try:
                return found.decode()
            except UnicodeDecodeError as error:
                raise DamagedStore("the journal's table meta1", "its uuid is no text") from error
        with self._tables.write() as txn:
            found = txn.get(META, META_UUID)
            if found is None:
                txn.put(META, META_UUID, uuid.encode())
        return uuid if found is None else found.decode()

    @contextmanager
    def look(self) -> Iterator[Look]:
        with self._tables.read() as txn:
            yield TableLook(txn, self._known)

    def version(self) -> int:
        # Not what the engine knows as its newest commit: while that is being flushed no snapshot shows it yet.
        with self._tables.read() as txn:
            return txn.version()

    def commit(
        self, units: Sequence[Unit], admit: Callable[[Unit, Look], None], check: Callable[[Unit, Look], None],
        settled: Callable[[], Iterable[ArtifactId]] = tuple, seen: int | None = None,
    ) -> int:  # fmt: skip
        with self._tables.write() as txn:
            reach("append.locked")
            look = TableLook(txn, self._known)
            for id in settled():
                txn.delete(stage.TABLE, id.digest)
            position, current = look.position(), seen is not None and txn.version() == seen + 1
            for unit in units:
                try:
                    if unit.writes is None or (not current and _are_stale(look, unit.writes)):
                        current = False  # it may change what the others were admitted from
                        admit(unit, look)
                    check(unit, look)
                except (JournalError, StoreError) as error:
                    unit.error, current = error, False  # so does one that is not written, by the number of its run
                    continue
                unit.positions = []
                for place, put in enumerate(unit.staged if unit.writes else ()):
                    stage.write(txn, put.artifact, position + 1, place, _second(unit))
                for write in unit.writes or ():
                    unit.positions.append(position + 1)
                    self._remember(write.after, _write_run(txn, write, position + 1))
                    position += len(write.records)
                if unit.writes:
                    for name, at in unit.cursors.items():
                        txn.put(CUR, name.encode(), number(at))
            staged = txn.count(stage.TABLE)
            reach("append.written")
        reach("append.committed")
        return staged

    def _remember(self, row: RunRow, data: bytes) -> None:
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[data] = row

    def set_claim(self, number_: int, epoch: int, claim: ClaimRow | None) -> int | None:
        with self._tables.write() as txn:
            row = TableLook(txn).numbered(number_)
            if row is None or row.status is not None:  # ended, and perhaps forgotten since
                return None
            if row.epoch == epoch:
                _write_claim(txn, number(number_), claim)
            return row.epoch

    def forget(self, number_: int, limit: int) -> bool:
        with self._tables.write() as txn:
            reach("forget.locked")
            row = TableLook(txn).numbered(number_)
            if row is not None:
                if row.status is None:
                    raise RunLive(row.run_id, row.head)
                _hide(txn, row)
            done = _remove(txn, number_, limit)
            reach("forget.written")
        return done

    def rebuild(self, *, dry_run: bool, force: bool = False) -> RebuildReport:
        if dry_run:
            with self._tables.read() as txn:
                return survey(txn, force=force)[0]
        return rebuild(self._tables, force=force)

    def set_cursor(self, name: str, position: int) -> None:
        with self._tables.write() as txn:
            txn.put(CUR, name.encode(), number(position))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._tables.write():
            yield

    def info(self) -> dict[str, int]:
        return self._tables.info()

    def close(self) -> None:
        self._tables.close()


def _second(unit: Unit) -> int:
    """When it happens, in unix seconds."""
    assert unit.writes
    return unit.writes[0].after.updated_ms // 1000


def _are_stale(look: TableLook, writes: Sequence[RunWrite]) -> bool:
    """Whether what any of the writes was made from has changed since."""
    fresh = 0
    for write in writes:
        before = write.before
        if before is None:
            fresh = fresh or look.next_number()
            if write.after.number != fresh or look.run(write.after.run_id) is not None:
                return True
            fresh += 1
        elif look.stamp(before.number) != (before.head, before.epoch) or look.claim(before.number) != write.held:
            return True
    return False


def _write_run(txn: WriteTransaction, write: RunWrite, position: int) -> bytes:
    """The bytes of the run's new row."""
    row, key = write.after, number(write.after.number)
    if write.before is None:
        txn.put(META, META_NEXT_RUN, number(row.number + 1))
        txn.put(ID, row.run_id.bytes, key)
        if row.status is None:
            txn.append(LIVE, key, b"")
    if write.records:
        first = row.head - len(write.records) + 1
        txn.put(RS, key + number(first), number(position))
    if len(write.records) < _SCAN_FROM:
        for place, data in enumerate(write.records):
            txn.append(EV, number(position + place), data)
    else:
        txn.append_many(EV, list(zip(numbers(position, len(write.records)), write.records, strict=True)))
    for state_id, state in write.states.items():
        txn.put(ST, key + state_id.encode(), pack_state(state))
    for fact, seq in write.facts.items():
        txn.put(FK, key + fact_key(fact), number(seq))
    if row.status is not None and (write.before is None or write.before.status is None):
        txn.delete(LIVE, key)
        txn.put(DONE, status_byte(row.status) + number(row.updated_ms) + key, b"")
    if write.claim is not None or write.drop_claim:
        _write_claim(txn, key, write.claim)
    data = pack_run(row)
    (txn.append if write.before is None else txn.put)(RUN, key, data)
    return data


def _hide(txn: WriteTransaction, row: RunRow) -> None:
    """The run is gone; what is left of it has a row that says so."""
    key, look = number(row.number), TableLook(txn)
    newest = look.place(row.number, row.head)
    txn.put(META, META_FLOOR, number(look.position() if newest is None else max(look.floor(), newest)))
    txn.put(META, META_EPOCH, number(max(look.first_epoch(), row.epoch + 1)))
    txn.put(META, META_FORGETTING + key, row.run_id.bytes + number(1) + number(row.head))
    assert row.status is not None
    txn.delete(DONE, status_byte(row.status) + number(row.updated_ms) + key)
    txn.delete(CL, key)
    txn.delete(ID, row.run_id.bytes)
    txn.delete(RUN, key)


def _remove(txn: WriteTransaction, number_: int, limit: int) -> bool:
    """Events first, then the rows of states and facts, of which there are never more."""
    key, look = number(number_), TableLook(txn)
    value = txn.get(META, META_FORGETTING + key)
    if value is None:
        return True
    first, head = unpack_left(value)
    last = min(head, first + limit - 1)
    places = [place for _, place, _ in look.records(number_, first, last)]
    for place in places:
        txn.delete(EV, number(place))
    if last < head:
        txn.put(META, META_FORGETTING + key, value[:16] + number(last + 1) + number(head))
        return False
    for table in (RS, ST, FK):
        rows = [rest for rest, _ in islice(look.under(table, key), limit + 1)]
        for rest in rows[:limit]:
            txn.delete(table, key + rest)
        if len(rows) > limit:
            txn.put(META, META_FORGETTING + key, value[:16] + number(head + 1) + number(head))
            return False
    txn.delete(META, META_FORGETTING + key)
    return True


def _write_claim(txn: WriteTransaction, key: bytes, claim: ClaimRow | None) -> None:
    if claim is None:
        txn.delete(CL, key)
    else:
        txn.put(CL, key, pack_claim(claim))
