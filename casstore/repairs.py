"""Repair from another store: what is damaged or missing here is fetched there, proven by its id, and put.

A put heals under the old data_id. What was missing gets a new one; whatever links to it is then older than it is,
which gc must never meet, so in the same go it gets a new data_id as well, and so on upwards (`reorder`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from casstore.errors import Corrupt, NotFound, StoreError, StoreFull
from casstore.ids import ArtifactId
from casstore.puts import begin, find, finish, loosen, touch
from casstore.reports import Finding, RepairReport
from casstore.rows import DA, KP, LN, PURGE, D, DaRow, IxRow, State, piece_count, piece_key, u64
from casstore.sweeps import links
from casstore.tables import ReadTransaction, WriteTransaction

if TYPE_CHECKING:
    from casstore.store import Store

VALUE_MAX: Final = 32 << 20  # larger ones are copied as a stream, which has no links
WANTED: Final = frozenset({"corrupt", "corrupt_base", "damaged_store", "missing_link", "missing_root", "wrong_length",
                           "wrong_links", "wrong_order", "wrong_record"})  # fmt: skip


def repair(
    store: Store, other: Store, wanted: Iterable[ArtifactId], *, reorder: Callable[[], int],
    check: Callable[[ArtifactId], list[Finding]],
) -> RepairReport:  # fmt: skip
    """Fetch and put each artifact, and what it links to where that is missing. `check` says what is wrong with one.

    Raises: StoreFull.
    """
    names = list(dict.fromkeys(wanted))
    failures: dict[ArtifactId, str] = {}
    left = {name: check(name) for name in names}
    # Twice: a copy that is damaged and links to what was missing can be healed once it is younger than that.
    for _ in range(2):
        failures.clear()
        for name in (name for name, found in left.items() if found):
            _fetch(store, other, name, failures)
        left = {name: check(name) for name, found in left.items() if found}
        if any(found.code == "wrong_order" for problems in left.values() for found in problems):
            reorder()
            left = {name: check(name) for name in left}
    failed = [
        (name, failures.get(name) or "; ".join(found.detail for found in problems))
        for name, problems in left.items()
        if problems
    ]
    lost = {name for name, _ in failed}
    return RepairReport(repaired=tuple(name for name in names if name not in lost), failed=tuple(failed))


def _fetch(store: Store, other: Store, name: ArtifactId, failures: dict[ArtifactId, str]) -> None:
    """Put one artifact, after what it links to and is missing here."""
    todo, seen = [name], {name}
    while todo:
        at = todo[-1]
        try:
            info = other.info(at)
            missing = [link for link in info.links if link not in seen and link not in store]
            if missing:
                seen.update(missing)
                todo += missing
                continue
            for kind in info.kinds or ("other",):
                if info.size_bytes <= VALUE_MAX:
                    store.put(other.get(at), kind=kind, verify=True)
                    continue
                with other.open_reader(at) as file:
                    store.put_file(cast(BinaryIO, file), kind=kind)
        except StoreFull:
            raise
        except StoreError as error:
            failures[at] = f"the other store: {error}" if isinstance(error, (NotFound, Corrupt)) else str(error)
        todo.pop()


def reorder(t: WriteTransaction, now_s: int) -> int:
    """Give new data_ids to what links to something younger, and then to what links to that; how many. Bytes under
    the old numbers stay for the deltas made of them; the next gc takes them where there are none."""
    state, moved = begin(t), 0
    found = _disordered(t)
    while found:
        for digest in found:
            row = find(t, digest)
            assert row is not None
            _renumber(t, state, digest, row, now_s)
            moved += 1
        found = _disordered(t)
    if moved:
        loosen(t, state)
        finish(t, state, now_s)
    return moved


def _disordered(t: ReadTransaction) -> list[bytes]:
    """What links to something younger, ascending by data_id: so chains of them are right after one round."""
    owners: list[tuple[int, bytes]] = []
    young: set[bytes] = set()
    for digest, _ in t.scan(LN):
        row = find(t, digest)
        if row is not None:
            owners.append((row.data_id, digest))
    owners.sort()
    for data_id, digest in owners:
        for link in links(t, digest):
            child = find(t, link)
            if link in young or (child is not None and child.data_id >= data_id):
                young.add(digest)
                break
    return [digest for _, digest in owners if digest in young]


def _renumber(t: WriteTransaction, state: State, digest: bytes, row: IxRow, now_s: int) -> None:
    new = state.next_data_id
    state.next_data_id += 1
    record = t.get(DA, u64(row.data_id))
    if record is None:
        t.put(PURGE, u64(row.data_id), b"")  # damaged: what pieces there are belong to nothing any more
    else:
        size = DaRow.unpack(record).stored_len
        for piece in range(piece_count(size)):
            data = t.get(D, piece_key(row.data_id, piece))
            if data is not None:
                t.append(D, piece_key(new, piece), data)
        t.append(DA, u64(new), DaRow.unpack(record)._replace(earlier=row.data_id).pack())
        t.put(KP, u64(row.data_id), digest)
        state.kept_bytes += size
    touch(t, state, digest, row._replace(data_id=new), now_s)
