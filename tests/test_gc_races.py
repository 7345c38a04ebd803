"""Each hole of the protocol between gc and writers (docs/GC.md, "Races"): its shortest trace, on a real store.

Every trace runs twice. As the code is, all invariants hold, C after every single commit. With the one rule taken out
that closes the hole, the same trace breaks the invariant that is named: so the loss of the rule would be noticed.
H22 to H24, H27 and H28 need a power loss and are in test_power_loss.py.

x is a child of y, y of z; b is the base of a delta c. Old: unreferenced, and not touched since the cut.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest

import casstore
import journal
from casstore import ArtifactId, codec, counters, puts, repairs, sweeps, values
from casstore import rows as tables
from casstore.backend import Ages, Outcome, PutResult
from casstore.gc import Collector
from casstore.items import PreparedPut
from casstore.marks import Marks
from casstore.rows import DaRow, IxRow, from_u64, u64
from casstore.stage import Staged
from casstore.steps import reach
from casstore.writing import Writer
from journal.appends import Appender
from journal.log import Journal
from tests.race_harness import (
    LIVE,
    OLD_S,
    TEXT,
    Deadlock,
    Violation,
    World,
    damage,
    refused,
    watch_locks,
    without_flushes,
)

LARGE = b"".join(b"%8d" % n for n in range(150_000))  # more than one frame
MORE = TEXT + b"one more line"
Breaker = Callable[[pytest.MonkeyPatch], None]


class Race(NamedTuple):
    hole: str
    trace: Callable[[World], None]
    breaks: str
    broken: Breaker

    @property
    def name(self) -> str:
        return f"{self.hole}-{self.trace.__name__}"


RACES: list[Race] = []


def race(hole: str, breaks: str, broken: Breaker) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Register a trace. `broken` takes the rule out that closes the hole; then `breaks` is broken."""

    def register(trace: Callable[[World], None]) -> Callable[[World], None]:
        RACES.append(Race(hole, trace, breaks, broken))
        return trace

    return register


def put_and_append(w: World, who: journal.Journal, value: object, **options: Any) -> None:
    """As a recorder does: the artifact, then the event that names it."""
    with refused():
        w.append(who, w.promise(who.store.put_value(value, **options)))


# -- H1: links --------------------------------------------------------------------------------------------


def links_unchecked(patch: pytest.MonkeyPatch) -> None:
    def link(t: Any, item: Any, data_id: int) -> None:
        if item.links:
            t.put(tables.LN, item.digest, b"".join(item.links))

    patch.setattr(puts, "_link", link)


@race("H1", "I1", links_unchecked)
def child_deleted_before_the_put(w: World) -> None:
    """The batch deletes x; then y, new, is put on it."""
    x = w.put_old(b"x")
    w.race(lambda: w.gc(w.two), {"gc.after_batch": lambda: put_and_append(w, w.one, [x])})


@race("H1", "I1", links_unchecked)
def child_deleted_between_look_and_put(w: World) -> None:
    """The put has looked and encoded; a whole gc deletes x; the put commits."""
    x = w.put_old(b"x")
    w.race(lambda: put_and_append(w, w.one, [x]), {"put.before_commit": lambda: w.gc(w.two)})


# -- H2, H3, H4: new parents, old children ------------------------------------------------------------------


def recent_unread(patch: pytest.MonkeyPatch) -> None:
    class Blind(sweeps._View):
        def __init__(self, t: Any) -> None:
            super().__init__(t)
            self.recent = ()

    patch.setattr(sweeps, "_View", Blind)
    patch.setattr(sweeps, "recent", lambda t: [])


@race("H2", "I1", recent_unread)
def new_parent_after_the_mark(w: World) -> None:
    """x is a candidate; y is put on it before the batch, and named after it."""
    x, made = w.put_old(b"x"), list[ArtifactId]()
    w.race(
        lambda: w.gc(w.two),
        {
            "gc.marked": lambda: made.append(w.promise(w.one.store.put_value([x]))),
            "gc.after_batch": lambda: w.append(w.one, *made),
        },
    )


