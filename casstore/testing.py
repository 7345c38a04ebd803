"""For users' tests and for other backends: an in-memory store, and the conformance suite of `BlobBackend`s."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from casstore.rows import TABLES
from casstore.store import Store
from casstore.table_backend import TableBackend
from casstore.tables import MemoryTables

__all__ = ["memory_store"]


def memory_store(*, clock: Callable[[], float] = time.time) -> Store:
    """A store that keeps everything in memory, with the meaning of the real one."""
    backend = TableBackend(MemoryTables(TABLES))
    name = str(uuid.uuid4())
    backend.bind(name)
    return Store(backend, None, read_only=False, quota=None, clock=clock, uuid=name)
