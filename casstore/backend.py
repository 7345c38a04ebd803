"""BlobBackend: the seam between what the store means and where its rows lie, and the values that cross it.

Each method is one atomic step of the protocol of docs/GC.md, so nothing of a storage engine (transactions, cursors,
pages) crosses. Digests are 32 raw bytes; data_ids are numbers that grow and are never used twice; `commit`
numbers count the store's write transactions.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from casstore.audits import AuditPage, Mended, Share
    from casstore.evidence import Prove


class Row(NamedTuple):
    """A visible artifact."""

    digest: bytes
    data_id: int
    touched: int
    touched_s: int
    kinds: tuple[str, ...]
    raw_len: int


class Stored(NamedTuple):
    """The bytes that an artifact is kept as; those of a large one (codec FRAMES) are read by `load_range`."""

    digest: bytes
    data_id: int
    raw_len: int
    stored_len: int
    codec: int
    base: int
    chain: int
    extra: bytes
    stored: bytes


# Codec, stored bytes, raw length and data_id of the dictionary (0: none) of what is kept in one piece, and as no delta.
Small = tuple[int, bytes, int, int]


class Edges(NamedTuple):
    """What an artifact needs: linked digests, one after the other, and the data_ids of its base, the base's base, and
    so on."""

    data_id: int
    packed: bytes
    bases: tuple[int, ...]

    @property
    def links(self) -> tuple[bytes, ...]:
        """The linked digests."""
        return tuple(self.packed[at : at + 32] for at in range(0, len(self.packed), 32))


class Gone(NamedTuple):
    """A collected artifact. In quarantine until `until_s` (0: its bytes are gone)."""

    when_s: int
    gc: int
    raw_len: int
    until_s: int = 0


class Kept(NamedTuple):
    """Bytes of a collected artifact. In quarantine until `until_s` (0: it is not, a delta needs them), and then
    what is known of it: what it needs, its kinds, and which gc took it."""

    data_id: int
    digest: bytes
    until_s: int = 0
    gc: int = 0
    raw_len: int = 0
    kinds: tuple[str, ...] = ()
    links: tuple[bytes, ...] = ()
    bases: tuple[int, ...] = ()


class NewArtifact(NamedTuple):
    """One put, hashed and encoded. `base` is the digest of a delta's base; `upload` the data_id of a finished
    upload whose pieces are already there; `heal` says that the stored copy was found damaged;
    `stored` is None where an earlier look saw the artifact, so that it was not encoded."""

    digest: bytes
    kind: str
    raw_len: int
    links: tuple[bytes, ...]
    codec: int
    stored: bytes | None
    stored_len: int
    base: bytes | None = None
    chain: int = 0
    extra: bytes = b""
    upload: int | None = None
    heal: bool = False


class Record(NamedTuple):
    """How the bytes under a data_id are kept, without them."""

    data_id: int
    digest: bytes
    raw_len: int
    stored_len: int
    codec: int
    base: int
    chain: int


class NewEncoding(NamedTuple):
    """Other stored bytes for an artifact that is there: of the same raw bytes, under the same data_id. `record` is
    what was read before; `base` digest and data_id of the base."""

    record: Record
    codec: int
    stored: bytes
    base: tuple[bytes, int] | None = None
    chain: int = 0
    extra: bytes = b""


class Outcome(enum.Enum):
    """What a put turned out to be."""

    NEW = "new"
    HIT = "hit"
    HEALED = "healed"


class PutResult(NamedTuple):
    """`commit` is the number of the transaction, 0 if it wrote nothing. `kept` are (digest, data_id) of earlier copies
    of what was put, whose bytes are kept: the put may heal them. `disordered`: what was healed has a new number, and
    what links to it may have a smaller one."""

    outcomes: tuple[Outcome, ...]
    commit: int
    kept: tuple[tuple[bytes, int], ...] = ()
    disordered: bool = False


class EncodeAgain(Exception):
    """A delta's base, or the copy that an earlier look saw, is gone: encode whole and put again."""

    def __init__(self, digests: tuple[bytes, ...]) -> None:
        super().__init__(digests)
        self.digests = digests


class UploadLost(Exception):
    """The stage row of an upload is gone: a gc took the writer for dead. Begin again."""


class GcOpened(NamedTuple):
    """An open gc: its epoch, its cut, and the roots that the store itself holds.

    `uploads` are data_ids that unfinished uploads have taken, `next_data_id` is the first that nobody has. `last` is
    what the last complete gc remembered, empty where that does not hold any more; `loosened` numbers the newest commit
    by which the store itself may have let go of something.
    """

    epoch: int
    cut: int
    pins: tuple[tuple[str, bytes], ...]
    leased: tuple[tuple[str, bytes], ...]
    next_data_id: int
    uploads: tuple[int, ...]
    loosened: int
    last: bytes


