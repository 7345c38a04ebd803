"""Staged rows: what small artifacts that come with an append are, for readers, for gc, and after a kill (docs/GC.md,
"Staged rows"). The holes H25 to H28 are each made to happen, with the rule and without it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import casstore
import journal
from casstore import ArtifactId, Corrupt, NotFound
from casstore.gc import Collector
from casstore.items import PutItem
from casstore.stage import ROWS_MAX, TABLE, Stage, Staged
from casstore.staging import Staging
from casstore.testing import FakeClock
from casstore.writing import _whole
from journal.admission import ClaimRequest
from journal.testing import memory_journal
from tests.helpers import assert_whole, at_step, python

CONTEXT = {"messages": [f"message {n} of a context that is long enough to be worth a delta" for n in range(300)]}
RUN = UUID(int=7)


@pytest.fixture(params=["lmdb", "memory"])
def jrn(request: Any, tmp_path: Path) -> Iterator[journal.Journal]:
    clock = FakeClock()
    opened = journal.open(tmp_path / "home", clock=clock) if request.param == "lmdb" else memory_journal(clock=clock)
    with opened as jrn:
        yield jrn


def grown(n: int) -> dict[str, Any]:
    return {**CONTEXT, "messages": [*CONTEXT["messages"], *(f"and message {k}" for k in range(n))]}


def run_of(jrn: journal.Journal, count: int, run_id: UUID = RUN) -> list[ArtifactId]:
    """A live run with an open attempt after `count` steps; its snapshots."""
    run = jrn.start_run("staged", manifest={"of": str(run_id)}, context=grown(0), run_id=run_id)
    attempt, ids = run.enter("s.step.n0"), []
    for n in range(count):
        ids.append(attempt.complete(grown(n + 1), then=f"s.step.n{n + 1}"))
        attempt = run.enter(f"s.step.n{n + 1}")
    return ids


def commits(jrn: journal.Journal) -> int:
    return jrn.store.stats().commits


def staged(jrn: journal.Journal) -> int:
    return jrn.store.stats().staged


# -- what it is for -------------------------------------------------------------------------------------------


def test_a_durable_step_writes_into_the_journal_alone(jrn: journal.Journal) -> None:
    """A step with `then=` commits the journal once and the store not at all, but for a settling now and then."""
    run_of(jrn, 1)
    before, position = commits(jrn), jrn.position()
    run = jrn.resume(RUN, steal=True)
    attempt = run.enter(run.next) if run.next else None
    assert attempt is not None
    for n in range(12):
        attempt.fact(f"fact {n}", {"n": n})
        attempt.complete(grown(n + 2), then=f"s.again.n{n}")
        attempt = run.enter(f"s.again.n{n}")
    assert commits(jrn) == before
    assert jrn.position() > position + 36 and staged(jrn) == 3 + 24


def test_settling_comes_often_enough_and_seldom_enough(jrn: journal.Journal) -> None:
    """Over a long run the stage stays small, and the store commits at most once in 16 steps."""
    before = commits(jrn)
    run = jrn.start_run("staged", manifest={}, context=grown(0), run_id=RUN)
    attempt = run.enter("s.step.n0")
    for n in range(200):
        attempt.complete(grown(n + 1), then=f"s.step.n{n + 1}")
        attempt = run.enter(f"s.step.n{n + 1}")
        assert staged(jrn) <= 32
    assert commits(jrn) - before <= 200 // 16
    assert_whole(jrn)


def test_many_at_a_time_never_pass_the_bound(jrn: journal.Journal) -> None:
    """Appends that bring thousands of artifacts stage up to the bound, and put what is more into the store."""
    run = jrn.start_run("staged", manifest={}, context={}, run_id=RUN)
    for size in (ROWS_MAX - 10, 5, 30, ROWS_MAX + 1):
        puts = [jrn.store.prepare_value({"size": size, "n": n}) for n in range(size)]
        ids = [put.id for put in puts if not isinstance(put, ArtifactId)]
        jrn.append(RUN, run.head, [journal.DomainEvent("many", {"ids": ids[:20]})], epoch=run.epoch, puts=puts)  # type: ignore[arg-type]
        run = jrn.resume(RUN, steal=True)
        assert staged(jrn) <= ROWS_MAX
        assert all(name in jrn.store for name in ids)
    assert_whole(jrn)


# -- readers --------------------------------------------------------------------------------------------------


def test_readers_find_what_is_staged(jrn: journal.Journal) -> None:
    """Every way to look at an artifact says the same before and after settling."""
    ids, store = run_of(jrn, 12), jrn.store
    assert staged(jrn) > 5

    def looks() -> Any:
        return (
            [store.get_value(name) for name in ids], [store.get_range(name, 5, 20) for name in ids],
            [store.open_reader(name).read() for name in ids], [name in store for name in ids],
            sorted(store), len(store), [store.resolve(str(name)[:16]) for name in ids],
            [store.resolve(str(name)) for name in ids],
            [(info.id, info.kinds, info.size_bytes, info.encoding, info.chain, info.base, info.links)
             for info in map(store.info, ids)],
            store.verify().findings, jrn.verify(),
        )  # fmt: skip

    before = looks()
    assert len(before[4]) == before[5] > 12
    assert store.staging.settle() > 5 and staged(jrn) == 0
    assert looks() == before
    assert store.staging.settle() == 0
    assert before[0] == [grown(n + 1) for n in range(12)]


def test_other_handles_find_what_is_staged(tmp_path: Path) -> None:
    """A store alone, read-only or not, in this process or another; and `why` says that it is staged."""
    with journal.open(tmp_path / "home") as jrn:
        name = run_of(jrn, 3)[-1]
        assert staged(jrn) > 0
        with casstore.open(tmp_path / "home") as store:
            assert store.get_value(name) == grown(3)
            assert "staged" in store.why(name, jrn).detail
        code = (
            "import sys, casstore\n"
            "for read_only in (False, True):\n"
            "    with casstore.open(sys.argv[1], read_only=read_only, create=False) as store:\n"
            "        name = casstore.ArtifactId.parse(sys.argv[2])\n"
            "        assert name in store and store.info(name).size_bytes == len(store.get(name))\n"
            "        assert store.verify().ok and store.stats().staged > 0, store.verify()\n"
        )
        child = python(code, tmp_path / "home", name)
        child.communicate()
        assert child.returncode == 0
    with casstore.open(tmp_path / "home") as store:
        assert store.stats().staged == 0, "closing settles"
        assert store.get_value(name) == grown(3)


def test_a_reader_between_two_looks_finds_it(jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settled after the look at the store and before the one at the stage: the third look finds it."""
    run_of(jrn, 3)
    jrn.store.staging.settle()
    find = Stage.find

    def settled_first(self: Stage, digest: bytes) -> Staged | None:
        monkeypatch.setattr(Stage, "find", find)
        jrn.store.staging.settle()
        return find(self, digest)

    run = jrn.resume(RUN, steal=True)
    for n, look in enumerate((jrn.store.get, jrn.store.info, jrn.store.__contains__, jrn.store.open_reader)):
        name = run.enter(f"s.look.n{n}" if n else str(run.next)).complete(grown(50 + n))
        assert staged(jrn) == 1
        monkeypatch.setattr(Stage, "find", settled_first)
        assert look(name)
        assert Stage.find is find and staged(jrn) == 0


