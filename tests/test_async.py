"""AsyncJournal: the recorder's rules for tasks, the ways out of an attempt, and what a cancellation may cut off."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import journal
from casstore import errors as store_errors
from casstore import steps
from journal import (
    AsyncAttempt,
    AsyncJournal,
    AsyncRun,
    DomainEvent,
    NonRetryable,
    RunCompleted,
    RunStarted,
    RunStatus,
    StateCompleted,
    StateEntered,
    StateFailed,
)
from journal import errors as problems
from journal.commits import Pending

A, B, C = "flow.step.a", "flow.step.b", "flow.step.c"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def jrn(home: Path) -> Iterator[Any]:
    """The synchronous journal under the asynchronous one; it outlives the loop."""
    with journal.open(home) as opened:
        yield opened


async def start(ajrn: AsyncJournal, plan: list[str] | None = None, **options: Any) -> AsyncRun:
    return await ajrn.start_run("flow", manifest={"flow": 1}, context={"n": 0}, plan=plan, claim=False, **options)


def events(jrn: Any, run: Any) -> list[Any]:
    return [recorded.event for recorded in jrn.read(run.run_id)]


def kinds(jrn: Any, run: Any) -> list[type]:
    return [type(event) for event in events(jrn, run)]


class Gate:
    """Stops the first thread that comes to a step, until it is opened."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._open = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._first = threading.Lock()

    def open(self) -> None:
        self._open.set()

    def __call__(self) -> None:
        if self._first.acquire(blocking=False):
            self._loop.call_soon_threadsafe(self.reached.set)
            assert self._open.wait(60)


@contextmanager
def gate_at(step: str) -> Iterator[Gate]:
    gate = Gate()
    steps.listen(lambda reached: gate() if reached == step else None)
    try:
        yield gate
    finally:
        gate.open()
        steps.listen(None)


@asynccontextmanager
async def inside(run: AsyncRun, state_id: str, handler: Callable[[AsyncAttempt], Any]) -> AsyncIterator[Any]:
    """A task that is inside of an attempt, in its handler."""
    entered = asyncio.Event()

    async def work() -> None:
        async with run.enter(state_id) as attempt:
            entered.set()
            await handler(attempt)

    task = asyncio.create_task(work())
    await entered.wait()
    yield task
    if not task.done():
        task.cancel()
    await asyncio.wait((task,))


async def forever(_: Any = None) -> None:
    await asyncio.Event().wait()


async def turns(count: int = 5) -> None:
    """Let whatever is ready run: so that what would happen at once has happened."""
    for _ in range(count):
        await asyncio.sleep(0)


# -- a run ----------------------------------------------------------------------------------------------


def test_a_whole_run(home: Path) -> None:
    """The loop of the README with every verb of an attempt; the stream is the one that the verbs are to write."""

    async def main() -> Any:
        async with AsyncJournal.open(home) as jrn:
            run = await start(jrn, [A, B])
            seen = []
            while run.next is not None:
                async with run.enter(run.next) as attempt:
                    seen.append((attempt.state_id, attempt.attempt, await attempt.context(), attempt.cancelled))
                    await attempt.boundary("part", "start")
                    output = await attempt.output(b"bytes", meta={"of": attempt.state_id})
                    await attempt.emit("noted", {"output": output})
                    await attempt.complete({"n": (await attempt.context())["n"] + 1})
            await run.emit("all.done")
            await run.complete()
            await run.complete()
            state = await jrn.run_state(run.run_id)
            assert run.state == state and run.status is state.status is RunStatus.COMPLETED
            assert jrn.store.get(output) == b"bytes"
            assert (await run.context(), await run.manifest(), await run.facts()) == ({"n": 2}, {"flow": 1}, {})
            assert [row.run_id async for row in jrn.runs(status="completed")] == [run.run_id]
            assert await jrn.verify() == [] and await jrn.head(run.run_id) == run.head
            assert [item.seq for item in await jrn.read(run.run_id, 2, 4, reverse=True)] == [4, 3, 2]
            return run, seen

    run, seen = asyncio.run(main())
    assert seen == [(A, 0, {"n": 0}, False), (B, 0, {"n": 1}, False)]
    with journal.open(home) as jrn:
        state = [StateEntered, DomainEvent, DomainEvent, DomainEvent, StateCompleted]
        assert kinds(jrn, run) == [RunStarted, DomainEvent, *state, *state, DomainEvent, RunCompleted]


