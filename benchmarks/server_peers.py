"""Peers of the step workloads that need more than a file: PostgreSQL, and DBOS, which runs the steps itself."""

from __future__ import annotations

import sqlite3
import threading
from abc import abstractmethod
from pathlib import Path
from typing import Any, Final

from benchmarks.data import Context
from benchmarks.peers import AnyPeer, LangGraph, Peer, Steps, run_uuid
from benchmarks.postgres import SERVER, server

POOL: Final = 80  # connections: a run has a thread of its own


class Served(AnyPeer):
    """One whose data a server has."""

    @classmethod
    def disk_bytes(cls, home: Path) -> int:
        return server(home).bytes_of(home)

    @classmethod
    def cpu_s(cls, home: Path) -> float:
        return super().cpu_s(home) + server(home).cpu_s()


class LangGraphPostgres(Served, LangGraph):
    """PostgresSaver of langgraph-checkpoint-postgres, one put a step; a connection and a saver for each thread."""

    name = "langgraph_postgres"
    requires = ("langgraph.checkpoint.postgres", "psycopg", SERVER)
    note = "PostgresSaver, a connection a thread"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._address = server(home).database(home)
        self._local = threading.local()
        self._made: list[Any] = []
        self._saver().setup()

    def _saver(self) -> Any:
        saver = getattr(self._local, "saver", None)
        if saver is None:
            import psycopg
            from langgraph.checkpoint.postgres import PostgresSaver
            from psycopg.rows import dict_row

            db: Any = psycopg.connect(self._address, autocommit=True, prepare_threshold=0, row_factory=dict_row)
            self._made.append(db)
            saver = self._local.saver = PostgresSaver(db)
        return saver

    def close(self) -> None:
        for db in self._made:
            db.close()


class AnyDbos(Peer):
    """DBOS: a workflow for each run, a recorded step for each step."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._launched = False
        self._launching = threading.Lock()

    @abstractmethod
    def _url(self) -> str:
        """Its database."""

    def begin(self, run: int, context: Context) -> None:
        from dbos import DBOS

        with self._launching:
            if not self._launched:
                DBOS(config={"name": "bench", "system_database_url": self._url(), "log_level": "ERROR",
                             "sys_db_pool_size": POOL})  # fmt: skip
                DBOS.launch()
                self._launched = True

    def step(self, run: int, number: int, context: Context) -> None:
        raise NotImplementedError  # only a workflow has steps

    def work(self, run: int, steps: Steps) -> None:
        from dbos import SetWorkflowID

        from benchmarks import durable_flow

        durable_flow.SOURCES[run] = steps
        with SetWorkflowID(str(run_uuid(run))):
            durable_flow.growing(run)

    def recover(self, run: int) -> Context:
        """All steps are read, as they are where DBOS goes on with a workflow."""
        from dbos import DBOSClient

        client = DBOSClient(system_database_url=self._url())
        try:
            found: Context = client.list_workflow_steps(str(run_uuid(run)))[-1]["output"]
            return found
        finally:
            client.destroy()

    def close(self) -> None:
        from dbos import DBOS

        if self._launched:
            DBOS.destroy()


class DbosSqlite(AnyDbos):
    """Over SQLite, which is its default; WAL is not."""

    name = "dbos_sqlite"
    requires = ("dbos",)
    note = "SQLite, made to use WAL, synchronous=FULL"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        db = sqlite3.connect(home / "dbos.db")
        db.execute("pragma journal_mode=wal")
        db.close()

    def _url(self) -> str:
        return f"sqlite:///{self.home / 'dbos.db'}"


class DbosPostgres(Served, AnyDbos):
    """Over PostgreSQL."""

    name = "dbos_postgres"
    requires = ("dbos", "psycopg", SERVER)
    note = "PostgreSQL"

    def _url(self) -> str:
        return server(self.home).url(self.home)
