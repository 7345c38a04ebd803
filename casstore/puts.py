"""The transactions of writers, on an open write transaction: put, pin, leases, uploads (docs/GC.md, section 2).

The rules that these keep, each of which loses data when it is taken out: hit or new is decided here and not by
an earlier look (H10); a hit is a touch (H2); links are visible and older, here (H1); the base is resolved here
(H8); nothing is revived in place (H11); a heal keeps its data_id (H12); an upload's stage row is still there (H14)
and what it needs is older than it (H13).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, takewhile
from operator import itemgetter
from typing import Final

from casstore import copies
from casstore.backend import EncodeAgain, NewArtifact, Outcome, PutResult, UploadLost
from casstore.counters import begin, finish, is_given, loosen, skip_given, take_number
from casstore.errors import Collected, DamagedStore, LeaseLost, MissingArtifact, NotFound, Quarantined
from casstore.frames import FRAME_SIZE
from casstore.ids import ArtifactId
from casstore.rows import (
    DA,
    DICTIONARY_KIND,
    GONE,
    IX,
    KN,
    KP,
    LEASE,
    LEASED,
    LN,
    OTHER_KINDS,
    PIECE_SIZE,
    PIN,
    PURGE,
    RECENT,
    STAGE,
    D,
    DaRow,
    GoneRow,
    IxRow,
    State,
    da_row,
    from_u64,
    gone_data_id,
    is_buried,
    ix_row,
    kind_bit,
    piece_count,
    piece_key,
    text,
    u64,
)
from casstore.tables import ReadTransaction, WriteTransaction

PLAIN_MIN: Final = 8  # items, from which on it pays to write their rows table by table


def find(t: ReadTransaction, digest: bytes) -> IxRow | None:
    row = t.get(IX, digest)
    return IxRow.unpack(row) if row is not None else None


def record_at(t: ReadTransaction, data_id: int) -> DaRow | None:
    """How the bytes under a number are kept; None where nothing is, or nothing that can be read."""
    found = t.get(DA, u64(data_id))
    try:
        return None if found is None else DaRow.unpack(found)
    except DamagedStore:
        return None


def holds(t: ReadTransaction, data_id: int, digest: bytes) -> bool:
    """Whether the record under a number is one of this artifact. A damaged row of the index leads to another's, or
    to none."""
    found = record_at(t, data_id)
    return found is not None and found.digest == digest


def touch(t: WriteTransaction, state: State, digest: bytes, row: IxRow, now_s: int, kinds: int = 0) -> None:
    """Write, renewal, protection or a changed edge: each of them tells gc to look again."""
    t.put(IX, digest, row._replace(touched=state.commit, touched_s=now_s, kinds=row.kinds | kinds).pack())
    if state.gc_open:
        t.put(RECENT, digest, b"")


def put(t: WriteTransaction, items: Sequence[NewArtifact], now_s: int, lease: str | None) -> PutResult:
    """All or nothing. Raises: MissingArtifact, LeaseLost, EncodeAgain, UploadLost."""
    state = begin(t)
    skip_given(t, state)
    if lease is not None:
        require_lease(t, lease)
    first: set[bytes] = set()  # items that come before, which later ones may need
    again = []
    for item in items:
        if (item.stored is None or item.base is not None) and not _insertable(t, item, first):
            again.append(item.digest)
        first.add(item.digest)
    if again:
        raise EncodeAgain(tuple(again))
    outcomes: list[Outcome | None] = []  # None for a hit that writes nothing
    kept: list[tuple[bytes, int]] = []
    moved: list[bytes] = []
    for plain, run in groupby(zip(_plain(t, items), items, strict=True), itemgetter(0)):
        of_run = [item for _, item in run]
        if plain:
            _insert_plain(t, state, of_run, now_s)
            outcomes += [Outcome.NEW] * len(of_run)
        else:
            outcomes += [_put_one(t, state, item, now_s, kept, moved, renew=lease is not None) for item in of_run]
        if lease is not None:
            t.put_many(LEASED, [(lease.encode() + item.digest, b"") for item in of_run])
    told = tuple(outcome or Outcome.HIT for outcome in outcomes)
    if not any(outcomes):
        return PutResult(told, 0, tuple(kept))
    finish(t, state, now_s)
    return PutResult(told, state.commit, tuple(kept), bool(moved))


def _put_one(
    t: WriteTransaction, state: State, item: NewArtifact, now_s: int, kept: list[tuple[bytes, int]],
    moved: list[bytes], *, renew: bool,
) -> Outcome | None:  # fmt: skip
    """One item; None for a hit that writes nothing, which it never is with `renew`. Earlier copies whose bytes are kept
    are added to `kept`, what a heal gave a new number to `moved`."""
    row = find(t, item.digest)
    older = _insert(t, state, item, now_s) if row is None else copies.before(t, row.data_id)
    if older:
        kept += [(item.digest, data_id) for data_id in copies.kept_from(t, item.digest, older)]
    if row is None:
        return Outcome.NEW
    if item.heal:
        moved.extend([item.digest] if _heal(t, state, item, row, now_s) else ())
        return Outcome.HEALED
    unlinked = _knows_links(item) and (t.get(LN, item.digest) or b"") != b"".join(item.links)
    if item.upload is not None:
        upload_abort(t, item.upload)
    elif not renew and not unlinked and _is_fresh(state, row, item.kind, now_s):
        return None
    if unlinked:
        t.delete(LN, item.digest)  # a damaged row, if there is one
        moved.extend([item.digest] if _link_again(t, item, row.data_id) else ())
    touch(t, state, item.digest, row, now_s, _add_kind(t, item))
    return Outcome.HIT


def _plain(t: ReadTransaction, items: Sequence[NewArtifact]) -> list[bool]:
    """Which of many are new, were never collected and need nothing: all that there is to do is to write their rows."""
    if len(items) < PLAIN_MIN:
        return [False] * len(items)
    digests = [item.digest for item in items]
    there = t.get_many(IX, digests)
    gone = t.get_many(GONE, digests) if t.count(GONE) else [None] * len(items)
    first: set[bytes] = set()  # of several alike the others are hits
    found = []
    for item, row, was in zip(items, there, gone, strict=True):
        digest, kind, _, links, _, stored, _, base, _, _, upload, _ = item
        plain = (
            row is None and was is None and stored is not None and base is None and upload is None and not links
            and kind != DICTIONARY_KIND and digest not in first
        )  # fmt: skip
        found.append(plain)
        first.add(digest)
    return found


def _insert_plain(t: WriteTransaction, state: State, items: Sequence[NewArtifact], now_s: int) -> None:
    """The rows of new artifacts that need nothing, table by table."""
    data_id, commit = state.next_data_id, state.commit
    records, pieces, rows = [], [], []
    for digest, kind, raw_len, _, codec, stored, stored_len, _, chain, extra, _, _ in items:
        assert stored is not None
        records.append((u64(data_id), da_row(digest, raw_len, stored_len, codec, chain, extra)))
        if 0 < stored_len <= PIECE_SIZE:
            pieces.append((piece_key(data_id, 0), stored))
        else:
            pieces += [(piece_key(data_id, number), piece) for number, piece in enumerate(split(stored))]
        bit = kind_bit(kind)
        if bit == OTHER_KINDS:
            t.put(KN, digest + kind.encode(), b"")
        rows.append((digest, ix_row(data_id, commit, now_s, bit, raw_len)))
        data_id += 1
    t.append_many(DA, records)
    t.append_many(D, pieces)
    t.put_many(IX, rows)
    if state.gc_open:
        t.put_many(RECENT, [(digest, b"") for digest, _ in rows])
    state.artifacts += len(items)
    state.raw_bytes += sum(item.raw_len for item in items)
    state.stored_bytes += sum(item.stored_len for item in items)
    state.next_data_id = data_id


def _insertable(t: ReadTransaction, item: NewArtifact, first: set[bytes]) -> bool:
    """Whether the item, as encoded, can become a row: looked at here, since an earlier look decides nothing."""
    if item.base is not None and item.base not in first and find(t, item.base) is None:
        return False
    return item.stored is not None or item.upload is not None or find(t, item.digest) is not None


def _is_fresh(state: State, row: IxRow, kind: str, now_s: int) -> bool:
    """Whether a hit may write nothing: safe from the gc that is open and from the next (H21)."""
    bit = kind_bit(kind)
    return (
        bit != OTHER_KINDS
        and bool(row.kinds & bit)
        and row.touched > state.cut
        and 0 <= now_s - row.touched_s < state.grace_s_min / 2
    )


def _add_kind(t: WriteTransaction, item: NewArtifact) -> int:
    bit = kind_bit(item.kind)
    if bit == OTHER_KINDS:
        t.put(KN, item.digest + item.kind.encode(), b"")
    return bit


def _insert(t: WriteTransaction, state: State, item: NewArtifact, now_s: int) -> int:
    """A new row; the data_id of the copy before it, where its bytes are kept, else 0."""
    data_id = item.upload
    if data_id is None:  # a reserved number only where it needs nothing itself
        is_free = item.kind == DICTIONARY_KIND and not item.links and not item.base
        data_id = take_number(t, state, dictionary=is_free)
    gone = t.get(GONE, item.digest)
    earlier = 0
    if gone is not None:
        t.delete(GONE, item.digest)
        t.delete(LN, item.digest)  # of a copy in quarantine, which this one replaces
        earlier = gone_data_id(gone)
        if is_buried(gone):
            loosen(t, state)
    if _link(t, item, data_id):  # an upload, which took its number early
        raise UploadLost
    base = 0
    if item.base is not None:
        row = find(t, item.base)
        if row is None or not holds(t, row.data_id, item.base):  # its bytes were at hand, and are not where it says
            raise EncodeAgain((item.digest,))
        base = row.data_id
        if base >= data_id:
            raise UploadLost
    if item.upload is None:
        assert item.stored is not None
        write_pieces(t, data_id, 0, split(item.stored))
    elif not t.delete(STAGE, u64(data_id)):
        raise UploadLost
    stored = DaRow(item.digest, item.raw_len, item.stored_len, item.codec, base, item.chain, earlier, item.extra)
    t.append(DA, u64(data_id), stored.pack())
    t.put(IX, item.digest, IxRow(data_id, state.commit, now_s, _add_kind(t, item), item.raw_len).pack())
    if state.gc_open:
        t.put(RECENT, item.digest, b"")
    state.artifacts += 1
    state.raw_bytes += item.raw_len
    state.stored_bytes += item.stored_len
    return earlier


def _link(t: WriteTransaction, item: NewArtifact, data_id: int) -> bool:
    """Record the links: each is visible now. Whether one is not older than what links to it, as all are to be
    (invariant C): for the caller to undo, or to bring into order in this transaction."""
    young = False
    for link in item.links:
        child = find(t, link)
        if child is None:
            raise MissingArtifact(ArtifactId(link), f"a link of {item.digest.hex()}")
        young = young or child.data_id >= data_id
    if item.links:
        t.put(LN, item.digest, b"".join(item.links))
    return young


def _link_again(t: WriteTransaction, item: NewArtifact, data_id: int) -> bool:
    """As `_link`, for what was there before: its links were lost, and what it links to came again later. A large stream
    that was stored without its links stays so."""
    young = _link(t, item, data_id)
    if young and item.raw_len > FRAME_SIZE:
        raise UploadLost
    return young


def _knows_links(item: NewArtifact) -> bool:
    """Whether it has no other links: what is larger may have been put as a stream, without them."""
    return bool(item.links) or item.raw_len <= FRAME_SIZE


def clear_pieces(t: WriteTransaction, data_id: int) -> int:
    """Remove what is there, whatever a damaged record says of it; the bytes removed."""
    prefix, found, size = u64(data_id), [], 0
    for key, value in t.scan(D, prefix):
        if not key.startswith(prefix):
            break
        found.append(key)
        size += len(value)
    for key in found:
        t.delete(D, key)
    return size


def _heal(t: WriteTransaction, state: State, item: NewArtifact, row: IxRow, now_s: int) -> bool:
    """Rewrite a damaged copy where it lies: same data_id, whole, so that no order changes (H12). Where that number is
    not its own, by a damaged row of the index, it gets a new one. Whether something is out of order then: what links
    to it, or what it links to."""
    if not _is_own(t, state, item, row.data_id):
        _insert(t, state, item, now_s)
        fresh = find(t, item.digest)
        assert fresh is not None
        touch(t, state, item.digest, fresh, now_s, row.kinds)
        state.artifacts -= 1
        state.raw_bytes -= row.raw_len
        loosen(t, state)
        return True
    state.stored_bytes += _rewrite(t, row.data_id, item)
    if _knows_links(item):
        t.delete(LN, item.digest)
    young = _link_again(t, item, row.data_id)
    state.raw_bytes += item.raw_len - row.raw_len
    touch(t, state, item.digest, row._replace(raw_len=item.raw_len), now_s, _add_kind(t, item))
    loosen(t, state)  # the bytes of its old base
    return young


def _is_own(t: ReadTransaction, state: State, item: NewArtifact, data_id: int) -> bool:
    """Whether nothing else can be under the number of a damaged copy, and what it links to is older."""
    key = u64(data_id)
    if holds(t, data_id, item.digest):
        return True
    if not is_given(t, state, data_id) or any(t.get(table, key) is not None for table in (KP, STAGE, PURGE)):
        return False
    found = t.get(DA, key)
    owner = None if found is None else t.get(IX, found[:32])
    if owner is not None and owner[:8] == key:
        return False
    children = [t.get(IX, link) for link in item.links]
    return all(child is not None and child[:8] < key for child in children)


def heal_kept(t: WriteTransaction, data_id: int, item: NewArtifact) -> bool:
    """Rewrite the damaged bytes of a collected artifact, which deltas are made of, where they lie. Whether they are
    still kept. What is not visible has no row to touch; it needs no base any more, and nothing else changes."""
    if t.get(KP, u64(data_id)) != item.digest:
        return False
    state = begin(t)
    state.kept_bytes += _rewrite(t, data_id, item)
    loosen(t, state)
    finish(t, state)
    return True


def _rewrite(t: WriteTransaction, data_id: int, item: NewArtifact) -> int:
    """The good bytes, whole, under the data_id of the damaged ones; by how many stored bytes they are more."""
    old, earlier = record_at(t, data_id), 0
    old_len = clear_pieces(t, data_id)
    if old is not None and old.digest == item.digest:
        old_len, earlier = old.stored_len, old.earlier  # what was counted, though pieces may be lost
    if item.upload is not None:  # a large one: move the good pieces under the old number
        for piece in range(piece_count(item.stored_len)):
            data = t.get(D, piece_key(item.upload, piece))
            if data is None:
                raise UploadLost
            t.put(D, piece_key(data_id, piece), data)
        upload_abort(t, item.upload)
    else:
        assert item.stored is not None
        write_pieces(t, data_id, 0, split(item.stored))
    whole = DaRow(item.digest, item.raw_len, item.stored_len, item.codec, 0, 0, earlier, item.extra)
    t.put(DA, u64(data_id), whole.pack())
    return item.stored_len - old_len


def split(stored: bytes) -> list[bytes]:
    return [stored[at : at + PIECE_SIZE] for at in range(0, len(stored), PIECE_SIZE)]


def write_pieces(t: WriteTransaction, data_id: int, first_piece: int, pieces: Sequence[bytes]) -> None:
    t.append_many(D, [(piece_key(data_id, number), piece) for number, piece in enumerate(pieces, first_piece)])


# -- pins and leases ----------------------------------------------------------------------------------------


def require_visible(t: ReadTransaction, digest: bytes) -> IxRow:
    """Raises: NotFound, Collected. The index first, then what is gone, in one snapshot."""
    row = find(t, digest)
    if row is None:
        gone = t.get(GONE, digest)
        if gone is None:
            raise NotFound(ArtifactId(digest))
        was = GoneRow.unpack(gone)
        if was.until_s:
            raise Quarantined(ArtifactId(digest), was.when_s, was.gc, was.until_s)
        raise Collected(ArtifactId(digest), was.when_s, was.gc)
    return row


def pin(t: WriteTransaction, name: str, digest: bytes, now_s: int) -> None:
    state = begin(t)
    row = require_visible(t, digest)
    before = t.get(PIN, name.encode())
    if before is not None and before[:32] != digest:
        loosen(t, state)
    t.put(PIN, name.encode(), digest + u64(now_s))
    touch(t, state, digest, row, now_s)
    finish(t, state, now_s)


def unpin(t: WriteTransaction, name: str) -> bool:
    state = begin(t)
    found = t.delete(PIN, name.encode())
    if found:
        loosen(t, state)
    finish(t, state)
    return found


def require_lease(t: ReadTransaction, lease: str) -> None:
    if t.get(LEASE, lease.encode()) is None:
        raise LeaseLost(lease)


def lease_open(t: WriteTransaction, lease: str, expires_s: int) -> None:
    state = begin(t)
    t.put(LEASE, lease.encode(), u64(expires_s))
    finish(t, state)


def lease_renew(t: WriteTransaction, lease: str, expires_s: int) -> None:
    state = begin(t)
    require_lease(t, lease)
    t.put(LEASE, lease.encode(), u64(expires_s))
    finish(t, state)


def lease_add(t: WriteTransaction, lease: str, digests: Sequence[bytes], now_s: int) -> None:
    state = begin(t)
    require_lease(t, lease)
    for digest in digests:
        row = require_visible(t, digest)
        t.put(LEASED, lease.encode() + digest, b"")
        touch(t, state, digest, row, now_s)
    finish(t, state, now_s)


def lease_close(t: WriteTransaction, lease: str) -> None:
    state = begin(t)
    drop_lease(t, lease.encode())
    finish(t, state)


def drop_lease(t: WriteTransaction, name: bytes) -> None:
    t.delete(LEASE, name)
    t.delete_many(LEASED, list(takewhile(lambda key: key.startswith(name), t.keys(LEASED, name))))


# -- uploads ------------------------------------------------------------------------------------------------


def upload_open(t: WriteTransaction, now_s: int, owner: str) -> int:
    state = begin(t)
    skip_given(t, state)
    data_id = state.next_data_id
    state.next_data_id += 1
    t.put(STAGE, u64(data_id), u64(now_s) + owner.encode())
    finish(t, state)
    return data_id


def upload_write(t: WriteTransaction, upload: int, first_piece: int, pieces: Sequence[bytes]) -> None:
    state = begin(t)
    if t.get(STAGE, u64(upload)) is None:
        raise UploadLost
    write_pieces(t, upload, first_piece, pieces)
    finish(t, state)


def upload_abort(t: WriteTransaction, upload: int) -> None:
    """Hand the pieces to purge; how many there are is found there."""
    if t.delete(STAGE, u64(upload)):
        t.put(PURGE, u64(upload), b"")


def uploads(t: ReadTransaction) -> list[tuple[int, int, str]]:
    return [(from_u64(key), from_u64(value[:8]), text(value[8:])) for key, value in t.scan(STAGE)]
