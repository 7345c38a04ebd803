"""Run: records what an orchestrator does with a run. Artifact first, event second, durable when a call returns.

It never retries or rebases a refused append: another owner may have gone on meanwhile.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeAlias, final
from uuid import UUID

from casstore import PreparedPut, Store
from casstore.errors import MissingArtifact, PoisonedHandle, StoreError
from casstore.ids import ArtifactId
from journal import domain
from journal.attempt import SNAPSHOT_KIND, Attempt, named_puts
from journal.context_codec import ContextCodec
from journal.decisions import Choose, Decision, Enter, Orphaned
from journal.envelopes import RunState, decide, resume_events, state_of
from journal.errors import (
    AttemptLost,
    AttemptOpen,
    Claimed,
    Conflict,
    EventTooLarge,
    Fenced,
    InvalidStream,
    JournalError,
    NoPlan,
    OutcomeUnknown,
    StateNotInPlan,
    StatesRemain,
)
from journal.events import DomainEvent, Event, RunCompleted, StateEntered, StateFailed, run_ended
from journal.failures import ErrorInfo, RunStatus, StateError
from journal.ids import check_state_id
from journal.records import MAX_RECORD
from journal.redaction import Redact, redacted_text
from journal.storable import REASON_LIMIT_BYTES, state_error, storable_text
from journal.views import RunView, advance, look_up

MANIFEST_KIND: Final = "manifest"
DETAILS_KIND: Final = "error_details"
PAYLOAD_KIND: Final = "event_payload"
CANCELLED: Final = "cancelled"

# What a record takes besides name and payload: version, numbers, time, batch with token, reference, heads.
_RECORD_OVERHEAD_BYTES: Final = 116
_LOSING: Final = (Conflict, Fenced, Claimed, OutcomeUnknown, PoisonedHandle)

Refill: TypeAlias = Callable[[], ArtifactId]
Classifier: TypeAlias = Callable[[BaseException], bool]


class Ownership(Protocol):
    """What a run needs to know of its claim."""

    @property
    def epoch(self) -> int: ...


@final
class Run:
    """A run and what this process knows of it. Made by start_run, resume and fork; calls may come from any thread."""

    def __init__(self, journal: Any, view: RunView, *, claim: Ownership | None, retryable: Classifier | None) -> None:
        """`view` holds the whole run (advanced from seq 1 on)."""
        self._journal = journal
        self._store: Store = journal.store
        self._codec: ContextCodec = journal.codec
        self._redact: Redact | None = journal.redact
        self._lost = False  # to another owner, who has what is open now
        self._view = view
        self._claim = claim
        self._retryable = retryable
        self._lock = threading.RLock()
        self._current: Attempt | None = None  # open, and a handler works on it or will
        self._entered_ahead: Attempt | None = None  # opened by complete(then=…), not yet asked for
        self._decision: Decision | None = None
        self._listed: tuple[ArtifactId, tuple[str, ...]] | None = None  # a plan kept in an artifact
        self._decided_plan: tuple[str, ...] | None = None  # the plan that `next` was last decided by
        self._planned_from = 0  # its states before this place are completed
        self._overtaken_by_renewal = False
        self._on_end: Callable[[Run], None] | None = None
        self._children: dict[UUID, Run] = {}
        self._of_children: set[Event] | None = None  # what the run says of its children, once somebody asked

    # -- what is known

    @property
    def run_id(self) -> UUID:
        """The run's id."""
        return self._view.run_id

    @property
    def state(self) -> RunState:
        """The run as of the last event that this object recorded or read."""
        with self._lock:
            return self._state()

    @property
    def head(self) -> int:
        """The number of events as far as this object knows."""
        return self._view.head

    @property
    def status(self) -> RunStatus | None:
        """None while the run lives."""
        return self._view.status

    @property
    def epoch(self) -> int | None:
        """The epoch of the claim, None without one."""
        return None if self._claim is None else self._claim.epoch

    @property
    def decision(self) -> Decision:
        """What resume decided; once more is recorded, what is to be done next: an attempt that is open here goes on."""
        with self._lock:
            opened = self._view.open_attempt
            if self._current is not None and opened is not None:
                return Enter(opened.state_id, opened.attempt, opened.base_snapshot_id)
            return self._decide() if self._decision is None else self._decision

    @property
    def next(self) -> str | None:
        """The state to enter, None when there is nothing left to run. An open attempt's state is next.

        Raises: NoPlan where only the orchestrator can choose.
        """
        with self._lock:
            planned = self._planned()
            if planned is not None:
                return planned
            decision = self._decide()
            if self._decided_plan != self._plan():
                self._decided_plan, self._planned_from = self._plan(), 0
        if isinstance(decision, Orphaned | Enter):
            return decision.state_id
        if isinstance(decision, Choose):
            raise NoPlan(self.run_id)
        return None

    def context(self) -> Any:
        """The context at the checkpoint, decoded afresh."""
        assert self._view.checkpoint_id is not None
        return self._context_at(self._view.checkpoint_id)

    def manifest(self) -> Any:
        """The manifest, decoded afresh."""
        assert self._view.manifest_id is not None
        return self._store.get_value(self._view.manifest_id)

    def facts(self) -> dict[str, Any]:
        """Every fact recorded so far, decoded afresh."""
        return {key: self._store.get_value(payload_id) for key, payload_id in self.state.facts.items()}

    # -- states

    def enter(self, state_id: str) -> Attempt:
        """Record StateEntered; use the attempt as a context manager, whose ways out docs/SEMANTICS.md lists.

        After `complete(then=state_id)` this is the attempt already entered. Raises: AttemptOpen, StateNotInPlan,
        InvalidEvent (the stream's rules), Conflict, Fenced, Claimed; nothing is written then.
        """
        with self._lock:
            opened = self._view.open_attempt
            if opened is not None:
                ahead = self._entered_ahead
                if ahead is None or ahead.state_id != state_id:
                    raise self._still_open()
                self._entered_ahead = None
                return ahead
            plan = self._plan()
            if plan is not None and state_id not in plan:
                check_state_id(state_id)
                raise StateNotInPlan(state_id, plan)
            attempt = self._entries(state_id)
            self._append([StateEntered(state_id=state_id, attempt=attempt, base_snapshot_id=self._checkpoint())])
            return self._opened()

    def abandon(self) -> None:
        """Close the attempt that is open as an orphan's: retryable while tries are left, else the run fails.

        Does nothing where none is open.
        """
        with self._lock:
            decision = self._decide()
            if isinstance(decision, Orphaned):
                if self._lost:
                    raise self._still_open()
                self._append(resume_events(self._state(), decision))
                self._closed_by_force("left")

    # -- events of the orchestrator

    def emit(self, name: str, payload: dict[str, Any] | None = None, payload_ref: ArtifactId | None = None) -> None:
        """Record a domain event. A payload that is too large for an event is kept as an artifact."""
        self._append([DomainEvent(name, {} if payload is None else payload, payload_ref)])

    # -- the end

    def complete(self) -> None:
        """Record RunCompleted(completed). Done already, nothing is written.

        Raises: AttemptOpen, StatesRemain, InvalidEvent (it failed or ended otherwise), Conflict, Fenced.
        """
        with self._lock:
            if self._view.status is RunStatus.COMPLETED:
                return
            self._refuse_open()
            plan = self._plan() if self._view.status is None else None
            remaining = tuple(state for state in plan or () if not self._view.is_completed(state))
            if remaining:
                raise StatesRemain(self.run_id, remaining)
            self._append([self._end(RunStatus.COMPLETED)])

    def fail(self, error: BaseException | StateError | ErrorInfo | str) -> None:
        """Record run_ended with the error, and RunCompleted(failed); an open attempt fails for good in the same append.

        Failed already, nothing is written. Raises: InvalidEvent (it ended otherwise), Conflict, Fenced.
        """
        with self._lock:
            if self._view.status is RunStatus.FAILED:
                return
            stated = state_error(
                error, put=self._put_details, present=self._store.__contains__, redact=self._redact
            )  # fmt: skip
            info = stated.info
            final = ErrorInfo(code=info.code, category=info.category, retryable=False, message=info.message,
                              details_bytes=info.details_bytes)  # fmt: skip
            self._end_early(RunStatus.FAILED, info.message, stated, final)

    def cancel(self, reason: str = CANCELLED) -> None:
        """Record run_ended{reason} and RunCompleted(cancelled); an open attempt fails for good in the same append.

        Cancelled already, nothing is written. Raises: InvalidEvent (it ended otherwise), Conflict, Fenced.
        """
        with self._lock:
            if self._view.status is not RunStatus.CANCELLED:
                said = redacted_text(self._redact, str(reason))
                self._end_early(RunStatus.CANCELLED, said, None, cancelled_info(said))

    def release(self) -> None:
        """Give the claim back, so that another process can resume at once. The run stays as it is. Idempotent."""
        with self._lock:
            claim, self._claim = self._claim, None
        self._journal.renewer.discard(self)
        if claim is not None:
            self._journal.release(claim)

    def __repr__(self) -> str:
        status = "live" if self._view.status is None else self._view.status.value
        return f"Run({self.run_id}, {status}, head={self._view.head})"

    # -- for Attempt and the renewal: they act under the run's lock

    def renew_claim(self) -> None:
        """Renew the claim if there is one. Not raised: what is lost is found at the next append."""
        claim = self._claim
        if claim is None:
            return
        try:
            renewed = self._journal.renew(claim)
        except (Fenced, Claimed):
            self._overtaken_by_renewal = self._claim is claim  # else it was given back meanwhile
        except (JournalError, StoreError):
            return
        else:
            with self._lock:
                if self._claim is claim and renewed is not None:
                    self._claim = renewed

    def _append(
        self, events: Sequence[Event], refill: Iterable[Refill] = (), *, attempt: Attempt | None = None,
        puts: Sequence[PreparedPut] = (),
    ) -> None:  # fmt: skip
        """One append at the head this object knows, under a fresh token.

        If an artifact was collected between put and append, `refill` puts it again and the same append is made once
        more. What tells of another owner loses the attempt.
        """
        with self._lock:
            fitted, moved = fit_all(events, self._store)
            try:
                self._write(fitted, (*refill, *moved), puts)
            except _LOSING:
                self._lose(attempt)
                raise
            self._decision = None
            if self._view.open_attempt is None:
                self._journal.renewer.discard(self)
            ended = self._view.status is not None
        if ended and self._on_end is not None:
            self._on_end(self)

    def _write(self, events: list[Event], refill: tuple[Refill, ...], puts: Sequence[PreparedPut]) -> None:
        token = secrets.token_bytes(16)
        expected = self._view.head
        look_up(self._view, events)

        def append() -> None:
            self._journal.append(self.run_id, expected, events, token=token, epoch=self.epoch, puts=puts)

        try:
            append()
        except MissingArtifact:
            if not refill:
                raise
            for put in refill:
                put()
            append()
        take(self._view, events)
        if self._of_children is not None:
            self._of_children.update(filter(_is_of_child, events))

    def _lose(self, attempt: Attempt | None) -> None:
        for lost in (attempt, self._current):
            if lost is not None:
                lost._status = "lost"
        self._current = self._entered_ahead = None
        self._lost = True
        self._journal.renewer.discard(self)

    def _fail_attempt(self, attempt: Attempt, info: ErrorInfo) -> None:
        """StateFailed and, where that ends the run, RunCompleted(failed) in the same append."""
        with self._lock:
            failed = StateFailed(state_id=attempt.state_id, error=StateError(info=info))
            events: list[Event] = [failed]
            if not info.retryable or attempt.attempt + 1 >= self._view.max_attempts:
                events.append(self._end(RunStatus.FAILED))
            self._append(events, attempt=attempt)
            self._attempt_closed(attempt)

    def _attempt_closed(self, attempt: Attempt) -> None:
        """The attempt ended or was left; one that complete(then=…) opened takes its place."""
        with self._lock:
            if self._current is attempt:
                self._current = None
            opened = self._view.open_attempt
            if attempt._status == "completed" and opened is not None:
                self._entered_ahead = self._opened()
            else:
                self._journal.renewer.discard(self)

    def _opened(self) -> Attempt:
        opened = self._view.open_attempt
        assert opened is not None
        self._current = Attempt(self, opened)
        if self._claim is not None:
            self._journal.renewer.add(self)
        return self._current

    def _overtaken(self) -> bool:
        with self._lock:
            return self._overtaken_by_renewal or self._journal.head(self.run_id) != self._view.head

    def _said_of_child(self, event: DomainEvent) -> bool:
        """Whether the run holds this very event. Its events are read once, not for each child."""
        with self._lock:
            if self._of_children is None:
                recorded = (item.event for item in self._journal.read(self.run_id))
                self._of_children = set(filter(_is_of_child, recorded))
            return event in self._of_children

    def _fact(self, key: str) -> ArtifactId | None:
        with self._lock:
            return self._view.fact(key)

    def _entries(self, state_id: str) -> int:
        return self._view.attempts(state_id)

    def _checkpoint(self) -> ArtifactId:
        assert self._view.checkpoint_id is not None
        return self._view.checkpoint_id

    def _plan(self) -> tuple[str, ...] | None:
        plan_id = self._view.plan_id
        if plan_id is None:
            return self._view.plan
        if self._listed is None or self._listed[0] != plan_id:
            self._listed = (plan_id, tuple(self._store.get_value(plan_id)))
        return self._listed[1]

    def _context_at(self, snapshot_id: ArtifactId) -> Any:
        return self._codec.from_plain(self._store.get_value(snapshot_id))

    def _put_context(self, context: Any, *, base: ArtifactId | None) -> ArtifactId:
        return put_context(self._journal, context, base=base)

    def _prepare_context(
        self, context: Any, *, base: ArtifactId | None = None
    ) -> tuple[ArtifactId, tuple[PreparedPut, ...]]:
        return prepare_context(self._journal, context, base=base)

    def _put_manifest(self, manifest: Any) -> ArtifactId:
        return put_manifest(self._store, manifest)

    def _prepare_manifest(self, manifest: Any) -> tuple[ArtifactId, tuple[PreparedPut, ...]]:
        return prepare_manifest(self._store, manifest)

    def _put_details(self, details: object) -> ArtifactId:
        return self._store.put_value(details, kind=DETAILS_KIND, durable=False)

    # -- plumbing

    def _decide(self) -> Decision:
        return decide(self._state(), self._plan() if self._view.status is None else None)

    def _state(self) -> RunState:
        view = self._view
        return state_of(view, self._journal.history(view.run_id, view.head) if view.stored_head else None)

    def _planned(self) -> str | None:
        """The next state of the plan where nothing else is to be decided: found from where the last one was.

        A plan that was not decided by yet is left to `decide`, which checks it against the stream.
        """
        view, plan = self._view, self._plan()
        if plan is None or view.status is not None or view.open_attempt is not None or view.last_failure is not None:
            return None
        if plan != self._decided_plan:
            return None
        while self._planned_from < len(plan) and view.is_completed(plan[self._planned_from]):
            self._planned_from += 1
        return plan[self._planned_from] if self._planned_from < len(plan) else None

    def _end(self, status: RunStatus) -> RunCompleted:
        return RunCompleted(status=status, final_snapshot_id=self._checkpoint())

    def _end_early(self, status: RunStatus, reason: str, error: StateError | None, info: ErrorInfo) -> None:
        self._append(ending(self._view, status, reason, error, info))
        self._closed_by_force("failed")

    def _closed_by_force(self, status: Any) -> None:
        if self._current is not None and self._current._status == "open":
            self._current._status = status
        self._current = self._entered_ahead = None
        self._journal.renewer.discard(self)

    def _refuse_open(self) -> None:
        if self._view.open_attempt is not None:
            raise self._still_open()

    def _still_open(self) -> AttemptOpen | AttemptLost:
        opened = self._view.open_attempt
        assert opened is not None
        return (AttemptLost if self._lost else AttemptOpen)(self.run_id, opened.state_id, opened.attempt)


