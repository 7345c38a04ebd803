"""Arguments that nobody should give and calls that nobody should make: each a clear error, and nothing is written.

`test_refused` is a table of calls. What looks odd and is right stands in `test_kept_as_given`.
"""

from __future__ import annotations

import asyncio
import enum
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import journal
from casstore import ArtifactId, InvalidValue
from casstore.errors import CodedError
from journal import (
    AsyncJournal,
    AttemptNotCompleted,
    AttemptOpen,
    ClaimRequest,
    DomainEvent,
    ErrorInfo,
    EventTooLarge,
    InvalidArgument,
    InvalidEvent,
    InvalidField,
    InvalidOpId,
    InvalidPlan,
    InvalidRunId,
    InvalidStateId,
    RecordedEvent,
    RunNotFound,
    StateCompleted,
    StateEntered,
    StateError,
    StateFailed,
)
from journal.storable import MESSAGE_LIMIT_BYTES
from journal.testing import memory_journal

A, B = "flow.step.a", "flow.step.b"
OTHER = UUID(int=0xEE << 120)
HUGE = "x" * 1_000_000
SURROGATE = "a\ud800"


class Text(str):
    """A subclass of str that adds nothing."""


class Number(int):
    """A subclass of int that adds nothing."""


class Map(dict[str, Any]):
    """A subclass of dict that adds nothing."""


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    FLOW = "flow"


class Id(UUID):
    """A subclass of UUID that adds nothing."""


def deep(depth: int, kind: str = "list") -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


class Case:
    """A journal, a run with an open attempt, and a run without."""

    def __init__(self, jrn: Any) -> None:
        self.jrn = jrn
        self.run = self.new()
        self.attempt = self.run.enter(A)
        self.idle = self.new()

    def new(self) -> Any:
        return self.jrn.start_run("flow", manifest={"m": 1}, context={"n": 0}, claim=False, max_attempts=99)

    def append(self, *events: Any, seq: Any = 2, **options: Any) -> Any:
        return self.jrn.append(self.idle.run_id, seq, events, **options)

    def start(self, **options: Any) -> Any:
        return self.jrn.start_run(**{"op_id": "flow", "manifest": {}, "context": {}, **options})

    def recorded(self, **fields: Any) -> RecordedEvent:
        wanted = {"run_id": self.idle.run_id, "seq": 3, "position": 1, "timestamp_ms": 1, "event": DomainEvent("n")}
        return RecordedEvent(**{**wanted, **fields})


