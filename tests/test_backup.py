"""Backups: whole or not there, beside writers, and each of them a home that verifies and goes on."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

import casstore
import journal
from casstore import steps
from casstore.testing import FakeRoots
from tests.command_line import casstore as command_line
from tests.helpers import python as child

A, B = "flow.step.a", "flow.step.b"


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def live_run(jrn: journal.Journal, number: int) -> journal.Run:
    run = jrn.start_run("op", manifest={"n": number}, context={"n": 0}, plan=[A, B], run_id=UUID(int=number))
    with run.enter(A) as attempt:
        attempt.fact("who", "Ada")
        attempt.complete({"n": 1, "text": "x" * 5000})
    return run


def check(dest: Path) -> None:
    """Nothing is wrong in it, nothing is held in it, and every live run goes on."""
    with journal.open(dest, create=False) as jrn:
        assert jrn.verify() == [] and jrn.store.verify().findings == ()
        stats = jrn.store.stats()
        assert (stats.leases, stats.uploads) == (0, 0)
        for row in list(jrn.runs(status="live")):
            run = jrn.resume(row.run_id)
            while run.next is not None:
                with run.enter(run.next) as attempt:
                    attempt.complete({**attempt.context(), "resumed": True})
            run.complete()
        assert not list(jrn.runs(status="live"))
        assert jrn.verify() == [] and jrn.store.verify().findings == ()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_a_backup_is_a_home_of_its_own(home: Path, tmp_path: Path) -> None:
    """The same uuid, artifacts, pins, cursors and events, another instance; claims, leases and uploads stay behind,
    and what is done in one is not seen in the other."""
    dest = tmp_path / "copy"
    with journal.open(home) as jrn:
        store = jrn.store
        run = live_run(jrn, 1)
        run.enter(B)  # open attempt and claim
        store.pin("kept", store.put_file(__file__))
        large = store.put(random.Random(1).randbytes(3 << 20))
        store.pin("large", large)
        jrn.move_cursor("c", 2)
        lease = store.lease(3600)
        lease.put(b"leased")
        store._backend.upload_write(store._backend.upload_open(1, "nobody"), 0, [b"x" * 4080] * 5000)
        store.staging.settle()
        before = store.stats()
        assert (before.leases, before.uploads) == (1, 1)
        report = jrn.backup(dest)
        assert (report.path, report.artifacts, report.position) == (dest, len(store), jrn.position())
        assert report.instance not in (store.instance, store.uuid)
        assert store.stats() == before
        assert files(dest) == ["FORMAT", "journal/data.mdb", "store/1/data.mdb", "store/CURRENT"]
        with journal.open(dest) as copy:
            assert (copy.uuid, copy.store.instance) == (jrn.uuid, report.instance)
            assert list(copy.store) == list(store) and copy.store.pins() == store.pins()
            assert copy.store.get(large) == store.get(large)
            assert list(copy.feed()) == list(jrn.feed()) and copy.cursor("c") == 2
            assert copy.store.verify().findings == ()
            resumed = copy.resume(run.run_id)  # this very process runs it in the other home
            assert resumed.next == B
            resumed.release()
            copy.store.put(b"only here")
            assert casstore.ArtifactId.of(b"only here") not in store
        assert run.head == jrn.head(run.run_id)
    check(dest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "home"]


def test_a_backup_of_a_backup(home: Path, tmp_path: Path) -> None:
    """It is a home like any other, after a compaction too."""
    with journal.open(home) as jrn:
        live_run(jrn, 1)
        jrn.store.compact()
        jrn.backup(tmp_path / "one")
    with journal.open(tmp_path / "one") as jrn:
        jrn.backup(tmp_path / "two")
    check(tmp_path / "two")


def test_a_store_alone(home: Path, tmp_path: Path) -> None:
    """A home without a journal is copied by its store; one with a journal is not, since half of it would be lost."""
    with casstore.open(home) as store:
        name = store.put(b"x")
        assert store.backup(tmp_path / "copy").artifacts == 1
        with casstore.open(tmp_path / "copy") as copy:
            assert copy.get(name) == b"x" and copy.verify().findings == ()
        journal.open(home, store=store).close()
        with pytest.raises(casstore.InvalidArgument, match="journal"):
            store.backup(tmp_path / "half")
        assert not (tmp_path / "half").exists()


def test_places_that_are_refused(home: Path, tmp_path: Path) -> None:
    """What exists is never touched, be it empty, a file or a link to nowhere; nor is anything put inside of the
    home, where gc would remove it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    with journal.open(home) as jrn:
        names = ["empty", "full", "file", "link", "none/dest", "home", "home/store/2", "home/journal/copy"]
        before = sorted(map(str, tmp_path.rglob("*")))
        for name in names:
            with pytest.raises(casstore.InvalidArgument):
                jrn.backup(tmp_path / name)
        assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_gc_compact_and_backup_keep_each_other_out(home: Path, tmp_path: Path) -> None:
    """While one runs the others are Busy, and a backup that was refused leaves nothing."""
    refused: list[str] = []
    with journal.open(home) as jrn:
        live_run(jrn, 1)

        def meanwhile(step: str) -> None:
            if step in ("backup.store", "compact.copied", "gc.marked"):
                for other in (
                    lambda: jrn.backup(tmp_path / "other"), jrn.store.compact, lambda: jrn.store.gc(jrn)
                ):  # fmt: skip
                    with pytest.raises(casstore.Busy):
                        other()
                    refused.append(step)

        steps.listen(meanwhile)
        try:
            jrn.backup(tmp_path / "copy")
            jrn.store.compact()
            jrn.store.gc(jrn, grace=0)
        finally:
            steps.listen(None)
    assert len(refused) == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "home"]


