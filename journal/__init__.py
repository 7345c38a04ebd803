"""A journal of what happened: runs of operations, state by state, resumed after a crash from the last completed one.

>>> import journal, tempfile
>>> with journal.open(tempfile.mkdtemp()) as jrn:
...     run = jrn.start_run("greet", manifest={"version": 1}, context={"names": []}, plan=["greet.ask.name"])
...     with run.enter(run.next) as attempt:
...         names = attempt.context()["names"]
...         _ = attempt.complete({"names": [*names, "Ada"]})
...     run.complete()
...     assert jrn.run_state(run.run_id).status == "completed"
"""

from journal.admission import ClaimRequest
from journal.aio import AsyncJournal
from journal.aio_recorder import AsyncAttempt, AsyncRun
from journal.aio_view import AsyncRunReader
from journal.appends import Appended, Claim, PendingAppend
from journal.attempt import Attempt
from journal.context_codec import ContextCodec, DataclassCodec, PlainCodec, PydanticCodec
from journal.decisions import Choose, Decision, End, Ended, Enter, Orphaned
from journal.envelopes import RunState, analyze, decide
from journal.errors import (
    AmbiguousRun,
    AttemptLost,
    AttemptNotCompleted,
    AttemptOpen,
    Claimed,
    Conflict,
    EventTooLarge,
    FactConflict,
    Fenced,
    InvalidArgument,
    InvalidEvent,
    InvalidField,
    InvalidOpId,
    InvalidPlan,
    InvalidRunFile,
    InvalidRunId,
    InvalidStateId,
    InvalidStream,
    JournalClosed,
    JournalError,
    MalformedField,
    MissingArtifact,
    NonRetryable,
    NoPlan,
    OutcomeUnknown,
    RunExists,
    RunLive,
    RunNotFound,
    StateNotInPlan,
    StatesRemain,
    UnknownEventVersion,
)
from journal.events import (
    DomainEvent,
    Event,
    RecordedEvent,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
    StateFailed,
    links,
)
from journal.failures import ErrorCategory, ErrorInfo, RunStatus, StateError
from journal.inspection import Finding
from journal.log import Journal
from journal.log import open_journal as open
from journal.reading import RunSummary
from journal.rebuilding import RebuildReport
from journal.recorder import Run
from journal.redaction import Redact, redact_secrets
from journal.resume import ResumePoint
from journal.run_files import RunExport, RunImport
from journal.run_view import RunReader

__all__ = [
    "AmbiguousRun",
    "Appended",
    "AsyncAttempt",
    "AsyncJournal",
    "AsyncRun",
    "AsyncRunReader",
    "Attempt",
    "AttemptLost",
    "AttemptNotCompleted",
    "AttemptOpen",
    "Choose",
    "Claim",
    "ClaimRequest",
    "Claimed",
    "Conflict",
    "ContextCodec",
    "DataclassCodec",
    "Decision",
    "DomainEvent",
    "End",
    "Ended",
    "Enter",
    "ErrorCategory",
    "ErrorInfo",
    "Event",
    "EventTooLarge",
    "FactConflict",
    "Fenced",
    "Finding",
    "InvalidArgument",
    "InvalidEvent",
    "InvalidField",
    "InvalidOpId",
    "InvalidPlan",
    "InvalidRunFile",
    "InvalidRunId",
    "InvalidStateId",
    "InvalidStream",
    "Journal",
    "JournalClosed",
    "JournalError",
    "MalformedField",
    "MissingArtifact",
    "NoPlan",
    "NonRetryable",
    "Orphaned",
    "OutcomeUnknown",
    "PendingAppend",
    "PlainCodec",
    "PydanticCodec",
    "RebuildReport",
    "RecordedEvent",
    "Redact",
    "ResumePoint",
    "Run",
    "RunCompleted",
    "RunExists",
    "RunExport",
    "RunImport",
    "RunLive",
    "RunNotFound",
    "RunReader",
    "RunStarted",
    "RunState",
    "RunStatus",
    "RunSummary",
    "StateCompleted",
    "StateEntered",
    "StateError",
    "StateFailed",
    "StateNotInPlan",
    "StatesRemain",
    "UnknownEventVersion",
    "analyze",
    "decide",
    "links",
    "open",
    "redact_secrets",
]
