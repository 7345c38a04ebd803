"""Workload `growth`: what a step costs late in a run, as the run gets ten and a hundred times longer.

The context is a window: a message comes in and the oldest one goes, so that its size stays and only the run grows.
"""

from __future__ import annotations

import random
import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import flushing
from benchmarks.data import Context, advance, growing, message, size_name
from benchmarks.measure import Results, quiet
from benchmarks.options import Options
from benchmarks.peers import Peer, Steps
from benchmarks.rounds import Samples, run_case
from benchmarks.steps import PEERS, RECOVERIES, recover

WORKLOAD: Final = "growth"
SIZE: Final = 18 << 10
LENGTHS: Final = (100, 1_000, 10_000)
QUICK_LENGTHS: Final = (100, 1_000)
LAST: Final = 100  # steps that are timed: the last ones


def run(results: Results, options: Options) -> None:
    """Every length, all peers, in turn."""
    for length in QUICK_LENGTHS if options.quick else LENGTHS:
        case = f"{size_name(SIZE)}, the last of {length:,} steps"
        run_case(results, options, WORKLOAD, case, PEERS, options.rounds_or(3, 1), partial(measure, length=length))


class Window:
    """The steps of a run of that length."""

    def __init__(self, length: int, seed: int) -> None:
        self.context, _ = growing(SIZE, 0, seed)
        self.length, self._random = length, random.Random(seed)
        self.samples: list[float] = []
        self.flushes: int | None = None  # before the last ones

    def steps(self) -> Steps:
        """For `Peer.work`."""
        for step in range(self.length):
            advance(self.context, step, message(self._random))
            del self.context["messages"][0]
            if step == self.length - LAST:
                self.flushes = flushing.total()
            begun = time.perf_counter()
            yield step, self.context
            if step >= self.length - LAST:
                self.samples.append(time.perf_counter() - begun)


def measure(peer: type[Peer], home: Path, number: int, *, length: int) -> Samples:
    """One peer, once: the last steps of a run, and what all of it takes on disk by the step."""
    window = Window(length, seed=7 + number)
    subject = peer(home)
    subject.begin(0, deepcopy(window.context))
    with quiet():
        subject.work(0, window.steps())
    counted: Samples = {}
    if window.flushes is not None:
        counted = {"flushes": ((flushing.total() or 0) - window.flushes) / LAST}
    subject.close()
    expected: Context = window.context
    recovered = [recover(peer, home, expected) for _ in range(RECOVERIES)]
    return {"step_s": window.samples, "disk_bytes": peer.disk_bytes(home) / length, "recover_s": recovered, **counted}
