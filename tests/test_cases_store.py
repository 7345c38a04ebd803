"""Cases of peers: gc beside writers, damage, large artifacts (docs/CASES.md). Each section names the public report."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers import assert_whole, at_step, forked, kill_at, stop_points

import casstore
import journal
from casstore import ArtifactId, Collected, Corrupt, GcRefused, Root, Store, rows, steps
from casstore.gc import Collector
from casstore.reading import Reader
from casstore.recent import RecentBytes
from casstore.table_backend import TableBackend
from casstore.tables import WriteTransaction
from casstore.testing import FakeClock, FakeRoots, memory_store
from journal import DomainEvent, RunStarted

RUN = UUID(int=1)


def start(jrn: journal.Journal, *names: ArtifactId, run: UUID = RUN) -> None:
    """A live run whose first event names one or two artifacts."""
    jrn.append(run, 0, [RunStarted(op_id="case", manifest_id=names[0], initial_snapshot_id=names[-1])])


def every_row(store: Store) -> dict[bytes, list[tuple[bytes, bytes]]]:
    """All that is stored of artifacts."""
    with store._backend._tables.read() as t:  # type: ignore[attr-defined]
        return {table: list(t.scan(table)) for table in (rows.IX, rows.DA, rows.D, rows.LN, rows.KP, rows.PIN)}


# -- 1. n0-computer/iroh-blobs#247: protection moves while gc lists it ------------------------------------------

READING = ["gc.opened", "gc.position", "gc.rooted", "gc.marked", "gc.before_batch"]


def moved_while_listed(home: Path, step: str) -> None:
    """At one stop point of gc a second handle puts under a lease, appends, ends the lease; all of it must stay."""
    with journal.open(home) as jrn:
        jrn.store.put(b"old and unreferenced")
        jrn.store.put(b"garbage")
        names: list[ArtifactId] = []

        def move() -> None:
            with (
                casstore.open(home) as second,
                journal.open(home, store=second) as other,
                second.lease(600) as lease,
            ):
                names.extend((lease.put(b"new"), lease.put(b"old and unreferenced")))
                start(other, *names)

        with at_step(step, move) as reached:
            jrn.store.gc(jrn, grace=0, force=True)
        assert reached == [step]
        assert [jrn.store.get(name) for name in names] == [b"new", b"old and unreferenced"]
        assert ArtifactId.of(b"garbage") not in jrn.store
        assert_whole(jrn)


@pytest.mark.parametrize("step", READING)
def test_protection_that_moves_is_seen(tmp_path: Path, step: str) -> None:
    """Case 1: one cut, then leases and pins, then the journal: whoever lets go of one holds the next one already."""
    moved_while_listed(tmp_path / "home", step)


def test_roots_before_leases_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 1, wrong: the journal is read before the cut and the leases, and what moves in between is lost."""
    right, all_roots = Collector.run, Collector._all_roots

    def wrong(self: Collector, **options: Any) -> Any:
        found = list(all_roots(self))
        steps.reach("gc.listed_early")
        monkeypatch.setattr(Collector, "_all_roots", lambda _: iter(found))
        return right(self, **options)

    monkeypatch.setattr(Collector, "run", wrong)
    with pytest.raises((casstore.StoreError, AssertionError)):
        moved_while_listed(tmp_path / "home", "gc.listed_early")


# -- 2. eng-floe/floecat#390: a dedup hit does not count as a write ---------------------------------------------


def put_again_before_the_sweep(home: Path) -> None:
    """x is past the grace; while gc is just before its sweep another process puts x again, and later names it."""
    clock = FakeClock()
    with journal.open(home, clock=clock) as jrn:
        name = jrn.store.put(b"x")
        clock.advance(7200)

        def again() -> None:
            with casstore.open(home, clock=clock) as store:
                store.put(b"x")

        with at_step("gc.before_batch", lambda: forked(again)) as reached:
            report = jrn.store.gc(jrn, grace=3600, force=True)
        assert reached and report.rescued == 1 and report.removed == ()

        def named() -> None:
            with journal.open(home, clock=clock) as other:
                start(other, name)

        assert forked(named) == 0
        assert jrn.store.get(name) == b"x"
        assert_whole(jrn)
        commits = jrn.store.stats().commits
        jrn.store.put(b"x")
        assert jrn.store.stats().commits == commits


