"""The transactions of re-encoding, on an open transaction (docs/GC.md, section 2, "Re-encode").

What these keep: row and record are what was read before (else somebody healed, collected or rewrote it); a new base
is visible and has the smaller data_id (H16); a new encoding is a touch, so that a gc that is open looks at the edges
again (H15); kept bytes go only where no record names them as its base.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from casstore.backend import NewEncoding, Record
from casstore.counters import begin, finish, loosen
from casstore.puts import clear_pieces, find, holds, split, touch, write_pieces
from casstore.rows import DA, KP, DaRow, da_head, from_u64, u64
from casstore.sweeps import drop_bytes, end_copy, gone
from casstore.tables import ReadTransaction, WriteTransaction


def records(t: ReadTransaction, after: int, limit: int) -> list[Record]:
    """Up to `limit` records with a greater data_id, ascending. Raises: DamagedStore."""
    return [_record(from_u64(key), value) for key, value in islice(t.scan(DA, u64(after + 1)), limit)]


def _record(data_id: int, data: bytes) -> Record:
    row = DaRow.unpack(data)
    return Record(data_id, row.digest, row.raw_len, row.stored_len, row.codec, row.base, row.chain)


def reencode(t: WriteTransaction, items: Sequence[NewEncoding], now_s: int) -> list[bool]:
    """Replace the encoding of each artifact that is still as it was read; which were. Same digest, same data_id."""
    state = begin(t)
    done: list[bool] = []
    for item in items:
        old = item.record
        row, found = find(t, old.digest), t.get(DA, u64(old.data_id))
        same = row is not None and row.data_id == old.data_id
        same = same and found is not None and _record(old.data_id, found) == old
        done.append(same and _has_base(t, item))
        if not done[-1] or row is None or found is None:
            continue
        clear_pieces(t, old.data_id)
        write_pieces(t, old.data_id, 0, split(item.stored))
        base = 0 if item.base is None else item.base[1]
        earlier = DaRow.unpack(found).earlier
        fresh = DaRow(old.digest, old.raw_len, len(item.stored), item.codec, base, item.chain, earlier, item.extra)
        t.put(DA, u64(old.data_id), fresh.pack())
        state.stored_bytes += len(item.stored) - old.stored_len
        touch(t, state, old.digest, row, now_s)
    if any(done):
        loosen(t, state)  # the bytes of their old bases
        finish(t, state, now_s)
    return done


def _has_base(t: ReadTransaction, item: NewEncoding) -> bool:
    if item.base is None:
        return True
    digest, data_id = item.base
    row = find(t, digest)
    return row is not None and row.data_id == data_id < item.record.data_id and holds(t, data_id, digest)


def release(t: WriteTransaction, data_ids: Sequence[int], seen: int) -> list[int]:
    """Let kept bytes go that no record needed when all records up to data_id `seen` were looked at; which went.

    Nothing that was there then can have begun to need them: a base is visible when it is chosen, and what was
    collected never becomes visible again under its data_id. So only newer records are looked at here (one that was
    renumbered carries its base along). What is in quarantine stays.
    """
    state = begin(t)
    needed = {da_head(value)[2] for _, value in t.scan(DA, u64(seen + 1))}
    released: list[int] = []
    for data_id in data_ids:
        key = u64(data_id)
        digest, data = t.get(KP, key), t.get(DA, key)
        if digest is None or data is None or data_id in needed:
            continue
        was = gone(t, digest)
        if was is not None and was.data_id == data_id and was.until_s:
            continue
        t.delete(KP, key)
        end_copy(t, digest, data_id)
        drop_bytes(t, [data_id])
        state.kept_bytes -= da_head(data)[1]
        released.append(data_id)
    if released:
        loosen(t, state)
        state.swept += 1
        finish(t, state)
    return released
