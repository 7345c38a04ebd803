"""Many at once: the quick ways write and read what one at a time does."""

from __future__ import annotations

import io
import os
import random
import threading
from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from uuid import UUID

import pytest
import zstandard
from blake3 import blake3

import casstore
import journal
from benchmarks import memory
from casstore import codec, frames, puts, values
from casstore.backend import Candidate, Decision, NewArtifact, Outcome, PutResult, SweepView, Verdict
from casstore.codec import Codec
from casstore.items import PreparedPut
from casstore.reading import FramedReader, Reader
from casstore.recent import RecentBytes
from casstore.rows import DICTIONARY_KIND, PIECE_SIZE, TABLES, D, piece_key
from casstore.table_backend import TableBackend
from casstore.tables import MemoryTables
from casstore.testing import FakeRoots, memory_store


def artifact(data: bytes, kind: str = "other", links: Sequence[bytes] = (), base: bytes | None = None) -> NewArtifact:
    how = Codec.RAW if base is None else Codec.ZSTD_DELTA
    return NewArtifact(blake3(data).digest(), kind, len(data), tuple(links), how, data, len(data), base)


def mixed(rng: random.Random, old: Sequence[NewArtifact]) -> list[NewArtifact]:
    """New ones of all kinds and sizes, several alike, hits, values that link to and deltas of some that came before."""
    made: list[NewArtifact] = []
    for _ in range(40):
        before = [*old, *made]
        what = rng.randrange(8)
        links, base = [], None
        if what == 0 and before:
            made.append(rng.choice(before))
            continue
        if what == 1 and before:
            links = [rng.choice(before).digest]
        elif what == 2 and before:
            base = rng.choice(before).digest
        size = rng.choice([0, 1, 100, PIECE_SIZE, PIECE_SIZE + 1, 3 * PIECE_SIZE]) if what == 3 else 20
        data = (b"%d " % rng.getrandbits(40)).ljust(size, b".") if size else b""
        made.append(artifact(data, rng.choice(["other", "value", "letter", DICTIONARY_KIND]), links, base))
    return made


def delete_all(count: int, _: SweepView) -> list[Decision]:
    return [Decision(Verdict.DELETE)] * count


