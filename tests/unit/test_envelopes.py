"""Streams: each rule has its word, and the tail of a stream decides what comes next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.ids import ArtifactId
from journal import envelopes, events
from journal.decisions import Choose, Decision, End, Ended, Enter, Orphaned
from journal.envelopes import (
    KnownHistory,
    RunState,
    analyze,
    check_append,
    decide,
    new_policy,
    resume_events,
    validate_plan,
)
from journal.errors import InvalidArgument, InvalidEvent, InvalidPlan, InvalidStream, StateNotInPlan
from journal.events import (
    DomainEvent,
    ErrorInfo,
    Event,
    RecordedEvent,
    RunCompleted,
    RunStarted,
    RunStatus,
    StateCompleted,
    StateEntered,
    StateError,
    StateFailed,
)
from journal.views import OpenAttempt, RunView, StateEntries, advance

RUN, OTHER_RUN = UUID(int=1), UUID(int=2)
MANIFEST, INITIAL = ArtifactId.of(b"manifest"), ArtifactId.of(b"initial")
AFTER_ONE, AFTER_TWO, STRAY = ArtifactId.of(b"one"), ArtifactId.of(b"two"), ArtifactId.of(b"stray")
ONE, TWO, THREE = "machine.step.one", "machine.step.two", "machine.step.three"
PLAN = [ONE, TWO]

STARTED = RunStarted(op_id="op", manifest_id=MANIFEST, initial_snapshot_id=INITIAL)
NOTE = DomainEvent("note", {"n": 1})


def entered(state: str = ONE, attempt: int = 0, base: ArtifactId = INITIAL) -> StateEntered:
    """An attempt begins."""
    return StateEntered(state_id=state, attempt=attempt, base_snapshot_id=base)


def completed(state: str = ONE, snapshot: ArtifactId = AFTER_ONE) -> StateCompleted:
    """An attempt succeeds."""
    return StateCompleted(state_id=state, context_snapshot_id=snapshot)


def failed(state: str = ONE, retryable: bool = True, told: str | None = None) -> StateFailed:
    """An attempt fails; the error may be told of another state."""
    info = ErrorInfo(code="boom", category="rpc", retryable=retryable, message="it broke")
    return StateFailed(state_id=state, error=StateError(state_id=told, info=info))


def ended(status: str, final: ArtifactId | None = None) -> RunCompleted:
    """The run ends."""
    return RunCompleted(status=RunStatus(status), final_snapshot_id=final)


def recorded(*stream: Event) -> list[RecordedEvent]:
    """A stream as it is read."""
    return [
        RecordedEvent(run_id=RUN, seq=seq, position=seq + 10, timestamp_ms=seq, event=event)
        for seq, event in enumerate(stream, 1)
    ]


def state(*stream: Event) -> RunState:
    """The state of a stream."""
    return analyze(recorded(*stream))


BROKEN: list[tuple[str, list[Event]]] = [
    ("missing_run_started", [entered()]),
    ("missing_run_started", [NOTE]),
    ("duplicate_run_started", [STARTED, STARTED]),
    ("attempt_already_open", [STARTED, entered(), entered(attempt=1)]),
    ("attempt_already_open", [STARTED, entered(), entered(TWO)]),
    ("no_open_attempt", [STARTED, completed()]),
    ("no_open_attempt", [STARTED, failed()]),
    ("no_open_attempt", [STARTED, entered(), completed(), completed()]),
    ("no_open_attempt", [STARTED, entered(), failed(), completed()]),
    ("state_mismatch", [STARTED, entered(), completed(TWO)]),
    ("state_mismatch", [STARTED, entered(), failed(TWO)]),
    ("error_state_mismatch", [STARTED, entered(), failed(told=TWO)]),
    ("wrong_attempt", [STARTED, entered(attempt=1)]),
    ("wrong_attempt", [STARTED, entered(), failed(), entered(attempt=0)]),
    ("wrong_attempt", [STARTED, entered(), failed(), entered(attempt=2)]),
    ("wrong_base", [STARTED, entered(base=STRAY)]),
    ("wrong_base", [STARTED, entered(), completed(), entered(TWO, base=INITIAL)]),
    ("wrong_base", [STARTED, entered(), failed(), entered(attempt=1, base=STRAY)]),
    ("state_already_completed", [STARTED, entered(), completed(), entered(attempt=1, base=AFTER_ONE)]),
    ("state_already_completed", [STARTED, entered(), completed(), entered(attempt=0, base=AFTER_ONE)]),
    ("after_retryable_failure", [STARTED, entered(), failed(), entered(TWO)]),
    ("after_retryable_failure", [STARTED, entered(), failed(), NOTE, entered(TWO)]),
    ("after_final_failure", [STARTED, entered(), failed(retryable=False), entered(attempt=1)]),
    ("after_final_failure", [STARTED, entered(), failed(retryable=False), entered(TWO)]),
    ("completed_after_failure", [STARTED, entered(), failed(), ended("completed")]),
    ("completed_after_failure", [STARTED, entered(), failed(retryable=False), NOTE, ended("completed")]),
    ("wrong_final_snapshot", [STARTED, ended("completed", STRAY)]),
    ("wrong_final_snapshot", [STARTED, entered(), completed(), ended("completed", INITIAL)]),
    ("run_completed_in_attempt", [STARTED, entered(), ended("completed")]),
    ("run_completed_in_attempt", [STARTED, entered(), ended("cancelled", INITIAL)]),
    ("after_run_completed", [STARTED, ended("completed"), NOTE]),
    ("after_run_completed", [STARTED, ended("failed"), ended("failed")]),
    ("after_run_completed", [STARTED, ended("failed"), entered()]),
    ("fact_rebound", [STARTED, events.fact_recorded("k", AFTER_ONE), events.fact_recorded("k", AFTER_TWO)]),
    ("misplaced_fork", [STARTED, NOTE, events.forked_from(OTHER_RUN, 1, [], bytes(32))]),
    ("state_already_completed", [STARTED, events.forked_from(OTHER_RUN, 9, [ONE], bytes(32)), entered()]),
]


@pytest.mark.parametrize(("word", "stream"), BROKEN)
def test_each_broken_rule_has_its_word(word: str, stream: list[Event]) -> None:
    """A reader and a writer name the same rule at the same seq, whatever follows."""
    with pytest.raises(InvalidStream) as read:
        analyze(recorded(*stream, NOTE))
    with pytest.raises(InvalidEvent) as written:
        check_append(RunView(run_id=RUN), [*stream, NOTE])
    for error in (read.value, written.value):
        assert error.code == error.rule == word
        assert (error.fields["run_id"], error.fields["seq"]) == (RUN, len(stream))


@pytest.mark.parametrize(("word", "stream"), BROKEN)
def test_what_comes_before_the_broken_rule_is_legal(word: str, stream: list[Event]) -> None:
    """Each example breaks its rule with its last event only."""
    check_append(RunView(run_id=RUN), stream[:-1])


def test_a_refused_event_leaves_the_view_before_it() -> None:
    """The view is moved only past events that are legal."""
    view = RunView(run_id=RUN)
    check_append(view, [STARTED, entered()])
    with pytest.raises(InvalidEvent):
        advance(view, 3, entered(TWO), raises=InvalidEvent)
    advance(view, 3, completed(), raises=InvalidEvent)
    assert view.checkpoint_id == AFTER_ONE


def test_a_gap_and_a_foreign_event_are_found() -> None:
    """seq is contiguous from 1, and all events are of one run."""
    first, second = recorded(STARTED, NOTE)
    for stream in ([second], [first, first], [first, *recorded(STARTED, NOTE, NOTE)[2:]]):
        with pytest.raises(InvalidStream) as caught:
            analyze(stream)
        assert caught.value.code == "bad_sequence"
    foreign = RecordedEvent(run_id=OTHER_RUN, seq=2, position=0, timestamp_ms=0, event=NOTE)
    with pytest.raises(InvalidStream) as caught:
        analyze([first, foreign])
    assert caught.value.code == "wrong_run_id"


def test_imported_events_are_checked_for_their_place() -> None:
    """The run id and the seqs that they carry must be those of the append."""
    stream = recorded(STARTED, NOTE)
    envelopes.check_imported(RUN, 0, stream)
    for run_id, expected, word in ((OTHER_RUN, 0, "wrong_run_id"), (RUN, 1, "bad_sequence")):
        with pytest.raises(InvalidEvent) as caught:
            envelopes.check_imported(run_id, expected, stream)
        assert caught.value.code == word


def test_an_empty_stream_is_no_run() -> None:
    """Without RunStarted there is nothing to analyze."""
    with pytest.raises(InvalidStream) as caught:
        analyze([])
    assert caught.value.code == "missing_run_started"
    with pytest.raises(InvalidArgument):
        analyze([STARTED])  # type: ignore[list-item]


def test_the_state_tells_the_whole_run() -> None:
    """Checkpoint, attempts, completed states, facts and policy after a run with a retry."""
    found = state(
        STARTED, events.run_policy(PLAN, 5), entered(), events.fact_recorded("k", STRAY), failed(),
        entered(attempt=1), events.fact_recorded("k", STRAY), completed(), entered(TWO, base=AFTER_ONE),
    )  # fmt: skip
    assert found == RunState(
        run_id=RUN,
        op_id="op",
        manifest_id=MANIFEST,
        checkpoint_id=AFTER_ONE,
        checkpoint_seq=8,
        open_attempt=OpenAttempt(TWO, 0, AFTER_ONE, 9),
        head=9,
        plan=(ONE, TWO),
        max_attempts=5,
        history=KnownHistory((ONE,), {ONE: 2, TWO: 1}, {"k": STRAY}),
    )


def test_a_failure_is_told_until_the_next_attempt() -> None:
    """Domain events and the end keep it; a new attempt clears it."""
    failure = failed()
    stream: list[Event] = [STARTED, entered(), failure, NOTE]
    assert state(*stream).last_failure == envelopes.Failure(ONE, 0, failure.error, 3)
    assert state(*stream, ended("failed")).last_failure is not None
    assert state(*stream, entered(attempt=1)).last_failure is None


ORPHAN = envelopes.orphan_error(ONE)
TWO_TRIES: list[Event] = [STARTED, entered(), failed(), entered(attempt=1)]

TAILS: list[tuple[list[Event], Any, Any, Decision, list[Event]]] = [
    ([STARTED], PLAN, None, Enter(ONE, 0, INITIAL), []),
    ([STARTED], None, None, Choose(None, INITIAL), []),
    ([STARTED, events.run_policy(PLAN)], None, None, Enter(ONE, 0, INITIAL), []),
    ([STARTED, events.run_policy(PLAN)], [TWO, ONE], None, Enter(TWO, 0, INITIAL), []),
    ([STARTED, entered(), completed()], PLAN, None, Enter(TWO, 0, AFTER_ONE), []),
    ([STARTED, entered(), completed()], None, None, Choose(ONE, AFTER_ONE), []),
    ([STARTED, entered(), completed()], [ONE], None, End(RunStatus.COMPLETED, AFTER_ONE),
     [ended("completed", AFTER_ONE)]),
    ([STARTED, entered(), failed()], PLAN, None, Enter(ONE, 1, INITIAL), []),
    ([STARTED, entered(), failed()], None, None, Enter(ONE, 1, INITIAL), []),
    ([STARTED, entered(), failed()], PLAN, 1, End(RunStatus.FAILED, INITIAL), [ended("failed", INITIAL)]),
    ([STARTED, events.run_policy(None, 1), entered(), failed()], None, None, End(RunStatus.FAILED, INITIAL),
     [ended("failed", INITIAL)]),
    ([STARTED, entered(), failed(retryable=False)], PLAN, 9, End(RunStatus.FAILED, INITIAL),
     [ended("failed", INITIAL)]),
    ([STARTED, entered()], PLAN, None, Orphaned(ONE, 0, Enter(ONE, 1, INITIAL), ORPHAN),
     [StateFailed(state_id=ONE, error=ORPHAN)]),
    (TWO_TRIES, PLAN, 2, Orphaned(ONE, 1, End(RunStatus.FAILED, INITIAL), ORPHAN),
     [StateFailed(state_id=ONE, error=ORPHAN), ended("failed", INITIAL)]),
    ([STARTED, ended("completed", INITIAL)], PLAN, None, Ended(RunStatus.COMPLETED, INITIAL), []),
    ([STARTED, ended("cancelled")], [], 0, Ended(RunStatus.CANCELLED, None), []),
    ([STARTED, events.forked_from(OTHER_RUN, 9, [ONE], bytes(32))], PLAN, None, Enter(TWO, 0, INITIAL), []),
    ([STARTED, events.forked_from(OTHER_RUN, 9, [ONE], bytes(32))], None, None, Choose(ONE, INITIAL), []),
]  # fmt: skip


@pytest.mark.parametrize(("stream", "plan", "max_attempts", "decision", "appended"), TAILS)
def test_the_tail_decides(
    stream: list[Event], plan: Any, max_attempts: Any, decision: Decision, appended: list[Event]
) -> None:
    """Each row of the table: the decision, what resume appends, and that the two leave a legal stream."""
    before = state(*stream)
    assert decide(before, plan, max_attempts) == decision
    assert resume_events(before, decision) == appended
    after = state(*stream, *appended)
    then = decide(after, plan, max_attempts)
    if isinstance(decision, Orphaned) and isinstance(decision.then, Enter):
        assert then == decision.then
    if appended and isinstance(appended[-1], RunCompleted):
        assert then == Ended(appended[-1].status, appended[-1].final_snapshot_id)
    if isinstance(then, Enter):
        assert state(*stream, *appended, entered(then.state_id, then.attempt, then.base_snapshot_id)).open_attempt


@pytest.mark.parametrize("plan", [[], [ONE, ONE], ["a.b"], ONE, [1], {ONE: 1}, [ONE, None]])
def test_a_bad_plan_is_refused(plan: Any) -> None:
    """Empty, doubled and malformed plans raise before the stream's tail is looked at."""
    with pytest.raises(InvalidPlan):
        validate_plan(plan)
    with pytest.raises(InvalidPlan):
        decide(state(STARTED, entered()), plan)


