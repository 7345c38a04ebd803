"""Rows put right that belong to nothing or contradict others, and the counters: what `audits` finds and what needs no
good copy from elsewhere.

Area by area: what is wrong is looked for in short reads; then each row is judged again in the transaction that
changes it, with few others, so writers go on and a kill leaves each of them as it was or right. Nothing that could
still be the only copy of an artifact is removed: a record whose row in the index is lost gets it back if its bytes
prove the id, and stays where they do not. The caller keeps gc and compact out; from each of these transactions on the
next gc marks everything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, final

from casstore import audits, holders, tallies
from casstore.audits import WHOLE, Mended, Problem
from casstore.errors import DamagedStore
from casstore.puts import NUMBERS_AHEAD_MAX, begin, find, finish, holds, loosen, record_at, touch
from casstore.repairs import reorder
from casstore.rows import (
    DA,
    GONE,
    IX,
    KN,
    KP,
    LN,
    OTHER_KINDS,
    PURGE,
    TICK,
    D,
    DaRow,
    GoneRow,
    IxRow,
    State,
    from_u64,
    gone_row,
    kind_bit,
    piece_count,
    piece_key,
    text,
    u64,
)
from casstore.steps import reach
from casstore.sweeps import drop_bytes, links
from casstore.tables import ReadTransaction, Tables, WriteTransaction

PART_ROWS: Final = 256  # changed in one transaction
PIECES_MAX: Final = 2000  # of one data_id removed in one transaction
_PAGE: Final = 2000
_NUMBER_MAX: Final = 1 << 62  # a greater data_id is damage, and not one to go on from

# Of these findings of `audits`; bad_row where it is not one of links or of a pin, wrong_order where it is one of links.
MENDS: Final = frozenset({
    "bad_key", "bad_name", "bad_row", "orphan_kind", "orphan_lease", "orphan_links", "orphan_pieces", "orphan_record",
    "wrong_counters", "wrong_gone", "wrong_kept", "wrong_length", "wrong_number", "wrong_order", "wrong_purge",
    "wrong_record", "wrong_touch",
})  # fmt: skip
# A row of the index that cannot be read comes after what is lost, which it may link to.
_AREAS: Final = ("kept", "gone", "records", "artifacts", "pieces", "links", "kinds", "ticks")
_TABLES: Final = {
    "gone": GONE, "kept": KP, "records": DA, "artifacts": IX, "pieces": D, "links": LN, "kinds": KN, "ticks": TICK,
}  # fmt: skip

Links = tuple[bytes, ...]
# Of (data_id, record) whether the bytes have the id that the record says, and what they link to, None where that is
# what the row of links says.
Prove = Callable[[int, DaRow], tuple[bool, Links | None]]


@final
class _Facts(NamedTuple):
    """Learned before anything is judged; nothing that is done meanwhile makes it less: bytes that nothing reaches
    are no new delta's base, and what they prove they prove."""

    bases: frozenset[int]
    proofs: dict[tuple[int, bytes], tuple[bool, Links | None]]  # of a data_id, whether it has the bytes of a digest
    lost: dict[bytes, list[int]]  # artifacts whose row in the index is of no use, and data_ids of their records

    def proven(self, data_id: int, digest: bytes) -> bool:
        """Whether these bytes are this artifact's."""
        return self.proofs.get((data_id, digest), (False, None))[0]


def mend(tables: Tables, now_s: int, prove: Prove) -> list[Mended]:
    """All of it; what was done, in order."""
    done: list[Mended] = tallies.rebuild(tables)
    for area in _AREAS:
        keys = list(_wrong(tables, area))
        facts = _learn(tables, area, keys, prove) if keys else None
        if facts is not None and area == "artifacts":  # what they link to first
            keys.sort(key=lambda digest: max(facts.lost.get(digest, ()), default=0))
        while keys and facts is not None:
            with tables.write() as t:
                part = _Part(t, now_s, facts)
                left = [key for key in keys[:PART_ROWS] if not part.mend(area, key)]
                part.finish()
                reach("mend.written")
            reach("mend.part")
            done += part.done
            keys = left + keys[PART_ROWS:]
    done += holders.mend(tables, now_s)
    return done + tallies.count(tables)