def test_a_reader_begins_again_where_a_base_went_meanwhile(
    jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row was read, then it was settled whole and its base collected: it is found in the store."""
    base = old(jrn, grown(0))
    run = jrn.start_run("staged", manifest={}, context={}, run_id=RUN)
    name = stage(jrn, run, grown(1), base=base)
    assert jrn.store.info(name).base == base
    find = Stage.find

    def then_settled(self: Stage, digest: bytes) -> Staged | None:
        found = find(self, digest)
        if digest == name.digest and found is not None:
            monkeypatch.setattr(Stage, "find", find)
            jrn.store._reader._recent.__init__()  # type: ignore[misc]
            data = jrn.store.get(name)
            jrn.store._backend.put([_whole(PutItem(data=data), name.digest, ())], 0, None)
            jrn.store.staging.settle()
            jrn.store.gc(jrn, grace=0, force=True)
            assert base not in jrn.store
            jrn.store._reader._recent.__init__()  # type: ignore[misc]
        return found

    monkeypatch.setattr(Stage, "find", then_settled)
    assert jrn.store.get_value(name) == grown(1)


def test_an_append_without_events_stages_nothing(jrn: journal.Journal) -> None:
    """Rows are ordered by positions of events: two could not be told apart, and gc would miss the later one."""
    run = jrn.start_run("staged", manifest={}, context={}, run_id=RUN, claim=False)
    before = staged(jrn)
    prepared = jrn.store.prepare_value({"n": 1})
    assert not isinstance(prepared, ArtifactId)
    jrn.append(RUN, run.head, [], puts=[prepared], claim=ClaimRequest())
    assert staged(jrn) <= before and prepared.id in jrn.store and jrn.store.staging.info(prepared.id.digest) is None


def test_a_damaged_row_is_named_and_the_rest_reads(tmp_path: Path) -> None:
    """Of a damaged staged row get says Corrupt, verify names it and what is built on it, and appends go on."""
    with journal.open(tmp_path / "home") as jrn:
        ids = run_of(jrn, 4)
        tables = jrn._backend._tables  # type: ignore[attr-defined]
        with tables.write() as txn:
            row = Staged.unpack(ids[1].digest, txn.get(TABLE, ids[1].digest))
            txn.put(TABLE, ids[1].digest, row._replace(stored=row.stored[:-3] + b"xyz").pack())
        fresh = jrn.store.verify()
        assert {found.id for found in fresh.findings} >= {ids[1]}
        with journal.open(tmp_path / "home", store=jrn.store) as other, pytest.raises(Corrupt):
            other.store._reader.get(ids[1].digest, fresh=True)
        assert jrn.store.get_value(ids[0]) == grown(1)
        run = jrn.resume(RUN, steal=True)
        run.abandon()
        for n in range(40):
            run.emit("goes on", {"n": n})


# -- what needs the store settles first -----------------------------------------------------------------------


def test_what_links_to_a_staged_artifact_goes_into_the_store_after_it(jrn: journal.Journal) -> None:
    """put_value, put_many, a large value, pin, lease.add, and a delta against a staged base."""
    store = jrn.store
    first, second, third, fourth, fifth = run_of(jrn, 5)
    parent = store.put_value({"child": first})
    assert store.info(parent).links == (first,)
    store.pin("kept", second)
    with store.lease(ttl=60) as lease:
        lease.add(third)
        lease.put_value([fourth])
        large = store.put_value({"child": fifth, "data": os.urandom(2 << 20)})
    assert store.info(large).links == (fifth,)
    assert store.verify().findings == ()
    delta = store.put(store.get(run_of(jrn, 3, UUID(int=8))[-1]) + b"!", base=fifth)
    assert store.info(delta).chain > 0
    assert_whole(jrn)


def test_a_large_snapshot_takes_the_staged_ones_along(jrn: journal.Journal) -> None:
    """A delta that is too large for the stage, against a staged base, stays a delta."""
    context = {"a": os.urandom(60_000)}
    run = jrn.start_run("staged", manifest={}, context=context, run_id=RUN)
    run.enter("s.step.n0").complete({**context, "b": 1}, then="s.step.n1")
    assert staged(jrn) == 1, "the manifest went with the first context"
    context["c"] = os.urandom(5000)
    name = run.enter("s.step.n1").complete(context)
    info = jrn.store.info(name)
    assert info.chain == 2 and info.encoding == "segments"
    assert jrn.store.get_value(name) == context
    assert_whole(jrn)


def test_export_backup_and_compact_have_what_is_staged(tmp_path: Path) -> None:
    """The closure of a CAR file, a backup that is taken meanwhile, and a compacted store."""
    with journal.open(tmp_path / "home") as jrn:
        ids = run_of(jrn, 6)
        assert jrn.store.export(ids, tmp_path / "some.car").artifacts == 6
        run = jrn.resume(RUN, steal=True)
        with pytest.raises(RuntimeError, match="left"), run.enter(str(run.next)):
            raise RuntimeError("left")
        jrn.backup(tmp_path / "copy")
        jrn.store.compact()
        assert_whole(jrn)
        jrn.export(RUN, tmp_path / "run.car")
    with journal.open(tmp_path / "copy") as copy:
        assert_whole(copy)
        assert [copy.store.get_value(name) for name in ids] == [grown(n + 1) for n in range(6)]
    with journal.open(tmp_path / "new") as new:
        new.import_(tmp_path / "run.car")
        assert_whole(new)


# -- gc -------------------------------------------------------------------------------------------------------


def at(step: str, action: Callable[[], None], run: Callable[[], Any]) -> Any:
    """Run something; the first time that it reaches the step the action runs."""
    with at_step(step, action) as done:
        result = run()
    assert done, f"{step} was not reached"
    return result


def old(jrn: journal.Journal, value: object) -> ArtifactId:
    """An artifact that nothing names, from long ago."""
    name = jrn.store.put_value(value)
    jrn._clock.advance(7200)  # type: ignore[attr-defined]
    return name


def stage(jrn: journal.Journal, run: journal.Run, value: object, base: ArtifactId | None = None) -> ArtifactId:
    prepared = jrn.store.prepare_value(value, base=base)
    assert not isinstance(prepared, ArtifactId) and prepared.can_stage
    event = journal.DomainEvent("names", {}, prepared.id)
    jrn.append(run.run_id, jrn.head(run.run_id), [event], epoch=run.epoch, puts=[prepared])
    return prepared.id


GC_STEPS = ["gc.opened", "gc.position", "gc.rooted", "gc.marked", "gc.before_batch"]


@pytest.mark.parametrize("step", GC_STEPS)
def test_h25_what_a_staged_row_needs_is_a_root(jrn: journal.Journal, step: str) -> None:
    """Staged while a gc runs, at each of its steps: its child and its base are not taken."""
    child, base = old(jrn, "a child"), old(jrn, grown(0))
    run = jrn.start_run("staged", manifest={}, context={}, run_id=RUN)
    names: list[ArtifactId] = []

    def append() -> None:
        names.append(stage(jrn, run, {"child": child}))
        names.append(stage(jrn, run, grown(1), base=base))
        assert staged(jrn) >= 2

    at(step, append, lambda: jrn.store.gc(jrn, grace=0, force=True))
    assert jrn.store.get_value(names[0]) == {"child": child}
    assert jrn.store.get_value(child) == "a child" and base in jrn.store
    assert jrn.store.get_value(names[1]) == grown(1)
    assert_whole(jrn)


def test_h25_without_the_rule_the_child_is_lost(jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gc that does not read the edges of staged rows takes what they need."""
    monkeypatch.setattr(Collector, "_late_staged", lambda self: [])
    child = old(jrn, "a child")
    run = jrn.start_run("staged", manifest={}, context={}, run_id=RUN)

    def append() -> None:
        stage(jrn, run, {"child": child})

    at("gc.marked", append, lambda: jrn.store.gc(jrn, grace=0, force=True))
    assert child not in jrn.store and "missing_need" in {found.code for found in jrn.store.verify().findings}


def test_h25_an_append_refuses_a_row_whose_need_is_gone(jrn: journal.Journal) -> None:
    """Prepared before gc took the child or the base: MissingArtifact, nothing is written."""
    run = jrn.start_run("staged", manifest={}, context={}, run_id=RUN)
    for links in (True, False):
        need = old(jrn, grown(0))
        prepared = jrn.store.prepare_value({"child": need} if links else grown(1), base=need)
        assert not isinstance(prepared, ArtifactId) and need in prepared.needs
        jrn.store.gc(jrn, grace=0, force=True)
        event = journal.DomainEvent("names", {}, prepared.id)
        with pytest.raises(casstore.MissingArtifact):
            jrn.append(RUN, run.head, [event], epoch=run.epoch, puts=[prepared])
        assert jrn.head(RUN) == run.head and prepared.id not in jrn.store


def test_the_recorder_puts_again_what_lost_its_base(jrn: journal.Journal) -> None:
    """An attempt's base cannot go while the run lives; a fact's payload that was there already can."""
    run = jrn.start_run("staged", manifest={}, context={}, run_id=RUN)
    attempt = run.enter("s.step.a")
    price = old(jrn, {"price": 17})
    at("append.asked", lambda: jrn.store.gc(jrn, grace=0, force=True) and None,
       lambda: attempt.fact("price", {"price": 17}))  # fmt: skip
    assert jrn.store.get_value(price) == {"price": 17}
    assert_whole(jrn)


@pytest.mark.parametrize("ruled", [True, False])
def test_h26_a_staged_row_is_a_root_after_its_run(
    jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch, ruled: bool
) -> None:
    """Staged by a run that has ended, then named by another: what it needs is still there."""
    child = old(jrn, "a child")
    first = jrn.start_run("staged", manifest={}, context={}, run_id=RUN)
    name = stage(jrn, first, {"child": child})
    jrn.cancel(RUN)
    if not ruled:
        monkeypatch.setattr(Collector, "_late_staged", lambda self: [])
    monkeypatch.setattr(Staging, "settle", lambda self: 0)  # only politeness
    jrn.store.gc(jrn, grace=0, keep_completed=0, force=True)
    monkeypatch.undo()
    second = jrn.start_run("staged", manifest={}, context={}, run_id=UUID(int=9))
    jrn.append(second.run_id, second.head, [journal.DomainEvent("names", {}, name)], epoch=second.epoch)
    if ruled:
        assert_whole(jrn)
        assert jrn.store.get_value(child) == "a child"
    else:
        with pytest.raises(NotFound):
            jrn.store.get(child)


def test_a_damaged_position_hides_no_later_row_from_gc(
    jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row whose position is said to be in the future, and one that is staged after gc saw it."""
    child = old(jrn, "a child")
    run = jrn.start_run("staged", manifest={}, context={}, run_id=RUN)
    first = stage(jrn, run, {"n": 1})
    with jrn._backend._tables.write() as t:  # type: ignore[attr-defined]
        data = t.get(TABLE, first.digest)
        t.put(TABLE, first.digest, (1 << 62).to_bytes(8, "big") + data[8:])
    monkeypatch.setattr(Staging, "settle", lambda self: 0)  # else the damaged row is gone before gc looks

    def append() -> None:
        stage(jrn, run, {"child": child})

    at("gc.marked", append, lambda: jrn.store.gc(jrn, grace=0, force=True))
    assert jrn.store.get_value(child) == "a child"


def test_what_came_late_to_a_batch_without_room_is_not_forgotten(
    jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen under the lock by a batch that found the disk full, before it was marked: the next batch sees it again."""
    child = old(jrn, "a child")
    old(jrn, "nobody's")
    run = jrn.start_run("staged", manifest={}, context={}, run_id=RUN)
    backend = jrn.store._backend
    sweep = backend.gc_sweep

    def full(*arguments: Any) -> Any:
        monkeypatch.setattr(backend, "gc_sweep", sweep)
        raise casstore.StoreFull("a disk", "no room")

    monkeypatch.setattr(Staging, "settle", lambda self: 0)
    monkeypatch.setattr(backend, "gc_sweep", full)

    def append() -> None:
        stage(jrn, run, {"child": child})
        jrn.cancel(RUN)

    at("gc.before_batch", append, lambda: jrn.store.gc(jrn, grace=0, keep_completed=0, force=True))
    assert jrn.store.get_value(child) == "a child"


def test_what_is_staged_already_keeps_its_place(jrn: journal.Journal) -> None:
    """Brought again after what needs it, it still goes into the store first: one settling moves everything (CS)."""
    run = jrn.start_run("staged", manifest={}, context={}, run_id=RUN)
    child = stage(jrn, run, "a child")
    parent = stage(jrn, run, {"child": child})
    before = jrn.store.staging.rows()
    assert stage(jrn, run, "a child") == child
    assert jrn.store.staging.rows() == before
    jrn.store.staging.settle()
    assert staged(jrn) == 0 and jrn.store.info(parent).links == (child,)
    assert_whole(jrn)


def test_settled_artifacts_of_ended_runs_are_collected(jrn: journal.Journal) -> None:
    """From rest, gc leaves exactly what roots reach: the stage hides nothing for ever."""
    run_of(jrn, 10)
    jrn.cancel(RUN)
    jrn.store.gc(jrn, grace=0, keep_completed=0, force=True)
    assert len(jrn.store) == 0 and staged(jrn) == 0


# -- power loss -----------------------------------------------------------------------------------------------


class Power:
    """The store's commits that are on disk: a sync makes all of them so."""

    def __init__(self, jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        self._backend = jrn.store._backend
        self.synced = self.commit()
        sync = type(self._backend).sync

        def noted(backend: Any, commit: int = 0) -> int:
            found = sync(backend, commit)
            self.synced = self.commit()
            return found

        monkeypatch.setattr(type(self._backend), "sync", noted)

    def commit(self) -> int:
        return self._backend.counters().commit

    def survives(self, name: ArtifactId) -> bool:
        """Whether the row of an artifact in the store would be there after a loss of power."""
        row = self._backend.rows([name.digest])[0]
        return row is not None and row.touched <= self.synced


@pytest.mark.parametrize("ruled", [True, False])
def test_h27_what_a_staged_row_needs_is_on_disk(
    jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch, ruled: bool
) -> None:
    """A base that was put after the barrier, unflushed: the append flushes again before it commits."""
    run = jrn.start_run("staged", manifest={}, context={}, run_id=RUN)
    power = Power(jrn, monkeypatch)
    base = jrn.store.put_value(grown(0))
    prepared = jrn.store.prepare_value(grown(1), base=base)
    assert not isinstance(prepared, ArtifactId)
    jrn.store.gc(jrn, grace=0, force=True)
    assert base not in jrn.store
    if not ruled:
        monkeypatch.setattr("journal.appends._is_safe", lambda touched, synced: touched is not None)
    event = journal.DomainEvent("names", {}, prepared.id)

    def put_again() -> None:
        jrn.store.put_value(grown(0), durable=False)

    at("append.locked", put_again, lambda: jrn.append(RUN, run.head, [event], epoch=run.epoch, puts=[prepared]))
    assert prepared.id in jrn.store
    assert power.survives(base) is ruled


@pytest.mark.parametrize("ruled", [True, False])
def test_h28_a_row_stays_staged_until_the_store_is_flushed(
    jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch, ruled: bool
) -> None:
    """Collected and put again, unflushed, between the flush of a settling and the removal of its row."""
    names = run_of(jrn, 2)
    power = Power(jrn, monkeypatch)
    if not ruled:
        monkeypatch.setattr(Staging, "settled", lambda self, rows, synced: [True] * len(rows))

    def touch() -> None:
        jrn._clock.advance(7200)  # type: ignore[attr-defined]
        for name in names:
            jrn.store.put(jrn.store.get(name), durable=False)

    at("settle.synced", touch, jrn.store.staging.settle)
    lost = [name for name in names if not power.survives(name) and jrn.store.staging.info(name.digest) is None]
    assert (lost == []) is ruled


# -- kills ----------------------------------------------------------------------------------------------------

CHILD = """
import sys
import journal
from tests.kills import kill_at
from uuid import UUID
home, stop = sys.argv[1], int(sys.argv[2])
jrn = journal.open(home)
run = jrn.resume(UUID(int=7), steal=True)
attempt = run.enter(run.next) if run.next else None
kill_at(stop, "settle.", "append.", "put.")
context = attempt.context()
attempt.complete({**context, "n": 1}, then="s.last.one")
run.enter("s.last.one").complete({**context, "n": 2})
jrn.store.staging.settle()
print("done", flush=True)
"""


def test_killed_at_every_step_of_settling_nothing_is_lost(tmp_path: Path) -> None:
    """SIGKILL at each step of appends and of settling: what events name reads, before and after the next settling."""
    stop = 0
    while True:
        stop += 1
        home = tmp_path / f"home{stop}"
        with journal.open(home) as jrn:
            run_of(jrn, 3)
            run = jrn.resume(RUN, steal=True)
            run.abandon()
            run.release()
        child = python(CHILD, home, stop)
        done = child.communicate()[0] == "done\n"
        with journal.open(home) as jrn:
            assert_whole(jrn)
            jrn.store.staging.settle()
            assert staged(jrn) == 0
            jrn.store.gc(jrn, grace=0)
            assert_whole(jrn)
        if done:
            break
        assert child.returncode == -signal.SIGKILL
    assert stop > 12
