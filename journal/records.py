"""Records: the bytes that hold one event. Pure; where they are kept is somebody else's.

A record is one CBOR array of definite length, integers and lengths in their shortest form:

    [version, run number, seq, time, kind, [field, …]]            a later event of its batch
    [version, run number, seq, time, kind, [field, …], [token, length]]      the first event of its batch

`version`, `run number` and `seq` stand first in every version, so that a reader can name what it cannot read. `time`
is unix milliseconds in RunStarted, else milliseconds since the run's start (negative where the clock was set back).
`kind` and the fields are those of `journal.events.to_fields`, with three savings:

- the base of a StateEntered that is the checkpoint is the distance in seqs to the event that set it,
- the state of a StateCompleted or StateFailed that is the open attempt's is the distance to its StateEntered,
- the error's state is null where it is the event's.

`token` is 16 bytes or null, `length` the number of events in the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from uuid import UUID

from blake3 import blake3

from casstore.ids import ArtifactId
from journal import events, record_form
from journal.errors import EventTooLarge, InvalidEvent, InvalidField, InvalidStream
from journal.events import Event, RunStarted, StateCompleted, StateEntered, StateFailed
from journal.ids import TIME_LIMIT, U32_MAX, U64_MAX, check_int, check_state_id
from journal.record_form import MAX_RECORD as MAX_RECORD
from journal.record_form import VERSION, form, parse, refuse
from journal.views import RunView

TOKEN_SIZE_BYTES: Final = 16
_CHAIN_SEED: Final = b"journal chain 1"

Definition = ArtifactId | str
Resolve = Callable[[int], Definition]


class Batch(NamedTuple):
    """The append that a record is the first of: its token (16 bytes, or None) and its number of events."""

    token: bytes | None
    length: int


class Context(NamedTuple):
    """What a record may leave out: the checkpoint and the open attempt before its event, each with its seq.

    The seqs are 0 where there is no such thing. `resolve` answers for a reader that goes through a run in order.
    """

    checkpoint_seq: int = 0
    checkpoint_id: ArtifactId | None = None
    open_seq: int = 0
    open_state: str | None = None

    def after(self, seq: int, event: Event) -> Context:
        """The context of the next event."""
        kind = type(event)
        if kind is StateEntered:
            return _context((self.checkpoint_seq, self.checkpoint_id, seq, event.state_id))  # type: ignore[union-attr]
        if kind is StateCompleted:
            return _context((seq, event.context_snapshot_id, 0, None))  # type: ignore[union-attr]
        if kind is StateFailed:
            return _context((self.checkpoint_seq, self.checkpoint_id, 0, None))
        if kind is RunStarted:
            return _context((seq, event.initial_snapshot_id, 0, None))  # type: ignore[union-attr]
        return self

    def resolve(self, seq: int) -> Definition:
        """What the event at this seq set. Raises: LookupError where it is none of the two."""
        if self.checkpoint_id is not None and seq == self.checkpoint_seq:
            return self.checkpoint_id
        if self.open_state is not None and seq == self.open_seq:
            return self.open_state
        raise LookupError(f"event {seq} set neither the checkpoint nor the open attempt")


# As the constructor, without the call of it: appends and scans make one for each event of a state.
_context: Final[Callable[[tuple[Any, ...]], Context]] = functools.partial(tuple.__new__, Context)


def context_of(view: RunView) -> Context:
    """The context of the event that follows the view's head."""
    attempt = view.open_attempt
    if attempt is None:
        return Context(view.checkpoint_seq, view.checkpoint_id)
    return Context(view.checkpoint_seq, view.checkpoint_id, attempt.seq, attempt.state_id)


class Record(NamedTuple):
    """A decoded record. `back` is the distance to the event that it was read with, or None."""

    run_number: int
    seq: int
    timestamp_ms: int
    event: Event
    batch: Batch | None
    back: int | None


