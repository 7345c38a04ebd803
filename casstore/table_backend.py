"""BlobBackend over ordered tables: each method is one transaction, its body a function of `puts` or `sweeps`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence, Set
from itertools import islice, takewhile
from typing import final

from casstore import audits, copies, counters, evidence, mending, puts, repairs, rewrites, sweeps
from casstore.backend import (
    Ages,
    Candidate,
    Counters,
    Edges,
    GcOpened,
    Gone,
    Judge,
    Kept,
    NewArtifact,
    NewEncoding,
    Outcome,
    PutResult,
    Record,
    Row,
    Small,
    Stored,
    SweepResult,
    Until,
    Walk,
)
from casstore.codec import Codec, needs_base
from casstore.errors import Corrupt, DamagedStore
from casstore.frames import FRAME_SIZE
from casstore.ids import ArtifactId
from casstore.rows import (
    DA,
    GCS,
    GONE,
    IX,
    IX_SIZE,
    JOURNAL_KEY,
    KN,
    KP,
    LEASE,
    LEASED,
    META,
    OTHER_KINDS,
    PIECE_SIZE,
    PIN,
    UUID_KEY,
    D,
    DaRow,
    IxRow,
    da_digest,
    da_encoding,
    from_u64,
    known_kinds,
    piece_count,
    piece_key,
    text,
    u64,
)
from casstore.tables import CompactableTables, ReadTransaction

FIRST_PIECE = piece_key(0, 0)[8:]


@final
class TableBackend:
    """See `casstore.backend.BlobBackend`."""

    def __init__(self, tables: CompactableTables, *, read_only: bool = False) -> None:
        self._tables = tables
        self._read_only = read_only
        self._synced = self._put = 0  # the newest commits: on disk, as far as is known; of a put by this process
        self._sync_lock = threading.Lock()

    # -- identity

    def bind(self, uuid: str) -> str:
        """The uuid that this store carries; set to `uuid` the first time."""
        with self._tables.read() as t:
            found = t.get(META, UUID_KEY)
        if found is None and not self._read_only:
            with self._tables.write() as w:
                found = w.get(META, UUID_KEY)
                if found is None:
                    counters.reserve(w)
                    w.put(META, UUID_KEY, uuid.encode())
                    found = uuid.encode()
        return _uuid(found or uuid.encode())

    def has_journal(self) -> bool:
        with self._tables.read() as t:
            return t.get(META, JOURNAL_KEY) is not None

    def set_journal(self) -> None:
        with self._tables.write() as t:
            t.put(META, JOURNAL_KEY, b"")

    # -- read

    def rows(self, digests: Sequence[bytes]) -> list[Row | None]:
        with self._tables.read() as t:
            found = t.get_many(IX, digests) if len(digests) > 1 else [t.get(IX, digest) for digest in digests]
            return [None if row is None else _row(t, digest, row) for digest, row in zip(digests, found, strict=True)]

    def load(self, digest: bytes, known: Callable[[bytes], bool], *, exact: bool = False) -> list[Stored] | None:
        with self._tables.read() as t:
            row = puts.find(t, digest)
            if row is None:
                return None
            chain = _chain(t, row.data_id, digest, known)
        if exact:
            _require_agreement(row, digest, chain[0])
        return chain

    def load_small(self, digests: Sequence[bytes], raw_max: int) -> list[Small | None]:
        with self._tables.read() as t:
            return _small(t, digests, raw_max)

    def load_data(self, data_id: int) -> list[Stored] | None:
        with self._tables.read() as t:
            found = t.get(DA, u64(data_id))
            return None if found is None else _chain(t, data_id, DaRow.unpack(found).digest, lambda _: False)

    def load_range(self, data_id: int, start: int, stop: int) -> bytes | None:
        with self._tables.read() as t:
            found = t.get(DA, u64(data_id))
            if found is None:
                return None
            record = DaRow.unpack(found)
            stop = min(stop, record.stored_len)
            first = start // PIECE_SIZE
            data = _pieces(t, record, data_id, first, piece_count(stop))
            return data[start - first * PIECE_SIZE : stop - first * PIECE_SIZE]

    def load_into(self, data_id: int, start: int, stop: int, memory: bytearray) -> memoryview | None:
        with self._tables.read() as t:
            found = t.get(DA, u64(data_id))
            if found is None:
                return None
            record = DaRow.unpack(found)
            return _pieces_into(t, record, data_id, start, min(stop, record.stored_len), memory)

    def encoding(self, data_id: int) -> tuple[int, int]:
        with self._tables.read() as t:
            found = t.get(DA, u64(data_id))
        if found is None:
            return 0, 0
        row = DaRow.unpack(found)
        return row.codec, row.stored_len

    def base_walk(self, digest: bytes, until: Until | None = None) -> Walk:
        with self._tables.read() as t:
            return _base_walk(t, digest, until)

    def row_and_walk(self, digest: bytes, base: bytes, until: Until) -> tuple[Row | None, Walk]:
        with self._tables.read() as t:
            found = t.get(IX, digest)
            return None if found is None else _row(t, digest, found), _base_walk(t, base, until)

    def edges(self, digests: Sequence[bytes]) -> list[Edges | None]:
        with self._tables.read() as t:
            return sweeps.edges(t, digests)

    def page(self, after: bytes, limit: int) -> list[Row]:
        with self._tables.read() as t:
            found: list[Row] = []
            for digest, value in t.scan(IX, after):
                if digest == after or len(digest) != 32:  # for `audit` to say
                    continue
                found.append(_row(t, digest, value))
                if len(found) >= limit:
                    break
            return found

    def ages(self, after: bytes, limit: int, cut: int) -> Ages | None:
        with self._tables.read() as t:
            return sweeps.ages(t, after, limit, cut)

    def kept(self) -> list[Candidate]:
        with self._tables.read() as t:
            return [Candidate(from_u64(key), digest, True) for key, digest in t.scan(KP)]

    def kept_page(self, after: int, limit: int) -> list[Kept]:
        with self._tables.read() as t:
            rows = islice(t.scan(KP, u64(after + 1)), limit)
            return [_kept(t, from_u64(key), digest) for key, digest in rows]

    def buried(self, digest: bytes) -> Kept | None:
        with self._tables.read() as t:
            row = sweeps.gone(t, digest)
            return _kept(t, row.data_id, digest) if row is not None and row.until_s else None

    def copies(self, digest: bytes) -> list[int]:
        with self._tables.read() as t:
            return copies.kept(t, digest)

    def digests(self, data_ids: Sequence[int]) -> list[bytes | None]:
        with self._tables.read() as t:
            found = t.get_many(DA, [u64(data_id) for data_id in data_ids])
            return [da_digest(data) if data is not None else None for data in found]

    def records(self, after: int, limit: int) -> list[Record]:
        with self._tables.read() as t:
            return rewrites.records(t, after, limit)

    def gone_count(self) -> int:
        with self._tables.read() as t:
            return t.count(GONE)

    def gone(self, digest: bytes) -> Gone | None:
        with self._tables.read() as t:
            row = sweeps.gone(t, digest)
        return Gone(row.when_s, row.gc, row.raw_len, row.until_s) if row is not None else None

    def prefix(self, first: bytes, last: bytes, limit: int) -> list[bytes]:
        with self._tables.read() as t:
            return _between(t, IX, first, last, limit)

    def gone_prefix(self, first: bytes, last: bytes, limit: int) -> list[bytes]:
        with self._tables.read() as t:
            return _between(t, GONE, first, last, limit)

    def pins(self) -> dict[str, bytes]:
        with self._tables.read() as t:
            return {text(name): value[:32] for name, value in t.scan(PIN)}

    def leased(self) -> list[tuple[str, int, bytes]]:
        with self._tables.read() as t:
            expiry = {text(name): from_u64(value) for name, value in t.scan(LEASE)}
            rows = ((text(key[:-32]), key[-32:]) for key, _ in t.scan(LEASED))
            return [(lease, expiry.get(lease, 0), digest) for lease, digest in rows]

    def counters(self) -> Counters:
        with self._tables.read() as t:
            s, artifacts = counters.load_state(t), t.count(IX)
        return Counters(
            s.commit, artifacts, s.raw_bytes, s.stored_bytes, s.kept_bytes, s.epoch, bool(s.gc_open), s.cut, s.swept,
            s.next_data_id,
        )  # fmt: skip

    def audit(self, area: str, start: bytes, share: audits.Share, limit: int) -> audits.AuditPage:
        with self._tables.read() as t:
            return audits.audit(t, area, start, share, limit)

    def put_in_order(self, items: Sequence[NewArtifact], now_s: int, lease: str | None) -> PutResult:
        with self._tables.write() as t:
            result = puts.put(t, items, now_s, lease)
            if Outcome.NEW in result.outcomes or result.disordered:
                repairs.reorder(t, now_s)
            return result

    def mend(self, now_s: int, prove: evidence.Prove, relink: Set[bytes]) -> list[audits.Mended]:
        return mending.mend(self._tables, now_s, prove, relink)

    def reorder(self, now_s: int) -> int:
        with self._tables.write() as t:
            return repairs.reorder(t, now_s)

    def compact(self) -> tuple[int, int]:
        return self._tables.compact()

    def tidy(self) -> None:
        self._tables.tidy()

    def info(self) -> dict[str, int]:
        return self._tables.info()

    def uploads(self) -> list[tuple[int, int, str]]:
        with self._tables.read() as t:
            return puts.uploads(t)

    # -- write

    def put(self, items: Sequence[NewArtifact], now_s: int, lease: str | None) -> PutResult:
        with self._tables.write() as t:
            result = puts.put(t, items, now_s, lease)
            if result.disordered:
                repairs.reorder(t, now_s)
        self._put = max(self._put, result.commit)
        return result

    def heal_kept(self, data_id: int, item: NewArtifact) -> bool:
        with self._tables.write() as t:
            return puts.heal_kept(t, data_id, item)

    def pin(self, name: str, digest: bytes, now_s: int) -> None:
        with self._tables.write() as t:
            puts.pin(t, name, digest, now_s)

    def unpin(self, name: str) -> bool:
        with self._tables.write() as t:
            return puts.unpin(t, name)

    def lease_open(self, lease: str, expires_s: int) -> None:
        with self._tables.write() as t:
            puts.lease_open(t, lease, expires_s)

    def lease_add(self, lease: str, digests: Sequence[bytes], now_s: int) -> None:
        with self._tables.write() as t:
            puts.lease_add(t, lease, digests, now_s)

    def lease_renew(self, lease: str, expires_s: int) -> None:
        with self._tables.write() as t:
            puts.lease_renew(t, lease, expires_s)

    def lease_close(self, lease: str) -> None:
        with self._tables.write() as t:
            puts.lease_close(t, lease)

    def upload_open(self, now_s: int, owner: str) -> int:
        with self._tables.write() as t:
            return puts.upload_open(t, now_s, owner)

    def upload_write(self, upload: int, first_piece: int, pieces: Sequence[bytes]) -> None:
        with self._tables.write() as t:
            puts.upload_write(t, upload, first_piece, pieces)

    def upload_abort(self, upload: int) -> None:
        with self._tables.write() as t:
            puts.upload_abort(t, upload)

    # -- re-encoding

    def reencode(self, items: Sequence[NewEncoding], now_s: int) -> list[bool]:
        with self._tables.write() as t:
            return rewrites.reencode(t, items, now_s)

    def release(self, data_ids: Sequence[int], seen: int) -> list[int]:
        with self._tables.write() as t:
            return rewrites.release(t, data_ids, seen)

    # -- gc

    def gc_peek(self, now_s: int, grace_s: int) -> GcOpened:
        with self._tables.read() as t:
            return sweeps.gc_peek(t, now_s, grace_s)

    def gc_open(self, now_s: int, grace_s: int, report: bytes) -> GcOpened:
        with self._tables.write() as t:
            return sweeps.gc_open(t, now_s, grace_s, report)

    def gc_recent(self, epoch: int) -> list[bytes]:
        with self._tables.read() as t:
            sweeps.require_epoch(counters.load_state(t), epoch)
            return sweeps.recent(t)

    def gc_sweep(
        self, epoch: int, candidates: Sequence[Candidate], judge: Judge, now_s: int, watch: Callable[[], None]
    ) -> SweepResult:
        with self._tables.write() as t:
            watch()
            result = sweeps.gc_sweep(t, epoch, candidates, judge, now_s)
            watch()
            return result

    def gc_close(self, epoch: int, report: bytes, last: tuple[bytes, int] | None = None) -> None:
        with self._tables.write() as t:
            sweeps.gc_close(t, epoch, report, last)

    def gc_reports(self, limit: int | None) -> list[tuple[int, bytes]]:
        with self._tables.read() as t:
            return [(from_u64(key), value) for key, value in islice(t.scan(GCS, reverse=True), limit)]

    def purge(self, pieces_max: int, watch: Callable[[], None] | None = None) -> int:
        with self._tables.read() as t:
            if not sweeps.has_purge(t):
                return 0
        with self._tables.write() as w:
            if watch is not None:
                watch()
            count = sweeps.purge(w, pieces_max)
            if watch is not None:
                watch()
            return count

    # -- life

    def sync(self, commit: int = 0) -> int:
        """One flush covers everything committed before it, whoever committed it."""
        commit = commit or self.counters().commit
        if self._read_only or commit <= self._synced:
            return commit
        with self._sync_lock:
            self._tables.sync()
            self._synced = max(self._synced, commit)
        return commit

    def sync_own(self) -> int:
        return self._synced if 0 < self._put <= self._synced else self.sync()

    def reader_check(self) -> int:
        return self._tables.reader_check()

    def close(self) -> None:
        self._tables.close()


def _uuid(uuid: bytes) -> str:
    try:
        return uuid.decode()
    except UnicodeDecodeError as error:
        raise DamagedStore("table meta1", "the store's uuid is no text") from error


def _between(t: ReadTransaction, table: bytes, first: bytes, last: bytes, limit: int) -> list[bytes]:
    found = takewhile(lambda digest: digest <= last, t.keys(table, first))
    return list(islice((digest for digest in found if len(digest) == 32), limit))


def _row(t: ReadTransaction, digest: bytes, value: bytes) -> Row:
    row = IxRow.unpack(value)
    kinds = known_kinds(row.kinds)
    if row.kinds & OTHER_KINDS:
        named = []
        for key, _ in t.scan(KN, digest):
            if not key.startswith(digest):
                break
            named.append(text(key[32:]))
        kinds += tuple(named)
    return Row(digest, row.data_id, row.touched, row.touched_s, kinds, row.raw_len)


def _base_walk(t: ReadTransaction, digest: bytes, until: Until | None) -> Walk:
    row = puts.find(t, digest)
    if row is None:
        return []
    return [(found.digest, data_id, found.chain) for data_id, found in sweeps.walk(t, row.data_id, until)]


def _kept(t: ReadTransaction, data_id: int, digest: bytes) -> Kept:
    row = sweeps.gone(t, digest)
    if row is None or row.data_id != data_id or not row.until_s:
        return Kept(data_id, digest)
    kinds = known_kinds(row.kinds) + row.names
    bases = tuple(base for base, _ in islice(sweeps.walk(t, data_id), 1, None))
    return Kept(data_id, digest, row.until_s, row.gc, row.raw_len, kinds, sweeps.links(t, digest), bases)


def _piece(t: ReadTransaction, record: DaRow, data_id: int, number: int, asked: bytes) -> bytes:
    data = t.get(D, piece_key(data_id, number))
    expected = min(PIECE_SIZE, record.stored_len - number * PIECE_SIZE)
    if data is None or len(data) != expected:
        found = "missing" if data is None else f"{len(data)} bytes long instead of {expected}"
        raise Corrupt(ArtifactId(asked), f"piece {number} of data_id {data_id} is {found}")
    return data


def _pieces(t: ReadTransaction, record: DaRow, data_id: int, first: int, stop: int) -> bytes:
    """The pieces [first, stop), in one go where they are as they should be. Raises: Corrupt, which names a bad one."""
    rows = list(islice(t.scan(D, piece_key(data_id, first)), max(stop - first, 0)))
    data = b"".join([piece for _, piece in rows])
    if (
        rows
        and rows[0][0] == piece_key(data_id, first)
        and rows[-1][0] == piece_key(data_id, stop - 1)
        and len(data) == min(stop * PIECE_SIZE, record.stored_len) - first * PIECE_SIZE
    ):
        return data
    return b"".join(_piece(t, record, data_id, number, record.digest) for number in range(first, stop))


def _pieces_into(
    t: ReadTransaction, record: DaRow, data_id: int, start: int, stop: int, memory: bytearray
) -> memoryview:  # fmt: skip
    """Bytes [start, stop), in `memory`, which takes the whole pieces that they lie in. Raises: Corrupt, which names a
    piece that is not as it should be."""
    first, end = start // PIECE_SIZE, piece_count(stop)
    size = min(end * PIECE_SIZE, record.stored_len) - first * PIECE_SIZE
    room = memoryview(memory)[:size]
    rows = list(islice(t.scan(D, piece_key(data_id, first)), end - first))
    places = _PLACES[: end - first]
    if size % PIECE_SIZE:
        places[-1] = slice(size - size % PIECE_SIZE, size)
    good = len(rows) == len(places) == end - first and rows[-1][0] == piece_key(data_id, end - 1)
    try:
        deque(map(room.__setitem__, places, [piece for _, piece in rows]), maxlen=0)  # a loop at the speed of C
    except ValueError:  # a piece that is too short or too long
        good = False
    for number in range(first, first if good else end):
        _piece(t, record, data_id, number, record.digest)
    skipped = start - first * PIECE_SIZE
    return room[skipped : skipped + stop - start]


def _places(count: int) -> list[slice]:
    return [slice(at, at + PIECE_SIZE) for at in range(0, count * PIECE_SIZE, PIECE_SIZE)]


_PLACES = _places(FRAME_SIZE // PIECE_SIZE + 2)  # of the pieces that a frame lies in


def _small(t: ReadTransaction, digests: Sequence[bytes], raw_max: int) -> list[Small | None]:
    """In three reads, however many there are."""
    rows = t.get_many(IX, digests)
    there = [(place, row[:8]) for place, row in enumerate(rows) if row is not None and len(row) == IX_SIZE]
    whole = []
    for (place, number), record in zip(there, t.get_many(DA, [number for _, number in there]), strict=True):
        if record is not None:
            raw_len, stored_len, codec, base = da_encoding(record)
            alone = not base or codec == Codec.ZSTD_DICTIONARY
            if alone and codec != Codec.FRAMES and 0 < stored_len <= PIECE_SIZE and raw_len <= raw_max:
                whole.append((place, number + FIRST_PIECE, stored_len, codec, raw_len, base))
    pieces = t.get_many(D, [key for _, key, *_ in whole])
    found: list[Small | None] = [None] * len(digests)
    for (place, _, stored_len, codec, raw_len, base), piece in zip(whole, pieces, strict=True):
        if piece is not None and len(piece) == stored_len:
            found[place] = codec, piece, raw_len, base
    return found


def _require_agreement(row: IxRow, digest: bytes, head: Stored) -> None:
    if head.digest != digest:
        raise Corrupt(ArtifactId(digest), f"data_id {row.data_id} holds the bytes of {head.digest.hex()}")
    if head.raw_len != row.raw_len:
        detail = f"the index says {row.raw_len} bytes, the record {head.raw_len}"
        raise Corrupt(ArtifactId(digest), detail)
    if bool(head.base) != needs_base(head.codec):
        raise Corrupt(ArtifactId(digest), f"encoding {head.codec} with the base {head.base}")


def _stored(row: DaRow, data_id: int, stored: bytes) -> Stored:
    return Stored(row.digest, data_id, row.raw_len, row.stored_len, row.codec, row.base, row.chain, row.extra, stored)


def _chain(t: ReadTransaction, data_id: int, asked: bytes, known: Callable[[bytes], bool]) -> list[Stored]:
    found: list[Stored] = []
    try:
        for at, row in sweeps.walk(t, data_id):
            if known(row.digest):
                found.append(_stored(row, at, b""))
                return found
            if row.codec == Codec.FRAMES:  # read by range, never whole
                found.append(_stored(row, at, b""))
                continue
            pieces = [_piece(t, row, at, number, asked) for number in range(piece_count(row.stored_len))]
            found.append(_stored(row, at, b"".join(pieces)))
    except DamagedStore as error:
        raise Corrupt(ArtifactId(asked), str(error)) from error
    if not found or found[-1].base:
        missing = found[-1].base if found else data_id
        raise Corrupt(ArtifactId(asked), f"the record of its bytes (data_id {missing}) is missing")
    return found
