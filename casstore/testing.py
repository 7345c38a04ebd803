"""For users' tests and for other backends: an in-memory store, a fake clock, and the conformance suite.

The suite is plain functions that take a factory of open, empty stores: run each on yours. They import no test
framework and raise AssertionError.
"""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, final

from casstore.errors import Collected, InvalidId, LeaseLost, MissingArtifact, NotFound, PinNotFound, StoreError
from casstore.ids import ArtifactId
from casstore.items import PutItem
from casstore.roots import Retention, Root
from casstore.rows import TABLES
from casstore.stage import Stage
from casstore.store import Store
from casstore.table_backend import TableBackend
from casstore.tables import MemoryTables

__all__ = ["CONFORMANCE", "FakeClock", "FakeRoots", "memory_store"]

Factory = Callable[[Callable[[], float]], Store]


@final
class FakeClock:
    """Unix seconds that stand still until they are moved."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@final
class FakeRoots:
    """A root source that a test fills: `live` maps a run's name to the ids that its events name.

    Runs that `complete` with a time, an operation and a final artifact are retained as a journal would.
    """

    def __init__(self, store: Store) -> None:
        self.uuid = store.uuid
        self.live: dict[str, list[ArtifactId]] = {}
        self.events: list[tuple[str, ArtifactId]] = []
        self.ended: list[tuple[int, str, str, list[ArtifactId], ArtifactId | None, str]] = []

    def append(self, run: str, *ids: ArtifactId) -> None:
        """An event of a live run that names these."""
        for found in ids:
            self.live.setdefault(run, []).append(found)
            self.events.append((run, found))

    def complete(
        self, run: str, *, at_ms: int | None = None, op_id: str = "", final: ArtifactId | None = None,
        status: str = "completed",
    ) -> None:  # fmt: skip
        """The run ends; without a time it is forgotten. `final` is what a completed one keeps in any case."""
        ids = self.live.pop(run, [])
        if at_ms is not None:
            self.ended.append((at_ms, op_id, run, ids, final, status))

    def position(self) -> int:
        return len(self.events)

    def live_roots(self, *, completed_after_ms: int | None) -> Iterator[Root]:
        yield from self.retained_roots(Retention(completed_after_ms=completed_after_ms))

    def retained_roots(self, retention: Retention) -> Iterator[Root]:
        for run, ids in self.live.items():
            for seq, found in enumerate(ids, 1):
                yield Root(found, run, seq, "test")
        kept: dict[str, int] = {}
        for at_ms, op_id, run, ids, last, status in sorted(self.ended, key=lambda row: row[0], reverse=True):
            kept[op_id] = kept.get(op_id, 0) + 1
            if not retention.keeps(status, at_ms, kept[op_id]):
                continue
            only = [last] if retention.final_only and last is not None else ids
            yield from (Root(found, run, seq, "test", False, status, at_ms) for seq, found in enumerate(only, 1))

    def ended_between(self, status: str, after_ms: int, until_ms: int) -> int:
        return sum(row[5] == status and after_ms < row[0] <= until_ms for row in self.ended)

    def witness(self, retention: Retention) -> bytes:
        names = sorted({str(root.id) for root in self.retained_roots(retention)})
        return f"{len(self.events)} {' '.join(names)}".encode()

    def roots_since(self, witnessed: bytes, retention: Retention) -> list[Root] | None:
        position, *names = witnessed.decode(errors="replace").split()
        late = self.roots_after(int(position))[1]
        now = {str(root.id) for root in self.retained_roots(retention)}
        return late if now.issuperset(names) and now.issuperset(str(root.id) for root in late) else None

    def roots_after(self, position: int) -> tuple[int, list[Root]]:
        late = self.events[position:]
        return len(self.events), [Root(found, run, 0, "test") for run, found in late]

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield


def memory_store(*, clock: Callable[[], float] = time.time, stage: Stage | None = None) -> Store:
    """A store that keeps everything in memory, with the meaning of the real one. `stage` is its journal's."""
    backend = TableBackend(MemoryTables(TABLES))
    name = str(uuid.uuid4())
    backend.bind(name)
    return Store(backend, None, read_only=False, quota=None, clock=clock, uuid=name, stage=stage)


