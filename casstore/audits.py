"""Rows that contradict each other, on an open read transaction: what `inspection.verify` cannot see by reading bytes.

An area is a table that is gone through in the order of its keys, a page at a time; each page is one snapshot, and
what is judged in it is judged within that snapshot, so no writer or gc can make it look wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, final

from casstore.codec import needs_base
from casstore.counters import greatest_reserved, load_state, reserved
from casstore.errors import DamagedStore
from casstore.puts import find, record_at
from casstore.rows import (
    DA,
    GONE,
    IX,
    KN,
    KP,
    LEASE,
    LEASED,
    LN,
    PIN,
    PIN_SIZE,
    PURGE,
    STAGE,
    TICK,
    D,
    DaRow,
    GoneRow,
    IxRow,
    State,
    from_u64,
    piece_count,
    piece_key,
    text,
    u64,
)
from casstore.tables import ReadTransaction

BLOCK: Final = 4096  # data_ids that belong to one share together
_GONE_BYTES: Final = 24  # a longer row says where its bytes are, and, in quarantine, until when
_DIGEST_BYTES: Final = 32
_NUMBER_BYTES: Final = 8
_PIECE_KEY_BYTES: Final = _NUMBER_BYTES + 4
_LAST_PIECE: Final = (1 << 32) - 1
_LAST_ID: Final = (1 << 64) - 1


class Problem(NamedTuple):
    """What is wrong, with which artifact if it is one."""

    code: str
    digest: bytes | None
    detail: str


class Mended(NamedTuple):
    """What was put right: the code of the problem, the artifact if it is one, and what was done."""

    code: str
    digest: bytes | None
    detail: str


class AuditItem(NamedTuple):
    """One key with its problems. Where `codec` is not None its bytes are worth reading: of the visible artifact, or
    of the `data_id` whose bytes are kept."""

    key: bytes
    problems: tuple[Problem, ...] = ()
    digest: bytes = b""
    data_id: int = 0
    raw_len: int = 0
    links: tuple[bytes, ...] = ()
    codec: int | None = None


class AuditPage(NamedTuple):
    """Items that hold something, ascending by key, and the key to go on with, None at the end."""

    items: tuple[AuditItem, ...]
    next: bytes | None


@final
class Share(NamedTuple):
    """Part k of n, the same at each call: equal ranges of digests, every n-th block of data_ids; what cannot be
    divided belongs to the last part."""

    k: int = 1
    n: int = 1

    def digests(self) -> tuple[bytes, bytes]:
        """The first digest, and the first of the next part (b"" for none)."""
        bounds = (-(-(part << 256) // self.n) for part in (self.k - 1, self.k))
        first, stop = (b"" if bound >> 256 else bound.to_bytes(32, "big") for bound in bounds)
        return first, stop

    def number(self, data_id: int) -> int:
        """The first data_id of this part that is not smaller."""
        block = data_id // BLOCK
        ahead = (self.k - 1 - block) % self.n
        return data_id if not ahead else (block + ahead) * BLOCK

    def __str__(self) -> str:
        return f"{self.k}/{self.n}"


WHOLE: Final = Share()


def audit(t: ReadTransaction, area: str, start: bytes, share: Share, limit: int) -> AuditPage:
    """Look at up to `limit` keys of an area from `start` on (b"": from the beginning)."""
    return AREAS[area](t, start, share, limit)


# -- by digest ------------------------------------------------------------------------------------------


def _by_digest(
    table: bytes, look: Callable[[ReadTransaction, bytes, bytes], AuditItem | None]
) -> Callable[[ReadTransaction, bytes, Share, int], AuditPage]:
    def page(t: ReadTransaction, start: bytes, share: Share, limit: int) -> AuditPage:
        first, stop = share.digests()
        items: list[AuditItem] = []
        for count, (key, value) in enumerate(t.scan(table, max(start, first))):
            if stop and key >= stop:
                break
            if count >= limit:
                return AuditPage(tuple(items), key)
            fits = len(key) > _DIGEST_BYTES if table == KN else len(key) == _DIGEST_BYTES
            item = look(t, key, value) if fits else _of_nothing(table, key)
            if item is not None:
                items.append(item)
        return AuditPage(tuple(items), None)

    return page


def _of_nothing(table: bytes, key: bytes) -> AuditItem:
    """A key that no row of the table can have."""
    what = f"table {table.decode()}: a key of {len(key)} bytes, {key.hex()}"
    return AuditItem(key, (Problem("bad_key", None, what),))


def _artifact(t: ReadTransaction, digest: bytes, value: bytes) -> AuditItem:
    """A visible artifact: its record says the same, and what it links to is there and older."""
    try:
        row = IxRow.unpack(value)
    except DamagedStore as error:
        return AuditItem(digest, (Problem("bad_row", digest, str(error)),), digest)
    problems = []
    state = _state(t)
    if state is not None and row.touched > state.commit:
        detail = f"touched by commit {row.touched}, which is still to come"
        problems.append(Problem("wrong_touch", digest, detail))
    codec, record = 0, record_at(t, row.data_id)
    if record is None:
        problems.append(Problem("wrong_record", digest, f"data_id {row.data_id} holds nothing"))
    else:
        codec = record.codec
        if record.digest != digest:
            detail = f"data_id {row.data_id} holds the bytes of {record.digest.hex()}"
            problems.append(Problem("wrong_record", digest, detail))
        elif record.raw_len != row.raw_len:
            detail = f"the index says {row.raw_len} bytes, there are {record.raw_len}"
            problems.append(Problem("wrong_length", digest, detail))
    found = t.get(LN, digest) or b""
    if len(found) % 32:
        problems.append(Problem("bad_row", digest, f"a row of links of {len(found)} bytes"))
    links = tuple(found[at : at + 32] for at in range(0, len(found) // 32 * 32, 32))
    for link in links:
        problems += _link(t, digest, row.data_id, link)
    return AuditItem(digest, tuple(problems), digest, row.data_id, row.raw_len, links, codec)


def _link(t: ReadTransaction, digest: bytes, data_id: int, link: bytes) -> Iterator[Problem]:
    try:
        child = find(t, link)
    except DamagedStore:
        return  # that artifact's own problem
    if child is None:
        yield Problem("missing_link", digest, f"links to {link.hex()}, which is not in the store")
    elif child.data_id >= data_id:
        yield Problem("wrong_order", digest, f"links to {link.hex()}, which is younger")


def _links(t: ReadTransaction, digest: bytes, _: bytes) -> AuditItem | None:
    gone = t.get(GONE, digest)
    if t.get(IX, digest) is not None or (gone is not None and _is_quarantined(gone)):
        return None
    return AuditItem(digest, (Problem("orphan_links", digest, "links of what is not in the store"),))


def _kinds(t: ReadTransaction, key: bytes, _: bytes) -> AuditItem | None:
    if text(key[32:]).encode() != key[32:]:
        return AuditItem(key, (Problem("bad_name", key[:32], f"its kind {text(key[32:])!r} is no text"),))
    if t.get(IX, key[:32]) is not None:
        return None
    return AuditItem(key, (Problem("orphan_kind", key[:32], "a kind of what is not in the store"),))


def _gone(t: ReadTransaction, digest: bytes, value: bytes) -> AuditItem | None:
    try:
        GoneRow.unpack(value)
    except DamagedStore as error:
        return AuditItem(digest, (Problem("bad_row", digest, str(error)),))
    if t.get(IX, digest) is not None:
        return AuditItem(digest, (Problem("wrong_gone", digest, "listed as collected, and visible"),))
    if _is_quarantined(value) and t.get(KP, value[_GONE_BYTES : _GONE_BYTES + 8]) != digest:
        return AuditItem(digest, (Problem("wrong_gone", digest, "can be brought back, but its bytes are not kept"),))
    return None


def _is_quarantined(gone: bytes) -> bool:
    return any(gone[_GONE_BYTES + 8 : _GONE_BYTES + 16])  # it says until when


# -- by data_id -----------------------------------------------------------------------------------------


def _numbered(t: ReadTransaction, table: bytes, start: bytes, share: Share) -> Iterator[tuple[int, bytes, bytes]]:
    """(data_id, key, value) of a share's rows, the blocks of others skipped."""
    at = start
    while True:
        for key, value in t.scan(table, at):
            data_id = from_u64(key[:8].ljust(8, b"\0"))
            wanted = share.number(data_id)
            if wanted > _LAST_ID:
                return
            if wanted != data_id:
                at = u64(wanted)
                break
            yield data_id, key, value
        else:
            return


