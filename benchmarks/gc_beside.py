"""Workload `gc_beside`: what writers notice of a gc. Durable appends and durable puts, a thread each in one process,
in turn without and with a gc in another process, in windows of a few seconds within one round.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, Final

import journal
from benchmarks.event_peers import NAME
from benchmarks.gc_scale import CHUNK, Collecting
from benchmarks.measure import Results, quiet, timed
from benchmarks.options import Options
from benchmarks.peers import run_uuid
from benchmarks.rounds import Samples, run_case

WORKLOAD: Final = "gc_beside"
# (seconds of a window, pairs of windows of a round, dead artifacts)
FULL: Final = (4.0, 4, 120_000)
QUICK: Final = (2.0, 2, 40_000)
LIVE_SHARE: Final = 4  # one live artifact to so many dead ones
AGE_S: Final = 7200
PUT_BYTES: Final = 300
OVER, QUIET, COLLECTING, BETWEEN = range(4)
_SPAWN: Final = multiprocessing.get_context("spawn")
Work = Callable[[str, "Synchronized[int]", Callable[[], None]], dict[str, Any]]


def run(results: Results, options: Options) -> None:
    """The one case."""
    window_s, pairs, dead = QUICK if options.quick else FULL
    measured = partial(measure, window_s=window_s, pairs=pairs, dead=dead)
    rounds = options.rounds_or(5, 3)
    run_case(results, options, WORKLOAD, "an appender and a putter", [Collecting], rounds, measured)


def measure(_: type[Collecting], home: Path, number: int, *, window_s: float, pairs: int, dead: int) -> Samples:
    """Quiet and collecting windows in turn. What a call took counts where it began and ended in the same window."""
    place = str(home / "home")
    fill(place, dead)
    phase: Synchronized[int] = _SPAWN.Value("i", BETWEEN)
    children = [begin(work, place, phase) for work in (write, collect)]
    try:
        for _process, end in children:
            hear(end)
        for pair in range(pairs):
            for kind in (QUIET, COLLECTING) if pair % 2 == 0 else (COLLECTING, QUIET):
                phase.value = kind
                time.sleep(window_s)
                phase.value = BETWEEN
                time.sleep(window_s / 10)  # a gc ends between two batches
        phase.value = OVER
        found = {name: value for _process, end in children for name, value in hear(end).items()}
    finally:
        phase.value = OVER
        for process, end in children:
            end.close()  # whoever still has something to say need not wait for a listener
            process.join()
    if found["removed"] >= dead:
        raise AssertionError("nothing was left to remove before the last window was over")
    return samples(found, window_s * pairs)


def samples(found: dict[str, Any], seconds: float) -> Samples:
    """Both kinds of writers: median and p99 without and with a gc, what it adds to the p99, what it leaves of the
    throughput."""
    made: Samples = {}
    for what in ("append", "put"):
        without, beside = found[f"{what}_{QUIET}"], found[f"{what}_{COLLECTING}"]
        made[f"{what}_s"], made[f"{what}_beside_s"] = without, beside
        made[f"{what}_p99_added_s"] = p99(beside) - p99(without)
        made[f"{what}_share"] = len(beside) / len(without)
    made["removed_per_s"] = found["removed"] / seconds
    return made


def p99(times: list[float]) -> float:
    """What 99 % are not longer than."""
    return statistics.quantiles(times, n=100)[98]


def fill(home: str, dead: int) -> None:
    """Artifacts of two hours ago: those that nothing names, and a live run with its own."""
    with journal.open(home, clock=lambda: time.time() - AGE_S) as jrn:
        run = jrn.start_run("bench", manifest={}, context={}, run_id=run_uuid(0), claim=False)
        for first in range(0, dead, CHUNK):
            jrn.store.put_many([b"%020d " % n * 5 for n in range(first, min(first + CHUNK, dead))])
            live = jrn.store.put_many([b"live %020d" % n for n in range(first, first + CHUNK // LIVE_SHARE)])
            run.emit("live", {"links": jrn.store.put_value(live)})


def begin(work: Work, place: str, phase: Synchronized[int]) -> tuple[BaseProcess, Connection]:
    """A process that works, and where it says first that it is ready, then what it found, or else what went wrong."""
    here, there = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=tell, args=(work, place, phase, there))
    process.start()
    there.close()  # the process holds the only one now: when it dies, that is heard
    return process, here


def tell(work: Work, place: str, phase: Synchronized[int], end: Connection) -> None:
    """The process."""
    try:
        end.send(work(place, phase, partial(end.send, {})))
    except Exception as error:
        end.send({"error": f"{work.__name__}: {type(error).__name__}: {error}"})


def hear(end: Connection) -> dict[str, Any]:
    """What a process says next. Raises: AssertionError with what went wrong there."""
    try:
        found: dict[str, Any] = end.recv()
    except EOFError:
        found = {"error": "a process ended without a word"}
    if "error" in found:
        raise AssertionError(found["error"])
    return found


def write(home: str, phase: Synchronized[int], ready: Callable[[], None]) -> dict[str, Any]:
    """The writers: what each call took, by what it was and when."""
    times: dict[str, list[float]] = {
        f"{what}_{kind}": [] for what in ("append", "put") for kind in (QUIET, COLLECTING, BETWEEN, OVER)
    }
    errors: list[Exception] = []

    def loop(what: str, call: Any) -> None:
        try:
            while (now := phase.value) != OVER:
                took, _ = timed(call)
                if phase.value == now:
                    times[f"{what}_{now}"].append(took)
        except Exception as error:
            errors.append(error)

    with journal.open(home) as jrn:
        own = run_uuid(1)
        jrn.start_run("bench", manifest={}, context={}, run_id=own, claim=False)
        heads = iter(range(jrn.head(own), 1 << 40))
        calls = {
            "append": lambda: jrn.append(own, next(heads), [journal.DomainEvent(NAME, {"number": 1})]),
            "put": lambda: jrn.store.put(os.urandom(PUT_BYTES)),
        }
        with quiet():
            threads = [threading.Thread(target=loop, args=item) for item in calls.items()]
            for thread in threads:
                thread.start()
            ready()
            for thread in threads:
                thread.join()
    if errors:
        raise errors[0]
    return times


def collect(home: str, phase: Synchronized[int], ready: Callable[[], None]) -> dict[str, Any]:
    """The collector: a gc in each of its windows, stopped at the window's end."""
    removed = 0
    with journal.open(home) as jrn:
        ready()
        while phase.value != OVER:
            if phase.value == COLLECTING:
                report = jrn.store.gc(jrn, keep_completed=0, stop=lambda: phase.value != COLLECTING, force=True)
                removed += len(report.removed)
            time.sleep(0.001)
    return {"removed": removed}
