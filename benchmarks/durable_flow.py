"""DBOS's side of the step workloads: a workflow whose steps return the context, which DBOS records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dbos import DBOS

from benchmarks.data import Context

Steps = Iterable[tuple[int, Context]]
SOURCES: Final[dict[int, Steps]] = {}  # of the runs under way: a workflow's arguments are recorded, these are not


@DBOS.step()
def kept(_: int, context: Context) -> Context:
    """A step; what it returns is on disk when it has returned."""
    return context


@DBOS.workflow()
def growing(run: int) -> None:
    """A run."""
    for number, context in SOURCES[run]:
        kept(number, context)
