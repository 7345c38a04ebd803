"""Records: bytes and event are each other's only form, alone and within a run."""

from __future__ import annotations

import pickle
from typing import Any
from uuid import UUID

import cbor2
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.ids import ArtifactId
from journal import events, records
from journal.errors import EventTooLarge, InvalidEvent, InvalidStream, UnknownEventVersion
from journal.events import (
    DomainEvent,
    ErrorInfo,
    Event,
    RunCompleted,
    RunStarted,
    RunStatus,
    StateCompleted,
    StateEntered,
    StateError,
    StateFailed,
)
from journal.records import Batch, Context, decode_record, encode_record
from journal.seals import SEAL_BYTES, seal

RUN = UUID("00000000-0000-4000-8000-000000000001")
START = 1_700_000_000_000
A, B, C = ArtifactId.of(b"a"), ArtifactId.of(b"b"), ArtifactId.of(b"c")
STATE, OTHER = "machine.step.one", "machine.step.two"
FRESH = Context(checkpoint_seq=1, checkpoint_id=A)
INSIDE = Context(checkpoint_seq=1, checkpoint_id=A, open_seq=5, open_state=STATE)


def failed(state: str = STATE, told: str | None = None, details: Any = None) -> StateFailed:
    """A retryable failure of the state, its error told of another state where one is given."""
    info = ErrorInfo(code="x", category="rpc", retryable=True, message="m", details=details)
    return StateFailed(state_id=state, error=StateError(state_id=told, info=info), failure_snapshot_id=B)


RUN_EVENTS: list[Event] = [
    RunStarted(op_id="op", manifest_id=B, initial_snapshot_id=A),
    DomainEvent("note", {"x": [A, 1.5]}),
    StateEntered(state_id=STATE, attempt=0, base_snapshot_id=A),
    DomainEvent("note", {}, C),
    failed(),
    StateEntered(state_id=STATE, attempt=1, base_snapshot_id=A),
    StateCompleted(state_id=STATE, context_snapshot_id=C),
    StateEntered(state_id=OTHER, attempt=0, base_snapshot_id=C),
    failed(OTHER, details={"log": B}),
    RunCompleted(status=RunStatus.FAILED, final_snapshot_id=C),
]


def encoded_run() -> list[bytes]:
    """The records of a run that has every kind of event."""
    context, rows = Context(), []
    for seq, event in enumerate(RUN_EVENTS, 1):
        batch = Batch(bytes(range(16)), 2) if seq % 2 else None
        rows.append(encode_record(300, seq, START + seq, START, event, context, batch))
        context = context.after(seq, event)
    return rows


def in_order(rows: list[bytes]) -> list[records.Record]:
    """Decode a run from its first record on, by the running context."""
    context, found = Context(), []
    for row in rows:
        record = decode_record(row, started_ms=START, resolve=context)
        context = context.after(record.seq, record.event)
        found.append(record)
    return found


def test_a_run_decodes_in_order() -> None:
    """A reader that goes through the run needs nothing but its own context."""
    found = in_order(encoded_run())
    assert [record.event for record in found] == RUN_EVENTS
    assert [record.timestamp_ms for record in found] == [START + seq for seq in range(1, 11)]
    assert [record.batch for record in found[:2]] == [Batch(bytes(range(16)), 2), None]
    assert {record.run_number for record in found} == {300}


def test_any_record_decodes_with_at_most_one_more() -> None:
    """A reader of one record looks up the one event that `back_reference` names, and no other."""
    rows = encoded_run()
    for seq, row in enumerate(rows, 1):
        back = records.back_reference(row)
        asked: list[int] = []

        def resolve(at: int, asked: list[int] = asked) -> records.Definition:
            asked.append(at)
            return records.definition(rows[at - 1])

        record = decode_record(row, started_ms=START, resolve=resolve)
        assert record.event == RUN_EVENTS[seq - 1]
        assert record.back == back
        assert asked == ([] if back is None else [seq - back])
        assert records.peek(row) == (1, 300, seq)


