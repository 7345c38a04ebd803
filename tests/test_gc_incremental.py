"""A gc that looks only at what is new since the last complete one: it says "nothing to do" exactly when a full mark
would, or marks everything (docs/GC.md, section 7)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from helpers import BRIEF, soak_machine
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import casstore
import journal
from casstore import ArtifactId, GcReport, Lease, Store, remembered, steps
from casstore.gc import Collector, Limits
from casstore.refusals import refuse_implausible
from casstore.remembered import LOOSE_MAX, Glance, Remembered
from casstore.rows import u64
from casstore.testing import FakeClock, FakeRoots, memory_store
from journal import DomainEvent


class World:
    """A store in memory, a stand-in journal and a clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = memory_store(clock=self.clock)
        self.roots = FakeRoots(self.store)

    def old(self, data: bytes) -> ArtifactId:
        name = self.store.put(data)
        self.clock.advance(7200)
        return name

    def live(self, data: bytes, run: str = "live") -> ArtifactId:
        name = self.store.put(data)
        self.roots.append(run, name)
        return name

    def gc(self, **options: Any) -> GcReport:
        return self.store.gc(self.roots, **{"grace": 0, **options})


@pytest.fixture
def world() -> Iterator[World]:
    found = World()
    with found.store:
        yield found


@contextmanager
def acting(step: str, action: Callable[[], Any], nth: int = 1) -> Iterator[list[str]]:
    """The action runs when gc reaches the step for the nth time. What was reached."""
    seen: list[str] = []

    def listener(reached: str) -> None:
        seen.append(reached)
        if reached == step and seen.count(step) == nth:
            steps.listen(None)
            action()
            steps.listen(listener)

    steps.listen(listener)
    try:
        yield seen
    finally:
        steps.listen(None)


class Killed(BaseException):
    """The process ends here."""


def kill() -> None:
    raise Killed


@contextmanager
def killed(step: str, nth: int = 1) -> Iterator[None]:
    """gc gets no further than to that step, and cannot say so."""
    with patch.object(Collector, "_close", lambda *_: None), acting(step, kill, nth):
        try:
            yield
        except Killed:
            pass


def damage(store: Store, name: ArtifactId) -> None:
    """Flip a bit of a stored piece."""
    with store._backend._tables.write() as txn:  # type: ignore[attr-defined]
        (row,) = store._backend.rows([name.digest])
        assert row is not None
        key, piece = next(txn.scan(b"d1", u64(row.data_id)))
        txn.put(b"d1", key, bytes([piece[0] ^ 1]) + piece[1:])


TEXT = b"".join(b"line %d of a base that a delta is made against\n" % n for n in range(200))


# -- each makes something garbage after a complete gc: the next one must take it


def unpinned(w: World) -> GcReport:
    w.store.pin("a", w.store.put(b"x"))
    w.gc()
    w.store.unpin("a")
    return w.gc()


def pinned_to_another(w: World) -> GcReport:
    first, second = w.store.put(b"x"), w.live(b"y")
    w.store.pin("a", first)
    w.gc()
    w.store.pin("a", second)
    return w.gc()


def lease_closed(w: World) -> GcReport:
    lease = w.store.lease(600)
    lease.put(b"x")
    w.gc()
    lease.close()
    return w.gc()


def lease_expired(w: World) -> GcReport:
    w.store.lease(600).add(w.store.put(b"x"))
    w.gc()
    w.clock.advance(601)
    return w.gc()


def no_longer_young(w: World) -> GcReport:
    w.live(b"before")
    w.store.put(b"x")
    w.live(b"after")
    assert w.gc(grace=3600).removed == ()
    w.clock.advance(7200)
    return w.gc(grace=3600)


def touched_while_it_ran(w: World) -> GcReport:
    w.old(b"x")
    with acting("gc.marked", lambda: w.store.put(b"x")):
        assert w.gc(grace=3600).rescued == 1
    w.clock.advance(7200)
    return w.gc(grace=3600)


def put_since(w: World) -> GcReport:
    w.live(b"x")
    w.gc()
    w.store.put(b"y")
    return w.gc()