# -- pure parts, shared with resume, cancel and fork ----------------------------------------------------


def _is_of_child(event: Event) -> bool:
    return type(event) is DomainEvent and event.name in (domain.CHILD_RUN_SPAWNED, domain.CHILD_RUN_COMPLETED)


def take(view: RunView, events: Iterable[Event]) -> None:
    """Move the view past events that were recorded."""
    for event in events:
        advance(view, view.head + 1, event, raises=InvalidStream)


def cancelled_info(reason: str) -> ErrorInfo:
    """How an attempt of a cancelled run is closed."""
    message = storable_text(str(reason), REASON_LIMIT_BYTES)
    return ErrorInfo(code=CANCELLED, retryable=False, message=message)


def ending(
    view: RunView, status: RunStatus, reason: str, error: StateError | None, info: ErrorInfo
) -> list[Event]:  # fmt: skip
    """The events that end a live run at once: the open attempt's failure with `info`, why, and the end."""
    events: list[Event] = []
    if view.open_attempt is not None:
        state_id = view.open_attempt.state_id
        events.append(StateFailed(state_id=state_id, error=StateError(info=info)))
    events.append(run_ended(storable_text(str(reason), REASON_LIMIT_BYTES), error))
    events.append(RunCompleted(status=status, final_snapshot_id=view.checkpoint_id))
    return events