def test_completed_and_entered_in_one_append(jrn: Any) -> None:
    """`then` opens the next attempt, which enter gives; `await run.enter` does without the block."""

    async def main() -> AsyncRun:
        ajrn = AsyncJournal(jrn)
        run = await start(ajrn, [A, B])
        async with run.enter(A) as attempt:
            await attempt.complete({"n": 1}, then=B)
        head = jrn.head(run.run_id)
        second = await run.enter(B)
        assert jrn.head(run.run_id) == head and second.seq == head and await second.context() == {"n": 1}
        await second.complete({"n": 2})
        await run.complete()
        await ajrn.close()
        return run

    run = asyncio.run(main())
    assert kinds(jrn, run)[2:] == [StateEntered, StateCompleted, StateEntered, StateCompleted, RunCompleted]


def test_resume_fork_and_cancel(home: Path) -> None:
    """A run goes on in another loop; a fork begins at what was completed; cancel ends whatever lives."""

    async def first() -> Any:
        async with AsyncJournal.open(home) as jrn:
            run = await jrn.start_run("flow", manifest=None, context={"n": 0}, plan=[A, B])
            async with run.enter(A) as attempt:
                await attempt.complete({"n": 1})
            await run.release()
            return run.run_id

    async def second(run_id: Any) -> None:
        async with AsyncJournal.open(home) as jrn:
            assert [row.run_id async for row in jrn.recoverable(limit=1)] == [run_id]
            point = await jrn.resume(run_id, dry_run=True)
            assert point.next == B and await jrn.head(run_id) == 4
            run = await jrn.resume(run_id)
            assert run.next == B and run.epoch == 2
            fork = await jrn.fork(run_id, 4)
            assert fork.next == B and await fork.context() == {"n": 1}
            assert (await jrn.cancel(run_id, "enough")).status is RunStatus.CANCELLED
            await fork.cancel()
            await fork.cancel()
            assert fork.status is RunStatus.CANCELLED

    asyncio.run(second(asyncio.run(first())))


def test_wrapping_leaves_the_journal_open(jrn: Any) -> None:
    """Close ends the wrapper and its calls; the journal that was given stays with its owner."""

    async def main() -> None:
        ajrn = AsyncJournal(jrn)
        async with ajrn:
            assert ajrn.sync is jrn and await ajrn.position() == 0
        await ajrn.close()
        with pytest.raises(problems.JournalClosed):
            await ajrn.position()
        with pytest.raises(problems.JournalClosed):
            await ajrn.append(uuid4(), 0, [])

    asyncio.run(main())
    assert jrn.position() == 0


def test_open_refuses_as_open_does(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(store_errors.NotAStore):
            await AsyncJournal.open(tmp_path / "nothing", create=False)

    asyncio.run(main())


# -- the ways out ---------------------------------------------------------------------------------------


@pytest.mark.spec("scenario 29")
@pytest.mark.parametrize(
    ("raised", "code", "retryable", "ended"),
    [
        (OSError("no"), "OSError", True, False),
        (NonRetryable("never"), "NonRetryable", False, True),
        (asyncio.CancelledError("by hand"), "cancelled", True, False),
    ],
)
def test_left_by_an_exception(jrn: Any, raised: BaseException, code: str, retryable: bool, ended: bool) -> None:
    """What the block raised is what comes out; StateFailed says it, and the end follows where there is no retry."""

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])
        with pytest.raises(type(raised)) as caught:
            async with run.enter(A):
                raise raised
        assert caught.value is raised
        return run

    run = asyncio.run(main())
    failed = events(jrn, run)[3]
    assert type(failed) is StateFailed and failed.error.info.retryable is retryable
    assert failed.error.info.code == code
    assert kinds(jrn, run)[4:] == ([RunCompleted] if ended else [])


@pytest.mark.spec("scenario 29")
def test_left_without_completing(jrn: Any) -> None:
    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])
        with pytest.raises(problems.AttemptNotCompleted):
            async with run.enter(A):
                pass
        return run

    run = asyncio.run(main())
    assert kinds(jrn, run)[3:] == [StateFailed, RunCompleted]
    assert events(jrn, run)[3].error.info.retryable is False


