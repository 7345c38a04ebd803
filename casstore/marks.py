"""What gc has reached: sets of data_ids as bits, and the closure over links and delta bases. Pure over `edges`."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, final

from casstore.backend import Candidate, Edges, Verdict
from casstore.errors import DamagedStore

if TYPE_CHECKING:
    from casstore.stage import Staged

EdgesOf = Callable[[Sequence[bytes]], Sequence[Edges | None]]

_NUMBER_MAX: Final = 1 << 32  # numbers are given out one by one: a greater one is a flipped bit
_STEP: Final = 500  # digests looked up at a time: one short read transaction each
_SEEN_MAX: Final = 50_000  # digests remembered, so that children that many share are looked up once


@final
class IdSet:
    """A set of data_ids, one bit each: a million artifacts cost 125 KB."""

    def __init__(self) -> None:
        self._bits = bytearray()

    @classmethod
    def below(cls, stop: int, without: Iterable[int] = ()) -> IdSet:
        """Every number smaller than `stop`, but for some."""
        found = cls()
        found._bits = bytearray(b"\xff" * (stop >> 3)) + bytes(((1 << (stop & 7)) - 1,))
        for number in without:
            found._bits[number >> 3] &= ~(1 << (number & 7))
        return found

    def copy(self) -> IdSet:
        """The same numbers, in a set of its own."""
        found = IdSet()
        found._bits = bytearray(self._bits)
        return found

    def __contains__(self, number: int) -> bool:
        place = number >> 3
        return place < len(self._bits) and bool(self._bits[place] >> (number & 7) & 1)

    def __len__(self) -> int:
        return int.from_bytes(self._bits, "little").bit_count()

    def __bool__(self) -> bool:
        return bool(self._bits)  # nothing is ever taken out

    def add(self, number: int) -> bool:
        """Whether it was not there. Raises: DamagedStore for a number that would need a huge set."""
        place, bit = number >> 3, 1 << (number & 7)
        bits = self._bits
        if place >= len(bits):
            if number > _NUMBER_MAX:
                raise DamagedStore("table ix1 or da1", f"the number {number}, which no artifact was given")
            bits.extend(bytes(max(place + 1 - len(bits), 4096)))
        elif bits[place] & bit:
            return False
        bits[place] |= bit
        return True

    def update(self, numbers: Sequence[int]) -> None:
        if numbers:
            self.add(max(numbers))
        bits = self._bits
        for number in numbers:
            bits[number >> 3] |= 1 << (number & 7)

    def without(self, other: IdSet) -> array[int]:
        """What is here and not there, falling."""
        size = len(self._bits)
        left = int.from_bytes(self._bits, "little")
        right = int.from_bytes(other._bits[:size], "little")
        return _falling((left & ~right).to_bytes(size, "little"))

    def within(self, other: IdSet) -> array[int]:
        """What is here and there, falling."""
        size = len(self._bits)
        both = int.from_bytes(self._bits, "little") & int.from_bytes(other._bits[:size], "little")
        return _falling(both.to_bytes(size, "little"))


def _falling(bits: bytes) -> array[int]:
    found = array("Q")
    for place in range(len(bits) - 1, -1, -1):
        byte = bits[place]
        if byte:
            found.extend(place << 3 | bit for bit in _FALLING[byte])
    return found


_FALLING: Final = tuple(tuple(bit for bit in range(7, -1, -1) if byte >> bit & 1) for byte in range(256))


@final
class Marks:
    """Visible artifacts that are needed, and data_ids whose bytes are needed by a delta."""

    def __init__(self) -> None:
        self.visible = IdSet()
        self.bytes = IdSet()

    def reach(self, digests: Iterable[bytes], edges_of: EdgesOf, missing: Callable[[bytes], None]) -> None:
        """Mark the closure. Edges of the listed ones are read even if marked, since a base may have changed
        (H15); `missing` is told of a digest that is not visible."""
        # Runs of digests, and where to go on in each: a value may link to a million.
        todo = [(b"".join(dict.fromkeys(digests)), 0)]
        seen: set[bytes] = set()
        while batch := _take(todo, seen):
            for digest, edges in zip(batch, edges_of(batch), strict=True):
                if edges is None:
                    missing(digest)
                    continue
                data_id, packed, bases = edges
                for base in bases:
                    self.bytes.add(base)
                if self.visible.add(data_id) and packed:
                    todo.append((packed, 0))

    def reach_staged(
        self, digests: Iterable[bytes], edges_of: EdgesOf, find: Callable[[bytes], Staged | None],
        bases: set[bytes] | None = None,
    ) -> list[bytes]:  # fmt: skip
        """As `reach`, also through what is only staged (H25), which `find` knows. Returns the digests that are neither
        visible nor staged. With `bases` what staged deltas stand on is added there, for the caller to reach after all
        that stays: of those the bytes are enough once the deltas are settled."""
        todo, lost, followed = list(digests), list[bytes](), set[bytes]()
        while todo:
            missing: list[bytes] = []
            self.reach(todo, edges_of, missing.append)
            todo = []
            for digest in missing:
                if digest in followed:
                    continue
                row = find(digest)
                if row is not None:
                    followed.add(digest)
                    todo += row.needs if bases is None else row.links
                    if bases is not None and row.base is not None:
                        bases.add(row.base)
                elif edges_of([digest])[0] is not None:
                    todo.append(digest)  # settled between the two looks
                else:
                    lost.append(digest)
        return lost

    def keep_bytes(self, data_id: int, bases: Sequence[int]) -> None:
        """The bytes under a data_id, and those that they are made from, stay."""
        self.bytes.add(data_id)
        self.bytes.update(bases)

    def verdict(self, candidate: Candidate) -> Verdict:
        """What to do with a row that the mark, or a later look, did not reach."""
        data_id, _, kept = candidate
        if not kept and data_id in self.visible:
            return Verdict.SPARE
        if data_id in self.bytes:
            return Verdict.SPARE if kept else Verdict.KEEP_BYTES
        return Verdict.DELETE


def _take(todo: list[tuple[bytes, int]], seen: set[bytes]) -> list[bytes]:
    """The next digests that were not taken lately, the newest first: so the list stays short."""
    batch: list[bytes] = []
    while todo and len(batch) < _STEP:
        run, start = todo.pop()
        stop = min(len(run), start + (_STEP - len(batch)) * 32)
        fresh = dict.fromkeys(run[at : at + 32] for at in range(start, stop, 32))
        batch += [digest for digest in fresh if digest not in seen]
        if len(seen) > _SEEN_MAX:
            seen.clear()
        seen.update(fresh)
        if stop < len(run):
            todo.append((run, stop))
    return batch
