"""What processes of the soak tests do: `python soak_children.py ROLE HOME …`, until killed or until a line comes in.

An exit code other than 0, and any traceback, is a failure that the parent sees.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers import assert_whole, say

import casstore
import journal
from journal import AttemptLost, Claimed, Conflict, Fenced

OVERTAKEN = (AttemptLost, Claimed, Conflict, Fenced)
TURNS = 12


def rounds(pause_s: float = 0.0) -> Iterator[int]:
    """Count until somebody writes to our input; with a pause, so that others get on as well."""
    count = 0
    while not select.select([sys.stdin], [], [], pause_s)[0]:
        yield count
        count += 1


# -- runs with an end that is known beforehand ----------------------------------------------------------


def plan_of(manifest: dict[str, Any]) -> list[str]:
    return [f"soak.step.s{n}" for n in range(manifest["states"])]


def final_context(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the context of a whole run is, however often it was killed."""
    context: dict[str, Any] = {"messages": ["hello"] * 50, "sum": 0}
    for number, state_id in enumerate(plan_of(manifest)):
        context = after_state(context, state_id, number * manifest["by"])
    return context


def after_state(context: dict[str, Any], state_id: str, fact: int) -> dict[str, Any]:
    return {"messages": [*context["messages"], f"{state_id} found {fact}"], "sum": context["sum"] + fact}


class Flaky(Exception):
    """A handler that fails now and then."""


def work_on(jrn: journal.Journal, run: journal.Run, rng: random.Random, *, fails: float = 0.1) -> None:
    """Go on to the end. `fails` is how often a handler does."""
    manifest = run.manifest()
    plan = plan_of(manifest)
    while run.status is None and run.next is not None:
        with run.enter(run.next) as attempt:
            number = plan.index(attempt.state_id)
            shared = jrn.store.put_value({"shared": rng.randrange(6)})
            attempt.emit("note", {"link": jrn.store.put_value({"child": shared, "n": rng.randrange(20)})})
            fact = attempt.fact(f"fact {number}", lambda number=number: number * manifest["by"])
            if rng.random() < fails:
                raise Flaky
            attempt.output(b"output %d" % rng.randrange(50))
            context = after_state(attempt.context(), attempt.state_id, fact)
            following = plan[number + 1] if rng.random() < 0.3 and number + 1 < len(plan) else None
            attempt.complete(context, then=following)
    if run.status is None:
        run.complete()


def writer(home: Path, seed: int) -> None:
    """Resume what was left, start new runs, release some."""
    rng = random.Random()
    with journal.open(home) as jrn:
        for _ in rounds():
            orphans = list(jrn.recoverable(limit=5))
            try:
                if orphans:
                    run = jrn.resume(rng.choice(orphans).run_id)
                else:
                    manifest = {"by": seed + 1, "states": rng.randrange(1, 7), "n": rng.randrange(1 << 40)}
                    context = {"messages": ["hello"] * 50, "sum": 0}
                    run = jrn.start_run(
                        "soak", manifest=manifest, context=context, plan=plan_of(manifest), max_attempts=9999
                    )
            except (*OVERTAKEN, casstore.MissingArtifact):
                continue
            try:
                work_on(jrn, run, rng)
            except Flaky:
                run.release()
            except casstore.MissingArtifact:  # a collector was faster, before the event named it
                run.release()
            except OVERTAKEN:
                continue


def collector(home: Path) -> None:
    """Each time by another policy; live runs must not notice."""
    rng = random.Random()
    with journal.open(home) as jrn:
        for _ in rounds(0.05):
            try:
                jrn.store.gc(jrn, policy=any_policy(rng), explain=rng.random() < 0.2, force=True)
            except casstore.Busy:
                continue


def any_policy(rng: random.Random) -> casstore.Policy:
    """What a gc may be told to keep, from nothing to much."""
    final_only = rng.random() < 0.4
    return casstore.Policy(
        keep_completed=rng.choice([0, 1, 3]) or int(final_only), keep_failed=rng.choice([None, 0, 2]),
        keep_cancelled=rng.choice([None, 0, 2]), keep_last=rng.choice([0, 0, 2, 20]), final_only=final_only,
        keep_outputs=final_only and rng.random() < 0.5, quota=rng.choice([None, None, 0, 50_000, 10**6]),
        grace=rng.choice([0, 0, 0, 1]), quarantine=rng.choice([0, 0, 1, 2]),
        max_time=rng.choice([None, None, 0.05]), max_bytes=rng.choice([None, None, 10_000]),
    )  # fmt: skip


