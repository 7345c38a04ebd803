"""The store's tables over generations: compact makes a new one while readers and writers in other processes go on.

`store/CURRENT` names the directory of the current generation. Every transaction looks whether it still does; a write
transaction looks again once it holds the lock, so that no commit is lost in a generation that was left.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, final

from casstore import forks
from casstore.errors import DamagedStore, ForkedHandle, InvalidHome, StoreError, from_os
from casstore.home import current_generation, identity, replace_file
from casstore.lmdb_tables import LmdbTables
from casstore.presence import Presence
from casstore.rows import CHANGED, META
from casstore.steps import reach
from casstore.tables import ReadTransaction, WriteTransaction

COPYING: Final = b"copying"  # in meta while compact copies: every writer lists the keys that it changes
MOVED: Final = b"moved"  # in meta of a generation that was left
ROUND_KEYS: Final = 2000
LAST_ROUND_KEYS: Final = 200

Signature = tuple[int, int]


@final
class GenerationTables:
    """See `casstore.tables.Tables`. Handles of generations that were left close when their last transaction ends."""

    def __init__(self, home: Path, names: Sequence[bytes], *, create: bool, read_only: bool) -> None:
        self._home, self._names, self._read_only = home, names, read_only
        self._current = str(home / "store" / "CURRENT")
        self._lock, self._pid = threading.RLock(), forks.pid  # left by what is collected, at any moment
        self._active: dict[LmdbTables, set[int]] = {}  # whose transactions are open, by the id of who, see `_enter`
        self._identity = identity(home)
        self._seen, self._tables = self._open(create=create)

    # -- as Tables

    def read(self) -> AbstractContextManager[ReadTransaction]:
        return _Reading(self)

    @contextmanager
    def write(self) -> Iterator[WriteTransaction]:
        while True:
            with self._entered() as tables, tables.write() as txn:
                if self._is_current(tables) and txn.get(META, MOVED) is None:
                    yield txn if txn.get(META, COPYING) is None else _Listing(txn, self._names)
                    return

    def sync(self) -> None:
        with self._entered() as tables:
            tables.sync()

    def info(self) -> dict[str, int]:
        with self._entered() as tables:
            return tables.info()

    def reader_check(self) -> int:
        with self._entered() as tables:
            return tables.reader_check()

    def close(self) -> None:
        with self._lock:
            left, self._active = list(self._active), {}
        for tables in {*left, self._tables}:
            tables.close()

    # -- compact

    def compact(self) -> tuple[int, int]:
        """Copy what is used into a new generation and make it the current one; bytes of the file before and after.

        The caller keeps other compactions and collections out. Killed at any point the old or the new generation is
        whole and current; what is left over is removed by the next `tidy`. Raises: StoreFull.
        """
        self.tidy()
        old = self._tables
        before = old.info()["file_bytes"]
        number = int(current_generation(self._home)) + 1
        directory = self._home / "store" / str(number)
        with old.write() as txn:
            txn.put(META, COPYING, b"")
        try:
            reach("compact.copying")
            try:
                directory.mkdir()
            except OSError as error:
                raise from_os(error, directory) from error
            old.environment.copy_to(directory, compact=True)
            reach("compact.copied")
            new = LmdbTables(directory, self._names, create=False, read_only=False)
            try:
                while self._round(old, new) > LAST_ROUND_KEYS:
                    reach("compact.round")
                self._switch(old, new, number)
            finally:
                new.close()
        except BaseException:
            with suppress(StoreError):  # what went wrong first is of more interest
                self.tidy()
            raise
        reach("compact.switched")
        with self._entered() as tables:
            pass
        self.tidy()
        return before, tables.info()["file_bytes"]

    def tidy(self) -> None:
        """Remove what a killed compaction left, and generations that were left. Only with compactions kept out."""
        current = current_generation(self._home)
        for directory in (self._home / "store").iterdir():
            if directory.is_dir() and directory.name != current:
                _remove(directory)
        with self.read() as txn:
            unfinished = txn.get(META, COPYING) is not None
        if unfinished:
            with self._tables.write() as txn:
                txn.delete(META, COPYING)
                _clear(txn)

    def _round(self, old: LmdbTables, new: LmdbTables) -> int:
        """Bring over what was listed; how many keys. Taken off the list first: killed, the copy is thrown away."""
        with old.write() as txn:
            changes = _take(txn, self._names, ROUND_KEYS)
        _apply(new, changes)
        return len(changes)

    def _switch(self, old: LmdbTables, new: LmdbTables, number: int) -> None:
        """With the old generation's lock held: the last changes, a flush, then CURRENT decides."""
        with old.write() as txn:
            reach("compact.last")
            changes = _take(txn, self._names, 1 << 40)
            _apply(new, changes)
            with new.write() as fresh:
                fresh.delete(META, COPYING)
                _clear(fresh)
            new.sync()
            reach("compact.flushed")
            try:
                replace_file(self._home / "store" / "CURRENT", f"{number}\n")
            except OSError as error:
                raise from_os(error, self._current) from error
            reach("compact.renamed")
            txn.put(META, MOVED, str(number).encode())

    # -- inside

    def _open(self, *, create: bool = False) -> tuple[Signature, LmdbTables]:
        while True:
            seen = self._signature()
            name = current_generation(self._home)
            path = self._home / "store" / name
            try:
                tables = LmdbTables(path, self._names, create=create, read_only=self._read_only)
            except DamagedStore:
                if current_generation(self._home) == name:
                    raise
            else:
                if current_generation(self._home) == name:
                    return seen, tables
                tables.close()  # left and removed in between: LMDB may have made an empty one in its place

    def _signature(self) -> Signature:
        try:
            found = os.stat(self._current)
        except FileNotFoundError as error:
            if self._home.exists():
                raise DamagedStore(self._current, "it is missing") from error
            raise InvalidHome(str(self._home), "it was moved or removed while it was open") from error
        except OSError as error:
            raise from_os(error, self._current) from error
        return found.st_ino, found.st_mtime_ns

    def _is_current(self, tables: LmdbTables) -> bool:
        return tables is self._tables and self._signature() == self._seen

    def _entered(self) -> Presence[LmdbTables]:
        return Presence(self._enter, self._leave)

    def _enter(self, who: object) -> LmdbTables:
        """The current generation, which stays open until `who` leaves."""
        if self._pid != forks.pid:  # first of all: a thread of the parent may have held the lock when it forked
            raise ForkedHandle(str(self._home), self._pid)
        with self._lock:
            if self._signature() != self._seen:
                self._move_on()
            tables = self._tables
            inside = self._active.get(tables)
            if inside is None:
                inside = self._active[tables] = set()
            inside.add(id(who))
            return tables

    def _move_on(self) -> None:
        if identity(self._home) != self._identity:  # nothing of ours may be written there
            raise InvalidHome(str(self._home), "another store was put there while this one was open; open it anew")
        seen, fresh = self._open()
        left, self._tables, self._seen = self._tables, fresh, seen
        if not self._active.get(left):
            self._active.pop(left, None)
            left.close()

    def _leave(self, who: object) -> None:
        """Whether it entered or not."""
        if self._pid != forks.pid:
            return
        current = self._tables
        if id(who) in (inside := self._active.get(current, set())):
            inside.discard(id(who))
            if current is self._tables:  # else it was left meanwhile, and has to be closed by who leaves last
                return
        with self._lock:
            for tables, inside in list(self._active.items()):
                inside.discard(id(who))
                if not inside and tables is not self._tables:
                    self._active.pop(tables, None)
                    tables.close()


