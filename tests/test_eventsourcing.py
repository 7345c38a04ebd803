"""The package `eventsourcing` over the journal: the tests that it ships for recorders and factories, and our own.

Every shipped class runs twice, over a home on disk and over the journal in memory.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest

pytest.importorskip("eventsourcing", reason="the extra `eventsourcing` is not installed")

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import (
    DataError,
    InfrastructureFactory,
    IntegrityError,
    InterfaceError,
    Notification,
    OperationalError,
    StoredEvent,
    Tracking,
)
from eventsourcing.tests import application as shipped_application
from eventsourcing.tests import persistence as shipped
from eventsourcing.tests import projection as shipped_projection
from eventsourcing.utils import Environment, get_topic

import journal
from journal.eventsourcing import (
    INLINE_BYTES,
    OP_ID,
    JournalAggregateRecorder,
    JournalApplicationRecorder,
    JournalFactory,
    JournalProcessRecorder,
    JournalSubscription,
    JournalTrackingRecorder,
)
from journal.testing import memory_journal

CONTEXT = multiprocessing.get_context("spawn")
TOPIC = "journal.eventsourcing"

# -- what is shipped ------------------------------------------------------------------------------------


class OnDisk:
    """A new home for each test."""

    def setUp(self) -> None:
        self.home = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.home)  # type: ignore[attr-defined]
        self.before = {name: os.environ.get(name) for name in ("PERSISTENCE_MODULE", "JOURNAL_HOME")}
        os.environ.update({"PERSISTENCE_MODULE": TOPIC, "JOURNAL_HOME": self.home})
        self.env = Environment(env={"PERSISTENCE_MODULE": TOPIC, "JOURNAL_HOME": self.home})
        super().setUp()

    def tearDown(self) -> None:
        super().tearDown()
        for name, value in self.before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

    def new_journal(self) -> journal.Journal:
        jrn = journal.open(self.home)
        self.addCleanup(jrn.close)  # type: ignore[attr-defined]
        self.addCleanup(self.check, jrn)  # type: ignore[attr-defined]
        return jrn

    def check(self, jrn: journal.Journal) -> None:
        """Whatever a test wrote are legal streams, intact."""
        assert jrn.verify() == []


class InMemory(OnDisk):
    """A new journal for each test."""

    def setUp(self) -> None:
        super().setUp()
        self.env["JOURNAL_HOME"] = os.environ["JOURNAL_HOME"] = JournalFactory.MEMORY

    def new_journal(self) -> journal.Journal:
        jrn = memory_journal()
        self.addCleanup(jrn.close)  # type: ignore[attr-defined]
        self.addCleanup(self.check, jrn)  # type: ignore[attr-defined]
        return jrn


class AggregateRecorderTests:
    def create_recorder(self) -> JournalAggregateRecorder:
        return JournalAggregateRecorder(self.new_journal())  # type: ignore[attr-defined]


class ApplicationRecorderTests:
    def create_recorder(self) -> JournalApplicationRecorder:
        return JournalApplicationRecorder(self.new_journal())  # type: ignore[attr-defined]

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()  # type: ignore[attr-defined]


class TextOriginators:
    def new_originator_id(self) -> str:
        return f"account-{uuid4()}"


class TestAggregateRecorder(OnDisk, AggregateRecorderTests, shipped.AggregateRecorderTestCase):
    pass


class TestAggregateRecorderInMemory(InMemory, AggregateRecorderTests, shipped.AggregateRecorderTestCase):
    pass


class TestAggregateRecorderWithText(
    OnDisk, AggregateRecorderTests, TextOriginators, shipped.AggregateRecorderTestCase
):
    pass


class TestApplicationRecorder(OnDisk, ApplicationRecorderTests, shipped.ApplicationRecorderTestCase):
    pass


class TestApplicationRecorderInMemory(InMemory, ApplicationRecorderTests, shipped.ApplicationRecorderTestCase):
    pass


class TestApplicationRecorderWithText(
    InMemory, ApplicationRecorderTests, TextOriginators, shipped.ApplicationRecorderTestCase
):
    pass


class NonInterleavingTests:
    def create_recorder(self) -> JournalApplicationRecorder:
        return JournalApplicationRecorder(self.new_journal())  # type: ignore[attr-defined]


class TestNonInterleaving(OnDisk, NonInterleavingTests, shipped.NonInterleavingNotificationIDsBaseCase):
    pass


class TestNonInterleavingInMemory(InMemory, NonInterleavingTests, shipped.NonInterleavingNotificationIDsBaseCase):
    pass


class TrackingRecorderTests:
    def create_recorder(self) -> JournalTrackingRecorder:
        return JournalTrackingRecorder(self.new_journal())  # type: ignore[attr-defined]


class TestTrackingRecorder(OnDisk, TrackingRecorderTests, shipped.TrackingRecorderTestCase):
    pass


class TestTrackingRecorderInMemory(InMemory, TrackingRecorderTests, shipped.TrackingRecorderTestCase):
    pass


class ProcessRecorderTests:
    def create_recorder(self) -> JournalProcessRecorder:
        return JournalProcessRecorder(self.new_journal())  # type: ignore[attr-defined]


class TestProcessRecorder(OnDisk, ProcessRecorderTests, shipped.ProcessRecorderTestCase):
    pass


class TestProcessRecorderInMemory(InMemory, ProcessRecorderTests, shipped.ProcessRecorderTestCase):
    pass


class OwnTrackingRecorder(JournalTrackingRecorder):
    pass


class FactoryTests:
    def expected_factory_class(self) -> type[JournalFactory]:
        return JournalFactory

    def expected_aggregate_recorder_class(self) -> type[JournalAggregateRecorder]:
        return JournalAggregateRecorder

    def expected_application_recorder_class(self) -> type[JournalApplicationRecorder]:
        return JournalApplicationRecorder

    def expected_tracking_recorder_class(self) -> type[JournalTrackingRecorder]:
        return JournalTrackingRecorder

    def tracking_recorder_subclass(self) -> type[JournalTrackingRecorder]:
        return OwnTrackingRecorder

    def expected_process_recorder_class(self) -> type[JournalProcessRecorder]:
        return JournalProcessRecorder


class TestFactory(OnDisk, FactoryTests, shipped.InfrastructureFactoryTestCase[JournalFactory]):
    pass


class TestFactoryInMemory(InMemory, FactoryTests, shipped.InfrastructureFactoryTestCase[JournalFactory]):
    pass


class TestExampleApplication(OnDisk, shipped_application.ExampleApplicationTestCase):
    expected_factory_topic = "journal.eventsourcing:JournalFactory"


class TestExampleApplicationInMemory(InMemory, shipped_application.ExampleApplicationTestCase):
    expected_factory_topic = "journal.eventsourcing:JournalFactory"


# One test looks at a deprecation of the package's own, which must be a warning for that.
@pytest.mark.filterwarnings("default::DeprecationWarning")
class TestApplication(OnDisk, shipped_application.ApplicationTestCase):
    pass


@pytest.mark.filterwarnings("default::DeprecationWarning")
class TestApplicationInMemory(InMemory, shipped_application.ApplicationTestCase):
    pass


class TestEventSourcedProjection(OnDisk, shipped_projection.EventSourcedProjectionTestCase):
    pass


class CountersView(JournalProcessRecorder, shipped_projection.EventCountersView):
    """A view that counts in streams of its own, each count in the same append as its tracking."""

    def get_created_event_counter(self) -> int:
        return self._count("created")

    def get_subsequent_event_counter(self) -> int:
        return self._count("subsequent")

    def incr_created_event_counter(self, tracking: Tracking) -> None:
        self._increment("created", tracking)

    def incr_subsequent_event_counter(self, tracking: Tracking) -> None:
        self._increment("subsequent", tracking)

    def _count(self, name: str) -> int:
        newest = self.select_events(name, desc=True, limit=1)
        return newest[0].originator_version if newest else 0

    def _increment(self, name: str, tracking: Tracking) -> None:
        self.insert_events([StoredEvent(name, self._count(name) + 1, "counted", b"")], tracking=tracking)


class TestCountersView(OnDisk, shipped_projection.EventCountersViewTestCase):
    def construct_event_counters_view(self) -> CountersView:
        return CountersView(self.new_journal(), "view")


class TestProjection(OnDisk, shipped_projection.AggregateEventCountersProjectionTestCase):
    view_class = CountersView
    env: ClassVar[dict[str, str]]  # type: ignore[misc]


# -- ours -----------------------------------------------------------------------------------------------


@pytest.fixture
def jrn(tmp_path: Path) -> Iterator[journal.Journal]:
    with journal.open(tmp_path / "home") as opened:
        yield opened


def event(originator: UUID | str, version: int, topic: str = "topic", state: bytes = b"state") -> StoredEvent:
    return StoredEvent(originator, version, topic, state)


@pytest.mark.parametrize("size", [0, INLINE_BYTES - 200, INLINE_BYTES, 1_900, 100_000, 3_000_000])
@pytest.mark.parametrize("originator", [UUID(int=7), "text", "ö" * 1_000])
def test_states_of_any_size(jrn: journal.Journal, originator: UUID | str, size: int) -> None:
    """A state that does not fit into a record comes back from an artifact, and gc keeps that."""
    recorder = JournalApplicationRecorder(jrn)
    stored = event(originator, 1, state=os.urandom(size))
    recorder.insert_events([stored])
    jrn.store.gc(roots=jrn, grace=0)
    assert recorder.select_events(originator) == [stored]
    assert recorder.select_notifications(1, 1)[0].state == stored.state


def test_bytes_that_look_like_links_are_only_bytes(jrn: journal.Journal) -> None:
    """A state that is DAG-CBOR with a link to an artifact that is nowhere."""
    nowhere = bytes.fromhex("d82a5825000155 1e20".replace(" ", "")) + bytes(32)
    recorder = JournalApplicationRecorder(jrn)
    for version, state in enumerate((nowhere, b"\x81" + nowhere, b"\x82" + nowhere + b"\x59\x10\x00" + bytes(4096))):
        recorder.insert_events([event("a", version, state=state)])
        assert recorder.select_events("a", desc=True, limit=1)[0].state == state


def test_ranges_of_versions_with_gaps(jrn: journal.Journal) -> None:
    """Every range of a stream whose versions leave gaps, both ways and with every limit."""
    versions = [-3, 0, 1, 2, 7, 8, 20, 21, 22, 40]
    recorder = JournalAggregateRecorder(jrn)
    recorder.insert_events([event("a", version) for version in versions[:4]])
    for version in versions[4:]:
        recorder.insert_events([event("a", version)])
    bounds = [None, *range(-5, 43)]
    for gt in bounds:
        for lte in bounds[::3]:
            wanted = [v for v in versions if (gt is None or v > gt) and (lte is None or v <= lte)]
            assert [e.originator_version for e in recorder.select_events("a", gt=gt, lte=lte)] == wanted
            back = recorder.select_events("a", gt=gt, lte=lte, desc=True, limit=2)
            assert [e.originator_version for e in back] == wanted[::-1][:2]
            assert [e.originator_version for e in recorder.select_events("a", gt=gt, lte=lte, limit=1)] == wanted[:1]
    assert recorder.select_events("a", limit=0) == []


@pytest.mark.parametrize("versions", [[1, 1], [2, 1], [1, 2, 2], [0], [-1]])
def test_versions_only_ascend(jrn: journal.Journal, versions: list[int]) -> None:
    """Refused whole, with what stood before left alone."""
    recorder = JournalApplicationRecorder(jrn)
    recorder.insert_events([event("a", 0)])
    with pytest.raises(IntegrityError):
        recorder.insert_events([event("b", 1), *(event("a", version) for version in versions)])
    assert recorder.select_events("b") == []
    assert recorder.max_notification_id() == 1


def test_one_insert_into_many_streams(jrn: journal.Journal) -> None:
    """Ids follow the order of the batch, across streams."""
    recorder = JournalApplicationRecorder(jrn)
    batch = [event(name, version) for version, name in enumerate("abaabbcab")]
    assert recorder.insert_events(batch) == list(range(1, 10))
    assert recorder.insert_events([]) == []
    found = recorder.select_notifications(None, 100)
    assert [(item.id, item.originator_id, item.originator_version) for item in found] == [
        (place, item.originator_id, item.originator_version) for place, item in enumerate(batch, 1)
    ]


def test_applications_share_a_home(jrn: journal.Journal) -> None:
    """And with runs of an orchestrator: ids of each count from 1."""
    first, second = JournalApplicationRecorder(jrn, "First"), JournalApplicationRecorder(jrn, "Second")
    assert first.insert_events([event("a", 1)]) == [1]
    run = jrn.start_run("flow", manifest={}, context={})
    assert second.insert_events([event("a", 1), event("a", 2)]) == [1, 2]
    run.emit("note", {})
    assert first.insert_events([event("a", 2)]) == [2]
    assert len(first.select_events("a")) == len(second.select_events("a")) == 2
    JournalAggregateRecorder(jrn, "First", "snapshots").insert_events([event("a", 1)])
    assert first.max_notification_id() == 2
    assert {found.op_id for found in jrn.runs()} == {OP_ID, "flow"}


def test_an_aggregate_recorder_notifies_nobody(jrn: journal.Journal) -> None:
    """Of the same stream too: its events have no ids, and the others' ids have no gap."""
    notifying, silent = JournalApplicationRecorder(jrn), JournalAggregateRecorder(jrn)
    notifying.insert_events([event("a", 1)])
    silent.insert_events([event("a", 2)])
    assert notifying.insert_events([event("a", 3)]) == [2]
    assert [item.originator_version for item in notifying.select_events("a")] == [1, 2, 3]
    assert [(item.id, item.originator_version) for item in notifying.select_notifications(1, 9)] == [(1, 1), (2, 3)]


