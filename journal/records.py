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

from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn
from uuid import UUID

import cbor2
from blake3 import blake3

from casstore.ids import ArtifactId
from journal import events
from journal.errors import EventTooLarge, InvalidEvent, InvalidField, InvalidStream, UnknownEventVersion
from journal.events import Event, RunStarted, StateCompleted, StateEntered, StateFailed
from journal.ids import U32_MAX, U64_MAX, check_int, check_state_id
from journal.views import RunView

VERSION: Final = 1
MAX_RECORD: Final = 1900  # two records fit a 4 KiB page of the tree that keeps them
TOKEN_SIZE_BYTES: Final = 16
_MAX_DEPTH: Final = 3
_TIME_LIMIT: Final = 1 << 63
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
        if type(event) is StateEntered:
            return Context(self.checkpoint_seq, self.checkpoint_id, seq, event.state_id)
        if type(event) is StateCompleted:
            return Context(seq, event.context_snapshot_id)
        if type(event) is StateFailed:
            return Context(self.checkpoint_seq, self.checkpoint_id)
        if type(event) is RunStarted:
            return Context(seq, event.initial_snapshot_id)
        return self

    def resolve(self, seq: int) -> Definition:
        """What the event at this seq set. Raises: LookupError where it is none of the two."""
        if self.checkpoint_id is not None and seq == self.checkpoint_seq:
            return self.checkpoint_id
        if self.open_state is not None and seq == self.open_seq:
            return self.open_state
        raise LookupError(f"event {seq} set neither the checkpoint nor the open attempt")


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


def raw_fields(data: bytes, context: Context) -> tuple[int, int, list[Any], Context]:
    """(time as stored, kind, fields with distances resolved, the context after): a quick look for tools, of records
    that were checked when they were read or written. Raises: InvalidStream with `bad_record`."""
    try:
        row = cbor2.loads(data)
        seq, kind, fields = row[2], row[4], row[5]
        if kind == events.STATE_ENTERED:
            if type(fields[2]) is int:
                fields[2] = context.checkpoint_id.digest  # type: ignore[union-attr]
            context = Context(context.checkpoint_seq, context.checkpoint_id, seq, fields[0])
        elif kind in _CLOSING:
            if type(fields[0]) is int:
                fields[0] = context.open_state
            if kind == events.STATE_COMPLETED:
                context = Context(seq, ArtifactId(fields[1]))
            else:
                if fields[1] is None:
                    fields[1] = fields[0]
                context = Context(context.checkpoint_seq, context.checkpoint_id)
        elif kind == events.RUN_STARTED:
            context = Context(seq, ArtifactId(fields[2]))
        return row[3], kind, fields, context
    except Exception as error:
        raise InvalidStream("bad_record", None, None, f"not a record: {error}") from error


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
    check_int("run_number", run_number, 0, U64_MAX)
    check_int("seq", seq, 1, U64_MAX)
    check_int("timestamp_ms", ts_ms, 0, _TIME_LIMIT)
    kind, fields = events.to_fields(event)
    _shorten(kind, fields, seq, context)
    time = ts_ms if kind == events.RUN_STARTED else ts_ms - started_ms
    row: list[Any] = [VERSION, run_number, seq, time, kind, fields]
    if batch is not None:
        row.append([_check_token(batch.token), check_int("length", batch.length, 1, U32_MAX)])
    data = cbor2.dumps(row)
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
        row = _parse(data, run_id)
        kind, fields = row[4], row[5]
        if type(resolve) is Context:
            _check_shortened(kind, fields, resolve)
            back = _restore(kind, fields, row[2], resolve.resolve)
        else:
            back = _restore(kind, fields, row[2], resolve)  # type: ignore[arg-type]
        event = events.from_fields(kind, fields)
        time = row[3] if kind == events.RUN_STARTED else row[3] + started_ms
        if not 0 <= time <= _TIME_LIMIT:
            raise InvalidField("time", f"{time} is out of range")
        batch = _batch(row[6]) if len(row) == 7 else None
    except InvalidEvent as error:
        _bad(data, run_id, str(error), error)
    except LookupError as error:
        _bad(data, run_id, f"refers to an event that does not help: {error}", error)
    return Record(row[1], row[2], time, event, batch, back)


