"""Streams of kernel events as the recorder writes them, for homes with many events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

import journal
from benchmarks.measure import disk_bytes
from benchmarks.peers import run_uuid
from casstore import ArtifactId
from journal.events import Event, run_policy

MAX_ATTEMPTS: Final = 1000  # a run that is resumed again and again must not end as failed


def appends(count: int, manifest: ArtifactId, snapshot: ArtifactId, *, ends: bool = True) -> Iterator[list[Event]]:
    """A run of `count` events in the appends of a recorder that enters each state with the completion of the one
    before. An odd count ends the run where `ends` is given; else the last event is the one that comes then, so that
    the run of an odd count is left in the middle of an attempt."""
    state = 0
    batch: list[Event] = [
        journal.RunStarted(op_id="bench", manifest_id=manifest, initial_snapshot_id=snapshot),
        run_policy(None, MAX_ATTEMPTS),
    ]
    made = len(batch)
    while made < count:
        if ends and made == count - 1:
            batch.append(journal.RunCompleted(status=journal.RunStatus.COMPLETED, final_snapshot_id=snapshot))
        else:
            name = f"bench.steps.s{state}"
            batch.append(journal.StateEntered(state_id=name, attempt=0, base_snapshot_id=snapshot))
            if made + 1 < count:
                yield batch
                batch = [journal.StateCompleted(state_id=name, context_snapshot_id=snapshot)]
                made += 1
                state += 1
        made += 1
    yield batch


def fill(
    jrn: journal.Journal, runs: Sequence[UUID], count: int, interleaved: int, *, ends: bool = True, at_least: int = 1
) -> None:
    """Runs of `count` events, `interleaved` of them at a time, an append of each in one commit. Appends of a run are
    put together until they have `at_least` so many events: quicker, where only what is there afterwards matters."""
    manifest, snapshot = jrn.store.put_value({}), jrn.store.put_value({"messages": []})
    shape: list[list[Event]] = []
    for batch in appends(count, manifest, snapshot, ends=ends):
        if shape and len(shape[-1]) < at_least:
            shape[-1] += batch
        else:
            shape.append(batch)
    for first in range(0, len(runs), interleaved):
        group, head = runs[first : first + interleaved], 0
        for batch in shape:
            jrn.append_many(dict.fromkeys(group, (head, batch)))
            head += len(batch)


def disk_per_event(home: Path, count: int, interleaved: int, runs: int) -> float:
    """Bytes of the journal's data file for each event, with all its tables."""
    with journal.open(home / "home") as jrn:
        fill(jrn, [run_uuid(number) for number in range(runs)], count, interleaved)
        if jrn.position() != runs * count:
            raise AssertionError(f"{jrn.position()} events instead of {runs * count}")
    return disk_bytes(home / "home" / "journal" / "data.mdb") / (runs * count)