def maintainer(home: Path) -> None:
    """A program with its own gc in the background, that also undeletes now and then what others' quarantine holds."""
    rng = random.Random()
    eager = casstore.Policy(
        keep_completed=1, grace=0, quarantine=1, auto=casstore.AutoPolicy(min_interval=0, after_artifacts=20)
    )
    with journal.open(home) as jrn, casstore.Maintenance(jrn.store, jrn, policy=eager, every=0.1) as maintenance:
        for _ in rounds(0.2):
            assert isinstance(maintenance.last_error, casstore.GcRefused | None) and not _refused(maintenance)
            buried = [found.id for found in jrn.store.buried()]
            if buried:
                try:
                    jrn.store.undelete(rng.sample(buried, min(3, len(buried))))
                except (casstore.NotFound, casstore.MissingArtifact):  # a collector ended its time
                    continue


def _refused(maintenance: casstore.Maintenance) -> bool:
    """Whether it found damage; that nearly all would go is none."""
    error = maintenance.last_error
    return error is not None and error.fields["reason"] != "implausible_share"  # type: ignore[attr-defined]


def compactor(home: Path) -> None:
    with casstore.open(home) as store:
        for _ in rounds(0.3):
            try:
                store.compact()
            except casstore.Busy:
                continue


def copier(home: Path, place: Path) -> None:
    """Back up, open the copy, and look at all of it."""
    with journal.open(home) as jrn:
        for count in rounds(0.3):
            copy = place / f"copy-{os.getpid()}-{count}"
            try:
                jrn.backup(copy)
            except casstore.Busy:
                continue
            with journal.open(copy) as other:
                assert_whole(other)
            shutil.rmtree(copy)


# -- racers ---------------------------------------------------------------------------------------------


def racer(home: Path, ids: list[str], told: Path) -> None:
    """Resume whatever can be resumed, say what was entered, and complete it unless overtaken.

    Claims last 0.2 s, so that a stopped process is overtaken; when it goes on it must be told.
    """
    rng, me = random.Random(), uuid.uuid4().hex
    with journal.open(home) as jrn:
        jrn._claim_ttl_ms = 200
        for _ in rounds():
            run_id = rng.choice(ids)
            try:
                run = jrn.resume(run_id, steal=rng.random() < 0.05)
                if run.status is not None:
                    continue
                turn = len(run.state.completed)
                if run.next is None:
                    run.complete()
                    continue
                with run.enter(run.next) as attempt:
                    say(told, run_id, attempt.state_id, attempt.attempt, me)
                    attempt.emit("working", {"by": me})
                    if rng.random() < 0.2:
                        raise Flaky
                    attempt.complete({"by": me, "attempt": attempt.attempt, "turn": turn})
                run.release()
            except (*OVERTAKEN, Flaky):
                continue


# -- the feed -------------------------------------------------------------------------------------------


def emitter(home: Path) -> None:
    with journal.open(home) as jrn:
        run = jrn.start_run("feed", manifest={}, context={})
        for number in rounds():
            run.emit("n", {"n": number})


def tail(home: Path, out: Path) -> None:
    """Copy the feed to a file; what stands there beyond the cursor was not acknowledged and is cut off."""
    with journal.open(home) as jrn:
        cursor = jrn.cursor("tail")
        lines = out.read_text().splitlines(keepends=True) if out.exists() else []
        kept = [line for line in lines if line.endswith("\n") and int(line.split()[0]) <= cursor]
        out.write_text("".join(kept))
        for _ in rounds():
            for item in jrn.feed(after=cursor, follow=True, timeout=0.05):
                assert item.position == cursor + 1
                say(out, item.position, item.run_id, item.seq)
                cursor = item.position
                if cursor % 16 == 0:
                    break
            jrn.move_cursor("tail", cursor)


# -- a disk that is full --------------------------------------------------------------------------------


def filler(home: Path, seconds: float, seed: int) -> None:
    """Every kind of write meets a full disk; what was acknowledged is there, then and after there is room again."""
    from full_disk import FullDisk

    FullDisk(home, random.Random(seed)).run(seconds)


if __name__ == "__main__":
    role, given = sys.argv[1], sys.argv[2:]
    where = Path(given[0])
    match role:
        case "writer":
            writer(where, int(given[1]))
        case "collector":
            collector(where)
        case "maintainer":
            maintainer(where)
        case "compactor":
            compactor(where)
        case "copier":
            copier(where, Path(given[1]))
        case "racer":
            racer(where, given[2:], Path(given[1]))
        case "emitter":
            emitter(where)
        case "tail":
            tail(where, Path(given[1]))
        case "filler":
            filler(where, float(given[1]), int(given[2]))