def hits_untouched(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(puts, "touch", lambda *_: None)


@race("H2", "I2, I6", hits_untouched)
def hit_after_the_mark(w: World) -> None:
    """What a put found there is not taken by the gc that is open."""
    w.put_old(b"x")
    w.race(lambda: w.gc(w.two), {"gc.marked": lambda: w.promise(w.one.store.put(b"x"))})


@race("H2", "I3", hits_untouched)
def lease_put_hit_after_the_mark(w: World) -> None:
    """A lease put of what is there, after gc has read the leases."""
    x = w.put_old(b"x")
    w.put_old([x])
    held = w.one.store.lease(600)
    w.race(lambda: w.gc(w.two), {"gc.marked": lambda: held.put_value([x])})


def young_not_rooted(patch: pytest.MonkeyPatch) -> None:
    ages = sweeps.ages

    def old_only(*arguments: Any) -> Ages | None:
        page = ages(*arguments)
        return page._replace(young=[]) if page is not None else None

    patch.setattr(sweeps, "ages", old_only)


@race("H3", "I1", young_not_rooted)
def young_parent_of_an_old_child(w: World) -> None:
    """y is within the grace, x is not; y is named after the gc."""
    x = w.put_old(b"x")
    y = w.promise(w.one.store.put_value([x]))
    w.gc(w.two)
    w.append(w.one, y)


def closure_cut_at(depth: int, patch: pytest.MonkeyPatch) -> None:
    """While it sweeps gc marks what it is told of, and what that links to only `depth` links far."""

    def shallow(marks: Marks, digests: Iterable[bytes], edges_of: Any, missing: Any) -> None:
        listed = list(digests)
        for _ in range(depth + 1):
            found = [edges for edges in edges_of(listed) if edges is not None]
            for edges in found:
                marks.visible.add(edges.data_id)
            listed = [edges.packed[at : at + 32] for edges in found for at in range(0, len(edges.packed), 32)]

    sweep = Collector._sweep

    def sweep_shallow(self: Any, *arguments: Any) -> str:
        self._marks.reach = functools.partial(shallow, self._marks)
        return sweep(self, *arguments)

    patch.setattr(Collector, "_sweep", sweep_shallow)


def children_renewed_only(patch: pytest.MonkeyPatch) -> None:
    closure_cut_at(1, patch)


@race("H4", "I1", children_renewed_only)
def hit_on_a_grandparent(w: World) -> None:
    """x, y and z are candidates; z is hit: renewing it and y would not save x."""
    y = w.put_old([w.put_old(b"x")])
    w.put_old({"y": y})
    w.race(lambda: w.gc(w.two), {"gc.marked": lambda: put_and_append(w, w.one, {"y": y})})


# -- H5: the order of a sweep -------------------------------------------------------------------------------


def rising_order(patch: pytest.MonkeyPatch) -> None:
    scan = Collector._scan
    patch.setattr(Collector, "_scan", lambda self, cut: sorted(scan(self, cut)))


def between_batches(w: World, action: Callable[[ArtifactId, ArtifactId], object]) -> None:
    x = w.put_old(b"x")
    y = w.put_old([x])

    def act() -> None:
        with refused():
            action(x, y)

    w.race(lambda: w.gc(w.two), {"gc.after_batch": act})


@race("H5", "I1", rising_order)
def appended_between_batches(w: World) -> None:
    """One of x and y is gone, and y is named."""
    between_batches(w, lambda x, y: w.append(w.one, y))


@race("H5", "I1", rising_order)
def hit_between_batches(w: World) -> None:
    """One of x and y is gone, and y is put."""
    between_batches(w, lambda x, y: w.append(w.one, w.promise(w.one.store.put_value([x]))))


@race("H5", "I3", rising_order)
def pinned_between_batches(w: World) -> None:
    """One of x and y is gone, and y is pinned."""
    between_batches(w, lambda x, y: w.one.store.pin("keep", y))


@race("H5", "I3", rising_order)
def leased_between_batches(w: World) -> None:
    """One of x and y is gone, and a lease is to hold y."""
    held = w.one.store.lease(1 << 30)
    between_batches(w, lambda x, y: held.add(y))


# -- H6, H7 -------------------------------------------------------------------------------------------------


def names_caught_up_only(patch: pytest.MonkeyPatch) -> None:
    closure_cut_at(0, patch)


@race("H6", "I1", names_caught_up_only)
def committed_while_gc_waits(w: World) -> None:
    """An append has checked z under its lock; gc reads the runs, waits for the lock, and hears of z only then."""
    z = w.put_old({"y": w.put_old([w.put_old(b"x")])})
    w.race(lambda: w.append(w.one, z), {"append.written": lambda: w.gc(w.two)})


def pins_untouched(patch: pytest.MonkeyPatch) -> None:
    def pin(t: Any, name: str, digest: bytes, now_s: int) -> None:
        state = counters.begin(t)
        puts.require_visible(t, digest)
        t.put(tables.PIN, name.encode(), digest + u64(now_s))
        counters.finish(t, state, now_s)

    patch.setattr(puts, "pin", pin)


@race("H7", "I3", pins_untouched)
def pinned_after_pins_were_read(w: World) -> None:
    """gc has read the pins; y is pinned; neither y nor x may go."""
    y = w.put_old([w.put_old(b"x")])
    w.race(lambda: w.gc(w.two), {"gc.opened": lambda: w.one.store.pin("keep", y)})


def leases_untouched(patch: pytest.MonkeyPatch) -> None:
    def add(t: Any, lease: str, digests: Any, now_s: int) -> None:
        state = counters.begin(t)
        for digest in digests:
            puts.require_visible(t, digest)
            t.put(tables.LEASED, lease.encode() + digest, b"")
        counters.finish(t, state, now_s)

    patch.setattr(puts, "lease_add", add)


@race("H7", "I3", leases_untouched)
def leased_after_leases_were_read(w: World) -> None:
    """The same with a lease that was there and empty."""
    y = w.put_old([w.put_old(b"x")])
    held = w.one.store.lease(600)
    w.race(lambda: w.gc(w.two), {"gc.opened": lambda: held.add(y)})


# -- H8 to H11: bases, hits, revival ------------------------------------------------------------------------


def base_of_an_earlier_look(patch: pytest.MonkeyPatch) -> None:
    seen: dict[bytes, IxRow] = {}
    look, insert, find = Writer._base, puts._insert, puts.find

    def remember(self: Any, hint: bytes) -> Any:
        found = look(self, hint)
        if found is not None:
            seen[found[0]] = IxRow(self._backend.rows([found[0]])[0].data_id, 0, 0, 0, 0)
        return found

    def insert_stale(t: Any, state: Any, item: Any, now_s: int) -> int:
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(puts, "find", lambda t, digest: find(t, digest) or seen.get(digest))
            return insert(t, state, item, now_s)

    patch.setattr(Writer, "_base", remember)
    patch.setattr(puts, "_insertable", lambda t, item, first: True)
    patch.setattr(puts, "holds", lambda t, data_id, digest: True)
    patch.setattr(puts, "_insert", insert_stale)


@race("H8", "I1", base_of_an_earlier_look)
def base_deleted_between_look_and_put(w: World) -> None:
    """The delta c is made; a whole gc deletes b; c commits."""
    b = w.put_old({"text": TEXT})
    w.race(
        lambda: put_and_append(w, w.one, {"text": MORE}, base=b, kind="context_snapshot"),
        {"put.before_commit": lambda: w.gc(w.two)},
    )


def bases_unmarked(patch: pytest.MonkeyPatch) -> None:
    edges = sweeps.edges

    def links_only(t: Any, digests: Sequence[bytes]) -> Any:
        return [found._replace(bases=()) if found is not None else None for found in edges(t, digests)]

    patch.setattr(sweeps, "edges", links_only)


@race("H9", "I1", bases_unmarked)
def new_delta_of_an_old_base(w: World) -> None:
    """b is a candidate; c becomes a delta of it: b goes, its bytes may not."""
    b = w.put_old({"text": TEXT})
    w.race(
        lambda: w.gc(w.two),
        {"gc.marked": lambda: put_and_append(w, w.one, {"text": MORE}, base=b, kind="context_snapshot")},
    )
    assert b not in w.store


def hits_by_an_earlier_look(patch: pytest.MonkeyPatch) -> None:
    original = puts.put

    def trusting(t: Any, items: Any, now_s: int, lease: str | None) -> PutResult:
        left = [
            item for item in items if item.stored is not None or item.upload is not None or puts.find(t, item.digest)
        ]
        return original(t, left, now_s, lease) if left else PutResult((Outcome.HIT,) * len(items), 0)

    patch.setattr(puts, "put", trusting)


@race("H10", "I2", hits_by_an_earlier_look)
def hit_deleted_between_look_and_put(w: World) -> None:
    """The put saw x; a whole gc deletes it; the put must store it, and what it returns must be there."""
    w.put_old(b"x")
    w.race(lambda: w.promise(w.one.store.put(b"x")), {"put.before_commit": lambda: w.gc(w.two)})


def revived_in_place(patch: pytest.MonkeyPatch) -> None:
    insert = puts._insert

    def revive(t: Any, state: Any, item: Any, now_s: int) -> None:
        kept = next((from_u64(key) for key, digest in t.scan(tables.KP) if digest == item.digest), None)
        if kept is None:
            insert(t, state, item, now_s)
            return
        t.delete(tables.KP, u64(kept))
        t.delete(tables.GONE, item.digest)
        t.put(tables.LN, item.digest, b"".join(item.links))
        t.put(tables.IX, item.digest, IxRow(kept, state.commit, now_s, puts._add_kind(t, item), item.raw_len).pack())

    patch.setattr(puts, "_insert", revive)


@race("H11", "I1", revived_in_place)
def base_put_again_after_its_child(w: World) -> None:
    """b's bytes are kept for c, its child x is gone; x is put again, then b: b has to be younger than x."""
    x = w.put_old(b"x")
    value = {"text": TEXT, "x": x}
    b = w.put_old(value)
    c = w.one.store.put_value({"text": MORE}, base=b, kind="context_snapshot")
    assert w.store.info(c).base == b
    w.append(w.one, c)
    w.grow_old()
    w.gc(w.two)
    assert b not in w.store and x not in w.store
    w.put_old(b"x")
    w.put_old(value)

    def name() -> None:
        with refused():
            w.append(w.one, b)

    w.race(lambda: w.gc(w.two), {"gc.after_batch": name})


# -- H12 to H14: heal, uploads ------------------------------------------------------------------------------


def healed_as_new(patch: pytest.MonkeyPatch) -> None:
    heal = puts._heal

    def renumbered(t: Any, state: Any, item: Any, row: IxRow, now_s: int) -> None:
        heal(t, state, item, row, now_s)
        found = puts.find(t, item.digest)
        assert found is not None
        repairs._renumber(t, state, item.digest, found, now_s)

    patch.setattr(puts, "_heal", renumbered)


@race("H12", "I1", healed_as_new)
def healed_child_of_an_older_parent(w: World) -> None:
    """x is damaged and put again; it may not become younger than y."""
    x = w.put_old(b"x" * 100)
    y = w.put_old([x])
    damage(w.store, x)
    w.put_old(b"x" * 100)

    def name() -> None:
        with refused():
            w.append(w.one, y)

    w.race(lambda: w.gc(w.two), {"gc.after_batch": name})


def uploads_unordered(patch: pytest.MonkeyPatch) -> None:
    link = puts._link
    patch.setattr(puts, "_link", lambda t, item, data_id: link(t, item, 1 << 62))


@race("H13", "I1", uploads_unordered)
def child_put_again_during_an_upload(w: World) -> None:
    """The upload y has its number; x is deleted and put again; y ends, older than x; the next gc runs."""
    x = w.put_old(b"x")
    value = [x, LARGE]
    y = ArtifactId.of(values.encode(value)[0])

    def again() -> None:
        w.gc(w.two)
        w.two.store.put(b"x")

    w.race(lambda: w.one.store.put_value(value), {"upload.opened": again})
    w.grow_old()

    def name() -> None:
        with refused():
            w.append(w.one, y)

    w.race(lambda: w.gc(w.two), {"gc.after_batch": name})


def stage_unchecked(patch: pytest.MonkeyPatch) -> None:
    insert = puts._insert

    def trusting(t: Any, state: Any, item: Any, now_s: int) -> None:
        if item.upload is not None:
            t.put(tables.STAGE, u64(item.upload), u64(now_s))
        insert(t, state, item, now_s)

    patch.setattr(puts, "_insert", trusting)


@race("H14", "I1", stage_unchecked)
def upload_taken_for_dead(w: World) -> None:
    """Its writer was only stopped, for longer than gc waits, and goes on."""

    def upload() -> None:
        with refused(casstore.StoreError):
            w.append(w.one, w.promise(w.one.store.put_file(io.BytesIO(LARGE))))

    def long_after() -> None:
        w.clock.advance(8 * 86400)
        w.gc(w.two)

    w.race(upload, {"upload.written": long_after})


# -- H15, H16: rebase, which no operation of the store does yet ---------------------------------------------

ORDERED = True


class Younger(Exception):
    """The new base is not older."""


def rebase(w: World, who: journal.Journal, name: ArtifactId, base: ArtifactId) -> None:
    """Store an artifact as a delta of another base, by the protocol's rules for it."""
    tried = codec.encode(who.store.get(name), who.store.get(base))
    assert codec.is_delta(tried.codec)
    with who.store._backend._tables.write() as t:  # type: ignore[attr-defined]
        state = counters.begin(t)
        row, onto = puts.find(t, name.digest), puts.find(t, base.digest)
        assert row is not None and onto is not None
        if ORDERED and onto.data_id >= row.data_id:
            raise Younger
        old = DaRow.unpack(t.get(tables.DA, u64(row.data_id)) or b"")
        puts.clear_pieces(t, row.data_id)
        puts.write_pieces(t, row.data_id, 0, puts.split(tried.stored))
        size = len(tried.stored)
        new = old._replace(stored_len=size, codec=tried.codec, base=onto.data_id, chain=1)
        t.put(tables.DA, u64(row.data_id), new.pack())
        state.stored_bytes += size - old.stored_len
        puts.touch(t, state, name.digest, row, int(w.clock()))
        counters.finish(t, state, int(w.clock()))


def marked_not_read_again(patch: pytest.MonkeyPatch) -> None:
    reach = Marks.reach

    def once(self: Marks, digests: Any, edges_of: Any, missing: Any) -> None:
        listed = list(digests)
        known = [edges is not None and edges.data_id in self.visible for edges in edges_of(listed)]
        reach(self, [name for name, seen in zip(listed, known, strict=True) if not seen], edges_of, missing)

    patch.setattr(Marks, "reach", once)


@race("H15", "I1", marked_not_read_again)
def rebased_after_the_mark(w: World) -> None:
    """c, of a live run, is marked as it was; then it becomes a delta of b, which is a candidate."""
    b = w.put_old(TEXT)
    c = w.two.store.put(MORE)  # by a handle that knows of no b, or it would be a delta of it by itself
    assert w.one.store.info(c).base is None
    w.append(w.one, c)
    w.grow_old()
    w.race(lambda: w.gc(w.two), {"gc.marked": lambda: rebase(w, w.one, c, b)})
    assert b not in w.store


def rebased_on_younger(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(globals(), "ORDERED", False)


@race("H16", "I1", rebased_on_younger)
def rebased_on_a_younger_one(w: World) -> None:
    """b is to become a delta of c, which is younger and so goes first."""
    b, c = w.put_old(TEXT), w.put_old(MORE)
    with refused(Younger):
        rebase(w, w.one, b, c)
    w.grow_old()
    w.race(lambda: w.gc(w.two), {"gc.after_batch": lambda: w.append(w.one, b)})


# -- H17 to H21: epochs, leases, positions, locks, freshness ------------------------------------------------


def epochs_uncompared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sweeps, "require_epoch", lambda state, epoch: None)


@race("H17", "I1", epochs_uncompared)
def overtaken_under_the_lock(w: World) -> None:
    """gc knows of no y when it takes the lock; another opens and empties what was touched; the first goes on."""
    x, made = w.put_old(b"x"), list[ArtifactId]()

    def first() -> None:
        with refused(casstore.Busy):
            w.rival(w.two)

    w.race(
        first,
        {
            "gc.before_batch": lambda: made.append(w.promise(w.one.store.put_value([x]))),
            "gc.locked": lambda: w.rival(w.three),
        },
    )
    w.append(w.one, *made)


def expired_leases_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sweeps, "drop_lease", lambda t, lease: None)


