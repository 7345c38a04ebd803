"""How much gc does at a time: as fast as it can where nobody else writes, hardly felt where somebody does.

Idle, a batch holds the locks for about 100 ms. Busy (somebody committed since the last batch), for at most 2 ms
beyond the flush, and at most a twentieth of the time: gc sleeps between its batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, final

IDLE_S: Final = 0.1
BUSY_S: Final = 0.002
BUSY_SHARE: Final = 0.05
_FIRST: Final = 32
_GROWTH: Final = 4  # a batch is at most so many times the last one: small ones do not tell much


@final
class Amount:
    """How many of something fit into a time, learned from what they cost."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._last = _FIRST // _GROWTH
        self._cost_s = 0.0

    def within(self, seconds: float) -> int:
        """So many, at least one."""
        fitting = seconds / self._cost_s if self._cost_s > 0 else _FIRST
        return max(1, int(min(fitting, self._last * _GROWTH, self._most)))

    def learn(self, count: int, seconds: float) -> None:
        """`count` of them held a lock for so long, the flush left out."""
        if count > 0:
            self._last = count
            self._cost_s = seconds / count

    def too_many(self, count: int) -> None:
        """Space for so many was not there: half of them are the most from now on."""
        self._most = max(1, count // 2)


@final
class Stopwatch:
    """Called when a lock is taken, and again before the flush that ends it."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self._timer = timer
        self._times: list[float] = []

    def __call__(self) -> None:
        self._times.append(self._timer())

    @property
    def seconds(self) -> float:
        return self._times[-1] - self._times[0] if self._times else 0.0


@final
class Pace:
    """The pace of one gc. `timer` and `sleep` are a clock that only goes forward, and waiting by it, in seconds."""

    def __init__(
        self, *, timer: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.timer, self._sleep = timer, sleep
        self.busy = True  # until a look shows that nobody is there
        self._rows = Amount(1 << 13)
        self._pieces = Amount(1 << 14)

    @property
    def rows(self) -> int:
        """Of the next batch."""
        return self._rows.within(self._target_s)

    @property
    def pieces(self) -> int:
        """Of the next purge."""
        return self._pieces.within(self._target_s)

    @property
    def _target_s(self) -> float:
        return BUSY_S if self.busy else IDLE_S

    def swept(self, rows: int, watch: Stopwatch, locked_s: float) -> None:
        """A batch is done: learn from it, and rest. `locked_s` is all the time that others were kept out."""
        self._rows.learn(rows, watch.seconds)
        self._rest(locked_s)

    def purged(self, pieces: int, watch: Stopwatch, locked_s: float) -> None:
        """The same of a purge."""
        self._pieces.learn(pieces, watch.seconds)
        self._rest(locked_s)

    def no_room(self, *, rows: int = 0, pieces: int = 0) -> None:
        """A transaction of so many found the disk or the map full."""
        if rows:
            self._rows.too_many(rows)
        if pieces:
            self._pieces.too_many(pieces)

    def _rest(self, locked_s: float) -> None:
        if self.busy:
            self._sleep(locked_s * (1 - BUSY_SHARE) / BUSY_SHARE)
