"""Backups: a whole home copied while others read and write.

The copy is built beside DEST, flushed, and renamed: DEST is there whole, or not at all. gc and compact are kept out
meanwhile, so nothing is removed from the store; a journal that is copied before the store therefore names only what
the store's copy holds.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid as uuids
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from casstore import counters, puts, sweeps
from casstore.disks import check_filesystem, flush
from casstore.errors import DamagedStore, InvalidArgument, StoreFull
from casstore.generations import COPYING, MOVED
from casstore.home import Home, format_text, has_journal, open_home, replace_file
from casstore.ids import ArtifactId
from casstore.lmdb_tables import LmdbTables
from casstore.locks import collector_lock
from casstore.rows import CHANGED, LEASE, LEASED, META, RECENT, TABLES
from casstore.steps import reach
from casstore.tables import WriteTransaction

__all__ = ["BackupReport", "Draft", "backup", "drafting"]

_PURGE_PIECES: Final = 2000
_FULL_BYTES: Final = 1 << 20


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """A backup: where, its instance, its artifacts with their raw bytes, the journal's newest position (0 without a
    journal), and the bytes of its files."""

    path: Path
    instance: str
    artifacts: int
    raw_bytes: int
    position: int
    file_bytes: int


@final
class Draft:
    """A copy that is being made. It has no FORMAT until it is whole, so nobody takes it for a home."""

    def __init__(self, home: Home, path: Path, dest: Path) -> None:
        self.home, self.path, self.dest = home, path, dest
        self.position = 0
        self._store = path / "store" / "1"
        self._artifacts = self._raw_bytes = 0

    def copy(self, source: Path, into: Path, names: Sequence[bytes]) -> None:
        """Copy an environment of this home as of one moment into a new directory of the draft."""
        into.mkdir(parents=True)
        tables = LmdbTables(source, names, create=False, read_only=False)  # shares the handle that is open here
        try:
            tables.environment.copy_to(into, compact=True)
        finally:
            tables.close()

    def copy_store(self) -> None:
        """Copy the store; after the journal. What belongs to processes does not go along: leases, unfinished
        uploads, an open gc, a compaction."""
        self.copy(self.home.store_path, self._store, TABLES)
        reach("backup.store")
        with self.opened(self._store, TABLES) as tables:
            with tables.write() as txn:
                _settle(txn)
            more = 1
            while more:
                with tables.write() as txn:
                    more = sweeps.purge(txn, _PURGE_PIECES)
            with tables.read() as look:
                state = counters.load_state(look)
            self._artifacts, self._raw_bytes = state.artifacts, state.raw_bytes

    @contextmanager
    def opened(self, directory: Path, names: Sequence[bytes]) -> Iterator[LmdbTables]:
        """The tables of a copy, to read and to change; on disk afterwards."""
        lock = directory / "lock.mdb"
        tables = LmdbTables(directory, names, create=False, read_only=False)
        try:
            yield tables
            tables.sync()
        finally:
            tables.close()
            lock.unlink()

    def missing(self, ids: Sequence[ArtifactId]) -> list[ArtifactId]:
        """Those that the copy of the store does not hold."""
        with self.opened(self._store, TABLES) as tables, tables.read() as look:
            return [name for name in ids if puts.find(look, name.digest) is None]

    def seal(self) -> BackupReport:
        """Make it a home of its own and put it in place; durable on return."""
        instance = str(uuids.uuid4())
        replace_file(self.path / "store" / "CURRENT", "1\n")
        replace_file(self.path / "FORMAT", format_text(self.home.uuid, instance))
        size = _flush_tree(self.path)
        reach("backup.flushed")
        if os.path.lexists(self.dest):
            raise InvalidArgument("dest", f"{self.dest} exists")
        os.rename(self.path, self.dest)
        reach("backup.renamed")
        flush(self.dest.parent)
        return BackupReport(
            path=self.dest, instance=instance, artifacts=self._artifacts, raw_bytes=self._raw_bytes,
            position=self.position, file_bytes=size,
        )  # fmt: skip


def backup(home: Path | None, dest: str | os.PathLike[str], *, had_journal: bool) -> BackupReport:
    """Copy a home that has no journal. Raises: as `drafting`; InvalidArgument where there is a journal, DamagedStore
    where there was one."""
    if home is not None and has_journal(home):
        raise InvalidArgument("home", f"{home} has a journal: journal.Journal.backup copies both")
    if had_journal and home is not None:
        raise DamagedStore(str(home / "journal"), "the home had a journal, and it is missing")
    with drafting(home, dest) as draft:
        draft.copy_store()
        return draft.seal()


@contextmanager
def drafting(home: Path | None, dest: str | os.PathLike[str]) -> Iterator[Draft]:
    """A draft beside `dest`, removed again unless it was sealed; gc, compact and other backups are kept out.

    A killed backup leaves `DEST.INSTANCE.backup-tmp`, which the next one to the same place removes.
    Raises: InvalidArgument (dest exists or cannot be there; nothing touched), Busy, StoreFull, UnsupportedFilesystem,
    DamagedStore.
    """
    if home is None:
        raise InvalidArgument("home", "a store in memory has no files to copy")
    place = _destination(home, dest)
    with collector_lock(home):
        opened = open_home(home, create=False)
        path = place.with_name(f"{place.name}.{opened.instance}.backup-tmp")
        try:
            if path.exists():
                shutil.rmtree(path)
            path.mkdir()
            reach("backup.begun")
            yield Draft(opened, path, place)
        except BaseException as error:
            full = _is_full(error, place)  # before room is made
            shutil.rmtree(path, ignore_errors=True)
            if full:
                raise StoreFull(str(place), "no space left on the disk") from error
            raise


def _destination(home: Path, dest: str | os.PathLike[str]) -> Path:
    place = Path(os.path.abspath(os.fspath(dest)))
    if os.path.lexists(place):
        raise InvalidArgument("dest", f"{place} exists; a backup is made where nothing is")
    if not place.parent.is_dir():
        raise InvalidArgument("dest", f"{place.parent} is no directory")
    inside = Path(os.path.realpath(place.parent))
    if inside.is_relative_to(os.path.realpath(home)):
        raise InvalidArgument("dest", f"{place} lies inside of the home")
    check_filesystem(place.parent)
    return place


def _settle(txn: WriteTransaction) -> None:
    """Drop what belongs to the processes of the home that was copied."""
    state = counters.begin(txn)
    for key in [key for key, _ in txn.scan(LEASE)]:
        txn.delete(LEASE, key)
    for table in (LEASED, RECENT, CHANGED):
        for key in [key for key, _ in txn.scan(table)]:
            txn.delete(table, key)
    for upload, _, _ in puts.uploads(txn):
        puts.upload_abort(txn, upload)
    for key in (COPYING, MOVED):
        txn.delete(META, key)
    state.gc_open = 0
    counters.finish(txn, state)


def _is_full(error: BaseException, place: Path) -> bool:
    """Whether an error comes of a full disk, also where LMDB gives it another name."""
    if isinstance(error, StoreFull):
        return True
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    disk = os.statvfs(place.parent)
    return isinstance(error, DamagedStore) and disk.f_bavail * disk.f_frsize < _FULL_BYTES


def _flush_tree(path: Path) -> int:
    """Everything below is on disk afterwards; the bytes of its files."""
    size = 0
    for directory, _, names in os.walk(path, topdown=False):
        for name in names:
            file = Path(directory, name)
            size += file.stat().st_size
            flush(file)
        flush(Path(directory))
    return size