class Candidate(NamedTuple):
    """A row that the mark did not reach. `kept`: already collected, its bytes were needed by a delta."""

    data_id: int
    digest: bytes
    kept: bool


class Ages(NamedTuple):
    """Visible artifacts: data_ids of those that were last touched up to a cut, digests of the others, and the digest
    to go on from."""

    old: Sequence[int]
    young: Sequence[bytes]
    last: bytes


class Verdict(enum.Enum):
    """What to do with a candidate."""

    SPARE = "spare"
    DELETE = "delete"  # index row and bytes
    KEEP_BYTES = "keep_bytes"  # index row only: a living delta needs the bytes
    UNBURY = "unbury"  # its time in quarantine is over, and a living delta needs the bytes


class SweepView(Protocol):
    """What a judge may look at, inside the deleting transaction."""

    recent: tuple[bytes, ...]

    def edges(self, digest: bytes) -> Edges | None: ...


class Decision(NamedTuple):
    """A verdict; what does not stay goes into quarantine until `until_s`, where that is not 0."""

    verdict: Verdict
    until_s: int = 0


Judge = Callable[[SweepView], Sequence[Decision]]
Until = Callable[[int], int]
Walk = list[tuple[bytes, int, int]]  # (digest, data_id, chain)


class SweepResult(NamedTuple):
    """Artifacts removed with their raw bytes; the stored bytes that went, that are kept for deltas, and that are
    in quarantine."""

    removed: tuple[tuple[bytes, int], ...]
    raw_bytes: int
    stored_bytes: int
    kept_bytes: int
    quarantined_bytes: int


class EpochLost(Exception):
    """Another gc opened since: this one must stop."""


class Counters(NamedTuple):
    """Totals, kept in each write transaction."""

    commit: int
    artifacts: int
    raw_bytes: int
    stored_bytes: int
    kept_bytes: int
    epoch: int
    gc_open: bool
    cut: int
    swept: int
    next_data_id: int


