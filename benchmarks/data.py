"""The data of the workloads: contexts that grow by a message a step, and objects. The same for the same seed."""

from __future__ import annotations

import json
import random
from typing import Any, Final

_STEMS: Final = (
    "alpha", "beta", "gamma", "delta", "retry", "balance", "snapshot", "portfolio", "price", "block", "hash", "fetch",
    "compute", "token", "error", "context", "value",
)  # fmt: skip
WORDS: Final = [f"{word}{number}" for word in _STEMS for number in range(250)]

Context = dict[str, Any]


def message(r: random.Random) -> dict[str, Any]:
    """A message of about 480 bytes of JSON."""
    return {
        "role": r.choice(["user", "assistant", "tool"]), "id": f"{r.getrandbits(128):032x}",
        "content": " ".join(r.choice(WORDS) for _ in range(40)), "tokens": r.randrange(2000),
        "ts": 1_700_000_000_000 + r.randrange(10**9),
    }  # fmt: skip


def growing(mean_bytes: int, steps: int, seed: int) -> tuple[Context, list[dict[str, Any]]]:
    """A context to begin with and a message for each step, so that the contexts of all steps have `mean_bytes` of
    JSON on average (where `steps` messages fit into that)."""
    r = random.Random(seed)
    size = sum(len(json.dumps(message(r))) + 2 for _ in range(200)) / 200
    base = max(int(mean_bytes / size - steps / 2), 1)
    context = {"op": "demo", "cursor": 0, "messages": [message(r) for _ in range(base)]}
    return context, [message(r) for _ in range(steps)]


def advance(context: Context, step: int, grown: dict[str, Any]) -> None:
    """What a step does to the context."""
    context["messages"].append(grown)
    context["cursor"] = step


def objects(count: int, size: int, seed: int) -> list[bytes]:
    """Different objects of about `size` bytes of JSON."""
    r = random.Random(seed)
    made = []
    for number in range(count):
        body = {"number": number, "id": f"{r.getrandbits(128):032x}", "text": ""}
        words = r.choices(WORDS, k=max((size - len(json.dumps(body))) // 10, 1))
        body["text"] = " ".join(words)
        made.append(json.dumps(body).encode())
    return made


def size_name(size: int) -> str:
    """18 KiB, 1 MiB, 600 B."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} B"