@pytest.mark.spec("scenario 29")
def test_left_by_an_interrupt(jrn: Any) -> None:
    """Nothing is written, as after a crash; abandon closes the attempt."""
    made: list[Any] = []

    async def interrupted() -> None:
        run = await start(AsyncJournal(jrn), [A])
        made.append(run)
        async with run.enter(A):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(interrupted())
    (run,) = made
    assert kinds(jrn, run)[-1] is StateEntered

    async def after() -> None:
        with pytest.raises(problems.AttemptOpen):
            await run.enter(A)
        await run.abandon()

    asyncio.run(after())
    assert events(jrn, run)[-1].error.info.code == "orphan_attempt_recovered"


@pytest.mark.spec("scenario 29")
def test_left_by_closing_the_coroutine(jrn: Any) -> None:
    """GeneratorExit: the block may not wait, and nothing is written."""

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])
        attempt = await run.enter(A)

        async def work() -> None:
            async with attempt:
                await asyncio.Event().wait()

        coroutine = work()
        coroutine.send(None)
        coroutine.close()
        return run

    run = asyncio.run(main())
    assert kinds(jrn, run)[-1] is StateEntered


def test_a_failure_that_cannot_be_written_hides_nothing(jrn: Any) -> None:
    """The handler's exception comes out, with a note; a resume finds the orphan."""

    async def main() -> Any:
        ajrn = AsyncJournal(jrn)
        run = await start(ajrn, [A])
        with pytest.raises(OSError, match="no") as caught:
            async with run.enter(A):
                jrn.cancel(run.run_id)
                raise OSError("no")
        assert any("Fenced" in note or "Conflict" in note for note in caught.value.__notes__)
        return run

    run = asyncio.run(main())
    assert jrn.run_state(run.run_id).status is RunStatus.CANCELLED


# -- cancellation ---------------------------------------------------------------------------------------


def test_cancelled_in_the_handler(jrn: Any) -> None:
    """StateFailed, retryable; the next try starts from the same base."""

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])
        async with inside(run, A, forever) as task:
            task.cancel("enough")
            with pytest.raises(asyncio.CancelledError, match="enough"):
                await task
        failed = events(jrn, run)[-1]
        assert failed.error.info.code == "cancelled" and failed.error.info.retryable
        async with run.enter(run.next or "") as attempt:
            assert attempt.attempt == 1 and await attempt.context() == {"n": 0}
            await attempt.complete({"n": 1})
        return run

    run = asyncio.run(main())
    assert kinds(jrn, run)[2:] == [StateEntered, StateFailed, StateEntered, StateCompleted]


def test_cancelled_again_while_the_failure_is_written(jrn: Any) -> None:
    """However often: the write is finished first, and the task ends cancelled only then."""

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])
        async with inside(run, A, forever) as task:
            with gate_at("append.locked") as gate:
                task.cancel("first")
                await gate.reached.wait()
                for _ in range(3):
                    task.cancel("again")
                    await turns()
                    assert not task.done()
                gate.open()
                with pytest.raises(asyncio.CancelledError, match="first"):
                    await task
            assert task.cancelled() and task.cancelling() == 4
        assert kinds(jrn, run)[-1] is StateFailed
        return run

    run = asyncio.run(main())
    assert kinds(jrn, run).count(StateFailed) == 1


def test_cancelled_while_an_error_is_written(jrn: Any) -> None:
    """The error is recorded, and the cancellation is not lost: it comes out, with the error as its context."""

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])
        broken = OSError("no")
        go = asyncio.Event()

        async def handler(_: Any) -> None:
            await go.wait()
            raise broken

        async with inside(run, A, handler) as task:
            with gate_at("append.locked") as gate:
                go.set()
                await gate.reached.wait()
                task.cancel()
                await turns()
                assert not task.done()
                gate.open()
                with pytest.raises(asyncio.CancelledError):
                    await task
        return run

    run = asyncio.run(main())
    assert events(jrn, run)[-1].error.info.code == "OSError"


