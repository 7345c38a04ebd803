"""Journal: the log of events of all runs. What callers hold; rules, records and rows are other modules' work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, TypeVar, final, overload
from uuid import UUID

import casstore
from casstore import PreparedPut, Retention, Root, Store, forks
from casstore.errors import DamagedStore, ForkedHandle, InvalidHome, ReadOnly, StoreError
from casstore.home import has_journal, is_same_place, open_home
from casstore.lmdb_tables import LmdbTables
from casstore.processes import current_process, is_gone
from journal import backups, inspection, reading, records, witness
from journal.admission import ClaimRequest, RunAppend, Terms
from journal.appends import Appended, Appender, PendingAppend, mapping_of, request_of
from journal.backend import JournalBackend
from journal.claims import RunClaims, check_limit
from journal.context_codec import ContextCodec, PlainCodec
from journal.envelopes import History, RunState
from journal.errors import (
    AmbiguousRun,
    InvalidArgument,
    InvalidRunId,
    JournalClosed,
    RunNotFound,
)
from journal.events import Event, RecordedEvent
from journal.failures import RunStatus, check_member
from journal.feeding import Bell, RunFeed
from journal.ids import U64_MAX, check_int, check_op_id, parse_run_id
from journal.reading import RunSummary, stale_runs
from journal.redaction import Redact
from journal.resume import CLAIM_TTL_MS, RunOperations
from journal.rows import TABLES
from journal.table_backend import TableBackend
from journal.upkeep import RunUpkeep
from journal.views import RunView

__all__ = ["Journal", "open_journal"]

T = TypeVar("T")
_HEX: Final = frozenset("0123456789abcdef-")


@final
class Journal(RunOperations, RunClaims, RunFeed, RunUpkeep):
    """An open journal. All methods may be called from any thread; a handle serves one process.

    Every append is durable when it returns, and after every artifact that it names. A Journal is a RootSource for
    `store.gc`.
    """

    def __init__(
        self, backend: JournalBackend, store: Store, *, name: str, read_only: bool = False,
        codec: ContextCodec | None = None, redact: Redact | None = None, clock: Callable[[], float] = time.time,
        on_close: Callable[[], None] = lambda: None, claim_ttl_ms: int = CLAIM_TTL_MS,
    ) -> None:  # fmt: skip
        self.store = store
        self.codec: ContextCodec = PlainCodec() if codec is None else codec
        self.redact = redact
        self.read_only = read_only
        self._backend, self._clock, self._name, self._on_close = backend, clock, name, on_close
        self._claim_ttl_ms = claim_ttl_ms
        self._bell = Bell()
        self._appender = Appender(backend, store, self._terms, self._bell.ring)
        self._pid = forks.pid
        self._closed = False

    # -- append

    @overload
    def append(
        self, run_id: UUID | str, expected_seq: int, events: Iterable[Event | RecordedEvent], *,
        token: bytes | None = None, epoch: int | None = None, wait: Literal[True] = True,
        claim: ClaimRequest | None = None, cursors: Mapping[str, int] | None = None,
        puts: Sequence[PreparedPut] = (),
    ) -> Appended: ...  # fmt: skip

    @overload
    def append(
        self, run_id: UUID | str, expected_seq: int, events: Iterable[Event | RecordedEvent], *,
        token: bytes | None = None, epoch: int | None = None, wait: Literal[False],
        claim: ClaimRequest | None = None, cursors: Mapping[str, int] | None = None,
        puts: Sequence[PreparedPut] = (),
    ) -> PendingAppend: ...  # fmt: skip

    def append(
        self, run_id: UUID | str, expected_seq: int, events: Iterable[Event | RecordedEvent], *,
        token: bytes | None = None, epoch: int | None = None, wait: bool = True, claim: ClaimRequest | None = None,
        cursors: Mapping[str, int] | None = None, puts: Sequence[PreparedPut] = (),
    ) -> Appended | PendingAppend:  # fmt: skip
        """Append to a run that holds `expected_seq` events (0: a new run); all or nothing, durable on return.

        `token` (16 bytes) names this append: after a lost answer it is repeated with the same one. `epoch` is that
        of the caller's claim. With `wait=False` a handle comes back at once; its `result()` waits. `cursors` are moved
        in the same commit. `puts` (of `store.prepare_value`) are put before, with those of others that wait.
        Raises: Conflict, Claimed, Fenced, InvalidEvent leaves, EventTooLarge, MissingArtifact, StoreFull (nothing
        was written), OutcomeUnknown.
        """
        self._check(write=True)
        request = request_of(run_id, expected_seq, events, epoch, claim)
        if not wait:
            return self._appender.append_later([request], token, cursors, puts)
        return self._appender.append([request], token, cursors, puts)[request.run_id]

    def append_many(
        self, batches: Mapping[UUID | str, tuple[int, Iterable[Event | RecordedEvent]]], *,
        token: bytes | None = None, epochs: Mapping[UUID | str, int] | None = None,
        cursors: Mapping[str, int] | None = None,
    ) -> dict[UUID, Appended]:  # fmt: skip
        """Append to several runs, all or nothing: {run id: (expected_seq, events)}. Existing only if all are.

        Raises: as append; InvalidArgument where a run stands there twice.
        """
        requests = self._batches(batches, epochs)
        return self._appender.append(requests, token, cursors) if requests else {}

    def _batches(
        self, batches: Mapping[UUID | str, tuple[int, Iterable[Event | RecordedEvent]]],
        epochs: Mapping[UUID | str, int] | None,
    ) -> list[RunAppend]:  # fmt: skip
        self._check(write=True)
        given = {parse_run_id(run_id): epoch for run_id, epoch in mapping_of(epochs or {}, "epochs").items()}
        requests: dict[UUID, RunAppend] = {}
        for name, batch in mapping_of(batches, "batches").items():
            if type(batch) not in (tuple, list) or len(batch) != 2:
                raise InvalidArgument("batches", f"(expected_seq, events) is wanted for run {name}")
            expected_seq, events = batch
            request = request_of(name, expected_seq, events, given.get(parse_run_id(name)))
            if request.run_id in requests:
                raise InvalidArgument("batches", f"run {request.run_id} stands there twice")
            requests[request.run_id] = request
        return list(requests.values())

    # -- read

    def read(
        self, run_id: UUID | str, from_seq: int = 1, to_seq: int | None = None, reverse: bool = False
    ) -> list[RecordedEvent]:
        """Events from `from_seq` to `to_seq`, both inclusive, ascending or, with `reverse`, descending.

        `from_seq` below 1 counts as 1; empty where nothing stands there, also for an unknown run.
        Raises: InvalidStream (damage).
        """
        self._check()
        found = list(reading.read_run(self._backend, parse_run_id(run_id), *_range(from_seq, to_seq)))
        return found[::-1] if reverse else found

    def read_raw(
        self, run_id: UUID | str, from_seq: int = 1, to_seq: int | None = None, reverse: bool = False
    ) -> list[tuple[Any, ...]]:
        """As read, but tuples (seq, position, timestamp_ms, kind, *fields) as in docs/FORMAT.md."""
        self._check()
        found = list(reading.raw_run(self._backend, parse_run_id(run_id), *_range(from_seq, to_seq)))
        return found[::-1] if reverse else found

    def head(self, run_id: UUID | str) -> int:
        """The number of events of a run, 0 for an unknown one."""
        self._check()
        with self._backend.look() as look:
            row = look.run(parse_run_id(run_id))
        return 0 if row is None else row.head

    def run_state(self, run_id: UUID | str) -> RunState:
        """What `analyze(read(run_id))` gives, from rows, at the same cost for every length.

        Raises: RunNotFound, InvalidStream.
        """
        self._check()
        wanted = parse_run_id(run_id)
        found = reading.run_state(self._backend, wanted)
        if found is None:
            raise RunNotFound(wanted)
        return found

    def history(self, run_id: UUID, head: int) -> History:
        """What grows with a run, as it was at `head`; read when it is asked for."""
        return reading.StoredHistory(self._backend, run_id, head)

    def view(self, state: RunState) -> RunView:
        """The run from this state on, as the recorder keeps it."""
        return reading.stored_view(self._backend, state)

    def runs(
        self, *, status: RunStatus | str | None = None, op_id: str | None = None, limit: int | None = None,
        after: UUID | str | None = None, stale: float | None = None,
    ) -> Iterator[RunSummary]:  # fmt: skip
        """Runs, newest first: all, the live ones (status "live"), or those that ended so (latest end first).

        `after` is a run id of an earlier list, from which it goes on; `stale` leaves of the live ones those whose last
        event is so many seconds old.
        """
        self._check()
        check_limit(limit)
        if op_id is not None:
            check_op_id(op_id)
        if stale is not None:
            every = self.runs(status=status, op_id=op_id, after=after)
            return islice(stale_runs(every, self._now_ms(), stale), limit)
        wanted = status if status is None or status == "live" else check_member("status", status, RunStatus)
        found = reading.list_runs(self._backend, wanted, None if after is None else parse_run_id(after))
        return islice((row for row in found if op_id is None or row.op_id == op_id), limit)

    def resolve(self, prefix: str) -> UUID:
        """The only run whose id begins so (4 characters at least). Raises: RunNotFound, AmbiguousRun, InvalidRunId."""
        self._check()
        digits = prefix.replace("-", "") if type(prefix) is str and not set(prefix) - _HEX else ""
        if not 4 <= len(digits) <= 32 or not str(UUID(digits.ljust(32, "0"))).startswith(prefix):
            raise InvalidRunId(prefix, "a prefix has 4 to 36 characters of a run id's canonical text")
        first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
        with self._backend.look() as look:
            found = list(islice(look.named(first, last), 5))
        if not found:
            raise RunNotFound(prefix)
        if len(found) > 1:
            raise AmbiguousRun(prefix, tuple(map(str, found)))
        return found[0]

    # -- for gc: a RootSource

    @property
    def uuid(self) -> str:
        """The uuid of the home that it belongs to."""
        return self.store.uuid

    @property
    def home(self) -> Path | None:
        """Where that home is, None in memory."""
        return self.store.home

    def live_roots(self, *, completed_after_ms: int | None) -> Iterator[Root]:
        """What live runs name, and runs that ended since. Raises: InvalidStream: then gc removes nothing."""
        self._check()
        return reading.live_roots(self._backend, Retention(completed_after_ms=completed_after_ms))

    def retained_roots(self, retention: Retention) -> Iterator[Root]:
        """What live runs name, and what is kept of those that ended. Raises: InvalidStream."""
        self._check()
        return reading.live_roots(self._backend, retention)

    def ended_between(self, status: str, after_ms: int, until_ms: int) -> int:
        """How many runs ended with that status after one unix time, and at or before another."""
        self._check()
        return reading.ended_between(self._backend, check_member("status", status, RunStatus), after_ms, until_ms)

    def witness(self, retention: Retention) -> bytes:
        """What `roots_since` of a later gc compares with."""
        self._check()
        return witness.witness(self._backend, retention)

    def roots_since(self, witnessed: bytes, retention: Retention) -> list[Root] | None:
        """What events since then name; None where what was kept then may not be now. Raises: InvalidStream."""
        self._check()
        return witness.roots_since(self._backend, witnessed, retention)

    def roots_after(self, position: int) -> tuple[int, list[Root]]:
        """What events after a position name."""
        self._check()
        return reading.roots_after(self._backend, position)

    def exclusive(self) -> AbstractContextManager[None]:
        """No event is appended by any process meanwhile."""
        self._check(write=True)
        return self._backend.exclusive()

    # -- look after

    def verify(self, *, progress: Callable[[int, int], None] | None = None) -> list[inspection.Finding]:
        """Check every run: records, rules, chain, rows, and that what live runs name is in the store."""
        self._check()
        return inspection.verify(self._backend, self.store, progress)

    def backup(self, dest: str | os.PathLike[str]) -> casstore.BackupReport:
        """Copy the whole home, store and journal, to `dest`, where nothing is yet, while others read and write.

        What the copied journal names is in the copied store. It is a home with an instance of its own, without claims,
        leases and unfinished uploads. Durable on return; killed, `dest` is not there.
        Raises: InvalidArgument (nothing touched), Busy (gc, compact or another backup), StoreFull, InvalidStream,
        DamagedStore.
        """
        self._check(write=True)
        self.store.staging.settle()  # politeness: rows that are staged go along
        return backups.backup(self.store.home, dest)

    def chain_head(self, run_id: UUID | str, seq: int) -> bytes:
        """The head of the run's chain of records after an event, 32 bytes. Raises: RunNotFound."""
        self._check()
        wanted = parse_run_id(run_id)
        check_int("seq", seq, 0, U64_MAX)
        with self._backend.look() as look:
            row = look.run(wanted)
            if row is None or not 1 <= seq <= row.head:
                raise RunNotFound(wanted)
            if seq == row.head:
                return row.chain
            chain = records.chain_seed(wanted)
            for _, _, data in look.records(row.number, 1, seq):
                chain = records.chain(chain, data)
        return chain

    # -- life

    def close(self) -> None:
        """Commit what nobody waited for, stop renewing, give the handle back. Idempotent."""
        if self._closed:
            return
        if self._pid == forks.pid:
            self.renewer.close()
            self._appender.close()
            if not self.read_only:
                with suppress(StoreError):  # they are as safe where they are
                    self.store.staging.settle()
            self._closed = True
            self._on_close()
        self._closed = True
        self._bell.ring()  # who follows hears of it

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Journal is not picklable: pass its home, and open it there")

    def __repr__(self) -> str:
        return f"Journal({self._name!r})"

    # -- inside

    def _check(self, *, write: bool = False) -> None:
        if self._pid != forks.pid:
            raise ForkedHandle(self._name, self._pid)
        if self._closed:
            raise JournalClosed(self._name)
        if write and self.read_only:
            raise ReadOnly(self._name)

    def _now_ms(self) -> int:
        return max(int(self._clock() * 1000), 0)

    def _terms(self) -> Terms:
        return Terms(self._now_ms(), current_process(), self._claim_ttl_ms, is_gone)


