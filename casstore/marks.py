"""What gc has reached: sets of data_ids as bits, and the closure over links and delta bases. Pure over `edges`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import final

from casstore.backend import Candidate, Edges, Verdict

EdgesOf = Callable[[Sequence[bytes]], Sequence[Edges | None]]

_STEP = 500  # digests looked up at a time: one short read transaction each


@final
class IdSet:
    """A set of data_ids, one bit each: a million artifacts cost 125 KB."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def __contains__(self, number: int) -> bool:
        place = number >> 3
        return place < len(self._bits) and bool(self._bits[place] >> (number & 7) & 1)

    def add(self, number: int) -> None:
        place = number >> 3
        if place >= len(self._bits):
            self._bits.extend(bytes(max(place + 1 - len(self._bits), 4096)))
        self._bits[place] |= 1 << (number & 7)


@final
class Marks:
    """Visible artifacts that are needed, and data_ids whose bytes are needed by a delta."""

    def __init__(self) -> None:
        self.visible = IdSet()
        self.bytes = IdSet()

    def reach(self, digests: Iterable[bytes], edges_of: EdgesOf, missing: Callable[[bytes], None]) -> None:
        """Mark the closure. Edges of the listed ones are read even if marked, since a base may have changed
        (H15); `missing` is told of a digest that is not visible."""
        todo = list(dict.fromkeys(digests))
        while todo:
            batch, todo = todo[:_STEP], todo[_STEP:]
            found = edges_of(batch)
            children: list[bytes] = []
            for digest, edges in zip(batch, found, strict=True):
                if edges is None:
                    missing(digest)
                    continue
                for base in edges.bases:
                    self.bytes.add(base)
                if edges.data_id in self.visible:
                    continue
                self.visible.add(edges.data_id)
                children.extend(edges.links)
            todo.extend(dict.fromkeys(children))

    def keep_bytes(self, data_id: int, bases: Iterable[int]) -> None:
        """The bytes under a data_id, and those that they are made from, stay."""
        self.bytes.add(data_id)
        for base in bases:
            self.bytes.add(base)

    def verdict(self, candidate: Candidate) -> Verdict:
        """What to do with a row that the mark, or a later look, did not reach."""
        if not candidate.kept and candidate.data_id in self.visible:
            return Verdict.SPARE
        if candidate.data_id in self.bytes:
            return Verdict.SPARE if candidate.kept else Verdict.KEEP_BYTES
        return Verdict.DELETE
