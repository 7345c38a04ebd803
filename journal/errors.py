"""Every error of the journal, grouped by what the caller does next.

Each has a stable `code`, its facts as attributes (also `.fields`), and a `hint`, as those of casstore have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import casstore.errors

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from casstore.ids import ArtifactId


class JournalError(casstore.errors.CodedError):
    """Base of all errors of the journal."""

    code = "journal_error"


# -- fix the argument ---------------------------------------------------------------------------------


class InvalidArgument(JournalError, ValueError):
    """An argument is of the wrong type or out of range. Nothing was touched."""

    code = "invalid_argument"
    names = ("argument", "reason")
    template = "{argument}: {reason}"
    argument: str
    reason: str


class InvalidEvent(JournalError, ValueError):
    """An event that would make its stream illegal. The whole append was refused; nothing was written.

    `rule` (the same word as `code`) names the rule broken; the words are listed in `journal.views`.
    """

    code = "invalid_event"
    names: ClassVar[tuple[str, ...]] = ("rule", "run_id", "seq", "detail")
    template = "event {seq} of run {run_id} breaks {rule}: {detail}"
    run_id: UUID | None
    seq: int | None
    detail: str
    rule: str

    def __init__(self, *fields: Any) -> None:
        super().__init__(*fields)
        if self.names[0] == "rule" and fields:
            vars(self)["code"] = str(fields[0])
        else:
            self.rule = self.code


class InvalidField(InvalidEvent):
    """A field of an event is of the wrong type or out of range; `field` is its path, such as `payload.key`."""

    code = "invalid_field"
    names: ClassVar[tuple[str, ...]] = ("field", "reason")
    template = "{field}: {reason}"
    field: str
    reason: str


class MalformedField(InvalidField):
    """Bytes that do not decode: a record (`field` is then "record"), or the bytes of a value in one. `offset` is where,
    in these bytes; `inside` are those of the value."""

    code = "malformed_field"
    names = ("field", "reason", "offset")
    template = "{field}: {reason}, at byte {offset}"
    offset: int
    inside: bytes | None = None


class InvalidRunId(InvalidField):
    """Not a run id: a UUID or its canonical text."""

    code = "invalid_run_id"
    hint = "A run id is a UUID, or its text of 36 lowercase characters."
    names = ("value", "reason")
    template = "not a run id: {value!r:.100} ({reason})"
    value: object
    reason: str


class InvalidStateId(InvalidField):
    """Not a state id: three segments joined by dots."""

    code = "invalid_state_id"
    hint = "A state id is three segments joined by dots, each like [a-z][a-z0-9_]{0,62}."
    names = ("value", "reason")
    template = "not a state id: {value!r:.100} ({reason})"
    value: object
    reason: str


class InvalidOpId(InvalidField):
    """Not an operation id: one segment."""

    code = "invalid_op_id"
    hint = "An operation id is one segment, like [a-z][a-z0-9_]{0,62}."
    names = ("value", "reason")
    template = "not an operation id: {value!r:.100} ({reason})"
    value: object
    reason: str


class EventTooLarge(JournalError, ValueError):
    """The event's record would be longer than a record may be. Nothing was written."""

    code = "event_too_large"
    hint = "Put what is large into an artifact, and name it as payload_ref or, where that is taken, in the payload."
    names = ("size_bytes", "limit_bytes")
    template = "the event takes {size_bytes} bytes, at most {limit_bytes} are allowed"
    size_bytes: int
    limit_bytes: int


class MissingArtifact(JournalError, casstore.errors.MissingArtifact):
    """An event names an artifact that is not in the store. Nothing was written."""

    code = "missing_artifact"
    hint = "Put the named artifact first, then append the event."
    names = ("id", "field")
    template = "artifact {id}, named by {field}, is not in the store"
    id: ArtifactId
    field: str


class InvalidRunFile(JournalError, ValueError):
    """A file that holds no run, or one that is not whole. Its artifacts may be in the store; no event was written."""

    code = "invalid_run_file"
    names = ("reason",)
    template = "no file of a run: {reason}"
    reason: str


class InvalidPlan(JournalError, ValueError):
    """The plan is empty, names a state twice or holds an id that is none. Nothing was written."""

    code = "invalid_plan"
    names = ("reason",)
    template = "invalid plan: {reason}"
    reason: str


class StateNotInPlan(JournalError):
    """A state that is not in the plan: one of the stream's, or one to be entered. Nothing was written."""

    code = "state_not_in_plan"
    hint = "Resume with that state in the plan, fork the run, or cancel it."
    names = ("state_id", "plan")
    template = "state {state_id} is not in the plan {plan}"
    state_id: str
    plan: tuple[str, ...]


class FactConflict(JournalError):
    """The fact key is bound to another payload. Nothing was written."""

    code = "fact_conflict"
    hint = "A fact has one payload for the life of its run: use the recorded one, or another key."
    names = ("run_id", "key", "recorded", "offered")
    template = "fact {key!r} of run {run_id} is {recorded}, not {offered}"
    run_id: UUID
    key: str
    recorded: ArtifactId
    offered: ArtifactId


class NoPlan(JournalError):
    """The run has no plan, so only the orchestrator can say what comes next."""

    code = "no_plan"
    hint = "Enter a state or complete the run."
    names = ("run_id",)
    template = "run {run_id} has no plan"
    run_id: UUID


class StatesRemain(JournalError):
    """complete() on a run whose plan has states that were not completed. Nothing was written."""

    code = "states_remain"
    hint = "Complete them, resume with a shorter plan, or fail the run."
    names = ("run_id", "states")
    template = "run {run_id} still has to complete {states}"
    run_id: UUID
    states: tuple[str, ...]


