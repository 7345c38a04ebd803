"""Peers of the event workloads: small events of runs, appended in order and durable on return."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Final

import cbor2
import lmdb

import journal
from benchmarks.measure import OURS
from benchmarks.peers import AnyPeer, Connections, event_key, run_uuid

NAME: Final = "tick"


class EventPeer(AnyPeer):
    """A log of runs. Calls of a run come from one thread; `read` and `numbers` from any."""

    def __init__(self, home: Path, count: int = 0) -> None:
        """`count` events of run 0 are to come, where a workload knows that."""
        super().__init__(home)
        self.count = count

    def begin(self, run: int) -> None:
        """Before the first event of a run; not timed."""

    @abstractmethod
    def append(self, run: int, number: int) -> None:
        """Append event `number` of a run."""

    @abstractmethod
    def append_batch(self, run: int, first: int, size: int) -> None:
        """Append events `first` to `first + size - 1`, all or nothing."""

    @abstractmethod
    def read(self, run: int) -> list[Any]:
        """Every event of a run, as what a program works with."""

    @abstractmethod
    def read_raw(self, run: int) -> list[Any]:
        """Every event of a run with the least that is done to it."""

    @abstractmethod
    def numbers(self, run: int) -> list[int]:
        """The numbers of a run's events."""

    def commits(self) -> int:
        """The number of its newest commit, 0 where it cannot say."""
        return 0


class OursEvents(EventPeer):
    """Domain events of runs of the journal."""

    name = OURS
    note = "checked against the rules; chain and indexes kept"
    before: ClassVar[int] = 2  # RunStarted and run_policy

    def __init__(self, home: Path, count: int = 0) -> None:
        super().__init__(home, count)
        self._journal = journal.open(home / "home")

    def begin(self, run: int) -> None:
        self._journal.start_run("bench", manifest={}, context={}, run_id=run_uuid(run), claim=False)

    def append(self, run: int, number: int) -> None:
        made = journal.DomainEvent(NAME, {"name": NAME, "number": number})
        self._journal.append(run_uuid(run), self.before + number, [made])

    def append_batch(self, run: int, first: int, size: int) -> None:
        made = [journal.DomainEvent(NAME, {"name": NAME, "number": first + at}) for at in range(size)]
        self._journal.append(run_uuid(run), self.before + first, made)

    def read(self, run: int) -> list[Any]:
        return self._journal.read(run_uuid(run))

    def read_raw(self, run: int) -> list[Any]:
        return self._journal.read_raw(run_uuid(run))

    def numbers(self, run: int) -> list[int]:
        events = [recorded.event for recorded in self.read(run)]
        return [one.payload["number"] for one in events if isinstance(one, journal.DomainEvent) and one.name == NAME]

    def commits(self) -> int:
        return self._journal._backend.version()

    def close(self) -> None:
        self._journal.close()


class RawLmdbEvents(EventPeer):
    """A CBOR record each in bare LMDB; one commit for each call."""

    name = "raw_lmdb"
    note = "a put and a commit"

    def __init__(self, home: Path, count: int = 0) -> None:
        super().__init__(home, count)
        self._env = lmdb.open(str(home / "l"), map_size=1 << 34)

    def append(self, run: int, number: int) -> None:
        self.append_batch(run, number, 1)

    def append_batch(self, run: int, first: int, size: int) -> None:
        made = [(event_key(run, at), cbor2.dumps([run, at, NAME, {"number": at}])) for at in range(first, first + size)]
        with self._env.begin(write=True) as txn:
            for key, value in made:
                txn.put(key, value)

    def read(self, run: int) -> list[Any]:
        return [cbor2.loads(value) for value in self.read_raw(run)]

    def read_raw(self, run: int) -> list[Any]:
        end = event_key(run + 1, 0)
        found = []
        with self._env.begin() as txn, txn.cursor() as cursor:
            if cursor.set_range(event_key(run, 0)):
                for key, value in cursor:
                    if key >= end:
                        break
                    found.append(value)
        return found

    def numbers(self, run: int) -> list[int]:
        return [record[1] for record in self.read(run)]

    def close(self) -> None:
        self._env.close()


