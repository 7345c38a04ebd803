"""The transactions of gc, on an open transaction (docs/GC.md, section 2, "Gc")."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import islice

from casstore import copies
from casstore.backend import Ages, Candidate, Edges, EpochLost, GcOpened, Judge, SweepResult, Verdict
from casstore.puts import begin, drop_lease, find, finish, load_state
from casstore.rows import (
    DA,
    GCS,
    GONE,
    IX,
    KN,
    KP,
    LEASE,
    LEASED,
    LN,
    OTHER_KINDS,
    PIN,
    PURGE,
    RECENT,
    TICK,
    D,
    DaRow,
    GoneRow,
    State,
    da_earlier,
    da_head,
    from_u64,
    ix_head,
    u64,
)
from casstore.tables import ReadTransaction, WriteTransaction

_TICKS_KEPT_S = 90 * 86400
_SKIPPED_MAX = 16


def gc_open(t: WriteTransaction, now_s: int, grace_s: int, report: bytes) -> GcOpened:
    """Begin: a new epoch, the cut, and leases and pins read in the transaction that removes expired leases (H18)."""
    state = begin(t)
    state.epoch += 1
    state.gc_open = 1
    state.grace_s_min = min(state.grace_s_min, grace_s)
    state.cut = state.commit if grace_s <= 0 else _cut(t, state, now_s - grace_s)
    for key, _ in list(t.scan(RECENT)):
        t.delete(RECENT, key)
    for name, expiry in list(t.scan(LEASE)):
        if from_u64(expiry) <= now_s:
            drop_lease(t, name.decode())
    for first, second in list(t.scan(TICK)):
        if from_u64(second) >= now_s - _TICKS_KEPT_S:
            break
        t.delete(TICK, first)
    t.put(GCS, u64(state.epoch), report)
    finish(t, state)
    return _opened(t, state, now_s)


def gc_peek(t: ReadTransaction, now_s: int, grace_s: int) -> GcOpened:
    """What gc_open would answer, without opening."""
    state = load_state(t)
    state.cut = state.commit if grace_s <= 0 else _cut(t, state, now_s - grace_s)
    return _opened(t, state, now_s)


def _opened(t: ReadTransaction, state: State, now_s: int) -> GcOpened:
    pins = tuple((name.decode(), value[:32]) for name, value in t.scan(PIN))
    live = {name for name, expiry in t.scan(LEASE) if from_u64(expiry) > now_s}
    leased = tuple((key[:-32].decode(), key[-32:]) for key, _ in t.scan(LEASED) if key[:-32] in live)
    return GcOpened(state.epoch, state.cut, pins, leased)


def _cut(t: ReadTransaction, state: State, old_s: int) -> int:
    """The last commit that is older than the grace, from the ticks: (first commit in a second, that second).

    Every touch between two ticks happened in the earlier one's second. The order of commits decides, seconds
    only say where to cut it, so a clock that jumps makes the grace longer or shorter and costs nothing live.
    """
    cut = state.commit
    for first, second in t.scan(TICK, reverse=True):
        if from_u64(second) < old_s:
            break
        cut = from_u64(first) - 1
    return cut


def require_epoch(state: State, epoch: int) -> None:
    """Raises: EpochLost when a later gc opened, or this one was closed (H17)."""
    if state.epoch != epoch or not state.gc_open:
        raise EpochLost


def edges(t: ReadTransaction, digest: bytes) -> Edges | None:
    row = t.get(IX, digest)
    if row is None:
        return None
    data_id, at = ix_head(row)[0], row[:8]
    bases: list[int] = []
    while (data := t.get(DA, at)) is not None:
        base = da_head(data)[2]
        if not base or base >= (bases[-1] if bases else data_id):
            break  # stored whole; or a damaged edge, for the reader to find
        bases.append(base)
        at = u64(base)
    else:
        if bases:
            bases.pop()  # its record is missing
    return Edges(data_id, t.get(LN, digest) or b"", tuple(bases))


def links(t: ReadTransaction, digest: bytes) -> tuple[bytes, ...]:
    """What an artifact links to, visible or in quarantine."""
    found = t.get(LN, digest) or b""
    return tuple(found[at : at + 32] for at in range(0, len(found), 32))


def gone(t: ReadTransaction, digest: bytes) -> GoneRow | None:
    """What is known of a collected artifact."""
    data = t.get(GONE, digest)
    return GoneRow.unpack(data) if data is not None else None


def walk(t: ReadTransaction, data_id: int) -> list[tuple[int, DaRow]]:
    """The stored bytes under a data_id and its bases in turn. Ends where a row is missing, for the reader to
    find: bases have smaller numbers, so a damaged edge cannot make it turn for ever."""
    found, at = [], data_id
    while at:
        data = t.get(DA, u64(at))
        if data is None:
            break
        row = DaRow.unpack(data)
        found.append((at, row))
        at = row.base if row.base < at else 0
    return found


def ages(t: ReadTransaction, after: bytes, limit: int, cut: int) -> Ages | None:
    """See BlobBackend.ages."""
    old, young, digest = array("Q"), [], b""
    for digest, value in islice(t.scan(IX, after + b"\0" if after else b""), limit):
        data_id, touched = ix_head(value)
        if touched > cut:
            young.append(digest)
        else:
            old.append(data_id)
    return Ages(old, young, digest) if digest else None


class _View:
    def __init__(self, t: ReadTransaction) -> None:
        self._t = t
        self.recent = tuple(key for key, _ in t.scan(RECENT))

    def edges(self, digest: bytes) -> Edges | None:
        return edges(self._t, digest)


def gc_sweep(
    t: WriteTransaction, epoch: int, candidates: Sequence[Candidate], judge: Judge, now_s: int
) -> SweepResult:
    """One batch: the judge marks what was touched since, then says of each candidate whether it goes."""
    state = begin(t)
    require_epoch(state, epoch)
    view = _View(t)
    decisions = judge(view)
    for digest in view.recent:
        t.delete(RECENT, digest)
    removed: list[tuple[bytes, int] | None] = [None] * len(candidates)
    raw = stored = kept = quarantined = 0
    # In the order of the index, for fewer pages at a time; others see all of it at once or nothing.
    for place in sorted(range(len(candidates)), key=lambda at: candidates[at].digest):
        candidate, (verdict, until_s) = candidates[place], decisions[place]
        if verdict is Verdict.SPARE:
            continue
        key = u64(candidate.data_id)
        data = t.get(DA, key)
        size = da_head(data)[1] if data is not None else 0
        if candidate.kept:
            if verdict is Verdict.DELETE and t.delete(KP, key):
                _end_quarantine(t, candidate)
                drop_bytes(t, key)
                state.kept_bytes -= size
                stored += size
            continue
        row = find(t, candidate.digest)
        if row is None or row.data_id != candidate.data_id:
            continue
        t.delete(IX, candidate.digest)
        names = _drop_kinds(t, candidate.digest) if row.kinds & OTHER_KINDS else ()
        was = GoneRow(now_s, epoch, row.kinds, row.raw_len)
        if until_s:
            was = was._replace(data_id=candidate.data_id, until_s=until_s, names=names)
        else:
            t.delete(LN, candidate.digest)
            if verdict is Verdict.KEEP_BYTES:
                was = was._replace(data_id=candidate.data_id)
            elif data is not None and da_earlier(data):
                was = was._replace(data_id=next(iter(copies.kept_from(t, candidate.digest, da_earlier(data))), 0))
        t.put(GONE, candidate.digest, was.pack())
        state.artifacts -= 1
        state.raw_bytes -= row.raw_len
        state.stored_bytes -= size
        raw += row.raw_len
        removed[place] = candidate.digest, row.raw_len
        if until_s or verdict is Verdict.KEEP_BYTES:
            t.put(KP, key, candidate.digest)
            state.kept_bytes += size
            if verdict is Verdict.KEEP_BYTES:
                kept += size
            else:
                quarantined += size
        else:
            drop_bytes(t, key)
            stored += size
    state.swept += 1
    finish(t, state)
    return SweepResult(tuple(filter(None, removed)), raw, stored, kept, quarantined)


def drop_bytes(t: WriteTransaction, data_id: bytes) -> None:
    """The record goes now, the pieces later in transactions of their own: nothing reaches them any more."""
    t.delete(DA, data_id)
    t.put(PURGE, data_id, b"")


def _end_quarantine(t: WriteTransaction, candidate: Candidate) -> None:
    """Its bytes go: it cannot be brought back any more. Unless it was put again since, and is not gone at all."""
    was = gone(t, candidate.digest)
    if was is not None and was.data_id == candidate.data_id:
        t.delete(LN, candidate.digest)
    older = copies.kept_from(t, candidate.digest, copies.before(t, candidate.data_id))
    copies.unlink(t, candidate.digest, candidate.data_id, older[0] if older else 0)


def _drop_kinds(t: WriteTransaction, digest: bytes) -> tuple[str, ...]:
    keys = []
    for key, _ in t.scan(KN, digest):
        if not key.startswith(digest):
            break
        keys.append(key)
    for key in keys:
        t.delete(KN, key)
    return tuple(key[32:].decode() for key in keys)


def gc_close(t: WriteTransaction, epoch: int, report: bytes) -> None:
    state = begin(t)
    require_epoch(state, epoch)
    state.gc_open = 0
    for key, _ in list(t.scan(RECENT)):
        t.delete(RECENT, key)
    t.put(GCS, u64(epoch), report)
    finish(t, state)


def purge(t: WriteTransaction, pieces_max: int) -> int:
    """Remove up to `pieces_max` pieces that no row reaches; how many, where an artifact without any counts as one."""
    state = begin(t)
    keys = [key for key, _ in islice(t.scan(PURGE), pieces_max)]
    pieces, whole = _pieces_of(t, keys, pieces_max)
    for piece in pieces:
        t.delete(D, piece)
    for key in keys[:whole]:
        t.delete(PURGE, key)
    finish(t, state)
    return max(len(pieces), whole)


def _pieces_of(t: ReadTransaction, keys: Sequence[bytes], most: int) -> tuple[list[bytes], int]:
    """Keys of up to `most` pieces of these artifacts, ascending, and of how many artifacts these are all."""
    pieces: list[bytes] = []
    at = 0
    while at < len(keys):
        skipped = 0
        for piece, _ in t.scan(D, keys[at]):
            owner = piece[:8]
            while at < len(keys) and keys[at] < owner:
                at += 1
            if at == len(keys):
                break
            if owner == keys[at]:
                if len(pieces) == most:
                    return pieces, at
                pieces.append(piece)
                continue
            skipped += 1
            if skipped > _SKIPPED_MAX:
                break  # many others lie between: look for the next one
        else:
            return pieces, len(keys)
    return pieces, at


def has_purge(t: ReadTransaction) -> bool:
    return next(iter(t.scan(PURGE)), None) is not None


def recent(t: ReadTransaction) -> list[bytes]:
    return [key for key, _ in t.scan(RECENT)]
