"""The collector: cut, mark, sweep (docs/GC.md). Exact beside writers in any number of processes; no clock decides
what is live."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from casstore import history
from casstore.backend import (
    BlobBackend,
    Candidate,
    Decision,
    Edges,
    EpochLost,
    GcOpened,
    Judge,
    Kept,
    Row,
    SweepResult,
    SweepView,
    Verdict,
)
from casstore.errors import Busy, GcRefused, StoreError
from casstore.ids import ArtifactId
from casstore.marks import Marks
from casstore.processes import is_gone
from casstore.reports import GcReport
from casstore.roots import Root, RootSource
from casstore.steps import reach

BATCH_ROWS: Final = 256
PAGE_ROWS: Final = 5000
PURGE_PIECES: Final = 2000
UPLOAD_ABANDONED_S: Final = 7 * 86400


@final
@dataclass(slots=True)
class _Done:
    """What a collection did so far."""

    removed: list[tuple[ArtifactId, int]] = field(default_factory=list)
    raw: int = 0
    stored: int = 0
    kept: int = 0
    quarantined: int = 0
    batches: int = 0

    def add(self, result: SweepResult) -> None:
        self.removed += [(ArtifactId(digest), size) for digest, size in result.removed]
        self.raw += result.raw_bytes
        self.stored += result.stored_bytes
        self.kept += result.kept_bytes
        self.quarantined += result.quarantined_bytes
        self.batches += 1


@final
class Collector:
    """One collection of one store. The numbers in comments are the steps of docs/GC.md, section 2, "Gc"."""

    def __init__(
        self, backend: BlobBackend, roots: RootSource, *, now_s: int, grace_s: int, keep_completed_s: int | None,
        quarantine_s: int = 0, timer: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._backend, self._roots = backend, roots
        self._now_s, self._grace_s, self._keep_completed_s = now_s, grace_s, keep_completed_s
        self._timer, self._began = timer, timer()
        self._until_s = now_s + quarantine_s if quarantine_s > 0 else 0
        self._marks = Marks()
        self._buried = Marks()  # what artifacts in quarantine link to: it must not be lost before they are
        self._buried_until_s = 0
        self._done = _Done()
        self._position = 0

    def preview(self) -> GcReport:
        """What a collection would remove now. Writes nothing."""
        opened = self._backend.gc_peek(self._now_s, self._grace_s)
        with refusing("reading roots"):
            candidates = self._mark(opened)
        return self._preview(opened, candidates)

    def run(self, *, plausible: Callable[[int, int], None]) -> GcReport:
        """Collect. `plausible(condemned, total)` may refuse before anything is removed."""
        self._backend.reader_check()
        self._drop_dead_uploads()
        opened = self._backend.gc_open(self._now_s, self._grace_s, history.pack_opened(self._now_s))  # 1
        reach("gc.opened")
        try:
            with refusing("reading roots"):
                candidates = self._mark(opened)  # 2, 3
            reach("gc.marked")
            plausible(sum(not row.kept for row in candidates), self._backend.counters().artifacts)
            report = self._sweep(opened, candidates)  # 4
        except EpochLost as error:
            raise Busy("another gc opened; this one stopped") from error
        except BaseException:
            self._close(self._report(opened, 0, dry_run=False), "failed")
            raise
        self._close(report, "complete")  # 5
        reach("gc.closed")
        return report

    def _close(self, report: GcReport, outcome: str) -> None:
        try:
            self._backend.gc_close(report.gc, history.pack(report, self._now_s, outcome))
        except EpochLost:
            return  # a later gc took over: it is the one to close

    def _drop_dead_uploads(self) -> None:
        for upload, since_s, owner in self._backend.uploads():
            if is_gone(owner) or self._now_s - since_s > UPLOAD_ABANDONED_S:
                self._backend.upload_abort(upload)

    # -- mark

    def _mark(self, opened: GcOpened) -> list[Candidate]:
        self._position = self._roots.position()  # before the runs are read (H19)
        reach("gc.position")
        after_ms = None if not self._keep_completed_s else (self._now_s - self._keep_completed_s) * 1000
        batch: list[bytes] = []
        for root in self._roots.live_roots(completed_after_ms=after_ms):
            if not isinstance(root, Root) or not isinstance(root.id, ArtifactId):
                raise GcRefused("bad_root", f"the root source yields {root!r:.200} instead of a Root")
            if root.live:
                batch.append(root.id.digest)
            else:
                # A run that retention brings back into view may name what an earlier gc took: no damage.
                self._marks.reach([root.id.digest], self._backend.edges, _nothing)
            if len(batch) >= PAGE_ROWS:
                self._marks.reach(batch, self._backend.edges, self._refuse_missing("an event of a live run"))
                batch = []
        self._marks.reach(batch, self._backend.edges, self._refuse_missing("an event of a live run"))
        held = [digest for _, digest in (*opened.pins, *opened.leased)]
        self._marks.reach(held, self._backend.edges, self._refuse_missing("a pin or lease"))
        reach("gc.rooted")
        return self._scan(opened.cut)

    def _scan(self, cut: int) -> list[Candidate]:
        """Young rows are roots (H3); what neither they nor the others reach is a candidate, youngest first (H5)."""
        old: list[Candidate] = []
        young: list[bytes] = []
        for row in _pages(self._backend):
            if row.touched > cut:
                young.append(row.digest)
            else:
                old.append(Candidate(row.data_id, row.digest, False))
        self._marks.reach(young, self._backend.edges, self._refuse_missing("a young artifact"))
        candidates = [row for row in old if row.data_id not in self._marks.visible]
        candidates += self._scan_kept()
        candidates.sort(key=lambda row: row.data_id, reverse=True)
        return candidates

    def _scan_kept(self) -> list[Candidate]:
        """Bytes that neither a delta nor the quarantine needs. What is in quarantine needs the bytes of its bases,
        and that what it links to does not go for good before it does."""
        kept: list[Candidate] = []
        for page in _kept_pages(self._backend):
            links: list[bytes] = []
            for row in page:
                if row.until_s > self._now_s:
                    self._marks.keep_bytes(row.data_id, row.bases)
                    self._buried_until_s = max(self._buried_until_s, row.until_s)
                    links += row.links
                else:
                    kept.append(Candidate(row.data_id, row.digest, True))
            self._buried.reach(links, self._backend.edges, _nothing)
        return [row for row in kept if row.data_id not in self._marks.bytes]

    def _refuse_missing(self, named_by: str) -> Callable[[bytes], None]:
        def refuse(digest: bytes) -> None:
            raise GcRefused("missing_root", f"{named_by} names or needs {digest.hex()}, which is not in the store")

        return refuse

    # -- sweep

    def _sweep(self, opened: GcOpened, candidates: list[Candidate]) -> GcReport:
        self._purge()  # what a killed gc or a dropped upload left
        for start in range(0, len(candidates), BATCH_ROWS):
            batch = candidates[start : start + BATCH_ROWS]
            self._catch_up(opened.epoch)
            reach("gc.before_batch")
            with refusing("reading late events"), self._roots.exclusive():  # J before S, everywhere
                reach("gc.locked")
                self._position, late = self._roots.roots_after(self._position)
                result = self._backend.gc_sweep(opened.epoch, batch, self._judge(batch, late), self._now_s)
            reach("gc.after_batch")
            self._done.add(result)
            self._purge()
        rescued = sum(not row.kept for row in candidates) - len(self._done.removed)
        return self._report(opened, rescued, dry_run=False)

    def _purge(self) -> None:
        """Pieces go in small transactions of their own, without the journal's lock."""
        while self._backend.purge(PURGE_PIECES):
            reach("gc.purged")

    def _catch_up(self, epoch: int) -> None:
        """Without locks: most of what happened since, so that little is left to mark under them."""
        self._position, late = self._roots.roots_after(self._position)
        digests = [root.id.digest for root in late] + self._backend.gc_recent(epoch)
        self._marks.reach(digests, self._backend.edges, _nothing)

    def _judge(self, batch: Sequence[Candidate], late: Sequence[Root]) -> Judge:
        def judge(view: SweepView) -> list[Decision]:
            digests = [root.id.digest for root in late] + list(view.recent)
            self._marks.reach(digests, lambda wanted: [view.edges(digest) for digest in wanted], _nothing)
            return [self._decide(candidate, view.edges) for candidate in batch]

        return judge

    def _decide(self, candidate: Candidate, edges_of: Callable[[bytes], Edges | None]) -> Decision:
        """The verdict on a candidate. One that goes into quarantine needs its bases from now on: they are older, so
        their turn comes later."""
        verdict = self._marks.verdict(candidate)
        if candidate.kept or verdict is Verdict.SPARE:
            return Decision(verdict)
        until_s = self._until_s
        if candidate.data_id in self._buried.visible:
            until_s = max(until_s, self._buried_until_s)
        if until_s:
            edges = edges_of(candidate.digest)
            self._marks.keep_bytes(candidate.data_id, edges.bases if edges is not None else ())
        return Decision(verdict, until_s)

    def _preview(self, opened: GcOpened, candidates: list[Candidate]) -> GcReport:
        visible = [row for row in candidates if not row.kept]
        done = self._done
        for row in candidates:
            _, size = self._backend.encoding(row.data_id)
            decision = self._decide(row, lambda digest: self._backend.edges([digest])[0])
            if decision.verdict is Verdict.KEEP_BYTES:
                done.kept += size
            elif decision.until_s:
                done.quarantined += size
            elif decision.verdict is Verdict.DELETE:
                done.stored += size
        for row, found in zip(visible, self._backend.rows([row.digest for row in visible]), strict=True):
            if found is not None:
                done.raw += found.raw_len
                done.removed.append((ArtifactId(row.digest), found.raw_len))
        return self._report(opened, 0, dry_run=True)

    def _report(self, opened: GcOpened, rescued: int, *, dry_run: bool) -> GcReport:
        done = self._done
        live = self._backend.counters().artifacts - (len(done.removed) if dry_run else 0)
        return GcReport(
            gc=opened.epoch, dry_run=dry_run, removed=tuple(done.removed), raw_bytes=done.raw,
            stored_bytes=done.stored, kept_bytes=done.kept, live=live, rescued=rescued, batches=done.batches,
            duration_ms=round((self._timer() - self._began) * 1000), quarantined_bytes=done.quarantined,
        )  # fmt: skip


