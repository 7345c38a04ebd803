"""The command line: python -m benchmarks WORKLOAD|all|gc|flushes|check|plot."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Final

from benchmarks.measure import RESULTS, Results, machine
from benchmarks.options import Options, parse_size, say
from benchmarks.report import tables

WORKLOADS: Final = (
    "steps", "growth", "runs", "mixed", "objects", "puts", "append", "scan", "recover", "feed", "bases", "files",
)  # fmt: skip
GC: Final = ("gc_scale", "gc_beside")
MEMORY_FILESYSTEMS: Final = ("tmpfs", "ramfs")


def main() -> int:
    """Run, print the tables, keep the samples."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=[*WORKLOADS, "all", "gc", *GC, "flushes", "check", "plot"])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, steps and sizes: minutes, not an hour")
    parser.add_argument("--large", action="store_true", help="the largest sizes too (recover, gc)")
    parser.add_argument("--json", type=Path, help="where the samples go (check, plot: where they come from)")
    parser.add_argument("--out", type=Path, default=Path("docs/plots"), help="plot: where the figures go")
    parser.add_argument("--rounds", type=int, default=0, help="how often everything is done")
    parser.add_argument("--only", default="", help="these peers, by name, with commas")
    parser.add_argument("--cases", default="", help="these cases, by the beginning of their names, with commas")
    parser.add_argument("--dir", type=Path, help="on which file system (by default the one of temporary files)")
    parser.add_argument("--size", type=parse_size, default=0, help="files: how large, as 3GiB")
    given = parser.parse_args()
    if given.what == "check":
        from benchmarks.check import check

        return check(given.json)
    if given.what == "plot":
        from benchmarks.plots import plot

        return plot(given.json, given.out)
    options = Options(quick=given.quick, large=given.large, rounds=given.rounds, only=_names(given.only),
                      cases=_names(given.cases), where=given.dir, size=given.size)  # fmt: skip
    results = Results(machine(given.dir))
    if results.machine["filesystem"] in MEMORY_FILESYSTEMS:
        say("warning: this file system is in memory, flushes cost nothing there (--dir chooses another one)")
    wanted = {"all": WORKLOADS, "gc": GC}.get(given.what, (given.what,))
    path = given.json or RESULTS / f"{results.machine['at'].replace(':', '')}-{given.what}.json"
    for name in wanted:
        importlib.import_module(f"benchmarks.{name}").run(results, options)
        results.machine["load_after"] = os.getloadavg()
        results.save(path)
    if not results.rows:
        asked = f" (--cases {given.cases!r}, --only {given.only!r})" if given.cases or given.only else ""
        say(f"nothing was measured: {given.what} has no such case or peer, or the peers are not installed{asked}")
        return 1
    print(tables(results))
    say(f"samples: {path}")
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    sys.exit(main())
