"""Forgetting a run: what goes, what stays, and that a kill leaves it whole or gone."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import journal
from casstore import steps
from casstore.testing import FakeClock
from journal import DomainEvent, RunCompleted, reading
from journal.rows import TABLES
from journal.testing import memory_journal
from tests.command_line import casstore as command_line

A = "flow.step.a"
OLD, OTHER = UUID(int=0xA1 << 120), UUID(int=0xA2 << 120)


@pytest.fixture(params=["lmdb", "memory"])
def jrn(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[journal.Journal]:
    clock = FakeClock()
    lmdb = request.param == "lmdb"
    with journal.open(tmp_path / "home", clock=clock) if lmdb else memory_journal(clock=clock) as jrn:
        yield jrn


def ended(jrn: journal.Journal, run_id: UUID, notes: int = 0, *, value: int = 0) -> list[journal.RecordedEvent]:
    """A completed run with a fact and a state, and so many notes in appends of their own."""
    run = jrn.start_run("flow", manifest={"run": str(run_id)}, context={"n": value}, plan=[A], run_id=run_id)
    with run.enter(A) as attempt:
        attempt.fact("k", value)
        attempt.complete({"n": value + 1})
    for n in range(notes):
        run.emit("note", {"n": n})
    run.complete()
    return jrn.read(run_id)


def rows(jrn: Any) -> dict[bytes, dict[bytes, bytes]]:
    """Every row of the journal. What is staged belongs to the store, and gc takes it there."""
    jrn.store.staging.settle()
    with jrn._backend._tables.read() as txn:
        return {table: dict(txn.scan(table)) for table in TABLES}


def test_nothing_of_it_is_left(jrn: journal.Journal) -> None:
    """Every row goes; what stays is what keeps positions, numbers and epochs from being given out again."""
    ended(jrn, OTHER)
    before = rows(jrn)
    events = ended(jrn, OLD, notes=3)
    newest = jrn.position()
    assert jrn.forget(OLD) == len(events)
    after = rows(jrn)
    assert after.pop(b"meta1").keys() - before.pop(b"meta1").keys() == {b"floor", b"epoch"}
    assert after == before
    assert jrn.position() == newest and jrn.verify() == []
    assert jrn.head(OLD) == 0 and jrn.read(OLD) == [] and [row.run_id for row in jrn.runs()] == [OTHER]
    with pytest.raises(journal.RunNotFound):
        jrn.forget(OLD)


def test_only_ended_runs(jrn: journal.Journal) -> None:
    """A live run is refused, an unknown one not found; nothing changes."""
    jrn.start_run("flow", manifest={}, context={}, run_id=OLD).emit("note")
    before = rows(jrn)
    with pytest.raises(journal.RunLive) as caught:
        jrn.forget(OLD)
    assert caught.value.fields == {"run_id": OLD, "head": 3}
    with pytest.raises(journal.RunNotFound):
        jrn.forget(OTHER)
    with pytest.raises(journal.InvalidRunId):
        jrn.forget("no id")
    assert rows(jrn) == before


def test_its_artifacts_go_with_the_next_gc(jrn: journal.Journal) -> None:
    """Those that only it named; the other run's stay."""
    mine = {name for item in ended(jrn, OLD, value=5) for _, name in journal.links(item.event)}
    other = {name for item in ended(jrn, OTHER) for _, name in journal.links(item.event)}
    assert set(jrn.store) == mine | other and not mine & other
    jrn.store.gc(jrn, grace=0, force=True)
    assert set(jrn.store) == mine | other
    jrn.forget(OLD)
    jrn.store.gc(jrn, grace=0, force=True)
    assert set(jrn.store) == other


def test_feeds_go_on_after_the_gap(jrn: journal.Journal) -> None:
    """Also where what was forgotten stood last, and the next event takes a position above it."""
    first = ended(jrn, OTHER)
    ended(jrn, OLD, notes=2)
    newest = jrn.position()
    jrn.forget(OLD)
    assert list(jrn.feed()) == first and list(jrn.feed(after=newest)) == []
    third = UUID(int=3)
    jrn.start_run("flow", manifest={}, context={}, run_id=third)
    assert [(item.run_id, item.position) for item in jrn.feed(after=newest)] == [
        (third, newest + 1), (third, newest + 2)
    ]  # fmt: skip
    assert jrn.verify() == []


def test_a_reused_id_starts_fresh(jrn: journal.Journal) -> None:
    """States, facts, claims and epochs of the old run are not those of the new one, nor the other way round."""
    old = jrn.start_run("flow", manifest={}, context={"n": 0}, plan=[A], run_id=OLD)
    with old.enter(A) as attempt:
        attempt.fact("k", 1)
        attempt.complete({"n": 1})
    old.complete()
    state = jrn.run_state(OLD)
    old_claim = jrn.claim(jrn.start_run("flow", manifest={}, context={}, run_id=OTHER, claim=False).run_id)
    jrn.cancel(OTHER)
    for run_id in (OLD, OTHER):
        jrn.forget(run_id)
    with pytest.raises(journal.RunNotFound):
        state.facts  # noqa: B018 - read from the journal when asked for
    new = jrn.start_run("flow", manifest={}, context={"n": 7}, plan=[A], run_id=OLD)
    with pytest.raises(journal.RunNotFound):
        state.attempts  # noqa: B018
    with new.enter(A) as attempt:
        assert attempt.attempt == 0 and attempt.context() == {"n": 7}
        assert attempt.fact("k", lambda: 2) == 2
        attempt.complete({"n": 8})
    assert [item.seq for item in jrn.read(OLD)] == list(range(1, jrn.head(OLD) + 1))
    again = jrn.start_run("flow", manifest={}, context={}, run_id=OTHER)
    with pytest.raises(journal.Fenced):
        jrn.append(OTHER, 2, [DomainEvent("note")], epoch=old_claim.epoch)
    with pytest.raises(journal.Fenced):
        jrn.renew(old_claim)
    jrn.release(old_claim)
    with pytest.raises(journal.Claimed):
        jrn.claim(OTHER, "somebody")
    again.emit("note")
    assert jrn.verify() == []