def _by_number(
    table: bytes, look: Callable[[ReadTransaction, int, bytes], AuditItem | None]
) -> Callable[[ReadTransaction, bytes, Share, int], AuditPage]:
    def page(t: ReadTransaction, start: bytes, share: Share, limit: int) -> AuditPage:
        items: list[AuditItem] = []
        for count, (data_id, key, value) in enumerate(_numbered(t, table, start, share)):
            if count >= limit:
                return AuditPage(tuple(items), key)
            item = look(t, data_id, value) if len(key) == _NUMBER_BYTES else _of_nothing(table, key)
            if item is not None:
                items.append(item)
        return AuditPage(tuple(items), None)

    return page


def _stored(t: ReadTransaction, data_id: int, value: bytes) -> AuditItem | None:
    """A record: it belongs to something, and its base is there and older."""
    try:
        row = DaRow.unpack(value)
    except DamagedStore as error:
        return AuditItem(u64(data_id), (Problem("bad_row", None, f"data_id {data_id}: {error}"),))
    problems = []
    if not is_visible(t, row.digest, data_id) and t.get(KP, u64(data_id)) is None:
        problems.append(Problem("orphan_record", row.digest, f"nothing reaches the bytes under data_id {data_id}"))
    state = _state(t)
    if state is not None and data_id >= state.next_data_id:
        problems.append(Problem("wrong_number", row.digest, f"data_id {data_id} was not given out yet"))
    if t.get(PURGE, u64(data_id)) is not None:
        problems.append(Problem("wrong_purge", row.digest, f"data_id {data_id} is about to lose its pieces"))
    if row.base:
        if row.base >= data_id:
            problems.append(Problem("wrong_order", row.digest, f"its base, data_id {row.base}, is younger"))
        elif t.get(DA, u64(row.base)) is None:
            problems.append(Problem("missing_base", row.digest, f"its base, data_id {row.base}, is missing"))
    if bool(row.base) != needs_base(row.codec):
        detail = f"encoding {row.codec} with the base {row.base} (data_id {data_id})"
        problems.append(Problem("wrong_base", row.digest, detail))
    return AuditItem(u64(data_id), tuple(problems)) if problems else None


