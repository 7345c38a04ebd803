"""The recorder: attempts, facts, outputs, children, the ways out of a block, and what is lost and found."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4, uuid5

import pytest

import journal
from casstore import ArtifactId, values
from casstore import errors as store_errors
from journal import DomainEvent, NonRetryable, RunCompleted, RunStatus, StateCompleted, StateEntered, StateFailed
from journal import errors as problems
from journal.context_codec import DataclassCodec
from journal.records import MAX_RECORD
from journal.storable import MESSAGE_LIMIT_BYTES

A, B, C = "flow.step.a", "flow.step.b", "flow.step.c"


@pytest.fixture
def jrn(tmp_path: Path) -> Iterator[Any]:
    with journal.open(tmp_path / "home") as opened:
        yield opened


def start(jrn: Any, **options: Any) -> Any:
    return jrn.start_run("flow", manifest={"flow": 1}, context={"n": 0}, **options)


def events(jrn: Any, run: Any) -> list[Any]:
    return [recorded.event for recorded in jrn.read(run.run_id)]


def kinds(jrn: Any, run: Any) -> list[str]:
    return [event.name if type(event) is DomainEvent else type(event).__name__ for event in events(jrn, run)]


def last_failure(jrn: Any, run: Any) -> Any:
    return [event for event in events(jrn, run) if type(event) is StateFailed][-1].error.info


def test_a_run_from_start_to_end(jrn: Any) -> None:
    """Each step reads the context the step before wrote, and the end names the last one."""
    run = start(jrn, plan=[A, B])
    while run.next is not None:
        with run.enter(run.next) as attempt:
            context = attempt.context()
            context["n"] += 1
            attempt.complete(context)
    run.complete()
    assert run.context() == {"n": 2} and run.manifest() == {"flow": 1}
    assert kinds(jrn, run) == ["RunStarted", "run_policy", *["StateEntered", "StateCompleted"] * 2, "RunCompleted"]
    end = events(jrn, run)[-1]
    assert end == RunCompleted(status="completed", final_snapshot_id=run.state.checkpoint_id)
    assert run.state == jrn.resume(run.run_id).state


def test_start_checks_everything_before_it_writes(jrn: Any) -> None:
    """Bad plans, limits and ids leave neither a stream nor an artifact."""
    for options, problem in (
        ({"plan": []}, problems.InvalidPlan), ({"plan": [A, A]}, problems.InvalidPlan),
        ({"plan": ["nonsense"]}, problems.InvalidPlan), ({"max_attempts": 0}, problems.InvalidArgument),
        ({"run_id": "nonsense"}, problems.InvalidRunId),
    ):  # fmt: skip
        with pytest.raises(problem):
            start(jrn, **options)
    with pytest.raises(problems.InvalidOpId):
        jrn.start_run("Not An Op", manifest={}, context={})
    assert len(jrn.store) == 0


def test_a_run_id_that_exists_is_a_conflict(jrn: Any) -> None:
    """The second start of one id is refused and writes nothing."""
    run = start(jrn, run_id=uuid4())
    head = jrn.head(run.run_id)
    with pytest.raises(problems.Conflict):
        start(jrn, run_id=run.run_id)
    assert jrn.head(run.run_id) == head


def test_stored_artifacts_may_be_given(jrn: Any) -> None:
    """ArtifactIds name what is stored already; one that is not stored is missing, and no stream exists."""
    manifest, context = jrn.store.put_value({"m": 1}), jrn.store.put_value({"n": 7})
    run = jrn.start_run("flow", manifest=manifest, context=context)
    assert run.context() == {"n": 7} and run.state.manifest_id == manifest
    run_id = uuid4()
    with pytest.raises(problems.MissingArtifact):
        jrn.start_run("flow", manifest=manifest, context=ArtifactId.of(b"never"), run_id=run_id)
    assert jrn.head(run_id) == 0


def test_contexts_are_fresh_at_each_call(jrn: Any) -> None:
    """A handler that changes its context leaks nothing, neither within the attempt nor into the next."""
    run = start(jrn)
    with pytest.raises(ValueError, match="x"), run.enter(A) as attempt:
        attempt.context()["n"] = 99
        assert attempt.context() == {"n": 0}
        raise ValueError("x")
    with run.enter(A) as attempt:
        assert (attempt.attempt, attempt.context()) == (1, {"n": 0})
        attempt.complete({})


def test_a_plan_that_changes_within_the_run_is_gone_through_anew(jrn: Any) -> None:
    """A run_policy recorded on the way: states put before those that are completed are not skipped."""
    run = start(jrn, plan=[A, B])
    assert run.next == A
    with run.enter(A) as attempt:
        attempt.complete({})
    assert run.next == B
    run.emit("run_policy", {"plan": [C, A, B], "max_attempts": 3})
    assert run.next == C
    run.emit("run_policy", {"plan": [C, B], "max_attempts": 3})
    with pytest.raises(problems.StateNotInPlan):
        _ = run.next


def test_a_large_context_is_encoded_once(jrn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a MiB the context does not go with the append, and is not encoded for that either."""
    run, sizes = start(jrn), []
    encode = values.encode

    def counted(value: object) -> Any:
        encoded = encode(value)
        sizes.append(len(encoded[0]))
        return encoded

    monkeypatch.setattr(values, "encode", counted)
    with run.enter(A) as attempt:
        attempt.complete({"text": "x" * (2 << 20)})
    assert sum(size > 1 << 20 for size in sizes) == 1
    assert len(run.context()["text"]) == 2 << 20


