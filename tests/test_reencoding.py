"""compact re-encodes: what it moves reads the same at every moment, what nothing needs goes, and what is damaged or
in quarantine is left alone. Sizes are counts of bytes."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import casstore
from casstore import ArtifactId, Store, rewrites, steps
from casstore.gc import Collector
from casstore.reading import Reader
from casstore.rows import DA, DATA_IDS_RESERVED, IX, RESERVED_KEY, D, DaRow, IxRow, u64
from casstore.testing import FakeClock, FakeRoots, memory_store
from tests.helpers import BRIEF, compacting
from tests.helpers import python as child
from tests.test_dictionaries import documents


def lines(seed: int, count: int) -> list[bytes]:
    """Lines that compress to a half, and of which no two are alike."""
    rng = random.Random(seed)
    return [b"%d says %x to %x\n" % (n, rng.getrandbits(64), rng.getrandbits(100)) for n in range(count)]


def shrunk(store: Store, roots: FakeRoots, *, count: int = 5, large: int = 2000) -> dict[ArtifactId, bytes]:
    """A long context that was collected, and short ones, live, made against it: its bytes are kept for them."""
    head = lines(1, large)
    base = store.put(b"".join(head), kind="output")
    kept = {}
    for number in range(count):
        data = b"".join(head[:200] + lines(100 + number, 3))
        name = store.put(data, base=base)
        assert store.info(name).base == base
        kept[name] = data
    roots.append("run", *kept)
    store.gc(roots, grace=0, force=True)
    assert base not in store and store.stats().kept_bytes > 0
    return kept


def read_all(store: Store, expected: dict[ArtifactId, bytes]) -> None:
    assert {name: store.get(name) for name in expected} == expected


LOCKED = {"compact.last", "compact.flushed", "compact.renamed"}  # the writer's lock is held there


@contextmanager
def at_each(action: Callable[[str], None]) -> Iterator[list[str]]:
    """Run the action at every step of a compaction; which these were."""
    seen: list[str] = []

    def listener(step: str) -> None:
        if step.startswith("compact.") and step not in LOCKED:
            steps.listen(None)
            seen.append(step)
            action(step)
            steps.listen(listener)

    steps.listen(listener)
    try:
        yield seen
    finally:
        steps.listen(None)


@pytest.fixture(params=["lmdb", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    clock = FakeClock()
    lmdb = request.param == "lmdb"
    with casstore.open(tmp_path / "home", clock=clock) if lmdb else memory_store(clock=clock) as made:
        yield made


# -- away from what was collected


def test_deltas_leave_a_base_that_was_collected(store: Store) -> None:
    """The first is stored whole, the others are made against it; the old base goes at once, and the sums are right."""
    roots = FakeRoots(store)
    expected = shrunk(store, roots)
    before = store.stats()
    report = store.compact()
    after = store.stats()
    read_all(store, expected)
    names = list(expected)
    assert report.rebased == 5 and report.freed_bytes == before.kept_bytes > 20_000 and after.kept_bytes == 0
    assert report.rebased_bytes == after.stored_bytes - before.stored_bytes < 10_000
    assert [store.info(name).base for name in names] == [None, *names[:1] * 4]
    assert all(store.info(name).stored_bytes < 250 for name in names[1:])
    assert store.verify().findings == ()
    again = store.compact()
    assert (again.rebased, again.freed_bytes, again.skipped, again.stopped) == (0, 0, 0, "")
    assert store.stats().commits == after.commits


def test_what_costs_more_than_it_frees_is_left(store: Store) -> None:
    """The newest of forty growing contexts is larger whole than all that is kept for it."""
    roots = FakeRoots(store)
    text, name = lines(2, 20), None
    for number in range(40):
        text += lines(1000 + number, 4)
        name = store.put(b"".join(text), kind="context_snapshot", base=name)
    assert name is not None
    roots.append("run", name)
    store.gc(roots, grace=0)
    before = store.stats()
    assert before.kept_bytes > 0
    report = store.compact()
    assert (report.rebased, report.freed_bytes) == (0, 0)
    assert (store.stats().kept_bytes, store.stats().commits) == (before.kept_bytes, before.commits)
    assert store.get(name) == b"".join(text)


def test_a_part_is_freed_where_the_whole_is_not_worth_it(store: Store) -> None:
    """An old base that much rests on, each on another part of it, stays; a version of it that was kept for one small
    delta goes."""
    roots = FakeRoots(store)
    head = lines(3, 600)
    first = store.put(b"".join(head))
    many = {}
    for number in range(60):
        data = b"".join(head[number * 9 : number * 9 + 60])
        many[store.put(data, base=first)] = data
    large = store.put(b"".join(head + lines(4, 500)), base=first)
    data = b"".join(lines(4, 30) + head[:20])
    last = store.put(data, base=large)
    assert store.info(last).base == large and store.info(large).base == first
    sizes = {name: store.info(name).stored_bytes for name in (first, large)}
    roots.append("run", last, *many)
    store.gc(roots, grace=0)
    assert store.stats().kept_bytes == sum(sizes.values())
    report = store.compact()
    assert (report.rebased, report.freed_bytes) == (1, sizes[large])
    assert store.stats().kept_bytes == sizes[first] and store.info(last).base is None
    read_all(store, {**many, last: data})
    assert store.verify().findings == ()


def test_a_visible_base_below_is_used(store: Store) -> None:
    """Of a chain whose middle was collected the last part rests on the first."""
    roots = FakeRoots(store)
    head = lines(5, 300)
    first = store.put(b"".join(head))
    middle = store.put(b"".join(head + lines(6, 500)), base=first)
    data = b"".join(head + lines(7, 2))
    last = store.put(data, base=middle)
    assert store.info(last).base == middle
    roots.append("run", first, last)
    store.gc(roots, grace=0)
    report = store.compact()
    assert report.rebased == 1 and report.freed_bytes > 10_000
    assert store.info(last).base == first and store.info(last).stored_bytes < 250 and store.get(last) == data


def test_no_chain_of_bases_gets_longer(store: Store) -> None:
    """However many move, each is read through no more bases than before, and so is what rests on it."""
    roots = FakeRoots(store)
    expected = shrunk(store, roots, count=12)
    walk = store._backend.base_walk
    text, name = b"".join(lines(1, 200)), next(iter(expected))
    for number in range(8):
        text += b"step %d\n" % number
        name = store.put(text, base=name)
        expected[name] = text
    roots.append("run", *expected)
    depths = {name: len(walk(name.digest)) for name in expected}
    assert store.compact().rebased == 12
    assert all(len(walk(name.digest)) <= depths[name] for name in expected)
    read_all(store, expected)


def test_a_delta_above_a_frame_is_stored_as_frames(store: Store) -> None:
    """1.2 MiB that were a delta are frames afterwards: ranges read, and a put of the same bytes is a hit."""
    roots = FakeRoots(store)
    head = random.Random(8).randbytes(2 << 20)
    base = store.put(head)
    data = head[:1_200_000] + b"end"
    name = store.put(data, base=base)
    roots.append("run", name)
    store.gc(roots, grace=0)
    assert store.compact().freed_bytes > 2_000_000
    assert store.info(name).encoding == "frames" and store.info(name).base is None
    assert store.get_range(name, (1 << 20) - 5, 10) == data[(1 << 20) - 5 :][:10]
    assert store.put(data, verify=True) == name and store.get(name) == data and store.verify().findings == ()


def test_users_of_a_collected_dictionary_move(store: Store) -> None:
    """Unpinned and collected, a dictionary is kept for its users; they get the new one or are stored whole."""
    roots = FakeRoots(store)
    store.put_many([(data, "my_kind") for data in documents(800, 1)])
    old = store.train("my_kind")
    few = documents(3, 2)
    names = store.put_many([(data, "my_kind") for data in few])
    assert old is not None and store.info(names[0]).base == old
    roots.append("run", *names)
    store.unpin("dictionary/my_kind")
    store.gc(roots, grace=0, force=True)
    kept = store.stats().kept_bytes
    report = store.compact()
    assert report.rebased == 3 and report.freed_bytes == kept > 1024
    assert [store.get(name) for name in names] == few and store.verify().findings == ()


def test_kept_bytes_that_nothing_needs_go(store: Store) -> None:
    """What a stopped gc left over is no reason to copy it."""
    roots = FakeRoots(store)
    expected = shrunk(store, roots)
    roots.complete("run")
    store.gc(roots, grace=0, force=True, max_bytes=1)
    for name in [name for name in expected if name in store]:
        store.pin(str(name), name)
    store.compact()
    assert store.stats().kept_bytes == 0 and store.verify().findings == ()


def test_the_quarantine_keeps_what_it_needs(store: Store) -> None:
    """A delta in quarantine and its base stay as they are, and can be brought back."""
    roots = FakeRoots(store)
    head = lines(1, 2000)
    base = store.put(b"".join(head))
    data = b"".join(head[:200])
    buried, live = store.put(data, base=base), store.put(data + b"x", base=base)
    roots.append("run", live)
    store.gc(roots, grace=0, quarantine=3600)
    before = store.stats().kept_bytes
    report = store.compact()
    assert (report.rebased, report.freed_bytes, store.stats().kept_bytes) == (0, 0, before)
    store.undelete([buried, base])
    assert store.get(buried) == data and store.get(base) == b"".join(head) and store.get(live) == data + b"x"


# -- damage


def damage(store: Store, name: ArtifactId, *, record: bool = False) -> None:
    """Flip a bit in the artifact's first piece, or cut its record."""
    with store._backend._tables.write() as txn:  # type: ignore[attr-defined]
        data_id = u64(IxRow.unpack(txn.get(IX, name.digest)).data_id)
        if record:
            txn.put(DA, data_id, txn.get(DA, data_id)[:20])
            return
        key, piece = next(txn.scan(D, data_id))
        txn.put(D, key, piece[:9] + bytes([piece[9] ^ 4]) + piece[10:])