@race("H18", "I3", expired_leases_left)
def expired_lease_renewed(w: World) -> None:
    """gc goes by a lease's end; its holder renews it after that, and believes to hold y."""
    held = w.one.store.lease(100)
    held.put_value([w.store.put(b"x")])
    w.grow_old()

    def renew() -> None:
        with refused(casstore.LeaseLost):
            held.renew(1 << 30)

    w.race(lambda: w.gc(w.two), {"gc.opened": renew})


def position_noted_late(patch: pytest.MonkeyPatch) -> None:
    scan = Collector._scan

    def late(self: Any, cut: int) -> Any:
        self._position = self._roots.position()
        return scan(self, cut)

    patch.setattr(Collector, "_scan", late)


@race("H19", "I1", position_noted_late)
def committed_after_runs_were_read(w: World) -> None:
    """The runs are read; x is named; a position noted now would hide that."""
    x = w.put_old(b"x")
    w.race(lambda: w.gc(w.two), {"gc.rooted": lambda: w.append(w.one, x)})


def checked_before_the_lock(patch: pytest.MonkeyPatch) -> None:
    check, place = Appender._check_named, Appender._place  # and the look that it goes by

    def early(self: Any, appends: Any) -> Any:
        rows = place(self, appends)
        touched = self._touched(appends)
        with self._backend.look() as look:
            for append in appends:
                check(self, append, look, 1 << 62, touched)
        return rows

    patch.setattr(Appender, "_place", early)
    patch.setattr(Appender, "_check_named", lambda *_: None)


