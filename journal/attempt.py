"""Attempt: one try of a state, from StateEntered to its end. Handlers hold it; everything it records is durable when
the call returns."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, final
from uuid import UUID, uuid5

from casstore import PreparedPut, values
from casstore.ids import ArtifactId
from journal import domain
from journal.errors import (
    AttemptLost,
    AttemptNotCompleted,
    FactConflict,
    InvalidArgument,
    InvalidEvent,
    RunExists,
    StateNotInPlan,
)
from journal.events import (
    DomainEvent,
    Event,
    StateCompleted,
    StateEntered,
    artifact_written,
    child_run_completed,
    child_run_spawned,
    fact_recorded,
    op_boundary,
)
from journal.failures import ErrorInfo
from journal.ids import check_state_id, check_text
from journal.redaction import redacted_text
from journal.storable import MESSAGE_LIMIT_BYTES, describe, error_info, is_retryable, plain_error_info, storable_text
from journal.views import OpenAttempt

if TYPE_CHECKING:
    from journal.recorder import Refill, Run

FACT_KIND: Final = "fact_payload"
SNAPSHOT_KIND: Final = "context_snapshot"

Status = Literal["open", "completed", "failed", "left", "lost"]


def named_puts(prepared: PreparedPut | ArtifactId) -> tuple[ArtifactId, tuple[PreparedPut, ...]]:
    """The id, and what goes with the append that names it."""
    return (prepared, ()) if isinstance(prepared, ArtifactId) else (prepared.id, (prepared,))


def _is_cancelled(error: BaseException) -> bool:
    """Whether it is asyncio's CancelledError: then asyncio was imported, which takes too long to do it for this."""
    return isinstance(error, getattr(sys.modules.get("asyncio.exceptions"), "CancelledError", ()))


