"""Which earlier artifact new bytes resemble, told from a sketch of a few numbers. Pure.

Bytes are cut at occurrences of a rare byte, so that cuts move along with what is inserted or removed before
them. The CRCs of what begins at the cuts stand for the contents, and the smallest of them (a bottom-k sketch) for the
whole: two artifacts share about as much of their sketches as they share of their contents.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final, final
from zlib import crc32

SIZE_MIN: Final = 4 << 10
LOOKED_AT: Final = 1 << 20  # bytes of a larger artifact, from its beginning
_CUTS: Final = (b"z", b"q", b"x", b"7", b"e", b"\0")  # in turn: rare in texts, in digits, or anywhere
_CUTS_MAX: Final = 32  # from each end
_WINDOW: Final = 32
_NUMBERS: Final = 20
_NUMBERS_MIN: Final = 6
_SHARED_MIN: Final = 0.3
_RECENT_EACH: Final = 6  # artifacts that are remembered for one number

Sketch = frozenset[int]


def sketch(data: bytes, kind: str = "") -> Sketch:
    """Up to 20 numbers, none for what is too small or too uniform to tell. Those of two kinds have nothing in common:
    what is of another kind is kept for another time."""
    if len(data) < SIZE_MIN:
        return frozenset()
    looked_at, seed = data if len(data) <= LOOKED_AT else data[:LOOKED_AT], crc32(kind.encode())
    found: set[int] = set()
    for cut in _CUTS:
        fresh = _numbers(looked_at, cut, seed) - found
        # The rarer cuts lie all over the bytes, the others at both ends only: these just fill up.
        found.update(sorted(fresh)[: _NUMBERS - len(found)])
        if len(found) == _NUMBERS:
            break
    return frozenset(found if len(found) >= _NUMBERS_MIN else ())


def _numbers(data: bytes, cut: bytes, seed: int) -> set[int]:
    """The CRCs of what begins at the first cuts, and where there are more of them at the last."""
    found: set[int] = set()
    at, stop = data.find(cut), len(data) - _WINDOW
    for _ in range(_CUTS_MAX):
        if at < 0:
            return found
        found.add(crc32(data[at : at + _WINDOW], seed))
        at = data.find(cut, at + _WINDOW)
    for _ in range(_CUTS_MAX if at >= 0 else 0):
        stop = data.rfind(cut, at, stop)
        if stop < 0:
            break
        found.add(crc32(data[stop : stop + _WINDOW], seed))
    return found


@final
class Sketches:
    """The newest artifacts by their sketches, `most` of them."""

    def __init__(self, most: int = 512) -> None:
        self._most, self._count = most, 0
        self._known: OrderedDict[bytes, tuple[int, Sketch]] = OrderedDict()  # digest -> how many came before, sketch
        self._by_number: dict[int, list[bytes]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, digest: bytes, found: Sketch) -> None:
        """Remember an artifact, as the newest."""
        self.remove(digest)
        if not found:
            return
        self._count += 1
        self._known[digest] = self._count, found
        for number in found:
            digests = self._by_number.setdefault(number, [])
            digests.append(digest)
            if len(digests) > _RECENT_EACH:
                del digests[0]
        if len(self._known) > self._most:
            self.remove(next(iter(self._known)))

    def remove(self, digest: bytes) -> None:
        """Forget one."""
        _, found = self._known.pop(digest, (0, frozenset[int]()))
        for number in found:
            digests = self._by_number[number]
            if digest in digests:
                digests.remove(digest)
            if not digests:
                del self._by_number[number]

    def nearest(self, wanted: Sketch) -> bytes | None:
        """The artifact that shares most with it, of several the newest; None where none shares three tenths."""
        near = {digest for number in wanted for digest in self._by_number.get(number, ())}
        best, best_rank = None, (math.ceil(len(wanted) * _SHARED_MIN), 0)
        for digest in near:
            count, found = self._known[digest]
            rank = len(wanted & found), count
            if rank > best_rank:
                best, best_rank = digest, rank
        return best
