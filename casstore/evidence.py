"""What can be known of rows that are damaged: learned before anything is put right (see `mending`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Final, NamedTuple, final

from casstore import audits
from casstore.audits import WHOLE
from casstore.errors import DamagedStore
from casstore.puts import find, holds, record_at
from casstore.rows import DA, GONE, IX, KP, DaRow, from_u64, u64
from casstore.tables import ReadTransaction, Tables

PAGE_ROWS: Final = 2000

Links = tuple[bytes, ...]
# Of (data_id, record) whether the bytes have the id that the record says, and what they link to, None where that is
# what the row of links says.
Prove = Callable[[int, DaRow], tuple[bool, Links | None]]


@final
class Facts(NamedTuple):
    """Learned before anything is judged; nothing that is done meanwhile makes it less: bytes that nothing reaches
    are no new delta's base, and what they prove they prove."""

    bases: frozenset[int]
    proofs: dict[tuple[int, bytes], tuple[bool, Links | None]]  # of a data_id, whether it has the bytes of a digest
    lost: dict[bytes, list[int]]  # artifacts whose row in the index is of no use, and data_ids of their records
    relinked: frozenset[bytes] = frozenset()  # artifacts whose row of links may be wrong

    def proven(self, data_id: int, digest: bytes) -> bool:
        """Whether these bytes are this artifact's."""
        return self.proofs.get((data_id, digest), (False, None))[0]


def pages(tables: Tables, area: str) -> Iterator[tuple[audits.AuditItem, ...]]:
    """All of an area of `audits`, each page of one snapshot."""
    at: bytes | None = b""
    while at is not None:
        with tables.read() as t:
            page = audits.audit(t, area, at, WHOLE, PAGE_ROWS)
        yield page.items
        at = page.next


def learn(tables: Tables, area: str, keys: Sequence[bytes], prove: Prove, relink: Set[bytes]) -> Facts:
    """What it takes to judge these keys of an area; bytes are read, outside of any transaction that writes."""
    if area == "links":
        left = (problem.digest for page in pages(tables, "records") for item in page for problem in item.problems
                if problem.code == "orphan_record")  # fmt: skip
        return Facts(frozenset(), {}, {digest: [] for digest in left if digest is not None})
    if area not in ("artifacts", "kept", "records"):
        return Facts(frozenset(), {}, {})
    wanted, bases = set(keys), set[int]()
    lost, candidates = defaultdict[bytes, list[int]](list), dict[tuple[int, bytes], DaRow]()
    at = b""
    while True:
        with tables.read() as t:
            rows = [row for _, row in zip(range(PAGE_ROWS), t.scan(DA, at), strict=False)]
        for key, value in rows:
            try:
                row = DaRow.unpack(value)
                from_u64(key)
            except DamagedStore:
                continue
            bases.add(row.base)
            if (row.digest if area == "artifacts" else key) in wanted:
                lost[row.digest].append(from_u64(key))
                candidates[from_u64(key), row.digest] = row
        if len(rows) < PAGE_ROWS:
            break
        at = rows[-1][0] + b"\0"
    with tables.read() as t:
        if area == "artifacts":
            relink = {*relink, *(digest for digest in keys if _has_wrong_links(t, digest))}
        doubtful = {
            place: row for place, row in candidates.items()
            if area == "kept" or place[1] in relink or _is_doubtful(t, place[1], row)
        }  # fmt: skip
        for key in () if area == "records" else keys:
            doubtful |= _relabelled(t, area, key)
        shown = dict(filter(None, (shown_record(t, digest) for _, digest in candidates))) if area == "records" else {}
    proofs = {(data_id, row.digest): prove(data_id, row) for data_id, row in shown.items()}
    damaged = {digest for (_, digest), (proven, _) in proofs.items() if not proven}
    # Where what is visible is damaged, these may be the good bytes.
    doubtful |= {place: row for place, row in candidates.items() if place[1] in damaged}
    proofs |= {(data_id, digest): prove(data_id, row) for (data_id, digest), row in doubtful.items()}
    return Facts(frozenset(bases), proofs, dict(lost), frozenset(relink))


def is_lost(t: ReadTransaction, digest: bytes) -> bool:
    """Whether the index should have a readable row of this artifact that leads to its record, and has none: nobody
    collected it."""
    try:
        row = find(t, digest)
    except DamagedStore:
        return True
    return t.get(GONE, digest) is None if row is None else not holds(t, row.data_id, digest)


def shown_record(t: ReadTransaction, digest: bytes) -> tuple[int, DaRow] | None:
    """Data_id and record of what is visible, where they can be read."""
    try:
        row = find(t, digest)
    except DamagedStore:
        return None
    found = None if row is None else record_at(t, row.data_id)
    return None if row is None or found is None else (row.data_id, found)


def _is_doubtful(t: ReadTransaction, digest: bytes, row: DaRow) -> bool:
    """Whether it takes the bytes to say what is right."""
    if is_lost(t, digest):
        return True
    shown = find(t, digest)
    return shown is not None and shown.raw_len != row.raw_len


def _has_wrong_links(t: ReadTransaction, digest: bytes) -> bool:
    """Whether its row of links alone tells that something is wrong with it, or with what it links to."""
    found = audits.audit(t, "artifacts", digest, WHOLE, 1).items
    codes = {problem.code for problem in found[0].problems} if found and found[0].key == digest else set()
    return bool(codes & {"bad_row", "missing_link", "wrong_order"})


def _relabelled(t: ReadTransaction, area: str, key: bytes) -> dict[tuple[int, bytes], DaRow]:
    """A record that index or list of what is kept names for an artifact, and that says that it is another's, which
    nobody knows: as it should be."""
    try:
        digest = key if area == "artifacts" else t.get(KP, key)
        row = find(t, key) if area == "artifacts" else None
        data_id = from_u64(key) if area != "artifacts" else 0 if row is None else row.data_id
    except DamagedStore:
        return {}
    found = record_at(t, data_id)
    if digest is None or found is None or not is_nobodys(t, data_id, found):
        return {}
    return {(data_id, digest): found._replace(digest=digest)}


def is_nobodys(t: ReadTransaction, data_id: int, record: DaRow) -> bool:
    """Whether neither the index nor the list of what is kept knows a record under the digest that it says."""
    row = t.get(IX, record.digest)
    return t.get(KP, u64(data_id)) != record.digest and (row is None or row[:8] != u64(data_id))
