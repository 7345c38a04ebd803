"""Workload `objects`: many objects in and out; and reading versions of a context against a plain decompression."""

from __future__ import annotations

import random
from functools import partial
from typing import Final

import zstandard

import casstore
from benchmarks import flushing
from benchmarks.data import advance, growing, objects, size_name
from benchmarks.measure import OURS, Results, disk_bytes, probe, quiet, scratch, timed
from benchmarks.object_peers import PEERS, ObjectPeer
from benchmarks.options import Options, rotated, say
from casstore import values

WORKLOAD: Final = "objects"
# (number of objects, bytes of each), of the full and of the quick mode
SIZES: Final = ((100_000, 600), (10_000, 1 << 10), (1_000, 100 << 10))
QUICK_SIZES: Final = ((10_000, 600), (10_000, 1 << 10), (300, 100 << 10))
VERSIONS: Final = ((118 << 10, 300), (18 << 10, 60))  # (mean bytes of a version, versions)
VERSIONS_CASE: Final = "versions of"


def run(results: Results, options: Options) -> None:
    """All sizes, all peers, in turn."""
    for count, size in QUICK_SIZES if options.quick else SIZES:
        case = f"{count:,} x {size_name(size)}"
        if options.wants(case):
            run_case(results, options, case, count, size)
    for size, versions in VERSIONS:
        case = f"{VERSIONS_CASE} {size_name(size)}"
        if options.wants(case):
            for number in range(options.rounds_or(5, 3)):
                say(f"objects {case}, round {number + 1}")
                measure_versions(results, options, case, number, size, versions)


def run_case(results: Results, options: Options, case: str, count: int, size: int) -> None:
    """One number of objects of one size."""
    peers = options.peers(PEERS)
    for number in range(options.rounds_or(5, 3)):
        items = objects(count, size, seed=11 + number)
        probe(results, WORKLOAD, case, number, options.where)
        for peer in rotated(peers, number):
            say(f"objects {case}, round {number + 1}: {peer.name}")
            try:
                measure(results, options, peer, case, number, items)
            except Exception as error:  # a peer that cannot do it is a result, and no reason to stop
                say(f"objects {case}: {peer.name} failed: {type(error).__name__}: {error}")


def measure(
    results: Results, options: Options, peer: type[ObjectPeer], case: str, number: int, items: list[bytes]
) -> None:
    """One peer, once; put into a new home, read by a fresh object, once cold (to the process) and once warm."""
    with scratch(options.where) as home:
        subject = peer(home)
        flushes = flushing.total()
        with quiet():
            put_s, keys = timed(partial(subject.put_many, items))
        counted = {} if flushes is None else {"flushes": float((flushing.total() or 0) - flushes)}
        subject.close()
        disk = disk_bytes(home) / len(items)
        subject = peer(home)
        with quiet():
            read_s, found = timed(partial(subject.get_many, keys))
            warm_s, again = timed(partial(subject.get_many, keys))
        subject.close()
    if found != items or again != items:
        raise AssertionError(f"{peer.name}: what was read is not what was put")
    count = len(items)
    results.add(WORKLOAD, case, peer.name, number, put_per_s=count / put_s, read_per_s=count / read_s,
                warm_read_per_s=count / warm_s, disk_bytes=disk, **counted)  # fmt: skip


def measure_versions(
    results: Results, options: Options, case: str, number: int, size: int, versions: int
) -> None:
    """Versions of a growing context, each a delta on the one before: reading them, newest first, oldest first and in
    random order, over the time that zstd takes to decompress the same bytes kept whole."""
    context, messages = growing(size, versions, seed=7 + number)
    compressor, decompressor = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()
    probe(results, WORKLOAD, case, number, options.where)
    with scratch(options.where) as home:
        stored: list[tuple[casstore.ArtifactId, bytes]] = []
        with casstore.open(home / "home") as store:
            base = None
            for step, grown in enumerate(messages):
                advance(context, step, grown)
                data, _ = values.encode(context)
                base = store.put(data, kind="context_snapshot", base=base, durable=False)
                stored.append((base, compressor.compress(data)))
        shuffled = random.Random(number).sample(stored, len(stored))
        for order, pairs in {"oldest_first": stored, "newest_first": stored[::-1], "random": shuffled}.items():
            with casstore.open(home / "home") as store, quiet():
                cold = [timed(partial(store.get, name))[0] for name, _ in pairs]
                plain_s, whole = timed(lambda pairs=pairs: [decompressor.decompress(body) for _, body in pairs])
                warm_s, found = timed(lambda pairs=pairs, store=store: [store.get(name) for name, _ in pairs])
            if found != whole:
                raise AssertionError("what was read is not what was put")
            results.add(WORKLOAD, case, f"{OURS} {order}", number, fresh_read_s=cold, warm_read_s=warm_s / versions,
                        zstd_s=plain_s / versions, warm_ratio=warm_s / plain_s,
                        fresh_ratio=sum(cold) / plain_s)  # fmt: skip
