"""Rows put right that belong to nothing or contradict others, and the counters: what `audits` finds and what needs no
good copy from elsewhere.

Area by area: what is wrong is looked for in short reads; then each row is judged again in the transaction that
changes it, with few others, so writers go on and a kill leaves each of them as it was or right. Nothing that could
still be the only copy of an artifact is removed: a record whose row in the index is lost gets it back if its bytes
prove the id, and stays where they do not. A row of links that cannot be right is made anew from bytes that prove the
id. The caller keeps gc and compact out; from each of these transactions on the next gc marks everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from typing import Final, final

from casstore import audits, holders, tallies
from casstore.audits import WHOLE, Mended, Problem
from casstore.counters import NUMBERS_AHEAD_MAX, begin, finish, is_given, loosen
from casstore.errors import DamagedStore
from casstore.evidence import Facts, Links, Prove, is_lost, is_nobodys, learn, pages, shown_record
from casstore.puts import find, record_at, touch
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
from casstore.tables import Tables, WriteTransaction

PART_ROWS: Final = 256  # changed in one transaction
PIECES_MAX: Final = 2000  # of one data_id removed in one transaction
_NUMBER_MAX: Final = 1 << 62  # a greater data_id is damage, and not one to go on from

# Of these findings of `audits`; bad_row where it is not one of a pin, wrong_order where it is one of links.
MENDS: Final = frozenset({
    "bad_key", "bad_name", "bad_row", "missing_link", "orphan_kind", "orphan_lease", "orphan_links", "orphan_pieces",
    "orphan_record", "wrong_counters", "wrong_gone", "wrong_kept", "wrong_length", "wrong_number", "wrong_order",
    "wrong_purge", "wrong_record", "wrong_touch",
})  # fmt: skip
# A row of the index that cannot be read comes after what is lost, which it may link to.
_AREAS: Final = ("kept", "gone", "records", "artifacts", "pieces", "links", "kinds", "ticks")
_TABLES: Final = {
    "gone": GONE, "kept": KP, "records": DA, "artifacts": IX, "pieces": D, "links": LN, "kinds": KN, "ticks": TICK,
}  # fmt: skip


def mend(tables: Tables, now_s: int, prove: Prove, relink: Set[bytes] = frozenset()) -> list[Mended]:
    """All of it; what was done, in order. `relink` are artifacts whose row of links is known not to be right."""
    done: list[Mended] = tallies.rebuild(tables)
    for area in _AREAS:
        keys = list(_wrong(tables, area))
        if area == "artifacts":
            keys += sorted(relink - set(keys))
        facts = learn(tables, area, keys, prove, relink) if keys else None
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
    for items in pages(tables, area):
        yield from (item.key for item in items if any(problem.code in MENDS for problem in item.problems))


@final
class _Part:
    """What is put right in one transaction."""

    def __init__(self, t: WriteTransaction, now_s: int, facts: Facts) -> None:
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
        problems = items[0].problems
        if area == "artifacts" and key in self._facts.relinked and (said := self._relink(key)) is not None:
            self.done.append(Mended("wrong_links", key, said))
            again = audits.audit(self._t, area, key, WHOLE, 1).items[0].problems
            problems = tuple(problem for problem in again if problem.code != "wrong_touch")  # touched just now
        for problem in problems:
            how = _HOW.get((area, problem.code))
            if problem.code == "bad_key" or (area == "ticks" and problem.code == "bad_row"):
                said = "the row is gone" if self._t.delete(_TABLES[area], key) else None
            else:
                said = None if how is None else how(self, key, problem)
            if said is not None:
                self.done.append(Mended(problem.code, problem.digest, said))
            if said == _MORE:
                return False
        return True

    # -- the index

    def _relink(self, digest: bytes) -> str | None:
        """Its row of links says what its bytes say, where that is something else, and all of it is there."""
        shown = shown_record(self._t, digest)
        proven, named = (False, None) if shown is None else self._facts.proofs.get((shown[0], digest), (False, None))
        if shown is None or not proven or named is None or named == links(self._t, digest):
            return None
        if not self._link(digest, shown[0], named):
            return None
        row = find(self._t, digest)
        assert row is not None
        touch(self._t, self._state, digest, row, self._now_s)
        return "it links to what its bytes link to"

    def _link(self, digest: bytes, data_id: int, wanted: Links) -> bool:
        """Write its row of links, where all that it names is there; what is not older is brought into order later."""
        try:
            rows = [find(self._t, link) for link in wanted]
        except DamagedStore:
            return False
        if None in rows:
            return False
        self._disordered = self._disordered or any(row is not None and row.data_id >= data_id for row in rows)
        if wanted:
            self._t.put(LN, digest, b"".join(wanted))
        else:
            self._t.delete(LN, digest)
        return True

    def bad_row(self, digest: bytes, problem: Problem) -> str | None:
        if not is_lost(self._t, digest):
            return None  # it is its links that are damaged, and not to be told from its bytes
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
        if not is_lost(self._t, digest):
            return None
        for data_id in self._facts.lost.get(digest, []):
            record = record_at(self._t, data_id)
            if record is not None and self._t.get(KP, u64(data_id)) is None and self._list(data_id, record):
                return _LISTED
        if self._is_of_nothing(digest):
            self._t.delete(IX, digest)
            return "it is not listed any more: it was never there"
        shown = shown_record(self._t, digest)
        if shown is None or not is_nobodys(self._t, *shown) or not self._facts.proven(shown[0], digest):
            return None  # for a put of the good bytes
        self._t.put(DA, u64(shown[0]), shown[1]._replace(digest=digest).pack())
        self._set_length(digest, shown[1])
        return _TOLD

    def _is_of_nothing(self, digest: bytes) -> bool:
        """Whether its number was never given out, no bytes are there that are said to be its own, and nothing names it:
        a row whose key is damaged, on which every gc would stop."""
        with suppress(DamagedStore):
            row = find(self._t, digest)
            if row is None or is_given(self._t, self._state, row.data_id) or self._facts.lost.get(digest):
                return False
            return record_at(self._t, row.data_id) is None and not holders.is_named(self._t, digest)
        return False

    def wrong_length(self, digest: bytes, _: Problem) -> str | None:
        shown = shown_record(self._t, digest)
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
        if record is not None and record.digest != problem.digest and is_nobodys(self._t, data_id, record):
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
        if is_lost(self._t, record.digest):
            return _LISTED if self._list(data_id, record) else None
        shown = shown_record(self._t, record.digest)
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
        if not self._link(record.digest, data_id, links(t, record.digest) if named is None else named):
            return False
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