def test_an_open_gc_and_its_leftovers_do_not_go_along(home: Path, tmp_path: Path) -> None:
    """A gc that was killed midway, and pieces that it would have purged."""
    code = """
import os, signal, sys
import casstore
from casstore import steps
from casstore.testing import FakeRoots
steps.listen(lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == "gc.after_batch" else None)
with casstore.open(sys.argv[1]) as store:
    store.gc(FakeRoots(store), grace=0, force=True)
"""
    with casstore.open(home) as store:
        store.put_many([random.Random(n).randbytes(9000) for n in range(50)])
    killed = child(code, home)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    with casstore.open(home) as store:
        assert store._backend.counters().gc_open
        store.backup(tmp_path / "copy")
    with casstore.open(tmp_path / "copy") as copy:
        assert not copy._backend.counters().gc_open and copy.verify().findings == ()
        assert not copy._backend.purge(1)
        copy.put(b"goes on")
        copy.gc(FakeRoots(copy), grace=0, force=True)
        assert len(copy) == 0


ONE = """
import sys
import journal
from tests.kills import kill_at
with journal.open(sys.argv[1]) as jrn:
    reached = kill_at(int(sys.argv[3]))
    jrn.backup(sys.argv[2])
print(len(reached))
"""


def test_killed_at_every_step(home: Path, tmp_path: Path) -> None:
    """SIGKILL at each step: DEST is there whole or not at all, and the next backup removes what was left."""
    with journal.open(home) as jrn:
        live_run(jrn, 1)
    total = int(child(ONE, home, tmp_path / "count", 0).communicate()[0])
    assert total >= 5
    seen = set()
    for stop in range(1, total + 1):
        place = tmp_path / str(stop)
        place.mkdir()
        killed = child(ONE, home, place / "copy", stop)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        left = [path.name for path in place.iterdir()]
        whole = left == ["copy"]
        seen.add(whole)
        if not whole:
            assert len(left) == 1 and left[0].startswith("copy.") and left[0].endswith(".backup-tmp")
            with journal.open(home) as jrn:
                jrn.backup(place / "copy")
        assert [path.name for path in place.iterdir()] == ["copy"]
        check(place / "copy")
    assert seen == {True, False}


