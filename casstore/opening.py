"""Open a store: its home, its tables, and the rule that all handles of one process agree."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from weakref import WeakKeyDictionary

from casstore.errors import AlreadyOpen, DamagedStore, InvalidArgument
from casstore.generations import GenerationTables
from casstore.home import Home, has_generation, open_home
from casstore.lmdb_tables import LmdbTables
from casstore.rows import TABLES
from casstore.stage import TABLE as STAGED
from casstore.stage import Stage
from casstore.store import Store
from casstore.table_backend import TableBackend

_handles_lock = threading.Lock()
# Homes open in this process: their users, as long as they live, and the options of each.
_handles: dict[Path, WeakKeyDictionary[GenerationTables, tuple[bool, int | None]]] = {}


def open_store(
    home: str | os.PathLike[str], *, create: bool = True, read_only: bool = False, quota: int | None = None,
    clock: Callable[[], float] = time.time,
) -> Store:  # fmt: skip
    """Open the store at `home`, or make one there. `quota` bounds stored bytes.

    Opened again in one process the handles share the environment; other options than the first raise AlreadyOpen.
    Raises: NotAStore, InvalidHome, UnsupportedFormat, UnsupportedFilesystem, DamagedStore, AlreadyOpen.
    """
    if quota is not None and (type(quota) is not int or quota < 0):
        raise InvalidArgument("quota", "must be a number of bytes")
    opened = open_home(home, create=create, read_only=read_only)
    key = Path(os.path.realpath(opened.path))
    with _handles_lock:
        users = _handles.setdefault(key, WeakKeyDictionary())
        if any(options != (read_only, quota) for options in users.values()):
            raise AlreadyOpen(str(opened.path), "with another quota or mode")
        fresh = opened.created or not has_generation(opened.path)
        tables = GenerationTables(opened.path, TABLES, create=not read_only and fresh, read_only=read_only)
        try:
            backend = TableBackend(tables, read_only=read_only)
            if backend.bind(opened.uuid) != opened.uuid:
                raise DamagedStore(str(opened.path), "FORMAT and the data file name different stores")
        except BaseException:
            tables.close()
            raise
        users[tables] = read_only, quota

    stage = Stage(lambda: _journal_tables(opened, read_only=read_only))

    def on_close() -> None:
        with _handles_lock:
            users.pop(tables, None)
            tables.close()
        stage.close()

    return Store(backend, opened, read_only=read_only, quota=quota, clock=clock, stage=stage, on_close=on_close)


def _journal_tables(home: Home, *, read_only: bool) -> LmdbTables | None:
    """The journal's environment as far as the store uses it: the table of staged rows. None without a journal."""
    data = home.journal_path / "data.mdb"
    try:
        if not data.stat().st_size:
            return None
    except FileNotFoundError:
        return None
    return LmdbTables(home.journal_path, [STAGED], create=False, read_only=read_only, durable=True)


def _forget_handles() -> None:
    global _handles_lock
    _handles_lock = threading.Lock()
    _handles.clear()


os.register_at_fork(after_in_child=_forget_handles)
