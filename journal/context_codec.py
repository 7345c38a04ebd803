"""How typed contexts become plain values, and back.

A codec is handed to `journal.open(codec=…)`. Contexts are decoded afresh at each call, so a codec has no state.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import types
import typing
import uuid
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from casstore.ids import ArtifactId
from journal.errors import InvalidArgument

T = TypeVar("T")
_TEXTS: Final = (uuid.UUID, decimal.Decimal)
_MOMENTS: Final = (datetime.datetime, datetime.date, datetime.time)


@runtime_checkable
class ContextCodec(Protocol):
    """`to_plain` gives a value that `put_value` takes; `from_plain` is its inverse on what was read."""

    def to_plain(self, context: Any) -> Any: ...

    def from_plain(self, plain: Any) -> Any: ...


class PlainCodec:
    """Contexts are plain values already."""

    def to_plain(self, context: Any) -> Any:
        return context

    def from_plain(self, plain: Any) -> Any:
        return plain


class DataclassCodec:
    """Contexts are instances of one dataclass, whose fields may be dataclasses, enums, moments, lists and maps.

    `from_plain` follows the type hints; a field that is missing takes its default, an unknown one is refused.
    """

    def __init__(self, cls: type[Any]) -> None:
        if not dataclasses.is_dataclass(cls):
            raise InvalidArgument("cls", "a dataclass is wanted")
        self._cls = cls

    def to_plain(self, context: Any) -> Any:
        """Raises: InvalidArgument for another type."""
        _check_type(context, self._cls)
        return plain(context)

    def from_plain(self, plain: Any) -> Any:
        """Raises: InvalidArgument where the value does not fit the type."""
        return build(self._cls, plain, "$")


class PydanticCodec:
    """Contexts are instances of one pydantic model (version 2); pydantic itself checks them on the way back."""

    def __init__(self, cls: type[Any]) -> None:
        if not hasattr(cls, "model_validate"):
            raise InvalidArgument("cls", "a pydantic model is wanted")
        self._cls = cls

    def to_plain(self, context: Any) -> Any:
        """Raises: InvalidArgument for another type."""
        _check_type(context, self._cls)
        return plain(context.model_dump(mode="python"))

    def from_plain(self, plain: Any) -> Any:
        return self._cls.model_validate(plain)


def _check_type(context: Any, cls: type[Any]) -> None:
    if not isinstance(context, cls):
        raise InvalidArgument("context", f"{cls.__name__} is wanted, not {type(context).__name__}")


def plain(value: Any) -> Any:
    """A plain value: enums by value, moments and UUIDs as text, tuples and sets as lists (sets sorted)."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, _MOMENTS):
        return value.isoformat()
    if isinstance(value, _TEXTS):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def build(hint: Any, value: Any, path: str) -> Any:
    """The inverse of `plain` for a type hint. Raises: InvalidArgument with the path."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin in (typing.Union, types.UnionType):
        return _build_union(args, value, path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build_dataclass(hint, value, path)
    if origin in (list, set, frozenset) or (origin is tuple and args[1:] == (...,)):
        _expect(isinstance(value, list), path, "a list is wanted")
        return origin(build(args[0], item, f"{path}[{place}]") for place, item in enumerate(value))
    if origin is tuple:
        _expect(isinstance(value, list) and len(value) == len(args), path, f"{len(args)} items are wanted")
        return tuple(build(arg, item, f"{path}[{place}]") for place, (arg, item) in enumerate(zip(args, value)))  # noqa: B905
    if origin in (dict, Mapping):
        _expect(isinstance(value, dict), path, "a map is wanted")
        return {key: build(args[1], item, f"{path}.{key}") for key, item in value.items()}
    return _build_leaf(hint, value, path)


def _build_union(args: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in args:
        return None
    problems = []
    for arg in args:
        if arg is type(None):
            continue
        try:
            return build(arg, value, path)
        except InvalidArgument as problem:
            problems.append(problem.fields["reason"])
    raise InvalidArgument(path, "; ".join(problems) or "None is wanted")


def _build_dataclass(cls: type[Any], value: Any, path: str) -> Any:
    _expect(isinstance(value, dict), path, f"a map is wanted for {cls.__name__}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(value) - set(fields))
    _expect(not unknown, path, f"{cls.__name__} has no field {unknown}")
    built = {name: build(hints[name], value[name], f"{path}.{name}") for name in fields if name in value}
    try:
        made = cls(**{name: item for name, item in built.items() if fields[name].init})
    except TypeError as error:
        raise InvalidArgument(path, str(error)) from error
    for name, item in built.items():
        if not fields[name].init:
            object.__setattr__(made, name, item)
    return made


def _build_leaf(hint: Any, value: Any, path: str) -> Any:
    if not isinstance(hint, type):
        return value
    try:
        if issubclass(hint, _MOMENTS):
            return hint.fromisoformat(value)
        if issubclass(hint, _TEXTS) or issubclass(hint, enum.Enum):
            return hint(value)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InvalidArgument(path, f"no {hint.__name__}: {value!r:.80}") from error
    if hint is float and type(value) is int:
        return float(value)
    if hint in (int, float, str, bytes, bool, ArtifactId, list, dict):
        _expect(type(value) is hint, path, f"{hint.__name__} is wanted, not {type(value).__name__}")
    return value


def _expect(holds: bool, path: str, reason: str) -> None:
    if not holds:
        raise InvalidArgument(path, reason)
