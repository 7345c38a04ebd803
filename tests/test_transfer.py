"""CAR files: what goes out comes in, in any order, after any death; nothing wrong comes in (docs/FORMAT.md, 5)."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import casstore
from casstore import ArtifactId, InvalidArgument, InvalidCar, MissingArtifact, NotFound, Store, car
from casstore.testing import FakeClock, FakeRoots, memory_store
from tests.command_line import casstore as command_line

MIB = 1 << 20
SHA_CID = bytes([1, 0x55, 0x12, 0x20]) + bytes(32)
DAG_CBOR_CID = bytes([1, 0x71, 0x1E, 0x20]) + bytes(32)


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def fill(store: Store) -> tuple[ArtifactId, dict[ArtifactId, bytes]]:
    """A root, and all that it reaches: bytes, an empty artifact, a diamond of values, a large artifact."""
    leaf, empty, large = store.put(b"leaf"), store.put(b""), store.put_file(io.BytesIO(noise(5 * MIB, 1)))
    left = store.put_value({"leaf": leaf, "side": "left"})
    right = store.put_value({"leaf": leaf, "side": "right", "list": [left, empty]})
    root = store.put_value({"left": left, "right": right, "large": large})
    return root, {name: store.get(name) for name in (leaf, empty, large, left, right, root)}


def exported(store: Store, wanted: Any, *, shallow: bool = False) -> bytes:
    out = io.BytesIO()
    report = store.export(wanted, out, shallow=shallow)
    assert report.file_bytes == len(out.getvalue())
    return out.getvalue()


def make_car(roots: Sequence[ArtifactId], blocks: Sequence[bytes]) -> bytes:
    """A CAR file in the given order."""
    return car.header(roots) + b"".join(car.block_head(ArtifactId.of(data), len(data)) + data for data in blocks)


def read_car(data: bytes) -> list[tuple[ArtifactId, bytes]]:
    reader, found = car.CarReader(io.BytesIO(data), "test"), []
    while (block := reader.next_block()) is not None:
        found.append((block.id, reader.read_block()))
    return found


def contents(store: Store) -> dict[ArtifactId, bytes]:
    return {name: store.get(name) for name in store}


class Pipe:
    """A stream that cannot go back and gives a little at a time; it notes what was asked of it."""

    def __init__(self, data: bytes, most: int = 1 << 16, on_read: Callable[[], None] = lambda: None) -> None:
        self._data, self._most, self._on_read = io.BytesIO(data), most, on_read
        self.asked = 0

    def read(self, size: int = -1) -> bytes:
        assert 0 <= size <= MIB, f"{size} bytes asked for at once"
        self.asked = max(self.asked, size)
        self._on_read()
        return self._data.read(min(size, self._most))


@pytest.fixture(params=["memory", "lmdb"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """Two empty stores."""
    if request.param == "memory":
        yield memory_store(), memory_store()
        return
    with casstore.open(tmp_path / "one") as one, casstore.open(tmp_path / "two") as two:
        yield one, two


@pytest.fixture(scope="module")
def small() -> tuple[bytes, dict[ArtifactId, bytes]]:
    """A small CAR file and its blocks."""
    store = memory_store()
    leaf = store.put(b"leaf")
    root = store.put_value({"leaf": leaf, "middle": store.put_value([leaf, 1, "two"])})
    return exported(store, root), contents(store)


# -- there and back


def test_a_closure_comes_back(stores: tuple[Store, Store]) -> None:
    """Values, links, an empty and a large artifact; children first, each once; reports count it."""
    one, two = stores
    root, blocks = fill(one)
    one.put(b"not reached")
    data = exported(one, root)
    order = [name for name, _ in read_car(data)]
    assert sorted(order) == sorted(blocks)
    for name in order:
        assert all(order.index(link) < order.index(name) for link in one.info(name).links)
    steps: list[int] = []
    report = two.import_(io.BytesIO(data), progress=steps.append)
    assert contents(two) == blocks
    assert all(two.info(name).links == one.info(name).links for name in blocks)
    assert (report.roots, report.blocks, report.known, report.late, report.unlinked) == ((root,), 6, 0, 0, ())
    assert report.raw_bytes == sum(map(len, blocks.values()))
    assert sum(steps) <= len(data) and len(steps) >= 5
    assert two.verify().ok and two.stats().leases == 0


def test_through_files(stores: tuple[Store, Store], tmp_path: Path) -> None:
    """A path is written all at once; nothing else is left beside it."""
    one, two = stores
    root, blocks = fill(one)
    file = tmp_path / "out" / "a.car"
    file.parent.mkdir()
    file.write_bytes(b"old")
    one.export([root], file)
    assert os.listdir(file.parent) == ["a.car"]
    two.import_(file)
    assert contents(two) == blocks


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    """No half file under the name that was asked for."""
    store, file = memory_store(), tmp_path / "a.car"
    file.write_bytes(b"old")
    with pytest.raises(NotFound):
        store.export([store.put(b"x"), ArtifactId.of(b"absent")], file)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.export(store.put(b"x"), file, progress=stop)
    assert os.listdir(tmp_path) == ["a.car"] and file.read_bytes() == b"old"


def test_shallow_is_only_what_was_asked_for(stores: tuple[Store, Store]) -> None:
    """Its links must be there where it is imported; in one file, those asked for stand children first."""
    one, two = stores
    child = one.put(b"child")
    parent = one.put_value({"child": child})
    data = exported(one, parent, shallow=True)
    assert [name for name, _ in read_car(data)] == [parent]
    with pytest.raises(MissingArtifact) as caught:
        two.import_(io.BytesIO(data))
    assert caught.value.fields["id"] == child and str(parent) in str(caught.value)
    assert len(two) == 0
    two.put(b"child")
    two.import_(io.BytesIO(data))
    assert two.get_value(parent) == {"child": child}
    assert [name for name, _ in read_car(exported(one, [parent, child], shallow=True))] == [child, parent]


def test_roots_of_a_source(stores: tuple[Store, Store]) -> None:
    """What live runs name is exported, each once."""
    one, two = stores
    root, blocks = fill(one)
    source = FakeRoots(one)
    source.append("a", root, root)
    source.append("b", root)
    assert two.import_(io.BytesIO(exported(one, source))).roots == (root,)
    assert contents(two) == blocks


def test_bad_arguments(tmp_path: Path) -> None:
    """Each is refused before anything is written."""
    store = memory_store()
    name = store.put(b"x")
    out = io.BytesIO()
    for wanted in ([], ["text"], FakeRoots(store)):
        with pytest.raises(InvalidArgument):
            store.export(wanted, out)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        store.export(name, 7)  # type: ignore[arg-type]
    for source in (7, io.StringIO("text")):
        with pytest.raises(InvalidArgument):
            store.import_(source)  # type: ignore[arg-type]
    good = make_car([name], [b"x"])
    for options in ({"pin": ""}, {"pin": "a\n"}, {"pin": "x" * 400}, {"kind": "NO"}):
        with pytest.raises(InvalidArgument):
            store.import_(io.BytesIO(good), **options)  # type: ignore[arg-type]
    assert not out.getvalue() and store.stats().leases == 0


def test_a_read_only_store_exports(tmp_path: Path) -> None:
    """No lease is needed there, and absent artifacts are named before the file is touched."""
    with casstore.open(tmp_path / "home") as store:
        name = store.put(b"x")
    with casstore.open(tmp_path / "home", read_only=True) as store:
        assert read_car(exported(store, name)) == [(name, b"x")]
        with pytest.raises(NotFound):
            store.export([name, ArtifactId.of(b"absent")], tmp_path / "a.car")
        with pytest.raises(casstore.ReadOnly):
            store.import_(io.BytesIO(make_car([name], [b"x"])))
    assert not (tmp_path / "a.car").exists()


# -- any order, any stream


@pytest.mark.parametrize("seekable", [True, False])
def test_any_order_comes_in(stores: tuple[Store, Store], seekable: bool) -> None:
    """Parents before children, and all shuffles of a diamond; from a file and from a pipe; duplicates too."""
    one, two = stores
    root, blocks = fill(one)
    order = [data for _, data in read_car(exported(one, root))]
    shuffled = order[::-1] + order[:2]
    random.Random(7).shuffle(order)
    for number, arrangement in enumerate((shuffled, order)):
        data = make_car([root], arrangement)
        source: Any = io.BytesIO(b"before" + data) if seekable else Pipe(data)
        if seekable:
            source.seek(6)
        report = two.import_(source)
        assert report.blocks == len(arrangement)
        assert report.late >= 2 if number == 0 else report.known == 6
        assert contents(two) == blocks and two.verify().ok


def test_a_long_chain_backwards(stores: tuple[Store, Store]) -> None:
    """Three thousand values, each linking to the next one in the file: once over, not once for each."""
    _, two = stores
    datas: list[bytes] = []
    link: ArtifactId | None = None
    for number in range(3000):
        datas.append(casstore.values.encode([number, link])[0])
        link = ArtifactId.of(datas[-1])
    assert link is not None
    report = two.import_(Pipe(make_car([link], datas[::-1])))
    assert (report.blocks, report.late, len(two)) == (3000, 2999, 3000)


def test_a_large_value_keeps_its_links(stores: tuple[Store, Store]) -> None:
    """Above 4 MiB too, and where it comes before what it links to."""
    one, two = stores
    child = one.put(b"child")
    parent = one.put_value({"child": child, "text": noise(3 * MIB, 2).hex()})
    data = exported(one, parent)
    backwards = make_car([parent], [block for _, block in read_car(data)][::-1])
    for store in (two, memory_store()):
        store.import_(Pipe(backwards))
        assert store.info(parent).links == (child,) and store.get(parent) == one.get(parent)


def test_a_large_value_stored_as_a_file_comes_back(stores: tuple[Store, Store]) -> None:
    """It has no links and its closure is itself; it is imported so, and the report says so."""
    one, two = stores
    value = casstore.values.encode({"child": ArtifactId.of(b"nowhere"), "data": noise(2 * MIB, 3)})[0]
    huge = casstore.values.encode({"a": ArtifactId.of(b"nowhere"), "data": noise(33 * MIB, 4)})[0]
    names = [one.put_file(io.BytesIO(data)) for data in (value, huge)]
    data = exported(one, names)
    for _ in range(2):  # the second finds it there, older than a child that came meanwhile
        report = two.import_(io.BytesIO(data))
        assert names[0] in report.unlinked
        two.put(b"nowhere")
    assert [two.get(name) for name in names] == [value, huge]


# -- killed, and beside gc


def test_an_import_goes_on_where_it_stopped(stores: tuple[Store, Store]) -> None:
    """Interrupted at each step of progress; the next one finds what was there, and the last one all."""
    one, two = stores
    names = [one.put(noise(900_000 + number, number)) for number in range(12)]
    names.append(one.put_file(io.BytesIO(noise(5 * MIB, 50))))
    root = one.put_value(names)
    data = exported(one, root)

    class Stop(Exception):
        pass

    def stop_at(step: int) -> Callable[[int], None]:
        left = iter(range(step))

        def told(_: int) -> None:
            if next(left, None) is None:
                raise Stop

        return told

    known = []
    for step in range(0, 18, 3):
        with pytest.raises(Stop):
            two.import_(io.BytesIO(data), progress=stop_at(step))
        known.append(len(two))
    assert known == sorted(known) and known[-1] > 8 and root not in two
    report = two.import_(io.BytesIO(data))
    assert report.known == known[-1] and two.verify().ok
    commits = two.stats().commits
    assert two.import_(io.BytesIO(data)).known == 14
    assert two.stats().commits - commits < 8  # the lease, and a touch for each batch


def test_a_killed_import_can_be_repeated(tmp_path: Path) -> None:
    """SIGKILL inside of the import: what is visible is whole, and a second import completes it."""
    store, home, file = memory_store(), tmp_path / "home", tmp_path / "a.car"
    root = store.put_value([store.put(noise(900_000, number)) for number in range(12)])
    store.export(root, file)
    script = (
        "import casstore, os, sys\n"
        "steps = iter(range(9))\n"
        "def told(_):\n"
        "    if next(steps, None) is None:\n"
        "        os.kill(os.getpid(), 9)\n"
        "casstore.open(sys.argv[1]).import_(sys.argv[2], progress=told)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, home, file], check=False).returncode == -9
    with casstore.open(home) as two:
        assert 0 < len(two) < 13 and root not in two and two.verify().ok
        before = len(two)
        assert two.import_(file, pin="it").known == before
        assert contents(two) == contents(store) and two.pins() == {"it": root}


@pytest.mark.parametrize("backwards", [False, True])
def test_gc_takes_nothing_of_an_import(stores: tuple[Store, Store], backwards: bool) -> None:
    """A collector without grace runs at each read; children that came long before their parents stay."""
    one, two = stores
    names = [one.put(noise(900_000 + number, number)) for number in range(6)]
    names.append(one.put_file(io.BytesIO(noise(5 * MIB, 50))))
    root = one.put_value({"all": names, "first": one.put_value(names[:2])})
    data = exported(one, root)
    blocks = [block for _, block in read_car(data)]
    if backwards:
        data = make_car([root], blocks[::-1])
    removed = []

    def collect() -> None:
        removed.extend(two.gc(FakeRoots(two), grace=0, force=True).removed)

    two.import_(Pipe(data, most=MIB, on_read=collect), pin="root")
    collect()
    assert contents(two) == contents(one) and not removed
    two.unpin("root")
    two.gc(FakeRoots(two), grace=0, force=True)
    two.gc(FakeRoots(two), grace=0, force=True)
    assert len(two) == 0


def test_what_was_there_already_is_held_too() -> None:
    """A large artifact that nothing needs any more is not taken between its block and its parent's."""
    one, two = memory_store(), memory_store()
    large = one.put_file(io.BytesIO(noise(5 * MIB, 50)))
    root = one.put_value([large, one.put(noise(900_000, 1))])
    two.put(one.get(large))
    read = []

    def told(size: int) -> None:
        read.append(size)
        if sum(read) > 5 * MIB:
            two.gc(FakeRoots(two), grace=0, force=True)

    assert two.import_(io.BytesIO(exported(one, root)), progress=told, pin="root").known == 1
    assert contents(two) == contents(one)


