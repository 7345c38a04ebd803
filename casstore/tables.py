"""The private seam under the table-based backend: named, ordered tables and transactions over them.

Two implementations: LMDB (lmdb_tables) and memory (here). Keys and values are bytes; a read transaction is one
snapshot; the write transaction is the only one of all processes and is atomic.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Protocol, final


class ReadTransaction(Protocol):
    """A snapshot."""

    def get(self, table: bytes, key: bytes) -> bytes | None:
        """The value, or None."""

    def get_many(self, table: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, or None, in the order of the keys."""

    def count(self, table: bytes) -> int:
        """Number of rows."""

    def scan(self, table: bytes, start: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with key >= start ascending; with `reverse` all pairs with key <= start (or all) descending."""

    def keys(self, table: bytes, start: bytes = b"") -> Iterator[bytes]:
        """Keys >= start ascending, without reading what they hold."""

    def last(self, table: bytes) -> bytes | None:
        """The greatest key, None in an empty table."""

    def version(self) -> int:
        """The number of the commit that it shows: greater after every commit of any process."""


class WriteTransaction(ReadTransaction, Protocol):
    """The one writer. Nothing is visible to others before it commits."""

    def put(self, table: bytes, key: bytes, value: bytes) -> None:
        """Set."""

    def put_many(self, table: bytes, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Set each; fastest where the keys ascend."""

    def append(self, table: bytes, key: bytes, value: bytes) -> None:
        """Set a key that is expected to be the greatest: dense pages where it is."""

    def append_many(self, table: bytes, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """As `append`, of ascending keys."""

    def delete(self, table: bytes, key: bytes) -> bool:
        """Remove; whether it was there."""

    def delete_many(self, table: bytes, keys: Iterable[bytes]) -> None:
        """Remove those that are there; fastest where the keys ascend."""


class Tables(Protocol):
    """A set of tables that is read and written in transactions."""

    def read(self) -> AbstractContextManager[ReadTransaction]: ...

    def write(self) -> AbstractContextManager[WriteTransaction]: ...

    def sync(self) -> None:
        """What is committed is durable when this returns."""

    def info(self) -> dict[str, int]:
        """Facts for people."""

    def reader_check(self) -> int:
        """Forget readers that died; how many."""

    def close(self) -> None: ...


class CompactableTables(Tables, Protocol):
    """Tables that can give unused space back."""

    def compact(self) -> tuple[int, int]:
        """Bytes taken before and after."""

    def tidy(self) -> None:
        """Remove what a killed compaction left."""


@final
class MemoryTables:
    """Tables in dicts, with an undo list for what fails; for tests and for users' tests."""

    def __init__(self, names: Sequence[bytes]) -> None:
        self._rows: dict[bytes, dict[bytes, bytes]] = {name: {} for name in names}
        self._keys: dict[bytes, list[bytes]] = {name: [] for name in names}
        self._lock = threading.RLock()
        self._version = 0

    @contextmanager
    def read(self) -> Iterator[ReadTransaction]:
        with self._lock:
            yield _MemoryTransaction(self._rows, self._keys, self._version)

    @contextmanager
    def write(self) -> Iterator[WriteTransaction]:
        with self._lock:
            txn = _MemoryTransaction(self._rows, self._keys, self._version + 1)
            try:
                yield txn
            except BaseException:
                txn.undo()
                raise
            self._version += 1

    def sync(self) -> None:
        """Memory has nothing to flush."""

    def info(self) -> dict[str, int]:
        with self._lock:
            size = sum(len(k) + len(v) for rows in self._rows.values() for k, v in rows.items())
        none = ("map_bytes", "page_bytes", "pages_used", "pages_free", "readers", "reader_lag_commits")
        return {"file_bytes": size, **dict.fromkeys(none, 0)}

    def reader_check(self) -> int:
        return 0

    def compact(self) -> tuple[int, int]:
        size = self.info()["file_bytes"]
        return size, size

    def tidy(self) -> None:
        """Nothing can be left over."""

    def close(self) -> None:
        """Nothing to give back."""


@final
class _MemoryTransaction:
    def __init__(self, rows: dict[bytes, dict[bytes, bytes]], keys: dict[bytes, list[bytes]], version: int) -> None:
        self._rows, self._keys, self._version = rows, keys, version
        self._before: list[tuple[bytes, bytes, bytes | None]] = []

    def get(self, table: bytes, key: bytes) -> bytes | None:
        return self._rows[table].get(key)

    def get_many(self, table: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        return list(map(self._rows[table].get, keys))

    def count(self, table: bytes) -> int:
        return len(self._rows[table])

    def scan(self, table: bytes, start: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        keys, rows = self._keys[table], self._rows[table]
        first = bisect_left(keys, start)
        if reverse:  # lazily: the last alone is asked for often
            first = len(keys) if not start else bisect_right(keys, start)
            found: Iterable[bytes] = islice(reversed(keys), len(keys) - first, None)
        else:
            found = keys[first:]
        for key in found:
            if key in rows:
                yield key, rows[key]

    def last(self, table: bytes) -> bytes | None:
        keys = self._keys[table]
        return keys[-1] if keys else None

    def version(self) -> int:
        return self._version

    def put(self, table: bytes, key: bytes, value: bytes) -> None:
        old = self._rows[table].get(key)
        self._before.append((table, key, old))
        if old is None:
            insort(self._keys[table], key)
        self._rows[table][key] = value

    append = put

    def keys(self, table: bytes, start: bytes = b"") -> Iterator[bytes]:
        return (key for key, _ in self.scan(table, start))

    def put_many(self, table: bytes, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in pairs:
            self.put(table, key, value)

    def delete_many(self, table: bytes, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.delete(table, key)

    def append_many(self, table: bytes, rows: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in rows:
            self.put(table, key, value)

    def delete(self, table: bytes, key: bytes) -> bool:
        old = self._rows[table].pop(key, None)
        if old is None:
            return False
        self._before.append((table, key, old))
        keys = self._keys[table]
        del keys[bisect_left(keys, key)]
        return True

    def undo(self) -> None:
        for table, key, old in reversed(self._before):
            if old is not None:
                if key not in self._rows[table]:
                    insort(self._keys[table], key)
                self._rows[table][key] = old
            elif self._rows[table].pop(key, None) is not None:
                del self._keys[table][bisect_left(self._keys[table], key)]
