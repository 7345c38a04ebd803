"""Runs in files: what a file holds, what an import adds, and that a damaged one adds no event."""

from __future__ import annotations

import io
import os
import signal
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers import exit_code, fork_child, say
from kills import kill_at

import casstore
import journal
from casstore import ArtifactId, InvalidCar, steps
from casstore.testing import FakeClock
from journal import DomainEvent
from journal.testing import RUN, _whole_run, memory_journal
from tests.command_line import casstore as command_line

A = "flow.step.a"
OTHER = UUID(int=0xA2 << 120)


def flow(jrn: journal.Journal, run_id: UUID = RUN, *, notes: int = 0, end: bool = True) -> None:
    """A run whose context links an artifact that no event names."""
    leaf = jrn.store.put_value({"leaf": str(run_id)})
    run = jrn.start_run("flow", manifest={"m": 1}, context={"n": 0, "leaf": leaf}, plan=[A], run_id=run_id)
    with run.enter(A) as attempt:
        attempt.fact("k", {"price": 17})
        attempt.complete({"n": 1, "leaf": leaf})
    if notes:
        jrn.append(run_id, jrn.head(run_id), [DomainEvent("n", {"n": n}) for n in range(notes)], epoch=run.epoch)
        run.release()
        run = jrn.resume(run_id, claim=False)
    if end:
        run.complete()


def exported(jrn: journal.Journal, run_id: UUID = RUN) -> bytes:
    out = io.BytesIO()
    jrn.export(run_id, out)
    return out.getvalue()


def told(jrn: journal.Journal, run_id: UUID = RUN) -> list[Any]:
    """What an import keeps of a run's events."""
    return [(item.run_id, item.seq, item.timestamp_ms, item.event) for item in jrn.read(run_id)]


def test_a_run_travels_whole() -> None:
    """Every kind of event comes out as it went in, times too, and every artifact with what it links to."""
    clock = FakeClock()
    with memory_journal(clock=clock) as source, memory_journal(clock=FakeClock(5.0)) as other:
        flow(other, OTHER)  # other positions, another run number
        for place, event in enumerate(_whole_run(source)):
            source.append(RUN, place, [event])
            clock.advance(1.5)
        file = exported(source)
        found = other.import_(io.BytesIO(file))
        assert (found.run_id, found.events, found.added, found.existing) == (RUN, 16, 16, False)
        assert told(other) == told(source)
        assert other.run_state(RUN) == journal.analyze(other.read(RUN)) and other.verify() == []
        for item in other.read(RUN):
            assert all(other.store.get(name) for _, name in journal.links(item.event))
        position = other.position()
        again = other.import_(io.BytesIO(file))
        assert again.existing and (again.run_id, again.events, again.root) == (RUN, 16, found.root)
        assert other.position() == position


def test_files_of_one_run_are_alike(tmp_path: Path) -> None:
    """The bytes depend on nothing but the run: also when it is exported from where it was imported to."""
    with journal.open(tmp_path / "one") as source, journal.open(tmp_path / "two") as other:
        flow(source, notes=1000)
        source.export(RUN, tmp_path / "run.car")
        flow(other, OTHER)
        other.import_(tmp_path / "run.car")
        other.export(str(RUN), tmp_path / "again.car")
        assert (tmp_path / "run.car").read_bytes() == (tmp_path / "again.car").read_bytes()
        assert len(told(other)) == source.head(RUN) > 1000
        assert source.verify() == other.verify() == [] and other.store.verify().findings == ()


def test_the_closure_comes_along() -> None:
    """Also what only a context links to; gc keeps it as a live run's, and takes the parts of the file."""
    with memory_journal() as source, memory_journal() as other:
        flow(source, end=False)
        named = {name for item in source.read(RUN) for _, name in journal.links(item.event)}
        before = set(source.store)
        root = source.export(RUN, io.BytesIO()).root
        assert set(source.store) == before | {root}
        other.import_(io.BytesIO(exported(source)))
        other.store.gc(other, grace=0, force=True)
        assert set(other.store) == before > named
        assert other.resume(RUN).next is None


def test_a_later_file_adds_the_rest() -> None:
    """A live run is written as far as it is; a file that knows less than the journal adds nothing."""
    with memory_journal() as source, memory_journal() as other:
        flow(source, end=False)
        early = exported(source)
        source.resume(RUN, steal=True)  # ends it: nothing of its plan is left
        late = exported(source)
        assert other.import_(io.BytesIO(early)).added == 5
        assert other.run_state(RUN).status is None
        found = other.import_(io.BytesIO(late))
        assert (found.events, found.added) == (source.head(RUN), source.head(RUN) - 5)
        assert told(other) == told(source)
        assert other.import_(io.BytesIO(early)).existing