def test_what_the_context_tells_is_not_stored() -> None:
    """The checkpoint and the open state cost one small integer each; a digest is 32 bytes."""
    entered = StateEntered(state_id=STATE, attempt=0, base_snapshot_id=A)
    bare = encode_record(1, 5, START, START, entered, Context())
    assert len(bare) - len(encode_record(1, 5, START, START, entered, FRESH)) == 33
    done = StateCompleted(state_id=STATE, context_snapshot_id=C)
    assert len(encode_record(1, 6, START + 9, START, done, INSIDE)) <= 43 + SEAL_BYTES


def test_what_the_context_does_not_tell_is_stored() -> None:
    """An event that stands where it should not, as in a damaged stream, still has its exact form."""
    strays: list[Event] = [
        StateEntered(state_id=STATE, attempt=0, base_snapshot_id=B),
        StateCompleted(state_id=OTHER, context_snapshot_id=C),
        failed(OTHER, told=STATE),
        failed(STATE, told=OTHER),
    ]
    for event in strays:
        data = encode_record(1, 6, START - 5, START, event, INSIDE)
        record = decode_record(data, started_ms=START, resolve=INSIDE)
        assert (record.event, record.timestamp_ms) == (event, START - 5)


def test_a_record_that_stores_what_the_context_tells_is_refused() -> None:
    """There is one form of an event at its place: the short one."""
    data = encode_record(1, 5, START, START, StateEntered(state_id=STATE, attempt=0, base_snapshot_id=A), Context())
    with pytest.raises(InvalidStream) as caught:
        decode_record(data, started_ms=START, resolve=FRESH, run_id=RUN)
    assert (caught.value.code, caught.value.fields["run_id"], caught.value.fields["seq"]) == ("bad_record", RUN, 5)


def forged(**places: Any) -> bytes:
    """The array of a good record of a StateCompleted with some of its places changed, in canonical CBOR."""
    row = {"version": 1, "run": 1, "seq": 6, "time": 0, "kind": 3, "fields": [1, C.digest], "batch": [None, 1]}
    return cbor2.dumps(list({**row, **places}.values()))


def test_the_forge_makes_a_good_record() -> None:
    """What the next test changes is good before it is changed."""
    record = decode_record(seal(forged()), started_ms=START, resolve=INSIDE)
    assert record.event == StateCompleted(state_id=STATE, context_snapshot_id=C)


GOOD = forged()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\xf6",
        bytearray(GOOD),
        GOOD + b"\x00",
        GOOD + GOOD,
        b"\x9f" + GOOD[1:] + b"\xff",
        b"\x98\x07" + GOOD[1:],
        GOOD[:1] + b"\x18\x01" + GOOD[2:],
        b"\x9b" + b"\x7f" + b"\xff" * 7 + GOOD[1:],
        b"\x87\x01\x01\x06\x00\x03" + b"\x9b\x7f" + b"\xff" * 7,
        b"\x87\x01\x01\x06\x00\x03" + b"\x5b\x7f" + b"\xff" * 7,
        b"\x86\x01\x01\x06\x00\x03" + b"\x81" * 1800 + b"\x01",
        b"\x86\x01\x01\x06\x00\x06\x83\x62\xc3\x28\x41\xa0\xf6",
        forged(run=-1),
        forged(run="1"),
        forged(seq=0),
        forged(seq=True),
        forged(seq=1 << 64),
        forged(time=None),
        forged(time=1 << 64),
        forged(time=-START - 1),
        forged(kind=0),
        forged(kind=7),
        forged(kind=3.0),
        forged(fields=[]),
        forged(fields={}),
        forged(fields=[0, C.digest]),
        forged(fields=[6, C.digest]),
        forged(fields=[-1, C.digest]),
        forged(fields=[True, C.digest]),
        forged(fields=[2, C.digest]),
        forged(fields=[5, C.digest]),
        forged(fields=[None, C.digest]),
        forged(fields=[1, C.digest[:-1]]),
        forged(fields=[1, C.digest, 0]),
        forged(fields=[1, cbor2.CBORTag(42, C.digest)]),
        forged(fields=[1, cbor2.CBORTag(2, b"\x01")]),
        forged(batch=None),
        forged(batch=[None]),
        forged(batch=[b"short", 1]),
        forged(batch=[None, 0]),
        forged(batch=[None, 1.0]),
        forged(kind=4, fields=[1, STATE, "x", 0, True, "m", None, None]),
        forged(kind=4, fields=[1, None, "x", 0, True, "m", b"\xf6", None]),
        forged(kind=4, fields=[1, None, "x", 7, True, "m", None, None]),
        forged(kind=6, fields=["n", b"\xa2\x61b\x01\x61a\x01", None]),
        forged(kind=6, fields=["n", b"\xa2\x61a\x01\x61a\x01", None]),
        forged(kind=6, fields=["n" * 1900, b"\xa0", None]),
    ],
)
def test_malformed_records_are_refused(data: Any) -> None:
    """Each way to bend the form raises the one declared error."""
    with pytest.raises(InvalidStream) as caught:
        decode_record(seal(data) if type(data) is bytes else data, started_ms=START, resolve=INSIDE)
    assert caught.value.rule == "bad_record"