def test_the_lease_of_a_long_import_is_renewed() -> None:
    """Hours may pass between two blocks' commits, as long as each step takes less than the lease."""
    clock = FakeClock()
    one, two = memory_store(), memory_store(clock=clock)
    root = one.put_value([one.put(noise(900_000 + number, number)) for number in range(9)])

    def collect(_: int) -> None:
        clock.advance(1800)
        two.gc(FakeRoots(two), grace=0, force=True)

    two.import_(io.BytesIO(exported(one, root)), progress=collect, pin="root")
    assert contents(two) == contents(one)


def test_the_callers_lease_goes_on_holding() -> None:
    """So that what was imported can be named by an event before a gc takes it."""
    store = memory_store()
    leaf = ArtifactId.of(b"leaf")
    with store.lease(60) as lease:
        store.import_(io.BytesIO(make_car([leaf], [b"leaf"])), lease=lease)
        store.gc(FakeRoots(store), grace=0, force=True)
        assert leaf in store
    store.gc(FakeRoots(store), grace=0, force=True)
    assert leaf not in store


def test_pins_hold_the_roots() -> None:
    """One root under the name, several under numbered ones; none without the option."""
    store = memory_store()
    a, b = ArtifactId.of(b"a"), ArtifactId.of(b"b")
    assert store.import_(io.BytesIO(make_car([a], [b"a"]))).pins == {} == store.pins()
    assert store.import_(io.BytesIO(make_car([a], [b"a"])), pin="one").pins == {"one": a}
    assert store.import_(io.BytesIO(make_car([b, a], [b"a", b"b"])), pin="two").pins == {"two/0": b, "two/1": a}
    assert store.pins() == {"one": a, "two/0": b, "two/1": a}


