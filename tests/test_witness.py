"""What a journal answers to a gc that asks whether something went away: never "no" when something did."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pytest
from helpers import BRIEF
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import journal
from casstore import ArtifactId, Retention, WitnessSource, steps
from casstore.gc import Collector
from casstore.testing import FakeClock
from journal import witness
from journal.testing import memory_journal

A, B = "flow.step.a", "flow.step.b"
RUNS = [UUID(int=n << 120) for n in range(1, 8)]


def begin(jrn: journal.Journal, run: UUID, op: str = "flow") -> Any:
    plan = [f"{op}.step.a", f"{op}.step.b"]
    return jrn.start_run(op, manifest={"run": str(run)}, context={"n": 0}, plan=plan, run_id=run)


def step(run: Any, value: int) -> None:
    with run.enter(run.next) as attempt:
        attempt.fact(f"k{value}", value)
        attempt.complete({"n": value})


def names(jrn: journal.Journal, retention: Retention) -> set[ArtifactId]:
    return {root.id for root in jrn.retained_roots(retention)}


class Asked(RuleBasedStateMachine):
    """Runs that start, go on, end, and are forgotten; a clock; and questions with any retention."""

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock()
        self.jrn = memory_journal(clock=self.clock)
        self.running: dict[UUID, Any] = {}
        self.seen: list[tuple[bytes, set[ArtifactId], int]] = []

    def teardown(self) -> None:
        self.jrn.close()

    @rule(number=st.integers(0, 6))
    def start_or_go_on(self, number: int) -> None:
        name = RUNS[number]
        if name in self.running:
            run = self.running[name]
            if run.next is not None:
                step(run, number)
        elif not self.jrn.head(name):
            self.running[name] = begin(self.jrn, name, op=("flow", "other")[number % 2])

    @rule(number=st.integers(0, 6), cancel=st.booleans())
    def end(self, number: int, cancel: bool) -> None:
        run = self.running.get(RUNS[number])
        if run is not None and (cancel or run.next is None):
            del self.running[RUNS[number]]
            self.jrn.cancel(RUNS[number], "enough") if cancel else run.complete()

    @rule(number=st.integers(0, 6))
    def forget(self, number: int) -> None:
        if RUNS[number] not in self.running and self.jrn.head(RUNS[number]):
            self.jrn.forget(RUNS[number])

    @rule(seconds=st.sampled_from([1, 60, 100]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    RETENTIONS = st.tuples(st.sampled_from([None, 0, 100, 100, 1000]), st.sampled_from([0, 0, 1, 2]), st.booleans())

    def retention(self, kept: tuple[int | None, int, bool]) -> Retention:
        age_s, keep_last, final_only = kept
        after_ms = None if age_s is None else int((self.clock.now - age_s) * 1000)
        return Retention(completed_after_ms=after_ms, keep_last=keep_last, final_only=final_only)

    @rule(kept=RETENTIONS)
    def ask(self, kept: tuple[int | None, int, bool]) -> None:
        """Of all earlier moments: where it says what came since, that and all that was named then is named now."""
        retention = self.retention(kept)
        now = names(self.jrn, retention)
        for packed, then, position in self.seen:
            late = self.jrn.roots_since(packed, retention)
            if late is not None:
                assert {root.id for root in late} == {root.id for root in self.jrn.roots_after(position)[1]}
                assert now >= then | {root.id for root in late}
        packed = self.jrn.witness(retention)
        assert self.jrn.roots_since(packed, retention) == []
        self.seen.append((packed, now, self.jrn.position()))


TestAsked = Asked.TestCase
TestAsked.settings = BRIEF


@pytest.fixture
def jrn() -> Any:
    with memory_journal(clock=FakeClock()) as found:
        yield found


def test_a_journal_is_a_witness(jrn: journal.Journal) -> None:
    """So gc asks it."""
    assert isinstance(jrn, WitnessSource)


def test_live_runs_that_go_on_and_new_ones_are_no_loss(jrn: journal.Journal) -> None:
    """Steps, facts, failures, retries, new runs, and runs that end and are kept."""
    run = begin(jrn, RUNS[0])
    kept = Retention(completed_after_ms=1)
    before = jrn.witness(kept), names(jrn, kept)
    step(run, 1)
    begin(jrn, RUNS[1])
    step(run, 2)
    run.complete()
    late = jrn.roots_since(before[0], kept)
    assert late is not None and {root.id for root in late} | before[1] == names(jrn, kept)


def test_a_run_that_ended_is_a_loss_without_retention(jrn: journal.Journal) -> None:
    """As is one that the retention keeps in part, or that makes another give way."""
    begin(jrn, RUNS[0])
    kinds = [Retention(), Retention(keep_last=1), Retention(completed_after_ms=1, final_only=True)]
    packed = [jrn.witness(kept) for kept in kinds]
    jrn.cancel(RUNS[0], "enough")
    assert [jrn.roots_since(was, kept) for was, kept in zip(packed, kinds, strict=True)] == [None] * 3


def test_a_rebuilt_run_is_a_loss(jrn: Any) -> None:
    """Its row said that it lives, its events that it ended."""
    begin(jrn, RUNS[0])
    jrn.cancel(RUNS[0], "enough")
    with jrn._backend._tables.write() as txn:
        (key,) = [key for key, _ in txn.scan(b"done1")]
        txn.delete(b"done1", key)
        txn.put(b"live1", key[-2:], b"")
    packed = jrn.witness(Retention())
    assert jrn.roots_since(packed, Retention()) == []
    jrn.rebuild(force=True)
    assert jrn.roots_since(packed, Retention()) is None


def test_another_journal_is_no_witness_of_this_one(tmp_path: Path) -> None:
    """An older copy that went on differently has other events at the same positions."""
    home, clock = tmp_path / "home", FakeClock()
    with journal.open(home, clock=clock) as jrn:
        begin(jrn, RUNS[0])
    shutil.copytree(home / "journal", tmp_path / "older")
    with journal.open(home, clock=clock) as jrn:
        begin(jrn, RUNS[1])
        packed = jrn.witness(Retention())
    shutil.rmtree(home / "journal")
    shutil.copytree(tmp_path / "older", home / "journal")
    with journal.open(home, clock=clock) as jrn:
        assert jrn.roots_since(packed, Retention()) is None  # shorter
        begin(jrn, RUNS[2])
        assert jrn.roots_since(packed, Retention()) is None
        begin(jrn, RUNS[1])
        assert jrn.roots_since(packed, Retention()) is None


@pytest.mark.parametrize("packed", [b"", b"\x01", b"\x02" * 64, bytes(66)])
def test_what_is_no_witness_says_nothing(jrn: journal.Journal, packed: bytes) -> None:
    """Another version's, or a damaged one."""
    assert jrn.roots_since(packed, Retention()) is None