def test_a_damaged_artifact_stays_and_so_does_its_base(store: Store) -> None:
    """It is not replaced by anything; healed by a put, it needs no base, and the next compact frees the rest."""
    roots = FakeRoots(store)
    expected = shrunk(store, roots)
    bad = list(expected)[2]
    kept = store.stats().kept_bytes
    damage(store, bad)
    report = store.compact()
    assert (report.rebased, report.freed_bytes, report.skipped, store.stats().kept_bytes) == (0, 0, 1, kept)
    assert {found.id for found in store.verify().findings} == {bad}
    store.put(expected[bad])
    assert store.compact().freed_bytes == kept
    read_all(store, expected)
    assert store.verify().findings == ()


def test_a_damaged_base_is_not_forgotten(store: Store) -> None:
    """No artifact made against it reads, so none moves; the good bytes put again do not revive it in place."""
    shrunk(store, FakeRoots(store))
    with store._backend._tables.write() as txn:  # type: ignore[attr-defined]
        data_id, _ = next(txn.scan(b"kp1"))
        key, piece = next(txn.scan(D, data_id))
        txn.put(D, key, bytes(len(piece)))
    kept = store.stats().kept_bytes
    report = store.compact()
    assert (report.rebased, report.freed_bytes) == (0, 0) and report.skipped
    assert store.stats().kept_bytes == kept