class FloorEvents(EventPeer):
    """Bare LMDB that writes in each batch the very rows that ours writes: records, a row of the batch, the run's row.

    They are made by ours beforehand, in a home of its own, and read from its tables.
    """

    name = "floor"
    note = "bare LMDB, the bytes, rows and commits of ours"

    def begin(self, run: int) -> None:
        ours = OursEvents(self.home / "made")
        ours.begin(run)
        step = 1000
        for first in range(0, self.count, step):
            ours.append_batch(run, first, min(step, self.count - first))
        ours.close()
        made = lmdb.open(str(self.home / "made" / "home" / "journal"), map_size=1 << 34, max_dbs=24, readonly=True)
        with made.begin() as txn:
            names = (b"ev1", b"rs1", b"run1")
            tables = {name: list(txn.cursor(made.open_db(name, txn, create=False))) for name in names}
        made.close()
        self._records = tables[b"ev1"][OursEvents.before :]
        self._batches, self._row = tables[b"rs1"][1:], tables[b"run1"][0]
        self._env = lmdb.open(str(self.home / "l"), map_size=1 << 34, max_dbs=3)
        self._ev, self._rs, self._run = (self._env.open_db(name) for name in (b"ev1", b"rs1", b"run1"))

    def append(self, run: int, number: int) -> None:
        raise NotImplementedError

    def append_batch(self, run: int, first: int, size: int) -> None:
        with self._env.begin(write=True) as txn:
            for key, record in self._records[first : first + size]:
                txn.put(key, record, db=self._ev, append=True)
            txn.put(*self._batches[first // size], db=self._rs)
            txn.put(*self._row, db=self._run)

    def read(self, run: int) -> list[Any]:
        return [cbor2.loads(value) for value in self.read_raw(run)]

    def read_raw(self, run: int) -> list[Any]:
        with self._env.begin() as txn:
            return [value for _, value in txn.cursor(self._ev)]

    def numbers(self, run: int) -> list[int]:
        return [cbor2.loads(cbor2.loads(value)[5][1])["number"] for value in self.read_raw(run)]

    def close(self) -> None:
        self._env.close()


class SqliteEvents(EventPeer):
    """A table of events with JSON; WAL, synchronous=FULL, a connection for each thread."""

    name = "sqlite_wal"
    note = "one table, WAL, synchronous=FULL"

    def __init__(self, home: Path, count: int = 0) -> None:
        super().__init__(home, count)
        self._db = Connections(home / "x.db")
        self._db().execute(
            "create table if not exists ev(run int, seq int, kind text, body text, primary key(run, seq))"
        )

    def append(self, run: int, number: int) -> None:
        self.append_batch(run, number, 1)

    def append_batch(self, run: int, first: int, size: int) -> None:
        db = self._db()
        made = [(run, at, NAME, json.dumps({"name": NAME, "number": at})) for at in range(first, first + size)]
        db.execute("begin immediate")
        db.executemany("insert into ev values(?,?,?,?)", made)
        db.execute("commit")

    def read(self, run: int) -> list[Any]:
        return [(*rest, json.loads(body)) for *rest, body in self.read_raw(run)]

    def read_raw(self, run: int) -> list[Any]:
        return self._db().execute("select run, seq, kind, body from ev where run=? order by seq", (run,)).fetchall()

    def numbers(self, run: int) -> list[int]:
        return [body["number"] for *_, body in self.read(run)]

    def close(self) -> None:
        self._db.close()


class EventSourcingEvents(EventPeer):
    """The package eventsourcing over SQLite: an aggregate for each run, saved after each event or batch."""

    name = "eventsourcing"
    requires = ("eventsourcing",)
    note = "SQLite"

    def __init__(self, home: Path, count: int = 0) -> None:
        super().__init__(home, count)
        from benchmarks.eventsourced import open_app

        self.app = open_app(home)
        self._runs: dict[int, Any] = {}

    def begin(self, run: int) -> None:
        from benchmarks.eventsourced import Growing

        self._runs[run] = Growing(run)
        self.app.save(self._runs[run])

    def append(self, run: int, number: int) -> None:
        self.append_batch(run, number, 1)

    def append_batch(self, run: int, first: int, size: int) -> None:
        aggregate = self._runs[run]
        for number in range(first, first + size):
            aggregate.happened(NAME, number)
        self.app.save(aggregate)

    def read(self, run: int) -> list[Any]:
        return list(self.app.events.get(run_uuid(run)))

    def read_raw(self, run: int) -> list[Any]:
        return list(self.app.recorder.select_events(run_uuid(run)))

    def numbers(self, run: int) -> list[int]:
        return [event.number for event in self.read(run) if hasattr(event, "number")]

    def close(self) -> None:
        self.app.close()


PEERS: Final[list[type[EventPeer]]] = [OursEvents, RawLmdbEvents, SqliteEvents, EventSourcingEvents]
BATCHES: Final[list[type[EventPeer]]] = [OursEvents, FloorEvents, RawLmdbEvents, SqliteEvents, EventSourcingEvents]