def test_a_hit_during_the_sweep_rescues(tmp_path: Path) -> None:
    """Case 2: the hit is a touch, the sweep looks again where it deletes; a fresh hit afterwards writes nothing."""
    put_again_before_the_sweep(tmp_path / "home")


def test_a_hit_that_does_not_touch_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 2, wrong: what is there already is not written again, whatever its age."""
    monkeypatch.setattr("casstore.puts._is_fresh", lambda *_: True)
    with pytest.raises((casstore.StoreError, AssertionError)):
        put_again_before_the_sweep(tmp_path / "home")


# -- 3. borgbackup/borg#9748: gc is killed between deleting and accounting --------------------------------------

LOST = [b"small", b"value of its own " * 300, random.Random(3).randbytes(30_000)]


def collect(home: Path) -> None:
    with journal.open(home) as jrn:
        jrn.store.gc(jrn, grace=0, keep_completed=0, force=True)


def home_with_garbage(home: Path) -> ArtifactId:
    with journal.open(home) as jrn:
        live = jrn.store.put(b"live" * 1000)
        start(jrn, live)
        jrn.store.put_many(LOST)
        jrn.store.put_value({"child": jrn.store.put(b"small")})
        jrn.store.put(LOST[1] + b"more", base=ArtifactId.of(LOST[1]))
    return live


def killed_at_each_step_of_gc(place: Path) -> int:
    """For each stop point a home whose gc was killed there: all that is put again is there, and a gc goes well."""
    pristine = place / "pristine"
    live = home_with_garbage(pristine)
    shutil.copytree(pristine, place / "counted")
    total = len(stop_points(lambda: collect(place / "counted")))
    for number in range(1, total + 1):
        home = place / f"home{number}"
        shutil.copytree(pristine, home)
        assert forked(kill_at(number, lambda home=home: collect(home))) == -9
        with journal.open(home) as jrn:
            assert_whole(jrn)
            assert [jrn.store.get(jrn.store.put(data)) for data in LOST] == LOST
            assert jrn.store.get(live) == b"live" * 1000
            assert_whole(jrn)
            jrn.store.gc(jrn, grace=0, force=True)
            assert list(jrn.store) == [live]
            assert_whole(jrn)
        shutil.rmtree(home)
    return total


def test_a_killed_gc_leaves_what_its_index_says(tmp_path: Path) -> None:
    """Case 3: SIGKILL at each stop point of gc; deletion and index change are one transaction."""
    assert killed_at_each_step_of_gc(tmp_path) > 8


def test_deleting_before_accounting_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 3, wrong: the bytes go in a transaction of their own, before the rows that say so."""
    right = TableBackend.gc_sweep

    def wrong(self: TableBackend, epoch: int, candidates: Any, *rest: Any) -> Any:
        with self._tables.write() as t:
            for row in candidates:
                for key in [key for key, _ in t.scan(rows.D) if key.startswith(rows.u64(row.data_id))]:
                    t.delete(rows.D, key)
        steps.reach("gc.deleted")
        return right(self, epoch, candidates, *rest)

    monkeypatch.setattr(TableBackend, "gc_sweep", wrong)
    with pytest.raises((casstore.StoreError, AssertionError)):
        killed_at_each_step_of_gc(tmp_path)


PUTS: dict[str, Callable[[Store], ArtifactId]] = {
    "put": lambda store: store.put(LOST[1]),
    "put, not durable": lambda store: store.put(LOST[1], durable=False),
    "put with a base": lambda store: store.put(LOST[1] + b"more", base=ArtifactId.of(LOST[1])),
    "put_many": lambda store: store.put_many([LOST[0], LOST[1]])[1],
    "put_file": lambda store: store.put_file(io.BytesIO(LOST[1])),
    "put_value": lambda store: store.put_value({"text": "x" * 5000}),
    "prepared": lambda store: prepared(store, {"text": "y" * 5000}),
    "large": lambda store: store.put(random.Random(9).randbytes((1 << 20) + 5)),
    "leased": lambda store: leased(store),
}


