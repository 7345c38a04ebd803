"""Workload `runs`: many runs at once, a thread each, every step durable before the next of its run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import flushing
from benchmarks.data import growing, size_name
from benchmarks.measure import Results, quiet
from benchmarks.options import Options
from benchmarks.peers import Peer
from benchmarks.rounds import Samples, run_case
from benchmarks.steps import PEERS, recover, waited

WORKLOAD: Final = "runs"
# runs: (steps of each, the same of the quick mode)
RUNS: Final = {1: (200, 80), 8: (50, 20), 64: (20, 8)}
SIZES: Final = (18 << 10, 118 << 10)


def run(results: Results, options: Options) -> None:
    """All sizes and numbers of runs, all peers, in turn."""
    for size in SIZES:
        for runs, (full, quick) in RUNS.items():
            measure = partial(measure_runs, runs=runs, size=size, steps=quick if options.quick else full)
            case = f"{runs} x {size_name(size)}"
            run_case(results, options, WORKLOAD, case, PEERS, options.rounds_or(5, 3), measure)


def measure_runs(peer: type[Peer], home: Path, number: int, *, runs: int, size: int, steps: int) -> Samples:
    """One peer, once: steps of all runs a second, and how long each of them waited. Two runs are read back."""
    context, messages = growing(size, steps, seed=7 + number)
    contexts = [{**deepcopy(context), "run": own} for own in range(runs)]  # no two runs have the same bytes
    took_s: list[list[float]] = [[] for _ in range(runs)]
    subject = peer(home)

    def steps_of(own: int) -> None:
        subject.work(own, waited(contexts[own], messages, took_s[own]))

    with quiet():
        done = together(runs, lambda own: subject.begin(own, contexts[own]), steps_of, partial(peer.cpu_s, home))
    counted: Samples = {} if done.flushes is None else {"flushes": done.flushes / (runs * steps)}
    subject.close()
    for own in {0, runs - 1}:
        recover(peer, home, contexts[own], own)
    return {"steps_per_s": runs * steps / done.took_s, "step_s": [one for each in took_s for one in each],
            "cpu_s": done.cpu_s / (runs * steps), **counted}  # fmt: skip


class Together(NamedTuple):
    """Seconds until the last thread was done, those of the processor, and the flushes meanwhile (None: not counted)."""

    took_s: float
    cpu_s: float
    flushes: int | None


def together(
    count: int, begin: Callable[[int], None], work: Callable[[int], None],
    cpu_s: Callable[[], float] = time.process_time,
) -> Together:  # fmt: skip
    """Threads that begin, wait for each other and then work at the same time. Raises: what the first of them raised."""
    failures: list[BaseException] = []
    before: list[Together] = []

    def mark() -> None:
        before.append(now())

    def now() -> Together:
        return Together(time.perf_counter(), cpu_s(), flushing.total())

    barrier = threading.Barrier(count, action=mark)

    def one(own: int) -> None:
        try:
            begin(own)
            barrier.wait()
            work(own)
        except threading.BrokenBarrierError:
            return
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=one, args=(own,), daemon=True) for own in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    (begun,), ended = before, now()
    flushes = None if begun.flushes is None else (ended.flushes or 0) - begun.flushes
    return Together(ended.took_s - begun.took_s, ended.cpu_s - begun.cpu_s, flushes)
