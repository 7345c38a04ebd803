"""The JSON form of events, for people and tools. Nothing is decided by it and nothing stored in it.

Ids in fixed fields are hex text. Inside payloads and details an ArtifactId is `{"/": hex}`, bytes are
`{"/": {"bytes": base64}}`, and a map whose only key is "/" is `{"/": {"map": …}}`, so that both ways agree.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import fields
from typing import Any, Final

from casstore.ids import ArtifactId
from journal.errors import InvalidField
from journal.events import (
    DomainEvent,
    Event,
    RecordedEvent,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
    StateFailed,
)
from journal.failures import StateError, check_keys
from journal.ids import check_artifact_id

_KERNEL: Final[dict[str, type[Any]]] = {
    kind.__name__: kind for kind in (RunStarted, StateEntered, StateCompleted, StateFailed, RunCompleted)
}
_OPTIONAL: Final = ("failure_snapshot_id", "final_snapshot_id")


def to_json(item: Event | RecordedEvent) -> dict[str, Any]:
    """A dict that `json.dumps` takes; what is absent is left out."""
    if type(item) is RecordedEvent:
        return {
            "run_id": str(item.run_id),
            "seq": item.seq,
            "position": item.position,
            "timestamp_ms": item.timestamp_ms,
            "event": to_json(item.event),
        }
    if type(item) is DomainEvent:
        shown: dict[str, Any] = {"type": "DomainEvent", "name": item.name, "payload": value_to_json(item.payload)}
        return shown if item.payload_ref is None else {**shown, "payload_ref": str(item.payload_ref)}
    kind = type(item).__name__
    if kind not in _KERNEL:
        raise InvalidField("event", f"{kind} is no event")
    shown = {"type": kind}
    for name in (field.name for field in fields(item)):
        value = getattr(item, name)
        if value is not None:
            shown[name] = _field_to_json(value)
    return shown


def _field_to_json(value: Any) -> Any:
    if type(value) is StateError:
        return value_to_json(value.to_map())
    return value if type(value) is int else str(value)


def from_json(shown: object) -> Event:
    """The event of `to_json`; checked like any event that is made. Raises: InvalidEvent leaves."""
    kind = shown.get("type") if type(shown) is dict else None
    if kind == "DomainEvent":
        given = check_keys("event", shown, ("type", "name", "payload"), ("payload_ref",))
        return DomainEvent(given["name"], value_from_json(given["payload"]), given.get("payload_ref"))
    if type(kind) is not str or kind not in _KERNEL:
        raise InvalidField("type", f"{kind!r:.80} is no kind of event")
    names = tuple(field.name for field in fields(_KERNEL[kind]))
    wanted = tuple(name for name in names if name not in _OPTIONAL)
    given = dict(check_keys("event", shown, ("type", *wanted), _OPTIONAL if len(wanted) < len(names) else ()))
    if any(name not in names for name in given if name != "type"):
        raise InvalidField("event", f"a field that {kind} has not")
    del given["type"]
    if "error" in given:
        given["error"] = StateError.from_map(value_from_json(given["error"]))
    return _KERNEL[kind](**given)  # type: ignore[no-any-return]


def recorded_from_json(shown: object) -> RecordedEvent:
    """The RecordedEvent of `to_json`. Raises: InvalidEvent leaves."""
    given = dict(check_keys("recorded", shown, ("run_id", "seq", "position", "timestamp_ms", "event")))
    given["event"] = from_json(given["event"])
    return RecordedEvent(**given)


def value_to_json(value: Any) -> Any:
    """A plain value with links and bytes as maps that JSON can hold."""
    if type(value) is ArtifactId:
        return {"/": str(value)}
    if type(value) is bytes:
        return {"/": {"bytes": base64.b64encode(value).decode()}}
    if type(value) is list:
        return [value_to_json(item) for item in value]
    if type(value) is dict:
        shown = {key: value_to_json(item) for key, item in value.items()}
        return {"/": {"map": shown}} if list(shown) == ["/"] else shown
    return value


def value_from_json(shown: Any) -> Any:
    """The inverse of `value_to_json`. Raises: InvalidField."""
    if type(shown) is list:
        return [value_from_json(item) for item in shown]
    if type(shown) is not dict:
        return shown
    if list(shown) != ["/"]:
        return {key: value_from_json(item) for key, item in shown.items()}
    inner = shown["/"]
    if type(inner) is str:
        return check_artifact_id("payload", inner)
    if type(inner) is dict and list(inner) == ["bytes"] and type(inner["bytes"]) is str:
        try:
            return base64.b64decode(inner["bytes"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidField("payload", f"not base64: {error}") from error
    if type(inner) is dict and list(inner) == ["map"] and type(inner["map"]) is dict:
        return {key: value_from_json(item) for key, item in inner["map"].items()}
    raise InvalidField("payload", 'a map with the key "/" alone is a link, bytes or a map')
