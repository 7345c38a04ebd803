"""The number of this process, kept: asking the kernel each time costs more than what is guarded by it."""

from __future__ import annotations

import os

pid = os.getpid()  # read it as `forks.pid`: in a forked child it is another one


def _after_fork_in_child() -> None:
    global pid
    pid = os.getpid()


# Imported by whatever has a hook of its own that asks for it, so this one runs first.
os.register_at_fork(after_in_child=_after_fork_in_child)