def test_completing_and_entering_in_one_append(jrn: Any) -> None:
    """With then= the next attempt is open at once, and enter gives exactly that one, writing nothing."""
    run = start(jrn, plan=[A, B])
    with run.enter(A) as attempt:
        attempt.complete({"n": 1}, then=B)
    head = jrn.head(run.run_id)
    assert run.next == B
    with pytest.raises(problems.AttemptOpen):
        run.enter(A)
    with run.enter(B) as following:
        assert jrn.head(run.run_id) == head
        assert (following.state_id, following.attempt, following.context()) == (B, 0, {"n": 1})
        with pytest.raises(problems.AttemptOpen):
            run.enter(B)
        following.complete({"n": 2})
    run.complete()
    assert kinds(jrn, run)[2:] == ["StateEntered", "StateCompleted"] * 2 + ["RunCompleted"]


def test_then_outside_of_the_plan_leaves_the_attempt_open(jrn: Any) -> None:
    """A wrong then= writes nothing, and the attempt can still be completed."""
    run = start(jrn, plan=[A, B])
    with run.enter(A) as attempt:
        with pytest.raises(problems.StateNotInPlan):
            attempt.complete({}, then=C)
        attempt.complete({})
    with pytest.raises(problems.StateNotInPlan):
        run.enter(C)
    with pytest.raises(problems.InvalidStateId):
        run.enter("nonsense")


@pytest.mark.parametrize("retryable", [True, False])
def test_an_exception_is_a_failure(jrn: Any, retryable: bool) -> None:
    """An Exception is recorded and raised again; NonRetryable ends the run in the same append."""
    run = start(jrn, plan=[A])
    raised = OSError("disk\ud800") if retryable else NonRetryable("disk\ud800")
    with pytest.raises(type(raised)) as caught, run.enter(A):
        raise raised
    assert caught.value is raised
    info = last_failure(jrn, run)
    assert (info.retryable, info.message) == (retryable, "disk\\ud800")
    assert (run.next, run.status) == ((A, None) if retryable else (None, RunStatus.FAILED))
    assert kinds(jrn, run)[-1] == ("StateFailed" if retryable else "RunCompleted")


def test_the_classifier_says_what_is_retryable(jrn: Any) -> None:
    """The run's classifier is asked; one that itself fails has not said no."""
    run = start(jrn, retryable=lambda error: not isinstance(error, KeyError))
    with pytest.raises(KeyError), run.enter(A):
        raise KeyError("k")
    assert run.status is RunStatus.FAILED
    run = start(jrn, retryable=lambda error: error.nonsense)
    with pytest.raises(OSError, match="x") as caught, run.enter(A):
        raise OSError("x")
    assert run.status is None and "classifier" in caught.value.__notes__[0]


def test_the_last_try_ends_the_run(jrn: Any) -> None:
    """After max_attempts failures StateFailed and RunCompleted(failed) stand in one batch."""
    run = start(jrn, max_attempts=2)
    for _ in range(2):
        with pytest.raises(OSError), run.enter(A):
            raise OSError
    assert kinds(jrn, run)[2:] == ["StateEntered", "StateFailed"] * 2 + ["RunCompleted"]
    assert run.state.final_snapshot_id == run.state.checkpoint_id
    with pytest.raises(problems.InvalidEvent):
        run.enter(A)


