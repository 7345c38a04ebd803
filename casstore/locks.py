"""The lock file that keeps gc, compact, repair and backup of one home from running at the same time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casstore.errors import Busy


@contextmanager
def collector_lock(home: Path | None) -> Iterator[None]:
    """Politeness between collectors (epochs keep them apart): Busy while another one runs.

    The kernel drops the lock with its process, so a killed gc leaves nothing behind.
    """
    if home is None:
        yield
        return
    descriptor = os.open(home / "gc.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy("another gc is running on this store") from error
        yield
    finally:
        os.close(descriptor)