def put_with_links_since(w: World) -> GcReport:
    x = w.live(b"x")
    w.gc()
    w.roots.append("other", w.store.put_value({"second": w.store.put_value({"first": x})}))
    w.store.put_value({"loose": x})
    return w.gc()


def run_ended(w: World) -> GcReport:
    w.live(b"x")
    w.live(b"y", "other")
    w.gc()
    w.roots.complete("other")
    return w.gc()


def left_the_retention(w: World) -> GcReport:
    w.live(b"x")
    w.roots.complete("live", at_ms=int(w.clock.now * 1000))
    w.gc(keep_completed=100)
    w.clock.advance(101)
    return w.gc(keep_completed=100)


def quarantine_over(w: World) -> GcReport:
    w.store.put(b"x" * 500)
    w.gc(quarantine=100)
    w.clock.advance(101)
    return w.gc()


def quarantine_of_an_earlier_gc_over(w: World) -> GcReport:
    w.store.put(b"x" * 500)
    w.gc(quarantine=100)
    assert w.gc().incremental
    w.store.put(b"y" * 500)
    w.gc(quarantine=1000)
    w.clock.advance(101)
    return w.gc()


def put_again_from_quarantine(w: World) -> GcReport:
    w.store.put(b"x" * 500)
    w.gc(quarantine=1000)
    w.live(b"x" * 500)
    return w.gc()


def healed_delta(w: World) -> GcReport:
    base = w.store.put(TEXT)
    delta = w.store.put(TEXT + b"one more", base=base, kind="context_snapshot")
    w.roots.append("live", delta)
    assert w.gc().kept_bytes > 0
    assert w.gc().incremental
    damage(w.store, delta)
    w.store.put(TEXT + b"one more", verify=True)
    return w.gc()


def killed_with_something_in_quarantine(w: World) -> GcReport:
    w.live(b"x")
    w.gc()
    w.store.put(b"y" * 500)
    with killed("gc.after_batch"):
        w.gc(quarantine=100)
    w.clock.advance(101)
    return w.gc()


def upload_that_began_before(w: World) -> GcReport:
    with acting("upload.written", lambda: [w.live(b"x"), w.gc(), w.live(b"y"), w.gc()]):
        w.store.put_file(io.BytesIO(bytes(range(256)) * 8000))
    w.gc(grace=3600)
    return w.gc()


SCENARIOS = [
    unpinned, pinned_to_another, lease_closed, lease_expired, no_longer_young, touched_while_it_ran, put_since,
    put_with_links_since, run_ended, left_the_retention, quarantine_over, quarantine_of_an_earlier_gc_over,
    put_again_from_quarantine, healed_delta, killed_with_something_in_quarantine, upload_that_began_before,
]  # fmt: skip


def took(report: GcReport) -> bool:
    return len(report.removed) + report.stored_bytes > 0


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_became_garbage_since_is_taken(world: World, scenario: Callable[[World], GcReport]) -> None:
    """By the gc that comes next, and the one after that has nothing to do."""
    report = scenario(world)
    assert took(report) and not report.incremental
    again = world.gc()
    assert again.incremental and not took(again)
    assert world.store.verify().findings == ()


def nothing(*_: Any, **__: Any) -> None:
    """The rule is taken out."""


def forgets_the_loose(opened: Any, loose: Any, until_s: int, witness: bytes) -> Remembered | None:
    return remember(opened, (), until_s, witness)


def forgets_uploads(opened: Any, loose: Any, until_s: int, witness: bytes) -> Remembered | None:
    return remember(opened._replace(uploads=()), loose, until_s, witness)


def only_the_loose(glance: Glance, rows: int) -> Iterator[Any]:
    yield glance._page(glance._last.loose)


def never_gone(roots: FakeRoots, witnessed: bytes, retention: Any) -> list[Any]:
    return roots.roots_after(int(witnessed.split()[0]))[1]


