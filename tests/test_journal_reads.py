"""Scans: whatever the layout, every way to read gives the same events; what is missing is told, not left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import journal
from casstore.lmdb_tables import LmdbTables
from casstore.tables import MemoryTables, Tables
from casstore.testing import FakeClock
from journal import DomainEvent, RunStarted, StateCompleted, StateEntered, reading, table_backend
from journal import appends as appends_module
from journal.events import Event, to_fields
from journal.rows import EV, RUN, number, pack_run, unpack_run
from journal.testing import memory_journal

RUNS = [UUID(int=(0xA0 + place) << 120) for place in range(3)]


@pytest.fixture(params=["lmdb", "memory"])
def jrn(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[journal.Journal]:
    clock = FakeClock()
    lmdb = request.param == "lmdb"
    with journal.open(tmp_path / "home", clock=clock) if lmdb else memory_journal(clock=clock) as jrn:
        yield jrn


def write(jrn: journal.Journal, sizes: list[int]) -> dict[UUID, list[Event]]:
    """Three runs that take turns with appends of these sizes."""
    manifest, snapshot = jrn.store.put_value({}), jrn.store.put_value({"n": 1})
    written: dict[UUID, list[Event]] = {}
    for place, run_id in enumerate(RUNS):
        events: list[Event] = [RunStarted(op_id="op", manifest_id=manifest, initial_snapshot_id=snapshot)]
        for state in range(sum(sizes) // 3 + 1):
            name = f"a.b.s{state}"
            events += [
                StateEntered(state_id=name, attempt=0, base_snapshot_id=snapshot),
                DomainEvent("note", {"run": place, "state": state}),
                StateCompleted(state_id=name, context_snapshot_id=snapshot),
            ]
        written[run_id] = events[: sum(sizes)]
    head = 0
    for size in sizes:
        for run_id, events in written.items():
            jrn.append(run_id, head, events[head : head + size])
        head += size
    return written


@pytest.mark.parametrize("sizes", [[1] * 14, [2] * 7, [9, 1, 1, 1, 5], [1, 30, 2]])
def test_every_way_to_read_gives_the_same_events(
    jrn: journal.Journal, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges from any seq to any other, forwards, in reverse, raw; pages and pieces of every length; the feed."""
    written = write(jrn, sizes)
    feed = list(jrn.feed())
    assert [item.position for item in feed] == list(range(1, 3 * sum(sizes) + 1))
    for page, piece in ((512, 1024), (5, 4), (3, 2)):
        for module, name, value in ((reading, "PAGE_EVENTS", page), (reading, "RAW_PAGE_EVENTS", page),
                                    (table_backend, "_STRETCH", piece)):  # fmt: skip
            monkeypatch.setattr(module, name, value)
        for run_id, events in written.items():
            whole = [item for item in feed if item.run_id == run_id]
            assert [item.event for item in whole] == events
            for first in range(1, len(events) + 2):
                for last in (first - 1, first, first + 3, len(events), None):
                    wanted = whole[first - 1 : last]
                    assert jrn.read(run_id, first, last) == wanted
                    assert jrn.read(run_id, first, last, reverse=True) == wanted[::-1]
                    assert jrn.read_raw(run_id, first, last) == [
                        (
                            item.seq,
                            item.position,
                            item.timestamp_ms,
                            to_fields(item.event)[0],
                            *to_fields(item.event)[1],
                        )
                        for item in wanted
                    ]
    for after in range(len(feed)):
        assert reading.feed_page(jrn._backend, after, 4) == feed[after : after + 4]


@pytest.mark.parametrize("sizes", [[1] * 9, [9]])
@pytest.mark.parametrize("missing", [1, 4, 9])
def test_a_record_that_is_missing_is_told(jrn: Any, sizes: list[int], missing: int) -> None:
    """By typed and by raw readers of any range that it lies in; others go on as if nothing were wrong."""
    write(jrn, sizes)
    place = jrn.position_of(RUNS[1], missing)
    with jrn._backend._tables.write() as txn:
        txn.delete(EV, number(place))
    for read in (jrn.read, jrn.read_raw):
        for first, last in ((1, None), (missing, missing), (max(missing - 1, 1), 9)):
            with pytest.raises(journal.InvalidStream) as caught:
                read(RUNS[1], first, last)
            assert (caught.value.rule, caught.value.fields["seq"]) == ("bad_sequence", missing)
        assert len(read(RUNS[0])) == 9
    with jrn._backend.look() as look:
        assert [seq for seq, _, _ in look.records(2, 1, 9)] == [seq for seq in range(1, 10) if seq != missing]


