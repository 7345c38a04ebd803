"""Space: what gc frees is used again, what compact frees the file system has back, and reports never mix the two."""

from __future__ import annotations

import json
import os
from pathlib import Path

import journal
from journal import Journal
from tests.command_line import casstore as command_line

MIB = 1 << 20


def disk_bytes(home: Path) -> int:
    """What the file system says that the store takes."""
    return sum(path.stat().st_blocks * 512 for path in (home / "store").rglob("data.mdb"))


def put_loose(jrn: Journal, count: int) -> None:
    jrn.store.put_many([os.urandom(200_000) for _ in range(count)])


def test_freed_pages_are_used_again_and_given_back_by_compact_alone(tmp_path: Path) -> None:
    """After gc the file is as it was, and takes as much again without growing; after compact the disk has it."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        jrn.start_run("op", manifest={"n": 1}, context={"n": 2})
        put_loose(jrn, 40)
        full, taken = jrn.store.stats().file_bytes, disk_bytes(home)
        report = jrn.store.gc(jrn, grace=0)
        assert report.stored_bytes >= 40 * 200_000
        assert report.file_bytes == jrn.store.stats().file_bytes and report.file_bytes - full < MIB
        assert report.reusable_bytes >= report.stored_bytes and disk_bytes(home) >= taken
        put_loose(jrn, 38)  # the freed pages hold it, but for some that readers or the free list itself may need
        assert jrn.store.stats().file_bytes - report.file_bytes < MIB
        second = jrn.store.gc(jrn, grace=0)
        assert second.file_bytes - report.file_bytes < MIB
        before = disk_bytes(home)
        compacted = jrn.store.compact()
        assert compacted.before_bytes == second.file_bytes
        assert compacted.returned_bytes == compacted.before_bytes - compacted.after_bytes > 7 * MIB
        assert before - disk_bytes(home) > 7 * MIB and jrn.store.stats().file_bytes < MIB
        again = jrn.store.gc(jrn, grace=0)
        assert again.file_bytes < MIB and again.stored_bytes == 0
        assert jrn.store.compact().returned_bytes < MIB


def test_a_dry_run_frees_nothing_and_says_so(tmp_path: Path) -> None:
    """What would be free is not counted as free."""
    with journal.open(tmp_path / "home") as jrn:
        put_loose(jrn, 10)
        dry = jrn.store.gc(jrn, grace=0, dry_run=True)
        real = jrn.store.gc(jrn, grace=0)
        assert dry.stored_bytes == real.stored_bytes >= 2_000_000
        assert dry.reusable_bytes < dry.stored_bytes <= real.reusable_bytes


def test_quarantined_bytes_are_not_free(tmp_path: Path) -> None:
    """They are told apart from those that are."""
    with journal.open(tmp_path / "home") as jrn:
        put_loose(jrn, 10)
        report = jrn.store.gc(jrn, grace=0, quarantine=3600)
        assert report.stored_bytes == 0 and report.quarantined_bytes >= 2_000_000 > report.reusable_bytes


def test_the_commands_say_it(tmp_path: Path) -> None:
    """gc: free inside of the file, nothing returned; compact: what the file system has back."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        put_loose(jrn, 10)

    def run(*arguments: str) -> str:
        done = command_line(*arguments, home=home)
        assert done.code == 0
        return done.out

    text = run("gc", "--grace", "0s")
    assert "1.9 MiB are free for new artifacts" in text and "the file stays at " in text and "compact" in text
    document = json.loads(run("gc", "--grace", "0s", "--json"))
    assert document["returned_bytes"] == 0 and document["reusable_bytes"] > 1_900_000
    text = run("compact")
    assert "the file system has " in text and text.endswith(" back\n")
    assert json.loads(run("compact", "--json"))["returned_bytes"] < MIB
