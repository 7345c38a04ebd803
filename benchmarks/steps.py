"""Workload `steps`: one run whose context grows by a message a step, each step durable before the next."""

from __future__ import annotations

import importlib
import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks import flushing
from benchmarks.data import Context, advance, growing, size_name
from benchmarks.measure import Results, quiet, timed
from benchmarks.memory import anonymous_bytes
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
from benchmarks.postgres import SERVER
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
    """One peer, once. What is recovered is compared. Disk is counted after the peer closed; memory is what the process
    has more of its own after the steps than before the peer was opened."""
    context, messages = growing(size, steps, seed=7 + number)
    for module in peer.requires:
        if module != SERVER:
            importlib.import_module(module)  # modules are nobody's memory
    memory = anonymous_bytes()
    subject = peer(home)
    subject.begin(0, deepcopy(context))
    samples: list[float] = []
    flushes, cpu_s, commits = flushing.total(), peer.cpu_s(home), subject.commits()
    with quiet():
        subject.work(0, waited(context, messages, samples))
    cpu_s = (peer.cpu_s(home) - cpu_s) / steps
    memory = anonymous_bytes() - memory
    counted: Samples = {} if flushes is None else {"flushes": ((flushing.total() or 0) - flushes) / steps}
    if commits:
        counted["commits"] = (subject.commits() - commits) / steps
    subject.close()
    recovered = [recover(peer, home, context) for _ in range(RECOVERIES)]
    return {"step_s": samples, "cpu_s": cpu_s, "disk_bytes": peer.disk_bytes(home) / steps,
            "memory_bytes": float(max(memory, 0)), "recover_s": recovered, **counted}  # fmt: skip


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
