"""Whether an append may be made, and what it then writes. Pure but for the look that it is given.

The checks stand in the order of the table of appends: an append that was made before is found first, then the
claim, then the position, then the rules of the stream. Whether named artifacts are there is asked under the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final
from uuid import UUID

from casstore.ids import ArtifactId
from journal import domain, records
from journal.backend import ClaimRow, Look, RunRow, RunWrite, StateRow, Tail
from journal.envelopes import check_append
from journal.errors import Claimed, Conflict, Fenced, InvalidStream
from journal.events import DomainEvent, Event, RunStarted, StateFailed
from journal.records import Batch, context_of
from journal.storable import RETRY_AT
from journal.views import LastFailure, OpenAttempt, RunView, StateEntries


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """Take the claim in the append: with `steal` whoever holds it."""

    steal: bool = False
    owner: str | None = None
    ttl_ms: int | None = None


@final
@dataclass(slots=True, kw_only=True)
class RunAppend:
    """What one append asks for one run. `times_ms` are those of imported events, else None."""

    run_id: UUID
    expected_seq: int
    events: tuple[Event, ...]
    times_ms: tuple[int, ...] | None = None
    epoch: int | None = None
    claim: ClaimRequest | None = None


class Terms(NamedTuple):
    """What an admission knows besides the look: the time, and who asks."""

    now_ms: int
    owner: str
    ttl_ms: int
    is_gone: Callable[[str], bool]


class AlreadyThere(NamedTuple):
    """Nothing is to be written: `existing` where the append was made before, else the batch was empty."""

    row: RunRow | None
    first_seq: int
    last_seq: int
    position: int
    existing: bool


def admit(request: RunAppend, token: bytes | None, look: Look, terms: Terms, *, number: int) -> RunWrite | AlreadyThere:
    """`number` is the one that a new run gets.

    Raises: Claimed, Fenced, Conflict, InvalidEvent leaves, EventTooLarge, InvalidStream (damage).
    """
    row = look.run(request.run_id)
    head = 0 if row is None else row.head
    if token is not None and request.events and row is not None and head > request.expected_seq:
        place = _made_before(request, token, look, row)
        if place is not None:
            last = request.expected_seq + len(request.events)
            return AlreadyThere(row, request.expected_seq + 1, last, place + len(request.events) - 1, True)
    held = None if row is None else look.claim(row.number)
    epoch, claim = _claim(request, look, row, held, terms)
    if request.expected_seq != head:
        raise Conflict(request.run_id, request.expected_seq, head)
    if not request.events and (request.claim is None or row is None):
        return AlreadyThere(row, head + 1, head, look.position(), False)
    write = _write(request, token, look, row, terms, epoch, claim, number)
    write.held = held
    return write


def _made_before(request: RunAppend, token: bytes, look: Look, row: RunRow) -> int | None:
    """The position of the first event of the batch, if this very append is what stands there."""
    first, last = request.expected_seq + 1, request.expected_seq + len(request.events)
    data = look.record(row.number, first)
    if last > row.head or data is None or token not in data:
        return None
    place = 0
    for event, (seq, position, record) in zip(request.events, look.records(row.number, first, last), strict=True):
        found = decode(look, row, record)
        if seq == first:
            if found.batch is None or found.batch != Batch(token, len(request.events)):
                return None
            place = position
        if found.event != event:
            return None
    return place


def decode(look: Look, row: RunRow, data: bytes) -> records.Record:
    """The event of a record of this run, wherever it stands. Raises: InvalidStream."""
    return records.decode_record(data, started_ms=row.started_ms, resolve=definitions(look, row), run_id=row.run_id)


def definitions(look: Look, row: RunRow) -> records.Resolve:
    """What events of this run define for later ones, looked up. Raises, when asked: LookupError, InvalidStream."""

    def resolve(seq: int) -> records.Definition:
        found = look.record(row.number, seq)
        if found is None:
            raise LookupError(f"event {seq} is missing")
        return records.definition(found, run_id=row.run_id)

    return resolve


def is_free(claim: ClaimRow | None, terms: Terms) -> bool:
    """Whether nobody holds the run: expired claims and those of processes that ended hold nothing."""
    return claim is None or claim.until_ms <= terms.now_ms or terms.is_gone(claim.owner)


def _claim(
    request: RunAppend, look: Look, row: RunRow | None, held: ClaimRow | None, terms: Terms
) -> tuple[int, ClaimRow | None]:
    """The epoch and the claim after the append. Raises: Claimed, Fenced."""
    asked, epoch = request.claim, look.first_epoch() if row is None else row.epoch
    if request.epoch is not None and request.epoch != epoch:
        raise Fenced(request.run_id, request.epoch, epoch)
    if request.epoch is None and not (asked is not None and asked.steal) and held and not is_free(held, terms):
        raise Claimed(request.run_id, held.owner, held.until_ms)
    if asked is not None:
        ttl_ms = terms.ttl_ms if asked.ttl_ms is None else asked.ttl_ms
        return epoch + 1, ClaimRow(asked.owner or terms.owner, terms.now_ms + ttl_ms, ttl_ms)
    if request.epoch is not None and held is not None:
        return epoch, held._replace(until_ms=max(held.until_ms, terms.now_ms + held.ttl_ms))
    return epoch, None


def _write(
    request: RunAppend, token: bytes | None, look: Look, row: RunRow | None, terms: Terms, epoch: int,
    claim: ClaimRow | None, number: int,
) -> RunWrite:  # fmt: skip
    view = view_of(request.run_id, row, look)
    context, seq = context_of(view), view.head
    check_append(view, request.events)
    started_ms = 0 if row is None else row.started_ms
    chain = records.chain_seed(request.run_id) if row is None else row.chain
    ts_ms = terms.now_ms
    if row is not None:
        number = row.number
        ts_ms = terms.now_ms if request.events else row.updated_ms
    encoded: list[bytes] = []
    for place, event in enumerate(request.events):
        seq += 1
        ts_ms = terms.now_ms if request.times_ms is None else request.times_ms[place]
        if type(event) is RunStarted:
            started_ms = ts_ms
        batch = Batch(token, len(request.events)) if place == 0 else None
        data = records.encode_record(number, seq, ts_ms, started_ms, event, context, batch)
        chain = records.chain(chain, data)
        context = context.after(seq, event)
        encoded.append(data)
    after = row_of(view, row, number=number, epoch=epoch, started_ms=started_ms, updated_ms=ts_ms, chain=chain,
                 events=request.events)  # fmt: skip
    write = RunWrite(before=row, after=after, records=encoded, states=_states(view, row, look),
                     facts={key: fact.seq for key, fact in view.new_facts.items()})  # fmt: skip
    if after.status is None:
        write.claim = claim
    else:
        write.drop_claim = True
    return write


def view_of(run_id: UUID, row: RunRow | None, look: Look) -> RunView:
    """The run as the rules see it: from its row, asking the look for states and facts as they are needed."""
    if row is None:
        return RunView(run_id=run_id)

    known: dict[str, StateEntries] = {}

    def stored_state(state_id: str) -> StateEntries:
        entries = known.get(state_id)
        if entries is None:
            found = look.state(row.number, state_id)
            entries = StateEntries(0, 0) if found is None else StateEntries(found.attempts, found.completed_seq)
            known[state_id] = entries
        return entries

    def stored_fact(key: str) -> ArtifactId | None:
        seq = look.fact(row.number, key)
        return None if seq is None else fact_of(look, row, seq)[1]

    view = RunView(
        run_id=run_id, head=row.head, op_id=row.op_id, manifest_id=row.manifest_id, status=row.status,
        checkpoint_id=row.checkpoint_id, checkpoint_seq=row.checkpoint_seq, n_completed=row.n_completed,
        policy_seq=row.policy_seq, stored_state=stored_state, stored_fact=stored_fact,
    )  # fmt: skip
    if row.has_final:
        view.final_snapshot_id = row.checkpoint_id
    if row.tail is Tail.OPEN:
        view.open_attempt = OpenAttempt(row.tail_state, row.tail_attempt, row.checkpoint_id, row.tail_seq)
    elif row.tail is not Tail.CLEAR:
        retryable = row.tail is Tail.FAILED_RETRYABLE
        view.last_failure = LastFailure(row.tail_state, row.tail_attempt, retryable, row.tail_seq)
    return view


def fact_of(look: Look, row: RunRow, seq: int) -> tuple[str, ArtifactId]:
    """Key and payload of the fact recorded at a seq. Raises: InvalidStream."""
    data = look.record(row.number, seq)
    event = None if data is None else decode(look, row, data).event
    if type(event) is not DomainEvent or event.name != domain.FACT_RECORDED:
        raise InvalidStream("bad_row", row.run_id, seq, "a fact is indexed here, but another event stands here")
    return event.payload["key"], event.payload["payload_id"]


def row_of(
    view: RunView, before: RunRow | None, *, number: int, epoch: int, started_ms: int, updated_ms: int, chain: bytes,
    events: Sequence[Event],
) -> RunRow:  # fmt: skip
    """The row after an append of these events, which the view has taken."""
    assert view.op_id is not None and view.manifest_id is not None and view.checkpoint_id is not None
    tail, tail_seq, tail_attempt, tail_state = Tail.CLEAR, 0, 0, ""
    if view.open_attempt is not None:
        tail, tail_seq = Tail.OPEN, view.open_attempt.seq
        tail_attempt, tail_state = view.open_attempt.attempt, view.open_attempt.state_id
    elif view.last_failure is not None:
        tail = Tail.FAILED_RETRYABLE if view.last_failure.retryable else Tail.FAILED_FINAL
        tail_seq, tail_attempt = view.last_failure.seq, view.last_failure.attempt
        tail_state = view.last_failure.state_id
    retry_at_ms = 0 if before is None or tail is not Tail.FAILED_RETRYABLE else before.retry_at_ms
    if view.last_error is not None:
        retry_at_ms = _retry_at_ms(events)
    return RunRow(
        number=number, run_id=view.run_id, op_id=view.op_id, manifest_id=view.manifest_id, epoch=epoch,
        head=view.head, status=view.status, has_final=view.final_snapshot_id is not None, started_ms=started_ms,
        updated_ms=max(updated_ms, started_ms), checkpoint_id=view.checkpoint_id, checkpoint_seq=view.checkpoint_seq,
        tail=tail, tail_seq=tail_seq, tail_attempt=tail_attempt, tail_state=tail_state,
        n_completed=view.n_completed, policy_seq=view.policy_seq, retry_at_ms=retry_at_ms, chain=chain,
    )  # fmt: skip


def _retry_at_ms(events: Sequence[Event]) -> int:
    """When the last failure of a batch may be tried again, as its details say; 0 where they do not."""
    for event in reversed(events):
        if type(event) is StateFailed:
            details = event.error.info.details
            value = details.get(RETRY_AT) if type(details) is dict else None
            return value if type(value) is int and 0 <= value < 1 << 63 else 0
    return 0


def _states(view: RunView, row: RunRow | None, look: Look) -> dict[str, StateRow]:
    changed: dict[str, StateRow] = {}
    place = view.n_completed - len(view.new_completed)
    for state_id, seq in view.new_completed.items():
        place += 1
        changed[state_id] = StateRow(view.attempts(state_id), seq, place)
    for state_id, attempts in view.new_attempts.items():
        if state_id not in changed:
            changed[state_id] = StateRow(attempts, 0, 0)
    return changed
