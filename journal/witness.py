"""Whether a journal still names all that it named at an earlier gc, at the cost of what came since (docs/GC.md,
section 7). In doubt the answer is no: gc then reads everything."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, final
from uuid import UUID

from blake3 import blake3

from casstore import Retention, Root
from journal import reading, records
from journal.backend import JournalBackend, Look
from journal.events import RecordedEvent, RunCompleted, RunStarted, links
from journal.failures import RunStatus

EVENTS_MAX: Final = 200_000  # more than these are not gone through: marking everything costs no more
_VERSION: Final = 1
_FORM: Final = struct.Struct(">BQQQQqQ?16s")
_NEVER: Final = -1
_GREATEST: Final = (1 << 64) - 1


@final
class Witness(NamedTuple):
    """The journal as it was: newest position, events kept, runs that live and that ended; how it was asked; and a
    BLAKE3-128 of its newest record."""

    position: int
    events: int
    live: int
    ended: int
    after_ms: int  # of the retention; _NEVER for none
    keep_last: int
    final_only: bool
    newest: bytes

    def pack(self) -> bytes:
        """As the store keeps it."""
        return _FORM.pack(_VERSION, *self)


def witness(backend: JournalBackend, retention: Retention) -> bytes:
    """What `roots_since` compares with."""
    with backend.look() as look:
        return _witness(look, retention).pack()


def roots_since(backend: JournalBackend, packed: bytes, retention: Retention) -> list[Root] | None:
    """What events name that were appended since. None where something that was named and kept then may not be now:
    a run ended and is not kept whole, left the retention, was forgotten or rebuilt, or the journal is another one.

    Raises: InvalidStream.
    """
    if len(packed) != _FORM.size or packed[0] != _VERSION:
        return None
    then = Witness(*_FORM.unpack(packed)[1:])
    with backend.look() as look:
        now = _witness(look, retention)
        if not _is_later(look, then, now) or _drops(look, then, now):
            return None
    found: list[Root] = []
    started, ended = 0, list[UUID]()
    for item in _events(backend, then.position, now.position):
        found += [Root(name, str(item.run_id), item.seq, field) for field, name in links(item.event)]
        started += type(item.event) is RunStarted
        if type(item.event) is RunCompleted:
            ended.append(item.run_id)
    if (now.ended, now.live) != (then.ended + len(ended), then.live + started - len(ended)):
        return None  # a run was rebuilt, or forgotten just now
    with backend.look() as look:
        return found if all(_keeps(look, run_id, now) for run_id in ended) else None


def _witness(look: Look, retention: Retention) -> Witness:
    position, (live, ended) = look.position(), look.tallies()
    after_ms = retention.completed_after_ms
    return Witness(
        position, look.count(), live, ended, _NEVER if after_ms is None else max(after_ms, 0),
        min(retention.keep_last, _GREATEST), retention.final_only, _hash_at(look, position),
    )  # fmt: skip


def _hash_at(look: Look, position: int) -> bytes:
    """Of the record and its run's id: run numbers and seqs are the same in many journals."""
    found = next(look.after(position - 1), None) if position else None
    if found is None or found[0] != position:
        return bytes(16)
    row = look.numbered(records.peek(found[1])[1])
    return blake3((row.run_id.bytes if row is not None else b"") + found[1]).digest(16)


def _is_later(look: Look, then: Witness, now: Witness) -> bool:
    """Whether it is the same journal, with all that it had."""
    new = now.position - then.position
    return 0 <= new <= EVENTS_MAX and now.events - then.events == new and _hash_at(look, then.position) == then.newest


def _drops(look: Look, then: Witness, now: Witness) -> bool:
    """Whether the retention may have let go of a run that had ended by then."""
    if now.keep_last < then.keep_last or (now.final_only and not then.final_only):
        return True
    if then.after_ms == _NEVER:
        return False
    before = None if now.after_ms == _NEVER else (now.after_ms, 0)
    latest = (next(look.ended(status, before=before), None) for status in RunStatus)
    return any(run is not None and run[0] >= then.after_ms for run in latest)


def _keeps(look: Look, run_id: UUID, now: Witness) -> bool:
    """Whether a run that ended since is kept, and all of it, and no other gives way to it."""
    row = look.run(run_id)
    return (
        row is not None and not now.keep_last and not now.final_only and 0 <= now.after_ms <= row.updated_ms
    )  # fmt: skip


def _events(backend: JournalBackend, position: int, last: int) -> Iterator[RecordedEvent]:
    while position < last and (page := reading.feed_page(backend, position)):
        for item in page:
            position = item.position
            if position <= last:
                yield item
