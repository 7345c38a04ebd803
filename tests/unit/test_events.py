"""Events: what they refuse, how they compare, and that each form gives the same event back."""

from __future__ import annotations

import json
import pickle
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import casstore.errors
from casstore.ids import ArtifactId
from journal import domain, event_json, events
from journal.errors import (
    InvalidEvent,
    InvalidField,
    InvalidOpId,
    InvalidRunId,
    InvalidStateId,
    JournalError,
    MissingArtifact,
)
from journal.events import (
    DomainEvent,
    ErrorCategory,
    ErrorInfo,
    Event,
    RecordedEvent,
    RunCompleted,
    RunStarted,
    RunStatus,
    StateCompleted,
    StateEntered,
    StateError,
    StateFailed,
)
from journal.ids import check_op_id, check_state_id, parse_run_id

RUN = UUID("00000000-0000-4000-8000-000000000001")
A, B = ArtifactId.of(b"a"), ArtifactId.of(b"b")

segments = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
state_ids = st.builds(lambda *parts: ".".join(parts), segments, segments, segments)
artifact_ids = st.builds(ArtifactId, st.binary(min_size=32, max_size=32))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | st.binary(max_size=8) | texts | artifact_ids
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number or 0.0),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.just("/"), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
infos = st.builds(
    ErrorInfo, code=texts.filter(bool), category=st.sampled_from(ErrorCategory), retryable=st.booleans(),
    message=texts, details=plain,
)  # fmt: skip
errors = st.builds(StateError, state_id=st.none() | state_ids, info=infos)
free_names: st.SearchStrategy[str] = texts.filter(lambda name: bool(name) and name not in domain.WELL_KNOWN)
any_event: st.SearchStrategy[Event] = st.one_of(
    st.builds(RunStarted, op_id=segments, manifest_id=artifact_ids, initial_snapshot_id=artifact_ids),
    st.builds(StateEntered, state_id=state_ids, attempt=st.integers(0, (1 << 32) - 1), base_snapshot_id=artifact_ids),
    st.builds(StateCompleted, state_id=state_ids, context_snapshot_id=artifact_ids),
    st.builds(StateFailed, state_id=state_ids, error=errors, failure_snapshot_id=st.none() | artifact_ids),
    st.builds(RunCompleted, status=st.sampled_from(RunStatus), final_snapshot_id=st.none() | artifact_ids),
    st.builds(
        DomainEvent, free_names, st.dictionaries(texts | st.just("/"), plain, max_size=3), st.none() | artifact_ids
    ),
    st.builds(events.fact_recorded, texts.filter(bool), artifact_ids, plain),
    st.builds(events.run_policy, st.lists(state_ids, min_size=1, max_size=3, unique=True), st.integers(1, 9)),
    st.builds(events.run_ended, texts, st.none() | errors),
)


class Color(StrEnum):
    """Text that is more than text."""

    RED = "red"


class Number(IntEnum):
    """A number that is more than a number."""

    ONE = 1


@settings(max_examples=150, deadline=None)
@given(any_event)
def test_each_form_gives_the_same_event_back(event: Event) -> None:
    """Compact fields, JSON text and pickle round-trip, and the copies compare and hash alike."""
    kind, fields = events.to_fields(event)
    copies = [
        events.from_fields(kind, fields),
        events.from_json(json.loads(json.dumps(events.to_json(event)))),
        pickle.loads(pickle.dumps(event)),
    ]
    for copy in copies:
        assert copy == event
        assert hash(copy) == hash(event)
        assert events.to_fields(copy) == (kind, fields)


