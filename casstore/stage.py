"""Staged rows: small artifacts that were written with an append, in the journal's environment, and go into the store
later, many at a time (docs/GC.md, section 2, "Staged rows"). So a durable step flushes the journal and nothing else.

A staged artifact may need (as links, as the base of its delta) what is in the store, and what was staged before it.
It is a root for gc until it is settled, whatever becomes of its run.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence, Set
from typing import Final, NamedTuple, final

from casstore.backend import NewArtifact, Until
from casstore.errors import DamagedStore
from casstore.tables import ReadTransaction, Tables, WriteTransaction

__all__ = ["ROWS_MAX", "TABLE", "Stage", "Staged", "StagedName", "due", "fits", "is_staged", "write"]

TABLE: Final = b"staged1"  # digest -> Staged
ROW_BYTES_MAX: Final = 4080  # one overflow page of LMDB
ROWS_MAX: Final = 1000
_ROWS_DUE: Final = 32  # the fewest that are worth a settling
_GROUPS_DUE: Final = 8  # of appends between two settlings

StagedName = tuple[bytes, bytes]  # digest and position: staged again later it is another

_HEAD: Final = struct.Struct(">QHIQBHBBH")


class Staged(NamedTuple):
    """An artifact as an append brought it. `position` is that of the append's first event, `place` tells several of
    one append apart: together the order of staging. `put_s` is unix seconds; `base` the digest of a delta's base."""

    digest: bytes
    position: int
    place: int
    put_s: int
    kind: str
    raw_len: int
    links: tuple[bytes, ...]
    codec: int
    stored: bytes
    base: bytes | None
    chain: int

    @property
    def needs(self) -> tuple[bytes, ...]:
        """What has to be there with it."""
        return self.links if self.base is None else (*self.links, self.base)

    def pack(self) -> bytes:
        kind = self.kind.encode()
        head = _HEAD.pack(
            self.position, self.place, self.put_s, self.raw_len, self.codec, self.chain, len(kind),
            self.base is not None, len(self.links),
        )  # fmt: skip
        return b"".join((head, kind, self.base or b"", *self.links, self.stored))

    @classmethod
    def unpack(cls, digest: bytes, data: bytes) -> Staged:
        """Raises: DamagedStore."""
        try:
            position, place, put_s, raw_len, codec, chain, named, based, linked = _HEAD.unpack_from(data)
            at = _HEAD.size
            kind = data[at : at + named].decode("ascii")
            at += named
            base = data[at : at + 32] if based else None
            at += 32 * bool(based)
            links = tuple(data[start : start + 32] for start in range(at, at + 32 * linked, 32))
            at += 32 * linked
            if at > len(data) or based > 1:
                raise ValueError(f"{len(data)} bytes")
        except (struct.error, ValueError) as error:
            raise DamagedStore(f"table {TABLE.decode()}", f"the row of {digest.hex()}: {error}") from error
        return cls(digest, position, place, put_s, kind, raw_len, links, codec, data[at:], base, chain)

    def artifact(self) -> NewArtifact:
        """It, as a put into the store."""
        return NewArtifact(
            self.digest, self.kind, self.raw_len, self.links, self.codec, self.stored, len(self.stored),
            base=self.base, chain=self.chain,
        )  # fmt: skip


def fits(artifact: NewArtifact) -> bool:
    """Whether it is small enough to be staged, and needs a row at all."""
    if artifact.stored is None or artifact.heal:
        return False
    size = _HEAD.size + len(artifact.kind) + 32 * (len(artifact.links) + 1) + artifact.stored_len
    return size <= ROW_BYTES_MAX


def due(more: int) -> int:
    """How many rows to have before a settling, where `more` come at a time: few, so that the journal's file stays
    small, and enough to spread the flushes of the settling over several appends."""
    return min(ROWS_MAX, max(_ROWS_DUE, _GROUPS_DUE * more))


# -- within a transaction of the journal ----------------------------------------------------------------------


def is_staged(t: ReadTransaction, digest: bytes) -> bool:
    return t.get(TABLE, digest) is not None


def write(t: WriteTransaction, artifact: NewArtifact, position: int, place: int, now_s: int) -> None:
    """Stage it. What is staged already keeps its place: others may have been staged that need it."""
    if is_staged(t, artifact.digest):
        return
    assert artifact.stored is not None
    row = Staged(
        artifact.digest, position, place, now_s, artifact.kind, artifact.raw_len, artifact.links, artifact.codec,
        artifact.stored, artifact.base, artifact.chain,
    )  # fmt: skip
    t.put(TABLE, artifact.digest, row.pack())


# -- from outside ---------------------------------------------------------------------------------------------


@final
class Stage:
    """The staged rows of a home. `tables` opens the journal's environment; None while there is no journal."""

    def __init__(self, tables: Callable[[], Tables | None] = lambda: None) -> None:
        self._open = tables
        self._opened: Tables | None = None
        self._lock = threading.Lock()

    def find(self, digest: bytes) -> Staged | None:
        """The row of an artifact. Who did not find it in the store, nor here, looks in the store once more: it may
        have been settled between the two looks."""
        tables = self._tables()
        if tables is None:
            return None
        with tables.read() as t:
            found = t.get(TABLE, digest)
        return None if found is None else Staged.unpack(digest, found)

    def walk(self, digest: bytes, until: Until) -> list[Staged]:
        """The row of an artifact, that of its base, and so on as long as they are staged and `until` does not say that
        it is enough (see BlobBackend.base_walk); empty where it is not."""
        tables, found = self._tables(), list[Staged]()
        if tables is None:
            return found
        with tables.read() as t:
            at: bytes | None = digest
            while at is not None and (data := t.get(TABLE, at)) is not None:
                row = Staged.unpack(at, data)
                if found and (row.position, row.place) >= (found[-1].position, found[-1].place):
                    break  # damage: a base was staged before
                found.append(row)
                at = row.base if row.chain > until(found[0].chain) else None
        return found

    def rows(self) -> list[Staged]:
        """All of them in the order in which they were staged: nothing needs a later one."""
        return self.late(frozenset())[0]

    def late(self, seen: Set[StagedName]) -> tuple[list[Staged], frozenset[StagedName]]:
        """Those that were not seen, in the order in which they were staged, and what all of them are seen as. By name,
        not from the newest position on: that of a damaged row may be one that never comes."""
        tables = self._tables()
        if tables is None:
            return [], frozenset()
        with tables.read() as t:
            if not t.count(TABLE):
                return [], frozenset()
            named = {(digest, data[:8]): data for digest, data in t.scan(TABLE)}
        found = [Staged.unpack(name[0], data) for name, data in named.items() if name not in seen]
        return sorted(found, key=lambda row: (row.position, row.place)), frozenset(named)

    def count(self) -> int:
        tables = self._tables()
        if tables is None:
            return 0
        with tables.read() as t:
            return t.count(TABLE)

    def drop(self, rows: Sequence[Staged], settled: Callable[[Sequence[Staged]], Sequence[bool]]) -> None:
        """Under the journal's lock ask which rows are `settled`, and remove those."""
        tables = self._tables()
        if tables is None or not rows:
            return
        with tables.write() as t:
            for row, done in zip(rows, settled(rows), strict=True):
                if done:
                    t.delete(TABLE, row.digest)

    def close(self) -> None:
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def _tables(self) -> Tables | None:
        if self._opened is None:
            with self._lock:
                if self._opened is None:
                    self._opened = self._open()
        return self._opened
