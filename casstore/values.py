"""Structured values as DAG-CBOR (the public IPLD specification), in which an ArtifactId is a link.

Two encoders that make identical bytes: libipld (fast) behind a guard, and cbor2 on a normalised copy (the
reference). libipld writes bytes that look like a CID as a link, maps subclasses silently, and recurses until a small
stack overflows; so where any of these could be, or it refuses, the reference decides.
"""

from __future__ import annotations

import math
import os
import re
import resource
import threading
from operator import itemgetter
from typing import Any, Final

import cbor2
import libipld

from casstore.errors import InvalidValue, UndecodableValue
from casstore.ids import ArtifactId
from casstore.scanning import first_fault

MAX_DEPTH: Final = 128  # containers inside containers; well below where cbor2 overflows a thread's stack
_INT_MIN, _INT_MAX = -(1 << 64), (1 << 64) - 1
_LEAVES: Final = frozenset({str, int, float, bool, type(None), bytes})
_CONTAINERS: Final = frozenset({dict, list})
_CONTAINER_HEADS: Final = bytes(range(0x80, 0xBC))
_FINDS_MAX: Final = 500
_LINK_TAG: Final = 42
# Tag 42 over a byte string that begins with the multibase identity: bytes that match by chance cost time only.
_LINK_HEAD: Final = re.compile(rb"\xd8\x2a(?:[\x41-\x57]|\x58.|\x59..|\x5a.{4}|\x5b.{8})\x00", re.DOTALL)
_CID_PREFIX: Final = b"\x00\x01\x55\x1e\x20"  # multibase identity, CIDv1, raw, blake3, 32 bytes


def encode(value: object) -> tuple[bytes, tuple[ArtifactId, ...]]:
    """The canonical bytes of a value and its distinct links in order.

    Profile: None, bool, int in [-2^64, 2^64), finite float, str, bytes, list, dict with str keys, ArtifactId; a
    tuple is stored as a list, a bytearray as bytes, -0.0 as 0.0, a key of a subclass of str as plain text.
    Raises: InvalidValue with the path.
    """
    if not _is_simple(value):
        return encode_reference(value)
    try:
        data = libipld.encode_dag_cbor(value)
    except Exception:
        return encode_reference(value)
    return encode_reference(value) if 0xD8 in data and may_link(data) else (data, ())


def encode_reference(value: object) -> tuple[bytes, tuple[ArtifactId, ...]]:
    """As `encode`, by cbor2 on a normalised copy: slower, and the judge of what is allowed."""
    links: dict[ArtifactId, None] = {}
    normal = _normal(value, "$", 0, links)
    return cbor2.dumps(normal), tuple(links)


def decode(data: bytes) -> Any:
    """A fresh value; links are ArtifactIds. Only canonical bytes are accepted: decode then encode gives the same.

    Raises: UndecodableValue, with the offset of what is refused; InvalidValue where no bytes are given.
    """
    try:
        return _decode(data)
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
        value = _decode_with_links(data)
        if _comes_back(data):
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


def links(data: bytes) -> tuple[ArtifactId, ...]:
    """The distinct links of canonical bytes, in order. Raises: InvalidValue, which does not say where."""
    return encode(_decode(data))[1] if may_link(data) else ()


def _is_simple(value: object) -> bool:
    """Whether the fast encoder may be asked: exact types that it knows, and no deeper than allowed.

    It recurses, and overflows a small stack before it refuses; subclasses it would map without a word.
    """
    if type(value) is dict and _LEAVES.issuperset(map(type, value.values())):
        return True  # most payloads of events
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        # Most values are leaves, so each level is first looked at as a whole, at the speed of C.
        kinds = set(map(type, level)) - _LEAVES
        if not kinds:
            return True
        if kinds - _CONTAINERS:
            return False
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                below += item.values()
            elif kind is list:
                below += item
        level = below
    return False


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
    return len(data) <= MAX_DEPTH or (_LARGE_STACKS and threading.stack_size() == 0) or not _may_be_deep(data)


