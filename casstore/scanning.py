"""Where bytes stop to be a value (docs/FORMAT.md, section 2), and by which rule: asked once a decoder refused them,
since those say neither. One look at each head, nothing is decoded or recursed into."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, final

_FLOAT64: Final = struct.Struct(">d")
_LINK_TAG: Final = 42
_LINK: Final = b"\x58\x25\x00\x01\x55\x1e\x20"  # a byte string of 37: multibase identity, CIDv1, raw, blake3, 32 bytes
_LINK_BYTES: Final = len(_LINK) + 32
_SIZES: Final = {24: 1, 25: 2, 26: 4, 27: 8}
_PATH_MAX: Final = 200
_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _OTHER = range(8)


class Fault(NamedTuple):
    """The first byte of what is refused, the rule that it breaks, and where in the value that is."""

    offset: int
    rule: str
    path: str


@final
class _Broken(Exception):
    """(offset, rule)"""


@final
@dataclass(slots=True)
class _Open:
    """An array or map whose items are not all read; of a map `key` is set while its value is read."""

    is_map: bool
    left: int
    place: int = 0
    key: str | None = None
    last: tuple[int, bytes] | None = None


def first_fault(data: bytes, *, depth_max: int, links: bool = True) -> Fault | None:
    """None where the bytes are a value in its only form. Without `links` no tag is allowed at all."""
    opened: list[_Open] = []
    place = 0
    try:
        while True:
            top = opened[-1] if opened else None
            if top is not None and top.is_map and top.key is None:
                place = _key(data, place, top)
                continue
            start = place
            place, inner = _item(data, place, links)
            if inner is not None:
                if len(opened) >= depth_max:
                    raise _Broken(start, f"nested deeper than {depth_max}")
                if inner.left:
                    opened.append(inner)
                    continue
            while opened and not _goes_on(opened[-1]):
                opened.pop()
            if not opened:
                break
        if place < len(data):
            raise _Broken(place, "bytes after the end")
    except _Broken as broken:
        offset, rule = broken.args
        return Fault(offset, rule, _path(opened))
    return None


def _goes_on(container: _Open) -> bool:
    """One item more is read; whether there are others."""
    container.left -= 1
    container.place += 1
    container.key = None
    return container.left > 0


def _item(data: bytes, start: int, links: bool) -> tuple[int, _Open | None]:
    """Where the next item ends, or the first of its items begins."""
    major, value, place = _head(data, start)
    if major in (_BYTES, _TEXT):
        return _string(data, start, major, value, place)[0], None
    if major in (_ARRAY, _MAP):
        if value * (major - 3) > len(data) - place:  # an item has a byte at least
            raise _Broken(start, f"cut off: {value} items, and {len(data) - place} bytes are left")
        return place, _Open(major == _MAP, value)
    if major == _TAG:
        if not links or value != _LINK_TAG:
            raise _Broken(start, "a tag other than 42" if links else "a tag")
        if not data.startswith(_LINK, place) or len(data) - place < _LINK_BYTES:
            raise _Broken(start, "a tag that is no link to an artifact, or is cut off")
        return place + _LINK_BYTES, None
    if major == _OTHER:
        _check_other(data, start, value)
    return place, None


def _head(data: bytes, start: int) -> tuple[int, int, int]:
    """Kind and number of an item, in the shortest form, and where the head ends. Of kind 7 the number is the second
    part of the first byte."""
    if start >= len(data):
        raise _Broken(start, "cut off: an item is missing")
    major, info = data[start] >> 5, data[start] & 31
    if info < 24:
        return major, info, start + 1
    size = _SIZES.get(info)
    if size is None:
        raise _Broken(start, "an indefinite length, or a reserved head")
    end = start + 1 + size
    if end > len(data):
        raise _Broken(start, "cut off: a head is not whole")
    if major == _OTHER:
        return major, info, end
    value = int.from_bytes(data[start + 1 : end], "big")
    if value < (24 if size == 1 else 1 << (4 * size)):
        raise _Broken(start, "a longer form than needed")
    return major, value, end


def _string(data: bytes, start: int, major: int, size: int, place: int) -> tuple[int, str]:
    if size > len(data) - place:
        raise _Broken(start, f"cut off: a string of {size} bytes, and {len(data) - place} are left")
    if major != _TEXT:
        return place + size, ""
    try:
        return place + size, data[place : place + size].decode()
    except UnicodeDecodeError as error:
        raise _Broken(place + error.start, "text that is no UTF-8") from error


def _key(data: bytes, start: int, container: _Open) -> int:
    major, size, place = _head(data, start)
    if major != _TEXT:
        raise _Broken(start, "a key that is no text")
    end, text = _string(data, start, major, size, place)
    sort = size, data[place:end]
    if container.last is not None and sort <= container.last:
        raise _Broken(start, "a key twice" if sort == container.last else "keys out of order")
    container.key, container.last = text, sort
    return end


def _check_other(data: bytes, start: int, info: int) -> None:
    if info in (20, 21, 22):
        return
    if info != 27:
        raise _Broken(start, "a float of other than 64 bits" if info in (25, 26) else "undefined, or a simple value")
    (number,) = _FLOAT64.unpack_from(data, start + 1)
    if not math.isfinite(number):
        raise _Broken(start, "NaN" if math.isnan(number) else "an infinity")
    if number == 0 and math.copysign(1, number) < 0:
        raise _Broken(start, "-0.0")


def _path(opened: list[_Open]) -> str:
    """As the encoder writes it."""
    path = "$"
    for container in opened:
        key = container.key
        if not container.is_map:
            path += f"[{container.place}]"
        elif key is not None:
            path += f".{key}" if key.isidentifier() else f'["{key}"]'
    return path[:_PATH_MAX]
