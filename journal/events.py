"""The events of a run: a closed set of kernel events, and domain events that carry anything.

Everything is checked where an event is made, whoever makes it: a program, a record, a line of JSON. So an event in
hand is always a legal one; whether it may follow another is asked in `journal.envelopes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, TypeAlias, final
from uuid import UUID

from casstore import values
from casstore.errors import InvalidValue
from casstore.ids import ArtifactId
from journal import domain
from journal.blanks import blank_of
from journal.errors import InvalidField
from journal.failures import (
    ErrorCategory,
    ErrorInfo,
    RunStatus,
    StateError,
    check_member,
    decode_value,
    encode_value,
)
from journal.ids import (
    TIME_LIMIT,
    U32_MAX,
    U64_MAX,
    check_artifact_id,
    check_int,
    check_name,
    check_op_id,
    check_state_id,
    parse_run_id,
)

__all__ = [
    "DOMAIN", "EVENT_TYPES", "FIELD_COUNTS", "RUN_COMPLETED", "RUN_STARTED", "STATE_COMPLETED", "STATE_ENTERED",
    "STATE_FAILED", "DomainEvent", "ErrorCategory", "ErrorInfo", "Event", "Link", "RecordedEvent", "RunCompleted",
    "RunStarted", "RunStatus", "StateCompleted", "StateEntered", "StateError", "StateFailed", "artifact_written",
    "check_digest", "check_event", "check_op_id", "check_state_id", "child_run_completed", "child_run_spawned",
    "domain_of", "entered", "fact_recorded", "forked_from", "from_fields", "from_json", "links", "op_boundary",
    "parse_run_id", "recorded", "run_ended", "run_policy", "to_fields", "to_json",
]  # fmt: skip

_put: Final = object.__setattr__


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """Seq 1 of every stream. Names the manifest; the initial snapshot is the first checkpoint."""

    op_id: str
    manifest_id: ArtifactId
    initial_snapshot_id: ArtifactId

    def __post_init__(self) -> None:
        check_op_id(self.op_id)
        _put(self, "manifest_id", check_artifact_id("manifest_id", self.manifest_id))
        _put(self, "initial_snapshot_id", check_artifact_id("initial_snapshot_id", self.initial_snapshot_id))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StateEntered:
    """Opens an attempt, before its handler runs. The base is the checkpoint that every try starts from."""

    state_id: str
    attempt: int
    base_snapshot_id: ArtifactId

    def __post_init__(self) -> None:
        check_state_id(self.state_id)
        check_int("attempt", self.attempt, 0, U32_MAX)
        _put(self, "base_snapshot_id", check_artifact_id("base_snapshot_id", self.base_snapshot_id))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StateCompleted:
    """Closes an attempt with success: the only event that moves the checkpoint."""

    state_id: str
    context_snapshot_id: ArtifactId

    def __post_init__(self) -> None:
        check_state_id(self.state_id)
        _put(self, "context_snapshot_id", check_artifact_id("context_snapshot_id", self.context_snapshot_id))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StateFailed:
    """Closes an attempt without moving the checkpoint. An error without a state gets this one."""

    state_id: str
    error: StateError
    failure_snapshot_id: ArtifactId | None = None

    def __post_init__(self) -> None:
        check_state_id(self.state_id)
        if type(self.error) is not StateError:
            raise InvalidField("error", f"a StateError is wanted, not {type(self.error).__name__}")
        if self.error.state_id is None:
            _put(self, "error", replace(self.error, state_id=self.state_id))
        if self.failure_snapshot_id is not None:
            _put(self, "failure_snapshot_id", check_artifact_id("failure_snapshot_id", self.failure_snapshot_id))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunCompleted:
    """The end: nothing may follow it."""

    status: RunStatus
    final_snapshot_id: ArtifactId | None = None

    def __post_init__(self) -> None:
        _put(self, "status", check_member("status", self.status, RunStatus))
        if self.final_snapshot_id is not None:
            _put(self, "final_snapshot_id", check_artifact_id("final_snapshot_id", self.final_snapshot_id))


_NOT_GIVEN: Final = object()


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class DomainEvent:
    """Anything else worth recording; never moves the checkpoint.

    `payload` is a plain map (each look gives a fresh one); `payload_bytes`, its canonical form, is what is stored,
    compared and hashed. Payloads of the names in `journal.domain` are checked for their fields.
    """

    name: str
    payload_bytes: bytes
    payload_ref: ArtifactId | None = field(default=None)

    def __init__(
        self,
        name: str,
        payload: Any = _NOT_GIVEN,
        payload_ref: ArtifactId | None = None,
        *,
        payload_bytes: bytes | None = None,
    ) -> None:
        """`payload_bytes` counts only where no payload is given. Raises: InvalidEvent leaves."""
        check_name(name)
        if payload is _NOT_GIVEN:
            payload = {} if payload_bytes is None else decode_value("payload", payload_bytes)
        if type(payload) is not dict:
            raise InvalidField("payload", f"a dict is wanted, not {type(payload).__name__}")
        stored = encode_value("payload", domain.check_payload(name, payload))
        _put(self, "name", name)
        _put(self, "payload_bytes", stored)
        _put(self, "payload_ref", None if payload_ref is None else check_artifact_id("payload_ref", payload_ref))

    @property
    def payload(self) -> dict[str, Any]:
        """A fresh plain map."""
        return values.decode(self.payload_bytes)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"DomainEvent(name={self.name!r}, payload={self.payload!r}, payload_ref={self.payload_ref!r})"


Event: TypeAlias = RunStarted | StateEntered | StateCompleted | StateFailed | RunCompleted | DomainEvent
EVENT_TYPES: Final = (RunStarted, StateEntered, StateCompleted, StateFailed, RunCompleted, DomainEvent)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvent:
    """An event with its place: `seq` counts from 1 in its run, `position` over all runs."""

    run_id: UUID
    seq: int
    position: int
    timestamp_ms: int
    event: Event

    def __post_init__(self) -> None:
        _put(self, "run_id", parse_run_id(self.run_id))
        check_int("seq", self.seq, 1, U64_MAX)
        check_int("position", self.position, 0, U64_MAX)
        check_int("timestamp_ms", self.timestamp_ms, 0, TIME_LIMIT)
        check_event(self.event)


_BlankRecorded: Final = blank_of(RecordedEvent)


def recorded(run_id: UUID, seq: int, position: int, timestamp_ms: int, event: Event) -> RecordedEvent:
    """A RecordedEvent of parts that were checked already: reading makes many."""
    item = _BlankRecorded()
    item.run_id = run_id
    item.seq = seq
    item.position = position
    item.timestamp_ms = timestamp_ms
    item.event = event
    item.__class__ = RecordedEvent
    return item  # type: ignore[no-any-return]


def check_event(value: object) -> Event:
    """The event itself. Raises: InvalidField unless it is one of the closed set."""
    if type(value) not in EVENT_TYPES:
        raise InvalidField("event", f"{type(value).__name__} is no event")
    return value  # type: ignore[return-value]


# -- links --------------------------------------------------------------------------------------------


class Link(NamedTuple):
    """An artifact that an event names, and the path of the field that names it."""

    field: str
    id: ArtifactId


_LINK_MARK: Final = b"\xd8\x2a"
_ID_FIELDS: Final[dict[type, tuple[str, ...]]] = {
    RunStarted: ("manifest_id", "initial_snapshot_id"),
    StateEntered: ("base_snapshot_id",),
    StateCompleted: ("context_snapshot_id",),
    StateFailed: ("failure_snapshot_id",),
    RunCompleted: ("final_snapshot_id",),
    DomainEvent: ("payload_ref",),
}


def links(event: Event) -> list[tuple[str, ArtifactId]]:
    """Every artifact that the event names, with its field's path; nested links of payloads and details too."""
    found: list[tuple[str, ArtifactId]] = []
    kind = type(event)
    for name in _ID_FIELDS[kind]:
        value = getattr(event, name)
        if value is not None:
            found.append(Link(name, value))
    if kind is DomainEvent:
        if 0xD8 in event.payload_bytes:  # type: ignore[union-attr]
            _nested("payload", event.payload_bytes, found)  # type: ignore[union-attr]
    elif kind is StateFailed and event.error.info.details_bytes is not None:  # type: ignore[union-attr]
        _nested("error.info.details", event.error.info.details_bytes, found)  # type: ignore[union-attr]
    return found