def test_a_good_plan_is_a_tuple() -> None:
    """No plan stays no plan."""
    assert validate_plan(PLAN) == (ONE, TWO)
    assert validate_plan(None) is None


@pytest.mark.parametrize("stream", [[entered()], [entered(), failed()], [entered(), completed()]])
def test_a_state_outside_of_the_plan_is_refused(stream: list[Event]) -> None:
    """Work that the plan does not know is never called completed."""
    with pytest.raises(StateNotInPlan) as caught:
        decide(state(STARTED, *stream), [TWO, THREE])
    assert caught.value.fields == {"state_id": ONE, "plan": (TWO, THREE)}


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "3"])
def test_a_bad_limit_is_refused(limit: Any) -> None:
    """max_attempts is a plain positive integer."""
    with pytest.raises(InvalidArgument):
        decide(state(STARTED), PLAN, limit)


def test_a_plan_in_an_artifact_has_to_be_given() -> None:
    """The pure decision cannot read it, and must not take the run for one without a plan."""
    found = state(STARTED, events.run_policy(None, plan_id=STRAY))
    with pytest.raises(InvalidPlan):
        decide(found)
    assert decide(found, PLAN) == Enter(ONE, 0, INITIAL)


def test_another_policy_is_recorded_and_the_same_is_not() -> None:
    """It stands after the orphan's failure and before the end."""
    found = state(STARTED, events.run_policy(PLAN, 3), entered())
    assert new_policy(found, None, None) is None
    assert new_policy(found, PLAN, 3) is None
    policy = new_policy(found, None, 1)
    assert policy == events.run_policy(PLAN, 1)
    written = resume_events(found, decide(found, max_attempts=1), policy)
    assert written == [StateFailed(state_id=ONE, error=ORPHAN), policy, ended("failed", INITIAL)]
    assert resume_events(state(STARTED, ended("failed")), Ended(RunStatus.FAILED, None), policy) == []


