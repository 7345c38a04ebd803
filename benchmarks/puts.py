"""Workload `puts`: what one put costs that is alone.

A durable put, over a floor that writes the very rows of ours in bare LMDB, with one commit and one sync each; put and
floor in turn, so that both meet the same noise. And a context that grows, put with the version before as base and
without a barrier: its commit is still a flush, which "cpu" leaves out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import lmdb

import casstore
from benchmarks.data import advance, growing, objects, size_name
from benchmarks.measure import OURS, Results, quiet, timed
from benchmarks.options import Options
from benchmarks.rounds import Samples, run_case
from casstore.rows import DA, TABLES, TICK, D
from casstore.table_backend import TableBackend
from casstore.tables import CompactableTables, MemoryTables, WriteTransaction

WORKLOAD: Final = "puts"
# bytes of an object: (puts, the same of the quick mode)
SIZES: Final = {1 << 10: (1000, 200), 100 << 10: (500, 100)}
# mean bytes of JSON of a context: (versions, the same of the quick mode)
CONTEXTS: Final = {120 << 10: (300, 100), 1 << 20: (300, 60)}
Writes = list[tuple[bytes, bytes, bytes | None]]  # table, key, value; None removes


class Put:
    """Ours; the floor is measured within."""

    name: ClassVar[str] = OURS
    requires: ClassVar[tuple[str, ...]] = ()


def run(results: Results, options: Options) -> None:
    """All sizes of both."""
    rounds = options.rounds_or(5, 3)
    for size, counts in SIZES.items():
        case = f"durable put of {size_name(size)}"
        measure = partial(measure_puts, size=size, count=counts[options.quick])
        run_case(results, options, WORKLOAD, case, [Put], rounds, measure)
    for size, counts in CONTEXTS.items():
        case = f"put_value with a base, {size_name(size)}"
        values = partial(measure_values, size=size, versions=counts[options.quick])
        run_case(results, options, WORKLOAD, case, [Put], rounds, values)


def measure_puts(_: type[Put], home: Path, number: int, *, size: int, count: int) -> Samples:
    """A put and its floor, in turn."""
    items = objects(count, size, seed=11 + number)
    floor = lmdb.open(str(home / "l"), map_size=1 << 36, max_dbs=len(TABLES), metasync=False, readahead=False)
    tables = {name: floor.open_db(name) for name in TABLES}

    def write(rows: Writes) -> None:
        with floor.begin(write=True) as txn:
            for table, key, value in rows:
                if value is None:
                    txn.delete(key, db=tables[table])
                else:
                    txn.put(key, value, db=tables[table], append=table in (D, DA, TICK))
        floor.sync(True)

    put_s: list[float] = []
    floor_s: list[float] = []
    with casstore.open(home / "home") as store:
        made = written(items)
        with quiet():
            for item, rows in zip(items, made, strict=True):
                put_s.append(timed(partial(store.put, item))[0])
                floor_s.append(timed(partial(write, rows))[0])
        found = store.stats()
        if found.artifacts != count:
            raise AssertionError(f"{found.artifacts} artifacts instead of {count}")
    with floor.begin() as txn:
        there = sum(len(value) for _, value in txn.cursor(tables[D]))
        if there != found.stored_bytes:
            raise AssertionError(f"the floor stored {there} bytes, ours {found.stored_bytes}")
    floor.close()
    return {"put_s": put_s, "floor_s": floor_s, "over_floor": statistics.median(put_s) / statistics.median(floor_s)}


def measure_values(_: type[Put], home: Path, number: int, *, size: int, versions: int) -> Samples:
    """Each version a delta of the one before; all are durable with one sync afterwards. The last is read back."""
    context, messages = growing(size, versions, seed=7 + number)
    wall: list[float] = []
    cpu: list[float] = []
    with casstore.open(home / "home") as store:
        name = store.put_value(context, kind="context_snapshot", durable=False)
        with quiet():
            for step, grown in enumerate(messages):
                advance(context, step, grown)
                begun = time.process_time()
                took, name = timed(partial(store.put_value, context, kind="context_snapshot", base=name, durable=False))
                wall.append(took)
                cpu.append(time.process_time() - begun)
        store.sync()
        if store.get_value(name) != context or store.info(name).base is None:
            raise AssertionError("the last version differs, or is no delta")
    return {"put_value_s": wall, "put_value_cpu_s": cpu}


class RecordedTables:
    """Tables in memory that keep what each commit wrote."""

    def __init__(self) -> None:
        self._tables = MemoryTables(TABLES)
        self.commits: list[Writes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tables, name)

    @contextmanager
    def write(self) -> Iterator[WriteTransaction]:
        """As that of the tables, and its rows are kept."""
        with self._tables.write() as txn:
            yield txn
            touched = dict.fromkeys((table, key) for table, key, _ in txn._before)  # type: ignore[attr-defined]
            self.commits.append([(table, key, txn.get(table, key)) for table, key in touched])


def written(items: list[bytes]) -> list[Writes]:
    """The rows that a put of each writes, in a store of their own."""
    tables = RecordedTables()
    backend = TableBackend(cast(CompactableTables, tables))
    with casstore.Store(backend, None, read_only=False, quota=None) as store:
        before = len(tables.commits)
        for item in items:
            store.put(item)
        return tables.commits[before:]