def _nested(path: str, data: bytes, found: list[tuple[str, ArtifactId]]) -> None:
    if _LINK_MARK in data:  # the head of a link; most payloads have none and need no decoding
        _walk(path, values.decode(data), found)


def _walk(path: str, value: object, found: list[tuple[str, ArtifactId]]) -> None:
    if type(value) is ArtifactId:
        found.append(Link(path, value))
    elif type(value) is list:
        for place, item in enumerate(value):
            _walk(f"{path}[{place}]", item, found)
    elif type(value) is dict:
        for key, item in value.items():
            _walk(f"{path}.{key}", item, found)


# -- the compact form ---------------------------------------------------------------------------------

RUN_STARTED, STATE_ENTERED, STATE_COMPLETED, STATE_FAILED, RUN_COMPLETED, DOMAIN = range(1, 7)
# Numbers on disk: only ever appended to.
_STATUSES: Final = tuple(RunStatus)
_CATEGORIES: Final = tuple(ErrorCategory)


def to_fields(event: Event) -> tuple[int, list[Any]]:
    """Kind number and fields: text, ints, bools, None, 32-byte ids, and canonical bytes for payload and details."""
    kind = type(event)
    if kind is DomainEvent:  # the most frequent one
        ref = event.payload_ref  # type: ignore[union-attr]
        return DOMAIN, [event.name, event.payload_bytes, None if ref is None else ref.digest]  # type: ignore[union-attr]
    if kind not in _FIELDS_OF:
        raise InvalidField("event", f"{kind.__name__} is no event")
    return _FIELDS_OF[kind](event)


