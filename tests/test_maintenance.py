"""gc that looks after itself: when it is worth it, and the thread that asks."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

import casstore
import journal
from casstore import AutoPolicy, Busy, GcRefused, InvalidArgument, InvalidPolicy, Maintenance, Policy, steps
from casstore.locks import collector_lock
from casstore.policies import Growth, is_due
from casstore.testing import FakeClock, FakeRoots, memory_store
from tests.command_line import casstore as command_line

DAY = 86400
NOW = 1_800_000_000
EAGER = Policy(grace=0, auto=AutoPolicy(min_interval=0, after_artifacts=1))


# -- when it is worth it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "due", "words"),
    [
        (Growth(None), True, "no gc yet"),
        (Growth(NOW - 60, 3, "complete", artifacts=10**6), False, "min_interval is over in 59m"),
        (Growth(NOW - 60, 3, "stopped"), False, "min_interval"),
        (Growth(NOW - 3600, 3, "complete"), False, "only 0 runs"),
        (Growth(NOW - 3600, 3, "complete", 9_999, (64 << 20) - 1, 9), False, "it takes 10, 10000 or 67108864"),
        (Growth(NOW - 3600, 3, "complete", artifacts=10_000), True, "10000 new artifacts"),
        (Growth(NOW - 3600, 3, "complete", bytes=64 << 20), True, "67108864 new stored bytes"),
        (Growth(NOW - 3600, 3, "complete", runs=10), True, "10 new runs past their retention"),
        (Growth(NOW - 3600, 3, "complete", over_quota_bytes=1), True, "1 bytes over the quota"),
        (Growth(NOW - 3600, 3, "stopped"), True, "is stopped"),
        (Growth(NOW - 3600, 3, "failed"), True, "is failed"),
        (Growth(NOW - 3600, 3, "unfinished"), True, "is unfinished"),
        (Growth(NOW - 7 * DAY, 3, "complete"), True, "older than max_interval, 7d"),
        (Growth(NOW + DAY, 3, "complete"), True, "max_interval"),  # the clock was set back since: do not wait a day
    ],
)
def test_what_makes_a_gc_worth_it(seen: Growth, due: bool, words: str) -> None:
    """The decision alone; the reason is told either way."""
    found = is_due(AutoPolicy(), seen, NOW)
    assert found.due is due and words in found.reason


def test_the_store_counts_what_is_new() -> None:
    """Artifacts and stored bytes since the last gc, and not what it left."""
    clock = FakeClock()
    with memory_store(clock=clock) as store:
        roots = FakeRoots(store)
        policy = Policy(auto=AutoPolicy(min_interval=0, after_artifacts=3, after_bytes=10**6))
        assert store.gc_due(roots, policy=policy).due
        roots.append("run", *(store.put(b"%d" % n) for n in range(5)))
        store.gc(roots)
        assert not store.gc_due(roots, policy=policy).due
        store.put_many([b"a", b"b", b"0"])
        assert "2 new artifacts" in store.gc_due(roots, policy=policy).reason
        store.put(b"c")
        assert store.gc_due(roots, policy=policy).due
        store.gc(roots)
        store.put(bytes(range(256)) * 8)
        assert store.gc_due(roots, policy=policy.changed(auto=AutoPolicy(min_interval=0, after_bytes=20))).due
        assert store.gc_history()[0].left_bytes > 0


def test_runs_count_when_their_retention_is_over() -> None:
    """Not when they end, unless a number of runs is kept: then each end lets an older one go."""
    clock = FakeClock()
    with memory_store(clock=clock) as store:
        roots = FakeRoots(store)
        auto = AutoPolicy(min_interval=0, after_runs=1, max_interval=1000 * DAY)
        policy = Policy(keep_completed=2 * DAY, keep_failed=5 * DAY, auto=auto)
        store.gc(roots)
        clock.advance(60)
        for run, status in (("a", "completed"), ("b", "failed")):
            roots.append(run, store.put(run.encode()))
            roots.complete(run, at_ms=int(clock.now * 1000), status=status)
        assert not store.gc_due(roots, policy=policy).due
        assert store.gc_due(roots, policy=policy.changed(keep_last=1)).due
        clock.advance(2 * DAY)
        assert not store.gc_due(roots, policy=policy).due  # to the second: it is kept yet
        clock.advance(1)
        assert "1 new runs past" in store.gc_due(roots, policy=policy).reason
        store.gc(roots, policy=policy)
        assert not store.gc_due(roots, policy=policy).due
        clock.advance(3 * DAY)
        assert store.gc_due(roots, policy=policy).due
        assert len(store.gc(roots, policy=policy).removed) == 1 and len(store) == 0


def test_a_journal_counts_its_runs(tmp_path: Path) -> None:
    """From an index, whatever the number of runs."""
    clock = FakeClock()
    with (
        casstore.open(tmp_path / "home", clock=clock) as store,
        journal.open(tmp_path / "home", store=store, clock=clock) as jrn,
    ):
        assert isinstance(jrn, casstore.EndingSource)
        times = []
        for n in range(4):
            run = jrn.start_run("op", manifest={"n": n}, context={})
            run.complete() if n % 2 else run.cancel("x")
            times.append(int(clock.now * 1000))
            clock.advance(1)
        assert jrn.ended_between("completed", 0, times[3]) == 2
        assert jrn.ended_between("completed", times[1], times[3]) == 1
        assert jrn.ended_between("completed", times[1] - 1, times[3] - 1) == 1
        assert jrn.ended_between("cancelled", -5, -1) == 0 == jrn.ended_between("failed", 0, times[3])


def test_over_the_quota_is_worth_it_once() -> None:
    """What a gc could not bring below it does not ask for the next one at once."""
    with memory_store(clock=FakeClock()) as store:
        roots = FakeRoots(store)
        policy = Policy(quota=10, auto=AutoPolicy(min_interval=0))
        store.gc(roots, policy=policy)
        roots.append("run", store.put(bytes(range(200))))
        assert "over the quota" in store.gc_due(roots, policy=policy).reason
        assert store.gc(roots, policy=policy).over_quota_bytes > 0
        assert not store.gc_due(roots, policy=policy).due


# -- the thread ------------------------------------------------------------------------------------------


@pytest.fixture
def world() -> Any:
    clock = FakeClock()
    with memory_store(clock=clock) as store:
        yield store, FakeRoots(store), clock


def test_a_tick_collects_where_it_is_worth_it(world: Any) -> None:
    """And says why it did or did not; no thread is needed for it."""
    store, roots, _ = world
    ticks: list[casstore.Tick] = []
    maintenance = Maintenance(store, roots, policy=EAGER, on_tick=ticks.append)
    store.put(b"loose")
    tick = maintenance.tick()
    assert tick.due.due and tick.report is not None and len(tick.report.removed) == 1 and len(store) == 0
    assert maintenance.tick().report is None and ticks[1].due.reason
    assert ticks[-1] is maintenance.last_tick and maintenance.last_error is None
    maintenance.close()


def test_errors_are_told_and_kept_until_a_look_goes_well(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the callback and as last_error; nothing is removed, and the next tick tries again."""
    store, roots, _ = world
    store.put(b"loose")
    errors: list[Exception] = []
    maintenance = Maintenance(store, roots, policy=EAGER, on_error=errors.append)
    with monkeypatch.context() as patch:
        patch.setattr(roots, "live_roots", lambda **_: 1 // 0)
        patch.setattr(roots, "retained_roots", lambda _: 1 // 0)
        tick = maintenance.tick()
    assert isinstance(tick.error, GcRefused) and errors == [tick.error] and maintenance.last_error is tick.error
    assert tick.report is None and len(store) == 1
    assert maintenance.tick().report is not None and maintenance.last_error is None and len(errors) == 1


def test_a_listener_that_fails_is_an_error_like_others(world: Any) -> None:
    """It ends nothing and is not lost."""
    store, roots, _ = world
    errors: list[Exception] = []
    maintenance = Maintenance(store, roots, policy=EAGER, on_tick=lambda _: 1 // 0, on_error=errors.append)
    assert maintenance.tick().report is not None
    assert isinstance(maintenance.last_error, ZeroDivisionError) and errors == [maintenance.last_error]
    bad = Maintenance(store, FakeRoots(memory_store()), policy=EAGER, on_error=lambda _: 1 // 0)
    assert isinstance(bad.tick().error, GcRefused) and isinstance(bad.last_error, ZeroDivisionError)


def test_another_collector_is_no_error(tmp_path: Path) -> None:
    """It does what was wanted."""
    with journal.open(tmp_path / "home") as jrn:
        jrn.store.put(b"loose")
        maintenance = Maintenance(jrn.store, jrn, policy=EAGER)
        with collector_lock(tmp_path / "home"):
            with pytest.raises(Busy):
                jrn.store.gc(jrn)
            tick = maintenance.tick()
        assert tick.error is None and "another gc" in tick.due.reason and len(jrn.store) == 1


def test_the_policy_of_the_home_is_read_at_each_look(tmp_path: Path) -> None:
    """A file that is wrong is an error that names its key; put right, the next look goes by it."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        jrn.store.put(b"loose")
        maintenance = Maintenance(jrn.store, jrn)
        (home / "gc.toml").write_text("[auto]\nafter_runs = true\n")
        error = maintenance.tick().error
        assert isinstance(error, InvalidPolicy) and error.fields["key"] == "auto.after_runs"
        (home / "gc.toml").write_text('grace = "0s"\n')
        report = maintenance.tick().report
        assert report is not None and len(report.removed) == 1


def test_the_block_runs_one_thread_and_leaves_none(tmp_path: Path) -> None:
    """The first look is at once; claims of runs are not touched; after the block nothing is left."""
    looked = threading.Event()
    threads = set(threading.enumerate())
    with journal.open(tmp_path / "home") as jrn:
        run = jrn.start_run("op", manifest={}, context={})
        before = jrn._backend.look  # the claim, before and after
        with before() as look:
            claim = look.claim(1)
        loose = jrn.store.put(b"loose")
        with Maintenance(jrn.store, jrn, policy=EAGER, every=3600, on_tick=lambda _: looked.set()) as maintenance:
            maintenance.start()
            assert [thread.name for thread in set(threading.enumerate()) - threads].count("casstore-maintenance") == 1
            assert looked.wait(60)
        assert loose not in jrn.store and maintenance.last_error is None
        with before() as look:
            assert look.claim(1) == claim and claim is not None
        assert not [t for t in set(threading.enumerate()) - threads if t.name == "casstore-maintenance"]
        maintenance.close()
        maintenance.start()  # closed is closed
        assert not [t for t in set(threading.enumerate()) - threads if t.name == "casstore-maintenance"]
        run.complete()


def test_closing_stops_a_gc_under_way(world: Any) -> None:
    """At its next batch, and the thread is waited for."""
    store, roots, _ = world
    store.put_many([b"%d" % n for n in range(50)])
    inside, closing = threading.Event(), threading.Event()

    def listener(step: str) -> None:
        if step == "gc.marked":
            inside.set()
            assert closing.wait(60)

    maintenance = Maintenance(store, roots, policy=EAGER)
    steps.listen(listener)
    try:
        maintenance.start()
        assert inside.wait(60)
        maintenance._stop.set()  # what close does first; it then waits for the thread, which waits for us
        closing.set()
        maintenance.close()
    finally:
        steps.listen(None)
    tick = maintenance.last_tick
    assert tick is not None and tick.report is not None and tick.report.stopped == "asked" and len(store) == 50


def test_a_store_that_was_closed_before_ends_the_thread(tmp_path: Path) -> None:
    """Told once, and not every minute."""
    errors: list[Exception] = []
    store = casstore.open(tmp_path / "home")
    maintenance = Maintenance(store, FakeRoots(store), every=0.001, on_error=errors.append)
    store.close()
    maintenance.start()
    assert maintenance._thread is not None
    maintenance._thread.join(60)
    assert not maintenance._thread.is_alive() and len(errors) == 1
    assert isinstance(maintenance.last_error, casstore.ClosedHandle)
    maintenance.close()


def test_the_interval_is_checked(world: Any) -> None:
    """Before any thread."""
    store, roots, _ = world
    for wrong in (0, -1, "1m", True, None):
        with pytest.raises(InvalidArgument):
            Maintenance(store, roots, every=wrong)


# -- the command -----------------------------------------------------------------------------------------


def test_a_quarantine_that_ended_is_worth_a_gc() -> None:
    """Its bytes are all that there is to take: once, however little came since."""
    clock = FakeClock()
    with memory_store(clock=clock) as store:
        roots = FakeRoots(store)
        store.put(b"x" * 1000)
        policy = Policy(grace=0, quarantine=DAY, auto=AutoPolicy(min_interval=0, max_interval=1000 * DAY))
        assert len(store.gc(roots, policy=policy, force=True).removed) == 1
        clock.now += DAY - 10
        assert not store.gc_due(roots, policy=policy).due
        clock.now += 20
        due = store.gc_due(roots, policy=policy)
        assert due.due and due.reason == "the quarantine of what was removed has ended"
        assert store.stats().kept_bytes > 0
        store.gc(roots, policy=policy)
        assert store.stats().kept_bytes == 0 and not store.gc_due(roots, policy=policy).due



def test_the_command(tmp_path: Path) -> None:
    """gc --auto: says why it did or did not, exits with 0 either way, for people and as JSON."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        jrn.store.put(b"loose")

    def run(*arguments: str) -> str:
        done = command_line("gc", "--auto", *arguments, home=home)
        assert (done.code, done.err) == (0, "")
        return done.out

    assert "worth it: there was no gc yet" in run("--grace", "0s").splitlines()[0]
    assert run().startswith("not worth it: gc 1 of ")
    assert json.loads(run("--json"))["due"] is False
    (home / "gc.toml").write_text("[auto]\nmin_interval = 0\nmax_interval = 0\n")
    document = json.loads(run("--json"))
    assert document["due"] is True and document["removed"] == 0 and "max_interval" in document["reason"]
