"""A run to look at and to watch, and the list of runs that nobody went on with."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import journal
from casstore.testing import FakeClock
from journal import DomainEvent
from journal.testing import memory_journal
from tests.command_line import casstore as command_line

A, B = "flow.step.a", "flow.step.b"
ONE, TWO, THREE = UUID(int=0xA1 << 120), UUID(int=0xA2 << 120), UUID(int=0xA3 << 120)


def test_it_shows_what_the_run_is_now() -> None:
    """Each call looks again; values are fresh objects."""
    with memory_journal() as jrn:
        run = jrn.start_run("flow", manifest={}, context={"n": [0]}, plan=[A, B], run_id=ONE)
        seen = jrn.run(str(ONE))
        assert (seen.run_id, seen.status, seen.context(), seen.facts()) == (ONE, None, {"n": [0]}, {})
        with run.enter(A) as attempt:
            attempt.fact("k", {"price": 17})
            attempt.complete({"n": [1]})
        assert seen.context() == {"n": [1]} and seen.facts() == {"k": {"price": 17}}
        seen.context()["n"].append("mine")
        assert seen.context() == {"n": [1]}
        assert seen.state == jrn.run_state(ONE) and seen.events() == jrn.read(ONE)
        assert seen.events(2, 3) == jrn.read(ONE, 2, 3)
        jrn.cancel(ONE)
        assert seen.status == "cancelled"


def test_an_unknown_or_forgotten_run() -> None:
    """It is not found; and a new run of the id is another one."""
    with memory_journal() as jrn:
        with pytest.raises(journal.RunNotFound):
            jrn.run(ONE)
        jrn.start_run("flow", manifest={}, context={}, run_id=ONE)
        seen = jrn.run(ONE)
        jrn.cancel(ONE)
        jrn.forget(ONE)
        jrn.start_run("flow", manifest={}, context={}, run_id=ONE)
        calls: list[Any] = [lambda: seen.state, seen.events, seen.facts, seen.context, seen.watch]
        for call in calls:
            with pytest.raises(journal.RunNotFound):
                call()
        assert jrn.run(ONE).status is None


def test_watching_from_now_on() -> None:
    """Only this run's events, those after the call, up to its end."""
    with memory_journal() as jrn:
        run = jrn.start_run("flow", manifest={}, context={}, run_id=ONE)
        watched = jrn.run(ONE).watch()
        run.emit("note", {"n": 1})
        jrn.start_run("flow", manifest={}, context={}, run_id=TWO)
        run.emit("note", {"n": 2})
        run.complete()
        assert list(watched) == jrn.read(ONE, 3)
        assert list(jrn.run(ONE).watch()) == []
        assert list(jrn.run(ONE).watch(after=3)) == jrn.read(ONE, 4)
        assert list(jrn.run(ONE).watch(after=0)) == jrn.read(ONE)


def test_watching_another_process(tmp_path: Path) -> None:
    """It waits for events that others append, and ends with the run, without a timeout."""
    code = """
import sys, journal
with journal.open(sys.argv[1]) as jrn:
    run = jrn.resume(sys.argv[2])
    for n in range(5):
        run.emit("note", {"n": n})
        sys.stdin.readline()
    run.complete()
"""
    with journal.open(tmp_path / "home") as jrn:
        jrn.start_run("flow", manifest={}, context={}, run_id=ONE).release()
        watched = jrn.run(ONE).watch()
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "home"), str(ONE)], stdin=subprocess.PIPE, text=True
        )
        assert child.stdin is not None
        names = []
        for item in watched:
            names.append(getattr(item.event, "name", "end"))
            if names[-1] == "note":
                child.stdin.write("\n")
                child.stdin.flush()
        child.stdin.close()
        assert child.wait() == 0 and names == ["note"] * 5 + ["end"]


def test_a_timeout_is_about_this_run() -> None:
    """Events of others do not keep a watcher waiting; 0 looks once."""
    with memory_journal() as jrn:
        run = jrn.start_run("flow", manifest={}, context={}, run_id=ONE)
        jrn.start_run("flow", manifest={}, context={}, run_id=TWO, claim=False)
        assert list(jrn.run(ONE).watch(0)) == []
        run.emit("note")
        assert [item.seq for item in jrn.run(ONE).watch(0, after=2)] == [3]
        stop = threading.Event()

        def busy() -> None:
            while not stop.is_set():
                jrn.append(TWO, jrn.head(TWO), [DomainEvent("note")])

        thread = threading.Thread(target=busy)
        thread.start()
        try:
            assert list(jrn.run(ONE).watch(0.05)) == []
        finally:
            stop.set()
            thread.join()
        for wrong in (-1, True, float("nan")):
            with pytest.raises(journal.InvalidArgument):
                jrn.run(ONE).watch(wrong)


def test_stale_runs() -> None:
    """Live ones whose last event is so old; a claim is no event."""
    clock = FakeClock()
    with memory_journal(clock=clock) as jrn:
        for run_id in (ONE, TWO, THREE):
            jrn.start_run("flow", manifest={}, context={}, run_id=run_id, claim=False)
        jrn.cancel(THREE)
        clock.advance(100)
        jrn.append(TWO, 2, [DomainEvent("note")])
        jrn.claim(ONE, "somebody")
        assert [row.run_id for row in jrn.runs(stale=100)] == [ONE]
        assert [row.run_id for row in jrn.runs(stale=100.001)] == []
        assert [row.run_id for row in jrn.runs(status="live", stale=0)] == [TWO, ONE]
        assert [row.run_id for row in jrn.runs(stale=0, limit=1)] == [TWO]
        assert list(jrn.runs(stale=0, op_id="other")) == list(jrn.runs(stale=0, status="failed")) == []
        for wrong in (-1, "30d", True):
            with pytest.raises(journal.InvalidArgument):
                jrn.runs(stale=wrong)  # type: ignore[arg-type]


def test_stale_runs_on_the_command_line(tmp_path: Path) -> None:
    """`--stale 30d`; about live runs only."""
    with journal.open(tmp_path / "home", clock=FakeClock(1_000.0)) as jrn:
        jrn.start_run("flow", manifest={}, context={}, run_id=ONE, claim=False)
    with journal.open(tmp_path / "home") as jrn:
        jrn.start_run("flow", manifest={}, context={}, run_id=TWO, claim=False)

    def run(*line: str) -> tuple[int, list[str]]:
        done = command_line("runs", *line, "--json", home=tmp_path / "home")
        return done.code, [json.loads(shown).get("run_id") for shown in done.out.splitlines()]

    assert run("--stale", "30d") == (0, [str(ONE)])
    assert run("--stale", "0s", "--status", "live") == (0, [str(TWO), str(ONE)])
    assert run("--stale", "30d", "--status", "failed")[0] == 2
