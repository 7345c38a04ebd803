"""compact gives space back while others read and write, and no commit is ever lost in a generation that was left."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

import casstore
from casstore import ArtifactId, lmdb_tables, steps
from casstore import generations as of_generations
from casstore.rows import IX, TABLES
from casstore.testing import FakeRoots
from tests.helpers import compacting
from tests.helpers import python as child


def fill(store: casstore.Store, count: int) -> list[ArtifactId]:
    rng = random.Random(count)
    return store.put_many([rng.randbytes(20_000) for _ in range(count)])


def generations(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "store").iterdir() if path.is_dir())


def test_space_goes_back_to_the_file_system(tmp_path: Path) -> None:
    """After gc the file is as large as before; after compact it holds what is used; all of it reads the same."""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        names = fill(store, 200)
        store.pin("kept", store.put_value([*names[:10]]))
        large = store.put_file(__file__)
        store.pin("file", large)
        roots = FakeRoots(store)
        store.gc(roots, grace=0, force=True)
        before = store.stats()
        report = store.compact()
        after = store.stats()
        assert report.before_bytes == before.file_bytes > 4_000_000
        assert report.after_bytes == after.file_bytes < 500_000
        assert (after.artifacts, after.stored_bytes, after.commits) == (
            before.artifacts, before.stored_bytes, before.commits
        )  # fmt: skip
        assert generations(home) == ["2"]
        assert store.pins().keys() == {"kept", "file"} and store.verify().ok
        assert [len(store.get(name)) for name in names[:10]] == [20_000] * 10
        with pytest.raises(casstore.Collected):
            store.get(names[20])
        name = store.put(b"after")
    with casstore.open(home) as store:
        assert store.get(name) == b"after" and store.verify().ok


def test_killed_at_every_step(tmp_path: Path) -> None:
    """SIGKILL at each step: whichever generation is current is whole, writes go on, and what was left over goes."""
    total = int(compacting(tmp_path / "count", 0).communicate()[0])
    assert total >= 6
    for stop in range(1, total + 1):
        home = tmp_path / f"home{stop}"
        with casstore.open(home) as store:
            names = fill(store, 20)
            store.gc(FakeRoots(store), grace=3600)
        killed = compacting(home, stop)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        with casstore.open(home) as store:
            name = store.put(b"after the kill")
            assert store.verify().ok and all(name in store for name in names)
            store.compact()
            assert store.get(name) == b"after the kill" and store.verify().ok
            assert len(generations(home)) == 1


@pytest.mark.parametrize("step", ["compact.copying", "compact.copied", "compact.last", "compact.renamed", "compact.switched"])  # noqa: E501 # fmt: skip
def test_writers_go_on_at_every_step(tmp_path: Path, step: str) -> None:
    """Another handle, in another thread, puts, touches and removes at each step; where the lock is held it waits."""
    with casstore.open(tmp_path / "home") as store, casstore.open(tmp_path / "home") as other:
        names = fill(store, 30)
        store.pin("goes", names[0])
        done = threading.Event()

        def work() -> None:
            other.put(b"meanwhile")
            other.put_many([b"%d" % n for n in range(500)])
            other.put_file(Path(__file__))
            other.pin("comes", names[1])
            other.unpin("goes")
            done.set()

        writer = threading.Thread(target=work)

        def listener(reached: str) -> None:
            if reached == step and not writer.is_alive() and not done.is_set():
                writer.start()
                if step in ("compact.copying", "compact.copied"):
                    writer.join()

        steps.listen(listener)
        try:
            store.compact()
        finally:
            steps.listen(None)
        writer.join()
        assert done.is_set()
        for handle in (store, other):
            assert handle.get(ArtifactId.of(b"meanwhile")) == b"meanwhile"
            assert len(handle) == 30 + 1 + 500 + 1
            assert handle.pins() == {"comes": names[1]}
            assert handle.verify().ok


WRITER = """
import sys
import casstore
home, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
with casstore.open(home) as store:
    before = None
    for n in range(count):
        before = store.put_value({"by": seed, "n": n, "text": "x" * n}, base=before)
        assert store.get_value(before)["n"] == n
