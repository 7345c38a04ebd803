"""Callers that append at the same time share commits: nobody waits for one after the other. Counts, no times."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import pytest

import casstore
import journal
from casstore import ArtifactId
from casstore.rows import IX
from journal.appends import Append, request_of
from journal.commits import Committer, Pending
from tests.helpers import at_step

CALLERS = 64
EACH = 10


def runs_of(jrn: journal.Journal) -> list[UUID]:
    """A run for each caller."""
    return [
        jrn.start_run("op", manifest={}, context={}, run_id=uuid4(), claim=False).run_id for _ in range(CALLERS)
    ]  # fmt: skip


def at_once(work: Callable[[UUID], list[int]], runs: list[UUID]) -> list[int]:
    """What a thread for each run counts, all of them together, in order."""
    with ThreadPoolExecutor(CALLERS) as threads:
        return sorted(count for counts in threads.map(work, runs) for count in counts)


def test_callers_that_come_during_a_commit_all_wait_for_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first commit is held until all the others have asked. Between the call of each and its return are at most
    that one and its own."""
    asked, submit = threading.Semaphore(0), Committer.submit

    def submitted(self: Committer, pending: Pending) -> None:
        submit(self, pending)
        asked.release()

    def until_all_asked() -> None:
        for _ in range(CALLERS):
            assert asked.acquire(timeout=60)

    with journal.open(tmp_path) as jrn:
        runs = runs_of(jrn)
        monkeypatch.setattr(Committer, "submit", submitted)

        def append(run: UUID) -> list[int]:
            before = jrn._backend.version()
            jrn.append(run, 2, [journal.DomainEvent("tick", {})])
            return [jrn._backend.version() - before]

        with at_step("append.synced", until_all_asked) as held:
            waited = at_once(append, runs)
        assert held
        assert waited[len(waited) * 99 // 100] < 10
        assert waited[-1] <= 2


def test_a_commit_takes_along_all_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loose, in whatever order: so that nobody waits for more than the commit that is under way and its own."""
    drain = Committer._drain
    passed_over: list[Pending] = []

    def drained(self: Committer) -> int:
        waiting = self._queue.copy()
        awaited = drain(self)
        passed_over.extend(pending for pending in waiting if not pending.done)
        return awaited

    with journal.open(tmp_path) as jrn:
        runs = runs_of(jrn)
        monkeypatch.setattr(Committer, "_drain", drained)

        def append(run: UUID) -> list[int]:
            return [jrn.append(run, 2 + n, [journal.DomainEvent("tick", {"n": n})]).last_seq for n in range(EACH)]

        assert len(at_once(append, runs)) == CALLERS * EACH
        assert not passed_over


class Groups:
    """Commits that are held until they are let go: how large each group was, and the thread that committed it."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: list[str] = []
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.committer = Committer(self._commit)

    def _commit(self, group: Sequence[Pending]) -> None:
        self.sizes.append(len(group))
        self.threads.append(threading.current_thread().name)
        self.begun.release()
        assert self.go.acquire(timeout=60)

    def call(self, count: int) -> list[threading.Thread]:
        """So many callers, each with a thread of its own; all have queued their append on return."""
        queued = threading.Semaphore(0)

        def one() -> None:
            pending = Pending(1)
            pending.awaited = True  # as `finish` says a little later
            self.committer.submit(pending)
            queued.release()
            self.committer.finish(pending)

        callers = [threading.Thread(target=one, name="caller") for _ in range(count)]
        for caller in callers:
            caller.start()
            assert queued.acquire(timeout=60)
        return callers

    def commit(self) -> None:
        """Let one commit go that has begun."""
        assert self.begun.acquire(timeout=60)
        self.go.release()


def held_together(groups: Groups) -> None:
    """One caller commits alone, and meanwhile three have come: they are one group."""
    callers = groups.call(1)
    assert groups.begun.acquire(timeout=60)
    callers += groups.call(3)
    groups.go.release()
    groups.commit()
    for caller in callers:
        caller.join(60)
    assert groups.sizes == [1, 3]
    assert groups.threads == ["caller", "journal-commit"]


def test_the_next_commit_waits_for_as_many_callers_as_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("journal.commits.PATIENCE", 1e9)
    monkeypatch.setattr("journal.commits.PATIENCE_S", 60.0)
    groups = Groups()
    held_together(groups)
    callers = groups.call(1) + groups.call(1) + groups.call(1)  # not the first of them, then the others
    groups.commit()
    for caller in callers:
        caller.join(60)
    assert groups.sizes == [1, 3, 3]
    groups.committer.close()


def test_those_who_came_during_a_commit_are_waited_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """So two halves that take turns become one."""
    monkeypatch.setattr("journal.commits.PATIENCE", 1e9)
    monkeypatch.setattr("journal.commits.PATIENCE_S", 60.0)
    groups = Groups()
    callers = groups.call(1)
    assert groups.begun.acquire(timeout=60)
    callers += groups.call(2)
    groups.go.release()
    assert groups.begun.acquire(timeout=60)  # of the two
    callers += groups.call(2)
    groups.go.release()
    for caller in callers[1:3]:
        caller.join(60)
    callers += groups.call(2)  # the two come again
    groups.commit()
    for caller in callers:
        caller.join(60)
    assert groups.sizes == [1, 2, 4]
    groups.committer.close()


def test_nobody_waits_for_appends_that_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `wait=False` a program goes on at once: its next append is no answer to the commit."""
    monkeypatch.setattr("journal.commits.PATIENCE", 1e9)
    monkeypatch.setattr("journal.commits.PATIENCE_S", 600.0)
    groups = Groups()
    for count in (2, 1):
        for _ in range(count):
            groups.committer.submit(Pending(1))
        groups.committer.start_thread()
        groups.commit()
    groups.committer.close()
    assert sum(groups.sizes) == 3


def test_a_caller_that_is_left_alone_commits_by_itself_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("journal.commits.PATIENCE_S", 0.0)
    groups = Groups()
    held_together(groups)
    for _ in range(2):  # the first is still committed by the thread, which sees that it is alone
        callers = groups.call(1)
        groups.commit()
        callers[0].join(60)
    assert groups.sizes == [1, 3, 1, 1]
    assert groups.threads == ["caller", "journal-commit", "journal-commit", "caller"]
    groups.committer.close()


def group_of(jrn: journal.Journal, wanted: Sequence[tuple[UUID, int, journal.Event]]) -> list[Append]:
    """One group, committed: an append of an event for each (run, expected_seq, event)."""
    appends = [Append([request_of(run, expected, [event])], None, None) for run, expected, event in wanted]
    jrn._appender._commit_group(appends)
    return appends


def numbers(jrn: journal.Journal) -> list[int]:
    """Those of all runs, newest first."""
    with jrn._backend.look() as look:
        return list(look.numbers())


def test_a_new_run_that_came_with_a_second_append_has_a_number_of_its_own(tmp_path: Path) -> None:
    """The second is admitted under the lock, for it goes on with the run of the first, and begins a run as well; the
    third begins one too, and was admitted before, as the only one that does."""
    with journal.open(tmp_path) as jrn:
        run, there = jrn.start_run("op", manifest={}, context={}, claim=False).run_id, jrn.store.put(b"x")
        tick = journal.DomainEvent("tick", {})
        started = journal.RunStarted(op_id="op", manifest_id=there, initial_snapshot_id=there)
        beside, other = uuid4(), uuid4()
        appends = [
            Append([request_of(run, 2, [tick])], None, None),
            Append([request_of(run, 3, [tick]), request_of(beside, 0, [started])], None, None),
            Append([request_of(other, 0, [started])], None, None),
        ]
        jrn._appender._commit_group(appends)
        assert [append.error for append in appends] == [None] * 3
        assert [row.run_id for row in jrn.runs()] == [other, beside, run]
        assert numbers(jrn) == [3, 2, 1]
        assert not list(jrn.verify())


def test_a_new_run_that_is_refused_in_a_group_takes_no_number_from_the_next(tmp_path: Path) -> None:
    """They were admitted before the lock, the second as the run after the first."""
    with journal.open(tmp_path) as jrn:
        there = jrn.store.put(b"x")
        missing = journal.RunStarted(op_id="op", manifest_id=ArtifactId(bytes(32)), initial_snapshot_id=there)
        started = journal.RunStarted(op_id="op", manifest_id=there, initial_snapshot_id=there)
        first, second, third = uuid4(), uuid4(), uuid4()
        refused, one, other = group_of(jrn, [(first, 0, missing), (second, 0, started), (third, 0, started)])
        assert isinstance(refused.error, casstore.MissingArtifact)
        assert one.error is None and other.error is None
        assert [run.run_id for run in jrn.runs()] == [third, second]
        assert numbers(jrn) == [2, 1]
        assert not list(jrn.verify())


def test_appends_to_one_run_in_a_group_stand_one_after_the_other(tmp_path: Path) -> None:
    """The second is admitted under the lock, and the third, of another run, from before it."""
    with journal.open(tmp_path) as jrn:
        run, other = (jrn.start_run("op", manifest={}, context={}, claim=False).run_id for _ in range(2))
        tick = journal.DomainEvent("tick", {})
        done = group_of(jrn, [(run, 2, tick), (run, 3, tick), (other, 2, tick), (run, 3, tick)])
        assert [append.error for append in done[:3]] == [None] * 3
        assert isinstance(done[3].error, journal.Conflict)
        assert (jrn.head(run), jrn.head(other)) == (4, 3)
        assert not list(jrn.verify())


def test_a_row_of_the_store_that_cannot_be_read_refuses_only_who_names_it(tmp_path: Path) -> None:
    """All of a group look at the store at once, and one of them names what has a damaged row."""
    with journal.open(tmp_path) as jrn:
        run, other, third = (jrn.start_run("op", manifest={}, context={}, claim=False).run_id for _ in range(3))
        damaged, good = jrn.store.put(b"damaged"), jrn.store.put(b"good")
        with jrn.store._backend._tables.write() as txn:  # type: ignore[attr-defined]
            txn.put(IX, damaged.digest, b"short")
        names = [journal.DomainEvent("names", {}, name) for name in (good, damaged, good)]
        first, refused, last = group_of(jrn, [(run, 2, names[0]), (other, 2, names[1]), (third, 2, names[2])])
        assert isinstance(refused.error, casstore.DamagedStore)
        assert first.error is None and last.error is None
        assert (jrn.head(run), jrn.head(other), jrn.head(third)) == (3, 2, 3)


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "1 // 0"])
def test_what_nobody_waited_for_is_committed_at_exit(tmp_path: Path, end: str) -> None:
    """However the interpreter ends, but for a kill: the journal need not be closed, nor a result asked for."""
    code = f"""
import sys, uuid
import journal
from journal import DomainEvent
jrn = journal.open(sys.argv[1])
run = jrn.start_run("op", manifest={{}}, context={{}}, claim=False)
for n in range(200):
    jrn.append(run.run_id, run.head + n, [DomainEvent("note", {{"n": n}})], wait=False)
{end}
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "home"], capture_output=True, check=False)
    assert done.returncode == {"pass": 0, "sys.exit(3)": 3, "1 // 0": 1}[end]
    assert done.stderr.count(b"Traceback") == (end == "1 // 0")
    with journal.open(tmp_path / "home") as jrn:
        (row,) = jrn.runs()
        assert row.head == 202