# -- damage


def test_damage_in_the_store_never_leaves_it(tmp_path: Path) -> None:
    """A damaged artifact stops the export, small or large, before its last bytes are out."""
    with casstore.open(tmp_path / "home") as store:
        large = noise(5 * MIB, 1)
        names = [store.put(noise(60_000, 2)), store.put_file(io.BytesIO(large))]
    data_file = next((tmp_path / "home").glob("store/*/data.mdb"))
    content = bytearray(data_file.read_bytes())
    for needle in (noise(60_000, 2)[5000:5016], large[4 * MIB + 70_000 :][:16]):
        at = content.find(needle)
        assert at > 0
        content[at] ^= 1
    data_file.write_bytes(content)
    with casstore.open(tmp_path / "home", read_only=True) as store:
        for name in names:
            with pytest.raises(casstore.Corrupt):
                store.export(name, tmp_path / "a.car")
    assert not (tmp_path / "a.car").exists()


def test_a_wrong_large_block_is_not_stored(stores: tuple[Store, Store]) -> None:
    """Not even under the id that its wrong bytes have, and the next import is not disturbed."""
    _, two = stores
    data = noise(5 * MIB, 1)
    good = make_car([ArtifactId.of(data)], [data])
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[:-1], good[: -4 * MIB]):
        for source in (io.BytesIO(bad), Pipe(bad)):
            with pytest.raises(InvalidCar):
                two.import_(source)  # type: ignore[arg-type]
            assert len(two) == 0 and two.stats().uploads == 0 and two.stats().leases == 0
    two.import_(io.BytesIO(good))
    two.import_(io.BytesIO(good))
    with pytest.raises(InvalidCar):  # also where the right bytes are there already
        two.import_(io.BytesIO(good[:-1] + b"\x00\x00"))