def test_an_originator_is_its_text_too(jrn: journal.Journal) -> None:
    recorder = JournalApplicationRecorder(jrn)
    name = uuid4()
    recorder.insert_events([event(name, 1)])
    assert recorder.select_events(str(name)) == [event(name, 1)]
    with pytest.raises(IntegrityError):
        recorder.insert_events([event(str(name), 1)])


def test_events_and_tracking_are_one(jrn: journal.Journal) -> None:
    """Where one of the two is refused, neither is kept."""
    recorder = JournalProcessRecorder(jrn)
    recorder.insert_events([event("a", 1)], tracking=Tracking("up", 5))
    for events, tracking in (([event("a", 2)], Tracking("up", 5)), ([event("a", 1)], Tracking("up", 6))):
        with pytest.raises(IntegrityError):
            recorder.insert_events(events, tracking=tracking)
    assert recorder.max_tracking_id("up") == 5
    assert recorder.select_events("a") == [event("a", 1)]
    assert recorder.max_notification_id() == 1


def test_topics_across_pages(jrn: journal.Journal) -> None:
    """A wanted topic is found however many others stand between."""
    recorder = JournalApplicationRecorder(jrn)
    recorder.insert_events([event("a", n, "rare" if n % 600 == 599 else "often") for n in range(1_200)])
    assert [item.id for item in recorder.select_notifications(1, 10, topics=["rare"])] == [600, 1_200]
    assert [item.id for item in recorder.select_notifications(1, 10, 1_199, topics=["rare"])] == [600]
    with recorder.subscribe(topics=["rare"]) as subscription:
        assert [next(subscription).id for _ in range(2)] == [600, 1_200]


