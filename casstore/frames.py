"""Large artifacts as frames of 1 MiB, with a table that lets a range be read and checked by itself. Pure.

Stored bytes: the frames one after the other, then the table. A table entry is the frame's offset and length in
the stored bytes, its encoding, and the BLAKE3-128 of its raw bytes; the table's own BLAKE3-128, the seal, lies in
the artifact's record.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, final

from blake3 import blake3

from casstore import codec

FRAME_SIZE: Final = 1 << 20
HASH_SIZE: Final = 16
_ENTRY: Final = struct.Struct(">QIB16s")


class FrameError(ValueError):
    """A frame or its table is damaged."""


class Entry(NamedTuple):
    """One frame: offset and length in the stored bytes, encoding, BLAKE3-128 of the raw bytes."""

    offset: int
    length: int
    codec: int
    hash: bytes


def encode_frame(raw: bytes, offset: int = 0) -> tuple[Entry, bytes]:
    """A frame to be stored at `offset`, and its entry."""
    encoded = codec.encode_whole(raw)
    return Entry(offset, len(encoded.stored), encoded.codec, blake3(raw).digest(HASH_SIZE)), encoded.stored


def decode_frame(
    entry: Entry, stored: codec.Bytes, raw_len: int, memory: bytearray | None = None
) -> codec.Bytes:  # fmt: skip
    """The raw frame, checked; it may lie in `memory`, which has room for it, or be `stored`. Raises: FrameError."""
    raw: codec.Bytes
    try:
        if entry.codec == codec.Codec.RAW and len(stored) == raw_len:
            raw = stored
        elif entry.codec == codec.Codec.ZSTD and memory is not None:
            raw = memoryview(memory)[:raw_len]
            codec.decompress_into(stored, raw)
        else:
            raw = codec.decode(entry.codec, bytes(stored), raw_len, None)
    except codec.DecodeError as error:
        raise FrameError(str(error)) from error
    if blake3(raw).digest(HASH_SIZE) != entry.hash:
        raise FrameError("its bytes have another hash")
    return raw


def frame_count(raw_len: int) -> int:
    return -(-raw_len // FRAME_SIZE)


def frames_for(start: int, stop: int) -> range:
    """Numbers of the frames that hold raw bytes [start, stop)."""
    return range(start // FRAME_SIZE, frame_count(stop)) if start < stop else range(0)


def table_size(raw_len: int) -> int:
    """Bytes of a packed table."""
    return frame_count(raw_len) * _ENTRY.size


@final
class FrameTable:
    """Entries in order."""

    def __init__(self, entries: list[Entry] | None = None) -> None:
        self.entries: list[Entry] = entries if entries is not None else []

    def pack(self) -> tuple[bytes, bytes]:
        """The table's bytes and its seal."""
        data = b"".join(_ENTRY.pack(*entry) for entry in self.entries)
        return data, blake3(data).digest(HASH_SIZE)

    @classmethod
    def unpack(cls, data: bytes, raw_len: int, seal: bytes) -> FrameTable:
        """Raises: FrameError unless length and seal are right."""
        if len(data) != table_size(raw_len):
            raise FrameError(f"a frame table of {len(data)} bytes instead of {table_size(raw_len)}")
        if blake3(data).digest(HASH_SIZE) != seal:
            raise FrameError("the frame table has another hash")
        return cls([Entry(*fields) for fields in _ENTRY.iter_unpack(data)])
