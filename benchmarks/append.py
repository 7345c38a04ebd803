"""Workload `append`: small events, one at a time from many threads, in batches, read back; and their bytes on disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.event_peers import BATCHES, PEERS, EventPeer, OursEvents
from benchmarks.measure import Results, quiet, timed
from benchmarks.options import Options
from benchmarks.rounds import Samples, run_case
from benchmarks.runs import together
from benchmarks.streams import disk_per_event

WORKLOAD: Final = "append"
# threads: (events of each, the same of the quick mode)
THREADS: Final = {1: (2000, 400), 8: (500, 150), 64: (100, 40)}
BATCH: Final = 1000
SCANNED: Final = (100_000, 20_000)
# runs of so many events, so many of them interleaved: (runs, the same of the quick mode)
LAYOUTS: Final = {(9, 64): (12_800, 3_200), (500, 1): (200, 40)}


def run(results: Results, options: Options) -> None:
    """All cases."""
    rounds = options.rounds_or(5, 3)
    for threads, (full, quick) in THREADS.items():
        measure = partial(measure_threads, threads=threads, each=quick if options.quick else full)
        run_case(results, options, WORKLOAD, f"{threads} at once", PEERS, rounds, measure)
    count = SCANNED[options.quick]
    case = f"batches of {BATCH:,}, {count:,} events"
    run_case(results, options, WORKLOAD, case, BATCHES, rounds, partial(measure_batches, count=count))
    for (events, interleaved), (full, quick) in LAYOUTS.items():
        runs = quick if options.quick else full

        def layout(_: object, home: Path, __: int, at: tuple[int, int, int] = (events, interleaved, runs)) -> Samples:
            return {"bytes_per_event": disk_per_event(home, *at)}

        case = f"disk, runs of {events} interleaved by {interleaved}"
        run_case(results, options, WORKLOAD, case, [OursEvents], 1, layout)


def measure_threads(peer: type[EventPeer], home: Path, _: int, *, threads: int, each: int) -> Samples:
    """Each thread appends to a run of its own, an event at a time, each durable before the next. Where the peer counts
    its commits, the same once more, not timed: how many there were between the call of an append and its return."""
    subject = peer(home)

    def work(own: int) -> None:
        for number in range(each):
            subject.append(own, number)

    waited: list[int] = []

    def count(own: int) -> None:
        for number in range(each, 2 * each):
            before = subject.commits()
            subject.append(own, number)
            waited.append(subject.commits() - before)

    with quiet():
        done = together(threads, subject.begin, work)
    counted: Samples = {"cpu_s": done.cpu_s / (threads * each)}
    if done.flushes is not None:
        counted["flushes"] = done.flushes / (threads * each)
    if subject.commits():
        together(threads, lambda _: None, count)
        counted["commits_waited_p99"] = float(sorted(waited)[len(waited) * 99 // 100])
    for own in {0, threads - 1}:
        _check(subject, own, 2 * each if waited else each)
    subject.close()
    return {"events_per_s": threads * each / done.took_s, **counted}


def measure_batches(peer: type[EventPeer], home: Path, _: int, *, count: int) -> Samples:
    """One run in batches; then all of it read, as events and as what they are stored as."""
    subject = peer(home, count)
    subject.begin(0)
    with quiet():
        took = sum(timed(partial(subject.append_batch, 0, first, BATCH))[0] for first in range(0, count, BATCH))
        typed_s = timed(partial(subject.read, 0))[0]
        raw_s = timed(partial(subject.read_raw, 0))[0]
    _check(subject, 0, count)
    subject.close()
    return {"append_per_s": count / took, "typed_scan_per_s": count / typed_s, "raw_scan_per_s": count / raw_s}


def _check(subject: EventPeer, run: int, count: int) -> None:
    found = subject.numbers(run)
    if found != list(range(count)):
        raise AssertionError(f"{subject.name}: {len(found)} events read instead of {count}, or others")


