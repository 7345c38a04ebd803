"""Following: when a follower looks again, how long it waits, and that a commit of its own process wakes it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import journal
from casstore.testing import FakeClock
from journal import AsyncJournal, DomainEvent, feeding
from journal.feeding import PAUSE_S, Following
from journal.testing import RUN, _started, memory_journal

WAIT_S = 60.0  # for what comes at once or never


@pytest.fixture(params=["lmdb", "memory"])
def jrn(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with journal.open(tmp_path / "home") if request.param == "lmdb" else memory_journal() as opened:
        opened.append(RUN, 0, [_started(opened)])
        yield opened


@pytest.fixture
def never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits does so for ever, unless somebody wakes it."""
    monkeypatch.setattr(feeding, "PAUSE_S", (1e6, 1e6))


class Numbers:
    """A source of what a test puts into it."""

    ended = False

    def __init__(self) -> None:
        self.waiting: list[list[int]] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def check(self) -> None:
        pass

    def page(self) -> list[int]:
        found = self.waiting.pop(0) if self.waiting else []
        self.meanwhile()
        return found


def note(jrn: Any, run_id: UUID = RUN) -> None:
    jrn.append(run_id, jrn.head(run_id), [DomainEvent("note")])


# -- the version of what is kept ------------------------------------------------------------------------


def test_every_commit_has_a_version_of_its_own(jrn: Any) -> None:
    """Reading changes nothing, nor does what is refused; an append, a claim and a cursor are commits."""
    version = jrn._backend.version
    before = version()
    jrn.read(RUN)
    with pytest.raises(journal.Conflict):
        jrn.append(RUN, 7, [DomainEvent("note")])
    assert version() == before
    for commit in (lambda: note(jrn), lambda: jrn.claim(RUN), lambda: jrn.move_cursor("c", 1)):
        before = version()
        commit()
        assert version() > before


def test_a_version_is_not_ahead_of_a_look(tmp_path: Path) -> None:
    """Asked for again and again while another process appends: a look made after a version shows all up to it.

    The engine's own newest number would not do: it counts a commit whose flush is still under way.
    """
    code = """
import sys, journal
with journal.open(sys.argv[1]) as jrn:
    run = jrn.start_run("flow", manifest={}, context={})
    for n in range(200):
        run.emit("note", {"n": n})
"""
    from helpers import python

    with journal.open(tmp_path / "home") as jrn:
        writer = python(code, tmp_path / "home")
        seen: dict[int, int] = {}
        while writer.poll() is None:
            version = jrn._backend.version()
            position = jrn.position()
            assert seen.setdefault(version, position) <= position
            later = jrn._backend.version()
            if later == version:
                assert seen[version] == position  # one version, one state
        writer.communicate()
        assert writer.returncode == 0 and len(seen) > 1 and jrn.position() == 202


# -- when to look ---------------------------------------------------------------------------------------


def test_what_comes_while_a_page_is_read_is_looked_at(jrn: Any) -> None:
    """The version is asked for before the page: a commit after the read is a change."""
    source = Numbers()
    following = Following(jrn._backend, source, None)
    source.meanwhile = lambda: note(jrn)
    assert following.changed() and following.page() == []
    source.meanwhile = lambda: None
    assert following.changed() and following.page() == [] and not following.changed()


def test_a_page_that_was_full_is_followed_by_another(jrn: Any) -> None:
    """Without a pause and without a change, until one is empty."""
    source = Numbers()
    following = Following(jrn._backend, source, None)
    source.waiting = [[1, 2], [3]]
    for wanted in ([1, 2], [3]):
        assert following.changed() and following.page() == wanted and following.pause_s() == 0.0
    assert following.changed() and following.page() == [] and not following.changed()
    assert following.pause_s() == PAUSE_S[0]


def test_pauses_grow_with_the_silence(jrn: Any) -> None:
    """A quarter of it, between a bound below and one above; ten seconds of silence are some two hundred looks."""
    clock = FakeClock(100.0)
    following = Following(jrn._backend, Numbers(), None, clock)
    looks = 0
    while clock.now < 110.0:
        pause = following.pause_s()
        assert pause is not None
        assert pause == min(max((clock.now - 100.0) / 4, PAUSE_S[0]), PAUSE_S[1])
        clock.advance(pause)
        looks += 1
    assert looks < 10 / PAUSE_S[1] + 30