def _state(t: ReadTransaction) -> State | None:
    """The counters, None where they cannot be read, which `_sums` says."""
    try:
        return load_state(t)
    except DamagedStore:
        return None


def is_visible(t: ReadTransaction, digest: bytes, data_id: int) -> bool:
    try:
        row = find(t, digest)
    except DamagedStore:
        return True  # reported with the index
    return row is not None and row.data_id == data_id


def _kept(t: ReadTransaction, data_id: int, digest: bytes) -> AuditItem:
    """Bytes of a collected artifact, which deltas may need: to be read."""
    if len(digest) != _DIGEST_BYTES:
        detail = f"data_id {data_id} is kept for a digest of {len(digest)} bytes"
        return AuditItem(u64(data_id), (Problem("wrong_kept", None, detail),))
    record = record_at(t, data_id)
    if record is None or record.digest != digest:
        detail = f"data_id {data_id} is kept for it, and holds nothing of it"
        return AuditItem(u64(data_id), (Problem("wrong_kept", digest, detail),))
    problems: tuple[Problem, ...] = ()
    if is_visible(t, digest, data_id):
        problems = (Problem("wrong_kept", digest, f"data_id {data_id} is kept as collected, and visible"),)
    return AuditItem(u64(data_id), problems, digest, data_id, record.raw_len, (), record.codec)


def _pieces(t: ReadTransaction, start: bytes, share: Share, limit: int) -> AuditPage:
    """One look for each data_id, however many pieces it has: missing ones are found when they are read."""
    items: list[AuditItem] = []
    at = start
    for _ in range(limit):
        found = next(_numbered(t, D, at, share), None)
        if found is None:
            return AuditPage(tuple(items), None)
        data_id = found[0]
        key = u64(data_id)
        record = record_at(t, data_id)
        if len(found[1]) != _PIECE_KEY_BYTES:
            items.append(_of_nothing(D, found[1]))
            at = found[1] + b"\0"
            continue
        if record is not None:
            last = next(t.scan(D, piece_key(data_id, _LAST_PIECE), reverse=True))[0]
            if int.from_bytes(last[8:], "big") >= piece_count(record.stored_len):
                detail = f"data_id {data_id} has pieces behind its {record.stored_len} bytes"
                items.append(AuditItem(key, (Problem("orphan_pieces", record.digest, detail),)))
        elif all(t.get(table, key) is None for table in (DA, STAGE, PURGE)):
            items.append(AuditItem(key, (Problem("orphan_pieces", None, f"nothing reaches data_id {data_id}"),)))
        at = u64(data_id + 1)
    return AuditPage(tuple(items), at)


# -- as a whole -----------------------------------------------------------------------------------------


