"""How bytes are kept: raw, zstd, or a delta against a base. Pure; nothing else knows how bytes shrink."""

from __future__ import annotations

import enum
import functools
import struct
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import zstandard

from casstore import segments
from casstore.rows import PIECE_SIZE

LEVEL: Final = 3
_LITERAL_LEVEL: Final = 5
DELTA_RAW_MAX: Final = 16 << 20
INLINE_MAX: Final = 2030  # bytes of key and value that LMDB keeps inside a leaf page
_SAVING_MIN: Final = 0.95  # encodings that save less are not worth a decode
_DELTA_SAVING_MIN: Final = 0.80
_TAIL: Final = 8192  # of the base, as dictionary for the literals
_DICTIONARY_LEVEL: Final = 12  # of a few hundred bytes: 6 % smaller than at level 3, 20 microseconds slower
_DICTIONARIES_MAX: Final = 8
_UNKNOWN_SIZE: Final = (1 << 64) - 1
_MANY_AT_ONCE: Final = "multi_compress_to_buffer" in zstandard.backend_features
_MANY_BYTES_MIN: Final = 32 << 10  # below, beginning two threads costs more than they save
_MANY_THREADS: Final = 2


Bytes = bytes | memoryview


class Codec(enum.IntEnum):
    """Numbers as stored; FORMAT lists them."""

    RAW = 0
    ZSTD = 1
    SEGMENTS = 2
    ZSTD_DELTA = 3
    ZSTD_DICTIONARY = 4
    FRAMES = 5


class Encoded(NamedTuple):
    """Bytes as they are kept, and how."""

    codec: Codec
    stored: bytes


class DecodeError(ValueError):
    """Stored bytes do not decode; the store says of which artifact."""