def test_a_record_that_cannot_be_read_stops_the_freeing(store: Store) -> None:
    """It may name any base, so no kept bytes go."""
    roots = FakeRoots(store)
    shrunk(store, roots)
    other = store.put(b"other")
    damage(store, other, record=True)
    kept = store._backend.counters().kept_bytes
    report = store.compact()
    assert report.freed_bytes == 0 and report.skipped and store._backend.counters().kept_bytes == kept > 0


def test_an_encoding_that_does_not_decode_replaces_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A faulty encoder is found before it is too late."""
    roots = FakeRoots(store)
    expected = shrunk(store, roots)
    wrong = casstore.codec.encode_whole

    def faulty(data: bytes) -> Any:
        return wrong(data[:-1] + b"?")

    monkeypatch.setattr("casstore.recoding.codec.encode_whole", faulty)
    report = store.compact()
    assert report.skipped and report.freed_bytes == 0
    monkeypatch.undo()
    read_all(store, expected)
    assert store.verify().findings == ()


# -- small artifacts


def test_small_artifacts_get_the_dictionary_that_came_later(store: Store) -> None:
    """A kind with enough of them has one trained; all of them take less than half, under the data_ids that they had."""
    given = documents(700, 3)
    names = store.put_many([(data, "my_kind") for data in given])
    numbers = [row.data_id for row in store._backend.rows([name.digest for name in names]) if row]
    before = store.stats()
    report = store.compact()
    after = store.stats()
    assert report.trained == ("my_kind",) and report.condensed > 690
    dictionary = store.info(store.pins()["dictionary/my_kind"])
    assert report.condensed_bytes == before.stored_bytes - (after.stored_bytes - dictionary.stored_bytes)
    assert after.stored_bytes < before.stored_bytes / 2
    assert [store.get(name) for name in names] == given and store.verify().findings == ()
    assert [row.data_id for row in store._backend.rows([name.digest for name in names]) if row] == numbers
    assert store.info(names[0]).base == dictionary.id
    assert store.compact().condensed == 0


def test_a_dictionary_is_older_than_everything(store: Store) -> None:
    """Its data_id is one of those reserved, never the same twice; other artifacts get none of them."""

    def number(name: ArtifactId) -> int:
        row = store._backend.rows([name.digest])[0]
        assert row is not None
        return row.data_id

    first = store.put(b"a dictionary", kind="dictionary")
    other = store.put(b"no dictionary")
    assert number(first) == 1 and number(other) == DATA_IDS_RESERVED
    assert number(store.put_value([other], kind="dictionary")) > number(other)
    store.gc(FakeRoots(store), grace=0)
    assert number(store.put(b"a dictionary", kind="dictionary")) == 2
    with store._backend._tables.write() as txn:  # type: ignore[attr-defined]
        txn.put(b"meta1", RESERVED_KEY, u64(DATA_IDS_RESERVED - 1))
    assert number(store.put(b"the last of them", kind="dictionary")) == DATA_IDS_RESERVED - 1
    assert number(store.put(b"one more", kind="dictionary")) > DATA_IDS_RESERVED
    assert store.verify().findings == ()


def test_a_home_from_before_dictionaries_had_numbers(store: Store) -> None:
    """What is older than its kind's dictionary stays as it is; what is younger uses it."""
    with store._backend._tables.write() as txn:  # type: ignore[attr-defined]
        txn.delete(b"meta1", RESERVED_KEY)
    given = documents(700, 3)
    old = store.put_many([(data, "my_kind") for data in given[:600]])
    report = store.compact()
    assert report.trained == ("my_kind",) and report.condensed == 0
    young = store.put_many([(data, "my_kind") for data in given[600:]])
    assert store.info(young[0]).base is not None and store.info(old[0]).base is None
    assert [store.get(name) for name in [*old, *young]] == given and store.verify().findings == ()