@race("H20", "I1", checked_before_the_lock)
def deleted_before_the_lock(w: World) -> None:
    """The append has flushed; a whole gc deletes z; the append takes its lock."""
    z = w.put_old([w.put_old(b"x")])

    def append() -> None:
        with refused():
            w.append(w.one, z)

    w.race(append, {"append.synced": lambda: w.gc(w.two)})


def swept_without_the_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Journal, "exclusive", lambda self: nullcontext())


@race("H20", "I1", swept_without_the_lock)
def swept_between_check_and_commit(w: World) -> None:
    """The append has checked z under its lock; a gc has to wait there."""
    z = w.put_old([w.put_old(b"x")])
    w.race(lambda: w.append(w.one, z), {"append.checked": lambda: w.gc(w.two)})


def fresh_by_age_alone(patch: pytest.MonkeyPatch) -> None:
    fresh = puts._is_fresh

    def young(state: Any, row: IxRow, kind: str, now_s: int) -> bool:
        return fresh(state, row._replace(touched=1 << 62), kind, now_s)

    patch.setattr(puts, "_is_fresh", young)


@race("H21", "I2, I6", fresh_by_age_alone)
def fresh_hit_after_the_clock_went_back(w: World) -> None:
    """gc opens while the clock is hours ahead, so x is old for it; put right, the clock says that x is fresh."""
    w.store.put(b"x")
    w.grow_old()

    def put() -> None:
        w.clock.advance(1 - OLD_S)
        w.promise(w.one.store.put(b"x"))

    w.race(lambda: w.gc(w.two), {"gc.marked": put})