def prepared(store: Store, value: Any) -> ArtifactId:
    found = store.prepare_value(value)
    assert isinstance(found, casstore.PreparedPut)
    store.put_prepared([found])
    return found.id


def leased(store: Store) -> ArtifactId:
    with store.lease(60) as lease:
        return lease.put(LOST[2])


def test_no_memory_of_what_is_there_outlives_a_gc(tmp_path: Path) -> None:
    """Case 3: A sees an artifact, process B collects it, A sees that it is gone and its put really stores."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        store = jrn.store
        for put in PUTS.values():
            name = put(store)
            data = store.get(name)
            assert name in store and put(store) == name
            assert forked(collect, home) == 0
            assert name not in store and store.touched([name]) == [None]
            with pytest.raises(Collected):
                store.get(name)
            assert put(store) == name and store.get(name) == data and name in store
            assert_whole(jrn)


# -- 4. treeverse/lakeFS#4658: the root set does not match the keys ---------------------------------------------

NEVER = ArtifactId.of(b"never stored")


class Source:
    """A root source that yields the live artifact, and then does something that it must not."""

    def __init__(self, store: Store, live: ArtifactId, odd: Callable[[ArtifactId], Iterator[Any]]) -> None:
        self._roots, self._live, self._odd = FakeRoots(store), live, odd
        self.uuid, self.position, self.exclusive = store.uuid, self._roots.position, self._roots.exclusive

    def live_roots(self, *, completed_after_ms: int | None) -> Iterator[Any]:
        return self._odd(self._live)

    def roots_after(self, position: int) -> tuple[int, list[Root]]:
        return self._roots.roots_after(position)


def _after_the_good(*odd: Any) -> Callable[[ArtifactId], Iterator[Any]]:
    def roots(live: ArtifactId) -> Iterator[Any]:
        yield Root(live, "run", 1, "test")
        yield from odd

    return roots


def _fails_at_first(live: ArtifactId) -> Iterator[Any]:
    raise OSError("the first page is unreadable")
    yield


def _fails_at_last(live: ArtifactId) -> Iterator[Any]:
    yield Root(live, "run", 1, "test")
    raise OSError("the last page is unreadable")


ODD_SOURCES: dict[str, tuple[Callable[[ArtifactId], Iterator[Any]], str]] = {
    "text for a root": (_after_the_good(str(NEVER)), str(NEVER)),
    "hex text": (_after_the_good(Root(str(NEVER), "run", 2, "test")), str(NEVER)),  # type: ignore[arg-type]
    "upper case": (_after_the_good(Root(str(NEVER).upper(), "run", 2, "test")), str(NEVER).upper()),  # type: ignore[arg-type]
    "31 bytes": (_after_the_good(Root(bytes(31), "run", 2, "test")), "\\x00" * 31),  # type: ignore[arg-type]
    "32 raw bytes": (_after_the_good(Root(NEVER.digest, "run", 2, "test")), repr(NEVER.digest)[2:-1]),  # type: ignore[arg-type]
    "never seen": (_after_the_good(Root(NEVER, "run", 2, "test")), str(NEVER)),
    "nothing": (_after_the_good(None), "None"),
    "fails at the first": (_fails_at_first, "the first page is unreadable"),
    "fails at the last": (_fails_at_last, "the last page is unreadable"),
}


@pytest.mark.parametrize("what", ODD_SOURCES)
def test_a_source_in_doubt_stops_gc(what: str) -> None:
    """Case 4: nothing is removed, the error names the source and the value."""
    odd, shown = ODD_SOURCES[what]
    with memory_store(clock=FakeClock()) as store:
        live = store.put(b"live")
        store.put_many([b"loose %d" % n for n in range(20)])
        before = every_row(store)
        source = Source(store, live, odd)
        for options in ({"dry_run": True}, {}):
            with pytest.raises(GcRefused) as caught:
                store.gc(source, grace=0, force=True, **options)
            assert "Source" in str(caught.value) and shown in str(caught.value)
            assert every_row(store) == before
        assert store.verify().ok


class LateSource(Source):
    """It goes wrong while gc catches up with the events appended meanwhile."""

    def roots_after(self, position: int) -> tuple[int, list[Any]]:
        return 1, list(self._odd(self._live))


@pytest.mark.parametrize("what", [what for what in ODD_SOURCES if what != "never seen"])
def test_a_source_in_doubt_while_gc_catches_up(what: str) -> None:
    """Case 4, later: the same holds for events that come while gc runs."""
    with memory_store(clock=FakeClock()) as store:
        live = store.put(b"live")
        store.put_many([b"loose %d" % n for n in range(20)])
        before = every_row(store)
        source = LateSource(store, live, ODD_SOURCES[what][0])
        source.live_roots = lambda completed_after_ms: iter([Root(live, "run", 1, "test")])  # type: ignore[method-assign,assignment,misc]
        with pytest.raises(GcRefused, match="LateSource"):
            store.gc(source, grace=0, force=True)
        assert every_row(store) == before


def test_a_root_of_another_type_that_is_skipped_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 4, wrong: a root that is no ArtifactId is passed over, and what it meant is removed."""
    all_roots = Collector._all_roots

    def wrong(self: Collector) -> Iterator[Root]:
        return (root for root in all_roots(self) if isinstance(root.id, ArtifactId))

    monkeypatch.setattr(Collector, "_all_roots", wrong)
    with memory_store(clock=FakeClock()) as store:
        name = store.put(b"live")
        store.gc(Source(store, name, lambda live: iter([Root(str(live), "run", 1, "test")])), grace=0, force=True)  # type: ignore[arg-type]
        assert name not in store


