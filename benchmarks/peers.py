"""Peers of the step workloads: each keeps the full context of every step, each step durable before the next.

A peer that is not durable where its users would expect it is run as they run it, and says so in `note`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sqlite3
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import blake3
import cbor2
import lmdb
import zstandard

from benchmarks import postgres
from benchmarks.data import Context
from benchmarks.measure import disk_bytes

Steps = Iterable[tuple[int, Context]]  # (number, context)


def missing(requires: tuple[str, ...]) -> str | None:
    """The first of these modules, or servers, that is not installed."""
    for name in requires:
        if name == postgres.SERVER:
            if postgres.binaries() is None:
                return name
            continue
        try:
            if importlib.util.find_spec(name) is None:
                return name
        except ModuleNotFoundError:
            return name
    return None


class AnyPeer(ABC):
    """What those of all workloads have: a name in the tables, and a directory of their own."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    note: ClassVar[str] = ""

    def __init__(self, home: Path) -> None:
        self.home = home

    @classmethod
    def disk_bytes(cls, home: Path) -> int:
        """What it takes on disk."""
        return disk_bytes(home)

    @classmethod
    def cpu_s(cls, home: Path) -> float:
        """Seconds of the processor so far: of this process, and of a server's where there is one."""
        return time.process_time()

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""


