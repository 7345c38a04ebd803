"""AsyncJournal: Journal for tasks. The same verbs, awaited; what gives an iterator is iterated with `async for`.

The calls are made in a few threads, the appends by the journal's own committer, so that appends of many tasks share
commits. A cancelled call that had begun is finished before CancelledError is raised.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, ParamSpec, TypeVar, final, overload
from uuid import UUID

from casstore import BackupReport, PreparedPut, Store
from journal import domain
from journal.admission import ClaimRequest
from journal.aio_recorder import AsyncRun, give_back
from journal.aio_view import AsyncRunReader
from journal.appends import Appended, Claim, PendingAppend
from journal.context_codec import ContextCodec
from journal.envelopes import RunState
from journal.errors import JournalClosed
from journal.events import Event, RecordedEvent
from journal.failures import RunStatus
from journal.feeding import Source, follow_in_tasks, following_of
from journal.inspection import Finding
from journal.log import Journal, open_journal
from journal.offload import WORKERS, Calls, Opening, Outcome, Signal, aside
from journal.reading import PAGE_EVENTS, RunSummary
from journal.rebuilding import RebuildReport
from journal.recorder import CANCELLED, Classifier, Run
from journal.redaction import Redact
from journal.resume import ResumePoint
from journal.run_files import RunExport, RunImport

P = ParamSpec("P")
T = TypeVar("T")


@final
class AsyncJournal:
    """An open journal for the tasks of an event loop.

    `async with AsyncJournal.open(home) as jrn`, or around a journal that is open: `AsyncJournal(journal)`, which is
    left open then. `workers` is the number of calls that are made at a time, besides `append`; as many calls of the
    recorder share a commit.
    """

    def __init__(self, journal: Journal, *, workers: int = WORKERS) -> None:
        self._journal = journal
        self._calls = Calls(self._check, workers)
        self._owned = self._closed = False

    @classmethod
    def open(
        cls, home: str | os.PathLike[str], *, store: Store | None = None, codec: ContextCodec | None = None,
        redact: Redact | None = None, create: bool = True, read_only: bool = False,
        clock: Callable[[], float] = time.time, workers: int = WORKERS,
    ) -> Opening[AsyncJournal]:  # fmt: skip
        """Open the journal at `home`, or make one there; to be awaited, or entered with `async with`.

        Raises: as journal.open.
        """

        async def opened() -> AsyncJournal:
            outcome = await aside(
                lambda: open_journal(
                    home, store=store, codec=codec, redact=redact, create=create, read_only=read_only, clock=clock
                )
            )
            if outcome.cancelled is not None and outcome.error is None:
                await aside(outcome.value.close)
            made = cls(outcome.get(), workers=workers)
            made._owned = True
            return made

        return Opening(opened())

    @property
    def sync(self) -> Journal:
        """The journal itself, whose calls block; a RootSource for `store.gc`."""
        return self._journal

    @property
    def store(self) -> Store:
        """The store, whose calls block."""
        return self._journal.store

    @property
    def uuid(self) -> str:
        """The uuid of the home that it belongs to."""
        return self._journal.uuid

    @property
    def home(self) -> Path | None:
        """Where that home is, None in memory."""
        return self._journal.home

    # -- runs

    async def start_run(
        self, op_id: str, *, manifest: Any, context: Any, plan: Sequence[str] | None = None,
        max_attempts: int = domain.DEFAULT_MAX_ATTEMPTS, run_id: UUID | str | None = None,
        retryable: Classifier | None = None, claim: bool = True,
    ) -> AsyncRun:  # fmt: skip
        """Store manifest and context, then record RunStarted and run_policy in one append that takes the claim.

        Cancelled after it had begun, the run may be there; its claim is given back. `retryable` is called in another
        thread. Raises: as Journal.start_run.
        """
        return await self._run(
            lambda: self._journal.start_run(
                op_id, manifest=manifest, context=context, plan=plan, max_attempts=max_attempts, run_id=run_id,
                retryable=retryable, claim=claim,
            )
        )  # fmt: skip

    @overload
    async def resume(
        self, run_id: UUID | str, plan: Sequence[str] | None = None, max_attempts: int | None = None, *,
        dry_run: Literal[False] = False, steal: bool = False, claim: bool = True, retryable: Classifier | None = None,
    ) -> AsyncRun: ...  # fmt: skip

    @overload
    async def resume(
        self, run_id: UUID | str, plan: Sequence[str] | None = None, max_attempts: int | None = None, *,
        dry_run: Literal[True], steal: bool = False, claim: bool = True, retryable: Classifier | None = None,
    ) -> ResumePoint: ...  # fmt: skip

    async def resume(
        self, run_id: UUID | str, plan: Sequence[str] | None = None, max_attempts: int | None = None, *,
        dry_run: bool = False, steal: bool = False, claim: bool = True, retryable: Classifier | None = None,
    ) -> AsyncRun | ResumePoint:  # fmt: skip
        """Go on with a run after its process died: read, decide, and record what follows in one append.

        Cancelled after it had begun, its claim is given back. Raises: as Journal.resume.
        """
        if dry_run:
            return await self._calls.run(
                lambda: self._journal.resume(
                    run_id, plan, max_attempts, dry_run=True, steal=steal, claim=claim, retryable=retryable
                )
            )
        return await self._run(
            lambda: self._journal.resume(run_id, plan, max_attempts, steal=steal, claim=claim, retryable=retryable)
        )

    async def fork(
        self, run_id: UUID | str, at_seq: int, new_run_id: UUID | str | None = None, *, claim: bool = True,
        retryable: Classifier | None = None,
    ) -> AsyncRun:  # fmt: skip
        """Start a new run from what another had completed at `at_seq`; the source is left as it is.

        Raises: as Journal.fork.
        """
        return await self._run(
            lambda: self._journal.fork(run_id, at_seq, new_run_id, claim=claim, retryable=retryable)
        )  # fmt: skip

    async def cancel(self, run_id: UUID | str, reason: str = CANCELLED) -> RunState:
        """End a run whoever runs it, or nobody; a living owner is Fenced at its next append.

        Raises: as Journal.cancel.
        """
        return await self._calls.run(lambda: self._journal.cancel(run_id, reason))

    async def _run(self, work: Callable[[], Run]) -> AsyncRun:
        return AsyncRun(await self._calls.make(work, give_back), self._calls)

    # -- append

    async def append(
        self, run_id: UUID | str, expected_seq: int, events: Iterable[Event | RecordedEvent], *,
        token: bytes | None = None, epoch: int | None = None, claim: ClaimRequest | None = None,
        cursors: Mapping[str, int] | None = None, puts: Sequence[PreparedPut] = (),
    ) -> Appended:  # fmt: skip
        """Append to a run that holds `expected_seq` events (0: a new run); all or nothing, durable on return.

        Waiting takes no thread, and appends that wait at the same time share a commit. A cancelled one is durable or
        refused when CancelledError is raised. Raises: as Journal.append.
        """
        self._check()
        pending = self._journal.append(run_id, expected_seq, events, token=token, epoch=epoch, claim=claim,
                                       cursors=cursors, puts=puts, wait=False)  # fmt: skip
        return next(iter((await _answered(pending)).values()))

    async def append_many(
        self, batches: Mapping[UUID | str, tuple[int, Iterable[Event | RecordedEvent]]], *,
        token: bytes | None = None, epochs: Mapping[UUID | str, int] | None = None,
        cursors: Mapping[str, int] | None = None,
    ) -> dict[UUID, Appended]:  # fmt: skip
        """Append to several runs, all or nothing: {run id: (expected_seq, events)}. Existing only if all are.

        Waiting takes no thread. Raises: as Journal.append_many.
        """
        self._check()
        requests = self._journal._batches(batches, epochs)
        if not requests:
            return {}
        return await _answered(self._journal._appender.append_later(requests, token, cursors))

    # -- read

    async def read(
        self, run_id: UUID | str, from_seq: int = 1, to_seq: int | None = None, reverse: bool = False
    ) -> list[RecordedEvent]:
        """Events from `from_seq` to `to_seq`, both inclusive, ascending or, with `reverse`, descending.

        Raises: InvalidStream (damage).
        """
        return await self._calls.run(lambda: self._journal.read(run_id, from_seq, to_seq, reverse))

    async def read_raw(
        self, run_id: UUID | str, from_seq: int = 1, to_seq: int | None = None, reverse: bool = False
    ) -> list[tuple[Any, ...]]:
        """As read, but tuples (seq, position, timestamp_ms, kind, *fields) as in docs/FORMAT.md."""
        return await self._calls.run(lambda: self._journal.read_raw(run_id, from_seq, to_seq, reverse))

    async def head(self, run_id: UUID | str) -> int:
        """The number of events of a run, 0 for an unknown one."""
        return await self._calls.run(lambda: self._journal.head(run_id))

    async def run_state(self, run_id: UUID | str) -> RunState:
        """What `analyze(await read(run_id))` gives, from rows. Raises: RunNotFound, InvalidStream."""
        return await self._calls.run(lambda: self._journal.run_state(run_id))

    async def resolve(self, prefix: str) -> UUID:
        """The only run whose id begins so (4 characters at least). Raises: RunNotFound, AmbiguousRun, InvalidRunId."""
        return await self._calls.run(lambda: self._journal.resolve(prefix))

    def runs(
        self, *, status: RunStatus | str | None = None, op_id: str | None = None, limit: int | None = None,
        after: UUID | str | None = None, stale: float | None = None,
    ) -> AsyncIterator[RunSummary]:  # fmt: skip
        """Runs, newest first: all, the live ones (status "live"), or those that ended so (latest end first).

        `after` is a run id of an earlier list, from which it goes on; `stale` leaves of the live ones those whose last
        event is so many seconds old.
        """
        return self._listed(
            lambda: self._journal.runs(status=status, op_id=op_id, limit=limit, after=after, stale=stale)
        )

    def recoverable(self, *, op_id: str | None = None, limit: int | None = None) -> AsyncIterator[RunSummary]:
        """Live runs that nobody holds, newest first, but for those whose last failure says to wait longer."""
        return self._listed(lambda: self._journal.recoverable(op_id=op_id, limit=limit))

    # -- the feed of all runs

    async def position(self) -> int:
        """The position of the newest event, 0 when there is none."""
        return await self._calls.run(self._journal.position)

    async def position_of(self, run_id: UUID | str, seq: int) -> int:
        """The position of one event. Raises: RunNotFound."""
        return await self._calls.run(lambda: self._journal.position_of(run_id, seq))

    def feed(
        self, after: int = 0, *, follow: bool = False, timeout: float | None = None
    ) -> AsyncIterator[RecordedEvent]:  # fmt: skip
        """Events of all runs in commit order, those after a position: it never misses one that comes later.

        With `follow` it waits for more, of any process, until `timeout` seconds pass without one. No thread waits.
        """
        return self._followed(self._journal._feed_source(after), timeout if follow else 0.0)

    def _followed(self, source: Source[T], timeout: float | None) -> AsyncIterator[T]:
        self._check()
        following = following_of(self._journal, source, timeout)
        return follow_in_tasks(following, self._journal._bell, self._check, self._calls.run)

    # -- claims

    async def claim(self, run_id: UUID | str, owner: str | None = None, ttl: float | None = None) -> Claim:
        """Take the claim on a run for `ttl` seconds; `owner` is by default this process, whose death frees it.

        Cancelled after it had begun, it is given back. Raises: RunNotFound, Claimed, InvalidEvent (the run has ended).
        """
        return await self._calls.make(
            lambda: self._journal.claim(run_id, owner, ttl), lambda claim, _: self._journal.release(claim)
        )

    async def holder(self, run_id: UUID | str) -> Claim | None:
        """Who holds a run just now, None where nobody does. Raises: RunNotFound."""
        return await self._calls.run(lambda: self._journal.holder(run_id))

    async def renew(self, claim: Claim, ttl: float | None = None) -> Claim:
        """Extend a claim, an expired one too if nobody took it. Raises: Fenced (somebody did, or the run ended)."""
        return await self._calls.run(lambda: self._journal.renew(claim, ttl))

    async def release(self, claim: Claim) -> None:
        """Give a claim back; one that was taken over or whose run ended is left as it is."""
        await self._calls.run(lambda: self._journal.release(claim))

    # -- cursors

    async def cursor(self, name: str) -> int:
        """The position kept under a name, 0 where there is none."""
        return await self._calls.run(lambda: self._journal.cursor(name))

    async def move_cursor(self, name: str, position: int) -> None:
        """Keep a position under a name. Durable on return."""
        await self._calls.run(lambda: self._journal.move_cursor(name, position))

    # -- look after

    async def verify(self, *, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
        """Check every run. `progress` is called in another thread; cancelled, it ends soon."""

        def verify(go_on: Callable[[], None]) -> list[Finding]:
            return self._journal.verify(progress=_noted(go_on, progress))

        return await self._calls.run_long(verify)

    async def run(self, run_id: UUID | str) -> AsyncRunReader:
        """A run to look at: state, events, facts, context, and its new events as they come. Raises: RunNotFound."""
        return AsyncRunReader(await self._calls.run(lambda: self._journal.run(run_id)), self._calls, self._followed)

    async def forget(self, run_id: UUID | str) -> int:
        """Remove the events of a run that has ended, on purpose; the number of them. Raises: as Journal.forget."""
        return await self._calls.run(lambda: self._journal.forget(run_id))

    async def rebuild(self, *, dry_run: bool = False, force: bool = False) -> RebuildReport:
        """Make the rows of all runs anew from their events and put right those that differ. See Journal.rebuild."""
        return await self._calls.run(lambda: self._journal.rebuild(dry_run=dry_run, force=force))

    async def export(
        self, run_id: UUID | str, out: str | os.PathLike[str] | BinaryIO, *,
        progress: Callable[[int], None] | None = None,
    ) -> RunExport:  # fmt: skip
        """Write a run into one CAR file. `out` is written and `progress` called in another thread; cancelled, it ends
        soon, and a path is as it was. Raises: as Journal.export."""

        def export(go_on: Callable[[], None]) -> RunExport:
            return self._journal.export(run_id, out, progress=_noted(go_on, progress))

        return await self._calls.run_long(export)

    async def import_(
        self, src: str | os.PathLike[str] | BinaryIO, *, pin: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> RunImport:  # fmt: skip
        """Take the run of such a file. `src` is read and `progress` called in another thread; cancelled, it ends soon
        and no event is written, or all are. Raises: as Journal.import_."""

        def import_(go_on: Callable[[], None]) -> RunImport:
            return self._journal.import_(src, pin=pin, progress=_noted(go_on, progress))

        return await self._calls.run_long(import_)

    async def backup(self, dest: str | os.PathLike[str]) -> BackupReport:
        """Copy the whole home, store and journal, to `dest`, where nothing is yet. Raises: as Journal.backup."""
        return await self._calls.run(lambda: self._journal.backup(dest))

    async def chain_head(self, run_id: UUID | str, seq: int) -> bytes:
        """The head of the run's chain of records after an event, 32 bytes. Raises: RunNotFound."""
        return await self._calls.run(lambda: self._journal.chain_head(run_id, seq))

    # -- life

    async def close(self) -> None:
        """Finish the calls under way, then close the journal if it was opened here. Idempotent.

        An attempt that a task still holds stays open, as after a crash.
        """
        if not self._closed:
            self._closed = True
            self._journal._bell.ring()  # who follows hears of it
            (await aside(self._close)).get()

    def _close(self) -> None:
        self._calls.close()
        if self._owned:
            self._journal.close()

    async def __aenter__(self) -> AsyncJournal:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, GeneratorExit):  # a coroutine that is closed may not wait
            closed, self._closed = self._closed, True
            if not closed:
                self._close()
            return
        await self.close()

    def __repr__(self) -> str:
        return f"Async{self._journal!r}"

    # -- inside

    def _check(self) -> None:
        self._journal._check()
        if self._closed:
            raise JournalClosed(self._journal._name)

    async def _listed(self, listing: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """The rows of a listing, which is read some at a time in other threads."""
        found = await self._calls.run(listing)
        while page := await self._calls.run(partial(_some, found)):
            for item in page:
                yield item


def _some(items: Iterator[T]) -> list[T]:
    return list(islice(items, PAGE_EVENTS))


def _noted(go_on: Callable[[], None], progress: Callable[P, None] | None) -> Callable[P, None]:
    """A progress that also asks whether to go on."""

    def advance(*done: P.args, **named: P.kwargs) -> None:
        go_on()
        if progress is not None:
            progress(*done, **named)

    return advance


async def _answered(pending: PendingAppend) -> dict[UUID, Appended]:
    """What became of an append that is queued, however often the task is cancelled meanwhile. No thread waits."""
    outcome: Outcome[dict[UUID, Appended]] = Outcome()
    signal = Signal()
    pending.when_done(signal.give)
    outcome.cancelled = await signal.wait()
    outcome.run(pending.results)
    return outcome.get()
