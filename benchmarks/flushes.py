"""Workload `flushes`: how often each peer waits for its disk, and what it costs where a flush takes longer.

The workloads run in processes of their own with flushes.c loaded, which counts flushes and delays each of them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks import flushing
from benchmarks.measure import Results, scratch
from benchmarks.options import Options, say

WORKLOAD: Final = "flushes"
DELAYS_MS: Final = (0.0, 1.0, 5.0)
# what runs: (workload, its cases), the same of the quick mode
FULL: Final = (
    ("steps", "18 KiB,118 KiB,1 MiB"), ("runs", "1 x 18 KiB,8 x 18 KiB,64 x 18 KiB"),
    ("append", "1 at once,8 at once,64 at once"),
)  # fmt: skip
QUICK: Final = (("steps", "18 KiB,118 KiB"), ("runs", "8 x 18 KiB,64 x 18 KiB"), ("append", "1 at once,64 at once"))


def run(results: Results, options: Options) -> None:
    """Each workload with each delay. Without a C compiler nothing is measured."""
    if flushing.compiler() is None:
        say("flushes: skipped, there is no C compiler (cc, gcc or clang) to make the shim with")
        return
    with scratch(None) as made:
        try:
            shim = flushing.build(made)
        except subprocess.CalledProcessError as error:
            say(f"flushes: skipped, the shim does not compile here: {error.stderr.strip()[:500]}")
            return
        for delay_ms in DELAYS_MS:
            for workload, cases in QUICK if options.quick else FULL:
                say(f"flushes: {workload} with {delay_ms:g} ms")
                _collect(results, options, made / f"{workload}-{delay_ms:g}.json", shim, delay_ms, workload, cases)


def _collect(
    results: Results, options: Options, path: Path, shim: Path, delay_ms: float, workload: str, cases: str
) -> None:
    command = [sys.executable, "-m", "benchmarks", workload, *_given(options), "--cases", options.joined_cases or cases,
               "--json", str(path)]  # fmt: skip
    done = subprocess.run(command, env=flushing.environment(shim, delay_ms), stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        say(f"flushes: {workload} ended with {done.returncode}")
        return
    for row in Results.load(path).rows:
        row.workload, row.case = WORKLOAD, f"{row.workload} {row.case}, +{delay_ms:g} ms"
        results.rows.append(row)


def _given(options: Options) -> Iterator[str]:
    yield "--quick"  # a delay makes everything slower; rounds are what the full mode adds
    yield from ("--rounds", str(options.rounds_or(3, 1)))
    if options.only:
        yield from ("--only", ",".join(options.only))
    if options.where:
        yield from ("--dir", str(options.where))
