"""Resume, fork and cancel: the decision table, row by row, and that nothing more than it says is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import journal
from casstore import ArtifactId
from casstore import errors as store_errors
from journal import (
    Choose,
    DomainEvent,
    End,
    Ended,
    Enter,
    NonRetryable,
    RunCompleted,
    RunStatus,
    StateEntered,
    StateFailed,
)
from journal import errors as problems

A, B, C = "flow.step.a", "flow.step.b", "flow.step.c"


@pytest.fixture
def jrn(tmp_path: Path) -> Iterator[Any]:
    with journal.open(tmp_path / "home") as opened:
        yield opened


def start(jrn: Any, plan: list[str] | None = None, **options: Any) -> Any:
    return jrn.start_run("flow", manifest={"flow": 1}, context={"n": 0}, plan=plan, claim=False, **options)


def resume(jrn: Any, run: Any, *arguments: Any, **options: Any) -> Any:
    """A resume after the owner died: the runs of these tests are unclaimed, as one whose owner is gone."""
    return jrn.resume(run.run_id, *arguments, claim=False, **options)


def tail(jrn: Any, run: Any, after: int) -> list[Any]:
    return [recorded.event for recorded in jrn.read(run.run_id, after + 1)]


def complete(run: Any, state_id: str, context: Any) -> None:
    with run.enter(state_id) as attempt:
        attempt.complete(context)


def die_inside(run: Any, state_id: str) -> None:
    """Leave the attempt as a killed process leaves it: entered, and nothing more."""
    with pytest.raises(KeyboardInterrupt), run.enter(state_id) as attempt:
        attempt.context()["n"] = "leaked"
        raise KeyboardInterrupt


def fail(run: Any, state_id: str, error: Exception) -> None:
    with pytest.raises(type(error)), run.enter(state_id):
        raise error


@pytest.mark.spec("scenario 16")
def test_run_started_only(jrn: Any) -> None:
    """The first state of the plan is next, and nothing is written to say so."""
    run = start(jrn, [A, B])
    head = jrn.head(run.run_id)
    again = resume(jrn, run)
    assert again.decision == Enter(A, 0, run.state.checkpoint_id) and again.next == A
    assert jrn.head(run.run_id) == head


@pytest.mark.spec("scenarios 17, 18")
def test_killed_inside_an_attempt(jrn: Any) -> None:
    """Tries 0 and 1 start from the same base, nothing of the lost one leaks, and a finished run is left alone."""
    run = start(jrn, [A, B])
    complete(run, A, {"n": 1})
    die_inside(run, B)
    head = jrn.head(run.run_id)
    again = resume(jrn, run)
    (written,) = tail(jrn, run, head)
    info = written.error.info
    assert (info.code, info.category, info.retryable) == ("orphan_attempt_recovered", "unknown", True)
    assert again.decision == Enter(B, 1, again.state.checkpoint_id)
    with again.enter(B) as attempt:
        assert (attempt.attempt, attempt.context()) == (1, {"n": 1})
        attempt.complete({"n": 2})
    again.complete()
    entered = [event for event in tail(jrn, run, 0) if type(event) is StateEntered and event.state_id == B]
    assert [event.attempt for event in entered] == [0, 1]
    assert len({event.base_snapshot_id for event in entered}) == 1
    head = jrn.head(run.run_id)
    finished = resume(jrn, run)
    assert finished.decision == Ended(RunStatus.COMPLETED, again.state.checkpoint_id) and finished.next is None
    assert finished.context() == {"n": 2} and jrn.head(run.run_id) == head


@pytest.mark.spec("scenario 19")
@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_killed_again_and_again(jrn: Any, max_attempts: int) -> None:
    """Orphans count as tries: after max_attempts of them the run has failed, in the append that closes the last."""
    run = start(jrn, [A], max_attempts=max_attempts)
    for _ in range(max_attempts):
        die_inside(run, A)
        head = jrn.head(run.run_id)
        run = resume(jrn, run)
    assert [type(event) for event in tail(jrn, run, head)] == [StateFailed, RunCompleted]
    assert run.decision == End(RunStatus.FAILED, run.state.checkpoint_id)
    assert run.next is None and run.state.attempts == {A: max_attempts} and run.status is RunStatus.FAILED


@pytest.mark.spec("scenario 19")
def test_failures_and_orphans_count_together(jrn: Any) -> None:
    """One failure, one orphan and one more failure are three tries."""
    run = start(jrn, [A])
    fail(run, A, OSError())
    die_inside(run, A)
    run = resume(jrn, run)
    assert run.next == A
    fail(run, A, OSError())
    assert resume(jrn, run).status is RunStatus.FAILED


@pytest.mark.spec("scenario 20")
def test_retryable_then_success(jrn: Any) -> None:
    """A retryable failure is tried again from the same base by a resume that writes nothing."""
    run = start(jrn, [A])
    fail(run, A, OSError())
    head = jrn.head(run.run_id)
    again = resume(jrn, run)
    assert again.decision == Enter(A, 1, run.state.checkpoint_id) and jrn.head(run.run_id) == head
    complete(again, A, {"n": 1})
    again.complete()
    assert jrn.run_state(run.run_id).status is RunStatus.COMPLETED


@pytest.mark.spec("scenario 21")
def test_not_retryable(jrn: Any) -> None:
    """A final failure ended the run; where only the failure is there, the resume appends the end."""
    run = start(jrn, [A])
    fail(run, A, NonRetryable())
    assert resume(jrn, run).decision == Ended(RunStatus.FAILED, run.state.checkpoint_id)
    cut_short = start(jrn, [A])
    die_inside(cut_short, A)
    error = journal.StateError(info=journal.ErrorInfo(code="bad", retryable=False))
    head = jrn.append(cut_short.run_id, cut_short.head, [StateFailed(state_id=A, error=error)]).last_seq
    assert resume(jrn, cut_short).decision == End(RunStatus.FAILED, cut_short.state.checkpoint_id)
    assert [type(event) for event in tail(jrn, cut_short, head)] == [RunCompleted]


@pytest.mark.spec("scenarios 22, 23")
def test_all_completed_but_not_the_run(jrn: Any) -> None:
    """Exactly one event is appended, with the last checkpoint, and none by a further resume."""
    run = start(jrn, [A, B])
    complete(run, A, {"n": 1})
    complete(run, B, {"n": 2})
    head = jrn.head(run.run_id)
    again = resume(jrn, run)
    expected = RunCompleted(status="completed", final_snapshot_id=run.state.checkpoint_id)
    assert tail(jrn, run, head) == [expected] and again.next is None
    assert again.decision == End(RunStatus.COMPLETED, run.state.checkpoint_id)
    assert resume(jrn, run).decision == Ended(RunStatus.COMPLETED, run.state.checkpoint_id)
    assert jrn.head(run.run_id) == head + 1
    again.complete()
    assert jrn.head(run.run_id) == head + 1


@pytest.mark.spec("scenario 24")
def test_a_state_that_is_not_in_the_plan(jrn: Any) -> None:
    """Nothing is written and nothing counts as completed; a plan with that state, or another order, is fine."""
    run = start(jrn, [A, B])
    complete(run, A, {})
    head = jrn.head(run.run_id)
    with pytest.raises(problems.StateNotInPlan) as caught:
        resume(jrn, run, [B])
    assert caught.value.fields["state_id"] == A
    for plan in ([], [A, A], ["nonsense"], "ab"):
        with pytest.raises(problems.InvalidPlan):
            resume(jrn, run, plan)
    assert jrn.head(run.run_id) == head
    again = resume(jrn, run, [C, A])
    assert again.next == C
    (policy,) = tail(jrn, run, head)
    assert policy.name == "run_policy" and policy.payload == {"plan": [C, A], "max_attempts": 3}
    assert resume(jrn, run).next == C and jrn.head(run.run_id) == head + 1


@pytest.mark.spec("scenario 25")
def test_an_invalid_plan_at_the_start(jrn: Any) -> None:
    """No stream exists afterwards."""
    run_id = uuid4()
    for plan in ([], [A, A], ["a"]):
        with pytest.raises(problems.InvalidPlan):
            start(jrn, plan, run_id=run_id)
    assert jrn.head(run_id) == 0
    with pytest.raises(problems.RunNotFound):
        jrn.resume(run_id)


@pytest.mark.spec("scenario 26")
def test_facts_over_two_attempts(jrn: Any) -> None:
    """A fact of an attempt that died is reused by the next: one call of the outside world, and one payload."""
    run, calls = start(jrn, [A]), []

    def fetch() -> int:
        calls.append(1)
        return 42

    with pytest.raises(KeyboardInterrupt), run.enter(A) as attempt:
        attempt.fact("price", fetch)
        raise KeyboardInterrupt
    again = resume(jrn, run)
    with again.enter(A) as attempt:
        assert attempt.fact("price", fetch) == 42
        with pytest.raises(problems.FactConflict):
            attempt.fact("price", 43)
        attempt.complete({})
    assert calls == [1] and again.facts() == {"price": 42}


@pytest.mark.spec("scenario 28")
def test_a_living_owner_is_not_an_orphan(jrn: Any) -> None:
    """While a claim is held a resume is refused and writes nothing; released or stolen, the run is had."""
    run = jrn.start_run("flow", manifest={}, context={}, plan=[A])
    with run.enter(A) as attempt:
        head = jrn.head(run.run_id)
        for options in ({}, {"claim": False}):
            with pytest.raises(problems.Claimed) as caught:
                jrn.resume(run.run_id, **options)
            assert caught.value.fields["run_id"] == run.run_id
        assert jrn.head(run.run_id) == head
        attempt.complete({})
    run.release()
    run.release()
    second = jrn.resume(run.run_id, plan=[A, B])
    thief = jrn.resume(run.run_id, steal=True)
    with pytest.raises(problems.Fenced):
        second.enter(B)
    complete(thief, B, {})
    thief.complete()


@pytest.mark.spec("scenario 28")
def test_a_robbed_attempt_hears_it_and_is_lost(jrn: Any) -> None:
    """After a theft the living attempt records nothing: Fenced once, AttemptLost from then on."""
    run = jrn.start_run("flow", manifest={}, context={}, plan=[A])
    with pytest.raises(problems.AttemptLost), run.enter(A) as attempt:
        thief = jrn.resume(run.run_id, steal=True)
        assert thief.decision == Enter(A, 1, run.state.checkpoint_id) and attempt.cancelled
        with pytest.raises(problems.Fenced):
            attempt.complete({"n": "lost"})
        with pytest.raises(problems.AttemptLost):
            attempt.complete({"n": "lost"})
    complete(thief, A, {"n": "kept"})
    assert thief.context() == {"n": "kept"}


@pytest.mark.spec("scenario 29")
def test_an_attempt_entered_ahead_is_an_orphan_too(jrn: Any) -> None:
    """Killed between complete(then=…) and the next enter, the next state has spent a try."""
    run = start(jrn, [A, B])
    with run.enter(A) as attempt:
        attempt.complete({"n": 1}, then=B)
    again = resume(jrn, run)
    assert again.decision == Enter(B, 1, again.state.checkpoint_id)
    with again.enter(B) as attempt:
        assert attempt.context() == {"n": 1}
        attempt.complete({"n": 2})


@pytest.mark.spec("scenario 30")
def test_a_fork_repeats_nothing_that_was_completed(jrn: Any) -> None:
    """The fork starts from the checkpoint with facts, policy and completed states; source and fork live apart."""
    run = start(jrn, [A, B, C], max_attempts=5)
    with run.enter(A) as attempt:
        attempt.fact("k", [1])
        attempt.complete({"n": 1})
    fail(run, B, NonRetryable())
    source = list(jrn.read(run.run_id))
    forked = jrn.fork(run.run_id, jrn.head(run.run_id))
    started, origin, policy, fact = tail(jrn, forked, 0)
    assert (started.op_id, started.initial_snapshot_id) == ("flow", run.state.checkpoint_id)
    assert origin.payload["completed"] == [A] and origin.payload["run_id"] == str(run.run_id)
    assert policy.payload == {"plan": [A, B, C], "max_attempts": 5} and fact.payload["key"] == "k"
    assert forked.decision == Enter(B, 0, run.state.checkpoint_id)
    with pytest.raises(problems.InvalidEvent):
        forked.enter(A)
    with forked.enter(B) as attempt:
        assert attempt.context() == {"n": 1}
        assert attempt.fact("k", lambda: pytest.fail("fetched again")) == [1]
        attempt.complete({"n": 2}, then=C)
    with forked.enter(C) as attempt:
        attempt.complete({"n": 3})
    forked.complete()
    assert list(jrn.read(run.run_id)) == source
    again = jrn.fork(forked.run_id, 7, claim=False)
    assert again.state.completed == (A, B) and again.next == C


@pytest.mark.spec("scenario 30")
def test_a_fork_in_the_middle(jrn: Any) -> None:
    """at_seq names the last event that counts; an attempt open there is left out; bad numbers and ids are refused."""
    run = start(jrn, [A, B])
    complete(run, A, {"n": 1})
    die_inside(run, B)
    assert jrn.fork(run.run_id, 3).next == A
    new_id = uuid4()
    assert jrn.fork(run.run_id, jrn.head(run.run_id), new_id).decision == Enter(B, 0, run.state.checkpoint_id)
    for at_seq in (0, 6, True, "1"):
        with pytest.raises(problems.InvalidArgument):
            jrn.fork(run.run_id, at_seq)
    with pytest.raises(problems.Conflict):
        jrn.fork(run.run_id, 1, new_id)
    with pytest.raises(problems.RunNotFound):
        jrn.fork(uuid4(), 1)


@pytest.mark.spec("scenario 31")
def test_cancelling_a_run_that_nobody_runs(jrn: Any) -> None:
    """One append closes the attempt and ends the run; then gc frees what only this run held."""
    run = start(jrn, [A, B])
    complete(run, A, {"n": "x" * 1000})
    snapshot = run.state.checkpoint_id
    die_inside(run, B)
    jrn.store.gc(jrn, keep_completed=0, grace=0)
    assert snapshot in jrn.store
    head = jrn.head(run.run_id)
    assert jrn.cancel(run.run_id, "no longer wanted").status is RunStatus.CANCELLED
    failed, ended, completed = tail(jrn, run, head)
    assert (failed.error.info.code, failed.error.info.retryable) == ("cancelled", False)
    assert ended == DomainEvent("run_ended", {"reason": "no longer wanted"})
    assert completed == RunCompleted(status="cancelled", final_snapshot_id=snapshot)
    jrn.cancel(run.run_id, "again")
    assert jrn.head(run.run_id) == head + 3
    jrn.store.gc(jrn, keep_completed=0, grace=0)
    with pytest.raises(store_errors.Collected):
        jrn.store.get(snapshot)
    with pytest.raises(store_errors.Collected):
        jrn.fork(run.run_id, head)
    with pytest.raises(problems.RunNotFound):
        jrn.cancel(uuid4(), "x")


@pytest.mark.spec("scenario 31")
def test_cancelling_under_a_living_owner(jrn: Any) -> None:
    """The owner is told: cancelled turns true, and its next record is refused."""
    run = jrn.start_run("flow", manifest={}, context={}, plan=[A])
    with pytest.raises(problems.AttemptLost), run.enter(A) as attempt:
        assert not attempt.cancelled
        jrn.cancel(run.run_id, "stop")
        assert attempt.cancelled
        with pytest.raises(problems.Fenced):
            attempt.complete({})
    assert jrn.run_state(run.run_id).status is RunStatus.CANCELLED
    done = start(jrn)
    done.complete()
    with pytest.raises(problems.InvalidEvent):
        jrn.cancel(done.run_id, "late")


@pytest.mark.spec("scenario 32")
def test_no_plan(jrn: Any) -> None:
    """Only the orchestrator chooses: a run without a plan is never completed by a resume."""
    run = start(jrn)
    assert run.decision == Choose(None, run.state.checkpoint_id)
    complete(run, A, {"n": 1})
    head = jrn.head(run.run_id)
    again = resume(jrn, run)
    assert again.decision == Choose(A, run.state.checkpoint_id) and jrn.head(run.run_id) == head
    with pytest.raises(problems.NoPlan):
        _ = again.next
    die_inside(again, B)
    again = resume(jrn, run)
    assert again.next == B
    complete(again, B, {"n": 2})
    again.complete()
    assert again.next is None and resume(jrn, run).decision == Ended(RunStatus.COMPLETED, again.state.checkpoint_id)


def test_a_dry_run_writes_nothing(jrn: Any) -> None:
    """It says what would be appended, and leaves even the claim alone."""
    run = start(jrn, [A], max_attempts=1)
    die_inside(run, A)
    head = jrn.head(run.run_id)
    point = jrn.resume(run.run_id, dry_run=True)
    assert jrn.head(run.run_id) == head and point.decision == End(RunStatus.FAILED, run.state.checkpoint_id)
    more = jrn.resume(run.run_id, max_attempts=2, dry_run=True)
    assert more.next == A and [type(event) for event in more.would_append] == [StateFailed, DomainEvent]
    resume(jrn, run)
    assert tuple(tail(jrn, run, head)) == point.would_append


def test_another_limit_is_recorded(jrn: Any) -> None:
    """A resume with another max_attempts holds from then on, for failures of this process too."""
    run = start(jrn, [A], max_attempts=2)
    fail(run, A, OSError())
    again = resume(jrn, run, max_attempts=3)
    fail(again, A, OSError())
    assert again.status is None
    fail(again, A, OSError())
    assert again.status is RunStatus.FAILED and again.state.max_attempts == 3


@pytest.mark.spec("stream rules")
def test_the_first_rule_broken_wins_also_that_of_artifacts(jrn: Any) -> None:
    """An artifact that is not there, named before the event that breaks another rule, or by it where that rule is the
    last, is what is said; nothing is written."""
    there, absent = jrn.store.put(b"there"), ArtifactId.of(b"nowhere")
    started = journal.RunStarted(op_id="flow", manifest_id=there, initial_snapshot_id=there)

    def fact(payload_id: Any) -> DomainEvent:
        return DomainEvent("fact_recorded", {"key": "k", "payload_id": payload_id})

    note = DomainEvent("note", {"link": absent})
    for events, error in (
        ([started, note, started], problems.MissingArtifact),
        ([started, started, note], problems.InvalidEvent),
        ([started, fact(there), fact(absent)], problems.MissingArtifact),
        ([started, fact(there), fact(jrn.store.put(b"other"))], problems.InvalidEvent),
    ):
        run_id = uuid4()
        with pytest.raises(error):
            jrn.append(run_id, 0, events)
        assert jrn.head(run_id) == 0


def test_a_child_is_spawned_and_ends_once_in_its_parents_events(jrn: Any) -> None:
    """However many attempts ask for it, and however often."""
    run = start(jrn, [A], max_attempts=5)
    for _ in range(3):
        with pytest.raises(OSError), run.enter(A) as attempt:
            child = attempt.child("k", "sub", {"of": 1}, {"n": 0}, plan=[B], max_attempts=7)
            if child.status is None:
                with child.enter(B) as inner:
                    inner.complete({"n": 1})
                child.complete()
            assert attempt.child("k", "sub", {"of": 1}, {"n": 0}, plan=[B], max_attempts=7).status is not None
            raise OSError
    names = [event.name for event in tail(jrn, run, 0) if isinstance(event, DomainEvent)]
    assert [names.count("child_run_spawned"), names.count("child_run_completed")] == [1, 1]


def test_the_events_of_a_parent_are_not_read_for_each_child(jrn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor with a thousand children would read its stream a thousand times."""
    run = start(jrn, [A])
    read, parents = type(jrn).read, []

    def counted(self: Any, run_id: Any, *given: Any, **named: Any) -> Any:
        parents.extend([run_id] if run_id == run.run_id else [])
        return read(self, run_id, *given, **named)

    monkeypatch.setattr(type(jrn), "read", counted)
    with run.enter(A) as attempt:
        for n in range(5):
            child = attempt.child(f"k{n}", "sub", {}, {"n": n}, plan=[B])
            complete(child, B, {})
            child.complete()
        attempt.complete({})
    assert len(parents) == 1
    names = [event.name for event in tail(jrn, run, 0) if isinstance(event, DomainEvent)]
    assert [names.count("child_run_spawned"), names.count("child_run_completed")] == [5, 5]


