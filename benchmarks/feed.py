"""Workload `feed`: how soon a follower has an event after its append returned, and what following costs while idle."""

from __future__ import annotations

import multiprocessing
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import journal
from benchmarks.event_peers import NAME
from benchmarks.measure import OURS, Results
from benchmarks.options import Options
from benchmarks.peers import AnyPeer, run_uuid
from benchmarks.rounds import Samples, run_case

WORKLOAD: Final = "feed"
# seconds between events: (events, the same of the quick mode)
GAPS: Final = {0.0: (2000, 400), 0.02: (500, 100), 0.5: (60, 12)}
IDLE_S: Final = (10.0, 3.0)
LOST_S: Final = 60.0  # what is not heard by then never will be
_BEFORE: Final = 2  # RunStarted and run_policy
_SPAWN: Final = multiprocessing.get_context("spawn")


class FeedPeer(AnyPeer):
    """Something whose events can be followed; numbered from 0. Whoever follows ends when it is closed."""

    @abstractmethod
    def append(self, number: int) -> None:
        """Append an event, durable on return where the peer is."""

    @abstractmethod
    def follow(self) -> Iterator[int]:
        """The numbers of the events, as they come, for ever."""


class OursFeed(FeedPeer):
    """`feed(follow=True)`."""

    name = OURS
    note = "woken by commits of its process; asks for the newest commit's number of others"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._journal = journal.open(home / "home")
        if not self._journal.head(run_uuid(0)):
            self._journal.start_run("bench", manifest={}, context={}, run_id=run_uuid(0), claim=False)

    def append(self, number: int) -> None:
        self._journal.append(run_uuid(0), _BEFORE + number, [journal.DomainEvent(NAME, {"number": number})])

    def follow(self) -> Iterator[int]:
        try:
            for item in self._journal.feed(after=_BEFORE, follow=True):
                assert isinstance(item.event, journal.DomainEvent)
                yield item.event.payload["number"]
        except journal.JournalClosed:
            return

    def close(self) -> None:
        self._journal.close()


class EventSourcingFeed(FeedPeer):
    """The subscription of the package eventsourcing: in memory and in one process, as its SQLite recorder has none."""

    name = "eventsourcing"
    requires = ("eventsourcing",)
    note = "in memory (no subscriptions with SQLite)"

    def __init__(self, home: Path) -> None:
        from eventsourcing.application import Application

        from benchmarks.eventsourced import Growing

        super().__init__(home)
        self._app: Any = Application()
        self._run = Growing(0)
        self._app.save(self._run)
        self._subscription: Any = None

    def append(self, number: int) -> None:
        self._run.happened(NAME, number)
        self._app.save(self._run)

    def follow(self) -> Iterator[int]:
        with self._app.recorder.subscribe(gt=1) as self._subscription:
            for notification in self._subscription:
                yield self._app.mapper.to_domain_event(notification).number

    def close(self) -> None:
        self._subscription.stop()


PEERS: Final[list[type[FeedPeer]]] = [OursFeed, EventSourcingFeed]


def run(results: Results, options: Options) -> None:
    """All cases."""
    rounds = options.rounds_or(5, 3)
    for gap_s, (full, quick) in GAPS.items():
        count = quick if options.quick else full
        pace = f"an event every {gap_s * 1e3:.0f} ms" if gap_s else "one event after the other"
        here = partial(measure_here, gap_s=gap_s, count=count)
        run_case(results, options, WORKLOAD, f"in the process, {pace}", PEERS, rounds, here)
        other = partial(measure_other, gap_s=gap_s, count=count)
        run_case(results, options, WORKLOAD, f"another process, {pace}", [OursFeed], rounds, other)
    seconds = IDLE_S[options.quick]
    idle = partial(measure_idle, for_s=seconds)
    run_case(results, options, WORKLOAD, f"idle for {seconds:.0f} s", PEERS, rounds, idle)


def measure_here(peer: type[FeedPeer], home: Path, _: int, *, gap_s: float, count: int) -> Samples:
    """A thread follows, this one appends."""
    subject = peer(home)
    heard: list[float] = []
    ready = threading.Event()
    follower = threading.Thread(target=hear, args=(subject, count, heard, ready.set), daemon=True)
    follower.start()
    ready.wait()
    appended = _append(subject, count, gap_s)
    follower.join(LOST_S)
    subject.close()
    if len(heard) < count:  # eventsourcing's subscription in memory does lose one now and then
        raise AssertionError(f"{subject.name}: {count - len(heard)} of {count} events were not heard")
    return {"heard_s": _late(appended, heard)}


def measure_other(peer: type[FeedPeer], home: Path, _: int, *, gap_s: float, count: int) -> Samples:
    """Another process follows, this one appends. The clock is the machine's."""
    subject = peer(home)
    here, there = _SPAWN.Pipe()
    follower = _SPAWN.Process(target=_hear_alone, args=(peer, home, count, there))
    follower.start()
    there.close()  # if it dies, that is heard
    here.recv()
    appended = _append(subject, count, gap_s)
    heard = here.recv()
    follower.join()
    subject.close()
    return {"heard_s": _late(appended, heard)}


def measure_idle(peer: type[FeedPeer], home: Path, _: int, *, for_s: float) -> Samples:
    """A thread follows where nothing comes: processor time of the whole process, in percent of the time."""
    subject = peer(home)
    heard: list[float] = []
    ready = threading.Event()
    follower = threading.Thread(target=hear, args=(subject, 2, heard, ready.set), daemon=True)
    follower.start()
    ready.wait()
    subject.append(0)
    used, began = time.process_time(), time.monotonic()
    time.sleep(for_s)
    percent = 100 * (time.process_time() - used) / (time.monotonic() - began)
    subject.append(1)
    follower.join()
    subject.close()
    return {"cpu_percent": percent}


def hear(subject: FeedPeer, count: int, heard: list[float], ready: Callable[[], object]) -> None:
    """Follow until so many events came; when each did. Raises AssertionError where one is missing or comes twice."""
    ready()
    for number in subject.follow():
        if number != len(heard):
            raise AssertionError(f"{subject.name}: event {number} instead of {len(heard)}")
        heard.append(time.monotonic())
        if len(heard) == count:
            return


def _hear_alone(peer: type[FeedPeer], home: Path, count: int, pipe: Any) -> None:
    subject, heard = peer(home), list[float]()
    hear(subject, count, heard, lambda: pipe.send(None))
    pipe.send(heard)
    subject.close()


def _append(subject: FeedPeer, count: int, gap_s: float) -> list[float]:
    """When each append returned."""
    appended = []
    for number in range(count):
        if gap_s:
            time.sleep(gap_s)
        subject.append(number)
        appended.append(time.monotonic())
    return appended


def _late(appended: list[float], heard: list[float]) -> list[float]:
    """0 where the follower was faster than the answer to the append."""
    return [max(there - here, 0.0) for here, there in zip(appended, heard, strict=True)]
