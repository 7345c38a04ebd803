"""Cases of peers: full disks and maps, failed transactions (docs/CASES.md). Each section names the public report."""

from __future__ import annotations

import os
import random
import resource
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

import lmdb
import pytest
from full_disk import FullDisk
from helpers import assert_whole, forked, map_of, small_disk

import casstore
import journal
from casstore import ArtifactId, StoreFull
from casstore.environment import Environment
from journal import DomainEvent, RunStarted
from journal.table_backend import TableBackend

RUN = UUID(int=1)
A = "case.step.a"


def begin(jrn: journal.Journal, run: UUID = RUN) -> None:
    name = jrn.store.put(b"first")
    jrn.append(run, 0, [RunStarted(op_id="case", manifest_id=name, initial_snapshot_id=name)])


def note(jrn: journal.Journal, run: UUID = RUN) -> int:
    """Some events more; the seq of the last."""
    return jrn.append(run, jrn.head(run), [DomainEvent("note", {"text": "x" * 1500})] * 8).last_seq


# -- 9. kurrent-io/KurrentDB#3642: the store does not start after the disk was full -----------------------------


def until_full(home: Path, action: Callable[[journal.Journal], object]) -> int:
    """Do it until the disk is full; reading goes on, on this handle. What the newest acknowledged seq is."""
    acknowledged = 0
    with journal.open(home) as jrn:
        if not jrn.head(RUN):
            begin(jrn)
        acknowledged = jrn.head(RUN)
        with pytest.raises(StoreFull):
            while True:
                result = action(jrn)
                acknowledged = result if isinstance(result, int) else acknowledged
        assert [item.seq for item in jrn.read(RUN)] == list(range(1, acknowledged + 1))
        assert jrn.store.get(ArtifactId.of(b"first")) == b"first"
    return acknowledged


def limited(home: Path, limit: int, action: Callable[[journal.Journal], object]) -> None:
    """In a process whose files may not grow beyond a limit."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    acknowledged = until_full(home, action)
    (home.parent / "acknowledged").write_text(str(acknowledged))


def put_some(jrn: journal.Journal) -> None:
    jrn.store.put(os.urandom(60_000), durable=False)


def upload_some(jrn: journal.Journal) -> None:
    jrn.store.put_file(BytesIO(os.urandom(1_200_000)))


ACTIONS: dict[str, Callable[[journal.Journal], object]] = {"append": note, "put": put_some, "upload": upload_some}


@pytest.mark.parametrize("what", ACTIONS)
def test_after_a_write_that_found_no_room_the_store_opens(tmp_path: Path, what: str) -> None:
    """Case 9: a file that may not grow: StoreFull, reading goes on; then it opens, nothing acknowledged is lost."""
    home = tmp_path / "home"
    assert forked(limited, home, 2 << 20, ACTIONS[what]) == 0
    acknowledged = int((tmp_path / "acknowledged").read_text())
    assert acknowledged > (100 if what == "append" else 0)
    with journal.open(home) as jrn:
        assert [item.seq for item in jrn.read(RUN)] == list(range(1, acknowledged + 1))
        assert note(jrn) == acknowledged + 8
        jrn.store.put(os.urandom(100_000))
        assert_whole(jrn)


def test_success_that_is_told_too_early_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 9, wrong: an append that found no room counts as made."""
    right, hidden = TableBackend.commit, list[StoreFull]()

    def wrong(self: TableBackend, *arguments: Any) -> None:
        try:
            right(self, *arguments)
        except StoreFull as error:
            if hidden:
                raise
            hidden.append(error)

    monkeypatch.setattr(TableBackend, "commit", wrong)
    assert forked(limited, tmp_path / "home", 2 << 20, note) == 1


def one_full_disk_each(home: Path) -> None:
    disk = FullDisk(home, random.Random(9))
    for name in ("put", "upload", "append", "start", "gc", "compact"):
        disk.full(name, getattr(disk, name))
    assert {"append store_full", "put store_full", "compact store_full"} <= set(disk.seen), disk.seen