def test_cancelled_during_complete(jrn: Any) -> None:
    """A complete that had begun is finished: it is recorded, the task is cancelled, and no failure follows."""

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A, B])
        go = asyncio.Event()

        async def handler(attempt: AsyncAttempt) -> None:
            await go.wait()
            await attempt.complete({"n": 1})

        async with inside(run, A, handler) as task:
            with gate_at("append.locked") as gate:
                go.set()
                await gate.reached.wait()
                task.cancel()
                await turns()
                assert not task.done()
                task.cancel()
                await turns()
                assert not task.done()
                gate.open()
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert run.next == B
        return run

    run = asyncio.run(main())
    assert kinds(jrn, run)[2:] == [StateEntered, StateCompleted]


def test_cancelled_before_complete_had_begun(jrn: Any) -> None:
    """All threads are busy: the complete is never made, and the attempt ends as cancelled."""

    async def main() -> Any:
        ajrn = AsyncJournal(jrn, workers=1)
        run, other = await start(ajrn, [A]), await start(ajrn)
        go, at_complete = asyncio.Event(), asyncio.Event()

        async def handler(attempt: AsyncAttempt) -> None:
            await go.wait()
            at_complete.set()
            await attempt.complete({"n": 1})

        async with inside(run, A, handler) as task:
            with gate_at("append.locked") as gate:
                busy = asyncio.create_task(other.emit("busy"))
                await gate.reached.wait()
                go.set()
                await at_complete.wait()
                await turns()
                for _ in range(2):
                    task.cancel()
                    await turns()
                assert not task.done()  # the failure waits for the thread; it is not dropped
                gate.open()
                await busy
                with pytest.raises(asyncio.CancelledError):
                    await task
        return run

    run = asyncio.run(main())
    assert kinds(jrn, run)[2:] == [StateEntered, StateFailed]


def test_cancelled_during_a_complete_that_is_refused(jrn: Any) -> None:
    """The cancellation comes out and says how the call ended; the attempt is lost."""

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])
        go, held = asyncio.Event(), []

        async def handler(attempt: AsyncAttempt) -> None:
            held.append(attempt)
            await go.wait()
            await attempt.complete({"n": 1})

        async with inside(run, A, handler) as task:
            jrn.cancel(run.run_id)
            with gate_at("append.asked") as gate:
                go.set()
                await gate.reached.wait()
                task.cancel()
                await turns()
                gate.open()
                with pytest.raises(asyncio.CancelledError) as caught:
                    await task
        assert any("Fenced" in note or "Conflict" in note for note in caught.value.__notes__)
        with pytest.raises(problems.AttemptLost):
            await held[0].emit("late")

    asyncio.run(main())


def test_cancelled_while_entering(jrn: Any) -> None:
    """Nobody gets the attempt, so it is closed as cancelled before CancelledError goes on."""

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])

        async def work() -> None:
            async with run.enter(A):
                raise AssertionError("the block was entered")

        with gate_at("append.locked") as gate:
            task = asyncio.create_task(work())
            await gate.reached.wait()
            task.cancel()
            await turns()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert run.next == A
        return run

    run = asyncio.run(main())
    assert kinds(jrn, run)[2:] == [StateEntered, StateFailed]
    assert events(jrn, run)[-1].error.info.code == "cancelled"


def test_cancelled_while_starting(jrn: Any) -> None:
    """The run is there and its claim is given back: anybody may resume it at once."""

    async def main() -> None:
        ajrn = AsyncJournal(jrn)
        with gate_at("append.locked") as gate:
            task = asyncio.create_task(ajrn.start_run("flow", manifest=None, context=None, plan=[A]))
            await gate.reached.wait()
            task.cancel()
            await turns()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await task
        (row,) = [row async for row in ajrn.recoverable()]
        assert (await ajrn.resume(row.run_id)).next == A

    asyncio.run(main())


@pytest.mark.parametrize("within", [False, True])
def test_timeout(jrn: Any, within: bool) -> None:
    """asyncio.timeout around the block: cancelled inside, TimeoutError outside. Within it: an exception like others."""

    async def around(run: AsyncRun) -> None:
        async with asyncio.timeout(None) as limit, run.enter(A):
            limit.reschedule(0)
            await forever()

    async def inside_of_it(run: AsyncRun) -> None:
        async with run.enter(A), asyncio.timeout(None) as limit:
            limit.reschedule(0)
            await forever()

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])
        with pytest.raises(TimeoutError):
            await (inside_of_it if within else around)(run)
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0
        return run

    run = asyncio.run(main())
    info = events(jrn, run)[-1].error.info
    assert info.code == ("TimeoutError" if within else "cancelled") and info.retryable


