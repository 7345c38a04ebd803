"""AsyncRun and AsyncAttempt: Run and Attempt for a task. Every rule is theirs; here is only how a task waits.

What records or reads the store is awaited. Properties are as they are there: they read memory, and wait at most for a
commit that another task makes on the same run.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, BinaryIO, Final, NoReturn, cast, final
from uuid import UUID

from casstore.ids import ArtifactId
from journal import domain
from journal.attempt import Attempt
from journal.decisions import Decision
from journal.envelopes import RunState
from journal.failures import ErrorInfo, RunStatus, StateError
from journal.offload import Calls, Opening, Outcome
from journal.recorder import CANCELLED, Classifier, Run

_ENDED: Final = ("completed", "failed")


class _Unbound(Exception):
    """The fact has to be fetched."""


@final
class AsyncRun:
    """A run and what this process knows of it. Made by start_run, resume and fork of an AsyncJournal."""

    def __init__(self, run: Run, calls: Calls) -> None:
        self._run, self._calls = run, calls

    @property
    def sync(self) -> Run:
        """The run itself, whose calls block."""
        return self._run

    # -- what is known

    @property
    def run_id(self) -> UUID:
        """The run's id."""
        return self._run.run_id

    @property
    def state(self) -> RunState:
        """The run as of the last event that this object recorded or read."""
        return self._run.state

    @property
    def head(self) -> int:
        """The number of events as far as this object knows."""
        return self._run.head

    @property
    def status(self) -> RunStatus | None:
        """None while the run lives."""
        return self._run.status

    @property
    def epoch(self) -> int | None:
        """The epoch of the claim, None without one."""
        return self._run.epoch

    @property
    def decision(self) -> Decision:
        """What resume decided; once more is recorded, what is to be done next."""
        return self._run.decision

    @property
    def next(self) -> str | None:
        """The state to enter, None when there is nothing left to run. An open attempt's state is next.

        Raises: NoPlan where only the orchestrator can choose.
        """
        return self._run.next

    async def context(self) -> Any:
        """The context at the checkpoint, decoded afresh."""
        return await self._calls.run(self._run.context)

    async def manifest(self) -> Any:
        """The manifest, decoded afresh."""
        return await self._calls.run(self._run.manifest)

    async def facts(self) -> dict[str, Any]:
        """Every fact recorded so far, decoded afresh."""
        return await self._calls.run(self._run.facts)

    # -- states

    def enter(self, state_id: str) -> Opening[AsyncAttempt]:
        """`async with run.enter(state_id) as attempt`, or `attempt = await run.enter(state_id)`: record StateEntered.

        After `complete(then=state_id)` this is the attempt already entered. A cancellation while it is recorded closes
        the attempt as one inside of the block does. Raises, once awaited: AttemptOpen, StateNotInPlan, InvalidEvent
        (the stream's rules), Conflict, Fenced, Claimed; nothing is written then.
        """
        return Opening(self._entered(state_id))

    async def _entered(self, state_id: str) -> AsyncAttempt:
        def leave(attempt: Attempt, cancelled: asyncio.CancelledError) -> None:
            attempt.__exit__(type(cancelled), cancelled, cancelled.__traceback__)

        return AsyncAttempt(self, await self._calls.make(lambda: self._run.enter(state_id), leave), self._calls)

    async def abandon(self) -> None:
        """Close the attempt that is open as an orphan's: retryable while tries are left, else the run fails.

        Does nothing where none is open.
        """
        await self._calls.run(self._run.abandon)

    # -- events of the orchestrator

    async def emit(
        self, name: str, payload: dict[str, Any] | None = None, payload_ref: ArtifactId | None = None
    ) -> None:
        """Record a domain event. A payload that is too large for an event is kept as an artifact."""
        await self._calls.run(lambda: self._run.emit(name, payload, payload_ref))

    # -- the end

    async def complete(self) -> None:
        """Record RunCompleted(completed). Done already, nothing is written.

        Raises: AttemptOpen, StatesRemain, InvalidEvent (it failed or ended otherwise), Conflict, Fenced.
        """
        await self._calls.run(self._run.complete)

    async def fail(self, error: BaseException | StateError | ErrorInfo | str) -> None:
        """Record run_ended with the error, and RunCompleted(failed); an open attempt fails for good in the same append.

        Failed already, nothing is written. Raises: InvalidEvent (it ended otherwise), Conflict, Fenced.
        """
        await self._calls.run(lambda: self._run.fail(error))

    async def cancel(self, reason: str = CANCELLED) -> None:
        """Record run_ended{reason} and RunCompleted(cancelled); an open attempt fails for good in the same append.

        Cancelled already, nothing is written. Raises: InvalidEvent (it ended otherwise), Conflict, Fenced.
        """
        await self._calls.run(lambda: self._run.cancel(reason))

    async def release(self) -> None:
        """Give the claim back, so that another process can resume at once. The run stays as it is. Idempotent."""
        await self._calls.run(self._run.release)

    def __repr__(self) -> str:
        return f"Async{self._run!r}"