def _wrong(tables: Tables, area: str) -> Iterator[bytes]:
    """Keys of an area where something is to be put right, ascending."""
    for items in _pages(tables, area):
        yield from (item.key for item in items if any(problem.code in MENDS for problem in item.problems))


def _pages(tables: Tables, area: str) -> Iterator[tuple[audits.AuditItem, ...]]:
    at: bytes | None = b""
    while at is not None:
        with tables.read() as t:
            page = audits.audit(t, area, at, WHOLE, _PAGE)
        yield page.items
        at = page.next


def _learn(tables: Tables, area: str, keys: Sequence[bytes], prove: Prove) -> _Facts:
    if area == "links":
        left = (problem.digest for page in _pages(tables, "records") for item in page for problem in item.problems
                if problem.code == "orphan_record")  # fmt: skip
        return _Facts(frozenset(), {}, {digest: [] for digest in left if digest is not None})
    if area not in ("artifacts", "kept", "records"):
        return _Facts(frozenset(), {}, {})
    wanted, bases = set(keys), set[int]()
    lost, candidates = defaultdict[bytes, list[int]](list), dict[tuple[int, bytes], DaRow]()
    at = b""
    while True:
        with tables.read() as t:
            rows = [row for _, row in zip(range(_PAGE), t.scan(DA, at), strict=False)]
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
        if len(rows) < _PAGE:
            break
        at = rows[-1][0] + b"\0"
    with tables.read() as t:
        doubtful = {
            place: row for place, row in candidates.items() if area == "kept" or _is_doubtful(t, place[1], row)
        }
        for key in () if area == "records" else keys:
            doubtful |= _relabelled(t, area, key)
        shown = dict(filter(None, (_shown(t, digest) for _, digest in candidates))) if area == "records" else {}
    proofs = {(data_id, row.digest): prove(data_id, row) for data_id, row in shown.items()}
    damaged = {digest for (_, digest), (proven, _) in proofs.items() if not proven}
    # Where what is visible is damaged, these may be the good bytes.
    doubtful |= {place: row for place, row in candidates.items() if place[1] in damaged}
    proofs |= {(data_id, digest): prove(data_id, row) for (data_id, digest), row in doubtful.items()}
    return _Facts(frozenset(bases), proofs, dict(lost))


def _is_lost(t: ReadTransaction, digest: bytes) -> bool:
    """Whether the index should have a readable row of this artifact that leads to its record, and has none: nobody
    collected it."""
    try:
        row = find(t, digest)
    except DamagedStore:
        return True
    return t.get(GONE, digest) is None if row is None else not holds(t, row.data_id, digest)


def _shown(t: ReadTransaction, digest: bytes) -> tuple[int, DaRow] | None:
    """Data_id and record of what is visible, where they can be read."""
    try:
        row = find(t, digest)
    except DamagedStore:
        return None
    found = None if row is None else record_at(t, row.data_id)
    return None if row is None or found is None else (row.data_id, found)


def _is_doubtful(t: ReadTransaction, digest: bytes, row: DaRow) -> bool:
    """Whether it takes the bytes to say what is right."""
    if _is_lost(t, digest):
        return True
    shown = find(t, digest)
    return shown is not None and shown.raw_len != row.raw_len


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
    if digest is None or found is None or not _is_nobodys(t, data_id, found):
        return {}
    return {(data_id, digest): found._replace(digest=digest)}


def _is_nobodys(t: ReadTransaction, data_id: int, record: DaRow) -> bool:
    """Whether neither the index nor the list of what is kept knows a record under the digest that it says."""
    row = t.get(IX, record.digest)
    return t.get(KP, u64(data_id)) != record.digest and (row is None or row[:8] != u64(data_id))


