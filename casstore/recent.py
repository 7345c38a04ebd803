"""What this process lately saw of artifacts, so that it need not look again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, final

from casstore.ids import ArtifactId

ITEMS_MAX: Final = 1024  # many runs at once, each with a few bases
BYTES_MAX: Final = 32 << 20


@final
class RecentBytes:
    """Plain artifacts by digest, so that the base of a delta costs no read. What is added is known to have its digest:
    a writer hashed it, or a reader checked it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0

    def get(self, digest: bytes) -> bytes | None:
        with self._lock:
            found = self._items.get(digest)
            if found is not None:
                self._items.move_to_end(digest)
            return found

    def add(self, digest: bytes, data: bytes) -> None:
        """Nothing happens where it is larger than half of the whole."""
        if len(data) > BYTES_MAX // 2:
            return
        with self._lock:
            self._size += len(data) - len(self._items.pop(digest, b""))
            self._items[digest] = data
            while len(self._items) > ITEMS_MAX or self._size > BYTES_MAX:
                self._size -= len(self._items.popitem(last=False)[1])


@final
class RecentIds:
    """Artifacts of which something was proven that stays true."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: OrderedDict[ArtifactId, None] = OrderedDict()

    def __contains__(self, id: ArtifactId) -> bool:
        return id in self._items

    def add(self, id: ArtifactId) -> ArtifactId:
        """The same id. The oldest is forgotten where there are too many."""
        with self._lock:
            self._items[id] = None
            if len(self._items) > ITEMS_MAX:
                self._items.popitem(last=False)
        return id
