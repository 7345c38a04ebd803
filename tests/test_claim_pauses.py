"""Two recovering processes, one of which is stopped or killed at every point of its work: never do both run a state.

The first resumes an orphaned run and goes on with it. At each step in turn it is stopped (SIGSTOP) or killed. Then its
claim runs out for the second, whose clock is an hour ahead, and the second resumes the run and ends it. Continued, the
first must hear that it was overtaken, whatever it does next, and record nothing more.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from helpers import exit_code, fork_child, say, until_deadline

import journal
from casstore import environment, steps
from journal import (
    AttemptLost,
    Claimed,
    Conflict,
    DomainEvent,
    Fenced,
    InvalidEvent,
    RunCompleted,
    StateCompleted,
    StateEntered,
)

A, B = "race.step.a", "race.step.b"
OVERTAKEN = (AttemptLost, Claimed, Conflict, Fenced, InvalidEvent)
AHEAD_S = 3600.0
ROUNDS = 1000
STEPS_MOST = 80  # more than there are, also of a plan of two states


def orphans(home: Path, ids: Sequence[UUID], plan: list[str]) -> None:
    """Enter the first state of each run and die."""
    jrn = journal.open(home)
    for run_id in ids:
        jrn.start_run("race", manifest={}, context={}, plan=plan, run_id=run_id, max_attempts=99).enter(A)
    os.kill(os.getpid(), signal.SIGKILL)


def recover(home: Path, run_id: UUID, who: str, told: Path, *, ahead_s: float = 0.0) -> None:
    """Resume and go on to the end, or until overtaken; tell of each state that is entered and of each completed."""
    with journal.open(home, clock=lambda: time.time() + ahead_s) as jrn:
        try:
            run = jrn.resume(run_id)
            while run.status is None and run.next is not None:
                with run.enter(run.next) as attempt:
                    say(told, "entered", attempt.state_id, attempt.attempt, who)
                    steps.reach("handler.begun")
                    attempt.fact(f"{attempt.state_id} {attempt.attempt}", who)
                    attempt.emit("worked", {"by": who})
                    steps.reach("handler.done")
                    attempt.complete({"by": who})
                say(told, "completed", attempt.state_id, attempt.attempt, who)
            run.complete()
        except OVERTAKEN as error:
            say(told, "overtaken", type(error).__name__, 0, who)


def at_step(stop: int, sent: signal.Signals, pipe: int) -> None:
    """The process gets a signal at its step number `stop`, and says before what step that is, and whether it holds
    a lock there: then nobody else gets on until it does."""
    count = 0

    def listener(step: str) -> None:
        nonlocal count
        count += 1
        if count == stop:
            locked = any(found._writer is not None for found in environment._open.values())
            os.write(pipe, f"{step} {locked}".encode())
            os.close(pipe)
            os.kill(os.getpid(), sent)

    steps.listen(listener)


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        os.close(ends[0])


def one_round(home: Path, run_id: UUID, stop: int, sent: signal.Signals, told: Path) -> str | None:
    """One run. The name of the step at which the first process was stopped; None where it has not so many."""

    def first_work() -> None:
        at_step(stop, sent, writes)
        recover(home, run_id, "first", told)

    with pipe() as (reads, writes):
        first = fork_child(first_work)
        os.close(writes)
        _, status = os.waitpid(first, os.WUNTRACED)
        step, _, locked = os.read(reads, 100).decode().partition(" ")
    second = fork_child(lambda: recover(home, run_id, "second", told, ahead_s=AHEAD_S))
    if os.WIFSTOPPED(status):
        if locked == "False":
            assert exit_code(second) == 0
        os.kill(first, signal.SIGCONT)
        assert exit_code(first) == 0
        if locked == "True":
            assert exit_code(second) == 0
    else:
        assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if step else 0)
        assert exit_code(second) == 0
    return step or None


def check(jrn: journal.Journal, run_id: UUID, told: Path, plan: list[str]) -> None:
    """Each attempt was entered by one process, each state completed by the one that did, and the run ended."""
    lines = [line.split() for line in told.read_text().splitlines()]
    entered: dict[tuple[str, str], str] = {}
    for what, state_id, attempt, who in lines:
        if what == "entered":
            assert (state_id, attempt) not in entered
            entered[state_id, attempt] = who
    events = jrn.read(run_id)
    assert journal.analyze(events) == jrn.run_state(run_id)
    assert type(events[-1].event) is RunCompleted and events[-1].event.status == "completed"
    owners: list[str] = []
    completed: list[tuple[str, str]] = []
    opened = ("", "")
    for item in events:
        event = item.event
        if isinstance(event, StateEntered):
            opened = (event.state_id, str(event.attempt))
        elif isinstance(event, DomainEvent) and event.name == "worked":
            owners.append(event.payload["by"])
            assert entered[opened] == owners[-1]
        elif isinstance(event, StateCompleted):
            assert jrn.store.get_value(event.context_snapshot_id) == {"by": entered[opened]}
            completed.append(opened)
    assert [state_id for state_id, _ in completed] == plan
    assert owners == sorted(owners)  # once the second went on, nothing more came from the first
    assert {tuple(line) for line in lines if line[0] == "completed"} <= {
        ("completed", *which, entered[which]) for which in completed
    }


def every_stop(home: Path, sent: signal.Signals, plan: list[str]) -> list[str]:
    """A round for each step that there is, and one that comes to its end; the steps."""
    ids = [UUID(int=(1 << 120) + number) for number in range(STEPS_MOST)]
    assert exit_code(fork_child(lambda: orphans(home, ids, plan))) == -signal.SIGKILL
    reached: list[str] = []
    step: str | None = ""
    while step is not None:
        run_id = ids[len(reached)]
        step = one_round(home, run_id, len(reached) + 1, sent, home / str(run_id))
        reached += [] if step is None else [step]
    with journal.open(home) as jrn:
        for run_id in ids[: len(reached) + 1]:
            check(jrn, run_id, home / str(run_id), plan)
        assert jrn.verify() == []
    return reached


@pytest.mark.parametrize("sent", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_an_owner_that_is_stopped_or_killed_at_every_step(tmp_path: Path, sent: signal.Signals) -> None:
    """One round a step: of the resume, of each append, of each put, in the handlers and at the end."""
    reached = every_stop(tmp_path / "home", sent, [A])
    assert {"append.asked", "append.committed", "handler.begun", "handler.done", "append.locked"} <= set(reached)
    assert reached.count("append.committed") >= 6


@pytest.mark.soak
def test_a_thousand_rounds_of_owners_that_are_stopped_and_killed(tmp_path: Path) -> None:
    """At every step again and again, in homes with many runs, a thousand rounds at least."""
    seed, counts, homes = random.randrange(1 << 32), Counter[str](), 0
    print("seed", seed)
    rng = random.Random(seed)
    for _ in until_deadline():
        while True:
            sent = rng.choice([signal.SIGSTOP, signal.SIGKILL])
            counts[sent.name] += len(every_stop(tmp_path / f"home{homes}", sent, [A, B])) + 1
            homes += 1
            if counts.total() >= ROUNDS:
                break
    print(counts)
