"""Unix times and spans of time as text for people. Pure: UTC, whatever the machine's zone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"))
_LAST_S: Final = 253_402_300_799  # 9999-12-31 23:59:59, the last one that has a date


def shown_time(seconds: float) -> str:
    """`2026-01-31 17:05:09 UTC`."""
    return datetime.fromtimestamp(min(max(int(seconds), 0), _LAST_S), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def shown_span(seconds: float) -> str:
    """The way durations are given: `14d`, `1d 2h`, `5m`, `0s`; the two largest units."""
    left, parts = max(int(seconds), 0), []
    for size, unit in _UNITS:
        if left >= size:
            parts.append(f"{left // size}{unit}")
            left %= size
    if left or not parts:
        parts.append(f"{left}s")
    return " ".join(parts[:2])