def _fields_of_failed(event: StateFailed) -> tuple[int, list[Any]]:
    info = event.error.info
    category = _CATEGORIES.index(info.category)
    error = [event.error.state_id, info.code, category, info.retryable, info.message, info.details_bytes]
    return STATE_FAILED, [event.state_id, *error, _digest(event.failure_snapshot_id)]


_FIELDS_OF: Final[dict[type, Callable[[Any], tuple[int, list[Any]]]]] = {
    RunStarted: lambda event: (
        RUN_STARTED, [event.op_id, event.manifest_id.digest, event.initial_snapshot_id.digest]
    ),
    StateEntered: lambda event: (STATE_ENTERED, [event.state_id, event.attempt, event.base_snapshot_id.digest]),
    StateCompleted: lambda event: (STATE_COMPLETED, [event.state_id, event.context_snapshot_id.digest]),
    StateFailed: _fields_of_failed,
    RunCompleted: lambda event: (RUN_COMPLETED, [_STATUSES.index(event.status), _digest(event.final_snapshot_id)]),
}  # fmt: skip


def from_fields(kind: object, fields: Sequence[Any]) -> Event:
    """The inverse of `to_fields`, checked like any event that is made. Raises: InvalidEvent leaves."""
    if type(kind) is not int or kind not in FIELD_COUNTS:
        raise InvalidField("kind", f"{kind!r:.40} is no kind of event")
    if len(fields) != FIELD_COUNTS[kind]:
        raise InvalidField("fields", f"{len(fields)} of them; kind {kind} has {FIELD_COUNTS[kind]}")
    return _MAKE[kind](*fields)


def _started_of(op_id: Any, manifest: Any, initial: Any) -> RunStarted:
    return RunStarted(op_id=op_id, manifest_id=check_digest("manifest_id", manifest),
                      initial_snapshot_id=check_digest("initial_snapshot_id", initial))  # fmt: skip


