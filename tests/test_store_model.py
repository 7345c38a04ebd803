"""A store on disk, and one in memory, driven at random beside a set of what must be there."""

from __future__ import annotations

import io
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers import BRIEF, soak_machine
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import casstore
from casstore import ArtifactId, Lease, PutItem, values
from casstore.rows import DaRow, IxRow, from_u64, u64
from casstore.testing import FakeClock, FakeRoots, memory_store

KINDS = ("other", "output", "context_snapshot", "my_kind")
GRACE_LARGEST = 3600


def document(version: int) -> bytes:
    """Versions resemble each other, so that they become deltas."""
    lines = [b"line %d says %d\n" % (n, n * n % 997) for n in range(220 + 9 * version)]
    lines[version * 20] = b"version %d\n" % version
    return b"".join(lines)


def contents() -> tuple[dict[ArtifactId, bytes], dict[ArtifactId, tuple[ArtifactId, ...]]]:
    """Bytes of each artifact of the model, and what it links to; children first."""
    rng = random.Random(7)
    plain = [b"", b"x", rng.randbytes(5000), rng.randbytes(9000), *map(document, range(10)), rng.randbytes(1_100_000)]
    known = {ArtifactId.of(data): data for data in plain}
    links: dict[ArtifactId, tuple[ArtifactId, ...]] = dict.fromkeys(known, ())
    for children in ([2], [3, 15], [16, 5], [5, 6], [17, 18], [19, 1], [14, 4], [20]):
        names = tuple(list(known)[child] for child in children)
        data = values.encode({"n": len(known), "links": list(names), "text": "text " * 20 * len(known)})[0]
        known[ArtifactId.of(data)], links[ArtifactId.of(data)] = data, names
    return known, links


KNOWN, LINKS = contents()
NAMES = list(KNOWN)
LARGE = NAMES[14]

NUMBERS = st.sampled_from([n for n in range(len(NAMES)) if n != 14] * 3 + [14])
PICKS = st.sampled_from(range(64))
WHATS = st.sampled_from(KINDS)
HINTS = st.sampled_from([None, *range(4, 14)])
AFTER_DAMAGE = st.sampled_from(["heal", "heal", "compact", "reopen", "collect"])
GRACES = st.sampled_from([0, 0, 0, 10, 600, GRACE_LARGEST])
WINDOWS = st.sampled_from([0, 0, 30, 5000])


def closure_of(ids: Iterable[ArtifactId]) -> set[ArtifactId]:
    todo, seen = list(ids), set[ArtifactId]()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += LINKS[name]
    return seen


@dataclass
class There:
    """An artifact that must be there: what it was called, when it was last touched, at the earliest and the latest."""

    kinds: set[str] = field(default_factory=set)
    touched: tuple[float, float] = (0, 0)


@dataclass
class Held:
    """A lease: its handle while the process that made it lives."""

    handle: Lease | None
    expiry: int
    ids: set[ArtifactId] = field(default_factory=set)