def test_a_disk_that_is_full_during_every_kind_of_write(tmp_path: Path) -> None:
    """Case 9: once for put, upload, append, a run, gc and compact; test_soak.py goes on with it for long."""
    with small_disk(tmp_path / "disk", 24) as disk:
        assert forked(one_full_disk_each, disk / "home") == 0


# -- 10. restic/restic#1153: on a full disk space cannot be freed -----------------------------------------------


def freed_when_full(home: Path, quota: int | None) -> None:
    """Runs with outputs until there is no room; all but one are ended; gc frees; the put that failed passes."""
    with casstore.open(home, quota=quota) as store, journal.open(home, store=store) as jrn:
        outputs: list[tuple[UUID, bytes]] = []
        try:
            while True:
                output = os.urandom(150_000)
                run = jrn.start_run("case", manifest={}, context={"n": len(outputs)}, claim=False)
                with run.enter(A) as attempt:
                    attempt.output(output)
                    outputs.append((run.run_id, output))
                    attempt.complete({"n": -len(outputs)})
        except StoreFull:
            pass
        assert len(outputs) > 20
        for size in (150_000, 20_000, 5_000, 1_000, 100):
            with pytest.raises(StoreFull):
                while True:
                    store.put(os.urandom(size))
        failed = os.urandom(150_000)
        with pytest.raises(StoreFull):
            store.put(failed)
        kept, data = outputs[3]
        for row in list(jrn.runs(status="live")):
            if row.run_id != kept:
                jrn.cancel(row.run_id, "no room")
        report = store.gc(jrn, grace=0, keep_completed=0, force=True)
        assert report.stored_bytes > 2_000_000
        assert store.get(store.put(failed)) == failed
        assert store.get(ArtifactId.of(data)) == data
        assert jrn.run_state(kept).status is None
        assert_whole(jrn)


def test_gc_frees_a_full_disk(tmp_path: Path) -> None:
    """Case 10: 24 MiB, puts respect what gc needs."""
    with small_disk(tmp_path / "disk", 24) as disk:
        assert forked(freed_when_full, disk / "home", None) == 0


def test_gc_frees_a_used_up_quota(tmp_path: Path) -> None:
    """Case 10: the same with our quota as the limit."""
    freed_when_full(tmp_path / "home", 5_000_000)


def test_puts_without_a_reserve_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 10, wrong: puts take the last byte, and gc has none to work with."""
    monkeypatch.setattr("casstore.writing.DISK_RESERVE_BYTES", 0)
    with small_disk(tmp_path / "disk", 24) as disk:
        assert forked(freed_when_full, disk / "home", None) == 1


# -- 11. monero-project/monero#2168: a failed transaction is used again -----------------------------------------


def goes_on(jrn: journal.Journal) -> None:
    """The same handle reads, collects and writes."""
    assert jrn.store.get(ArtifactId.of(b"first")) == b"first"
    assert jrn.read(RUN)[0].seq == 1
    jrn.store.gc(jrn, grace=0, keep_completed=0, force=True)
    name = jrn.store.put(b"a small one")
    assert jrn.store.get(name) == b"a small one"


@pytest.mark.parametrize("size", [300, 5000, 60_000, 900_000])
def test_a_full_map_in_put_costs_that_put_alone(tmp_path: Path, size: int) -> None:
    """Case 11: fails inside of put; then get, read, gc and a small put work on the same handle."""
    full_map_in_put(tmp_path / "home", size)


def full_map_in_put(home: Path, size: int) -> None:
    with map_of(2 << 20), journal.open(home) as jrn:
        begin(jrn)
        with pytest.raises(StoreFull):
            while True:
                jrn.store.put_many([os.urandom(size) for _ in range(max(20_000 // size, 1))])
        goes_on(jrn)
        note(jrn)
        assert_whole(jrn)


def test_errors_of_the_engine_that_come_out_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 11, wrong: what LMDB raises is handed on."""
    monkeypatch.setattr(Environment, "_translate", lambda _, error, **__: error)
    monkeypatch.setattr("casstore.writing.Writer._check_map", lambda *_: None)
    with pytest.raises(lmdb.Error):
        full_map_in_put(tmp_path / "home", 5000)


