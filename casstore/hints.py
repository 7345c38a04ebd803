"""Bases for puts that name none: what this process put lately and the new bytes resemble."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, final

from casstore.rows import DICTIONARY_KIND
from casstore.similar import SIZE_MIN, Sketch, Sketches, sketch

WAITING_MAX: Final = 2000  # sketches of artifacts that are not committed yet: a batch of put_many
PAUSE_MAX: Final = 64


@final
class Hints:
    """The sketches of recent puts, shared by threads.

    A kind whose artifacts look alike and yet are not worth a delta costs an encoding in vain each time: after each of
    these it is left alone for twice as many puts, up to 64; what helps ends that.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sketches = Sketches()
        self._waiting: OrderedDict[bytes, tuple[Sketch, bool]] = OrderedDict()
        self._pauses: dict[str, tuple[int, int]] = {}  # kind -> (puts still to be left alone, of how many)

    def find(self, digest: bytes, kind: str, data: bytes) -> bytes | None:
        """The digest of an artifact that may serve as a base. Remembers the sketch under `digest` until `keep`."""
        if len(data) < SIZE_MIN or kind == DICTIONARY_KIND:
            return None
        found = sketch(data, kind)
        with self._lock:
            left, of = self._pauses.get(kind, (0, 0))
            if left:
                self._pauses[kind] = left - 1, of
            base = None if left else self._sketches.nearest(found)
            if base == digest:
                base = None
            self._waiting[digest] = found, base is not None
            if len(self._waiting) > WAITING_MAX:
                self._waiting.popitem(last=False)
        return base

    def tell(self, kind: str, *, helped: bool) -> None:
        """Whether a base that was found was worth it."""
        with self._lock:
            if helped:
                self._pauses.pop(kind, None)
                return
            pause = min(max(self._pauses.get(kind, (0, 0))[1] * 2, 1), PAUSE_MAX)
            self._pauses[kind] = pause, pause

    def keep(self, digest: bytes, name: bytes | None = None) -> bool:
        """The artifact is committed (as `name`, where its digest was not known yet): others may be made against it.
        Whether something like it was there before, so that its bytes are worth being kept at hand."""
        with self._lock:
            found, alike = self._waiting.pop(digest, (frozenset[int](), False))
            if found:
                self._sketches.add(name or digest, found)
        return alike