def put_into(
    tables: MemoryTables, plain_min: int, rounds: Sequence[tuple[Sequence[NewArtifact], str | None]], collected: int
) -> tuple[list[PutResult], dict[bytes, dict[bytes, bytes]]]:
    backend, done = TableBackend(tables), []
    backend.bind("uuid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(puts, "PLAIN_MIN", plain_min)
        backend.lease_open("lease", 1 << 40)
        for number, (items, lease) in enumerate(rounds):
            if number == collected:
                opened = backend.gc_open(100, 0, b"{}")
                rows = [row for row in backend.page(b"", 1000) if row.data_id % 2]
                went = [Candidate(row.data_id, row.digest, False) for row in rows]
                judge = partial(delete_all, len(went))
                backend.gc_sweep(opened.epoch, went[::-1], judge, 100, lambda: None)
            done.append(backend.put(items, 100 + number, lease))
    return done, {table: dict(rows) for table, rows in tables._rows.items()}


@pytest.mark.parametrize("seed", range(30))
def test_rows_written_table_by_table_are_those_of_one_put_after_the_other(seed: int) -> None:
    """Also after something was collected, while a gc is open, and under a lease."""
    rng, rounds, old = random.Random(seed), list[tuple[list[NewArtifact], str | None]](), list[NewArtifact]()
    for _ in range(3):
        items = mixed(rng, old)
        rounds.append((items, rng.choice([None, "lease"])))
        old += items
    # After the collection nothing is put that needs what went: a put that is refused would end the comparison.
    rounds.append(([item for item in [*old, *mixed(rng, ())] if not item.links and item.base is None], None))
    singly = put_into(MemoryTables(TABLES), 1 << 30, rounds, 3)
    together = put_into(MemoryTables(TABLES), 1, rounds, 3)
    assert together == singly
    assert {outcome for result in singly[0] for outcome in result.outcomes} == {Outcome.NEW, Outcome.HIT}


def test_a_value_before_its_child_in_a_batch_is_refused() -> None:
    """In order means in order, whatever is written together."""
    child = artifact(b"child")
    others = [artifact(b"%d" % number) for number in range(20)]
    backend = TableBackend(MemoryTables(TABLES))
    with pytest.raises(casstore.MissingArtifact):
        backend.put([*others, artifact(b"parent", links=[child.digest]), child], 1, None)
    assert backend.counters().artifacts == 0


def test_put_many_gives_what_put_gives(tmp_path: Path) -> None:
    """Ids, kinds, links and encodings; what was there already is healed where it is damaged."""
    rng = random.Random(4)
    words = [b"%d " % rng.randrange(1000) for _ in range(300)]
    items: list[bytes | tuple[bytes, str]] = [b"".join(rng.choices(words, k=rng.randrange(400))) for _ in range(300)]
    items += [(rng.randbytes(rng.randrange(3000)), kind) for kind in islice(cycle(["value", "letter"]), 60)]
    items += [b"", b"", b"x", values.encode({"nothing": [1, 2, 3]})[0]]
    with casstore.open(tmp_path / "many") as many, casstore.open(tmp_path / "one") as one:
        child = many.put(b"child")
        one.put(b"child")
        items.append((values.encode({"child": child})[0], "value"))
        ids = many.put_many(items)
        for item, name in zip(items, ids, strict=True):
            data, kind = item if isinstance(item, tuple) else (item, "other")
            assert one.put(data, kind=kind, durable=False) == name
            found, wanted = many.info(name), one.info(name)
            assert (found.kinds, found.links, found.size_bytes) == (wanted.kinds, wanted.links, wanted.size_bytes)
            assert many.get(name) == data
        assert many.verify().findings == () == one.verify().findings
        # What is large enough for a base may be a delta in the one and whole in the other.
        small = [name for name in dict.fromkeys(ids) if many.info(name).size_bytes < 4096]
        assert [many.info(name).stored_bytes for name in small] == [one.info(name).stored_bytes for name in small]


def test_many_go_with_their_kinds_dictionary() -> None:
    """A batch of small ones is not taken past a dictionary that is there, and is encoded as each of them would be; what
    does not gain by it is not. Damaged, it is told of."""
    store, one, rng = memory_store(), memory_store(), random.Random(2)
    texts = [
        b'{"name": "%x", "state": "waiting for an answer", "retries": %d}' % (rng.getrandbits(64), n)
        for n in range(600)
    ]  # fmt: skip
    for each in (store, one):
        each.put_many([(text, "note") for text in texts[:400]])
        dictionary = each.train("note")
        assert dictionary is not None
    items = [*texts[400:], *[rng.randbytes(200) for _ in range(9)], b"", b"x"]
    ids = store.put_many([(data, "note") for data in items])
    assert ids == [one.put(data, kind="note") for data in items]
    told = [(store.info(name), one.info(name)) for name in ids]
    assert [found.base for found, _ in told] == [dictionary] * 200 + [None] * 11
    assert [(found.base, found.stored_bytes) for found, _ in told] == [(w.base, w.stored_bytes) for _, w in told]
    assert store.get_many(ids) == items
    fresh = Reader(store._backend, RecentBytes())
    damage_piece(store, dictionary)
    assert fresh.get_many([name.digest for name in ids[200:]]) == items[200:]
    with pytest.raises(casstore.Corrupt) as caught:
        fresh.get_many([name.digest for name in ids[::-1]])
    assert caught.value.fields["id"] == ids[199]


def damage_piece(store: casstore.Store, name: casstore.ArtifactId) -> None:
    """Flip a bit of an artifact's first piece."""
    key = piece_key(store._reader.head(name.digest).data_id, 0)
    with store._backend._tables.write() as t:
        piece = bytearray(t.get(D, key) or b"")
        piece[-1] ^= 1
        t.put(D, key, bytes(piece))


# -- reading --------------------------------------------------------------------------------------------------


def test_get_many_gives_what_get_gives(tmp_path: Path) -> None:
    """Small and large, whole, deltas and with a dictionary, the same one twice, more than go in one look."""
    rng = random.Random(9)
    text = b"".join(b"line %d of %d\n" % (number, rng.getrandbits(30)) for number in range(900))
    with casstore.open(tmp_path / "home") as store:
        base = store.put(text)
        delta = store.put(text + b"and more", base=base)
        assert store.info(delta).base == base
        notes = [
            b'{"name": "%x", "state": "waiting for an answer", "retries": %d}' % (rng.getrandbits(64), n)
            for n in range(600)
        ]  # fmt: skip
        store.put_many([(note, "note") for note in notes[:300]])
        assert store.train("note") is not None
        ids = store.put_many([(note, "note") for note in notes] + [b"", bytes(30 << 10), bytes(60 << 10)])
        ids += [base, delta, store.put(rng.randbytes(3 << 20)), store.put(rng.randbytes(300)), delta, ids[0]]
        rng.shuffle(ids)
        assert store.get_many(iter(ids)) == [store.get(name) for name in ids]
        assert store.get_many([]) == []


@pytest.mark.parametrize("place", [0, 1, 30])
def test_get_many_raises_as_get_does(tmp_path: Path, place: int) -> None:
    """What is missing, collected or damaged, among others that are well; the first of them counts."""
    items = [b"%d is a small one, a small one, a small one, a small one, a small one" % n for n in range(1000)]
    with casstore.open(tmp_path / "home") as store:
        roots, ids = FakeRoots(store), store.put_many(items)
        absent = casstore.ArtifactId(bytes(32))
        with pytest.raises(casstore.NotFound):
            store.get_many([*ids[:place], absent, *ids])
        gone = store.put(b"gone")
        roots.append("run", *ids)
        store.gc(roots, grace=0)
        with pytest.raises(casstore.Collected):
            store.get_many([*ids[:place], gone, absent, *ids])
        damage_piece(store, ids[place])
        with pytest.raises(casstore.Corrupt) as caught:
            store.get_many([*ids, absent])
        assert caught.value.fields["id"] == ids[place]
        assert store.get_many(ids[:place] + ids[place + 1 :]) == items[:place] + items[place + 1 :]


def test_get_many_finds_what_is_staged(tmp_path: Path) -> None:
    """It looks where get looks."""
    with journal.open(tmp_path / "home") as jrn:
        brought = [jrn.store.prepare_value({"number": number}) for number in range(20)]
        staged = [one for one in brought if isinstance(one, PreparedPut)]
        run = UUID(int=0xA1 << 120)
        started = journal.RunStarted(op_id="bulk", manifest_id=staged[0].id, initial_snapshot_id=staged[1].id)
        jrn.append(run, 0, [started], puts=staged)
        assert jrn.store._stage.count() == 20
        ids = [one.id for one in staged]
        assert jrn.store.get_many(ids) == [one.item.data for one in staged]


@pytest.mark.parametrize("states_its_size", [True, False])
def test_what_a_frame_expands_to_is_bounded_before_it_is_decompressed(states_its_size: bool) -> None:
    """Among many good ones: a frame of 64 MiB whose record says 100 bytes is refused, the others are read."""
    bomb = zstandard.ZstdCompressor(write_content_size=states_its_size).compress(bytes(64 << 20))
    texts = [b"%d abcabcabcabcabcabcabcabcabcabcabc" % number * 9 for number in range(200)]
    good = [(int(one.codec), one.stored, len(data), 0) for data in texts for one in [codec.encode_whole(data)]]
    lies = [
        (int(Codec.ZSTD), bomb, 100, 0), (int(Codec.RAW), b"x", 100, 0), (int(Codec.ZSTD), b"", 1, 0), (77, b"x", 1, 0),
        (int(Codec.ZSTD_DICTIONARY), good[0][1], good[0][2], 5), (int(Codec.ZSTD_DICTIONARY), bomb, 100, 6),
        (int(Codec.ZSTD), good[0][1], good[0][2], 7), None,
    ]  # fmt: skip
    before = memory.anonymous_bytes()
    watch = memory.MemoryWatch()
    found = codec.decode_all([*good[:100], *lies, *good[100:]], {6: b"no dictionary"})
    peak, _ = watch.stop()
    assert found == [*texts[:100], *[None] * len(lies), *texts[100:]]
    assert codec.decode_all(good, {}) == texts
    assert peak - before < 32 << 20


# -- large ones -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["text", "random", "both"])
def large(request: pytest.FixtureRequest) -> bytes:
    """Frames that are kept compressed, raw, and in turn; a last one that is shorter."""
    rng = random.Random(5)
    text = b"".join(b"line %d of %d\n" % (number, rng.getrandbits(20)) for number in range(120_000))[: 2 << 20]
    noise = rng.randbytes(2 << 20)
    parts = {"text": [text, text[::-1], text], "random": [noise, noise[::-1]], "both": [text, noise, text, noise]}
    return b"".join(parts[request.param]) + b"and a last one"


def data_of(store: casstore.Store, name: casstore.ArtifactId) -> int:
    return store._reader.head(name.digest).data_id


def damage(store: casstore.Store, name: casstore.ArtifactId, raw_frame: int) -> None:
    """Flip a bit in the middle of a frame's stored bytes."""
    head = store._reader.head(name.digest)
    entry = FramedReader(store._backend, head, name.digest)._table.entries[raw_frame]
    key = piece_key(head.data_id, (entry.offset + entry.length // 2) // PIECE_SIZE)
    with store._backend._tables.write() as t:
        piece = bytearray(t.get(D, key) or b"")
        piece[(entry.offset + entry.length // 2) % PIECE_SIZE] ^= 4
        t.put(D, key, bytes(piece))


@pytest.mark.parametrize("step", [777_777, frames.FRAME_SIZE, 5 << 20])
def test_reading_in_turn_gives_every_byte_once(tmp_path: Path, large: bytes, step: int) -> None:
    """In steps of any size, also after a jump back and forth; and as a whole."""
    with casstore.open(tmp_path / "home") as store:
        name = store.put_file(io.BytesIO(large))
        for begin in (0, 3 << 20, 100, 0):
            with store.open_reader(name) as reader:
                reader.seek(begin)
                assert b"".join(iter(partial(reader.read, step), b"")) == large[begin:]
                reader.seek(1 << 20)
                assert reader.read(5) == large[1 << 20 :][:5]
        assert store.get(name) == large
        assert store.get_range(name, 1_000_000, 2_500_000) == large[1_000_000:3_500_000]
        assert store.verify().findings == ()


def test_damage_is_told_when_its_turn_comes(tmp_path: Path, large: bytes) -> None:
    """Frames before the damaged one are read as ever, though some are decoded ahead; that one never is."""
    with casstore.open(tmp_path / "home") as store:
        name = store.put_file(io.BytesIO(large))
        damage(store, name, 3)
        with store.open_reader(name) as reader:
            assert reader.read(3 << 20) == large[: 3 << 20]
            for _ in range(2):
                with pytest.raises(casstore.Corrupt):
                    reader.read(1 << 20)
            reader.seek(0)
            assert reader.read(1 << 20) == large[: 1 << 20]
        with pytest.raises(casstore.Corrupt):
            store.get(name)


def test_a_missing_piece_is_told_when_its_turn_comes(tmp_path: Path) -> None:
    """Reading ahead finds it early, and keeps it to itself until then."""
    large = random.Random(1).randbytes(5 << 20)
    with casstore.open(tmp_path / "home") as store:
        name = store.put_file(io.BytesIO(large))
        with store._backend._tables.write() as t:
            t.delete(D, piece_key(data_of(store, name), (3 << 20) // PIECE_SIZE + 9))
        with store.open_reader(name) as reader:
            assert reader.read(3 << 20) == large[: 3 << 20]
            with pytest.raises(casstore.Corrupt, match="is missing"):
                reader.read(1 << 20)


def test_a_reader_that_is_given_up_leaves_no_thread(tmp_path: Path, large: bytes) -> None:
    """Closed or dropped in the middle, and after an error."""
    with casstore.open(tmp_path / "home") as store:
        name = store.put_file(io.BytesIO(large))
        before = threading.active_count()
        closed, dropped = store.open_reader(name), store.open_reader(name)
        assert closed.read(2 << 20) == dropped.read(2 << 20) == large[: 2 << 20]
        assert threading.active_count() > before
        closed.close()
        del dropped
        assert threading.active_count() == before
        damage(store, name, 2)
        with store.open_reader(name) as reader:
            with pytest.raises(casstore.Corrupt):
                reader.read()
            assert threading.active_count() == before


def test_a_store_closed_under_a_reader_ends_it(tmp_path: Path, large: bytes) -> None:
    """What was read ahead may still come; then an error, and no crash."""
    with casstore.open(tmp_path / "home") as store:
        name = store.put_file(io.BytesIO(large))
        reader = store.open_reader(name)
        assert reader.read(2 << 20) == large[: 2 << 20]
    with pytest.raises(casstore.ClosedHandle):
        while reader.read(1 << 20):
            pass
    reader.close()


def test_a_forked_child_gets_an_error_and_the_parent_reads_on(tmp_path: Path, large: bytes) -> None:
    """The threads that decode ahead are the parent's: the child must not wait for them."""
    with casstore.open(tmp_path / "home") as store:
        name = store.put_file(io.BytesIO(large))
        with store.open_reader(name) as reader:
            assert reader.read(2 << 20) == large[: 2 << 20]
            child = os.fork()
            if not child:
                try:
                    reader.read()
                except casstore.ForkedHandle:
                    reader.close()
                    os._exit(7)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert reader.read() == large[2 << 20 :]


def test_a_frame_that_says_it_is_huge_is_refused() -> None:
    """Before there is memory for it: a frame is never kept in more bytes than it has."""
    store = memory_store()
    name = store.put_file(io.BytesIO(bytes(3 << 20)))
    framed = FramedReader(store._backend, store._reader.head(name.digest), name.digest)
    framed._head = framed._head._replace(stored_len=1 << 50)
    framed._table.entries[1] = framed._table.entries[1]._replace(length=1 << 45)
    assert len(framed.frames(0, 5)[0]) == frames.FRAME_SIZE
    with pytest.raises(casstore.Corrupt, match="are stored"):
        framed.frames(1 << 20, 2 << 20)
    with pytest.raises(casstore.Corrupt, match="are stored"):
        list(framed.run(0))


def test_ranges_are_cut_where_they_should_be(tmp_path: Path, large: bytes) -> None:
    """At, before and after the seams of frames, within one and over several, past the end."""
    with casstore.open(tmp_path / "home") as store:
        name = store.put_file(io.BytesIO(large))
        places = [near for seam in range(0, len(large), 1 << 20) for near in (seam - 1, seam, seam + 1) if near >= 0]
        for start in places:
            for stop in [*places, len(large), len(large) + 5]:
                assert store.get_range(name, start, max(stop - start, 0)) == large[start:stop]
