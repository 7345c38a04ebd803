"""For users' tests and for other backends: an in-memory journal, and the conformance suite.

The suite is plain functions that take a factory of open, empty journals: run each on yours. They import no test
framework and raise AssertionError.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from uuid import UUID

from casstore.ids import ArtifactId
from casstore.processes import current_process
from casstore.stage import Stage
from casstore.tables import MemoryTables
from casstore.testing import FakeClock, memory_store
from journal import errors, events
from journal.envelopes import analyze, check_append, orphan_error
from journal.events import (
    DomainEvent,
    Event,
    RecordedEvent,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
    StateFailed,
)
from journal.failures import ErrorInfo, RunStatus, StateError
from journal.log import Journal
from journal.rows import TABLES
from journal.table_backend import TableBackend
from journal.views import RunView

__all__ = ["CONFORMANCE", "memory_journal"]

Factory = Callable[[Callable[[], float]], Journal]

RUN, OTHER, THIRD = UUID(int=0xA1 << 120), UUID(int=0xA2 << 120), UUID(int=0xB1 << 120)
ONE, TWO = "suite.step.one", "suite.step.two"
TOKEN, TOKEN_2 = bytes(range(16)), bytes(range(1, 17))


def memory_journal(*, clock: Callable[[], float] = time.time, **options: Any) -> Journal:
    """A journal with a store that keep everything in memory, with the meaning of the real ones."""
    tables = MemoryTables(TABLES)
    backend, store = TableBackend(tables), memory_store(clock=clock, stage=Stage(lambda: tables))
    backend.bind(store.uuid)
    return Journal(backend, store, name="memory", clock=clock, on_close=store.close, **options)


# -- building streams -----------------------------------------------------------------------------------


def _put(journal: Journal, text: str) -> ArtifactId:
    return journal.store.put(text.encode())


def _started(journal: Journal, op_id: str = "suite") -> RunStarted:
    return RunStarted(
        op_id=op_id, manifest_id=_put(journal, "manifest"), initial_snapshot_id=_put(journal, "initial")
    )  # fmt: skip


def _entered(base: ArtifactId, state: str = ONE, attempt: int = 0) -> StateEntered:
    return StateEntered(state_id=state, attempt=attempt, base_snapshot_id=base)


def _failed(state: str = ONE, *, retryable: bool = True, details: Any = None) -> StateFailed:
    info = ErrorInfo(code="broken", category="rpc", retryable=retryable, message="it broke", details=details)
    return StateFailed(state_id=state, error=StateError(info=info))


def _whole_run(journal: Journal) -> list[Event]:
    """One event of each kind and each well-known name, in a legal order."""
    initial, after = _put(journal, "initial"), _put(journal, "after")
    fact, manifest = _put(journal, "fact"), _put(journal, "manifest")
    return [
        _started(journal),
        events.run_policy([ONE, TWO], 5),
        _entered(initial),
        events.fact_recorded("price|btc", fact, {"from": "suite"}),
        events.op_boundary("suite/fetch", "begin"),
        StateFailed(state_id=ONE, error=StateError(info=ErrorInfo(code="c", retryable=True, details={"link": fact})),
                    failure_snapshot_id=after),
        _entered(initial, attempt=1),
        events.artifact_written(fact, "output", {"n": 1}),
        events.child_run_spawned(OTHER, manifest),
        events.child_run_completed(OTHER, "completed", after),
        StateCompleted(state_id=ONE, context_snapshot_id=after),
        DomainEvent("note", {"text": "é", "n": -1, "f": 1.5, "b": b"\x00", "none": None, "link": fact}, fact),
        _entered(after, TWO),
        StateCompleted(state_id=TWO, context_snapshot_id=initial),
        events.run_ended("done"),
        RunCompleted(status=RunStatus.COMPLETED, final_snapshot_id=initial),
    ]  # fmt: skip


# -- the suite ------------------------------------------------------------------------------------------


def an_unknown_run_is_empty(factory: Factory) -> None:
    """Scenario 1: head 0, nothing to read, nothing listed; asked for its state it is not found."""
    with factory(FakeClock()) as journal:
        assert journal.head(RUN) == 0 and journal.read(RUN) == [] and list(journal.runs()) == []
        assert journal.position() == 0 and list(journal.feed()) == []
        for call in (journal.run_state, journal.resolve, journal.resume, journal.cancel):
            _raises(errors.RunNotFound, partial(call, str(RUN)))


def events_come_back(factory: Factory) -> None:
    """Scenario 2: every kind of event is read as it was written, with its seq, position and time."""
    clock = FakeClock(1_700_000_000.25)
    with factory(clock) as journal:
        written = _whole_run(journal)
        first = journal.append(RUN, 0, written[:5])
        clock.advance(1)
        second = journal.append(str(RUN), 5, written[5:])
        assert (first.first_seq, first.last_seq, first.position, first.existing) == (1, 5, 5, False)
        assert (second.first_seq, second.last_seq, second.position) == (6, len(written), len(written))
        found = journal.read(RUN)
        assert [item.event for item in found] == written
        assert [item.seq for item in found] == [item.position for item in found] == list(range(1, len(written) + 1))
        assert {item.timestamp_ms for item in found[:5]} == {1_700_000_000_250}
        assert {item.timestamp_ms for item in found[5:]} == {1_700_000_001_250}
        assert list(journal.feed()) == found
        assert [row[:2] for row in journal.read_raw(RUN)] == [(item.seq, item.position) for item in found]
        assert journal.verify() == []


def recorded_events_keep_their_times(factory: Factory) -> None:
    """Imported into another journal the events are byte for byte the same, times included."""
    clock = FakeClock()
    with factory(clock) as journal:
        journal.append(RUN, 0, _whole_run(journal))
        recorded = journal.read(RUN)
        with memory_journal(clock=FakeClock(5.0)) as other:
            for name in ("manifest", "initial", "after", "fact"):
                _put(other, name)
            other.append(RUN, 0, recorded)
            assert other.read(RUN) == recorded
            assert other.chain_head(RUN, len(recorded)) == journal.chain_head(RUN, len(recorded))


def a_token_makes_an_append_repeatable(factory: Factory) -> None:
    """Scenario 3: the same batch and token again is existing, even if more follow; otherwise a Conflict."""
    with factory(FakeClock()) as journal:
        batch: list[Event] = [_started(journal), DomainEvent("note", {"n": 1})]
        first = journal.append(RUN, 0, batch, token=TOKEN)
        journal.append(RUN, 2, [DomainEvent("more")])
        again = journal.append(RUN, 0, batch, token=TOKEN)
        assert again.existing and not first.existing
        assert (again.first_seq, again.last_seq, again.position) == (1, 2, first.position) == (1, 2, 2)
        other = [batch[0], DomainEvent("note", {"n": 2})]
        for events_, token in ((batch, None), (batch, TOKEN_2), (other, TOKEN), (batch[:1], TOKEN)):
            error = _raises(errors.Conflict, partial(journal.append, RUN, 0, events_, token=token))
            assert error.fields["head"] == 3
        assert journal.head(RUN) == 3 == journal.position()
        # Without a token nothing counts as a retry, though the content is the same.
        journal.append(RUN, 3, [DomainEvent("same")])
        _raises(errors.Conflict, partial(journal.append, RUN, 3, [DomainEvent("same")]))


def a_stale_position_is_a_conflict(factory: Factory) -> None:
    """Scenario 4: another batch at a taken position, or past the head, changes nothing and tells the head."""
    with factory(FakeClock()) as journal:
        journal.append(RUN, 0, [_started(journal)])
        for expected in (0, 2, 7):
            error = _raises(errors.Conflict, partial(journal.append, RUN, expected, [DomainEvent("note")]))
            assert error.fields == {"run_id": RUN, "expected_seq": expected, "head": 1}
        assert journal.head(RUN) == 1


def imports_are_checked_first(factory: Factory) -> None:
    """Scenario 5: a recorded event of another run, or a gap, is refused before the position is compared."""
    with factory(FakeClock()) as journal:
        journal.append(RUN, 0, [_started(journal)])
        (item,) = journal.read(RUN)
        wrong = RecordedEvent(run_id=OTHER, seq=1, position=9, timestamp_ms=1, event=item.event)
        gap = RecordedEvent(run_id=RUN, seq=3, position=9, timestamp_ms=1, event=DomainEvent("x"))
        cases = ((0, wrong, "wrong_run_id"), (1, gap, "bad_sequence"), (9, gap, "bad_sequence"))
        for expected, recorded, rule in cases:
            error = _raises(errors.InvalidEvent, partial(journal.append, RUN, expected, [recorded]))
            assert error.code == rule


def an_empty_batch_tells_the_head(factory: Factory) -> None:
    """Scenario 6: it checks the position and creates nothing."""
    with factory(FakeClock()) as journal:
        assert journal.append(RUN, 0, []).last_seq == 0
        assert journal.head(RUN) == 0 and list(journal.runs()) == []
        _raises(errors.Conflict, partial(journal.append, RUN, 1, []))
        journal.append(RUN, 0, [_started(journal)])
        assert journal.append(RUN, 1, []).last_seq == 1
        _raises(errors.Conflict, partial(journal.append, RUN, 0, []))
        assert journal.head(RUN) == 1


def reads_are_clamped(factory: Factory) -> None:
    """Scenario 7: seqs are names, inclusive on both ends, and what is not there is left out."""
    with factory(FakeClock()) as journal:
        notes = [DomainEvent("note", {"n": n}) for n in range(1200)]
        journal.append(RUN, 0, [_started(journal), *notes[:700]])
        journal.append(OTHER, 0, [_started(journal)])
        journal.append(RUN, 701, notes[700:])
        for first, last, wanted in ((1, None, 1201), (-5, 3, 3), (0, 0, 0), (5, 4, 0), (1202, None, 0), (700, 703, 4),
                                    (1201, 9999, 1), (3, 3, 1)):  # fmt: skip
            found = journal.read(RUN, first, last)
            assert len(found) == wanted
            assert [item.seq for item in found] == list(range(max(first, 1), max(first, 1) + wanted))
            assert journal.read(RUN, first, last, reverse=True) == found[::-1]


def several_runs_at_once(factory: Factory) -> None:
    """Scenario 8: all or nothing; one stale run leaves all unchanged; a run twice is an error."""
    with factory(FakeClock()) as journal:
        note = DomainEvent("note")
        both = journal.append_many({RUN: (0, [_started(journal)]), OTHER: (0, [_started(journal), note])}, token=TOKEN)
        assert [(found.last_seq, found.existing) for found in both.values()] == [(1, False), (2, False)]
        assert [found.position for found in both.values()] == [1, 3]
        again = journal.append_many({RUN: (0, [_started(journal)]), OTHER: (0, [_started(journal), note])}, token=TOKEN)
        assert [found.existing for found in again.values()] == [True, True]
        _raises(errors.Conflict, lambda: journal.append_many({RUN: (1, [note]), OTHER: (1, [note])}))
        _raises(errors.Conflict, lambda: journal.append_many({THIRD: (0, [_started(journal)]), OTHER: (1, [note])}))
        # One that was made before and one that was not are no retry.
        halves: dict[UUID | str, Any] = {RUN: (0, [_started(journal)]), THIRD: (0, [_started(journal)])}
        _raises(errors.Conflict, lambda: journal.append_many(halves, token=TOKEN))
        _raises(errors.InvalidArgument, lambda: journal.append_many({RUN: (1, [note]), str(RUN): (2, [note])}))
        assert (journal.head(RUN), journal.head(OTHER), journal.head(THIRD)) == (1, 2, 0)


def illegal_streams_are_refused(factory: Factory) -> None:
    """Scenario 13: each broken rule has its word, and nothing of the batch is written."""
    with factory(FakeClock()) as journal:
        started, initial, after = _started(journal), _put(journal, "initial"), _put(journal, "after")
        done = StateCompleted(state_id=ONE, context_snapshot_id=after)
        fact = partial(events.fact_recorded, "k")
        cases: list[tuple[str, list[Event], Event]] = [
            ("missing_run_started", [], DomainEvent("note")),
            ("duplicate_run_started", [started], started),
            ("attempt_already_open", [started, _entered(initial)], _entered(initial, attempt=1)),
            ("no_open_attempt", [started], done),
            ("no_open_attempt", [started], _failed()),
            ("state_mismatch", [started, _entered(initial)], StateCompleted(state_id=TWO, context_snapshot_id=after)),
            ("wrong_attempt", [started], _entered(initial, attempt=1)),
            ("wrong_attempt", [started, _entered(initial), _failed()], _entered(initial)),
            ("wrong_base", [started], _entered(after)),
            ("wrong_base", [started, _entered(initial), done], _entered(initial, TWO)),
            ("state_already_completed", [started, _entered(initial), done], _entered(after, attempt=1)),
            ("after_retryable_failure", [started, _entered(initial), _failed()], _entered(initial, TWO)),
            ("after_final_failure", [started, _entered(initial), _failed(retryable=False)],
             _entered(initial, attempt=1)),
            ("completed_after_failure", [started, _entered(initial), _failed()],
             RunCompleted(status=RunStatus.COMPLETED)),
            ("wrong_final_snapshot", [started], RunCompleted(status=RunStatus.COMPLETED, final_snapshot_id=after)),
            ("run_completed_in_attempt", [started, _entered(initial)], RunCompleted(status=RunStatus.FAILED)),
            ("after_run_completed", [started, RunCompleted(status=RunStatus.COMPLETED)], DomainEvent("note")),
            ("fact_rebound", [started, fact(initial)], fact(after)),
            ("misplaced_fork", [started, DomainEvent("note")], events.forked_from(OTHER, 1, [], bytes(32))),
        ]  # fmt: skip
        for place, (rule, before, broken) in enumerate(cases):
            for together in (False, True):  # within one batch, and against what is stored
                run_id = UUID(int=(place << 1 | together) + 1)
                batch = [*before, broken] if together else [broken]
                if before and not together:
                    journal.append(run_id, 0, before)
                head = journal.head(run_id)
                error = _raises(errors.InvalidEvent, partial(journal.append, run_id, head, batch))
                assert error.code == rule, (error.code, rule)
                assert error.fields["seq"] == head + len(batch)
                assert journal.head(run_id) == head
        assert journal.verify() == []


def named_artifacts_must_be_there(factory: Factory) -> None:
    """Scenario 37: a missing or collected artifact is refused with its field, wherever the event names it."""
    with factory(FakeClock()) as journal:
        missing = ArtifactId.of(b"never")
        started, initial = _started(journal), _put(journal, "initial")
        journal.append(RUN, 0, [started])
        cases: list[tuple[str, list[Event]]] = [
            ("payload_ref", [DomainEvent("note", {}, missing)]),
            ("payload.a[1].b", [DomainEvent("note", {"a": [0, {"b": missing}]})]),
            ("payload.payload_id", [events.fact_recorded("k", missing)]),
            ("context_snapshot_id", [_entered(initial), StateCompleted(state_id=ONE, context_snapshot_id=missing)]),
            ("error.info.details.seen", [_entered(initial), _failed(details={"seen": missing})]),
        ]  # fmt: skip
        for field, batch in cases:
            error = _raises(errors.MissingArtifact, partial(journal.append, RUN, 1, batch))
            assert error.fields == {"id": missing, "field": field}
        unknown = RunStarted(op_id="suite", manifest_id=missing, initial_snapshot_id=initial)
        _raises(errors.MissingArtifact, partial(journal.append, OTHER, 0, [unknown]))
        gone = _put(journal, "soon gone")
        journal.store.gc(journal, grace=0)
        _raises(errors.MissingArtifact, partial(journal.append, RUN, 1, [DomainEvent("note", {}, gone)]))
        assert journal.head(RUN) == 1 and journal.head(OTHER) == 0


def rows_say_what_events_say(factory: Factory) -> None:
    """Scenario 15: after every append run_state equals analyze of what was read."""
    with factory(FakeClock()) as journal:
        written = _whole_run(journal)
        for seq, event in enumerate(written):
            journal.append(RUN, seq, [event])
            state = journal.run_state(RUN)
            assert state == analyze(journal.read(RUN))
        earlier = journal.run_state(RUN)
        journal.append(OTHER, 0, [_started(journal)])
        other = journal.run_state(OTHER)
        journal.append(OTHER, 1, [events.fact_recorded("k", _put(journal, "fact"))])
        assert other.facts == {} and other.attempts == {}  # as of its head, though more was recorded since
        assert earlier.completed == (ONE, TWO) and earlier.attempts == {ONE: 2, TWO: 1}


def domain_events_decide_nothing(factory: Factory) -> None:
    """Scenario 14: notes between any two events leave checkpoint and rules as they are."""
    with factory(FakeClock()) as journal:
        written = [event for event in _whole_run(journal) if type(event) is not DomainEvent]
        mixed = [item for event in written[:-1] for item in (event, DomainEvent("note"))] + written[-1:]
        journal.append(RUN, 0, written)
        journal.append(OTHER, 0, mixed)
        plain, noted = journal.run_state(RUN), journal.run_state(OTHER)
        assert (plain.checkpoint_id, plain.completed, plain.status) == (
            noted.checkpoint_id, noted.completed, noted.status
        )  # fmt: skip


def claims_keep_others_out(factory: Factory) -> None:
    """Who holds a claim appends with its epoch; without, or with an older one, nothing is written."""
    clock = FakeClock()
    with factory(clock) as journal:
        journal.append(RUN, 0, [_started(journal)])
        note = DomainEvent("note")
        claim = journal.claim(RUN, "somebody", ttl=60)
        error = _raises(errors.Claimed, partial(journal.append, RUN, 1, [note]))
        assert error.fields["owner"] == "somebody"
        assert error.fields["until_ms"] == claim.until_ms == int((clock.now + 60) * 1000)
        _raises(errors.Claimed, partial(journal.claim, RUN, "other"))
        journal.append(RUN, 1, [note], epoch=claim.epoch)
        clock.advance(59)
        claim = journal.renew(claim)
        clock.advance(59)
        _raises(errors.Claimed, partial(journal.claim, RUN, "other"))
        clock.advance(2)
        journal.append(RUN, 2, [note], epoch=claim.epoch)  # expired, but nobody took it: expiry alone fences nobody
        clock.advance(61)
        later = journal.claim(RUN, "other")
        assert later.epoch > claim.epoch
        error = _raises(errors.Fenced, partial(journal.append, RUN, 3, [note], epoch=claim.epoch))
        assert error.fields["current_epoch"] == later.epoch
        _raises(errors.Fenced, partial(journal.renew, claim))
        journal.release(claim)
        _raises(errors.Claimed, partial(journal.append, RUN, 3, [note]))
        journal.release(later)
        journal.append(RUN, 3, [note])
        own = journal.claim(RUN)
        assert own.owner == current_process()
        assert journal.head(RUN) == 4


def a_cancel_fences_the_owner(factory: Factory) -> None:
    """Scenario 31, first half: the living owner of a cancelled run hears Fenced, not an error about the stream."""
    with factory(FakeClock()) as journal:
        run = journal.start_run("suite", manifest={}, context={"n": 0})
        attempt = run.enter(ONE)
        journal.cancel(run.run_id, "enough")
        _raises(errors.Fenced, lambda: attempt.complete({"n": 1}))
        _raises(errors.AttemptLost, lambda: attempt.emit("note"))
        last = [item.event for item in journal.read(run.run_id)][-3:]
        assert isinstance(last[0], StateFailed) and last[0].error.info.code == "cancelled"
        assert isinstance(last[2], RunCompleted) and last[2].status is RunStatus.CANCELLED
        _raises(errors.InvalidEvent, lambda: journal.claim(run.run_id))


def lists_and_prefixes(factory: Factory) -> None:
    """Runs by status and operation, newest first, in pages; run ids by unique prefix."""
    clock = FakeClock()
    with factory(clock) as journal:
        for place, (run_id, op_id) in enumerate(((RUN, "first"), (OTHER, "second"), (THIRD, "first"))):
            journal.append(run_id, 0, [_started(journal, op_id)])
            clock.advance(place + 1)
        journal.append(OTHER, 1, [RunCompleted(status=RunStatus.FAILED)])
        clock.advance(1)
        journal.append(RUN, 1, [RunCompleted(status=RunStatus.FAILED)])
        assert [row.run_id for row in journal.runs()] == [THIRD, OTHER, RUN]
        assert [row.run_id for row in journal.runs(status="live")] == [THIRD]
        assert [row.run_id for row in journal.runs(status="failed")] == [RUN, OTHER]
        assert [row.run_id for row in journal.runs(status="failed", after=RUN)] == [OTHER]
        assert [row.run_id for row in journal.runs(op_id="first")] == [THIRD, RUN]
        assert [row.run_id for row in journal.runs(limit=1)] == [THIRD]
        assert [row.run_id for row in journal.runs(after=THIRD, limit=1)] == [OTHER]
        assert list(journal.runs(status="completed")) == []
        row = next(journal.runs(status="failed"))
        assert (row.status, row.op_id, row.head) == ("failed", "first", 2) and row.updated_ms > row.started_ms
        assert journal.resolve("b100") == THIRD == journal.resolve(str(THIRD))
        _raises(errors.RunNotFound, lambda: journal.resolve("ffff"))
        for wrong in ("", "b1", "B100", "b100-", "zzzz", "b1000000_"):
            _raises(errors.InvalidRunId, partial(journal.resolve, wrong))


def recoverable_runs(factory: Factory) -> None:
    """Live runs whose claim is free, but for those that were told to wait."""
    clock = FakeClock()
    with factory(clock) as journal:
        for run_id in (RUN, OTHER, THIRD):
            journal.append(run_id, 0, [_started(journal)])
        journal.claim(RUN, "somebody", ttl=60)
        later = int((clock.now + 100) * 1000)
        journal.append(OTHER, 1, [_entered(_put(journal, "initial")), _failed(details={"retry_at_ms": later})])
        journal.append(OTHER, 3, [DomainEvent("note")])
        assert [run.run_id for run in journal.recoverable()] == [THIRD]
        clock.advance(61)
        assert [run.run_id for run in journal.recoverable()] == [THIRD, RUN]
        clock.advance(60)
        assert [run.run_id for run in journal.recoverable(limit=2)] == [THIRD, OTHER]


def the_feed_misses_nothing(factory: Factory) -> None:
    """All runs in commit order, from any position, in pages; a cursor keeps a position."""
    with factory(FakeClock()) as journal:
        journal.append(RUN, 0, [_started(journal)])
        journal.append(OTHER, 0, [_started(journal)])
        for n in range(1, 600):
            run_id = OTHER if n % 3 else RUN
            journal.append(run_id, journal.head(run_id), [DomainEvent("n", {"n": n})])
        everything = list(journal.feed())
        assert [item.position for item in everything] == list(range(1, 602))
        assert list(journal.feed(after=400)) == everything[400:]
        assert [journal.position_of(item.run_id, item.seq) for item in everything] == list(range(1, 602))
        assert list(journal.feed(after=601, follow=True, timeout=0)) == []
        assert journal.cursor("mine") == 0
        journal.move_cursor("mine", 400)
        assert journal.cursor("mine") == 400 and journal.cursor("other") == 0
        head = journal.head(RUN)
        _raises(errors.Conflict, partial(journal.append, RUN, head + 1, [DomainEvent("x")], cursors={"mine": 500}))
        assert journal.cursor("mine") == 400
        journal.append(RUN, head, [DomainEvent("x")], cursors={"mine": 500, "other": 7})
        assert (journal.cursor("mine"), journal.cursor("other")) == (500, 7)


def nothing_is_waited_for(factory: Factory) -> None:
    """Appends with wait=False come in order, each on top of the one before, and are durable when result() returns."""
    with factory(FakeClock()) as journal:
        started = _started(journal)
        handles = [journal.append(RUN, 0, [started], wait=False)]
        handles += [journal.append(RUN, n, [DomainEvent("n", {"n": n})], wait=False) for n in range(1, 200)]
        refused = journal.append(RUN, 5, [DomainEvent("late")], wait=False)
        assert [handle.result().last_seq for handle in handles] == list(range(1, 201))
        _raises(errors.Conflict, refused.result)
        assert journal.head(RUN) == 200


def large_events_are_refused(factory: Factory) -> None:
    """A plain append raises EventTooLarge; the recorder moves the payload into an artifact."""
    with factory(FakeClock()) as journal:
        run = journal.start_run("suite", manifest={}, context={})
        large = DomainEvent("note", {"text": "x" * 1900})
        _raises(errors.EventTooLarge, lambda: journal.append(run.run_id, 2, [large], epoch=run.epoch))
        run.emit("note", {"text": "x" * 1900})
        stored = journal.read(run.run_id)[-1].event
        assert isinstance(stored, DomainEvent) and stored.payload == {} and stored.payload_ref is not None
        assert journal.store.get_value(stored.payload_ref) == {"text": "x" * 1900}


def gc_keeps_what_live_runs_name(factory: Factory) -> None:
    """Scenario 33: each kind of reference of a live run, with what it links to; after the end none of it."""
    with factory(FakeClock()) as journal:
        leaf = _put(journal, "a leaf")
        fact = journal.store.put_value({"leaf": leaf})
        written = _whole_run(journal)[:-2]
        journal.append(RUN, 0, written)
        journal.append(RUN, len(written), [DomainEvent("note", {"deep": [fact]})])
        named = {name for item in journal.read(RUN) for _, name in events.links(item.event)}
        loose = _put(journal, "loose")
        report = journal.store.gc(journal, grace=0)
        assert [name for name, _ in report.removed] == [loose]
        assert set(journal.store) == named | {leaf}
        assert all(journal.store.get(name) for name in named) and journal.store.verify().ok
        journal.append(RUN, len(written) + 1, [RunCompleted(status=RunStatus.COMPLETED)])
        assert journal.store.gc(journal, grace=0).removed == ()  # it ended less than 14 days ago
        assert len(journal.store.gc(journal, grace=0, keep_completed=0).removed) == len(named) + 1
        assert journal.verify() == [] and journal.head(RUN) == len(written) + 2  # events are never removed


def orphans_are_closed_alike(factory: Factory) -> None:
    """What resume appends for an orphan is legal for every reader of the stream."""
    with factory(FakeClock()) as journal:
        initial = _put(journal, "initial")
        journal.append(RUN, 0, [_started(journal), _entered(initial)])
        journal.resume(RUN)
        last = journal.read(RUN)[-1].event
        assert last == StateFailed(state_id=ONE, error=orphan_error(ONE))
        view = RunView(run_id=RUN)
        check_append(view, [item.event for item in journal.read(RUN)])
        assert view.head == 3


def a_forgotten_run_is_gone(factory: Factory) -> None:
    """Only what ended can be forgotten; positions are not given out again; a new run of the id has nothing of it."""
    with factory(FakeClock()) as journal:
        written = _whole_run(journal)
        journal.append(OTHER, 0, [_started(journal)])
        journal.append(RUN, 0, written[:-1])
        claim = journal.claim(RUN, "somebody")
        error = _raises(errors.RunLive, partial(journal.forget, RUN))
        assert error.fields == {"run_id": RUN, "head": len(written) - 1}
        _raises(errors.RunNotFound, partial(journal.forget, THIRD))
        journal.append(RUN, len(written) - 1, written[-1:], epoch=claim.epoch)
        newest = journal.position()
        assert journal.forget(RUN) == len(written)
        _raises(errors.RunNotFound, partial(journal.forget, RUN))
        assert journal.head(RUN) == 0 and journal.read(RUN) == [] and journal.position() == newest
        assert [row.run_id for row in journal.runs()] == [OTHER] and list(journal.runs(status="completed")) == []
        assert [item.run_id for item in journal.feed()] == [OTHER] and journal.verify() == []
        made = journal.append(RUN, 0, written[:5])
        assert (made.existing, made.position) == (False, newest + 5)
        state = journal.run_state(RUN)
        assert state == analyze(journal.read(RUN)) and state.attempts == {ONE: 1} and list(state.facts) == ["price|btc"]
        _raises(errors.Fenced, partial(journal.renew, claim))
        assert [item.position for item in journal.feed(after=1)] == list(range(newest + 1, newest + 6))
        assert journal.verify() == []


CONFORMANCE: Final[tuple[Callable[[Factory], None], ...]] = (
    an_unknown_run_is_empty,
    events_come_back,
    recorded_events_keep_their_times,
    a_token_makes_an_append_repeatable,
    a_stale_position_is_a_conflict,
    imports_are_checked_first,
    an_empty_batch_tells_the_head,
    reads_are_clamped,
    several_runs_at_once,
    illegal_streams_are_refused,
    named_artifacts_must_be_there,
    rows_say_what_events_say,
    domain_events_decide_nothing,
    claims_keep_others_out,
    a_cancel_fences_the_owner,
    lists_and_prefixes,
    recoverable_runs,
    the_feed_misses_nothing,
    nothing_is_waited_for,
    large_events_are_refused,
    gc_keeps_what_live_runs_name,
    orphans_are_closed_alike,
    a_forgotten_run_is_gone,
)


def _raises(kind: type[errors.JournalError], call: Callable[[], object]) -> errors.JournalError:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")
