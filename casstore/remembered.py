"""What a complete gc remembers for the next one, so that a gc with nothing to do need not mark everything again
(docs/GC.md, section 7). It only ever answers "nothing": what is removed was always judged by a full mark.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple, final

from casstore.backend import BlobBackend, GcOpened
from casstore.marks import IdSet, Marks
from casstore.roots import Retention, RootSource, WitnessSource
from casstore.stage import Stage
from casstore.varints import read_varint, varint

LOOSE_MAX: Final = 20_000
_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BQQI")


@final
class Remembered(NamedTuple):
    """Artifacts with a smaller data_id than `next_data_id` are needed by a kept run or a pin, but for those of
    `loose` (ascending data_ids), which were young or leased, or which an upload had taken early.

    What is in quarantine stays there until the second `until_s` (0: nothing is). `witness` is the root source's own.
    """

    next_data_id: int
    until_s: int
    loose: tuple[int, ...]
    witness: bytes

    def pack(self) -> bytes:
        """As it stands in `meta1`."""
        steps = b"".join(varint(after - before) for before, after in pairwise((0, *self.loose)))
        return _HEAD.pack(_VERSION, self.next_data_id, self.until_s, len(self.loose)) + steps + self.witness

    @classmethod
    def unpack(cls, data: bytes) -> Remembered | None:
        """None for what another version wrote, or damage did: then everything is marked."""
        try:
            version, next_data_id, until_s, count = _HEAD.unpack_from(data)
            if version != _VERSION or count > LOOSE_MAX:
                return None
            at, number, loose = _HEAD.size, 0, []
            for _ in range(count):
                step, at = read_varint(data, at)
                number += step
                loose.append(number)
            if number >= next_data_id:
                return None
        except (struct.error, ValueError):
            return None
        return cls(next_data_id, until_s, tuple(loose), data[at:])


def call_witness(source: RootSource, retention: Retention) -> bytes | None:
    """What the source is to be asked with by the next gc. Called before what is staged is settled, and before the
    opening: so what events up to here name has a smaller data_id than the opening's `next_data_id`."""
    if not isinstance(source, WitnessSource) or not retention.is_plain:
        return None
    try:
        return source.witness(retention)
    except Exception:
        return None  # a source that fails fails again where its roots are read, and that refuses


def remember(
    opened: GcOpened, loose: Iterable[int], until_s: int, witness: bytes
) -> Remembered | None:  # fmt: skip
    """None where it is too much. What got a data_id since the opening is new to the next gc anyway; an upload that had
    one then may end at any time."""
    early = set(opened.uploads)
    for number in loose:
        if number < opened.next_data_id:
            early.add(number)
        if len(early) > LOOSE_MAX:
            return None
    return Remembered(opened.next_data_id, until_s, tuple(sorted(early)), witness)


class Doubt(Exception):
    """It cannot be told without a full mark."""


@final
class Glance:
    """A look at what is new since the last complete gc. Pure over the backend's reads."""

    def __init__(self, backend: BlobBackend, stage: Stage, opened: GcOpened, last: Remembered) -> None:
        self._backend, self._stage, self._opened, self._last = backend, stage, opened, last
        self._firm = IdSet()
        self._marks = Marks()
        self._there = array("Q")

    @property
    def size(self) -> int:
        """How many rows there are to look at, at most."""
        return len(self._last.loose) + self._opened.next_data_id - self._last.next_data_id

    def nothing_goes(self, named: Iterable[bytes], page_rows: int, check: Callable[[], None]) -> bool:
        """Whether all of them are needed, by what events since then name, by pins, leases or their youth.

        `check` is called now and then, and may raise. Raises: Doubt where something needed is missing: damage, or a
        name that an earlier gc took.
        """
        opened = self._opened
        self._marks.visible = IdSet.below(self._last.next_data_id, self._last.loose)
        bases = set[bytes]()
        self._reach(named, bases)
        self._reach((digest for _, digest in opened.pins), bases)
        self._firm = self._marks.visible.copy()
        self._reach(bases)
        self._reach(digest for _, digest in opened.leased)
        young: list[bytes] = []
        for page in self._pages(page_rows):
            check()
            for data_id, digest, touched in page:
                self._there.append(data_id)
                if touched > opened.cut and data_id not in self._marks.visible:
                    young.append(digest)
        self._reach(young)
        return all(data_id in self._marks.visible for data_id in self._there)

    def loose(self) -> list[int]:
        """Of them those that neither a run nor a pin needs."""
        return [data_id for data_id in self._there if data_id not in self._firm]

    def _reach(self, digests: Iterable[bytes], bases: set[bytes] | None = None) -> None:
        if self._marks.reach_staged(digests, self._backend.edges, self._stage.find, bases):
            raise Doubt

    def _pages(self, rows: int) -> Iterable[list[tuple[int, bytes, int]]]:
        """(data_id, digest, touched) of those that are visible."""
        last, after = self._last, self._opened.next_data_id
        for numbers in (last.loose, range(last.next_data_id, after)):
            for start in range(0, len(numbers), rows):
                yield self._page(numbers[start : start + rows])

    def _page(self, numbers: Sequence[int]) -> list[tuple[int, bytes, int]]:
        digests = self._backend.digests(numbers)
        named = [(data_id, digest) for data_id, digest in zip(numbers, digests, strict=True) if digest is not None]
        rows = self._backend.rows([digest for _, digest in named])
        return [
            (data_id, digest, row.touched)
            for (data_id, digest), row in zip(named, rows, strict=True)
            if row is not None and row.data_id == data_id
        ]