PAYLOAD = forged(kind=6, fields=["n", b"\xa2\x61b\x01\x61a\x01", None])
DETAILS = forged(kind=4, fields=[1, None, "x", 0, True, "m", b"\xa1\x61a\x18\x01", None])


@pytest.mark.parametrize(
    ("data", "offset", "words"),
    [
        (GOOD + b"\x00", len(GOOD), "bytes after the end"),
        (GOOD[:-1], len(GOOD) - 3, "cut off: "),
        (GOOD[:-20], GOOD.index(b"\x58\x20"), "cut off: a string of 32 bytes"),
        (b"\x98\x07" + GOOD[1:], 0, "no array of 3 to 23 items"),
        (GOOD[:3], 3, "no unsigned integer"),
        (GOOD[:1] + b"\x18\x01" + GOOD[2:], 1, "longer integer than needed"),
        (GOOD[:4] + b"\x18\x03" + GOOD[5:], 4, "a longer form"),
        (b"\x9f" + GOOD[1:] + b"\xff", 0, "no array of 3 to 23 items"),
        (b"\x87\x01\x01\x06\x00\x03" + b"\x9b\x7f" + b"\xff" * 7, 6, "cut off"),
        (b"\x86\x01\x01\x06\x00\x06\x83\x62\xc3\x28\x41\xa0\xf6", 8, "no UTF-8"),
        (b"\x86\x01\x01\x06\x00\x03" + b"\x81" * 1800 + b"\x01", 8, "nested deeper"),
        (forged(fields=[1, cbor2.CBORTag(42, C.digest)]), 8, "a tag"),
        (PAYLOAD, PAYLOAD.index(b"\x61a\x01"), "payload: keys out of order"),
        (DETAILS, DETAILS.index(b"\x18\x01"), "details.a: a longer form"),
    ],
)
def test_where_a_record_stops_to_be_one(data: bytes, offset: int, words: str) -> None:
    """The offset of what is refused, in bytes from the record's start: as a fact, and in the message."""
    with pytest.raises(InvalidStream) as caught:
        decode_record(seal(data), started_ms=START, resolve=INSIDE)
    error = pickle.loads(pickle.dumps(caught.value))
    assert words in error.detail and "at byte " in error.detail
    assert error.offset == offset


def test_another_version_is_named() -> None:
    """A record of a later version says which, and its run number and seq can still be read."""
    data = seal(cbor2.dumps([9, 1, 6, {"all": "different"}]))
    with pytest.raises(UnknownEventVersion) as caught:
        decode_record(data, started_ms=START, resolve=INSIDE)
    assert caught.value.fields == {"version": 9, "run_id": None, "seq": 6}
    assert records.peek(data) == (9, 1, 6)


def test_a_record_has_a_longest_length() -> None:
    """1,900 bytes are the most; one more raises with both numbers, before anything is written."""
    spare = 1900 - len(encode_record(1, 2, START, START, DomainEvent("n", {"x": "y" * 500}), FRESH)) + 500
    longest = encode_record(1, 2, START, START, DomainEvent("n", {"x": "y" * spare}), FRESH)
    assert len(longest) == records.MAX_RECORD
    assert decode_record(longest, started_ms=START, resolve=FRESH).event.payload == {"x": "y" * spare}  # type: ignore[union-attr]
    with pytest.raises(EventTooLarge) as caught:
        encode_record(1, 2, START, START, DomainEvent("n", {"x": "y" * (spare + 1)}), FRESH)
    assert caught.value.fields == {"size_bytes": 1901, "limit_bytes": 1900}


