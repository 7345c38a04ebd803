"""A journal in plain Python, by docs/SEMANTICS.md alone: what an append answers, what a run is, what is next.

It shares no code with the package but the event types.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from casstore import ArtifactId
from journal import (
    Choose,
    ClaimRequest,
    DomainEvent,
    End,
    Ended,
    Enter,
    ErrorInfo,
    Event,
    RunCompleted,
    RunStarted,
    RunStatus,
    StateCompleted,
    StateEntered,
    StateError,
    StateFailed,
    links,
)
from journal.events import run_policy


class Refused(NamedTuple):
    """The error that is expected: its type's name, and its code."""

    type: str
    code: str


@dataclass
class Shape:
    """What the events of a run say."""

    head: int = 0
    status: RunStatus | None = None
    checkpoint: ArtifactId | None = None
    final: ArtifactId | None = None
    open: tuple[str, int] | None = None
    failure: tuple[str, int, bool] | None = None
    attempts: dict[str, int] = field(default_factory=dict)
    completed: tuple[str, ...] = ()
    facts: dict[str, ArtifactId] = field(default_factory=dict)
    plan: tuple[str, ...] | None = None
    max_attempts: int = 3

    def copy(self) -> Shape:
        other = copy(self)
        other.attempts, other.facts = dict(self.attempts), dict(self.facts)
        return other

    def broken(self, event: Event) -> str | None:
        """The word of the rule that the event would break here."""
        if self.head == 0:
            return None if isinstance(event, RunStarted) else "missing_run_started"
        if self.status is not None:
            return "after_run_completed"
        if isinstance(event, RunStarted):
            return "duplicate_run_started"
        if isinstance(event, StateEntered):
            return self._broken_entry(event)
        if isinstance(event, (StateCompleted, StateFailed)):
            if self.open is None:
                return "no_open_attempt"
            if event.state_id != self.open[0]:
                return "state_mismatch"
            if isinstance(event, StateFailed) and event.error.state_id not in (None, event.state_id):
                return "error_state_mismatch"
            return None
        if isinstance(event, RunCompleted):
            if self.open is not None:
                return "run_completed_in_attempt"
            if event.status is RunStatus.COMPLETED and self.failure is not None:
                return "completed_after_failure"
            return None if event.final_snapshot_id in (None, self.checkpoint) else "wrong_final_snapshot"
        if event.name == "forked_from" and self.head != 1:
            return "misplaced_fork"
        if event.name == "fact_recorded":
            payload = event.payload
            if self.facts.get(payload["key"], payload["payload_id"]) != payload["payload_id"]:
                return "fact_rebound"
        return None

    def _broken_entry(self, event: StateEntered) -> str | None:
        if self.open is not None:
            return "attempt_already_open"
        if self.failure is not None and not self.failure[2]:
            return "after_final_failure"
        if self.failure is not None and self.failure[0] != event.state_id:
            return "after_retryable_failure"
        if event.state_id in self.completed:
            return "state_already_completed"
        if event.attempt != self.attempts.get(event.state_id, 0):
            return "wrong_attempt"
        return None if event.base_snapshot_id == self.checkpoint else "wrong_base"

    def take(self, event: Event) -> None:
        """Move past a legal event."""
        self.head += 1
        if isinstance(event, RunStarted):
            self.checkpoint = event.initial_snapshot_id
        elif isinstance(event, StateEntered):
            self.open, self.failure = (event.state_id, event.attempt), None
            self.attempts[event.state_id] = event.attempt + 1
        elif isinstance(event, StateCompleted):
            self.open, self.checkpoint = None, event.context_snapshot_id
            self.completed += (event.state_id,)
        elif isinstance(event, StateFailed):
            assert self.open is not None
            self.failure, self.open = (*self.open, event.error.info.retryable), None
        elif isinstance(event, RunCompleted):
            self.status, self.final = event.status, event.final_snapshot_id
        elif event.name == "fact_recorded":
            self.facts.setdefault(event.payload["key"], event.payload["payload_id"])
        elif event.name == "run_policy":
            plan = event.payload.get("plan")
            self.plan = None if plan is None else tuple(plan)
            self.max_attempts = event.payload["max_attempts"]
        elif event.name == "forked_from":
            self.completed += tuple(event.payload["completed"])