def test_a_cancelled_task_is_a_retryable_failure(jrn: Any) -> None:
    """asyncio.CancelledError closes the attempt with the code cancelled, and stays the exception raised."""
    run = start(jrn)

    async def work() -> None:
        with run.enter(A):
            await asyncio.sleep(3600)

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    info = last_failure(jrn, run)
    assert (info.code, info.retryable, run.next if run.state.plan else A) == ("cancelled", True, A)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_other_base_exceptions_leave_the_attempt_open(jrn: Any, raised: type[BaseException]) -> None:
    """As after a crash nothing is written; abandon() closes the attempt as an orphan."""
    run = start(jrn, plan=[A])
    with pytest.raises(raised), run.enter(A):
        raise raised
    assert kinds(jrn, run)[-1] == "StateEntered"
    with pytest.raises(problems.AttemptOpen, match="abandon"):
        run.enter(A)
    with pytest.raises(problems.AttemptOpen):
        run.complete()
    run.abandon()
    run.abandon()
    info = last_failure(jrn, run)
    assert (info.code, info.retryable) == ("orphan_attempt_recovered", True)
    with run.enter(A) as attempt:
        assert attempt.attempt == 1
        attempt.complete({})


def test_leaving_without_complete_is_a_bug_and_final(jrn: Any) -> None:
    """A block that ends without complete() fails the run, and says so."""
    run = start(jrn, plan=[A])
    with pytest.raises(problems.AttemptNotCompleted), run.enter(A):
        pass
    assert last_failure(jrn, run).code == "attempt_not_completed" and run.status is RunStatus.FAILED


def test_after_complete_nothing_more_is_written(jrn: Any) -> None:
    """An exception after complete() is raised, but the state stays completed; the attempt takes nothing more."""
    run = start(jrn, plan=[A])
    with pytest.raises(ValueError, match="late"), run.enter(A) as attempt:
        attempt.complete({"n": 1})
        raise ValueError("late")
    assert kinds(jrn, run)[-1] == "StateCompleted"
    for call in (lambda: attempt.emit("x"), lambda: attempt.complete({}), lambda: attempt.fact("k", 1)):
        with pytest.raises(problems.InvalidEvent) as caught:
            call()
        assert caught.value.code == "no_open_attempt"
    run.complete()


