"""Which runs that ended gc keeps, and what of them."""

import json
import subprocess
import sys

import pytest

import casstore
import journal
from casstore import GcRefused, InvalidArgument, Retention
from casstore.testing import FakeClock, FakeRoots, memory_store

DAY = 86400
STATES = ["flow.step.a", "flow.step.b"]


class Clock(FakeClock):
    """The same seconds for the store and the journal."""


@pytest.fixture
def world(tmp_path):
    clock = Clock()
    with (
        casstore.open(tmp_path / "home", clock=clock) as store,
        journal.open(tmp_path / "home", store=store, clock=clock) as jrn,
    ):
        yield jrn, clock


def ended(world, op, n, how="complete"):
    """A run of two states with a fact, an output and a large context; what its events name, by role."""
    jrn, clock = world
    run = jrn.start_run(op, manifest={"n": n, "op": op}, context={"n": n, "op": op, "at": 0}, plan=STATES)
    found = {}
    for at, state in enumerate(STATES, 1):
        with run.enter(state) as attempt:
            attempt.fact("key", lambda: {"fact": n, "op": op, "of": "x" * 3000})
            attempt.output(b"output %d %s" % (n, op.encode()))
            attempt.complete({"n": n, "op": op, "at": at})
    if how == "complete":
        run.complete()
    else:
        run.cancel("because") if how == "cancel" else run.abandon()
    clock.advance(1)
    found["manifest"], found["final"] = run.state.manifest_id, run.state.checkpoint_id
    found["all"] = {
        root.id for root in jrn.retained_roots(Retention(completed_after_ms=0)) if root.run == str(run.run_id)
    }
    assert len(found["all"]) > 4
    return found


def collect(world, **options):
    jrn, _ = world
    return jrn.store.gc(jrn, **{"grace": 0, "keep_completed": 0, **options})


def names(jrn):
    return set(jrn.store)


def test_the_newest_of_each_operation_are_kept(world):
    """However old, and whatever other operations do; the rest goes."""
    jrn, clock = world
    a = [ended(world, "op_a", n) for n in range(4)]
    clock.advance(30 * DAY)
    b = [ended(world, "op_b", n) for n in range(3)]
    collect(world, keep_last=2)
    kept = set().union(*(found["all"] for found in (*a[2:], *b[1:])))
    gone = set().union(*(found["all"] for found in (*a[:2], *b[:1]))) - kept
    assert kept <= names(jrn) and not gone & names(jrn)
    assert jrn.store.verify().ok
    collect(world, keep_last=1)
    assert a[3]["all"] <= names(jrn) and not (a[2]["all"] - a[3]["all"] - b[2]["all"]) & names(jrn)


def test_age_and_number_keep_more_together(world):
    """A run is kept if either says so; however it ended."""
    jrn, clock = world
    old = [ended(world, "op", n, how) for n, how in enumerate(("complete", "cancel", "complete"))]
    clock.advance(30 * DAY)
    young = [ended(world, "op", n, how) for n, how in enumerate(("cancel", "complete", "complete"), 10)]
    collect(world, keep_last=4, keep_completed=DAY)
    kept = set().union(old[2]["all"], *(found["all"] for found in young))
    assert kept <= names(jrn)
    assert not (old[0]["all"] - kept) & names(jrn) and not (old[1]["all"] - kept) & names(jrn)


def test_only_the_final_snapshot_of_completed_runs(world):
    """Intermediate snapshots, facts and outputs of completed runs go; runs that were cancelled or live keep all."""
    jrn, _ = world
    done = ended(world, "op", 1)
    cancelled = ended(world, "op", 2, "cancel")
    live = ended(world, "op", 3, "live")
    collect(world, keep_completed=DAY, final_only=True)
    assert done["all"] & names(jrn) == {done["manifest"], done["final"]}
    assert cancelled["all"] | live["all"] <= names(jrn)
    assert jrn.store.get_value(done["final"])["at"] == 2
    assert jrn.store.verify().ok and jrn.verify() == []
    collect(world, keep_last=1, final_only=True)
    assert cancelled["all"] <= names(jrn) and done["final"] not in jrn.store
    collect(world)
    assert live["all"] <= names(jrn) and not {done["final"], done["manifest"]} & names(jrn)