class BlobBackend(Protocol):
    """Where artifacts are kept."""

    # -- read: each call is one snapshot
    def bind(self, uuid: str) -> str:
        """The uuid that this store carries; set to `uuid` the first time."""

    def has_journal(self) -> bool:
        """Whether the home has, or had, a journal."""

    def set_journal(self) -> None:
        """It has one now."""

    def rows(self, digests: Sequence[bytes]) -> list[Row | None]: ...
    def load(self, digest: bytes, known: Callable[[bytes], bool], *, exact: bool = False) -> list[Stored] | None:
        """The artifact's bytes, then its base's, down to one stored whole or whose digest is `known` (its
        bytes are left out). `exact`: for who does not prove all of them by the digest; raises Corrupt where index and
        record contradict each other."""

    def load_small(self, digests: Sequence[bytes], raw_max: int) -> list[Small | None]:
        """Of each artifact, if it is kept in one piece, as no delta, and has up to `raw_max` bytes. None says nothing:
        `load` tells."""

    def load_data(self, data_id: int) -> list[Stored] | None:
        """The same, of bytes that may have lost their index row."""

    def load_range(self, data_id: int, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop) of what is kept under a data_id; None when it is gone."""

    def load_into(self, data_id: int, start: int, stop: int, memory: bytearray) -> memoryview | None:
        """The same, of 1 to 2^20 bytes, in `memory`, which has room for two pieces more."""

    def encoding(self, data_id: int) -> tuple[int, int]:
        """(codec, stored bytes) of what is kept under a data_id; (0, 0) when it is gone."""

    def base_walk(self, digest: bytes, until: Until | None = None) -> Walk:
        """(digest, data_id, chain) of the artifact and of its bases in turn, to the first with a chain that is not
        above what `until` gives for the artifact's own; empty when not visible."""

    def row_and_walk(self, digest: bytes, base: bytes, until: Until) -> tuple[Row | None, Walk]:
        """The row of one artifact and the base walk of another, in one look."""

    def edges(self, digests: Sequence[bytes]) -> list[Edges | None]: ...
    def page(self, after: bytes, limit: int) -> list[Row]:
        """Visible artifacts with a greater digest, ascending."""

    def ages(self, after: bytes, limit: int, cut: int) -> Ages | None:
        """Up to `limit` visible artifacts with a greater digest; None where there is none."""

    def kept(self) -> list[Candidate]:
        """Bytes of collected artifacts that were needed by a delta, or are in quarantine."""

    def kept_page(self, after: int, limit: int) -> list[Kept]:
        """The same with a greater data_id, ascending, and what is known of those in quarantine."""

    def buried(self, digest: bytes) -> Kept | None:
        """A collected artifact whose bytes are in quarantine."""

    def copies(self, digest: bytes) -> list[int]:
        """Data_ids of an artifact's copies that are kept though they are not what is visible, newest first."""

    def digests(self, data_ids: Sequence[int]) -> list[bytes | None]:
        """Whose bytes are kept under each data_id."""

    def records(self, after: int, limit: int) -> list[Record]:
        """Of everything kept, visible or not, with a greater data_id, ascending. Raises: DamagedStore."""

    def gone_count(self) -> int: ...
    def gone(self, digest: bytes) -> Gone | None: ...
    def prefix(self, first: bytes, last: bytes, limit: int) -> list[bytes]:
        """Digests between, inclusive."""

    def gone_prefix(self, first: bytes, last: bytes, limit: int) -> list[bytes]:
        """The same of collected artifacts."""

    def pins(self) -> dict[str, bytes]: ...
    def leased(self) -> list[tuple[str, int, bytes]]:
        """(lease, expiry in unix seconds, digest)."""

    def counters(self) -> Counters: ...
    def audit(self, area: str, start: bytes, share: Share, limit: int) -> AuditPage:
        """Up to `limit` keys of one of `audits.AREAS` from `start` on, judged within one snapshot."""

    def put_in_order(self, items: Sequence[NewArtifact], now_s: int, lease: str | None) -> PutResult:
        """As `put`, of what was missing; in the same transaction what `reorder` does."""

    def mend(self, now_s: int, prove: Prove, relink: Set[bytes]) -> list[Mended]:
        """Put right rows that belong to nothing, and the counters (`casstore.mending`); what was done. `relink` are
        artifacts whose row of links is known not to be right. The caller keeps collections and compactions out."""

    def reorder(self, now_s: int) -> int:
        """Give new data_ids to what links to younger artifacts, and to all that links to it; how many."""

    def info(self) -> dict[str, int]: ...
    def compact(self) -> tuple[int, int]:
        """Give unused space back while others read and write; bytes taken before and after. The caller keeps
        other compactions and collections out."""

    def tidy(self) -> None:
        """Remove what a killed compaction left. The caller keeps compactions out."""


    # -- write: each call is one atomic step, durable after the next sync
    def put(self, items: Sequence[NewArtifact], now_s: int, lease: str | None) -> PutResult: ...
    def heal_kept(self, data_id: int, item: NewArtifact) -> bool:
        """Rewrite damaged bytes that are kept for deltas where they lie; False where they are not kept any more."""

    def pin(self, name: str, digest: bytes, now_s: int) -> None: ...
    def unpin(self, name: str) -> bool: ...
    def lease_open(self, lease: str, expires_s: int) -> None: ...
    def lease_add(self, lease: str, digests: Sequence[bytes], now_s: int) -> None: ...
    def lease_renew(self, lease: str, expires_s: int) -> None: ...
    def lease_close(self, lease: str) -> None: ...
    def upload_open(self, now_s: int, owner: str) -> int: ...
    def upload_write(self, upload: int, first_piece: int, pieces: Sequence[bytes]) -> None: ...
    def upload_abort(self, upload: int) -> None: ...
    def uploads(self) -> list[tuple[int, int, str]]:
        """(data_id, since in unix seconds, owner) of unfinished uploads."""

    # -- re-encoding
    def reencode(self, items: Sequence[NewEncoding], now_s: int) -> list[bool]:
        """Replace the encoding of each that is as it was read, and whose base is visible and older; which were."""

    def release(self, data_ids: Sequence[int], seen: int) -> list[int]:
        """Let bytes of collected artifacts go that no record up to data_id `seen` needed; which went. Not what is in
        quarantine, or needed by a newer record."""

    # -- gc
    def gc_peek(self, now_s: int, grace_s: int) -> GcOpened:
        """What `gc_open` would answer; writes nothing."""

    def gc_open(self, now_s: int, grace_s: int, report: bytes) -> GcOpened:
        """Begin. `report` stands for this gc until it is closed with another."""

    def gc_recent(self, epoch: int) -> list[bytes]: ...
    def gc_sweep(
        self, epoch: int, candidates: Sequence[Candidate], judge: Judge, now_s: int, watch: Callable[[], None]
    ) -> SweepResult:
        """One batch. `watch` is called when the lock is taken, and again before the flush that ends it."""

    def gc_close(self, epoch: int, report: bytes, last: tuple[bytes, int] | None = None) -> None:
        """End. `last` is what to remember for the next one, and `loosened` of the opening: nothing is remembered where
        the store let go of something since."""

    def gc_reports(self, limit: int | None) -> list[tuple[int, bytes]]:
        """(number, report) of the newest gcs, newest first."""

    def purge(self, pieces_max: int, watch: Callable[[], None] | None = None) -> int:
        """Remove up to so many pieces that nothing reaches; how many, 0 when none is left. `watch` as in gc_sweep."""

    # -- life
    def sync(self, commit: int = 0) -> int:
        """All commits up to the returned number are on disk: this one, or with 0 whatever was committed before."""

    def sync_own(self) -> int:
        """The same, but that it leaves what others committed where nothing that this process put is waiting."""

    def reader_check(self) -> int: ...
    def close(self) -> None: ...