def test_every_flipped_bit_is_found(small: tuple[bytes, dict[ArtifactId, bytes]]) -> None:
    """The header is read strictly, all else is covered by hashes; whatever came in is right."""
    data, blocks = small
    for bit in range(len(data) * 8):
        store, flipped = memory_store(), bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidCar) as caught:
            store.import_(io.BytesIO(flipped))
        assert 0 <= caught.value.fields["offset"] <= len(data)
        assert contents(store).items() <= blocks.items()


def test_every_truncation_is_found(small: tuple[bytes, dict[ArtifactId, bytes]]) -> None:
    """Also between two blocks, where only the roots are missing."""
    data, blocks = small
    for size in range(len(data)):
        store = memory_store()
        with pytest.raises(InvalidCar):
            store.import_(Pipe(data[:size]))  # type: ignore[arg-type]
        assert contents(store).items() <= blocks.items()
    store = memory_store()
    store.import_(Pipe(data))  # type: ignore[arg-type]
    assert contents(store) == blocks


HEADER = car.header([])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\x00", "header of 0"),
        (b"\xff" * 9, "more than 9 bytes"),
        (b"\xff" * 8 + b"\x7f", "a header of"),
        (b"\x80\x00", "shortest form"),
        (car.varint(20 << 20) + b"\xa2", "ends inside of the header"),
        (b"\x0a\xa1\x67version\x02" + bytes(40), "version 2"),
        (b"\x11\xa2\x65roots\x80\x67version\x02", "version 2"),
        (b"\x12\xa2\x65roots\x80\x67version\x01\x00", "after the header"),
        (b"\x11\xa2\x65roots\x81\x67version\x01", "no CAR file"),
        (b"\x19\xa2\x65roots\x9b" + b"\xff" * 8 + b"\x67version\x01", "no CAR file"),
        (HEADER + b"\x00", "length 0"),
        (HEADER + b"\x04\x01\x55\x1e\x20", "is none"),
        (HEADER + b"\x03\x01\x55\x1e", "is none"),
        (HEADER + car.varint(1 << 62) + car.CID_PREFIX + bytes(32) + b"x", "before the end of a block"),
        (HEADER + car.varint(len(SHA_CID)) + SHA_CID, "hash 0x12"),
        (HEADER + car.varint(len(SHA_CID)) + SHA_CID, "bafkrei"),
        (HEADER + car.varint(len(DAG_CBOR_CID) + 9) + DAG_CBOR_CID + bytes(9), "codec 0x71"),
        (HEADER + b"\x05\x01\x55\x00\x01x", "hash 0x0"),
        (HEADER + b"\x22\x12\x20" + bytes(32), "QmNLei78zWmzUdbeRB3CiUfAizWUrbeeZh5K1rhAQKCh51 is a CIDv0"),
        (HEADER + b"\x24\x01\x55\x1e\x20" + bytes(32), "another hash"),
    ],
)  # fmt: skip
def test_what_is_refused(data: bytes, reason: str) -> None:
    """Each with the place and the cause; CIDs of other kinds by their name."""
    store = memory_store()
    with pytest.raises(InvalidCar) as caught:
        store.import_(Pipe(data))  # type: ignore[arg-type]
    assert reason in str(caught.value) and "the stream, byte" in str(caught.value)
    assert len(store) == 0


