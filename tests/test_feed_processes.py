"""The feed under many writing processes, and a follower that is killed at every step and goes on at its cursor."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest
from helpers import SOAK_SECONDS, exit_code, fork_child, say, until_deadline
from kills import kill_at

import journal
from casstore import steps
from journal import DomainEvent, RecordedEvent

WRITERS = 8
TAIL = UUID(int=0xF0 << 120)
STEPS = 12  # some appends of the follower have fewer, so that every step of one is among them


def write(home: Path, number: int, events: int, told: Path) -> None:
    """Append to two runs, now to one and now to both; tell of each append what was there before and where it stands."""
    runs = [UUID(int=(number + 1 << 8) + place) for place in range(2)]
    with journal.open(home) as jrn:
        for run_id in runs:
            jrn.start_run("flow", manifest={}, context={}, run_id=run_id, claim=False)
        for count in range(events):
            before = jrn.position()
            note = DomainEvent("note", {"by": number, "n": count})
            wanted = runs if count % 5 == 0 else runs[count % 2 :][:1]
            found = jrn.append_many({run_id: (jrn.head(run_id), [note]) for run_id in wanted})
            for appended in found.values():
                assert appended.position > before  # commit order: after whatever it could have seen
                say(told, number, count, appended.position)


def tail(home: Path, stop: int) -> None:
    """For each event of others an event of its own, with the cursor; killed at step `stop`, 0: never. Ends where
    nothing comes any more."""
    kill_at(stop)
    with journal.open(home) as jrn:
        if jrn.head(TAIL) == 0:
            jrn.start_run("flow", manifest={}, context={}, run_id=TAIL, claim=False)
        own = jrn.read(TAIL)
        head, cursor = len(own), jrn.cursor("tail")
        assert cursor == (_at(own[-1]) if head > 2 else 0)  # both are moved, or neither
        last = cursor
        for item in jrn.feed(after=cursor, follow=True, timeout=0.1):
            assert item.position == last + 1
            last = item.position
            if item.run_id != TAIL:
                steps.reach("tail.read")
                jrn.append(TAIL, head, [DomainEvent("copied", {"at": last})], cursors={"tail": last})
                head += 1
                steps.reach("tail.moved")


def _at(item: RecordedEvent) -> int:
    assert isinstance(item.event, DomainEvent)
    at: int = item.event.payload["at"]
    return at


def follow_while_written(home: Path, events: int, rng: random.Random) -> Counter[str]:
    """One round: all writers write, the follower dies again and again, and everything is there at the end."""
    told = home.with_name(home.name + "-told")
    journal.open(home).close()
    writers = [fork_child(lambda number=number: write(home, number, events, told)) for number in range(WRITERS)]
    counts, running = Counter[str](), set(writers)
    while True:
        for pid in list(running):
            if os.waitpid(pid, os.WNOHANG) != (0, 0):  # its exit code shows in what it did not write
                running.remove(pid)
        over = not running
        stop = counts["lives"] + 1 if counts["lives"] < 2 * STEPS else rng.randrange(1, 8 * STEPS)
        code = exit_code(fork_child(lambda stop=stop: tail(home, stop if stop <= STEPS else stop - STEPS)))
        assert code in (0, -signal.SIGKILL)
        counts["lives"] += 1
        counts["kills"] += code != 0
        if over and code == 0:
            break
    with journal.open(home) as jrn:
        feed = list(jrn.feed())
        assert [item.position for item in feed] == list(range(1, jrn.position() + 1))
        others = [item.position for item in feed if item.run_id != TAIL]
        assert [_at(item) for item in jrn.read(TAIL, 3)] == others
        assert jrn.cursor("tail") == others[-1]
        by_position = {item.position: item.event for item in feed}
        newest: dict[str, int] = {}
        lines = [line.split() for line in told.read_text().splitlines()]
        for number, count, position in lines:
            assert by_position[int(position)] == DomainEvent("note", {"by": int(number), "n": int(count)})
            assert newest.get(number, 0) < int(position)
            newest[number] = int(position)
        assert len(lines) == WRITERS * sum(2 if count % 5 == 0 else 1 for count in range(events))
        for run_id in {item.run_id for item in feed}:
            seqs = [item.seq for item in feed if item.run_id == run_id]
            assert all(later == seq + 1 for seq, later in pairwise([0, *seqs]))
        assert jrn.verify() == []
    counts["events"] += len(feed)
    return counts


def test_a_follower_that_is_killed_at_every_step(tmp_path: Path) -> None:
    """Eight processes write meanwhile: its own events tell of every event of others once, in order."""
    counts = follow_while_written(tmp_path / "home", 8, random.Random(1))
    assert counts["kills"] >= STEPS


@pytest.mark.soak
def test_a_follower_that_is_killed_at_every_step_for_long(tmp_path: Path) -> None:
    """The same with more events, again and again."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    counts, rng = Counter[str](), random.Random(seed)
    for number in until_deadline(SOAK_SECONDS):
        counts += follow_while_written(tmp_path / f"home{number}", 100, rng)
    print(counts)
