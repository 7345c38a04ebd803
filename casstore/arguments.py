"""Arguments of Store's methods, checked before storage is touched."""

from __future__ import annotations

from collections.abc import Iterable

from casstore.errors import InvalidArgument, InvalidId
from casstore.ids import ArtifactId
from casstore.items import PutItem, check_kind


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
    return [PutItem(data=item) if type(item) is bytes else _put_item(item) for item in items]


def _put_item(item: bytes | tuple[bytes, str] | PutItem) -> PutItem:
    if isinstance(item, PutItem):
        return PutItem(data=plain_bytes(item.data), kind=check_kind(item.kind), base=optional_id(item.base, "base"))
    if isinstance(item, tuple):
        data, kind = item
        return PutItem(data=plain_bytes(data), kind=check_kind(kind))
    return PutItem(data=plain_bytes(item))
