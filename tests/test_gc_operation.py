"""gc as an operator meets it: long graces, previews beside other gcs, a journal that is lost, windows that end."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import casstore
import journal
from casstore.cli.options import EXIT_DAMAGE
from casstore.policies import parse_duration, parse_size
from casstore.testing import FakeClock, FakeRoots, memory_store
from journal.rows import DONE
from journal.testing import memory_journal
from tests.test_verify import command

DAY_S = 86400


def test_a_grace_of_a_year_is_kept() -> None:
    """Also by the second gc after ticks of 90 days: what gc cannot tell the age of is young."""
    clock = FakeClock()
    store = memory_store(clock=clock)
    roots = FakeRoots(store)
    old = store.put(b"old")
    clock.advance(10)
    young = store.put(b"young")
    for days in (100, 1, 200):
        clock.advance(days * DAY_S)
        for _ in range(2):
            assert not store.gc(roots, grace=365 * DAY_S, force=True).removed
    clock.advance(100 * DAY_S)
    store.gc(roots, grace=365 * DAY_S, force=True)
    assert old not in store and young not in store


def test_shorter_graces_between_take_nothing_from_a_longer_one() -> None:
    """They let go of old ticks, and then what came before them is of no age that could be told; it goes once it is old
    by those that are left."""
    clock = FakeClock()
    store = memory_store(clock=clock)
    roots = FakeRoots(store)
    kept = store.put(b"kept")
    roots.append("run", kept)
    clock.advance(200 * DAY_S)
    loose = store.put(b"loose")
    clock.advance(100 * DAY_S)
    store.gc(roots, grace=200 * DAY_S, force=True)
    store.gc(roots, grace=150 * DAY_S, force=True)
    assert loose in store
    clock.advance(DAY_S)
    store.gc(roots, grace=3600, force=True)
    assert loose not in store and kept in store


def test_a_store_that_nobody_touched_for_months_is_collected() -> None:
    clock = FakeClock()
    store = memory_store(clock=clock)
    loose = store.put(b"loose")
    clock.advance(500 * DAY_S)
    store.gc(FakeRoots(store), grace=3650 * DAY_S, force=True)
    store.gc(FakeRoots(store), grace=3600, force=True)
    assert loose not in store


def test_a_preview_beside_a_gc_tells_of_no_damage(tmp_path: Path) -> None:
    """Another gc takes what the preview was to look at, at any of its steps."""
    for step in range(1, 6):
        with journal.open(tmp_path / f"home{step}") as jrn:
            store = jrn.store
            for n in range(100):
                store.put(b"%d" % n)
            store.pin("p", store.put(b"pinned"))
            calls = [0]

            def stop(store: casstore.Store = store, jrn: Any = jrn, calls: list[int] = calls, at: int = step) -> bool:
                calls[0] += 1
                if calls[0] == at:
                    store.unpin("p")
                    store.gc(jrn, grace=0, force=True)
                return False

            try:
                store.gc(jrn, grace=0, dry_run=True, stop=stop)
            except casstore.Busy:
                pass
            assert store.verify().ok


def test_a_lost_journal_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    """By which no run is live, and gc would take what they need."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        run = jrn.start_run("op", manifest={"m": 1}, context={"c": 1})
        run.release()
    (home / "journal").rename(tmp_path / "away")
    for read_only in (False, True):
        with pytest.raises(casstore.DamagedStore, match="had a journal"):
            journal.open(home, read_only=read_only)
    assert command("init", "--home", home)[0] == EXIT_DAMAGE
    assert command("gc", "--home", home)[0] == 5
    with casstore.open(home) as store:
        assert len(store) == 2 and store.verify().ok
    (tmp_path / "away").rename(home / "journal")
    with journal.open(home) as jrn:
        assert not jrn.store.gc(jrn, grace=0).removed and jrn.run_state(run.run_id).status is None


def test_a_store_gets_its_first_journal_later(tmp_path: Path) -> None:
    with casstore.open(tmp_path / "home") as store:
        store.put(b"one")
    with journal.open(tmp_path / "home") as jrn:
        assert jrn.verify() == []
    shutil.rmtree(tmp_path / "home" / "journal")
    with pytest.raises(casstore.DamagedStore):
        journal.open(tmp_path / "home")


def test_a_window_ends_though_a_delta_needs_the_bytes() -> None:
    """What cannot be brought back any more is not listed so, and its bytes stay."""
    clock = FakeClock()
    jrn = memory_journal(clock=clock)
    store = jrn.store
    big = random.Random(1).randbytes(4000)
    child = store.put(b"child")
    base = store.put_value({"l": child, "d": big})
    heir = store.put_value({"d": big, "z": 1}, base=base)
    store.pin("heir", heir)
    clock.advance(10)
    store.gc(jrn, grace=0, quarantine=3600, force=True)
    assert {row.id for row in store.buried()} == {child, base}
    clock.advance(3601)
    store.gc(jrn, grace=0, force=True)
    assert not list(store.buried())
    with pytest.raises(casstore.Collected):
        store.get(base)
    with pytest.raises(casstore.Collected):
        store.undelete([base])
    assert store.get_value(heir)["d"] == big and store.verify().ok
    assert store.put_value({"l": store.put(b"child"), "d": big}) == base and store.verify().ok


def test_a_limit_of_bytes_counts_what_goes_into_quarantine() -> None:
    clock = FakeClock()
    store = memory_store(clock=clock)
    for n in range(2000):
        store.put(b"%d" % n * 20)
    clock.advance(10)
    report = store.gc(FakeRoots(store), grace=0, quarantine=3600, max_bytes=1, force=True)
    assert report.stopped == "bytes" and 0 < len(report.removed) < 2000


def test_why_does_not_count_on_a_lease_that_is_over() -> None:
    clock = FakeClock()
    store = memory_store(clock=clock)
    roots = FakeRoots(store)
    name = store.put(b"x")
    store.lease(60).add(name)
    assert store.why(name, roots).state == "live"
    clock.advance(7200)
    assert store.why(name, roots).state != "live"
    assert [row[0] for row in store.gc(roots, dry_run=True).removed] == [name]


@pytest.mark.parametrize("at", ["status", "time"])
def test_an_ended_run_that_is_listed_elsewhere_stops_gc(at: str) -> None:
    """Its artifacts are retained, and by that list nobody would see them."""
    clock = FakeClock()
    jrn = memory_journal(clock=clock)
    jrn.start_run("op", manifest={"m": 1}, context={"c": 1}).complete()
    with jrn._backend._tables.write() as txn:  # type: ignore[attr-defined]
        (key,) = txn.keys(DONE)
        txn.delete(DONE, key)
        changed = bytearray(key)
        changed[0 if at == "status" else 7] ^= 4 if at == "status" else 1
        txn.put(DONE, bytes(changed), b"")
    with pytest.raises(casstore.GcRefused):
        jrn.store.gc(jrn, grace=0, force=True)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "GiB", "1" + "0" * 30])
def test_a_size_with_hundreds_of_digits(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        parse_size(text)
    with pytest.raises(ValueError, match="no duration"):
        parse_duration(text + "d")


def test_a_preview_says_what_would_be_refused(tmp_path: Path) -> None:
    """Nearly everything: the gc refuses that, and its preview says so."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        jrn.store.put_many([b"%d" % n for n in range(1200)])
    done = subprocess.run(
        [Path(sys.executable).with_name("casstore"), "gc", "--dry-run", "--grace", "0s", "--home", str(home)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "would refuse that" in done.stdout and "would remove 1200 artifacts" in done.stdout