def test_a_final_snapshot_keeps_what_it_links_to(world):
    """Its closure stays, as of every root."""
    jrn, _ = world
    linked = jrn.store.put(b"linked")
    run = jrn.start_run("op", manifest={}, context={}, plan=STATES[:1])
    with run.enter(STATES[0]) as attempt:
        attempt.complete({"linked": linked})
    run.complete()
    collect(world, keep_completed=DAY, final_only=True)
    assert linked in jrn.store


def test_what_cannot_be_satisfied_is_refused(world):
    """Nothing is removed."""
    jrn, _ = world
    ended(world, "op", 1)
    before = names(jrn)
    with pytest.raises(InvalidArgument):
        collect(world, final_only=True)  # of the runs that are kept; none is
    for wrong in (-1, 1.5, True, "3"):
        with pytest.raises(InvalidArgument):
            collect(world, keep_last=wrong)
    assert names(jrn) == before


class AgesOnly:
    """A root source of somebody else, from before there was any other policy."""

    def __init__(self, roots):
        self._roots, self.uuid, self.asked = roots, roots.uuid, []
        self.position, self.roots_after, self.exclusive = roots.position, roots.roots_after, roots.exclusive

    def live_roots(self, *, completed_after_ms):
        self.asked.append(completed_after_ms)
        return self._roots.live_roots(completed_after_ms=completed_after_ms)


def test_a_source_that_knows_ages_only_is_asked_for_ages_only():
    """It works as ever; asked for another policy, gc refuses instead of keeping less than was wanted."""
    clock = FakeClock()
    with memory_store(clock=clock) as store:
        roots = FakeRoots(store)
        source = AgesOnly(roots)
        name = store.put(b"x")
        roots.append("run", name)
        store.gc(source, grace=0)
        assert source.asked == [(int(clock.now) - 14 * DAY) * 1000]
        for policy in ({"keep_last": 1}, {"final_only": True}):
            with pytest.raises(GcRefused) as error:
                store.gc(source, grace=0, **policy)
            assert error.value.fields["reason"] == "unknown_policy"
        assert len(source.asked) == 1 and name in store and not store._backend.counters().gc_open


def test_the_stand_in_retains_as_a_journal_does():
    """FakeRoots, for users' tests: by age, by number, and the final artifact only."""
    clock = FakeClock()
    with memory_store(clock=clock) as store:
        roots, kept = FakeRoots(store), {}
        for n in range(3):
            kept[n] = [store.put(b"%d %d" % (n, part)) for part in range(2)]
            roots.append(f"run {n}", *kept[n])
            roots.complete(f"run {n}", at_ms=(int(clock.now) - DAY * (3 - n)) * 1000, op_id="op", final=kept[n][1])
        store.gc(roots, grace=0, keep_completed=0, keep_last=2)
        assert set(store) == {*kept[1], *kept[2]}
        store.gc(roots, grace=0, keep_completed=2 * DAY, keep_last=1, final_only=True)
        assert set(store) == {kept[1][1], kept[2][1]}
        store.gc(roots, grace=0, keep_completed=0)
        assert len(store) == 0


def test_an_ended_run_without_a_row_is_damage(world):
    """The list of ended runs names it: gc removes nothing."""
    jrn, _ = world
    ended(world, "op", 1)
    before = names(jrn)
    with jrn._backend._tables.write() as t:
        ((key, _),) = list(t.scan(b"run1"))
        t.delete(b"run1", key)
    for policy in ({"keep_last": 1}, {"keep_last": 1, "final_only": True}):
        with pytest.raises((GcRefused, journal.InvalidStream)):
            collect(world, **policy)
    assert names(jrn) == before


def test_the_command(tmp_path):
    """gc --keep-last and --final-only."""
    clock = Clock()
    with (
        casstore.open(tmp_path / "home", clock=clock) as store,
        journal.open(tmp_path / "home", store=store, clock=clock) as jrn,
    ):
        runs = [ended((jrn, clock), "op", n) for n in range(2)]

    def run(*arguments):
        line = [sys.executable, "-m", "casstore.cli.main", "gc", "--home", str(tmp_path / "home"), "--json"]
        done = subprocess.run([*line, "--grace", "0s", *arguments], capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout)

    assert run("--keep-completed", "0s", "--final-only")[0] == 2
    code, document = run("--keep-completed", "0s", "--keep-last", "1", "--final-only")
    assert code == 0 and document["live"] == 2
    with casstore.open(tmp_path / "home") as store:
        assert set(store) == {runs[1]["manifest"], runs[1]["final"]}