# -- encoding -----------------------------------------------------------------------------------------


def encode_record(
    run_number: int,
    seq: int,
    ts_ms: int,
    started_ms: int,
    event: Event,
    context: Context,
    batch: Batch | None = None,
) -> bytes:
    """The record of an event; `context` is what stood before it, `batch` only for the first of an append.

    Times are unix milliseconds. Raises: EventTooLarge, InvalidEvent leaves.
    """
    if not (type(run_number) is type(seq) is type(ts_ms) is int and run_number >= 0 < seq and 0 <= ts_ms <= TIME_LIMIT):
        check_int("run_number", run_number, 0, U64_MAX)
        check_int("seq", seq, 1, U64_MAX)
        check_int("timestamp_ms", ts_ms, 0, TIME_LIMIT)
    kind, fields = events.to_fields(event)
    if kind in _PLACES:
        _shorten(kind, fields, seq, context)
    time = ts_ms if kind == events.RUN_STARTED else ts_ms - started_ms
    row: list[Any] = [VERSION, run_number, seq, time, kind, fields]
    if batch is not None:
        row.append([_check_token(batch.token), check_int("length", batch.length, 1, U32_MAX)])
    data = form(row)
    if len(data) > MAX_RECORD:
        raise EventTooLarge(len(data), MAX_RECORD)
    return data


def _shorten(kind: int, fields: list[Any], seq: int, context: Context) -> None:
    if kind == events.STATE_ENTERED:
        if context.checkpoint_id is not None and fields[2] == context.checkpoint_id.digest:
            fields[2] = seq - context.checkpoint_seq
    elif kind in _CLOSING:
        if kind == events.STATE_FAILED and fields[1] == fields[0]:
            fields[1] = None
        if context.open_state is not None and fields[0] == context.open_state:
            fields[0] = seq - context.open_seq


def _check_token(token: object) -> bytes | None:
    if token is None:
        return None
    if type(token) is not bytes or len(token) != TOKEN_SIZE_BYTES:
        raise InvalidField("token", f"{TOKEN_SIZE_BYTES} bytes are wanted")
    return token


_CLOSING: Final = (events.STATE_COMPLETED, events.STATE_FAILED)

# -- decoding -----------------------------------------------------------------------------------------


def decode_record(data: bytes, *, started_ms: int, resolve: Context | Resolve, run_id: UUID | None = None) -> Record:
    """The event of a record; decoding, then encoding gives the same bytes.

    `resolve` says what the event at an earlier seq of the run set (see `definition`); a Context is the one before
    this record, and then it is also checked that the record left out what it may. `run_id` is only for errors.
    Raises: InvalidStream with `bad_record`; UnknownEventVersion.
    """
    try:
        row = parse(data, run_id)
        event, back = event_of(row, resolve)
        return Record(row[1], row[2], time_of(row, started_ms), event, batch_of(row), back)
    except InvalidEvent as error:
        refuse(data, run_id, str(error), error)
    except LookupError as error:
        refuse(data, run_id, f"refers to an event that does not help: {error}", error)


def event_of(row: list[Any], resolve: Context | Resolve) -> tuple[Event, int | None]:
    """The event of a parsed row, whose fields are used up, and the distance to the event that it was read with.

    Raises: InvalidEvent leaves; LookupError where the other event does not help.
    """
    kind, fields = row[4], row[5]
    if kind not in _PLACES:
        return events.from_fields(kind, fields), None
    place = _PLACES[kind]
    back, given = None, fields[place]
    if type(given) is int:
        back = check_int("back", given, 1, row[2] - 1)
        found = resolve.resolve(row[2] - back) if type(resolve) is Context else resolve(row[2] - back)  # type: ignore[operator]
        if kind == events.STATE_ENTERED:
            if type(found) is not ArtifactId:
                raise LookupError(f"event {row[2] - back} is of another kind")
            return events.entered(fields[0], fields[1], found), back
        if type(found) is not str:
            raise LookupError(f"event {row[2] - back} is of another kind")
        fields[place] = found
    elif type(resolve) is Context:
        _check_shortened(kind, given, resolve)
    if kind == events.STATE_FAILED:
        if fields[1] == fields[0]:
            raise InvalidField("error.state_id", "left out where it is the event's")
        if fields[1] is None:
            fields[1] = fields[0]
    return events.from_fields(kind, fields), back