def fit_all(events: Iterable[Event], store: Store) -> tuple[list[Event], list[Refill]]:
    """The events as they fit into records, and what puts again the artifacts that payloads moved to."""
    refill: list[Refill] = []

    def move(value: object) -> ArtifactId:
        def put() -> ArtifactId:
            return store.put_value(value, kind=PAYLOAD_KIND, durable=False)

        refill.append(put)
        return put()

    fitted = [fit(event, move) if type(event) is DomainEvent else event for event in events]
    return fitted, refill


def fit(event: DomainEvent, move: Callable[[object], ArtifactId]) -> DomainEvent:
    """The event, or where it is too large for a record, one that names an artifact instead.

    A free payload moves to payload_ref; of the well-known ones `meta` moves and is then a link to it, and a plan
    becomes its plan_id. Raises: EventTooLarge where nothing of this helps.
    """
    size = len(event.name.encode()) + len(event.payload_bytes) + _RECORD_OVERHEAD_BYTES
    if size <= MAX_RECORD:
        return event
    payload = event.payload
    if event.name in domain.WELL_KNOWN:
        if "meta" in payload:
            payload["meta"] = move(payload["meta"])
        elif event.name == domain.RUN_POLICY and "plan" in payload:
            payload["plan_id"] = move(payload.pop("plan"))
        else:
            raise EventTooLarge(size, MAX_RECORD)
        return DomainEvent(event.name, payload, event.payload_ref)
    if event.payload_ref is not None:
        raise EventTooLarge(size, MAX_RECORD)
    return DomainEvent(event.name, {}, move(payload))


