"""Names and numbers inside events, and the one place that says what each may look like.

Types are compared exactly: a bool is no attempt number and an enum no text, because an encoder would store such a
value as something that decodes to another one.
"""

from __future__ import annotations

import re
from typing import Final, TypeGuard
from uuid import UUID

from casstore.errors import InvalidId
from casstore.ids import ArtifactId
from journal.errors import InvalidField, InvalidOpId, InvalidRunId, InvalidStateId

_SEGMENT: Final = r"[a-z][a-z0-9_]{0,62}"
_OP_ID: Final = re.compile(_SEGMENT, re.ASCII)
_STATE_ID: Final = re.compile(rf"{_SEGMENT}\.{_SEGMENT}\.{_SEGMENT}", re.ASCII)
_RUN_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)

_KNOWN_MAX: Final = 10_000
# Memories of what was checked: the same few states and names come again and again.
_known_states: set[str] = set()
_known_names: set[str] = set()

NAME_MAX: Final = 128
U32_MAX: Final = (1 << 32) - 1
U64_MAX: Final = (1 << 64) - 1
TIME_LIMIT: Final = 1 << 63  # unix ms, the greatest that a record takes


def parse_run_id(value: object) -> UUID:
    """A UUID, or its canonical text of 36 lowercase characters. Raises: InvalidRunId."""
    if type(value) is UUID:
        return value
    if type(value) is not str:
        raise InvalidRunId(value, f"{type(value).__name__} is neither a UUID nor text")
    if not _RUN_ID.fullmatch(value):
        raise InvalidRunId(value, "not the canonical text of a UUID")
    return UUID(value)


def check_state_id(value: object) -> str:
    """The state id itself: three segments joined by dots. Raises: InvalidStateId."""
    if type(value) is not str:
        raise InvalidStateId(value, f"{type(value).__name__} is not plain text")
    if value in _known_states:
        return value
    if not _STATE_ID.fullmatch(value):
        raise InvalidStateId(value, "wrong form")
    if len(_known_states) >= _KNOWN_MAX:
        _known_states.clear()
    _known_states.add(value)
    return value


def check_name(value: object) -> str:
    """The name of a domain event itself: 1 to NAME_MAX characters. Raises: InvalidField."""
    if type(value) is str and value in _known_names:
        return value
    name = check_text("name", value, least=1, most=NAME_MAX)
    if len(_known_names) >= _KNOWN_MAX:
        _known_names.clear()
    _known_names.add(name)
    return name


def check_op_id(value: object) -> str:
    """The operation id itself: one segment. Raises: InvalidOpId."""
    if type(value) is not str:
        raise InvalidOpId(value, f"{type(value).__name__} is not plain text")
    if not _OP_ID.fullmatch(value):
        raise InvalidOpId(value, "wrong form")
    return value


def check_artifact_id(field: str, value: object) -> ArtifactId:
    """An ArtifactId, or its 64 lowercase hex digits. Raises: InvalidField."""
    if type(value) is ArtifactId:
        return value
    if type(value) is not str:
        raise InvalidField(field, f"{type(value).__name__} is no artifact id")
    try:
        return ArtifactId.parse(value)
    except InvalidId as error:
        raise InvalidField(field, str(error)) from error


def check_link(field: str, value: object) -> ArtifactId:
    """An ArtifactId and nothing else: in a payload hex digits are only text. Raises: InvalidField."""
    if type(value) is not ArtifactId:
        raise InvalidField(field, f"an ArtifactId is wanted, not {type(value).__name__}")
    return value


def check_int(field: str, value: object, low: int, high: int) -> int:
    """A plain int in [low, high]. Raises: InvalidField."""
    if type(value) is not int:
        raise InvalidField(field, f"an integer is wanted, not {type(value).__name__}")
    if not low <= value <= high:
        raise InvalidField(field, f"{value} is outside of [{low}, {high}]")
    return value


def check_bool(field: str, value: object) -> bool:
    """A plain bool. Raises: InvalidField."""
    if type(value) is not bool:
        raise InvalidField(field, f"a bool is wanted, not {type(value).__name__}")
    return value


def check_text(field: str, value: object, *, least: int = 0, most: int | None = None) -> str:
    """Plain text that UTF-8 can hold, of `least` to `most` characters. Raises: InvalidField."""
    if not is_text(value):
        raise InvalidField(field, f"text is wanted, not {type(value).__name__}")
    if len(value) < least or (most is not None and len(value) > most):
        allowed = f"{least} or more" if most is None else f"{least} to {most}"
        raise InvalidField(field, f"text of {len(value)} characters; {allowed} are allowed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidField(field, "text with a lone surrogate, which no UTF-8 has") from error
    return value


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is plain text: a subclass, such as an enum's member, is not."""
    return type(value) is str