def test_too_many_events_are_not_gone_through(jrn: journal.Journal) -> None:
    """Marking everything costs no more then."""
    packed = jrn.witness(Retention())
    begin(jrn, RUNS[0])
    with patch.object(witness, "EVENTS_MAX", 1):
        assert jrn.roots_since(packed, Retention()) is None
    assert jrn.roots_since(packed, Retention()) is not None


def test_gc_of_a_home_with_nothing_to_do(tmp_path: Path) -> None:
    """A journal on disk: runs that go on cost no mark, one that ends does; the artifacts of the others stay."""
    with journal.open(tmp_path / "home", clock=FakeClock()) as jrn:
        runs = [begin(jrn, name) for name in RUNS[:3]]
        assert not jrn.store.gc(jrn, grace=0, keep_completed=0).incremental
        with patch.object(Collector, "_mark", lambda *_: 1 // 0):
            for run in runs:
                step(run, 1)
                assert jrn.store.gc(jrn, grace=0, keep_completed=0).incremental
        jrn.cancel(RUNS[0], "enough")
        report = jrn.store.gc(jrn, grace=0, keep_completed=0)
        assert not report.incremental and report.removed
        assert jrn.store.gc(jrn, grace=0, keep_completed=0).incremental
        assert jrn.verify() == [] and jrn.store.verify().findings == ()


@pytest.mark.parametrize("reached", ["gc.opened", "gc.glanced", "gc.closed"])
def test_what_is_staged_while_gc_runs_costs_no_mark(tmp_path: Path, reached: str) -> None:
    """Named before it was in the store: the next gc settles it, finds it new, and knows its event; or it is staged
    when gc looks, and what it needs is looked at."""
    home, clock, left = tmp_path / "home", FakeClock(), list(RUNS)
    with journal.open(home, clock=clock) as jrn:
        begin(jrn, left.pop())
        jrn.store.gc(jrn, grace=0, keep_completed=0)
        for _ in range(3):
            staged: list[int] = []

            def go_on(seen: str, staged: list[int] = staged) -> None:
                if seen == reached and not staged:
                    step(begin(jrn, left.pop()), 1)
                    staged.append(len(jrn.store.staging.hidden()))

            steps.listen(go_on)
            try:
                report = jrn.store.gc(jrn, grace=0, keep_completed=0)
            finally:
                steps.listen(None)
            assert report.incremental and staged[0] > 0
        assert jrn.verify() == [] and jrn.store.verify().findings == ()