@settings(max_examples=50, deadline=None)
@given(any_event, st.integers(1, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_a_recorded_event_round_trips(event: Event, seq: int, position: int) -> None:
    """RecordedEvent keeps its place through JSON and pickle."""
    recorded = RecordedEvent(run_id=RUN, seq=seq, position=position, timestamp_ms=7, event=event)
    assert event_json.recorded_from_json(json.loads(json.dumps(events.to_json(recorded)))) == recorded
    assert pickle.loads(pickle.dumps(recorded)) == recorded


@pytest.mark.parametrize(
    "text", ["", "a", "a.b", "a.b.c.d", "A.b.c", "a.b.c\n", "a..c", "a.b.1c", "a.b.é", "a.b.c٣", "a.b." + "c" * 64]
)
def test_malformed_state_ids_are_refused(text: str) -> None:
    """A state id is three segments and nothing around them, ASCII only, 63 characters each."""
    with pytest.raises(InvalidStateId):
        check_state_id(text)


def test_well_formed_ids_pass() -> None:
    """The longest segment passes, and ids come back as they were given."""
    assert check_op_id("a" * 63) == "a" * 63
    assert check_state_id("m1.step_2.s") == "m1.step_2.s"
    assert parse_run_id(str(RUN)) == parse_run_id(RUN) == RUN


@pytest.mark.parametrize("value", [Color.RED, b"red", None, 3, "Red", "red.green", "red\n"])
def test_malformed_op_ids_are_refused(value: object) -> None:
    """An operation id is one segment of plain text."""
    with pytest.raises(InvalidOpId):
        check_op_id(value)


@pytest.mark.parametrize(
    "value", [str(RUN).upper().replace("0", "A"), RUN.hex, RUN.bytes, f"{{{RUN}}}", 1, str(RUN) + "\n"]
)
def test_malformed_run_ids_are_refused(value: object) -> None:
    """Only a UUID or its canonical text is a run id."""
    with pytest.raises(InvalidRunId):
        parse_run_id(value)


def info(**changes: Any) -> ErrorInfo:
    """An ErrorInfo, differing from a plain one as told."""
    return ErrorInfo(**{"code": "x", "category": "rpc", "retryable": True, "message": "m", **changes})


@pytest.mark.parametrize(
    "make",
    [
        lambda: StateEntered(state_id="a.b.c", attempt=True, base_snapshot_id=A),
        lambda: StateEntered(state_id="a.b.c", attempt=Number.ONE, base_snapshot_id=A),
        lambda: StateEntered(state_id="a.b.c", attempt=-1, base_snapshot_id=A),
        lambda: StateEntered(state_id="a.b.c", attempt=1 << 32, base_snapshot_id=A),
        lambda: StateEntered(state_id="a.b.c", attempt=0, base_snapshot_id=A.digest),  # type: ignore[arg-type]
        lambda: StateEntered(state_id="a.b.c", attempt=0, base_snapshot_id="ab"),  # type: ignore[arg-type]
        lambda: StateFailed(state_id="a.b.c", error=info()),  # type: ignore[arg-type]
        lambda: StateError(info={"code": "x"}),  # type: ignore[arg-type]
        lambda: info(retryable=1),
        lambda: info(category="weather"),
        lambda: info(code=""),
        lambda: info(code=Color.RED),
        lambda: info(message="\ud800"),
        lambda: info(details=float("nan")),
        lambda: info(details_bytes=b"\xf6"),
        lambda: RunCompleted(status="done"),  # type: ignore[arg-type]
        lambda: RunCompleted(status=Color.RED),  # type: ignore[arg-type]
        lambda: DomainEvent(""),
        lambda: DomainEvent("n" * 129),
        lambda: DomainEvent("n", None),
        lambda: DomainEvent("n", []),
        lambda: DomainEvent("n", {1: 2}),
        lambda: DomainEvent("n", {"a": object()}),
        lambda: RecordedEvent(run_id=RUN, seq=0, position=0, timestamp_ms=0, event=RunCompleted(status="failed")),  # type: ignore[arg-type]
        lambda: RecordedEvent(run_id=RUN, seq=1, position=0, timestamp_ms=0, event="event"),  # type: ignore[arg-type]
    ],
)
def test_wrong_fields_are_refused(make: Any) -> None:
    """Types are exact: subclasses, near misses and values out of range are errors, not conversions."""
    with pytest.raises(InvalidField):
        make()


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("run_policy", {}),
        ("run_policy", {"max_attempts": 0}),
        ("run_policy", {"max_attempts": 1, "plan": []}),
        ("run_policy", {"max_attempts": 1, "plan": ["a.b.c", "a.b.c"]}),
        ("run_policy", {"max_attempts": 1, "plan": ["a.b"]}),
        ("run_policy", {"max_attempts": 1, "plan": ["a.b.c"], "plan_id": A}),
        ("run_policy", {"max_attempts": 1, "more": 1}),
        ("fact_recorded", {"key": "k"}),
        ("fact_recorded", {"key": "", "payload_id": A}),
        ("fact_recorded", {"key": "k", "payload_id": str(A)}),
        ("artifact_written", {"artifact_id": A}),
        ("artifact_written", {"artifact_id": A.digest, "kind": "output"}),
        ("op_boundary", {"op_path": "a", "phase": 1}),
        ("child_run_spawned", {"child_run_id": "x", "child_manifest_id": A}),
        ("child_run_completed", {"child_run_id": str(RUN), "status": "done"}),
        ("run_ended", {"reason": None}),
        ("run_ended", {"reason": "r", "error": {"info": {"code": "x"}}}),
        ("forked_from", {"run_id": str(RUN), "at_seq": 1, "completed": [], "head_hash": b"short"}),
        ("forked_from", {"run_id": str(RUN), "at_seq": 0, "completed": [], "head_hash": bytes(32)}),
    ],
)
def test_payloads_of_known_names_are_checked(name: str, payload: dict[str, Any]) -> None:
    """A well-known name takes its own fields, all of them and no other."""
    with pytest.raises(InvalidEvent):
        DomainEvent(name, payload)