class StoreMachine(RuleBasedStateMachine):
    """`there` is what must be there; everything else must be gone."""

    def open(self) -> casstore.Store:
        self.home = Path(tempfile.mkdtemp(prefix="model"))
        return self.reopened()

    def reopened(self) -> casstore.Store:
        return casstore.open(self.home, clock=self.clock)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.home)

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock()
        self.store = self.open()
        self.roots = FakeRoots(self.store)
        self.there: dict[ArtifactId, There] = {}
        self.gone: dict[ArtifactId, set[str]] = {}  # the kinds that each had
        self.buried: dict[ArtifactId, int] = {}  # until when it can be brought back, at least
        self.pins: dict[str, ArtifactId] = {}
        self.leases: dict[str, Held] = {}
        self.smallest_grace = GRACE_LARGEST
        self.put_versions(0, 8, "context_snapshot")
        self.pin(7, "a")
        self.lease(20)
        self.use_lease(0, 2, "other", "add")

    # -- plumbing

    def now(self) -> int:
        return int(self.clock.now)

    def some(self, pick: int) -> ArtifactId:
        """One that is there, or any."""
        there = [name for name in NAMES if name in self.there]
        return there[pick % len(there)] if there and pick < 56 else NAMES[pick % len(NAMES)]

    def took(self, name: ArtifactId, kind: str | None, *, sure: bool = False) -> None:
        """It was put or held; a put that finds a young row need not touch it."""
        found = self.there.setdefault(name, There())
        slack = 0 if sure or not found.kinds else self.smallest_grace / 2
        found.touched = (max(self.now() - slack, found.touched[0]), self.now())
        if kind is not None:
            found.kinds.add(kind)
        self.gone.pop(name, None)
        self.buried.pop(name, None)

    def raises(self, error: type[Exception], call: Callable[[], Any]) -> None:
        with pytest.raises(error) as caught:
            call()
        assert error is not casstore.NotFound or not issubclass(caught.type, casstore.Collected)

    def absent(self, name: ArtifactId) -> type[Exception]:
        return casstore.Collected if name in self.gone else casstore.NotFound

    # -- rules

    def _put(self, name: ArtifactId, kind: str, call: Callable[[], ArtifactId], *, linked: bool = True) -> None:
        if linked and name not in self.there and not set(LINKS[name]) <= self.there.keys():
            self.raises(casstore.MissingArtifact, call)
            return
        assert call() == name
        self.took(name, kind)

    @rule(number=NUMBERS, kind=WHATS, base=HINTS, durable=st.booleans())
    def put(self, number: int, kind: str, base: int | None, durable: bool) -> None:
        name, hint = NAMES[number], None if base is None else NAMES[base]
        self._put(name, kind, lambda: self.store.put(KNOWN[name], kind=kind, base=hint, durable=durable))

    @rule(pick=PICKS, kind=WHATS, base=HINTS)
    def put_with_children(self, pick: int, kind: str, base: int | None) -> None:
        """Everything that it links to goes before it."""
        wanted = closure_of([NAMES[pick % len(NAMES)]])
        hint = None if base is None else NAMES[base]
        for name in NAMES:
            if name in wanted:
                self._put(name, kind, lambda name=name: self.store.put(KNOWN[name], kind=kind, base=hint))

    @rule(first=st.integers(0, 8), count=st.integers(2, 10), kind=WHATS)
    def put_versions(self, first: int, count: int, kind: str) -> None:
        """Each on the one before; the last one may stay when its bases are collected."""
        base = None
        for name in NAMES[4 + first : min(4 + first + count, 14)]:
            self._put(name, kind, lambda name=name, base=base: self.store.put(KNOWN[name], kind=kind, base=base))
            base = name

    @rule(number=st.integers(15, len(NAMES) - 1), kind=WHATS)
    def put_value(self, number: int, kind: str) -> None:
        name = NAMES[number]
        value = values.decode(KNOWN[name])
        self._put(name, kind, lambda: self.store.put_value(value, kind=kind))

    @rule(number=NUMBERS, kind=WHATS)
    def put_file(self, number: int, kind: str) -> None:
        name = NAMES[number]
        self._put(name, kind, lambda: self.store.put_file(io.BytesIO(KNOWN[name]), kind=kind))

    @rule(numbers=st.lists(NUMBERS.filter(lambda n: n != 14), max_size=5), kind=WHATS, base=HINTS)
    def put_many(self, numbers: list[int], kind: str, base: int | None) -> None:
        """One commit: all of them or none."""
        names = [NAMES[number] for number in numbers]
        hint = None if base is None else NAMES[base]
        items = [PutItem(data=KNOWN[name], kind=kind, base=hint) for name in names]
        seen = set(self.there)
        for name in names:
            if name not in seen and not set(LINKS[name]) <= seen:
                self.raises(casstore.MissingArtifact, lambda: self.store.put_many(items))
                return
            seen.add(name)
        assert self.store.put_many(items) == names
        for name in names:
            self.took(name, kind)

    @rule(pick=PICKS, pin=st.sampled_from("abc"))
    def pin(self, pick: int, pin: str) -> None:
        name = self.some(pick)
        if name not in self.there:
            self.raises(self.absent(name), lambda: self.store.pin(pin, name))
            return
        self.store.pin(pin, name)
        self.pins[pin] = name
        self.took(name, None, sure=True)

    @rule(pin=st.sampled_from("abc"))
    def unpin(self, pin: str) -> None:
        if pin in self.pins:
            self.store.unpin(pin)
            del self.pins[pin]
        else:
            self.raises(casstore.PinNotFound, lambda: self.store.unpin(pin))

    @rule(ttl=st.sampled_from([1, 20, 700]))
    def lease(self, ttl: int) -> None:
        handle = self.store.lease(ttl)
        self.leases[handle.name] = Held(handle, self.now() + ttl + 1)

    @precondition(lambda self: any(held.handle for held in self.leases.values()))
    @rule(which=PICKS, pick=PICKS, kind=WHATS, how=st.sampled_from(["put", "put", "add", "add", "renew", "close"]))
    def use_lease(self, which: int, pick: int, kind: str, how: str) -> None:
        """A lease that expired holds on until a gc removes it; then every use says that it is lost."""
        handles = [held for held in self.leases.values() if held.handle]
        held = handles[which % len(handles)]
        handle, name = held.handle, self.some(pick)
        assert handle is not None
        lost = held.expiry < 0
        if how == "close":
            handle.close()
            del self.leases[handle.name]
        elif lost:
            for call in (
                lambda: handle.renew(), lambda: handle.put(b"x"), lambda: handle.add(*list(self.there)[:1]),
            ):  # fmt: skip
                self.raises(casstore.LeaseLost, call)
        elif how == "renew":
            handle.renew(30)
            held.expiry = self.now() + 31
        elif how == "add" and name not in self.there:
            self.raises(self.absent(name), lambda: handle.add(name))
        elif how == "add":
            handle.add(name)
            held.ids.add(name)
            self.took(name, None, sure=True)
        elif set(LINKS[name]) <= self.there.keys():
            assert handle.put(KNOWN[name], kind=kind) == name
            held.ids.add(name)
            self.took(name, kind, sure=True)

    @rule(pick=PICKS, run=st.sampled_from("rs"))
    def name_in_a_run(self, pick: int, run: str) -> None:
        if self.some(pick) in self.there:
            self.roots.append(run, self.some(pick))

    @rule(run=st.sampled_from("rs"))
    def complete_a_run(self, run: str) -> None:
        self.roots.complete(run)

    @rule(seconds=st.sampled_from([0.5, 1, 9, 10, 299, 600, 1800, 4000]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(grace=GRACES, quarantine=WINDOWS, dry_run=st.booleans())
    def collect(self, grace: int, quarantine: int, dry_run: bool) -> None:
        self._collect(grace, quarantine, dry_run)

    @rule()
    def collect_all(self) -> None:
        self._collect(0)

    def _collect(self, grace: int, quarantine: int = 0, dry_run: bool = False) -> None:
        """What stays is what pins, leases, live runs and young artifacts need, and nothing else."""
        roots = {*self.pins.values(), *(name for ids in self.roots.live.values() for name in ids)}
        for held in self.leases.values():
            if held.expiry > self.now():
                roots |= held.ids
        if grace:
            roots |= {name for name in self.there if self.store.info(name).touched_s >= self.now() - grace}
        kept = closure_of(roots)
        assert kept <= self.there.keys()
        preview = self.store.gc(self.roots, grace=grace, quarantine=quarantine, dry_run=True)
        assert {name for name, _ in preview.removed} == self.there.keys() - kept
        if dry_run:
            return
        report = self.store.gc(self.roots, grace=grace, quarantine=quarantine)
        assert sorted(report.removed) == sorted(preview.removed)
        assert (report.kept_bytes, report.quarantined_bytes) == (preview.kept_bytes, preview.quarantined_bytes)
        assert report.live == len(kept)
        self.smallest_grace = min(self.smallest_grace, grace)
        for lease in [lease for lease, held in self.leases.items() if held.expiry <= self.now()]:
            self.leases[lease].ids.clear()
            self.leases[lease].expiry = -1
        self.buried = {name: until for name, until in self.buried.items() if until > self.now()}
        for name in self.there.keys() - kept:
            if quarantine:
                self.buried[name] = self.now() + quarantine
            self.gone[name] = self.there.pop(name).kinds

    @precondition(lambda self: self.buried)
    @rule(pick=PICKS)
    def undelete(self, pick: int) -> None:
        """What is in quarantine comes back, as it was, with all that it links to."""
        name = sorted(self.buried)[pick % len(self.buried)]
        back = {wanted: self.gone[wanted] for wanted in closure_of([name]) if wanted not in self.there}
        self.store.undelete([name])
        for wanted, kinds in back.items():
            self.took(wanted, None, sure=True)
            self.there[wanted].kinds = kinds

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.reopened()
        for held in self.leases.values():
            held.handle = None  # as after a crash: nobody renews it

    @precondition(lambda self: self.there)
    @rule(pick=PICKS, bit=st.integers(0, 1 << 20), then=AFTER_DAMAGE)
    def damage_and_heal(self, pick: int, bit: int, then: str) -> None:
        """A flipped bit is never read, each artifact that it hits is named, and a put of the good bytes heals it."""
        name = sorted(self.there)[pick % len(self.there)]
        if not self._flip(name, bit):
            return
        self._check_damage()
        if then == "collect":
            self._collect(0)
        elif then != "heal":
            getattr(self, then)()
        for hit in self._check_damage():
            kind = next(iter(self.there[hit].kinds))
            assert self.store.put(KNOWN[hit], kind=kind, verify=True) == hit
            self.took(hit, kind)
        for found in self.store.verify().findings:
            assert found.code == "corrupt_base"  # bytes that deltas no longer need, or that are in quarantine
        if self.store.verify().findings:
            self.clock.advance(10_000)
            self._collect(0)
            assert self.store.verify().findings == ()

    def _flip(self, name: ArtifactId, bit: int) -> bool:
        with self.store._backend._tables.write() as txn:  # type: ignore[attr-defined]
            row = txn.get(b"ix1", name.digest)
            assert row is not None
            prefix = u64(IxRow.unpack(row).data_id)
            pieces = [(key, piece) for key, piece in txn.scan(b"d1", prefix) if key[:8] == prefix]
            if not pieces:
                return False  # stored without bytes
            key, piece = pieces[bit % len(pieces)]
            damaged = bytearray(piece)
            damaged[bit // 8 % len(piece)] ^= 1 << bit % 8
            txn.put(b"d1", key, bytes(damaged))
        return True

    def _check_damage(self) -> set[ArtifactId]:
        """The artifacts that verify names. A read may go well all the same: a base may still be in memory."""
        hit = {found.id for found in self.store.verify().findings if found.code == "corrupt"}
        for name in self.there:
            try:
                assert self.store.get(name) == KNOWN[name]
            except casstore.Corrupt as error:
                assert error.fields["id"] == name and name in hit
        return hit & self.there.keys()  # type: ignore[return-value]

    # -- what always holds

    @invariant()
    def everything_is_there(self) -> None:
        store = self.store
        assert set(store) == self.there.keys() and len(store) == len(self.there)
        for name, found in self.there.items():
            assert store.get(name) == KNOWN[name]
            info = store.info(name)
            assert set(info.kinds) == found.kinds and info.size_bytes == len(KNOWN[name])
            assert set(info.links) == set(LINKS[name])
            assert found.touched[0] <= info.touched_s <= found.touched[1]
        for name in self.gone:
            self.raises(casstore.Collected, lambda name=name: store.get(name))
        assert store.pins() == self.pins
        assert {found.id for found in store.buried()} >= self.buried.keys()
        report = store.verify()
        assert report.findings == () and report.artifacts == len(self.there)

    @invariant()
    def counters_are_sums(self) -> None:
        stats, there = self.store.stats(), self.there
        infos = [self.store.info(name) for name in there]
        assert (stats.artifacts, stats.raw_bytes) == (len(there), sum(len(KNOWN[name]) for name in there))
        assert stats.stored_bytes == sum(info.stored_bytes for info in infos)
        assert stats.stored_bytes == sum(stored for _, _, stored in stats.by_encoding.values())
        assert sum(count for count, _, _ in stats.by_encoding.values()) == len(there)
        for kind in KINDS:
            sizes = [len(KNOWN[name]) for name, found in there.items() if kind in found.kinds]
            assert stats.by_kind.get(kind, (0, 0)) == (len(sizes), sum(sizes))
        assert (stats.gone, stats.pins, stats.uploads) == (len(self.gone), len(self.pins), 0)
        assert stats.leases == sum(bool(held.ids) for held in self.leases.values())
        with self.store._backend._tables.read() as txn:  # type: ignore[attr-defined]
            sizes = {from_u64(key): DaRow.unpack(row).stored_len for key, row in txn.scan(b"da1")}
            kept = [from_u64(key) for key, _ in txn.scan(b"kp1")]
            pieces: dict[int, int] = dict.fromkeys(sizes, 0)
            for key, piece in txn.scan(b"d1"):
                pieces[from_u64(key[:8])] += len(piece)
        assert pieces == sizes
        assert stats.kept_bytes == sum(sizes[data_id] for data_id in kept)
        assert stats.stored_bytes + stats.kept_bytes == sum(sizes.values())


class MemoryStoreMachine(StoreMachine):
    """The same of the store that keeps everything in memory; there a reopened one would be another."""

    def open(self) -> casstore.Store:
        return memory_store(clock=self.clock)

    def teardown(self) -> None:
        self.store.close()

    @rule()
    def reopen(self) -> None:
        """It stays open."""

    @rule()
    def compact(self) -> None:
        """There is no file."""


MACHINES = [StoreMachine, MemoryStoreMachine]
TestStoreOnDisk = StoreMachine.TestCase
TestStoreOnDisk.settings = BRIEF
TestStoreInMemory = MemoryStoreMachine.TestCase
TestStoreInMemory.settings = BRIEF


def test_a_child_that_was_put_again_comes_back_before_its_parent() -> None:
    """Parent and child in quarantine; the child put again, and collected again since only the parent needs it."""
    with memory_store(clock=FakeClock()) as store:
        roots, child = FakeRoots(store), store.put(b"child")
        parent = store.put_value({"link": child})
        store.gc(roots, grace=0, quarantine=1000)
        store.put(b"child")
        store.gc(roots, grace=0)
        store.undelete([parent])
        assert store.get_value(parent) == {"link": child} and store.get(child) == b"child"


@pytest.mark.soak
@pytest.mark.parametrize("machine", MACHINES)
def test_for_long(machine: type[RuleBasedStateMachine]) -> None:
    """Ever new sequences for SOAK_SECONDS."""
    assert soak_machine(machine)
