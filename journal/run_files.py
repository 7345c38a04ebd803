"""A run in one file: a CAR of its events and of all artifacts that they name, with what those link to.

The events are values in the store like any other: a chain of parts, each linking the one before it and all that its
events name. The last part is the file's root, so the store's export and import carry the rest (docs/FORMAT.md, 5.7).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, Final, final
from uuid import UUID

from casstore import ArtifactId, ExportReport, ImportReport, InvalidValue, MissingArtifact, Store
from casstore.steps import reach
from journal.errors import Conflict, InvalidEvent, InvalidRunFile, RunNotFound
from journal.events import RecordedEvent, from_fields, links, to_fields
from journal.ids import U64_MAX, check_int

if TYPE_CHECKING:
    from casstore.leases import Lease
    from journal.log import Journal

PART: Final = "journal_run"  # the key that marks a part; its value is the version
VERSION: Final = 1
PART_EVENTS: Final = 400
_KEYS: Final = {PART, "run_id", "first_seq", "before", "links", "events"}
_PART_BYTES_MAX: Final = 32 << 20
_LEASE_S: Final = 3600.0
_TOKEN_SIZE_BYTES: Final = 16

Progress = Callable[[int], None]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunExport:
    """What was written: the run as far as it was, `root` names exactly these events and times."""

    run_id: UUID
    events: int
    root: ArtifactId
    file: ExportReport


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunImport:
    """The run that a file held. `added` of its `events` were not there yet; `existing` if all were."""

    run_id: UUID
    events: int
    added: int
    root: ArtifactId

    @property
    def existing(self) -> bool:
        """Whether the journal held them all."""
        return not self.added


# -- out ------------------------------------------------------------------------------------------------


def export_run(
    journal: Journal, run_id: UUID, out: str | os.PathLike[str] | BinaryIO, progress: Progress | None
) -> RunExport:
    """See Journal.export."""
    store = journal.store
    with store.lease(_LEASE_S) as lease:
        renew = renewing(lease)
        root: ArtifactId | None = None
        events = 0
        for part in _parts(journal.read(run_id)):
            root = _put(store, lease, _encode(run_id, part, root))
            events += len(part)
            renew(0)
        if root is None:
            raise RunNotFound(run_id)
        reach("export.events")
        report = store.export(root, out, progress=progress)
    return RunExport(run_id=run_id, events=events, root=root, file=report)


def _parts(events: Iterable[RecordedEvent]) -> Iterator[list[RecordedEvent]]:
    left = iter(events)
    while part := list(islice(left, PART_EVENTS)):
        yield part


def _encode(run_id: UUID, part: list[RecordedEvent], before: ArtifactId | None) -> dict[str, Any]:
    rows = []
    for item in part:
        kind, fields = to_fields(item.event)
        rows.append([item.timestamp_ms, kind, fields])
    return {
        PART: VERSION, "run_id": run_id.bytes, "first_seq": part[0].seq, "before": before,
        "links": _named(part), "events": rows,
    }  # fmt: skip


def _named(part: Iterable[RecordedEvent]) -> list[ArtifactId]:
    return list(dict.fromkeys(name for item in part for _, name in links(item.event)))


def _put(store: Store, lease: Lease, part: dict[str, Any]) -> ArtifactId:
    try:
        return lease.put_value(part, kind="other")
    except MissingArtifact:
        for name in part["links"]:
            store.info(name)  # of a run that ended long ago: says Collected, and when
        raise


# -- in -------------------------------------------------------------------------------------------------


def import_run(
    journal: Journal, src: str | os.PathLike[str] | BinaryIO, pin: str | None, progress: Progress | None
) -> RunImport:
    """See Journal.import_."""
    with journal.store.lease(_LEASE_S) as lease:
        report = journal.store.import_(src, pin=pin, lease=lease, progress=renewing(lease, progress))
        return record(journal, report)


def holds_run(store: Store, report: ImportReport) -> bool:
    """Whether what was imported looks like a run."""
    return len(report.roots) == 1 and _part(store, report.roots[0]) is not None


def record(journal: Journal, report: ImportReport) -> RunImport:
    """Append what the journal lacks of the run that was imported into its store, whose lease still holds it.

    Raises: as Journal.import_.
    """
    if len(report.roots) != 1:
        raise InvalidRunFile(f"it has {len(report.roots)} roots instead of one")
    root = report.roots[0]
    run_id, events = _decode(journal.store, root)
    reach("import.artifacts")
    there = journal.read(run_id)
    for ours, theirs in zip(there, events, strict=False):
        if (ours.timestamp_ms, ours.event) != (theirs.timestamp_ms, theirs.event):
            raise Conflict(run_id, ours.seq - 1, len(there))
    missing = events[len(there) :]
    if missing:
        token = root.digest[:_TOKEN_SIZE_BYTES]  # two who import the same file at once
        appended = journal.append(run_id, len(there), missing, token=token)
        if appended.existing:
            missing = []
    return RunImport(run_id=run_id, events=len(events), added=len(missing), root=root)


def _part(store: Store, name: ArtifactId) -> dict[str, Any] | None:
    """The value, if it is marked as a part of a run."""
    if store.info(name).size_bytes > _PART_BYTES_MAX:
        return None
    try:
        value = store.get_value(name)
    except InvalidValue:
        return None
    return value if type(value) is dict and PART in value else None


def _decode(store: Store, root: ArtifactId) -> tuple[UUID, list[RecordedEvent]]:
    """All events, in order. Raises: InvalidRunFile."""
    parts: list[list[RecordedEvent]] = []
    name: ArtifactId | None = root
    run_id, due = None, 0
    while name is not None:
        value = _part(store, name)
        if value is None:
            raise InvalidRunFile(f"{name} is no part of a run")
        try:
            found, part, name = _checked(value)
        except InvalidEvent as error:
            raise InvalidRunFile(f"{name}: {error}") from error
        if run_id not in (None, found) or (parts and part[-1].seq + 1 != due):
            raise InvalidRunFile("its parts do not belong together")
        run_id, due = found, part[0].seq
        parts.append(part)
    if due != 1 or run_id is None:
        raise InvalidRunFile(f"its events begin at {due}")
    return run_id, [item for part in reversed(parts) for item in part]


def _checked(value: dict[str, Any]) -> tuple[UUID, list[RecordedEvent], ArtifactId | None]:
    """Run, events, and the part before. Raises: InvalidRunFile, InvalidEvent leaves."""
    if value[PART] != VERSION:
        raise InvalidRunFile(f"it is of version {value[PART]!r:.40}; {VERSION} is read")
    first, before, rows, run = (value.get(key) for key in ("first_seq", "before", "events", "run_id"))
    if set(value) != _KEYS or type(rows) is not list or not rows or type(run) is not bytes or len(run) != 16:
        raise InvalidRunFile("a part has other fields than a part has")
    if before is not None and type(before) is not ArtifactId:
        raise InvalidRunFile("what stands before a part is no link")
    run_id, part = UUID(bytes=run), []
    for seq, row in enumerate(rows, check_int("first_seq", first, 1, U64_MAX - len(rows))):
        if type(row) is not list or len(row) != 3 or type(row[2]) is not list:
            raise InvalidRunFile(f"event {seq} is not time, kind and fields")
        time_ms = check_int("timestamp_ms", row[0], 0, U64_MAX)
        event = from_fields(row[1], row[2])
        part.append(RecordedEvent(run_id=run_id, seq=seq, position=seq, timestamp_ms=time_ms, event=event))
    if value["links"] != _named(part):
        raise InvalidRunFile(f"its links are not what events {part[0].seq} to {part[-1].seq} name")
    return run_id, part, before


def renewing(lease: Lease, progress: Progress | None = None) -> Progress:
    """A progress that keeps the lease alive, for work that may take longer than it lives."""
    renewed = time.monotonic()

    def advance(size: int) -> None:
        nonlocal renewed
        if time.monotonic() - renewed > _LEASE_S / 4:
            lease.renew()
            renewed = time.monotonic()
        if progress is not None:
            progress(size)

    return advance
