"""Appends on their way: asked for, admitted, checked against the store, committed in groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, final
from uuid import UUID

from casstore import PreparedPut, Store
from casstore.errors import PoisonedHandle, StoreError
from casstore.ids import ArtifactId
from casstore.stage import ROWS_MAX, Staged, due
from casstore.steps import reach
from journal import records
from journal.admission import AlreadyThere, ClaimRequest, RunAppend, Terms, admit
from journal.backend import JournalBackend, Look, RunWrite
from journal.commits import Committer, Pending
from journal.envelopes import check_imported
from journal.errors import Conflict, InvalidArgument, InvalidEvent, MissingArtifact, OutcomeUnknown
from journal.events import Event, RecordedEvent, check_event, links
from journal.ids import check_int, parse_run_id
from journal.views import AFTER_ARTIFACTS


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to append to a run, until `until_ms` and longer while renewed. A later epoch fences it."""

    run_id: UUID
    epoch: int
    owner: str
    until_ms: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """Where a batch stands: its first and last seq, and the position of its last event.

    `existing` says that an earlier append with this token had written it. After an empty batch `last_seq` is the
    head. `claim` is there where the append was asked to take it.
    """

    run_id: UUID
    first_seq: int
    last_seq: int
    position: int
    existing: bool = False
    claim: Claim | None = None


@final
class Append(Pending):
    """An append on its way: what was asked, and the answers once it is done."""

    __slots__ = ("answers", "named", "puts", "requests", "token")

    def __init__(
        self, requests: list[RunAppend], token: bytes | None, cursors: Mapping[str, int] | None,
        puts: Sequence[PreparedPut] = (),
    ) -> None:  # fmt: skip
        super().__init__(sum(len(request.events) for request in requests))
        for name, position in mapping_of(cursors or {}, "cursors").items():
            self.cursors[check_cursor(name)] = check_int("position", position, 0, 1 << 63)
        self.requests, self.token, self.puts = requests, token, puts
        self.named = [link for request in requests for event in request.events for link in links(event)]
        self.answers: list[RunWrite | AlreadyThere] = []


