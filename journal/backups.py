"""Backup of a home with its journal: the journal's copy first, then the store's, then a look whether they fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from casstore.backups import BackupReport, Draft, drafting
from casstore.errors import DamagedStore
from casstore.roots import Root
from casstore.steps import reach
from casstore.tables import Tables
from journal import reading
from journal.rows import CL, TABLES
from journal.table_backend import TableBackend

_ROOTS: Final = 5000  # looked up at a time


def backup(home: Path | None, dest: str | os.PathLike[str]) -> BackupReport:
    """Copy store and journal to `dest`, where nothing is yet; durable on return. Claims do not go along.

    Raises: InvalidArgument (nothing touched), Busy, StoreFull, UnsupportedFilesystem, InvalidStream or DamagedStore
    (the home is damaged: a live run cannot be read, or names what is not there); `dest` is then not made.
    """
    with drafting(home, dest) as draft:
        directory = draft.path / "journal"
        draft.copy(draft.home.journal_path, directory, TABLES)
        reach("backup.journal")
        draft.copy_store()
        with draft.opened(directory, TABLES) as tables:
            with tables.write() as txn:
                for key in [key for key, _ in txn.scan(CL)]:
                    txn.delete(CL, key)
            _check(draft, tables)
        return draft.seal()


def _check(draft: Draft, tables: Tables) -> None:
    """What live runs name in the copy of the journal is in the copy of the store."""
    backend = TableBackend(tables)
    with backend.look() as look:
        draft.position = look.position()
    roots: Iterator[Root] = reading.live_roots(backend, None)
    while batch := list(islice(roots, _ROOTS)):
        missing = set(draft.missing([root.id for root in batch]))
        with backend.look() as look:
            missing -= {name for name in missing if look.is_staged(name)}
        for root in batch:
            if root.id in missing:
                where = f"{root.field} of event {root.seq} of run {root.run}"
                raise DamagedStore(str(draft.home.path), f"artifact {root.id}, named by {where}, is not in the store")
