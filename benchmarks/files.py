"""Workload `files`: a large file in and out, against the least that it can cost: copying it with a flush, and hashing.

Each is done in a process of its own, which says how much memory it took beyond what it had before. `half` is text that
compresses to about a half, `random` what does not compress. "out" writes a file that is on disk at the end, "read" only
hashes what it reads. What came out is compared by hash. Ranges count the frames
that are decoded for each. "mib cpu" is MiB for each second of processor time, which other work on the machine blurs
less.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, ClassVar, Final

from blake3 import blake3

import casstore
from benchmarks.data import WORDS, size_name
from benchmarks.measure import OURS, Results, scratch
from benchmarks.memory import MemoryWatch
from benchmarks.options import Options, say
from benchmarks.rounds import Samples, run_case
from casstore import ArtifactId, frames

WORKLOAD: Final = "files"
SIZES: Final = (256 << 20, 64 << 20)  # full, quick
CHUNK: Final = 1 << 20
RANGES: Final = 200
SPEED_TARGET: Final = 0.6  # of the floor's
MEMORY_TARGET_BYTES: Final = 64 << 20


class FilePeer:
    """One way to keep a file. `put` and `read` run in a child; `read` returns the hash of what it read."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def put(source: Path, home: Path) -> str:
        """Keep it, on disk when this returns; what `read` needs to find it."""
        raise NotImplementedError

    @staticmethod
    def out(home: Path, key: str) -> str:
        """Write it to the file `out`, checked on the way, and on disk when this returns."""
        raise NotImplementedError

    @staticmethod
    def read(home: Path, key: str) -> str:
        """Read all of it and hash it."""
        raise NotImplementedError


class OursFiles(FilePeer):
    """put_file, and open_reader in steps of 1 MiB."""

    name = OURS

    @staticmethod
    def put(source: Path, home: Path) -> str:
        with casstore.open(home / "home") as store:
            return str(store.put_file(source))

    @staticmethod
    def out(home: Path, key: str) -> str:
        with (
            casstore.open(home / "home", read_only=True) as store,
            store.open_reader(ArtifactId.parse(key)) as reader,
            open(home / "out", "wb", buffering=0) as out,
        ):
            shutil.copyfileobj(reader, out, CHUNK)
            os.fsync(out.fileno())
        return key

    @staticmethod
    def read(home: Path, key: str) -> str:
        with casstore.open(home / "home", read_only=True) as store:
            return _hash_of(partial(store.open_reader, ArtifactId.parse(key)))


class Floor(FilePeer):
    """A copy with fsync that is hashed on the way."""

    name = "floor"

    @staticmethod
    def put(source: Path, home: Path) -> str:
        return _copy(source, home / "copy")

    @staticmethod
    def out(home: Path, key: str) -> str:
        return _copy(home / "copy", home / "out")

    @staticmethod
    def read(home: Path, key: str) -> str:
        return _hash_of(partial(open, home / "copy", "rb"))


PEERS: Final[dict[str, type[FilePeer]]] = {peer.name: peer for peer in (OursFiles, Floor)}


def run(results: Results, options: Options) -> None:
    """Both contents, both peers, in turn; then whether the targets hold."""
    size = options.size or SIZES[options.quick]
    for content in ("half", "random"):
        with scratch(options.where) as place:
            source = place / "source"
            case = f"{content}, {size_name(size)}"
            if options.wants(case):
                write_source(source, size, content)
            measure = partial(measure_file, source=source)
            run_case(
                results, options, WORKLOAD, case, list(PEERS.values()), options.rounds_or(4, 4), measure
            )  # each is first as often as the other
            for line in verdicts(results, case):
                say(line)


def write_source(path: Path, size: int, content: str) -> None:
    """A file of that size, the same each time, whose parts are not alike."""
    r = random.Random(size)
    with open(path, "wb") as file:
        left = size
        while left > 0:
            part = r.randbytes(min(CHUNK, left)) if content == "random" else _text(r, min(CHUNK, left))
            file.write(part)
            left -= len(part)


