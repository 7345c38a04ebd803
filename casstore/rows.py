"""The store's tables and the bytes of their rows (docs/FORMAT.md, section 3). Pure; no I/O."""

from __future__ import annotations

import functools
import operator
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, NamedTuple, final

from casstore.errors import DamagedStore

IX: Final = b"ix1"  # digest -> what is visible
DA: Final = b"da1"  # data_id -> how its bytes are kept
D: Final = b"d1"  # data_id, piece number -> piece
LN: Final = b"ln1"  # digest -> digests of the artifacts that it links to
KN: Final = b"kn1"  # digest, kind -> nothing: kinds beyond the known ones
KP: Final = b"kp1"  # data_id -> digest: bytes of a collected artifact, needed by a delta or in quarantine
GONE: Final = b"gone1"  # digest -> when, by which gc, size; in quarantine also where its bytes are, until when
PIN: Final = b"pin1"  # name -> digest, since
LEASE: Final = b"lease1"  # lease -> expiry
LEASED: Final = b"leased1"  # lease, digest -> nothing
STAGE: Final = b"stage1"  # data_id of an unfinished upload -> since, owner
RECENT: Final = b"recent1"  # digests touched while a gc is open
PURGE: Final = b"purge1"  # data_id -> nothing: its pieces may go
GCS: Final = b"gcs1"  # number of a gc -> its report, JSON
TICK: Final = b"tick1"  # first commit number in a second -> that second, unix time
META: Final = b"meta1"
CHANGED: Final = b"changed1"  # place in TABLES ‖ key -> nothing: what changed while compact copies

# Only ever appended to: CHANGED names them by place.
TABLES: Final = (IX, DA, D, LN, KN, KP, GONE, PIN, LEASE, LEASED, STAGE, RECENT, PURGE, GCS, TICK, META, CHANGED)
STATE_KEY: Final = b"state"
UUID_KEY: Final = b"uuid"
JOURNAL_KEY: Final = b"journal"  # there once the home has a journal
RESERVED_KEY: Final = b"reserved"  # the next data_id for a dictionary; not there in stores made before these were
DATA_IDS_RESERVED: Final = 1024  # the first data_id that is not for dictionaries
DICTIONARY_KIND: Final = "dictionary"
LOOSENED_KEY: Final = b"loosened"  # the newest commit by which something may have become garbage, but for time
LAST_GC_KEY: Final = b"last_gc"  # loosened ‖ swept ‖ what a complete gc remembers while those two stay

PIECE_SIZE: Final = 4096 - 16  # exactly one overflow page: anything more would need two that are neighbours
PIN_SIZE: Final = 32 + 8
STORED_LEN_MAX: Final = PIECE_SIZE << 32  # pieces have numbers of 32 bits

KINDS: Final = ("manifest", "context_snapshot", "fact_payload", "output", "value", "other")
OTHER_KINDS: Final = 1 << 31
_KIND_BITS: Final = {kind: 1 << place for place, kind in enumerate(KINDS)}

_IX: Final = struct.Struct(">QQIIQ")
IX_SIZE: Final = _IX.size
_IX_TAIL: Final = struct.Struct(">Q12xIQ")
_DA: Final = struct.Struct(">32sQQBQHQ")
_DA_HEAD: Final = struct.Struct(">32sQQBQ")
_GONE: Final = struct.Struct(">IQIQ")
_BURIED: Final = struct.Struct(">QQ")
_U64: Final = struct.Struct(">Q")
_PIECE: Final = struct.Struct(">QI")


def u64(number: int) -> bytes:
    return _U64.pack(number)


def from_u64(data: bytes) -> int:
    if len(data) != 8:
        raise DamagedStore("store", f"a number of {len(data)} bytes instead of 8")
    number: int = _U64.unpack(data)[0]
    return number


def text(name: bytes) -> str:
    """A name of a row for people; of a damaged one that is no UTF-8 as well."""
    return name.decode(errors="backslashreplace")


def piece_key(data_id: int, piece: int) -> bytes:
    return _PIECE.pack(data_id, piece)


