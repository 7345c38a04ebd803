"""verify finds every kind of damage, in parts and with stops, beside writers; repair gets it from a backup."""

from __future__ import annotations

import io
import random
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

import pytest

import casstore
import journal
from casstore import ArtifactId, audits
from casstore.rows import (
    DA,
    DATA_IDS_RESERVED,
    GONE,
    IX,
    KN,
    KP,
    LEASE,
    LEASED,
    LN,
    META,
    PIN,
    PURGE,
    STAGE,
    STATE_KEY,
    TICK,
    D,
    DaRow,
    IxRow,
    State,
    u64,
)
from casstore.testing import FakeRoots
from tests.command_line import casstore as command_line

A, B = "flow.step.a", "flow.step.b"


def edit(store: casstore.Store, change: Callable[[Any], None]) -> None:
    """Damage rows behind the store's back."""
    with store._backend._tables.write() as txn:  # type: ignore[attr-defined]
        change(txn)


def codes(report: casstore.VerifyReport) -> set[str]:
    return {found.code for found in report.findings}


def fill(store: casstore.Store) -> dict[str, ArtifactId]:
    """Artifacts of every encoding, links, a kept base, a collected one, pins."""
    rng = random.Random(5)
    made = {"raw": store.put(rng.randbytes(9000)), "zstd": store.put(b"text " * 3000)}
    made["base"] = store.put(b"".join(b"line %d\n" % n for n in range(3000)))
    made["delta"] = store.put(b"".join(b"line %d\n" % n for n in range(3001)), base=made["base"])
    made["large"] = store.put_file(_stream(rng.randbytes(3 << 20) + bytes(1 << 20)))
    made["leaf"] = store.put_value({"leaf": 1})
    made["node"] = store.put_value({"leaf": made["leaf"], "raw": made["raw"]}, kind="special")
    made["root"] = store.put_value([made["node"], made["leaf"]])
    made["lost"] = store.put(b"collected")
    for name in ("raw", "zstd", "delta", "large", "root"):
        store.pin(name, made[name])
    store.gc(FakeRoots(store), grace=0, force=True)
    assert store.info(made["delta"]).encoding == "segments"
    assert made["lost"] not in store and made["base"] not in store  # its bytes are kept for the delta
    return made


def _stream(data: bytes) -> BinaryIO:
    return io.BytesIO(data)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with casstore.open(tmp_path / "home") as opened:
        yield opened


def ix(txn: Any, name: ArtifactId) -> IxRow:
    return IxRow.unpack(txn.get(IX, name.digest))


def record(txn: Any, name: ArtifactId) -> tuple[bytes, DaRow]:
    key = u64(ix(txn, name).data_id)
    return key, DaRow.unpack(txn.get(DA, key))


def change_ix(name: str, **fields: Any) -> Callable[[Any, dict[str, ArtifactId]], None]:
    return lambda txn, made: txn.put(IX, made[name].digest, ix(txn, made[name])._replace(**fields).pack())


def change_record(name: str, **fields: Any) -> Callable[[Any, dict[str, ArtifactId]], None]:
    def change(txn: Any, made: dict[str, ArtifactId]) -> None:
        key, row = record(txn, made[name])
        txn.put(DA, key, row._replace(**fields).pack())

    return change


def change_state(**steps: int) -> Callable[[Any, dict[str, ArtifactId]], None]:
    def change(txn: Any, made: dict[str, ArtifactId]) -> None:
        state = State.unpack(txn.get(META, STATE_KEY))
        for field, step in steps.items():
            setattr(state, field, getattr(state, field) + step)
        txn.put(META, STATE_KEY, state.pack())

    return change


def kept_key(txn: Any) -> bytes:
    return next(iter(txn.scan(KP)))[0]


