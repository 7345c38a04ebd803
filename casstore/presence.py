"""Whoever is on a list until it leaves, come what may."""

from __future__ import annotations

from collections.abc import Callable
from typing import final


@final
class Presence:
    """Leaves at the latest when it is gone: an interrupt (Ctrl-C) can come into a `finally` as well."""

    __slots__ = ("_leave",)

    def __init__(self, leave: Callable[[object], None]) -> None:
        """`leave` does nothing where it left already."""
        self._leave = leave

    def __del__(self) -> None:
        self._leave(self)
