"""Where two values differ, path by path. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from casstore.ids import ArtifactId

__all__ = ["Difference", "differences"]


class Difference(NamedTuple):
    """`what` is added, removed or changed; `old` or `new` is None where there is none."""

    path: str
    what: str
    old: Any
    new: Any


def differences(old: Any, new: Any, path: str = "$") -> Iterator[Difference]:
    """In the order of the first value. Lists are compared by place; what one has more stands at the end."""
    if type(old) is dict and type(new) is dict:
        for key, value in old.items():
            if key in new:
                yield from differences(value, new[key], _below(path, key))
            else:
                yield Difference(_below(path, key), "removed", value, None)
        for key, value in new.items():
            if key not in old:
                yield Difference(_below(path, key), "added", None, value)
    elif type(old) is list and type(new) is list:
        for place in range(max(len(old), len(new))):
            below = f"{path}[{place}]"
            if place >= len(new):
                yield Difference(below, "removed", old[place], None)
            elif place >= len(old):
                yield Difference(below, "added", None, new[place])
            else:
                yield from differences(old[place], new[place], below)
    elif type(old) is not type(new) or old != new:
        yield Difference(path, "changed", old, new)


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if key.isidentifier() else f"{path}[{json.dumps(key, ensure_ascii=False)}]"


def shown(value: Any, width: int = 60) -> str:
    """A value on one line, cut."""
    text = str(value) if isinstance(value, ArtifactId) else repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"
