"""The form of a record: from its bytes to the places of its array, each checked for its kind. Pure.

There is one form of a record (docs/FORMAT.md), so decoding and encoding again has to give the same bytes. Two codecs
do it: libipld is fast, and lets through a link, which records have nowhere, as the bytes of its CID; cbor2 is asked
where the bytes could hold one, or where libipld does not give them back, and says what is wrong with them.

The array is followed by its CRC-32, the least byte first: each record is proven whenever it is read, also where the
chain of its run is not (`inspection`), which tells of what was changed on purpose as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn
from uuid import UUID
from zlib import crc32

import cbor2
import libipld

from casstore import values
from casstore.scanning import first_fault
from journal.errors import InvalidEvent, InvalidField, InvalidStream, MalformedField, UnknownEventVersion
from journal.events import FIELD_COUNTS
from journal.ids import TIME_LIMIT
from journal.seals import BROKEN, SEAL_BYTES, SEALED, seal

VERSION: Final = 1
MAX_RECORD: Final = 1900  # two records fit a 4 KiB page of the tree that keeps them
_MAX_DEPTH: Final = 3
_LINK_MARK: Final = b"\xd8\x2a"
_SHORT: Final = values.MAX_DEPTH  # so short that it is shallow
_decode: Final[Callable[[bytes], Any]] = libipld.decode_dag_cbor
_encode: Final[Callable[[Any], bytes]] = libipld.encode_dag_cbor
_HEADS: Final = (bytes((0x86, VERSION)), bytes((0x87, VERSION)))  # 6 or 7 items, of which the first is the version


def form(row: list[Any]) -> bytes:
    """The bytes of an array of plain values; no longer than a record may be, that is for the caller to see."""
    data = _encode(row)
    # Where bytes look like a CID the fast codec makes a link of them.
    return seal(cbor2.dumps(row) if 0xD8 in data and _LINK_MARK in data else data)


def parse(data: bytes, run_id: UUID | None = None) -> list[Any]:
    """[version, run number, seq, time, kind, fields, …] with numbers in range; what the fields are is not looked at.

    `run_id` is only for errors. Raises: InvalidEvent leaves, UnknownEventVersion.
    """
    row: list[Any] | None = None
    if type(data) is bytes and data.startswith(_HEADS) and (len(data) <= _SHORT or _is_short(data)):
        try:
            array = data[:-SEAL_BYTES]
            row = _decode(array)
            if crc32(data) != SEALED or _encode(row) != array or (0xD8 in array and _has_link(row[5], array)):
                row = None
        except Exception:  # whatever it was, it is found again
            row = None
    if row is None:
        row = _parse_carefully(data, run_id)
    number, seq, time, kind, fields = row[1], row[2], row[3], row[4], row[5]
    if type(number) is not int or type(seq) is not int or type(time) is not int or type(kind) is not int:
        raise InvalidField("record", "a number is wanted in each of the first five places")
    if number < 0 or seq < 1 or not -TIME_LIMIT <= time <= TIME_LIMIT:  # without a tag CBOR has none above 2^64 - 1
        raise InvalidField("record", "a number is out of range")
    if type(fields) is not list or len(fields) != FIELD_COUNTS.get(kind):
        raise InvalidField("fields", f"kind {kind} has {FIELD_COUNTS.get(kind, 'no meaning')}")
    return row


def parse_quickly(records: Sequence[bytes]) -> Iterator[list[Any]]:
    """The arrays of records that were checked when they were written: their form is taken on trust.

    Raises: ValueError, RecursionError: one is no CBOR.
    """
    if max(map(len, records)) > _SHORT and not all(map(_is_short, records)):
        raise ValueError("too long or too deep for a record")
    if any(map(SEALED.__ne__, map(crc32, records))):
        raise ValueError(BROKEN)
    return map(_decode, [data[:-SEAL_BYTES] for data in records])


def _is_short(data: bytes) -> bool:
    """Whether it is no longer than a record may be, and not so deep that its decoding could overflow a stack."""
    return len(data) <= MAX_RECORD and values.is_shallow(data)


def _has_link(fields: Any, data: bytes) -> bool:
    """Whether a mark of a link stands elsewhere than inside of the bytes of a field: in them it says nothing."""
    inside = sum(item.count(_LINK_MARK) for item in fields if type(item) is bytes)
    return data.count(_LINK_MARK) != inside


def _parse_carefully(data: bytes, run_id: UUID | None) -> list[Any]:
    if type(data) is not bytes:
        raise InvalidField("record", f"bytes are wanted, not {type(data).__name__}")
    if len(data) > MAX_RECORD:
        raise InvalidField("record", f"{len(data)} bytes; at most {MAX_RECORD} are allowed")
    array = data[:-SEAL_BYTES]
    try:
        row = cbor2.loads(array, tag_hook=_refuse_tag, semantic_decoders=_NO_TAGS, allow_indefinite=False,
                          max_depth=_MAX_DEPTH)  # fmt: skip
        whole = type(row) is list and type(row[0]) is int and row[0] == VERSION and cbor2.dumps(row) == array
    except Exception as error:  # the decoder's own errors are many; each means the same here
        _check_version(data, run_id)
        raise _refused(array, f"not CBOR as records have it: {error}") from error
    if not whole:
        _check_version(data, run_id)
        raise _refused(array, "not the form that records have")
    if crc32(data) != SEALED:
        raise InvalidField("record", BROKEN)
    if len(row) not in (6, 7):
        raise InvalidField("record", "6 or 7 items are wanted")
    return row  # type: ignore[no-any-return]


def _refused(data: bytes, otherwise: str) -> InvalidField:
    """What is wrong with the form, and where, if that is what is wrong."""
    fault = first_fault(data, depth_max=_MAX_DEPTH, links=False)
    if fault is None:
        return InvalidField("record", otherwise)
    return MalformedField("record", fault.rule, fault.offset)


def peek(data: bytes) -> tuple[int, int, int]:
    """Version, run number and seq, of any version, without a look at the rest. Raises: InvalidField."""
    try:
        if data[0] >> 5 != 4 or not 3 <= data[0] & 31 <= 23:
            raise MalformedField("record", "no array of 3 to 23 items", 0)
        version, place = _uint(data, 1)
        run_number, place = _uint(data, place)
        return version, run_number, _uint(data, place)[0]
    except IndexError as error:
        raise MalformedField("record", "cut off", len(data)) from error


def refuse(data: object, run_id: UUID | None, detail: str, cause: Exception) -> NoReturn:
    """Raises: InvalidStream with `bad_record`, and the seq where the bytes tell it."""
    seq = None
    if type(data) is bytes:
        try:
            seq = peek(data)[2]
        except InvalidEvent:
            seq = None
    error = InvalidStream("bad_record", run_id, seq, detail)
    if isinstance(cause, MalformedField) and type(data) is bytes:
        error.offset = cause.offset if cause.inside is None else _place_of(data, cause.inside, cause.offset)
    raise error from cause


def _place_of(data: bytes, inside: bytes, offset: int) -> int | None:
    """Of a byte of a byte string in a record; None where several are the same."""
    item = cbor2.dumps(inside)
    return data.index(item) + len(item) - len(inside) + offset if data.count(item) == 1 else None


def _check_version(data: bytes, run_id: UUID | None) -> None:
    """What cannot be read may be of a later version. Raises: UnknownEventVersion, InvalidField."""
    version, _, seq = peek(data)
    if version != VERSION and crc32(data) == SEALED:  # else it is a flipped bit that says so
        raise UnknownEventVersion(version, run_id, seq)


def _uint(data: bytes, place: int) -> tuple[int, int]:
    """A CBOR unsigned integer in its shortest form, and where it ends."""
    head = data[place]
    if head < 24:
        return head, place + 1
    if not 24 <= head <= 27:
        raise MalformedField("record", "no unsigned integer", place)
    size = 1 << (head - 24)
    end = place + 1 + size
    if end > len(data):
        raise IndexError
    value = int.from_bytes(data[place + 1 : end], "big")
    if value < (24 if size == 1 else 1 << (4 * size)):
        raise MalformedField("record", "a longer integer than needed", place)
    return value, end


def _refuse_tag(*_: Any, **__: Any) -> Any:
    raise ValueError("a tag")


_NO_TAGS: Final = dict.fromkeys(
    (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799), _refuse_tag
)