def _entered_of(state: Any, attempt: Any, base: Any) -> StateEntered:
    return entered(state, attempt, check_digest("base_snapshot_id", base))


def entered(state_id: Any, attempt: Any, base_snapshot_id: ArtifactId) -> StateEntered:
    """As StateEntered, for a reader that has the id already. Raises: InvalidEvent leaves."""
    check_state_id(state_id)
    check_int("attempt", attempt, 0, U32_MAX)
    item = _BlankEntered()
    item.state_id = state_id
    item.attempt = attempt
    item.base_snapshot_id = base_snapshot_id
    item.__class__ = StateEntered
    return item  # type: ignore[no-any-return]


def _completed_of(state: Any, snapshot: Any) -> StateCompleted:
    check_state_id(state)
    item = _BlankCompleted()
    item.state_id = state
    item.context_snapshot_id = check_digest("context_snapshot_id", snapshot)
    item.__class__ = StateCompleted
    return item  # type: ignore[no-any-return]


def _ended_of(status: Any, final_id: Any) -> RunCompleted:
    member = _STATUSES[check_int("status", status, 0, len(_STATUSES) - 1)]
    return RunCompleted(status=member, final_snapshot_id=_maybe_id("final_snapshot_id", final_id))


def domain_of(name: Any, payload: Any, ref: Any) -> DomainEvent:
    """The domain event of three fields; strict as DomainEvent is: the payload has to be the one form of itself.

    Raises: InvalidEvent leaves.
    """
    if type(payload) is not bytes:
        raise InvalidField("payload", "bytes are wanted")
    check_name(name)
    try:
        value = values.decode(payload)
    except InvalidValue:
        value = decode_value("payload", payload)
    if type(value) is not dict:
        raise InvalidField("payload", f"a dict is wanted, not {type(value).__name__}")
    if name in _WELL_KNOWN and not _is_same(domain.check_payload(name, value), value):
        raise InvalidField("payload", "not in the form in which it is stored")
    item = _BlankDomain()
    item.name = name
    item.payload_bytes = payload
    item.payload_ref = None if ref is None else check_digest("payload_ref", ref)
    item.__class__ = DomainEvent
    return item  # type: ignore[no-any-return]


def _is_same(checked: dict[str, Any], value: dict[str, Any]) -> bool:
    """Whether a payload, checked, is stored as what it was: most are left as they are, item by item."""
    if checked.keys() == value.keys() and all(checked[key] is item for key, item in value.items()):
        return True
    return encode_value("payload", checked) == encode_value("payload", value)


_WELL_KNOWN: Final = domain.WELL_KNOWN
_BlankId: Final = blank_of(ArtifactId)
_BlankEntered: Final = blank_of(StateEntered)
_BlankCompleted: Final = blank_of(StateCompleted)
_BlankDomain: Final = blank_of(DomainEvent)

FIELD_COUNTS: Final = {
    RUN_STARTED: 3,
    STATE_ENTERED: 3,
    STATE_COMPLETED: 2,
    STATE_FAILED: 8,
    RUN_COMPLETED: 2,
    DOMAIN: 3,
}


def _failed_of(
    state: Any, error_state: Any, code: Any, category: Any, retryable: Any, message: Any, details: Any, snapshot: Any
) -> StateFailed:  # fmt: skip
    check_state_id(error_state)
    if details is not None and type(details) is not bytes:
        raise InvalidField("error.info.details", "bytes are wanted")
    info = ErrorInfo(
        code=code,
        category=_CATEGORIES[check_int("error.info.category", category, 0, len(_CATEGORIES) - 1)],
        retryable=retryable,
        message=message,
        details_bytes=details,
    )
    error = StateError(state_id=error_state, info=info)
    return StateFailed(state_id=state, error=error, failure_snapshot_id=_maybe_id("failure_snapshot_id", snapshot))