def test_foreign_roots_are_refused() -> None:
    """A root of another codec is named."""
    header = cbor2.dumps({"roots": [cbor2.CBORTag(42, b"\x00" + DAG_CBOR_CID)], "version": 1})
    with pytest.raises(InvalidCar, match=r"root: bafyr4i.* is codec 0x71"):
        memory_store().import_(io.BytesIO(car.varint(len(header)) + header))


@given(st.integers(0, 400), st.integers(0, (1 << 64) - 1))
def test_the_header_is_canonical_dag_cbor(roots: int, seed: int) -> None:
    """As the reference encoder writes it; and it is read back."""
    names = [ArtifactId.of(b"%d %d" % (seed, number)) for number in range(roots)]
    links = [cbor2.CBORTag(42, b"\x00" + car.CID_PREFIX + name.digest) for name in names]
    body = cbor2.dumps({"roots": links, "version": 1})
    assert car.header(names) == car.varint(len(body)) + body
    assert car.parse_header(body) == tuple(names)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300), st.booleans(), st.data())
@example(HEADER + b"\x24" + car.CID_PREFIX, False, None)
def test_hostile_files(small: Any, junk: bytes, spliced: bool, data: Any) -> None:
    """Random bytes, alone or spliced into a good file: InvalidCar or nothing, no read above 1 MiB at once."""
    good, _ = small
    content = junk
    if spliced and data is not None:
        start = data.draw(st.integers(0, len(good)))
        stop = data.draw(st.integers(start, len(good)))
        content = good[:start] + junk + good[stop:]
    store, source = memory_store(), Pipe(content)
    try:
        store.import_(source)  # type: ignore[arg-type]
    except (InvalidCar, MissingArtifact):
        pass
    for name, block in contents(store).items():
        assert ArtifactId.of(block) == name
    assert store.verify().ok


