"""Bytes that are kept of collected artifacts, since deltas are made of them: a put of the good bytes heals them."""

import io
import random

import pytest

import casstore
from casstore import Collected, Corrupt, steps
from casstore.rows import DA, KP, D, DaRow, piece_key, u64
from casstore.testing import FakeClock, FakeRoots

SMALL = b"".join(b"line %d of what a delta is made against\n" % n for n in range(300))
# Above the size of a frame: kept in frames, but damaged bytes are rewritten whole.
LARGE = b"".join(b"%d %d\n" % (n, n * n) for n in range(90_000))
MORE = b"and a line more\n"


@pytest.fixture(params=[SMALL, LARGE], ids=["small", "large"])
def data(request):
    return request.param


class World:
    """A base that was collected, and a live delta on it."""

    def __init__(self, home, data):
        self.home, self.data, self.clock = home, data, FakeClock()
        with self.open() as store:
            self.base = store.put(data)
            self.child = store.put(data + MORE, base=self.base)
            assert store.info(self.child).base == self.base
            self.roots = FakeRoots(store)
            self.roots.append("run", self.child)
            report = self.collect(store)
            assert [name for name, _ in report.removed] == [self.base] and report.kept_bytes > 0

    def open(self):
        return casstore.open(self.home, clock=self.clock)

    def collect(self, store, **options):
        return store.gc(self.roots, grace=0, **options)

    def kept(self, store):
        """data_ids of the bytes that are kept."""
        return [found.data_id for found in store._backend.kept()]

    def damage(self, data_id, how="flip"):
        with self.open() as store, store._backend._tables.write() as t:
            key = piece_key(data_id, 0)
            piece = bytearray(t.get(D, key))
            piece[len(piece) // 2] ^= 16
            t.put(D, key, bytes(piece))
            if how == "record":
                record = DaRow.unpack(t.get(DA, u64(data_id)))
                t.put(DA, u64(data_id), record._replace(raw_len=record.raw_len + 1).pack())
            elif how == "missing":
                t.delete(D, key)


@pytest.fixture
def world(tmp_path, data):
    return World(tmp_path / "home", data)


@pytest.mark.parametrize("how", ["flip", "record", "missing"])
def test_a_put_heals_the_kept_bytes_in_place(world, how):
    """Scenario 8 of the cases: damage a delta's base, put the base: its children read again."""
    with world.open() as store:
        (data_id,) = world.kept(store)
    world.damage(data_id, how)
    with world.open() as store:
        with pytest.raises(Corrupt):
            store.get(world.child)
        assert {found.id for found in store.verify().findings} == {world.base, world.child}
        assert store.put(world.data) == world.base
        assert store.get(world.child) == world.data + MORE and store.get(world.base) == world.data
        assert world.kept(store) == [data_id]  # where it lay: what is newer than its child must not be its base
        assert store.verify().findings == ()
    with world.open() as store:
        assert store.get(world.child) == world.data + MORE
        world.roots.complete("run")
        world.collect(store)
        stats = store.stats()
        assert (stats.artifacts, stats.stored_bytes, stats.kept_bytes) == (0, 0, 0)


def test_a_put_that_is_a_hit_heals_them_too(world):
    """Put again before the damage, the artifact is visible and sound; its older copy is damaged, and healed."""
    with world.open() as store:
        (data_id,) = world.kept(store)
        store.put(world.data)
    world.damage(data_id)
    with world.open() as store:
        assert store.get(world.base) == world.data
        assert [(found.code, found.id) for found in store.verify().findings if found.id == world.base] == [
            ("corrupt_base", world.base)
        ]
        before = store.stats().artifacts
        store.put(world.data)
        assert store.stats().artifacts == before and store.verify().findings == ()
        assert store.get(world.child) == world.data + MORE


def test_put_many_and_streams_heal_as_well(world):
    """Whatever the call."""
    with world.open() as store:
        (data_id,) = world.kept(store)
    for put in (lambda store: store.put_many([world.data]), lambda store: store.put_file(io.BytesIO(world.data))):
        world.damage(data_id)
        with world.open() as store:
            assert not store.verify().ok
            put(store)
            assert store.verify().findings == ()


def test_sound_bytes_are_left_alone(world):
    """No write but that of the put itself."""
    with world.open() as store:
        (data_id,) = world.kept(store)
        seen = []
        steps.listen(seen.append)
        try:
            store.put(world.data)
            store.put(world.data)
        finally:
            steps.listen(None)
        assert "put.healed_kept" not in seen and world.kept(store) == [data_id]


def test_every_kept_copy_is_found(tmp_path):
    """Two copies are kept, each for a delta of its own; one goes, in any order, and the other is still found."""
    for first in ("old", "new"):
        world = World(tmp_path / first, SMALL)
        with world.open() as store:
            store.put(SMALL)
            other = SMALL + b"another child\n"
            child = store.put(other, base=world.base)
            world.roots.append("other run", child)
            world.collect(store)
            old, new = sorted(world.kept(store))
            assert store._backend.copies(world.base.digest) == [new, old]
            with pytest.raises(Collected):
                store.get(world.base)
        for data_id in (old, new):
            world.damage(data_id)
        with world.open() as store:
            store.put(SMALL)
            assert store.verify().findings == ()
            assert store._backend.copies(world.base.digest) == [new, old]
            world.roots.complete("run" if first == "old" else "other run")
            world.collect(store)  # takes the child, then its base's bytes
            left = new if first == "old" else old
            assert world.kept(store) == [left] == store._backend.copies(world.base.digest)
        world.damage(left)
        with world.open() as store:
            assert not store.verify().ok
            store.put(SMALL)
            assert store.verify().findings == ()


def test_the_newest_copy_goes_and_leads_to_the_older(tmp_path):
    """A copy that nothing needs is collected: what is left of it still leads to the bytes that are kept."""
    world = World(tmp_path / "home", SMALL)
    with world.open() as store:
        (data_id,) = world.kept(store)
        store.put(SMALL)
        world.collect(store)
        assert world.kept(store) == [data_id] == store._backend.copies(world.base.digest)
        with pytest.raises(Collected) as error:
            store.get(world.base)
        assert type(error.value) is Collected and list(store.buried()) == []
    world.damage(data_id)
    with world.open() as store:
        store.put(SMALL)
        assert store.verify().findings == ()


def test_quarantined_copies_are_found_by_the_same_way(tmp_path):
    """One that is kept for a delta and one in quarantine."""
    world = World(tmp_path / "home", SMALL)
    with world.open() as store:
        (data_id,) = world.kept(store)
        store.put(SMALL)
        world.collect(store, quarantine=3600)
        newer = max(world.kept(store))
        assert store._backend.copies(world.base.digest) == [newer, data_id] and len(list(store.buried())) == 1
        world.clock.advance(3601)
        world.collect(store)
        assert world.kept(store) == [data_id] == store._backend.copies(world.base.digest)
        assert list(store.buried()) == [] and store.verify().ok


def test_a_copy_that_a_gc_took_meanwhile_is_not_written(tmp_path):
    """Between the put and the healing of the older copy a gc takes that: nothing comes back from the dead."""
    world = World(tmp_path / "home", SMALL)
    with world.open() as store:
        (data_id,) = world.kept(store)
    world.damage(data_id)
    with world.open() as store:
        world.roots.complete("run")

        def listener(step):
            if step == "put.after_commit":
                steps.listen(None)
                world.collect(store)

        steps.listen(listener)
        try:
            store.put(SMALL)
        finally:
            steps.listen(None)
        assert world.kept(store) == [] and store.verify().ok


def test_repair_heals_kept_bytes_from_another_home(world, tmp_path):
    """verify --repair-from: what verify finds damaged, and is kept for deltas only."""
    with world.open() as store:
        (data_id,) = world.kept(store)
    world.damage(data_id)
    with world.open() as store, casstore.open(tmp_path / "other") as other:
        other.put(world.data)
        findings = [found.id for found in store.verify().findings if found.code == "corrupt_base"]
        report = store.repair(other, findings)
        assert report.repaired == (world.base,) and store.verify().findings == ()


def test_random_histories_keep_every_copy_in_reach(tmp_path):
    """Puts of few values as deltas of each other, roots and gcs at random: all kept bytes are listed by digest."""
    rng = random.Random(11)
    clock = FakeClock()
    with casstore.open(tmp_path / "home", clock=clock) as store:
        roots = FakeRoots(store)
        texts = [SMALL + b"version %d\n" % n * n for n in range(5)]
        for step in range(150):
            text = rng.choice(texts)
            base = store.put(rng.choice(texts)) if rng.random() < 0.7 else None
            name = store.put(text, base=base)
            if rng.random() < 0.5:
                roots.append(f"run {rng.randrange(4)}", name)
            if rng.random() < 0.3 and roots.live:
                roots.complete(rng.choice(sorted(roots.live)))
            if rng.random() < 0.4:
                clock.advance(100)
                store.gc(roots, grace=0, quarantine=rng.choice([0, 0, 150]))
                assert store.verify().ok
            with store._backend._tables.read() as t:
                rows = {int.from_bytes(key, "big"): digest for key, digest in t.scan(KP)}
            found = {data_id: digest for digest in set(rows.values()) for data_id in store._backend.copies(digest)}
            assert found == rows, step