def test_every_known_event_can_be_made() -> None:
    """The constructors make what the payload checks accept."""
    made = [
        events.run_policy(None),
        events.run_policy(None, 2, plan_id=A),
        events.artifact_written(A, "output", {"n": 1}),
        events.op_boundary("fetch/one", "begin"),
        events.child_run_spawned(RUN, A),
        events.child_run_completed(str(RUN), "cancelled", B),
        events.run_ended("broken", StateError(info=info())),
        events.forked_from(RUN, 4, ["a.b.c"], bytes(32)),
    ]
    for event in made:
        assert events.from_fields(*events.to_fields(event)) == event
    assert made[4].payload == {"child_run_id": str(RUN), "child_manifest_id": A}


def test_ids_and_statuses_may_be_given_as_text() -> None:
    """Hex digits and words become the types that they name."""
    entered = StateEntered(state_id="a.b.c", attempt=0, base_snapshot_id=str(A))  # type: ignore[arg-type]
    assert entered.base_snapshot_id == A
    assert RunCompleted(status="failed").status is RunStatus.FAILED  # type: ignore[arg-type]


def test_an_error_without_a_state_gets_the_attempts() -> None:
    """StateFailed fills in what the error leaves out, and leaves alone what it says."""
    assert StateFailed(state_id="a.b.c", error=StateError(info=info())).error.state_id == "a.b.c"
    told = StateError(state_id="x.y.z", info=info())
    assert StateFailed(state_id="a.b.c", error=told).error == told


def test_a_payload_cannot_be_changed_from_outside() -> None:
    """Neither the dict that was given nor one that was handed out is the event's own."""
    given_map = {"a": [1]}
    event = DomainEvent("n", given_map)
    given_map["a"].append(2)
    event.payload["a"].append(3)
    assert event.payload == {"a": [1]}
    assert event == DomainEvent("n", {"a": (1,)})


def test_links_are_found_wherever_they_stand() -> None:
    """Fixed fields, payloads and details are searched; hex text and bytes are no links."""
    event = DomainEvent("n", {"x": [{"y": A}], "text": str(B), "raw": B.digest}, B)
    assert events.links(event) == [("payload_ref", B), ("payload.x[0].y", A)]
    failed = StateFailed(state_id="a.b.c", error=StateError(info=info(details={"log": A})), failure_snapshot_id=B)
    assert events.links(failed) == [("failure_snapshot_id", B), ("error.info.details.log", A)]
    started = RunStarted(op_id="op", manifest_id=A, initial_snapshot_id=B)
    assert [field for field, _ in events.links(started)] == ["manifest_id", "initial_snapshot_id"]


@pytest.mark.parametrize(
    "shown",
    [
        None,
        {},
        {"type": "Other"},
        {"type": ["StateEntered"]},
        {"type": "StateCompleted", "state_id": "a.b.c"},
        {"type": "StateCompleted", "state_id": "a.b.c", "context_snapshot_id": str(A), "final_snapshot_id": str(A)},
        {"type": "RunCompleted", "status": "failed", "failure_snapshot_id": str(A)},
        {"type": "DomainEvent", "name": "n", "payload": {"a": {"/": "xx"}}},
        {"type": "DomainEvent", "name": "n", "payload": {"a": {"/": {"bytes": "?"}}}},
        {"type": "DomainEvent", "name": "n", "payload": {"a": {"/": 1}}},
    ],
)
def test_json_that_is_no_event_is_refused(shown: Any) -> None:
    """Missing, foreign and malformed fields raise the declared error."""
    with pytest.raises(InvalidEvent):
        events.from_json(shown)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (0, []),
        (7, []),
        (True, ["op", A.digest, A.digest]),
        (1, ["op", A.digest]),
        (1, ["op", A.digest, A.digest[:31]]),
        (1, ["op", str(A), A.digest]),
        (3, [None, A.digest]),
        (5, [3, None]),
        (5, [True, None]),
        (6, ["n", {}, None]),
        (6, ["n", b"\xa1\x61a\x18\x01", None]),
        (6, ["n", b"\x80", None]),
    ],
)
def test_compact_fields_that_are_no_event_are_refused(kind: Any, fields: list[Any]) -> None:
    """What was not made by `to_fields` is not guessed at."""
    with pytest.raises(InvalidEvent):
        events.from_fields(kind, fields)


def every_error(base: type[BaseException]) -> list[type[Any]]:
    """A class and all below it."""
    return [base, *(leaf for below in base.__subclasses__() for leaf in every_error(below))]


def test_every_error_pickles_with_its_facts() -> None:
    """Fields, code, message and class survive; each class has a code of its own."""
    kinds = [kind for kind in every_error(JournalError) if kind.__module__ == "journal.errors"]
    for kind in kinds:
        error = kind(*range(len(kind.names)))
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is kind
        assert (copy.fields, copy.code, str(copy)) == (error.fields, error.code, str(error))
    assert len({kind.code for kind in kinds}) == len(set(kinds))


def test_a_missing_artifact_is_an_error_of_both_packages() -> None:
    """Callers of either package catch it as theirs."""
    error = MissingArtifact(A, "manifest_id")
    assert isinstance(error, JournalError)
    assert isinstance(error, casstore.errors.MissingArtifact)
    assert error.fields == {"id": A, "field": "manifest_id"}
    assert "manifest_id" in str(error)