# -- H25, H26: staged rows ----------------------------------------------------------------------------------


def bring(w: World, who: journal.Journal, value: object, base: ArtifactId | None = None) -> ArtifactId:
    """Append an event that names a value and brings it along. Raises: MissingArtifact."""
    put = who.store.prepare_value(value, base=base, kind="context_snapshot")
    assert not isinstance(put, ArtifactId) and put.can_stage
    who.append(LIVE, who.head(LIVE), [journal.DomainEvent("note", {"name": put.id})], puts=[put])
    return put.id


def bring_again(w: World, who: journal.Journal, value: object, base: ArtifactId | None = None) -> None:
    with refused():
        bring(w, who, value, base)


def needs_unchecked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PreparedPut, "needs", property(lambda self: ()))


@race("H25", "I1", needs_unchecked)
def child_deleted_before_it_is_staged(w: World) -> None:
    """y is prepared; a whole gc deletes x; y comes with its event."""
    x = w.put_old(b"x")
    w.race(lambda: bring_again(w, w.one, [x]), {"append.synced": lambda: w.gc(w.two)})


@race("H25", "I1", needs_unchecked)
def base_deleted_before_it_is_staged(w: World) -> None:
    """The same with the base of a delta."""
    b = w.put_old({"text": TEXT})
    w.race(lambda: bring_again(w, w.one, {"text": MORE}, b), {"append.synced": lambda: w.gc(w.two)})


