"""Instances of frozen classes at the speed of plain assignment, for readers that make millions. Pure.

A frozen dataclass sets each field by a call of `object.__setattr__`, which costs as much as all the rest of decoding.
A blank has the same slots and is not frozen: it is filled in, and then becomes an instance of the frozen class, before
anybody else has seen it. Nothing is checked on the way: whoever fills it in has done so.
"""

from __future__ import annotations

from typing import Any


def blank_of(frozen: type) -> Any:
    """A class to make blanks of; `blank.__class__ = frozen` ends it, once every slot is set."""
    return type(f"Blank{frozen.__name__}", (), {"__slots__": frozen.__slots__})  # type: ignore[attr-defined]
