"""Workload `scan`: events read back in every way there is: all, raw, in reverse, a range, by position over all runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import journal
from benchmarks.event_peers import EventSourcingEvents, OursEvents
from benchmarks.measure import OURS, Results, quiet, timed
from benchmarks.options import Options
from benchmarks.peers import run_uuid
from benchmarks.rounds import Samples, run_case
from benchmarks.streams import fill

WORKLOAD: Final = "scan"
COUNTS: Final = (100_000, 20_000)  # events; the same of the quick mode
BATCH: Final = 1000
RUNS: Final = 64
PAGE: Final = 1000  # of the peer's log of all runs, which has to be asked page by page

Way = Callable[[], "Iterable[Any]"]


class Subject:
    """A log that was filled. `ways` gives {metric: (how many come out, the read)}."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()

    def __init__(self, home: Path, count: int, runs: int) -> None:
        """`runs` 1: that many small domain events in one run; else so many in all, interleaved."""
        raise NotImplementedError

    def ways(self) -> dict[str, tuple[int, Way]]:
        """Every way to read."""
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back."""
        raise NotImplementedError


class Ours(Subject):
    """The journal. Several runs are streams of the recorder: two kernel events an append."""

    name = OURS

    def __init__(self, home: Path, count: int, runs: int) -> None:
        self._runs = [run_uuid(number) for number in range(runs)]
        if runs == 1:
            events = OursEvents(home)
            events.begin(0)
            for first in range(0, count, BATCH):
                events.append_batch(0, first, min(BATCH, count - first))
            events.close()
            self._each = count + OursEvents.before
        else:
            self._each = count // runs
            with journal.open(home / "home") as jrn:
                fill(jrn, self._runs, self._each, runs, ends=False)
        self._journal = journal.open(home / "home")

    def ways(self) -> dict[str, tuple[int, Way]]:
        jrn, runs, each = self._journal, self._runs, self._each
        first, last = each // 4, 3 * each // 4
        total, part = each * len(runs), (last - first + 1) * len(runs)

        def all_of(read: Callable[[Any], list[Any]]) -> Way:
            return lambda: [item for run_id in runs for item in read(run_id)]

        return {
            "typed_per_s": (total, all_of(jrn.read)),
            "raw_per_s": (total, all_of(jrn.read_raw)),
            "reverse_per_s": (total, all_of(lambda run_id: jrn.read(run_id, reverse=True))),
            "range_per_s": (part, all_of(lambda run_id: jrn.read(run_id, first, last))),
            "raw_range_per_s": (part, all_of(lambda run_id: jrn.read_raw(run_id, first, last))),
            "by_position_per_s": (total, lambda: list(jrn.feed())),
        }

    def close(self) -> None:
        self._journal.close()


class Eventsourcing(Subject):
    """The package eventsourcing, over SQLite: domain events of aggregates, and its log of notifications."""

    name = "eventsourcing"
    requires = ("eventsourcing",)

    def __init__(self, home: Path, count: int, runs: int) -> None:
        self._events, self._runs, self._each = EventSourcingEvents(home), range(runs), count // runs
        for run in self._runs:
            self._events.begin(run)
        size = BATCH if runs == 1 else 2
        for first in range(0, self._each, size):
            for run in self._runs:
                self._events.append_batch(run, first, min(size, self._each - first))
        self._each += 1

    def ways(self) -> dict[str, tuple[int, Way]]:
        app, each = self._events.app, self._each
        first, last = each // 4, 3 * each // 4
        total, part = each * len(self._runs), (last - first + 1) * len(self._runs)
        ids = [run_uuid(run) for run in self._runs]

        def all_of(read: Callable[[Any], Iterable[Any]]) -> Way:
            return lambda: [item for name in ids for item in read(name)]

        def by_position() -> list[Any]:
            found: list[Any] = []
            while page := app.recorder.select_notifications(len(found) + 1, PAGE):
                found += map(app.mapper.to_domain_event, page)
            return found

        return {
            "typed_per_s": (total, all_of(app.events.get)),
            "raw_per_s": (total, all_of(app.recorder.select_events)),
            "reverse_per_s": (total, all_of(lambda name: app.events.get(name, desc=True))),
            "range_per_s": (part, all_of(lambda name: app.events.get(name, gt=first - 1, lte=last))),
            "by_position_per_s": (total, by_position),
        }

    def close(self) -> None:
        self._events.close()


SUBJECTS: Final[list[type[Subject]]] = [Ours, Eventsourcing]


def run(results: Results, options: Options) -> None:
    """One long run, and many interleaved."""
    count, rounds = COUNTS[options.quick], options.rounds_or(5, 3)
    case = f"one run, {count:,} domain events"
    run_case(results, options, WORKLOAD, case, SUBJECTS, rounds, partial(measure, count=count, runs=1))
    case = f"{RUNS} runs interleaved, {count:,} events"
    run_case(results, options, WORKLOAD, case, SUBJECTS, rounds, partial(measure, count=count, runs=RUNS))


def measure(subject: type[Subject], home: Path, _: int, *, count: int, runs: int) -> Samples:
    """Each way once to warm up and be counted, then timed."""
    log = subject(home, count, runs)
    samples: Samples = {}
    for metric, (expected, read) in log.ways().items():
        found = sum(1 for _ in read())
        if found != expected:
            raise AssertionError(f"{subject.name}, {metric}: {found} events instead of {expected}")
        with quiet():
            samples[metric] = expected / timed(read)[0]
    log.close()
    return samples
