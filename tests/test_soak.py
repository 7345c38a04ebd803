"""Long runs: processes that write, collect, compact and back up while they are killed; races; full disks; damage.

SOAK_SECONDS (60) is how long each of them goes on.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

import pytest
from helpers import SOAK_SECONDS, assert_whole, closure, live_names, small_disk, until_deadline
from soak_children import TURNS, final_context, plan_of, work_on

import casstore
import journal
from casstore import ArtifactId, values
from journal import StateCompleted, StateEntered

pytestmark = pytest.mark.soak

CHILDREN = Path(__file__).with_name("soak_children.py")
SAME_CODE = {**os.environ, "PYTHONPATH": str(Path(casstore.__file__).parents[1])}


class Crew:
    """Processes that are killed, stopped and started again; one that ends by itself has failed."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.lines: list[list[str]] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.counts: Counter[str] = Counter()

    def add(self, role: str, *arguments: object) -> None:
        line = [sys.executable, str(CHILDREN), role, *map(str, arguments)]
        self.lines.append(line)
        self.processes.append(self._started(line))

    def _started(self, line: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(line, stdin=subprocess.PIPE, env=SAME_CODE)

    def check(self) -> None:
        for line, process in zip(self.lines, self.processes, strict=True):
            assert process.poll() is None, f"{line[2]} ended with {process.returncode}"

    def kill(self, place: int) -> None:
        process = self.processes[place]
        assert process.poll() is None, f"{self.lines[place][2]} ended with {process.returncode}"
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
        self.counts["kills"] += 1
        self.processes[place] = self._started(self.lines[place])

    def harass(self, seconds: float, places: list[int], *, pauses: bool = False) -> None:
        """Every now and then something happens to one of them."""
        for _ in until_deadline(seconds):
            time.sleep(self.rng.uniform(0.02, 1.2))
            self.check()
            place = self.rng.choice(places)
            if pauses and self.rng.random() < 0.6:
                self.processes[place].send_signal(signal.SIGSTOP)
                time.sleep(self.rng.uniform(0.05, 0.8))
                self.processes[place].send_signal(signal.SIGCONT)
                self.counts["pauses"] += 1
            else:
                self.kill(place)

    def end(self) -> None:
        """Ask them to end; they do, in good order."""
        for process in self.processes:
            process.communicate(b"stop\n")
        assert [process.returncode for process in self.processes] == [0] * len(self.processes)

    def drop(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


@contextmanager
def crew() -> Iterator[Crew]:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    found = Crew(random.Random(seed))
    try:
        yield found
    finally:
        found.drop()


def test_writers_collectors_compactions_and_backups_are_killed(tmp_path: Path) -> None:
    """Nothing that a live run needs is missing, all is clean, and each run that ended ended as if nothing happened."""
    home, copies = tmp_path / "home", tmp_path / "copies"
    copies.mkdir()
    journal.open(home).close()
    with crew() as processes:
        for seed in range(3):
            processes.add("writer", home, seed)
        for _ in range(2):
            processes.add("collector", home)
        processes.add("maintainer", home)
        processes.add("compactor", home)
        if hasattr(journal.Journal, "backup"):
            processes.add("copier", home, copies)
        processes.harass(SOAK_SECONDS, list(range(len(processes.processes))))
        processes.end()
    with journal.open(home) as jrn:
        assert_whole(jrn)
        for row in list(jrn.runs(status="live")):
            work_on(jrn, jrn.resume(row.run_id), random.Random(1), fails=0)
        assert_whole(jrn)
        ended = list(jrn.runs())
        assert len(ended) > SOAK_SECONDS / 10 and all(row.status == "completed" for row in ended)
        wrong = [row.run_id for row in ended if not _ended_right(jrn, row.run_id)]
        assert wrong == []
    # Late enough that every quarantine is over, and every lease that a killed process left; twice, as bytes may be
    # needed by what goes in the same gc.
    later = time.time() + 3600
    with casstore.open(home, clock=lambda: later) as store, journal.open(home, store=store) as jrn:
        for _ in range(2):
            jrn.store.gc(jrn, grace=0, keep_completed=0, force=True)
        assert len(jrn.store) == 0 and jrn.store.verify().findings == ()
        stats = jrn.store.stats()
        assert (stats.stored_bytes, stats.kept_bytes, stats.uploads) == (0, 0, 0)
    print(len(ended), "runs,", processes.counts)


def _ended_right(jrn: journal.Journal, run_id: UUID) -> bool:
    """The manifest of a run that ended may be collected: its end tells whose it was, and so what its facts are."""
    state = jrn.run_state(run_id)
    states = len(state.completed)
    ends = {_id_of(final_context({"by": by, "states": states})): by for by in (1, 2, 3)}
    by = ends.get(state.final_snapshot_id)  # type: ignore[arg-type]
    facts = {f"fact {number}": _id_of(number * (by or 0)) for number in range(states)}
    return by is not None and state.completed == state.plan == tuple(plan_of({"states": states})) and (
        state.facts == facts
    )


def _id_of(value: object) -> ArtifactId:
    return ArtifactId.of(values.encode(value)[0])


def test_two_processes_race_to_resume(tmp_path: Path) -> None:
    """Stopped, overtaken, continued, killed: exactly one enters each attempt, and only that one completes it."""
    home, told = tmp_path / "home", tmp_path / "told"
    plan = [f"race.turn.t{n}" for n in range(TURNS)]
    ids: list[str] = []
    with crew() as processes:
        for count in until_deadline():
            with journal.open(home) as jrn:
                more = [
                    jrn.start_run("race", manifest={"n": count}, context={}, plan=plan, max_attempts=9999, claim=False)
                    for _ in range(6)
                ]
            new = [str(run.run_id) for run in more]
            ids += new
            racers = Crew(processes.rng)
            try:
                for _ in range(2):
                    racers.add("racer", home, told, *new)
                racers.harass(min(SOAK_SECONDS, 10), [0, 1], pauses=True)
                racers.end()
            finally:
                racers.drop()
            processes.counts += racers.counts
    entered: dict[tuple[str, str, int], list[str]] = {}
    for line in told.read_text().splitlines():
        run_id, state_id, attempt, who = line.split()
        entered.setdefault((run_id, state_id, int(attempt)), []).append(who)
    assert all(len(who) == 1 for who in entered.values())
    completed = 0
    with journal.open(home) as jrn:
        assert_whole(jrn)
        for run_id in ids:
            opened = None
            for item in jrn.read(run_id):
                if isinstance(item.event, StateEntered):
                    opened = (run_id, item.event.state_id, item.event.attempt)
                elif isinstance(item.event, StateCompleted):
                    assert opened is not None
                    context = jrn.store.get_value(item.event.context_snapshot_id)
                    assert entered[opened] == [context["by"]] and context["attempt"] == opened[2]
                    completed += 1
    print(completed, "completed of", len(entered), "entered,", processes.counts)
    assert completed > 10 and processes.counts["kills"] + processes.counts["pauses"] > 0


def test_a_killed_tail_goes_on_at_its_cursor(tmp_path: Path) -> None:
    """Eight processes write; what the tail copied is the feed, without a gap and without a repeat."""
    home, out = tmp_path / "home", tmp_path / "out"
    journal.open(home).close()
    with crew() as processes:
        for _ in range(8):
            processes.add("emitter", home)
        processes.add("tail", home, out)
        processes.harass(SOAK_SECONDS, [8, 8, 8, *range(8)])
        for process in processes.processes[:8]:
            process.communicate(b"stop\n")
            assert process.returncode == 0
        with journal.open(home, read_only=True) as jrn:
            newest = jrn.position()
            while jrn.cursor("tail") < newest:  # it is alive, and so it gets there
                processes.processes[8].poll()
                assert processes.processes[8].returncode is None
                time.sleep(0.05)
        processes.processes[8].communicate(b"stop\n")
        assert processes.processes[8].returncode == 0
    with journal.open(home) as jrn:
        lines = [f"{item.position} {item.run_id} {item.seq}" for item in jrn.feed()]
        assert out.read_text().splitlines() == lines and len(lines) == newest
        assert jrn.verify() == []
    print(newest, "events,", processes.counts)


def test_full_disks(tmp_path: Path) -> None:
    """Full during put, upload, append, gc and compact, again and again: all that was acknowledged is there."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    with small_disk(tmp_path / "disk", 24) as disk:
        line = [sys.executable, str(CHILDREN), "filler", str(disk / "home"), str(SOAK_SECONDS), str(seed)]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False, env=SAME_CODE)
        print(done.stdout)
        assert done.returncode == 0
        for name in ("put", "upload", "append", "compact"):
            assert f"'{name} store_full'" in done.stdout


def _home_to_damage(home: Path) -> dict[UUID, list[journal.RecordedEvent]]:
    rng = random.Random(3)
    with journal.open(home) as jrn:
        for number in range(4):
            run = jrn.start_run("flow", manifest={"n": number}, context={"messages": ["hello"] * 100}, max_attempts=9)
            for state in range(4):
                with run.enter(f"flow.step.s{state}") as attempt:
                    attempt.fact(f"fact {state}", rng.randrange(1 << 60))
                    attempt.output(rng.randbytes(rng.choice([10, 3000, 9000])))
                    link = jrn.store.put_value({"child": jrn.store.put(b"child %d %d" % (number, state))})
                    attempt.emit("note", {"link": link, "text": "text"}, link)
                    context = attempt.context()
                    context["messages"].append(f"message {state} of {number}")
                    attempt.complete(context)
            if number == 3:
                run.complete()
            else:
                run.enter("flow.step.last")
        jrn.store.pin("large", jrn.store.put(rng.randbytes(1 << 20) + bytes(1 << 20)))
        jrn.store.pin("raw", jrn.store.put(rng.randbytes(30_000)))
        return {row.run_id: jrn.read(row.run_id) for row in jrn.runs()}


def _flip_bits(home: Path, rng: random.Random) -> tuple[int, int]:
    """Flip a bit in some pieces and records; how many in each."""
    pieces, records = rng.choice([(1, 0), (0, 1), (1, 1), (3, 2)])
    with journal.open(home) as jrn:
        for backend, table, count in ((jrn.store._backend, b"d1", pieces), (jrn._backend, b"ev1", records)):
            with backend._tables.write() as txn:  # type: ignore[attr-defined]
                rows = [(key, value) for key, value in txn.scan(table) if value]
                for key, value in rng.sample(rows, count):
                    damaged = bytearray(value)
                    damaged[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
                    txn.put(table, key, bytes(damaged))
    return pieces, records


def test_flipped_bits_in_pieces_and_records(tmp_path: Path) -> None:
    """Wrong bytes never come out, each damage is named, the rest is readable, and gc takes nothing that is needed."""
    pristine = tmp_path / "pristine"
    events = _home_to_damage(pristine)
    with journal.open(pristine) as jrn:
        store = {name: jrn.store.get(name) for name in jrn.store}
        needed = closure(jrn.store, [*live_names(jrn), *jrn.store.pins().values()])
    first, counts = random.randrange(1 << 32), Counter[str]()
    for seed in until_deadline():
        home = tmp_path / f"home{seed}"
        shutil.copytree(pristine, home)
        try:
            _, records = _flip_bits(home, random.Random(first + seed))
            with journal.open(home) as jrn:
                _check_artifacts(jrn.store, store, counts)
                _check_runs(jrn, events, records, counts)
                with suppress(casstore.GcRefused):
                    jrn.store.gc(jrn, grace=0, keep_completed=0, force=True)
                    counts["collected"] += 1
                assert needed <= set(jrn.store)
        except BaseException as error:
            error.add_note(f"seed {first + seed}")
            raise
        shutil.rmtree(home)
        counts["rounds"] += 1
    print(counts)
    assert counts["corrupt"] and counts["changed"]


def _check_artifacts(store: casstore.Store, good: dict[ArtifactId, bytes], counts: Counter[str]) -> None:
    corrupt = {found.id for found in store.verify().findings}
    for name, data in good.items():
        try:
            assert store.get(name) == data
        except casstore.Corrupt:
            assert name in corrupt
            counts["corrupt"] += 1


def _check_runs(
    jrn: journal.Journal, events: dict[UUID, list[journal.RecordedEvent]], records: int, counts: Counter[str]
) -> None:
    named = {found.run_id for found in jrn.verify()}
    assert len(named) <= records + 1
    for run_id, recorded in events.items():
        try:
            same = jrn.read(run_id) == recorded
        except journal.InvalidStream:
            same = False
        assert same or run_id in named or None in named
        counts["changed"] += not same