# -- 5. restic/restic#3126: a writer sleeps past its lease ------------------------------------------------------


def asleep_past_the_lease(home: Path, collected_by: Callable[[Callable[[], None]], None]) -> None:
    """a and b are held by a lease of 60 s; two hours later somebody collects; then an event names a."""
    clock = FakeClock()
    with journal.open(home, clock=clock) as jrn:
        started = jrn.store.put(b"started")
        start(jrn, started)
        lease = jrn.store.lease(60)
        a, b = lease.put(b"a"), lease.put_value({"b": 1})
        clock.advance(7200)

        def other() -> None:
            with journal.open(home, clock=clock) as mine:
                mine.store.gc(mine, grace=3600, force=True)

        collected_by(other)
        event = DomainEvent("note", {"deep": [{"link": a}]}, b)
        with pytest.raises(journal.MissingArtifact) as caught:
            jrn.append(RUN, 1, [event])
        assert (caught.value.id, caught.value.field) in ((a, "payload.deep[0].link"), (b, "payload_ref"))
        assert jrn.head(RUN) == 1
        with pytest.raises(casstore.LeaseLost):
            lease.put(b"a")
        assert [jrn.store.put(b"a"), jrn.store.put_value({"b": 1})] == [a, b]
        jrn.append(RUN, 1, [event])
        assert jrn.head(RUN) == 2
        assert_whole(jrn)


def _in_a_process(call: Callable[[], None]) -> None:
    assert forked(call) == 0


