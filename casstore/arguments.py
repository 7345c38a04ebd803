"""Arguments of Store's methods, checked before storage is touched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from casstore.errors import InvalidArgument, InvalidId
from casstore.ids import ArtifactId
from casstore.items import PutItem, check_kind

SECONDS_MAX: Final = 1 << 32  # 136 years: what an expiry can be is a number of 64 bits
T = TypeVar("T")


def seconds(value: object, name: str) -> float:
    """A finite number of seconds above 0."""
    if type(value) in (int, float) and 0 < value <= SECONDS_MAX:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    raise InvalidArgument(name, f"a number of seconds above 0 is wanted, at most {SECONDS_MAX}")


def count(value: object, name: str) -> int:
    """A number from 0 to 2^63 - 1."""
    if type(value) is int and 0 <= value < 1 << 63:
        return value
    raise InvalidArgument(name, f"a number from 0 is wanted, not {value!r:.60}")


def instance(value: object, wanted: type[T], name: str) -> T:
    """The value itself, if it is one of those."""
    if isinstance(value, wanted):
        return value
    raise InvalidArgument(name, f"a {wanted.__name__} is wanted, not {type(value).__name__}")


def either(value: T | None, other: T | None, name: str, other_name: str) -> T | None:
    """The one that is given."""
    if value is not None and other is not None:
        raise InvalidArgument(other_name, f"is another name of {name}: give one of them")
    return other if value is None else value


def several(values: object, name: str) -> Iterable[object]:
    """The values themselves, if there can be several."""
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes)):
        return values
    raise InvalidArgument(name, f"a list is wanted, not {type(values).__name__}")


def digests_of(ids: object) -> list[bytes]:
    return [artifact_id(found).digest for found in several(ids, "ids")]


def plain_bytes(data: object) -> bytes:
    if type(data) is bytes:
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise InvalidArgument("data", f"must be bytes, not {type(data).__name__}")


def artifact_id(value: object) -> ArtifactId:
    if isinstance(value, ArtifactId):
        return value
    raise InvalidId(value, f"an ArtifactId is wanted, not {type(value).__name__}; ArtifactId.parse makes one of text")


def pin_name(name: str) -> str:
    if type(name) is not str or not 0 < len(name.encode(errors="replace")) <= 400 or not name.isprintable():
        raise InvalidArgument("name", "a pin's name is printable text of 1 to 400 bytes")
    return name


def optional_id(value: ArtifactId | None, name: str) -> ArtifactId | None:
    if value is None or isinstance(value, ArtifactId):
        return value
    raise InvalidId(value, f"{name} must be an ArtifactId")


def put_items(items: Iterable[bytes | tuple[bytes, str] | PutItem]) -> list[PutItem]:
    several(items, "items")
    return [PutItem(data=item) if type(item) is bytes else _put_item(item) for item in items]


def _put_item(item: bytes | tuple[bytes, str] | PutItem) -> PutItem:
    if isinstance(item, PutItem):
        return PutItem(data=plain_bytes(item.data), kind=check_kind(item.kind), base=optional_id(item.base, "base"))
    if isinstance(item, tuple):
        if len(item) != 2:
            raise InvalidArgument("items", f"a tuple of bytes and kind is wanted, not one of {len(item)}")
        data, kind = item
        return PutItem(data=plain_bytes(data), kind=check_kind(kind))
    return PutItem(data=plain_bytes(item))