def _text(r: random.Random, size: int) -> bytes:
    lines = [" ".join(r.choices(WORDS, k=8)) + f" {r.getrandbits(64):x}\n" for _ in range(400)]
    return "".join(r.choices(lines, k=size // 60)).encode().ljust(size, b".")[:size]


def measure_file(peer: type[FilePeer], home: Path, number: int, *, source: Path) -> Samples:
    """Seconds for a MiB in and out, the memory that a child took for it, and for ours ranges."""
    size = source.stat().st_size
    expected_hash(source)  # both find the file in memory, where it fits
    put_s, put_cpu_s, put_bytes, key = child("put", peer.name, source, home)
    out_s, out_cpu_s, out_bytes, _ = child("out", peer.name, home, key)
    read_s, read_cpu_s, read_bytes, found = child("read", peer.name, home, key)
    if not found == expected_hash(home / "out") == expected_hash(source):
        raise AssertionError(f"{peer.name}: what was read back differs")
    mib = size / (1 << 20)
    samples: Samples = {
        "put_mib_per_s": mib / put_s, "put_mib_cpu_per_s": mib / put_cpu_s,
        "out_mib_per_s": mib / out_s, "out_mib_cpu_per_s": mib / out_cpu_s,
        "read_mib_per_s": mib / read_s, "read_mib_cpu_per_s": mib / read_cpu_s,
        "put_memory_bytes": put_bytes, "out_memory_bytes": out_bytes, "read_memory_bytes": read_bytes,
    }  # fmt: skip
    if peer is OursFiles:
        samples |= measure_ranges(home, ArtifactId.parse(key), source)
    return samples


def measure_ranges(home: Path, name: ArtifactId, source: Path) -> Samples:
    """Ranges of 4 KiB at random places: how long one takes, and the frames decoded for it."""
    r, took, decoded = random.Random(3), [], [0]
    size = source.stat().st_size
    decode = frames.decode_frame

    def counting(
        entry: frames.Entry, stored: bytes | memoryview, raw_len: int, memory: bytearray | None = None
    ) -> bytes | memoryview:  # fmt: skip
        decoded[0] += 1
        return decode(entry, stored, raw_len, memory)

    frames.decode_frame = counting
    try:
        with casstore.open(home / "home") as store, open(source, "rb") as file:
            for _ in range(RANGES):
                at = r.randrange(max(size - 4096, 1))
                begun = time.perf_counter()
                found = store.get_range(name, at, 4096)
                took.append(time.perf_counter() - begun)
                file.seek(at)
                if found != file.read(4096):
                    raise AssertionError("a range differs")
    finally:
        frames.decode_frame = decode
    return {"range_s": took, "frames_a_range": decoded[0] / RANGES}


def verdicts(results: Results, case: str) -> list[str]:
    """Whether the targets hold: in every round, in none, or in some of them, which decides nothing."""
    found = {(row.peer, row.round): row.samples for row in results.rows if (row.workload, row.case) == (WORKLOAD, case)}
    lines = []
    for metric in ("put_mib_per_s", "out_mib_per_s"):
        ratios = sorted(
            samples[metric][0] / found["floor", number][metric][0]
            for (peer, number), samples in found.items() if peer == OURS and ("floor", number) in found
        )  # fmt: skip
        if ratios:
            held = sum(ratio >= SPEED_TARGET for ratio in ratios)
            word = "holds" if held == len(ratios) else "missed" if not held else "undecided"
            shown = f"{statistics.median(ratios):.0%} of the floor, {ratios[0]:.0%} to {ratios[-1]:.0%}"
            lines.append(f"{case}, {metric}: {shown} ({word}: 60 %)")
    for metric in ("put_memory_bytes", "out_memory_bytes", "read_memory_bytes"):
        most = max((samples[metric][0] for (peer, _), samples in found.items() if peer == OURS), default=0)
        if most:
            kept = "holds" if most < MEMORY_TARGET_BYTES else "missed"
            lines.append(f"{case}, {metric}: {most / (1 << 20):.0f} MiB at most ({kept}: 64 MiB)")
    return lines


def expected_hash(source: Path) -> str:
    """The BLAKE3 of the file."""
    return _hash_of(partial(open, source, "rb"))


def _copy(source: Path, target: Path) -> str:
    """With a flush at the end; the hash of what was copied."""
    hasher = blake3()
    with open(source, "rb") as file, open(target, "wb", buffering=0) as copy:
        while part := file.read(CHUNK):
            hasher.update(part)
            copy.write(part)
        os.fsync(copy.fileno())
    return hasher.hexdigest()


def _hash_of(opened: Callable[[], BinaryIO | io.BufferedIOBase]) -> str:
    hasher = blake3()
    with opened() as file:
        while part := file.read(CHUNK):
            hasher.update(part)
    return hasher.hexdigest()


def child(what: str, peer: str, *arguments: object) -> tuple[float, float, int, str]:
    """Do it in a process of its own: seconds, those of the processor, bytes of memory beyond what it had, answer."""
    line = [sys.executable, "-m", "benchmarks.files", what, peer, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    took_s, cpu_s, memory_bytes, answer = json.loads(done.stdout)
    return took_s, cpu_s, memory_bytes, answer


def main() -> None:
    """What `child` runs."""
    what, peer, first, second = sys.argv[1:]
    watch, begun, busy = MemoryWatch(), time.perf_counter(), time.process_time()
    chosen = PEERS[peer]
    if what == "put":
        answer = chosen.put(Path(first), Path(second))
    else:
        answer = (chosen.out if what == "out" else chosen.read)(Path(first), second)
    took_s, cpu_s = time.perf_counter() - begun, time.process_time() - busy
    print(json.dumps([took_s, cpu_s, watch.stop()[1], answer]))


if __name__ == "__main__":
    main()
