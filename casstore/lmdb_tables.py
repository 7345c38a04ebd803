"""Tables in an LMDB environment: the embedded default."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, final

from casstore.disks import flush
from casstore.environment import Environment, leave, open_environment
from casstore.errors import from_os
from casstore.home import aside
from casstore.tables import ReadTransaction, WriteTransaction


@final
class LmdbTables:
    """See `casstore.tables.Tables`; commits are atomic at once and durable after `sync()`, or at once if `durable`.
    With `create` they are made where there are none."""

    def __init__(
        self, path: Path, names: Sequence[bytes], *, create: bool, read_only: bool, durable: bool = False
    ) -> None:
        made = not create or (path / "data.mdb").exists() or _make(path, names)
        self.environment: Environment = open_environment(
            path, self, create=not made, read_only=read_only, durable=durable, databases=names
        )
        self._handles = {name: self.environment.db(name) for name in names}

    def read(self) -> AbstractContextManager[ReadTransaction]:
        return _Reading(self.environment, self._handles)

    @contextmanager
    def write(self) -> Iterator[WriteTransaction]:
        with self.environment.write() as txn:
            yield _LmdbTransaction(txn, self._handles)

    def sync(self) -> None:
        self.environment.sync()

    def info(self) -> dict[str, int]:
        return self.environment.info()

    def reader_check(self) -> int:
        return self.environment.reader_check()

    def close(self) -> None:
        leave(self)

    def __del__(self) -> None:
        """An interrupt can come before whoever opened these holds them."""
        leave(self)


def _make(path: Path, names: Sequence[bytes]) -> bool:
    """An environment at `path`, with all its tables or not at all: another process may be making it as well, or reads
    there as soon as it is. Whether it is there now."""
    temporary = aside(path)
    try:
        try:
            open_environment(temporary, temporary, create=True, durable=False, databases=names).sync()
        finally:
            leave(temporary)
        try:
            os.rename(temporary, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise from_os(error, path) from error
        else:
            flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return (path / "data.mdb").exists()


@final
class _Reading:
    """A read transaction; a class, since reads are many and a generator costs more."""

    __slots__ = ("_handles", "_inner")

    def __init__(self, environment: Environment, handles: dict[bytes, Any]) -> None:
        self._inner, self._handles = environment.read(), handles

    def __enter__(self) -> ReadTransaction:
        return _LmdbTransaction(self._inner.__enter__(), self._handles)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._inner.__exit__(kind, error, trace)


@final
class _LmdbTransaction:
    def __init__(self, txn: Any, handles: dict[bytes, Any]) -> None:
        self._txn, self._handles = txn, handles

    def get(self, table: bytes, key: bytes) -> bytes | None:
        found: bytes | None = self._txn.get(key, db=self._handles[table])
        return found

    def get_many(self, table: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._txn.cursor(db=self._handles[table]) as cursor:
            found: list[tuple[bytes, bytes]] = cursor.getmulti(keys)
        if len(found) == len(keys):
            return [value for _, value in found]
        there = dict(found)
        return [there.get(key) for key in keys]

    def count(self, table: bytes) -> int:
        entries: int = self._txn.stat(self._handles[table])["entries"]
        return entries

    def scan(self, table: bytes, start: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        with self._txn.cursor(db=self._handles[table]) as cursor:
            if not reverse:
                if cursor.set_range(start) if start else cursor.first():
                    yield from cursor.iternext()
                return
            placed = cursor.last()
            if start and cursor.set_range(start):
                placed = True if cursor.key() == start else cursor.prev()
            elif start:
                placed = cursor.last()
            if placed:
                yield from cursor.iterprev()

    def keys(self, table: bytes, start: bytes = b"") -> Iterator[bytes]:
        with self._txn.cursor(db=self._handles[table]) as cursor:
            if cursor.set_range(start) if start else cursor.first():
                yield from cursor.iternext(keys=True, values=False)

    def last(self, table: bytes) -> bytes | None:
        with self._txn.cursor(db=self._handles[table]) as cursor:
            return bytes(cursor.key()) if cursor.last() else None

    def version(self) -> int:
        number: int = self._txn.id()
        return number

    def put(self, table: bytes, key: bytes, value: bytes) -> None:
        self._txn.put(key, value, db=self._handles[table])

    def put_many(self, table: bytes, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        with self._txn.cursor(db=self._handles[table]) as cursor:
            cursor.putmulti(pairs)

    def append(self, table: bytes, key: bytes, value: bytes) -> None:
        # LMDB's append stores nothing, without a word, where the key is not the greatest.
        if not self._txn.put(key, value, db=self._handles[table], append=True):
            self._txn.put(key, value, db=self._handles[table])

    def append_many(self, table: bytes, rows: Sequence[tuple[bytes, bytes]]) -> None:
        with self._txn.cursor(db=self._handles[table]) as cursor:
            _, added = cursor.putmulti(rows, append=True)
        if added != len(rows):  # as above
            for key, value in rows:
                self._txn.put(key, value, db=self._handles[table])

    def delete(self, table: bytes, key: bytes) -> bool:
        return bool(self._txn.delete(key, db=self._handles[table]))

    def delete_many(self, table: bytes, keys: Iterable[bytes]) -> None:
        with self._txn.cursor(db=self._handles[table]) as cursor:
            place, delete = cursor.set_key, cursor.delete
            for key in keys:
                if place(key):
                    delete()
