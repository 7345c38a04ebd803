"""A claim that changes between the look of an append and its commit: the commit goes by the claim that is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

import journal
from casstore.tables import MemoryTables
from casstore.testing import FakeClock, memory_store
from journal import ClaimRequest, DomainEvent, RunStarted
from journal.log import Journal
from journal.rows import TABLES
from journal.table_backend import TableBackend

RUN = UUID(int=1)


class SlowBackend:
    """A backend whose next commit has to wait for the lock: somebody else is faster."""

    def __init__(self, inner: TableBackend) -> None:
        self.inner = inner
        self.meanwhile: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def commit(self, *arguments: Any) -> int:
        call, self.meanwhile = self.meanwhile, None
        if call is not None:
            call()
        return self.inner.commit(*arguments)


class TwoHandles:
    """A run under a claim of one second, the handle of its owner, and another one that is slow."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        inner, store = TableBackend(MemoryTables(TABLES)), memory_store(clock=self.clock)
        inner.bind(store.uuid)
        self.backend = SlowBackend(inner)
        self.owner = Journal(inner, store, name="owner", clock=self.clock)
        self.other = Journal(self.backend, store, name="other", clock=self.clock)  # type: ignore[arg-type]
        name = store.put(b"x")
        started = RunStarted(op_id="flow", manifest_id=name, initial_snapshot_id=name)
        claim = self.owner.append(RUN, 0, [started], claim=ClaimRequest(owner="somebody", ttl_ms=1000)).claim
        assert claim is not None
        self.claim = claim


def test_a_claim_renewed_meanwhile_keeps_others_out() -> None:
    """Expired at the look, renewed before the commit: Claimed, and nothing is written."""
    both = TwoHandles()
    both.clock.advance(2)
    both.backend.meanwhile = lambda: both.owner.renew(both.claim, 60)
    with pytest.raises(journal.Claimed):
        both.other.append(RUN, 1, [DomainEvent("note", {})])
    assert both.owner.head(RUN) == 1


def test_a_claim_released_meanwhile_stays_released() -> None:
    """Given back by another thread of the owner while an append was on its way: nobody holds the run."""
    both = TwoHandles()
    both.backend.meanwhile = lambda: both.owner.release(both.claim)
    both.other.append(RUN, 1, [DomainEvent("note", {})], epoch=both.claim.epoch)
    assert [row.run_id for row in both.owner.recoverable()] == [RUN]


def test_who_holds_a_run() -> None:
    """Told until it expires, is given back or the run ends; renewed for as long as it was taken for."""
    both = TwoHandles()
    assert both.other.holder(RUN) == both.claim and both.claim.owner == "somebody"
    both.clock.advance(0.6)
    renewed = both.owner.renew(both.claim)
    assert renewed.until_ms == both.claim.until_ms + 600 and both.other.holder(RUN) == renewed
    both.clock.advance(1.1)
    assert both.other.holder(RUN) is None
    assert both.owner.renew(both.claim, 5) == both.other.holder(RUN)
    both.owner.release(both.claim)
    assert both.other.holder(RUN) is None
    with pytest.raises(journal.RunNotFound):
        both.other.holder(UUID(int=2))


@pytest.mark.parametrize("options", [{"claim": "yes"}, {"claim": None}, {"retryable": 5}])
def test_options_that_are_none(options: dict[str, Any]) -> None:
    """Refused before anything is written, wherever a run begins or goes on."""
    jrn = TwoHandles().owner
    for call in (
        lambda: jrn.start_run("op", manifest={}, context={}, **options),
        lambda: jrn.resume(RUN, steal=True, **options), lambda: jrn.fork(RUN, 1, **options),
    ):
        with pytest.raises(journal.InvalidArgument):
            call()
    assert jrn.head(RUN) == 1 and len([*jrn.runs()]) == 1