@final
class _Part:
    """What is put right in one transaction."""

    def __init__(self, t: WriteTransaction, now_s: int, facts: _Facts) -> None:
        self._t, self._now_s, self._facts = t, now_s, facts
        self._state: State = begin(t)
        self._disordered = False
        self.done: list[Mended] = []

    def finish(self) -> None:
        if not self.done:
            return
        loosen(self._t, self._state)
        finish(self._t, self._state, self._now_s)
        if self._disordered:
            reorder(self._t, self._now_s)

    def mend(self, area: str, key: bytes) -> bool:
        """Put a row right that is still wrong. False: there is more to do than goes into one transaction."""
        items = audits.audit(self._t, area, key, WHOLE, 1).items
        if not items or items[0].key != key:
            return True
        for problem in items[0].problems:
            how = _HOW.get((area, problem.code))
            if problem.code == "bad_key" or (area == "ticks" and problem.code == "bad_row"):
                said: str | None = "the row is gone" if self._t.delete(_TABLES[area], key) else None
            else:
                said = None if how is None else how(self, key, problem)
            if said is not None:
                self.done.append(Mended(problem.code, problem.digest, said))
            if said == _MORE:
                return False
        return True

    # -- the index

    def bad_row(self, digest: bytes, problem: Problem) -> str | None:
        if not _is_lost(self._t, digest):
            return None  # it is its links that are damaged
        for data_id in self._facts.lost.get(digest, []):
            record = record_at(self._t, data_id)
            if record is not None and self._t.get(KP, u64(data_id)) is None and self._list(data_id, record):
                return _LISTED
        with suppress(DamagedStore):
            if find(self._t, digest) is not None:
                return None
        self._t.delete(IX, digest)  # so that the bytes can be put again
        return "it is not listed any more"

    def wrong_record(self, digest: bytes, _: Problem) -> str | None:
        """Its number leads to nothing or to another's bytes: it leads to its own again, or these are said to be its
        own, whichever the bytes prove."""
        if not _is_lost(self._t, digest):
            return None
        for data_id in self._facts.lost.get(digest, []):
            record = record_at(self._t, data_id)
            if record is not None and self._t.get(KP, u64(data_id)) is None and self._list(data_id, record):
                return _LISTED
        shown = _shown(self._t, digest)
        if shown is None or not _is_nobodys(self._t, *shown) or not self._facts.proven(shown[0], digest):
            return None  # for a put of the good bytes
        self._t.put(DA, u64(shown[0]), shown[1]._replace(digest=digest).pack())
        self._set_length(digest, shown[1])
        return _TOLD

    def wrong_length(self, digest: bytes, _: Problem) -> str | None:
        shown = _shown(self._t, digest)
        if shown is None or not self._facts.proven(shown[0], digest):
            return None
        self._set_length(digest, shown[1])
        return f"it is {shown[1].raw_len} bytes long"

    def _set_length(self, digest: bytes, record: DaRow) -> None:
        row = find(self._t, digest)
        assert row is not None
        touch(self._t, self._state, digest, row._replace(raw_len=record.raw_len), self._now_s)

    def wrong_order(self, digest: bytes, _: Problem) -> str | None:
        self._disordered = True
        return "it has a new data_id, as what links to something younger"

    def wrong_touch(self, digest: bytes, _: Problem) -> str | None:
        row = find(self._t, digest)
        if row is None:
            return None
        touch(self._t, self._state, digest, row, self._now_s)
        return f"touched by commit {self._state.commit}"

    def wrong_gone(self, digest: bytes, _: Problem) -> str | None:
        if self._t.get(IX, digest) is not None:
            self._t.delete(GONE, digest)
            return "not listed as collected any more"
        row = GoneRow.unpack(self._t.get(GONE, digest) or b"")
        self._t.put(GONE, digest, row._replace(data_id=0, until_s=0, names=()).pack())
        return "listed as collected, without bytes"

    def bad_gone(self, digest: bytes, _: Problem) -> str | None:
        if self._t.get(IX, digest) is not None:
            self._t.delete(GONE, digest)
            return "not listed as collected any more"
        self._t.put(GONE, digest, gone_row(self._now_s, self._state.epoch, 0, 0))
        return "listed as collected just now"

    # -- bytes

    def wrong_kept(self, key: bytes, problem: Problem) -> str | None:
        data_id, record = from_u64(key), record_at(self._t, from_u64(key))
        if record is None and data_id in self._facts.bases:
            return None  # a put of the good bytes heals what is kept, and then what is made of it
        if record is not None and record.digest != problem.digest and _is_nobodys(self._t, data_id, record):
            if problem.digest is not None and self._facts.proven(data_id, problem.digest):
                self._t.put(DA, key, record._replace(digest=problem.digest).pack())
                return _TOLD
            if not self._facts.proven(data_id, record.digest):
                return None  # for a put of the good bytes
            self._t.put(KP, key, record.digest)
            return f"data_id {data_id} is kept for {record.digest.hex()}, whose bytes it holds"
        self._t.delete(KP, key)
        return f"data_id {data_id} is not listed as kept any more"

    def bad_record(self, key: bytes, _: Problem) -> str | None:
        self._t.delete(DA, key)  # so that a put of the good bytes can heal what it was of
        return f"data_id {from_u64(key)} has no record any more"

    def wrong_purge(self, key: bytes, _: Problem) -> str | None:
        if self._t.get(DA, key) is None:
            return None  # it went just now
        self._t.delete(PURGE, key)
        return f"data_id {from_u64(key)} keeps its pieces"

    def wrong_number(self, key: bytes, _: Problem) -> str | None:
        data_id, record = from_u64(key), record_at(self._t, from_u64(key))
        if record is None or data_id < self._state.next_data_id:
            return None  # it went just now
        if self._is_far(data_id) and (data_id >= _NUMBER_MAX or self._t.get(D, piece_key(data_id, 0)) is None):
            self._t.delete(DA, key)
            return f"no data_id is {data_id}: its record is gone"
        self._state.next_data_id = data_id + 1
        return f"the next data_id is {data_id + 1}"

    def orphan_record(self, key: bytes, _: Problem) -> str | None:
        data_id, record = from_u64(key), record_at(self._t, from_u64(key))
        if record is None:
            return None
        if _is_lost(self._t, record.digest):
            return _LISTED if self._list(data_id, record) else None
        shown = _shown(self._t, record.digest)
        if shown is not None and self._facts.proofs.get((shown[0], record.digest), (True, None))[0] is False:
            # What is visible is damaged, so these may be the only good bytes. (What came meanwhile has no proof, and
            # is as its writer put it.)
            return _LISTED if self._list(data_id, record) else None
        if data_id in self._facts.bases:
            self._t.put(KP, key, record.digest)
            self._name(data_id, record.digest)
            return f"data_id {data_id} is kept: a delta needs it"
        pieces = piece_count(record.stored_len)
        if data_id >= self._state.next_data_id:  # which would be given out again while they wait for a purge
            if self._pieces(key, 0) == _MORE:
                return _MORE
            self._t.delete(DA, key)
            return f"data_id {data_id} is gone"
        drop_bytes(self._t, [data_id])
        return f"data_id {data_id} is gone, and its {pieces} pieces go"

    def orphan_pieces(self, key: bytes, _: Problem) -> str | None:
        record = record_at(self._t, from_u64(key))
        return self._pieces(key, 0 if record is None else piece_count(record.stored_len))

    def _pieces(self, key: bytes, first: int) -> str:
        """Remove those from a number on."""
        found = list[bytes]()
        for piece in self._t.keys(D, piece_key(from_u64(key), first)):
            if piece[:8] != key[:8]:
                break
            if len(found) == PIECES_MAX:
                self._t.delete_many(D, found)
                return _MORE
            found.append(piece)
        self._t.delete_many(D, found)
        return f"{len(found)} pieces of data_id {from_u64(key)} are gone"

    def _list(self, data_id: int, record: DaRow) -> bool:
        """Give an artifact its row in the index again, under the data_id that it has, where that keeps the store
        closed: all that it needs is there. What is younger than it is brings it a new number (`reorder`)."""
        t, (proven, named) = self._t, self._facts.proofs.get((data_id, record.digest), (False, None))
        base = record.base == 0 or (record.base < data_id and record_at(self._t, record.base) is not None)
        if not proven or not base or self._is_far(data_id):
            return False
        wanted = links(t, record.digest) if named is None else named
        try:
            rows = [find(t, link) for link in wanted]
        except DamagedStore:
            return False
        for row in rows:
            if row is None:
                return False
            self._disordered = self._disordered or row.data_id >= data_id
        if wanted:
            t.put(LN, record.digest, b"".join(wanted))
        else:
            t.delete(LN, record.digest)
        other = next((key for key in t.keys(KN, record.digest)), b"").startswith(record.digest)
        kinds = OTHER_KINDS if other else kind_bit("other")
        with suppress(DamagedStore):
            old = find(t, record.digest)
            kinds = kinds if old is None else old.kinds
        touch(t, self._state, record.digest, IxRow(data_id, 0, 0, kinds, record.raw_len), self._now_s)
        self._state.next_data_id = max(self._state.next_data_id, data_id + 1)
        return True

    def _is_far(self, data_id: int) -> bool:
        """Too far ahead of what was given out to go on from."""
        return data_id >= self._state.next_data_id + NUMBERS_AHEAD_MAX

    def _name(self, data_id: int, digest: bytes) -> None:
        """Where a put of the same bytes finds what is kept, if nothing else is named there."""
        found = self._t.get(GONE, digest)
        with suppress(DamagedStore):
            if found is not None and not (row := GoneRow.unpack(found)).data_id:
                self._t.put(GONE, digest, row._replace(data_id=data_id).pack())

    # -- what hangs on them

    def orphan_links(self, digest: bytes, _: Problem) -> str | None:
        if digest in self._facts.lost:
            return None  # its bytes are there, and large ones do not tell their links
        self._t.delete(LN, digest)
        return "its links are gone"

    def orphan_kind(self, key: bytes, _: Problem) -> str | None:
        self._t.delete(KN, key)
        return "its kind is gone"

    def bad_kind(self, key: bytes, _: Problem) -> str | None:
        self._t.delete(KN, key)
        self._t.put(KN, key[:32] + text(key[32:]).encode(), b"")
        return f"its kind is {text(key[32:])}"