def test_a_subscription_stops_from_another_thread(jrn: journal.Journal) -> None:
    recorder = JournalApplicationRecorder(jrn)
    recorder.insert_events([event("a", 1)])
    got: list[Notification] = []
    first = threading.Event()
    subscription = recorder.subscribe()

    def follow() -> None:
        for item in subscription:
            got.append(item)
            first.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert first.wait(60)
    subscription.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert [item.id for item in got] == [1]


def _insert_many(home: Path, name: str, rounds: int, ready: Any) -> None:
    """Insert into a stream of its own and, each round, into one that all want to have."""
    with journal.open(home) as jrn:
        recorder = JournalProcessRecorder(jrn)
        ready.wait(60)
        for version in range(rounds):
            recorder.insert_events([event(name, version), event(name + "'", version)])
            try:
                recorder.insert_events([event("shared", version, name)], tracking=Tracking("up", version))
            except IntegrityError:
                continue


def _stop_if_one_failed(processes: list[Any], subscription: JournalSubscription) -> None:
    """So that nobody waits for what will not come."""
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        subscription.stop()


def test_processes_insert_side_by_side(tmp_path: Path) -> None:
    """No id is missing or double, no pair is split, and of each shared version one process has it."""
    home, rounds, names = tmp_path / "home", 40, ["a", "b", "c"]
    journal.open(home).close()
    ready = CONTEXT.Barrier(len(names))
    processes = [CONTEXT.Process(target=_insert_many, args=(home, name, rounds, ready)) for name in names]
    with journal.open(home) as jrn:
        recorder = JournalProcessRecorder(jrn)
        with recorder.subscribe() as subscription:
            for process in processes:
                process.start()
            watcher = threading.Thread(target=_stop_if_one_failed, args=(processes, subscription))
            watcher.start()
            total = len(names) * rounds * 2 + rounds
            heard = list(islice(subscription, total))
        watcher.join()
        assert [process.exitcode for process in processes] == [0, 0, 0]
        found = recorder.select_notifications(None, 10_000)
        assert found == heard
        assert [item.id for item in found] == list(range(1, total + 1))
        for place, item in enumerate(found):
            if item.originator_id in names:
                assert found[place + 1].originator_id == f"{item.originator_id}'"
        assert [item.originator_version for item in recorder.select_events("shared")] == list(range(rounds))
        assert recorder.max_tracking_id("up") == rounds - 1
        assert jrn.verify() == []