def _nothing(_: bytes) -> None:
    """A digest that is not visible here is no damage: its event was refused, or its row went with an earlier gc."""


def _pages(backend: BlobBackend) -> Iterator[Row]:
    after = b""
    while page := backend.page(after, PAGE_ROWS):
        yield from page
        after = page[-1].digest


def _kept_pages(backend: BlobBackend) -> Iterator[list[Kept]]:
    after = 0
    while page := backend.kept_page(after, PAGE_ROWS):
        yield page
        after = page[-1].data_id


def refuse_implausible(condemned: int, total: int) -> None:
    """A gc that would take nearly all of a store of some size more likely looks at the wrong journal."""
    if total >= 1000 and condemned > total * 0.99:
        raise GcRefused("implausible_share", f"{condemned} of {total} artifacts would go; --force if that is meant")


@contextmanager
def collector_lock(home: Path | None) -> Iterator[None]:
    """Politeness between collectors (epochs keep them apart): Busy while another one runs.

    The kernel drops the lock with its process, so a killed gc leaves nothing behind.
    """
    if home is None:
        yield
        return
    descriptor = os.open(home / "gc.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy("another gc is running on this store") from error
        yield
    finally:
        os.close(descriptor)


def check_source(roots: object, uuid: str) -> RootSource:
    """Raises: GcRefused unless `roots` is a source that belongs to this store."""
    if not isinstance(roots, RootSource):
        raise GcRefused("no_root_source", f"{type(roots).__name__} is no RootSource; give the journal of this home")
    if roots.uuid != uuid:
        raise GcRefused("foreign_journal", f"the journal belongs to home {roots.uuid}, the store to {uuid}")
    return roots


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever goes wrong while roots are read stops gc before it removes anything."""
    try:
        yield
    except (StoreError, EpochLost, MemoryError):
        raise
    except Exception as error:
        raise GcRefused("unreadable_roots", f"{what}: {type(error).__name__}: {error}") from error
