"""What the store remembers of each gc: one JSON object in `gcs1` (docs/FORMAT.md 3.8). Pure."""

from __future__ import annotations

import json
from typing import Any

from casstore.reports import GcRecord, GcReport


def pack_opened(when_s: int) -> bytes:
    """What stands there from the opening on, so that a gc that is killed has left its time."""
    return json.dumps({"when_s": when_s}).encode()


def pack(report: GcReport, when_s: int, outcome: str, left_bytes: int) -> bytes:
    """What a gc did, however it ended, and what it left stored: `outcome` as in GcRecord."""
    return json.dumps(
        {
            "when_s": when_s, "outcome": outcome, "removed": len(report.removed), "raw_bytes": report.raw_bytes,
            "stored_bytes": report.stored_bytes, "kept_bytes": report.kept_bytes, "live": report.live,
            "quarantined_bytes": report.quarantined_bytes, "duration_ms": report.duration_ms,
            "left_bytes": left_bytes,
        }
    ).encode()  # fmt: skip


def unpack(gc: int, data: bytes) -> GcRecord:
    """Lenient: history is for people, and one row that cannot be read must not hide the others."""
    try:
        found: Any = json.loads(data) if data else {"outcome": "failed"}
        if not isinstance(found, dict):
            found = {}
    except ValueError:
        found = {}
    # Rows without an outcome: one that a gc wrote when it opened, and those that hold what a complete one did.
    outcome = found.get("outcome", "complete" if "removed" in found else "unfinished")
    numbers = {name: _number(found.get(name)) for name in _NUMBERS}
    return GcRecord(gc=gc, outcome=str(outcome), **numbers)


_NUMBERS = (
    "when_s", "removed", "raw_bytes", "stored_bytes", "kept_bytes", "quarantined_bytes", "live", "duration_ms",
    "left_bytes",
)  # fmt: skip


def _number(value: object) -> int:
    return value if type(value) is int else 0