"""


def test_processes_write_while_one_compacts_again_and_again(tmp_path: Path) -> None:
    """Three writers in processes of their own and compactions in a loop: nothing that was acknowledged is missing."""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        fill(store, 10)
        writers = [child(WRITER, home, seed, 150) for seed in range(3)]
        compactions = 0
        while any(writer.poll() is None for writer in writers):
            store.compact()
            compactions += 1
        for writer in writers:
            writer.communicate()
            assert writer.returncode == 0
        assert compactions > 2 and len(store) == 10 + 450
        assert store.verify().ok


def test_a_reader_in_another_process_moves_on(tmp_path: Path) -> None:
    """A handle that only reads sees what is put into the new generation."""
    code = """
import sys
import casstore
with casstore.open(sys.argv[1], read_only=True) as store:
    print(len(store), flush=True)
    sys.stdin.readline()
    print(len(store), store.get(casstore.ArtifactId.of(b"later")).decode(), flush=True)
"""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        store.put(b"x")
        reader = child(code, home)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "1\n"
        store.compact()
        store.put(b"later")
        assert reader.communicate("go\n")[0] == "2 later\n"


def test_a_generation_that_is_opened_while_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process, about to open it, puts its file of locks there: compact is done all the same, and the next one
    removes what was left."""
    home, rmtree = tmp_path / "home", shutil.rmtree

    def beaten(directory: Path) -> None:
        rmtree(directory)
        directory.mkdir()
        (directory / "lock.mdb").touch()
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with casstore.open(home) as store:
        name = store.put(b"x")
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", beaten)
            store.compact()
        assert sorted(os.listdir(home / "store")) == ["1", "2", "CURRENT"]
        store.compact()
        assert sorted(os.listdir(home / "store")) == ["3", "CURRENT"] and store.get(name) == b"x"


@pytest.mark.parametrize("made_again", [False, True])
def test_a_reader_that_comes_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_again: bool) -> None:
    """The generation that it is about to open is left and removed, perhaps just before LMDB makes an empty one in its
    place: it reads what is there now."""
    home, opened, late = tmp_path / "home", of_generations.LmdbTables, list[Path]()
    with casstore.open(home) as store, casstore.open(home) as other:
        name = store.put(b"x")
        other.compact()

        def open_late(path: Path, *rest: Any, **options: Any) -> Any:
            if not late:
                late.append(path)
                other.compact()
                if made_again:
                    lmdb_tables.LmdbTables(path, TABLES, create=True, read_only=False).close()
            return opened(path, *rest, **options)

        monkeypatch.setattr(of_generations, "LmdbTables", open_late)
        with store._backend._tables.read() as txn:  # one look: others look again
            assert txn.count(IX) == 1 and late == [home / "store" / "2"]
        monkeypatch.undo()
        store.compact()
        assert sorted(os.listdir(home / "store")) == ["4", "CURRENT"] and other.get(name) == b"x"


def test_compact_and_gc_keep_each_other_out(tmp_path: Path) -> None:
    """One at a time: the other is told that the store is busy."""
    with casstore.open(tmp_path / "home") as store:
        store.put(b"x")
        seen: list[str] = []

        def listener(step: str) -> None:
            if step == "compact.copied":
                for call in (store.compact, lambda: store.gc(FakeRoots(store), grace=0)):
                    with pytest.raises(casstore.Busy):
                        call()
                    seen.append(step)

        steps.listen(listener)
        try:
            store.compact()
        finally:
            steps.listen(None)
        assert len(seen) == 2


def test_the_disk_fills_up_during_the_copy(tmp_path: Path) -> None:
    """A clear error; the store stays as it was, nothing is left over."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        with casstore.open(place / "home") as store:
            names = [store.put(os.urandom(100_000)) for _ in range(90)]
            with pytest.raises(casstore.StoreFull):
                store.compact()
            assert generations(place / "home") == ["1"]
            assert store.verify().ok and all(name in store for name in names)
            store.put(b"goes on")
    finally:
        subprocess.run(["umount", str(place)], check=True)
