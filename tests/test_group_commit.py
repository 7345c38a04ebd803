"""Callers that append at the same time share commits: nobody waits for one after the other. Counts, no times."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import pytest

import journal
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

    def drained(self: Committer) -> None:
        waiting = self._queue.copy()
        drain(self)
        passed_over.extend(pending for pending in waiting if not pending.done.is_set())

    with journal.open(tmp_path) as jrn:
        runs = runs_of(jrn)
        monkeypatch.setattr(Committer, "_drain", drained)

        def append(run: UUID) -> list[int]:
            return [jrn.append(run, 2 + n, [journal.DomainEvent("tick", {"n": n})]).last_seq for n in range(EACH)]

        assert len(at_once(append, runs)) == CALLERS * EACH
        assert not passed_over
