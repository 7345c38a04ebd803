"""The shim of flushes.c: compiled with the machine's cc, loaded with LD_PRELOAD, asked from inside."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parent / "flushes.c"
KINDS: Final = ("fdatasync", "fsync", "msync", "sync_file_range", "synchronous_write")


def compiler() -> str | None:
    """The C compiler of this machine."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(where: Path) -> Path:
    """Compile the shim, in a directory that the user of a server may read. Raises: CalledProcessError, with what the
    compiler says in its stderr."""
    found = compiler()
    assert found is not None
    where.chmod(0o755)
    made = where / "flushes.so"
    command = [found, "-O2", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return made


def environment(shim: Path, delay_ms: float) -> dict[str, str]:
    """The environment of a process whose flushes, and those of its children, are counted and take `delay_ms` longer."""
    counted = shim.with_name("counts")
    counted.write_bytes(bytes(4096))
    counted.chmod(0o666)
    return {**os.environ, "LD_PRELOAD": str(shim), "BENCH_FLUSH_DELAY_US": str(int(delay_ms * 1000)),
            "BENCH_FLUSH_COUNTS": str(counted)}  # fmt: skip


def counts() -> dict[str, int] | None:
    """Flushes so far by kind, of this process and of those that it began; None without the shim."""
    try:
        counter = ctypes.CDLL(None).bench_flushes
    except AttributeError:
        return None
    counter.restype = ctypes.c_ulong
    return {kind: int(counter(number)) for number, kind in enumerate(KINDS)}


def total() -> int | None:
    """All flushes so far, None without the shim."""
    found = counts()
    return None if found is None else sum(found.values())
