"""Named steps between transactions, at which a test can stop, count or kill. Free when nobody listens."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["listen", "reach"]

_listener: Callable[[str], None] | None = None


def reach(step: str) -> None:
    """Say that a step is reached."""
    if _listener is not None:
        _listener(step)


def listen(listener: Callable[[str], None] | None) -> None:
    """Set the process's only listener, or none."""
    global _listener
    _listener = listener
