"""What rests on bytes of collected artifacts, and what it would take to let them go. Pure.

Bytes and their bases are a forest: each record has one base at most. Kept bytes can go when nothing above them is
needed any more, so they go as whole subtrees, with everything that rests on them moved elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import final

from casstore.backend import Record
from casstore.codec import pages


@final
class Forest:
    """Kept bytes with what rests on them. `held` are those in quarantine: they stay, and with them what they need."""

    def __init__(self, kept: Iterable[int], held: Iterable[int]) -> None:
        self._kept, self._held = set(kept), set(held)
        self._records: dict[int, Record] = {}
        self._above: dict[int, list[Record]] = {}  # kept data_id -> records made against it

    def add(self, record: Record) -> None:
        """One record of the store; all of them have to be added."""
        if record.data_id in self._kept:
            self._records[record.data_id] = record
        if record.base in self._kept:
            self._above.setdefault(record.base, []).append(record)

    def roots(self) -> list[int]:
        """Kept bytes that do not rest on other kept bytes, those with the most kept bytes above them first."""
        found = [data_id for data_id, record in self._records.items() if record.base not in self._records]
        return sorted(found, key=lambda data_id: (-self.kept_bytes(data_id), data_id))

    def subtree(self, data_id: int) -> list[int]:
        """The kept bytes and the kept ones that rest on them, falling: so what rests on something comes before it."""
        return sorted(self._walk(data_id), reverse=True)

    def _walk(self, data_id: int) -> Iterator[int]:
        todo = [data_id]
        while todo:
            at = todo.pop()
            yield at
            todo += self.kept_above(at)

    def kept_above(self, data_id: int) -> list[int]:
        """Kept bytes made directly against these. A damaged edge to something younger leads nowhere."""
        above = self._above.get(data_id, ())
        return [record.data_id for record in above if record.data_id in self._records and record.data_id > data_id]

    def moving(self, data_id: int) -> list[Record] | None:
        """The artifacts that have to move for the subtree to go, ascending; None where it cannot go now."""
        found: list[Record] = []
        for at in self._walk(data_id):
            if at in self._held:
                return None
            found += (record for record in self._above.get(at, ()) if record.data_id not in self._records)
        return sorted(found)

    def base_below(self, data_id: int) -> int:
        """The data_id of the base of kept bytes, 0 for none."""
        return self._records[data_id].base

    def kept_bytes(self, data_id: int) -> int:
        """What the subtree takes on disk."""
        return sum(pages(self._records[at].stored_len) for at in self._walk(data_id))

    def stored_bytes(self, data_id: int) -> int:
        """The stored bytes of one record."""
        return self._records[data_id].stored_len

    def moved(self, records: Iterable[Record]) -> None:
        """These rest on other bytes now."""
        for record in records:
            self._above[record.base].remove(record)

    def loose(self, data_id: int) -> list[int]:
        """Of a subtree, what nothing rests on, falling: with `gone` again and again, the whole of it."""
        return [at for at in self.subtree(data_id) if at not in self._held and not self._above.get(at)]

    def gone(self, data_id: int) -> None:
        """These bytes went."""
        record = self._records.pop(data_id)
        self._kept.discard(data_id)
        if record.base in self._above:
            self._above[record.base].remove(record)