def _check_shortened(kind: int, given: object, context: Context) -> None:
    """A record leaves out what it may: else the same event would have two forms. Raises: InvalidField."""
    if kind == events.STATE_ENTERED:
        known: object = None if context.checkpoint_id is None else context.checkpoint_id.digest
    else:
        known = context.open_state
    if known is not None and given == known:
        raise InvalidField("record", "it holds in full what it may leave out")


# Where the field stands that may be a distance, and what it then stands for.
_PLACES: Final = {events.STATE_ENTERED: 2, events.STATE_COMPLETED: 0, events.STATE_FAILED: 0}


def time_of(row: list[Any], started_ms: int) -> int:
    """Unix milliseconds. Raises: InvalidField."""
    time: int = row[3] if row[4] == events.RUN_STARTED else row[3] + started_ms
    if not 0 <= time <= TIME_LIMIT:
        raise InvalidField("time", f"{time} is out of range")
    return time


def batch_of(row: list[Any]) -> Batch | None:
    """The batch that the record is the first of. Raises: InvalidField."""
    return Batch(*check_batch(row[6])) if len(row) == 7 else None


def peek(data: bytes) -> tuple[int, int, int]:
    """Version, run number and seq, of any version, without a look at the rest. Raises: InvalidStream."""
    try:
        return record_form.peek(data)
    except InvalidEvent as error:
        raise InvalidStream("bad_record", None, None, str(error)) from error


def back_reference(data: bytes, *, run_id: UUID | None = None) -> int | None:
    """How many seqs back the event lies that this record is read with; None where it needs none.

    Raises: InvalidStream with `bad_record`; UnknownEventVersion.
    """
    try:
        row = parse(data, run_id)
        place = _PLACES.get(row[4])
        if place is None or type(row[5][place]) is not int:
            return None
        return check_int("back", row[5][place], 1, row[2] - 1)
    except InvalidEvent as error:
        refuse(data, run_id, str(error), error)


def definition(data: bytes, *, run_id: UUID | None = None) -> Definition:
    """What a record defines for those that refer back to it: a checkpoint's id or the state of an attempt.

    Needs no other record. Raises: InvalidStream with `bad_record`; UnknownEventVersion.
    """
    try:
        row = parse(data, run_id)
        kind, fields = row[4], row[5]
        if kind == events.STATE_ENTERED:
            return check_state_id(fields[0])
        if kind not in (events.RUN_STARTED, events.STATE_COMPLETED) or type(fields[-1]) is not bytes:
            raise InvalidField("kind", "sets neither a checkpoint nor an open attempt")
        return events.check_digest("checkpoint", fields[-1])
    except InvalidEvent as error:
        refuse(data, run_id, str(error), error)


def check_batch(item: object) -> Any:
    """The two items of a batch. Raises: InvalidField."""
    if type(item) is not list or len(item) != 2:
        raise InvalidField("batch", "two items are wanted")
    if item[0] is not None:
        _check_token(item[0])
    check_int("length", item[1], 1, U32_MAX)
    return item


# -- the chain ----------------------------------------------------------------------------------------


def chain_seed(run_id: UUID) -> bytes:
    """The head of a run's chain before its first record, 32 bytes."""
    return blake3(_CHAIN_SEED + run_id.bytes).digest()


def chain(previous: bytes, data: bytes) -> bytes:
    """The chain's head after this record: BLAKE3(previous ‖ record), 32 bytes."""
    return blake3(previous + data).digest()
