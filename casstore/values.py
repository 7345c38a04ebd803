"""Structured values as DAG-CBOR (the public IPLD specification), in which an ArtifactId is a link.

Two encoders that make identical bytes: libipld (fast) behind a guard, and cbor2 on a normalised copy (`reference`).
libipld writes bytes that look like a CID as a link, maps subclasses silently, and recurses until a small stack
overflows; so where any of these could be, or it refuses, the reference decides.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import libipld

from casstore.errors import InvalidValue, UndecodableValue
from casstore.ids import ArtifactId
from casstore.reference import CID_PREFIX, MAX_DEPTH, decode_reference, encode_reference
from casstore.scanning import first_fault

__all__ = ["MAX_DEPTH", "decode", "encode", "encode_reference", "is_shallow", "links", "may_link"]

_MANY: Final = 1 << 16  # items of a level, from which on those that are the same are looked for
ITEMS_MAX: Final = 1 << 27  # of a value in which containers are shared, each counted wherever it stands
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
_LEAVES: Final = _PLAIN | {bytes}
_CONTAINERS: Final = frozenset({dict, list})
_CONTAINER_HEADS: Final = bytes(range(0x80, 0xBC))
_FINDS_MAX: Final = 500
# Tag 42 over a byte string that begins with the multibase identity: bytes that match by chance cost time only.
_LINK_HEAD: Final = re.compile(rb"\xd8\x2a(?:[\x41-\x57]|\x58.|\x59..|\x5a.{4}|\x5b.{8})\x00", re.DOTALL)
_LINK: Final = re.compile(re.escape(b"\xd8\x2a\x58\x25" + CID_PREFIX) + rb"(.{32})", re.DOTALL)
_CID_BEGINS: Final = (b"\x01", b"\x12")  # what bytes begin with that libipld takes for a CID
_LEVEL_BYTES: Final = 2048  # of a stack, more than three times what libipld takes for a container in a container


def encode(value: object) -> tuple[bytes, tuple[ArtifactId, ...]]:
    """The canonical bytes of a value and its distinct links in order.

    Profile: None, bool, int in [-2^64, 2^64), finite float, str, bytes, list, dict with str keys, ArtifactId; a
    tuple is stored as a list, a bytearray as bytes, -0.0 as 0.0, a key of a subclass of str as plain text.
    Raises: InvalidValue with the path.
    """
    simple = _is_simple(value)
    if simple is None:
        return encode_reference(value)
    try:
        if not simple:
            return _encode_with_links(value)
        data = libipld.encode_dag_cbor(value)
    except Exception:
        return encode_reference(value)
    return encode_reference(value) if 0xD8 in data and may_link(data) else (data, ())


def _encode_with_links(value: object) -> tuple[bytes, tuple[ArtifactId, ...]]:
    """By libipld, to which a link is the bytes of a CID. Raises: _DoubtError where something else could look like
    one."""
    inside = list[ArtifactId]()
    data = libipld.encode_dag_cbor(_swap(value, inside))
    found = _LINK.findall(data)
    if Counter(found) != Counter(link.digest for link in inside):
        raise _DoubtError
    return data, tuple(map(ArtifactId, dict.fromkeys(found)))


class _DoubtError(Exception):
    """For the reference to judge."""


def _swap(value: Any, inside: list[ArtifactId]) -> Any:
    """The value with its links as bytes, copied as far as needed; they are added to `inside`."""
    pairs: Iterator[tuple[Any, Any]] = iter(value.items()) if type(value) is dict else enumerate(value)
    copied = None
    for key, item in pairs:
        kind = type(item)
        if kind in _PLAIN:
            continue
        if kind is ArtifactId:
            inside.append(item)
            fresh: Any = CID_PREFIX[1:] + item.digest
        elif kind is bytes:
            if item.startswith(_CID_BEGINS) or b"\xd8" in item:
                raise _DoubtError
            continue
        else:
            fresh = _swap(item, inside)
            if fresh is item:
                continue
        if copied is None:
            copied = value.copy()
        copied[key] = fresh
    return value if copied is None else copied


def decode(data: bytes, *, canonical: bool = False) -> Any:
    """A fresh value; links are ArtifactIds. Only canonical bytes are accepted: decode then encode gives the same. That
    takes longer than decoding: `canonical` where the caller knows that `encode` made them, or that they were accepted.

    Raises: UndecodableValue, with the offset of what is refused; InvalidValue where no bytes are given.
    """
    try:
        return _decode_canonical(data) if canonical else _decode(data)
    except InvalidValue as error:
        fault = first_fault(data, depth_max=MAX_DEPTH) if type(data) is bytes else None
        if fault is None:
            raise
        raise UndecodableValue(fault.path, fault.rule, fault.offset) from error


def _decode(data: bytes) -> Any:
    if type(data) is not bytes:
        raise InvalidValue("$", f"bytes are wanted, not {type(data).__name__}")
    small = len(data) <= MAX_DEPTH  # and so no deeper
    if (0xD8 in data and may_link(data)) or not (small or is_shallow(data)):
        value = decode_reference(data)
        if _comes_back(data) and (not _may_be_deep(data) or _is_simple(value) is not None):
            return value
    else:
        try:
            value = libipld.decode_dag_cbor(data)
            # Of exact types, since it was decoded: where it cannot be too deep either, the guards have nothing to find.
            if (small or not _may_be_deep(data)) and libipld.encode_dag_cbor(value) == data:
                return value
        except Exception as error:
            raise InvalidValue("$", f"not DAG-CBOR: {error}") from error
    again, _ = encode(value)
    if again != data:
        raise InvalidValue("$", "not the canonical form of its value")
    return value


def _decode_canonical(data: bytes) -> Any:
    if (0xD8 in data and may_link(data)) or not is_shallow(data):
        return decode_reference(data)
    return libipld.decode_dag_cbor(data)


def links(data: bytes) -> tuple[ArtifactId, ...]:
    """The distinct links of canonical bytes, in order. Raises: InvalidValue, which does not say where."""
    found: dict[ArtifactId, None] = {}
    if may_link(data):
        _collect(_decode(data), found)
    return tuple(found)


def _collect(value: Any, found: dict[ArtifactId, None]) -> None:
    kind = type(value)
    if kind is ArtifactId:
        found[value] = None
    elif kind in _CONTAINERS:
        for item in value.values() if kind is dict else value:
            if type(item) not in _LEAVES:
                _collect(item, found)


def _is_simple(value: object) -> bool | None:
    """Whether the fast encoder may be asked: exact types that it knows, and no deeper than allowed. False where there
    are links besides, None where the reference has to judge.

    It recurses, and overflows a small stack before it refuses; subclasses it would map without a word.
    Raises: InvalidValue for a value that would be huge, since its containers are shared.
    """
    if type(value) is dict and _LEAVES.issuperset(map(type, value.values())):
        return True  # most payloads of events
    level: list[Any] = [value]
    linked = shared = False
    for _ in range(MAX_DEPTH + 1):
        # Most values are leaves, so each level is first looked at as a whole, at the speed of C.
        kinds = set(map(type, level)) - _LEAVES
        if ArtifactId in kinds:
            kinds.remove(ArtifactId)
            linked = True
        if not kinds:
            if shared:
                _check_size(value)
            return None if type(value) is ArtifactId else not linked
        if kinds - _CONTAINERS:
            return None
        if len(level) > _MANY:
            level = [item for item in level if type(item) in _CONTAINERS]
            if len(set(map(id, level))) < len(level):
                level, shared = list({id(item): item for item in level}.values()), True
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                below += item.values()
            elif kind is list:
                below += item
        level = below
    return None


def _check_size(value: object) -> None:
    """Raises: InvalidValue."""
    level, count = [(value, 1)], 0
    for _ in range(MAX_DEPTH + 1):
        times: dict[int, tuple[Any, int]] = {}
        for item, many in level:
            count += many
            if type(item) in _CONTAINERS:
                times[id(item)] = item, times.get(id(item), (item, 0))[1] + many
        if count > ITEMS_MAX:
            raise InvalidValue("$", f"more than {ITEMS_MAX} items, by containers that are shared")
        level = [
            (inner, many)
            for item, many in times.values()
            for inner in (item.values() if type(item) is dict else item)
            if type(inner) in _CONTAINERS
        ]


def may_link(data: bytes) -> bool:
    """Whether canonical bytes could hold a link."""
    place = data.find(b"\xd8")  # one byte is found at the speed of memory, a pattern is not
    for _ in range(_FINDS_MAX):
        if place < 0:
            return False
        if _LINK_HEAD.match(data, place):
            return True
        place = data.find(b"\xd8", place + 1)
    return place >= 0 and _LINK_HEAD.search(data, place) is not None


def is_shallow(data: bytes) -> bool:
    """Whether decoding by recursion cannot overflow this thread's stack: few containers, or a stack that is known to
    be large. Threads made with a small stack_size, and those of musl, have small ones."""
    return len(data) <= MAX_DEPTH or _recursion_ends() or not _may_be_deep(data)


def _recursion_ends() -> bool:
    """Whether the interpreter's own limit comes before the end of this thread's stack."""
    return threading.stack_size() == 0 and sys.getrecursionlimit() <= _LEVELS_MAX


def _may_be_deep(data: bytes) -> bool:
    """Whether there could be more than MAX_DEPTH containers in each other: a byte begins one at most."""
    return len(data) > MAX_DEPTH and len(data) - len(data.translate(None, _CONTAINER_HEADS)) > MAX_DEPTH


def _comes_back(data: bytes) -> bool:
    """Whether the fast codec, to which a link is the bytes of its CID, gives these bytes back: so does the reference,
    then, for what it decodes them to. False says nothing."""
    try:
        return is_shallow(data) and libipld.encode_dag_cbor(libipld.decode_dag_cbor(data)) == data
    except Exception:
        return False


def _levels_max() -> int:
    """How deep recursion may go on the stacks that threads have unless asked otherwise."""
    try:
        soft = resource.getrlimit(resource.RLIMIT_STACK)[0]
        if not os.confstr("CS_GNU_LIBC_VERSION"):
            return 0
    except (ValueError, OSError):
        return 0
    return (2 << 20 if soft == resource.RLIM_INFINITY else soft) // _LEVEL_BYTES


_LEVELS_MAX: Final = _levels_max()