def test_lists_of_runs_go_on_page_after_page(jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first page is short, the next ones longer; together they are all runs, newest first."""
    monkeypatch.setattr(reading, "FIRST_PAGE_RUNS", 2)
    monkeypatch.setattr(reading, "PAGE_EVENTS", 8)
    ids = [UUID(int=place + 1) for place in range(40)]
    for run_id in ids:
        jrn.start_run("op", manifest={}, context={}, run_id=run_id, claim=False)
    for status in (None, "live"):
        assert [row.run_id for row in jrn.runs(status=status)] == ids[::-1]
        assert [row.run_id for row in jrn.runs(status=status, limit=5)] == ids[:-6:-1]
        assert [row.run_id for row in jrn.runs(status=status, after=ids[20])] == ids[19::-1]


@pytest.mark.parametrize("moved_ms", [-1_000_000, 1_000_000])
def test_a_list_ends_whatever_a_damaged_row_says(
    jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch, moved_ms: int
) -> None:
    """A row that says that its run ended at another time leads the list neither back to its begin nor past others."""
    monkeypatch.setattr(reading, "FIRST_PAGE_RUNS", 2)
    ids = [UUID(int=place + 1) for place in range(6)]
    for run_id in ids:
        jrn.start_run("op", manifest={}, context={}, run_id=run_id).complete()
    with jrn._backend._tables.write() as txn:  # type: ignore[attr-defined]
        row = unpack_run(5, txn.get(RUN, number(5)))  # the last of the first page
        ended_ms = row.updated_ms + moved_ms
        txn.put(RUN, number(5), pack_run(replace(row, started_ms=min(row.started_ms, ended_ms), updated_ms=ended_ms)))
    found = [row.run_id for row in islice(jrn.runs(status="completed"), 20)]
    assert found == ids[::-1]


def test_new_runs_of_one_append_are_judged_once(jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their numbers follow each other, as the admission outside of the lock gave them out: nothing has changed."""
    asked: list[UUID] = []
    admit = appends_module.admit

    def counting(request: Any, *rest: Any, **options: Any) -> Any:
        asked.append(request.run_id)
        return admit(request, *rest, **options)

    monkeypatch.setattr(appends_module, "admit", counting)
    manifest, snapshot = jrn.store.put_value({}), jrn.store.put_value({"n": 1})
    started = RunStarted(op_id="op", manifest_id=manifest, initial_snapshot_id=snapshot)
    jrn.append_many({run_id: (0, [started]) for run_id in RUNS})
    assert asked == RUNS
    assert [row.run_id for row in jrn.runs()] == RUNS[::-1]
    assert jrn.verify() == []


@pytest.mark.parametrize("kind", ["lmdb", "memory"])
def test_many_rows_are_appended_also_where_they_are_not_the_greatest(kind: str, tmp_path: Path) -> None:
    """What is smaller than a key that is there is set all the same."""
    names = [b"t1", b"t2"]
    tables: Tables = MemoryTables(names) if kind == "memory" else LmdbTables(
        tmp_path, names, create=True, read_only=False
    )  # fmt: skip
    with tables.write() as txn:
        txn.append_many(b"t1", [(b"b", b"1"), (b"d", b"2")])
        txn.append_many(b"t1", [(b"a", b"3"), (b"d", b"4"), (b"e", b"5")])
        txn.append_many(b"t1", [])
    with tables.read() as look:
        assert list(look.scan(b"t1")) == [(b"a", b"3"), (b"b", b"1"), (b"d", b"4"), (b"e", b"5")]
        assert list(look.scan(b"t2")) == []
    tables.close()
