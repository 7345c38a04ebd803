"""Store: artifacts by id. What callers hold; the work is done by writing, reading, gc and inspection."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from heapq import merge
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast, final

from casstore import (
    backups,
    collecting,
    dictionaries,
    forks,
    history,
    inspection,
    reasons,
    reencoding,
    repairs,
    transfer,
    values,
)
from casstore import undelete as undeleting
from casstore.arguments import (
    artifact_id,
    count,
    digests_of,
    either,
    instance,
    optional_id,
    pin_name,
    plain_bytes,
    put_items,
    several,
)
from casstore.backend import BlobBackend
from casstore.errors import (
    ClosedHandle,
    ForkedHandle,
    InvalidArgument,
    PinNotFound,
    ReadOnly,
)
from casstore.home import Home
from casstore.ids import ArtifactId
from casstore.items import PreparedPut, PutItem, check_kind, links_of
from casstore.leases import Lease
from casstore.locks import collector_lock
from casstore.policies import Due, Duration, Policy, check_count, exact_seconds
from casstore.reading import Reader
from casstore.recent import RecentBytes, RecentIds
from casstore.reports import (
    ArtifactInfo,
    Buried,
    CompactReport,
    ExportReport,
    GcRecord,
    GcReport,
    ImportReport,
    MendReport,
    RepairReport,
    StoreStats,
    UndeleteReport,
    VerifyReport,
    Why,
)
from casstore.roots import RootSource
from casstore.stage import Stage
from casstore.staging import Staging
from casstore.steps import reach
from casstore.writing import Writer


@final
class Store:
    """An open store. All methods may be called from any thread; reads see every commit made before them.

    A put is on disk when it returns, unless `durable=False`: then it is after the next `sync` (or durable put)
    of any process. Handles of one home share one environment in a process.
    """

    def __init__(
        self, backend: BlobBackend, home: Home | None, *, read_only: bool, quota: int | None,
        clock: Callable[[], float] = time.time, uuid: str = "", stage: Stage | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._backend, self._clock, self._on_close = backend, clock, on_close
        self.home: Path | None = home.path if home else None
        self.uuid = home.uuid if home else uuid
        self.instance = home.instance if home else uuid
        self.read_only = read_only
        self._name = str(self.home) if home else "memory"
        self._closed = False
        self._pid = forks.pid
        recent, self._stage = RecentBytes(), stage or Stage()
        self._values = RecentIds()  # whose bytes are canonical
        self._reader = Reader(backend, recent, self._stage)
        self._writer = Writer(backend, self._reader, recent, self._stage, clock, quota=quota, path=str(self.home or ""))
        self.staging = Staging(self._stage, backend, self._writer)

    # -- put

    def put(
        self, data: bytes | bytearray | memoryview, *, kind: str = "other", base: ArtifactId | None = None,
        durable: bool = True, verify: bool = False,
    ) -> ArtifactId:  # fmt: skip
        """Store bytes; the id is their BLAKE3. Bytes that are there already cost no second copy; a damaged copy
        is healed: up to 1 MiB it is always checked, above that only that all its pieces are there, unless `verify`.
        That also looks at bytes that are kept for deltas after their artifact was collected. `healed` tells.
        `base` is a hint: an artifact that these bytes resemble.

        Raises: InvalidArgument, StoreFull, MissingArtifact (the bytes are a value that links to what is not there).
        """
        self._check(write=True)
        item = PutItem(data=plain_bytes(data), kind=check_kind(kind), base=optional_id(base, "base"))
        return self._writer.put(item, durable=durable, verify=verify)

    def put_value(
        self, value: object, *, kind: str = "value", base: ArtifactId | None = None, durable: bool = True
    ) -> ArtifactId:
        """Store a value as DAG-CBOR; an ArtifactId in it is a link, and what it links to must be there.

        Raises: InvalidValue with the path, MissingArtifact, StoreFull.
        """
        self._check(write=True)
        data, links = values.encode(value)
        item = PutItem(data=data, kind=check_kind(kind), base=optional_id(base, "base"))
        return self._values.add(self._writer.put(item, durable=durable, links=links))

    def put_file(
        self, source: str | os.PathLike[str] | BinaryIO, *, kind: str = "output",
        progress: Callable[[int], None] | None = None,
    ) -> ArtifactId:  # fmt: skip
        """Store a file or a binary stream of any size in constant memory. `progress(bytes)` is told of each step.

        Visible all at once at the end; killed or cancelled, nothing is visible, and gc takes what was written.
        """
        self._check(write=True)
        check_kind(kind)
        if isinstance(source, (str, os.PathLike)):
            with open(source, "rb") as file:
                return self._writer.put_stream(file, kind, progress=progress)
        if not hasattr(source, "read"):
            raise InvalidArgument("source", f"{type(source).__name__} is neither a path nor a binary stream")
        return self._writer.put_stream(source, kind, progress=progress)

    def put_many(self, items: Iterable[bytes | tuple[bytes, str] | PutItem]) -> list[ArtifactId]:
        """Store many, in order, one commit for a few MiB; all durable on return. After an error a prefix may be
        stored: no harm, what nothing names is collected."""
        self._check(write=True)
        return self._writer.put_many(put_items(items))

    def _put_leased(self, data: bytes, kind: str, base: ArtifactId | None, lease: str) -> ArtifactId:
        self._check(write=True)
        item = PutItem(data=plain_bytes(data), kind=check_kind(kind), base=optional_id(base, "base"))
        return self._writer.put(item, lease=lease)

    @property
    def healed(self) -> tuple[ArtifactId, ...]:
        """Artifacts whose damaged copy a put of this handle replaced, in that order."""
        return tuple(self._writer.healed)

    # -- read

    def get(self, id: ArtifactId) -> bytes:
        """The bytes, verified. Raises: NotFound, Collected, Corrupt."""
        self._check()
        return self._reader.get(artifact_id(id).digest)

    def get_many(self, ids: Iterable[ArtifactId]) -> list[bytes]:
        """The bytes of each, in order, verified: small ones several times as fast as by `get`. Raises as it does."""
        self._check()
        return self._reader.get_many(digests_of(ids))

    def get_value(self, id: ArtifactId) -> Any:
        """The value, a fresh object, links as ArtifactIds. Raises: InvalidValue if the bytes are no value."""
        value = values.decode(self.get(id), canonical=id in self._values)
        self._values.add(id)
        return value

    def get_range(self, id: ArtifactId, start: int, length: int) -> bytes:
        """Bytes [start, start + length). Of a large artifact only the frames touched are read and checked: that
        finds damage, but only a full read proves the id."""
        self._check()
        return self._reader.get_range(artifact_id(id).digest, count(start, "start"), count(length, "length"))

    def open_reader(self, id: ArtifactId) -> io.BufferedIOBase:
        """A seekable binary reader; of a large artifact it holds one frame in memory."""
        self._check()
        return self._reader.open(artifact_id(id).digest)

    def info(self, id: ArtifactId) -> ArtifactInfo:
        """Facts about an artifact. Raises: NotFound, Collected."""
        self._check()
        digest = artifact_id(id).digest
        found = inspection.info(self._backend, digest) or self.staging.info(digest)
        found = found or inspection.info(self._backend, digest)  # it may have been settled between the two looks
        if found is None:
            raise self._reader.missing(digest)
        return found

    def __contains__(self, id: object) -> bool:
        self._check()
        return isinstance(id, ArtifactId) and (
            self._is_visible(id) or self._stage.find(id.digest) is not None or self._is_visible(id)
        )

    def __len__(self) -> int:
        self._check()
        return len(self.staging.hidden()) + self._backend.counters().artifacts

    def __bool__(self) -> bool:
        return True  # an empty store is a store

    def __iter__(self) -> Iterator[ArtifactId]:
        """Ids in ascending order; what is put or collected meanwhile may or may not appear."""
        self._check()
        staged = [row.digest for row in self.staging.hidden()]  # first: what is settled meanwhile is in the pages then
        stored = (row.digest for row in inspection.pages(self._backend))
        return (ArtifactId(digest) for digest, _ in groupby(merge(staged, stored)))

    def resolve(self, prefix: str) -> ArtifactId:
        """The one id that begins like that. Raises: InvalidId, AmbiguousPrefix; Collected where only one that was
        collected does, else NotFound."""
        self._check()
        return inspection.resolve(self._backend, self._reader, prefix, (row.digest for row in self.staging.hidden()))

    # -- protect

    def pin(self, name: str, id: ArtifactId) -> None:
        """Keep an artifact with all it needs until `unpin`; the name then holds this id. Durable on return.

        Raises: NotFound, Collected, InvalidArgument.
        """
        self._check(write=True)
        self._writer.stored([artifact_id(id).digest])
        self._backend.pin(pin_name(name), artifact_id(id).digest, self._now())
        reach("pin.committed")
        self._backend.sync()

    def unpin(self, name: str) -> None:
        """Raises: PinNotFound, InvalidArgument."""
        self._check(write=True)
        if not self._backend.unpin(pin_name(name)):
            raise PinNotFound(name)
        self._backend.sync()

    def pins(self) -> dict[str, ArtifactId]:
        """Names and what they hold."""
        self._check()
        return inspection.pins(self._backend)

    def lease(self, ttl: float) -> Lease:
        """A new lease that expires `ttl` seconds from now. Raises: InvalidArgument."""
        self._check(write=True)
        return Lease(self, self._backend, self._writer, ttl, self._clock)

    # -- take elsewhere

    def export(
        self, ids: transfer.Wanted, out: str | os.PathLike[str] | BinaryIO, *, shallow: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> ExportReport:  # fmt: skip
        """Write artifacts (an id, several, or what live runs of a root source name) and all that they link to, or
        with `shallow` only them, as a CAR v1 file. A path is replaced at the end and durable; a stream is written
        as it goes. `progress(bytes)` is told of each write.

        Raises: NotFound, Collected, Corrupt, InvalidArgument, OSError of the file.
        """
        self._check()
        return transfer.export_car(self, ids, out, shallow=shallow, progress=progress)

    def import_(
        self, src: str | os.PathLike[str] | BinaryIO, *, pin: str | None = None, kind: str = "other",
        lease: Lease | None = None, progress: Callable[[int], None] | None = None,
    ) -> ImportReport:  # fmt: skip
        """Store the blocks of a CAR v1 file, each proven by its id, in any order. Durable on return.

        No gc takes what was imported while this runs; after it, `pin` holds the roots (NAME for one, NAME/0, NAME/1
        … for several), or `lease` holds everything. Killed, begin again: what is there already is not written again.

        Raises: InvalidCar, MissingArtifact (a link leads to what is neither in the file nor here), StoreFull,
        LeaseLost, OSError of the file. What came before the error stays, each block under its own id.
        """
        self._check(write=True)
        check_kind(kind)
        if pin is not None:
            pin_name(f"{pin_name(pin)}/{0:08}")
        return transfer.import_car(
            self, self._backend, self._writer, self._reader, src, kind=kind, pin=pin, lease=lease, progress=progress
        )

    # -- for the journal

    def prepare_value(
        self, value: object, *, kind: str = "value", base: ArtifactId | None = None
    ) -> PreparedPut | ArtifactId:  # fmt: skip
        """Encode and hash a value that goes with an append (`Journal.append(puts=…)`), or into `put_prepared`. One
        that is too large for that is put at once, durable with the next `sync`: then its id.

        Raises: InvalidValue with the path, and for a large one what put_value raises.
        """
        self._check(write=True)
        data, links = values.encode(value)
        item = PutItem(data=data, kind=check_kind(kind), base=optional_id(base, "base"))
        prepared = self._writer.prepare(item, tuple(link.digest for link in links))
        self._values.add(prepared.id if isinstance(prepared, PreparedPut) else prepared)
        return prepared

    def prepare(self, data: bytes | bytearray | memoryview, *, kind: str = "other") -> PreparedPut | ArtifactId:
        """As prepare_value, for bytes."""
        self._check(write=True)
        item = PutItem(data=plain_bytes(data), kind=check_kind(kind))
        return self._writer.prepare(item, links_of(item.data))

    def put_prepared(self, prepared: Sequence[PreparedPut]) -> None:
        """Put several in one transaction; durable with the next `sync`. Raises: MissingArtifact, StoreFull (none
        is put)."""
        self._check(write=True)
        self._writer.put_prepared(prepared)

    def sync(self) -> int:
        """A barrier: all commits up to the returned number, of whichever process, are on disk."""
        self._check()
        return self._backend.sync()

    def barrier(self) -> int:
        """As `sync`, but that it leaves what others committed where nothing that this process put is waiting: whoever
        names something younger has to flush (see `touched`)."""
        self._check()
        return self._backend.sync_own()

    def touched(self, ids: Sequence[ArtifactId]) -> list[int | None]:
        """The commit that last touched each artifact, None for what is not visible, all from one snapshot that
        begins now."""
        self._check()
        rows = self._backend.rows(digests_of(ids))
        return [row.touched if row else None for row in rows]

    # -- look after

    def gc(
        self, roots: RootSource, *, policy: Policy | None = None, dry_run: bool = False, explain: bool = False,
        keep_completed: Duration | None = None, keep_failed: Duration | None = None,
        keep_cancelled: Duration | None = None, keep_last: int | None = None, final_only: bool | None = None,
        keep_outputs: bool | None = None, quota: int | None = None, grace: Duration | None = None,
        quarantine: Duration | None = None, max_time: Duration | None = None, max_bytes: int | None = None,
        stop: Callable[[], bool] | None = None, force: bool = False, budget: Duration | None = None,
    ) -> GcReport:  # fmt: skip
        """Remove what nothing needs: not a live run of `roots` or one that ended and is retained, no pin, no unexpired
        lease, and not touched within `grace`. What is removed can be brought back with `undelete` for the time of
        `quarantine`, and takes its space until then.

        `policy` (by default `Policy()`; `store.policy()` is that of the home) says what is retained, and each keyword
        that is given comes before it: see Policy. Durations in seconds or timedelta.

        It stops between two batches once `max_time` (or `budget`, another name of it) has passed, `max_bytes` stored
        bytes or more are removed, or `stop()` says so (that also while it marks); the report's `stopped` tells. At
        least one batch is made, so that a gc that always stops ends some day. With `explain` the report says why what
        stays stays and what goes goes; that reads the events of all runs.

        Safe beside writers and killed at any point. `force` goes on where nearly everything would go or little disk is
        left; nothing that is live is lost by it. Raises: GcRefused (nothing removed), Busy, StoreFull, InvalidArgument.
        """
        self._check(write=not dry_run)
        used = (Policy() if policy is None else instance(policy, Policy, "policy")).changed(
            keep_completed=keep_completed, keep_failed=keep_failed, keep_cancelled=keep_cancelled, keep_last=keep_last,
            final_only=final_only, keep_outputs=keep_outputs, quota=quota, grace=grace, quarantine=quarantine,
            max_time=either(max_time, budget, "max_time", "budget"), max_bytes=max_bytes,
        )  # fmt: skip
        return collecting.collect(
            self._backend, self._stage, self.home, roots, self.uuid, used, now_s=self._now(),
            dry_run=dry_run, explain=explain, stop=stop, force=force, settle=self.staging.settle,
        )  # fmt: skip

    def gc_due(self, roots: RootSource, *, policy: Policy | None = None) -> Due:
        """Whether a gc is worth it by `policy.auto` (by default that of the home), and why: a look at counters and at
        the record of the last one. Raises: GcRefused (not this home's source), InvalidPolicy."""
        self._check()
        used = self.policy() if policy is None else instance(policy, Policy, "policy")
        return collecting.due(self._backend, self.home, roots, self.uuid, used, self._now())

    def policy(self) -> Policy:
        """What HOME/gc.toml says a gc keeps; the default without that file. Raises: InvalidPolicy with the key."""
        self._check()
        return collecting.load_policy(self.home)

    def undelete(self, ids: Iterable[ArtifactId] = (), *, gc: int | None = None) -> UndeleteReport:
        """Bring back what is in quarantine: artifacts, or all that one gc removed, and what they link to. Durable on
        return. Nothing holds them after that but the grace: pin what has to stay.

        Raises: NotFound, Collected (its bytes are gone), MissingArtifact (so is something that it links to; nothing
        was restored), Corrupt, InvalidArgument, StoreFull.
        """
        self._check(write=True)
        digests = digests_of(ids)
        if gc is not None:
            digests += undeleting.of_gc(self._backend, gc)
        with self.lease(undeleting.LEASE_S) as lease:
            return undeleting.undelete(self._backend, self._reader, self._writer, digests, lease, self._clock)

    def buried(self) -> Iterator[Buried]:
        """What is in quarantine, oldest first."""
        self._check()
        return undeleting.buried(self._backend)

    def gc_history(self, *, limit: int | None = None) -> list[GcRecord]:
        """Past gcs, the newest first, at most `limit`."""
        self._check()
        limit = None if limit is None else count(limit, "limit")
        return [history.unpack(number, data) for number, data in self._backend.gc_reports(limit)]

    def train(self, kind: str) -> ArtifactId | None:
        """Train a dictionary on the small artifacts of a kind that are here; later puts of that kind use it.

        It is an artifact, pinned as `dictionary/KIND`; unpin it to stop using it. None where there are too few, or
        it would not help. Raises: StoreFull.
        """
        self._check(write=True)
        check_kind(kind)
        trained = dictionaries.train(dictionaries.samples(self._backend, self._reader, kind))
        if trained is None:
            return None
        name = self.put(trained, kind=dictionaries.KIND)
        self.pin(dictionaries.PIN + kind, name)
        self._writer.look_again()
        return name

    def compact(
        self, *, reencode: bool = True, max_time: Duration | None = None, max_bytes: int | None = None
    ) -> CompactReport:
        """Give the space that gc freed back to the file system, while readers and writers of all processes go on.

        Before the copy artifacts get smaller encodings (not with `reencode=False`): deltas are moved away from the
        bytes of collected artifacts where that frees more than it costs, kinds with 500 small artifacts or more get a
        dictionary trained, as `train` does, and those use it. That stops at `max_time`, or once `max_bytes` raw bytes
        were encoded, and the copy follows; the next one goes on. What is encoded anew counts as touched.

        Needs room for a second copy of what is used. Killed at any point, nothing is lost and the next one cleans
        up. Raises: Busy (a gc or another compaction runs), StoreFull.
        """
        self._check(write=True)
        time_s = None if max_time is None else exact_seconds(max_time, "max_time")
        bytes_max = None if max_bytes is None else check_count(max_bytes, "max_bytes")
        with collector_lock(self.home):
            self.staging.settle()
            before = self._backend.info()["file_bytes"]
            done = reencoding.Reencoded()
            if reencode:
                done = reencoding.reencode(
                    self._backend, train=self.train, check_room=self._writer.check_room, now=self._now,
                    time_s=time_s, bytes_max=bytes_max,
                )  # fmt: skip
            _, after = self._backend.compact()
        return CompactReport(before_bytes=before, after_bytes=after, **asdict(done))

    def backup(self, dest: str | os.PathLike[str]) -> backups.BackupReport:
        """Copy the home, which has no journal (else: `journal.Journal.backup`), to `dest`, where nothing is yet,
        while others read and write. Leases and unfinished uploads do not go along. Durable on return.

        Raises: InvalidArgument (nothing touched), Busy (gc, compact or another backup), StoreFull (`dest` is gone).
        """
        self._check(write=True)
        return backups.backup(self.home, dest, had_journal=self._backend.has_journal())  # without, nothing is staged

    def why(self, id: ArtifactId, roots: RootSource | None, *, policy: Policy | None = None) -> Why:
        """Why an artifact is there, or gone: the shortest path from a root, or since when nothing holds it and when a
        gc by `policy` (by default that of the home) takes it, or which gc it went by. Raises: InvalidPolicy."""
        self._check()
        used = self.policy() if policy is None else instance(policy, Policy, "policy")
        return reasons.why(self._backend, self._stage, artifact_id(id).digest, roots, used, self._now())

    def verify(
        self, *, subset: tuple[int, int] | None = None, after: str | None = None, max_seconds: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> VerifyReport:  # fmt: skip
        """Read and check everything: bytes, links, deltas, rows, counters. Damage is reported as findings, not raised.

        Beside writers and gc, in memory that does not grow with the store. `subset=(k, n)` checks the k-th of n parts,
        the same at each call. `max_seconds` stops after the artifact at hand; the report's `next` given as `after`
        goes on there, in the same part. Raises: InvalidArgument.
        """
        self._check()
        # Remembers nothing but what this very check reads.
        reader = Reader(self._backend, RecentBytes(), self._stage)
        return inspection.verify(
            self._backend, self._stage, reader, subset=subset, after=after, max_seconds=max_seconds, progress=progress
        )

    def mend(self, relink: Iterable[ArtifactId] = ()) -> MendReport:
        """Put right rows that belong to nothing or contradict others, and the counters: what needs no good copy from
        elsewhere. It removes no artifact; one whose row in the index is lost gets it back if its bytes are whole; what
        `relink` names (wrong_links of `verify`) links as they say. Durable on return, some rows at a time, beside
        writers; gc and compact are kept out. Raises: Busy."""
        self._check(write=True)
        named, reader = set(digests_of(relink)), Reader(self._backend, RecentBytes(), self._stage)
        with collector_lock(self.home):
            report = inspection.mend(self._backend, reader, self._now(), named)
        self._backend.sync()
        return report

    def repair(self, other: Store, ids: Iterable[ArtifactId]) -> RepairReport:
        """Get artifacts that are damaged or missing here from another store, verified, with what they link to where
        that is missing too. Durable on return; gc and compact are kept out. Raises: Busy, StoreFull."""
        self._check(write=True)
        reader = Reader(self._backend, RecentBytes(), self._stage)
        with collector_lock(self.home):
            writer = self._writer.over(cast(BlobBackend, repairs.InOrder(self._backend)))
            report = repairs.repair(
                writer, self, other, map(artifact_id, several(ids, "ids")),
                reorder=lambda: self._backend.reorder(self._now()),
                check=lambda name: inspection.check(self._backend, reader, name),
            )  # fmt: skip
        self._backend.sync()
        return report

    def stats(self) -> StoreStats:
        """Sizes and counts."""
        self._check()
        return inspection.stats(self._backend, self._stage)

    # -- life

    def close(self) -> None:
        """Give the handle back. Idempotent."""
        if not self._closed:
            self._closed = True
            if self._pid == forks.pid:
                self._on_close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Store is not picklable: pass its home, and open it there")

    def _is_visible(self, id: ArtifactId) -> bool:
        return self._backend.rows([id.digest])[0] is not None

    def _now(self) -> int:
        return max(int(self._clock()), 0)

    def _check(self, *, write: bool = False) -> None:
        if self._pid != forks.pid:
            raise ForkedHandle(self._name, self._pid)
        if self._closed:
            raise ClosedHandle(self._name)
        if write and self.read_only:
            raise ReadOnly(self._name)
