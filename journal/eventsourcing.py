"""The journal as persistence of the package `eventsourcing` (9.5): set `PERSISTENCE_MODULE=journal.eventsourcing` and
`JOURNAL_HOME` to a directory (or to `:memory:`).

Everything goes through the public API of the journal, and everything is events of runs, so that chains, `verify`, gc
and the command line see it like the rest:

- *A stream is a run.* The events of an originator are the run's events from seq 2 on, in order of their versions. The
  run's id is the hash of application, purpose and originator id (a UUID and its text are the same originator).
- *The notification log is a run too*, one per application: the event at seq n + 1 names run and seq of notification n.
  A run's seqs have no gaps and a batch is never split, so neither do the ids; positions of the journal would not do,
  as they also count the events of everybody else.
- *Tracking is a run per upstream application*, whose newest event holds the newest notification id.

All that one insert changes is one `append_many`, with the position of each run as it was when it was judged. Of two
writers that meet one gets Conflict, looks again, and goes on or raises IntegrityError. An insert is durable on return.
What does not fit into a record becomes an artifact (kind "value") that the record names.

Two things differ from the recorders over SQL tables: versions of an originator only ascend (a lower one that was
skipped before is an IntegrityError), and tracking keeps every id. The runs live for ever, with operation id
"eventsourcing"; who shares a home with them passes `op_id` to `runs` and `recoverable`.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, TypeVar, final
from uuid import UUID

from blake3 import blake3
from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    DataError,
    InfrastructureFactory,
    IntegrityError,
    InterfaceError,
    InternalError,
    Notification,
    OperationalError,
    ProcessRecorder,
    StoredEvent,
    Subscription,
    Tracking,
    TrackingRecorder,
)
from eventsourcing.utils import Environment, EnvType, resolve_topic

from casstore import values
from casstore.errors import InvalidValue, StoreError
from journal.errors import (
    Conflict,
    EventTooLarge,
    InvalidArgument,
    InvalidEvent,
    InvalidStream,
    JournalClosed,
    JournalError,
    MissingArtifact,
)
from journal.events import DomainEvent, Event, RecordedEvent, RunStarted
from journal.feeding import follow_source
from journal.log import Journal, open_journal

__all__ = [
    "Factory",
    "JournalAggregateRecorder",
    "JournalApplicationRecorder",
    "JournalFactory",
    "JournalProcessRecorder",
    "JournalSubscription",
    "JournalTrackingRecorder",
]

OP_ID: Final = "eventsourcing"
STORED: Final = "stored_event"  # {originator: 16 bytes or text, version, topic, state}; or {version} and an artifact
NOTIFIED: Final = "notification"  # {run: 16 bytes, seq}
TRACKED: Final = "tracking"  # {notification_id}
INLINE_BYTES: Final = 1_700  # of a payload; the rest of a record (docs/FORMAT.md, 4.8) needs less than 200

T = TypeVar("T")
_PAGE: Final = 500
_ENDED: Final = 1 << 65  # above every version: what an event counts as that is none of ours, as of a run that was ended
_Batches = dict[UUID | str, tuple[int, list[Event]]]


class _Recorder:
    """What the recorders share: the names of runs, and one insert. `application` and `purpose` keep them apart."""

    def __init__(self, journal: Journal, application: str = "", purpose: str = "events") -> None:
        self._journal, self._application, self._purpose = journal, application, purpose
        self._log = self._run_id("log")
        self._inserting = threading.Lock()

    def _run_id(self, role: str, key: str = "") -> UUID:
        name = json.dumps([self._application, self._purpose, role, key])
        return UUID(bytes=blake3(b"journal.eventsourcing 1" + name.encode()).digest(16))

    def _stream(self, originator_id: UUID | str) -> UUID:
        return self._run_id("stream", str(originator_id))

    def _tracking(self, application_name: str) -> UUID:
        return self._run_id("tracking", application_name)

    def _insert(
        self, stored: Sequence[StoredEvent], tracking: Tracking | None = None, *, notify: bool = False
    ) -> list[int]:  # fmt: skip
        """All or nothing, durable on return; the notification ids where `notify`. Raises: IntegrityError."""
        missed = 0
        # Threads that insert take turns: each would move the log under the others, who would have to look again.
        with self._inserting, _translated():
            while True:
                try:
                    events = [_event_of(self._journal, item) for item in stored]
                    batches: _Batches = {}
                    places = self._add_stored(batches, stored, events)
                    ids = self._add_notified(batches, places) if notify and places else []
                    if tracking is not None:
                        self._add_tracked(batches, tracking)
                    self._journal.append_many(batches)
                    return ids
                except Conflict:  # another process or handle was faster; what it wrote decides
                    continue
                except MissingArtifact:  # collected between put and append: the next round puts it again
                    missed += 1
                    if missed == 3:
                        raise

    def _add_stored(
        self, batches: _Batches, stored: Sequence[StoredEvent], events: Sequence[Event]
    ) -> list[tuple[UUID, int]]:
        """Add the events to their streams' batches; run and seq that each gets. Raises: IntegrityError."""
        newest: dict[UUID, int] = {}
        places = []
        for item, event in zip(stored, events, strict=True):
            run_id = self._stream(item.originator_id)
            if run_id not in batches:
                head = self._open_batch(batches, run_id)
                newest[run_id] = self._version(run_id, head) if head else -_ENDED
            if newest[run_id] == _ENDED:
                raise OperationalError(f"the stream of {item.originator_id} was ended (run {run_id})")
            if item.originator_version <= newest[run_id]:
                raise IntegrityError(f"version {item.originator_version} of {item.originator_id} does not follow "
                                     f"version {newest[run_id]}")  # fmt: skip
            newest[run_id] = item.originator_version
            expected, batch = batches[run_id]
            batch.append(event)
            places.append((run_id, expected + len(batch)))
        return places

    def _add_notified(
        self, batches: _Batches, places: Iterable[tuple[UUID, int]]
    ) -> list[int]:  # fmt: skip
        """Add the places to the log; the notification ids that they get."""
        first = self._open_batch(batches, self._log) or 1
        batch = batches[self._log][1]
        batch += [DomainEvent(NOTIFIED, {"run": run_id.bytes, "seq": seq}) for run_id, seq in places]
        return list(range(first, batches[self._log][0] + len(batch)))

    def _add_tracked(self, batches: _Batches, tracking: Tracking) -> None:
        """Raises: IntegrityError where the id is not above all earlier ones."""
        run_id = self._tracking(tracking.application_name)
        newest = self._max_tracking_id(run_id, self._open_batch(batches, run_id))
        if newest is not None and tracking.notification_id <= newest:
            raise IntegrityError(f"notification {tracking.notification_id} of {tracking.application_name!r} is "
                                 f"tracked already, up to {newest}")  # fmt: skip
        batches[run_id][1].append(DomainEvent(TRACKED, {"notification_id": tracking.notification_id}))

    def _max_tracking_id(self, run_id: UUID, head: int) -> int | None:
        if not head:
            return None
        event = self._journal.read(run_id, head, head)[0].event
        if type(event) is not DomainEvent or event.name != TRACKED:
            raise OperationalError(f"the tracking was ended (run {run_id})")
        return int(event.payload["notification_id"])

    def _open_batch(self, batches: _Batches, run_id: UUID) -> int:
        """Begin a batch at the run's head, which is returned, with the start of a run that is new."""
        head = self._journal.head(run_id)
        events: list[Event] = []
        if not head:
            about = self._journal.store.put_value(
                {"application": self._application, "purpose": self._purpose}, kind="manifest", durable=False
            )
            events.append(RunStarted(op_id=OP_ID, manifest_id=about, initial_snapshot_id=about))
        batches[run_id] = (head, events)
        return head

    def _version(self, run_id: UUID, seq: int) -> int:
        event = self._journal.read(run_id, seq, seq)[0].event
        if type(event) is not DomainEvent or event.name != STORED:
            return _ENDED
        version: int = event.payload["version"]
        return version