def put_context(journal: Any, context: Any, *, base: ArtifactId | None) -> ArtifactId:
    """Store a context; one that is given as an ArtifactId is there already. Durable with the next append."""
    if type(context) is ArtifactId:
        return context
    store: Store = journal.store
    return store.put_value(journal.codec.to_plain(context), kind=SNAPSHOT_KIND, base=base, durable=False)


def prepare_context(
    journal: Any, context: Any, *, base: ArtifactId | None
) -> tuple[ArtifactId, tuple[PreparedPut, ...]]:
    """The id of a context, and what goes with the append that names it: nothing where it is stored already."""
    if type(context) is ArtifactId:
        return context, ()
    store: Store = journal.store
    return named_puts(store.prepare_value(journal.codec.to_plain(context), kind=SNAPSHOT_KIND, base=base))


def prepare_manifest(store: Store, manifest: Any) -> tuple[ArtifactId, tuple[PreparedPut, ...]]:
    """The same of a manifest."""
    if type(manifest) is ArtifactId:
        return manifest, ()
    return named_puts(store.prepare_value(manifest, kind=MANIFEST_KIND))


def put_manifest(store: Store, manifest: Any) -> ArtifactId:
    """Store a manifest; one that is given as an ArtifactId is there already. Durable with the next append."""
    if type(manifest) is ArtifactId:
        return manifest
    return store.put_value(manifest, kind=MANIFEST_KIND, durable=False)
