"""The two codecs of records agree on what a record is, and whoever reads from the middle sees what others see."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.errors import InvalidValue
from casstore.ids import ArtifactId
from casstore.values import decode, encode_reference
from journal import events, record_form, records
from journal.decoding import RunDecoder
from journal.errors import InvalidEvent, InvalidField, InvalidStream, MalformedField, UnknownEventVersion
from journal.events import DomainEvent, Event, to_fields
from journal.records import Batch, Context, definition, encode_record
from tests.unit.test_records import OTHER, RUN_EVENTS, STATE, A, C, encoded_run, failed

RUN = UUID("00000000-0000-4000-8000-000000000001")
STARTED = 1_700_000_000_000
LINK = b"\xd8\x2a\x58\x25\x00\x01\x55\x1e\x20"  # before the digest
# 31 bytes that are a whole CID (its digest has 27): as a link one byte more, as bytes one too few for an id.
SHORT_CID = b"\x01\x55\x00\x1c" + b"q" * 28


def told(data: bytes) -> Any:
    """What is made of these bytes: the row as text, since True is 1 otherwise; or the class of the refusal, whether it
    has an offset or not: what is nested too deep one refuses by its form, the other by the place where it stands."""
    try:
        return repr(record_form.parse(data, None))
    except (InvalidEvent, InvalidStream) as error:
        return InvalidField if isinstance(error, MalformedField) else type(error)


def edited(data: bytes, edits: list[tuple[int, int, int]]) -> bytes:
    """Bits flipped, bytes removed and put in."""
    changed = bytearray(data)
    for how, place, byte in edits:
        at = place % (len(changed) + 1)
        if how == 0 and at < len(changed):
            changed[at] ^= 1 << byte % 8
        elif how == 1:
            del changed[at : at + 1]
        else:
            changed.insert(at, byte)
    return bytes(changed)


EDITS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2000), st.sampled_from([0x18, 0xD8, 0x2A, 0x58, 0x81, 0xA0, 0xF6, 0])),
    max_size=3,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(encoded_run()), EDITS)
def test_the_fast_parser_takes_what_the_careful_one_takes(data: bytes, edits: list[tuple[int, int, int]]) -> None:
    """Whatever is done to a record: with the fast codec or without it, it is the same row, or refused the same way."""
    for one in (edited(data, edits), record_form.seal(edited(data[: -record_form.SEAL_BYTES], edits))):
        found = told(one)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(record_form, "_HEADS", ())  # so that the fast codec is never asked
            assert found == told(one)


@pytest.mark.parametrize(
    "fields",
    [
        b"\x83\x61n" + LINK + b"q" * 32 + b"\xf6",
        b"\x83\x61n\x41\xa0" + LINK + b"q" * 32,
        b"\x83\x61n\x58\x29" + LINK[:2] + b"q" * 39 + LINK + b"q" * 32,
        b"\x83\x61n\x41\xa0\xd8\x2a\x58\x21\x00" + SHORT_CID,
        b"\x83\x61n\xd8\x2a\x41\xa0\xf6",
    ],
)
def test_a_link_is_no_bytes(fields: bytes) -> None:
    """To the fast codec a link is the bytes of a CID; in a record it is refused, wherever it stands."""
    with pytest.raises(InvalidEvent):
        record_form.parse(record_form.seal(b"\x86\x01\x01\x02\x00\x06" + fields))


@pytest.mark.parametrize("digest", [SHORT_CID, LINK + b"q" * 23, b"\xd8\x2a" * 16])
def test_an_id_that_looks_like_a_link_is_an_id(digest: bytes) -> None:
    """32 bytes are 32 bytes, in what is written and in what is read."""
    event = DomainEvent("n", {"x": [A, digest, LINK]}, ArtifactId(digest))
    data = encode_record(1, 2, STARTED, STARTED, event, Context(1, A))
    assert data == record_form.seal(cbor2.dumps([1, 1, 2, 0, 6, list(to_fields(event)[1])]))
    assert records.decode_record(data, started_ms=STARTED, resolve=Context(1, A)).event == event


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers(-99, 1 << 40) | st.binary(max_size=9) | st.just(A) | st.just(SHORT_CID),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    ),
    EDITS,
)
def test_a_value_that_is_read_is_the_one_form_of_itself(value: Any, edits: list[tuple[int, int, int]]) -> None:
    """However its bytes were edited: what is accepted is what the reference would write."""
    data = edited(encode_reference(value)[0], edits)
    try:
        found = decode(data)
    except InvalidValue:
        return
    assert encode_reference(found)[0] == data


# -- runs from anywhere ---------------------------------------------------------------------------------

RETRIED: list[Event] = [
    *RUN_EVENTS[:5],
    events.StateEntered(state_id=STATE, attempt=1, base_snapshot_id=A),
    failed(),
    events.StateEntered(state_id=STATE, attempt=2, base_snapshot_id=A),
    events.StateCompleted(state_id=STATE, context_snapshot_id=C),
    events.fact_recorded("k", A, {"raw": SHORT_CID}),
    events.StateEntered(state_id=OTHER, attempt=0, base_snapshot_id=C),
    failed(OTHER, told=STATE),
]


def stored() -> list[bytes]:
    """The records of that run."""
    context, rows = Context(), []
    for seq, event in enumerate(RETRIED, 1):
        batch = Batch(bytes(16), 2) if seq % 2 else None
        rows.append(encode_record(7, seq, STARTED + seq, STARTED, event, context, batch))
        context = context.after(seq, event)
    return rows


@pytest.mark.parametrize("first", range(1, len(RETRIED) + 1))
@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_run_reads_the_same_from_any_event_on(first: int, step: int) -> None:
    """Typed or raw, in pages of any size; what is looked up is looked up once."""
    rows, asked = stored(), list[int]()

    def resolve(seq: int) -> records.Definition:
        asked.append(seq)
        return definition(rows[seq - 1])

    for decode_them in (RunDecoder.events, RunDecoder.raw):
        asked.clear()
        decoder, found = RunDecoder(7, RUN, STARTED, from_first=first == 1), list[Any]()
        for seq in range(first, len(rows) + 1, step):
            page = rows[seq - 1 : seq - 1 + step]
            found += decode_them(decoder, page, seq, range(seq + 50, seq + 50 + len(page)), resolve)  # type: ignore[operator]
        wanted = list(enumerate(RETRIED, 1))[first - 1 :]
        if decode_them is RunDecoder.events:
            assert [(one.seq, one.position, one.timestamp_ms, one.event) for one in found] == [
                (seq, seq + 50, STARTED + seq, event) for seq, event in wanted
            ]
        else:
            assert found == [
                (seq, seq + 50, STARTED + seq, to_fields(event)[0], *to_fields(event)[1]) for seq, event in wanted
            ]
        assert len(asked) == len(set(asked))
        assert first > 1 or not asked


@pytest.mark.parametrize("decode_them", [RunDecoder.events, RunDecoder.raw])
def test_a_record_at_another_ones_place_is_found(decode_them: Any) -> None:
    """Every reader compares the seq and the run that a record tells with those that are due."""
    rows = stored()
    with pytest.raises(InvalidStream) as caught:
        decode_them(RunDecoder(7, RUN, STARTED, from_first=True), [rows[0], rows[3]], 1, range(1, 3), None)
    assert caught.value.rule == "bad_sequence"
    with pytest.raises(InvalidStream) as caught:
        decode_them(RunDecoder(8, RUN, STARTED, from_first=True), rows[:1], 1, range(1, 2), None)
    assert caught.value.rule == "bad_sequence"


@pytest.mark.parametrize("data", [b"", b"\x81" * 1800, b"\x86\x01\x07\x01\x00", cbor2.dumps([9, 7, 1, "later"])])
def test_bytes_that_are_no_record_are_told_by_every_reader(data: bytes) -> None:
    """Raw readers take the form on trust, and yet raise nothing else than the declared error."""
    decoder = RunDecoder(7, RUN, STARTED, from_first=True)
    for one in (data, record_form.seal(data)):
        with pytest.raises(InvalidStream):
            decoder.raw([one], 1, range(1, 2), lambda seq: A)
        with pytest.raises((InvalidStream, UnknownEventVersion)):
            decoder.events([one], 1, range(1, 2), lambda seq: A)