def test_timeout_during_complete(jrn: Any) -> None:
    """The write is finished, TimeoutError comes out, and the state is completed."""

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])

        async def work() -> None:
            async with asyncio.timeout(None) as limit, run.enter(A) as attempt:
                with gate_at("append.locked") as gate:

                    async def at_the_gate() -> None:
                        await gate.reached.wait()
                        limit.reschedule(0)
                        while not limit.expired():  # noqa: ASYNC110 - the timeout has no event
                            await asyncio.sleep(0)
                        gate.open()

                    async with asyncio.TaskGroup() as group:
                        group.create_task(at_the_gate())
                        await attempt.complete({"n": 1})

        with pytest.raises(TimeoutError):
            await work()
        return run

    run = asyncio.run(main())
    assert kinds(jrn, run)[2:] == [StateEntered, StateCompleted]


# -- facts ----------------------------------------------------------------------------------------------


@pytest.mark.spec("scenario 26")
def test_a_fact_is_fetched_once_over_two_attempts(jrn: Any) -> None:
    """The second attempt uses what the first recorded, of the same type, and calls nothing."""
    calls: list[str] = []

    async def fetch() -> Any:
        calls.append("live")
        await asyncio.sleep(0)
        return {"price": (1, 2)}

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])
        seen = []
        with pytest.raises(OSError, match="once"):
            async with run.enter(A) as attempt:
                seen.append(await attempt.fact("price|btc", fetch, meta={"at": "noon"}))
                raise OSError("once")
        async with run.enter(A) as attempt:
            seen.append(await attempt.fact("price|btc", fetch))
            with pytest.raises(problems.FactConflict):
                await attempt.fact("price|btc", {"price": [3]})
            await attempt.complete({"n": 1})
        assert await run.facts() == {"price|btc": {"price": [1, 2]}}
        return seen

    assert asyncio.run(main()) == [{"price": [1, 2]}] * 2
    assert calls == ["live"]


def test_kinds_of_facts(jrn: Any) -> None:
    """Plain values, plain functions (in a thread of their own), functions that return an awaitable, callables."""
    threads: list[Any] = []

    class Fetcher:
        async def __call__(self) -> str:
            return "object"

    def blocking() -> str:
        threads.append(threading.current_thread())
        return "function"

    async def fetch(what: str) -> str:
        return what

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])
        async with run.enter(A) as attempt:
            given = ["plain", blocking, lambda: fetch("lambda"), Fetcher()]
            found = [await attempt.fact(f"k{place}", value) for place, value in enumerate(given)]
            await attempt.complete(None)
        return found

    assert asyncio.run(main()) == ["plain", "function", "lambda", "object"]
    assert threading.main_thread() not in threads


def test_a_fetch_that_fails(jrn: Any) -> None:
    """Its own exception comes out, whatever it is, and nothing is recorded."""

    def exhausted() -> Any:
        return next(iter(()))

    async def refused() -> Any:
        raise OSError("theirs")

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])
        async with run.enter(A) as attempt:
            with pytest.raises(RuntimeError, match="StopIteration"):
                await attempt.fact("k", exhausted)
            with pytest.raises(OSError, match="theirs") as caught:
                await attempt.fact("k", refused)
            assert caught.value.__context__ is None
            await attempt.complete(None)
        return run

    assert asyncio.run(main()).sync.facts() == {}


def test_a_cancelled_fetch_records_nothing(jrn: Any) -> None:
    """A fetch is the handler's own waiting: it is cut off at once."""

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])
        fetching = asyncio.Event()

        async def fetch() -> Any:
            fetching.set()
            await forever()

        async with inside(run, A, lambda attempt: attempt.fact("k", fetch)) as task:
            await fetching.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return run

    run = asyncio.run(main())
    assert kinds(jrn, run)[2:] == [StateEntered, StateFailed] and run.sync.facts() == {}


# -- several tasks --------------------------------------------------------------------------------------


