"""One damaged row, of any table: flipped, cut, longer, gone, or under another key. Whatever is done then is right or is
one of our errors; verify finds what readers find; a put of the good bytes and a mend make the store whole again."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import zstandard
from test_dictionaries import documents
from test_verify import command

import casstore
from casstore import ArtifactId, CodedError, Store, values
from casstore.rows import DA, IX, LEASE, LEASED, LN, META, PIN, PURGE, STAGE, STATE_KEY, TABLES, IxRow, State, u64
from casstore.table_backend import TableBackend
from casstore.tables import MemoryTables
from casstore.testing import FakeClock, FakeRoots
from tests.helpers import soak_seeds

Rows = dict[bytes, dict[bytes, bytes]]
FRAME: Final = 1 << 20


class Filled(NamedTuple):
    rows: Rows
    made: dict[ArtifactId, bytes]
    lost: dict[ArtifactId, bytes]  # collected; some can be brought back
    now_s: float


def opened(rows: Rows, clock: FakeClock) -> Store:
    tables = MemoryTables(TABLES)
    for table, found in rows.items():
        tables._rows[table] = dict(found)
        tables._keys[table] = sorted(found)
    return Store(
        TableBackend(tables), None, read_only=False, quota=None, clock=clock, uuid=str(uuid.UUID(int=1)),
        stage=None,
    )  # fmt: skip


def fill() -> Filled:
    """Artifacts of every encoding, links, kinds, bytes that are kept, quarantine, pins, leases, uploads, purges, a
    dictionary."""
    rng, clock = random.Random(5), FakeClock()
    backend = TableBackend(MemoryTables(TABLES))
    backend.bind(str(uuid.UUID(int=1)))
    store = Store(backend, None, read_only=False, quota=None, clock=clock, uuid=str(uuid.UUID(int=1)), stage=None)
    made: dict[ArtifactId, bytes] = {}

    def put(data: bytes, **how: Any) -> ArtifactId:
        name = store.put(data, **how)
        made[name] = data
        return name

    for data in (b"", b"x", rng.randbytes(100), rng.randbytes(9000), b"text " * 3000):
        put(data)
    base = None
    for n in range(6):
        base = put(b"".join(b"line %d %d\n" % (k, k * k) for k in range(400 + n)), base=base, kind="context_snapshot")
    large = rng.randbytes(FRAME) + bytes(FRAME) + rng.randbytes(5)
    made[store.put_file(io.BytesIO(large))] = large
    other = rng.randbytes(FRAME + 77)
    made[store.put_file(io.BytesIO(other))] = other
    leaf = store.put_value({"leaf": 1})
    node = store.put_value({"leaf": leaf, "n": 2}, kind="special")
    root = store.put_value([node, leaf])
    for name in (leaf, node, root):
        made[name] = store.get(name)
    for n, name in enumerate(made):
        store.pin(f"pin{n}", name)
    sample = documents(400, 1)
    dictionary = put(zstandard.train_dictionary(3000, sample).as_bytes(), kind="dictionary")
    store.pin("dictionary/fact_payload", dictionary)
    store._writer.look_again()
    facts = [put(data, kind="fact_payload") for data in sample[:4]]
    assert {store.info(name).base for name in facts} == {dictionary}
    for n, name in enumerate(facts):
        store.pin(f"fact{n}", name)
    dead = {}
    for data in (b"collected for good", b"".join(b"dead %d\n" % k for k in range(900))):
        dead[store.put(data)] = data
    heir = b"".join(b"dead %d\n" % k for k in range(901))
    store.pin("heir", put(heir, base=list(dead)[-1]))
    clock.now += 7200
    store.gc(FakeRoots(store), grace=0, force=True)
    buried = b"buried " * 500
    dead[store.put(buried)] = buried
    store.gc(FakeRoots(store), grace=0, force=True, quarantine=3600)
    assert store.info(ArtifactId.of(heir)).encoding == "segments" and not set(dead) & set(store)
    store.lease(600).add(leaf)
    backend.upload_open(int(clock.now), "nobody:0:0")
    tables: Any = backend._tables
    return Filled(dict(tables._rows), made, dead, clock.now)


@pytest.fixture(scope="module")
def filled() -> Filled:
    return fill()


def damaged(
    rows: Rows, tables: Sequence[bytes], often: Sequence[bytes], rng: random.Random
) -> tuple[Rows, bytes, str]:  # fmt: skip
    """A copy with one row damaged, of which table, and what was done. Half of the time it is one of `often`."""
    table = rng.choice([table for table in tables if rows[table]])
    if often and rng.random() < 0.5:
        table = rng.choice(often)
    rows = {**rows, table: dict(rows[table])}
    key = rng.choice(sorted(rows[table]))
    value = rows[table].pop(key)
    how = rng.choice(("flip", "flip", "flip", "low", "cut", "longer", "gone", "key", "short key", "random", "other"))
    bits = bytearray(value)
    if how in ("flip", "low") and value:
        place = rng.randrange(len(value) if how == "flip" else min(len(value), 8))
        bits[place] ^= 1 << rng.randrange(8 if how == "flip" else 2)
    elif how == "cut":
        bits = bits[: rng.randrange(len(bits))] if bits else bits
    elif how == "longer":
        bits += rng.randbytes(rng.randrange(1, 40))
    elif how == "random":
        bits = bytearray(rng.randbytes(len(bits)))
    elif how == "other":  # as another row of its table
        bits = bytearray(rng.choice([*rows[table].values(), value]))
    elif how == "key":
        place = rng.randrange(len(key))
        key = key[:place] + bytes((key[place] ^ 1 << rng.randrange(8),)) + key[place + 1 :]
    elif how == "short key":
        key = key[: rng.randrange(1, len(key) + 1)] if rng.random() < 0.5 else key + b"x"
    if how != "gone":
        rows[table][key] = bytes(bits)
    return rows, table, f"{table.decode()} {how} {key.hex()}"


def reads_of(store: Store, name: ArtifactId, rng: random.Random) -> dict[str, tuple[Callable[[], bytes], slice]]:
    start, length = rng.randrange(2 * FRAME + 9), rng.randrange(1, FRAME + 9)
    whole = slice(None)
    return {
        "get": (lambda: store.get(name), whole), "get_many": (lambda: store.get_many([name])[0], whole),
        "range": (lambda: store.get_range(name, 0, 50), slice(50)),
        "a range": (lambda: store.get_range(name, start, length), slice(start, start + length)),
        "reader": (lambda: store.open_reader(name).read(), whole),
    }  # fmt: skip


def look(store: Store, filled: Filled, rng: random.Random) -> set[ArtifactId]:
    """Read everything in every way: what could not be. Nothing is wrong, no error is not ours."""
    failed = set()
    for name, data in {**filled.made, **filled.lost}.items():
        for how, (read, part) in reads_of(store, name, rng).items():
            try:
                assert read() == data[part], f"{how} of {name}: wrong bytes"
            except CodedError:
                if name in filled.made:
                    failed.add(name)
        for ask in (
            store.info, lambda name: store.why(name, FakeRoots(store)), lambda name: name in store,
            lambda name: store.resolve(str(name)[:9]),
        ):  # fmt: skip
            quietly(lambda ask=ask, name=name: ask(name))  # type: ignore[misc]
    for call in (
        lambda: list(store), store.stats, store.pins, lambda: len(store), lambda: list(store.buried()),
        store.gc_history, lambda: store.export(list(store), io.BytesIO()),
    ):  # fmt: skip
        quietly(call)
    return failed


def roots(store: Store, filled: Filled) -> FakeRoots:
    found = FakeRoots(store)
    found.append("run", *filled.made)
    return found


def quietly(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except CodedError:
        return None


def check(filled: Filled, seed: int) -> None:
    rng = random.Random(seed)
    rows, table, what = damaged(filled.rows, TABLES, (IX, DA), rng)
    try:
        _check(filled, rows, table, rng)
    except Exception as error:
        error.add_note(f"seed {seed}: {what}")
        raise


def _check(filled: Filled, rows: Rows, table: bytes, rng: random.Random) -> None:
    clock = FakeClock(filled.now_s)
    store = opened(rows, clock)
    failed = look(store, filled, rng)
    report = store.verify()
    assert not failed or report.findings, f"{len(failed)} cannot be read, and verify finds nothing"
    quietly(lambda: store.gc(roots(store, filled), grace=0, force=True, dry_run=True))
    order = rng.choice(("put", "mend", "gc"))
    if order == "mend":
        quietly(store.mend)
        assert look(store, filled, rng) <= failed, "a mend made it worse"
    if order == "gc":
        quietly(lambda: store.gc(roots(store, filled), grace=0, force=True))
        assert look(store, filled, rng) <= failed, "a gc made it worse"
    refused = put_all(store, filled)
    if refused:
        store.mend()
        assert not put_all(store, filled), f"refused even after a mend: {refused}"
    assert not look(store, filled, rng), "not healed by a put of the good bytes"
    store.mend()
    clock.now += 7200
    try:  # damaged bytes that deltas were made of, or that were in quarantine
        store.gc(roots(store, filled), grace=0, force=True)
    except casstore.GcRefused as error:
        assert error.fields["reason"] == "missing_root" and table in (PIN, LEASE, LEASED)
    store.mend()
    left = {found.code for found in store.verify().findings if _is_of(found.id, table, filled)}
    assert not left, f"left after a put and a mend: {left}"
    assert not look(store, filled, rng), "a mend made it worse"
    for n in range(3):  # what got a number that is for dictionaries, or the number of another one
        store.put(b"another dictionary %d" % n, kind="dictionary")
    assert not look(store, filled, rng), "overwritten by a dictionary"


def _is_of(id: ArtifactId | None, table: bytes, filled: Filled) -> bool:
    """Whether a finding should not be left: what is held can be of any name, and an index row can be of an artifact
    that never was."""
    if table in (PIN, LEASED, LEASE):
        return False
    return id is None or id in filled.made or table != IX


def put_all(store: Store, filled: Filled) -> list[str]:
    refused = []
    for name, data in filled.made.items():
        try:
            links = () if len(data) > FRAME else None
            put = store.put_file(io.BytesIO(data)) if links == () else store.put(data, verify=True)
            assert put == name
        except CodedError as error:
            refused.append(str(error))
    return refused


def test_one_damaged_row(filled: Filled) -> None:
    for seed in range(120):
        check(filled, seed)


@pytest.mark.soak
def test_one_damaged_row_for_long(filled: Filled) -> None:
    print(soak_seeds(lambda seed: check(filled, seed)), "rows damaged")


def check_two(filled: Filled, seed: int) -> None:
    """Two rows at once: puts and mends make everything readable again, and neither gc nor a new dictionary takes it."""
    rng, rows, what = random.Random(seed), filled.rows, list[str]()
    for _ in range(2):
        rows, _, how = damaged(rows, TABLES, (IX, DA, LN, META) if rng.random() < 0.5 else (), rng)
        what.append(how)
    clock = FakeClock(filled.now_s)
    try:
        store = opened(rows, clock)
        look(store, filled, rng)
        for _ in range(2):
            quietly(store.mend)
            put_all(store, filled)
        store.mend()
        assert not put_all(store, filled) and not look(store, filled, rng)
        clock.now += 7200
        try:
            store.gc(roots(store, filled), grace=0, force=True)
        except casstore.GcRefused as error:
            assert error.fields["reason"] == "missing_root"  # a pin of what never was
        store.mend()
        for n in range(3):
            store.put(b"another dictionary %d" % n, kind="dictionary")
        assert not look(store, filled, rng)
    except Exception as error:
        error.add_note(f"seed {seed}: {what}")
        raise


def test_two_damaged_rows(filled: Filled) -> None:
    for seed in range(25):
        check_two(filled, seed)


@pytest.mark.soak
def test_two_damaged_rows_for_long(filled: Filled) -> None:
    print(soak_seeds(lambda seed: check_two(filled, seed)), "pairs of rows damaged")


# -- an index row that leads to another's bytes ----------------------------------------------------------

LARGE: Final = random.Random(1).randbytes(FRAME + 500), random.Random(2).randbytes(2 * FRAME)
SMALL: Final = b"one " * 900, b"another " * 700


def lead(store: Store, name: ArtifactId, other: ArtifactId) -> None:
    """The row of one says that its bytes are where those of the other are."""
    tables = store._backend._tables  # type: ignore[attr-defined]
    with tables.write() as t:
        row = IxRow.unpack(t.get(IX, name.digest))
        t.put(IX, name.digest, row._replace(data_id=IxRow.unpack(t.get(IX, other.digest)).data_id).pack())


@pytest.fixture(params=[SMALL, LARGE], ids=["small", "large"])
def crossed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, list[ArtifactId], list[bytes]]]:
    """A store, two artifacts of which the first leads to the second, and one that links to the first."""
    with casstore.open(tmp_path / "home") as store:
        data = list(request.param)
        names = [store.put(one) for one in data]
        data.append(values.encode([names[0]])[0])
        names.append(store.put(data[-1]))
        store.pin("root", names[-1])
        store.pin("other", names[1])
        lead(store, names[0], names[1])
        yield store, names, data


def test_no_read_gives_the_others_bytes(crossed: Any) -> None:
    store, names, data = crossed
    for read in (
        lambda: store.get(names[0]), lambda: store.get_many(names[:1]), lambda: store.get_range(names[0], 0, 10),
        lambda: store.open_reader(names[0]).read(),
    ):  # fmt: skip
        with pytest.raises(casstore.Corrupt) as caught:
            read()
        assert caught.value.fields["id"] == names[0]
    with pytest.raises(casstore.DamagedStore, match=str(names[0])):
        store.export(names[0], io.BytesIO())
    done = subprocess.run(
        [Path(sys.executable).with_name("casstore"), "cat", str(names[0]), "--home", str(store.home)],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3 and done.stdout == b"" and b"is damaged" in done.stderr
    assert store.get(names[1]) == data[1]


def test_a_put_heals_it_and_leaves_the_other(crossed: Any) -> None:
    """Under a new number; what links to it gets a new one as well."""
    store, names, data = crossed
    assert store.put(data[0], verify=True) == names[0] and store.healed == (names[0],)
    store.mend()
    assert store.verify().findings == () and [store.get(name) for name in names] == data
    assert not store.gc(FakeRoots(store), grace=0, force=True).removed
    assert [store.get(name) for name in names] == data


def test_mend_finds_its_bytes(crossed: Any) -> None:
    store, names, data = crossed
    assert {found.id for found in store.mend().done} == {names[0]}
    assert store.verify().findings == () and [store.get(name) for name in names] == data


def test_on_the_command_line(crossed: Any) -> None:
    """What it put right is not told as left, and then nothing is."""
    store, names, _ = crossed
    code, document = command("verify", "--repair", "--home", store.home)
    assert code == 0 and all(found["repaired"] for found in document["findings"])
    assert {found["id"] for found in document["findings"]} == {str(names[0])}
    code, document = command("verify", "--home", store.home)
    assert code == 0 and document["findings"] == []


def test_gc_refuses_and_takes_nothing(crossed: Any) -> None:
    """What its bytes are made of cannot be told."""
    store, names, _ = crossed
    with pytest.raises(casstore.DamagedStore, match=str(names[0])):
        store.gc(FakeRoots(store), grace=0, force=True)
    assert set(names) == set(store)


def test_repair_from_another_home(crossed: Any, tmp_path: Path) -> None:
    store, names, data = crossed
    with casstore.open(tmp_path / "other") as other:
        for one in data:
            other.put(one)
        assert store.repair(other, [names[0]]).failed == ()
    assert [store.get(name) for name in names] == data


def test_a_new_version_of_it_is_no_delta_of_the_other(tmp_path: Path) -> None:
    """Its bytes are at hand, and its row leads elsewhere: what is put is right all the same."""
    with casstore.open(tmp_path / "home") as store:
        lines = [b"line %d of a version\n" % n for n in range(2000)]
        first, other = store.put(b"".join(lines)), store.put(random.Random(1).randbytes(9000))
        lead(store, first, other)
        name = store.put(b"".join([*lines, b"more\n"]), base=first)
        assert store.get(name) == b"".join([*lines, b"more\n"])


@pytest.mark.parametrize("large", [False, True])
def test_a_next_number_that_fell_overwrites_nothing(tmp_path: Path, large: bool) -> None:
    """Of any writer: a put, an upload, many at once."""
    with casstore.open(tmp_path / "home") as store:
        made = {store.put(b"%d" % n * 100): b"%d" % n * 100 for n in range(20)}
        with store._backend._tables.write() as t:  # type: ignore[attr-defined]
            state = State.unpack(t.get(META, STATE_KEY))
            state.next_data_id -= 15
            t.put(META, STATE_KEY, state.pack())
        more = [LARGE[0]] if large else [b"more %d" % n * 50 for n in range(30)]
        made |= zip(store.put_many(more), more, strict=True)
        assert all(store.get(name) == data for name, data in made.items())
        assert store.verify().findings == ()


@pytest.mark.parametrize("table", [STAGE, PURGE])
def test_an_unfinished_number_far_ahead_stops_nobody(tmp_path: Path, table: bytes) -> None:
    """A damaged key of an upload or of what waits for its purge: near ones are skipped, far ones are no danger."""
    with casstore.open(tmp_path / "home") as store:
        name = store.put(b"before")
        with store._backend._tables.write() as t:  # type: ignore[attr-defined]
            following = State.unpack(t.get(META, STATE_KEY)).next_data_id
            for number in (following + 3, following + (1 << 40), (1 << 64) - 1):
                t.put(table, u64(number), u64(1) + b"nobody:0:0" if table == STAGE else b"")
        made = {store.put(b"%d" % n * 50): b"%d" % n * 50 for n in range(9)}
        rows = store._backend.rows([each.digest for each in made])
        assert [row.data_id for row in rows if row] == list(range(following + 4, following + 13))
        store.pin("before", name)
        store.gc(FakeRoots(store), force=True)
        assert all(store.get(each) == data for each, data in made.items()) and store.verify().findings == ()
