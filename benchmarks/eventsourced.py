"""The eventsourcing package's side of the workloads: an aggregate that grows, in an application over SQLite."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

from benchmarks.data import Context


class Growing(Aggregate):
    """A run: each step is an event with the whole context; `happened` is an event with a small payload."""

    @event("Began")
    def __init__(self, run: int) -> None:
        self.run = run
        self.context: Context = {}

    @staticmethod
    def create_id(run: int) -> UUID:
        """The id of a run's aggregate."""
        from benchmarks.peers import run_uuid

        return run_uuid(run)

    @event("Stepped")
    def stepped(self, context: Context) -> None:
        """A step left this context."""
        self.context = context

    @event("Happened")
    def happened(self, name: str, number: int) -> None:
        """A small event."""
        self.context["last"] = name, number


def open_app(home: Path) -> Application[Any]:
    """An application over a SQLite file."""
    return Application(env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(home / "es.db")})
