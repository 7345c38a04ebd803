"""Workload `steps`: one run whose context grows by a message a step, each step durable before the next."""

from __future__ import annotations

import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks import flushing
from benchmarks.data import Context, advance, growing, size_name
from benchmarks.measure import Results, quiet, timed
from benchmarks.options import Options
from benchmarks.ours import Ours
from benchmarks.peers import (
    DiskCache,
    DiskObjectStore,
    EventSourcing,
    FilesJsonl,
    Git,
    LangGraphSqlite,
    Peer,
    RawLmdb,
    SqliteWal,
    Steps,
)
from benchmarks.rounds import Samples, run_case
from benchmarks.server_peers import DbosPostgres, DbosSqlite, LangGraphPostgres

WORKLOAD: Final = "steps"
PEERS: Final[list[type[Peer]]] = [
    Ours, RawLmdb, SqliteWal, FilesJsonl, LangGraphSqlite, EventSourcing, DiskObjectStore, DiskCache, Git,
    LangGraphPostgres, DbosSqlite, DbosPostgres,
]  # fmt: skip
# mean bytes of JSON of a context: (steps, steps of the quick mode)
SIZES: Final = {18 << 10: (60, 60), 118 << 10: (300, 300), 960 << 10: (300, 0), 1 << 20: (300, 60), 10 << 20: (20, 8)}
RECOVERIES: Final = 3


def run(results: Results, options: Options) -> None:
    """All sizes, all peers, in turn."""
    for size, (full, quick) in SIZES.items():
        steps = quick if options.quick else full
        rounds = options.rounds_or(5, 3) if size < 10 << 20 else options.rounds_or(3, 2)
        if steps:
            measure = partial(measure_steps, size=size, steps=steps)
            # the steps belong to the name: what the first context takes on disk is shared by all of them
            run_case(results, options, WORKLOAD, f"{size_name(size)}, {steps} steps", PEERS, rounds, measure)


def measure_steps(peer: type[Peer], home: Path, number: int, *, size: int, steps: int) -> Samples:
    """One peer, once. What is recovered is compared. Disk is counted after the peer closed."""
    context, messages = growing(size, steps, seed=7 + number)
    subject = peer(home)
    subject.begin(0, deepcopy(context))
    samples: list[float] = []
    flushes = flushing.total()
    with quiet():
        subject.work(0, waited(context, messages, samples))
    counted: Samples = {} if flushes is None else {"flushes": ((flushing.total() or 0) - flushes) / steps}
    subject.close()
    recovered = [recover(peer, home, context) for _ in range(RECOVERIES)]
    return {"step_s": samples, "disk_bytes": peer.disk_bytes(home) / steps, "recover_s": recovered, **counted}


def waited(context: Context, messages: list[dict[str, Any]], samples: list[float]) -> Steps:
    """The steps of a run for `Peer.work`, which appends to `samples` the seconds until each was durable."""
    for step, grown in enumerate(messages):
        advance(context, step, grown)
        begun = time.perf_counter()
        yield step, context
        samples.append(time.perf_counter() - begun)


def recover(peer: type[Peer], home: Path, expected: object, own: int = 0) -> float:
    """Seconds from nothing to the newest context in a fresh object."""
    opened: list[Peer] = []

    def work() -> object:
        opened.append(peer(home))
        return opened[0].recover(own)

    took, found = timed(work)
    opened[0].close()
    if found != expected:
        raise AssertionError(f"{peer.name}: the recovered context differs")
    return took
