"""One gc as callers ask for it: a policy, from HOME/gc.toml or keywords, becomes a collection, or a refusal."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, final

from casstore import history, quotas
from casstore.backend import BlobBackend
from casstore.errors import GcRefused, InvalidArgument, InvalidPolicy, StoreFull
from casstore.gc import Collector, Limits
from casstore.locks import collector_lock
from casstore.policies import Due, Growth, Policy, is_due, parse_policy
from casstore.refusals import check_source, refuse_implausible, refusing
from casstore.remembered import Remembered, call_witness
from casstore.reports import GcReport
from casstore.roots import EndingSource, RetainingSource, RootSource
from casstore.stage import Stage

FILE: Final = "gc.toml"
# Below this a gc may not get its first batch to the disk, which would free some: a few dozen pages of five tables.
SPACE_BYTES: Final = 256 << 10
_STATUSES: Final = ("completed", "failed", "cancelled")


def load_policy(home: Path | None) -> Policy:
    """What HOME/gc.toml says; the default without one. Raises: InvalidPolicy."""
    if home is None:
        return Policy()
    path = home / FILE
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return Policy()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPolicy(str(path), "", f"cannot be read: {error}") from error
    return parse_policy(text, str(path))


def collect(
    backend: BlobBackend, stage: Stage, home: Path | None, roots: RootSource, uuid: str, policy: Policy, *,
    now_s: int, dry_run: bool, explain: bool, stop: Callable[[], bool] | None, force: bool,
    settle: Callable[[], object],
) -> GcReport:  # fmt: skip
    """See Store.gc. Raises: GcRefused (nothing removed), Busy, StoreFull."""
    source = check_source(roots, uuid, home)
    asked = None if stop is None else Asking(stop)
    if not dry_run and not force:
        _refuse_low_space(backend, home)
    with nullcontext() if dry_run else collector_lock(home):
        retention, over, witness = policy.retention(now_s), 0, None
        if not dry_run:
            backend.tidy()
            witness = call_witness(source, retention)
            with suppress(StoreFull):  # politeness: what is staged is a root all the same
                settle()
        if policy.quota is not None:
            if not isinstance(source, RetainingSource):
                raise GcRefused("unknown_policy", f"{type(source).__name__} cannot say which runs ended first")
            with refusing("reading roots"):
                opened = backend.gc_peek(now_s, _seconds(policy.grace))
                retention, over = quotas.fit(backend, source, retention, opened, policy.quota, asked)
        collector = Collector(
            backend, source, now_s=now_s, grace_s=_seconds(policy.grace), retention=retention,
            quarantine_s=_seconds(policy.quarantine), stage=stage, explain=explain,
            limits=Limits(None if policy.max_time is None else _exact(policy.max_time), policy.max_bytes, asked),
        )  # fmt: skip
        if dry_run:
            report = collector.preview()
        else:
            report = collector.run(plausible=(lambda *_: None) if force else refuse_implausible, witness=witness)
            backend.sync()
    if asked is not None and asked.error is not None:
        raise asked.error
    info = backend.info()
    return replace(
        report, over_quota_bytes=over, file_bytes=info["file_bytes"],
        reusable_bytes=info["pages_free"] * info["page_bytes"],
    )  # fmt: skip


@final
class Asking:
    """The caller's `stop`. What it raises stops a gc as a yes does, and is raised once that has ended in order."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        if not callable(stop):
            raise InvalidArgument("stop", "a function that says whether to stop is wanted")
        self._stop = stop
        self.error: Exception | None = None

    def __call__(self) -> bool:
        if self.error is None:
            try:
                return bool(self._stop())
            except Exception as error:
                self.error = error
        return True


def due(
    backend: BlobBackend, home: Path | None, roots: RootSource, uuid: str, policy: Policy, now_s: int
) -> Due:  # fmt: skip
    """Whether a gc is worth it: counters, the record of the last one, and an index of the source."""
    return is_due(policy.auto, _growth(backend, check_source(roots, uuid, home), policy, now_s), now_s)


def _growth(backend: BlobBackend, source: RootSource, policy: Policy, now_s: int) -> Growth:
    newest = backend.gc_reports(1)
    if not newest:
        return Growth(None)
    last, counters = history.unpack(*newest[0]), backend.counters()
    stored = counters.stored_bytes + counters.kept_bytes
    remembered = Remembered.unpack(backend.gc_peek(now_s, 0).last)
    return Growth(
        last_s=last.when_s, gc=last.gc, outcome=last.outcome, artifacts=max(counters.artifacts - last.live, 0),
        bytes=max(stored - last.left_bytes, 0), runs=_let_go(source, policy, last.when_s, now_s),
        over_quota_bytes=0 if policy.quota is None else max(stored - max(policy.quota, last.left_bytes), 0),
        window_over=remembered is not None and 0 < remembered.until_s <= now_s,
    )  # fmt: skip


def _let_go(source: RootSource, policy: Policy, last_s: int, now_s: int) -> int:
    """Runs whose retention ended since the last gc; where a number is kept, each end may let an older one go."""
    if not isinstance(source, EndingSource):
        return 0
    total = 0
    for status in _STATUSES:
        keep_s = policy.keep_s(status)
        # A run that ended in the very millisecond where retention begins is kept, so it counts next time.
        past = source.ended_between(status, (last_s - keep_s) * 1000 - 1, (now_s - keep_s) * 1000 - 1)
        ended = source.ended_between(status, last_s * 1000, now_s * 1000) if policy.keep_last else 0
        total += max(past, ended)
    return total


def _refuse_low_space(backend: BlobBackend, home: Path | None) -> None:
    """A gc writes before it frees. On a full disk it uses the free pages of the file, and the reserve of puts."""
    if home is None:
        return
    disk, info = os.statvfs(home), backend.info()
    free, inside = disk.f_bavail * disk.f_frsize, info["pages_free"] * info["page_bytes"]
    if free + inside < SPACE_BYTES:
        detail = (
            f"{free} bytes are free on the disk and {inside} inside of the store's file; a gc needs {SPACE_BYTES}"
            " before it frees any. Make some room on the disk, or try with --force: it removes what fits"
        )
        raise GcRefused("low_space", detail)


def _seconds(duration: object) -> int:
    return int(_exact(duration))


def _exact(duration: object) -> float:
    assert isinstance(duration, (int, float))  # a Policy has made its durations numbers
    return duration