@pytest.mark.parametrize("difference", ["event", "time"])
def test_other_events_are_a_conflict(difference: str) -> None:
    """A run of the same id that went another way is left as it is."""
    with memory_journal(clock=FakeClock()) as source, memory_journal(clock=FakeClock()) as other:
        flow(source)
        events = source.read(RUN)
        file = exported(source)
        other.store.import_(io.BytesIO(file))
        if difference == "event":
            other.append(RUN, 0, [*(item.event for item in events[:1]), DomainEvent("another way")])
        else:
            other.append(RUN, 0, [events[0].event], token=bytes(16))
            other._clock = FakeClock(1.0)
            other.append(RUN, 1, [events[1].event])
        before = told(other)
        with pytest.raises(journal.Conflict) as caught:
            other.import_(io.BytesIO(file))
        assert (caught.value.expected_seq, caught.value.head) == (1, 2)
        assert told(other) == before


def test_no_byte_may_change() -> None:
    """A file with one bit flipped, or cut, wherever: an error, and the journal is as it was."""
    with memory_journal() as source:
        flow(source)
        file = exported(source)
    for place in range(0, len(file), 97):
        for damaged in (file[:place], file[:place] + bytes([file[place] ^ 4]) + file[place + 1 :]):
            with memory_journal() as other:
                with pytest.raises((InvalidCar, journal.InvalidRunFile, casstore.MissingArtifact)):
                    other.import_(io.BytesIO(damaged))
                assert list(other.runs()) == [] and other.position() == 0


def part(**changes: Any) -> dict[str, Any]:
    """A part as it is written, but for some fields."""
    manifest = ArtifactId.of(b"m")
    row = [1_000, 1, ["flow", manifest.digest, manifest.digest]]
    made = {"journal_run": 1, "run_id": RUN.bytes, "first_seq": 1, "before": None, "links": [manifest], "events": [row]}
    return {key: value for key, value in {**made, **changes}.items() if value is not ...}


NOTE = [1_000, 6, ["note", b"\xa0", None]]


@pytest.mark.parametrize(
    "value",
    [
        part(journal_run=2), part(journal_run="1"), part(run_id=b"short"), part(run_id="text"), part(run_id=...),
        part(first_seq=2), part(first_seq=0), part(first_seq="1"), part(events=[]), part(events={}), part(more=1),
        part(events=[[1]]), part(events=[[1, 1, {}]]), part(events=[[-1, *part()["events"][0][1:]]]), part(links=[]),
        part(before="nothing"), part(before=ArtifactId.of(b"m")), part(events=[[0, 9, []]]),
        part(events=[[0, 1, ["Flow", b"", b""]]]), {"no": "run"}, b"no value at all \xff", [1],
    ],
)  # fmt: skip
def test_what_is_no_run_is_refused(value: Any) -> None:
    """Well-made CAR files of something else: one error, and no event."""
    with memory_journal() as source, memory_journal() as other:
        source.store.put(b"m")
        root = source.store.put(value) if isinstance(value, bytes) else source.store.put_value(value)
        out = io.BytesIO()
        source.store.export(root, out)
        with pytest.raises(journal.InvalidRunFile):
            other.import_(io.BytesIO(out.getvalue()))
        assert list(other.runs()) == []


def test_parts_of_different_runs() -> None:
    """They are not one run; and a stream that breaks a rule is refused with that rule."""
    with memory_journal() as source, memory_journal() as other:
        source.store.put(b"m")
        before = source.store.put_value(part())
        cases = [
            (part(run_id=OTHER.bytes, first_seq=2, before=before, links=[], events=[NOTE]), journal.InvalidRunFile),
            (part(first_seq=3, before=before, links=[], events=[NOTE]), journal.InvalidRunFile),
            (part(links=[], events=[NOTE]), journal.InvalidEvent),
        ]
        for value, kind in cases:
            out = io.BytesIO()
            source.store.export(source.store.put_value(value), out)
            with pytest.raises(kind):
                other.import_(io.BytesIO(out.getvalue()))
        assert list(other.runs()) == []
        out = io.BytesIO()
        source.store.export(
            source.store.put_value(part(first_seq=2, before=before, links=[], events=[NOTE])), out
        )
        assert other.import_(io.BytesIO(out.getvalue())).added == 2


def test_what_cannot_be_exported() -> None:
    """An unknown run; one whose artifacts were collected; no file is left."""
    with memory_journal() as source:
        with pytest.raises(journal.RunNotFound):
            source.export(RUN, io.BytesIO())
        flow(source)
        source.store.gc(source, grace=0, keep_completed=0, force=True)
        out = io.BytesIO()
        with pytest.raises(casstore.Collected):
            source.export(RUN, out)
        assert out.getvalue() == b""


def test_gc_between_artifacts_and_events() -> None:
    """A gc without grace, at the moment when the artifacts are there and no event names them yet, takes none."""
    with memory_journal() as source, memory_journal() as other:
        flow(source, end=False)
        file = exported(source)
        reached = []

        def listener(step: str) -> None:
            if step == "import.artifacts":
                steps.listen(None)
                reached.append(other.store.gc(other, grace=0, force=True).removed)

        steps.listen(listener)
        try:
            other.import_(io.BytesIO(file))
        finally:
            steps.listen(None)
        assert reached == [()] and other.verify() == []