def staged_needs_unmarked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Staged, "needs", property(lambda self: ()))


@race("H25", "I1", staged_needs_unmarked)
def staged_on_a_candidate(w: World) -> None:
    """x is a candidate; y is staged on it: it is not in the store, where gc would find its links."""
    x = w.put_old(b"x")
    w.race(lambda: w.gc(w.two), {"gc.marked": lambda: bring(w, w.one, [x])})


def staged_bases_unmarked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Staged, "needs", property(lambda self: self.links))


@race("H25", "I1", staged_bases_unmarked)
def staged_delta_of_a_candidate(w: World) -> None:
    """The same with the base of a delta."""
    b = w.put_old({"text": TEXT})
    w.race(lambda: w.gc(w.two), {"gc.marked": lambda: bring(w, w.one, {"text": MORE}, b)})


def staged_unrooted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Collector, "_late_staged", lambda self: [])


@race("H26", "I1", staged_unrooted)
def staged_by_a_run_that_ended(w: World) -> None:
    """y was staged on x by a run that ended; gc runs; another run names y."""
    x = w.put_old(b"x")
    ended = w.one.start_run("race", manifest={}, context={}, claim=False)
    put = w.one.store.prepare_value([x])
    assert not isinstance(put, ArtifactId)
    w.one.append(ended.run_id, ended.head, [journal.DomainEvent("note", {"name": put.id})], puts=[put])
    w.one.cancel(ended.run_id)
    w.grow_old()
    w.race(lambda: w.rival(w.two), {})  # which does not settle first, as a command does
    w.append(w.one, put.id)