def _in_a_thread(call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


@pytest.mark.parametrize("collected_by", [_in_a_process, _in_a_thread])
def test_protection_is_proven_again_at_use(tmp_path: Path, collected_by: Callable[[Callable[[], None]], None]) -> None:
    """Case 5: MissingArtifact with id and field, head unchanged; put again, the append is fine."""
    asleep_past_the_lease(tmp_path / "home", collected_by)


def test_an_append_that_believes_its_writer_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 5, wrong: an append does not ask whether what it names is still there."""
    monkeypatch.setattr("journal.appends.Appender._check_named", lambda *_: None)
    with pytest.raises(pytest.fail.Exception):  # the refusal that the test waits for does not come
        asleep_past_the_lease(tmp_path / "home", _in_a_process)


# -- 6. neondatabase/neon#707: the base of a delta is collected -------------------------------------------------


def snapshots(count: int) -> list[bytes]:
    lines = [b"message %d of this run, with some text\n" % n for n in range(20 + count)]
    return [b"".join(lines[: 20 + step]) for step in range(count)]


def only_the_last_lives(home: Path, texts: list[bytes]) -> None:
    """Deltas one upon the other, of which a live run names the last."""
    with journal.open(home) as jrn:
        name = None
        for text in texts:
            name = jrn.store.put(text, kind="context_snapshot", base=name, durable=False)
        assert name is not None and jrn.store.info(name).chain > 0
        start(jrn, name)


def test_bytes_of_a_collected_base_stay_while_they_are_needed(tmp_path: Path) -> None:
    """Case 6: 40 snapshots, gc killed at each stop point, then a whole one; what is needed reads, the rest goes."""
    texts = snapshots(40)
    names = [ArtifactId.of(text) for text in texts]
    pristine = tmp_path / "pristine"
    only_the_last_lives(pristine, texts)
    shutil.copytree(pristine, tmp_path / "counted")
    total = len(stop_points(lambda: collect(tmp_path / "counted")))
    for number in range(1, total + 1):
        home = tmp_path / f"home{number}"
        shutil.copytree(pristine, home)
        assert forked(kill_at(number, lambda home=home: collect(home))) == -9
        with journal.open(home) as jrn:
            assert jrn.store.get(names[-1]) == texts[-1]
            assert_whole(jrn)
            jrn.store.gc(jrn, grace=0, force=True)
            assert jrn.store.get(names[-1]) == texts[-1]
            stats = jrn.store.stats()
            assert stats.artifacts == 1 and stats.kept_bytes > 0
            for name in names[:-1]:
                with pytest.raises(Collected):
                    jrn.store.get(name)
            assert jrn.store.put(texts[0]) == names[0] and jrn.store.get(names[0]) == texts[0]
            assert_whole(jrn)
            jrn.cancel(RUN, "done")
            jrn.store.gc(jrn, grace=0, keep_completed=0, force=True)
            stats = jrn.store.stats()
            assert (stats.artifacts, stats.stored_bytes, stats.kept_bytes) == (0, 0, 0)
            assert_whole(jrn)
        shutil.rmtree(home)


# -- 7. borgbackup/borg#3030: one flipped byte costs an archive -------------------------------------------------


def fifty(store: Store) -> dict[ArtifactId, bytes]:
    """Raw, compressed, deltas of both kinds, made with a dictionary, above 1 MiB."""
    rng = random.Random(7)
    made: dict[ArtifactId, bytes] = {}

    def put(data: bytes, **options: Any) -> ArtifactId:
        name = store.put(data, durable=False, **options)
        made[name] = data
        return name

    for n in range(12):
        put(rng.randbytes(1 + 700 * n))
    for n in range(8):
        put(b"text that is said again and again " * (10 + 40 * n))
    base = None
    for step in range(16):
        base = put(b"".join(b"message %d %d\n" % (k, k * k) for k in range(300 + step)), base=base)
    scattered = bytearray(rng.randbytes(6000))
    base = put(bytes(scattered))
    for _ in range(3):
        for _ in range(200):
            scattered[rng.randrange(len(scattered))] ^= 255
        base = put(bytes(scattered), base=base)
    words = [b"%x" % rng.randrange(1 << 40) for _ in range(40)]
    sample = [b" ".join(rng.choice(words) for _ in range(30)) for _ in range(400)]
    store.put_many([(data, "note") for data in sample])
    assert store.train("note") is not None
    for n in range(8):
        put(b" ".join(rng.choice(words) for _ in range(30)) + b" %d" % n, kind="note")
    put(rng.randbytes(50_000) + bytes(1 << 20))
    put(rng.randbytes(900))
    roots = FakeRoots(store)
    roots.append("run", *made)
    store.gc(roots, grace=0, force=True)  # what the dictionary was made of
    return made


def flipped(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def asked(store: Store, made: dict[ArtifactId, bytes]) -> set[ArtifactId]:
    """Get each artifact as a process would that has just opened the store: which are Corrupt. All else is right."""
    reader, failed = Reader(store._backend, RecentBytes()), set()
    for name, data in made.items():
        try:
            assert reader.get(name.digest) == data
        except Corrupt as error:
            assert error.fields["id"] == name
            failed.add(name)
    return failed


def damage_costs_what_it_hits(store: Store, table: bytes, seeds: range) -> int:
    """One flipped bit a seed in the values of a table: every get is right or Corrupt, and verify lists just those."""
    made = fifty(store)
    listed = {name: store.get(name) for name in store}
    assert len(made) == 50 and {"raw", "zstd", "segments", "zstd-delta", "zstd-dictionary", "frames"} <= set(
        store.stats().by_encoding
    )
    hits = 0
    tables = store._backend._tables  # type: ignore[attr-defined]
    with tables.read() as t:
        stored = [(key, value) for key, value in t.scan(table) if value]
    for seed in seeds:
        rng = random.Random(seed)
        key, value = rng.choice(stored)
        with tables.write() as t:
            t.put(table, key, flipped(value, rng))
        failed = asked(store, listed)
        findings = store.verify().findings
        named = {found.id for found in findings}
        if table == rows.D:
            assert named == failed, seed
        else:
            assert named >= failed and (findings or not failed), seed
        hits += bool(failed)
        with tables.write() as t:
            t.put(table, key, value)
    assert store.verify().ok
    return hits


def test_damage_costs_the_artifact_it_hits_and_those_built_on_it() -> None:
    """Case 7: 200 seeded places in the stored bytes of 50 artifacts of every form."""
    with memory_store() as store:  # tests/test_store_damage.py flips bits of a real file
        assert damage_costs_what_it_hits(store, rows.D, range(200)) > 190  # a few bits of a zstd frame mean nothing


def test_damage_in_records_is_corrupt_too() -> None:
    """Case 7, for records: what says how the bytes are kept may be wrong too; wrong bytes never come out."""
    with memory_store() as store:
        assert damage_costs_what_it_hits(store, rows.DA, range(40)) > 10


def test_a_reader_that_does_not_check_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 7, wrong: what was decoded is believed."""
    monkeypatch.setattr("casstore.reading.blake3", lambda _=b"": _Believing())
    with memory_store() as store, pytest.raises(AssertionError):
        damage_costs_what_it_hits(store, rows.D, range(200))


class _Believing:
    """A hash that is always the one that was wanted."""

    def digest(self) -> Any:
        return _Equal()

    def update(self, _: bytes) -> None:
        pass


class _Equal:
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


# -- 8. jdx/mr-boxington#13: a damaged copy cannot be replaced --------------------------------------------------

FORMS = ("raw", "zstd", "segments", "zstd-delta", "zstd-dictionary", "frames")


def one_of_each_form(store: Store) -> dict[str, tuple[ArtifactId, bytes, str]]:
    """Form -> an artifact that is stored so, its bytes and kind."""
    made = fifty(store)
    found: dict[str, tuple[ArtifactId, bytes, str]] = {}
    for name, data in made.items():
        info = store.info(name)
        if info.stored_bytes:
            found[info.encoding] = name, data, info.kinds[0]
    assert set(found) >= set(FORMS)
    return found


def _data_id(t: WriteTransaction, name: ArtifactId) -> bytes:
    row = t.get(rows.IX, name.digest)
    assert row is not None
    return row[:8]


def _pieces(t: WriteTransaction, data_id: bytes) -> list[tuple[bytes, bytes]]:
    return [(key, value) for key, value in t.scan(rows.D, data_id) if key.startswith(data_id)]


def _flip(t: WriteTransaction, name: ArtifactId) -> None:
    key, value = _pieces(t, _data_id(t, name))[0]
    t.put(rows.D, key, bytes([value[0] ^ 255]) + value[1:])


def _truncate(t: WriteTransaction, name: ArtifactId) -> None:
    key, value = _pieces(t, _data_id(t, name))[-1]
    t.put(rows.D, key, value[:-1])


def _drop_a_piece(t: WriteTransaction, name: ArtifactId) -> None:
    t.delete(rows.D, _pieces(t, _data_id(t, name))[0][0])


def _drop_all_pieces(t: WriteTransaction, name: ArtifactId) -> None:
    for key, _ in _pieces(t, _data_id(t, name)):
        t.delete(rows.D, key)


def _drop_the_record(t: WriteTransaction, name: ArtifactId) -> None:
    t.delete(rows.DA, _data_id(t, name))


DAMAGES = {
    "flip": _flip, "truncate": _truncate, "drop a piece": _drop_a_piece, "drop the pieces": _drop_all_pieces,
    "drop the record": _drop_the_record,
}  # fmt: skip


def damaged_and_put_again(damage: Callable[[WriteTransaction, ArtifactId], None]) -> None:
    """Each form of copy is damaged so, then its good bytes are put: same id, healed, right."""
    with memory_store() as store:
        for form, (name, data, kind) in one_of_each_form(store).items():
            with store._backend._tables.write() as t:  # type: ignore[attr-defined]
                damage(t, name)
            with pytest.raises(Corrupt):
                store._reader.get(name.digest, fresh=True)
            assert name not in store.healed
            assert store.put(data, kind=kind, verify=True) == name, form
            assert name in store.healed, form
            assert store.get(name) == data
            assert store.verify().ok, form


@pytest.mark.parametrize("what", DAMAGES)
def test_good_bytes_replace_a_damaged_copy_of_any_form(what: str) -> None:
    """Case 8: same id, marked healed, and get is right."""
    damaged_and_put_again(DAMAGES[what])


def test_a_put_that_trusts_its_look_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 8, wrong: what the index shows is taken for sound."""
    monkeypatch.setattr("casstore.reading.Reader.is_sound", lambda *_: True)
    with pytest.raises(AssertionError):
        damaged_and_put_again(_flip)


@pytest.mark.parametrize("form", FORMS)
def test_an_artifact_that_lost_its_index_row_is_stored_anew(form: str) -> None:
    """Case 8: nothing shows the old copy any more; the put makes a new one, and verify says what is left over."""
    with memory_store() as store:
        name, data, kind = one_of_each_form(store)[form]
        with store._backend._tables.write() as t:  # type: ignore[attr-defined]
            t.delete(rows.IX, name.digest)
        assert store.put(data, kind=kind) == name and store.get(name) == data
        assert {(found.code, found.id) for found in store.verify().findings} >= {("orphan_record", name)}


def chain_of_three(store: Store) -> list[bytes]:
    texts = snapshots(3)
    name = None
    for text in texts:
        name = store.put(text, kind="context_snapshot", base=name)
    return texts


@pytest.mark.parametrize("collected", [False, True])
def test_a_healed_base_gives_its_children_back(tmp_path: Path, collected: bool) -> None:
    """Case 8: a base is damaged, visible or kept only for its delta; its bytes are put, and the child reads again."""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        texts = chain_of_three(store)
        names = [ArtifactId.of(text) for text in texts]
        data_id = None
        with store._backend._tables.write() as t:  # type: ignore[attr-defined]
            data_id = _data_id(t, names[0])
        if collected:
            roots = FakeRoots(store)
            roots.append("run", names[2])
            store.gc(roots, grace=0)
            assert names[0] not in store and store.stats().kept_bytes > 0
        with store._backend._tables.write() as t:  # type: ignore[attr-defined]
            key, value = _pieces(t, data_id)[0]
            t.put(rows.D, key, bytes([value[0] ^ 255]) + value[1:])
    with casstore.open(home) as store:
        with pytest.raises(Corrupt) as caught:
            store.get(names[2])
        assert caught.value.fields["id"] == names[2]
        assert store.put(texts[0], verify=True) == names[0]
        assert store.healed == (names[0],)
    with casstore.open(home) as store:
        assert store.get(names[2]) == texts[2] and store.get(names[0]) == texts[0]
        assert store.verify().ok


# -- 21. jnwatson/py-lmdb#474: a value over 2 GiB ---------------------------------------------------------------

PIECE, FRAME = rows.PIECE_SIZE, 1 << 20


@pytest.mark.parametrize("random_bytes", [True, False])
def test_sizes_around_every_border(random_bytes: bool) -> None:
    """Case 21: 0, 1, and one less and more than pieces and frames; whole, as ranges across borders, and by reader."""
    rng = random.Random(21)
    with memory_store() as store:
        borders = (0, PIECE, 2 * PIECE, FRAME, FRAME + PIECE, 2 * FRAME, 3 * FRAME)
        for size in {max(border + step, 0) for border in borders for step in (-1, 0, 1)}:
            data = rng.randbytes(size) if random_bytes else bytes(size)
            name = store.put_file(io.BytesIO(data))
            assert name == ArtifactId.of(data) and store.info(name).size_bytes == size
            assert store.get(name) == data
            for border in (0, PIECE, FRAME, 2 * FRAME, size):
                for start, length in ((max(border - 2, 0), 4), (max(border - PIECE, 0), 2 * PIECE)):
                    assert store.get_range(name, start, length) == data[start : start + length]
            with store.open_reader(name) as reader:
                assert b"".join(iter(lambda: reader.read(FRAME - 1), b"")) == data
        assert store.verify().ok


def test_a_killed_upload_leaves_nothing_to_see(tmp_path: Path) -> None:
    """Case 21: killed at each stop point; nothing is visible, the next gc takes what was staged."""
    data = random.Random(2).randbytes((12 << 20) + 9)
    pristine = tmp_path / "pristine"
    journal.open(pristine).close()

    def upload(home: Path) -> None:
        with casstore.open(home) as store:
            store.put_file(io.BytesIO(data))

    shutil.copytree(pristine, tmp_path / "counted")
    found = stop_points(lambda: upload(tmp_path / "counted"))
    assert found.count("upload.piece") >= 3
    for number in range(1, found.index("upload.committed") + 1):
        home = tmp_path / f"home{number}"
        shutil.copytree(pristine, home)
        assert forked(kill_at(number, lambda home=home: upload(home))) == -9
        with journal.open(home) as jrn:
            assert len(jrn.store) == 0 and ArtifactId.of(data) not in jrn.store
            assert jrn.store.stats().uploads == 1
            jrn.store.gc(jrn)
            assert jrn.store.stats().uploads == 0 and jrn.store.verify().ok
            with jrn.store._backend._tables.read() as t:  # type: ignore[attr-defined]
                assert t.count(rows.D) == 0
        shutil.rmtree(home)


LARGE = """
import io, random, sys
import casstore
from blake3 import blake3

class Made(io.RawIOBase):
    # Bytes that nobody has to keep: block n is made from n alone.
    def __init__(self, size):
        self.size, self.at = size, 0
    def readable(self):
        return True
    def readinto(self, buffer):
        data = made(self.at, min(len(buffer), self.size - self.at))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

BLOCK = 1 << 16
def block(n):
    return random.Random(n).randbytes(BLOCK)

def made(start, length):
    first, last = start // BLOCK, (start + length - 1) // BLOCK
    data = b"".join(block(n) for n in range(first, last + 1)) if length else b""
    return data[start - first * BLOCK :][:length]

def anonymous():
    # What this process holds for itself: pages of the data file that the kernel keeps mapped are not its own.
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("RssAnon"))