def test_two_tasks_two_runs(jrn: Any) -> None:
    """They take turns at every state, and each has its own stream."""

    async def main() -> Any:
        ajrn = AsyncJournal(jrn)
        meet = [asyncio.Event() for _ in range(2)]

        async def work(me: int) -> AsyncRun:
            run = await start(ajrn, [A, B])
            async with run.enter(A) as attempt:
                meet[me].set()
                await meet[1 - me].wait()
                await attempt.complete({"n": me})
            async with run.enter(B) as attempt:
                await attempt.complete({"n": (await attempt.context())["n"] + 10})
            await run.complete()
            return run

        return await asyncio.gather(work(0), work(1))

    for me, run in enumerate(asyncio.run(main())):
        assert jrn.run_state(run.run_id).status is RunStatus.COMPLETED and run.sync.context() == {"n": me + 10}


def test_many_tasks_one_attempt(jrn: Any) -> None:
    """Their events stand one after the other, each once."""

    async def main() -> Any:
        run = await start(AsyncJournal(jrn), [A])
        async with run.enter(A) as attempt:
            await asyncio.gather(*(attempt.emit("part", {"n": n}) for n in range(32)))
            await attempt.complete(None)
        return run

    run = asyncio.run(main())
    parts = [event.payload["n"] for event in events(jrn, run) if getattr(event, "name", "") == "part"]
    assert sorted(parts) == list(range(32)) and jrn.verify() == []


def test_appends_of_64_tasks_share_commits(jrn: Any) -> None:
    """While the first commit is made the others queue up, and the second takes them all; no thread waits for any."""
    counted: Counter[str] = Counter()
    queued = threading.Event()

    async def main() -> Any:
        ajrn = AsyncJournal(jrn)
        runs = [await start(ajrn) for _ in range(64)]
        threads = threading.active_count()

        def listener(step: str) -> None:
            counted[step] += 1
            if step == "append.locked":
                assert queued.wait(60)

        steps.listen(listener)
        try:
            tasks = [asyncio.create_task(ajrn.append(run.run_id, 2, [DomainEvent("n", {})])) for run in runs]
            await turns()
            assert threading.active_count() <= threads + 1
            queued.set()
            return await asyncio.gather(*tasks)
        finally:
            queued.set()
            steps.listen(None)

    appended = asyncio.run(main())
    assert [each.last_seq for each in appended] == [3] * 64
    assert len({each.position for each in appended}) == 64
    assert counted["append.committed"] <= 2


def test_a_cancelled_append_is_made(jrn: Any) -> None:
    """Queued is begun: it is durable when CancelledError comes out."""

    async def main() -> Any:
        ajrn = AsyncJournal(jrn)
        run = await start(ajrn)
        with gate_at("append.locked") as gate:
            task = asyncio.create_task(ajrn.append(run.run_id, 2, [DomainEvent("n", {})]))
            await gate.reached.wait()
            task.cancel()
            await turns()
            assert not task.done()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert jrn.head(run.run_id) == 3

    asyncio.run(main())


def test_the_loop_runs_while_a_commit_waits(jrn: Any) -> None:
    """A commit that hangs holds up nobody who reads; an append that waits for it holds no thread."""

    async def main() -> None:
        ajrn = AsyncJournal(jrn, workers=1)
        run = await start(ajrn)
        with gate_at("append.locked") as gate:
            task = asyncio.create_task(ajrn.append(run.run_id, 2, [DomainEvent("n", {})]))
            await gate.reached.wait()
            assert await ajrn.head(run.run_id) == 2 and len(await ajrn.read(run.run_id)) == 2
            assert not task.done()
            gate.open()
            await task
        assert await ajrn.head(run.run_id) == 3

    asyncio.run(main())


def test_callbacks_of_a_commit_are_called_once() -> None:
    """Before it is done, after, and from both ends at once."""
    called: Counter[int] = Counter()
    pending = Pending(1)
    pending.when_done(lambda: called.update([0]))
    assert not called
    pending.settle()
    pending.when_done(lambda: called.update([1]))
    assert called == {0: 1, 1: 1}
    pending.settle()
    assert called == {0: 1, 1: 1}


# -- the feed -------------------------------------------------------------------------------------------


