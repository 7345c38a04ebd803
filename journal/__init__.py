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

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from journal.admission import ClaimRequest
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

if TYPE_CHECKING:
    from journal.aio import AsyncJournal
    from journal.aio_recorder import AsyncAttempt, AsyncRun
    from journal.aio_view import AsyncRunReader

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

# Imported when they are asked for: asyncio takes longer than all else, which most programs and commands do without.
_ASYNC: Final = {
    "AsyncAttempt": "journal.aio_recorder",
    "AsyncJournal": "journal.aio",
    "AsyncRun": "journal.aio_recorder",
    "AsyncRunReader": "journal.aio_view",
}


def __getattr__(name: str) -> Any:
    if name not in _ASYNC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ASYNC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ASYNC})