def _may_be_deep(data: bytes) -> bool:
    """Whether there could be more than MAX_DEPTH containers in each other: a byte begins one at most."""
    return len(data) > MAX_DEPTH and len(data) - len(data.translate(None, _CONTAINER_HEADS)) > MAX_DEPTH


def _comes_back(data: bytes) -> bool:
    """Whether the fast codec, to which a link is the bytes of its CID, gives these bytes back: so does the reference,
    then, for what it decodes them to. False says nothing."""
    try:
        return not _may_be_deep(data) and libipld.encode_dag_cbor(libipld.decode_dag_cbor(data)) == data
    except Exception:
        return False


def _large_stacks() -> bool:
    """Whether threads have stacks of a MiB and more unless asked otherwise."""
    try:
        soft = resource.getrlimit(resource.RLIMIT_STACK)[0]
        return bool(os.confstr("CS_GNU_LIBC_VERSION")) and (soft == resource.RLIM_INFINITY or soft >= 1 << 20)
    except (ValueError, OSError):
        return False


def _normal(value: object, path: str, depth: int, links: dict[ArtifactId, None]) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is bytes:
        return value
    if kind is str:
        return _text(value, path)  # type: ignore[arg-type]
    if kind is int:
        if not _INT_MIN <= value <= _INT_MAX:  # type: ignore[operator]
            raise InvalidValue(path, "an integer outside of [-2^64, 2^64)")
        return value
    if kind is float:
        if not math.isfinite(value):  # type: ignore[arg-type]
            raise InvalidValue(path, "NaN" if math.isnan(value) else "an infinity")  # type: ignore[arg-type]
        return value or 0.0
    if kind is ArtifactId:
        links[value] = None  # type: ignore[index]
        return cbor2.CBORTag(_LINK_TAG, _CID_PREFIX + value.digest)  # type: ignore[attr-defined]
    if kind is bytearray:
        return bytes(value)  # type: ignore[call-overload]
    if kind is list or kind is tuple:
        _check_depth(path, depth)
        items: Any = value
        return [_normal(item, f"{path}[{place}]", depth + 1, links) for place, item in enumerate(items)]
    if kind is dict:
        _check_depth(path, depth)
        mapping: Any = value
        return _normal_map(mapping, path, depth, links)
    raise InvalidValue(path, f"{kind.__module__}.{kind.__qualname__} is no plain value")


def _normal_map(mapping: dict[Any, Any], path: str, depth: int, links: dict[ArtifactId, None]) -> dict[str, Any]:
    items = []
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise InvalidValue(path, f"the key {key!r:.80} is {type(key).__name__}, not str")
        plain = str.__str__(key)  # as the fast encoder takes the key of a subclass
        _text(plain, path)
        items.append((len(plain.encode()), plain.encode(), plain, value))
    items.sort(key=itemgetter(0, 1))
    return {key: _normal(value, _below(path, key), depth + 1, links) for _, _, key, value in items}


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if key.isidentifier() else f'{path}["{key}"]'


def _text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidValue(path, "text with a lone surrogate, which no UTF-8 has") from error
    return text


def _check_depth(path: str, depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise InvalidValue(path[:200], f"nested deeper than {MAX_DEPTH}, or a cycle")


def _refuse_tag(*_: Any, **__: Any) -> Any:
    raise ValueError("a tag other than 42")


_NO_TAGS: Final = dict.fromkeys(
    (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799), _refuse_tag
)


def _link(tag: cbor2.CBORTag, immutable: bool = False) -> ArtifactId:
    if tag.tag != _LINK_TAG or type(tag.value) is not bytes or not tag.value.startswith(_CID_PREFIX):
        raise ValueError("a tag that is no link to an artifact")
    return ArtifactId(tag.value[len(_CID_PREFIX) :])


def _decode_with_links(data: bytes) -> Any:
    try:
        return cbor2.loads(
            data, tag_hook=_link, semantic_decoders=_NO_TAGS, allow_duplicate_keys=False, allow_indefinite=False,
            max_depth=MAX_DEPTH + 2,
        )  # fmt: skip
    except InvalidValue:
        raise
    except Exception as error:
        raise InvalidValue("$", f"not DAG-CBOR: {error}") from error


_LARGE_STACKS: Final = _large_stacks()
