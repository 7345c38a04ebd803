"""Puts without a base: the store finds one among what it put lately, where there is one worth it."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import casstore
from casstore import ArtifactId, Store, codec, writing
from casstore.hints import PAUSE_MAX, Hints
from casstore.similar import SIZE_MIN, Sketches, sketch
from casstore.testing import FakeClock, FakeRoots, memory_store
from tests.helpers import BRIEF

WORDS = [f"{stem}{number}" for stem in ("fetch", "price", "block", "state", "order") for number in range(100)]
WORDS += ["zone", "quota", "index"]  # as rare as their letters are in texts


def text(seed: int, count: int) -> list[bytes]:
    """Lines of words, no two alike."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=12)).encode() + b" %x\n" % rng.getrandbits(64) for _ in range(count)]


@pytest.fixture
def store() -> Iterator[Store]:
    with memory_store(clock=FakeClock()) as made:
        yield made


def put(store: Store, lines: list[bytes], **options: Any) -> ArtifactId:
    return store.put(b"".join(lines), **options)


def test_a_version_finds_the_one_before(store: Store) -> None:
    """Grown, with a head of its own, with its older half gone, with blocks in another order: each is a delta on what
    was there."""
    lines = text(1, 300)
    name = put(store, lines)
    versions = [
        [*lines, b"one line more\n"],
        [b"another head\n", *lines],
        lines[150:],
        [*lines[200:], *lines[:200]],
        [line for place, line in enumerate(lines) if place % 10],
    ]
    for version in versions:
        info = store.info(put(store, version))
        assert info.base == name
        assert info.stored_bytes < 0.2 * len(b"".join(version))
        assert store.get(info.id) == b"".join(version)
        name = put(store, lines)  # the same again: no put at all, and no base of itself
        store._writer._hints = Hints()
        store._writer._hints.find(name.digest, "other", b"".join(lines))
        store._writer._hints.keep(name.digest)


def test_runs_in_turn_find_their_own(store: Store) -> None:
    """Twenty runs that begin alike and go on each by itself, by turns."""
    head = text(2, 100)
    runs = [[*head, *text(100 + own, 40)] for own in range(20)]
    last = [put(store, lines) for lines in runs]
    found = 0
    for step in range(6):
        for own, lines in enumerate(runs):
            lines += text(1000 + own * 50 + step, 2)
            info = store.info(put(store, lines))
            walk = [digest for digest, _, _ in store._backend.base_walk(info.id.digest)]
            found += last[own].digest in walk or info.stored_bytes < 500
            last[own] = info.id
    assert found >= 100  # of 120


def test_no_chain_gets_too_long(store: Store) -> None:
    """Found bases are hints like any other: three hundred versions are read through a few deltas each."""
    lines = text(3, 200)
    name = put(store, lines)
    for step in range(300):
        lines += text(5000 + step, 1)
        name = put(store, lines)
        assert len(store._backend.base_walk(name.digest)) <= 16
    assert store.info(name).chain > 200 and store.get(name) == b"".join(lines)
    assert store.stats().stored_bytes < 300 * 700


@pytest.mark.parametrize("why", ["small", "kind", "dictionary", "nothing alike", "forgotten"])
def test_nothing_is_used_where_nothing_fits(store: Store, why: str) -> None:
    """Too small, of another kind, alike in nothing, or put by a handle that is closed: stored whole."""
    lines = text(4, 100)
    first = lines[:10] if why == "small" else lines
    put(store, first, kind="dictionary" if why == "dictionary" else "output")
    if why == "forgotten":
        store._writer._hints = Hints()
    second = {"small": [*first, b"x"], "nothing alike": text(5, 100)}.get(why, [*lines, b"x"])
    kind = {"kind": "value", "dictionary": "dictionary"}.get(why, "output")
    assert len(b"".join(first)) < SIZE_MIN or why != "small"
    assert store.info(put(store, second, kind=kind)).base is None


def test_a_base_that_was_collected_or_damaged_is_no_reason_to_fail(store: Store) -> None:
    """The put stores its bytes whole."""
    lines = text(6, 100)
    first = put(store, lines)
    store.gc(FakeRoots(store), grace=0)
    second = put(store, [*lines, b"x"])
    assert store.info(second).base is None and first not in store
    with store._backend._tables.write() as txn:  # type: ignore[attr-defined]
        key, piece = next(txn.scan(b"d1", txn.get(b"ix1", second.digest)[:8]))
        txn.put(b"d1", key, bytes(len(piece)))
    store._writer._recent._items.clear()
    third = put(store, [*lines, b"xy"])
    assert store.info(third).base is None and store.get(third) == b"".join([*lines, b"xy"])


def test_what_a_caller_names_is_used(store: Store) -> None:
    """A hint is not second-guessed, even where something else is more alike."""
    lines = text(7, 100)
    named = put(store, lines)
    put(store, [*lines, *text(8, 40)])
    assert store.info(put(store, [*lines, *text(8, 40), b"x"], base=named)).base == named