def piece_count(stored_len: int) -> int:
    return -(-stored_len // PIECE_SIZE)


class IxRow(NamedTuple):
    """What is visible. `touched` is a commit number of the store, `touched_s` unix seconds."""

    data_id: int
    touched: int
    touched_s: int
    kinds: int
    raw_len: int

    def pack(self) -> bytes:
        return _IX.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> IxRow:
        if len(data) != _IX.size:
            raise DamagedStore("table ix1", f"a row of {len(data)} bytes instead of {_IX.size}")
        return cls(*_IX.unpack(data))


def ix_what(data: bytes) -> tuple[int, int, int]:
    """(data_id, kinds, raw length) of an IxRow: what is remembered of it once it is collected."""
    if len(data) != _IX.size:
        raise DamagedStore("table ix1", f"a row of {len(data)} bytes instead of {_IX.size}")
    data_id, kinds, raw_len = _IX_TAIL.unpack(data)
    return data_id, kinds, raw_len


def ix_numbers(rows: Sequence[bytes]) -> tuple[array[int], array[int]]:
    """(data_ids, touched) of IxRows, each in their order."""
    for data in rows:
        if len(data) != _IX.size:
            raise DamagedStore("table ix1", f"a row of {len(data)} bytes instead of {_IX.size}")
    numbers = array("Q", b"".join(rows))
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers[:: _IX.size // 8], numbers[1 :: _IX.size // 8]


def ix_row(data_id: int, touched: int, touched_s: int, kinds: int, raw_len: int) -> bytes:
    """A packed IxRow."""
    return _IX.pack(data_id, touched, touched_s, kinds, raw_len)


class DaRow(NamedTuple):
    """How bytes are kept. `base` is the data_id that a delta is made against, 0 for none; `earlier` that of the copy
    before this one, where its bytes were kept when this one was put; `extra` is the encoding's own (the hash of a
    frame table)."""

    digest: bytes
    raw_len: int
    stored_len: int
    codec: int
    base: int
    chain: int
    earlier: int
    extra: bytes = b""

    def pack(self) -> bytes:
        return _DA.pack(*self[:7]) + self.extra

    @classmethod
    def unpack(cls, data: bytes) -> DaRow:
        if len(data) < _DA.size:
            raise DamagedStore("table da1", f"a row of {len(data)} bytes instead of {_DA.size} or more")
        digest, raw_len, stored_len, codec, base, chain, earlier = _DA.unpack_from(data)
        if stored_len > STORED_LEN_MAX:
            raise DamagedStore("table da1", f"a length of {stored_len} bytes")
        return cls(digest, raw_len, stored_len, codec, base, chain, earlier, data[_DA.size :])


def da_row(digest: bytes, raw_len: int, stored_len: int, codec: int, chain: int, extra: bytes) -> bytes:
    """A packed DaRow of what has no base and no earlier copy."""
    return _DA.pack(digest, raw_len, stored_len, codec, 0, chain, 0) + extra


def da_head(data: bytes) -> tuple[bytes, int, int]:
    """(digest, stored length, base) of a DaRow: what gc asks of each."""
    if len(data) < _DA.size:
        raise DamagedStore("table da1", f"a row of {len(data)} bytes instead of {_DA.size} or more")
    digest, _, stored_len, _, base = _DA_HEAD.unpack_from(data)
    return digest, stored_len, base


def da_encoding(data: bytes) -> tuple[int, int, int, int]:
    """(raw length, stored length, codec, base) of a DaRow: what reading it takes."""
    if len(data) < _DA.size:
        raise DamagedStore("table da1", f"a row of {len(data)} bytes instead of {_DA.size} or more")
    _, raw_len, stored_len, codec, base = _DA_HEAD.unpack_from(data)
    return raw_len, stored_len, codec, base


def da_earlier(data: bytes) -> int:
    """`earlier` of a DaRow, 0 where the row is damaged."""
    return int(_DA.unpack_from(data)[6]) if len(data) >= _DA.size else 0


def da_base(data: bytes) -> int:
    """The base of a DaRow, 0 for none."""
    if len(data) < _DA.size:
        raise DamagedStore("table da1", f"a row of {len(data)} bytes instead of {_DA.size} or more")
    base: int = _U64.unpack_from(data, _DA_HEAD.size - 8)[0]
    return base


def da_digest(data: bytes) -> bytes:
    """Whose bytes a DaRow tells of."""
    if len(data) < _DA.size:
        raise DamagedStore("table da1", f"a row of {len(data)} bytes instead of {_DA.size} or more")
    return data[:32]


def da_is_of(data: bytes, digest: bytes) -> bool:
    """Whether a DaRow is whole and tells of these bytes."""
    return len(data) >= _DA.size and data[:32] == digest


class GoneRow(NamedTuple):
    """A collected artifact: when (unix seconds), by which gc, its kinds and size in bytes.

    `data_id` is where its bytes still are, 0 for nowhere: since a delta needs them, or, where `until_s` is not 0, in
    quarantine until that second. `names` are the kinds beyond the known ones of what is in quarantine.
    """

    when_s: int
    gc: int
    kinds: int
    raw_len: int
    data_id: int = 0
    until_s: int = 0
    names: tuple[str, ...] = ()

    def pack(self) -> bytes:
        row = gone_row(*self[:4])
        return row + _BURIED.pack(self.data_id, self.until_s) + " ".join(self.names).encode() if self.data_id else row

    @classmethod
    def unpack(cls, data: bytes) -> GoneRow:
        if len(data) == _GONE.size:
            return cls(*_GONE.unpack(data))
        if len(data) < _GONE.size + _BURIED.size:
            raise DamagedStore("table gone1", f"a row of {len(data)} bytes instead of {_GONE.size}")
        data_id, until_s = _BURIED.unpack_from(data, _GONE.size)
        names = data[_GONE.size + _BURIED.size :].decode(errors="replace").split()
        return cls(*_GONE.unpack_from(data))._replace(data_id=data_id, until_s=until_s, names=tuple(names))


def gone_data_id(data: bytes) -> int:
    """`data_id` of a GoneRow, 0 where there is none."""
    return int(_BURIED.unpack_from(data, _GONE.size)[0]) if len(data) >= _GONE.size + _BURIED.size else 0


def is_buried(data: bytes) -> bool:
    """Whether a packed GoneRow tells of something in quarantine."""
    return len(data) >= _GONE.size + _BURIED.size and bool(_BURIED.unpack_from(data, _GONE.size)[1])


def gone_row(when_s: int, gc: int, kinds: int, raw_len: int) -> bytes:
    """A packed GoneRow of what is not in quarantine."""
    return _GONE.pack(when_s, gc, kinds, raw_len)


@final
@dataclass(slots=True)
class State:
    """The one row of counters, read and written by each write transaction."""

    commit: int = 0  # the store's own transaction number
    next_data_id: int = 1
    swept: int = 0  # number of transactions that deleted something
    epoch: int = 0  # number of the newest gc
    gc_open: int = 0
    cut: int = 0  # artifacts touched after this commit are safe from the newest gc
    grace_s_min: int = 3600  # the smallest grace that any gc had
    artifacts: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    tick_s: int = 0  # the second of the newest tick
    kept_bytes: int = 0  # stored bytes of collected artifacts that deltas need

    def pack(self) -> bytes:
        numbers = _state_numbers(self)
        try:
            return _STATE.pack(*numbers)
        except struct.error:  # counted from a damaged row; `verify` says so, and `--repair` counts anew
            return _STATE.pack(*(min(max(number, 0), _U64_MAX) for number in numbers))

    @classmethod
    def unpack(cls, data: bytes | None) -> State:
        if data is None:
            return cls()
        if len(data) != _STATE.size:
            raise DamagedStore("table meta1", f"a state of {len(data)} bytes instead of {_STATE.size}")
        return cls(*_STATE.unpack(data))


_U64_MAX: Final = (1 << 64) - 1
_STATE: Final = struct.Struct(f">{len(fields(State))}Q")
_state_numbers: Final = operator.attrgetter(*(field.name for field in fields(State)))


def kind_bit(kind: str) -> int:
    """The bit of a known kind, or the one that says: look in kn."""
    return _KIND_BITS.get(kind, OTHER_KINDS)


@functools.lru_cache(maxsize=1 << len(KINDS))
def known_kinds(bits: int) -> tuple[str, ...]:
    return tuple(kind for place, kind in enumerate(KINDS) if bits >> place & 1)
