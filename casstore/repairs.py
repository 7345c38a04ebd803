"""Repair from another store: what is damaged or missing here is fetched there, proven by its id, and put.

A put heals under the old data_id. What was missing gets a new one; whatever links to it is then older than it is,
which gc must never meet, so in the same transaction it gets a new data_id as well, and so on upwards (`reorder`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import takewhile
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast, final

from casstore.backend import BlobBackend, NewArtifact, PutResult
from casstore.counters import begin, finish, loosen, skip_given
from casstore.errors import Corrupt, DamagedStore, NotFound, StoreError, StoreFull
from casstore.frames import FRAME_SIZE
from casstore.ids import ArtifactId
from casstore.items import PutItem
from casstore.puts import find, holds, record_at, touch
from casstore.reports import Finding, RepairReport
from casstore.rows import DA, KP, LN, PURGE, STAGE, D, IxRow, State, piece_count, u64
from casstore.steps import reach
from casstore.sweeps import links
from casstore.tables import ReadTransaction, WriteTransaction

if TYPE_CHECKING:
    from casstore.store import Store
    from casstore.writing import Writer

BATCH_BYTES: Final = 4 << 20
VALUE_MAX: Final = 32 << 20  # larger ones are copied as a stream, which has no links
WANTED: Final = frozenset({"corrupt", "corrupt_base", "damaged_store", "missing_link", "missing_root", "wrong_length",
                           "wrong_links", "wrong_order", "wrong_record"})  # fmt: skip


def repair(
    writer: Writer, store: Store, other: Store, wanted: Iterable[ArtifactId], *, reorder: Callable[[], int],
    check: Callable[[ArtifactId], list[Finding]],
) -> RepairReport:  # fmt: skip
    """Fetch and put each artifact, and what it links to where that is missing. `check` says what is wrong with one;
    `writer` puts in order (`InOrder`), so that a kill after any transaction leaves nothing that links to what is
    younger, if there was nothing of that before.

    Raises: StoreFull.
    """
    names = list(dict.fromkeys(wanted))
    failures: dict[ArtifactId, str] = {}
    left = {name: check(name) for name in names}
    # Twice: a copy that is damaged and links to what was missing can be healed once it is younger than that.
    for _ in range(2):
        failures.clear()
        _fetch(writer, store, other, [name for name, found in left.items() if found], failures)
        left = {name: check(name) for name, found in left.items() if found}
        if any(found.code == "wrong_order" for problems in left.values() for found in problems):
            reorder()
            reach("repair.reordered")
            left = {name: check(name) for name in left}
    failed = [
        (name, failures.get(name) or "; ".join(found.detail for found in problems))
        for name, problems in left.items()
        if problems
    ]
    lost = {name for name, _ in failed}
    return RepairReport(repaired=tuple(name for name in names if name not in lost), failed=tuple(failed))


def _fetch(
    writer: Writer, store: Store, other: Store, names: Sequence[ArtifactId], failures: dict[ArtifactId, str]
) -> None:
    """Put artifacts, each after what it links to and is missing here; small ones many at a time."""
    todo, seen, done = list(reversed(names)), set[ArtifactId](), set[ArtifactId]()
    batch: list[tuple[ArtifactId, PutItem]] = []
    while todo:
        at = todo[-1]
        try:
            info = other.info(at)
            missing = [link for link in info.links if link not in seen and link not in done and link not in store]
            if missing and at not in done:
                seen.update(missing)
                todo += missing
                continue
            for kind in () if at in done else info.kinds or ("other",):
                if info.size_bytes <= VALUE_MAX:
                    batch.append((at, PutItem(data=other.get(at), kind=kind)))
                    continue
                _put(writer, batch, failures)
                with other.open_reader(at) as file:
                    writer.put_stream(cast(BinaryIO, file), kind)
        except StoreFull:
            raise
        except StoreError as error:
            failures[at] = f"the other store: {error}" if isinstance(error, (NotFound, Corrupt)) else str(error)
        done.add(todo.pop())
        if sum(len(item.data) for _, item in batch) > BATCH_BYTES:
            _put(writer, batch, failures)
    _put(writer, batch, failures)


def _put(writer: Writer, batch: list[tuple[ArtifactId, PutItem]], failures: dict[ArtifactId, str]) -> None:
    """All in one transaction; one at a time where one of them cannot be put."""
    items = [item for _, item in batch]
    try:
        if all(len(item.data) <= FRAME_SIZE for item in items):
            writer.put_many(items)
            batch.clear()
    except StoreFull:
        raise
    except StoreError:
        pass
    for name, item in batch:
        try:
            writer.put(item, verify=True)
        except StoreFull:
            raise
        except StoreError as error:
            failures[name] = str(error)
    batch.clear()


@final
class InOrder:
    """A backend whose puts bring what they make disorderly into order, in the same transaction."""

    def __init__(self, backend: BlobBackend) -> None:
        self._backend = backend

    def put(self, items: Sequence[NewArtifact], now_s: int, lease: str | None) -> PutResult:
        return self._backend.put_in_order(items, now_s, lease)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def reorder(t: WriteTransaction, now_s: int) -> int:
    """Give new data_ids to what links to something younger, and to what links to that; how many. Bytes under the old
    numbers stay for the deltas made of them; the next gc takes them where there are none. What links to itself in the
    end, by a damaged row of links, stays as it is: no order is right for it."""
    state = begin(t)
    skip_given(t, state)
    found = _in_order(t, state.next_data_id)
    for digest in found:
        row = find(t, digest)
        assert row is not None
        _renumber(t, state, digest, row, now_s)
    if found:
        loosen(t, state)
        finish(t, state, now_s)
    return len(found)


def _in_order(t: ReadTransaction, following: int) -> list[bytes]:
    """What is to get a new data_id, each after what it links to."""
    left = set[bytes]()
    while True:
        young = _disordered(t, following, left)
        graph = {digest: young.intersection(links(t, digest)) for digest in young}
        try:
            return list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            left.update(error.args[1])


def _disordered(t: ReadTransaction, following: int, left: set[bytes]) -> set[bytes]:
    """What links to something younger, and what links to that; without what is `left`."""
    owners: list[tuple[int, bytes]] = []
    for digest, _ in t.scan(LN):
        row = _readable(t, digest) if digest not in left else None
        if row is not None and _is_movable(t, row.data_id, digest, following):
            owners.append((row.data_id, digest))
    owners.sort()  # so that most of them are found in one round
    young, before = set[bytes](), -1
    while len(young) > before:
        before = len(young)
        for data_id, digest in owners:
            if digest not in young and any(link in young or _is_young(t, link, data_id) for link in links(t, digest)):
                young.add(digest)
    return young


def _is_young(t: ReadTransaction, digest: bytes, data_id: int) -> bool:
    row = _readable(t, digest)
    return row is not None and row.data_id >= data_id


def _readable(t: ReadTransaction, digest: bytes) -> IxRow | None:
    try:
        return find(t, digest)
    except DamagedStore:
        return None


def _is_movable(t: ReadTransaction, data_id: int, digest: bytes, following: int) -> bool:
    """Not where a damaged row of the index leads to another's bytes, or to a number that is still to be given out."""
    lost = data_id < following and all(t.get(table, u64(data_id)) is None for table in (DA, STAGE))
    return lost or holds(t, data_id, digest)


def _renumber(t: WriteTransaction, state: State, digest: bytes, row: IxRow, now_s: int) -> None:
    new = state.next_data_id
    state.next_data_id += 1
    record = record_at(t, row.data_id)
    if record is None:
        t.put(PURGE, u64(row.data_id), b"")  # damaged: what pieces there are belong to nothing any more
    else:
        pieces = [(u64(new) + key[8:], data) for key, data in _pieces(t, row.data_id)]
        t.append_many(D, pieces[: piece_count(record.stored_len)])
        t.append(DA, u64(new), record._replace(earlier=row.data_id).pack())
        t.put(KP, u64(row.data_id), digest)
        state.kept_bytes += record.stored_len
    touch(t, state, digest, row._replace(data_id=new), now_s)


def _pieces(t: ReadTransaction, data_id: int) -> Iterator[tuple[bytes, bytes]]:
    """What is there: a damaged record may speak of any number of them."""
    return takewhile(lambda row: row[0].startswith(u64(data_id)), t.scan(D, u64(data_id)))
