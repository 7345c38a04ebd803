"""Whoever is on a list until it leaves, come what may."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar, final

T = TypeVar("T")


@final
class Presence(Generic[T]):
    """On a list for a block. It leaves at the latest when it is gone: an interrupt (Ctrl-C) can come between any two
    steps, also in what ends the block."""

    __slots__ = ("_enter", "_inside", "_leave")

    def __init__(self, enter: Callable[[object], T], leave: Callable[[object], object]) -> None:
        """`leave` does nothing for who is not on the list."""
        self._enter, self._leave, self._inside = enter, leave, False

    def __enter__(self) -> T:
        self._inside = True
        return self._enter(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(self)
        self._inside = False

    def __del__(self) -> None:
        if getattr(self, "_inside", False):  # it may not even have been made
            self._leave(self)