@final
class Attempt:
    """An open attempt. As a context manager it closes itself, whichever way the block is left.

    A Conflict, Fenced or Claimed, or an unknown outcome, loses the attempt: every later call raises AttemptLost.
    Calls may come from several threads.
    """

    def __init__(self, run: Run, opened: OpenAttempt) -> None:
        self._run = run
        self._opened = opened
        self._status: Status = "open"

    @property
    def run(self) -> Run:
        """The run that it belongs to."""
        return self._run

    @property
    def state_id(self) -> str:
        """The state that is tried."""
        return self._opened.state_id

    @property
    def attempt(self) -> int:
        """Which try it is, from 0."""
        return self._opened.attempt

    @property
    def base_snapshot_id(self) -> ArtifactId:
        """The context that this try, and every other try of the state, starts from."""
        return self._opened.base_snapshot_id

    @property
    def seq(self) -> int:
        """The seq of its StateEntered."""
        return self._opened.seq

    @property
    def cancelled(self) -> bool:
        """Whether somebody else ended the run or took it over, so that going on is in vain."""
        return self._status == "lost" or (self._status == "open" and self._run._overtaken())

    # -- reading

    def context(self) -> Any:
        """The context at the base, decoded afresh: changes to it reach nobody else. Raises: AttemptLost."""
        if self._status == "lost":
            raise self._lost()
        return self._run._context_at(self.base_snapshot_id)

    # -- recording

    def fact(self, key: str, value: Any, *, meta: Any = None) -> Any:
        """The fact's value, decoded from stored bytes. What is bound already is returned and nothing is fetched.

        `value` is a plain value, or a function without arguments that fetches one. The fact is durable before it is
        returned; it is recorded once, but a fetch that dies before that is repeated by the next attempt.
        Raises: FactConflict (a value other than the one bound), InvalidValue, AttemptLost, Conflict, Fenced.
        """
        check_text("key", key, least=1, most=domain.FACT_KEY_MAX)
        self._check_open()
        bound = self._run._fact(key)
        fetched = callable(value)
        if fetched:
            if bound is not None:
                return self._run._store.get_value(bound)
            value = value()
            if inspect.iscoroutine(value):
                value.close()
                raise InvalidArgument("value", "a coroutine function: attempts of an AsyncJournal await it")
        data, _ = values.encode(value)
        payload_id = ArtifactId.of(data)
        with self._run._lock:
            bound = self._run._fact(key)
            if bound is None:
                self._record_fact(key, payload_id, data, meta)
            elif bound != payload_id:
                if not fetched:
                    raise FactConflict(self._run.run_id, key, bound, payload_id)
                return self._run._store.get_value(bound)  # another thread of this attempt was faster
        return values.decode(data, canonical=True)

    def _record_fact(self, key: str, payload_id: ArtifactId, data: bytes, meta: Any) -> None:
        store = self._run._store

        def put() -> ArtifactId:
            return store.put(data, kind=FACT_KIND, durable=False)

        prepared = store.prepare(data, kind=FACT_KIND)
        self._record([fact_recorded(key, payload_id, meta)], (put,), named_puts(prepared)[1])

    def emit(self, name: str, payload: dict[str, Any] | None = None, payload_ref: ArtifactId | None = None) -> None:
        """Record a domain event. A payload that is too large for an event is kept as an artifact."""
        self._record([DomainEvent(name, {} if payload is None else payload, payload_ref)])

    def output(
        self, source: bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO, *, kind: str = "output",
        meta: Any = None,
    ) -> ArtifactId:  # fmt: skip
        """Store data, or the file at a path, and record artifact_written."""
        self._check_open()
        store = self._run._store
        puts: tuple[PreparedPut, ...] = ()
        if isinstance(source, (bytes, bytearray, memoryview)):
            data = bytes(source)

            def put() -> ArtifactId:
                return store.put(data, kind=kind, durable=False)

            artifact_id, puts = named_puts(store.prepare(data, kind=kind))
        else:

            def put() -> ArtifactId:
                return store.put_file(source, kind=kind)

            artifact_id = put()
        # A stream has been read to its end, so only data and paths can be put again.
        again = (put,) if isinstance(source, (bytes, bytearray, memoryview, str, os.PathLike)) else ()
        self._record([artifact_written(artifact_id, kind, meta)], again, puts)
        return artifact_id

    def boundary(self, path: str, phase: str) -> None:
        """Record that a step inside the handler begins or ends."""
        self._record([op_boundary(path, phase)])

    def child(
        self, key: str, op_id: str, manifest: Any, context: Any, *, plan: list[str] | tuple[str, ...] | None = None,
        max_attempts: int = domain.DEFAULT_MAX_ATTEMPTS, retryable: Callable[[BaseException], bool] | None = None,
    ) -> Run:  # fmt: skip
        """The child run of this key: started by the first attempt, resumed by later ones.

        Its id is uuid5(parent run id, key). Raises: RunExists when the run of that id has another operation, manifest
        or initial context; Claimed when somebody else runs it.
        """
        check_text("key", key, least=1)
        self._check_open()
        run, journal = self._run, self._run._journal
        child_id = uuid5(run.run_id, key)
        manifest_id, puts = run._prepare_manifest(manifest)
        if journal.head(child_id) == 0:
            again: tuple[Refill, ...] = (lambda: run._put_manifest(manifest),)
            self._record_once(child_run_spawned(child_id, manifest_id), again, puts)
            child: Run = journal.start_run(
                op_id, manifest=manifest, context=context, plan=plan, max_attempts=max_attempts, run_id=child_id,
                retryable=retryable,
            )  # fmt: skip
        else:
            self._check_child(child_id, op_id, manifest_id, run._prepare_context(context)[0])
            earlier = run._children.pop(child_id, None)
            if earlier is not None:  # of an attempt that failed in this process, whose claim would shut us out
                earlier.release()
            child = journal.resume(child_id, plan=plan, max_attempts=max_attempts, retryable=retryable)
            if child.state.status is not None:
                self._child_ended(child)
                return child
        child._on_end = self._child_ended
        run._children[child_id] = child
        return child

    def _check_child(self, child_id: UUID, op_id: str, manifest_id: ArtifactId, initial_id: ArtifactId) -> None:
        journal = self._run._journal
        started = next(iter(journal.read(child_id, 1, 1))).event
        found = (started.op_id, started.manifest_id, started.initial_snapshot_id)
        if found != (op_id, manifest_id, initial_id):
            raise RunExists(child_id, 0, journal.head(child_id))

    def _child_ended(self, child: Run) -> None:
        if self._status == "open":
            state = child.state
            assert state.status is not None
            self._record_once(child_run_completed(child.run_id, state.status, state.final_snapshot_id))

    def _record_once(
        self, event: DomainEvent, refill: tuple[Refill, ...] = (), puts: tuple[PreparedPut, ...] = ()
    ) -> None:
        """Unless this or an earlier attempt recorded the very same."""
        if not self._run._said_of_child(event):
            self._record([event], refill, puts)

    # -- the end

    def complete(self, context: Any, then: str | None = None) -> ArtifactId:
        """Store the new context and record StateCompleted; with `then`, enter that state in the same append.

        Returns the snapshot's id. Raises: StateNotInPlan, InvalidEvent, InvalidValue, AttemptLost, Conflict, Fenced;
        after the first three the attempt is still open.
        """
        self._check_open()
        run = self._run

        def put() -> ArtifactId:
            return run._put_context(context, base=self.base_snapshot_id)

        with run._lock:
            if then is not None:
                check_state_id(then)
                plan = run._plan()
                if plan is not None and then not in plan:
                    raise StateNotInPlan(then, plan)
            snapshot_id, puts = run._prepare_context(context, base=self.base_snapshot_id)
            events: list[Event] = [StateCompleted(state_id=self.state_id, context_snapshot_id=snapshot_id)]
            if then is not None:
                attempt = run._entries(then)
                events.append(StateEntered(state_id=then, attempt=attempt, base_snapshot_id=snapshot_id))
            self._record(events, (put,), puts)
            self._status = "completed"
            run._attempt_closed(self)
        return snapshot_id

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status in ("completed", "failed"):
            return
        if error is None:
            self._left_without_completing()
        elif _is_cancelled(error):
            said = redacted_text(self._run._redact, describe(error))
            message = storable_text(said or "the task was cancelled", MESSAGE_LIMIT_BYTES)
            self._fail(error, lambda: ErrorInfo(code="cancelled", retryable=True, message=message))
        elif isinstance(error, Exception):
            self._fail(error, lambda: self._info_of(error))
        else:  # as after a crash: whether the handler's work is done is not known
            self._leave()

    def _left_without_completing(self) -> None:
        if self._status == "lost":
            raise self._lost()
        problem = AttemptNotCompleted(self._run.run_id, self.state_id, self.attempt)
        self._fail(problem, lambda: plain_error_info(problem, retryable=False))
        raise problem

    def _info_of(self, error: Exception) -> ErrorInfo:
        run = self._run
        retryable = is_retryable(error, run._retryable)
        try:
            return error_info(
                error, retryable=retryable, put=run._put_details, present=run._store.__contains__, redact=run._redact
            )
        except Exception as problem:  # the store would not take the details
            error.add_note(f"its details were not recorded: {problem}")
            return plain_error_info(error, retryable=retryable, redact=run._redact)

    def _fail(self, error: BaseException, describe: Callable[[], ErrorInfo]) -> None:
        """Record the failure. Whatever goes wrong here becomes a note: the handler's exception is the one to see."""
        try:
            self._check_open()
            self._run._fail_attempt(self, describe())
            self._status = "failed"
        except Exception as problem:
            error.add_note(f"the failure of {self.state_id} was not recorded: {type(problem).__name__}: {problem}")
            self._leave()

    def _leave(self) -> None:
        if self._status == "open":
            self._status = "left"
        self._run._attempt_closed(self)

    # -- plumbing

    def _record(
        self, events: list[Event], refill: tuple[Refill, ...] = (), puts: tuple[PreparedPut, ...] = ()
    ) -> None:
        self._check_open()
        self._run._append(events, refill, attempt=self, puts=puts)

    def _check_open(self) -> None:
        if self._status == "lost":
            raise self._lost()
        if self._status != "open":
            detail = f"attempt {self.attempt} of {self.state_id} is {self._status}"
            raise InvalidEvent("no_open_attempt", self._run.run_id, self._run.head + 1, detail)

    def _lost(self) -> AttemptLost:
        return AttemptLost(self._run.run_id, self.state_id, self.attempt)

    def __repr__(self) -> str:
        return f"Attempt({self.state_id!r}, attempt={self.attempt}, {self._status})"