class Connections:
    """A SQLite file with WAL and synchronous=FULL, a connection for each thread."""

    def __init__(self, path: Path) -> None:
        self._path, self._local = path, threading.local()
        self._made: list[sqlite3.Connection] = []
        self().execute("pragma journal_mode=wal")

    def __call__(self) -> sqlite3.Connection:
        """That of this thread."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = sqlite3.connect(self._path, isolation_level=None, timeout=60, check_same_thread=False)
            db.execute("pragma synchronous=full")
            self._local.db = db
            self._made.append(db)
        return db

    def close(self) -> None:
        """All of them."""
        for db in self._made:
            db.close()


class Peer(AnyPeer):
    """One store of the contexts of some runs. `begin` and `step` of a run are called by one thread."""

    def begin(self, run: int, context: Context) -> None:
        """Before the first step of a run; not timed."""

    @abstractmethod
    def step(self, run: int, number: int, context: Context) -> None:
        """Keep this context, durably."""

    def work(self, run: int, steps: Steps) -> None:
        """All steps of a run in turn; the next one is asked for when the one before is durable."""
        for number, context in steps:
            self.step(run, number, context)

    @abstractmethod
    def recover(self, run: int) -> Context:
        """The newest context of a run, asked of a fresh object."""

    def read(self, run: int, number: int) -> Context:
        """The context of an earlier step, asked by any thread while the run goes on."""
        raise NotImplementedError

    def commits(self) -> int:
        """The number of its newest commit, 0 where it cannot say."""
        return 0

    def resume(self, run: int) -> Context:
        """All that is needed to go on with a run, asked by any thread; nothing is written."""
        return self.recover(run)


class SqliteWal(Peer):
    """What a user writes instead: two tables, WAL, synchronous=FULL, JSON; a connection for each thread."""

    name = "sqlite_wal"
    note = "two tables, WAL, synchronous=FULL"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._db = Connections(home / "x.db")
        db = self._db()
        db.execute("create table if not exists snap(id text primary key, body blob)")
        db.execute("create table if not exists ev(run int, seq int, kind text, snap text, primary key(run, seq))")

    def step(self, run: int, number: int, context: Context) -> None:
        body = json.dumps(context).encode()
        name = hashlib.sha256(body).hexdigest()
        db = self._db()
        db.execute("begin immediate")
        db.execute("insert or ignore into snap values(?,?)", (name, body))
        db.execute("insert into ev values(?,?,?,?)", (run, 2 * number, "completed", name))
        db.execute("insert into ev values(?,?,?,?)", (run, 2 * number + 1, "entered", name))
        db.execute("commit")

    def recover(self, run: int) -> Context:
        return self._context("select snap from ev where run=? order by seq desc limit 1", run)

    def read(self, run: int, number: int) -> Context:
        return self._context("select snap from ev where run=? and seq=?", run, 2 * number)

    def _context(self, ask: str, *key: int) -> Context:
        db = self._db()
        (name,) = db.execute(ask, key).fetchone()
        found: Context = json.loads(db.execute("select body from snap where id=?", (name,)).fetchone()[0])
        return found

    def close(self) -> None:
        self._db.close()


class FilesJsonl(Peer):
    """Files named by their SHA-256 and a JSONL log for each run, all of them fsync'd."""

    name = "files_jsonl"
    note = "fsync of file, directory and log"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._logs: dict[int, Any] = {}

    def begin(self, run: int, context: Context) -> None:
        self._logs[run] = open_log(self.home, run)

    def step(self, run: int, number: int, context: Context) -> None:
        body = json.dumps(context).encode()
        name = hashlib.sha256(body).hexdigest()
        with open(self.home / name, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(self.home, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        append_line(self._logs[run], {"seq": number, "snap": name})

    def recover(self, run: int) -> Context:
        return self.read(run, -1)

    def read(self, run: int, number: int) -> Context:
        name = log_line(self.home / f"{run}.jsonl", number)["snap"]
        found: Context = json.loads((self.home / name).read_bytes())
        return found

    def close(self) -> None:
        for log in self._logs.values():
            log.close()


class LangGraph(Peer):
    """A saver of LangGraph, one put a step."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._configs: dict[int, Any] = {}
        self._steps: dict[tuple[int, int], Any] = {}

    @abstractmethod
    def _saver(self) -> Any:
        """The saver of this thread."""

    def begin(self, run: int, context: Context) -> None:
        self._configs[run] = self._config(run)

    def _config(self, run: int) -> Any:
        return {"configurable": {"thread_id": f"run{run}", "checkpoint_ns": ""}}

    def step(self, run: int, number: int, context: Context) -> None:
        from langgraph.checkpoint.base import empty_checkpoint

        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = context
        versions: Any = dict.fromkeys(context, f"{number + 1:032}")
        checkpoint["channel_versions"] = versions
        metadata: Any = {"source": "loop", "step": number, "parents": {}}
        made = self._saver().put(self._configs[run], checkpoint, metadata, versions)
        self._configs[run] = self._steps[run, number] = made

    def recover(self, run: int) -> Context:
        return self._context(self._config(run))

    def read(self, run: int, number: int) -> Context:
        return self._context(self._steps[run, number])

    def _context(self, config: Any) -> Context:
        found = self._saver().get_tuple(config)
        assert found is not None
        context: Context = found.checkpoint["channel_values"]
        return context


class LangGraphSqlite(LangGraph):
    """SqliteSaver of langgraph-checkpoint-sqlite; threads share the saver, which has a lock."""

    name = "langgraph_sqlite"
    requires = ("langgraph.checkpoint.sqlite",)
    note = "SqliteSaver, synchronous=FULL"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        from langgraph.checkpoint.sqlite import SqliteSaver

        self._db = sqlite3.connect(home / "lg.db", check_same_thread=False)
        self._db.execute("pragma synchronous=full")
        self._shared = SqliteSaver(self._db)
        self._shared.setup()

    def _saver(self) -> Any:
        return self._shared

    def close(self) -> None:
        self._db.close()


class EventSourcing(Peer):
    """The package eventsourcing over SQLite, an event with the full context a step."""

    name = "eventsourcing"
    requires = ("eventsourcing",)
    note = "SQLite; recovering replays the run"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        from benchmarks.eventsourced import open_app

        self._app = open_app(home)
        self._runs: dict[int, Any] = {}

    def begin(self, run: int, context: Context) -> None:
        from benchmarks.eventsourced import Growing

        self._runs[run] = Growing(run)

    def step(self, run: int, number: int, context: Context) -> None:
        self._runs[run].stepped(context)
        self._app.save(self._runs[run])

    def recover(self, run: int) -> Context:
        return self._context(run, None)

    def read(self, run: int, number: int) -> Context:
        return self._context(run, number + 2)  # the first version is that of the aggregate that began

    def _context(self, run: int, version: int | None) -> Context:
        from benchmarks.eventsourced import Growing

        found: Context = self._app.repository.get(Growing.create_id(run), version=version).context
        return found

    def close(self) -> None:
        self._app.close()


class DiskObjectStore(Peer):
    """disk-objectstore's loose objects and an fsync'd JSONL log for each run."""

    name = "disk_objectstore"
    requires = ("disk_objectstore",)
    note = "loose objects + fsync'd log"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._runs: dict[int, tuple[Any, Any]] = {}
        container = self._container()
        if not container.is_initialised:
            container.init_container()
        container.close()

    def _container(self) -> Any:
        from disk_objectstore import Container

        return Container(self.home / "c")

    def begin(self, run: int, context: Context) -> None:
        self._runs[run] = self._container(), open_log(self.home, run)

    def step(self, run: int, number: int, context: Context) -> None:
        container, log = self._runs[run]
        append_line(log, {"seq": number, "snap": container.add_object(json.dumps(context).encode())})

    def recover(self, run: int) -> Context:
        return self.read(run, -1)

    def read(self, run: int, number: int) -> Context:
        name = log_line(self.home / f"{run}.jsonl", number)["snap"]
        container = self._container()
        try:
            found: Context = json.loads(container.get_object_content(name))
            return found
        finally:
            container.close()

    def close(self) -> None:
        for container, log in self._runs.values():
            container.close()
            log.close()


class Git(Peer):
    """libgit2: one blob, tree and commit a step, loose objects."""

    name = "git"
    requires = ("pygit2",)
    note = "loose objects; no fsync by default"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        import pygit2

        pygit2.init_repository(str(home / "g"), bare=True)
        self._runs: dict[int, tuple[Any, list[Any]]] = {}

    def begin(self, run: int, context: Context) -> None:
        import pygit2

        self._runs[run] = pygit2.Repository(str(self.home / "g")), []

    def step(self, run: int, number: int, context: Context) -> None:
        import pygit2

        repo, parents = self._runs[run]
        builder = repo.TreeBuilder()
        builder.insert("context", repo.create_blob(json.dumps(context).encode()), 0o100644)
        who = pygit2.Signature("a", "a@b", 1_700_000_000 + number, 0)
        made = repo.create_commit(
            f"refs/heads/r{run}", who, who, f"completed {number}", builder.write(), list(parents)
        )
        parents[:] = [made]

    def recover(self, run: int) -> Context:
        import pygit2

        repo: Any = pygit2.Repository(str(self.home / "g"))
        found: Context = json.loads(repo.references[f"refs/heads/r{run}"].peel().tree["context"].data)
        return found

    def close(self) -> None:
        self._runs.clear()


class DiskCache(Peer):
    """diskcache: one pickled value a step, and a key for the newest."""

    name = "diskcache"
    requires = ("diskcache",)
    note = "synchronous=FULL; values above 32 KiB are files without fsync"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        import diskcache

        self._cache = diskcache.Cache(
            str(home / "dc"), size_limit=1 << 40, cull_limit=0, sqlite_synchronous=2, timeout=60
        )

    def step(self, run: int, number: int, context: Context) -> None:
        self._cache[run, number] = context
        self._cache["last", run] = number

    def recover(self, run: int) -> Context:
        return self.read(run, self._cache["last", run])

    def read(self, run: int, number: int) -> Context:
        found: Context = self._cache[run, number]
        return found

    def close(self) -> None:
        self._cache.close()


class RawLmdb(Peer):
    """Full snapshots in one LMDB environment: CBOR, zstd 3, BLAKE3, one durable commit a step. No rules, no names."""

    name = "raw_lmdb"
    note = "full snapshots: cbor2, zstd 3, BLAKE3"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._env = lmdb.open(str(home / "l"), map_size=1 << 36, max_dbs=2)
        self._snapshots = self._env.open_db(b"a")
        self._events = self._env.open_db(b"j")

    def step(self, run: int, number: int, context: Context) -> None:
        body = cbor2.dumps(context)
        name = blake3.blake3(body).digest()
        stored = zstandard.ZstdCompressor(level=3).compress(body)
        with self._env.begin(write=True) as txn:
            txn.put(name, stored, db=self._snapshots)
            txn.put(event_key(run, number), cbor2.dumps(["completed", name]), db=self._events)

    def recover(self, run: int) -> Context:
        with self._env.begin() as txn, txn.cursor(db=self._events) as cursor:
            if cursor.set_range(event_key(run + 1, 0)):
                cursor.prev()
            else:
                cursor.last()
            return self._context(txn, cursor.value())

    def read(self, run: int, number: int) -> Context:
        with self._env.begin() as txn:
            return self._context(txn, txn.get(event_key(run, number), db=self._events) or b"")

    def _context(self, txn: Any, event: bytes) -> Context:
        stored = txn.get(cbor2.loads(event)[1], db=self._snapshots) or b""
        found: Context = cbor2.loads(zstandard.ZstdDecompressor().decompress(stored))
        return found

    def commits(self) -> int:
        return int(self._env.info()["last_txnid"])

    def close(self) -> None:
        self._env.close()


def run_uuid(run: int) -> uuid.UUID:
    """The id that a run has wherever ids are UUIDs."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"benchmark:{run}")


def event_key(run: int, number: int) -> bytes:
    """Runs, and in a run events, in order."""
    return run.to_bytes(4, "big") + number.to_bytes(8, "big")


def open_log(home: Path, run: int) -> BinaryIO:
    """The log of a run, closed with its peer."""
    return open(home / f"{run}.jsonl", "ab")


def append_line(log: Any, entry: dict[str, Any]) -> None:
    """One line of JSON, on disk on return."""
    log.write(json.dumps(entry).encode() + b"\n")
    log.flush()
    os.fsync(log.fileno())


def log_line(path: Path, number: int) -> dict[str, Any]:
    """A line of a log that may be written to meanwhile, -1 the last one that is whole."""
    whole = path.read_bytes().rpartition(b"\n")[0]
    found: dict[str, Any] = json.loads(whole.splitlines()[number])
    return found