def test_the_view_asks_the_store_for_what_it_does_not_hold() -> None:
    """A view made from a row knows states and facts by its lookups; overlays hold only what changed."""
    asked: list[str] = []

    def stored_state(state_id: str) -> StateEntries:
        asked.append(state_id)
        return {ONE: StateEntries(2, 7), TWO: StateEntries(1, 0)}.get(state_id, StateEntries(0, 0))

    def view(**changes: Any) -> RunView:
        return RunView(
            run_id=RUN, head=8, op_id="op", manifest_id=MANIFEST, checkpoint_id=AFTER_ONE, checkpoint_seq=7,
            n_completed=1, stored_state=stored_state, stored_fact={"k": STRAY}.get, **changes,
        )  # fmt: skip

    moved = view()
    fact = events.fact_recorded
    check_append(moved, [entered(TWO, 1, AFTER_ONE), fact("k", STRAY), fact("new", STRAY), completed(TWO, AFTER_TWO)])
    assert (moved.new_attempts, moved.new_completed, moved.n_completed) == ({TWO: 2}, {TWO: 12}, 2)
    assert moved.new_facts == {"new": (STRAY, 11)}
    assert set(asked) == {TWO}
    for event, word in ((entered(ONE, 2, AFTER_ONE), "state_already_completed"), (fact("k", MANIFEST), "fact_rebound")):
        with pytest.raises(InvalidEvent) as caught:
            check_append(view(), [event])
        assert caught.value.code == word


