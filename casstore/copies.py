"""Earlier copies of an artifact: collected, put again since, and kept all the same, as deltas are made of their bytes.

Each copy names the one before it: what is visible in its record, what is collected in its row of `gone1`, so that a
put that brings the good bytes finds and heals them all (docs/GC.md, section 2, "Put").
"""

from __future__ import annotations

from casstore.rows import DA, GONE, IX, KP, DaRow, GoneRow, da_earlier, gone_data_id, ix_what, u64
from casstore.tables import ReadTransaction, WriteTransaction


def before(t: ReadTransaction, data_id: int) -> int:
    """The data_id of the copy before this one, 0 for none."""
    record = t.get(DA, u64(data_id))
    return 0 if record is None else da_earlier(record)


def kept_from(t: ReadTransaction, digest: bytes, data_id: int) -> list[int]:
    """The data_ids of this copy and of those before it whose bytes are kept, newest first."""
    found: list[int] = []
    while data_id:
        if t.get(KP, u64(data_id)) == digest:
            found.append(data_id)
        older = before(t, data_id)
        data_id = older if older < data_id else 0  # a damaged record cannot make it turn for ever
    return found


def kept(t: ReadTransaction, digest: bytes) -> list[int]:
    """All of an artifact's copies that are kept though they are not what is visible, newest first."""
    return kept_from(t, digest, _newest(t, digest))


def unlink(t: WriteTransaction, digest: bytes, data_id: int, older: int) -> None:
    """A kept copy goes: what named it names the one before it."""
    gone = t.get(GONE, digest)
    if gone is not None and gone_data_id(gone) == data_id:
        t.put(GONE, digest, GoneRow.unpack(gone)._replace(data_id=older, until_s=0, names=()).pack())
        return
    row = t.get(IX, digest)
    at = ix_what(row)[0] if row is not None else _newest(t, digest)
    while at > data_id:
        following = before(t, at)
        if following == data_id:
            record = t.get(DA, u64(at))
            assert record is not None
            t.put(DA, u64(at), DaRow.unpack(record)._replace(earlier=older).pack())
            return
        at = following if following < at else 0


def _newest(t: ReadTransaction, digest: bytes) -> int:
    row = t.get(IX, digest)
    if row is not None:
        return before(t, ix_what(row)[0])
    gone = t.get(GONE, digest)
    return 0 if gone is None else gone_data_id(gone)