@final
class _Reading:
    """A read transaction; a class, since reads are many and a generator costs more."""

    __slots__ = ("_inner", "_owner")

    def __init__(self, owner: GenerationTables) -> None:
        self._owner: GenerationTables | None = owner

    def __enter__(self) -> ReadTransaction:
        owner = self._owner
        assert owner is not None
        try:
            self._inner = owner._enter(self).read()
            return self._inner.__enter__()
        except BaseException:
            owner._leave(self)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return self._inner.__exit__(kind, error, trace)
        finally:
            if self._owner is not None:
                self._owner._leave(self)
                self._owner = None

    def __del__(self) -> None:
        """An interrupt can come between any two steps: what was not left then is left now."""
        owner = getattr(self, "_owner", None)  # it may not even have been made
        if owner is not None:
            owner._leave(self)


@final
class _Listing:
    """A write transaction that lists the keys it changes, for the compaction that is copying."""

    def __init__(self, txn: WriteTransaction, names: Sequence[bytes]) -> None:
        self._txn = txn
        self._prefixes = {name: bytes((place,)) for place, name in enumerate(names)}
        self.get, self.count, self.scan, self.version = txn.get, txn.count, txn.scan, txn.version
        self.get_many, self.keys, self.last = txn.get_many, txn.keys, txn.last

    def put(self, table: bytes, key: bytes, value: bytes) -> None:
        self._txn.put(CHANGED, self._prefixes[table] + key, b"")
        self._txn.put(table, key, value)

    def put_many(self, table: bytes, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in pairs:
            self.put(table, key, value)

    def append(self, table: bytes, key: bytes, value: bytes) -> None:
        self._txn.put(CHANGED, self._prefixes[table] + key, b"")
        self._txn.append(table, key, value)

    def append_many(self, table: bytes, rows: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in rows:
            self.append(table, key, value)

    def delete(self, table: bytes, key: bytes) -> bool:
        self._txn.put(CHANGED, self._prefixes[table] + key, b"")
        return self._txn.delete(table, key)

    def delete_many(self, table: bytes, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.delete(table, key)


def _remove(directory: Path) -> None:
    """Processes that still read there keep the file open; at their next transaction they move on. One that is about to
    open it puts a file of locks there: what is left is removed the next time."""
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise from_os(error, directory) from error


Change = tuple[bytes, bytes, bytes | None]


def _take(txn: WriteTransaction, names: Sequence[bytes], most: int) -> list[Change]:
    """Listed keys with what they hold now, taken off the list."""
    listed: list[bytes] = []
    for key, _ in txn.scan(CHANGED):
        if len(listed) >= most:
            break
        listed.append(key)
    changes: list[Change] = []
    for key in listed:
        table = names[key[0]]
        changes.append((table, key[1:], txn.get(table, key[1:])))
        txn.delete(CHANGED, key)
    return changes


def _apply(new: LmdbTables, changes: Sequence[Change]) -> None:
    if not changes:
        return
    with new.write() as txn:
        for table, key, value in changes:
            if value is None:
                txn.delete(table, key)
            else:
                txn.put(table, key, value)


def _clear(txn: WriteTransaction) -> None:
    for key in [key for key, _ in txn.scan(CHANGED)]:
        txn.delete(CHANGED, key)


