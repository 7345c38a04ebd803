"""What several tests share: processes, stop points, how long the long ones run, a look at all that must be there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

import journal
from casstore import ArtifactId, Store, environment, steps

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


def soak_seeds(check: Callable[[int], None]) -> int:
    """Check ever new seeds for SOAK_SECONDS; how many."""
    count, until = 0, time.monotonic() + SOAK_SECONDS
    while count == 0 or time.monotonic() < until:
        check(1000 + count)
        count += 1
    return count


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own with pipes to its input and output."""
    line = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


_COMPACT = """
import sys
import casstore
from tests.kills import kill_at
exec(sys.argv[3])
reached = kill_at(int(sys.argv[2]), "compact.")
# a clock that stands still: it says where the small artifacts are begun with, and so how many steps there are
with casstore.open(sys.argv[1], clock=lambda: 1_800_000_000.0) as store:
    store.compact()
print(len(reached))
"""


def compacting(home: Path, stop: int, setup: str = "") -> subprocess.Popen[str]:
    """A process that compacts a home and kills itself at the step of this number; with 0 it prints how many there
    are. `setup` is code that it runs first."""
    return python(_COMPACT, home, stop, setup)


def fork_child(work: Callable[[], object]) -> int:
    """The pid of a child of this process that does the work and ends: with 0, or with 1 and a traceback.

    Much quicker than a new interpreter. No journal or store may be open here.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(pid: int) -> int:
    """How a child ended: its exit code, or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def tracing(trace: Callable[..., Any]) -> Iterator[None]:
    """As sys.settrace, for a block."""
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


def say(path: Path, *words: object) -> None:
    """One line in one write: a kill leaves it out or leaves it whole."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    os.close(descriptor)


def forked(call: Callable[..., object], *arguments: object) -> int:
    """Call it in a forked child, which then ends at once; what `os.waitstatus_to_exitcode` says of it.

    0: it returned. 1: it raised, and the traceback is on stderr. -9: it was killed.
    """
    return exit_code(fork_child(lambda: call(*arguments)))


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Stop points are told to this listener inside of the block."""
    steps.listen(listener)
    try:
        yield
    finally:
        steps.listen(None)


@contextmanager
def at_step(step: str, action: Callable[[], object]) -> Iterator[list[str]]:
    """The first time that the stop point is reached the action runs there, itself unobserved; then the list that is
    given holds the step."""
    done: list[str] = []

    def listener(reached: str) -> None:
        if reached == step and not done:
            done.append(step)
            with listening(lambda _: None):
                action()
            steps.listen(listener)

    with listening(listener):
        yield done


def stop_points(call: Callable[[], object]) -> list[str]:
    """The stop points that a call goes through, in order."""
    found: list[str] = []
    with listening(found.append):
        call()
    return found


def kill_at(number: int, call: Callable[[], object]) -> Callable[[], None]:
    """The call, by a process that is killed at its n-th stop point (from 1)."""

    def run() -> None:
        seen: Counter[str] = Counter()

        def listener(_: str) -> None:
            seen["steps"] += 1
            if seen["steps"] == number:
                os.kill(os.getpid(), signal.SIGKILL)

        with listening(listener):
            call()

    return run


@contextmanager
def map_of(size: int) -> Iterator[None]:
    """Environments that are opened meanwhile have a map of that size."""
    options = environment.open_environment.__kwdefaults__
    assert options is not None
    before = options["map_size"]
    options["map_size"] = size
    try:
        yield
    finally:
        options["map_size"] = before


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
