"""The records of a run, one after the other, decoded as fast as may be: scans make millions of events. Pure.

A record leaves out what the events before it tell. A decoder that begins with the first one has it all at hand; one
that begins in the middle of a run asks for it, until the first completed state tells both the checkpoint and that no
attempt is open.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Final, final
from uuid import UUID

from casstore.ids import ArtifactId
from journal.errors import InvalidEvent, InvalidStream
from journal.events import (
    DOMAIN,
    RUN_STARTED,
    STATE_COMPLETED,
    STATE_ENTERED,
    STATE_FAILED,
    Event,
    RecordedEvent,
    StateCompleted,
    StateEntered,
    domain_of,
    recorded,
)
from journal.ids import TIME_LIMIT
from journal.record_form import parse, parse_quickly, refuse
from journal.records import Context, Definition, Resolve, check_batch, event_of, time_of

RawEvent = tuple[Any, ...]  # seq, position, time in unix milliseconds, kind, then the fields


@final
class RunDecoder:
    """Takes records in the order of their seqs, from any seq on. `resolve` is asked for what came before the first."""

    def __init__(self, number: int, run_id: UUID, started_ms: int, *, from_first: bool) -> None:
        self.number, self.run_id, self.started_ms = number, run_id, started_ms
        self._context = Context() if from_first else None
        self._known: dict[int, Definition] = {}  # while there is no context: what was asked for, or seen
        self._told: dict[int, bytes | str] = {}  # what the newest events define, as fields have it

    def events(
        self, records: Sequence[bytes], seq: int, positions: Sequence[int], resolve: Resolve
    ) -> list[RecordedEvent]:  # fmt: skip
        """Strict: each record is the one form of its event, and is the one that should stand there.

        `seq` is that of the first. Raises: InvalidStream with `bad_record` or `bad_sequence`;
        UnknownEventVersion.
        """
        found: list[RecordedEvent] = []
        try:
            self._take(map(parse, records, repeat(self.run_id)), seq, positions, resolve, found)
        except InvalidEvent as error:
            refuse(records[len(found)], self.run_id, str(error), error)
        except LookupError as error:
            refuse(records[len(found)], self.run_id, f"refers to an event that does not help: {error}", error)
        return found

    def one(self, data: bytes, position: int, resolve: Resolve, parsed: list[Any] | None) -> RecordedEvent:
        """As `events`, of the next record of the run that there is, whatever its seq; `parsed` where it was already."""
        found: list[RecordedEvent] = []
        try:
            row = parse(data, self.run_id) if parsed is None else parsed
            self._take((row,), row[2], (position,), resolve, found)
        except InvalidEvent as error:
            refuse(data, self.run_id, str(error), error)
        except LookupError as error:
            refuse(data, self.run_id, f"refers to an event that does not help: {error}", error)
        return found[0]

    def _take(
        self, rows: Iterable[list[Any]], seq: int, positions: Sequence[int], resolve: Resolve,
        found: list[RecordedEvent],
    ) -> None:  # fmt: skip
        """Raises: InvalidEvent leaves, LookupError, InvalidStream."""
        run_id, number, started_ms = self.run_id, self.number, self.started_ms
        for row, position in zip(rows, positions, strict=True):
            kind = row[4]
            if kind == DOMAIN:
                event: Event = domain_of(*row[5])
            elif self._context is not None:
                event = event_of(row, self._context)[0]
                self._context = self._context.after(row[2], event)
            else:
                event = self._kernel(row, resolve)
            time = row[3] + started_ms if kind != RUN_STARTED else row[3]
            if not 0 <= time <= TIME_LIMIT:
                time_of(row, started_ms)
            if len(row) == 7:
                check_batch(row[6])
            if row[2] != seq or row[1] != number:
                raise InvalidStream("bad_sequence", run_id, seq, f"event {row[2]} of run number {row[1]}")
            found.append(recorded(run_id, seq, position, time, event))
            seq += 1

    def _kernel(self, row: list[Any], resolve: Resolve) -> Event:
        """While there is no context."""
        event = event_of(row, functools.partial(self._define, resolve))[0]
        if type(event) is StateCompleted:
            self._context, self._known = Context(row[2], event.context_snapshot_id), {}
        elif type(event) is StateEntered:
            self._known[row[2]] = event.state_id
        return event

    def _define(self, resolve: Resolve, seq: int) -> Definition:
        """What the event at a seq set, asked for once."""
        found = self._known.get(seq)
        if found is None:
            found = self._known[seq] = resolve(seq)
        return found

    def raw(self, records: Sequence[bytes], seq: int, positions: Sequence[int], resolve: Resolve) -> list[RawEvent]:
        """As `events`, as tuples; the form of the records and what stands in their fields is taken on trust.

        Raises: InvalidStream with `bad_record` or `bad_sequence`.
        """
        found: list[RawEvent] = []
        number, started_ms, told = self.number, self.started_ms, self._told
        try:
            for row, position in zip(parse_quickly(records), positions, strict=True):
                kind, fields = row[4], row[5]
                if row[2] != seq or row[1] != number:
                    raise InvalidStream("bad_sequence", self.run_id, seq, f"event {row[2]} of run number {row[1]}")
                if kind in _FOLLOWED:  # put back what the fields leave out, and keep what they tell the next ones
                    place = 2 if kind == STATE_ENTERED else 0
                    if type(fields[place]) is int:
                        at = seq - fields[place]
                        if at not in told:
                            told[at] = _plain(resolve(at))
                        fields[place] = told[at]
                    if kind == STATE_ENTERED:
                        told[seq] = fields[0]
                    elif kind == STATE_COMPLETED or kind == RUN_STARTED:  # noqa: SIM109 - twice as fast
                        told.clear()
                        told[seq] = fields[-1]
                    elif fields[1] is None:
                        fields[1] = fields[0]
                found.append((seq, position, row[3] + started_ms if kind != RUN_STARTED else row[3], kind, *fields))
                seq += 1
        except InvalidStream:
            raise
        except Exception as error:
            raise InvalidStream("bad_record", self.run_id, seq, f"not a record: {error}") from error
        return found


def _plain(found: Definition) -> bytes | str:
    return found.digest if type(found) is ArtifactId else found


_FOLLOWED: Final = (RUN_STARTED, STATE_ENTERED, STATE_COMPLETED, STATE_FAILED)
