"""How a run ended and why an attempt failed: the plain values inside events."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeVar, final

from casstore import values
from casstore.errors import InvalidValue, UndecodableValue
from journal.errors import InvalidField, MalformedField
from journal.ids import check_bool, check_state_id, check_text


class RunStatus(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ErrorCategory(StrEnum):
    """Where a failure came from."""

    PARSING_INPUT = "parsing_input"
    ON_CHAIN = "on_chain"
    OFF_CHAIN = "off_chain"
    RPC = "rpc"
    STORAGE = "storage"
    CONTEXT = "context"
    UNKNOWN = "unknown"


Member = TypeVar("Member", RunStatus, ErrorCategory)

_GIVEN_NOTHING: Final = object()


def check_member(name: str, value: object, enum: type[Member]) -> Member:
    """The member itself, or the one of this plain text. Raises: InvalidField."""
    if type(value) is enum:
        return value
    if type(value) is str:
        for member in enum:
            if member.value == value:
                return member
    raise InvalidField(name, f"{value!r:.80} is none of {[member.value for member in enum]}")


def encode_value(name: str, value: object) -> bytes:
    """Canonical bytes of a plain value. Raises: InvalidField with the path inside the value."""
    try:
        return values.encode(value)[0]
    except InvalidValue as error:
        path, reason = error.args
        raise InvalidField(f"{name}{path[1:]}", reason) from error


def decode_value(name: str, data: object) -> Any:
    """The value of canonical bytes. Raises: MalformedField where they are none; InvalidField."""
    try:
        return values.decode(data)  # type: ignore[arg-type]
    except UndecodableValue as error:
        path, reason, offset = error.args
        refused = MalformedField(f"{name}{path[1:]}", reason, offset)
        refused.inside = data  # type: ignore[assignment]
        raise refused from error
    except InvalidValue as error:
        path, reason = error.args
        raise InvalidField(f"{name}{path[1:]}", reason) from error


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class ErrorInfo:
    """What went wrong. `details` is any plain value or None; each look at it gives a fresh one.

    `details_bytes` is its canonical form, by which two ErrorInfos are compared and hashed.
    """

    code: str
    category: ErrorCategory
    retryable: bool
    message: str
    details_bytes: bytes | None = field(default=None)

    def __init__(
        self,
        *,
        code: str,
        category: ErrorCategory | str = ErrorCategory.UNKNOWN,
        retryable: bool,
        message: str = "",
        details: Any = _GIVEN_NOTHING,
        details_bytes: bytes | None = None,
    ) -> None:
        """Raises: InvalidField. `details_bytes` counts only where no details are given."""
        if details is not _GIVEN_NOTHING:
            details_bytes = None if details is None else encode_value("error.info.details", details)
        elif details_bytes is not None and decode_value("error.info.details", details_bytes) is None:
            raise InvalidField("error.info.details", "absent details are not stored as null")
        put = object.__setattr__
        put(self, "code", check_text("error.info.code", code, least=1, most=128))
        put(self, "category", check_member("error.info.category", category, ErrorCategory))
        put(self, "retryable", check_bool("error.info.retryable", retryable))
        put(self, "message", check_text("error.info.message", message))
        put(self, "details_bytes", details_bytes)

    @property
    def details(self) -> Any:
        """A fresh plain value, or None."""
        return None if self.details_bytes is None else values.decode(self.details_bytes)

    def __repr__(self) -> str:
        return (
            f"ErrorInfo(code={self.code!r}, category={self.category.value!r}, retryable={self.retryable}, "
            f"message={self.message!r}, details={self.details!r})"
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StateError:
    """An ErrorInfo and the state it happened in; a missing state_id is filled in by StateFailed."""

    state_id: str | None = None
    info: ErrorInfo

    def __post_init__(self) -> None:
        if self.state_id is not None:
            check_state_id(self.state_id)
        if type(self.info) is not ErrorInfo:
            raise InvalidField("error.info", f"an ErrorInfo is wanted, not {type(self.info).__name__}")

    def to_map(self) -> dict[str, Any]:
        """A plain map, links kept as ArtifactIds; what is absent is left out."""
        info: dict[str, Any] = {
            "code": self.info.code,
            "category": self.info.category.value,
            "retryable": self.info.retryable,
            "message": self.info.message,
        }
        if self.info.details_bytes is not None:
            info["details"] = self.info.details
        return {"info": info} if self.state_id is None else {"state_id": self.state_id, "info": info}

    @classmethod
    def from_map(cls, value: object, name: str = "error") -> StateError:
        """The inverse of `to_map`; nothing unknown is let through. Raises: InvalidField."""
        outer = check_keys(name, value, ("info",), ("state_id",))
        wanted = ("code", "category", "retryable", "message")
        inner = check_keys(f"{name}.info", outer["info"], wanted, ("details",))
        if "details" in inner and inner["details"] is None:
            raise InvalidField(f"{name}.info.details", "absent details are left out")
        if "state_id" in outer:
            check_state_id(outer["state_id"])
        return cls(state_id=outer.get("state_id"), info=ErrorInfo(**inner))


def check_keys(name: str, value: object, wanted: tuple[str, ...], allowed: tuple[str, ...] = ()) -> dict[str, Any]:
    """The map itself, with every wanted key and none that is unknown. Raises: InvalidField."""
    if type(value) is not dict:
        raise InvalidField(name, f"a dict is wanted, not {type(value).__name__}")
    for key in wanted:
        if key not in value:
            raise InvalidField(f"{name}.{key}", "missing")
    for key in value:
        if key not in wanted and key not in allowed:
            raise InvalidField(f"{name}.{key!s:.80}", "not known")
    return value
