"""One LMDB environment, opened the way that loses nothing: the only place that knows LMDB's options and errors.

casstore's LMDB backend and the journal's share it. What it guards against, each from a report named in the
peers' trackers: a small map, a second handle in one process, use after fork, dead readers, a short data file,
network file systems, a transaction that is used again after it failed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, final

import lmdb

from casstore import forks
from casstore.adoption import MapUsers, fits, map_sizes
from casstore.disks import allot_lock_file, check_filesystem, data_size, disk_is_full
from casstore.errors import (
    AlreadyOpen,
    Busy,
    ClosedHandle,
    DamagedStore,
    ForkedHandle,
    InvalidHome,
    PoisonedHandle,
    ReadOnly,
    StoreError,
    StoreFull,
    from_os,
)
from casstore.fork_gate import ForkGate
from casstore.presence import Presence

__all__ = ["Environment", "leave", "open_environment"]

MAP_SIZE_BYTES: Final = 1 << 40
READER_CHECK_S: Final = 30.0
_READERS_MAX: Final = 1024
_ALREADY_OPEN: Final = "already open in this process"
_NO_ADDRESS_SPACE: Final = "no address space for the memory map"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Process-wide by necessity: LMDB forbids a second handle of one environment in a process, and a forked child
# has to let go of all that it inherited.
_open: dict[tuple[int, int], Environment] = {}
_closing: dict[tuple[int, int], Environment] = {}  # given up by their last user; LMDB has them a little longer
# Taken as a lock, not by way of the condition: an interrupt inside of that one's own code would leave it taken for
# ever. Again by the same thread: what is collected closes, at any moment.
_open_lock = threading.RLock()
_closed = threading.Condition(_open_lock)
CLOSING_WAIT_S: Final = 60.0


_gate = ForkGate()


@final
class _Reading:
    """A read transaction; a class, since reads are many and a generator costs more."""

    __slots__ = ("_environment", "_gate", "_txn")

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def __enter__(self) -> Any:
        environment = self._environment
        environment._check()
        self._txn: Any = None
        self._gate: ForkGate | None = _gate
        self._gate.enter(self)
        try:
            self._txn = environment._users_of_map.begin(self, environment._begin_read, environment._adopt_map)
        except BaseException as error:
            self._leave()
            if isinstance(error, lmdb.Error):
                raise environment._translate(error) from error
            raise
        return self._txn

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._environment._check_forked(self._txn)
        try:
            self._txn.abort()
        finally:
            self._leave()
        if isinstance(error, lmdb.Error):
            raise self._environment._translate(error) from error

    def _leave(self) -> None:
        self._environment._users_of_map.end(self)
        if self._gate is not None:
            self._gate.leave(self)
            self._gate = None

    def __del__(self) -> None:
        """An interrupt can come between any two steps: what was not left then is left now."""
        if getattr(self, "_gate", None) is None:
            return
        if self._environment._pid != forks.pid:
            _leak(self._txn)
            return
        if self._txn is not None:
            self._txn.abort()
        self._leave()


@final
class Environment:
    """An open environment with its named databases; shared by all users in this process, and closed with the last.

    A commit through `write()` is atomic. It is on disk when `write()` returns if the environment is `durable`;
    else after the next `sync()`, and until then a power loss may take the newest commits, never the integrity.
    """

    def __init__(self, env: Any, path: Path, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self._env = env
        self._pid = forks.pid
        self._users: set[int] = set()  # by id, so that this keeps nobody alive
        self._closed = False
        self._poison: str | None = None
        self._writer: int | None = None
        self._mutex = threading.Lock()
        self._users_of_map = MapUsers(lmdb.MapResizedError)
        self._reader_checked = time.monotonic()
        self._databases: dict[bytes, Any] = {}
        self.page_size: int = env.stat()["psize"]

    # -- transactions ---------------------------------------------------------------------------------

    def read(self) -> AbstractContextManager[Any]:
        """A snapshot. Copy out what you need: nothing from it may be kept past the block."""
        return _Reading(self)

    @contextmanager
    def write(self) -> Iterator[Any]:
        """The one write transaction of all processes: committed at the end of the block, dropped on any error.

        Raises: ReadOnly, StoreFull (nothing written), PoisonedHandle (outcome not known), ForkedHandle.
        """
        self._check()
        if self.read_only:
            raise ReadOnly(str(self.path))
        me = threading.get_ident()
        if self._writer == me and self._mutex.locked():
            raise Busy(f"{self.path}: this thread already holds the write lock")
        with self._mutex, _gate.passed():
            self._check()
            try:
                self._writer = me
                with Presence(self._begin_write, self._users_of_map.end) as txn:
                    yield from self._writing(txn)
            finally:
                self._writer = None

    def _writing(self, txn: Any) -> Iterator[Any]:
        try:
            yield txn
            self._check_forked(txn)
            self._commit(txn)
        except BaseException as error:
            self._check_forked(txn)
            with suppress(lmdb.Error):  # it is committed, or was aborted by what failed
                txn.abort()  # a failed transaction is never used again (monero#2168)
            if isinstance(error, lmdb.Error):
                raise self._translate(error) from error
            raise

    def _commit(self, txn: Any) -> None:
        try:
            txn.commit()
        except lmdb.Error as error:
            raise self._translate(error, committing=True) from error

    def _check_forked(self, txn: Any) -> None:
        """A child that was forked inside of a transaction leaves it alone: lock and slot are its parent's.

        Raises: ForkedHandle.
        """
        if self._pid != forks.pid:
            _leak(txn)
            raise ForkedHandle(str(self.path), self._pid)

    def sync(self) -> None:
        """Everything committed so far, by whichever process, is on disk when this returns.

        Raises: PoisonedHandle when the flush fails: the kernel may have dropped what it could not write.
        """
        self._check()
        if self.read_only:
            return
        try:
            with _gate.passed():  # py-lmdb's close waits for calls in flight, and in a forked child they never end
                self._env.sync(True)
        except lmdb.Error as error:
            self._poison = f"flush failed: {error}"
            raise PoisonedHandle(str(self.path), self._poison) from error

    def db(self, name: bytes) -> Any:
        """The handle of a named database."""
        return self._databases[name]

    # -- facts ----------------------------------------------------------------------------------------

    def info(self) -> dict[str, int]:
        """File and map size in bytes, pages used and free, readers, and by how many commits the oldest of them lags."""
        self._check()
        with self.read() as txn:
            info = self._env.info()
            tables = [txn.stat(db) for db in self._databases.values()] + [self._env.stat()]
        used = 2 + sum(t["branch_pages"] + t["leaf_pages"] + t["overflow_pages"] for t in tables)
        return {
            "file_bytes": data_size(self.path),
            "map_bytes": info["map_size"],
            "page_bytes": self.page_size,
            "pages_used": used,
            "pages_free": max(info["last_pgno"] + 1 - used, 0),
            "readers": info["num_readers"],
            "reader_lag_commits": max(info["last_txnid"] - self._oldest_reader(info["last_txnid"]), 0),
        }

    def _oldest_reader(self, newest: int) -> int:
        """The oldest snapshot that a reader of any process holds: pages freed since are not used again."""
        rows = (line.split() for line in self._env.readers().splitlines())
        return min((int(row[2]) for row in rows if len(row) == 3 and row[2].isdecimal()), default=newest)

    def reader_check(self) -> int:
        """Clear the slots of readers whose process died; they would keep every page since from reuse."""
        self._check()
        with _gate.passed():
            return int(self._env.reader_check())

    def copy_to(self, path: Path, *, compact: bool) -> None:
        """Write a consistent copy into the existing empty directory `path`."""
        self._check()
        try:
            with _gate.passed():
                self._env.copy(os.fsencode(path), compact=compact)
        except lmdb.Error as error:
            raise self._translate(error) from error

    # -- life -----------------------------------------------------------------------------------------

    def leave(self, user: object) -> None:
        """Used no longer, if it was; the last one closes."""
        if self._closed or self._pid != forks.pid:
            return
        try:
            with _open_lock:
                self._users.discard(id(user))
                if self._users:
                    return
                self._closed = True
                for key in [key for key, env in _open.items() if env is self]:
                    _closing[key] = self
                    del _open[key]
            with self._mutex:  # not under the lock of all: a transaction that is open may have to open another one
                self._env.close()
        finally:
            if self._closed:
                try:
                    self._end_of_closing()
                except BaseException:  # an interrupt
                    self._end_of_closing()
                    raise

    def _end_of_closing(self) -> None:
        """Where an interrupt came before the end, it is as open as before: LMDB takes no second handle."""
        with _open_lock:
            self._closed = _is_shut(self)
            for key in [key for key, env in _closing.items() if env is self]:
                if not self._closed:
                    _open[key] = self
                del _closing[key]
            _closed.notify_all()

    # -- inside ---------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._pid != forks.pid:
            raise ForkedHandle(str(self.path), self._pid)
        if self._closed:
            raise ClosedHandle(str(self.path))
        if self._poison is not None:
            raise PoisonedHandle(str(self.path), self._poison)

    def _begin_read(self) -> Any:
        now = time.monotonic()
        if now - self._reader_checked > READER_CHECK_S:
            self._reader_checked = now
            self._env.reader_check()
        try:
            return self._env.begin()
        except lmdb.ReadersFullError:
            self._env.reader_check()
            return self._env.begin()

    def _begin_write(self, who: object) -> Any:
        return self._users_of_map.begin(who, self._begin_write_now, self._adopt_map)

    def _begin_write_now(self) -> Any:
        try:
            return self._env.begin(write=True)
        except lmdb.MapResizedError:
            raise
        except lmdb.Error as error:
            raise self._translate(error) from error

    def _adopt_map(self) -> None:
        """Raises: StoreFull (no address space for it: the handle goes on with what its map shows), PoisonedHandle."""
        wanted = next(filter(fits, map_sizes(data_size(self.path), MAP_SIZE_BYTES)), None)
        if wanted is None:
            raise StoreFull(str(self.path), _NO_ADDRESS_SPACE)
        try:
            self._env.set_mapsize(wanted)
        except lmdb.Error as error:  # the old map is given up first, so there is none now
            self._poison = f"its memory map is lost: {error}"
            raise PoisonedHandle(str(self.path), self._poison) from error

    def _translate(self, error: lmdb.Error, *, committing: bool = False) -> StoreError:
        """LMDB's error as one of ours. A full disk has three faces: ENOSPC, EIO, and a short write."""
        path = str(self.path)
        if isinstance(error, lmdb.ReadersFullError):
            return _all_reading(self.path)
        if isinstance(error, lmdb.MapFullError):
            return StoreFull(path, "the memory map is full")
        if isinstance(error, lmdb.MemoryError):
            return StoreFull(path, "no memory is left for the transaction")
        if isinstance(error, lmdb.DiskError) or getattr(error, "code", 0) in _FULL:
            return StoreFull(path, "no space left on the disk")
        if getattr(error, "code", 0) == errno.EIO and disk_is_full(self.path, self.page_size):
            return StoreFull(path, "no space left on the disk")
        if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError)):
            return DamagedStore(path, str(error))
        if committing:
            self._poison = f"commit failed: {error}"
            return PoisonedHandle(path, self._poison)
        return DamagedStore(path, str(error))