def test_an_interrupted_backup_leaves_nothing(home: Path, tmp_path: Path) -> None:
    """Ctrl-C: the home is as it was, and the lock is free."""
    with journal.open(home) as jrn:
        live_run(jrn, 1)

        def interrupt(step: str) -> None:
            if step == "backup.flushed":
                raise KeyboardInterrupt

        steps.listen(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                jrn.backup(tmp_path / "copy")
        finally:
            steps.listen(None)
        assert [path.name for path in tmp_path.iterdir()] == ["home"]
        jrn.backup(tmp_path / "copy")
    check(tmp_path / "copy")


WRITER = """
import sys
from uuid import UUID
import journal
home, seed = sys.argv[1], int(sys.argv[2])
A, B = "flow.step.a", "flow.step.b"
with journal.open(home) as jrn:
    number = 0
    while not number or sys.stdin.readline() == "go\\n":
        for _ in range(3):
            number += 1
            run = jrn.start_run("op", manifest={"seed": seed}, context={"n": 0, "text": "x" * 3000}, plan=[A, B],
                                run_id=UUID(int=seed << 64 | number))
            with run.enter(A) as attempt:
                attempt.fact("f", {"by": [seed] * number})
                attempt.output(b"%d" % number * 5000)
                attempt.complete({**attempt.context(), "n": number})
            if number % 3 == 0:
                with run.enter(B) as attempt:
                    attempt.complete({**attempt.context(), "end": True})
                run.complete()
        print(number, flush=True)
"""


def test_beside_writers_in_other_processes(home: Path, tmp_path: Path) -> None:
    """Writers start, fail in nothing, and end while backups are made: each backup is whole, holds what was
    acknowledged before it, and its runs go on. A gc in between is another kind of writer."""
    journal.open(home).close()
    writers = [child(WRITER, home, seed) for seed in (1, 2, 3)]
    with journal.open(home) as jrn:
        for turn in range(6):
            done = {}
            for seed, writer in enumerate(writers, 1):
                assert writer.stdin and writer.stdout
                done[seed] = int(writer.stdout.readline())
                writer.stdin.write("go\n")  # it goes on while the copy is made
                writer.stdin.flush()
            report = jrn.backup(tmp_path / f"copy{turn}")
            with journal.open(report.path) as copy:
                assert copy.position() == report.position
                for seed, number in done.items():
                    for acknowledged in range(1, number + 1):
                        assert copy.head(UUID(int=seed << 64 | acknowledged)) >= 5
            if turn == 3:
                jrn.store.gc(jrn, grace=0, keep_completed=0)
        for writer in writers:
            writer.communicate("stop\n")
            assert writer.returncode == 0
        assert jrn.verify() == [] and jrn.store.verify().findings == ()
    for turn in range(6):
        check(tmp_path / f"copy{turn}")


def test_what_the_journal_names_but_the_store_lost_is_no_backup(home: Path, tmp_path: Path) -> None:
    """A home that is damaged so is named, and no copy is left that looks whole."""
    with journal.open(home) as jrn:
        run = live_run(jrn, 1)
        lost = jrn.run_state(run.run_id).checkpoint_id
        jrn.store.staging.settle()
        with jrn.store._backend._tables.write() as txn:  # type: ignore[attr-defined]
            assert txn.delete(b"ix1", lost.digest)
        with pytest.raises(casstore.DamagedStore, match=str(lost)):
            jrn.backup(tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(home: Path, small_disk: Path, tmp_path: Path) -> None:
    """Whatever page the room ends at: StoreFull, nothing is left there, the home goes on; with room it succeeds."""
    code = """
import os, sys
import casstore, journal
home, disk, elsewhere = sys.argv[1], sys.argv[2], sys.argv[3]
ballast = os.path.join(disk, "ballast")
full = done = 0
with journal.open(home) as jrn:
    need = jrn.backup(elsewhere).file_bytes // 4096
    for room in [0, 1, need // 3, *range(need - 40, need + 100)]:
        with open(ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, (os.statvfs(disk).f_bavail - room) * 4096)
        try:
            jrn.backup(os.path.join(disk, "copy"))
            done += 1
        except casstore.StoreFull:
            full += 1
            assert os.listdir(disk) == ["ballast"], os.listdir(disk)
        os.unlink(ballast)
        if done:
            break
    jrn.store.put(b"goes on")
print(full, done)
"""
    with journal.open(home) as jrn:
        live_run(jrn, 1)
        for n in range(40):
            jrn.store.put(random.Random(n).randbytes(9000))
    running = child(code, home, small_disk, tmp_path / "elsewhere")
    out = running.communicate()[0]
    assert running.returncode == 0
    full, done = map(int, out.split())
    assert full > 40 and done == 1
    check(small_disk / "copy")


def test_on_the_command_line(home: Path, tmp_path: Path) -> None:
    """backup says what it made; a place that is taken is a mistake of usage."""
    with journal.open(home) as jrn:
        live_run(jrn, 1)
        position = jrn.position()
    code, document = command_line("backup", tmp_path / "copy", "--json", home=home).coded
    assert code == 0 and document["position"] == position
    assert document["path"] == str(tmp_path / "copy")
    again = command_line("backup", tmp_path / "copy", home=home)
    assert again.code == 2 and "exists" in again.err
    assert "artifacts" in command_line("backup", tmp_path / "two", home=home).out
    assert command_line("verify", home=tmp_path / "two").code == 0
    check(tmp_path / "copy")
