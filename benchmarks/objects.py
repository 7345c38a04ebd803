"""Workload `objects`: many objects in and out; and reading versions of a context against a plain decompression."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import zstandard

import casstore
from benchmarks import flushing
from benchmarks.data import advance, growing, objects, size_name
from benchmarks.measure import Results, disk_bytes, quiet, timed
from benchmarks.object_peers import PEERS, ObjectPeer, OursObjects
from benchmarks.options import Options
from benchmarks.rounds import Samples, run_case
from casstore import values

WORKLOAD: Final = "objects"
# (number of objects, bytes of each), of the full and of the quick mode
SIZES: Final = ((100_000, 600), (10_000, 1 << 10), (1_000, 100 << 10))
QUICK_SIZES: Final = ((10_000, 600), (10_000, 1 << 10), (300, 100 << 10))
PASSES: Final = 7
VERSIONS: Final = ((118 << 10, 300), (18 << 10, 60))  # (mean bytes of a version, versions)


def run(results: Results, options: Options) -> None:
    """All sizes, all peers, in turn; then versions, which only ours has."""
    rounds = options.rounds_or(5, 3)
    for count, size in QUICK_SIZES if options.quick else SIZES:
        case = f"{count:,} x {size_name(size)}"
        run_case(results, options, WORKLOAD, case, PEERS, rounds, partial(measure_objects, count=count, size=size))
    for size, versions in VERSIONS:
        case = f"versions of {size_name(size)}"
        measure = partial(measure_versions, size=size, versions=versions)
        run_case(results, options, WORKLOAD, case, [OursObjects], rounds, measure)


def measure_objects(peer: type[ObjectPeer], home: Path, number: int, *, count: int, size: int) -> Samples:
    """One peer, once: put into a new home, then read twice by a fresh object, then by a call for each."""
    items = objects(count, size, seed=11 + number)
    subject = peer(home)
    flushes = flushing.total()
    with quiet():
        put_s, keys = timed(partial(subject.put_many, items))
    counted: Samples = {} if flushes is None else {"flushes": float((flushing.total() or 0) - flushes)}
    subject.close()
    disk = disk_bytes(home) / len(items)
    subject = peer(home)
    with quiet():
        read_s, found = timed(partial(subject.get_many, keys))
        warm_s, again = timed(partial(subject.get_many, keys))
        each_s, each = timed(partial(subject.get_each, keys))
    subject.close()
    if each is not None:
        counted["each_read_per_s"] = count / each_s
    if found != items or again != items or each not in (items, None):
        raise AssertionError(f"{peer.name}: what was read is not what was put")
    return {"put_per_s": count / put_s, "read_per_s": count / read_s, "warm_read_per_s": count / warm_s,
            "disk_bytes": disk, **counted}  # fmt: skip


def measure_versions(_: type[ObjectPeer], home: Path, number: int, *, size: int, versions: int) -> Samples:
    """Versions of a growing context, each put as a delta: reading all of them, oldest first, newest first and in
    random order, over the time that zstd takes to decompress the same bytes kept whole.

    Fresh is a new Store that has read nothing, warm is the same one again."""
    context, messages = growing(size, versions, seed=7 + number)
    compressor, decompressor = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()
    stored: list[tuple[casstore.ArtifactId, bytes]] = []
    with casstore.open(home / "home") as store:
        base = None
        for step, grown in enumerate(messages):
            advance(context, step, grown)
            data, _links = values.encode(context)
            base = store.put(data, kind="context_snapshot", base=base, durable=False)
            stored.append((base, compressor.compress(data)))
    orders = {
        "random": random.Random(number).sample(stored, len(stored)), "oldest_first": stored,
        "newest_first": stored[::-1],
    }  # fmt: skip
    samples: Samples = {}
    for order, pairs in orders.items():
        names, bodies = [name for name, _body in pairs], [body for _name, body in pairs]
        with casstore.open(home / "home") as store, quiet():
            fresh_s, found = timed(partial(_all, store.get, names))
            if found != _all(decompressor.decompress, bodies):
                raise AssertionError("what was read is not what was put")
            warm, plain = [], []
            for _pass in range(PASSES):  # turn by turn, so that both meet the same noise
                warm.append(timed(partial(_all, store.get, names))[0])
                plain.append(timed(partial(_all, decompressor.decompress, bodies))[0])
        plain_s = statistics.median(plain)
        samples |= {
            f"{order}_s": [took / versions for took in warm],
            f"{order}_ratio": [mine / theirs for mine, theirs in zip(warm, plain, strict=True)],
            f"{order}_fresh_ratio": fresh_s / plain_s,
        }
    return samples


def _all(read: Callable[[Any], bytes], names: list[Any]) -> list[bytes]:
    return [read(name) for name in names]