def open_environment(
    path: Path,
    user: object,
    *,
    create: bool,
    read_only: bool = False,
    durable: bool,
    databases: Sequence[bytes],
    readahead: bool = False,
    max_dbs: int = 24,
    map_size: int = MAP_SIZE_BYTES,
) -> Environment:
    """Open, or with `create` make, the environment in the directory `path` with all its named databases, until `user`
    leaves (see `leave`).

    `durable` says whether each commit is on disk when it returns; without it `sync()` is the barrier.
    Raises: DamagedStore (missing or short data file), AlreadyOpen, InvalidHome, UnsupportedFilesystem.
    """
    with _open_lock:
        if create:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise from_os(error, path, InvalidHome) from error
        check_filesystem(path)
        try:
            stat = os.stat(path)
        except OSError as error:
            raise DamagedStore(str(path), "the directory is missing") from error
        key = (stat.st_dev, stat.st_ino)
        if not _closed.wait_for(lambda: key not in _closing, timeout=CLOSING_WAIT_S):
            raise AlreadyOpen(str(path), "its last user is closing it, and a transaction of it goes on")
        shared = _open.get(key)
        if shared is not None:
            if shared._pid != forks.pid:
                raise ForkedHandle(f"{path} (forked while it was read or written: exec, or spawn a child)", shared._pid)
            if shared.read_only and not read_only:
                raise AlreadyOpen(str(path), "read-only")
            # Another part of the program knows of fewer tables: the journal's environment also holds staged rows.
            missing = [name for name in databases if name not in shared._databases]
            _open_databases(shared, missing, read_only=shared.read_only)
            shared._check()
            shared._users.add(id(user))
            return shared
        size = data_size(path)
        if not create and not size:
            raise DamagedStore(str(path / "data.mdb"), "the data file is missing or empty")
        environment = Environment(
            _open_lmdb(path, size, read_only, durable, readahead, max_dbs, map_size), path, read_only=read_only
        )
        try:
            _check_length(environment, path)
            _open_databases(environment, databases, read_only=read_only)
        except BaseException:
            environment._env.close()
            raise
        environment._users.add(id(user))
        _open[key] = environment
        return environment


