"""How much gc does at a time, and where it stops: with a clock of its own, in which each changed row costs time."""

import json
import os
import subprocess
import sys
import uuid
from contextlib import contextmanager

import pytest

import casstore
import journal
from casstore import ArtifactId, InvalidArgument, steps
from casstore.backend import Candidate, Decision, Verdict
from casstore.gc import Collector, Limits
from casstore.pace import BUSY_S, BUSY_SHARE, IDLE_S, Amount, Pace
from casstore.removals import Removals
from casstore.rows import IX, TABLES, D
from casstore.store import Store
from casstore.table_backend import TableBackend
from casstore.tables import MemoryTables
from casstore.testing import FakeClock, FakeRoots, memory_store
from tests.command_line import casstore as command_line

COST_S = 20e-6


class CostlyTables:
    """Tables in memory where each delete takes COST_S, and which note how long each sweep and purge held the lock."""

    def __init__(self):
        self._tables = MemoryTables(TABLES)
        self.now = 0.0
        self.slept = []
        self.held = []  # (rows, seconds) of each transaction that removed artifacts
        self.purges = []  # (pieces, seconds)
        self.read, self.sync, self.info = self._tables.read, self._tables.sync, self._tables.info
        self.reader_check, self.tidy, self.close = self._tables.reader_check, self._tables.tidy, self._tables.close

    def timer(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    @contextmanager
    def write(self):
        with self._tables.write() as txn:
            since, costly = self.now, _Costly(self, txn)
            yield costly
            if costly.counts[IX]:
                self.held.append((costly.counts[IX], self.now - since))
            if costly.counts[D]:
                self.purges.append((costly.counts[D], self.now - since))


class _Costly:
    """A transaction whose deletes take time."""

    def __init__(self, tables, txn):
        self._tables, self._txn, self.counts = tables, txn, {IX: 0, D: 0}
        self.get, self.put, self.append, self.scan, self.count = txn.get, txn.put, txn.append, txn.scan, txn.count
        self.get_many, self.put_many, self.keys = txn.get_many, txn.put_many, txn.keys
        self.append_many, self.last = txn.append_many, txn.last

    def delete(self, table, key):
        self._tables.now += COST_S
        if table in self.counts:
            self.counts[table] += 1
        return self._txn.delete(table, key)

    def delete_many(self, table, keys):
        for key in keys:
            self.delete(table, key)


@pytest.fixture
def costly():
    """(store, tables)"""
    tables, name = CostlyTables(), str(uuid.uuid4())
    backend = TableBackend(tables)
    backend.bind(name)
    with Store(backend, None, read_only=False, quota=None, clock=FakeClock(), uuid=name) as store:
        yield store, tables


def collector(store, tables, roots=None, **limits):
    return Collector(
        store._backend, roots or FakeRoots(store), now_s=int(FakeClock().now), grace_s=0,
        limits=Limits(**limits), pace=Pace(timer=tables.timer, sleep=tables.sleep),
    )  # fmt: skip


def anything(condemned, total):
    """No refusal."""


def put_loose(store, count):
    return store.put_many([b"loose %d" % n for n in range(count)])


def test_alone_a_batch_lasts_a_tenth_of_a_second(costly):
    """It grows until it does, is never much longer, and nobody is waited for."""
    store, tables = costly
    put_loose(store, 12000)
    report = collector(store, tables).run(plausible=anything)
    assert len(report.removed) == 12000 and len(store) == 0
    seconds = [held for _, held in tables.held]
    assert max(seconds) <= IDLE_S * 1.5 and max(seconds) > IDLE_S / 2
    assert max(held for _, held in tables.purges) <= IDLE_S * 1.5
    assert tables.slept == []


def test_beside_writers_locks_are_held_shortly_and_seldom(costly):
    """Somebody commits between any two batches: at most 2 ms a lock, and at most a twentieth of the time."""
    store, tables = costly
    put_loose(store, 3000)

    def listener(step):
        if step == "gc.after_batch":
            steps.listen(None)
            store.put(b"fresh %d" % len(tables.held))
            steps.listen(listener)

    began = tables.now
    steps.listen(listener)
    try:
        report = collector(store, tables).run(plausible=anything)
    finally:
        steps.listen(None)
    assert len(report.removed) == 3000
    assert len(tables.held) > 20
    assert all(held <= BUSY_S * 1.5 for _, held in [*tables.held[1:], *tables.purges[1:]])
    locked = sum(held for _, held in [*tables.held, *tables.purges])
    assert locked <= BUSY_SHARE * 1.2 * (tables.now - began)


def test_a_journal_that_is_written_counts_as_busy(costly):
    """Events alone, without any commit of the store."""
    store, tables = costly
    names = put_loose(store, 2000)
    roots = FakeRoots(store)
    roots.append("run", names[0])

    def listener(step):
        if step == "gc.after_batch":
            roots.append("run", names[0])

    steps.listen(listener)
    try:
        collector(store, tables, roots).run(plausible=anything)
    finally:
        steps.listen(None)
    assert len(tables.slept) >= len(tables.held) - 1 > 10


def test_it_speeds_up_when_the_others_are_gone(costly):
    """Batches grow again after the last foreign commit."""
    store, tables = costly
    put_loose(store, 12000)

    def listener(step):
        if step == "gc.after_batch" and len(tables.held) < 10:
            steps.listen(None)
            store.put(b"fresh %d" % len(tables.held))
            steps.listen(listener)

    steps.listen(listener)
    try:
        collector(store, tables).run(plausible=anything)
    finally:
        steps.listen(None)
    rows = [count for count, _ in tables.held]
    assert max(rows[2:10]) < 60 and max(rows[10:]) > 1000


def test_amounts_are_learned():
    """From what a batch cost; never none, never more than four times the last, never more than allowed."""
    amount = Amount(1000)
    first = amount.within(0.1)
    assert 1 <= first <= 100
    amount.learn(first, first * 0.001)
    assert amount.within(0.05) == 50
    assert amount.within(0.0001) == 1
    assert amount.within(10) == first * 4
    amount.learn(900, 0.0)
    assert amount.within(0.1) <= 1000
    amount.learn(0, 5.0)
    assert amount.within(0.1) >= 1


def test_it_stops_after_its_time_and_the_next_one_goes_on(costly):
    """Between two batches; the report and the history say so; gc after gc the work gets done."""
    store, tables = costly
    put_loose(store, 9000)
    seen = []
    while True:
        report = collector(store, tables, time_s=0.2).run(plausible=anything)
        seen.append(len(report.removed))
        assert report.stopped in ("", "time")
        assert store.gc_history()[0].outcome == ("stopped" if report.stopped else "complete")
        if not report.stopped:
            break
    assert sum(seen) == 9000 and len(seen) > 2 and len(store) == 0
    assert store.verify().ok


def test_a_gc_that_has_no_time_at_all_still_goes_on(costly):
    """One batch at least: else it would mark for ever and remove nothing."""
    store, tables = costly
    put_loose(store, 100)
    report = collector(store, tables, time_s=0).run(plausible=anything)
    assert report.stopped == "time" and len(report.removed) > 0


def test_it_stops_after_so_many_bytes():
    """At the first batch that reaches them."""
    with memory_store(clock=FakeClock()) as store:
        for n in range(200):
            store.put(b"%4d" % n * 100, durable=False)
        report = store.gc(FakeRoots(store), grace=0, max_bytes=1)
        assert report.stopped == "bytes" and report.stored_bytes >= 1
        assert 0 < len(report.removed) < 200
        assert store.gc(FakeRoots(store), grace=0).stopped == ""
        assert len(store) == 0
        for wrong in (-1, 1.5, True):
            with pytest.raises(InvalidArgument):
                store.gc(FakeRoots(store), max_bytes=wrong)
        for limits in ({"max_time": -1}, {"budget": -1}, {"max_time": 5, "budget": 5}):
            with pytest.raises(InvalidArgument):
                store.gc(FakeRoots(store), **limits)
        assert store.gc(FakeRoots(store), budget=5).stopped == ""


@pytest.mark.parametrize("after", range(4))
def test_it_stops_when_asked(after, monkeypatch):
    """While it marks: nothing is removed. Between batches: what was removed is reported, the store is whole."""
    monkeypatch.setattr("casstore.gc.BATCH_ROWS", 1)
    with memory_store(clock=FakeClock()) as store:
        names = put_loose(store, 5)
        batches = []
        listener = lambda step: batches.append(step) if step == "gc.after_batch" else None  # noqa: E731
        steps.listen(listener)
        try:
            report = store.gc(FakeRoots(store), grace=0, stop=lambda: len(batches) >= after)
        finally:
            steps.listen(None)
        assert report.stopped == "asked" and len(report.removed) == after
        assert len(store) == 5 - after and not store._backend.counters().gc_open
        assert store.gc_history()[0].outcome == "stopped"
        assert len(store.gc(FakeRoots(store), grace=0).removed) == 5 - after
        assert names[0] not in store and store.verify().ok


def test_the_command_ends_with_4_when_stopped(tmp_path):
    """At a limit: exit code 4, and the same command again ends with 0 some time."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        put_loose(jrn.store, 500)
    codes = []
    while 0 not in codes:
        code, document = command_line("gc", "--grace", "0s", "--json", "--max-bytes", "1", home=home).coded
        codes.append(code)
        assert document["stopped"] == ("bytes" if code else "")
    assert codes[0] == 4
    with casstore.open(home) as store:
        assert len(store) == 0


def test_control_c_stops_between_batches(tmp_path):
    """One SIGINT in the middle of a sweep: exit code 4, a report, and a store that is whole."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        put_loose(jrn.store, 500)
    program = f"""
import os, signal, sys
from casstore import gc, steps
from casstore.cli import main
gc.BATCH_ROWS = 10
steps.listen(lambda step: os.kill(os.getpid(), signal.SIGINT) if step == "gc.after_batch" else None)
sys.argv = ["casstore", "gc", "--home", {str(home)!r}, "--grace", "0s", "--json"]
main.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env={**os.environ}
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert json.loads(done.stdout)["stopped"] == "asked" and json.loads(done.stdout)["removed"] == 10
    with casstore.open(home) as store:
        assert len(store) == 490 and store.verify().ok


@pytest.mark.parametrize("most", [1, 3, 7, 1000])
def test_pieces_are_purged_in_any_portions(most):
    """Artifacts of many pieces and of none, live ones between them, a portion that ends inside of one: all dead
    pieces go and no other, in portions no larger than asked for."""
    with memory_store(clock=FakeClock()) as store:
        roots, backend = FakeRoots(store), store._backend
        for n in range(60):
            name = store.put(os.urandom((0, 100, 9000, 40000)[n % 4] + n))
            if n % 5 < 2 or 20 < n < 45:
                roots.append("run", name)
        store.put(b"")
        live = len({*roots.live["run"]})
        opened = backend.gc_open(0, 0, b"{}")
        dead = [row for row in backend.page(b"", 1000) if ArtifactId(row.digest) not in roots.live["run"]]
        batch = [Candidate(row.data_id, row.digest, False) for row in dead]
        backend.gc_sweep(opened.epoch, batch, lambda _: [Decision(Verdict.DELETE)] * len(batch), 0, lambda: None)
        backend.gc_close(opened.epoch, b"{}")
        portions = []
        while count := backend.purge(most):
            portions.append(count)
        assert max(portions) <= most
        with backend._tables.read() as t:
            pieces = {int.from_bytes(key[:8], "big") for key, _ in t.scan(D)}
            assert t.count(b"purge1") == 0
        assert len(pieces) <= live and pieces <= {row.data_id for row in backend.page(b"", 1000)}
        assert len(store) == live and store.verify().ok


def test_an_artifact_whose_record_is_lost_is_collected_too():
    """Damage that nothing needs any more does not stay for ever."""
    with memory_store(clock=FakeClock()) as store:
        roots = FakeRoots(store)
        lost, loose, live = store.put_many([b"lost", b"loose", b"live"])
        roots.append("run", live)
        with store._backend._tables.write() as t:
            (row,) = store._backend.rows([lost.digest])
            t.delete(b"da1", row.data_id.to_bytes(8, "big"))
        report = store.gc(roots, grace=0)
        assert {name for name, _ in report.removed} == {lost, loose} and set(store) == {live}
        assert store.gc(roots, grace=0).removed == ()


def test_what_was_removed_is_a_sequence():
    """As a tuple of (id, bytes), in less memory."""
    pairs = [(ArtifactId.of(b"%d" % n), n) for n in range(5)]
    found = Removals((name.digest, size) for name, size in pairs)
    assert list(found) == pairs and found == tuple(pairs) and len(found) == 5
    assert found[1] == pairs[1] and found[-1] == pairs[-1] and found[1:3] == tuple(pairs[1:3])
    assert found == Removals((name.digest, size) for name, size in pairs) and found != Removals() == ()
    with pytest.raises(IndexError):
        found[5]