def test_a_gc_that_needs_more_room_than_there_is_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 11, wrong: puts take the last page, and gc deletes as much at a time as ever."""
    monkeypatch.setattr("casstore.writing.Writer._check_map", lambda *_: None)
    monkeypatch.setattr("casstore.gc.StoreFull", NotADirectoryError)  # so that it is not met with smaller batches
    with pytest.raises(StoreFull):
        full_map_in_put(tmp_path / "home", 300)


class FullAtCommit:
    """An environment whose next write transactions find the map full when they commit."""

    def __init__(self, env: Any, times: int) -> None:
        self._env, self.times = env, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def begin(self, **options: Any) -> Any:
        txn = self._env.begin(**options)
        if not options.get("write") or not self.times:
            return txn
        self.times -= 1
        return _Failing(txn)


class _Failing:
    def __init__(self, txn: Any) -> None:
        self._txn = txn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)

    def commit(self) -> None:
        raise lmdb.MapFullError("mdb_txn_commit: MDB_MAP_FULL")


def environments(jrn: journal.Journal) -> list[Environment]:
    """Of the journal and of its store's generation."""
    return [jrn._backend._tables.environment, jrn.store._backend._tables._tables.environment]  # type: ignore[attr-defined]


def _put(jrn: journal.Journal) -> None:
    jrn.store.put(b"never")


def _append(jrn: journal.Journal) -> None:
    note(jrn)


def _collect(jrn: journal.Journal) -> None:
    jrn.store.gc(jrn, grace=0, keep_completed=0, force=True)


@pytest.mark.parametrize(("which", "call"), [(0, _append), (1, _put), (1, _collect)])
def test_a_map_that_is_full_at_the_commit(
    tmp_path: Path, which: int, call: Callable[[journal.Journal], None]
) -> None:
    """Case 11: success is told after the commit; it fails there, nothing was written, the handle goes on."""
    with journal.open(tmp_path / "home") as jrn:
        begin(jrn)
        env = environments(jrn)[which]
        right, before = env._env, (list(jrn.store), jrn.head(RUN))
        env._env = FullAtCommit(right, 1)
        with pytest.raises(StoreFull):
            call(jrn)
        env._env = right
        assert (list(jrn.store), jrn.head(RUN)) == before
        goes_on(jrn)
        note(jrn)
        assert_whole(jrn)


@pytest.mark.parametrize("at_commit", [False, True])
def test_a_full_map_in_a_group_commit(tmp_path: Path, at_commit: bool) -> None:
    """Case 11: 16 callers share the transaction that fails; each gets an answer, and then the handle goes on."""
    with map_of(1 << 40 if at_commit else 1 << 20), journal.open(tmp_path / "home") as jrn:
        begin(jrn)
        runs = [UUID(int=n + 2) for n in range(16)]
        for run in runs:
            begin(jrn, run)
        committer, answers = jrn._appender._committer, dict[UUID, str]()

        def work(run: UUID) -> None:
            try:
                jrn.append(run, 1, [DomainEvent("note", {"text": "x" * 1500})] * 60)
            except StoreFull as error:
                answers[run] = error.code
            else:
                answers[run] = "written"

        env = environments(jrn)[0]
        right = env._env
        if at_commit:
            env._env = FullAtCommit(right, 1)
        threads = [threading.Thread(target=work, args=(run,)) for run in runs]
        with committer._leader:  # as if a commit were under way
            for thread in threads:
                thread.start()
            while len(committer._queue) < len(threads):
                threading.Event().wait(0.001)
        for thread in threads:
            thread.join()
        env._env = right
        assert set(answers) == set(runs) and "store_full" in answers.values()
        for run in runs:
            assert jrn.head(run) == (61 if answers[run] == "written" else 1)
        goes_on(jrn)
        note(jrn, runs[0])
        assert_whole(jrn)