@final
class AsyncAttempt:
    """An open attempt. `async with` closes it, whichever way the block is left.

    A cancelled block is recorded as StateFailed (code `cancelled`, retryable) before CancelledError goes on, however
    often it is cancelled meanwhile. A call that was cancelled after it had begun is done, or refused, when
    CancelledError is raised: a `complete` that was recorded stays so, and nothing more is written then.
    """

    def __init__(self, run: AsyncRun, attempt: Attempt, calls: Calls) -> None:
        self._run, self._attempt, self._calls = run, attempt, calls

    @property
    def sync(self) -> Attempt:
        """The attempt itself, whose calls block."""
        return self._attempt

    @property
    def run(self) -> AsyncRun:
        """The run that it belongs to."""
        return self._run

    @property
    def state_id(self) -> str:
        """The state that is tried."""
        return self._attempt.state_id

    @property
    def attempt(self) -> int:
        """Which try it is, from 0."""
        return self._attempt.attempt

    @property
    def base_snapshot_id(self) -> ArtifactId:
        """The context that this try, and every other try of the state, starts from."""
        return self._attempt.base_snapshot_id

    @property
    def seq(self) -> int:
        """The seq of its StateEntered."""
        return self._attempt.seq

    @property
    def cancelled(self) -> bool:
        """Whether somebody else ended the run or took it over, so that going on is in vain."""
        return self._attempt.cancelled

    # -- reading

    async def context(self) -> Any:
        """The context at the base, decoded afresh: changes to it reach nobody else."""
        return await self._calls.run(self._attempt.context)

    # -- recording

    async def fact(self, key: str, value: Any, *, meta: Any = None) -> Any:
        """The fact's value, decoded from stored bytes. What is bound already is returned and nothing is fetched.

        `value` is a plain value, a coroutine function without arguments, or a plain function, which is called in
        another thread (`asyncio.to_thread`) and whose result is awaited where it can be. A fetch ends at once when it
        is cancelled, and nothing is recorded then. Raises: what the fetch raises; FactConflict (a value other than the
        one bound), InvalidValue, AttemptLost, Conflict, Fenced.
        """
        if not callable(value):
            return await self._calls.run(lambda: self._attempt.fact(key, value, meta=meta))

        def unbound() -> NoReturn:
            raise _Unbound

        try:
            return await self._calls.run(lambda: self._attempt.fact(key, unbound, meta=meta))
        except _Unbound:
            pass  # fetched outside, so that what the fetch raises has no context
        fetched = await _fetch(value)
        return await self._calls.run(lambda: self._attempt.fact(key, lambda: fetched, meta=meta))

    async def emit(
        self, name: str, payload: dict[str, Any] | None = None, payload_ref: ArtifactId | None = None
    ) -> None:
        """Record a domain event. A payload that is too large for an event is kept as an artifact."""
        await self._calls.run(lambda: self._attempt.emit(name, payload, payload_ref))

    async def output(
        self, source: bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO, *, kind: str = "output",
        meta: Any = None,
    ) -> ArtifactId:  # fmt: skip
        """Store data, or the file at a path, and record artifact_written. A stream is read in another thread."""
        return await self._calls.run(lambda: self._attempt.output(source, kind=kind, meta=meta))

    async def boundary(self, path: str, phase: str) -> None:
        """Record that a step inside the handler begins or ends."""
        await self._calls.run(lambda: self._attempt.boundary(path, phase))

    async def child(
        self, key: str, op_id: str, manifest: Any, context: Any, *, plan: list[str] | tuple[str, ...] | None = None,
        max_attempts: int = domain.DEFAULT_MAX_ATTEMPTS, retryable: Classifier | None = None,
    ) -> AsyncRun:  # fmt: skip
        """The child run of this key: started by the first attempt, resumed by later ones.

        Its id is uuid5(parent run id, key). Raises: RunExists when the run of that id has another operation, manifest
        or initial context; Claimed when somebody else runs it.
        """

        def child() -> Run:
            return self._attempt.child(key, op_id, manifest, context, plan=plan, max_attempts=max_attempts,
                                       retryable=retryable)  # fmt: skip

        return AsyncRun(await self._calls.make(child, give_back), self._calls)

    # -- the end

    async def complete(self, context: Any, then: str | None = None) -> ArtifactId:
        """Store the new context and record StateCompleted; with `then`, enter that state in the same append.

        Returns the snapshot's id. Raises: StateNotInPlan, InvalidEvent, InvalidValue, AttemptLost, Conflict, Fenced;
        after the first three the attempt is still open.
        """
        return await self._calls.run(lambda: self._attempt.complete(context, then))

    async def __aenter__(self) -> AsyncAttempt:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        attempt = self._attempt
        crashed = error is not None and not isinstance(error, (Exception, asyncio.CancelledError))
        if crashed or attempt._status in _ENDED:  # nothing is written, and a coroutine that is closed may not wait
            attempt.__exit__(kind, error, trace)
            return
        left: Outcome[None] = await self._calls.finish(lambda: attempt.__exit__(kind, error, trace))
        if isinstance(error, asyncio.CancelledError):
            left.cancelled = None  # the first cancellation goes on already; the task counts them all
        left.get()

    def __repr__(self) -> str:
        return f"Async{self._attempt!r}"


def give_back(run: Run, _: asyncio.CancelledError) -> None:
    """Nobody got the run, so its claim shall not shut others out."""
    run.release()


async def _fetch(fetch: Callable[[], Any]) -> Any:
    if inspect.iscoroutinefunction(fetch):
        return await cast(Awaitable[Any], fetch())
    outcome: Outcome[Any] = Outcome()
    await asyncio.to_thread(outcome.run, fetch)
    fetched = outcome.get()
    return await fetched if inspect.isawaitable(fetched) else fetched
