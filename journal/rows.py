"""Tables and the bytes of their rows, but for records (docs/FORMAT.md, section 4).

Numbers in keys and rows are one byte that counts the bytes of the number, then the number, big-endian and without
leading zeros: such keys sort as their numbers do, and small ones are short.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID
from zlib import crc32

from blake3 import blake3

from casstore.ids import ArtifactId
from casstore.stage import TABLE as STAGED
from journal.backend import ClaimRow, RunRow, StateRow, Tail
from journal.errors import InvalidStream
from journal.failures import RunStatus
from journal.ids import check_op_id, check_state_id
from journal.seals import BROKEN, SEAL_BYTES, SEALED, seal

EV: Final = b"ev1"  # position -> record
RS: Final = b"rs1"  # run ‖ first seq of a batch -> position
RUN: Final = b"run1"  # run -> RunRow
ID: Final = b"id1"  # run id, 16 bytes -> run
ST: Final = b"st1"  # run ‖ state id -> StateRow
FK: Final = b"fk1"  # run ‖ BLAKE3-128 of the fact key -> seq
LIVE: Final = b"live1"  # run -> nothing
DONE: Final = b"done1"  # status ‖ ended ms ‖ run -> nothing
CL: Final = b"cl1"  # run -> ClaimRow
CUR: Final = b"cur1"  # name -> position
META: Final = b"meta1"
TABLES: Final = (EV, RS, RUN, ID, ST, FK, LIVE, DONE, CL, CUR, META, STAGED)

META_UUID: Final = b"uuid"
META_NEXT_RUN: Final = b"next_run"
META_FLOOR: Final = b"floor"  # the newest position whose record was removed
META_EPOCH: Final = b"epoch"  # the epoch of new runs: above those of forgotten ones, whose owners stay fenced
META_FORGETTING: Final = b"forgetting"  # ‖ run -> run id ‖ first seq still there ‖ head, while a forget is under way

_STATUSES: Final = (None, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)
_FINAL_FLAG: Final = 16
_DIGESTS: Final = 16 + 3 * 32
_NUMBERS: Final = 11


def _number(value: int) -> bytes:
    size = (value.bit_length() + 7) >> 3
    return bytes((size,)) + value.to_bytes(size, "big")


_SMALL: Final = tuple(map(_number, range(4096)))  # most numbers are small, and an append writes twenty


def number(value: int) -> bytes:
    """The bytes of a number from 0 to 2**64 - 1."""
    return _SMALL[value] if 0 <= value < 4096 else _number(value)


def numbers(first: int, count: int) -> list[bytes]:
    """The bytes of so many numbers in turn."""
    last = first + count - 1
    size = (last.bit_length() + 7) >> 3
    if (first.bit_length() + 7) >> 3 != size:
        return [number(value) for value in range(first, last + 1)]
    head = bytes((size,))
    return [head + value.to_bytes(size, "big") for value in range(first, last + 1)]


def take_number(data: bytes, place: int) -> tuple[int, int]:
    """The number at a place, and the place after it. Raises: ValueError for another form."""
    if place >= len(data):
        raise ValueError("cut off")
    size = data[place]
    end = place + 1 + size
    if size > 8 or end > len(data) or (size and not data[place + 1]):
        raise ValueError("no number")
    return int.from_bytes(data[place + 1 : end], "big"), end


def fact_key(key: str) -> bytes:
    """BLAKE3-128 of a fact's key."""
    return blake3(key.encode()).digest(16)


def status_byte(status: RunStatus) -> bytes:
    """The byte of a status in keys."""
    return bytes((_STATUSES.index(status),))


def pack_run(row: RunRow) -> bytes:
    """Digests, flags, numbers, then the texts."""
    flags = _STATUSES.index(row.status) | row.tail << 2 | (_FINAL_FLAG if row.has_final else 0)
    op = row.op_id.encode()
    numbers = (
        row.epoch, row.head, row.started_ms, max(row.updated_ms - row.started_ms, 0), row.checkpoint_seq,
        row.tail_seq, row.tail_attempt, row.n_completed, row.policy_seq, row.retry_at_ms, len(op),
    )  # fmt: skip
    return seal(b"".join((
        row.run_id.bytes, row.manifest_id.digest, row.checkpoint_id.digest, row.chain, bytes((flags,)),
        *map(number, numbers), op, row.tail_state.encode(),
    )))  # fmt: skip


