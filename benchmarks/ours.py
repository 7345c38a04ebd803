"""Ours in the step workloads: the recorder, one append a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import journal
from benchmarks.data import Context
from benchmarks.measure import OURS
from benchmarks.peers import Peer, run_uuid


class Ours(Peer):
    """A run of the journal: `attempt.complete(context, then=next)` a step."""

    name = OURS
    note = "complete(context, then=next): one append a step"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._journal = journal.open(home / "home")
        self._attempts: dict[int, journal.Attempt] = {}

    def begin(self, run: int, context: Context) -> None:
        started = self._journal.start_run("bench", manifest={"run": run}, context=context, run_id=run_uuid(run))
        self._attempts[run] = started.enter(state(0))

    def step(self, run: int, number: int, context: Context) -> None:
        attempt, following = self._attempts[run], state(number + 1)
        attempt.complete(context, then=following)
        self._attempts[run] = attempt.run.enter(following)  # the one that was entered by complete: nothing is written

    def recover(self, run: int) -> Context:
        checkpoint = self._journal.run_state(run_uuid(run)).checkpoint_id
        assert checkpoint is not None
        found: Context = self._journal.store.get_value(checkpoint)
        return found

    def read(self, run: int, number: int) -> Context:
        seq = 2 * number + 4  # after RunStarted, run_policy and the first StateEntered; then two events a step
        (completed,) = self._journal.read(run_uuid(run), seq, seq)
        assert isinstance(completed.event, journal.StateCompleted)
        found: Context = self._journal.store.get_value(completed.event.context_snapshot_id)
        return found

    def commits(self) -> int:
        store: Any = self._journal.store._backend
        with store._tables.read() as look:
            return int(self._journal._backend.version() + look.version())

    def resume(self, run: int) -> Context:
        self._journal.resume(run_uuid(run), dry_run=True)
        return self.recover(run)

    def close(self) -> None:
        self._journal.close()


def state(number: int) -> str:
    """The state of a step."""
    return f"bench.steps.s{number}"
