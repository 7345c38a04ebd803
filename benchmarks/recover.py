"""Workload `recover`: what it costs to find out where a run stands, and to go on, in homes of all sizes."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final
from uuid import UUID

import journal
from benchmarks.measure import OURS, Results, quiet, timed
from benchmarks.options import Options
from benchmarks.peers import run_uuid
from benchmarks.rounds import Samples, run_case
from benchmarks.streams import fill
from journal import RunStatus

WORKLOAD: Final = "recover"
LENGTHS: Final = (99, 9_999, 99_999)  # odd: the last event is a StateEntered
QUICK_LENGTHS: Final = (99, 9_999)
RUN_EVENTS: Final = 9
RUNS: Final = (111_112, 11_200)  # of so many runs: 1,000,008 events, and 100,800 in quick mode
LARGE_LENGTH: Final = 999_999
LARGE_RUNS: Final = 1_000_000  # of LARGE_RUN_EVENTS events
LARGE_RUN_EVENTS: Final = 3
SAMPLES: Final = 20
LISTED: Final = 20
OURS_METRICS: Final = (
    "open_s", "head_s", "run_state_s", "resume_s", "newest_s", "live_s", "ended_s", "next_resume_s",
)  # fmt: skip


def run(results: Results, options: Options) -> None:
    """One long run, then many short ones. A round each: the samples are many, and filling a home is slow."""
    for length in QUICK_LENGTHS if options.quick else LENGTHS:
        _case(results, options, f"one run of {length:,} events", [run_uuid(0)], length)
    _runs(results, options, RUNS[options.quick], RUN_EVENTS)
    if options.large:
        _case(results, options, f"one run of {LARGE_LENGTH:,} events", [run_uuid(0)], LARGE_LENGTH)
        _runs(results, options, LARGE_RUNS, LARGE_RUN_EVENTS)


def _runs(results: Results, options: Options, runs: int, length: int) -> None:
    case = f"{runs:,} runs of {length}, {runs * length:,} events"
    if options.wants(case):
        _case(results, options, case, [run_uuid(number) for number in range(runs)], length)


def _case(results: Results, options: Options, case: str, runs: list[UUID], length: int) -> None:
    def measure(subject: type[Subject], home: Path, _: int) -> Samples:
        return subject.measure(home, runs, length)

    # A replay does not depend on other runs, and of a million events it takes half a minute.
    known = SUBJECTS if len(runs) == 1 and length < LARGE_LENGTH else SUBJECTS[:2]
    run_case(results, options, WORKLOAD, case, known, options.rounds or 1, measure)


def ours(home: Path, runs: list[UUID], length: int) -> Samples:
    """Each sample in a fresh Journal: open, head, run_state and resume, in this order, then the newest, the live and
    the ended runs, so many of each. The runs are in the middle of an attempt, as after a crash: resume records its
    failure, durably, and takes the claim. With more than one there are a tenth as many that ended, the oldest ones."""
    with journal.open(home / "home") as jrn:
        if len(runs) > 1:
            ended = [run_uuid(len(runs) + number) for number in range(max(len(runs) // 10, LISTED))]
            fill(jrn, ended, 3, 4000, at_least=1000)
        fill(jrn, runs, length, 500 if length > LARGE_RUN_EVENTS else 4000, ends=False,
             at_least=1000 if len(runs) == 1 else 1)  # fmt: skip
    samples: dict[str, list[float]] = {name: [] for name in OURS_METRICS}
    chosen = _chosen(runs, 2 * SAMPLES)
    for run_id, other in zip(chosen[:SAMPLES], chosen[SAMPLES:], strict=True):
        with quiet():
            took, jrn = timed(partial(journal.open, home / "home"))
            samples["open_s"].append(took)
            took, found = timed(partial(jrn.head, run_id))
            samples["head_s"].append(took)
            took, state = timed(partial(jrn.run_state, run_id))
            samples["run_state_s"].append(took)
            took, resumed = timed(partial(jrn.resume, run_id))
            samples["resume_s"].append(took)
            for name, status in (("newest_s", None), ("live_s", "live"), ("ended_s", RunStatus.COMPLETED)):
                took, listed = timed(lambda jrn=jrn, status=status: list(jrn.runs(status=status, limit=LISTED)))
                samples[name].append(took)
                if len(listed) != (LISTED if len(runs) > 1 else status != RunStatus.COMPLETED):
                    raise AssertionError(f"{len(listed)} runs listed ({name})")
        if len(runs) > 1 and (found, state.head) != (length, length):
            raise AssertionError(f"{run_id} has {found} events instead of {length}")
        if state.open_attempt is None or resumed.next != state.open_attempt.state_id:
            raise AssertionError(f"{run_id} was not left in the middle of an attempt")
        resumed.enter(state.open_attempt.state_id)  # and dies again
        resumed.release()
        if len(runs) > 1:  # another one in the same Journal, which has read of this home already
            took, again = timed(partial(jrn.resume, other))
            samples["next_resume_s"].append(took)
            again.release()
        jrn.close()
    return {name: found for name, found in samples.items() if found}


def sqlite_wal(home: Path, runs: list[UUID], length: int) -> Samples:
    """The newest event of a run in a table with an index; nothing is written."""
    path = home / "x.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma journal_mode=wal")
    db.execute("create table ev(run blob, seq int, kind text, body text, primary key(run, seq))")
    db.execute("begin")
    body = json.dumps({"state": "bench.steps.s0", "snapshot": "0" * 64})
    for run_id in runs:
        rows = ((run_id.bytes, seq, "entered", body) for seq in range(length))
        db.executemany("insert into ev values(?,?,?,?)", rows)
    db.execute("commit")
    db.close()
    samples: dict[str, list[float]] = {"open_s": [], "run_state_s": []}

    def newest(db: sqlite3.Connection, run_id: UUID) -> Any:
        return db.execute("select * from ev where run=? order by seq desc limit 1", (run_id.bytes,)).fetchone()

    for run_id in _chosen(runs, SAMPLES):
        took, db = timed(partial(sqlite3.connect, path, isolation_level=None))
        samples["open_s"].append(took)
        took, row = timed(partial(newest, db, run_id))
        samples["run_state_s"].append(took)
        if row[1] != length - 1:
            raise AssertionError("another event is the newest")
        db.close()
    return {**samples}


def eventsourcing(home: Path, runs: list[UUID], length: int) -> Samples:
    """An aggregate from the repository: it replays its events (the package offers snapshots to make that shorter)."""
    from benchmarks.eventsourced import Growing, open_app

    (home / "es").mkdir()
    app = open_app(home / "es")
    aggregate = Growing(0)
    for number in range(1, length):
        aggregate.happened("tick", number)
        if number % 1000 == 0:
            app.save(aggregate)
    app.save(aggregate)
    app.close()
    samples: dict[str, list[float]] = {"open_s": [], "run_state_s": []}
    for _ in range(3):
        open_it: Callable[[], Any] = partial(open_app, home / "es")
        took, app = timed(open_it)
        samples["open_s"].append(took)
        took, found = timed(partial(app.repository.get, runs[0]))
        samples["run_state_s"].append(took)
        if found.version != length:
            raise AssertionError("another version is the newest")
        app.close()
    return {**samples}


def _chosen(runs: list[UUID], count: int) -> list[UUID]:
    """Runs to recover: different ones of many, or the only one again and again."""
    return random.Random(5).sample(runs, count) if len(runs) > 1 else runs * count


class Subject:
    """One way to keep runs, measured as a whole."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def measure(home: Path, runs: list[UUID], length: int) -> Samples:
        """Samples of homes with these runs of this length."""
        raise NotImplementedError


class Ours(Subject):
    """The journal."""

    name = OURS
    measure = staticmethod(ours)


class Sqlite(Subject):
    """A table."""

    name = "sqlite_wal"
    measure = staticmethod(sqlite_wal)


class Eventsourcing(Subject):
    """The package eventsourcing."""

    name = "eventsourcing"
    requires = ("eventsourcing",)
    measure = staticmethod(eventsourcing)


SUBJECTS: Final[list[type[Subject]]] = [Ours, Sqlite, Eventsourcing]