def test_a_reader_between_two_pages(jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears that the run is gone, and never reads on in a new run of the same id; gc's roots just end."""
    monkeypatch.setattr("journal.reading.PAGE_EVENTS", 4)
    ended(jrn, OLD, notes=8)
    events = reading.read_run(jrn._backend, OLD, 1, None)
    roots = jrn.live_roots(completed_after_ms=0)
    next(events), next(roots)
    jrn.forget(OLD)
    ended(jrn, OLD, notes=9)
    assert [root.seq for root in roots] == [1, 3, 4]  # of the page that was read
    with pytest.raises(journal.RunNotFound):
        list(events)


def test_rows_that_lead_astray_are_refused(jrn: journal.Journal) -> None:
    """A lost row of a batch would make the one before it cover what another run wrote: nothing is removed."""
    jrn.start_run("flow", manifest={}, context={}, run_id=OLD, claim=False)
    jrn.start_run("flow", manifest={}, context={}, run_id=OTHER, claim=False)
    jrn.append(OLD, 2, [DomainEvent("note"), RunCompleted(status="completed")])
    with jrn._backend._tables.write() as txn:  # type: ignore[attr-defined]
        (*_, last) = [key for key, _ in txn.scan(b"rs1") if key.startswith(b"\x01\x01")]
        txn.delete(b"rs1", last)
    before = rows(jrn)
    with pytest.raises(journal.InvalidStream) as caught:
        jrn.forget(OLD)
    assert caught.value.rule == "bad_sequence"
    assert rows(jrn) == before and len(jrn.read(OTHER)) == 2


FORGET = """
import sys
from uuid import UUID
import journal
from tests.kills import kill_at
home, stop = sys.argv[1], int(sys.argv[2])
journal.forgetting.FORGET_EVENTS = 5
with journal.open(home) as jrn:
    reached = kill_at(stop, "forget.")
    print(jrn.forget(UUID(int=0xA1 << 120)), len(reached))
"""


def test_killed_at_each_step(tmp_path: Path) -> None:
    """The run is whole or gone for everybody; what is left goes with the next forget, of it or of another run."""
    stop, killed, halves = 0, 1, 0
    while killed:
        stop += 1
        home = tmp_path / str(stop)
        with journal.open(home) as jrn:
            events, other = ended(jrn, OLD, notes=20), ended(jrn, OTHER)
            newest = jrn.position()
        child = subprocess.run([sys.executable, "-c", FORGET, str(home), str(stop)], capture_output=True, text=True)
        killed = child.returncode
        assert killed in (0, -signal.SIGKILL), child.stderr
        with journal.open(home) as jrn:
            assert jrn.verify() == [] and jrn.position() == newest
            seen = jrn.read(OLD)
            assert seen in ([], events)
            assert list(jrn.feed()) == [*seen, *other]
            jrn.store.gc(jrn, grace=0, keep_completed=0, dry_run=True)
            left = len(rows(jrn)[b"ev1"])
            halves += left not in (len(events) + len(other), len(other))
            if stop % 2:
                assert jrn.forget(OTHER) == len(other)
                if not seen:
                    assert rows(jrn)[b"ev1"] == {}
            elif killed and (seen or left != len(other)):
                assert jrn.forget(OLD) == len(events)
                assert len(rows(jrn)[b"ev1"]) == len(other)
            assert jrn.verify() == [] and jrn.position() == newest
            fresh = jrn.start_run("flow", manifest={}, context={}, run_id=OTHER if stop % 2 else UUID(int=9))
            assert jrn.position() == newest + 2 and jrn.read(fresh.run_id)[0].position == newest + 1
    assert stop > 10 and halves > 3


def test_long_runs_go_in_parts(jrn: journal.Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others append between two parts, and a batch longer than a part is cut."""
    monkeypatch.setattr("journal.forgetting.FORGET_EVENTS", 3)
    ended(jrn, OLD, notes=1)
    jrn.append(OTHER, 0, [item.event for item in jrn.read(OLD)])
    reached: list[str] = []

    def listener(step: str) -> None:
        reached.append(step)
        if step == "forget.part":
            steps.listen(None)
            jrn.start_run("flow", manifest={}, context={}, claim=False)
            assert jrn.verify() == [] and jrn.head(OTHER) == 0
            steps.listen(listener)

    steps.listen(listener)
    try:
        jrn.forget(OTHER)
    finally:
        steps.listen(None)
    assert reached.count("forget.part") >= 2 and reached[-1] == "forget.done"
    assert jrn.verify() == [] and not any(key.startswith(b"forgetting") for key in rows(jrn)[b"meta1"])


def test_on_the_command_line(tmp_path: Path) -> None:
    """A prefix names the run; a live one ends with 5, an unknown one with 1."""
    with journal.open(tmp_path / "home") as jrn:
        events = ended(jrn, OLD)
        jrn.start_run("flow", manifest={}, context={}, run_id=OTHER)

    def run(*line: str) -> tuple[int, dict[str, Any]]:
        return command_line(*line, "--json", home=tmp_path / "home").coded

    assert run("forget", "a100") == (0, {"run_id": str(OLD), "events": len(events)})
    code, document = run("forget", "a200")
    assert (code, document["error"]["code"]) == (5, "run_live")
    code, document = run("forget", str(OLD))
    assert (code, document["error"]["code"]) == (1, "run_not_found")