@final
class PendingAppend:
    """An append that nobody waits for yet."""

    def __init__(self, appender: Appender, pending: Append) -> None:
        self._appender, self._pending = appender, pending

    def done(self) -> bool:
        """Whether it is durable, or refused."""
        return self._pending.done

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call it once when it is done, in some thread, or at once. It may neither block nor raise."""
        self._pending.when_done(callback)

    def result(self) -> Appended:
        """Wait until it is durable. Raises: what append raises."""
        return next(iter(self.results().values()))

    def results(self) -> dict[UUID, Appended]:
        """As result, for an append to several runs."""
        return self._appender.answer(self._pending)


@final
class Appender:
    """The numbers in comments are the steps of docs/GC.md, section 2, "Append". `terms` says what time it is;
    `committed` is called after each commit."""

    def __init__(
        self, backend: JournalBackend, store: Store, terms: Callable[[], Terms],
        committed: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._backend, self._store, self._terms, self._committed = backend, store, terms, committed
        self._staging = store.staging
        self._staged: int | None = None  # after the newest commit of this process: others may have staged since
        self._committer = Committer(self._commit_group)

    def append(
        self, requests: Iterable[RunAppend], token: bytes | None, cursors: Mapping[str, int] | None = None,
        puts: Sequence[PreparedPut] = (),
    ) -> dict[UUID, Appended]:  # fmt: skip
        """Durable on return, and `puts` before."""
        pending = Append(list(requests), check_token(token), cursors, puts)
        reach("append.asked")
        self._committer.submit(pending)
        return self.answer(pending)

    def append_later(
        self, requests: Iterable[RunAppend], token: bytes | None, cursors: Mapping[str, int] | None = None,
        puts: Sequence[PreparedPut] = (),
    ) -> PendingAppend:  # fmt: skip
        """Queued on return."""
        pending = Append(list(requests), check_token(token), cursors, puts)
        self._committer.submit(pending)
        self._committer.start_thread()
        return PendingAppend(self, pending)

    def close(self) -> None:
        """Commit what is queued, then stop."""
        self._committer.close()

    def answer(self, pending: Append) -> dict[UUID, Appended]:
        """Wait until it is durable, or raise what refused it."""
        self._committer.finish(pending)
        if pending.error is not None:
            raise self._first_broken(pending, pending.error)
        positions = iter(pending.positions)
        return {
            request.run_id: _appended(request, answer, positions)
            for request, answer in zip(pending.requests, pending.answers, strict=True)
        }

    def _first_broken(self, pending: Append, error: BaseException) -> BaseException:
        """The first rule broken wins, in the order of the events, and that a named artifact is there is one of them:
        where an event breaks another, those before it are looked at as well."""
        if not isinstance(error, InvalidEvent):
            return error
        coming = {put.id for put in pending.puts}
        with suppress(StoreError):  # closed meanwhile, say: then what refused it is what is known
            for field, name in _named_before(pending.requests, error):
                if name not in coming and name not in self._store:
                    return MissingArtifact(name, field)
        return error

    def _commit_group(self, group: Sequence[Pending]) -> None:
        """Admit outside of the lock what can be, flush the store once for all, then commit."""
        appends = [pending for pending in group if isinstance(pending, Append)]
        terms = self._terms()
        seen = self._admit_all(appends, terms)
        waiting = [append for append in appends if append.error is None and append.writes != []]
        if not waiting:
            return
        rows = self._place(waiting)
        waiting = [append for append in waiting if append.error is None]
        names = rows or any(append.named or append.staged for append in waiting)
        synced = self._store.barrier() if names else 0  # 1
        reach("append.synced")

        def again(unit: Any, look: Look) -> None:
            self._admit(unit, look, terms, look.next_number())

        shared: dict[ArtifactId, int | None] = {}

        def touched(unit: Any) -> Mapping[ArtifactId, int | None]:
            """One look for all, since nothing is collected while the lock is held; where a row cannot be read, one for
            each, so that only who names it is refused."""
            try:
                if not shared:
                    shared.update(self._touched(waiting))
            except StoreError:
                return self._touched([unit])
            return shared

        def check(unit: Any, look: Look) -> None:
            if unit.writes:
                self._check_named(unit, look, synced, touched(unit))

        def settled() -> list[ArtifactId]:
            done = self._staging.settled(rows, synced) if rows else ()
            return [ArtifactId(row.digest) for row, gone in zip(rows, done, strict=True) if gone]

        try:
            self._staged = self._backend.commit(waiting, again, check, settled, seen)
        except PoisonedHandle as error:
            raise OutcomeUnknown("an append", str(error)) from error
        self._committed()

    def _place(self, appends: Sequence[Append]) -> list[Staged]:
        """What the appends bring along is staged where it is small, else put into the store. Before that room is made:
        the rows that were put into the store for it are returned, and can go once they are flushed."""
        small: list[Append] = []
        large: list[Append] = []
        for append in appends:
            append.staged = []
            named = {name for _, name in append.named}
            append.puts = [put for put in append.puts if not (put.is_hit and put.id in named)]
            if append.puts:
                # Rows are ordered by the positions of events; an append may have none, but for a claim.
                can_stage = append.size > 0 and all(put.can_stage for put in append.puts)
                (small if can_stage else large).append(append)
        if not small and not large:
            return []
        staged = self._staging.count() if self._staged is None else self._staged
        more = sum(len(append.puts) for append in small)
        rows = self._settle() if staged and (large or staged + more > due(more)) else []
        if staged - len(rows) + more > ROWS_MAX:  # settling did not help
            small, large = [], small + large
        self._stage_all(small)
        self._put_all(large)
        return rows

    def _stage_all(self, appends: Sequence[Append]) -> None:
        """What the appends bring along is to be staged; where there is no room for all, it is seen for whom."""
        try:
            self._staging.check_room([put for append in appends for put in append.puts])
        except StoreError as error:
            if len(appends) == 1:
                appends[0].error = error
                return
            for append in appends:
                self._stage_all([append])
            return
        for append in appends:
            append.staged = list(append.puts)

    def _settle(self) -> list[Staged]:
        """Put all that is staged into the store. Where that fails it stays, and the appends go on."""
        rows = self._staging.rows()
        try:
            self._staging.put(rows)
        except StoreError:
            return []
        return rows

    def _put_all(self, appends: Sequence[Append]) -> None:
        """What the appends bring along goes into the store in one transaction; where that fails, one by one."""
        together = [put for append in appends for put in append.puts]
        if not together:
            return
        try:
            self._store.put_prepared(together)
        except StoreError as error:
            bringing = [append for append in appends if append.puts]
            if len(bringing) == 1:
                bringing[0].error = error
                return
            for append in bringing:
                self._put_all([append])

    def _admit_all(self, appends: Sequence[Append], terms: Terms) -> int:
        """A second append to a run in one group has to wait for the first: it is admitted under the lock. Returns the
        version of the look."""
        seen: set[UUID] = set()
        with self._backend.look() as look:
            starts = any(request.expected_seq == 0 for append in appends for request in append.requests)
            number = look.next_number() if starts else 0
            for append in appends:
                runs = {request.run_id for request in append.requests}
                if seen & runs:
                    continue
                seen |= runs
                try:
                    self._admit(append, look, terms, number)
                except Exception as error:
                    append.error = error
                    continue
                number += sum(write.before is None for write in append.writes or ())
            return look.version()

    def _admit(self, append: Append, look: Look, terms: Terms, number: int) -> None:
        answers: list[RunWrite | AlreadyThere] = []
        for request in append.requests:
            answer = admit(request, append.token, look, terms, number=number)
            number += isinstance(answer, RunWrite) and answer.before is None
            answers.append(answer)
        writes = [answer for answer in answers if isinstance(answer, RunWrite)]
        if writes:
            for request, answer in zip(append.requests, answers, strict=True):
                if isinstance(answer, AlreadyThere) and answer.existing:
                    assert answer.row is not None
                    raise Conflict(request.run_id, request.expected_seq, answer.row.head)
        append.answers, append.writes = answers, writes

    def _touched(self, appends: Sequence[Append]) -> dict[ArtifactId, int | None]:
        """3: under the lock, from a look at the store that begins now: all that the appends name or bring along, and
        what that needs, with the commits that touched it last. What this sees decides (H27)."""
        ids = {name for append in appends for _, name in append.named}
        for append in appends:
            for put in append.staged:
                ids |= {put.id, *put.needs}
        wanted = list(ids)
        found = dict(zip(wanted, self._store.touched(wanted), strict=True)) if wanted else {}
        reach("append.checked")
        return found

    def _check_named(
        self, append: Append, look: Look, synced: int, touched: Mapping[ArtifactId, int | None]
    ) -> None:
        """What is named is visible, or staged, or comes with this append; and so is what that needs.
        Raises: MissingArtifact."""
        staged: dict[ArtifactId, PreparedPut] = {}
        flush = False

        def require(name: ArtifactId, field: str) -> bool:
            """Whether it takes a flush to be safe."""
            commit = touched[name]
            if name in staged or _is_safe(commit, synced) or look.is_staged(name):
                return False
            if commit is None:
                raise MissingArtifact(name, field)
            return True  # put since the barrier, perhaps collected before

        for put in append.staged:
            if not _is_safe(touched[put.id], synced):
                for need in put.needs:
                    flush |= require(need, f"a link or the base of {put.id}")
                staged[put.id] = put  # now: a need has to come before
        for field, name in append.named:
            flush |= require(name, field)
        append.staged = list(staged.values())
        if flush:
            self._store.sync()


def _named_before(requests: Sequence[RunAppend], error: InvalidEvent) -> Iterator[tuple[str, ArtifactId]]:
    """What is named by the events of its run before the one that was refused, and by that one where it broke a rule
    that comes after theirs."""
    for request in requests:
        # Fields that are refused by themselves name no run: what comes before them is looked at for all the same.
        if getattr(error, "run_id", None) == request.run_id and error.seq is not None:
            before = error.seq - request.expected_seq - (error.rule not in AFTER_ARTIFACTS)
            for event in request.events[: max(before, 0)]:
                yield from links(event)


def _is_safe(touched: int | None, synced: int) -> bool:
    """Whether it is in the store, and on disk."""
    return touched is not None and touched <= synced


# -- arguments ------------------------------------------------------------------------------------------


def request_of(
    run_id: UUID | str, expected_seq: int, events: Iterable[Event | RecordedEvent], epoch: int | None = None,
    claim: ClaimRequest | None = None,
) -> RunAppend:  # fmt: skip
    """The arguments of an append, checked. Raises: InvalidEvent leaves, InvalidArgument."""
    wanted = parse_run_id(run_id)
    check_int("expected_seq", expected_seq, 0, 1 << 62)
    if epoch is not None:
        check_int("epoch", epoch, 0, 1 << 62)
    if claim is not None:
        check_claim(claim)
    if not isinstance(events, Iterable):
        raise InvalidArgument("events", f"a list of events is wanted, not {type(events).__name__}")
    given = list(events)
    imported = [item for item in given if type(item) is RecordedEvent]
    if imported and len(imported) != len(given):
        raise InvalidArgument("events", "recorded events and plain ones in one batch")
    if imported:
        check_imported(wanted, expected_seq, imported)
        return RunAppend(
            run_id=wanted, expected_seq=expected_seq, events=tuple(item.event for item in imported),
            times_ms=tuple(item.timestamp_ms for item in imported), epoch=epoch, claim=claim,
        )  # fmt: skip
    plain = tuple(check_event(item) for item in given)
    return RunAppend(run_id=wanted, expected_seq=expected_seq, events=plain, epoch=epoch, claim=claim)


def mapping_of(value: Any, name: str) -> Mapping[Any, Any]:
    """The map itself. Raises: InvalidArgument."""
    if not isinstance(value, Mapping):
        raise InvalidArgument(name, f"a map is wanted, not {type(value).__name__}")
    return value


def check_cursor(name: str) -> str:
    """The name itself. Raises: InvalidArgument."""
    if not _is_name(name):
        raise InvalidArgument("name", "a cursor's name is text of 1 to 400 bytes")
    return name


def check_claim(claim: ClaimRequest) -> ClaimRequest:
    """The request itself. Raises: InvalidArgument."""
    if type(claim) is not ClaimRequest:
        raise InvalidArgument("claim", f"a ClaimRequest is wanted, not {type(claim).__name__}")
    if claim.owner is not None and not _is_name(claim.owner):
        raise InvalidArgument("owner", "text of 1 to 400 bytes is wanted")
    if claim.ttl_ms is not None and not (type(claim.ttl_ms) is int and 0 < claim.ttl_ms < 1 << 50):
        raise InvalidArgument("ttl_ms", "milliseconds above 0 are wanted")
    return claim


def _is_name(name: object) -> bool:
    """Whether a row can hold it: it is not looked at again under the lock, where it would fail for all of a group."""
    try:
        return type(name) is str and 0 < len(name.encode()) <= 400
    except UnicodeEncodeError:
        return False


def check_token(token: bytes | None) -> bytes | None:
    """The token itself. Raises: InvalidArgument."""
    if token is not None and (type(token) is not bytes or len(token) != records.TOKEN_SIZE_BYTES):
        raise InvalidArgument("token", f"{records.TOKEN_SIZE_BYTES} bytes are wanted")
    return token


def _appended(request: RunAppend, answer: RunWrite | AlreadyThere, positions: Iterator[int]) -> Appended:
    if isinstance(answer, AlreadyThere):
        return Appended(run_id=request.run_id, first_seq=answer.first_seq, last_seq=answer.last_seq,
                        position=answer.position, existing=answer.existing)  # fmt: skip
    row, count = answer.after, len(answer.records)
    first = next(positions)
    claim = None
    if request.claim is not None and answer.claim is not None:
        claim = Claim(run_id=request.run_id, epoch=row.epoch, owner=answer.claim.owner, until_ms=answer.claim.until_ms)
    return Appended(run_id=request.run_id, first_seq=row.head - count + 1, last_seq=row.head,
                    position=first + count - 1, claim=claim)  # fmt: skip