def test_noise_is_left_alone(store: Store) -> None:
    """Nothing to learn, nothing to gain: no commit is made."""
    rng = random.Random(9)
    store.put_many([(rng.randbytes(300), "my_kind") for _ in range(600)])
    before = store.stats()
    report = store.compact()
    assert (report.trained, report.condensed) == ((), 0) and store.stats().commits == before.commits


# -- limits


def test_limits_stop_it_and_the_next_goes_on(store: Store) -> None:
    """Stopped before the first transaction nothing changed; after a few, the rest is done later."""
    names = store.put_many([(data, "my_kind") for data in documents(700, 3)])
    assert store.compact(max_time=0).stopped == "time" and store.stats().pins == 0
    assert store.compact(reencode=False).condensed == 0 and store.stats().pins == 0
    report = store.compact(max_bytes=100_000)
    assert report.stopped == "bytes" and 0 < report.condensed < 600
    rest = store.compact()
    assert rest.stopped == "" and 690 < rest.condensed + report.condensed <= 700
    assert [store.get(name) for name in names] == documents(700, 3)
    with pytest.raises(casstore.InvalidArgument):
        store.compact(max_bytes=-1)
    with pytest.raises(casstore.InvalidArgument):
        store.compact(max_time=-1)


def test_a_quota_that_is_reached_ends_the_first_half_only(tmp_path: Path) -> None:
    """There is no room for new encodings: the copy is made all the same."""
    with casstore.open(tmp_path / "home") as store:
        shrunk(store, FakeRoots(store))
        store._writer._quota = 1
        report = store.compact()
        assert report.stopped == "full" and report.rebased == 0 and report.after_bytes < report.before_bytes


