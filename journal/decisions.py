"""What is to be done next with a run: the answers of `journal.envelopes.decide`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, final

from casstore.ids import ArtifactId
from journal.failures import RunStatus, StateError


@final
@dataclass(frozen=True, slots=True)
class Enter:
    """Enter this state: `attempt` counts from 0, `base_snapshot_id` is the checkpoint it starts from."""

    state_id: str
    attempt: int
    base_snapshot_id: ArtifactId


@final
@dataclass(frozen=True, slots=True)
class Choose:
    """No plan: the orchestrator says which state follows `after_state_id` (None at the start), or completes."""

    after_state_id: str | None
    checkpoint_id: ArtifactId


@final
@dataclass(frozen=True, slots=True)
class End:
    """The run is over but does not say so yet: RunCompleted with these fields has to be appended."""

    status: RunStatus
    final_snapshot_id: ArtifactId


@final
@dataclass(frozen=True, slots=True)
class Ended:
    """The run has ended; nothing is to be done."""

    status: RunStatus
    final_snapshot_id: ArtifactId | None


@final
@dataclass(frozen=True, slots=True)
class Orphaned:
    """The process died inside this attempt: it has to be closed with `error`, then `then` holds."""

    state_id: str
    attempt: int
    then: Enter | End
    error: StateError


Decision: TypeAlias = Enter | Orphaned | Choose | End | Ended
