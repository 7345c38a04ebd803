"""Who holds something across processes: a text that names a process for ever, and whether that process is gone."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import NamedTuple

from casstore import forks

__all__ = ["ProcessIdentity", "current_process", "is_gone"]


class ProcessIdentity(NamedTuple):
    """Host, boot, pid namespace, pid and start (clock ticks since boot): never the same for two processes."""

    host: str
    boot: str
    namespace: str
    pid: int
    start: int

    def __str__(self) -> str:
        return f"{self.host}/{self.boot}/{self.namespace}/{self.pid}/{self.start}"

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity | None:
        """None for a text that is no process: an owner that the caller named."""
        parts = text.rsplit("/", 4)
        if len(parts) != 5 or not parts[3].isdigit() or not parts[4].isdigit():
            return None
        return cls(parts[0], parts[1], parts[2], int(parts[3]), int(parts[4]))


@functools.cache
def _machine() -> tuple[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return socket.gethostname(), boot


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None when there is no such process, or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = stat[stat.rindex(")") + 2 :].split()
    return None if state in "ZX" else int(rest[18])


@functools.lru_cache(maxsize=1)
def _identity(pid: int) -> str:
    host, boot = _machine()
    return str(ProcessIdentity(host, boot, _namespace(), pid, _start(pid) or 0))


def current_process() -> str:
    """The identity of this process (a forked child has its own)."""
    return _identity(forks.pid)


def is_gone(owner: str) -> bool:
    """Whether the process that `owner` names certainly ended. False where this machine cannot tell."""
    identity = ProcessIdentity.parse(owner)
    if identity is None:
        return False
    host, boot = _machine()
    if identity.host != host or not boot:
        return False
    if identity.boot != boot:
        return True
    if identity.namespace != _namespace():
        return False
    return _start(identity.pid) != identity.start