def test_a_child_whose_start_was_cut_off_is_spawned_once(jrn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent said so, and died before it began."""
    run = start(jrn, [A], max_attempts=5)

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), run.enter(A) as attempt:
        patch.setattr(type(jrn), "start_run", die)
        attempt.child("k", "sub", {}, {})
    again = resume(jrn, run)
    with again.enter(A) as attempt:
        assert attempt.child("k", "sub", {}, {}).head == 2
        attempt.complete({"n": 1})
    names = [event.name for event in tail(jrn, run, 0) if isinstance(event, DomainEvent)]
    assert names.count("child_run_spawned") == 1


def test_a_child_keeps_its_limit_of_attempts(jrn: Any) -> None:
    run = start(jrn, [A], max_attempts=5)
    with pytest.raises(OSError), run.enter(A) as attempt:
        attempt.child("k", "sub", {}, {}, max_attempts=7)
        raise OSError
    with run.enter(A) as attempt:
        child = attempt.child("k", "sub", {}, {}, max_attempts=7)
        assert child.state.max_attempts == 7
        names = [event.name for event in tail(jrn, child, 0) if isinstance(event, DomainEvent)]
        assert names == ["run_policy"]
        again = attempt.child("k", "sub", {}, {}, max_attempts=9)  # it is passed on: another one is another policy
        assert again.state.max_attempts == 9
        attempt.complete({"n": 1})


@pytest.mark.spec("scenario 30")
def test_a_fork_at_the_start_has_the_policy_of_its_source(jrn: Any) -> None:
    """run_policy belongs to the append of RunStarted."""
    run = start(jrn, [A, B], max_attempts=7)
    forked = jrn.fork(run.run_id, 1)
    assert (forked.state.plan, forked.state.max_attempts, forked.next) == ((A, B), 7, A)


@pytest.mark.spec("scenario 30")
@pytest.mark.parametrize("at_seq", [1, 2, 3, 4])
def test_a_fork_of_a_fork(jrn: Any, at_seq: int) -> None:
    """Wherever in what it began with: its own start holds the work of the first run, which is not done again."""
    run = start(jrn, [A, B, C], max_attempts=7)
    with run.enter(A) as attempt:
        attempt.fact("k", {"paid": 1})
        attempt.complete({"n": 1})
    first = jrn.fork(run.run_id, run.head)
    second = jrn.fork(first.run_id, at_seq)
    for forked in (first, second):
        state = forked.state
        assert (state.completed, state.plan, state.max_attempts, forked.next) == ((A,), (A, B, C), 7, B)
        assert forked.context() == {"n": 1}
    assert list(second.facts()) == (["k"] if at_seq == 4 else [])


@pytest.mark.spec("scenario 30")
def test_a_fork_of_what_is_only_kept_in_part(jrn: Any) -> None:
    """The checkpoint is there, the facts are not: it says so, and no run begins."""
    run = start(jrn, [A])
    with run.enter(A) as attempt:
        attempt.fact("k", {"large": "x" * 5000})
        attempt.complete({"n": 1})
    run.complete()
    jrn.store.gc(jrn, grace=0, final_only=True, force=True)
    count = len([*jrn.runs()])
    with pytest.raises(store_errors.Collected):
        jrn.fork(run.run_id, run.head)
    assert len([*jrn.runs()]) == count


def test_an_attempt_that_is_open_here_goes_on(jrn: Any) -> None:
    """It is no orphan for the run that holds it."""
    run = start(jrn, [A, B])
    with run.enter(A) as attempt:
        assert run.decision == Enter(A, 0, attempt.base_snapshot_id)
        name = attempt.complete({"n": 1}, then=B)
    assert run.decision == Enter(B, 0, name) and run.next == B


def test_a_refusal_that_is_asked_for_after_the_end_is_told(tmp_path: Path) -> None:
    """The store cannot be asked for what is missing any more: the rule that was seen to be broken is what is said."""
    with journal.open(tmp_path / "home") as jrn:
        there, absent = jrn.store.put(b"there"), ArtifactId.of(b"nowhere")
        started = journal.RunStarted(op_id="flow", manifest_id=there, initial_snapshot_id=there)
        pending = jrn.append(uuid4(), 0, [started, DomainEvent("note", {"l": absent}), started], wait=False)
    with pytest.raises(problems.InvalidEvent) as error:
        pending.result()
    assert error.value.code == "duplicate_run_started"
