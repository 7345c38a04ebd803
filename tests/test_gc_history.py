"""What the store remembers of past gcs, however they ended."""

import json

import pytest

import casstore
import journal
from casstore import GcRefused, steps
from casstore.gc import Collector
from casstore.pace import Pace
from casstore.refusals import refuse_implausible
from casstore.testing import FakeClock, FakeRoots, memory_store
from tests.command_line import casstore as command_line


@pytest.fixture(params=["lmdb", "memory"])
def world(request, tmp_path):
    """(store, roots, clock)"""
    clock = FakeClock()
    store = casstore.open(tmp_path / "home", clock=clock) if request.param == "lmdb" else memory_store(clock=clock)
    with store:
        yield store, FakeRoots(store), clock


def test_each_gc_is_remembered_newest_first(world):
    """When, how many, how many bytes, how it ended."""
    store, roots, clock = world
    assert store.gc_history() == []
    store.put(b"a" * 100)
    first = store.gc(roots, grace=0)
    clock.advance(60)
    roots.append("run", store.put(b"b"))
    second = store.gc(roots, grace=0)
    newest, oldest = store.gc_history()
    assert (newest.gc, newest.when_s, newest.removed, newest.live) == (second.gc, int(clock.now), 0, 1)
    assert (oldest.gc, oldest.when_s, oldest.removed, oldest.raw_bytes) == (first.gc, int(clock.now) - 60, 1, 100)
    assert oldest.stored_bytes == first.stored_bytes
    assert {newest.outcome, oldest.outcome} == {"complete"}
    assert [past.gc for past in store.gc_history(limit=1)] == [second.gc]
    assert store.gc_history(limit=0) == []


def test_a_dry_run_leaves_no_trace(world):
    """It is no gc."""
    store, roots, _ = world
    store.put(b"a")
    store.gc(roots, grace=0, dry_run=True)
    assert store.gc_history() == []


def test_the_duration_is_that_of_the_timer(world):
    """In milliseconds, from a timer that only goes forward."""
    store, roots, clock = world
    times = iter(range(1000))
    pace = Pace(timer=lambda: float(next(times)))
    Collector(
        store._backend, roots, now_s=int(clock()), grace_s=0, pace=pace
    ).run(plausible=refuse_implausible)
    (past,) = store.gc_history()
    assert past.duration_ms > 0 and past.duration_ms % 1000 == 0


def test_a_gc_that_failed_says_what_it_did_before(world, monkeypatch):
    """An error after the first batch: what that batch removed is counted."""
    monkeypatch.setattr("casstore.gc.BATCH_ROWS", 1)
    store, roots, _ = world
    store.put_many([b"a", b"b", b"c"])

    def listener(step):
        if step == "gc.after_batch":
            monkeypatch.setattr(roots, "roots_after", lambda position: 1 // 0)

    steps.listen(listener)
    try:
        with pytest.raises((GcRefused, ZeroDivisionError)):
            store.gc(roots, grace=0)
    finally:
        steps.listen(None)
    (past,) = store.gc_history()
    assert (past.outcome, past.removed, past.live) == ("failed", 1, 2)


def test_a_killed_gc_is_unfinished(world, monkeypatch):
    """Killed, it cannot write how it ended; that it began is known."""
    store, roots, clock = world
    store.put(b"a")
    monkeypatch.setattr(Collector, "_close", lambda *_: None)
    store.gc(roots, grace=0)
    (past,) = store.gc_history()
    assert (past.gc, past.outcome, past.when_s) == (1, "unfinished", int(clock.now))


def test_a_row_that_cannot_be_read_hides_no_other(world):
    """History is for people."""
    store, _, _ = world
    backend = store._backend
    for report in (b"", b"\xff", b"[]", b'{"removed": "x", "outcome": "complete"}', b'{"removed": 3}'):
        backend.gc_close(backend.gc_open(1, 0, b"{}").epoch, report)
    found = store.gc_history()
    assert [past.gc for past in found] == [5, 4, 3, 2, 1]
    assert [past.outcome for past in found] == ["complete", "complete", "unfinished", "unfinished", "failed"]
    assert found[0].removed == 3


def test_a_collected_id_leads_to_its_gc(world):
    """The number in the error is the number in the history."""
    store, roots, _ = world
    name = store.put(b"a")
    store.gc(roots, grace=0)
    with pytest.raises(casstore.Collected) as error:
        store.get(name)
    assert error.value.fields["gc"] == store.gc_history()[0].gc


def test_the_command_shows_it(tmp_path):
    """As lines, and as one JSON object a line; it removes nothing."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        jrn.store.put(b"loose")
        jrn.store.gc(jrn, grace=0)
        jrn.store.put(b"more")

    def run(*arguments):
        done = command_line("gc", "--history", *arguments, home=home)
        assert (done.code, done.err) == (0, "")
        return done.out

    assert "complete" in run() and "1 removed" in run()
    (line,) = run("--json", "--limit", "1").splitlines()
    assert json.loads(line)["removed"] == 1
    with casstore.open(home) as store:
        assert len(store) == 1