class JournalAggregateRecorder(_Recorder, AggregateRecorder):
    """Streams without a notification log, for snapshots."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        self._insert(stored_events)
        return None

    def select_events(
        self, originator_id: UUID | str, *, gt: int | None = None, lte: int | None = None, desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:  # fmt: skip
        run_id = self._stream(originator_id)
        with _translated():
            head = self._journal.head(run_id)
            first = 2 if gt is None else self._seq_above(run_id, head, gt)
            last = head if lte is None else self._seq_above(run_id, head, lte) - 1
            if limit is not None and desc:
                first = max(first, last - limit + 1)
            elif limit is not None:
                last = min(last, first + limit - 1)
            return list(self._stored(self._journal.read(run_id, first, last, reverse=desc)))

    def _seq_above(self, run_id: UUID, head: int, version: int) -> int:
        """The seq of the first event with a version above this one, head + 1 where there is none.

        Versions ascend, so that those of the first and the last event bound it; without gaps to a single place.
        """
        if head < 2:
            return 2
        above = max(self._version(run_id, head) - version, 0)
        below = max(version + 1 - self._version(run_id, 2), 0)
        low, high = max(2, head + 1 - above), min(head + 1, 2 + below)
        return bisect_right(range(head + 2), version, low, high, key=lambda seq: self._version(run_id, seq))

    def _stored(self, recorded: Iterable[RecordedEvent]) -> Iterator[StoredEvent]:
        for item in recorded:
            event = item.event
            if type(event) is DomainEvent and event.name == STORED:
                yield _stored_of(self._journal, event)


class JournalApplicationRecorder(JournalAggregateRecorder, ApplicationRecorder):
    """Streams and the log of notifications, whose ids count from 1 without gaps in the order of the commits."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        return self._insert(stored_events, notify=True)

    def select_notifications(
        self, start: int | None, limit: int, stop: int | None = None, topics: Sequence[str] = (), *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:  # fmt: skip
        after = 0 if start is None else max(start - inclusive_of_start, 0)
        page = _PAGE if topics else min(limit, _PAGE)
        found = self.notifications(after, stop, page)
        return list(islice((item for item in found if not topics or item.topic in topics), limit))

    def max_notification_id(self) -> int | None:
        with _translated():
            return max(self._journal.head(self._log) - 1, 0) or None

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> JournalSubscription:
        return JournalSubscription(self, gt, topics)

    def notifications(self, after: int, stop: int | None = None, page: int = _PAGE) -> Iterator[Notification]:
        """All notifications above one id and up to another, ascending, read in pages of at most `page`."""
        while page > 0:
            last = after + page if stop is None else min(after + page, stop)
            with _translated():
                found = list(self._page(self._journal.read(self._log, after + 2, last + 1)))
            yield from found
            if len(found) < page:
                return
            after += page

    def _page(self, log: Sequence[RecordedEvent]) -> Iterator[Notification]:
        for first, run_id, seq, count in _spans(log):
            for place, item in enumerate(self._stored(self._journal.read(run_id, seq, seq + count - 1))):
                yield Notification(item.originator_id, item.originator_version, item.topic, item.state, first + place)


class JournalTrackingRecorder(_Recorder, TrackingRecorder):
    """The newest notification of each upstream application that was processed."""

    def insert_tracking(self, tracking: Tracking) -> None:
        self._insert((), tracking)

    def max_tracking_id(self, application_name: str) -> int | None:
        run_id = self._tracking(application_name)
        with _translated():
            return self._max_tracking_id(run_id, self._journal.head(run_id))


class JournalProcessRecorder(JournalTrackingRecorder, JournalApplicationRecorder, ProcessRecorder):
    """Events, and in the same append the `tracking` of the notification that they follow from."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        return self._insert(stored_events, kwargs.get("tracking"), notify=True)


@final
class JournalSubscription(Subscription[JournalApplicationRecorder]):
    """Notifications above an id as they come, of any process; `stop` may be called from any thread."""

    def __init__(self, recorder: JournalApplicationRecorder, gt: int | None = None, topics: Sequence[str] = ()) -> None:
        super().__init__(recorder, gt, topics)
        self._seen = max(gt or 0, 0)
        self.ended = False
        self._items = follow_source(recorder._journal, self, None)

    def stop(self) -> None:
        super().stop()
        self.ended = True
        self._recorder._journal._bell.ring()

    def __next__(self) -> Notification:
        if not self.ended:
            with _translated():
                for item in self._items:
                    return item
        raise StopIteration

    # -- as a Source

    def check(self) -> None:
        self._recorder._journal._check()

    def page(self) -> list[Notification]:
        found: list[Notification] = []
        while not found:
            before = self._seen
            for item in islice(self._recorder.notifications(before), _PAGE):
                self._seen = item.id  # what is not wanted is not looked at again either
                if not self._topics or item.topic in self._topics:
                    found.append(item)
            if self._seen == before:
                break
        return found


class JournalFactory(InfrastructureFactory[JournalTrackingRecorder]):
    """Recorders over the journal at JOURNAL_HOME. Applications may share a home: their names keep them apart."""

    JOURNAL_HOME = "JOURNAL_HOME"
    MEMORY = ":memory:"

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        home = self.env.get(self.JOURNAL_HOME)
        if not home:
            raise OSError(f"JOURNAL_HOME not found in environment with keys: "
                          f"{', '.join(self.env.create_keys(self.JOURNAL_HOME))}")  # fmt: skip
        self.journal = _open(home)
        self._application = self.env.name

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        return JournalAggregateRecorder(self.journal, self._application, purpose)

    def application_recorder(self) -> ApplicationRecorder:
        wanted = self._wanted(self.APPLICATION_RECORDER_TOPIC, JournalApplicationRecorder)
        return wanted(self.journal, self._application)

    def tracking_recorder(
        self, tracking_recorder_class: type[JournalTrackingRecorder] | None = None
    ) -> JournalTrackingRecorder:
        wanted = tracking_recorder_class or self._wanted(self.TRACKING_RECORDER_TOPIC, JournalTrackingRecorder)
        return wanted(self.journal, self._application)

    def process_recorder(self) -> ProcessRecorder:
        return self._wanted(self.PROCESS_RECORDER_TOPIC, JournalProcessRecorder)(self.journal, self._application)

    def close(self) -> None:
        self.journal.close()

    def _wanted(self, key: str, default: type[T]) -> type[T]:
        topic = self.env.get(key)
        return resolve_topic(topic) if topic else default


Factory = JournalFactory


# -- forms ----------------------------------------------------------------------------------------------


def _event_of(journal: Journal, stored: StoredEvent) -> DomainEvent:
    """The domain event of a stored event; one that is too large for a record is put."""
    originator = stored.originator_id.bytes if isinstance(stored.originator_id, UUID) else stored.originator_id
    payload = {"originator": originator, "version": stored.originator_version, "topic": stored.topic,
               "state": bytes(stored.state)}  # fmt: skip
    if len(values.encode(payload)[0]) <= INLINE_BYTES:
        return DomainEvent(STORED, payload)
    moved = journal.store.put_value(payload, durable=False)  # the append flushes what it names
    return DomainEvent(STORED, {"version": stored.originator_version}, payload_ref=moved)


def _stored_of(journal: Journal, event: DomainEvent) -> StoredEvent:
    payload = event.payload if event.payload_ref is None else journal.store.get_value(event.payload_ref)
    originator = payload["originator"]
    if type(originator) is bytes:
        originator = UUID(bytes=originator)
    return StoredEvent(originator, payload["version"], payload["topic"], payload["state"])


def _spans(log: Iterable[RecordedEvent]) -> Iterator[tuple[int, UUID, int, int]]:
    """(first notification id, run, first seq, count): notifications that stand side by side in log and stream."""
    span: tuple[int, UUID, int, int] | None = None
    for item in log:
        event = item.event
        if type(event) is not DomainEvent or event.name != NOTIFIED:
            continue
        run_id, seq = UUID(bytes=event.payload["run"]), event.payload["seq"]
        if span is not None and span[1] == run_id and span[2] + span[3] == seq:
            span = (*span[:3], span[3] + 1)
            continue
        if span is not None:
            yield span
        span = (item.seq - 1, run_id, seq, 1)
    if span is not None:
        yield span


# -- edges ----------------------------------------------------------------------------------------------


def _open(home: str) -> Journal:
    if home == JournalFactory.MEMORY:
        from journal.testing import memory_journal  # only who asks for it pays for it

        return memory_journal()
    with _translated():
        return open_journal(home)


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of journal and store as those that `eventsourcing` promises; the original is the cause."""
    try:
        yield
    except JournalClosed as error:
        raise InterfaceError(str(error)) from error
    except (InvalidEvent, InvalidArgument, EventTooLarge, InvalidValue) as error:
        ended = isinstance(error, InvalidEvent) and error.rule == "after_run_completed"
        raise (OperationalError if ended else DataError)(str(error)) from error
    except InvalidStream as error:
        raise InternalError(str(error)) from error
    except (JournalError, StoreError) as error:
        raise OperationalError(str(error)) from error