@pytest.fixture
def jrn(tmp_path: Path) -> Iterator[Any]:
    with journal.open(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def case(jrn: Any) -> Case:
    return Case(jrn)


NOTE = DomainEvent("note")
NAMES = {"a lone surrogate": SURROGATE, "nothing": "", "a subclass": Text("flow"), "an enum": Word.FLOW,
         "bytes": b"flow", "a number": 5}  # fmt: skip
NUMBERS = {"2^64": 1 << 64, "below 0": -1, "a bool": True, "an IntEnum": Level.LOW, "a subclass": Number(1),
           "a float": 1.0, "text": "1"}  # fmt: skip
VALUES = {"a set": {1}, "NaN": math.nan, "an infinity": -math.inf, "an object": object(),
          "a key that is no text": {1: 2}, "a key that is an IntEnum": {Level.LOW: 1}, "a subclass of dict": Map(a=1),
          "a subclass of str": Text("a"),
          "an enum": Word.FLOW, "an IntEnum": Level.LOW, "a subclass of int": Number(1), "a UUID": OTHER,
          "2^64": 1 << 64, "a lone surrogate": SURROGATE, "a surrogate in a key": {SURROGATE: 1},
          "too deep": deep(129), "much too deep": deep(100_000), "too deep maps": deep(100_000, "dict")}  # fmt: skip

Call = Callable[[Case], object]
Rows = dict[str, tuple[Call, type[CodedError]]]


def each(what: str, given: dict[str, Any], call: Callable[[Case, Any], object], error: type[CodedError],
         *, but: tuple[str, ...] = ()) -> Rows:  # fmt: skip
    """A row for each of the given things."""
    return {
        f"{what}: {name}": ((lambda case, thing=thing: call(case, thing)), error)
        for name, thing in given.items() if name not in but
    }  # fmt: skip


def entered(attempt: Any) -> StateEntered:
    return StateEntered(state_id=A, attempt=attempt, base_snapshot_id=ArtifactId.of(b"x"))


TABLE: Rows = {
    # names
    **each("name of an event", NAMES, lambda case, name: case.append(DomainEvent(name)), InvalidField),
    **each("name emitted", NAMES, lambda case, name: case.run.emit(name), InvalidField),
    **each("operation", NAMES, lambda case, name: case.start(op_id=name), InvalidOpId),
    **each("operation listed", NAMES, lambda case, name: case.jrn.runs(op_id=name), InvalidOpId),
    **each("state", NAMES, lambda case, name: case.idle.enter(name), InvalidStateId),
    **each("state of a plan", NAMES, lambda case, name: case.start(plan=[name]), InvalidPlan),
    **each("plan that is no list", NAMES, lambda case, name: case.start(plan=name), InvalidPlan),
    **each("run id", NAMES, lambda case, name: case.jrn.head(name), InvalidRunId),
    **each("run id of a start", NAMES, lambda case, name: case.start(run_id=name), InvalidRunId),
    **each("prefix of a run id", NAMES, lambda case, name: case.jrn.resolve(name), InvalidRunId),
    **each("key of a fact", NAMES, lambda case, name: case.attempt.fact(name, 1), InvalidField),
    **each("path of a boundary", NAMES, lambda case, name: case.attempt.boundary(name, "begin"), InvalidField),
    **each("phase of a boundary", NAMES, lambda case, name: case.attempt.boundary("a", name), InvalidField),
    **each("key of a child", NAMES, lambda case, name: case.attempt.child(name, "sub", {}, {}), InvalidField),
    **each("cursor", NAMES, lambda case, name: case.jrn.cursor(name), InvalidArgument),
    **each("cursor moved", NAMES, lambda case, name: case.jrn.move_cursor(name, 1), InvalidArgument),
    **each("cursor of an append", NAMES, lambda case, name: case.append(NOTE, cursors={name: 1}), InvalidArgument),
    **each("owner", NAMES, lambda case, name: case.jrn.claim(case.idle.run_id, name), InvalidArgument),
    **each("owner asked for", NAMES, lambda case, name: case.append(NOTE, claim=ClaimRequest(owner=name)),
           InvalidArgument),
    **each("code of an error", NAMES, lambda _, name: ErrorInfo(code=name, retryable=True), InvalidField),
    **each("message of an error", NAMES, lambda _, name: ErrorInfo(code="c", retryable=True, message=name),
           InvalidField, but=("nothing",)),
    **each("category of an error", NAMES, lambda _, name: ErrorInfo(code="c", retryable=True, category=name),
           InvalidField),
    **each("status listed", NAMES, lambda case, name: case.jrn.runs(status=name), InvalidField),
    **each("artifact id", NAMES, lambda _, name: StateCompleted(state_id=A, context_snapshot_id=name), InvalidField),
    **each("token", NAMES, lambda case, name: case.append(NOTE, token=name), InvalidArgument),
    "NUL in an operation": (lambda case: case.start(op_id="a\0"), InvalidOpId),
    "NUL in a state": (lambda case: case.idle.enter("a.b.c\0"), InvalidStateId),
    "a state of two segments": (lambda case: case.idle.enter("a.b"), InvalidStateId),
    "a newline behind a state": (lambda case: case.idle.enter("a.b.c\n"), InvalidStateId),
    # numbers
    **each("expected_seq", NUMBERS, lambda case, number: case.append(NOTE, seq=number), InvalidField),
    **each("expected_seq of several", NUMBERS,
           lambda case, number: case.jrn.append_many({case.idle.run_id: (number, [NOTE])}), InvalidField),
    **each("epoch", NUMBERS, lambda case, number: case.append(NOTE, epoch=number), InvalidField),
    **each("epochs", NUMBERS, lambda case, number: case.jrn.append_many(
        {case.idle.run_id: (2, [NOTE])}, epochs={case.idle.run_id: number}), InvalidField),
    **each("seq read from", NUMBERS, lambda case, number: case.jrn.read(case.idle.run_id, number), InvalidField,
           but=("below 0",)),
    **each("seq read to", NUMBERS, lambda case, number: case.jrn.read(case.idle.run_id, 1, number), InvalidField,
           but=("below 0",)),
    **each("seq of a position", NUMBERS, lambda case, number: case.jrn.position_of(case.idle.run_id, number),
           InvalidField),
    **each("seq of a chain", NUMBERS, lambda case, number: case.jrn.chain_head(case.idle.run_id, number), InvalidField),
    **each("seq of a fork", NUMBERS, lambda case, number: case.jrn.fork(case.idle.run_id, number), InvalidArgument),
    **each("seq watched from", NUMBERS, lambda case, number: case.jrn.run(case.idle.run_id).watch(after=number),
           InvalidField),
    **each("position followed", NUMBERS, lambda case, number: case.jrn.feed(number), InvalidField),
    **each("position kept", NUMBERS, lambda case, number: case.jrn.move_cursor("c", number), InvalidField),
    **each("position moved", NUMBERS, lambda case, number: case.append(NOTE, cursors={"c": number}), InvalidField),
    **each("attempt", NUMBERS, lambda _, number: entered(number), InvalidField),
    **each("limit", NUMBERS, lambda case, number: case.jrn.runs(limit=number), InvalidField),
    **each("limit of recoverable", NUMBERS, lambda case, number: case.jrn.recoverable(limit=number), InvalidField),
    **each("max_attempts", NUMBERS, lambda case, number: case.start(max_attempts=number), InvalidArgument),
    **each("seq of a recorded event", NUMBERS, lambda case, number: case.append(case.recorded(seq=number)),
           InvalidField),
    **each("time of a recorded event", NUMBERS, lambda case, number: case.append(case.recorded(timestamp_ms=number)),
           InvalidField),
    **each("retryable", NUMBERS, lambda _, number: ErrorInfo(code="c", retryable=number), InvalidField,
           but=("a bool",)),
    **each("ttl asked for", NUMBERS, lambda case, number: case.append(NOTE, claim=ClaimRequest(ttl_ms=number)),
           InvalidArgument),
    "a ttl of 0": (lambda case: case.jrn.claim(case.idle.run_id, ttl=0), InvalidArgument),
    "a ttl that is NaN": (lambda case: case.jrn.claim(case.idle.run_id, ttl=math.nan), InvalidArgument),
    "a timeout below 0": (lambda case: case.jrn.feed(follow=True, timeout=-1), InvalidArgument),
    "a seq after the last": (lambda case: case.jrn.position_of(case.idle.run_id, 3), RunNotFound),
    "seq 0": (lambda case: case.jrn.position_of(case.idle.run_id, 0), RunNotFound),
    # values
    **each("payload", VALUES, lambda _, value: DomainEvent("n", {"v": value}), InvalidField),
    **each("payload emitted", VALUES, lambda case, value: case.run.emit("n", {"v": value}), InvalidField),
    **each("fact", VALUES, lambda case, value: case.attempt.fact("k", value), InvalidValue),
    **each("fact fetched", VALUES, lambda case, value: case.attempt.fact("k", lambda: value), InvalidValue),
    **each("meta of a fact", VALUES, lambda case, value: case.attempt.fact("k", 1, meta=value), InvalidField),
    **each("context", VALUES, lambda case, value: case.attempt.complete({"v": value}), InvalidValue),
    **each("manifest", VALUES, lambda case, value: case.start(manifest=value), InvalidValue),
    **each("details", VALUES, lambda _, value: ErrorInfo(code="c", retryable=True, details=value), InvalidField),
    "a payload that is no map": (lambda _: DomainEvent("n", [1]), InvalidField),  # type: ignore[arg-type]
    "a payload of a subclass": (lambda _: DomainEvent("n", Map(a=1)), InvalidField),
    "a payload that is too large": (lambda case: case.append(DomainEvent("n", {"t": HUGE})), EventTooLarge),
    "a name that is too long": (lambda _: DomainEvent(HUGE), InvalidField),
    # events
    "one event instead of a list": (lambda case: case.jrn.append(case.idle.run_id, 2, NOTE), InvalidArgument),
    "a class": (lambda case: case.append(DomainEvent), InvalidField),
    "a dict": (lambda case: case.append({"name": "n"}), InvalidField),
    "an event of another run": (lambda case: case.append(case.recorded(run_id=OTHER)), InvalidEvent),
    "an event of another place": (lambda case: case.append(case.recorded(seq=4)), InvalidEvent),
    "recorded events and others": (lambda case: case.append(case.recorded(), NOTE), InvalidArgument),
    "a recorded event in another": (lambda case: case.recorded(event=case.recorded()), InvalidField),
    "a run id of a subclass": (lambda case: case.jrn.head(Id(int=1)), InvalidRunId),
    "a claim of another kind": (lambda case: case.append(NOTE, claim={"owner": "me"}), InvalidArgument),
    "a run twice": (lambda case: case.jrn.append_many(
        {case.idle.run_id: (2, [NOTE]), str(case.idle.run_id): (2, [NOTE])}), InvalidArgument),
    # handlers
    "a coroutine function as a fact": (lambda case: case.attempt.fact("k", _coroutine), InvalidArgument),
    "a generator function as a fact": (lambda case: case.attempt.fact("k", _generator), InvalidValue),
    "an asynchronous generator as a fact": (lambda case: case.attempt.fact("k", _asynchronous), InvalidValue),
    "a second attempt": (lambda case: case.run.enter(B), AttemptOpen),
    "the same attempt again": (lambda case: case.run.enter(A), AttemptOpen),
    "an end inside of an attempt": (lambda case: case.run.complete(), AttemptOpen),
}  # fmt: skip


async def _coroutine() -> int:
    return 1


def _generator() -> Iterator[int]:
    yield 1


async def _asynchronous() -> Any:
    yield 1


@pytest.mark.parametrize("name", TABLE)
def test_refused(name: str) -> None:
    """The error of the table, with a code and a message; no event, and the attempt goes on."""
    call, error = TABLE[name]
    case = Case(memory_journal())
    before = case.jrn.position()
    with pytest.raises(error) as caught:
        call(case)
    assert caught.value.code and len(str(caught.value)) < 1000
    assert case.jrn.position() == before and case.jrn.cursor("c") == 0
    assert case.attempt.complete({"n": 1}) == case.run.state.checkpoint_id
    assert case.append(NOTE).last_seq == 3


KEPT = ["a\0b", "\0", "é\u2028\u202e", "\uffff", "x" * 400]


@pytest.mark.parametrize("text", KEPT, ids=range(len(KEPT)))
def test_kept_as_given(case: Case, text: str) -> None:
    """NUL and other characters that UTF-8 has are characters."""
    jrn, run, attempt = case.jrn, case.run, case.attempt
    attempt.emit("n\0", {text: text, "": ""})
    assert attempt.fact(text[:64], text) == text
    attempt.complete({text: text})
    assert run.context() == {text: text} and run.facts() == {text[:64]: text}
    note = next(item.event for item in jrn.read(run.run_id) if getattr(item.event, "name", "") == "n\0")
    assert note.payload == {text: text, "": ""}
    name = text.encode()[:399].decode(errors="ignore")
    jrn.move_cursor(name, 5)
    assert jrn.cursor(name) == 5 and jrn.claim(case.idle.run_id, name).owner == name


def test_numbers_at_their_ends(case: Case) -> None:
    """The largest and smallest of payloads and contexts; seqs beyond the ends are clamped when they are read."""
    values = [-(1 << 64), -1, 0, True, False, (1 << 64) - 1, 1.0, -0.0, 5e-324, 1.7976931348623157e308]
    case.attempt.complete({"v": values})
    found = case.run.context()["v"]
    assert found == values and list(map(type, found)) == list(map(type, values))
    whole = case.jrn.read(case.run.run_id)
    assert case.jrn.read(case.run.run_id, -5, 1 << 62) == whole and case.jrn.read(case.run.run_id, 1, -5) == []


def test_keys_of_a_subclass(case: Case) -> None:
    """They are text, with and without a link beside them; so an enum of words may be the keys of a context."""
    link = case.jrn.store.put(b"x")
    for value in ({Text("a"): 1, Word.FLOW: 2}, {Text("a"): link, Word.FLOW: 2}):
        stored = case.jrn.store.get_value(case.jrn.store.put_value(value))
        assert stored == value and {type(key) for key in stored} == {str}
        payload = DomainEvent("n", value).payload
        assert payload == value and {type(key) for key in payload} == {str}


# -- errors of every size -------------------------------------------------------------------------------


def test_messages_of_a_million_bytes(case: Case) -> None:
    """Whichever way they come in, the recorder cuts them; who appends an event of that size is told."""
    run = case.run
    with pytest.raises(ValueError, match="x"), case.attempt:
        raise ValueError(HUGE)
    info = case.jrn.read(run.run_id)[-1].event.error.info
    assert info.message.startswith("x" * 900) and len(info.message.encode()) <= MESSAGE_LIMIT_BYTES
    huge = ErrorInfo(code="c", retryable=True, message=HUGE)
    assert len(huge.message) == len(HUGE)
    with pytest.raises(EventTooLarge):
        case.jrn.append(
            case.idle.run_id, 2,
            [StateEntered(state_id=A, attempt=0, base_snapshot_id=case.idle.state.checkpoint_id),
             StateFailed(state_id=A, error=StateError(info=huge))],
        )  # fmt: skip
    run.fail(HUGE)
    case.idle.cancel(HUGE)
    case.jrn.cancel(case.new().run_id, HUGE)
    for error in (huge, ValueError(HUGE), StateError(info=huge)):
        case.new().fail(error)
    assert all(row.status in ("failed", "cancelled") for row in case.jrn.runs())


def test_errors_with_details_of_every_kind(case: Case) -> None:
    """Deep, huge, or not storable at all: the failure is recorded, and the handler's exception comes out."""

    class Odd(Exception):
        details: Any = None

    for value in (*VALUES.values(), HUGE, {"t": HUGE}, deep(128)):
        error = Odd("odd")
        error.details = value
        with pytest.raises(Odd) as caught, case.run.enter(A) if case.attempt is None else case.attempt:
            raise error
        assert caught.value is error and not hasattr(error, "__notes__")
        case.attempt = None  # type: ignore[assignment]
    failed = [item for item in case.jrn.read(case.run.run_id) if type(item.event) is StateFailed]
    assert len(failed) == len(VALUES) + 3


# -- attempts -------------------------------------------------------------------------------------------


def test_an_attempt_after_its_end(case: Case) -> None:
    """Whatever records is refused, whatever reads is not; its block, entered again, writes nothing."""
    attempt = case.attempt
    with attempt:
        attempt.complete({"n": 1})
    head = case.jrn.head(case.run.run_id)
    calls: list[Callable[[], object]] = [
        lambda: attempt.emit("n"), lambda: attempt.fact("k", 1), lambda: attempt.fact("k", lambda: pytest.fail("!")),
        lambda: attempt.output(b"x"), lambda: attempt.boundary("a", "begin"), lambda: attempt.complete({}),
        lambda: attempt.child("k", "sub", {}, {}),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InvalidEvent) as caught:
            call()
        assert caught.value.code == "no_open_attempt"
    assert attempt.context() == {"n": 0}
    with attempt:
        pass
    with pytest.raises(KeyError), attempt:
        raise KeyError
    assert case.jrn.head(case.run.run_id) == head


def test_nested_enters(case: Case) -> None:
    """Another state of the run is refused and fails the attempt around it; another run is free."""
    with pytest.raises(AttemptOpen), case.attempt, case.run.enter(B):
        pytest.fail("entered")
    with case.run.enter(A) as outer, case.idle.enter(A) as inner:
        inner.complete({"n": 2})
        outer.complete({"n": 1})
    assert (case.run.context(), case.idle.context()) == ({"n": 1}, {"n": 2})
    with pytest.raises(OSError, match="x"), case.run.enter(B), case.idle.enter(B):
        raise OSError("x")
    assert [case.jrn.run_state(run.run_id).open_attempt for run in (case.run, case.idle)] == [None, None]


def test_generators_as_handlers(case: Case) -> None:
    """Run to its end it is a handler as others; closed on the way it is as a crash, and an abandon closes it."""

    def handler(state_id: str) -> Iterator[int]:
        with case.run.enter(state_id) as attempt:
            yield attempt.attempt
            attempt.complete({"n": 1})

    case.run.abandon()
    assert list(handler(A)) == [1]
    started = handler(B)
    assert next(started) == 0
    with pytest.raises(AttemptOpen):
        next(handler(B))
    started.close()  # type: ignore[attr-defined]
    with pytest.raises(AttemptOpen, match="abandon"):
        next(handler(B))
    case.run.abandon()
    assert list(handler(B)) == [1]
    thrown = handler("flow.step.c")
    next(thrown)
    with pytest.raises(KeyError):
        thrown.throw(KeyError("k"))  # type: ignore[attr-defined]
    assert list(handler("flow.step.c")) == [1]


def test_a_handler_that_was_not_awaited(case: Case) -> None:
    """A coroutine function as the body does nothing: the block ends without a completion, which is a bug and said."""
    with pytest.raises(AttemptNotCompleted), case.attempt:
        _coroutine().close()
    assert case.run.status == "failed"


# -- threads --------------------------------------------------------------------------------------------


def at_once(calls: list[Callable[[], object]]) -> list[object]:
    """What each call returned or raised, all begun at the same time."""
    barrier, results = threading.Barrier(len(calls)), list[object](calls)

    def work(place: int) -> None:
        barrier.wait()
        try:
            results[place] = calls[place]()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_that_share_an_attempt(case: Case) -> None:
    """Every event once; one value of a fact, which all get; one of them completes, the others hear that it is over."""
    attempt, run = case.attempt, case.run
    head = case.jrn.head(run.run_id)
    at_once([partial(attempt.emit, "note", {"n": n}) for n in range(16)])
    assert sorted(item.event.payload["n"] for item in case.jrn.read(run.run_id, head + 1)) == list(range(16))
    found = at_once([partial(attempt.fact, "k", lambda n=n: n) for n in range(16)])
    assert len(set(found)) == 1 and run.facts() == {"k": found[0]}
    results = Counter(type(result) for result in at_once([partial(attempt.complete, {"n": n}) for n in range(16)]))
    assert results == {ArtifactId: 1, InvalidEvent: 15}
    assert run.state == journal.analyze(case.jrn.read(run.run_id))


def test_threads_that_share_a_run(case: Case) -> None:
    """One enters, the others find its attempt open; one end is written, and the same end again is none."""
    results = Counter(type(result) for result in at_once([partial(case.idle.enter, A) for _ in range(16)]))
    assert results == {journal.Attempt: 1, AttemptOpen: 15}
    assert at_once([case.idle.cancel for _ in range(16)]) == [None] * 16
    names = [getattr(item.event, "name", type(item.event).__name__) for item in case.jrn.read(case.idle.run_id)]
    assert (names.count("run_ended"), names.count("RunCompleted")) == (1, 1)


# -- tasks ----------------------------------------------------------------------------------------------


def test_blocks_of_the_wrong_kind(case: Case) -> None:
    """`async with` where nothing is awaited, `with` where something is: refused by Python, and nothing is written."""

    async def main() -> None:
        ajrn = AsyncJournal(case.jrn)
        run = await ajrn.start_run("flow", manifest={}, context={}, claim=False)
        with pytest.raises(TypeError):
            async with case.idle.enter(A):
                pytest.fail("entered")
        opening: Any = run.enter(A)
        with pytest.raises(TypeError), opening:
            pytest.fail("entered")
        opening._made.close()
        assert await ajrn.head(run.run_id) == 2

    asyncio.run(main())


def test_cancelled_and_timed_out_blocks(case: Case) -> None:
    """A failure in a task group cancels its sibling's attempt; a timeout around two blocks closes both."""

    async def main() -> None:
        ajrn = AsyncJournal(case.jrn)
        runs = [await ajrn.start_run("flow", manifest={}, context={}, claim=False) for _ in range(4)]
        inside = asyncio.Event()

        async def waits() -> None:
            async with runs[0].enter(A):
                inside.set()
                await asyncio.Event().wait()

        async def fails() -> None:
            async with runs[1].enter(A):
                await inside.wait()
                raise KeyError("k")

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(waits())
                group.create_task(fails())
        assert [type(error) for error in caught.value.exceptions] == [KeyError]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), runs[2].enter(A), runs[3].enter(A):
                await asyncio.Event().wait()
        codes = [case.jrn.read(run.run_id)[-1].event.error.info.code for run in runs]
        assert codes == ["cancelled", "KeyError", "cancelled", "cancelled"]
        for run in runs:
            async with run.enter(A) as attempt:
                assert attempt.attempt == 1
                await attempt.complete({})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.sleep(0)
                async with runs[0].enter(B) as attempt:
                    pytest.fail("entered")
        assert case.jrn.verify() == []

    asyncio.run(main())
