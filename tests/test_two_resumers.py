"""Processes that resume the same run at once, and owners that are killed: one goes on, the others hear it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import journal
from journal import errors as problems

A = "flow.step.a"
ROUNDS = 100
CONTEXT = multiprocessing.get_context("spawn")


def _leave_orphans(home: Path, rounds: int, claim: bool, ids: Any) -> None:
    """Enter an attempt in each of many runs, then die as a killed process dies."""
    jrn = journal.open(home)
    found = []
    for _ in range(rounds):
        run = jrn.start_run("flow", manifest={}, context={"n": 0}, plan=[A], max_attempts=9, claim=claim)
        run.enter(A)
        found.append(str(run.run_id))
    ids.send(found)
    os.kill(os.getpid(), signal.SIGKILL)


def _resume_all(home: Path, ids: list[str], claim: bool, barrier: Any, results: Any) -> None:
    """Resume each run when the other process does, enter, complete; send how far it went."""
    outcomes: list[tuple[str, int]] = []
    with journal.open(home) as jrn:
        for run_id in ids:
            barrier.wait(60)
            reached, attempt_number = "nothing", -1
            try:
                run = jrn.resume(run_id, claim=claim)
                attempt = run.enter(A)
                reached, attempt_number = "entered", attempt.attempt
                attempt.complete({"pid": os.getpid()})
                reached = "completed"
            except (problems.Conflict, problems.Claimed, problems.Fenced, problems.InvalidEvent):
                pass
            outcomes.append((reached, attempt_number))
    results.send(outcomes)


def _spawn(target: Any, *arguments: Any) -> tuple[Any, Any]:
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=target, args=(*arguments, there))
    process.start()
    there.close()
    return process, here


@pytest.mark.spec("scenario 27")
@pytest.mark.parametrize("claim", [True, False], ids=["claims", "no_claims"])
def test_two_resume_one_orphan(tmp_path: Path, claim: bool) -> None:
    """In every round exactly one process enters the next attempt, and exactly one completes the state.

    Without claims the slower one may take the faster one's living attempt for an orphan: claims are there to
    prevent that. Even then the stream stays legal and the one that was taken for dead hears it.
    """
    home = tmp_path / "home"
    dying, pipe = _spawn(_leave_orphans, home, ROUNDS, claim)
    ids = pipe.recv()
    dying.join()
    barrier = CONTEXT.Barrier(2)
    racers = [_spawn(_resume_all, home, ids, claim, barrier) for _ in range(2)]
    outcomes = [pipe.recv() for _, pipe in racers]
    for process, _ in racers:
        process.join()
        assert process.exitcode == 0
    with journal.open(home) as jrn:
        for run_id, *pair in zip(ids, *outcomes, strict=True):
            assert [reached for reached, _ in pair].count("completed") == 1, pair
            entered = Counter(number for reached, number in pair if reached != "nothing")
            assert entered[1] == 1 and max(entered.values()) == 1
            if claim:
                assert sum(entered.values()) == 1
            assert journal.analyze(jrn.read(run_id)) == jrn.resume(run_id, dry_run=True).state


def _own(home: Path, run_id: str, ready: Any) -> None:
    """Work on the run until killed."""
    run = journal.open(home).resume(run_id)
    run.enter(A)
    ready.send(run.run_id)
    signal.pause()


@pytest.mark.spec("scenario 28")
def test_a_living_owner_and_a_dead_one(tmp_path: Path) -> None:
    """While the owner lives a resume is Claimed and writes nothing; killed, its run is resumed at once."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        run = jrn.start_run("flow", manifest={}, context={"n": 0}, plan=[A], claim=False)
        owner, pipe = _spawn(_own, home, str(run.run_id))
        pipe.recv()
        head = jrn.head(run.run_id)
        with pytest.raises(problems.Claimed):
            jrn.resume(run.run_id)
        assert jrn.head(run.run_id) == head
        owner.kill()
        owner.join()
        again = jrn.resume(run.run_id)
        with again.enter(A) as attempt:
            assert attempt.attempt == 1
            attempt.complete({"n": 1})
        again.complete()