# -- the suite ----------------------------------------------------------------------------------------------


def bytes_come_back(factory: Factory) -> None:
    """What is put is got, at the sizes where the layout changes; the id is the BLAKE3 of the raw bytes."""
    with factory(FakeClock()) as store:
        sizes = (0, 1, 2030, 2031, 4079, 4080, 4081, 8160, 8161, (1 << 20) - 1, 1 << 20, (1 << 20) + 1)
        for size in sizes:
            pattern = (ArtifactId.of(b"%d" % size).digest * (size // 32 + 1))[:size]
            for data in (bytes(size), pattern):
                name = store.put(data)
                assert name == ArtifactId.of(data)
                assert store.get(name) == data
                assert store.info(name).size_bytes == size
        assert store.verify().ok


def one_artifact_has_many_kinds(factory: Factory) -> None:
    """The same bytes under several kinds are one artifact that shows them all."""
    with factory(FakeClock()) as store:
        names = {store.put(b"x", kind=kind) for kind in ("manifest", "output", "my_kind", "other")}
        assert len(names) == 1 == len(store)
        assert set(store.info(names.pop()).kinds) == {"manifest", "output", "my_kind", "other"}


def absent_and_collected_differ(factory: Factory) -> None:
    """An id that never was is NotFound; one that was collected is Collected, and says when and by which gc."""
    clock = FakeClock()
    with factory(clock) as store:
        roots, name = FakeRoots(store), store.put(b"soon gone")
        for call in (store.get, store.info, store.open_reader):
            _raises(NotFound, partial(call, ArtifactId.of(b"never")))
        store.gc(roots, grace=0)
        error = _raises(Collected, lambda: store.get(name))
        assert error.fields == {"id": name, "when_s": int(clock.now), "gc": 1}
        assert name not in store
        assert store.put(b"soon gone") == name and store.get(name) == b"soon gone"


def malformed_ids_are_refused(factory: Factory) -> None:
    """Text, bytes and near misses are no ids."""
    with factory(FakeClock()) as store:
        wrongs: tuple[Any, ...] = ("", "x", "A" * 64, "0" * 63, b"0" * 32, None, 5)
        for wrong in wrongs:
            _raises(InvalidId, partial(store.get, wrong))
            assert wrong not in store


def links_must_be_there(factory: Factory) -> None:
    """A value is stored only when everything that it links to is visible; links are recorded."""
    with factory(FakeClock()) as store:
        missing = ArtifactId.of(b"child")
        error = _raises(MissingArtifact, lambda: store.put_value({"child": missing}))
        assert error.fields["id"] == missing
        assert len(store) == 0
        child = store.put(b"child")
        parent = store.put_value({"child": child, "again": [child]})
        assert store.info(parent).links == (child,)
        assert store.get_value(parent) == {"child": child, "again": [child]}


def raw_bytes_of_a_value_link_too(factory: Factory) -> None:
    """What bytes are decides their links, not the call that put them: else gc would take a child."""
    with factory(FakeClock()) as store:
        child = store.put(b"child")
        parent = store.put_value([child])
        data = store.get(parent)
        roots = FakeRoots(store)
        store.gc(roots, grace=0)
        assert len(store) == 0
        _raises(MissingArtifact, lambda: store.put(data))
        assert store.put(b"child") == child
        assert store.put(data) == parent
        roots.append("run", parent)
        store.gc(roots, grace=0)
        assert store.get(child) == b"child"


def gc_keeps_the_closure(factory: Factory) -> None:
    """gc removes exactly what no root reaches over links, and a second gc finds nothing to do."""
    with factory(FakeClock()) as store:
        roots = FakeRoots(store)
        leaf = store.put(b"leaf")
        middle = store.put_value([leaf])
        top = store.put_value({"m": middle})
        loose = store.put_value({"loose": leaf})
        roots.append("run", top)
        preview = store.gc(roots, dry_run=True, grace=0)
        assert [name for name, _ in preview.removed] == [loose]
        assert len(store) == 4
        report = store.gc(roots, grace=0)
        assert report.removed == preview.removed
        assert set(store) == {leaf, middle, top}
        assert store.gc(roots, grace=0).removed == ()
        roots.complete("run")
        assert len(store.gc(roots, grace=0).removed) == 3
        assert len(store) == 0 and store.verify().ok


def grace_keeps_the_young_with_their_links(factory: Factory) -> None:
    """An artifact younger than the grace stays, and so does what it links to, however old (H3)."""
    clock = FakeClock()
    with factory(clock) as store:
        roots, child = FakeRoots(store), store.put(b"old child")
        clock.advance(7200)
        parent = store.put_value([child])
        clock.advance(10)
        assert store.gc(roots, grace=3600).removed == ()
        assert store.get(child) == b"old child"
        clock.advance(3600)
        assert {name for name, _ in store.gc(roots, grace=3600).removed} == {child, parent}


def a_hit_is_a_touch(factory: Factory) -> None:
    """Putting what is there makes it young again, and all that it links to is safe with it."""
    clock = FakeClock()
    with factory(clock) as store:
        roots, child = FakeRoots(store), store.put(b"old child")
        parent = store.put_value([child])
        clock.advance(7200)
        store.put_value([child])
        assert store.gc(roots, grace=3600).removed == ()
        assert child in store and parent in store


def a_fresh_hit_writes_nothing(factory: Factory) -> None:
    """A put of what was just put costs no commit: nothing that a gc could miss is gained by one."""
    with factory(FakeClock()) as store:
        store.put(b"x", kind="output")
        before = store.stats().commits
        for _ in range(10):
            store.put(b"x", kind="output")
        assert store.stats().commits == before


def delta_bases_outlive_their_artifacts(factory: Factory) -> None:
    """A collected base keeps its bytes while a delta needs them, and no longer; put again it lives."""
    with factory(FakeClock()) as store:
        roots = FakeRoots(store)
        texts: list[bytes] = []
        names: list[ArtifactId] = []
        for step in range(40):
            texts.append(b"".join(b"message %d of this run, with some text\n" % n for n in range(20 + step)))
            names.append(store.put(texts[-1], kind="context_snapshot", base=names[-1] if names else None))
        assert store.info(names[-1]).chain > 0
        roots.append("run", names[-1])
        report = store.gc(roots, grace=0)
        assert len(report.removed) == 39 and report.kept_bytes > 0
        assert store.get(names[-1]) == texts[-1]
        _raises(Collected, lambda: store.get(names[0]))
        assert store.put(texts[0]) == names[0] and store.get(names[0]) == texts[0]
        assert store.verify().ok
        roots.complete("run")
        store.gc(roots, grace=0)
        stats = store.stats()
        assert (stats.artifacts, stats.stored_bytes, stats.kept_bytes) == (0, 0, 0)


def pins_hold(factory: Factory) -> None:
    """A pin keeps an artifact with its closure until it is unpinned."""
    with factory(FakeClock()) as store:
        roots, child = FakeRoots(store), store.put(b"child")
        parent = store.put_value([child])
        store.pin("release", parent)
        assert store.pins() == {"release": parent}
        store.gc(roots, grace=0)
        assert child in store and parent in store
        store.unpin("release")
        _raises(PinNotFound, lambda: store.unpin("release"))
        _raises(NotFound, lambda: store.pin("x", ArtifactId.of(b"never")))
        store.gc(roots, grace=0)
        assert len(store) == 0


def leases_hold_until_they_expire(factory: Factory) -> None:
    """A lease keeps what it holds; expired and collected it is lost, and says so at the next use."""
    clock = FakeClock()
    with factory(clock) as store:
        roots = FakeRoots(store)
        with store.lease(ttl=60) as lease:
            child = lease.put(b"child")
            parent = lease.put_value([child])
            store.gc(roots, grace=0)
            assert child in store and parent in store
            clock.advance(50)
            lease.renew()
            clock.advance(50)
            store.gc(roots, grace=0)
            assert parent in store
            clock.advance(100)
            lease.renew()  # expired, but no gc saw it
            clock.advance(100)
            store.gc(roots, grace=0)
            assert len(store) == 0
            _raises(LeaseLost, lambda: lease.put(b"child"))
            _raises(LeaseLost, lease.renew)
            assert len(store) == 0


def many_at_once(factory: Factory) -> None:
    """put_many gives ids in order for bytes, pairs and items, duplicates included."""
    with factory(FakeClock()) as store:
        names = store.put_many([b"a", (b"b", "manifest"), PutItem(data=b"c", kind="my_kind"), b"a"])
        assert names == [ArtifactId.of(data) for data in (b"a", b"b", b"c", b"a")]
        assert len(store) == 3
        assert store.put_many([]) == []


def streams_and_ranges(factory: Factory) -> None:
    """Streams of any size go in and out; ranges are those of the bytes, over frame borders too."""
    with factory(FakeClock()) as store:
        data = b"".join(ArtifactId.of(b"%d" % n).digest for n in range((5 << 20) // 64)) + bytes(1 << 20)
        name = store.put_file(io.BytesIO(data))
        assert name == ArtifactId.of(data)
        frame = 1 << 20
        for start, length in ((0, 1), (frame - 1, 2), (frame, frame), (len(data) - 3, 10), (len(data), 5), (7, 0)):
            assert store.get_range(name, start, length) == data[start : start + length]
        with store.open_reader(name) as reader:
            reader.seek(-5, io.SEEK_END)
            assert reader.read() == data[-5:]
            reader.seek(frame - 10)
            assert reader.read(20) == data[frame - 10 : frame + 10]
        assert store.get(name) == data and store.put(data) == name
        assert store.stats().uploads == 0 and store.verify().ok


def a_reader_sees_old_bytes_or_collected(factory: Factory) -> None:
    """A reader that was opened before gc reads the old bytes whole, or is told that they were collected."""
    with factory(FakeClock()) as store:
        roots = FakeRoots(store)
        small, large = b"small" * 100, b"large".ljust(16, b".") * (3 << 16)
        readers = [store.open_reader(store.put(small)), store.open_reader(store.put_file(io.BytesIO(large)))]
        assert readers[1].read(16) == large[:16]
        store.gc(roots, grace=0)
        assert readers[0].read() == small
        readers[1].seek(2 << 20)
        _raises(Collected, readers[1].read)
        store.put_file(io.BytesIO(large))
        assert readers[1].read() == large[2 << 20 :]


def prefixes_resolve(factory: Factory) -> None:
    """A unique prefix names an artifact, as in git."""
    with factory(FakeClock()) as store:
        name = store.put(b"x")
        assert store.resolve(str(name)[:8]) == name == store.resolve(str(name))
        _raises(NotFound, lambda: store.resolve("0123456789"))
        for wrong in ("", "abc", "XYZ1", "0" * 65):
            _raises(InvalidId, partial(store.resolve, wrong))


CONFORMANCE: Final[tuple[Callable[[Factory], None], ...]] = (
    bytes_come_back,
    one_artifact_has_many_kinds,
    absent_and_collected_differ,
    malformed_ids_are_refused,
    links_must_be_there,
    raw_bytes_of_a_value_link_too,
    gc_keeps_the_closure,
    grace_keeps_the_young_with_their_links,
    a_hit_is_a_touch,
    a_fresh_hit_writes_nothing,
    delta_bases_outlive_their_artifacts,
    pins_hold,
    leases_hold_until_they_expire,
    many_at_once,
    streams_and_ranges,
    a_reader_sees_old_bytes_or_collected,
    prefixes_resolve,
)


def _raises(kind: type[StoreError], call: Callable[[], object]) -> StoreError:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")