@st.composite
def legal_streams(draw: st.DrawFn) -> list[Event]:
    """A legal stream: states entered, failed, retried and completed, cut off anywhere."""
    stream: list[Event] = [STARTED]
    if draw(st.booleans()):
        stream.append(events.run_policy(draw(st.sampled_from([None, [ONE, TWO, THREE]])), draw(st.integers(1, 3))))
    base = INITIAL
    for name in (ONE, TWO, THREE)[: draw(st.integers(0, 3))]:
        for attempt in range(draw(st.integers(0, 2))):
            stream += [entered(name, attempt, base), failed(name)]
        tried = sum(isinstance(event, StateEntered) and event.state_id == name for event in stream)
        snapshot = ArtifactId.of(name.encode())
        stream += [entered(name, tried, base), completed(name, snapshot)]
        base = snapshot
    stream = stream[: draw(st.integers(1, len(stream)))]
    tail = stream[-1]
    if not isinstance(tail, StateEntered) and draw(st.booleans()):
        ways = ["failed", "cancelled"] + ([] if isinstance(tail, StateFailed) else ["completed"])
        stream.append(ended(draw(st.sampled_from(ways))))
    return stream


def outcome(call: Callable[[], Decision]) -> object:
    """The decision, or the type of the error."""
    try:
        return call()
    except (InvalidPlan, StateNotInPlan) as error:
        return type(error)