class CollectedBetween(list[StoredEvent]):
    """Events that are gone over twice, to store their states and to place them; a gc runs in between."""

    def __init__(self, events: list[StoredEvent], jrn: journal.Journal) -> None:
        super().__init__(events)
        self.jrn, self.passes = jrn, 0
        self.collected: tuple[Any, ...] = ()

    def __iter__(self) -> Iterator[StoredEvent]:
        self.passes += 1
        if self.passes == 2:
            self.collected = self.jrn.store.gc(roots=self.jrn, grace=0).removed
        return super().__iter__()


def test_a_state_is_put_again_after_a_gc(jrn: journal.Journal) -> None:
    """An insert is not refused because gc took what it was about to name."""
    recorder = JournalApplicationRecorder(jrn)
    events = CollectedBetween([event("a", 1, state=os.urandom(5_000))], jrn)
    assert recorder.insert_events(events) == [1]
    assert events.collected
    assert recorder.select_events("a") == list(events)


def test_a_run_that_was_ended_takes_no_more(jrn: journal.Journal) -> None:
    """An operator cancelled a stream: what it holds can be read."""
    recorder = JournalApplicationRecorder(jrn)
    recorder.insert_events([event("a", 1), event("a", 2)])
    ended = next(item.run_id for item in jrn.feed() if getattr(item.event, "name", "") == "stored_event")
    jrn.cancel(ended, "by hand")
    with pytest.raises(OperationalError, match="ended"):
        recorder.insert_events([event("a", 3)])
    assert [item.originator_version for item in recorder.select_events("a", gt=1)] == [2]
    assert [item.originator_version for item in recorder.select_events("a", desc=True)] == [2, 1]
    assert recorder.insert_events([event("b", 1)]) == [3]
    log = next(item.run_id for item in jrn.feed() if getattr(item.event, "name", "") == "notification")
    jrn.cancel(log, "by hand")
    with pytest.raises(OperationalError, match="after the end"):
        recorder.insert_events([event("b", 2)])
    assert [item.id for item in recorder.select_notifications(None, 10)] == [1, 2, 3]


