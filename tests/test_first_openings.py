"""A home and its journal opened for the first time: by several processes at once, or by one that is killed at it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers import exit_code, fork_child, python, tracing

import casstore
import journal
from casstore import environment

MAKING = ("home.py", "opening.py", "lmdb_tables.py", "generations.py", "table_backend.py", "log.py", "environment.py")
OTHER = """
import sys
import journal
for line in sys.stdin:
    with journal.open(line.strip()) as jrn:
        jrn.store.pin("theirs", jrn.store.put(b"theirs"))
    print("done", flush=True)
"""


@contextmanager
def at_line(number: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Do something before the line of that number of all that are run in what makes homes; counts them."""
    count = [0]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(MAKING):
            return None
        if event == "line":
            count[0] += 1
            if count[0] == number:
                sys.settrace(None)
                act()
        return trace

    with tracing(trace):
        yield count


def lines_of(home: Path) -> int:
    with at_line(0, lambda: None) as count:
        journal.open(home).close()
    shutil.rmtree(home)
    return count[0]


@pytest.mark.parametrize("read_only", [False, True])
def test_another_process_makes_it_meanwhile(tmp_path: Path, read_only: bool) -> None:
    """All of it, between any two lines of this one: both find one home, and what the other put; who only reads may come
    too early, and is told so."""
    home, other = tmp_path / "home", python(OTHER)
    assert other.stdin is not None and other.stdout is not None
    lines, early, made = lines_of(home), 0, 0

    def make() -> None:
        if any(found._mutex.locked() for found in environment._open.values()):
            return  # it would wait for our transaction
        assert other.stdin is not None and other.stdout is not None
        print(home, file=other.stdin, flush=True)
        assert other.stdout.readline() == "done\n"

    for number in range(1, 40 if read_only else lines + 1, 1 if read_only else max(lines // 70, 1)):
        try:
            with at_line(number, make) as count, journal.open(home, read_only=read_only) as jrn:
                for name in jrn.store.pins().values():
                    assert jrn.store.get(name) == b"theirs"
                made += count[0] >= number and bool(jrn.store.pins())
        except casstore.StoreError as error:
            assert read_only and (isinstance(error, casstore.NotAStore) or "there is no journal" in str(error))
            early += 1
        if home.exists():
            with journal.open(home) as jrn:
                assert jrn.store.verify().findings == ()
            assert sorted(os.listdir(home)) == ["FORMAT", "journal", "store"]
            assert sorted(os.listdir(home / "store")) == ["1", "CURRENT"]
            shutil.rmtree(home)
    assert early and made if read_only else made > 30
    other.communicate()
    assert other.returncode == 0


def test_several_processes_at_the_same_moment(tmp_path: Path) -> None:
    """None of them refuses."""
    others = [python(OTHER) for _ in range(4)]
    for round_ in range(15):
        for other in others:
            print(tmp_path / str(round_), file=other.stdin, flush=True)
        assert [other.stdout.readline() for other in others if other.stdout] == ["done\n"] * len(others)
    for other in others:
        other.communicate()
        assert other.returncode == 0


def test_killed_while_it_is_made(tmp_path: Path) -> None:
    """At any line: the next one makes it, or goes on."""
    home = tmp_path / "home"
    lines = lines_of(home)

    def child(number: int) -> None:
        with at_line(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            journal.open(home).close()

    for number in range(1, lines + 1, max(lines // 50, 1)):
        code = exit_code(fork_child(lambda number=number: child(number)))  # type: ignore[misc]
        assert code == -signal.SIGKILL or (code == 0 and number > lines * 0.9)  # the child may take some lines less
        with journal.open(home) as jrn:
            name = jrn.store.put(b"ours")
            jrn.start_run("op", manifest={}, context={}).release()
        with journal.open(home, create=False) as jrn:
            assert jrn.store.get(name) == b"ours" and len([*jrn.runs()]) == 1 and jrn.store.verify().findings == ()
        shutil.rmtree(home)