def shape_of(events: Iterable[Event]) -> Shape:
    shape = Shape()
    for event in events:
        shape.take(event)
    return shape


def opening(events: Sequence[Event]) -> int:
    """How many events belong to the start: RunStarted, forked_from if it is a fork, the first policy if one follows."""
    names = [event.name if isinstance(event, DomainEvent) else "" for event in events[1:3]]
    if names[:1] == ["forked_from"]:
        return 3 if names[1:] == ["run_policy"] else 2
    return 2 if names[:1] == ["run_policy"] else 1


@dataclass
class Request:
    """What one append asks for one run."""

    run_id: UUID
    expected: int
    events: tuple[Event, ...]
    epoch: int | None = None
    claim: ClaimRequest | None = None


class Holder(NamedTuple):
    """Who holds a run."""

    owner: str
    until_ms: int
    ttl_ms: int


@dataclass
class OneRun:
    """A run as the oracle keeps it. `batches` are (token, length) by first seq."""

    events: list[Event] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    batches: dict[int, tuple[bytes | None, int]] = field(default_factory=dict)
    shape: Shape = field(default_factory=Shape)
    epoch: int = 0
    holder: Holder | None = None
    ended_ms: int = 0


class Answer(NamedTuple):
    """What an append is to answer. `epoch` where it took the claim."""

    first_seq: int
    last_seq: int
    position: int
    existing: bool
    epoch: int | None = None


class Oracle:
    """All runs, and the feed. `gone_owner` names a process that ended."""

    def __init__(self, me: str, gone_owner: str) -> None:
        self.me, self.gone_owner = me, gone_owner
        self.runs: dict[UUID, OneRun] = {}
        self.feed: list[tuple[UUID, int, Event]] = []

    def append(
        self, requests: Sequence[Request], token: bytes | None, now_ms: int, missing: set[ArtifactId],
        largest: int = 1500,
    ) -> Refused | dict[UUID, Answer]:  # fmt: skip
        """Judge, and take it if it is legal. `missing` are named artifacts that are not in the store."""
        judged = []
        for request in requests:
            verdict = self._judge(request, token, now_ms, largest, missing)
            if isinstance(verdict, Refused):
                return verdict
            judged.append(verdict)
        writes = [verdict for verdict in judged if verdict == "write"]
        if writes and "existing" in judged:
            return Refused("Conflict", "conflict")
        if writes and missing:
            return Refused("MissingArtifact", "missing_artifact")
        return {
            request.run_id: self._answer(request, verdict, token, now_ms)
            for request, verdict in zip(requests, judged, strict=True)
        }

    def is_free(self, run: OneRun, now_ms: int) -> bool:
        held = run.holder
        return held is None or held.until_ms <= now_ms or held.owner == self.gone_owner

    def _judge(
        self, request: Request, token: bytes | None, now_ms: int, largest: int, missing: set[ArtifactId]
    ) -> Refused | str:
        run = self.runs.get(request.run_id, OneRun())
        first, count = request.expected + 1, len(request.events)
        same = tuple(run.events[first - 1 : first - 1 + count]) == request.events
        if token is not None and count and run.batches.get(first) == (token, count) and same:
            return "existing"
        if request.epoch is not None and request.epoch != run.epoch:
            return Refused("Fenced", "fenced")
        steals = request.claim is not None and request.claim.steal
        if request.epoch is None and not steals and not self.is_free(run, now_ms):
            return Refused("Claimed", "claimed")
        if request.expected != len(run.events):
            return Refused("Conflict", "conflict")
        if not count and request.claim is None:
            return "empty"
        shape = run.shape.copy()
        lost = False  # whether what is named so far is not all there
        for event in request.events:
            word = shape.broken(event)
            named = {name for _, name in links(event)}
            if word in ("fact_rebound", "misplaced_fork"):  # the rule after that of artifacts
                lost |= bool(named & missing)
            if word is not None:
                return Refused("MissingArtifact", "missing_artifact") if lost else Refused("InvalidEvent", word)
            lost |= bool(named & missing)
            shape.take(event)
        for event in request.events:
            if isinstance(event, DomainEvent) and len(event.payload_bytes) > largest:
                return Refused("EventTooLarge", "event_too_large")
        return "write"

    def _answer(self, request: Request, verdict: str, token: bytes | None, now_ms: int) -> Answer:
        first, last = request.expected + 1, request.expected + len(request.events)
        if verdict == "existing":
            return Answer(first, last, self.runs[request.run_id].positions[last - 1], True)
        if verdict == "empty":
            return Answer(first, last, len(self.feed), False)
        run = self.runs.setdefault(request.run_id, OneRun())
        if request.events:
            run.batches[first] = (token, len(request.events))
        for event in request.events:
            run.events.append(event)
            run.shape.take(event)
            self.feed.append((request.run_id, len(run.events), event))
            run.positions.append(len(self.feed))
        asked = request.claim
        if asked is not None:
            run.epoch += 1
            ttl_ms = 60_000 if asked.ttl_ms is None else asked.ttl_ms
            run.holder = Holder(asked.owner or self.me, now_ms + ttl_ms, ttl_ms)
        elif request.epoch is not None and run.holder is not None:
            held = run.holder
            run.holder = held._replace(until_ms=max(held.until_ms, now_ms + held.ttl_ms))
        if run.shape.status is not None:
            run.holder, run.ended_ms = None, now_ms
        return Answer(first, last, len(self.feed), False, run.epoch if run.holder is not None and asked else None)