home, size = sys.argv[1], int(sys.argv[2])
peak = 0
def look(_):
    global peak
    peak = max(peak, anonymous())
with casstore.open(home) as store:
    name = store.put_file(Made(size), progress=look)
    assert store.info(name).size_bytes == size
    hasher = blake3()
    with store.open_reader(name) as reader:
        while part := reader.read(1 << 20):
            hasher.update(part)
            look(0)
    assert hasher.digest() == name.digest
    for border in (1 << 20, size // 2 >> 20 << 20, 1 << 31, 1 << 32, size):
        start = max(border - 5, 0)
        assert store.get_range(name, start, 10) == made(start, max(min(10, size - start), 0)), border
    assert store.verify(progress=lambda *_: look(0)).ok
    look(0)
print(peak)
"""


def large_in_bounded_memory(home: Path, size: int, peak_mib: int) -> None:
    done = subprocess.run([sys.executable, "-c", LARGE, str(home), str(size)], stdout=subprocess.PIPE, check=True)
    assert int(done.stdout) >> 20 < peak_mib


def test_a_large_artifact_takes_bounded_memory(tmp_path: Path) -> None:
    """Case 21, in small: more from a generator than the memory that it may take."""
    large_in_bounded_memory(tmp_path / "home", (96 << 20) + 12345, 80)


@pytest.mark.soak
def test_more_than_two_gib(tmp_path: Path) -> None:
    """Case 21: 2.2 GiB from a generator; right on read, ranges across borders, the memory of the process bounded."""
    large_in_bounded_memory(tmp_path / "home", int(2.2 * (1 << 30)) + 12345, 128)