def test_what_never_helps_is_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts that share a head and are not worth a delta: the attempts get rare; then something helps, and all is
    as before."""
    head, tried = text(9, 12), []
    encode = codec.encode

    def counting(data: bytes, base: bytes | None) -> codec.Encoded:
        tried.append(base)
        return encode(data, base)

    monkeypatch.setattr(writing.codec, "encode", counting)
    noise = random.Random(3)
    for _ in range(200):
        store.put(b"".join(head) + b"\n".join(noise.randbytes(30).hex().encode() for _ in range(300)), kind="output")
    assert 0 < len(tried) <= 12
    for step in range(PAUSE_MAX + 2):
        name = store.put(b"".join([*text(10, 100), b"%d" % step]), kind="output")
    assert store.info(name).base is not None
    tried.clear()
    store.put(b"".join([*text(10, 100), b"end"]), kind="output")
    assert len(tried) == 1


def test_many_at_once_use_what_came_in_earlier_batches(store: Store) -> None:
    """put_many: of two calls the second finds the first's; threads encode them."""
    documents = [text(20 + number, 200) for number in range(20)]
    store.put_many([(b"".join(lines), "output") for lines in documents])
    names = store.put_many([(b"".join([*lines, b"more\n"]), "output") for lines in documents])
    assert all(store.info(name).stored_bytes < 500 for name in names)
    assert [store.get(name) for name in names] == [b"".join([*lines, b"more\n"]) for lines in documents]


def test_values_and_prepared_puts_find_bases(store: Store) -> None:
    """put_value does; and what is prepared is a candidate only once it is put."""
    value = {"messages": [line.decode() for line in text(30, 100)]}
    first = store.prepare_value(value)
    assert isinstance(first, writing.PreparedPut)
    second = store.put_value({**value, "cursor": 1})
    assert store.info(second).base is None
    store.put_prepared([first])
    third = store.put_value({**value, "cursor": 2})
    assert store.info(third).base is not None and store.get_value(third)["cursor"] == 2


def test_files_find_bases(tmp_path: Path) -> None:
    """Streams up to 16 MiB: a version of a file costs what changed, by path and by stream; ranges of it read; the
    links rule for streams stays."""
    with casstore.open(tmp_path / "home") as store:
        data = random.Random(1).randbytes(3 << 20)
        first = store.put_file(io.BytesIO(data))
        progress: list[int] = []
        changed = data[:1_500_000] + b"changed" + data[1_500_000:]
        (tmp_path / "file").write_bytes(changed)
        second = store.put_file(tmp_path / "file", progress=progress.append)
        assert store.info(second).base == first and store.info(second).stored_bytes < 300
        assert sum(progress) == len(changed) and store.get(second) == changed
        assert store.get_range(second, 1_499_990, 40) == changed[1_499_990:][:40]
        assert store.put_file(io.BytesIO(changed)) == second == store.put(changed)
        large = store.put_file(io.BytesIO(data + bytes(codec.DELTA_RAW_MAX)))
        assert store.info(large).encoding == "frames" and store.get(large)[:1000] == data[:1000]
        assert store.stats().uploads == 0 and store.verify().findings == ()


def test_threads_share_what_was_put(store: Store) -> None:
    """Each thread's versions read right, whatever the others put meanwhile."""
    made: dict[ArtifactId, bytes] = {}

    def work(own: int) -> None:
        lines = text(40 + own, 80)
        for step in range(15):
            lines += text(900 + own * 20 + step, 1)
            made[put(store, lines)] = b"".join(lines)

    threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 60 and all(store.get(name) == data for name, data in made.items())
    assert store.verify().findings == ()
    assert sum(store.info(name).base is not None for name in made) >= 50


# -- sketches


LINES = st.integers(0, 1 << 20).map(lambda seed: text(seed, 120))


@BRIEF
@given(lines=LINES, at=st.integers(0, 100), removed=st.integers(0, 20), inserted=st.integers(0, 20))
def test_a_sketch_survives_a_change(lines: list[bytes], at: int, removed: int, inserted: int) -> None:
    """Up to a third taken out or put in anywhere, and the sketches still share three tenths."""
    changed = lines[:at] + text(1 << 21, inserted) + lines[at + removed :]
    one, other = sketch(b"".join(lines), "k"), sketch(b"".join(changed), "k")
    assert len(one & other) >= 0.3 * len(one)
    assert one == sketch(b"".join(lines), "k") and not one & sketch(b"".join(lines), "other")


@BRIEF
@given(data=st.binary(max_size=200), times=st.integers(0, 200))
def test_any_bytes_have_a_sketch(data: bytes, times: int) -> None:
    """No bytes break it, and there are never more than 20 numbers."""
    found = sketch(data * times)
    assert len(found) <= 20 and (len(data) * times >= SIZE_MIN or not found)


def test_the_oldest_are_forgotten() -> None:
    """Never more than asked for; nothing is left of what is gone, and the newest of equals wins."""
    known, rng = Sketches(most=3), random.Random(5)
    shared = frozenset(range(20))
    for number in range(50):
        known.add(bytes([number]), frozenset(rng.sample(range(1000), 10)) if number % 2 else shared)
        assert len(known) <= 3
    assert known.nearest(shared) == bytes([48])
    for number in range(50):
        known.remove(bytes([number]))
    assert len(known) == 0 and known._by_number == {} and known.nearest(shared) is None
