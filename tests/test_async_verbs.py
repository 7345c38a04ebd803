"""AsyncJournal has every verb of Journal, with the same arguments; the long ones can be cut off."""

from __future__ import annotations

import asyncio
import inspect
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import journal
from casstore import BackupReport, roots
from journal import (
    AsyncAttempt,
    AsyncJournal,
    AsyncRun,
    AsyncRunReader,
    Attempt,
    DomainEvent,
    Journal,
    Run,
    RunReader,
)
from journal.testing import OTHER, RUN, _started, _whole_run, memory_journal

# What is for the recorder, for a block that a thread stays in, or for gc: `sync` has it.
INNER = {"exclusive", "history", "renew_claim", "renewer", "view"} | {
    name for kind in vars(roots).values() if isinstance(kind, type) and kind.__module__ == roots.__name__
    for name in vars(kind) if callable(getattr(kind, name)) and name != "position"
}  # fmt: skip


@pytest.fixture
def jrn(tmp_path: Path) -> Iterator[Any]:
    with journal.open(tmp_path / "home") as opened:
        yield opened


@pytest.mark.parametrize(
    ("kind", "twin"),
    [(Journal, AsyncJournal), (Run, AsyncRun), (Attempt, AsyncAttempt), (RunReader, AsyncRunReader)],
    ids=lambda kind: kind.__name__,
)
def test_the_same_verbs(kind: type, twin: type) -> None:
    """With the same parameters, in the same order, with the same defaults; `wait` has no meaning where one awaits."""
    for name, verb in vars_of(kind):
        if name in INNER:
            continue
        same = getattr(twin, name)
        if not callable(verb):
            continue
        wanted = [one for one in inspect.signature(verb).parameters.values() if one.name not in ("self", "wait")]
        found = [one for one in inspect.signature(same).parameters.values() if one.name != "self"]
        assert [(one.name, one.kind, one.default) for one in found] == [
            (one.name, one.kind, one.default) for one in wanted
        ], name


def vars_of(kind: type) -> list[tuple[str, Any]]:
    return [(name, getattr(kind, name)) for name in dir(kind) if not name.startswith("_")]


def test_a_run_in_a_file(jrn: Any, tmp_path: Path) -> None:
    """Exported, forgotten, imported again: it is the same; and a copy of all of it."""
    events = _whole_run(jrn)
    jrn.append(RUN, 0, events)
    told: list[int] = []

    async def main() -> None:
        ajrn = AsyncJournal(jrn)
        before = await ajrn.read(RUN)
        report = await ajrn.export(RUN, tmp_path / "run.car", progress=told.append)
        assert report.events == len(events) and sum(told) == (tmp_path / "run.car").stat().st_size
        assert await ajrn.forget(str(RUN)) == len(events) and await ajrn.head(RUN) == 0
        with pytest.raises(journal.RunNotFound):
            await ajrn.forget(RUN)
        told.clear()
        assert (await ajrn.import_(tmp_path / "run.car", pin="kept", progress=told.append)).added == len(events)
        assert [item.event for item in await ajrn.read(RUN)] == [item.event for item in before] and told
        assert isinstance(await ajrn.backup(tmp_path / "copy"), BackupReport)

    asyncio.run(main())
    with journal.open(tmp_path / "copy") as copy:
        assert copy.head(RUN) == len(events)


def test_rebuild_and_verify(jrn: Any) -> None:
    """A lost table is found and put right."""
    jrn.append(RUN, 0, _whole_run(jrn))
    with jrn._backend._tables.write() as txn:
        for key, _ in list(txn.scan(b"st1")):
            txn.delete(b"st1", key)

    async def main() -> None:
        ajrn = AsyncJournal(jrn)
        told: list[tuple[int, int]] = []
        assert await ajrn.verify(progress=lambda done, all_: told.append((done, all_))) != [] and told == [(1, 1)]
        dry = await ajrn.rebuild(dry_run=True)
        assert (await ajrn.rebuild()).changes == dry.changes != ()
        assert await ajrn.verify() == []

    asyncio.run(main())


