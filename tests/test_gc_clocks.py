"""Leases and clocks: who slept past a lease is told, and a clock that jumps loses nothing that is live."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_whole

import casstore
import journal
from casstore import ArtifactId, Collected, LeaseLost, MissingArtifact, NotFound, steps
from casstore.testing import FakeClock, FakeRoots
from journal import DomainEvent, Journal

DAY = 86400
JUMPS = (-DAY, DAY)
PLAN = [f"flow.step.s{n}" for n in range(4)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Journal, FakeClock]]:
    clock = FakeClock()
    with (
        casstore.open(tmp_path / "home", clock=clock) as store,
        journal.open(tmp_path / "home", store=store, clock=clock) as jrn,
    ):
        yield jrn, clock


@pytest.fixture(autouse=True)
def no_listener() -> Iterator[None]:
    yield
    steps.listen(None)


def collect(jrn: Journal, **options: Any) -> casstore.GcReport:
    return jrn.store.gc(jrn, **{"grace": 0, "keep_completed": 0, **options})


# -- leases ----------------------------------------------------------------------------------------------


def test_a_writer_that_slept_past_its_lease_is_told_at_each_use(world: Any) -> None:
    """Put, put_value, add and renew; the run that it wanted to write names nothing that is missing."""
    jrn, clock = world
    run = jrn.start_run("op", manifest={"n": 1}, context={"n": 2})
    lease = jrn.store.lease(60)
    child = lease.put(b"child")
    parent = lease.put_value({"child": child})
    clock.advance(2 * 3600)
    collect(jrn)
    assert child not in jrn.store and parent not in jrn.store
    kept = run.state.manifest_id
    for use in (
        lambda: lease.put(b"child"), lambda: lease.put_value({"n": 1}), lambda: lease.add(kept), lease.renew,
        lambda: lease.put(b"x" * (3 << 20)),
    ):  # fmt: skip
        with pytest.raises(LeaseLost) as error:
            use()
        assert error.value.fields["lease"] == lease.name
    head = jrn.head(run.run_id)
    with pytest.raises(MissingArtifact) as missing:
        run.emit("made", {"link": parent})
    assert missing.value.fields["id"] == parent and jrn.head(run.run_id) == head
    lease.close()
    with jrn.store.lease(60) as again:  # the way out: begin again
        again.put(b"child")
        assert again.put_value({"child": child}) == parent
        run = jrn.resume(run.run_id, steal=True)
        run.emit("made", {"link": parent})
    collect(jrn)
    assert jrn.store.get(child) == b"child"
    assert_whole(jrn)


def test_an_expired_lease_that_no_gc_saw_still_holds(world: Any) -> None:
    """Time alone takes nothing: renewed, it holds as before."""
    jrn, clock = world
    with jrn.store.lease(60) as lease:
        child = lease.put(b"child")
        clock.advance(10 * DAY)
        assert lease.put_value([child]) in jrn.store
        lease.renew()
        collect(jrn)
        assert jrn.store.get(child) == b"child"


@pytest.mark.parametrize("step", ["gc.opened", "gc.position", "gc.rooted", "gc.marked", "gc.before_batch", "gc.closed"])
def test_a_lease_lost_while_a_gc_is_open(world: Any, step: str) -> None:
    """The gc that finds it expired takes it in its first transaction: after that no use of it goes well, and before
    it the renewal holds everything."""
    jrn, clock = world
    lease = jrn.store.lease(60)
    child = lease.put(b"child")
    parent = lease.put_value([child])
    clock.advance(61)
    seen: list[str] = []

    def listener(at: str) -> None:
        if at == step:
            seen.append(at)
            with pytest.raises(LeaseLost):
                lease.renew()
            with pytest.raises(LeaseLost):
                lease.add(parent)

    steps.listen(listener)
    collect(jrn)
    steps.listen(None)
    assert seen and parent not in jrn.store and child not in jrn.store
    assert jrn.store.verify().ok


def test_what_a_run_names_outlives_the_lease_that_held_it(world: Any) -> None:
    """Handed over in time: lease, then event; the lease may be lost then."""
    jrn, clock = world
    run = jrn.start_run("op", manifest={"n": 1}, context={"n": 2})
    lease = jrn.store.lease(60)
    child = lease.put(b"child")
    parent = lease.put_value([child])
    run.emit("made", {"link": parent})
    clock.advance(DAY)
    collect(jrn)
    with pytest.raises(LeaseLost):
        lease.renew()
    assert jrn.store.get(child) == b"child"
    assert_whole(jrn)


# -- clocks ----------------------------------------------------------------------------------------------


def live(jrn: Journal) -> set[ArtifactId]:
    return {root.id for root in jrn.live_roots(completed_after_ms=None)}


def step_of(jrn: Journal, run: journal.Run, n: int) -> journal.Run:
    """One state of a run, by a claim that may have expired or be of the future."""
    if run.status is not None or run.next is None:
        return run
    with run.enter(run.next) as attempt:
        attempt.output(b"output %d" % n)
        attempt.complete({"n": n, "of": "x" * 2000})
    return run


@pytest.mark.parametrize(("first", "second", "grace"), [(a, b, g) for a, b in product(JUMPS, JUMPS) for g in (0, 3600)])
def test_a_clock_that_jumps_between_gcs(world: Any, first: int, second: int, grace: int) -> None:
    """By a day, forward or back, twice: what live runs and pins need is there after each gc."""
    jrn, clock = world
    run = jrn.start_run("op", manifest={"n": 1}, context={"n": 0}, plan=PLAN)
    pinned = jrn.store.put(b"pinned")
    jrn.store.pin("pin", pinned)
    for n, jump in enumerate((0, first, second, 0)):
        clock.advance(jump)
        run = step_of(jrn, run, n)
        jrn.store.put(b"loose %d" % n)
        needed = live(jrn)
        collect(jrn, grace=grace)
        assert needed <= set(jrn.store) and jrn.store.get(pinned) == b"pinned"
        assert_whole(jrn)
    run.complete()
    clock.advance(2 * DAY)
    collect(jrn, grace=grace)
    clock.advance(3600)
    collect(jrn, grace=0)
    assert set(jrn.store) == {pinned}  # and nothing stays for ever because of it


GC_STEPS = ("gc.opened", "gc.position", "gc.rooted", "gc.marked", "gc.before_batch", "gc.locked", "gc.after_batch")


@pytest.mark.parametrize(("step", "jump"), [(step, jump) for step in GC_STEPS for jump in JUMPS])
def test_a_clock_that_jumps_during_a_gc(world: Any, monkeypatch: pytest.MonkeyPatch, step: str, jump: int) -> None:
    """And a writer that goes on right then, with what gc is about to take: a hit, a new parent, an event."""
    monkeypatch.setattr("casstore.gc.BATCH_ROWS", 1)
    jrn, clock = world
    run = jrn.start_run("op", manifest={"n": 1}, context={"n": 0}, plan=PLAN)
    store = jrn.store
    child = store.put(b"old child")
    parent = store.put_value({"child": child})
    loose = [store.put(b"loose %d" % n) for n in range(3)]
    clock.advance(7200)
    seen: list[str] = []

    def listener(at: str) -> None:
        if at != step or seen:
            return
        seen.append(at)
        clock.advance(jump)
        if step == "gc.locked":
            return  # nobody appends while the journal's lock is held
        try:
            store.put_value({"child": child})  # a hit, or new
        except casstore.MissingArtifact:
            store.put(b"old child")
            store.put_value({"child": child})
        run.emit("made", {"link": parent})

    steps.listen(listener)
    collect(jrn, grace=3600)
    steps.listen(None)
    assert seen
    if step != "gc.locked":
        assert store.get(child) == b"old child" and store.get_value(parent) == {"child": child}
    assert live(jrn) <= set(store)
    assert_whole(jrn)
    collect(jrn, grace=0)
    assert_whole(jrn)
    assert not set(loose) & set(store)


@pytest.mark.parametrize("jump", JUMPS)
def test_a_put_beside_a_jump_is_safe_by_the_order_of_commits(world: Any, jump: int) -> None:
    """What a put returned is not taken by a gc that was open then, whatever its clock says now (I6)."""
    jrn, clock = world
    store, roots = jrn.store, FakeRoots(jrn.store)
    name = store.put(b"x")
    clock.advance(7200)
    seen: list[ArtifactId] = []

    def listener(at: str) -> None:
        if at == "gc.marked":
            clock.advance(jump)
            seen.append(store.put(b"x"))

    steps.listen(listener)
    store.gc(roots, grace=3600)
    steps.listen(None)
    assert seen == [name] and store.get(name) == b"x"


@pytest.mark.parametrize("jump", JUMPS)
def test_a_quarantine_under_a_clock_that_jumps(world: Any, jump: int) -> None:
    """It may end early or late: what is brought back is whole, and what is gone says so."""
    jrn, clock = world
    child = jrn.store.put(b"child")
    parent = jrn.store.put_value([child])
    collect(jrn, quarantine=3600)
    clock.advance(jump)
    collect(jrn, quarantine=3600)
    try:
        jrn.store.undelete([parent])
    except Collected:
        assert jump > 0
        with pytest.raises(NotFound):
            jrn.store.get(parent)
    else:
        assert jump < 0 and jrn.store.get(child) == b"child" and jrn.store.get_value(parent) == [child]
    assert jrn.store.verify().ok


def test_an_event_of_a_run_is_refused_where_a_jump_took_what_it_names(world: Any) -> None:
    """Put, a day passes for the gc's clock, append: refused whole, and well once it is put again."""
    jrn, clock = world
    run_id = jrn.start_run("op", manifest={"n": 1}, context={"n": 2}, claim=False).run_id
    name = jrn.store.put(b"named late")
    clock.advance(DAY)
    collect(jrn, grace=3600)
    head = jrn.head(run_id)
    with pytest.raises(MissingArtifact):
        jrn.append(run_id, head, [DomainEvent("note", {"link": name})])
    assert jrn.head(run_id) == head
    jrn.store.put(b"named late")
    jrn.append(run_id, head, [DomainEvent("note", {"link": name})])
    clock.advance(-2 * DAY)
    collect(jrn)
    assert jrn.store.get(name) == b"named late"