# -- beside others


def test_readers_read_at_every_step(store: Store) -> None:
    """Whatever is moved reads right before, between and after, by a second reader too."""
    roots = FakeRoots(store)
    expected = shrunk(store, roots)
    small = documents(600, 3)
    names = store.put_many([(data, "my_kind") for data in small])
    other = Reader(store._backend, casstore.recent.RecentBytes())

    def look(step: str) -> None:
        read_all(store, expected)
        assert all(other.get(name.digest) == data for name, data in expected.items())
        assert all(store.get(name) == data for name, data in zip(names[::50], small[::50], strict=True))

    with at_each(look) as seen:
        store.compact()
    assert {"compact.reencoded", "compact.released", "compact.purged", "compact.trained"} <= set(seen)


def test_a_reader_between_two_looks_begins_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It read the record of a delta whose base is frames; before it reads those they are gone. It reads the new one."""
    roots = FakeRoots(store)
    head = random.Random(8).randbytes(2 << 20)
    base = store.put(head)
    name = store.put(head[:300_000] + b"end", base=base)
    roots.append("run", name)
    store.gc(roots, grace=0)
    load, compactions = store._backend.load, []

    def load_then_compact(digest: bytes, known: Any) -> Any:
        found = load(digest, known)
        if not compactions:
            compactions.append(1)
            assert store.compact().freed_bytes > 2_000_000
        return found

    monkeypatch.setattr(store._backend, "load", load_then_compact)
    fresh = Reader(store._backend, casstore.recent.RecentBytes())
    assert fresh.get(name.digest) == head[:300_000] + b"end" and compactions


def collect(store: Store, roots: FakeRoots) -> None:
    """A gc that does not ask for the lock, as one of another machine's clock or of a process taken for dead."""
    collector = Collector(store._backend, roots, now_s=int(store._clock()), grace_s=0)
    collector.run(plausible=lambda *_: None)


