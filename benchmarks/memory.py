"""How much memory of its own a process takes: pages of files, such as LMDB's map, are the kernel's to take back."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final, final

_EVERY_S: Final = 0.005


@final
class MemoryWatch:
    """Looks at the process's anonymous memory every few milliseconds until it is stopped."""

    def __init__(self) -> None:
        self._before = self._peak = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(_EVERY_S):
            self._peak = max(self._peak, anonymous_bytes())

    def stop(self) -> tuple[int, int]:
        """The most bytes there were, and how many of them came since the start."""
        self._done.set()
        self._thread.join()
        return self._peak, self._peak - self._before


def anonymous_bytes() -> int:
    """What the process holds now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
