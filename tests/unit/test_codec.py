"""Encodings: what goes in comes out, deltas stay small, and no damaged byte makes anything but an error."""

from __future__ import annotations

import contextlib
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore import codec, frames, segments
from casstore.codec import Codec, DecodeError

WORDS = st.lists(st.sampled_from([b"alpha ", b"beta ", b"gamma, ", b"0123456789", b"\x00\xff", b"x"]), max_size=60)
TEXTS = WORDS.map(b"".join)
SAMPLES = [b"alpha beta %d gamma, %d alpha 0123456789 beta" % (number, number * 7919) for number in range(300)]


def edited(base: bytes, rng: random.Random, edits: int) -> bytes:
    """The base with some pieces changed, removed, put in and moved."""
    data = bytearray(base)
    for _ in range(edits):
        at, size = rng.randrange(len(data) + 1), rng.randrange(40)
        what = rng.randrange(4)
        if what == 0:
            data[at : at + size] = rng.randbytes(size)
        elif what == 1:
            del data[at : at + size]
        elif what == 2:
            data[at:at] = rng.randbytes(size)
        else:
            data += data[at : at + size]
    return bytes(data)


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS, st.one_of(st.none(), st.integers(0, 2**32)))
def test_all_encodings_come_back(data: bytes, other: bytes, seed: int | None) -> None:
    """Whole and against any base, also one that has nothing in common."""
    base = other if seed is None else edited(data, random.Random(seed), 3)
    for encoded, used in ((codec.encode_whole(data), None), (codec.encode(data, base), base)):
        assert codec.decode(encoded.codec, encoded.stored, len(data), used) == data
        assert len(encoded.stored) <= len(data)  # nothing grows


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, max_size=40), st.integers(0, 2000))
def test_many_at_once_are_encoded_as_each(texts: list[bytes], size: int) -> None:
    """In one call of the compressor or in many, empty ones among them."""
    for many in (texts, [b"", random.Random(size).randbytes(size), *texts, bytes(64 << 10)]):
        assert codec.encode_all(many) == [codec.encode_whole(data) for data in many]
        for dictionary in (bytes(200), b"", zstandard.train_dictionary(1024, SAMPLES).as_bytes()):
            assert codec.encode_all_with(many, dictionary) == [codec.encode_with(data, dictionary) for data in many]


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(0, 2**32), st.integers(0, 6))
def test_segments_give_back_the_new_bytes(base: bytes, seed: int, edits: int) -> None:
    """diff, pack, unpack and apply are inverse, whatever was edited."""
    new = edited(base, random.Random(seed), edits)
    found = segments.diff(new, base, limit=10_000)
    assert found is not None
    ops, literal = found
    packed = segments.pack(ops)
    assert segments.unpack(packed) == (ops, len(packed))
    assert segments.apply(ops, literal, base, len(new)) == new


def test_a_growing_context_costs_what_was_added() -> None:
    """A message more, a counter changed: the delta is near the change, at any size of the context."""
    rng = random.Random(1)
    for size in (30_000, 300_000):
        base = b"counter=0001;" + bytes(rng.choices(b"abcdefghij klmnop", k=size))
        new = b"counter=0002;" + base[13:] + b"one more message, about this long"
        encoded = codec.encode(new, base)
        assert encoded.codec == Codec.SEGMENTS and len(encoded.stored) < 120


def test_many_scattered_changes_fall_back() -> None:
    """Above the limit of segments it is a zstd delta, still far below the whole."""
    rng = random.Random(2)
    base = bytes(rng.choices(b"abcdefghij klmnop", k=200_000))
    data = bytearray(base)
    for at in range(0, len(data), 1000):
        data[at : at + 4] = rng.randbytes(4)
    encoded = codec.encode(bytes(data), base)
    assert encoded.codec == Codec.ZSTD_DELTA
    assert len(encoded.stored) * 10 < len(codec.encode_whole(bytes(data)).stored)


def test_a_large_base_is_found_over_its_whole_length() -> None:
    """Tables that are too small for the base would fail silently: a delta that is nearly a copy."""
    base = random.Random(3).randbytes(3 << 20)
    new = bytearray(base)
    for at in range(0, len(new), 20_000):
        new[at] ^= 1
    encoded = codec.encode(bytes(new), base)
    assert codec.is_delta(encoded.codec) and len(encoded.stored) < 20_000
    assert codec.decode(encoded.codec, encoded.stored, len(new), base) == new