def test_a_failure_that_cannot_be_written_becomes_a_note(jrn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler's exception is the one that is seen, with a note about the other."""
    run = start(jrn)
    with pytest.raises(ValueError, match="mine") as caught, run.enter(A):
        monkeypatch.setattr(jrn, "append", _full)
        raise ValueError("mine")
    assert any("StoreFull" in note for note in caught.value.__notes__)
    monkeypatch.undo()
    with pytest.raises(problems.AttemptOpen):
        run.enter(A)


def _full(*_: Any, **__: Any) -> Any:
    raise store_errors.StoreFull("here", "full")


def test_errors_are_made_storable(jrn: Any) -> None:
    """Whatever an exception holds, its failure is recorded: cut, escaped, shown or moved into an artifact."""

    class Odd(Exception):
        code, category = "c" * 5000, "rpc"

        def __init__(self, details: Any) -> None:
            self.details = details

        def __str__(self) -> str:
            return "é\ud800" * 5000

    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    run = start(jrn, max_attempts=100)
    shown = []
    large, absent = {"x": "y" * 4000, "retry_at_ms": 5}, ArtifactId.of(b"no")
    for details in (object(), {"a": {1}}, ["\ud800"], large, absent, {"a": 1}):
        with pytest.raises(Odd), run.enter(A):
            raise Odd(details)
        info = last_failure(jrn, run)
        assert len(info.message.encode()) <= MESSAGE_LIMIT_BYTES and info.category == "rpc" and info.code == "Odd"
        shown.append(info.details)
    assert [type(found) for found in shown] == [str, str, str, dict, str, dict]
    assert shown[3]["retry_at_ms"] == 5
    assert jrn.store.get_value(shown[3]["details_id"]) == {"x": "y" * 4000, "retry_at_ms": 5}
    with pytest.raises(Rude), run.enter(A):
        raise Rude
    assert last_failure(jrn, run).message == "Rude"


def test_the_largest_errors_fit(jrn: Any) -> None:
    """The longest state, code, message and details that can be make records that are not too large."""
    state_id = ".".join(["s" * 63] * 3)

    class Large(Exception):
        code = "c" * 128
        details: ClassVar[Any] = {"d": "x" * 300}

    for end in (None, lambda run: run.fail(Large("\u20ac" * 9000)), lambda run: run.cancel("\u20ac" * 9000),
                lambda run: run.fail(journal.StateError(state_id=state_id, info=journal.ErrorInfo(
                    code="\u20ac" * 128, retryable=True, message="\u20ac" * 9000, details="x" * 9000)))):  # fmt: skip
        run = start(jrn)
        if end is None:
            with pytest.raises(Large), run.enter(state_id):
                raise Large("\u20ac" * 9000)
            assert last_failure(jrn, run).details == Large.details
        else:
            with run.enter(state_id):
                end(run)
            assert run.status is not None


def test_a_fact_is_fetched_once(jrn: Any) -> None:
    """The value comes from stored bytes on the first try and on the retry alike, and nothing is fetched again."""
    run = start(jrn)
    calls = []

    def fetch() -> dict[str, Any]:
        calls.append(1)
        return {"price": (1, 2)}

    with pytest.raises(OSError), run.enter(A) as attempt:
        first = attempt.fact("price|btc", fetch)
        first["price"].append(3)
        raise OSError
    with run.enter(A) as attempt:
        assert attempt.fact("price|btc", fetch) == {"price": [1, 2]}
        attempt.complete({})
    assert len(calls) == 1 and run.facts() == {"price|btc": {"price": [1, 2]}}
    assert kinds(jrn, run).count("fact_recorded") == 1


def test_a_fact_has_one_payload(jrn: Any) -> None:
    """The same value again is nothing new, another one is a conflict, and the attempt goes on."""
    run = start(jrn)
    with run.enter(A) as attempt:
        assert attempt.fact("k", [1]) == [1]
        assert attempt.fact("k", (1,)) == [1]
        with pytest.raises(problems.FactConflict) as caught:
            attempt.fact("k", [2])
        assert caught.value.fields["recorded"] == ArtifactId.of(b"\x81\x01")
        with pytest.raises(store_errors.InvalidValue):
            attempt.fact("bad", lambda: {1})
        attempt.complete({})
    assert kinds(jrn, run).count("fact_recorded") == 1 and list(run.facts()) == ["k"]


def test_facts_from_many_threads(jrn: Any) -> None:
    """Threads of one attempt that fetch the same fact all get the one that was recorded."""
    run = start(jrn)
    barrier, got = threading.Barrier(4), []
    with run.enter(A) as attempt:

        def fetch(number: int) -> int:
            barrier.wait()
            return number

        threads = [
            threading.Thread(target=lambda n=n: got.append(attempt.fact("k", lambda: fetch(n)))) for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        attempt.complete({})
    assert len(got) == 4 and set(got) == {run.facts()["k"]}


def test_outputs_are_stored_and_recorded(jrn: Any, tmp_path: Path) -> None:
    """Data, a path and a stream become artifacts that artifact_written names, whatever the size of meta."""
    run = start(jrn)
    (tmp_path / "out").write_bytes(b"file")
    with run.enter(A) as attempt:
        ids = [attempt.output(b"data", kind="report", meta={"m": "x" * 4000}), attempt.output(tmp_path / "out"),
               attempt.output(str(tmp_path / "out")), attempt.output(io.BytesIO(b"stream"))]  # fmt: skip
        attempt.boundary("a/b", "begin")
        attempt.complete({})
    assert [jrn.store.get(found) for found in ids] == [b"data", b"file", b"file", b"stream"]
    written = [event.payload for event in events(jrn, run) if getattr(event, "name", "") == "artifact_written"]
    assert [payload["artifact_id"] for payload in written] == ids
    assert jrn.store.get_value(written[0]["meta"]) == {"m": "x" * 4000} and written[0]["kind"] == "report"
    assert events(jrn, run)[-2] == DomainEvent("op_boundary", {"op_path": "a/b", "phase": "begin"})


@pytest.mark.parametrize("size", [*range(MAX_RECORD - 150, MAX_RECORD + 10, 7), 100_000])
def test_large_payloads_move_into_an_artifact(jrn: Any, size: int) -> None:
    """No size of payload is refused: what no record holds is named by payload_ref."""
    run = start(jrn)
    run.emit("note", {"t": "x" * size})
    event = events(jrn, run)[-1]
    payload = event.payload if event.payload_ref is None else jrn.store.get_value(event.payload_ref)
    assert payload == {"t": "x" * size}


def test_a_long_plan_is_kept_in_an_artifact(jrn: Any) -> None:
    """A plan that no record holds works like any other, at start, by resume, and given again."""
    plan = [f"flow.step.s{number}" for number in range(300)]
    run = start(jrn, plan=plan)
    assert run.next == plan[0]
    with run.enter(plan[0]) as attempt:
        attempt.complete({})
    run.release()
    again = jrn.resume(run.run_id)
    again.release()
    assert again.next == plan[1]
    head = jrn.head(run.run_id)
    assert jrn.resume(run.run_id, plan=plan).next == plan[1] and jrn.head(run.run_id) == head


def test_children_are_found_again(jrn: Any) -> None:
    """A retry finds its child by the key; the parent's stream names it and how it ended."""
    run = start(jrn)
    with pytest.raises(OSError), run.enter(A) as attempt:
        child = attempt.child("part", "sub", {"m": 1}, {"c": 1}, plan=[A])
        assert child.run_id == uuid5(run.run_id, "part")
        raise OSError
    with run.enter(A) as attempt:
        child = attempt.child("part", "sub", {"m": 1}, {"c": 1})
        with child.enter(A) as inner:
            inner.complete({"c": 2})
        child.complete()
        assert attempt.child("part", "sub", {"m": 1}, {"c": 1}).context() == {"c": 2}
        with pytest.raises(problems.Conflict):
            attempt.child("part", "sub", {"m": 2}, {"c": 1})
        attempt.complete({})
    ended = [event.payload for event in events(jrn, run) if getattr(event, "name", "") == "child_run_completed"]
    assert ended[0]["status"] == "completed" and ended[0]["final_snapshot_id"] == child.state.checkpoint_id
    assert kinds(jrn, run).count("child_run_spawned") == 1


def test_ending_a_run(jrn: Any) -> None:
    """complete, fail and cancel are idempotent, and none takes back what another did."""
    run = start(jrn, plan=[A, B])
    with run.enter(A) as attempt:
        attempt.complete({})
    with pytest.raises(problems.StatesRemain) as caught:
        run.complete()
    assert caught.value.fields["states"] == (B,)
    with run.enter(B) as attempt:
        attempt.complete({})
    for _ in range(2):
        run.complete()
    head = jrn.head(run.run_id)
    for end in (lambda: run.fail("no"), run.cancel, lambda: run.emit("x")):
        with pytest.raises(problems.InvalidEvent):
            end()
    assert jrn.head(run.run_id) == head


def test_failing_and_cancelling_close_the_open_attempt(jrn: Any) -> None:
    """fail and cancel inside a block end the run in one append, and leaving the block writes nothing more."""
    for end, status in (
        (lambda run: run.fail(OSError("x" * 5000)), "failed"), (lambda run: run.cancel("y" * 5000), "cancelled")
    ):  # fmt: skip
        run = start(jrn, plan=[A])
        with run.enter(A):
            end(run)
            end(run)
        assert run.status == status and run.next is None
        assert kinds(jrn, run)[-3:] == ["StateFailed", "run_ended", "RunCompleted"]
        assert events(jrn, run)[-3].error.info.retryable is False


def test_an_attempt_is_lost_to_a_conflict(jrn: Any) -> None:
    """Somebody else's event: the first call says Conflict, every later one AttemptLost, and nothing is rebased."""
    run = start(jrn, claim=False)
    with pytest.raises(problems.AttemptLost), run.enter(A) as attempt:
        assert not attempt.cancelled
        jrn.append(run.run_id, jrn.head(run.run_id), [DomainEvent("foreign")])
        assert attempt.cancelled
        with pytest.raises(problems.Conflict):
            attempt.emit("mine")
        head = jrn.head(run.run_id)
        for call in (lambda: attempt.emit("x"), lambda: attempt.fact("k", 1), lambda: attempt.complete({})):
            with pytest.raises(problems.AttemptLost):
                call()
        assert attempt.cancelled
    assert jrn.head(run.run_id) == head
    with pytest.raises(problems.AttemptLost):  # not AttemptOpen: to abandon it is another's
        run.enter(A)
    with pytest.raises(problems.AttemptLost):
        attempt.context()


def test_what_was_collected_is_put_again(jrn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact that is gone between put and append is put again, once, and the append repeated."""
    run = start(jrn)
    real, tokens = jrn.append, []

    def losing(*arguments: Any, **options: Any) -> Any:
        tokens.append(options["token"])
        if len(tokens) % 2:
            raise problems.MissingArtifact(ArtifactId.of(b"x"), "payload.payload_id")
        return real(*arguments, **options)

    with run.enter(A) as attempt:
        monkeypatch.setattr(jrn, "append", losing)
        assert attempt.fact("k", 1) == 1
        attempt.output(b"data")
        attempt.complete({"n": 5})
    assert run.context() == {"n": 5} and tokens[0::2] == tokens[1::2] and len(set(tokens)) == 3


@dataclasses.dataclass
class Leg:
    name: str
    sizes: tuple[int, ...]


class Side(enum.Enum):
    BUY = "buy"
    SELL = "sell"


@dataclasses.dataclass
class Trade:
    side: Side
    legs: list[Leg]
    proof: ArtifactId | None = None
    by_name: dict[str, Leg] = dataclasses.field(default_factory=dict)


def test_typed_contexts(tmp_path: Path) -> None:
    """A codec turns contexts into plain values and back, the same types on every try."""
    with journal.open(tmp_path / "home", codec=DataclassCodec(Trade)) as jrn:
        proof = jrn.store.put(b"proof")
        trade = Trade(Side.SELL, [Leg("x", (1, 2))], proof, {"x": Leg("y", ())})
        run = jrn.start_run("flow", manifest={}, context=trade)
        with run.enter(A) as attempt:
            assert attempt.context() == trade
            attempt.complete(dataclasses.replace(trade, side=Side.BUY))
        assert run.context().side is Side.BUY
        with pytest.raises(problems.InvalidArgument), run.enter(B) as attempt:
            attempt.complete({"plain": 1})
        plain = jrn.store.get_value(run.state.checkpoint_id)
        assert plain["legs"] == [{"name": "x", "sizes": [1, 2]}] and plain["proof"] == proof
    codec = DataclassCodec(Trade)
    good = {"side": "buy", "legs": []}
    for wrong in ({}, [], {**good, "side": "hold"}, {**good, "x": 1}, {**good, "legs": [1]}):
        with pytest.raises(problems.InvalidArgument):
            codec.from_plain(wrong)


def test_open_attempts_are_renewed(jrn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer renews the claims of runs with an open attempt, and of no others."""
    run, renewed = start(jrn), []
    real = jrn.renew
    monkeypatch.setattr(jrn, "renew", lambda claim, *rest: (renewed.append(claim), real(claim, *rest))[1])
    jrn.renewer.renew_all()
    assert renewed == []
    with run.enter(A) as attempt:
        jrn.renewer.renew_all()
        assert len(renewed) == 1
        attempt.complete({})
    jrn.renewer.renew_all()
    assert len(renewed) == 1
    with pytest.raises(KeyboardInterrupt), run.enter(B):
        raise KeyboardInterrupt
    jrn.renewer.renew_all()
    assert len(renewed) == 1


def test_the_events_of_a_step_name_their_base(jrn: Any) -> None:
    """Retries start from the failed attempt's base; only a completion moves the checkpoint."""
    run = start(jrn)
    initial = run.state.checkpoint_id
    with pytest.raises(OSError), run.enter(A):
        raise OSError
    with run.enter(A) as attempt:
        moved = attempt.complete({"n": 1})
    found = events(jrn, run)[2:]
    assert found[0] == StateEntered(state_id=A, attempt=0, base_snapshot_id=initial)
    assert found[2] == StateEntered(state_id=A, attempt=1, base_snapshot_id=initial)
    assert found[3] == StateCompleted(state_id=A, context_snapshot_id=moved)