remember = remembered.remember
BROKEN: dict[str, tuple[str, Any, list[Callable[[World], GcReport]]]] = {
    "the store says that it let go": (
        "casstore.puts.loosen", nothing, [unpinned, pinned_to_another, put_again_from_quarantine, healed_delta],
    ),
    "young, leased and touched ones are looked at again": (
        "casstore.gc.remember", forgets_the_loose, [lease_closed, lease_expired, no_longer_young, touched_while_it_ran],
    ),
    "uploads are looked at again": ("casstore.gc.remember", forgets_uploads, [upload_that_began_before]),
    "new ones are looked at": (
        "casstore.remembered.Glance._pages", only_the_loose, [put_since, put_with_links_since],
    ),
    "the source says what went away": (
        "casstore.testing.FakeRoots.roots_since", never_gone, [run_ended, left_the_retention],
    ),
    "the end of quarantine is known": (
        "casstore.gc.Collector._goes_at", nothing, [quarantine_over, quarantine_of_an_earlier_gc_over],
    ),
    "a sweep since is noticed": (
        "casstore.sweeps._since", lambda t, state: (t.get(b"meta1", b"loosened") or u64(0)) + u64(0),
        [killed_with_something_in_quarantine],
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule_", BROKEN)
def test_each_rule_taken_out_leaves_garbage(rule_: str) -> None:
    """So that each of the scenarios is known to be able to fail."""
    target, broken, scenarios = BROKEN[rule_]
    for scenario in scenarios:
        with patch(target, broken), World().store:
            world = World()
            assert not took(scenario(world)), scenario.__name__


# -- and where nothing did, nothing is marked


@pytest.mark.parametrize("before", [False, True], ids=["full mark", "glance"])
def test_what_a_staged_delta_stands_on_is_not_needed_for_good(tmp_path: Path, before: bool) -> None:
    """Named while a gc runs, settled by the next one: then the bytes of its base are enough, and its row goes."""
    clock = FakeClock()
    with journal.open(tmp_path / "home", clock=clock) as jrn:
        store = jrn.store
        run = jrn.start_run("op", manifest={}, context={}, claim=False)
        if before:
            store.gc(jrn, grace=0, keep_completed=0)
        base = store.put_value({"text": TEXT})
        if before:
            store.gc(jrn, grace=3600, keep_completed=0)

        def bring() -> None:
            put = store.prepare_value({"text": TEXT + b"more"}, base=base)
            assert isinstance(put, casstore.PreparedPut)
            jrn.append(run.run_id, jrn.head(run.run_id), [DomainEvent("note", {"name": put.id})], puts=[put])
            names.append(put.id)

        names: list[ArtifactId] = []
        with acting("gc.opened", bring):
            found = store.gc(jrn, grace=3600, keep_completed=0)
        assert found.incremental is before and base in store
        clock.advance(7200)
        removed = store.gc(jrn, grace=0, keep_completed=0).removed
        assert [name for name, _ in removed] == [base] and store.info(names[0]).encoding == "segments"
        assert store.get_value(names[0]) == {"text": TEXT + b"more"} and store.verify().ok


def test_what_is_new_and_needed_costs_no_mark(world: World) -> None:
    """New runs, values over old ones, deltas, pins, leases that came and went, uploads, dedup hits, an idle store."""
    x = world.live(b"x")
    base = world.live(TEXT)
    assert not world.gc().incremental
    with patch.object(Collector, "_mark", kill):
        assert world.gc().incremental  # nothing happened at all
        world.clock.advance(1 << 20)
        assert world.gc(grace=3600).incremental
        world.roots.append("new", world.store.put_value({"x": x}))
        delta = world.store.put(TEXT + b"more", base=base, kind="context_snapshot")
        world.roots.append("new", delta)
        assert world.gc().incremental
        world.store.put(b"x")
        world.store.pin("p", world.store.put(b"pinned"))
        world.store.pin("p", ArtifactId.of(b"pinned"))
        with world.store.lease(60) as lease:
            lease.put(b"x")
            leased = lease.put(b"leased")
            assert world.gc().incremental
            world.roots.append("new", leased)
        assert world.gc().incremental
        world.roots.append("new", world.store.put_file(io.BytesIO(TEXT * 200)))
        assert world.gc().incremental
    assert world.store.verify().findings == ()


def test_young_ones_are_looked_at_each_time_and_nothing_else(world: World) -> None:
    """Not yet named, they stay within the grace; named meanwhile they stay after it too."""
    for n in range(50):
        world.live(b"%d" % n)
    world.gc()
    young = world.store.put(b"young")
    with patch.object(Collector, "_mark", kill):
        assert world.gc(grace=3600).incremental
        assert world.gc(grace=3600).incremental
        world.roots.append("late", young)
        world.clock.advance(7200)
        assert world.gc(grace=3600).incremental
    assert world.store.get(young) == b"young"


def test_how_many_rows_are_read_does_not_depend_on_how_many_there_are() -> None:
    """Digests looked up by a gc with nothing to do."""
    read: list[list[int]] = []
    for count in (100, 1000):
        world, counts = World(), [0]
        world.roots.append("run", *world.store.put_many([b"%d" % n for n in range(count)]))
        world.gc()
        world.live(b"new")
        backend = world.store._backend
        for name in ("edges", "rows", "digests"):
            original = getattr(backend, name)

            def counting(wanted: Any, original: Any = original, counts: list[int] = counts) -> Any:
                counts[0] += len(wanted)
                return original(wanted)

            setattr(backend, name, counting)
        with patch.object(backend, "ages", kill), patch.object(FakeRoots, "live_roots", kill):
            assert world.gc().incremental
        read.append(counts)
    assert read[0] == read[1] and read[0][0] < 10


def test_a_dry_run_looks_the_same_way(world: World) -> None:
    """And changes nothing."""
    world.live(b"x")
    world.gc()
    with patch.object(Collector, "_mark", kill):
        assert world.gc(dry_run=True).incremental
    world.store.put(b"y")
    preview = world.gc(dry_run=True)
    assert not preview.incremental and len(preview.removed) == 1


def test_a_source_that_is_no_witness_is_read_each_time(world: World) -> None:
    """As before there was such a thing."""

    class Plain:
        def __init__(self, roots: FakeRoots) -> None:
            self.uuid, self.position, self.live_roots = roots.uuid, roots.position, roots.live_roots
            self.roots_after, self.exclusive = roots.roots_after, roots.exclusive

    world.live(b"x")
    for _ in range(3):
        assert not world.store.gc(Plain(world.roots), grace=0).incremental


def test_a_witness_that_fails_refuses(world: World) -> None:
    """Nothing is removed where the source cannot say."""
    world.live(b"x")
    world.gc()
    world.store.put(b"y")
    with patch.object(FakeRoots, "roots_since", lambda *_: 1 // 0), pytest.raises(casstore.GcRefused):
        world.gc()
    assert len(world.store) == 2
    with patch.object(FakeRoots, "witness", lambda *_: 1 // 0):
        assert took(world.gc()) and not world.gc().incremental


def test_a_stopped_gc_remembers_nothing_of_its_own(world: World) -> None:
    """The next one goes on with what is left."""
    world.live(b"x")
    world.gc()
    world.store.put_many([b"%4d" % n * 100 for n in range(200)])
    assert world.gc(max_bytes=1).stopped
    assert took(world.gc()) and len(world.store) == 1


def test_more_loose_ones_than_it_remembers_cost_a_mark(world: World) -> None:
    """It forgets all of them rather than some."""
    with patch("casstore.remembered.LOOSE_MAX", 3):
        for n in range(4):
            world.store.put(b"%d" % n)
        assert not world.gc(grace=3600).incremental
        assert not world.gc(grace=3600).incremental


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x02" + bytes(40), b"\x01" + b"\xff" * 60])
def test_what_cannot_be_read_is_marked_anew(world: World, data: bytes) -> None:
    """Another version's, or a damaged one."""
    world.live(b"x")
    world.gc()
    with world.store._backend._tables.write() as txn:  # type: ignore[attr-defined]
        found = txn.get(b"meta1", b"last_gc")
        txn.put(b"meta1", b"last_gc", found[:16] + data)
    assert not world.gc().incremental
    assert world.gc().incremental


@pytest.mark.parametrize("last", [
    Remembered(1, 0, (), b""), Remembered(10**9, 5, (0, 1, 2, 10**9 - 1), b"witness"),
    Remembered(LOOSE_MAX, 1, tuple(range(LOOSE_MAX)), b""),
])  # fmt: skip
def test_what_is_remembered_reads_as_it_was_packed(last: Remembered) -> None:
    """And no part of it reads as another one with the same numbers."""
    packed = last.pack()
    assert Remembered.unpack(packed) == last
    for stop in range(min(len(packed), 60)):
        assert Remembered.unpack(packed[:stop]) != last


# -- at random: the short answer and the long one are the same


GC_STEPS = [
    "gc.opened", "gc.glanced", "gc.position", "gc.rooted", "gc.marked", "gc.before_batch", "gc.locked",
    "gc.after_batch", "gc.purged",
]  # fmt: skip
VERSIONS = [TEXT + b"version %d\n" % n * 3 for n in range(4)]
PLAIN = [b"a", b"b", b"c" * 5000, *VERSIONS]
COUNTS = {"incremental": 0, "full": 0}


class Incremental(RuleBasedStateMachine):
    """Writers, clocks, damage that is healed, gcs that end, stop and are killed, and writers in the middle of them.

    Before each gc a full mark says what it should do.
    """

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.store, self.roots, self.clock = self.world.store, self.world.roots, self.world.clock
        self.leases: list[Lease] = []
        self.names: list[ArtifactId] = [self.store.put(data) for data in PLAIN[:3]]
        self.roots.append("r", *self.names[:2])

    def teardown(self) -> None:
        self.store.close()

    def some(self, pick: int) -> ArtifactId | None:
        there = [name for name in dict.fromkeys(self.names) if name in self.store]
        return there[pick % len(there)] if there else None

    # what writers do; each may be done in the middle of a gc

    def act(self, what: str, pick: int) -> None:
        name = self.some(pick)
        if what == "put":
            base = self.some(pick // 7)
            self.names.append(self.store.put(PLAIN[pick % len(PLAIN)], base=base, kind="context_snapshot"))
        elif what == "end_lease" and self.leases:
            self.leases.pop(pick % len(self.leases)).close()
        elif what == "lease":
            self.leases.append(self.store.lease(100 + pick))
        elif what == "unpin" and self.store.pins():
            self.store.unpin(sorted(self.store.pins())[pick % len(self.store.pins())])
        elif what == "end_run":
            self.roots.complete("rs"[pick % 2], at_ms=int(self.clock.now * 1000) if pick % 3 else None)
        elif what == "file":
            data = bytes([pick % 3]) * 2_200_000
            self.names.append(self.store.put_file(io.BytesIO(data)))
        elif what == "undelete" and (buried := list(self.store.buried())):
            try:
                report = self.store.undelete([buried[pick % len(buried)].id])
            except casstore.StoreError:
                return  # something that it needs is gone
            self.names += report.restored
        elif name is None:
            return
        elif what == "link":
            self.names.append(self.store.put_value({"link": name, "n": pick % 3}))
        elif what == "append":
            self.roots.append("rs"[pick % 2], name)
        elif what == "pin":
            self.store.pin("ab"[pick % 2], name)
        elif what == "lease_add" and self.leases:
            try:
                self.leases[pick % len(self.leases)].add(name)
            except casstore.LeaseLost:
                return
        elif what == "heal":
            self.heal(name)

    def heal(self, name: ArtifactId) -> None:
        data = self.store.get(name)
        (row,) = self.store._backend.rows([name.digest])
        assert row is not None
        if row.raw_len and self.store._backend.encoding(row.data_id)[1] < 100_000:
            damage(self.store, name)
            self.store.put(data, verify=True)

    ACTIONS = st.sampled_from([
        "put", "put", "link", "link", "append", "append", "append", "pin", "unpin", "lease", "lease_add", "end_lease",
        "end_run", "undelete", "heal", "file",
    ])  # fmt: skip
    PICKS = st.integers(0, 41)
    POLICIES = st.fixed_dictionaries({
        "grace": st.sampled_from([0, 0, 50, 3600]), "quarantine": st.sampled_from([0, 0, 0, 60, 300]),
        "keep_completed": st.sampled_from([0, 200, 200]), "keep_last": st.sampled_from([0, 0, 1]),
    })  # fmt: skip

    @rule(actions=st.lists(st.tuples(ACTIONS, PICKS), min_size=1, max_size=8))
    def write(self, actions: list[tuple[str, int]]) -> None:
        for what, pick in actions:
            self.act(what, pick)

    @rule(seconds=st.sampled_from([1, 30, 61, 150, 4000]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    # gc

    def preview(self, policy: dict[str, Any]) -> GcReport:
        return self.world.gc(**policy, dry_run=True)

    def compare(self, policy: dict[str, Any]) -> bool:
        """Whether the short way would do; then the long one has nothing to remove."""
        with patch.object(Collector, "_glance", lambda *_: None):
            full = self.preview(policy)
        short = self.preview(policy)
        COUNTS["incremental" if short.incremental else "full"] += 1
        for field in ("removed", "raw_bytes", "stored_bytes", "kept_bytes", "quarantined_bytes", "live"):
            assert getattr(short, field) == getattr(full, field), field
        return short.incremental

    @rule(policy=POLICIES)
    def collect(self, policy: dict[str, Any]) -> None:
        incremental = self.compare(policy)
        report = self.world.gc(**policy)
        assert report.incremental == incremental
        self.compare({**policy, "quarantine": 0})

    @rule(policy=POLICIES)
    def collect_again(self, policy: dict[str, Any]) -> None:
        """With nothing in between the second one has nothing to do, and knows it."""
        self.world.gc(**policy)
        assert self.compare(policy)

    @rule(policy=POLICIES)
    def collect_and_stop(self, policy: dict[str, Any]) -> None:
        with patch("casstore.gc.BATCH_ROWS", 1):
            self.world.gc(**policy, max_bytes=1)
        self.compare(policy)

    @rule(policy=POLICIES, step=st.sampled_from(GC_STEPS), nth=st.integers(1, 3))
    def collect_and_be_killed(self, policy: dict[str, Any], step: str, nth: int) -> None:
        with patch("casstore.gc.BATCH_ROWS", 1), killed(step, nth):
            self.world.gc(**policy)
        self.compare(policy)

    @rule(policy=POLICIES, step=st.sampled_from(GC_STEPS), nth=st.integers(1, 3), what=ACTIONS, pick=PICKS)
    def collect_beside(self, policy: dict[str, Any], step: str, nth: int, what: str, pick: int) -> None:
        """An action in the middle of it."""
        with patch("casstore.gc.BATCH_ROWS", 1), acting(step, lambda: self.act(what, pick), nth):
            self.world.gc(**policy)
        self.compare(policy)

    @rule(policy=POLICIES, pick=PICKS)
    def collect_in_an_upload(self, policy: dict[str, Any], pick: int) -> None:
        """It took its number before the gc, and ends after it."""
        with acting("upload.written", lambda: self.world.gc(**policy)):
            self.act("file", pick)
        self.compare(policy)

    @precondition(lambda self: self.leases)
    @rule(policy=POLICIES)
    def overtaken(self, policy: dict[str, Any]) -> None:
        """Another gc opens and ends in the middle of this one."""
        other = Collector(
            self.store._backend, self.roots, now_s=int(self.clock()), grace_s=0, limits=Limits()
        )
        with acting("gc.marked", lambda: other.run(plausible=refuse_implausible)):
            try:
                self.world.gc(**policy)
            except casstore.Busy:
                pass
        self.compare(policy)

    @invariant()
    def live_ones_are_there(self) -> None:
        for ids in self.roots.live.values():
            for name in ids:
                self.store.get(name)
        assert self.store.verify().findings == ()


TestIncremental = Incremental.TestCase
TestIncremental.settings = BRIEF


def test_the_short_answer_is_not_rare() -> None:
    """The machine above, run here once more, takes both ways."""
    COUNTS.update(incremental=0, full=0)
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Incremental, settings=BRIEF)
    assert min(COUNTS.values()) > 25, COUNTS


@pytest.mark.soak
def test_for_long() -> None:
    """Ever new sequences for SOAK_SECONDS."""
    assert soak_machine(Incremental)