def leave(user: object) -> None:
    """Give back what it uses, if it does: an interrupt may have come before it learned of it, or while another left."""
    for environment in list(_open.values()):
        if not environment._users or id(user) in environment._users:
            environment.leave(user)


def _is_shut(environment: Environment) -> bool:
    try:
        environment._env.path()
    except lmdb.Error:
        return True
    return False


def _open_lmdb(
    path: Path, size: int, read_only: bool, durable: bool, readahead: bool, max_dbs: int, map_size: int
) -> Any:
    options: dict[str, Any] = {
        "max_dbs": max_dbs, "max_readers": _READERS_MAX, "writemap": False, "readahead": readahead,
        "metasync": durable, "sync": True, "readonly": read_only, "create": not read_only,
        # A cached read transaction keeps its slot in the shared lock file; a forked child that closes its inherited
        # handle would clear it under the parent (py-lmdb#346).
        "max_spare_txns": 0,
    }  # fmt: skip
    if not size:
        options["lib_version"] = 0  # only for a new file: an existing one knows its engine
    if read_only and not os.access(path / "lock.mdb", os.W_OK):
        if (path / "lock.mdb").exists() and not os.statvfs(path).f_flag & os.ST_RDONLY:
            raise InvalidHome(str(path / "lock.mdb"), "readers need permission to write to it")
        options["lock"] = False  # a read-only file system has no writers either, and where it is missing there is none
    else:
        allot_lock_file(path, _READERS_MAX)
    for wanted in map_sizes(size, map_size):
        try:
            return lmdb.open(os.fsencode(path), map_size=wanted, **options)
        except (lmdb.MemoryError, MemoryError):
            continue
        except lmdb.ReadersFullError as error:
            raise _all_reading(path) from error
        except lmdb.InvalidParameterError as error:
            raise DamagedStore(str(path), str(error)) from error
        except (lmdb.ReadonlyError, PermissionError) as error:
            raise InvalidHome(str(path), str(error)) from error
        except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError) as error:
            raise DamagedStore(str(path / "data.mdb"), str(error)) from error
        except lmdb.DiskError as error:
            raise StoreFull(str(path), str(error)) from error
        except lmdb.Error as error:
            if _ALREADY_OPEN in str(error):  # by another library, or by a handle that was lost
                raise AlreadyOpen(str(path), "by something else in this process") from error
            if getattr(error, "code", 0) in (errno.EBUSY, errno.EAGAIN):  # another process takes the file of locks down
                raise Busy(f"{path}: another process is opening or closing it") from error
            raise from_os(OSError(getattr(error, "code", 0), str(error)), path) from error
    raise StoreFull(str(path), _NO_ADDRESS_SPACE)