def peek(data: bytes) -> tuple[int, int, int]:
    """Version, run number and seq, of any version, without a look at the rest. Raises: InvalidStream."""
    try:
        return _peek(data)
    except InvalidEvent as error:
        raise InvalidStream("bad_record", None, None, str(error)) from error


def back_reference(data: bytes, *, run_id: UUID | None = None) -> int | None:
    """How many seqs back the event lies that this record is read with; None where it needs none.

    Raises: InvalidStream with `bad_record`; UnknownEventVersion.
    """
    try:
        row = _parse(data, run_id)
        place = _PLACES.get(row[4])
        if place is None or type(row[5][place]) is not int:
            return None
        return check_int("back", row[5][place], 1, row[2] - 1)
    except InvalidEvent as error:
        _bad(data, run_id, str(error), error)


def definition(data: bytes, *, run_id: UUID | None = None) -> Definition:
    """What a record defines for those that refer back to it: a checkpoint's id or the state of an attempt.

    Needs no other record. Raises: InvalidStream with `bad_record`; UnknownEventVersion.
    """
    try:
        row = _parse(data, run_id)
        kind, fields = row[4], row[5]
        if kind == events.STATE_ENTERED:
            return check_state_id(fields[0])
        if kind not in (events.RUN_STARTED, events.STATE_COMPLETED) or type(fields[-1]) is not bytes:
            raise InvalidField("kind", "sets neither a checkpoint nor an open attempt")
        return events.check_digest("checkpoint", fields[-1])
    except InvalidEvent as error:
        _bad(data, run_id, str(error), error)


def _check_shortened(kind: int, fields: list[Any], context: Context) -> None:
    """A record leaves out what it may: else the same event would have two forms. Raises: InvalidField."""
    place = _PLACES.get(kind)
    if place is None:
        return
    given = fields[place]
    if kind == events.STATE_ENTERED:
        known: object = None if context.checkpoint_id is None else context.checkpoint_id.digest
    else:
        known = context.open_state
    if known is not None and given == known:
        raise InvalidField("record", "it holds in full what it may leave out")


# Where the field stands that may be a distance, and what it then stands for.
_PLACES: Final = {events.STATE_ENTERED: 2, events.STATE_COMPLETED: 0, events.STATE_FAILED: 0}


def _restore(kind: int, fields: list[Any], seq: int, resolve: Resolve) -> int | None:
    back = None
    place = _PLACES.get(kind)
    if place is not None and type(fields[place]) is int:
        back = check_int("back", fields[place], 1, seq - 1)
        found = resolve(seq - back)
        if kind == events.STATE_ENTERED and type(found) is ArtifactId:
            fields[place] = found.digest
        elif kind != events.STATE_ENTERED and type(found) is str:
            fields[place] = found
        else:
            raise LookupError(f"event {seq - back} is of another kind")
    if kind == events.STATE_FAILED:
        if fields[1] == fields[0]:
            raise InvalidField("error.state_id", "left out where it is the event's")
        if fields[1] is None:
            fields[1] = fields[0]
    return back


def _peek(data: bytes) -> tuple[int, int, int]:
    try:
        if data[0] >> 5 != 4 or not 3 <= data[0] & 31 <= 23:
            raise InvalidField("record", "no array of 3 to 23 items")
        version, place = _uint(data, 1)
        run_number, place = _uint(data, place)
        return version, run_number, _uint(data, place)[0]
    except IndexError as error:
        raise InvalidField("record", "cut off") from error


def _batch(item: object) -> Batch:
    if type(item) is not list or len(item) != 2:
        raise InvalidField("batch", "two items are wanted")
    return Batch(_check_token(item[0]), check_int("length", item[1], 1, U32_MAX))


