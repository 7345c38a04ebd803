"""Values that long operations answer with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from casstore.ids import ArtifactId
from casstore.removals import Removals


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactInfo:
    """An artifact. Sizes in bytes; `encoding` is how it is kept, `chain` its number in a delta chain."""

    id: ArtifactId
    kinds: tuple[str, ...]
    size_bytes: int
    stored_bytes: int
    encoding: str
    chain: int
    base: ArtifactId | None
    links: tuple[ArtifactId, ...]
    touched_s: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be. `id` is the artifact concerned, if it is one."""

    code: str
    id: ArtifactId | None
    detail: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was looked at, and what was found; clean when `findings` is empty.

    Stopped at a limit, `complete` is False and `next` is where another verify goes on (`after`).
    """

    findings: tuple[Finding, ...]
    artifacts: int
    raw_bytes: int
    complete: bool = True
    next: str | None = None

    @property
    def ok(self) -> bool:
        return not self.findings


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What was fetched from another store: `repaired` verifies now; `failed` are (id, why) of what does not."""

    repaired: tuple[ArtifactId, ...]
    failed: tuple[tuple[ArtifactId, str], ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MendReport:
    """What was put right, as findings that say what was done, and what rows still contradict, bytes not looked at."""

    done: tuple[Finding, ...]
    left: tuple[Finding, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GcShare:
    """What goes for one reason: artifacts, their raw bytes, and how many runs it was of (0: of none)."""

    what: str
    artifacts: int
    raw_bytes: int
    runs: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GcExplanation:
    """Why a gc keeps and removes. `kept` counts visible artifacts by the first of these reasons that holds them: live
    runs, runs that ended and are retained, pins, dictionaries, leases, the grace. `bases` are collected artifacts whose
    bytes stay since living deltas are made of them, `released` those whose bytes nothing needs any more.

    `reasons` says it of each artifact in the report's `removed`, in the same order.
    """

    kept: tuple[tuple[str, int], ...]
    bases: int
    released: int
    gone: tuple[GcShare, ...]
    reasons: Sequence[str]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """One collection. `removed` lists (id, raw bytes) of what went, or would go in a dry run. `stopped` says what
    ended it early: time, bytes or asked; empty where it is complete. The next gc begins again, with less to do.

    `stored_bytes` can be used again by the store; the file itself does not shrink, and nothing is given back to the
    file system: `file_bytes` is what the file has, `reusable_bytes` how much of it is free pages, once this gc is done
    (before it, in a dry run), and `Store.compact` gives them back. `kept_bytes` belong to removed artifacts that living
    deltas still need, `quarantined_bytes` to those that can be brought back. `rescued` counts candidates that somebody
    touched meanwhile. `over_quota_bytes` is by how much what has to stay is more than the quota. `incremental`: what
    is new since the last gc is all needed, so that nothing else had to be looked at.
    """

    gc: int
    dry_run: bool
    removed: Removals
    raw_bytes: int
    stored_bytes: int
    kept_bytes: int
    live: int
    rescued: int
    batches: int
    duration_ms: int = 0
    quarantined_bytes: int = 0
    stopped: str = ""
    file_bytes: int = 0
    reusable_bytes: int = 0
    over_quota_bytes: int = 0
    explanation: GcExplanation | None = None
    incremental: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GcRecord:
    """What is remembered of a gc. `when_s` is unix time, when it opened.

    `outcome` is one of complete, stopped (at a limit, or asked to), failed (an error or a refusal ended it; the
    numbers are what it did before) and unfinished (it runs now, or was killed). `left_bytes` is what was stored
    after it, with what is kept for deltas and in quarantine.
    """

    gc: int
    outcome: str
    when_s: int
    removed: int
    raw_bytes: int
    stored_bytes: int
    kept_bytes: int
    quarantined_bytes: int
    live: int
    duration_ms: int
    left_bytes: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Buried:
    """A collected artifact that can be brought back. `until_s` is unix time: the first gc after it ends that."""

    id: ArtifactId
    gc: int
    until_s: int
    size_bytes: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UndeleteReport:
    """What is visible again: `restored` with their raw bytes in all, children before what links to them; `known` are
    those that were asked for and were there anyway."""

    restored: tuple[ArtifactId, ...]
    known: tuple[ArtifactId, ...]
    raw_bytes: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Sizes in bytes. `stored_bytes` excludes `kept_bytes`; `file_bytes` is what the disk gives, free pages
    included, and can become `map_bytes` at most. Artifacts that are `staged` lie in the journal's file and are not
    counted elsewhere. `reader_lag_commits` is the age of the oldest snapshot that a reader of any process holds, in
    commits of the file: pages freed since then cannot be used again yet."""

    artifacts: int
    raw_bytes: int
    stored_bytes: int
    kept_bytes: int
    staged: int
    staged_bytes: int
    gone: int
    pins: int
    leases: int
    uploads: int
    commits: int
    gcs: int
    file_bytes: int
    map_bytes: int
    page_bytes: int
    pages_used: int
    pages_free: int
    readers: int
    reader_lag_commits: int
    by_kind: dict[str, tuple[int, int]]
    by_encoding: dict[str, tuple[int, int, int]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """Why an artifact is there or not. `path` leads from a root to it, one step a line; empty when nothing
    holds it. `state` is one of live (also by a pin or lease), retained (by runs that ended), unreferenced, collected,
    unknown. `since_s` is since when it is unreferenced or collected, `until_s` until when retention, the grace or the
    quarantine keeps it; unix times, None where there is none to name."""

    id: ArtifactId
    state: str
    path: tuple[str, ...]
    detail: str
    since_s: int | None = None
    until_s: int | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What a CAR file holds: its roots, how many artifacts, their bytes, and the bytes of the file."""

    roots: tuple[ArtifactId, ...]
    artifacts: int
    raw_bytes: int
    file_bytes: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What came out of a CAR file. `known` blocks were there already, `late` ones came before what they link to.

    `unlinked` are large artifacts that were stored without links, as `put_file` does: gc does not follow them.
    `pins` are the names that hold the roots.
    """

    roots: tuple[ArtifactId, ...]
    blocks: int
    raw_bytes: int
    known: int
    late: int
    unlinked: tuple[ArtifactId, ...]
    pins: dict[str, ArtifactId]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """Bytes of the store's file before and after; the difference is what the file system has back, as
    soon as no process reads from the old file any more.

    `rebased` deltas were moved away from the bytes of collected artifacts and take `rebased_bytes` more now (or less,
    if below 0), for which `freed_bytes` stored bytes went. `condensed` small artifacts use a dictionary and take
    `condensed_bytes` less; `trained` are the kinds that got one. `skipped` could not be read or proven, and stayed as
    they were: verify names them. `stopped` says what ended the re-encoding early: time, bytes or full.
    """

    before_bytes: int
    after_bytes: int
    rebased: int = 0
    rebased_bytes: int = 0
    freed_bytes: int = 0
    condensed: int = 0
    condensed_bytes: int = 0
    trained: tuple[str, ...] = ()
    skipped: int = 0
    stopped: str = ""

    @property
    def returned_bytes(self) -> int:
        """What the file system has back; 0 where there was nothing to give."""
        return max(self.before_bytes - self.after_bytes, 0)