def test_an_import_that_is_killed_at_every_step(tmp_path: Path) -> None:
    """At each counted step: either no event or all; what was put stays for gc or for a second import, which completes
    it; and then there is no difference to one that was not killed."""
    with journal.open(tmp_path / "source") as source:
        flow(source, notes=1000)
        source.export(RUN, tmp_path / "run.car")
        wanted = told(source)
        events = len(wanted)

    def take(home: Path, stop: int) -> None:
        with journal.open(home) as jrn:
            reached = kill_at(stop)
            jrn.import_(tmp_path / "run.car")
            say(tmp_path / "told", len(reached))

    whole = tmp_path / "whole"
    assert exit_code(fork_child(lambda: take(whole, 0))) == 0
    total = int((tmp_path / "told").read_text())
    with journal.open(whole) as jrn:
        artifacts = set(jrn.store)
    heads, left = [], []
    for stop in range(1, total + 1):
        home = tmp_path / f"home{stop}"
        assert exit_code(fork_child(lambda home=home, stop=stop: take(home, stop))) == -signal.SIGKILL
        with journal.open(home) as jrn:
            heads.append(jrn.head(RUN))
            left.append(len(jrn.store))
            assert told(jrn) == wanted[: heads[-1]] and jrn.verify() == [] and jrn.store.verify().findings == ()
            assert jrn.import_(tmp_path / "run.car").added == events - heads[-1]
            assert told(jrn) == wanted and set(jrn.store) == artifacts
            assert jrn.verify() == [] and jrn.store.verify().findings == ()
    assert set(heads) == {0, events} and heads == sorted(heads) and left[0] == 0 < left[-1]


def test_artifacts_of_a_killed_import_go_with_gc(tmp_path: Path) -> None:
    """Once the lease of the dead process has run out nothing holds them, as no event names them."""
    with journal.open(tmp_path / "source") as source:
        flow(source)
        source.export(RUN, tmp_path / "run.car")

    def take() -> None:
        with journal.open(tmp_path / "home") as jrn:
            steps.listen(lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == "import.artifacts" else None)
            jrn.import_(tmp_path / "run.car")

    assert exit_code(fork_child(take)) == -signal.SIGKILL
    with journal.open(tmp_path / "home", clock=lambda: time.time() + 2 * 3600) as jrn:
        assert jrn.head(RUN) == 0 and len(jrn.store) > 0
        jrn.store.gc(jrn, grace=0, force=True)
        assert len(jrn.store) == 0 and jrn.verify() == []


def test_a_claimed_run_gets_nothing() -> None:
    """Whoever runs it here is not overtaken by a file."""
    with memory_journal() as source, memory_journal() as other:
        flow(source, end=False)
        other.import_(io.BytesIO(exported(source)))
        other.claim(RUN, "somebody")
        source.cancel(RUN)
        with pytest.raises(journal.Claimed):
            other.import_(io.BytesIO(exported(source)))
        assert other.head(RUN) == 5


def test_a_pin_keeps_it() -> None:
    """Of a run that ended long ago gc takes the artifacts, but for pinned ones."""
    with memory_journal(clock=FakeClock(1_000.0)) as source:
        flow(source)
        file = exported(source)
    for pin in (None, "kept"):
        with memory_journal(clock=FakeClock()) as other:
            other.import_(io.BytesIO(file), pin=pin)
            other.store.gc(other, grace=0, force=True)
            assert bool(len(other.store)) is (pin is not None)


def test_on_the_command_line(tmp_path: Path) -> None:
    """export --run, then import into a home that has no journal yet, twice."""
    with journal.open(tmp_path / "one") as jrn:
        flow(jrn)
        before = told(jrn)
    with casstore.open(tmp_path / "two"):
        pass

    def run(home: str, *line: str) -> tuple[int, Any]:
        return command_line(*line, "--json", home=tmp_path / home).coded

    file = str(tmp_path / "run.car")
    code, document = run("one", "export", "--run", "a100", "-o", file)
    assert (code, document["run_id"], document["events"]) == (0, str(RUN), len(before))
    for added in (len(before), 0):
        code, document = run("two", "import", file)
        assert (code, document["run_id"], document["added"]) == (0, str(RUN), added)
    with journal.open(tmp_path / "two") as jrn:
        assert told(jrn) == before
    for line in (["export", "-o", file], ["export", "--run", "a100", "ab", "-o", file]):
        assert run("one", *line)[0] == 2
    with casstore.open(tmp_path / "one") as store:
        root = store.put_value({"no": "run"})
    assert run("one", "export", str(root), "-o", file)[0] == 0
    code, document = run("two", "import", file)
    assert code == 0 and "run_id" not in document