def test_a_base_that_looks_like_a_trained_dictionary_is_none() -> None:
    """Bytes 37 a4 30 ec at its start decide nothing."""
    base = b"\x37\xa4\x30\xec" + random.Random(4).randbytes(20_000)
    new = base[:10_000] + b"changed" + base[10_007:]
    encoded = codec.encode(new, base)
    assert codec.decode(encoded.codec, encoded.stored, len(new), base) == new


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*Codec, 4, 99]), st.binary(max_size=80), st.integers(0, 1 << 40), TEXTS)
def test_hostile_stored_bytes_never_crash_nor_allocate(kind: int, stored: bytes, raw_len: int, base: bytes) -> None:
    """Random bytes under any encoding and any claimed length: an error, or exactly that many bytes."""
    try:
        data = codec.decode(kind, stored, raw_len, base)
    except DecodeError:
        return
    assert len(data) == raw_len


def test_a_frame_that_lies_about_its_size_is_refused_before_it_is_decoded() -> None:
    """A frame that states 64 MiB where the record says 1000 bytes."""
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    with pytest.raises(DecodeError):
        codec.decode(Codec.ZSTD, bomb, 1000, None)
    endless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    with pytest.raises(DecodeError):
        codec.decode(Codec.ZSTD, endless, 1000, None)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_flips_and_cuts_of_each_encoding(data: st.DataObject) -> None:
    """A flipped bit or a cut gives an error or other bytes of the same length, which the hash then refuses."""
    rng = random.Random(5)
    base = b"".join(b"line %d of the base\n" % n for n in range(2000))
    new = edited(base, rng, 4)
    encoded = data.draw(st.sampled_from([codec.encode_whole(new), codec.encode(new, base),
                                         codec.Encoded(Codec.ZSTD_DELTA, codec._zstd_delta(new, base))]))  # fmt: skip
    at = data.draw(st.integers(0, len(encoded.stored) * 8 - 1))
    flipped = bytearray(encoded.stored)
    flipped[at // 8] ^= 1 << at % 8
    for stored in (bytes(flipped), encoded.stored[: at // 8]):
        try:
            found = codec.decode(encoded.codec, stored, len(new), base)
        except DecodeError:
            continue
        assert len(found) == len(new)


def test_frames_name_the_damaged_one() -> None:
    """Each frame decodes by itself; a flipped bit in a frame or in the table is an error."""
    rng = random.Random(6)
    raw = [rng.randbytes(frames.FRAME_SIZE), bytes(frames.FRAME_SIZE), rng.randbytes(77)]
    table, stored, offset = frames.FrameTable(), [], 0
    for part in raw:
        entry, data = frames.encode_frame(part, offset)
        table.entries.append(entry)
        stored.append(data)
        offset += len(data)
    packed, seal = table.pack()
    raw_len = sum(map(len, raw))
    assert len(packed) == frames.table_size(raw_len)
    again = frames.FrameTable.unpack(packed, raw_len, seal)
    assert [frames.decode_frame(entry, data, len(part)) for entry, data, part in
            zip(again.entries, stored, raw, strict=True)] == raw  # fmt: skip
    broken = bytearray(stored[0])
    broken[1000] ^= 4
    with pytest.raises(frames.FrameError):
        frames.decode_frame(again.entries[0], bytes(broken), len(raw[0]))
    for damaged in (packed[:-1], bytes([packed[0] ^ 1]) + packed[1:]):
        with pytest.raises(frames.FrameError):
            frames.FrameTable.unpack(damaged, raw_len, seal)
    assert list(frames.frames_for(0, 1)) == [0]
    assert list(frames.frames_for((1 << 20) - 1, (1 << 20) + 1)) == [0, 1]
    assert list(frames.frames_for(5, 5)) == []


@settings(max_examples=200, deadline=None)
@given(TEXTS.filter(len), st.integers(0, 2**32), st.integers(-3, 3))
def test_memory_that_is_there_takes_the_bytes_or_an_error(data: bytes, seed: int, more: int) -> None:
    """Whole and with the right room it is filled; damaged or cut, or with another room, never anything but an error, or
    bytes of that length. A frame of 64 MiB is not begun."""
    stored, room = zstandard.ZstdCompressor(write_content_size=bool(seed & 1)).compress(data), bytearray(len(data))
    codec.decompress_into(stored, memoryview(room))
    assert bytes(room) == data
    if more and len(data) + more >= 0:
        with pytest.raises(DecodeError):
            codec.decompress_into(stored, memoryview(bytearray(len(data) + more)))
    rng = random.Random(seed)
    flipped = bytearray(stored)
    flipped[rng.randrange(len(stored))] ^= 1 << rng.randrange(8)
    for damaged in (bytes(flipped), stored[: rng.randrange(len(stored))]):
        with contextlib.suppress(DecodeError):
            codec.decompress_into(damaged, memoryview(room))
    with pytest.raises(DecodeError):
        codec.decompress_into(BOMBS[seed & 1], memoryview(room))


BOMBS = [zstandard.ZstdCompressor(write_content_size=states).compress(bytes(64 << 20)) for states in (False, True)]