def unpack_run(run: int, data: bytes) -> RunRow:
    """Raises: InvalidStream with `bad_row`."""
    try:
        if crc32(data) != SEALED:
            raise ValueError(BROKEN)
        data = data[:-SEAL_BYTES]
        flags = data[_DIGESTS]
        if flags >= 2 * _FINAL_FLAG:
            raise ValueError("flags")
        place, numbers = _DIGESTS + 1, []
        for _ in range(_NUMBERS):  # as take_number does, without a call for each: appends read this row
            end = place + 1 + data[place]
            if end - place > 9 or end > len(data) or (end - place > 1 and not data[place + 1]):
                raise ValueError("no number")
            numbers.append(int.from_bytes(data[place + 1 : end], "big"))
            place = end
        epoch, head, started, lasted, checkpoint_seq, tail_seq, tail_attempt, completed, policy, retry, size = numbers
        op_id, tail_state = data[place : place + size].decode(), data[place + size :].decode()
        check_op_id(op_id)
        if flags >> 2 & 3:
            check_state_id(tail_state)
        return RunRow(
            number=run, run_id=UUID(bytes=data[:16]), manifest_id=ArtifactId(data[16:48]),
            checkpoint_id=ArtifactId(data[48:80]), chain=data[80:112], status=_STATUSES[flags & 3],
            tail=Tail(flags >> 2 & 3), has_final=bool(flags & _FINAL_FLAG), epoch=epoch, head=head,
            started_ms=started, updated_ms=started + lasted, checkpoint_seq=checkpoint_seq, tail_seq=tail_seq,
            tail_attempt=tail_attempt, n_completed=completed, policy_seq=policy, retry_at_ms=retry,
            op_id=op_id, tail_state=tail_state,
        )  # fmt: skip
    except (ValueError, IndexError) as error:
        raise InvalidStream("bad_row", None, None, f"the row of run number {run}: {error}") from error


def unpack_stamp(data: bytes) -> tuple[int, int]:
    """(head, epoch) of a run's row, which change with everything else in it. Raises: InvalidStream with `bad_row`."""
    try:
        epoch, place = take_number(data, _DIGESTS + 1)
        return take_number(data, place)[0], epoch
    except ValueError as error:
        raise InvalidStream("bad_row", None, None, f"the row of a run: {error}") from error


def pack_state(row: StateRow) -> bytes:
    """Three numbers."""
    return seal(number(row.attempts) + number(row.completed_seq) + number(row.completed_place))


def unpack_state(data: bytes) -> StateRow:
    """Raises: InvalidStream with `bad_row`."""
    try:
        attempts, place = take_number(data, 0)
        completed_seq, place = take_number(data, place)
        completed_place, place = take_number(data, place)
        if crc32(data) != SEALED:
            raise ValueError(BROKEN)
        if place != len(data) - SEAL_BYTES:
            raise ValueError("too long")
    except ValueError as error:
        raise InvalidStream("bad_row", None, None, f"a row of a state: {error}") from error
    return StateRow(attempts, completed_seq, completed_place)


def pack_claim(row: ClaimRow) -> bytes:
    """Two numbers, then the owner."""
    return number(row.until_ms) + number(row.ttl_ms) + row.owner.encode()


def unpack_claim(data: bytes) -> ClaimRow:
    """Raises: InvalidStream with `bad_row`."""
    try:
        until_ms, place = take_number(data, 0)
        ttl_ms, place = take_number(data, place)
        return ClaimRow(data[place:].decode(), until_ms, ttl_ms)
    except ValueError as error:
        raise InvalidStream("bad_row", None, None, f"the row of a claim: {error}") from error


def unpack_left(value: bytes) -> tuple[int, int]:
    """Of a run that is being forgotten: first seq still there, and head. Raises: InvalidStream with `bad_row`."""
    try:
        first, place = take_number(value, 16)
        head, place = take_number(value, place)
        if place != len(value):
            raise ValueError("too long")
    except ValueError as error:
        raise InvalidStream("bad_row", None, None, f"the row of a run being forgotten: {error}") from error
    return first, head


def key_number(key: bytes, place: int) -> tuple[int, int]:
    """The number at a place of a key, and the place after it. Raises: InvalidStream with `bad_row`."""
    try:
        return take_number(key, place)
    except ValueError as error:
        raise InvalidStream("bad_row", None, None, f"a key that is damaged, {key.hex()}: {error}") from error


def id_of(data: bytes) -> UUID:
    """A run id of 16 bytes. Raises: InvalidStream with `bad_row`."""
    if len(data) != 16:
        raise InvalidStream("bad_row", None, None, f"a run id of {len(data)} bytes, {data.hex()}")
    return UUID(bytes=data)


def state_name(data: bytes) -> str:
    """The id of a state in a key. Raises: InvalidStream with `bad_row`."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidStream("bad_row", None, None, f"a state id that is no text, {data.hex()}") from error


def unpack_number(data: bytes) -> int:
    """A row that is one number. Raises: InvalidStream with `bad_row`."""
    try:
        value, end = take_number(data, 0)
        if end != len(data):
            raise ValueError("too long")
    except ValueError as error:
        raise InvalidStream("bad_row", None, None, f"a row of one number: {error}") from error
    return value