ORPHAN = ErrorInfo(code="orphan_attempt_recovered", category="unknown", retryable=True,  # type: ignore[arg-type]
                   message="the process ended inside this attempt")  # fmt: skip


def resumption(shape: Shape, plan: Sequence[str] | None, limit: int | None) -> Refused | tuple[Any, tuple[Event, ...]]:
    """What a resume of a run decides, and the events that it appends."""
    assert shape.checkpoint is not None
    if shape.status is not None:
        return Ended(shape.status, shape.final), ()
    ordered = shape.plan if plan is None else tuple(plan)
    if ordered is not None:
        if not ordered or len(set(ordered)) < len(ordered):
            return Refused("InvalidPlan", "invalid_plan")
        if {*shape.completed, *shape.attempts} - set(ordered):
            return Refused("StateNotInPlan", "state_not_in_plan")
    tries = shape.max_attempts if limit is None else limit
    events: list[Event] = []
    failed = shape.failure
    if shape.open is not None:
        events.append(StateFailed(state_id=shape.open[0], error=StateError(info=ORPHAN)))
        failed = (*shape.open, True)
    if (ordered, tries) != (shape.plan, shape.max_attempts):
        events.append(run_policy(ordered, tries))
    decision: Any
    if failed is not None:
        state_id, attempt, retryable = failed
        if retryable and attempt + 1 < tries:
            decision = Enter(state_id, attempt + 1, shape.checkpoint)
        else:
            decision = End(RunStatus.FAILED, shape.checkpoint)
    elif ordered is None:
        decision = Choose(shape.completed[-1] if shape.completed else None, shape.checkpoint)
    else:
        left = [state_id for state_id in ordered if state_id not in shape.completed]
        decision = Enter(left[0], 0, shape.checkpoint) if left else End(RunStatus.COMPLETED, shape.checkpoint)
    if isinstance(decision, End):
        events.append(RunCompleted(status=decision.status, final_snapshot_id=shape.checkpoint))
    return decision, tuple(events)
