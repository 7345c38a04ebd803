"""Workload `steps`: one run whose context grows by a message a step, each step durable before the next."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import flushing
from benchmarks.data import advance, growing, size_name
from benchmarks.measure import Results, disk_bytes, probe, quiet, scratch, timed
from benchmarks.options import Options, rotated, say
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
)

WORKLOAD: Final = "steps"
PEERS: Final[list[type[Peer]]] = [
    Ours, RawLmdb, SqliteWal, FilesJsonl, LangGraphSqlite, EventSourcing, DiskObjectStore, DiskCache, Git,
]  # fmt: skip
# mean bytes of JSON of a context: (steps, steps of the quick mode)
SIZES: Final = {18 << 10: (60, 60), 118 << 10: (300, 150), 960 << 10: (300, 0), 1 << 20: (100, 40), 10 << 20: (20, 8)}
RECOVERIES: Final = 3


def run(results: Results, options: Options) -> None:
    """All sizes, all peers, in turn."""
    for size, (full, quick) in SIZES.items():
        steps = quick if options.quick else full
        if steps and options.wants(size_name(size)):
            run_case(results, options, size, steps)


def run_case(results: Results, options: Options, size: int, steps: int) -> None:
    """One size."""
    case = size_name(size)
    peers = options.peers(PEERS)
    for number in range(options.rounds_or(5, 3) if size < 10 << 20 else options.rounds_or(3, 2)):
        probe(results, WORKLOAD, case, number, options.where)
        for peer in rotated(peers, number):
            say(f"steps {case}, round {number + 1}: {peer.name}")
            try:
                measure(results, options, peer, case, number, size, steps)
            except Exception as error:  # a peer that cannot do it is a result, and no reason to stop
                say(f"steps {case}: {peer.name} failed: {type(error).__name__}: {error}")


def measure(
    results: Results, options: Options, peer: type[Peer], case: str, number: int, size: int, steps: int
) -> None:
    """One peer, once. What is recovered is compared. Disk is counted after the peer closed."""
    context, messages = growing(size, steps, seed=7 + number)
    with scratch(options.where) as home:
        subject = peer(home)
        subject.begin(0, deepcopy(context))
        samples: list[float] = []
        flushes = flushing.total()
        with quiet():
            for step, grown in enumerate(messages):
                advance(context, step, grown)
                samples.append(timed(partial(subject.step, 0, step, context))[0])
        counted = {} if flushes is None else {"flushes": [((flushing.total() or 0) - flushes) / steps]}
        subject.close()
        recovered = [recover(peer, home, context) for _ in range(RECOVERIES)]
        disk = disk_bytes(home) / steps
    results.add(WORKLOAD, case, peer.name, number, step_s=samples, disk_bytes=disk, recover_s=recovered, **counted)


def recover(peer: type[Peer], home: Path, expected: object) -> float:
    """Seconds from nothing to the newest context in a fresh object."""
    opened: list[Peer] = []

    def work() -> object:
        opened.append(peer(home))
        return opened[0].recover(0)

    took, found = timed(work)
    opened[0].close()
    if found != expected:
        raise AssertionError(f"{peer.name}: the recovered context differs")
    return took
