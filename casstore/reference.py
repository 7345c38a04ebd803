"""The reference codec of values: cbor2, on a normalised copy. Slow, and the judge of what is allowed (`values`)."""

from __future__ import annotations

import math
from operator import itemgetter
from typing import Any, Final

import cbor2

from casstore.errors import InvalidValue
from casstore.ids import ArtifactId

MAX_DEPTH: Final = 128  # containers inside containers; well below where cbor2 overflows a thread's stack
CID_PREFIX: Final = b"\x00\x01\x55\x1e\x20"  # multibase identity, CIDv1, raw, blake3, 32 bytes
_INT_MIN, _INT_MAX = -(1 << 64), (1 << 64) - 1
_LINK_TAG: Final = 42
_AS_IT_IS: Final = frozenset({bool, type(None), bytes})
_STEPS_SHOWN: Final = 40


class _RefusedError(Exception):
    """What is wrong, and on the way out, step by step, where."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason, self.steps = reason, list[str]()


def encode_reference(value: object) -> tuple[bytes, tuple[ArtifactId, ...]]:
    """The canonical bytes of a value and its distinct links in order. Raises: InvalidValue with the path."""
    links: dict[ArtifactId, None] = {}
    try:
        normal = _normal(value, 0, links)
    except _RefusedError as error:
        raise InvalidValue("$" + "".join(error.steps[: -_STEPS_SHOWN - 1 : -1]), error.reason) from None
    return cbor2.dumps(normal), tuple(links)


def _normal(value: object, depth: int, links: dict[ArtifactId, None]) -> Any:
    """Raises: _RefusedError."""
    kind = type(value)
    if value is None or kind is bool or kind is bytes:
        return value
    if kind is str:
        return _text(value)  # type: ignore[arg-type]
    if kind is int:
        if not _INT_MIN <= value <= _INT_MAX:  # type: ignore[operator]
            raise _RefusedError("an integer outside of [-2^64, 2^64)")
        return value
    if kind is float:
        if not math.isfinite(value):  # type: ignore[arg-type]
            raise _RefusedError("NaN" if math.isnan(value) else "an infinity")  # type: ignore[arg-type]
        return value or 0.0
    if kind is ArtifactId:
        links[value] = None  # type: ignore[index]
        return cbor2.CBORTag(_LINK_TAG, CID_PREFIX + value.digest)  # type: ignore[attr-defined]
    if kind is bytearray:
        return bytes(value)  # type: ignore[call-overload]
    if kind is list or kind is tuple:
        _check_depth(depth)
        items: Any = value
        normal: list[Any] = []
        try:
            for item in items:
                normal.append(  # noqa: PERF401 — its length says where
                    item if type(item) in _AS_IT_IS else _normal(item, depth + 1, links)
                )
        except _RefusedError as error:
            error.steps.append(f"[{len(normal)}]")
            raise
        return normal
    if kind is dict:
        _check_depth(depth)
        mapping: Any = value
        return _normal_map(mapping, depth, links)
    raise _RefusedError(f"{kind.__module__}.{kind.__qualname__} is no plain value")


def _normal_map(mapping: dict[Any, Any], depth: int, links: dict[ArtifactId, None]) -> dict[str, Any]:
    items = []
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise _RefusedError(f"the key {key!r:.80} is {type(key).__name__}, not str")
        plain = str.__str__(key)  # as the fast encoder takes the key of a subclass
        raw = _text(plain).encode()
        items.append((len(raw), raw, plain, value))
    items.sort(key=itemgetter(0, 1))
    normal, key = {}, ""
    try:
        for _, _, key, value in items:
            normal[key] = value if type(value) in _AS_IT_IS else _normal(value, depth + 1, links)
    except _RefusedError as error:
        error.steps.append(f".{key}" if key.isidentifier() else f'["{key}"]')
        raise
    return normal


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _RefusedError("text with a lone surrogate, which no UTF-8 has") from error
    return text


def _check_depth(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise _RefusedError(f"nested deeper than {MAX_DEPTH}, or a cycle")


def _refuse_tag(*_: Any, **__: Any) -> Any:
    raise ValueError("a tag other than 42")


_NO_TAGS: Final = dict.fromkeys(
    (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799), _refuse_tag
)


def _link(tag: cbor2.CBORTag, immutable: bool = False) -> ArtifactId:
    if tag.tag != _LINK_TAG or type(tag.value) is not bytes or not tag.value.startswith(CID_PREFIX):
        raise ValueError("a tag that is no link to an artifact")
    return ArtifactId(tag.value[len(CID_PREFIX) :])


def decode_reference(data: bytes) -> Any:
    """What the bytes hold, of any form that cbor2 reads. Raises: InvalidValue."""
    try:
        return cbor2.loads(
            data, tag_hook=_link, semantic_decoders=_NO_TAGS, allow_duplicate_keys=False, allow_indefinite=False,
            max_depth=MAX_DEPTH + 2,
        )  # fmt: skip
    except InvalidValue:
        raise
    except Exception as error:
        raise InvalidValue("$", f"not DAG-CBOR: {error}") from error