def _all_reading(path: Path) -> Busy:
    """Slots of readers that were killed are free at the next read, gc or opening of a process that got in before."""
    return Busy(f"{path}: {_READERS_MAX} readers hold snapshots, more there cannot be")


def _check_length(environment: Environment, path: Path) -> None:
    """A data file shorter than its pages would end the process with SIGBUS at the first read of the rest."""
    needed = (environment._env.info()["last_pgno"] + 1) * environment.page_size
    found = data_size(path)
    # LMDB writes pages before the meta page that names them, so only a cut file can be short.
    if found < needed:
        raise DamagedStore(str(path / "data.mdb"), f"the data file has {found} bytes, its pages need {needed}")


def _open_databases(environment: Environment, names: Sequence[bytes], *, read_only: bool) -> None:
    for name in names:
        try:
            environment._databases[name] = environment._env.open_db(name, create=not read_only)
        except lmdb.NotFoundError as error:
            raise DamagedStore(str(environment.path), f"table {name.decode()} is missing") from error
        except lmdb.Error as error:
            raise environment._translate(error) from error
    if names:
        with suppress(lmdb.Error):
            environment._env.reader_check()


def _leak(handle: object) -> None:
    """Keep an object for ever, also past the end of the interpreter: destroyed, it would let go of what its parent
    process still holds."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))


def _after_fork_in_child() -> None:
    """Let go of inherited handles: after that the child can open the same homes, the parent notices nothing."""
    global _open_lock, _closed, _gate
    _open_lock = threading.RLock()
    _closed, inherited, _gate = threading.Condition(_open_lock), _gate, ForkGate()
    _closing.clear()
    inherited.after_in_child()
    if inherited.is_used:  # closing would give up the snapshot that the parent still reads
        for environment in _open.values():
            _leak(environment._env)
        return
    for environment in list(_open.values()):
        environment._closed = True
        with suppress(Exception):
            environment._env.close()
    _open.clear()


os.register_at_fork(
    before=lambda: _gate.before_fork(),  # looked up late: a child has a gate of its own
    after_in_parent=lambda: _gate.after_in_parent(),
    after_in_child=_after_fork_in_child,
)
