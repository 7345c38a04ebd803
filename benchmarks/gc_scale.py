"""How long a gc takes over many small artifacts, half of them dead, and how much memory: alone, nobody else writes.

    python benchmarks/gc_scale.py 200000 1000000 [--home DIR] [--profile]

Prints one JSON line for each size. Live artifacts are linked to, a thousand at a time, by values that a live run
names. Memory is the process's anonymous memory while it collects, above what it was before.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import multiprocessing
import pstats
import tempfile
import time
from typing import Any

import casstore
from benchmarks.memory import MemoryWatch
from casstore.testing import FakeRoots

CHUNK = 2000


def fill(home: str, count: int, names: Any) -> None:
    """`count` artifacts of about 100 bytes; every second one is linked to by a value. Puts their ids into `names`."""
    with casstore.open(home) as store:
        for first in range(0, count, CHUNK):
            items = [b"%020d " % n * 5 for n in range(first, min(first + CHUNK, count))]
            ids = store.put_many(items)
            names.append(str(store.put_value(ids[::2], durable=False)))


def collect(home: str, names: list[str], profile: bool, out: Any) -> None:
    """One gc without grace, in a process of its own."""
    with casstore.open(home) as store:
        roots = FakeRoots(store)
        roots.append("run", *map(casstore.ArtifactId.parse, names))
        watch = MemoryWatch()
        profiler = cProfile.Profile()
        if profile:
            profiler.enable()
        began, cpu = time.monotonic(), time.process_time()
        report = store.gc(roots, grace=0)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        profiler.disable()
        peak, more = watch.stop()
        if profile:
            pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
        out.append({
            "removed": len(report.removed), "live": report.live, "batches": report.batches,
            "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "anonymous_mb": round(more / 1e6, 1),
            "anonymous_total_mb": round(peak / 1e6, 1),
        })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="*", default=[200_000, 1_000_000])
    parser.add_argument("--home", help="where to make the homes (default: the directory for temporary files)")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.home) as directory, multiprocessing.Manager() as manager:
            home, names, out = f"{directory}/home", manager.list(), manager.list()
            for target, arguments in ((fill, (home, size, names)), (collect, (home, names, options.profile, out))):
                process = multiprocessing.get_context("spawn").Process(
                    target=target, args=tuple(list(found) if found is names and target is collect else found
                                              for found in arguments)
                )  # fmt: skip
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(process.exitcode)
            print(json.dumps({"artifacts": size, **out[0]}), flush=True)


if __name__ == "__main__":
    main()