def test_following_the_feed(jrn: Any) -> None:
    """It gives what is there, waits for more without holding up the loop, and ends when it is cancelled."""

    async def main() -> Any:
        ajrn = AsyncJournal(jrn)
        run = await start(ajrn)
        seen: list[Any] = []
        counts = [asyncio.Event() for _ in range(4)]

        async def follow() -> None:
            async for item in ajrn.feed(follow=True):
                seen.append(item)
                counts[len(seen) - 1].set()

        task = asyncio.create_task(follow())
        await counts[1].wait()
        await run.emit("third")
        await counts[2].wait()
        await asyncio.to_thread(jrn.append, run.run_id, 3, [DomainEvent("fourth", {})])
        await counts[3].wait()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == jrn.read(run.run_id) == [item async for item in ajrn.feed()]
        assert [item.seq async for item in ajrn.feed(seen[1].position, follow=True, timeout=0)] == [3, 4]

    asyncio.run(main())


def test_the_feed_over_many_pages(jrn: Any) -> None:
    """Pages are a matter of reading; a reader that leaves in between loses nothing."""

    async def main() -> None:
        ajrn = AsyncJournal(jrn)
        run = await start(ajrn)
        await ajrn.append(run.run_id, 2, [DomainEvent("n", {"n": n}) for n in range(1100)])
        assert [item.position async for item in ajrn.feed()] == list(range(1, 1103))
        feed = ajrn.feed(600)
        assert (await anext(feed)).position == 601
        await feed.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())


# -- errors ---------------------------------------------------------------------------------------------


def test_errors_are_the_same(home: Path) -> None:
    async def main() -> None:
        async with AsyncJournal.open(home) as ajrn:
            run = await ajrn.start_run("flow", manifest=None, context=None, plan=[A, B])
            with pytest.raises(problems.RunNotFound):
                await ajrn.resume(uuid4())
            with pytest.raises(problems.Claimed):
                await ajrn.resume(run.run_id)
            with pytest.raises(problems.RunExists):
                await start(ajrn, run_id=run.run_id)
            with pytest.raises(problems.InvalidPlan):
                await start(ajrn, [])
            with pytest.raises(problems.StateNotInPlan):
                await run.enter(C)
            with pytest.raises(problems.StatesRemain):
                await run.complete()
            with pytest.raises(problems.InvalidArgument):
                await ajrn.append(run.run_id, 2, [], token=b"short")
            with pytest.raises(problems.Conflict):
                await ajrn.append(run.run_id, 7, [DomainEvent("n", {})], epoch=run.epoch)
            with pytest.raises(problems.Claimed):
                await ajrn.append(run.run_id, 2, [DomainEvent("n", {})])
            async with run.enter(A) as attempt:
                with pytest.raises(problems.AttemptOpen):
                    await run.enter(B)
                with pytest.raises(store_errors.InvalidValue):
                    await attempt.complete(object())
                await attempt.complete({})
            free = await start(ajrn)
            with pytest.raises(problems.NoPlan):
                _ = free.next
            await free.fail("no more")
            with pytest.raises(problems.InvalidEvent):
                await free.complete()
        with pytest.raises(problems.JournalClosed):
            await ajrn.head(run.run_id)

    asyncio.run(main())


def test_lost_after_fenced(jrn: Any) -> None:
    """Who was overtaken hears it once as Fenced, then as AttemptLost, also at the end of the block."""

    async def main() -> Any:
        ajrn = AsyncJournal(jrn)
        run = await ajrn.start_run("flow", manifest=None, context=None, plan=[A])
        with pytest.raises(problems.AttemptLost):
            async with run.enter(A) as attempt:
                await ajrn.cancel(run.run_id)
                assert attempt.cancelled
                with pytest.raises(problems.Fenced):
                    await attempt.emit("late")
                assert attempt.cancelled
                with pytest.raises(problems.AttemptLost):
                    await attempt.fact("k", forever)
                await attempt.complete(None)
        return run

    run = asyncio.run(main())
    assert kinds(jrn, run)[2:] == [StateEntered, StateFailed, DomainEvent, RunCompleted]