class AttemptOpen(JournalError):
    """A state cannot be entered, nor the run ended, while an attempt is open."""

    code = "attempt_open"
    hint = "Close the attempt, or call run.abandon()."
    names = ("run_id", "state_id", "attempt")
    template = "attempt {attempt} of {state_id} is open in run {run_id}"
    run_id: UUID
    state_id: str
    attempt: int


class AttemptNotCompleted(JournalError):
    """The block of an attempt was left without an exception and without complete(): a bug of the caller."""

    code = "attempt_not_completed"
    hint = "Call attempt.complete(context) before the block ends."
    names = ("run_id", "state_id", "attempt")
    template = "attempt {attempt} of {state_id} in run {run_id} was left without complete()"
    run_id: UUID
    state_id: str
    attempt: int


# -- it is not there ----------------------------------------------------------------------------------


class RunNotFound(JournalError, LookupError):
    """No run of this id."""

    code = "run_not_found"
    names = ("run_id",)
    template = "no run {run_id}"
    run_id: UUID


class AmbiguousRun(JournalError, LookupError):
    """More than one run id begins like that."""

    code = "ambiguous_run"
    hint = "Give more digits."
    names = ("prefix", "matches")
    template = "prefix {prefix!r} fits several runs: {matches}"
    prefix: str
    matches: tuple[str, ...]

    def _shown(self) -> dict[str, Any]:
        return {**super()._shown(), "matches": self._listed("matches")}


# -- somebody else was there first --------------------------------------------------------------------


class Conflict(JournalError):
    """The stream is not where the caller believed it to be. Nothing was written; `head` is where it is."""

    code = "conflict"
    hint = "Read the stream again and decide anew."
    names = ("run_id", "expected_seq", "head")
    template = "run {run_id} is at {head}, not at {expected_seq}, or holds other events there"
    run_id: UUID
    expected_seq: int
    head: int


class RunExists(Conflict):
    """A run of this id exists. Nothing was written."""

    code = "run_exists"
    hint = "Resume it, or take another run id."
    template = "run {run_id} exists; its head is {head}"


class Claimed(JournalError):
    """Somebody else holds the run's claim, and it has not expired. Nothing was written."""

    code = "claimed"
    hint = "Wait until it expires, or steal it if the owner is known to be gone."
    names = ("run_id", "owner", "until_ms")
    template = "run {run_id} is claimed by {owner} until unix time {until_ms} ms"
    run_id: UUID
    owner: str
    until_ms: int


class Fenced(JournalError):
    """The claim was taken over: the given epoch is not the run's current one. Nothing was written."""

    code = "fenced"
    hint = "The run has another owner; stop working on it."
    names = ("run_id", "epoch", "current_epoch")
    template = "run {run_id} is at epoch {current_epoch}, not {epoch}"
    run_id: UUID
    epoch: int | None
    current_epoch: int


class AttemptLost(JournalError):
    """The attempt was lost to a Conflict or Fenced; nothing more can be recorded through this object."""

    code = "attempt_lost"
    hint = "Resume the run to see what became of it."
    names = ("run_id", "state_id", "attempt")
    template = "attempt {attempt} of {state_id} in run {run_id} is lost"
    run_id: UUID
    state_id: str
    attempt: int


class RunLive(JournalError):
    """The run has not ended, and only ended ones may be forgotten. Nothing was changed."""

    code = "run_live"
    hint = "Complete or cancel it first."
    names = ("run_id", "head")
    template = "run {run_id} lives; its head is {head}"
    run_id: UUID
    head: int


# -- reopen -------------------------------------------------------------------------------------------


class OutcomeUnknown(JournalError):
    """The write was interrupted: whether it is durable is not known."""

    code = "outcome_unknown"
    hint = "Reopen and append again with the same token: it is found if it is there."
    names = ("what", "reason")
    template = "the outcome of {what} is not known: {reason}"
    what: str
    reason: str


class JournalClosed(JournalError):
    """The journal was closed."""

    code = "journal_closed"
    names = ("path",)
    template = "the journal {path} is closed"
    path: Path


# -- restore ------------------------------------------------------------------------------------------


class InvalidStream(JournalError):
    """Stored events that break a rule or do not decode: another program, or damage. Never repaired by guess.

    `rule` (the same word as `code`) names the rule broken; the words are listed in `journal.views`, and
    `bad_record` is a record that does not decode. `run_id` and `seq` are None where they could not be learned.
    `offset` is the first byte of a record that is refused, where that is one of its form and not of what it says.
    """

    code = "invalid_stream"
    hint = "Look with `casstore verify`; restore from a backup if the run matters."
    names: ClassVar[tuple[str, ...]] = ("rule", "run_id", "seq", "detail")
    template = "event {seq} of run {run_id} breaks {rule}: {detail}"
    run_id: UUID | None
    seq: int | None
    detail: str
    rule: str
    offset: int | None = None

    def __init__(self, *fields: Any) -> None:
        super().__init__(*fields)
        if fields:
            vars(self)["code"] = str(fields[0])


class UnknownEventVersion(InvalidStream):
    """A record of a version that this program does not know; `version` is what was found.

    Built as (version, run_id, seq).
    """

    code = "unknown_event_version"
    hint = "Use the version of the program that wrote it, or a newer one."
    names = ("version", "run_id", "seq")
    template = "event {seq} of run {run_id} has record version {version}, which this program does not know"
    version: int

    def __init__(self, *fields: Any) -> None:
        super().__init__(*fields)
        vars(self)["code"] = self.rule = "unknown_event_version"
        self.detail = f"record version {fields[0] if fields else '?'}"


# -- raised by handlers -------------------------------------------------------------------------------


class NonRetryable(Exception):
    """For a handler to raise: the attempt failed, and trying again would not help. The message is free."""