def test_errors_are_those_of_the_package(jrn: journal.Journal) -> None:
    recorder = JournalApplicationRecorder(jrn)
    with pytest.raises(DataError):
        recorder.insert_events([event("a", 1 << 70)])
    with pytest.raises(DataError):
        recorder.insert_events([event("\ud800", 1)])
    jrn.close()
    with pytest.raises(InterfaceError):
        recorder.select_events("a")
    with pytest.raises(OSError, match="JOURNAL_HOME"):
        InfrastructureFactory.construct({"PERSISTENCE_MODULE": TOPIC})


def test_an_application_comes_back(tmp_path: Path) -> None:
    """Opened again, it goes on where it was; two open at once see each other's events."""
    env = {"PERSISTENCE_MODULE": TOPIC, "JOURNAL_HOME": str(tmp_path / "home")}
    with Application[UUID](env=env) as app:
        aggregate = Aggregate()
        aggregate.trigger_event(Aggregate.Event)
        app.save(aggregate)
        app.close()
    with Application[UUID](env=env) as one, Application[UUID](env=env) as two:
        found: Aggregate = one.repository.get(aggregate.id)
        assert found.version == 2
        found.trigger_event(Aggregate.Event)
        assert one.save(found)[0].notification.id == 3
        late: Aggregate = two.repository.get(aggregate.id, version=2)
        late.trigger_event(Aggregate.Event)
        with pytest.raises(IntegrityError):
            two.save(late)
        again: Aggregate = two.repository.get(aggregate.id)
        assert again.version == 3
        one.close()
        two.close()


def test_topics_name_own_recorders(tmp_path: Path) -> None:
    env = {"PERSISTENCE_MODULE": TOPIC, "JOURNAL_HOME": str(tmp_path)}
    env["PROCESS_RECORDER_TOPIC"] = get_topic(CountersView)
    factory = InfrastructureFactory.construct(env)
    assert type(factory.process_recorder()) is CountersView
    factory.close()