WRITERS: dict[str, Callable[[Store, FakeRoots, list[ArtifactId], dict[ArtifactId, bytes]], object]] = {
    "a gc": lambda store, roots, names, expected: collect(store, roots),
    "a put of a new version": lambda store, roots, names, expected: roots.append(
        "run", store.put(expected[names[1]] + b"more", base=names[1])
    ),
    "a hit": lambda store, roots, names, expected: store.put(expected[names[1]]),
    "the base comes back": lambda store, roots, names, expected: roots.append(
        "run", store.put(b"".join(lines(1, 2000)), kind="output")
    ),
    "the base comes back, and a gc": lambda store, roots, names, expected: (
        roots.append("run", store.put(b"".join(lines(1, 2000)))), collect(store, roots)
    ),
    "one is collected": lambda store, roots, names, expected: (
        roots.live["run"].remove(names[0]) if names[0] in roots.live["run"] else None, collect(store, roots)
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRITERS)
@pytest.mark.parametrize("batch", [1, 200])
def test_others_act_at_every_step(store: Store, what: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a live run names reads, whatever happens between two transactions; then a gc and a compact leave no kept
    bytes."""
    monkeypatch.setattr("casstore.recoding.BATCH_ITEMS", batch)
    roots = FakeRoots(store)
    expected = shrunk(store, roots)
    names = list(expected)

    def act(step: str) -> None:
        WRITERS[what](store, roots, names, expected)

    with at_each(act) as seen:
        store.compact()
    assert {"compact.before_reencode", "compact.reencoded"} <= set(seen)
    assert all(store.get(name) == data for name, data in expected.items() if name in roots.live["run"])
    assert all(ArtifactId.of(store.get(name)) == name for name in roots.live["run"])
    assert store.verify().findings == ()
    store.gc(roots, grace=0)
    store.compact()
    store.gc(roots, grace=0)
    assert store.stats().kept_bytes == 0 and store.verify().findings == ()


GC_STEPS = ["gc.opened", "gc.position", "gc.rooted", "gc.marked", "gc.before_batch", "gc.after_batch", "gc.purged"]


def moved_onto_garbage(store: Store, step: str, *, touching: bool = True) -> bool:
    """A gc at one of its steps: a live delta is moved from one base onto another, which that gc is about to take (H15).
    Whether all that is live reads after it."""
    roots = FakeRoots(store)
    head = lines(1, 300)
    other = store.put(b"".join(head))
    first = store.put(b"".join(head) + b"first", kind="output")  # of another kind: else it would be a delta
    data = b"".join(head) + b"live"
    name = store.put(data, base=first)
    roots.append("run", name)
    store._clock.advance(7200)  # type: ignore[attr-defined]
    moved = []

    def listener(reached: str) -> None:
        if reached == step and not moved:
            backend = store._backend
            record = next(found for found in backend.records(0, 100) if found.digest == name.digest)
            row = backend.rows([other.digest])[0]
            encoded = casstore.codec.encode(data, b"".join(head))
            if row is None:
                return
            item = casstore.backend.NewEncoding(record, encoded.codec, encoded.stored, (other.digest, row.data_id), 1)
            moved.extend(backend.reencode([item], int(store._clock())))

    steps.listen(listener)
    try:
        collect(store, roots)
        collect(store, roots)
    finally:
        steps.listen(None)
    return store.verify().findings == () and Reader(store._backend, casstore.recent.RecentBytes()).is_sound(name.digest)


@pytest.mark.parametrize("step", GC_STEPS)
def test_a_move_is_seen_by_the_gc_that_is_open(store: Store, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whichever step of gc a delta is moved, its new base is kept for it (H15)."""
    monkeypatch.setattr("casstore.gc.BATCH_ROWS", 1)
    assert moved_onto_garbage(store, step)


def test_a_move_that_is_no_touch_loses_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule taken out: the test above would find it."""
    monkeypatch.setattr("casstore.gc.BATCH_ROWS", 1)
    monkeypatch.setattr(rewrites, "touch", lambda *_: None)
    with memory_store(clock=FakeClock()) as store:
        assert not moved_onto_garbage(store, "gc.marked")


def test_a_younger_or_invisible_base_is_refused(store: Store) -> None:
    """Decided in the transaction (H16); and so is a record that is not what was read any more."""
    text = b"".join(lines(1, 300))
    old = store.put(text + b"old")
    young = store.put(text)
    backend = store._backend
    records = {found.digest: found for found in backend.records(0, 100)}
    encoded = casstore.codec.encode(text + b"old", text)

    def tried(base: tuple[bytes, int], **changed: Any) -> list[bool]:
        record = records[old.digest]._replace(**changed)
        return backend.reencode(
            [casstore.backend.NewEncoding(record, encoded.codec, encoded.stored, base)], int(store._clock())
        )

    commits = store.stats().commits
    assert tried((young.digest, records[young.digest].data_id)) == [False]
    assert tried((young.digest, 1)) == [False] and tried((bytes(32), 1)) == [False]
    assert tried((old.digest, records[old.digest].data_id)) == [False]  # itself
    assert tried((young.digest, 1), stored_len=5) == [False]
    assert store.stats().commits == commits and store.get(old) == text + b"old"


def test_bytes_that_a_newer_record_needs_are_not_released(store: Store) -> None:
    """A record renumbered since the look carries its base along."""
    roots = FakeRoots(store)
    expected = shrunk(store, roots, count=1)
    kept = store._backend.kept()[0].data_id
    assert store._backend.release([kept], kept) == []
    assert store._backend.release([kept], 1 << 40) == [kept]  # as if all had been looked at, and nothing needed it
    with pytest.raises(casstore.Corrupt):
        Reader(store._backend, casstore.recent.RecentBytes()).get(next(iter(expected)).digest)


# -- killed


IN_SMALL = "casstore.recoding.BATCH_ITEMS = 4; casstore.reencoding.TRAIN_FROM = 100"


def test_killed_at_every_step(tmp_path: Path) -> None:
    """SIGKILL at each step of the re-encoding: all reads the same, verify finds nothing, a put goes on from what is
    there, and the next compact finishes it."""
    small = documents(130, 3)

    with casstore.open(tmp_path / "made") as store:
        expected = shrunk(store, FakeRoots(store))
        names = store.put_many([(data, "my_kind") for data in small])
        expected |= dict(zip(names, small, strict=True))
    shutil.copytree(tmp_path / "made", tmp_path / "count")
    total = int(compacting(tmp_path / "count", 0, IN_SMALL).communicate()[0])
    assert total > 20
    seen = set()
    for stop in [*range(1, 12), *range(12, total, total // 4), total]:
        home = tmp_path / f"home{stop}"
        shutil.copytree(tmp_path / "made", home)
        killed = compacting(home, stop, IN_SMALL)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        with casstore.open(home) as store:
            assert store.verify().findings == ()  # which reads all of it
            assert set(expected) <= set(store)
            seen.add((store.stats().kept_bytes > 0, "dictionary/my_kind" in store.pins()))
            first = next(iter(expected))
            assert store.get(store.put(expected[first] + b"on", base=first)) == expected[first] + b"on"
            store.compact()
            read_all(store, expected)
            assert store.stats().kept_bytes == 0 and store.verify().findings == ()
    assert len(seen) == 3  # killed before, between and after


WRITER = """
import sys
import casstore
home, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with casstore.open(home) as store:
    names, text = [], b"".join(b"%d line %d\\n" % (seed, n) for n in range(3000))
    base = store.put(text)
    for n in range(count):
        data = text[: 9000 + n] + b"by %d" % seed
        base = store.put(data, base=base)
        names.append((base, data))
        store.put(b'{"by": %d, "n": %d, "text": "some text that all of them have"}' % (seed, n), kind="my_kind")
    assert all(store.get(name) == data for name, data in names)
"""


def test_processes_write_and_collect_while_one_compacts(tmp_path: Path) -> None:
    """Writers in processes of their own, gc and compact in turn: what is pinned reads, and nothing is damaged."""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        roots = FakeRoots(store)
        expected = shrunk(store, roots)
        writers = [child(WRITER, home, seed, 120) for seed in range(2)]
        rounds = 0
        while any(writer.poll() is None for writer in writers):
            store.compact()
            store.gc(roots, grace=3600)
            read_all(store, expected)
            rounds += 1
        for writer in writers:
            writer.communicate()
            assert writer.returncode == 0
        assert rounds > 1 and store.verify().findings == ()
        store.gc(roots, grace=0, force=True)
        store.compact()
        read_all(store, expected)
        assert store.verify().findings == ()


# -- any history


@settings(BRIEF, max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 30), st.integers(1, 60), st.booleans()), min_size=4, max_size=30
    ),
    forgotten=st.sets(st.integers(0, 29)),
)  # fmt: skip
def test_any_history_reads_the_same(steps: list[tuple[int, int, int, bool]], forgotten: set[int]) -> None:
    """Versions that grow, shrink, fork and are forgotten: compact changes no bytes, takes no more room for them than it
    says, lets go of nothing that is needed, and a second one finds nothing to do."""
    with memory_store(clock=FakeClock()) as store:
        roots = FakeRoots(store)
        made: list[tuple[ArtifactId, bytes]] = []
        for parent, cut, more, whole in steps:
            before = made[max(len(made) - 1 - parent, 0)] if made else None
            text = b"" if before is None else before[1][: len(before[1]) * cut // 30]
            data = text + b"".join(lines(len(made), more))
            made.append((store.put(data, base=None if before is None or whole else before[0]), data))
        expected = {name: data for place, (name, data) in enumerate(made) if place not in forgotten}
        roots.append("run", *expected)
        store.gc(roots, grace=0)
        before_stats = store.stats()
        report = store.compact()
        after = store.stats()
        read_all(store, expected)
        assert store.verify().findings == ()
        assert after.stored_bytes - before_stats.stored_bytes == report.rebased_bytes
        assert before_stats.kept_bytes - after.kept_bytes == report.freed_bytes
        assert not report.rebased or report.freed_bytes > report.rebased_bytes
        assert store.gc(roots, grace=0).stored_bytes == 0  # nothing was left that could go
        assert store.compact().rebased == 0


def test_records_are_what_format_says(store: Store) -> None:
    """Whole: chain and base are 0; a delta keeps its number in the chain of versions."""
    expected = shrunk(store, FakeRoots(store))
    store.compact()
    with store._backend._tables.read() as txn:  # type: ignore[attr-defined]
        found = [DaRow.unpack(value) for _, value in txn.scan(DA)]
    rows = {row.digest: row for row in found}
    kept = [(rows[name.digest].base > 0, rows[name.digest].chain) for name in expected]
    assert kept == [(False, 0)] + [(True, 1)] * 4
    assert all(row.earlier == 0 for row in found)


def test_the_command(tmp_path: Path) -> None:
    """`casstore compact` says what it did; --max-time ends with the code for what can be gone on with."""
    home, other = tmp_path / "home", tmp_path / "other"
    with casstore.open(home) as store:
        shrunk(store, FakeRoots(store))
    shutil.copytree(home, other)
    code = "import sys; from casstore.cli.main import main; sys.argv = ['casstore', *sys.argv[1:]]; main()"

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        called = child(code, "compact", "--home", home, "--json", *arguments)
        out = called.communicate()[0]
        return called.returncode, json.loads(out)

    exit_code, document = run("--max-time", "0s")
    assert (exit_code, document["stopped"], document["rebased"]) == (4, "time", 0)
    exit_code, document = run("--no-reencode")
    assert (exit_code, document["stopped"], document["rebased"]) == (0, "", 0)
    exit_code, document = run()
    assert exit_code == 0 and document["rebased"] == 5 and document["freed_bytes"] > document["rebased_bytes"] > 0
    told = child(code, "compact", "--home", other).communicate()[0].splitlines()
    assert len(told) == 2 and "before" in told[0] and told[1].startswith("5 deltas moved, ")