# -- the command line


def run(*arguments: object, stdin: bytes = b"") -> tuple[int, bytes, str]:
    code, out, err = command_line(*arguments, stdin=stdin)
    return code, out.encode(errors="surrogateescape"), err


def test_the_commands(tmp_path: Path) -> None:
    """export and import, by file and by pipe, for people and as JSON; one clear line for a bad file."""
    one, two, file = tmp_path / "one", tmp_path / "two", tmp_path / "a.car"
    with casstore.open(one) as store:
        root, blocks = fill(store)
    casstore.open(two).close()
    code, out, error = run("export", str(root)[:12], "-o", file, "--home", one, "--json")
    document = json.loads(out)
    assert (code, error) == (0, "")
    assert document["roots"] == [str(root)] and document["artifacts"] == 6 and not document["shallow"]
    assert document["file_bytes"] == file.stat().st_size
    code, piped, error = run("export", root, "-o", "-", "--home", one)
    assert code == 0 and piped == file.read_bytes() and "6 artifacts" in error
    code, out, error = run("import", file, "--pin", "kept", "--home", two)
    assert (code, out.decode().strip()) == (0, str(root)) and "6 blocks" in error
    code, out, error = run("import", "-", "--home", two, "--json", stdin=piped)
    assert (code, error) == (0, "") and json.loads(out)["known"] == 6
    with casstore.open(two) as store:
        assert contents(store) == blocks and store.pins() == {"kept": root}
    assert run("export", root, "-o", file, "--shallow", "--home", one)[0] == 0
    assert [name for name, _ in read_car(file.read_bytes())] == [root]
    assert run("export", root, "-o", "-", "--json", "--home", one)[0] == 2
    code, out, _ = run("import", "-", "--home", two, "--json", stdin=piped[:-1])
    assert code == 3 and json.loads(out)["error"]["code"] == "invalid_car"
    assert run("import", tmp_path / "absent", "--home", two)[0] == 1
    assert run("import", file, "--home", tmp_path / "nowhere")[0] == 10
    assert run("export", "ffff", "-o", file, "--home", one)[0] == 1


# -- other tools

