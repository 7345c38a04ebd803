"""Unsigned integers as groups of 7 bits, the lowest first (LEB128). Pure."""

from __future__ import annotations

_SHIFT_MAX = 56  # nine groups: more than any length here


def varint(number: int) -> bytes:
    """The bytes of a number."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it. Raises: ValueError."""
    number = shift = 0
    while True:
        if at >= len(data) or shift > _SHIFT_MAX:
            raise ValueError("a number is cut short or too long")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