def swap_numbers(txn: Any, made: dict[str, ArtifactId]) -> None:
    """The leaf becomes younger than what links to it; nothing else changes."""
    new = u64(State.unpack(txn.get(META, STATE_KEY)).next_data_id)
    change_state(next_data_id=1)(txn, made)
    key, row = record(txn, made["leaf"])
    txn.put(DA, new, row.pack())
    txn.put(D, new + bytes(4), txn.get(D, key + bytes(4)))
    txn.delete(DA, key)
    txn.delete(D, key + bytes(4))
    change_ix("leaf", data_id=int.from_bytes(new, "big"))(txn, made)


DAMAGES: dict[str, tuple[Callable[[Any, dict[str, ArtifactId]], Any], set[str], str | None]] = {
    "a piece is missing": (lambda t, m: t.delete(D, record(t, m["raw"])[0] + bytes(4)), {"corrupt"}, "raw"),
    "a piece of a large one": (
        lambda t, m: t.put(D, record(t, m["large"])[0] + b"\0\0\1\0", bytes(4080)), {"corrupt"}, "large"
    ),
    "the seal of a large one": (change_record("large", extra=bytes(16)), {"corrupt"}, "large"),
    "an index row": (lambda t, m: t.put(IX, m["zstd"].digest, b"short"), {"bad_row"}, "zstd"),
    "a length in the index": (change_ix("zstd", raw_len=7), {"wrong_length"}, "zstd"),
    "a touch to come": (change_ix("zstd", touched=1 << 40), {"wrong_touch"}, "zstd"),
    "the digest of a record": (change_record("zstd", digest=bytes(32)), {"wrong_record", "orphan_record"}, "zstd"),
    "a record of another": (
        lambda t, m: t.put(IX, m["raw"].digest, ix(t, m["raw"])._replace(data_id=ix(t, m["zstd"]).data_id).pack()),
        {"corrupt", "orphan_record"}, "raw",
    ),
    "a link's row is missing": (
        lambda t, m: t.delete(IX, m["leaf"].digest), {"missing_link", "orphan_record", "wrong_counters"}, None
    ),
    "links are missing": (lambda t, m: t.delete(LN, m["node"].digest), {"wrong_links"}, "node"),
    "links of another": (lambda t, m: t.put(LN, m["node"].digest, m["zstd"].digest), {"wrong_links"}, "node"),
    "links that nothing made": (lambda t, m: t.put(LN, m["raw"].digest, m["zstd"].digest), {"wrong_links", "wrong_order"}, "raw"),  # noqa: E501
    "half a link": (lambda t, m: t.put(LN, m["node"].digest, bytes(33)), {"bad_row", "missing_link", "wrong_links"}, "node"),  # noqa: E501
    "links in a ring": (
        lambda t, m: t.put(LN, m["leaf"].digest, m["root"].digest), {"wrong_links", "wrong_order"}, "leaf"
    ),
    "a row of nothing": (
        lambda t, m: t.put(IX, b"x" * 32, ix(t, m["raw"])._replace(data_id=1 << 40).pack()),
        {"corrupt", "wrong_counters"}, None,
    ),
    "links of nothing": (lambda t, m: t.put(LN, b"x" * 32, m["raw"].digest), {"orphan_links"}, None),
    "a kind of nothing": (lambda t, m: t.put(KN, b"x" * 32 + b"kind", b""), {"orphan_kind"}, None),
    "a link is younger": (swap_numbers, {"wrong_order"}, None),
    "a base that is younger": (change_record("delta", base=1 << 40), {"corrupt", "wrong_order"}, "delta"),
    "a base that is missing": (
        lambda t, m: (t.delete(DA, kept_key(t)), t.put(PURGE, kept_key(t), b"")),
        {"corrupt", "missing_base", "wrong_kept"}, "delta",
    ),
    "a base of what is no delta": (change_record("zstd", base=DATA_IDS_RESERVED), {"wrong_base"}, "zstd"),
    "a base is damaged": (
        lambda t, m: t.put(D, kept_key(t) + bytes(4), bytes(len(t.get(D, kept_key(t) + bytes(4))))),
        {"corrupt", "corrupt_base"}, "delta",
    ),
    "kept, and not listed": (
        lambda t, m: t.delete(KP, kept_key(t)), {"orphan_record"}, None
    ),
    "kept for another": (lambda t, m: t.put(KP, kept_key(t), m["raw"].digest), {"wrong_kept"}, "raw"),
    "kept, and visible": (
        lambda t, m: t.put(KP, record(t, m["raw"])[0], m["raw"].digest), {"wrong_kept"}, "raw"
    ),
    "a record that nothing reaches": (
        lambda t, m: t.put(DA, u64(5000), record(t, m["raw"])[1]._replace(stored_len=0).pack()),
        {"orphan_record", "wrong_number"}, "raw",
    ),
    "pieces that nothing reaches": (lambda t, m: t.put(D, u64(5000) + bytes(4), b"x"), {"orphan_pieces"}, None),
    "pieces behind the end": (
        lambda t, m: t.put(D, record(t, m["zstd"])[0] + b"\0\0\0\7", b"x"), {"orphan_pieces"}, "zstd"
    ),
    "a purge of what lives": (lambda t, m: t.put(PURGE, record(t, m["raw"])[0], b""), {"wrong_purge"}, "raw"),
    "collected, and visible": (
        lambda t, m: t.put(GONE, m["raw"].digest, t.get(GONE, m["lost"].digest)), {"wrong_gone"}, "raw"
    ),
    "a pin of nothing": (lambda t, m: t.put(PIN, b"p", b"x" * 32 + u64(1)), {"missing_root"}, None),
    "held by no lease": (lambda t, m: t.put(LEASED, b"l" + m["raw"].digest, b""), {"orphan_lease"}, "raw"),
    "half a pin": (lambda t, m: t.put(PIN, b"p", b"x" * 31), {"bad_row"}, None),
    "the end of a lease": (lambda t, m: t.put(LEASE, b"l", b"x"), {"bad_row"}, None),
    "half of what a lease holds": (lambda t, m: t.put(LEASED, b"l" * 31, b""), {"bad_row"}, None),
    "a pin whose name is no text": (lambda t, m: t.put(PIN, b"p\xad", m["raw"].digest + u64(1)), {"bad_name"}, None),
    "a lease whose name is no text": (
        lambda t, m: (t.put(LEASE, b"l\xad", u64(1 << 40)), t.put(LEASED, b"l\xad" + m["raw"].digest, b"")),
        {"bad_name"}, None,
    ),
    "a kind that is no text": (
        lambda t, m: (t.delete(KN, m["node"].digest + b"special"), t.put(KN, m["node"].digest + b"spec\xad", b"")),
        {"bad_name"}, None,
    ),
    "an artifact of a short digest": (lambda t, m: t.put(IX, b"short", b""), {"bad_key", "wrong_counters"}, None),
    "collected, of a short digest": (lambda t, m: t.put(GONE, b"short", b""), {"bad_key"}, None),
    "collected, half a row": (
        lambda t, m: t.put(GONE, m["lost"].digest, t.get(GONE, m["lost"].digest) + b"x"), {"bad_row"}, None
    ),
    "links of a short digest": (lambda t, m: t.put(LN, b"short", b""), {"bad_key"}, None),
    "a kind of a short digest": (lambda t, m: t.put(KN, b"short", b""), {"bad_key"}, None),
    "a record of no number": (lambda t, m: t.put(DA, b"123456789", b""), {"bad_key"}, None),
    "a piece of no number": (lambda t, m: t.put(D, u64(1) + b"x", b""), {"bad_key"}, None),
    "kept under no number": (lambda t, m: t.put(KP, b"123456789", bytes(32)), {"bad_key"}, None),
    "kept for half a digest": (lambda t, m: t.put(KP, kept_key(t), bytes(31)), {"wrong_kept"}, None),
    "an upload of no number": (lambda t, m: t.put(STAGE, b"x", u64(1)), {"bad_row"}, None),
    "an upload since no time": (lambda t, m: t.put(STAGE, u64(1), b"x"), {"bad_row"}, None),
    "a purge of no number": (lambda t, m: t.put(PURGE, b"x", b""), {"bad_row"}, None),
    "half a second": (lambda t, m: t.put(TICK, u64(1), b"x"), {"bad_row"}, None),
    "the counters": (lambda t, m: t.put(META, STATE_KEY, b"x"), {"bad_row"}, None),
    "no counters": (lambda t, m: t.delete(META, STATE_KEY), {"bad_row"}, None),
    "count of artifacts": (change_state(artifacts=1), {"wrong_counters"}, None),
    "raw bytes": (change_state(raw_bytes=-1), {"wrong_counters"}, None),
    "stored bytes": (change_state(stored_bytes=1), {"wrong_counters"}, None),
    "kept bytes": (change_state(kept_bytes=1), {"wrong_counters"}, None),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_each_kind_of_damage_is_found(store: casstore.Store, what: str) -> None:
    """As exactly these findings, with the artifact's id; in parts and with stops just as in one go."""
    made = fill(store)
    assert store.verify().findings == ()
    damage, expected, name = DAMAGES[what]
    edit(store, lambda txn: damage(txn, made))
    report = store.verify()
    assert codes(report) == expected
    if name is not None:
        assert made[name] in {found.id for found in report.findings}
    parts = [found for k in range(1, 4) for found in store.verify(subset=(k, 3)).findings]
    assert sorted(map(str, parts)) == sorted(map(str, report.findings))
    stopped = [found for part in stops(store, None) for found in part.findings]
    assert sorted(map(str, stopped)) == sorted(map(str, report.findings))


def stops(store: casstore.Store, subset: tuple[int, int] | None) -> list[casstore.VerifyReport]:
    """A verify that stops wherever it can."""
    reports = [store.verify(subset=subset, max_seconds=0)]
    while not reports[-1].complete:
        assert reports[-1].next is not None and len(reports) < 10_000
        reports.append(store.verify(subset=subset, after=reports[-1].next, max_seconds=0))
    assert reports[-1].next is None
    return reports


def test_parts_and_stops_see_each_artifact_once(store: casstore.Store) -> None:
    """n parts are the whole, stops lose and repeat nothing, and both together; also over many blocks of numbers."""
    store.put_many([b"%d" % n for n in range(audits.BLOCK * 2 + 500)])
    store.put_many([random.Random(n).randbytes(3000) for n in range(20)])
    whole = store.verify()
    assert whole.complete and whole.next is None and whole.artifacts == len(store)
    for n in (1, 2, 7):
        parts = [store.verify(subset=(k, n)) for k in range(1, n + 1)]
        assert sum(part.artifacts for part in parts) == whole.artifacts
        assert sum(part.raw_bytes for part in parts) == whole.raw_bytes
        assert all(part.artifacts > 0 for part in parts)
    stopped = stops(store, (50, 90))
    assert len(stopped) > 20
    assert sum(part.artifacts for part in stopped) == store.verify(subset=(50, 90)).artifacts > 20


def test_a_staged_row_that_cannot_be_read(tmp_path: Path) -> None:
    """Is named, and hides nothing of the store."""
    with journal.open(tmp_path / "home") as jrn:
        name = jrn.store.put(b"x" * 9000)
        with jrn._backend._tables.write() as txn:  # type: ignore[attr-defined]
            txn.put(b"staged1", bytes(32), b"short")
        edit(jrn.store, lambda txn: txn.delete(D, record(txn, name)[0] + bytes(4)))
        assert codes(jrn.store.verify()) == {"damaged_store", "corrupt"}
        with jrn._backend._tables.write() as txn:  # type: ignore[attr-defined]
            txn.delete(b"staged1", bytes(32))


def test_arguments(store: casstore.Store) -> None:
    """What is no part and no position is refused; a position of another part too."""
    store.put_many([b"a", b"b"])
    following = store.verify(subset=(1, 2), max_seconds=0).next
    for subset in ((0, 2), (3, 2), (1, 0), (1, "2"), [1, 2], (True, 2), 3):
        with pytest.raises(casstore.InvalidArgument):
            store.verify(subset=subset)  # type: ignore[arg-type]
    for after in ("", "x", "1/1 nowhere 00", "1/1 artifacts 0", "2/1 artifacts ", "1 artifacts ", 7):
        with pytest.raises(casstore.InvalidArgument):
            store.verify(after=after)  # type: ignore[arg-type]
    with pytest.raises(casstore.InvalidArgument):
        store.verify(subset=(2, 2), after=following)
    assert store.verify(after=following).complete


def test_a_large_artifact_in_constant_memory(store: casstore.Store) -> None:
    """64 MiB are read through in a fraction of that, and one wrong frame that has the right hash in a right table is
    found by the whole hash."""
    name = store.put_file(_stream(random.Random(1).randbytes(1 << 20) * 64))
    tracemalloc.start()
    try:
        assert store.verify().findings == ()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20
    other = store.put_file(_stream(bytes(64 << 20)))

    def swap(txn: Any) -> None:
        row, wrong = ix(txn, name), ix(txn, other)
        txn.put(IX, name.digest, row._replace(data_id=wrong.data_id).pack())
        txn.put(IX, other.digest, wrong._replace(data_id=row.data_id).pack())

    edit(store, swap)
    report = store.verify()
    assert {found.id for found in report.findings if found.code == "corrupt"} == {name, other}


def test_beside_writers_and_gc_nothing_looks_wrong(store: casstore.Store) -> None:
    """Puts with links, uploads, leases and collections go on while verify runs again and again."""
    roots = FakeRoots(store)
    stop = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            rng, before, n = random.Random(3), None, 0
            while not stop.is_set():
                n += 1
                leaf = store.put(rng.randbytes(5000))
                before = store.put_value({"n": n, "leaf": leaf, "text": "x" * 5000}, base=before)
                store.pin("now", before)
                with store.lease(60) as lease:
                    lease.put(b"%d" % n * 100)
                if n % 10 == 0:
                    store.put_file(_stream(rng.randbytes(2 << 20)))
                    store.gc(roots, grace=0, force=True)
        except BaseException as error:
            errors.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    found, runs = [], 0
    try:
        while (runs < 25 or store.stats().gcs < 5) and not errors:
            found += store.verify().findings
            runs += 1
    finally:
        stop.set()
        worker.join()
    assert found == [] and errors == []


def home_with_backup(tmp_path: Path) -> tuple[dict[str, ArtifactId], UUID]:
    with journal.open(tmp_path / "home") as jrn:
        made = fill(jrn.store)
        run = jrn.start_run("op", manifest={"m": 1}, context={"n": 0}, plan=[A, B], run_id=UUID(int=5))
        with run.enter(A) as attempt:
            attempt.complete({"n": 1})
        run.release()
        jrn.backup(tmp_path / "copy")
    return made, run.run_id


def command(*arguments: object) -> tuple[int, Any]:
    return command_line(*arguments, "--json").coded


def test_repair_from_a_backup(tmp_path: Path) -> None:
    """Damaged, lost by the index, linked, named by a pin or by the journal: all of it is back, under the old number
    where it was only damaged, and in the right order where it was missing."""
    home, copy = tmp_path / "home", tmp_path / "copy"
    made, run_id = home_with_backup(tmp_path)
    with journal.open(home) as jrn:
        store, named = jrn.store, jrn.run_state(run_id).checkpoint_id

        def damage(txn: Any) -> None:
            for name in ("raw", "large"):
                txn.put(D, record(txn, made[name])[0] + bytes(4), bytes(4080))
            for lost in (made["leaf"], made["zstd"], named):
                key, _ = record(txn, lost)
                txn.delete(DA, key)
                txn.delete(D, key + bytes(4))
                txn.delete(IX, lost.digest)

        edit(store, damage)
        numbers = {name: store._backend.rows([made[name].digest])[0].data_id for name in ("raw", "large")}  # type: ignore[union-attr]
    code, document = command("verify", "--home", home)
    assert code == 3
    found = {(item["code"], item["id"]) for item in document["findings"]}
    assert found >= {
        ("corrupt", str(made["raw"])), ("corrupt", str(made["large"])), ("missing_link", str(made["node"])),
        ("missing_link", str(made["root"])), ("missing_root", str(made["zstd"])), ("missing_artifact", None),
    }  # fmt: skip
    code, document = command("verify", "--home", home, "--repair-from", copy)
    assert document["not_repaired"] == []
    assert set(document["repaired"]) == {
        str(name) for name in (named, *(made[name] for name in ("raw", "large", "node", "root", "zstd")))
    }  # fmt: skip
    assert code == 0 and all(item["repaired"] for item in document["findings"])
    assert "wrong_counters" in {item["code"] for item in document["mended"]}  # rows were taken out behind their back
    with journal.open(home) as jrn:
        store = jrn.store
        assert {name: store._backend.rows([made[name].digest])[0].data_id for name in numbers} == numbers  # type: ignore[union-attr]
        assert store.verify().findings == () and jrn.verify() == []
        assert store.get_value(made["root"]) == [made["node"], made["leaf"]]
        store.gc(jrn, grace=0, force=True)  # the order is right for it: what the pin needs stays
        assert store.get_value(made["leaf"]) == {"leaf": 1}
        assert jrn.resume(run_id).next == B


def test_what_the_other_home_lacks_is_named(tmp_path: Path) -> None:
    """Its own copy is damaged, or it has none: not repaired, each with the reason; nothing wrong is put."""
    home = tmp_path / "home"
    made, _ = home_with_backup(tmp_path)
    with casstore.open(tmp_path / "copy") as copy:
        edit(copy, lambda txn: txn.put(D, record(txn, made["raw"])[0] + bytes(4), bytes(4080)))
    with casstore.open(home) as store:
        new = store.put(b"only here" * 1000)
        for name in (made["raw"], made["zstd"], new):
            edit(store, lambda txn, name=name: txn.delete(D, record(txn, name)[0] + bytes(4)))  # type: ignore[misc]
    code, document = command("verify", "--home", home, "--repair-from", tmp_path / "copy")
    assert code == 3 and document["repaired"] == [str(made["zstd"])]
    why = {item["id"]: item["why"] for item in document["not_repaired"]}
    assert why.keys() == {str(made["raw"]), str(new)}
    assert "damaged" in why[str(made["raw"])] and "no artifact" in why[str(new)]
    with casstore.open(home) as store, pytest.raises(casstore.Corrupt):
        store.get(made["raw"])


def test_the_command_stops_and_goes_on(tmp_path: Path) -> None:
    """Exit code 4 at the limit; --resume goes on where it was, per part, until all is seen; then it begins anew."""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        store.put_many([random.Random(n).randbytes(3000) for n in range(12)])
    assert command("verify", "--home", home, "--resume")[1]["artifacts"] == 12
    code, document = command("verify", "--home", home, "--max-time", "0s", "--subset", "1/2")
    assert (code, document["complete"], document["artifacts"]) == (4, False, 1)
    code, document = command("verify", "--home", home, "--max-time", "0s")
    assert (code, document["artifacts"]) == (4, 1)
    code, document = command("verify", "--home", home, "--max-time", "0s", "--resume")
    assert (code, document["artifacts"]) == (4, 1)
    code, document = command("verify", "--home", home, "--resume")
    assert (code, document["complete"], document["artifacts"]) == (0, True, 10)
    parts = [command("verify", "--home", home, "--resume", "--subset", f"{k}/2") for k in (1, 2)]
    assert [code for code, _ in parts] == [0, 0]
    assert sum(document["artifacts"] for _, document in parts) == 11
    assert not (home / "verify.next").exists()
    (home / "verify.next").write_text("1/1 nonsense\nmore nonsense\n")
    assert command("verify", "--home", home, "--resume")[1]["artifacts"] == 12
    assert command("verify", "--home", home, "--subset", "3/2")[0] == 2