# -- each of them, and each without its rule ----------------------------------------------------------------


@pytest.fixture
def world(tmp_path, monkeypatch):
    watch_locks(monkeypatch)
    without_flushes(monkeypatch)
    made = World(tmp_path / "home")
    yield made
    made.close()


@pytest.mark.parametrize("found", RACES, ids=lambda found: found.name)
def test_closed(found: Race, world: World) -> None:
    """As the code is, the trace harms nothing; and what is left is collected afterwards, and nothing else."""
    world.checks_each_commit = True
    found.trace(world)
    world.check()
    world.grow_old()
    world.promised.clear()
    world.settle()


@pytest.mark.parametrize("found", RACES, ids=lambda found: f"{found.name}-{found.broken.__name__}")
def test_caught(found: Race, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rule the same trace breaks the invariant."""
    found.broken(monkeypatch)
    found.trace(world)
    with pytest.raises(Violation, match=f"^{found.breaks}"):
        world.check()


# -- beside them --------------------------------------------------------------------------------------------


def test_a_large_put_begins_again(world: World) -> None:
    """H13, as its caller sees it: nothing went wrong, and the first upload left nothing behind."""
    x = world.put_old(b"x")

    def again() -> None:
        world.gc(world.two)
        world.two.store.put(b"x")

    world.race(lambda: put_and_append(world, world.one, [x, LARGE]), {"upload.opened": again})
    world.check()
    assert len(world.promised) == 1 and world.store._backend.uploads() == []
    world.settle()


def test_a_stream_that_lost_its_upload_says_so(world: World) -> None:
    """H14, as its caller sees it: a stream cannot be read twice."""

    def long_after() -> None:
        world.clock.advance(8 * 86400)
        world.gc(world.two)

    world.race(lambda: world.one.store.put_file(io.BytesIO(LARGE)), {"upload.written": long_after})
    (error,) = world.errors
    assert isinstance(error, casstore.StoreError) and "Put it again" in str(error)
    world.errors.clear()
    world.check()
    world.settle()


def test_two_that_wait_for_each_other_are_found(world: World) -> None:
    """The harness itself: store before journal in one, journal before store in the other."""

    def wrong() -> None:
        with world.one.store._backend._tables.write():  # type: ignore[attr-defined]
            reach("test.held")
            with world.one.exclusive():
                pass

    def right() -> None:
        with world.two.exclusive(), world.two.store._backend._tables.write():  # type: ignore[attr-defined]
            pass

    with pytest.raises(Deadlock):
        world.race(wrong, {"test.held": right})
