"""Workload `gc_scale`: how long a gc takes over many small artifacts, half of them dead, and how much memory: alone,
nobody else writes.

Live artifacts are linked to, a thousand at a time, by values that a live run names. Memory is the anonymous memory of
the process that collects. Then what a gc costs that has nothing to do, with nothing new and with a thousand new
artifacts that are needed, and what a full mark that finds nothing would cost in its place.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import casstore
from benchmarks.measure import OURS, Results, timed
from benchmarks.memory import MemoryWatch
from benchmarks.options import Options
from benchmarks.rounds import Samples, run_case
from casstore.testing import FakeRoots

WORKLOAD: Final = "gc_scale"
SIZES: Final = (10_000, 100_000, 1_000_000)
QUICK_SIZES: Final = (10_000, 100_000)
LARGE: Final = 10_000_000
NEW: Final = 1000
CHUNK: Final = 2000
SHORT_GCS: Final = 5
_SPAWN: Final = multiprocessing.get_context("spawn")


class Collecting:
    """Nothing else collects like this."""

    name: ClassVar[str] = OURS
    requires: ClassVar[tuple[str, ...]] = ()


def run(results: Results, options: Options) -> None:
    """Each size, the smaller ones more often."""
    sizes = QUICK_SIZES if options.quick else (*SIZES, LARGE) if options.large else SIZES
    for size in sizes:
        rounds = options.rounds_or(3 if size < LARGE else 1, 3)
        run_case(results, options, WORKLOAD, f"{size:,} artifacts", [Collecting], rounds, partial(measure, size=size))


def measure(_: type[Collecting], home: Path, number: int, *, size: int) -> Samples:
    """One home of that size, filled by one process and collected by another."""
    return in_a_process(collect, str(home), in_a_process(fill, str(home), size))


def fill(home: str, count: int) -> list[str]:
    """`count` artifacts of about 100 bytes; every second one is linked to by a value. The values' ids."""
    names = []
    with casstore.open(home) as store:
        for first in range(0, count, CHUNK):
            ids = store.put_many([b"%020d " % n * 5 for n in range(first, min(first + CHUNK, count))])
            names.append(str(store.put_value(ids[::2], durable=False)))
        store.sync()
    return names


def collect(home: str, names: list[str]) -> Samples:
    """One gc without grace, and those with nothing to do."""
    with casstore.open(home) as store:
        roots = FakeRoots(store)
        roots.append("run", *map(casstore.ArtifactId.parse, names))
        before = len(store)
        watch, cpu = MemoryWatch(), time.process_time()
        took, report = timed(partial(store.gc, roots, grace=0))
        cpu = time.process_time() - cpu
        peak, _ = watch.stop()
        if len(report.removed) != before - len(store) or abs(2 * len(store) - before) > 2 * len(names):
            raise AssertionError(f"{len(report.removed)} of {before} artifacts were removed")
        nothing = [short(store, roots) for _ in range(SHORT_GCS)]
        new = store.put_many([os.urandom(100) for _ in range(NEW)])
        roots.append("run", store.put_value(new))
        with_new = short(store, roots)
        full, report = timed(partial(store.gc, Unwitnessed(roots), grace=0))
        if report.incremental or report.removed:
            raise AssertionError("the full mark looked for nothing, or found something")
        return {"gc_s": took, "cpu_s": cpu, "anonymous_bytes": float(peak), "nothing_s": nothing,
                f"new_{NEW}_s": with_new, "full_mark_s": full}  # fmt: skip


def short(store: casstore.Store, roots: FakeRoots) -> float:
    """Seconds of a gc that has nothing to do."""
    took, report = timed(partial(store.gc, roots, grace=0))
    if not report.incremental:
        raise AssertionError("everything was marked")
    return took


class Unwitnessed:
    """The same roots, of a source that cannot say what went away since."""

    def __init__(self, roots: FakeRoots) -> None:
        self.uuid, self.position, self.live_roots = roots.uuid, roots.position, roots.live_roots
        self.roots_after = roots.roots_after
        self._roots = roots

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody appends meanwhile."""
        return self._roots.exclusive()


def in_a_process(work: Any, *arguments: Any) -> Any:
    """What a function of a module returns, called in a process of its own: its memory is its own too."""
    with _SPAWN.Pool(1) as pool:
        return pool.apply(work, arguments)
