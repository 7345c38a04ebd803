"""Compact's first half: artifacts get smaller encodings, so that less has to be copied (docs/GC.md, "Re-encode").

Deltas are moved away from the bytes of collected artifacts where that frees more than it costs, and the bytes go;
small artifacts get their kind's dictionary. In small transactions beside readers, writers and gc, and killed at any
point: an artifact has its old encoding or its new one, both of the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, final

from blake3 import blake3

from casstore import codec, dictionaries, frames
from casstore.backend import BlobBackend, Record, Row
from casstore.errors import DamagedStore, StoreFull
from casstore.rebasing import Forest
from casstore.recoding import BATCH_ITEMS, PAGE_ROWS, Base, Recoder, Stop
from casstore.steps import reach

PURGE_PIECES: Final = 1000
GAIN_MIN_BYTES: Final = 1024  # for less nothing is touched
TRAIN_FROM: Final = 500  # small artifacts of a kind
SMALLER: Final = 0.8  # a dictionary has to make an artifact smaller by a fifth at least


@final
@dataclass(slots=True)
class Reencoded:
    """What was done, as in CompactReport."""

    rebased: int = 0
    rebased_bytes: int = 0
    freed_bytes: int = 0
    condensed: int = 0
    condensed_bytes: int = 0
    trained: tuple[str, ...] = ()
    skipped: int = 0
    stopped: str = ""


def reencode(
    backend: BlobBackend, *, train: Callable[[str], object], check_room: Callable[[int], None],
    now: Callable[[], int], time_s: float | None = None, bytes_max: int | None = None,
    timer: Callable[[], float] = time.monotonic,
) -> Reencoded:  # fmt: skip
    """One pass, or as much of it as the limits allow: seconds, and raw bytes that are encoded.

    `train` makes a dictionary for a kind where that helps; `check_room` raises StoreFull where so many bytes would not
    fit. The caller keeps gc, compactions and repairs out; that is politeness, since what is decided here is looked at
    again in the transactions.
    """
    done = Reencoded()
    recoder = Recoder(backend, check_room=check_room, now=now, timer=timer, time_s=time_s, bytes_max=bytes_max)
    parts: list[Callable[[], None]] = [_Rebase(recoder, done).run, partial(_condense, recoder, done, train, now())]
    try:
        for part in parts:
            try:
                part()
            except DamagedStore:
                # A record that cannot be read may name any base, so from the others nothing follows.
                done.skipped += 1
    except Stop as stop:
        done.stopped = str(stop)
    except StoreFull:
        done.stopped = "full"  # the copy says whether that has room
    done.skipped += len(recoder.skipped)
    return done


# -- away from the bytes of what was collected


class _Move(NamedTuple):
    """An artifact, the base that it gets (None: it is stored whole), and the stored bytes that it will have."""

    record: Record
    base: Base | None
    size: int


@final
class _Rebase:
    def __init__(self, recoder: Recoder, done: Reencoded) -> None:
        self._recoder, self._backend, self._done = recoder, recoder.backend, done
        self._seen = 0
        self._pinned: dict[str, Base] = {}

    def run(self) -> None:
        kept: list[int] = []
        held: list[int] = []
        after = 0
        while page := self._backend.kept_page(after, PAGE_ROWS):
            kept += (row.data_id for row in page)
            held += (row.data_id for row in page if row.until_s)
            after = page[-1].data_id
        if not kept:
            return
        self._seen = self._backend.counters().next_data_id - 1
        self._pinned = _pinned(self._recoder)
        forest = Forest(kept, held)
        for record in self._recoder.records():
            forest.add(record)
        for root in forest.roots():
            self._free(forest, root)

    def _free(self, forest: Forest, root: int) -> None:
        """Free the subtree, or those of its parts for which it is worth it: each with all that rests on it."""
        todo, tried = [root], set[tuple[Record, ...]]()
        while todo:
            at = todo.pop()
            self._recoder.check_limits()
            moving = forest.moving(at)
            # Where the same artifacts would have to move as for what lies below, less would go for it.
            if moving is not None and tuple(moving) not in tried:
                tried.add(tuple(moving))
                if self._move(forest, at, moving):
                    self._release(forest, at)
                    continue
            todo += forest.kept_above(at)

    def _move(self, forest: Forest, root: int, moving: list[Record]) -> bool:
        """Whether nothing rests on the subtree any more."""
        moves = self._plan(moving, forest.base_below(root))
        if moves is None:
            return False
        cost = sum(codec.pages(move.size) - codec.pages(move.record.stored_len) for move in moves)
        if moving and forest.kept_bytes(root) - cost < GAIN_MIN_BYTES:
            return False
        moved: list[Record] = []
        for record, base, _ in moves:
            data = self._recoder.read(record.digest)
            fresh = None if data is None else self._recoder.encode(data, base)
            if data is not None and fresh is not None:
                moved += self._recoder.replace(record, data, fresh)
        moved += self._recoder.write()
        sizes = {move.record: move.size for move in moves}
        self._done.rebased += len(moved)
        self._done.rebased_bytes += sum(sizes[record] - record.stored_len for record in moved)
        forest.moved(moved)
        return len(moved) == len(moving)  # not what was collected, healed or damaged since: that stays as it is

    def _plan(self, moving: list[Record], below: int) -> list[_Move] | None:
        """The smallest encoding of each, None where one cannot be read. It may be made against what the kept bytes
        rest on themselves, against the first of these that is stored whole, and against the one before it."""
        moves: list[_Move] = []
        below_base = self._visible_base(below) if below and moving else None
        fixed = [] if below_base is None else [below_base]
        last: Base | None = None
        for record in moving:
            self._recoder.check_limits()
            data = self._recoder.read(record.digest)
            if data is None:
                return None
            depth = self._depth(record.digest)  # which no move makes larger: other deltas rest on this one
            bases = [base for base in (*fixed, last) if base is not None and base.depth < depth]
            move = self._smallest(record, data, [None, *dict.fromkeys(bases), *self._dictionaries(record)])
            moves.append(move)
            last = Base(record.digest, record.data_id, 0 if move.base is None else move.base.depth + 1)
            if move.base is None and len(fixed) < 2:
                fixed.append(last)
        return moves

    def _smallest(self, record: Record, data: bytes, bases: list[Base | None]) -> _Move:
        moves = [
            _Move(record, found.base, len(found.stored))
            for found in (self._recoder.encode(data, base) for base in bases) if found is not None
        ]  # fmt: skip
        return min(moves, key=lambda move: move.size)

    def _depth(self, digest: bytes) -> int:
        return len(self._backend.base_walk(digest)) - 1

    def _visible_base(self, data_id: int) -> Base | None:
        digest = self._backend.digests([data_id])[0]
        row = None if digest is None else self._backend.rows([digest])[0]
        if row is None or row.data_id != data_id or row.raw_len > codec.DELTA_RAW_MAX:
            return None
        return Base(row.digest, data_id, self._depth(row.digest))

    def _dictionaries(self, record: Record) -> list[Base]:
        row = self._backend.rows([record.digest])[0] if record.raw_len <= dictionaries.SMALL_MAX else None
        return [] if row is None else _usable(row, self._pinned)

    def _release(self, forest: Forest, root: int) -> None:
        """Let the subtree go, layer by layer, and then its pieces."""
        while loose := forest.loose(root):
            released = self._backend.release(loose, self._seen)
            reach("compact.released")
            for data_id in released:
                self._done.freed_bytes += forest.stored_bytes(data_id)
                forest.gone(data_id)
            if root in released or len(released) < len(loose):
                break
        while self._backend.purge(PURGE_PIECES):
            reach("compact.purged")


# -- small artifacts


def _condense(recoder: Recoder, done: Reencoded, train: Callable[[str], object], now_s: int) -> None:
    """Small artifacts that are stored whole get their kind's dictionary, where that is older than they are."""
    for kind in _untrained(recoder):
        recoder.check_limits()
        if train(kind) is not None:
            done.trained += (kind,)
            reach("compact.trained")
    pinned = _pinned(recoder)
    if not pinned:
        return
    newest = recoder.backend.counters().next_data_id
    # From another place each time: passes that are always stopped get everywhere some day.
    start = int.from_bytes(blake3(str(now_s).encode()).digest(4), "big") * newest >> 32
    for after, stop in ((start, newest), (0, start + 1)):
        batch: list[Record] = []
        for record in recoder.records(after):
            if record.data_id >= stop:
                break
            if not record.base and _is_small(record.raw_len):
                batch.append(record)
            if len(batch) >= BATCH_ITEMS:
                _condense_all(recoder, done, batch, pinned)
                batch = []
        _condense_all(recoder, done, batch, pinned)


