"""Versions stand in chains: which of those before it a new one takes as its base."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, final

from casstore.backend import Until, Walk

CHAIN_MAX: Final = (1 << 10) - 1  # five digits of base 4: read through at most 15 deltas
KNOWN_MAX: Final = 1 << 14  # 1,000 runs with all that their next base can be


def skip(chain: int) -> int:
    """The number of the base of number `chain`. As Subversion's skip-deltas, but in base 4: a version costs the
    changes of fewer steps, and is read through at most three deltas for each digit instead of one for each bit."""
    step = 1
    while chain % (step << 2) == 0:
        step <<= 2
    return chain - step


def last_of_walk(chain: int) -> int:
    """Where a walk for the base of the version after this one may end."""
    return skip(chain + 1)


@final
class RecentChains:
    """How artifacts were made that this process put: the number in the chain of versions, and the base. They may be
    gone since, or never have been stored: it is for choosing a base, which is looked for in the transaction."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: OrderedDict[bytes, tuple[int, bytes | None]] = OrderedDict()

    def add(self, digest: bytes, chain: int, base: bytes | None) -> None:
        with self._lock:
            self._items[digest] = chain, base
            while len(self._items) > KNOWN_MAX:
                self._items.popitem(last=False)

    def forget(self, digest: bytes) -> None:
        with self._lock:
            self._items.pop(digest, None)

    def walk(self, digest: bytes, until: Until) -> Walk | None:
        """See BlobBackend.base_walk, with 0 for every data_id; None where it is not known as far as that."""
        found: Walk = []
        at: bytes | None = digest
        with self._lock:
            while at is not None and at in self._items:
                chain, base = self._items[at]
                if found and chain >= found[-1][2]:
                    return None  # one of them was put again since, perhaps as a version of the other
                found.append((at, 0, chain))
                if chain <= until(found[0][2]):
                    return found
                at = base
        return None
