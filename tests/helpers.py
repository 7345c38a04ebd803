"""What several of the long tests share: how long they run, processes, and a look at everything that must be there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

import journal
from casstore import ArtifactId, Store

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))

BRIEF = settings(
    max_examples=25, stateful_step_count=30, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def soak_machine(machine: type[RuleBasedStateMachine]) -> int:
    """Run a state machine with ever new examples for SOAK_SECONDS; the number of rounds of 20 examples."""
    long = settings(BRIEF, max_examples=20, stateful_step_count=60, derandomize=False, database=None)
    rounds, until = 0, time.monotonic() + SOAK_SECONDS
    while rounds == 0 or time.monotonic() < until:
        run_state_machine_as_test(machine, settings=long)
        rounds += 1
    return rounds


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own with pipes to its input and output."""
    line = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def until_deadline(seconds: float = SOAK_SECONDS) -> Iterator[int]:
    """Count rounds from 0 until the time is over; one round at least."""
    until, count = time.monotonic() + seconds, 0
    while count == 0 or time.monotonic() < until:
        yield count
        count += 1


def closure(store: Store, ids: Any) -> set[ArtifactId]:
    """The artifacts and all that they link to; each of them is there."""
    todo, seen = list(ids), set[ArtifactId]()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(store.info(name).links)
    return seen


def live_names(jrn: journal.Journal) -> set[ArtifactId]:
    """What events of live runs name."""
    return {
        name
        for row in jrn.runs(status="live")
        for item in jrn.read(row.run_id)
        for _, name in journal.links(item.event)
    }


def assert_whole(jrn: journal.Journal) -> None:
    """Nothing is damaged, rows say what events say, and all that live runs need is there and reads."""
    assert jrn.verify() == []
    assert jrn.store.verify().findings == ()
    for row in jrn.runs():
        assert jrn.run_state(row.run_id) == journal.analyze(jrn.read(row.run_id))
    for name in closure(jrn.store, live_names(jrn)):
        assert ArtifactId.of(jrn.store.get(name)) == name


@contextmanager
def small_disk(place: Path, size_mib: int) -> Iterator[Path]:
    """A file system of that size; the test is skipped where none can be mounted."""
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