def _untrained(recoder: Recoder) -> list[str]:
    """Kinds with enough small artifacts and no dictionary yet."""
    pins, counts, after = recoder.backend.pins(), dict[str, int](), b""
    while page := recoder.backend.page(after, PAGE_ROWS):
        recoder.check_limits()
        for row in page:
            for kind in row.kinds if _is_small(row.raw_len) else ():
                counts[kind] = counts.get(kind, 0) + 1
        after = page[-1].digest
    return sorted(
        kind for kind, count in counts.items()
        if count >= TRAIN_FROM and kind != dictionaries.KIND and dictionaries.PIN + kind not in pins
    )  # fmt: skip


def _is_small(raw_len: int) -> bool:
    return dictionaries.SAMPLE_MIN <= raw_len <= dictionaries.SMALL_MAX


def _pinned(recoder: Recoder) -> dict[str, Base]:
    """The dictionary of each kind; what somebody else pinned under such a name is none, which encoding finds."""
    names = {name: digest for name, digest in recoder.backend.pins().items() if name.startswith(dictionaries.PIN)}
    found: dict[str, Base] = {}
    for (name, digest), row in zip(names.items(), recoder.backend.rows(list(names.values())), strict=True):
        if row is not None and row.raw_len <= frames.FRAME_SIZE and recoder.read(digest) is not None:
            found[name.removeprefix(dictionaries.PIN)] = Base(digest, row.data_id, 0, trained=True)
    return found


def _usable(row: Row, pinned: dict[str, Base]) -> list[Base]:
    """Dictionaries of the artifact's kinds that are older than it is (H16)."""
    found: Iterable[Base | None] = (pinned.get(kind) for kind in row.kinds if kind != dictionaries.KIND)
    return [base for base in found if base is not None and base.data_id < row.data_id]


def _condense_all(recoder: Recoder, done: Reencoded, batch: list[Record], pinned: dict[str, Base]) -> None:
    recoder.check_limits()
    sizes: dict[Record, int] = {}
    written: list[Record] = []
    rows = recoder.backend.rows([record.digest for record in batch])
    for record, row in zip(batch, rows, strict=True):
        bases = [] if row is None or row.data_id != record.data_id else _usable(row, pinned)
        data = recoder.read(record.digest) if bases else None
        if data is None:
            continue
        encodings = (recoder.encode(data, base) for base in bases)
        fresh = min(filter(None, encodings), key=lambda found: len(found.stored), default=None)
        if fresh is not None and fresh.base is not None and len(fresh.stored) <= record.stored_len * SMALLER:
            sizes[record] = len(fresh.stored)
            written += recoder.replace(record, data, fresh)
    written += recoder.write()
    done.condensed += len(written)
    done.condensed_bytes += sum(record.stored_len - sizes[record] for record in written)