def test_a_timeout_is_counted_from_the_last_event(jrn: Any) -> None:
    """The pauses add up to it exactly; an event begins it anew; 0 is one look."""
    clock, source = FakeClock(), Numbers()
    following = Following(jrn._backend, source, 1.0, clock)
    begun = clock.now
    while (pause := following.pause_s()) is not None:
        clock.advance(pause)
    assert clock.now - begun == pytest.approx(1.0)
    source.waiting = [[1]]
    assert following.page() == [1] and following.pause_s() == 0.0
    clock.advance(0.9)
    assert following.page() == [] and following.pause_s() == pytest.approx(PAUSE_S[1])
    assert Following(jrn._backend, Numbers(), 0, clock).pause_s() is None


def test_arguments_of_a_feed(jrn: Any) -> None:
    """They are checked by the call, not by the first event."""
    for wrong in (-1, True, float("nan"), "1"):
        with pytest.raises(journal.InvalidArgument):
            jrn.feed(follow=True, timeout=wrong)
    for wrong in (-1, True, 1 << 64, "1"):
        with pytest.raises(journal.InvalidEvent):
            jrn.feed(wrong)


# -- being woken ----------------------------------------------------------------------------------------


def followed(follow: Callable[[], Iterator[Any]]) -> tuple[threading.Thread, queue.Queue[Any]]:
    """What a thread that follows hears: events, and the error that ended it."""
    heard: queue.Queue[Any] = queue.Queue()

    def work() -> None:
        try:
            for item in follow():
                heard.put(item)
        except Exception as error:
            heard.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, heard


@pytest.mark.usefixtures("never_looks")
def test_a_commit_wakes_a_thread(jrn: Any) -> None:
    """A follower of the feed, and one of a run; each event before the next is appended."""
    threads = [followed(lambda: islice(jrn.feed(follow=True), 11)),
               followed(lambda: islice(jrn.run(RUN).watch(after=0), 11))]  # fmt: skip
    for seq in range(1, 12):
        for _, heard in threads:
            assert heard.get(timeout=WAIT_S).seq == seq
        if seq < 11:
            note(jrn)
    for thread, _ in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert jrn._bell._listeners == ()


@pytest.mark.usefixtures("never_looks")
def test_closing_wakes_a_thread(jrn: Any) -> None:
    """Whoever follows a journal that is closed hears of it at once."""
    thread, heard = followed(lambda: jrn.feed(follow=True))
    assert heard.get(timeout=WAIT_S).seq == 1
    jrn.close()
    assert isinstance(heard.get(timeout=WAIT_S), journal.JournalClosed)
    thread.join(WAIT_S)
    assert not thread.is_alive() and jrn._bell._listeners == ()


@pytest.mark.usefixtures("never_looks")
def test_a_commit_wakes_a_task(jrn: Any) -> None:
    """Whoever commits, a task or a thread that knows of no loop; and a close."""

    async def main() -> None:
        ajrn = AsyncJournal(jrn)
        feed, watch = ajrn.feed(follow=True), (await ajrn.run(RUN)).watch(after=0)
        for seq in range(1, 12):
            async with asyncio.timeout(WAIT_S):
                assert (await anext(feed)).seq == (await anext(watch)).seq == seq
            await (asyncio.to_thread(note, jrn) if seq % 2 else ajrn.append(RUN, seq, [DomainEvent("note")]))
        async with asyncio.timeout(WAIT_S):
            assert (await anext(feed)).seq == 12
            waiting = asyncio.ensure_future(anext(feed))
            await asyncio.sleep(0)
            await ajrn.close()
            with pytest.raises(journal.JournalClosed):
                await waiting
        await watch.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())
    assert jrn._bell._listeners == ()


def test_a_follower_that_leaves_is_forgotten(jrn: Any) -> None:
    """In the middle of a page too."""
    feed = jrn.feed(follow=True)
    next(feed)
    assert len(jrn._bell._listeners) == 1
    feed.close()
    assert jrn._bell._listeners == ()
