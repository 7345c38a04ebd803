"""The transactions of gc, on an open transaction (docs/GC.md, section 2, "Gc")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from operator import itemgetter
from typing import Final

from casstore import copies
from casstore.backend import Ages, Candidate, Decision, Edges, EpochLost, GcOpened, Judge, SweepResult, Until, Verdict
from casstore.counters import begin, finish, load_state
from casstore.errors import DamagedStore
from casstore.puts import drop_lease
from casstore.rows import (
    DA,
    GCS,
    GONE,
    IX,
    KN,
    KP,
    LAST_GC_KEY,
    LEASE,
    LEASED,
    LN,
    LOOSENED_KEY,
    META,
    OTHER_KINDS,
    PIN,
    PURGE,
    RECENT,
    STAGE,
    TICK,
    D,
    DaRow,
    GoneRow,
    State,
    da_base,
    da_earlier,
    da_head,
    da_is_of,
    from_u64,
    gone_row,
    ix_numbers,
    ix_what,
    text,
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
            drop_lease(t, name)
    old = takewhile(lambda tick: from_u64(tick[1]) < now_s - max(_TICKS_KEPT_S, grace_s), t.scan(TICK))
    t.delete_many(TICK, [first for first, _ in list(old)[:-1]])  # the newest of them says how old what came before is
    t.put(GCS, u64(state.epoch), report)
    finish(t, state)
    return _opened(t, state, now_s)


def gc_peek(t: ReadTransaction, now_s: int, grace_s: int) -> GcOpened:
    """What gc_open would answer, without opening."""
    state = load_state(t)
    state.cut = state.commit if grace_s <= 0 else _cut(t, state, now_s - grace_s)
    return _opened(t, state, now_s)


def _opened(t: ReadTransaction, state: State, now_s: int) -> GcOpened:
    pins = tuple((text(name), value[:32]) for name, value in t.scan(PIN))
    over = {name for name, expiry in t.scan(LEASE) if from_u64(expiry) <= now_s}  # what has no row is damage, and held
    leased = tuple((text(key[:-32]), key[-32:]) for key in t.keys(LEASED) if key[:-32] not in over)
    uploads = tuple(map(from_u64, t.keys(STAGE)))
    found, since = t.get(META, LAST_GC_KEY) or b"", _since(t, state)
    last = found[len(since) :] if found.startswith(since) else b""
    return GcOpened(
        state.epoch, state.cut, pins, leased, state.next_data_id, uploads, from_u64(since[:8]), last
    )  # fmt: skip


def _since(t: ReadTransaction, state: State) -> bytes:
    """What a complete gc left is as it left it while these stay."""
    return (t.get(META, LOOSENED_KEY) or u64(0)) + u64(state.swept)


def _cut(t: ReadTransaction, state: State, old_s: int) -> int:
    """The last commit that is older than the grace, from the ticks: (first commit in a second, that second).

    Every touch between two ticks happened in the earlier one's second. The order of commits decides, seconds
    only say where to cut it, so a clock that jumps makes the grace longer or shorter and costs nothing live.
    """
    cut = state.commit
    for first, second in t.scan(TICK, reverse=True):
        if from_u64(second) < old_s:
            return cut
        cut = from_u64(first) - 1
    return 0  # what was touched before the first tick that is kept may be as young as that


def require_epoch(state: State, epoch: int) -> None:
    """Raises: EpochLost when a later gc opened, or this one was closed (H17)."""
    if state.epoch != epoch or not state.gc_open:
        raise EpochLost


def edges(t: ReadTransaction, digests: Sequence[bytes]) -> list[Edges | None]:
    """Of each artifact, None where it is not visible. In three reads, and one more for each step down the bases.

    Raises: DamagedStore where an index row leads to another's bytes, or beyond all: what its own are made of cannot be
    told.
    """
    rows = t.get_many(IX, digests)
    there = [digest for digest, row in zip(digests, rows, strict=True) if row is not None]
    data_ids = ix_numbers([row for row in rows if row is not None])[0]
    _require_given(t, data_ids)
    records = t.get_many(DA, [row[:8] for row in rows if row is not None])
    packed = t.get_many(LN, there)
    for digest, data_id, record in zip(there, data_ids, records, strict=True):
        if record is not None and not da_is_of(record, digest):
            raise DamagedStore("table ix1", f"{digest.hex()} leads to bytes of another (data_id {data_id})")
    found = zip(data_ids, packed, records, strict=True)
    present = (Edges(data_id, links or b"", _bases(t, data_id, record)) for data_id, links, record in found)
    return [None if row is None else next(present) for row in rows]


def _require_given(t: ReadTransaction, data_ids: Sequence[int]) -> None:
    """Raises: DamagedStore for a number that no artifact was given: sets of them would be huge."""
    if data_ids and max(data_ids) >= load_state(t).next_data_id:
        raise DamagedStore("table ix1", f"an artifact has the data_id {max(data_ids)}, which was not given out yet")


def _bases(t: ReadTransaction, data_id: int, record: bytes | None) -> tuple[int, ...]:
    """Where a record is missing or an edge is damaged they end before it, for the reader to find."""
    bases: list[int] = []
    while record is not None:
        base = da_base(record)
        if not base or base >= data_id:
            return tuple(bases)
        bases.append(base)
        data_id, record = base, t.get(DA, u64(base))
    return tuple(bases[:-1])


def links(t: ReadTransaction, digest: bytes) -> tuple[bytes, ...]:
    """What an artifact links to, visible or in quarantine."""
    found = t.get(LN, digest) or b""
    return tuple(found[at : at + 32] for at in range(0, len(found), 32))


def gone(t: ReadTransaction, digest: bytes) -> GoneRow | None:
    """What is known of a collected artifact."""
    data = t.get(GONE, digest)
    return GoneRow.unpack(data) if data is not None else None


def walk(t: ReadTransaction, data_id: int, until: Until | None = None) -> Iterator[tuple[int, DaRow]]:
    """The stored bytes under a data_id and its bases in turn, as far as `until` says (see BlobBackend.base_walk). Ends
    where a row is missing, for the reader to find: bases have smaller numbers, so a damaged edge cannot make it turn
    for ever."""
    at, last = data_id, -1
    while at:
        data = t.get(DA, u64(at))
        if data is None:
            return
        row = DaRow.unpack(data)
        if until is not None and at == data_id:
            last = until(row.chain)
        yield at, row
        at = row.base if row.base < at and row.chain > last else 0


def ages(t: ReadTransaction, after: bytes, limit: int, cut: int) -> Ages | None:
    """See BlobBackend.ages."""
    rows = list(islice(t.scan(IX, after + b"\0" if after else b""), limit))
    if not rows:
        return None
    data_ids, touched = ix_numbers([value for _, value in rows])
    _require_given(t, data_ids)
    if max(touched) <= cut:
        return Ages(data_ids, [], rows[-1][0])
    young = [digest for (digest, _), commit in zip(rows, touched, strict=True) if commit > cut]
    old = [data_id for data_id, commit in zip(data_ids, touched, strict=True) if commit <= cut]
    return Ages(old, young, rows[-1][0])


class _View:
    def __init__(self, t: ReadTransaction) -> None:
        self._t = t
        self.recent = tuple(key for key, _ in t.scan(RECENT))

    def edges(self, digest: bytes) -> Edges | None:
        return edges(self._t, [digest])[0]


def gc_sweep(
    t: WriteTransaction, epoch: int, candidates: Sequence[Candidate], judge: Judge, now_s: int
) -> SweepResult:
    """One batch: the judge marks what was touched since, then says of each candidate whether it goes.

    Table by table, each in the order of its keys: fewer pages at a time. Others see all of it at once or nothing.
    """
    state = begin(t)
    require_epoch(state, epoch)
    view = _View(t)
    decisions = judge(view)
    t.delete_many(RECENT, view.recent)
    judged = zip(candidates, decisions, strict=True)
    going = [(*candidate, decision) for candidate, decision in judged if decision.verdict is not _SPARE]
    going.sort(key=itemgetter(0))
    found = zip(going, t.get_many(DA, [u64(data_id) for data_id, _, _, _ in going]), strict=True)
    visible, kept = list[_Going](), list[_Going]()
    for (data_id, digest, was_kept, decision), data in found:
        size, earlier = (0, 0) if data is None else (da_head(data)[1], da_earlier(data))
        (kept if was_kept else visible).append((digest, data_id, decision, size, earlier))
    result = _take_visible(t, state, visible, now_s)
    result = result._replace(stored_bytes=result.stored_bytes + _take_kept(t, state, kept))
    state.swept += 1
    finish(t, state)
    return result


_Going = tuple[bytes, int, Decision, int, int]  # digest, data_id, decision, stored bytes, data_id of an earlier copy
_SPARE: Final = Verdict.SPARE
_KEEP_BYTES: Final = Verdict.KEEP_BYTES


def _take_visible(t: WriteTransaction, state: State, going: list[_Going], now_s: int) -> SweepResult:
    """Out of the index; `going` ascends by data_id."""
    going = sorted(row for row in going if row[0])
    rows = t.get_many(IX, [digest for digest, *_ in going])
    removed: list[tuple[bytes, int]] = []
    graves: list[tuple[bytes, bytes]] = []
    unlinked: list[bytes] = []
    held: list[tuple[bytes, bytes]] = []
    dropped: list[int] = []
    stored = kept = quarantined = 0
    for (digest, data_id, (verdict, until_s), size, earlier), row in zip(going, rows, strict=True):
        if row is None:
            continue
        at, kinds, raw_len = ix_what(row)
        if at != data_id:
            continue  # it has other bytes now
        names = _drop_kinds(t, digest) if kinds & OTHER_KINDS else ()
        removed.append((digest, raw_len))
        if until_s:
            was = GoneRow(now_s, state.epoch, kinds, raw_len, data_id, until_s, names)
            graves.append((digest, was.pack()))
        else:
            unlinked.append(digest)
            newest = data_id if verdict is _KEEP_BYTES else earlier
            if newest and newest != data_id:
                newest = next(iter(copies.kept_from(t, digest, newest)), 0)
            if newest:
                graves.append((digest, GoneRow(now_s, state.epoch, kinds, raw_len, newest).pack()))
            else:
                graves.append((digest, gone_row(now_s, state.epoch, kinds, raw_len)))
        if verdict is _KEEP_BYTES:
            kept += size
        elif until_s:
            quarantined += size
        else:
            dropped.append(data_id)
            stored += size
            continue
        held.append((u64(data_id), digest))
    t.delete_many(IX, [digest for digest, _ in removed])
    t.put_many(GONE, graves)
    t.delete_many(LN, unlinked)
    t.put_many(KP, sorted(held))
    drop_bytes(t, sorted(dropped))
    raw = sum(size for _, size in removed)
    state.artifacts -= len(removed)
    state.raw_bytes -= raw
    state.stored_bytes -= stored + kept + quarantined
    state.kept_bytes += kept + quarantined
    return SweepResult(tuple(removed), raw, stored, kept, quarantined)


def _take_kept(t: WriteTransaction, state: State, going: list[_Going]) -> int:
    """Bytes that no delta needs any more, and whose window is over; how many."""
    stored = 0
    for digest, data_id, decision, size, _ in going:
        if decision.verdict is Verdict.UNBURY:
            _unbury(t, digest, data_id)
        elif decision.verdict is Verdict.DELETE and t.delete(KP, u64(data_id)):
            end_copy(t, digest, data_id)
            drop_bytes(t, [data_id])
            stored += size
    state.kept_bytes -= stored
    return stored


def _unbury(t: WriteTransaction, digest: bytes, data_id: int) -> None:
    """Its window is over: it cannot be brought back any more, though its bytes stay. Unless it was put again since."""
    was = gone(t, digest)
    if was is not None and was.data_id == data_id and was.until_s:
        t.delete(LN, digest)
        t.put(GONE, digest, was._replace(until_s=0, names=()).pack())


def drop_bytes(t: WriteTransaction, data_ids: Sequence[int]) -> None:
    """The records go now, the pieces later in transactions of their own: nothing reaches them any more."""
    keys = [u64(data_id) for data_id in data_ids]
    t.delete_many(DA, keys)
    t.put_many(PURGE, [(key, b"") for key in keys])


def end_copy(t: WriteTransaction, digest: bytes, data_id: int) -> None:
    """Its bytes go: it cannot be brought back any more. Unless it was put again since, and is not gone at all."""
    was = gone(t, digest)
    if was is not None and was.data_id == data_id:
        t.delete(LN, digest)
    older = copies.kept_from(t, digest, copies.before(t, data_id))
    copies.unlink(t, digest, data_id, older[0] if older else 0)


def _drop_kinds(t: WriteTransaction, digest: bytes) -> tuple[str, ...]:
    keys = []
    for key, _ in t.scan(KN, digest):
        if not key.startswith(digest):
            break
        keys.append(key)
    for key in keys:
        t.delete(KN, key)
    return tuple(text(key[32:]) for key in keys)


def gc_close(t: WriteTransaction, epoch: int, report: bytes, last: tuple[bytes, int] | None) -> None:
    state = begin(t)
    require_epoch(state, epoch)
    state.gc_open = 0
    for key, _ in list(t.scan(RECENT)):
        t.delete(RECENT, key)
    t.put(GCS, u64(epoch), report)
    since = _since(t, state)
    if last is not None and from_u64(since[:8]) == last[1]:
        t.put(META, LAST_GC_KEY, since + last[0])
    finish(t, state)


def purge(t: WriteTransaction, pieces_max: int) -> int:
    """Remove up to `pieces_max` pieces that no row reaches; how many, where an artifact without any counts as one."""
    state = begin(t)
    keys = list(islice(t.keys(PURGE), pieces_max))
    pieces, whole = _pieces_of(t, keys, pieces_max)
    t.delete_many(D, pieces)
    t.delete_many(PURGE, keys[:whole])
    finish(t, state)
    return max(len(pieces), whole)


def _pieces_of(t: ReadTransaction, keys: Sequence[bytes], most: int) -> tuple[list[bytes], int]:
    """Keys of up to `most` pieces of these artifacts, ascending, and of how many artifacts these are all."""
    pieces: list[bytes] = []
    at = 0
    while at < len(keys):
        skipped = 0
        for piece in t.keys(D, keys[at]):
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
    return next(t.keys(PURGE), None) is not None


def recent(t: ReadTransaction) -> list[bytes]:
    return [key for key, _ in t.scan(RECENT)]
