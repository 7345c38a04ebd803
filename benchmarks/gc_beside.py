"""Workload `gc_beside`: what writers notice of a gc. Durable appends and durable puts, a thread each in one process,
in turn without and with a gc in another process, in windows of a few seconds within one round.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import threading
import time
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
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
    ready = [_SPAWN.Event() for _ in range(2)]
    queue: Any = _SPAWN.Queue()
    processes = [
        _SPAWN.Process(target=write, args=(place, phase, ready[0], queue)),
        _SPAWN.Process(target=collect, args=(place, phase, ready[1], queue)),
    ]
    for process in processes:
        process.start()
    for event in ready:
        event.wait()
    for pair in range(pairs):
        for kind in (QUIET, COLLECTING) if pair % 2 == 0 else (COLLECTING, QUIET):
            phase.value = kind
            time.sleep(window_s)
            phase.value = BETWEEN
            time.sleep(window_s / 10)  # a gc ends between two batches
    phase.value = OVER
    told = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    found: dict[str, Any] = {name: value for part in told for name, value in part.items()}
    if "error" in found:
        raise AssertionError(found["error"])
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


def write(home: str, phase: Synchronized[int], ready: Event, queue: Any) -> None:
    """The writers' process."""
    times: dict[str, list[float]] = {
        f"{what}_{kind}": [] for what in ("append", "put") for kind in (QUIET, COLLECTING, BETWEEN, OVER)
    }
    errors: list[str] = []

    def loop(what: str, call: Any) -> None:
        try:
            while (now := phase.value) != OVER:
                took, _ = timed(call)
                if phase.value == now:
                    times[f"{what}_{now}"].append(took)
        except Exception as error:
            errors.append(f"{what}: {type(error).__name__}: {error}")

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
            ready.set()
            for thread in threads:
                thread.join()
    queue.put({"error": errors[0]} if errors else times)


def collect(home: str, phase: Synchronized[int], ready: Event, queue: Any) -> None:
    """The collector's process: a gc in each of its windows, stopped at the window's end."""
    removed = 0
    try:
        with journal.open(home) as jrn:
            ready.set()
            while phase.value != OVER:
                if phase.value == COLLECTING:
                    report = jrn.store.gc(jrn, keep_completed=0, stop=lambda: phase.value != COLLECTING, force=True)
                    removed += len(report.removed)
                time.sleep(0.001)
    except Exception as error:
        queue.put({"error": f"gc: {type(error).__name__}: {error}"})
        return
    queue.put({"removed": removed})
