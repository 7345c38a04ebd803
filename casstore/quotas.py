"""Which runs that ended fit into a quota: a mark of its own beforehand, in the order of their ends, that adds up bytes.

It removes nothing and holds nothing: what changes meanwhile makes the next gc more or less exact, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final, NamedTuple, final

from casstore.backend import BlobBackend, Edges, GcOpened
from casstore.marks import IdSet, Marks
from casstore.roots import RetainingSource, Retention, Root

PAGE_ROWS: Final = 5000


class Fit(NamedTuple):
    """The retention with its floor, and by how many bytes all else that must stay is more than the quota."""

    retention: Retention
    over_bytes: int


def fit(
    backend: BlobBackend, source: RetainingSource, retention: Retention, opened: GcOpened, quota: int,
    stop: Callable[[], bool] | None = None,
) -> Fit:  # fmt: skip
    """Keep ended runs, the latest first, as long as what is stored for all that stays is at most `quota` bytes.

    What live runs, pins, leases and the young need is counted first and always stays. Once `stop()` says so the rest is
    not looked at: the mark that follows stops as well.
    """
    weighed = _Weighed(backend)
    weighed.reach(digest for _, digest in (*opened.pins, *opened.leased))
    after = b""
    while (page := backend.ages(after, PAGE_ROWS, opened.cut)) is not None:
        if stop is not None and stop():
            return Fit(retention, 0)
        weighed.reach(page.young)
        after = page.last
    must, floor_ms = weighed.bytes, 0
    for (_, live, ended_ms), roots in groupby(source.retained_roots(retention), key=_ending):
        if stop is not None and stop():
            return Fit(retention, 0)
        weighed.reach(root.id.digest for root in roots)
        if live or not ended_ms:  # one whose end is not known has no place in the order, and stays
            must = weighed.bytes
        elif weighed.bytes > quota:
            floor_ms = ended_ms + 1  # runs that ended in the same millisecond go with it
            break
    return Fit(replace(retention, not_before_ms=floor_ms), max(must - quota, 0))


def _ending(root: Root) -> tuple[str, bool, int]:
    return root.run, root.live, root.ended_ms


@final
class _Weighed:
    """What was reached, and the stored bytes of it, those of delta bases included."""

    def __init__(self, backend: BlobBackend) -> None:
        self._backend = backend
        self._marks, self._counted = Marks(), IdSet()
        self.bytes = 0

    def reach(self, digests: Iterable[bytes]) -> None:
        self._marks.reach(digests, self._edges, _nothing)

    def _edges(self, digests: Sequence[bytes]) -> Sequence[Edges | None]:
        found = self._backend.edges(digests)
        for edges in found:
            for data_id in (edges.data_id, *edges.bases) if edges is not None else ():
                if data_id not in self._counted:
                    self._counted.add(data_id)
                    self.bytes += self._backend.encoding(data_id)[1]
        return found


def _nothing(_: bytes) -> None:
    """What is missing is the business of the mark that decides."""
