"""Rows of raw samples, what is computed from them, and what the machine was doing meanwhile."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import zstandard

T = TypeVar("T")

RESULTS: Final = Path(__file__).parent / "results"
OURS: Final = "ours"
MACHINE: Final = "machine"
_PACKAGES: Final = (
    "lmdb", "zstandard", "blake3", "cbor2", "libipld", "langgraph-checkpoint-sqlite", "eventsourcing",
    "disk-objectstore", "diskcache", "pygit2", "langgraph-checkpoint-postgres", "psycopg", "dbos",
)  # fmt: skip


@dataclass(slots=True)
class Row:
    """What one peer did in one round of one case: for each metric its raw samples.

    The end of a metric's name is its unit: `_s` seconds, `_bytes` bytes, `_per_s` a rate, else a plain number.
    """

    workload: str
    case: str
    peer: str
    round: int
    samples: dict[str, list[float]]


@dataclass(slots=True)
class Results:
    """All rows of one call, with facts about the machine."""

    machine: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def add(self, workload: str, case: str, peer: str, number: int, **samples: float | list[float]) -> None:
        """Add a row; a single number is a list of one."""
        lists = {name: value if isinstance(value, list) else [value] for name, value in samples.items()}
        self.rows.append(Row(workload, case, peer, number, lists))

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": self.machine, "rows": [asdict(row) for row in self.rows]}) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote."""
        found = json.loads(path.read_text())
        return cls(found["machine"], [Row(**row) for row in found["rows"]])


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one peer: median of the medians of the rounds, 99 % of all samples (their largest where they are
    fewer than 100), and the lowest and highest median of a round."""

    median: float
    p99: float
    low: float
    high: float
    rounds: tuple[float, ...]


def figure(rounds: Iterable[list[float]]) -> Figure:
    """Figure of the samples of all rounds."""
    kept = [samples for samples in rounds if samples]
    medians = [statistics.median(samples) for samples in kept]
    pooled = sorted(sample for samples in kept for sample in samples)
    p99 = pooled[min(len(pooled) - 1, len(pooled) * 99 // 100)]
    return Figure(statistics.median(medians), p99, min(medians), max(medians), tuple(medians))


def figures(rows: Iterable[Row]) -> dict[tuple[str, str, str, str], Figure]:
    """{(workload, case, peer, metric): Figure}, in the order of the rows."""
    grouped: dict[tuple[str, str, str, str], list[list[float]]] = {}
    for row in rows:
        for metric, samples in row.samples.items():
            grouped.setdefault((row.workload, row.case, row.peer, metric), []).append(samples)
    return {key: figure(rounds) for key, rounds in grouped.items()}


def better(metric: str, ours: Figure, theirs: Figure) -> float:
    """How many times better ours is (below 1: worse): median over the rounds, each compared within itself."""
    pairs = zip(ours.rounds, theirs.rounds, strict=False)  # a peer that failed in a round has fewer
    ratios = [(a / b if metric.endswith("_per_s") else b / a) for a, b in pairs if a and b]
    return statistics.median(ratios) if ratios else float("nan")


# -- measuring


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds that a call takes, and what it returns."""
    begun = time.perf_counter()
    value = work()
    return time.perf_counter() - begun, value


@contextmanager
def quiet() -> Iterator[None]:
    """No cyclic garbage collection of Python meanwhile: it is the same for all, and blurs the tails of all."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def scratch(where: Path | None) -> Iterator[Path]:
    """A new directory that is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=where))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def disk_bytes(path: Path) -> int:
    """What a directory takes on disk: blocks, as du counts them."""
    command = ["du", "-s", "--block-size=1", str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])


# -- the machine


def machine(where: Path | None = None) -> dict[str, Any]:
    """Facts to keep beside the figures."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": sys.argv[1:],
        "commit": _commit(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg(),
        "filesystem": filesystem(where or Path(tempfile.gettempdir())),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def filesystem(path: Path) -> str:
    """The type of the file system that holds a path."""
    command = ["stat", "-f", "-c", "%T", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def probe(results: Results, workload: str, case: str, number: int, where: Path | None) -> None:
    """What the same bit of pure computing, and the same small flush, cost now: their spread is the machine's noise."""
    data = b"".join(b"%d balance retry " % (at * 7919 % 4099) for at in range(8000))
    compressor = zstandard.ZstdCompressor(level=3)
    cpu = [timed(lambda: compressor.compress(data))[0] for _ in range(30)]
    with scratch(where) as home, open(home / "probe", "wb", buffering=0) as file:

        def flush() -> None:
            file.write(b"x" * 200)
            os.fdatasync(file.fileno())

        flushes = [timed(flush)[0] for _ in range(50)]
    results.add(workload, case, MACHINE, number, cpu_probe_s=cpu, flush_probe_s=flushes)


def _commit() -> str | None:
    """The commit that is measured, with `-dirty` where the files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except FileNotFoundError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