@settings(max_examples=200, deadline=None)
@given(legal_streams(), st.data())
def test_domain_events_anywhere_change_neither_checkpoint_nor_decision(
    stream: list[Event], data: st.DataObject
) -> None:
    """Any number of them, inside and outside of attempts, whatever they are called."""
    notes = st.sampled_from(
        [NOTE, events.fact_recorded("k", STRAY), events.artifact_written(STRAY, "output"), events.run_ended("r"),
         events.op_boundary("a", "b"), DomainEvent("state_completed", {"context_snapshot_id": STRAY}, STRAY)]
    )  # fmt: skip
    mixed: list[Event] = []
    for event in stream:
        mixed.append(event)
        if not isinstance(event, RunCompleted):
            mixed += data.draw(st.lists(notes, max_size=2))
    plain, noisy = state(*stream), state(*mixed)
    assert noisy.checkpoint_id == plain.checkpoint_id
    assert (noisy.completed, noisy.attempts, noisy.status) == (plain.completed, plain.attempts, plain.status)
    for plan in (None, [ONE, TWO, THREE], [TWO]):
        found = outcome(lambda plan=plan: decide(noisy, plan))  # type: ignore[misc]
        assert found == outcome(lambda plan=plan: decide(plain, plan))  # type: ignore[misc]


@settings(max_examples=200, deadline=None)
@given(legal_streams(), st.data())
def test_a_stream_is_the_same_however_it_is_cut_into_appends(stream: list[Event], data: st.DataObject) -> None:
    """Checking event by event, in batches or as a whole stream gives one state."""
    view = RunView(run_id=RUN)
    rest = list(stream)
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        check_append(view, rest[:count])
        rest = rest[count:]
    assert envelopes.state_of(view) == state(*stream)


@settings(max_examples=200, deadline=None)
@given(legal_streams(), st.integers(1, 4))
def test_resume_always_leads_to_a_legal_stream(stream: list[Event], limit: int) -> None:
    """What resume appends is legal, and a second resume of the result appends nothing more."""
    before = state(*stream)
    decision = decide(before, [ONE, TWO, THREE], limit)
    policy = None if before.status else new_policy(before, [ONE, TWO, THREE], limit)
    written = resume_events(before, decision, policy)
    after = state(*stream, *written)
    again = decide(after)
    assert isinstance(again, Enter | Ended)
    assert resume_events(after, again, None if after.status else new_policy(after, None, None)) == []
    assert after.checkpoint_id == before.checkpoint_id