def test_a_run_to_look_at(jrn: Any) -> None:
    """What the other reader says, awaited."""
    run = jrn.start_run("flow", manifest={}, context={"n": 0}, run_id=RUN)
    with run.enter("flow.step.a") as attempt:
        attempt.fact("k", {"price": 17})
        attempt.complete({"n": 1})

    async def main() -> None:
        ajrn = AsyncJournal(jrn)
        seen, same = await ajrn.run(RUN), jrn.run(RUN)
        assert seen.run_id == RUN and seen.sync.run_id == RUN
        assert await seen.state() == same.state and await seen.status() is None
        assert await seen.events() == same.events() and await seen.events(2, 3) == same.events(2, 3)
        assert (await seen.facts(), await seen.context()) == ({"k": {"price": 17}}, {"n": 1})
        watched = seen.watch()
        run.emit("note")
        await asyncio.to_thread(run.complete)
        assert [item.seq async for item in watched] == [6, 7]
        assert [item async for item in seen.watch()] == []
        assert [item async for item in seen.watch(after=5)] == jrn.read(RUN, 6)
        with pytest.raises(journal.InvalidArgument):
            seen.watch(-1)
        await ajrn.forget(RUN)
        for call in (seen.state, seen.status, seen.events, seen.facts, seen.context):
            with pytest.raises(journal.RunNotFound):
                await call()
        with pytest.raises(journal.RunNotFound):
            seen.watch()
        with pytest.raises(journal.RunNotFound):
            await ajrn.run(OTHER)

    asyncio.run(main())


def test_appends_wait_without_a_thread(jrn: Any) -> None:
    """All threads are busy, and appends to one run and to several are durable all the same, with what goes along."""

    async def main() -> None:
        ajrn, block = AsyncJournal(jrn, workers=1), threading.Event()
        busy = asyncio.ensure_future(ajrn._calls.run(lambda: block.wait(60)))
        await asyncio.sleep(0)
        prepared = jrn.store.prepare_value({"goes": "along"})
        appended = await ajrn.append_many({RUN: (0, [_started(jrn)]), OTHER: (0, [_started(jrn)])}, cursors={"c": 2})
        assert {name: one.position for name, one in appended.items()} == {RUN: 1, OTHER: 2}
        note = DomainEvent("note", {}, prepared.id)
        assert (await ajrn.append(RUN, 1, [note], puts=[prepared], cursors={"c": 3})).position == 3
        assert await ajrn.append_many({}) == {}
        with pytest.raises(journal.Conflict):
            await ajrn.append_many({RUN: (1, [note]), OTHER: (1, [note])})
        assert not busy.done()
        block.set()
        assert await busy
        assert await ajrn.cursor("c") == 3 and await ajrn.head(OTHER) == 1

    asyncio.run(main())


class Stalling(io.BytesIO):
    """A file that stops at its first read or write until it is let go."""

    def __init__(self, data: bytes = b"") -> None:
        super().__init__(data)
        self.loop = asyncio.get_running_loop()
        self.reached, self.go = asyncio.Event(), threading.Event()

    def stall(self) -> None:
        self.loop.call_soon_threadsafe(self.reached.set)
        assert self.go.wait(60)

    def write(self, data: Any) -> int:
        self.stall()
        return super().write(data)

    def read(self, size: int | None = -1) -> bytes:
        self.stall()
        return super().read(size)


@pytest.mark.parametrize("verb", ["export", "import_"])
def test_what_takes_long_ends_when_it_is_cancelled(jrn: Any, verb: str) -> None:
    """Not at the end of the file but at the next piece of it: nothing is written, and the journal goes on."""
    with memory_journal() as source:
        source.append(RUN, 0, [_started(source)])
        out = io.BytesIO()
        source.export(RUN, out)
    jrn.append(OTHER, 0, [_started(jrn)])

    async def main() -> None:
        ajrn = AsyncJournal(jrn)
        file = Stalling(out.getvalue() if verb == "import_" else b"")
        call = ajrn.import_(file) if verb == "import_" else ajrn.export(OTHER, file)
        task = asyncio.ensure_future(call)
        await file.reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        file.go.set()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert getattr(caught.value, "__notes__", []) == []
        assert await ajrn.head(RUN) == 0
        if verb == "export":
            whole = io.BytesIO()
            await ajrn.export(OTHER, whole)
            assert 0 < len(file.getvalue()) < len(whole.getvalue())
        else:
            assert (await ajrn.import_(io.BytesIO(out.getvalue()))).added == 1
        await ajrn.close()

    asyncio.run(main())


def test_a_cancelled_call_that_had_not_begun(jrn: Any) -> None:
    """All threads are busy: it is never made."""

    async def main() -> None:
        ajrn, block = AsyncJournal(jrn, workers=1), threading.Event()
        jrn.append(RUN, 0, _whole_run(jrn))
        busy = asyncio.ensure_future(ajrn._calls.run(lambda: block.wait(60)))
        await asyncio.sleep(0)
        tasks = [asyncio.ensure_future(call) for call in (ajrn.export(RUN, io.BytesIO()), ajrn.forget(RUN))]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        block.set()
        assert await busy
        assert await ajrn.head(RUN) == 16

    asyncio.run(main())