def test_claims_and_cursors(jrn: Any) -> None:
    async def main() -> None:
        ajrn = AsyncJournal(jrn)
        run = await start(ajrn)
        claim = await ajrn.claim(run.run_id, "somebody", 1.5)
        with pytest.raises(problems.Claimed):
            await ajrn.claim(run.run_id)
        renewed = await ajrn.renew(claim, 3)
        assert renewed.epoch == claim.epoch
        await ajrn.release(renewed)
        assert (await ajrn.claim(run.run_id)).epoch == claim.epoch + 1
        await ajrn.move_cursor("mine", 7)
        assert await ajrn.cursor("mine") == 7
        assert await ajrn.resolve(str(run.run_id)[:8]) == run.run_id
        assert await ajrn.position_of(run.run_id, 2) == await ajrn.position() == 2

    asyncio.run(main())


# -- children and shutdown ------------------------------------------------------------------------------


def test_child_runs(jrn: Any) -> None:
    """A retry finds the child of the first try, goes on with it, and the parent hears of its end."""

    async def main() -> Any:
        ajrn = AsyncJournal(jrn)
        run = await start(ajrn, [A])
        ids = []
        with pytest.raises(OSError, match="once"):
            async with run.enter(A) as attempt:
                child = await attempt.child("part", "sub", {"part": 1}, {"n": 5}, plan=[B])
                ids.append(child.run_id)
                raise OSError("once")
        async with run.enter(A) as attempt:
            child = await attempt.child("part", "sub", {"part": 1}, {"n": 5}, plan=[B])
            ids.append(child.run_id)
            async with child.enter(B) as step:
                await step.complete({"n": (await step.context())["n"] + 1})
            await child.complete()
            with pytest.raises(problems.RunExists):
                await attempt.child("part", "sub", {"part": 2}, {"n": 5})
            await attempt.complete(await child.context())
        await run.complete()
        assert ids[0] == ids[1] and await run.context() == {"n": 6}
        return run

    run = asyncio.run(main())
    names = [event.name for event in events(jrn, run) if type(event) is DomainEvent]
    assert names == ["run_policy", "child_run_spawned", "child_run_completed"]


def test_a_task_left_at_the_end_of_the_loop(jrn: Any) -> None:
    """asyncio.run cancels it, and the failure is written before the loop is gone."""
    made: list[Any] = []

    async def main() -> None:
        run = await start(AsyncJournal(jrn), [A])
        made.append(run)
        entered = asyncio.Event()

        async def work() -> None:
            async with run.enter(A):
                entered.set()
                await forever()

        made.append(asyncio.create_task(work()))
        await entered.wait()

    asyncio.run(main())
    run, task = made
    assert task.cancelled() and events(jrn, run)[-1].error.info.code == "cancelled"


def test_a_task_left_when_the_journal_is_closed(home: Path) -> None:
    """Nothing can be written any more: CancelledError has a note, and the next process finds the orphan."""
    made: list[Any] = []

    async def main() -> None:
        async with AsyncJournal.open(home) as ajrn:
            run = await ajrn.start_run("flow", manifest=None, context=None, plan=[A])
            entered = asyncio.Event()
            notes: list[str] = []

            async def work() -> None:
                try:
                    async with run.enter(A):
                        entered.set()
                        await forever()
                except asyncio.CancelledError as cancelled:
                    notes.extend(cancelled.__notes__)
                    raise

            made.extend([run.run_id, asyncio.create_task(work()), notes])
            await entered.wait()

    asyncio.run(main())
    run_id, task, notes = made
    assert task.cancelled() and "JournalClosed" in notes[0]
    with journal.open(home) as jrn:
        assert jrn.resume(run_id, steal=True).decision == journal.Enter(A, 1, jrn.run_state(run_id).checkpoint_id)


def test_a_call_under_way_is_finished_by_close(home: Path) -> None:
    """close waits for it, with the journal still open: what had been stored is recorded too."""

    async def main() -> None:
        ajrn = await AsyncJournal.open(home)
        run = await start(ajrn, [A])
        attempt = await run.enter(A)
        with gate_at("append.locked") as gate:
            completing = asyncio.create_task(attempt.complete({"n": 1}))
            await gate.reached.wait()
            closing = asyncio.create_task(ajrn.close())
            with pytest.raises(problems.JournalClosed):
                while True:
                    await ajrn.head(run.run_id)
            assert not closing.done()
            gate.open()
            await completing
            await closing
        assert run.next is None

    asyncio.run(main())