def _parse(data: bytes, run_id: UUID | None) -> list[Any]:
    """The raw array, with its places checked for their kind. Raises: InvalidEvent leaves, UnknownEventVersion."""
    if type(data) is not bytes:
        raise InvalidField("record", f"bytes are wanted, not {type(data).__name__}")
    if len(data) > MAX_RECORD:
        raise InvalidField("record", f"{len(data)} bytes; at most {MAX_RECORD} are allowed")
    try:
        row = cbor2.loads(data, tag_hook=_refuse_tag, semantic_decoders=_NO_TAGS, allow_indefinite=False,
                          max_depth=_MAX_DEPTH)  # fmt: skip
        whole = type(row) is list and type(row[0]) is int and row[0] == VERSION and cbor2.dumps(row) == data
    except Exception as error:  # the decoder's own errors are many; each means the same here
        _check_version(data, run_id)
        raise InvalidField("record", f"not CBOR as records have it: {error}") from error
    if not whole:
        _check_version(data, run_id)
        raise InvalidField("record", "not the shortest form, or bytes after the end")
    if len(row) not in (6, 7):
        raise InvalidField("record", "6 or 7 items are wanted")
    _, number, seq, time, kind, fields = row[:6]
    if type(number) is not int or type(seq) is not int or type(time) is not int or type(kind) is not int:
        raise InvalidField("record", "a number is wanted in each of the first five places")
    if not (0 <= number <= U64_MAX and 1 <= seq <= U64_MAX and -_TIME_LIMIT <= time <= _TIME_LIMIT):
        raise InvalidField("record", "a number is out of range")
    if type(fields) is not list or len(fields) != events.FIELD_COUNTS.get(kind, -1):
        raise InvalidField("fields", f"kind {kind} has {events.FIELD_COUNTS.get(kind, 'no meaning')}")
    return row  # type: ignore[no-any-return]


def _check_version(data: bytes, run_id: UUID | None) -> None:
    """What cannot be read may be of a later version. Raises: UnknownEventVersion, InvalidField."""
    version, _, seq = _peek(data)
    if version != VERSION:
        raise UnknownEventVersion(version, run_id, seq)


def _bad(data: object, run_id: UUID | None, detail: str, cause: Exception) -> NoReturn:
    seq = None
    if type(data) is bytes:
        try:
            seq = _peek(data)[2]
        except InvalidEvent:
            seq = None
    raise InvalidStream("bad_record", run_id, seq, detail) from cause


def _uint(data: bytes, place: int) -> tuple[int, int]:
    """A CBOR unsigned integer in its shortest form, and where it ends."""
    head = data[place]
    if head < 24:
        return head, place + 1
    if not 24 <= head <= 27:
        raise InvalidField("record", f"no unsigned integer at byte {place}")
    size = 1 << (head - 24)
    end = place + 1 + size
    if end > len(data):
        raise IndexError
    value = int.from_bytes(data[place + 1 : end], "big")
    if value < (24 if size == 1 else 1 << (4 * size)):
        raise InvalidField("record", f"a longer integer than needed at byte {place}")
    return value, end


def _refuse_tag(*_: Any, **__: Any) -> Any:
    raise ValueError("a tag")


_NO_TAGS: Final = dict.fromkeys(
    (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799), _refuse_tag
)

# -- the chain ----------------------------------------------------------------------------------------


def record_digest(data: bytes) -> bytes:
    """BLAKE3 of the record, 32 bytes."""
    return blake3(data).digest()


def chain_seed(run_id: UUID) -> bytes:
    """The head of a run's chain before its first record, 32 bytes."""
    return blake3(_CHAIN_SEED + run_id.bytes).digest()


def chain(previous: bytes, data: bytes) -> bytes:
    """The chain's head after this record: BLAKE3(previous ‖ BLAKE3(record)), 32 bytes."""
    return chain_digest(previous, record_digest(data))


def chain_digest(previous: bytes, digest: bytes) -> bytes:
    """As `chain`, for a record that was hashed beforehand: one hash of 64 bytes."""
    return blake3(previous + digest).digest()
