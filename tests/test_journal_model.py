"""A journal on disk, and one in memory, driven at random beside an oracle in plain Python that answers alike."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers import BRIEF, python, soak_machine
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from journal_oracle import Answer, Holder, Oracle, Refused, Request, Shape, opening, resumption, shape_of

import casstore
import journal
from casstore import ArtifactId, values
from casstore.processes import current_process
from casstore.testing import FakeClock
from journal import (
    Claim,
    ClaimRequest,
    DomainEvent,
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
from journal.events import artifact_written, fact_recorded, forked_from, run_ended, run_policy
from journal.testing import memory_journal

STATES = tuple(f"model.step.s{n}" for n in range(4))
OTHER_STATE = "model.step.other"
NEVER_PUT = ArtifactId.of(b"never put")
PLANS: tuple[Any, ...] = (None, STATES, STATES[::-1], (*STATES, OTHER_STATE), STATES[:2], (), (STATES[0], STATES[0]))
ARTIFACTS = 12  # even ones are bytes, odd ones values that link to the one before

PLACES = st.sampled_from(["right"] * 12 + ["stale", "past", "zero"])
EPOCHS = st.sampled_from(["none", "current", "current", "current", "old", "later"])
TOKENS = st.sampled_from(["none", "fresh", "fresh", "again"])
MOSTLY = st.sampled_from([True] * 9 + [False])
BEGUN = (
    ["note"], ["go on", "fact"], ["go on", "go on", "go on", "fail"], ["go on", "fail for good"],
    ["go on", "go on", "end"],
)  # fmt: skip
NUMBERS = st.sampled_from(range(64))
PICKS = NUMBERS.filter(lambda number: number != 17)  # 17 stands for a run that is not there yet
KINDS = st.sampled_from(["go on"] * 8 + ["fail", "fail", "fact", "artifact", "note", "policy", "fail for good", "end"])
SHORT = st.lists(st.tuples(KINDS, NUMBERS), min_size=1, max_size=5)


def content(number: int) -> bytes:
    number %= ARTIFACTS
    if number % 2 == 0:
        return b"artifact %d " % number * 40
    return values.encode({"n": number, "child": ArtifactId.of(content(number - 1))})[0]


KNOWN = {ArtifactId.of(content(number)): content(number) for number in range(ARTIFACTS)}
LINKS = {
    ArtifactId.of(content(number)): [ArtifactId.of(content(number - 1))] if number % 2 else []
    for number in range(ARTIFACTS)
}


def artifact(number: int) -> ArtifactId:
    return ArtifactId.of(content(number))


def closure_of(ids: Any) -> set[ArtifactId]:
    return {found for name in ids for found in (name, *LINKS[name])}


def failed(state_id: str, retryable: bool, number: int, of: str | None = None) -> StateFailed:
    details = {"link": artifact(number)} if number % 3 == 0 else None
    info = ErrorInfo(code="broken", retryable=retryable, message="it broke", details=details)
    snapshot = artifact(number) if number % 3 == 1 else None
    return StateFailed(state_id=state_id, error=StateError(state_id=of, info=info), failure_snapshot_id=snapshot)


def legal_event(shape: Shape, kind: str, number: int) -> Event:
    """An event of that kind that may stand next in a run of this shape, or else another; after the end none may."""
    if shape.head == 0:
        return RunStarted(op_id="model", manifest_id=artifact(number + 5), initial_snapshot_id=artifact(number))
    if kind in ("fact", "artifact", "policy", "note") or shape.status is not None:
        return domain_event(shape, kind, number)
    if shape.open is not None:
        state_id = shape.open[0]
        if kind in ("fail", "fail for good"):
            return failed(state_id, kind == "fail", number)
        return StateCompleted(state_id=state_id, context_snapshot_id=artifact(number))
    assert shape.checkpoint is not None
    left = [state for state in STATES if state not in shape.completed]
    if shape.failure is not None:
        left = [shape.failure[0]] if shape.failure[2] else []
    if kind == "end" or not left:
        status = RunStatus.COMPLETED if shape.failure is None else list(RunStatus)[1 + number % 2]
        return RunCompleted(status=status, final_snapshot_id=shape.checkpoint if number % 2 else None)
    state_id = left[number % len(left)]
    attempt = shape.attempts.get(state_id, 0)
    return StateEntered(state_id=state_id, attempt=attempt, base_snapshot_id=shape.checkpoint)


def domain_event(shape: Shape, kind: str, number: int) -> Event:
    if kind == "fact":
        key = f"key{number % 3}"
        return fact_recorded(key, shape.facts.get(key, artifact(number)), {"n": number})
    if kind == "artifact":
        return artifact_written(artifact(number), "output")
    if kind == "policy":
        return run_policy(STATES if number % 2 else None, 1 + number % 3)
    return DomainEvent("note", {"deep": [{"link": artifact(number)}], "text": str(artifact(number + 1))}, None)


def strange_events(shape: Shape, number: int) -> dict[str, Event]:
    """For each rule an event that breaks it in some shapes, or is refused for what it names or weighs."""
    here = shape.checkpoint or artifact(0)
    state_id = shape.open[0] if shape.open else (shape.failure[0] if shape.failure else STATES[number % 4])
    other = STATES[(STATES.index(state_id) + 1) % 4] if state_id in STATES else STATES[0]
    due = shape.attempts.get(state_id, 0)
    elsewhere = artifact(number) if artifact(number) != here else artifact(number + 1)
    done = shape.completed[0] if shape.completed else state_id

    def entered(state: str, attempt: int, base: ArtifactId = here) -> StateEntered:
        return StateEntered(state_id=state, attempt=attempt, base_snapshot_id=base)

    return {
        "duplicate_run_started": RunStarted(op_id="model", manifest_id=here, initial_snapshot_id=here),
        "missing_run_started": DomainEvent("note", {}),
        "attempt_already_open": entered(state_id, due),
        "after_final_failure": entered(state_id, due),
        "after_run_completed": DomainEvent("note", {}),
        "after_retryable_failure": entered(other, shape.attempts.get(other, 0)),
        "no_open_attempt": StateCompleted(state_id=state_id, context_snapshot_id=here),
        "state_mismatch": StateCompleted(state_id=other, context_snapshot_id=here),
        "error_state_mismatch": failed(state_id, True, number, other),
        "wrong_attempt": entered(state_id, max(due + (-1, 1, 2)[number % 3], 0)),
        "wrong_base": entered(state_id, due, elsewhere),
        "state_already_completed": entered(done, shape.attempts.get(done, 0)),
        "completed_after_failure": RunCompleted(status=RunStatus.COMPLETED),
        "wrong_final_snapshot": RunCompleted(status=RunStatus.FAILED, final_snapshot_id=elsewhere),
        "run_completed_in_attempt": RunCompleted(status=RunStatus.CANCELLED, final_snapshot_id=here),
        "misplaced_fork": forked_from(UUID(int=1), 1, STATES[:1], bytes(32)),
        "fact_rebound": fact_recorded(f"key{number % 3}", elsewhere),
        "missing_artifact": DomainEvent("note", {"link": NEVER_PUT}),
        "missing_reference": DomainEvent("note", {}, NEVER_PUT),
        "event_too_large": DomainEvent("note", {"text": "x" * 2000}),
    }  # fmt: skip


NO_RULE = {"missing_artifact", "missing_reference", "event_too_large"}


def gone_process() -> str:
    """The identity of a process that ended."""
    child = python("from casstore.processes import current_process; print(current_process())")
    return child.communicate()[0].strip()


GONE = gone_process()
OWNERS = st.sampled_from([None, None, "somebody", GONE])


class JournalMachine(RuleBasedStateMachine):
    """Each rule asks the oracle first, then the journal, and compares."""

    def open(self) -> journal.Journal:
        self.home = Path(tempfile.mkdtemp(prefix="model"))
        return self.reopened()

    def reopened(self) -> journal.Journal:
        self.store = casstore.open(self.home, clock=self.clock)
        return journal.open(self.home, store=self.store, clock=self.clock)

    def close(self) -> None:
        self.jrn.close()
        self.store.close()

    def teardown(self) -> None:
        self.close()
        shutil.rmtree(self.home)

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock()
        self.jrn = self.open()
        self.oracle = Oracle(current_process(), GONE)
        self.present: set[ArtifactId] = set()
        self.asked: list[tuple[list[Request], bytes]] = []  # appends with a token that were made
        self.claims: list[Claim] = []
        self.count = 0
        for kinds in BEGUN:
            self.start(0, STATES if len(kinds) % 2 else None, 3, None, False)
            self._go_on(0, [(kind, 1) for kind in kinds], "right", "current", "fresh", True)
        # inside the opening of a run with a plan; of one that completed a state; inside the opening of that fork
        for pick, at in ((3, 1), (3, 5), (0, 1)):
            self.fork(pick, at, False, "new")

    # -- plumbing

    def new_number(self) -> int:
        self.count += 1
        return self.count

    def now_ms(self) -> int:
        return int(self.clock.now * 1000)

    def some_run(self, pick: int) -> UUID:
        """A live run more often than one that ended; sometimes one that does not exist yet."""
        known = list(self.oracle.runs)
        live = [run_id for run_id in known if self.shape(run_id).status is None]
        if pick == 17:
            return UUID(int=self.new_number() << 64)
        wanted = live if live and pick < 52 else known
        return wanted[-1 - pick % len(wanted)]

    def shape(self, run_id: UUID) -> Shape:
        run = self.oracle.runs.get(run_id)
        return Shape() if run is None else run.shape

    def put_named(self, events: Any) -> None:
        for event in events:
            for _, name in journal.links(event):
                for wanted in (*LINKS.get(name, ()), name):
                    if wanted in KNOWN:
                        self.jrn.store.put(KNOWN[wanted])
                        self.present.add(wanted)

    def missing(self, requests: list[Request]) -> set[ArtifactId]:
        named = {name for request in requests for event in request.events for _, name in journal.links(event)}
        return named - self.present

    def epoch(self, run_id: UUID, which: str) -> int | None:
        run = self.oracle.runs.get(run_id)
        current = 0 if run is None else run.epoch
        return {"none": None, "current": current, "old": max(current - 1, 0), "later": current + 1}[which]

    def outcome(self, call: Any) -> Any:
        """What a call answers, or how it refuses."""
        try:
            return call()
        except (journal.JournalError, casstore.StoreError) as error:
            for kind in type(error).__mro__:
                if kind.__name__ in EXPECTED:
                    return Refused(kind.__name__, error.code)
            raise

    def append(self, requests: list[Request], token: bytes | None, *, many: bool = False) -> Any:
        """Both append; the answers are the same."""
        expected = self.oracle.append(requests, token, self.now_ms(), self.missing(requests))
        if many:
            batches = {request.run_id: (request.expected, request.events) for request in requests}
            epochs = {request.run_id: request.epoch for request in requests if request.epoch is not None}
            found = self.outcome(lambda: self.jrn.append_many(batches, token=token, epochs=epochs))
        else:
            (one,) = requests
            found = self.outcome(
                lambda: self.jrn.append(
                    one.run_id, one.expected, one.events, token=token, epoch=one.epoch, claim=one.claim
                )
            )
            if not isinstance(found, Refused):
                found = {one.run_id: found}
        if not isinstance(found, Refused):
            self.claims += [answer.claim for answer in found.values() if answer.claim is not None]
            found = {
                run_id: Answer(answer.first_seq, answer.last_seq, answer.position, answer.existing,
                               None if answer.claim is None else answer.claim.epoch)
                for run_id, answer in found.items()
            }  # fmt: skip
            if token is not None and any(request.events for request in requests):
                self.asked.append((requests, token))
        assert found == expected
        return found

    def legal_batch(self, run_id: UUID, steps: list[tuple[str, int]]) -> tuple[Event, ...]:
        shape = self.shape(run_id).copy()
        events = []
        for kind, number in steps:
            event = legal_event(shape, kind, number)
            events.append(event)
            if shape.broken(event) is None:
                shape.take(event)
        return tuple(events)

    def expected_seq(self, run_id: UUID, place: str) -> int:
        head = self.shape(run_id).head
        return {"right": head, "stale": max(head - 1, 0), "past": head + 2, "zero": 0}[place]

    # -- rules

    @rule(number=NUMBERS, plan=st.sampled_from(PLANS[:4]), limit=st.integers(1, 3), owner=OWNERS, claim=st.booleans())
    def start(self, number: int, plan: Any, limit: int, owner: str | None, claim: bool) -> None:
        events = (
            RunStarted(op_id="model", manifest_id=artifact(number // 2), initial_snapshot_id=artifact(number)),
            run_policy(plan, limit),
        )
        self.put_named(events)
        request = ClaimRequest(owner=owner, ttl_ms=30_000 if owner else None) if claim else None
        run_id = UUID(int=self.new_number() << 64)
        self.append([Request(run_id, 0, events, claim=request)], bytes(15) + b"s")

    def _go_on(self, pick: int, steps: Any, place: str, epoch: str, token: str, put: bool) -> None:
        run_id = self.some_run(pick)
        events = self.legal_batch(run_id, steps)
        if put:
            self.put_named(events)
        chosen = {"none": None, "fresh": self.new_number().to_bytes(16), "again": bytes(15) + b"s"}[token]
        request = Request(run_id, self.expected_seq(run_id, place), events, epoch=self.epoch(run_id, epoch))
        self.append([request], chosen)

    @rule(pick=NUMBERS, steps=SHORT, place=PLACES, epoch=EPOCHS, token=TOKENS, put=MOSTLY)
    def go_on(self, pick: int, steps: Any, place: str, epoch: str, token: str, put: bool) -> None:
        self._go_on(pick, steps, place, epoch, token, put)

    @rule(pick=PICKS, steps=SHORT)
    def go_on_well(self, pick: int, steps: Any) -> None:
        self._go_on(pick, steps, "right", "current", "fresh", True)

    @rule(pick=PICKS, steps=SHORT, token=TOKENS)
    def go_on_as_well(self, pick: int, steps: Any, token: str) -> None:
        self._go_on(pick, steps, "right", "current", token, True)

    @rule(pick=NUMBERS, steps=st.lists(st.tuples(KINDS, NUMBERS), max_size=3), number=NUMBERS)
    def break_every_rule(self, pick: int, steps: Any, number: int) -> None:
        """A legal batch, and then an event that breaks a rule: for each rule that can be broken there."""
        run_id = self.some_run(pick)
        before = self.legal_batch(run_id, steps)
        shape = self.shape(run_id).copy()
        for event in before:
            if shape.broken(event) is None:
                shape.take(event)
        self.put_named(before)
        for place in range(3):
            for word, event in strange_events(shape, number + place).items():
                if word in NO_RULE or shape.broken(event) == word:
                    self.put_named([event])
                    asked = Request(run_id, self.shape(run_id).head, (*before, event), self.epoch(run_id, "current"))
                    assert isinstance(self.append([asked], None), Refused)

    @precondition(lambda self: self.asked)
    @rule(pick=NUMBERS, epoch=EPOCHS)
    def ask_again(self, pick: int, epoch: str) -> None:
        """The answer was lost, or somebody else has the same idea, or takes the same token for another one."""
        requests, token = self.asked[-1 - pick % len(self.asked)]
        for how in ("the same", "no token", "another token", "shorter", "longer", "other events", "elsewhere"):
            again = [
                Request(one.run_id, one.expected, one.events, self.epoch(one.run_id, epoch)) for one in requests
            ]
            last, chosen = again[-1], {"no token": None, "another token": self.new_number().to_bytes(16)}
            if how == "shorter":
                last.events = last.events[:-1]
            elif how == "longer":
                last.events = (*last.events, DomainEvent("note", {}))
            elif how == "other events":
                last.events = (*last.events[:-1], DomainEvent("other", {}))
            elif how == "elsewhere":
                last.expected += 1
            self.append(again, chosen.get(how, token), many=len(again) > 1)

    @rule(picks=st.lists(NUMBERS, min_size=2, max_size=3), steps=SHORT, places=st.tuples(PLACES, PLACES, PLACES),
          epoch=st.sampled_from(["current", "current", "none", "old"]), token=st.booleans())  # fmt: skip
    def append_many(self, picks: Any, steps: Any, places: Any, epoch: str, token: bool) -> None:
        runs = dict.fromkeys(self.some_run(pick) for pick in picks)
        requests = [
            Request(
                run_id, self.expected_seq(run_id, place), self.legal_batch(run_id, steps), self.epoch(run_id, epoch)
            )
            for run_id, place in zip(runs, places, strict=False)
        ]
        self.put_named(event for request in requests for event in request.events)
        self.append(requests, self.new_number().to_bytes(16) if token else None, many=True)

    @rule(pick=PICKS, steps=SHORT, fault=st.sampled_from(["none", "gap", "another run", "no claim"]))
    def bring_in(self, pick: int, steps: Any, fault: str) -> None:
        """Recorded events of elsewhere say themselves where they belong."""
        run_id = self.some_run(pick)
        head, events = self.shape(run_id).head, self.legal_batch(run_id, steps)
        self.put_named(events)
        recorded = [
            RecordedEvent(
                run_id=UUID(int=9) if fault == "another run" else run_id, seq=head + place + (fault == "gap"),
                position=place, timestamp_ms=self.now_ms(), event=event,
            )
            for place, event in enumerate(events, 1)
        ]  # fmt: skip
        if fault in ("gap", "another run"):
            word = "bad_sequence" if fault == "gap" else "wrong_run_id"
            for expected in (head, head + 5 if fault == "another run" else head):
                found = self.outcome(lambda expected=expected: self.jrn.append(run_id, expected, recorded))
                assert found == Refused("InvalidEvent", word)
            return
        request = Request(run_id, head, events, epoch=self.epoch(run_id, "none" if fault == "no claim" else "current"))
        expected_answer = self.oracle.append([request], None, self.now_ms(), self.missing([request]))
        found = self.outcome(lambda: self.jrn.append(run_id, head, recorded, epoch=request.epoch))
        if isinstance(expected_answer, Refused):
            assert found == expected_answer
        else:
            answer = expected_answer[run_id]
            assert (found.last_seq, found.position, found.existing) == (answer.last_seq, answer.position, False)

    @rule(pick=NUMBERS, place=PLACES, epoch=EPOCHS)
    def append_nothing(self, pick: int, place: str, epoch: str) -> None:
        run_id = self.some_run(pick)
        self.append([Request(run_id, self.expected_seq(run_id, place), (), epoch=self.epoch(run_id, epoch))], None)

    @rule(pick=NUMBERS, owner=OWNERS, ttl=st.sampled_from([None, 1, 30, 300]), steal=st.booleans())
    def claim(self, pick: int, owner: str | None, ttl: int | None, steal: bool) -> None:
        run_id = self.some_run(pick)
        shape = self.shape(run_id)
        request = ClaimRequest(steal=steal, owner=owner, ttl_ms=None if ttl is None else ttl * 1000)
        if steal and shape.head and shape.status is None:
            self.append([Request(run_id, shape.head, (), claim=request)], None)
            return
        found = self.outcome(lambda: self.jrn.claim(run_id, owner, ttl))
        if shape.head == 0:
            assert found == Refused("RunNotFound", "run_not_found")
        elif shape.status is not None:
            assert found == Refused("InvalidEvent", "after_run_completed")
        else:
            asked = Request(run_id, shape.head, (), claim=ClaimRequest(owner=owner, ttl_ms=request.ttl_ms))
            expected = self.oracle.append([asked], None, self.now_ms(), set())
            if isinstance(expected, Refused):
                assert found == expected
            else:
                run = self.oracle.runs[run_id]
                assert run.holder is not None
                assert (found.epoch, found.owner, found.until_ms) == (run.epoch, run.holder.owner, run.holder.until_ms)
                self.claims.append(found)

    @precondition(lambda self: self.claims)
    @rule(pick=NUMBERS, ttl=st.sampled_from([None, 1, 300]), release=st.booleans())
    def renew_or_release(self, pick: int, ttl: int | None, release: bool) -> None:
        claim = self.claims[-1 - pick % len(self.claims)]
        run = self.oracle.runs[claim.run_id]
        valid = run.epoch == claim.epoch and run.shape.status is None
        if release:
            self.jrn.release(claim)
            if valid:
                run.holder = None
            return
        found = self.outcome(lambda: self.jrn.renew(claim, ttl))
        if not valid:
            assert found == Refused("Fenced", "fenced")
            return
        own = 60_000 if run.holder is None else run.holder.ttl_ms
        ttl_ms = own if ttl is None else ttl * 1000
        assert found.until_ms == self.now_ms() + ttl_ms
        run.holder = Holder(claim.owner, found.until_ms, ttl_ms)
        self.claims.append(found)

    @rule(seconds=st.sampled_from([0.25, 1, 29, 30, 60, 400]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: len(self.oracle.runs) > 2)
    @rule(pick=NUMBERS, reason=st.sampled_from(["cancelled", "too long " * 300]))
    def cancel(self, pick: int, reason: str) -> None:
        run_id = self.some_run(pick)
        shape = self.shape(run_id)
        found = self.outcome(lambda: self.jrn.cancel(run_id, reason))
        if shape.head == 0:
            assert found == Refused("RunNotFound", "run_not_found")
        elif shape.status is RunStatus.CANCELLED:
            assert found.status is RunStatus.CANCELLED and self.jrn.head(run_id) == shape.head
        elif shape.status is not None:
            assert found == Refused("InvalidEvent", "after_run_completed")
        else:
            recorded = [item.event for item in self.jrn.read(run_id, shape.head + 1)]
            cut = recorded[-2].payload["reason"]  # type: ignore[union-attr]
            assert cut == reason or (cut.endswith("…") and reason.startswith(cut[:-1]))
            end = RunCompleted(status=RunStatus.CANCELLED, final_snapshot_id=shape.checkpoint)
            events: list[Event] = [run_ended(cut), end]
            if shape.open is not None:
                info = recorded[0].error.info  # type: ignore[union-attr]
                assert (info.code, info.retryable) == ("cancelled", False)
                events.insert(0, StateFailed(state_id=shape.open[0], error=StateError(info=info)))
            asked = Request(run_id, shape.head, tuple(events), claim=ClaimRequest(steal=True))
            assert not isinstance(self.oracle.append([asked], None, self.now_ms(), set()), Refused)

    @rule(pick=PICKS, at=NUMBERS, claim=st.booleans(), into=st.sampled_from(["new", "new", "new", "known"]))
    def fork(self, pick: int, at: int, claim: bool, into: str) -> None:
        source = self.some_run(pick)
        run = self.oracle.runs[source]
        at_seq = at % (run.shape.head + 2)
        new_id = source if into == "known" else UUID(int=self.new_number() << 64)
        found = self.outcome(lambda: self.jrn.fork(source, at_seq, new_id, claim=claim))
        if not 1 <= at_seq <= run.shape.head:
            assert found == Refused("InvalidArgument", "invalid_argument")
            return
        kept = run.events[:at_seq]
        shape = shape_of(run.events[: max(at_seq, opening(run.events))])
        assert shape.checkpoint is not None and isinstance(kept[0], RunStarted)
        if shape.checkpoint not in self.present:
            assert found == Refused("Collected", "collected")
            return
        if into == "known":
            assert found.type == "Conflict"
            return
        chain = self.jrn.chain_head(source, at_seq)
        events = (
            RunStarted(op_id="model", manifest_id=kept[0].manifest_id, initial_snapshot_id=shape.checkpoint),
            forked_from(source, at_seq, shape.completed, chain),
            run_policy(shape.plan, shape.max_attempts),
            *(event for event in kept if isinstance(event, DomainEvent) and event.name == "fact_recorded"),
        )
        asked = Request(new_id, 0, events, claim=ClaimRequest() if claim else None)
        expected = self.oracle.append([asked], None, self.now_ms(), self.missing([asked]))
        if isinstance(expected, Refused):
            assert found == expected
        else:
            assert found.state.completed == shape.completed and found.epoch == (1 if claim else None)

    @rule(pick=NUMBERS, plan=st.sampled_from((None, None, None, *PLANS)), limit=st.sampled_from([None, None, 1, 2, 5]),
          dry_run=st.booleans(), steal=st.booleans(), claim=st.booleans())  # fmt: skip
    def resume(self, pick: int, plan: Any, limit: int | None, dry_run: bool, steal: bool, claim: bool) -> None:
        run_id = self.some_run(pick)
        shape = self.shape(run_id)
        found = self.outcome(
            lambda: self.jrn.resume(run_id, plan, limit, dry_run=dry_run, steal=steal, claim=claim)  # type: ignore[call-overload]
        )
        if shape.head == 0:
            assert found == Refused("RunNotFound", "run_not_found")
            return
        expected = resumption(shape, plan, limit)
        if isinstance(expected, Refused):
            assert found == expected
            return
        decision, events = expected
        if dry_run:
            assert (found.decision, found.would_append) == (decision, events)
            return
        if shape.status is None and (claim or events):
            asked = Request(run_id, shape.head, events, claim=ClaimRequest(steal=steal) if claim else None)
            answer = self.oracle.append([asked], None, self.now_ms(), set())
            if isinstance(answer, Refused):
                assert found == answer
                return
        assert (found.decision, found.head) == (decision, self.oracle.runs[run_id].shape.head)
        held = self.oracle.runs[run_id].holder
        assert found.epoch == (self.oracle.runs[run_id].epoch if claim and held else None)

    @rule(number=NUMBERS)
    def put(self, number: int) -> None:
        self.put_named([DomainEvent("note", {}, artifact(number))])

    @rule(keep_s=st.sampled_from([0, 0, 30, 1000]), dry_run=st.booleans())
    def collect(self, keep_s: int, dry_run: bool) -> None:
        """With no grace what stays is exactly what live runs, and those that ended lately, need."""
        named: set[ArtifactId] = set()
        for run in self.oracle.runs.values():
            ids = {name for event in run.events for _, name in journal.links(event)}
            if run.shape.status is None:
                named |= ids
            elif keep_s and run.ended_ms >= (int(self.clock.now) - keep_s) * 1000:
                named |= ids & self.present
        kept = closure_of(named)
        assert kept <= self.present
        preview = self.jrn.store.gc(self.jrn, grace=0, keep_completed=keep_s, dry_run=True)
        assert {name for name, _ in preview.removed} == self.present - kept
        if not dry_run:
            report = self.jrn.store.gc(self.jrn, grace=0, keep_completed=keep_s)
            assert set(report.removed) == set(preview.removed)
            self.present = kept
            assert self.jrn.store.verify().findings == ()

    @rule()
    def reopen(self) -> None:
        self.close()
        self.jrn = self.reopened()

    # -- what always holds

    @invariant()
    def same(self) -> None:
        jrn, oracle = self.jrn, self.oracle
        fed = list(jrn.feed())
        assert [item.position for item in fed] == list(range(1, len(oracle.feed) + 1))
        assert [(item.run_id, item.seq, item.event) for item in fed] == oracle.feed
        assert jrn.position() == len(fed)
        for run_id, run in oracle.runs.items():
            recorded = jrn.read(run_id)
            assert [item.event for item in recorded] == run.events
            assert [item.seq for item in recorded] == list(range(1, len(run.events) + 1))
            assert [item.position for item in recorded] == run.positions
            assert jrn.head(run_id) == len(run.events)
            state, shape = jrn.run_state(run_id), run.shape
            assert state == journal.analyze(recorded)
            attempt, failure = state.open_attempt, state.last_failure
            assert (state.status, state.checkpoint_id, state.final_snapshot_id) == (
                shape.status, shape.checkpoint, shape.final,
            )  # fmt: skip
            assert (None if attempt is None else (attempt.state_id, attempt.attempt)) == shape.open
            assert (
                None if failure is None else (failure.state_id, failure.attempt, failure.error.info.retryable)
            ) == shape.failure
            assert (state.completed, state.attempts, state.facts) == (shape.completed, shape.attempts, shape.facts)
            assert (state.plan, state.max_attempts) == (shape.plan, shape.max_attempts)
        assert jrn.verify() == []
        assert set(jrn.store) == self.present
        for run in oracle.runs.values():
            if run.shape.status is None:
                for event in run.events:
                    for _, name in journal.links(event):
                        for needed in (name, *LINKS[name]):
                            assert jrn.store.get(needed) == KNOWN[needed]
        live = {run_id for run_id, run in oracle.runs.items() if run.shape.status is None}
        assert {row.run_id for row in jrn.runs(status="live")} == live
        free = {run_id for run_id in live if oracle.is_free(oracle.runs[run_id], self.now_ms())}
        assert {row.run_id for row in jrn.recoverable()} == free


class MemoryJournalMachine(JournalMachine):
    """The same of the journal that keeps everything in memory; there a reopened one would be another."""

    def open(self) -> journal.Journal:
        return memory_journal(clock=self.clock)

    def reopened(self) -> journal.Journal:
        return self.jrn

    def close(self) -> None:
        """It stays open."""

    def teardown(self) -> None:
        self.jrn.close()


EXPECTED = {
    "Fenced", "Claimed", "Conflict", "EventTooLarge", "MissingArtifact", "RunNotFound", "InvalidPlan",
    "StateNotInPlan", "InvalidArgument", "Collected", "InvalidEvent",
}  # fmt: skip

MACHINES = [JournalMachine, MemoryJournalMachine]
TestJournalOnDisk = JournalMachine.TestCase
TestJournalOnDisk.settings = BRIEF
TestJournalInMemory = MemoryJournalMachine.TestCase
TestJournalInMemory.settings = BRIEF


def test_the_claim_of_a_run_that_ended_is_not_renewed() -> None:
    """As `renew` says: Fenced, somebody took it over or the run ended."""
    with memory_journal(clock=FakeClock()) as jrn:
        name = jrn.store.put(b"x")
        started = RunStarted(op_id="model", manifest_id=name, initial_snapshot_id=name)
        claim = jrn.append(UUID(int=1), 0, [started], claim=ClaimRequest()).claim
        assert claim is not None
        jrn.append(UUID(int=1), 1, [RunCompleted(status=RunStatus.COMPLETED)], epoch=claim.epoch)
        with pytest.raises(journal.Fenced):
            jrn.renew(claim)


@pytest.mark.soak
@pytest.mark.parametrize("machine", MACHINES)
def test_for_long(machine: type[RuleBasedStateMachine]) -> None:
    """Ever new sequences for SOAK_SECONDS."""
    assert soak_machine(machine)
