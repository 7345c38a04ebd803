"""What a gc did or would do, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from casstore import GcExplanation, GcRecord, GcReport
from casstore.cli.options import counted, shown_size
from casstore.refusals import is_implausible
from casstore.times import shown_time

_STOPPED: Final = {"time": "stopped after --max-time", "bytes": "stopped at --max-bytes", "asked": "stopped"}


def report_document(report: GcReport, *, listed: bool, explained: bool) -> dict[str, Any]:
    """Stable keys; `ids` and `why` only where they were asked for."""
    document: dict[str, Any] = {
        "gc": report.gc, "dry_run": report.dry_run, "removed": len(report.removed), "raw_bytes": report.raw_bytes,
        "stored_bytes": report.stored_bytes, "kept_bytes": report.kept_bytes, "live": report.live,
        "quarantined_bytes": report.quarantined_bytes, "rescued": report.rescued,
        "stopped": report.stopped, "incremental": report.incremental, "duration_ms": report.duration_ms,
        "file_bytes": report.file_bytes,
        "reusable_bytes": report.reusable_bytes, "returned_bytes": 0, "over_quota_bytes": report.over_quota_bytes,
    }  # fmt: skip
    told = report.explanation
    if listed:
        document["ids"] = [str(name) for name, _ in report.removed]
        if told is not None:
            document["list"] = [
                {"id": str(name), "size_bytes": size, "why": why}
                for (name, size), why in zip(report.removed, told.reasons, strict=True)
            ]
    if explained and told is not None:
        document["explain"] = {
            "kept": dict(told.kept), "bases": told.bases, "released": told.released,
            "gone": [
                {"what": share.what, "artifacts": share.artifacts, "raw_bytes": share.raw_bytes, "runs": share.runs}
                for share in told.gone
            ],
        }  # fmt: skip
    return document


def report_lines(report: GcReport, *, listed: bool, explained: bool) -> Iterator[str]:
    """The same for people."""
    verb = "would remove" if report.dry_run else "removed"
    yield f"{verb} {counted(len(report.removed), 'artifact')} ({shown_size(report.raw_bytes)} of data)"
    told = report.explanation
    if explained and told is not None:
        yield from _gone_lines(told)
    if report.dry_run:
        if is_implausible(len(report.removed), len(report.removed) + report.live):
            yield "a gc would refuse that, as nearly all of the store, without --force"
        yield f"{shown_size(report.stored_bytes)} would be free for new artifacts"
    else:
        yield f"{shown_size(report.stored_bytes)} are free for new artifacts"
    if report.kept_bytes:
        yield f"{shown_size(report.kept_bytes)} of theirs stay: living deltas are made of them"
    if report.quarantined_bytes:
        how = "would stay" if report.dry_run else "stay"
        line = f"{shown_size(report.quarantined_bytes)} of theirs {how} in quarantine"
        yield line if report.dry_run else f"{line}: `casstore undelete --gc {report.gc}` brings them back"
    yield (
        f"the file stays at {shown_size(report.file_bytes)}, {shown_size(report.reusable_bytes)} of it free"
        "; `casstore compact` gives that back to the file system"
    )
    yield f"{counted(report.live, 'artifact')} {'would be left' if report.dry_run else 'left'}"
    if explained and told is not None:
        yield from _kept_lines(told)
    if report.over_quota_bytes:
        yield (
            f"{shown_size(report.over_quota_bytes)} over the quota without any run that ended: live runs, pins, leases"
            " and what is younger than the grace take it"
        )
    if listed and told is not None:
        for (name, size), why in zip(report.removed, told.reasons, strict=True):
            yield f"  {name}  {size:>12}  {why}"
    if report.stopped:
        yield f"{_STOPPED[report.stopped]}: the next gc goes on"


def _gone_lines(told: GcExplanation) -> Iterator[str]:
    for share in told.gone:
        runs = f", {counted(share.runs, 'run')}" if share.runs else ""
        yield f"  {share.artifacts:>9}  {share.what} ({shown_size(share.raw_bytes)}{runs})"
    if told.released:
        yield f"  {told.released:>9}  collected before, whose bytes no delta or quarantine needs any more"


def _kept_lines(told: GcExplanation) -> Iterator[str]:
    for what, artifacts in told.kept:
        if artifacts:
            yield f"  {artifacts:>9}  {what}"
    if told.bases:
        yield f"  {told.bases:>9}  of collected ones, whose bytes living deltas are made of, not counted above"


def shown_past(past: GcRecord) -> str:
    """One line of the history."""
    line = f"gc {past.gc:<5} {shown_time(past.when_s)}  {past.outcome:10}"
    if past.outcome == "unfinished":
        return line.rstrip()
    return (
        f"{line}  {past.removed:>9} removed  {shown_size(past.raw_bytes):>10} of data"
        f"  {shown_size(past.stored_bytes):>10} freed  {past.duration_ms / 1000:.1f} s"
    )