_LISTED: Final = "it has a row in the index again"
_TOLD: Final = "its record says whose bytes it holds"
_MORE: Final = "pieces are gone"
_HOW: Final[dict[tuple[str, str], Callable[[_Part, bytes, Problem], str | None]]] = {
    ("artifacts", "bad_row"): _Part.bad_row, ("artifacts", "wrong_touch"): _Part.wrong_touch,
    ("artifacts", "wrong_record"): _Part.wrong_record, ("artifacts", "wrong_length"): _Part.wrong_length,
    ("gone", "wrong_gone"): _Part.wrong_gone, ("kept", "wrong_kept"): _Part.wrong_kept,
    ("records", "bad_row"): _Part.bad_record, ("records", "wrong_purge"): _Part.wrong_purge,
    ("records", "wrong_number"): _Part.wrong_number, ("records", "orphan_record"): _Part.orphan_record,
    ("pieces", "orphan_pieces"): _Part.orphan_pieces, ("links", "orphan_links"): _Part.orphan_links,
    ("kinds", "orphan_kind"): _Part.orphan_kind, ("kinds", "bad_name"): _Part.bad_kind,
    ("gone", "bad_row"): _Part.bad_gone, ("artifacts", "wrong_order"): _Part.wrong_order,
}  # fmt: skip