def open_journal(
    home: str | os.PathLike[str], *, store: Store | None = None, codec: ContextCodec | None = None,
    redact: Redact | None = None, create: bool = True, read_only: bool = False, clock: Callable[[], float] = time.time,
) -> Journal:  # fmt: skip
    """Open the journal at `home`, or make one there, unless it had one. Without `store` the store of that home is
    opened too, and closed with the journal. `redact` masks what failures and reasons say before its runs record it;
    `redact_secrets` is one.

    Raises: NotAStore, InvalidHome, UnsupportedFormat, UnsupportedFilesystem, DamagedStore, AlreadyOpen.
    """
    opened = open_home(home, create=create, read_only=read_only)
    if codec is not None and not isinstance(codec, ContextCodec):
        raise InvalidArgument("codec", "an object with to_plain and from_plain is wanted")
    if redact is not None and not callable(redact):
        raise InvalidArgument("redact", "a function of a message and details is wanted, which returns both")
    if store is not None and (store.uuid != opened.uuid or not is_same_place(store.home or Path(), opened.path)):
        raise InvalidHome(str(opened.path), f"the store given belongs to another home ({store.home})")
    used = casstore.open(home, create=create, read_only=read_only, clock=clock) if store is None else store
    try:
        had = used._backend.has_journal()  # first: another process may be making it
        fresh = not has_journal(opened.path)
        if fresh and had:
            # An empty one in its place would say that no run is live, and gc would believe it.
            raise DamagedStore(str(opened.journal_path), "the home had a journal, and it is missing")
        if fresh and not (create and not read_only):
            raise DamagedStore(str(opened.journal_path), "there is no journal")
        tables = LmdbTables(opened.journal_path, TABLES, create=fresh, read_only=read_only, durable=True)
        backend = TableBackend(tables)
        try:
            if backend.bind(opened.uuid) != opened.uuid:
                raise DamagedStore(str(opened.path), "FORMAT and the journal's data file name different homes")
            if not used.read_only and not used._backend.has_journal():
                used._backend.set_journal()  # once it is there
        except BaseException:
            tables.close()
            raise
    except BaseException:
        if store is None:
            used.close()
        raise

    def on_close() -> None:
        backend.close()
        if store is None:
            used.close()

    return Journal(backend, used, name=str(opened.path), read_only=read_only, codec=codec, redact=redact, clock=clock,
                   on_close=on_close)  # fmt: skip


# -- arguments ------------------------------------------------------------------------------------------


def _range(from_seq: int, to_seq: int | None) -> tuple[int, int | None]:
    check_int("from_seq", from_seq, -(1 << 62), 1 << 62)
    return from_seq, None if to_seq is None else check_int("to_seq", to_seq, -(1 << 62), 1 << 62)
