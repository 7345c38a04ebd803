"""Payloads of the well-known domain events. A name that is not listed here takes any plain map.

Each checker gives the payload in the form that is stored: a UUID as its text, a status as its word. Ids that gc
follows must be ArtifactIds, because hex digits in a payload are only text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from journal.errors import InvalidField
from journal.failures import RunStatus, StateError, check_keys, check_member
from journal.ids import U32_MAX, U64_MAX, check_int, check_link, check_state_id, check_text, parse_run_id

RUN_POLICY: Final = "run_policy"
FACT_RECORDED: Final = "fact_recorded"
ARTIFACT_WRITTEN: Final = "artifact_written"
OP_BOUNDARY: Final = "op_boundary"
CHILD_RUN_SPAWNED: Final = "child_run_spawned"
CHILD_RUN_COMPLETED: Final = "child_run_completed"
RUN_ENDED: Final = "run_ended"
FORKED_FROM: Final = "forked_from"

FACT_KEY_MAX: Final = 512
DEFAULT_MAX_ATTEMPTS: Final = 3


def check_payload(name: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The payload as it is stored; the given one is left as it is. Raises: InvalidEvent leaves."""
    checker = _CHECKERS.get(name)
    return payload if checker is None else checker(dict(payload))


def check_states(field: str, value: object) -> list[str]:
    """A list of distinct state ids, possibly empty. Raises: InvalidField, InvalidStateId."""
    if type(value) is not list and type(value) is not tuple:
        raise InvalidField(field, f"a list of state ids is wanted, not {type(value).__name__}")
    states = [check_state_id(item) for item in value]
    if len(set(states)) != len(states):
        raise InvalidField(field, "a state stands there twice")
    return states


def _run_policy(payload: dict[str, Any]) -> dict[str, Any]:
    """`plan` is the list itself; one that is too long for a record is an artifact, named by `plan_id`."""
    check_keys("payload", payload, ("max_attempts",), ("plan", "plan_id"))
    check_int("payload.max_attempts", payload["max_attempts"], 1, U32_MAX)
    if "plan" in payload and "plan_id" in payload:
        raise InvalidField("payload.plan_id", "a plan stands in the event or in an artifact, not in both")
    if "plan_id" in payload:
        check_link("payload.plan_id", payload["plan_id"])
    if "plan" in payload:
        payload["plan"] = check_states("payload.plan", payload["plan"])
        if not payload["plan"]:
            raise InvalidField("payload.plan", "empty")
    return payload


def _fact_recorded(payload: dict[str, Any]) -> dict[str, Any]:
    check_keys("payload", payload, ("key", "payload_id"), ("meta",))
    check_text("payload.key", payload["key"], least=1, most=FACT_KEY_MAX)
    check_link("payload.payload_id", payload["payload_id"])
    return payload


def _artifact_written(payload: dict[str, Any]) -> dict[str, Any]:
    check_keys("payload", payload, ("artifact_id", "kind"), ("meta",))
    check_link("payload.artifact_id", payload["artifact_id"])
    check_text("payload.kind", payload["kind"], least=1, most=64)
    return payload


def _op_boundary(payload: dict[str, Any]) -> dict[str, Any]:
    check_keys("payload", payload, ("op_path", "phase"))
    check_text("payload.op_path", payload["op_path"], least=1, most=512)
    check_text("payload.phase", payload["phase"], least=1, most=64)
    return payload


def _child_run_spawned(payload: dict[str, Any]) -> dict[str, Any]:
    check_keys("payload", payload, ("child_run_id", "child_manifest_id"))
    payload["child_run_id"] = str(parse_run_id(payload["child_run_id"]))
    check_link("payload.child_manifest_id", payload["child_manifest_id"])
    return payload


def _child_run_completed(payload: dict[str, Any]) -> dict[str, Any]:
    check_keys("payload", payload, ("child_run_id", "status"), ("final_snapshot_id",))
    payload["child_run_id"] = str(parse_run_id(payload["child_run_id"]))
    payload["status"] = check_member("payload.status", payload["status"], RunStatus).value
    if "final_snapshot_id" in payload:
        check_link("payload.final_snapshot_id", payload["final_snapshot_id"])
    return payload


def _run_ended(payload: dict[str, Any]) -> dict[str, Any]:
    check_keys("payload", payload, ("reason",), ("error",))
    check_text("payload.reason", payload["reason"])
    if "error" in payload:
        error = payload["error"]
        stated = error if type(error) is StateError else StateError.from_map(error, "payload.error")
        payload["error"] = stated.to_map()
    return payload


def _forked_from(payload: dict[str, Any]) -> dict[str, Any]:
    check_keys("payload", payload, ("run_id", "at_seq", "completed", "head_hash"))
    payload["run_id"] = str(parse_run_id(payload["run_id"]))
    check_int("payload.at_seq", payload["at_seq"], 1, U64_MAX)
    payload["completed"] = check_states("payload.completed", payload["completed"])
    head_hash = payload["head_hash"]
    if type(head_hash) is not bytes or len(head_hash) != 32:
        raise InvalidField("payload.head_hash", "32 bytes are wanted")
    return payload


_CHECKERS: Final[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    RUN_POLICY: _run_policy,
    FACT_RECORDED: _fact_recorded,
    ARTIFACT_WRITTEN: _artifact_written,
    OP_BOUNDARY: _op_boundary,
    CHILD_RUN_SPAWNED: _child_run_spawned,
    CHILD_RUN_COMPLETED: _child_run_completed,
    RUN_ENDED: _run_ended,
    FORKED_FROM: _forked_from,
}
WELL_KNOWN: Final = frozenset(_CHECKERS)

__all__ = [
    "ARTIFACT_WRITTEN", "CHILD_RUN_COMPLETED", "CHILD_RUN_SPAWNED", "DEFAULT_MAX_ATTEMPTS", "FACT_KEY_MAX",
    "FACT_RECORDED", "FORKED_FROM", "OP_BOUNDARY", "RUN_ENDED", "RUN_POLICY", "WELL_KNOWN",
    "check_payload", "check_states",
]  # fmt: skip