_MAKE: Final[dict[int, Callable[..., Event]]] = {
    RUN_STARTED: _started_of,
    STATE_ENTERED: _entered_of,
    STATE_COMPLETED: _completed_of,
    STATE_FAILED: _failed_of,
    RUN_COMPLETED: _ended_of,
    DOMAIN: domain_of,
}


def _digest(value: ArtifactId | None) -> bytes | None:
    return None if value is None else value.digest


def check_digest(name: str, value: object) -> ArtifactId:
    """The id of a plain string of 32 bytes. Raises: InvalidField."""
    if type(value) is not bytes or len(value) != 32:
        raise InvalidField(name, "32 bytes are wanted")
    found = _BlankId()
    found.digest = value
    found.__class__ = ArtifactId
    return found  # type: ignore[no-any-return]


def _maybe_id(name: str, value: object) -> ArtifactId | None:
    return None if value is None else check_digest(name, value)


def to_json(item: Event | RecordedEvent) -> dict[str, Any]:
    """The JSON form, as `journal.event_json` describes it."""
    from journal import event_json  # it builds on this module, which only passes the call on

    return event_json.to_json(item)


def from_json(shown: object) -> Event:
    """The event of a JSON form. Raises: InvalidEvent leaves."""
    from journal import event_json

    return event_json.from_json(shown)


# -- well-known domain events -------------------------------------------------------------------------


def _event(name: str, given: Iterable[tuple[str, Any]]) -> DomainEvent:
    return DomainEvent(name, {key: value for key, value in given if value is not None})


def run_policy(
    plan: Sequence[str] | None, max_attempts: int = domain.DEFAULT_MAX_ATTEMPTS, *, plan_id: ArtifactId | None = None
) -> DomainEvent:
    """How often a state is tried, and the ordered states, if they are known beforehand."""
    listed = None if plan is None else list(plan)
    return _event(domain.RUN_POLICY, (("plan", listed), ("plan_id", plan_id), ("max_attempts", max_attempts)))


def fact_recorded(key: str, payload_id: ArtifactId, meta: Any = None) -> DomainEvent:
    """A fact: bound once for the life of the run."""
    return _event(domain.FACT_RECORDED, (("key", key), ("payload_id", payload_id), ("meta", meta)))


def artifact_written(artifact_id: ArtifactId, kind: str, meta: Any = None) -> DomainEvent:
    """An output that the run made."""
    return _event(domain.ARTIFACT_WRITTEN, (("artifact_id", artifact_id), ("kind", kind), ("meta", meta)))


def op_boundary(op_path: str, phase: str) -> DomainEvent:
    """A step inside a handler begins or ends."""
    return _event(domain.OP_BOUNDARY, (("op_path", op_path), ("phase", phase)))


def child_run_spawned(child_run_id: UUID | str, child_manifest_id: ArtifactId) -> DomainEvent:
    """A child run was started."""
    given = (("child_run_id", str(parse_run_id(child_run_id))), ("child_manifest_id", child_manifest_id))
    return _event(domain.CHILD_RUN_SPAWNED, given)


def child_run_completed(
    child_run_id: UUID | str, status: RunStatus | str, final_snapshot_id: ArtifactId | None = None
) -> DomainEvent:
    """A child run ended."""
    given = (("child_run_id", child_run_id), ("status", status), ("final_snapshot_id", final_snapshot_id))
    return _event(domain.CHILD_RUN_COMPLETED, given)


def run_ended(reason: str, error: StateError | None = None) -> DomainEvent:
    """Why a run is being ended, just before RunCompleted."""
    return _event(domain.RUN_ENDED, (("reason", reason), ("error", error)))


def forked_from(run_id: UUID | str, at_seq: int, completed: Sequence[str], head_hash: bytes) -> DomainEvent:
    """Where a fork comes from and which states it need not repeat; stands only at seq 2."""
    given = (("run_id", run_id), ("at_seq", at_seq), ("completed", list(completed)), ("head_hash", head_hash))
    return _event(domain.FORKED_FROM, given)