PACKAGES = ["@ipld/car@5.4.7", "@ipld/dag-cbor@10.0.2", "multiformats@14.0.5", "@noble/hashes@2.4.0"]
REWRITE = """
import { readFileSync, writeFileSync, createWriteStream } from 'node:fs'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { CarReader, CarWriter } from '@ipld/car'
import * as dagCbor from '@ipld/dag-cbor'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'
import { blake3 } from '@noble/hashes/blake3.js'

const same = (a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)) === 0
const idOf = bytes => CID.create(1, 0x55, Digest.create(0x1e, blake3(bytes)))
const [, , source, target, mode, values] = process.argv
const blocks = []
let roots
if (mode === 'make') {
  const leaf = new TextEncoder().encode('made by node')
  const value = dagCbor.encode({ leaf: idOf(leaf), text: 'häß', list: [1, -1, 1.5, null, true], bytes: leaf })
  const top = dagCbor.encode({ value: idOf(value), leaf: idOf(leaf) })
  for (const bytes of [top, value, leaf]) blocks.push({ cid: idOf(bytes), bytes })
  roots = [idOf(top)]
} else {
  const reader = await CarReader.fromBytes(readFileSync(source))
  roots = await reader.getRoots()
  const isValue = new Set(JSON.parse(values))
  for await (const { cid, bytes } of reader.blocks()) {
    if (cid.code !== 0x55 || cid.multihash.code !== 0x1e) throw new Error('cid ' + cid)
    if (!same(cid.multihash.digest, blake3(bytes))) throw new Error('hash of ' + cid)
    if (isValue.has(Buffer.from(cid.multihash.digest).toString('hex'))) {
      const value = dagCbor.decode(bytes)
      if (!same(dagCbor.encode(value), bytes)) throw new Error('other bytes for ' + cid)
      for (const link of Object.values(value)) {
        const known = CID.asCID(link)
        if (known && !await reader.has(known)) throw new Error('no block for link ' + known)
      }
    }
    blocks.unshift({ cid, bytes })
  }
}
const { writer, out } = CarWriter.create(roots)
const done = pipeline(Readable.from(out), createWriteStream(target))
for (const block of blocks) await writer.put(block)
await writer.close()
await done
const digest = cid => Buffer.from(cid.multihash.digest).toString('hex')
console.log(JSON.stringify({ roots: roots.map(digest), blocks: blocks.map(block => digest(block.cid)) }))
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Runs the script above; skips where there is no node, or its packages cannot be had."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are needed to compare with @ipld/car")
    place = tmp_path_factory.mktemp("npm")
    (place / "package.json").write_text('{"private": true, "type": "module"}')
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--fetch-retries=1"]
    try:
        done = subprocess.run([*install, *PACKAGES], cwd=place, capture_output=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm gave no answer")
    if done.returncode:
        pytest.skip(f"npm has no {', '.join(PACKAGES)}: {done.stderr.decode(errors='replace')[-300:]}")
    (place / "rewrite.js").write_text(REWRITE)

    def run_node(*arguments: object) -> Any:
        line = ["node", str(place / "rewrite.js"), *map(str, arguments)]
        done = subprocess.run(line, cwd=place, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return run_node


def test_node_reads_and_rewrites_our_file(node: Callable[..., Any], tmp_path: Path) -> None:
    """Roots and blocks as they are here, links resolve, values encode to the same bytes; and it comes back."""
    one, two = memory_store(), memory_store()
    root, blocks = fill(one)
    one.export(root, tmp_path / "a.car")
    values = json.dumps([str(name) for name in blocks if one.info(name).links])
    answer = node(tmp_path / "a.car", tmp_path / "b.car", "rewrite", values)
    assert answer["roots"] == [str(root)] and sorted(answer["blocks"]) == sorted(map(str, blocks))
    report = two.import_(tmp_path / "b.car")  # backwards: parents first
    assert contents(two) == blocks and report.roots == (root,) and report.late > 0


def test_a_file_made_by_node_comes_in(node: Callable[..., Any], tmp_path: Path) -> None:
    """Blocks named by blake3 there are artifacts here; our file of them has the same blocks."""
    store = memory_store()
    answer = node("-", tmp_path / "a.car", "make")
    report = store.import_(tmp_path / "a.car", pin="node")
    (root,) = report.roots
    assert [str(root)] == answer["roots"] and len(store) == 3
    value = store.get_value(store.get_value(root)["value"])
    assert value["text"] == "häß" and value["list"] == [1, -1, 1.5, None, True]
    assert store.get(value["leaf"]) == b"made by node" == value["bytes"]
    ours = exported(store, root)
    assert sorted(read_car(ours)) == sorted(read_car((tmp_path / "a.car").read_bytes()))