@pytest.mark.parametrize("batch", [Batch(b"short", 1), Batch(None, 0), Batch(None, True), Batch("x" * 16, 1)])  # type: ignore[arg-type]
def test_a_bad_batch_cannot_be_written(batch: Batch) -> None:
    """Tokens are 16 bytes and batches have at least one event."""
    with pytest.raises(InvalidEvent):
        encode_record(1, 2, START, START, DomainEvent("n"), FRESH, batch)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(RUN_EVENTS),
    st.integers(0, (1 << 64) - 1),
    st.integers(6, (1 << 64) - 1),
    st.integers(0, 1 << 50),
    st.sampled_from([Context(), FRESH, INSIDE]),
    st.none() | st.builds(Batch, st.none() | st.binary(min_size=16, max_size=16), st.integers(1, 1024)),
)
def test_records_round_trip(event: Event, run: int, seq: int, time: int, context: Context, batch: Batch | None) -> None:
    """Whatever the numbers: decoding gives what was encoded."""
    data = encode_record(run, seq, time, START, event, context, batch)
    record = decode_record(data, started_ms=START, resolve=context)
    assert (record.run_number, record.seq, record.timestamp_ms) == (run, seq, time)
    assert (record.event, record.batch) == (event, batch)


def accepted(data: bytes) -> bytes | None:
    """The bytes that the decoded record encodes to, or None where it is refused as it should be."""
    try:
        record = decode_record(data, started_ms=START, resolve=INSIDE)
    except InvalidStream:
        return None
    place = (record.run_number, record.seq, record.timestamp_ms, START)
    return encode_record(*place, record.event, INSIDE, record.batch)


def test_no_prefix_is_a_record() -> None:
    """A record cut anywhere is refused."""
    for row in encoded_run():
        for length in range(len(row)):
            with pytest.raises(InvalidStream):
                decode_record(row[:length], started_ms=START, resolve=INSIDE)


def test_every_bit_flip_is_refused() -> None:
    """And one that was sealed all the same never decodes to something that would be stored in other bytes."""
    for row in encoded_run():
        for bit in range(len(row) * 8):
            flipped = bytearray(row)
            flipped[bit // 8] ^= 1 << bit % 8
            assert accepted(bytes(flipped)) is None
            sealed = seal(bytes(flipped[:-SEAL_BYTES]))
            assert accepted(sealed) in (None, sealed)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda tail: b"\x86\x01\x01\x06\x00" + tail))
def test_arbitrary_bytes_raise_only_the_declared_error(data: bytes) -> None:
    """Neither decoder nor peekers know another way out."""
    for one in (data, seal(data)):
        assert accepted(one) in (None, one)
        for look in (records.peek, records.back_reference, records.definition):
            try:
                look(one)
            except InvalidStream:
                continue


def test_a_reference_that_leads_nowhere_is_refused() -> None:
    """The event referred to must be of the kind that sets what is missing."""

    def missing(seq: int) -> records.Definition:
        raise LookupError(f"no event {seq}")

    for resolve in (missing, lambda seq: A):
        with pytest.raises(InvalidStream):
            decode_record(seal(forged()), started_ms=START, resolve=resolve)
    with pytest.raises(InvalidStream):
        records.definition(encoded_run()[1])


def test_the_chain_depends_on_every_record_and_their_order() -> None:
    """It is BLAKE3(previous ‖ record), begun from the run's id."""
    first, second = encoded_run()[:2]
    seed = records.chain_seed(RUN)
    assert records.chain(seed, first) == blake3(seed + first).digest()
    forward = records.chain(records.chain(seed, first), second)
    assert forward != records.chain(records.chain(seed, second), first)
    assert seed != records.chain_seed(UUID(int=2))


def test_compact_kinds_are_as_written_down() -> None:
    """The numbers on disk do not move."""
    kinds = [events.to_fields(event)[0] for event in RUN_EVENTS]
    assert kinds == [1, 6, 2, 6, 4, 2, 3, 2, 4, 5]
