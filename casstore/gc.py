"""The collector: cut, mark, sweep (docs/GC.md). Exact beside writers in any number of processes; no clock decides
what is live."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import repeat
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
    SweepResult,
    SweepView,
    Verdict,
)
from casstore.errors import Busy, GcRefused, StoreFull
from casstore.explaining import DICTIONARIES, LEASES, LIVE, PINS, RETAINED, STAGED, YOUNG, Explainer, is_dictionary
from casstore.ids import ArtifactId
from casstore.marks import IdSet, Marks
from casstore.pace import Pace, Stopwatch
from casstore.processes import is_gone
from casstore.refusals import Asked, refusing
from casstore.remembered import Doubt, Glance, Remembered, remember
from casstore.removals import Removals
from casstore.reports import GcReport
from casstore.roots import RetainingSource, Retention, Root, RootSource, WitnessSource
from casstore.stage import Stage, StagedName
from casstore.steps import reach

BATCH_ROWS: Final = 6000  # at most, whatever the pace says: more would need more memory for the pages changed
PAGE_ROWS: Final = 5000
UPLOAD_ABANDONED_S: Final = 7 * 86400


_SPARE: Final = Decision(Verdict.SPARE)
_DELETE: Final = Decision(Verdict.DELETE)
_KEEP_BYTES: Final = Decision(Verdict.KEEP_BYTES)
_UNBURY: Final = Decision(Verdict.UNBURY)


@final
@dataclass(slots=True)
class _Done:
    """What a collection did so far. `condemned` counts the visible artifacts that it set out to remove."""

    removed: Removals = field(default_factory=Removals)
    condemned: int = 0
    raw: int = 0
    stored: int = 0
    kept: int = 0
    quarantined: int = 0
    rescued: int = 0
    batches: int = 0

    def add(self, result: SweepResult) -> None:
        self.removed.add(result.removed)
        self.raw += result.raw_bytes
        self.stored += result.stored_bytes
        self.kept += result.kept_bytes
        self.quarantined += result.quarantined_bytes
        self.batches += 1


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """Where a gc stops: after so many seconds, after so many stored bytes removed, or when `stop` says so."""

    time_s: float | None = None
    bytes: int | None = None
    stop: Callable[[], bool] | None = None


@final
class Collector:
    """One collection of one store. The numbers in comments are the steps of docs/GC.md, section 2, "Gc"."""

    def __init__(
        self, backend: BlobBackend, roots: RootSource, *, now_s: int, grace_s: int, retention: Retention | None = None,
        quarantine_s: int = 0, stage: Stage | None = None, limits: Limits | None = None, pace: Pace | None = None,
        explain: bool = False,
    ) -> None:  # fmt: skip
        self._backend, self._roots, self._stage = backend, roots, stage or Stage()
        self._source = type(roots).__name__
        self._now_s, self._grace_s = now_s, grace_s
        self._retention = retention or Retention()
        self._explainer = Explainer(backend, self._retention) if explain else None
        self._until_s = now_s + quarantine_s if quarantine_s > 0 else 0
        self._limits, self._pace = limits or Limits(), pace or Pace()
        self._began = self._pace.timer()
        self._marks = Marks()
        self._kept = IdSet()  # candidates that were collected before, and whose bytes nothing needs any more
        self._buried = Marks()  # what artifacts in quarantine link to: it must not be lost before they are
        self._buried_until_s = 0
        self._over = IdSet()  # what is in quarantine, and whose time there is over
        self._lost: dict[int, bytes] | None = None
        self._done = _Done()
        self._firm = IdSet()  # what needs no lease and no youth to stay
        self._bases: set[bytes] | None = set()  # of staged deltas, reached once `_firm` is known
        self._first_until_s = 0  # when the first of what is in quarantine may go; 0: nothing is there
        self._position = 0
        self._epoch: int | None = None
        self._seen = (0, 0)  # where nothing is written: what other gcs had done when it began
        self._staged_seen: frozenset[StagedName] = frozenset()  # by the last look; not all of it is staged still
        self._commit = 0  # the store's newest commit after this gc's last one

    def preview(self) -> GcReport:
        """What a collection would remove now. Writes nothing."""
        opened = self._backend.gc_peek(self._now_s, self._grace_s)
        self._seen = self._gcs()
        try:
            if self._glance(opened) is not None:
                return self._report(opened, dry_run=True, incremental=True)
            with refusing(f"reading roots of {self._source}"):
                condemned = self._mark(opened)
            for start in range(0, len(condemned), PAGE_ROWS):
                self._check_asked()
                self._foresee(self._candidates(condemned[start : start + PAGE_ROWS]))
        except Asked:
            return self._report(opened, dry_run=True, stopped="asked")
        return self._report(opened, dry_run=True)

    def run(self, *, plausible: Callable[[int, int], None], witness: bytes | None = None) -> GcReport:
        """Collect. `plausible(condemned, total)` may refuse before anything is removed. `witness` is what the source
        said before (`remembered.call_witness`); without it the next gc marks everything."""
        self._backend.reader_check()
        self._drop_dead_uploads()
        opened = self._backend.gc_open(self._now_s, self._grace_s, history.pack_opened(self._now_s))  # 1
        self._epoch = opened.epoch
        reach("gc.opened")
        stopped, glance = "", None
        try:
            try:
                glance = self._glance(opened)
                reach("gc.glanced")
                if glance is not None:
                    self._purge()  # of dropped uploads
                else:
                    with refusing(f"reading roots of {self._source}"):
                        condemned = self._mark(opened)  # 2, 3
                    reach("gc.marked")
                    plausible(self._done.condemned, self._backend.counters().artifacts)
                    stopped = self._sweep(opened, condemned)  # 4
            except Asked:
                stopped = "asked"
        except EpochLost as error:
            raise Busy("another gc opened; this one stopped") from error
        except BaseException:
            self._close(self._report(opened), "failed")
            raise
        report = self._report(opened, stopped=stopped, incremental=glance is not None)
        last = None if stopped or witness is None else self._remember(opened, glance, witness)
        self._close(report, "stopped" if stopped else "complete", last)  # 5
        reach("gc.closed")
        return report

    def _close(self, report: GcReport, outcome: str, last: tuple[bytes, int] | None = None) -> None:
        try:
            told = history.pack(report, self._now_s, outcome, self._left())
            self._backend.gc_close(report.gc, told, last)
        except EpochLost:
            return  # a later gc took over: it is the one to close

    def _left(self) -> int:
        counters = self._backend.counters()
        return counters.stored_bytes + counters.kept_bytes

    def _drop_dead_uploads(self) -> None:
        for upload, since_s, owner in self._backend.uploads():
            if is_gone(owner) or self._now_s - since_s > UPLOAD_ABANDONED_S:
                self._backend.upload_abort(upload)

    # -- is there anything to do

    def _glance(self, opened: GcOpened) -> Glance | None:
        """What was looked at, where that shows that everything is needed; None: only a full mark can tell."""
        last = Remembered.unpack(opened.last) if opened.last else None
        if self._explainer is not None or not self._retention.is_plain:
            return None  # what is kept by what takes a full mark to tell; other policies are not witnessed
        if last is None or not isinstance(self._roots, WitnessSource) or 0 < last.until_s <= self._now_s:
            return None
        glance = Glance(self._backend, self._stage, opened, last)
        if not 0 <= glance.size <= self._backend.counters().artifacts:
            return None
        with refusing(f"reading roots of {self._source}"):
            late = self._roots.roots_since(last.witness, self._retention)
            if late is None:
                return None
            for root in late:
                self._check_root(root)
            named = [root.id.digest for root in late]
        try:
            if not glance.nothing_goes(named, PAGE_ROWS, self._check_asked):
                return None
        except Doubt:
            return None
        self._first_until_s = last.until_s
        return glance

    def _remember(self, opened: GcOpened, glance: Glance | None, witness: bytes) -> tuple[bytes, int] | None:
        """For the next gc. What late events and `recent1` brought is as loose as what is young."""
        loose = glance.loose() if glance is not None else self._marks.visible.without(self._firm)
        last = remember(opened, loose, self._first_until_s, witness)
        return None if last is None else (last.pack(), opened.loosened)

    # -- mark

    def _mark(self, opened: GcOpened) -> Sequence[int]:
        self._commit = self._backend.counters().commit
        self._position = self._roots.position()  # before the runs are read (H19)
        reach("gc.position")
        batch: list[bytes] = []
        ended = False
        for root in self._all_roots():
            self._check_root(root)
            if root.live:
                batch.append(root.id.digest)
            else:
                if not ended:
                    self._mark_live(batch)
                    batch, ended = [], True
                if self._explainer is not None:
                    self._explainer.saw(root)
                # A run that retention brings back into view may name what an earlier gc took: no damage.
                self._marks.reach([root.id.digest], self._backend.edges, _nothing)
            if len(batch) >= PAGE_ROWS:
                self._check_asked()
                self._reach(batch, f"a live run of {self._source}")
                batch = []
        if ended:
            self._reach(batch, f"a live run of {self._source}")
        else:
            self._mark_live(batch)
        self._explain(RETAINED)
        bases = set[bytes]()
        for what, held in (
            (PINS, [digest for name, digest in opened.pins if not is_dictionary(name)]),
            (DICTIONARIES, [digest for name, digest in opened.pins if is_dictionary(name)]),
            (LEASES, [digest for _, digest in opened.leased]),
        ):
            self._reach(held, "a pin or lease")
            self._explain(what)
            if what is DICTIONARIES:
                self._firm = self._marks.visible.copy()
                bases, self._bases = self._bases or bases, None
        self._reach([*bases, *self._late_staged()], "a staged artifact")
        self._explain(STAGED)
        reach("gc.rooted")
        condemned = self._scan(opened.cut)
        if self._explainer is not None:
            released = len(condemned) - self._done.condemned
            self._explainer.marked(self._roots, self._marks, released, self._check_asked)
        return condemned

    def _mark_live(self, batch: Sequence[bytes]) -> None:
        """The last of what live runs name; what is marked up to here is theirs."""
        self._reach(batch, f"a live run of {self._source}")
        self._explain(LIVE)

    def _explain(self, what: str) -> None:
        if self._explainer is not None:
            self._explainer.reached(what, self._marks)

    def _check_root(self, root: object) -> None:
        """Roots are ArtifactIds: text that looks like one may be a key of another kind, and would protect nothing."""
        if not isinstance(root, Root) or not isinstance(root.id, ArtifactId):
            raise GcRefused("bad_root", f"{self._source} yields {root!r:.400}, which names no ArtifactId")

    def _late(self) -> list[Root]:
        """What events name that came since the last look."""
        with refusing(f"reading late events of {self._source}"):
            self._position, late = self._roots.roots_after(self._position)
            for root in late:
                self._check_root(root)
        return late

    def _all_roots(self) -> Iterator[Root]:
        if self._retention.by_age_only:
            return self._roots.live_roots(completed_after_ms=self._retention.completed_after_ms)
        if not isinstance(self._roots, RetainingSource):
            detail = f"{type(self._roots).__name__} knows no retention but by age"
            raise GcRefused("unknown_policy", detail)
        return self._roots.retained_roots(self._retention)

    def _scan(self, cut: int) -> Sequence[int]:
        """Young rows are roots (H3); what neither they nor the others reach is condemned, youngest first (H5)."""
        old, after = IdSet(), b""
        while (page := self._backend.ages(after, PAGE_ROWS, cut)) is not None:
            self._check_asked()
            old.update(page.old)
            self._reach(page.young, "a young artifact")
            after = page.last
        self._explain(YOUNG)
        self._scan_kept()
        condemned = old.without(self._marks.visible)
        self._done.condemned = len(condemned)
        kept, held = self._kept.without(self._marks.bytes), self._over.within(self._marks.bytes)
        return array("Q", merge(condemned, kept, held, reverse=True)) if kept or held else condemned

    def _scan_kept(self) -> None:
        """Bytes that neither a delta nor the quarantine needs. What is in quarantine needs the bytes of its bases,
        and that what it links to does not go for good before it does."""
        for page in _kept_pages(self._backend):
            links: list[bytes] = []
            for row in page:
                if row.until_s > self._now_s:
                    self._marks.keep_bytes(row.data_id, row.bases)
                    self._buried_until_s = max(self._buried_until_s, row.until_s)
                    self._goes_at(row.until_s)
                    links += row.links
                else:
                    self._kept.add(row.data_id)
                    if row.until_s:
                        self._over.add(row.data_id)
            self._buried.reach(links, self._backend.edges, _nothing)

    def _reach(self, digests: Sequence[bytes], named_by: str) -> None:
        """Mark the closure of roots. Raises: GcRefused where something is neither in the store nor staged."""
        for digest in self._marks.reach_staged(digests, self._backend.edges, self._stage.find, self._bases):
            if self._epoch is not None:  # a later gc may have taken it, rightly
                self._backend.gc_recent(self._epoch)
            elif self._gcs() != self._seen:
                raise Busy("another gc removes something just now; look again when it has ended")
            detail = f"{named_by} names or needs {digest.hex()}, which is not in the store"
            raise GcRefused("missing_root", detail)

    def _gcs(self) -> tuple[int, int]:
        """What every gc, and nothing else, changes."""
        counters = self._backend.counters()
        return counters.epoch, counters.swept

    def _late_staged(self) -> list[bytes]:
        """What was staged since the last look, and what that needs: roots, whatever became of their run (H26)."""
        rows, self._staged_seen = self._stage.late(self._staged_seen)
        return [digest for row in rows for digest in (row.digest, *row.needs)]

    # -- sweep

    def _sweep(self, opened: GcOpened, condemned: Sequence[int]) -> str:
        """Batch by batch, youngest first; what stopped it."""
        self._purge()  # what a killed gc or a dropped upload left
        why, at, unpurged = "", 0, 0
        while at < len(condemned):
            why = self._why_stop(first=at == 0)
            if why:
                break
            self._look_around(opened.epoch)
            reach("gc.before_batch")
            batch = self._candidates(condemned[at : at + min(self._pace.rows, BATCH_ROWS)])
            if not self._sweep_batch(opened.epoch, batch):
                continue
            at += len(batch)
            reach("gc.after_batch")
            unpurged += len(batch)
            if unpurged >= self._pace.pieces:
                self._purge()
                unpurged = 0
        self._purge()
        return why

    def _look_around(self, epoch: int) -> None:
        """Without locks: mark most of what happened since the last batch, and see whether others are at work."""
        position, commit = self._position, self._backend.counters().commit
        self._catch_up(epoch)
        self._pace.busy = (position, self._commit) != (self._position, commit)
        self._commit = commit

    def _sweep_batch(self, epoch: int, batch: Sequence[Candidate]) -> bool:
        """Whether there was room for it: deleting changes pages, and each changed page takes a new one first. Where
        there was none, nothing has changed, and the same rows come again in smaller batches."""
        watch, looked = Stopwatch(self._pace.timer), (self._position, self._staged_seen)
        with refusing(f"locking {self._source}"), self._roots.exclusive():  # J before S, everywhere
            since = self._pace.timer()
            reach("gc.locked")
            late = [root.id.digest for root in self._late()] + self._late_staged()
            try:
                result = self._backend.gc_sweep(epoch, batch, self._judge(batch, late), self._now_s, watch)
            except StoreFull:
                if len(batch) == 1:
                    raise
                self._position, self._staged_seen = looked  # what came late may not be marked yet
                self._pace.no_room(rows=len(batch))
                return False
        self._commit += 1
        self._done.add(result)
        if self._explainer is not None:
            self._explainer.removed(batch, result.removed)
        self._done.rescued += sum(not row.kept for row in batch) - len(result.removed)
        self._pace.swept(len(batch), watch, self._pace.timer() - since)
        return True

    def _purge(self) -> None:
        """Pieces go in small transactions of their own, without the journal's lock."""
        while True:
            watch, since, most = Stopwatch(self._pace.timer), self._pace.timer(), self._pace.pieces
            try:
                pieces = self._backend.purge(most, watch)
            except StoreFull:
                if most == 1:
                    raise
                self._pace.no_room(pieces=most)
                continue
            if not pieces:
                return
            self._commit += 1
            self._pace.purged(pieces, watch, self._pace.timer() - since)
            reach("gc.purged")

    def _why_stop(self, *, first: bool) -> str:
        if self._limits.stop is not None and self._limits.stop():
            return "asked"
        if first:
            return ""  # one batch at least: a gc that always stops must end some day
        taken = self._done.stored + self._done.kept + self._done.quarantined
        if self._limits.bytes is not None and taken >= self._limits.bytes:
            return "bytes"
        if self._limits.time_s is not None and self._pace.timer() - self._began >= self._limits.time_s:
            return "time"
        return ""

    def _check_asked(self) -> None:
        if self._limits.stop is not None and self._limits.stop():
            raise Asked

    def _catch_up(self, epoch: int) -> None:
        """What happened up to now is marked, so that little is left to mark under the locks."""
        late = [root.id.digest for root in self._late()]
        digests = late + self._late_staged() + self._backend.gc_recent(epoch)
        self._marks.reach(digests, self._backend.edges, _nothing)

    def _candidates(self, data_ids: Sequence[int]) -> list[Candidate]:
        """Whose they are stands with their bytes. A look decides nothing here: the sweep compares again."""
        digests = [
            digest if digest is not None else self._search_lost(data_id)
            for data_id, digest in zip(data_ids, self._backend.digests(data_ids), strict=True)
        ]
        kept = map(self._kept.__contains__, data_ids) if self._kept else repeat(False)
        return list(map(Candidate, data_ids, digests, kept))

    def _search_lost(self, data_id: int) -> bytes:
        """The digest of a row whose bytes' record is lost: a damaged artifact can be collected too."""
        if self._lost is None:
            self._lost = {row.data_id: row.digest for page in _kept_pages(self._backend) for row in page}
            after = b""
            while page := self._backend.page(after, PAGE_ROWS):
                there = self._backend.digests([row.data_id for row in page])
                pairs = zip(page, there, strict=True)
                self._lost.update((row.data_id, row.digest) for row, found in pairs if found is None)
                after = page[-1].digest
        return self._lost.get(data_id, b"")

    def _judge(self, batch: Sequence[Candidate], late: Sequence[bytes]) -> Judge:
        def judge(view: SweepView) -> list[Decision]:
            self._marks.reach((*late, *view.recent), lambda wanted: [view.edges(digest) for digest in wanted], _nothing)
            return [self._decide(candidate, view.edges) for candidate in batch]

        return judge

    def _decide(self, candidate: Candidate, edges_of: Callable[[bytes], Edges | None]) -> Decision:
        """The verdict on a candidate. One that goes into quarantine needs its bases from now on: they are older, so
        their turn comes later."""
        verdict = self._marks.verdict(candidate)
        if verdict is _SPARE.verdict:
            return _UNBURY if candidate.kept and candidate.data_id in self._over else _SPARE
        if candidate.kept or not (self._until_s or self._buried_until_s):
            return _DELETE if verdict is _DELETE.verdict else _KEEP_BYTES
        until_s = self._until_s
        if candidate.data_id in self._buried.visible:
            until_s = max(until_s, self._buried_until_s)
        if until_s:
            edges = edges_of(candidate.digest)
            self._marks.keep_bytes(candidate.data_id, edges.bases if edges is not None else ())
            self._goes_at(until_s)
            return Decision(verdict, until_s)
        return Decision(verdict)

    def _goes_at(self, until_s: int) -> None:
        self._first_until_s = min(self._first_until_s or until_s, until_s)

    # -- report

    def _foresee(self, batch: Sequence[Candidate]) -> None:
        """What a sweep of these would do, added to what is done."""
        kept = stored = quarantined = raw = 0
        removed: list[tuple[bytes, int]] = []
        batch = [candidate for candidate in batch if candidate.digest]  # else another gc took it just now
        rows = self._backend.rows([candidate.digest for candidate in batch])
        for candidate, row in zip(batch, rows, strict=True):
            _, size = self._backend.encoding(candidate.data_id)
            decision = self._decide(candidate, lambda digest: self._backend.edges([digest])[0])
            if decision.verdict is Verdict.KEEP_BYTES:
                kept += size
            elif decision.until_s:
                quarantined += size
            elif decision.verdict is Verdict.DELETE:
                stored += size
            if not candidate.kept and row is not None and row.data_id == candidate.data_id:
                raw += row.raw_len
                removed.append((candidate.digest, row.raw_len))
        self._done.add(SweepResult(tuple(removed), raw, stored, kept, quarantined))
        if self._explainer is not None:
            self._explainer.removed(batch, removed)

    def _report(
        self, opened: GcOpened, *, dry_run: bool = False, stopped: str = "", incremental: bool = False
    ) -> GcReport:  # fmt: skip
        done = self._done
        live = self._backend.counters().artifacts - (len(done.removed) if dry_run else 0)
        return GcReport(
            gc=opened.epoch, dry_run=dry_run, removed=done.removed, raw_bytes=done.raw, stored_bytes=done.stored,
            kept_bytes=done.kept, live=live, rescued=done.rescued, batches=0 if dry_run else done.batches,
            duration_ms=round((self._pace.timer() - self._began) * 1000), quarantined_bytes=done.quarantined,
            stopped=stopped, incremental=incremental,
            explanation=self._explainer.told() if self._explainer is not None else None,
        )  # fmt: skip


def _nothing(_: bytes) -> None:
    """A digest that is not visible here is no damage: its event was refused, or its row went with an earlier gc."""


def _kept_pages(backend: BlobBackend) -> Iterator[list[Kept]]:
    after = 0
    while page := backend.kept_page(after, PAGE_ROWS):
        yield page
        after = page[-1].data_id