class _Thread(threading.local):
    """Compressors of one thread: shared ones crash the process."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(
            level=LEVEL, write_content_size=False, write_checksum=False, write_dict_id=False
        )
        self.decompressor = zstandard.ZstdDecompressor()
        self.dictionaries: dict[bytes, tuple[Any, Any]] = {}

    def with_dictionary(self, dictionary: bytes) -> tuple[Any, Any]:
        """Compressor and decompressor; made once for each dictionary, since that costs more than their use."""
        found = self.dictionaries.get(dictionary)
        if found is None:
            if len(self.dictionaries) >= _DICTIONARIES_MAX:
                self.dictionaries.clear()
            data = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT)
            compressor = zstandard.ZstdCompressor(
                level=_DICTIONARY_LEVEL, dict_data=data, write_content_size=False, write_checksum=False,
                write_dict_id=False,
            )  # fmt: skip
            found = self.dictionaries[dictionary] = compressor, zstandard.ZstdDecompressor(dict_data=data)
        return found


_thread = _Thread()


def encoding_name(codec: int) -> str:
    """A word for people."""
    try:
        return Codec(codec).name.lower().replace("_", "-")
    except ValueError:
        return f"unknown-{codec}"


def is_delta(codec: int) -> bool:
    return codec in (Codec.SEGMENTS, Codec.ZSTD_DELTA)


def needs_base(codec: int) -> bool:
    """Whether the bytes of another artifact are needed: the base of a delta, or a dictionary."""
    return is_delta(codec) or codec == Codec.ZSTD_DICTIONARY


def pages(size: int) -> int:
    """Bytes on disk, about: whole pages, and what a small tail takes of a shared one."""
    full, tail = divmod(size, PIECE_SIZE)
    return full * 4096 + (tail if tail <= INLINE_MAX else 4096)


def encode_whole(data: bytes) -> Encoded:
    """zstd, or raw where that saves no page or under 5 %."""
    return _whole(data, _thread.compressor.compress(data))


def encode_all(many: Sequence[bytes]) -> list[Encoded]:
    """As `encode_whole` of each; small ones are compressed in one call, which uses two cores."""
    return [_whole(data, packed) for data, packed in zip(many, _compress_all(_thread.compressor, many), strict=True)]


def encode_all_with(many: Sequence[bytes], dictionary: bytes) -> list[Encoded]:
    """As `encode_with` of each, in the same way."""
    try:
        compressor = _thread.with_dictionary(dictionary)[0]
    except zstandard.ZstdError:
        return encode_all(many)
    return list(map(_with_or_whole, many, _compress_all(compressor, many)))


def _compress_all(compressor: Any, many: Sequence[bytes]) -> list[bytes]:
    if _MANY_AT_ONCE and sum(map(len, many)) >= _MANY_BYTES_MIN:
        packed = compressor.multi_compress_to_buffer(list(many), threads=_MANY_THREADS)
        return [one.tobytes() for one in packed]
    return list(map(compressor.compress, many))


def _whole(data: bytes, packed: bytes) -> Encoded:
    size, smaller = len(data), len(packed)
    if smaller < size * _SAVING_MIN and (size <= INLINE_MAX or pages(smaller) < pages(size)):
        return Encoded(Codec.ZSTD, packed)
    return Encoded(Codec.RAW, data)


def encode_with(data: bytes, dictionary: bytes) -> Encoded:
    """With a trained dictionary, or whole where that is not smaller by 10 %, or the bytes are no dictionary."""
    try:
        packed = _thread.with_dictionary(dictionary)[0].compress(data)
    except zstandard.ZstdError:
        return encode_whole(data)
    return _with_or_whole(data, packed)


def _with_or_whole(data: bytes, packed: bytes) -> Encoded:
    if len(packed) * 2 < len(data):
        return Encoded(Codec.ZSTD_DICTIONARY, packed)  # no need to know how large the whole would be
    whole = encode_whole(data)
    return Encoded(Codec.ZSTD_DICTIONARY, packed) if len(packed) < len(whole.stored) * 0.9 else whole


def encode(data: bytes, base: bytes | None) -> Encoded:
    """A delta where there is a base and it saves 20 % or more against the whole; else the whole."""
    if base is None or not base or not data or len(data) > DELTA_RAW_MAX or len(base) > DELTA_RAW_MAX:
        return encode_whole(data)
    delta = _segments(data, base)
    if delta is not None and len(delta.stored) * 16 < len(data):
        return delta  # so small that no whole encoding is worth the time
    whole = encode_whole(data)
    if delta is None or len(delta.stored) > len(whole.stored) * _DELTA_SAVING_MIN:
        other = Encoded(Codec.ZSTD_DELTA, _zstd_delta(data, base))
        if delta is None or len(other.stored) < len(delta.stored):
            delta = other
    return delta if len(delta.stored) <= len(whole.stored) * _DELTA_SAVING_MIN else whole


def decode(codec: int, stored: bytes, raw_len: int, base: bytes | None) -> bytes:
    """The raw bytes, `raw_len` of them; no more than that is ever allocated. Raises: DecodeError."""
    try:
        if codec == Codec.RAW:
            data = stored
        elif codec == Codec.ZSTD:
            data = _decompress(_thread.decompressor, stored, raw_len)
        elif codec == Codec.SEGMENTS:
            data = _apply(stored, raw_len, _needed(base))
        elif codec == Codec.ZSTD_DICTIONARY:
            data = _decompress(_thread.with_dictionary(_needed(base))[1], stored, raw_len)
        elif codec == Codec.ZSTD_DELTA:
            data = _decompress(_with_dictionary(_needed(base)), stored, raw_len)
        else:
            raise DecodeError(f"unknown encoding {codec}")
    except DecodeError:
        raise
    except (zstandard.ZstdError, ValueError, MemoryError) as error:
        raise DecodeError(str(error)) from error
    if len(data) != raw_len:
        raise DecodeError(f"{len(data)} bytes instead of {raw_len}")
    return data


def decompress_into(stored: Bytes, memory: memoryview) -> None:
    """As `decode` of ZSTD, into memory of the right size that is there: fresh memory costs as much as a decompression.
    Raises: DecodeError."""
    try:
        _check_size(stored, memory.nbytes)
        with _thread.decompressor.stream_reader(stored, read_size=len(stored)) as frame:
            if frame.readinto(memory) != memory.nbytes or frame.read(1):
                raise DecodeError(f"not {memory.nbytes} bytes")
    except DecodeError:
        raise
    except (zstandard.ZstdError, ValueError, MemoryError) as error:
        raise DecodeError(str(error)) from error


def decode_all(
    many: Sequence[tuple[int, bytes, int, int] | None], dictionaries: Mapping[int, bytes]
) -> list[bytes | None]:  # fmt: skip
    """As `decode` of each (codec, stored bytes, raw length, number of its dictionary or 0), without other bases; None
    where that would raise, and for None. Small ones are decompressed in one call, which uses two cores; what it
    allocates is the sum of the lengths."""
    found: list[bytes | None] = [None] * len(many)
    places: dict[int, list[int]] = {}
    for place, one in enumerate(many):
        if one is None:
            continue
        codec, stored, raw_len, base = one
        if codec == Codec.RAW and not base and len(stored) == raw_len:
            found[place] = stored
        elif raw_len and (codec == Codec.ZSTD_DICTIONARY if base in dictionaries else codec == Codec.ZSTD and not base):
            places.setdefault(base, []).append(place)
    for base, of_base in places.items():
        with suppress(zstandard.ZstdError):  # bytes that are no dictionary
            decompressor = _thread.with_dictionary(dictionaries[base])[1] if base else _thread.decompressor
            packed = [one[1:3] for place in of_base if (one := many[place]) is not None]
            for place, data in zip(of_base, _decompress_all(decompressor, packed), strict=True):
                found[place] = data
    return found


def _decompress_all(decompressor: Any, many: Sequence[tuple[bytes, int]]) -> list[bytes | None]:
    if _MANY_AT_ONCE and sum(raw_len for _, raw_len in many) >= _MANY_BYTES_MIN:
        sizes = struct.pack(f"={len(many)}Q", *[raw_len for _, raw_len in many])
        with suppress(zstandard.ZstdError, ValueError, MemoryError):
            data = decompressor.multi_decompress_to_buffer(
                [stored for stored, _ in many], decompressed_sizes=sizes, threads=_MANY_THREADS
            )
            return [one.tobytes() for one in data]
    found: list[bytes | None] = []
    for stored, raw_len in many:
        data = None
        with suppress(zstandard.ZstdError, ValueError, MemoryError):
            data = _decompress(decompressor, stored, raw_len)
        found.append(data if data is not None and len(data) == raw_len else None)
    return found


def _needed(base: bytes | None) -> bytes:
    if base is None:
        raise DecodeError("its base is missing")
    return base


def _decompress(decompressor: Any, stored: bytes, raw_len: int) -> bytes:
    _check_size(stored, raw_len)
    if not raw_len:
        raise DecodeError("a frame for no bytes")
    data: bytes = decompressor.decompress(stored, max_output_size=raw_len, allow_extra_data=False)
    return data


def _check_size(stored: Bytes, raw_len: int) -> None:
    # A frame that states its own size is decoded to that size whatever the limit says, so it is compared first.
    if zstandard.get_frame_parameters(stored).content_size not in (raw_len, _UNKNOWN_SIZE):
        raise DecodeError("the frame states another length")


def _raw_dictionary(data: bytes) -> Any:
    # RAWCONTENT always: AUTO would take a base that begins like a trained dictionary for one.
    return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _with_dictionary(data: bytes) -> Any:
    return zstandard.ZstdDecompressor(dict_data=_raw_dictionary(data))


def _segments(data: bytes, base: bytes) -> Encoded | None:
    found = segments.diff(data, base)
    if found is None:
        return None
    ops, literal = found
    packed = b""
    if literal:
        packed = _literal_compressor(len(literal), base).compress(literal)
    return Encoded(Codec.SEGMENTS, segments.pack(ops) + packed)


def _literal_compressor(size: int, base: bytes) -> Any:
    """For a few literal bytes small tables are made faster, and a higher level costs nothing: 6 % smaller."""
    parameters = _literal_parameters(max(14, (size + _TAIL).bit_length()), size <= _TAIL)
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=_raw_dictionary(base[-_TAIL:]))


@functools.cache
def _literal_parameters(window_log: int, small: bool) -> Any:
    tables = {"hash_log": 13, "chain_log": 13} if small else {}
    return zstandard.ZstdCompressionParameters.from_level(
        _LITERAL_LEVEL, write_content_size=False, write_checksum=False, write_dict_id=False, window_log=window_log,
        **tables,
    )  # fmt: skip


def _apply(stored: bytes, raw_len: int, base: bytes) -> bytes:
    ops, at = segments.unpack(stored)
    size = segments.literal_size(ops)
    if size > raw_len:
        raise DecodeError("more literal bytes than the artifact has")
    literal = _decompress(_with_dictionary(base[-_TAIL:]), stored[at:], size) if size else b""
    if not size and at != len(stored):
        raise DecodeError("bytes after the last run")
    return segments.apply(ops, literal, base, raw_len)


def _zstd_delta(data: bytes, base: bytes) -> bytes:
    # Tables that are too small fail silently: a valid frame that is nearly a full copy.
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, write_dict_id=False, write_content_size=False, write_checksum=False,
        window_log=max(10, (len(base) + len(data)).bit_length()), hash_log=max(17, len(base).bit_length() - 2),
    )  # fmt: skip
    packed: bytes = zstandard.ZstdCompressor(
        dict_data=_raw_dictionary(base), compression_params=parameters
    ).compress(data)
    return packed
