"""One run, seen as far as the rules of a legal stream need it, and the step that takes one more event.

The same step checks a writer's append and a reader's stream. It needs constant work per event: what is not in the
view (entries of a state, payload of a fact) is asked of two lookups, and what the step changes is kept in the view's
overlays, so that a storage layer writes only what changed.

The words for broken rules, with the clause of the stream rules each belongs to:

1   bad_sequence, wrong_run_id
2   missing_run_started, duplicate_run_started
3   attempt_already_open, no_open_attempt, state_mismatch, error_state_mismatch
4   wrong_attempt
5   wrong_base
6   state_already_completed
7   after_retryable_failure, after_final_failure, completed_after_failure, wrong_final_snapshot
8   run_completed_in_attempt, after_run_completed
10  fact_rebound, misplaced_fork

Clause 9, that what events name is in the store, is not for a view to see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

from casstore.ids import ArtifactId
from journal import domain
from journal.errors import InvalidEvent, InvalidStream
from journal.events import (
    DomainEvent,
    Event,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
    StateFailed,
)
from journal.failures import RunStatus, StateError

AFTER_ARTIFACTS: Final = ("fact_rebound", "misplaced_fork")  # words of the clauses after 9


class OpenAttempt(NamedTuple):
    """The attempt that is running: `seq` is its StateEntered."""

    state_id: str
    attempt: int
    base_snapshot_id: ArtifactId
    seq: int


class LastFailure(NamedTuple):
    """The tail of the kernel events is this StateFailed, at `seq`."""

    state_id: str
    attempt: int
    retryable: bool
    seq: int


class StateEntries(NamedTuple):
    """What is known of one state: how often it was entered, and the seq that completed it (0: not completed)."""

    attempts: int
    completed_seq: int


class RecordedFact(NamedTuple):
    """The payload bound to a fact key, and the seq that bound it."""

    payload_id: ArtifactId
    seq: int


_NEVER_ENTERED: Final = StateEntries(0, 0)


def no_states(_: str) -> StateEntries:
    """The lookup of a run that has no stored states."""
    return _NEVER_ENTERED


def no_facts(_: str) -> ArtifactId | None:
    """The lookup of a run that has no stored facts."""
    return None


@dataclass(slots=True, kw_only=True)
class RunView:
    """A run at `head`. Fields are None (numbers 0) until an event sets them.

    `stored_state` and `stored_fact` answer for what stood before the overlays began. `new_attempts` (entries so
    far), `new_completed` (state to seq, in order) and `new_facts` are what `advance` changed. After `advance`
    raised, the view still stands before the refused event.
    """

    run_id: UUID
    head: int = 0
    op_id: str | None = None
    manifest_id: ArtifactId | None = None
    status: RunStatus | None = None
    checkpoint_id: ArtifactId | None = None
    checkpoint_seq: int = 0
    final_snapshot_id: ArtifactId | None = None
    open_attempt: OpenAttempt | None = None
    last_failure: LastFailure | None = None
    last_error: StateError | None = None  # of last_failure; None too where the view was made from a row
    n_completed: int = 0
    policy_seq: int = 0
    plan: tuple[str, ...] | None = None
    plan_id: ArtifactId | None = None
    max_attempts: int = domain.DEFAULT_MAX_ATTEMPTS
    stored_state: Callable[[str], StateEntries] = no_states
    stored_fact: Callable[[str], ArtifactId | None] = no_facts
    stored_head: int = 0  # the head at which the overlays began: with 0 they hold the whole run
    new_attempts: dict[str, int] = field(default_factory=dict)
    new_completed: dict[str, int] = field(default_factory=dict)
    new_facts: dict[str, RecordedFact] = field(default_factory=dict)

    def attempts(self, state_id: str) -> int:
        """How often the state was entered."""
        new = self.new_attempts.get(state_id)
        return self.stored_state(state_id).attempts if new is None else new

    def is_completed(self, state_id: str) -> bool:
        """Whether the state was completed, here or in the run that this one was forked from."""
        return state_id in self.new_completed or self.stored_state(state_id).completed_seq > 0

    def fact(self, key: str) -> ArtifactId | None:
        """The payload bound to the key, if any."""
        new = self.new_facts.get(key)
        return self.stored_fact(key) if new is None else new.payload_id


def look_up(view: RunView, events: Iterable[Event]) -> None:
    """Ask for all that `advance` will need of these events: lookups remember what they answered."""
    for event in events:
        if type(event) is StateEntered:
            view.attempts(event.state_id)
        elif type(event) is DomainEvent and event.name == domain.FACT_RECORDED:
            view.fact(event.payload["key"])


_RULED: Final = frozenset((domain.FORKED_FROM, domain.FACT_RECORDED, domain.RUN_POLICY))
Refusal = type[InvalidEvent] | type[InvalidStream]


def advance(view: RunView, seq: int, event: Event, *, run_id: UUID | None = None, raises: Refusal) -> None:
    """Check one event against the view and move the view past it.

    `run_id` is what the event says of itself, if it says so. Raises: `raises`, with the word of the rule broken.
    """
    plain = type(event) is DomainEvent and event.name not in _RULED  # most by far; no rule is about what they say
    if plain and run_id is None and 1 < seq == view.head + 1 and view.status is None:
        view.head = seq
        return
    fault = _fault(view, seq, event, run_id)
    if fault is not None:
        raise raises(fault[0], view.run_id, seq, fault[1])
    _TAKE[type(event)](view, seq, event)
    view.head = seq


# -- checking: a fault is (word, detail) ---------------------------------------------------------------

Fault = tuple[str, str] | None


def _fault(view: RunView, seq: int, event: Event, run_id: UUID | None) -> Fault:
    # Where an event breaks several rules, the one about its place is named before those about its fields.
    if run_id is not None and run_id != view.run_id:
        return "wrong_run_id", f"the event is of run {run_id}"
    if seq != view.head + 1:
        return "bad_sequence", f"{view.head + 1} was to come"
    if seq == 1 and type(event) is not RunStarted:
        return "missing_run_started", f"{type(event).__name__} is the first event"
    if view.status is not None:
        return "after_run_completed", f"{type(event).__name__} after the end"
    return _CHECK[type(event)](view, seq, event)


def _check_run_started(view: RunView, seq: int, event: Any) -> Fault:
    return ("duplicate_run_started", "a second RunStarted") if seq != 1 else None


def _check_state_entered(view: RunView, seq: int, event: StateEntered) -> Fault:
    if view.open_attempt is not None:
        return "attempt_already_open", f"attempt {view.open_attempt.attempt} of {view.open_attempt.state_id} is open"
    failure = view.last_failure
    if failure is not None and not failure.retryable:
        return "after_final_failure", f"{failure.state_id} failed for good"
    if failure is not None and failure.state_id != event.state_id:
        return "after_retryable_failure", f"only {failure.state_id} can be entered, not {event.state_id}"
    if view.is_completed(event.state_id):
        return "state_already_completed", event.state_id
    due = view.attempts(event.state_id)
    if event.attempt != due:
        return "wrong_attempt", f"attempt {event.attempt} of {event.state_id}, {due} is due"
    if event.base_snapshot_id != view.checkpoint_id:
        return "wrong_base", f"the base is {event.base_snapshot_id}, the checkpoint {view.checkpoint_id}"
    return None


def _check_closing(view: RunView, seq: int, event: StateCompleted | StateFailed) -> Fault:
    if view.open_attempt is None:
        return "no_open_attempt", f"{type(event).__name__} of {event.state_id}"
    if event.state_id != view.open_attempt.state_id:
        return "state_mismatch", f"{event.state_id}, but {view.open_attempt.state_id} is open"
    if type(event) is StateFailed and event.error.state_id != event.state_id:
        return "error_state_mismatch", f"the error is of {event.error.state_id}, the attempt of {event.state_id}"
    return None


def _check_run_completed(view: RunView, seq: int, event: RunCompleted) -> Fault:
    if view.open_attempt is not None:
        return (
            "run_completed_in_attempt",
            f"attempt {view.open_attempt.attempt} of {view.open_attempt.state_id} is open",
        )
    if event.status is RunStatus.COMPLETED and view.last_failure is not None:
        return "completed_after_failure", f"{view.last_failure.state_id} failed"
    if event.final_snapshot_id is not None and event.final_snapshot_id != view.checkpoint_id:
        return "wrong_final_snapshot", f"{event.final_snapshot_id}, the checkpoint is {view.checkpoint_id}"
    return None


def _check_domain(view: RunView, seq: int, event: DomainEvent) -> Fault:
    if event.name == domain.FORKED_FROM and seq != 2:
        return "misplaced_fork", "forked_from stands only at seq 2"
    if event.name == domain.FACT_RECORDED:
        payload = event.payload
        bound = view.fact(payload["key"])
        if bound is not None and bound != payload["payload_id"]:
            return "fact_rebound", f"{payload['key']!r} is {bound}, not {payload['payload_id']}"
    return None


# -- taking: the event was found legal -----------------------------------------------------------------


def _take_run_started(view: RunView, seq: int, event: RunStarted) -> None:
    view.op_id, view.manifest_id = event.op_id, event.manifest_id
    view.checkpoint_id, view.checkpoint_seq = event.initial_snapshot_id, seq


def _take_state_entered(view: RunView, seq: int, event: StateEntered) -> None:
    view.open_attempt = OpenAttempt(event.state_id, event.attempt, event.base_snapshot_id, seq)
    view.last_failure = view.last_error = None
    view.new_attempts[event.state_id] = event.attempt + 1


def _take_state_completed(view: RunView, seq: int, event: StateCompleted) -> None:
    view.open_attempt = None
    view.checkpoint_id, view.checkpoint_seq = event.context_snapshot_id, seq
    view.new_completed[event.state_id] = seq
    view.n_completed += 1


def _take_state_failed(view: RunView, seq: int, event: StateFailed) -> None:
    attempt = 0 if view.open_attempt is None else view.open_attempt.attempt
    view.open_attempt = None
    view.last_failure = LastFailure(event.state_id, attempt, event.error.info.retryable, seq)
    view.last_error = event.error


def _take_run_completed(view: RunView, seq: int, event: RunCompleted) -> None:
    view.status, view.final_snapshot_id = event.status, event.final_snapshot_id


def _take_domain(view: RunView, seq: int, event: DomainEvent) -> None:
    if event.name == domain.FACT_RECORDED:
        payload = event.payload
        if view.fact(payload["key"]) is None:
            view.new_facts[payload["key"]] = RecordedFact(payload["payload_id"], seq)
    elif event.name == domain.RUN_POLICY:
        payload = event.payload
        view.policy_seq = seq
        view.plan = tuple(payload["plan"]) if "plan" in payload else None
        view.plan_id, view.max_attempts = payload.get("plan_id"), payload["max_attempts"]
    elif event.name == domain.FORKED_FROM:
        for state_id in event.payload["completed"]:
            view.new_completed[state_id] = seq
            view.n_completed += 1


_CHECK: Final[dict[type, Callable[[RunView, int, Any], Fault]]] = {
    RunStarted: _check_run_started,
    StateEntered: _check_state_entered,
    StateCompleted: _check_closing,
    StateFailed: _check_closing,
    RunCompleted: _check_run_completed,
    DomainEvent: _check_domain,
}
_TAKE: Final[dict[type, Callable[[RunView, int, Any], None]]] = {
    RunStarted: _take_run_started,
    StateEntered: _take_state_entered,
    StateCompleted: _take_state_completed,
    StateFailed: _take_state_failed,
    RunCompleted: _take_run_completed,
    DomainEvent: _take_domain,
}
