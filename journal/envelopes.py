"""What a stream means: its state, and what is to be done next. Pure: values in, values out.

The rules of a legal stream, and the words for breaking them, are in `journal.views`; they are the same for a
writer (`check_append`) and a reader (`analyze`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, final
from uuid import UUID

from casstore.ids import ArtifactId
from journal import domain
from journal.decisions import Choose, Decision, End, Ended, Enter, Orphaned
from journal.errors import InvalidArgument, InvalidEvent, InvalidField, InvalidPlan, InvalidStream, StateNotInPlan
from journal.events import (
    DomainEvent,
    Event,
    RecordedEvent,
    RunCompleted,
    StateFailed,
    check_event,
    run_policy,
)
from journal.failures import ErrorCategory, ErrorInfo, RunStatus, StateError
from journal.ids import U32_MAX, check_int
from journal.views import OpenAttempt, RunView, advance

ORPHAN_CODE: Final = "orphan_attempt_recovered"
_ORPHAN_MESSAGE: Final = "the process ended inside this attempt"


class Failure(NamedTuple):
    """The tail of the kernel events is this StateFailed, at `seq`."""

    state_id: str
    attempt: int
    error: StateError
    seq: int


class History(Protocol):
    """What grows with a run; a journal reads it when it is asked for."""

    @property
    def completed(self) -> tuple[str, ...]: ...

    @property
    def attempts(self) -> dict[str, int]: ...

    @property
    def facts(self) -> dict[str, ArtifactId]: ...

    @property
    def last_completed(self) -> str | None: ...


class KnownHistory(NamedTuple):
    """A history that is at hand."""

    completed: tuple[str, ...] = ()
    attempts: dict[str, int] = {}  # noqa: RUF012 - never written to
    facts: dict[str, ArtifactId] = {}  # noqa: RUF012

    @property
    def last_completed(self) -> str | None:
        return self.completed[-1] if self.completed else None


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunState:
    """A run at `head`, as its events tell it.

    `status` is None while the run lives. `last_failure` is there while no kernel event but RunCompleted follows
    it. `plan` and `max_attempts` are of the last run_policy; a plan kept in an artifact is `plan_id`.
    """

    run_id: UUID
    op_id: str
    manifest_id: ArtifactId
    status: RunStatus | None = None
    checkpoint_id: ArtifactId
    checkpoint_seq: int
    final_snapshot_id: ArtifactId | None = None
    open_attempt: OpenAttempt | None = None
    last_failure: Failure | None = None
    head: int
    plan: tuple[str, ...] | None = None
    plan_id: ArtifactId | None = None
    max_attempts: int = domain.DEFAULT_MAX_ATTEMPTS
    history: History = field(default=KnownHistory(), compare=False, repr=False)

    @property
    def completed(self) -> tuple[str, ...]:
        """Completed states in order, those of `forked_from` first."""
        return self.history.completed

    @property
    def attempts(self) -> dict[str, int]:
        """How often each state was entered."""
        return self.history.attempts

    @property
    def facts(self) -> dict[str, ArtifactId]:
        """Fact keys and their payloads."""
        return self.history.facts

    @property
    def last_completed(self) -> str | None:
        """The state completed last, None at the start: known without reading the others."""
        return self.history.last_completed

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if type(other) is not RunState:
            return NotImplemented
        mine, theirs = (
            [getattr(state, name) for name in _COMPARED] for state in (self, other)
        )  # fmt: skip
        return mine == theirs


_COMPARED: Final = (
    "run_id", "op_id", "manifest_id", "status", "checkpoint_id", "checkpoint_seq", "final_snapshot_id", "open_attempt",
    "last_failure", "head", "plan", "plan_id", "max_attempts", "completed", "attempts", "facts",
)  # fmt: skip


def analyze(events: Iterable[RecordedEvent]) -> RunState:
    """The state of a whole stream, from its first event on. Raises: InvalidStream with the word of the rule."""
    view: RunView | None = None
    for recorded in events:
        if type(recorded) is not RecordedEvent:
            raise InvalidArgument("events", f"a RecordedEvent is wanted, not {type(recorded).__name__}")
        if view is None:
            view = RunView(run_id=recorded.run_id)
        advance(view, recorded.seq, recorded.event, run_id=recorded.run_id, raises=InvalidStream)
    if view is None:
        raise InvalidStream("missing_run_started", None, 1, "the stream is empty")
    return state_of(view)


def state_of(view: RunView, history: History | None = None) -> RunState:
    """The state of a view. Without `history` its overlays have to hold the whole run (it was advanced from seq 1 on).

    Raises: InvalidStream where the run has not begun.
    """
    if view.op_id is None or view.manifest_id is None or view.checkpoint_id is None:
        raise InvalidStream("missing_run_started", view.run_id, 1, "the stream is empty")
    failure = None
    if view.last_failure is not None and view.last_error is not None:
        last = view.last_failure
        failure = Failure(last.state_id, last.attempt, view.last_error, last.seq)
    return RunState(
        run_id=view.run_id,
        op_id=view.op_id,
        manifest_id=view.manifest_id,
        status=view.status,
        checkpoint_id=view.checkpoint_id,
        checkpoint_seq=view.checkpoint_seq,
        final_snapshot_id=view.final_snapshot_id,
        open_attempt=view.open_attempt,
        last_failure=failure,
        head=view.head,
        plan=view.plan,
        plan_id=view.plan_id,
        max_attempts=view.max_attempts,
        history=_history_of(view) if history is None else history,
    )


def _history_of(view: RunView) -> KnownHistory:
    facts = {key: fact.payload_id for key, fact in view.new_facts.items()}
    return KnownHistory(tuple(view.new_completed), dict(view.new_attempts), facts)


def check_append(view: RunView, events: Sequence[Event]) -> None:
    """Move the view past the events of one append. After a refusal the view is to be thrown away.

    Raises: InvalidEvent with the word of the first rule broken.
    """
    for event in events:
        advance(view, view.head + 1, check_event(event), raises=InvalidEvent)


def check_imported(run_id: UUID, expected_seq: int, events: Sequence[RecordedEvent]) -> None:
    """Recorded events given for an append say themselves where they belong: nothing else is looked at here.

    Raises: InvalidEvent with `wrong_run_id` or `bad_sequence`.
    """
    for seq, recorded in enumerate(events, expected_seq + 1):
        if recorded.run_id != run_id:
            raise InvalidEvent("wrong_run_id", run_id, seq, f"the event is of run {recorded.run_id}")
        if recorded.seq != seq:
            raise InvalidEvent("bad_sequence", run_id, recorded.seq, f"{seq} was to come")


def validate_plan(plan: object) -> tuple[str, ...] | None:
    """The plan as a tuple; None is no plan. Raises: InvalidPlan when empty, with duplicates, or with bad ids."""
    if plan is None:
        return None
    try:
        states = domain.check_states("plan", plan)
    except InvalidField as error:
        raise InvalidPlan(str(error)) from error
    if not states:
        raise InvalidPlan("it has no states")
    return tuple(states)


def decide(state: RunState, plan: Sequence[str] | None = None, max_attempts: int | None = None) -> Decision:
    """What comes next. A plan or limit that is not given is the recorded one.

    Raises: InvalidPlan, StateNotInPlan, InvalidArgument; a run that has ended answers before any of them.
    """
    if state.status is not None:
        return Ended(state.status, state.final_snapshot_id)
    ordered = _effective_plan(state, plan)
    limit = check_max_attempts(state.max_attempts if max_attempts is None else max_attempts)
    attempt = state.open_attempt
    if attempt is not None:
        then = _after_failure(state, attempt.state_id, attempt.attempt, True, limit)
        return Orphaned(attempt.state_id, attempt.attempt, then, orphan_error(attempt.state_id))
    failure = state.last_failure
    if failure is not None:
        return _after_failure(state, failure.state_id, failure.attempt, failure.error.info.retryable, limit)
    if ordered is None:
        return Choose(state.last_completed, state.checkpoint_id)
    done = set(state.completed)
    for state_id in ordered:
        if state_id not in done:
            return Enter(state_id, 0, state.checkpoint_id)
    return End(RunStatus.COMPLETED, state.checkpoint_id)


def check_max_attempts(value: object) -> int:
    """The limit itself. Raises: InvalidArgument."""
    try:
        return check_int("max_attempts", value, 1, U32_MAX)
    except InvalidField as error:
        raise InvalidArgument(*error.args) from error


def _effective_plan(state: RunState, plan: Sequence[str] | None) -> tuple[str, ...] | None:
    ordered = validate_plan(state.plan if plan is None else plan)
    if ordered is None:
        if state.plan_id is not None:
            raise InvalidPlan(f"the recorded plan is artifact {state.plan_id}; read it and give it")
        return None
    planned = set(ordered)
    for state_id in (*state.completed, *state.attempts):
        if state_id not in planned:
            raise StateNotInPlan(state_id, ordered)
    return ordered


def _after_failure(state: RunState, state_id: str, attempt: int, retryable: bool, limit: int) -> Enter | End:
    if retryable and attempt + 1 < limit:
        # The checkpoint has not moved since the attempt was entered, so this is the failed attempt's base.
        return Enter(state_id, attempt + 1, state.checkpoint_id)
    return End(RunStatus.FAILED, state.checkpoint_id)


def orphan_error(state_id: str) -> StateError:
    """How the attempt of a process that died is closed: by everybody alike."""
    info = ErrorInfo(code=ORPHAN_CODE, category=ErrorCategory.UNKNOWN, retryable=True, message=_ORPHAN_MESSAGE)
    return StateError(state_id=state_id, info=info)


def new_policy(
    state: RunState, plan: Sequence[str] | None, max_attempts: int | None, *, plan_id: ArtifactId | None = None
) -> DomainEvent | None:
    """The run_policy that a resume with this plan and limit has to record; None where nothing is new.

    `plan_id` is the artifact of a plan too long for an event, given instead of the plan.
    Raises: InvalidPlan, InvalidArgument.
    """
    limit = check_max_attempts(state.max_attempts if max_attempts is None else max_attempts)
    ordered = validate_plan(plan)
    if ordered is None and plan_id is None:
        ordered, plan_id = state.plan, state.plan_id
    if (ordered, plan_id, limit) == (state.plan, state.plan_id, state.max_attempts):
        return None
    return run_policy(ordered, limit, plan_id=plan_id)


def resume_events(state: RunState, decision: Decision, policy: DomainEvent | None = None) -> list[Event]:
    """All that a resume with this decision has to append, in one append; empty where nothing is to be written."""
    if isinstance(decision, Ended):
        return []
    events: list[Event] = []
    outcome: Decision = decision
    if isinstance(decision, Orphaned):
        events.append(StateFailed(state_id=decision.state_id, error=decision.error))
        outcome = decision.then
    if policy is not None:
        events.append(policy)
    if isinstance(outcome, End):
        events.append(RunCompleted(status=outcome.status, final_snapshot_id=outcome.final_snapshot_id))
    return events
