"""Start, resume, fork and cancel runs: read, decide, and write all that follows in one append.

The verbs of `Journal` that deal with whole runs; Journal inherits them from RunOperations.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, final, overload
from uuid import UUID, uuid4

from casstore import PreparedPut
from casstore.errors import MissingArtifact
from casstore.steps import reach
from journal import domain
from journal.admission import ClaimRequest
from journal.appends import Claim
from journal.decisions import Decision, Enter, Orphaned
from journal.envelopes import (
    RunState,
    check_max_attempts,
    decide,
    new_policy,
    resume_events,
    state_of,
    validate_plan,
)
from journal.errors import Conflict, InvalidArgument, InvalidEvent, InvalidStream, RunExists, RunNotFound
from journal.events import DomainEvent, Event, RecordedEvent, RunStarted, forked_from, links, run_policy
from journal.failures import RunStatus
from journal.ids import check_op_id, parse_run_id
from journal.recorder import (
    CANCELLED,
    Classifier,
    Refill,
    Run,
    cancelled_info,
    ending,
    fit_all,
    prepare_context,
    prepare_manifest,
    put_context,
    put_manifest,
    take,
)
from journal.redaction import redacted_text
from journal.renewal import PER_TTL, Renewer
from journal.views import RunView, advance

CLAIM_TTL_MS: Final = 60_000
_CANCEL_TRIES: Final = 100  # a living owner may append between the look and the append; from then on it is fenced


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """What a resume would do, were it made now: the answer of `resume(dry_run=True)`. Where somebody holds the run
    (`holder`) it would append this with `steal=True`, and without it nothing: it raises Claimed."""

    run_id: UUID
    state: RunState
    decision: Decision
    would_append: tuple[Event, ...]
    holder: Claim | None

    @property
    def next(self) -> str | None:
        """The state that would be entered, None where there is none or the orchestrator chooses."""
        return self.decision.state_id if isinstance(self.decision, Enter) else None


def start_run(
    journal: Any, op_id: str, *, manifest: Any, context: Any, plan: Sequence[str] | None = None,
    max_attempts: int = domain.DEFAULT_MAX_ATTEMPTS, run_id: UUID | str | None = None,
    retryable: Classifier | None = None, claim: bool = True,
) -> Run:  # fmt: skip
    """Store manifest and context, then record RunStarted and run_policy in one append that takes the claim.

    Manifest and context are values, or ArtifactIds of what is stored. Arguments are checked before anything is
    written. Raises: InvalidPlan, InvalidOpId, InvalidRunId, InvalidArgument, Conflict (RunExists where it was seen
    beforehand), MissingArtifact.
    """
    check_op_id(op_id)
    policy = run_policy(validate_plan(plan), check_max_attempts(max_attempts))
    _check_options(claim, retryable)
    new_id = uuid4() if run_id is None else parse_run_id(run_id)
    _refuse_existing(journal, new_id)

    manifest_id, puts = prepare_manifest(journal.store, manifest)
    initial_id, more = prepare_context(journal, context, base=None)
    started = RunStarted(op_id=op_id, manifest_id=manifest_id, initial_snapshot_id=initial_id)
    refill: list[Refill] = [
        lambda: put_manifest(journal.store, manifest),
        lambda: put_context(journal, context, base=None),
    ]
    return _begin(
        journal, new_id, [started, policy], refill, (*puts, *more), claim=claim, retryable=retryable
    )  # fmt: skip


def resume(
    journal: Any, run_id: UUID | str, plan: Sequence[str] | None = None, max_attempts: int | None = None, *,
    dry_run: bool = False, steal: bool = False, claim: bool = True, retryable: Classifier | None = None,
) -> Run | ResumePoint:  # fmt: skip
    """Read the run, decide, and record what follows (an orphan's failure, a new run_policy, the end) in one append
    under a new claim; `claim=False` leaves the claim alone. A run that has ended is returned as it is.

    Raises: RunNotFound, InvalidStream, InvalidPlan, StateNotInPlan, InvalidArgument, Claimed (nothing is written),
    Conflict (another process was faster; not tried again).
    """
    wanted = parse_run_id(run_id)
    _check_options(claim, retryable)
    state = journal.run_state(wanted)
    view = journal.view(state)
    if state.status is None and plan is None and state.plan_id is not None:
        ordered: Sequence[str] | None = journal.store.get_value(state.plan_id)
    else:
        ordered = plan
    decision = decide(state, ordered, max_attempts)
    outcome = decision.then if isinstance(decision, Orphaned) else decision
    events: list[Event] = []
    refill: list[Refill] = []
    if state.status is None:
        events, refill = _resume_events(journal, state, decision, ordered, max_attempts)
    if dry_run:
        holder = journal.holder(wanted)
        return ResumePoint(run_id=wanted, state=state, decision=outcome, would_append=tuple(events), holder=holder)
    held = None
    if state.status is None and (claim or events):
        held = _append(journal, wanted, view.head, events, refill, claim=claim, steal=steal)
        take(view, events)
    run = Run(journal, view, claim=held, retryable=retryable)
    run._decision = outcome
    return run


def _check_options(claim: object, retryable: object) -> None:
    """Raises: InvalidArgument."""
    if type(claim) is not bool:
        raise InvalidArgument("claim", f"True or False is wanted, not {type(claim).__name__}")
    if retryable is not None and not callable(retryable):
        raise InvalidArgument("retryable", "a function of an exception is wanted")


def _resume_events(
    journal: Any, state: RunState, decision: Decision, plan: Sequence[str] | None, max_attempts: int | None
) -> tuple[list[Event], list[Refill]]:
    policy = new_policy(state, plan, max_attempts)
    events, refill = fit_all(resume_events(state, decision, policy), journal.store)
    for event in events:
        if type(event) is DomainEvent and event.name == domain.RUN_POLICY:
            payload = event.payload
            if (payload.get("plan_id"), payload["max_attempts"]) == (state.plan_id, state.max_attempts) and (
                state.plan_id is not None
            ):  # the plan is too long for an event, and it is the one recorded
                return [other for other in events if other is not event], []
    return events, refill


def fork(
    journal: Any, run_id: UUID | str, at_seq: int, new_run_id: UUID | str | None = None, *, claim: bool = True,
    retryable: Classifier | None = None,
) -> Run:  # fmt: skip
    """Start a new run from what another had completed at `at_seq`, in one append; the source is left as it is.

    An attempt that was open or had failed there is left out. The policy is the one in force there; within its opening
    the one that the run was started with. Raises: RunNotFound, InvalidArgument, InvalidStream, Conflict (the new id
    exists), Collected (the bytes of the checkpoint or of a fact are gone).
    """
    source = parse_run_id(run_id)
    _check_options(claim, retryable)
    recorded = list(_read(journal, source))
    if not recorded:
        raise RunNotFound(source)
    if type(at_seq) is not int or not 1 <= at_seq <= len(recorded):
        raise InvalidArgument("at_seq", f"a number from 1 to {len(recorded)} is wanted")
    # What a start brings along counts with it, at each of its events: what was done before, and its policy.
    state = state_of(_fold(source, recorded[: max(at_seq, _opening(recorded))]))
    facts = [item.event for item in recorded[:at_seq] if _is_fact(item.event)]
    for name in (state.checkpoint_id, *(name for fact in facts for _, name in links(fact))):
        journal.store.info(name)  # raises Collected, NotFound
    reach("fork.looked")
    new_id = uuid4() if new_run_id is None else parse_run_id(new_run_id)
    _refuse_existing(journal, new_id)
    events: list[Event] = [
        RunStarted(op_id=state.op_id, manifest_id=state.manifest_id, initial_snapshot_id=state.checkpoint_id),
        forked_from(source, at_seq, state.completed, journal.chain_head(source, at_seq)),
        run_policy(state.plan, state.max_attempts, plan_id=state.plan_id),
    ]
    return _begin(journal, new_id, [*events, *facts], [], (), claim=claim, retryable=retryable)


def _opening(recorded: Sequence[RecordedEvent]) -> int:
    """How many events a run begins with before anything of its own: its start, what it is a fork of, its policy."""
    count = 1
    for name in (domain.FORKED_FROM, domain.RUN_POLICY):
        event = recorded[count].event if count < len(recorded) else None
        count += type(event) is DomainEvent and event.name == name
    return count


def cancel(journal: Any, run_id: UUID | str, reason: str = CANCELLED) -> RunState:
    """End a run whoever runs it, or nobody: the open attempt's failure, run_ended and RunCompleted(cancelled) in one
    append that raises the epoch, so that a living owner is Fenced at its next append.

    Cancelled already, nothing is written. Raises: RunNotFound, InvalidStream, InvalidEvent (it ended otherwise),
    Conflict (its owner was faster every time).
    """
    wanted = parse_run_id(run_id)
    tries = 0
    while True:
        tries += 1
        state: RunState = journal.run_state(wanted)
        view = journal.view(state)
        if view.status is RunStatus.CANCELLED:
            return state
        if view.status is not None:
            raise InvalidEvent("after_run_completed", wanted, view.head + 1, f"the run is {view.status.value}")
        said = redacted_text(journal.redact, str(reason))
        events = ending(view, RunStatus.CANCELLED, said, None, cancelled_info(said))
        try:
            _append(journal, wanted, view.head, events, [], claim=True, steal=True)
        except Conflict:
            if tries == _CANCEL_TRIES:
                raise
            continue
        ended: RunState = journal.run_state(wanted)
        return ended


# -- plumbing -------------------------------------------------------------------------------------------


def _read(journal: Any, run_id: UUID) -> Sequence[RecordedEvent]:
    return journal.read(run_id)  # type: ignore[no-any-return]


def _fold(run_id: UUID, recorded: Sequence[RecordedEvent]) -> RunView:
    view = RunView(run_id=run_id)
    for item in recorded:
        advance(view, item.seq, item.event, run_id=item.run_id, raises=InvalidStream)
    return view


def _is_fact(event: Event) -> bool:
    return type(event) is DomainEvent and event.name == domain.FACT_RECORDED


def _refuse_existing(journal: Any, run_id: UUID) -> None:
    head = journal.head(run_id)
    if head:
        raise RunExists(run_id, 0, head)


def _begin(
    journal: Any, run_id: UUID, events: list[Event], refill: list[Refill], puts: Sequence[PreparedPut], *, claim: bool,
    retryable: Classifier | None,
) -> Run:  # fmt: skip
    fitted, moved = fit_all(events, journal.store)
    held = _append(journal, run_id, 0, fitted, [*refill, *moved], puts, claim=claim, steal=False)
    view = RunView(run_id=run_id)
    take(view, fitted)
    return Run(journal, view, claim=held, retryable=retryable)


def _append(
    journal: Any, run_id: UUID, expected: int, events: list[Event], refill: list[Refill],
    puts: Sequence[PreparedPut] = (), *, claim: bool, steal: bool,
) -> Any:  # fmt: skip
    """One append that takes the claim; made once more where an artifact was collected between put and append."""
    token = secrets.token_bytes(16)
    request = ClaimRequest(steal=steal) if claim else None
    try:
        appended = journal.append(run_id, expected, events, token=token, claim=request, puts=puts)
    except MissingArtifact:
        if not refill:
            raise
        for put in refill:
            put()
        appended = journal.append(run_id, expected, events, token=token, claim=request, puts=puts)
    return appended.claim


class RunOperations:
    """The verbs of Journal about whole runs; what they need of the journal is append, read, head and the claims."""

    @functools.cached_property
    def renewer(self) -> Renewer:
        """Renews the claims of runs with an open attempt; its thread starts with the first of them."""
        return Renewer(CLAIM_TTL_MS / 1000 / PER_TTL)

    def start_run(
        self, op_id: str, *, manifest: Any, context: Any, plan: Sequence[str] | None = None,
        max_attempts: int = domain.DEFAULT_MAX_ATTEMPTS, run_id: UUID | str | None = None,
        retryable: Classifier | None = None, claim: bool = True,
    ) -> Run:  # fmt: skip
        """Store manifest and context, then record RunStarted and run_policy in one append that takes the claim.

        Manifest and context are values, or ArtifactIds of what is stored. `retryable` says of an exception whether
        another try may help. Arguments are checked before anything is written. Raises: InvalidPlan, InvalidOpId,
        InvalidRunId, InvalidArgument, Conflict (the run id exists), MissingArtifact.
        """
        return start_run(self, op_id, manifest=manifest, context=context, plan=plan, max_attempts=max_attempts,
                         run_id=run_id, retryable=retryable, claim=claim)  # fmt: skip

    @overload
    def resume(
        self, run_id: UUID | str, plan: Sequence[str] | None = None, max_attempts: int | None = None, *,
        dry_run: Literal[False] = False, steal: bool = False, claim: bool = True, retryable: Classifier | None = None,
    ) -> Run: ...  # fmt: skip

    @overload
    def resume(
        self, run_id: UUID | str, plan: Sequence[str] | None = None, max_attempts: int | None = None, *,
        dry_run: Literal[True], steal: bool = False, claim: bool = True, retryable: Classifier | None = None,
    ) -> ResumePoint: ...  # fmt: skip

    def resume(
        self, run_id: UUID | str, plan: Sequence[str] | None = None, max_attempts: int | None = None, *,
        dry_run: bool = False, steal: bool = False, claim: bool = True, retryable: Classifier | None = None,
    ) -> Run | ResumePoint:  # fmt: skip
        """Go on with a run after its process died: read, decide, and record what follows in one append.

        Without `plan` and `max_attempts` the recorded ones hold. `steal` takes the claim whoever holds it, and
        `claim=False` takes none. With `dry_run` nothing is written and the answer says what would be.
        Raises: RunNotFound, InvalidStream, InvalidPlan, StateNotInPlan, InvalidArgument, Claimed (nothing is
        written), Conflict (another process was faster; not tried again).
        """
        return resume(self, run_id, plan, max_attempts, dry_run=dry_run, steal=steal, claim=claim, retryable=retryable)

    def fork(
        self, run_id: UUID | str, at_seq: int, new_run_id: UUID | str | None = None, *, claim: bool = True,
        retryable: Classifier | None = None,
    ) -> Run:  # fmt: skip
        """Start a new run from what another had completed at `at_seq`; the source is left as it is.

        Raises: RunNotFound, InvalidArgument, InvalidStream, Conflict (the new id exists), Collected (the
        checkpoint's bytes are gone).
        """
        return fork(self, run_id, at_seq, new_run_id, claim=claim, retryable=retryable)

    def cancel(self, run_id: UUID | str, reason: str = CANCELLED) -> RunState:
        """End a run whoever runs it, or nobody; a living owner is Fenced at its next append.

        Cancelled already, nothing is written. Raises: RunNotFound, InvalidStream, InvalidEvent (it ended otherwise).
        """
        return cancel(self, run_id, reason)