def _roots(t: ReadTransaction, start: bytes, share: Share, _: int) -> AuditPage:
    """Pins and leases hold what is there."""
    problems, held = [], list[tuple[str, bytes]]()
    for name, value in t.scan(PIN):
        what = f"pin {text(name)!r}"
        if text(name).encode() != name:
            problems.append(Problem("bad_name", None, f"{what}: its name is no text"))
        if len(value) == PIN_SIZE:
            held.append((what, value[:32]))
        else:
            problems.append(Problem("bad_row", None, f"{what}: a row of {len(value)} bytes instead of {PIN_SIZE}"))
    for name, value in t.scan(LEASE):
        what = f"lease {text(name)}"
        if text(name).encode() != name:
            problems.append(Problem("bad_name", None, f"{what}: its name is no text"))
        if len(value) != _NUMBER_BYTES:
            problems.append(Problem("bad_row", None, f"{what}: an expiry of {len(value)} bytes"))
    for key, _value in t.scan(LEASED):
        if len(key) <= _DIGEST_BYTES:
            problems.append(Problem("bad_row", None, f"what a lease holds: a row of {len(key)} bytes"))
            continue
        held.append((f"lease {text(key[:-32])}", key[-32:]))
        if t.get(LEASE, key[:-32]) is None:
            problems.append(Problem("orphan_lease", key[-32:], "held by a lease that is not there"))
    for table in (STAGE, PURGE):
        for key, value in t.scan(table):
            if len(key) != _NUMBER_BYTES or (table == STAGE and len(value) < _NUMBER_BYTES):
                what = f"table {table.decode()}: a row of {len(key)} and {len(value)} bytes"
                problems.append(Problem("bad_row", None, what))
    for what, digest in held:
        if t.get(IX, digest) is None:
            problems.append(Problem("missing_root", digest, f"held by {what}, not in the store"))
    items = (AuditItem(b"", tuple(problems)),) if problems and share.k == share.n else ()
    return AuditPage(items, None)


def _tick(_: ReadTransaction, commit: int, value: bytes) -> AuditItem | None:
    if len(value) == _NUMBER_BYTES:
        return None
    return AuditItem(u64(commit), (Problem("bad_row", None, f"table tick1: a row of {len(value)} bytes"),))


def _sums(t: ReadTransaction, start: bytes, share: Share, _: int) -> AuditPage:
    """The counters against the rows, all of one snapshot."""
    try:
        wrong = miscounted(t) if share.k == share.n else {}
    except DamagedStore as error:
        return AuditPage((AuditItem(b"", (Problem("bad_row", None, str(error)),)),), None)
    told = [f"{name.replace('_', ' ')}: {counted}, there are {there}" for name, (counted, there) in wrong.items()]
    problems = [Problem("wrong_counters", None, "counters say " + "; ".join(told))] if wrong else []
    said = wrong_reserved(t) if share.k == share.n else None
    problems += [Problem("wrong_counters", None, said)] if said is not None else []
    return AuditPage((AuditItem(b"", tuple(problems)),) if problems else (), None)


def wrong_reserved(t: ReadTransaction) -> str | None:
    """What is wrong with the next data_id for a dictionary: it must be greater than any that has something."""
    last = greatest_reserved(t)
    try:
        following = reserved(t)
    except DamagedStore:
        return "the next data_id for a dictionary cannot be read"
    # 1,023 artifacts of another kind are there as well in a store that reserves none.
    if following is None or last < following:
        return None
    return f"the next data_id for a dictionary is {following}, and {last} was given out"


def miscounted(t: ReadTransaction) -> dict[str, tuple[int, int]]:
    """Fields of the state that are not what the rows make of them: what it says, and what is there."""
    state, visible, kept_rows = load_state(t), t.count(IX), t.count(KP)
    found = {"artifacts": (state.artifacts, visible)}
    # Records that belong to nothing, or are missing, have problems of their own, and sums that mean nothing.
    if t.count(DA) == visible + kept_rows:
        raw = stored = kept = 0
        for key, value in t.scan(DA):
            try:
                row = DaRow.unpack(value)
            except DamagedStore:
                break
            if kept_rows and t.get(KP, key) is not None:
                kept += row.stored_len
            else:
                raw += row.raw_len
                stored += row.stored_len
        else:
            found |= {
                "raw_bytes": (state.raw_bytes, raw), "stored_bytes": (state.stored_bytes, stored),
                "kept_bytes": (state.kept_bytes, kept),
            }  # fmt: skip
    return {name: (counted, there) for name, (counted, there) in found.items() if counted != there}


AREAS: Final[dict[str, Callable[[ReadTransaction, bytes, Share, int], AuditPage]]] = {
    "artifacts": _by_digest(IX, _artifact),
    "kept": _by_number(KP, _kept),
    "records": _by_number(DA, _stored),
    "pieces": _pieces,
    "links": _by_digest(LN, _links),
    "kinds": _by_digest(KN, _kinds),
    "gone": _by_digest(GONE, _gone),
    "ticks": _by_number(TICK, _tick),
    "roots": _roots,
    "sums": _sums,
}
