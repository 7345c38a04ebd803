"""From rows and records to what callers read: events, states of runs, lists of runs, and the roots that gc asks for."""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, final
from uuid import UUID

from casstore import Retention, Root
from casstore.ids import ArtifactId
from journal import domain, records
from journal.admission import decode, definitions, fact_of, view_of
from journal.backend import JournalBackend, Look, RunRow
from journal.decoding import RawEvent, RunDecoder
from journal.envelopes import Failure, RunState, analyze
from journal.errors import InvalidArgument, InvalidEvent, InvalidStream, RunNotFound
from journal.events import (
    DomainEvent,
    RecordedEvent,
    StateCompleted,
    StateEntered,
    StateFailed,
    links,
)
from journal.failures import RunStatus
from journal.record_form import parse
from journal.records import Resolve
from journal.views import LastFailure, RunView, StateEntries

PAGE_EVENTS: Final = 512
RAW_PAGE_EVENTS: Final = 4096
FEED_PAGE_EVENTS: Final = 2048  # of many runs: what is looked up for a run serves more of its events
FIRST_PAGE_RUNS: Final = 32


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One line of a list of runs. Times are unix milliseconds; `status` is None while the run lives."""

    run_id: UUID
    op_id: str
    status: RunStatus | None
    head: int
    started_ms: int
    updated_ms: int
    manifest_id: ArtifactId
    checkpoint_id: ArtifactId
    retry_at_ms: int


def summary(row: RunRow) -> RunSummary:
    """What a list says of a run."""
    return RunSummary(
        run_id=row.run_id, op_id=row.op_id, status=row.status, head=row.head, started_ms=row.started_ms,
        updated_ms=row.updated_ms, manifest_id=row.manifest_id, checkpoint_id=row.checkpoint_id,
        retry_at_ms=row.retry_at_ms,
    )  # fmt: skip


# -- the events of one run ------------------------------------------------------------------------------


def read_run(backend: JournalBackend, run_id: UUID, first: int, last: int | None) -> Iterator[RecordedEvent]:
    """Events of a run in pages, each from a look of its own: nothing stays open between two events.

    Raises: InvalidStream where a record is missing or does not decode; RunNotFound where the run is forgotten midway.
    """
    for page in _pages(backend, run_id, first, last, PAGE_EVENTS, RunDecoder.events):
        yield from page


def raw_run(backend: JournalBackend, run_id: UUID, first: int, last: int | None) -> Iterator[RawEvent]:
    """As `read_run`, as (seq, position, timestamp_ms, kind, *fields): what records hold is taken on trust."""
    for page in _pages(backend, run_id, first, last, RAW_PAGE_EVENTS, RunDecoder.raw):
        yield from page


Page = TypeVar("Page", RecordedEvent, RawEvent)


def _pages(
    backend: JournalBackend, run_id: UUID, first: int, last: int | None, size: int,
    decode_them: Callable[[RunDecoder, Sequence[bytes], int, Sequence[int], Resolve], list[Page]],
) -> Iterator[list[Page]]:  # fmt: skip
    first, decoder = max(first, 1), None
    while True:
        page: list[Page] = []
        with backend.look() as look:
            row = look.run(run_id)
            if decoder is not None and (row is None or row.number != decoder.number):
                raise RunNotFound(run_id)
            if row is None:
                return
            if decoder is None:
                decoder = RunDecoder(row.number, run_id, row.started_ms, from_first=first == 1)
            last = row.head if last is None else min(last, row.head)
            end = min(last, first + size - 1)
            resolve = definitions(look, row)
            for seq, positions, found in look.stretches(row.number, first, end):
                if seq != first + len(page):
                    break
                page += decode_them(decoder, found, seq, positions, resolve)
            if first <= end and len(page) != end - first + 1:
                raise InvalidStream("bad_sequence", run_id, first + len(page), "the record is missing")
        yield page
        first = end + 1
        if first > last:
            return


def feed_page(backend: JournalBackend, after: int, limit: int = FEED_PAGE_EVENTS) -> list[RecordedEvent]:
    """The next events of all runs after a position, in commit order."""
    page: list[RecordedEvent] = []
    runs: dict[int, tuple[RunDecoder, Resolve] | None] = {}
    with backend.look() as look:
        for position, data in look.after(after):
            try:
                parsed = parse(data)
                number = parsed[1]
            except (InvalidEvent, InvalidStream):  # which may be of a run that is gone; else it is looked at again
                parsed, number = None, records.peek(data)[1]
            if number not in runs:
                runs[number] = _feeding(look, number, position)
            run = runs[number]
            if run is None:
                continue
            page.append(run[0].one(data, position, run[1], parsed))
            if len(page) >= limit:
                break
    return page


def _feeding(look: Look, number: int, position: int) -> tuple[RunDecoder, Resolve] | None:
    """None for what a forget is still to remove."""
    row = look.numbered(number)
    if row is not None:
        return RunDecoder(number, row.run_id, row.started_ms, from_first=False), definitions(look, row)
    if any(number == forgotten for _, forgotten, _ in look.forgetting()):
        return None
    raise InvalidStream("bad_record", None, None, f"the record at position {position} is of no known run")


# -- the state of a run ---------------------------------------------------------------------------------


@final
class StoredHistory:
    """What grows with a run, read when it is first asked for: as it was at `head`."""

    def __init__(self, backend: JournalBackend, run_id: UUID, head: int, number: int | None = None) -> None:
        self._backend, self._run_id, self._head, self._number = backend, run_id, head, number

    @functools.cached_property
    def _states(self) -> tuple[tuple[str, ...], dict[str, int]]:
        with self._backend.look() as look:
            row = self._row(look)
            if row.head == self._head:
                found = list(look.states(row.number))
                done = sorted((state.completed_place, name) for name, state in found if state.completed_seq)
                entered = {name: state.attempts for name, state in found if state.attempts}
                return tuple(name for _, name in done), entered
        replayed = self._replayed
        return replayed.completed, replayed.attempts

    @functools.cached_property
    def facts(self) -> dict[str, ArtifactId]:
        with self._backend.look() as look:
            row = self._row(look)
            if row.head == self._head:
                return dict(fact_of(look, row, seq) for seq in sorted(look.facts(row.number)))
        return self._replayed.facts

    @functools.cached_property
    def last_completed(self) -> str | None:
        with self._backend.look() as look:
            row = look.run(self._run_id)
            if row is not None and row.head == self._head:
                if not row.n_completed:
                    return None
                if row.checkpoint_seq > 1:
                    completed = _event(look, row, row.checkpoint_seq)
                    return None if type(completed) is not StateCompleted else completed.state_id
        return self.completed[-1] if self.completed else None  # of a fork that completed nothing of its own yet

    def _row(self, look: Look) -> RunRow:
        """Raises: RunNotFound: it was forgotten, though there may be a new run of its id."""
        row = look.run(self._run_id)
        if row is None or self._number not in (None, row.number):
            raise RunNotFound(self._run_id)
        return row

    @functools.cached_property
    def _replayed(self) -> RunState:
        """The run has moved on: what it was stands in its events."""
        return analyze(read_run(self._backend, self._run_id, 1, self._head))

    @property
    def completed(self) -> tuple[str, ...]:
        return self._states[0]

    @property
    def attempts(self) -> dict[str, int]:
        return self._states[1]


def run_state(backend: JournalBackend, run_id: UUID) -> RunState | None:
    """The state from rows and at most two records, whatever the run's length; None for an unknown run.

    Raises: InvalidStream.
    """
    with backend.look() as look:
        row = look.run(run_id)
        if row is None:
            return None
        view = view_of(run_id, row, look)
        failure, plan, plan_id, limit = None, None, None, domain.DEFAULT_MAX_ATTEMPTS
        opened = view.open_attempt
        if opened is not None:  # about to be closed as an orphan's, perhaps: is it what the stream says
            entered = _event(look, row, opened.seq)
            if type(entered) is not StateEntered or (entered.state_id, entered.attempt) != (
                opened.state_id, opened.attempt
            ):
                raise InvalidStream("bad_row", run_id, opened.seq, "the row tells of an attempt here")
        if view.last_failure is not None:
            failed = _event(look, row, view.last_failure.seq)
            if type(failed) is not StateFailed:
                raise InvalidStream("bad_row", run_id, view.last_failure.seq, "the row tells of a failure here")
            failure = Failure(failed.state_id, view.last_failure.attempt, failed.error, view.last_failure.seq)
        if row.policy_seq:
            policy = _event(look, row, row.policy_seq)
            if type(policy) is not DomainEvent or policy.name != domain.RUN_POLICY:
                raise InvalidStream("bad_row", run_id, row.policy_seq, "the row tells of a run_policy here")
            payload = policy.payload
            plan = tuple(payload["plan"]) if "plan" in payload else None
            plan_id, limit = payload.get("plan_id"), payload["max_attempts"]
        return RunState(
            run_id=run_id, op_id=row.op_id, manifest_id=row.manifest_id, status=row.status,
            checkpoint_id=row.checkpoint_id, checkpoint_seq=row.checkpoint_seq,
            final_snapshot_id=view.final_snapshot_id, open_attempt=view.open_attempt, last_failure=failure,
            head=row.head, plan=plan, plan_id=plan_id, max_attempts=limit,
            history=StoredHistory(backend, run_id, row.head, row.number),
        )  # fmt: skip


def stored_view(backend: JournalBackend, state: RunState) -> RunView:
    """The run as the rules see it from this state on; what came before is looked up when it is first asked for.

    Ask before an append for what its events need (`views.look_up`): afterwards the rows hold them already.
    """

    @functools.cache
    def stored_state(state_id: str) -> StateEntries:
        with backend.look() as look:
            row = look.run(state.run_id)
            found = None if row is None else look.state(row.number, state_id)
        return StateEntries(0, 0) if found is None else StateEntries(found.attempts, found.completed_seq)

    @functools.cache
    def stored_fact(key: str) -> ArtifactId | None:
        with backend.look() as look:
            row = look.run(state.run_id)
            seq = None if row is None else look.fact(row.number, key)
            return None if row is None or seq is None else fact_of(look, row, seq)[1]

    failure = state.last_failure
    view = RunView(
        run_id=state.run_id, head=state.head, op_id=state.op_id, manifest_id=state.manifest_id, status=state.status,
        checkpoint_id=state.checkpoint_id, checkpoint_seq=state.checkpoint_seq, open_attempt=state.open_attempt,
        final_snapshot_id=state.final_snapshot_id, plan=state.plan, plan_id=state.plan_id,
        max_attempts=state.max_attempts, stored_state=stored_state, stored_fact=stored_fact, stored_head=state.head,
    )  # fmt: skip
    if failure is not None:
        retryable = failure.error.info.retryable
        view.last_failure = LastFailure(failure.state_id, failure.attempt, retryable, failure.seq)
        view.last_error = failure.error
    return view


def _event(look: Look, row: RunRow, seq: int) -> Any:
    data = look.record(row.number, seq)
    if data is None:
        raise InvalidStream("bad_sequence", row.run_id, seq, "the record is missing")
    return decode(look, row, data).event


# -- lists ----------------------------------------------------------------------------------------------


def list_runs(backend: JournalBackend, status: RunStatus | str | None, after: UUID | None) -> Iterator[RunSummary]:
    """All runs, the live ones ("live"), or those that ended so; newest first, from the one that follows `after`."""
    before: int | tuple[int, int] | None = None
    if after is not None:
        with backend.look() as look:
            row = look.run(after)
        if row is None:
            return
        before = (row.updated_ms, row.number) if isinstance(status, RunStatus) else row.number
    size = FIRST_PAGE_RUNS  # most ask for the newest few
    while True:
        page: list[RunRow] = []
        with backend.look() as look:
            for key, number in _keyed(look, status, before):
                before = key  # not what the row says: one that is damaged could lead back to where the list began
                found = look.numbered(number)
                if found is not None:
                    page.append(found)
                if len(page) == size:
                    break
        if not page:
            return
        yield from map(summary, page)
        size = min(2 * size, PAGE_EVENTS)


def stale_runs(runs: Iterator[RunSummary], now_ms: int, age_s: float) -> Iterator[RunSummary]:
    """Of these runs the live ones whose last event is that old. Raises: InvalidArgument."""
    if isinstance(age_s, bool) or not isinstance(age_s, (int, float)) or not age_s >= 0:
        raise InvalidArgument("stale", "a number of seconds, 0 or more, is wanted")
    return (row for row in runs if row.status is None and row.updated_ms <= now_ms - age_s * 1000)


def _keyed(look: Look, status: RunStatus | str | None, before: Any) -> Iterator[tuple[Any, int]]:
    """Each key that can be given as `before`, and the number of its run."""
    if isinstance(status, RunStatus):
        return ((key, key[1]) for key in look.ended(status, before=before))
    numbers = look.numbers(before=before) if status is None else look.live(before=before)
    return ((number, number) for number in numbers)


# -- roots ----------------------------------------------------------------------------------------------


def live_roots(backend: JournalBackend, retention: Retention | None = None) -> Iterator[Root]:
    """What events of live runs name, and what is kept of those that ended (nothing by default)."""
    retention = retention or Retention()
    with backend.look() as look:
        _check_tables(look)
        numbers = [(number, True) for number in look.live()]
        for number, _ in numbers:
            _listed(look, number, None)
        numbers += [(number, False) for number in _retained(look, retention)]
    for number, live in numbers:
        with backend.look() as look:
            row = look.numbered(number)
        if row is None:
            continue  # forgotten meanwhile
        text, status = str(row.run_id), "" if live or row.status is None else row.status.value
        ended_ms = 0 if live else row.updated_ms
        final = not live and retention.final_only and row.status is RunStatus.COMPLETED
        if final:
            yield Root(row.manifest_id, text, 1, "manifest_id", live, status, ended_ms)
            yield Root(row.checkpoint_id, text, row.head, "final_snapshot_id", live, status, ended_ms)
            if not retention.keep_outputs:
                continue
        try:
            for item in read_run(backend, row.run_id, 1, None):
                if final and not _is_output(item.event):
                    continue
                for field, name in links(item.event):
                    yield Root(name, text, item.seq, field, live, status, ended_ms)
        except RunNotFound:
            continue


def _is_output(event: object) -> bool:
    return type(event) is DomainEvent and event.name == domain.ARTIFACT_WRITTEN


def _retained(look: Look, retention: Retention) -> list[int]:
    """Numbers of the ended runs that are kept, by age and as the newest of their operation, latest end first."""
    kept: list[int] = []
    ops: dict[str, int] = {}
    ended = (_ended_since(look, status, retention.oldest_ms(status.value)) for status in RunStatus)
    for ended_ms, number, status in heapq.merge(*ended, reverse=True):
        row = _listed(look, number, RunStatus(status))
        if row.updated_ms != ended_ms:
            detail = f"it is listed as ended at {ended_ms}, and ended at {row.updated_ms}"
            raise InvalidStream("bad_row", row.run_id, None, detail)
        place = ops[row.op_id] = ops.get(row.op_id, 0) + 1
        if retention.keeps(status, ended_ms, place):
            kept.append(number)
    return kept


def _check_tables(look: Look) -> None:
    """Raises: InvalidStream where the tables of runs contradict each other. A run that is in none of the lists would
    protect nothing, and nobody would miss it."""
    (live, ended), (rows, ids) = look.tallies(), look.registered()
    if rows != live + ended or rows != ids:
        detail = f"{rows} runs have rows and {ids} have ids, but {live} are listed as live and {ended} as ended"
        raise InvalidStream("wrong_count", None, None, detail)


def _listed(look: Look, number: int, status: RunStatus | None) -> RunRow:
    """The row of a run that a list names in this very look. Without one, or where its id leads elsewhere (its events
    are read by that), nobody can say what it needs."""
    row = look.numbered(number)
    if row is None:
        raise InvalidStream("bad_row", None, None, f"run number {number} is listed and has no row")
    if row.status is not status:
        listed, there = ("live" if one is None else one.value for one in (status, row.status))
        raise InvalidStream("bad_row", row.run_id, None, f"run number {number} is listed as {listed}, and is {there}")
    named = look.run(row.run_id)
    if named is None or named.number != number:
        raise InvalidStream("bad_row", row.run_id, None, astray(row, named))
    return row


def astray(row: RunRow, named: RunRow | None) -> str:
    """What to say of a run whose id leads to another one, or to none."""
    where = "nowhere" if named is None else f"to run number {named.number}"
    return f"it is run number {row.number}, but its id leads {where}"


def _ended_since(look: Look, status: RunStatus, oldest_ms: int | None) -> Iterator[tuple[int, int, str]]:
    """(ended ms, number, status) of runs that ended so, latest first, down to a time; None: none at all."""
    if oldest_ms is None:
        return
    for ended_ms, number in look.ended(status):
        if ended_ms < oldest_ms:
            return
        yield ended_ms, number, status.value


def ended_between(backend: JournalBackend, status: RunStatus, after_ms: int, until_ms: int) -> int:
    """How many runs ended so after one time and up to another: that many rows of an index are looked at."""
    with backend.look() as look:
        before = (until_ms + 1, 0)
        ends = look.ended(status, before=before) if until_ms >= 0 else iter(())
        return sum(1 for _ in itertools.takewhile(lambda end: end[0] > after_ms, ends))


def roots_after(backend: JournalBackend, position: int) -> tuple[int, list[Root]]:
    """The newest position, and what the events after `position` name."""
    found: list[Root] = []
    while True:
        page = feed_page(backend, position)
        if not page:
            return position, found
        for item in page:
            position = item.position
            found += [Root(name, str(item.run_id), item.seq, field) for field, name in links(item.event)]
