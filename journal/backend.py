"""The narrow Protocol under the journal, and the rows that go through it.

Rows are values. A `Look` is one consistent look at everything; `commit` is the only writer. Nothing here is shaped
by an engine: what a relational database can do in one transaction is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, final
from uuid import UUID

from casstore import PreparedPut
from casstore.ids import ArtifactId
from journal.failures import RunStatus

if TYPE_CHECKING:
    from journal.rebuilding import RebuildReport

__all__ = ["ClaimRow", "JournalBackend", "Look", "RunRow", "RunWrite", "StateRow", "Tail", "Unit"]


class Tail(IntEnum):
    """What the last kernel event left behind, as far as the rules of a stream ask for it."""

    CLEAR = 0
    OPEN = 1
    FAILED_RETRYABLE = 2
    FAILED_FINAL = 3


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """What is kept of a run, so that an append costs the same at any length. Times are unix milliseconds.

    (head, epoch) changes with every change of the row. `tail_seq` is the StateEntered of an open attempt, or the
    StateFailed; `chain` is the head of the chain of records; `retry_at_ms` is 0 where no failure named one.
    """

    number: int
    run_id: UUID
    op_id: str
    manifest_id: ArtifactId
    epoch: int
    head: int
    status: RunStatus | None
    has_final: bool
    started_ms: int
    updated_ms: int
    checkpoint_id: ArtifactId
    checkpoint_seq: int
    tail: Tail
    tail_seq: int
    tail_attempt: int
    tail_state: str
    n_completed: int
    policy_seq: int
    retry_at_ms: int
    chain: bytes


class StateRow(NamedTuple):
    """One state of a run: entries so far, the seq that completed it (0: none), and its place among the completed."""

    attempts: int
    completed_seq: int
    completed_place: int


class ClaimRow(NamedTuple):
    """Who holds a run, until when. The epoch stands in the run's row and outlives the claim."""

    owner: str
    until_ms: int
    ttl_ms: int


@final
@dataclass(slots=True, kw_only=True)
class RunWrite:
    """What one append changes of one run. `states` and `facts` (key to seq) hold only what changed.

    `claim` is set, or deleted where it is None and `drop_claim`. `held` is the claim that was there when it was
    judged.
    """

    before: RunRow | None
    after: RunRow
    records: list[bytes] = field(default_factory=list)
    states: dict[str, StateRow] = field(default_factory=dict)
    facts: dict[str, int] = field(default_factory=dict)
    claim: ClaimRow | None = None
    drop_claim: bool = False
    held: ClaimRow | None = None


@dataclass(slots=True)
class Unit:
    """What is written whole or not at all. `commit` fills in `error`, or the first position of each write.

    `staged` are artifacts that are kept with the writes until they are settled; the check may change it.
    """

    writes: list[RunWrite] | None = None
    error: BaseException | None = None
    positions: list[int] = field(default_factory=list)
    cursors: dict[str, int] = field(default_factory=dict)  # moved with the writes, where there are any
    staged: list[PreparedPut] = field(default_factory=list)


class Look(Protocol):
    """One consistent look. Nothing from it may be used after its block."""

    def run(self, run_id: UUID) -> RunRow | None:
        """The row of a run."""

    def numbered(self, number: int) -> RunRow | None:
        """The row of a run by its number."""

    def next_number(self) -> int:
        """The number of the next new run."""

    def claim(self, number: int) -> ClaimRow | None:
        """The claim on a run, expired or not."""

    def state(self, number: int, state_id: str) -> StateRow | None:
        """What is known of one state."""

    def states(self, number: int) -> Iterator[tuple[str, StateRow]]:
        """Every state of a run."""

    def fact(self, number: int, key: str) -> int | None:
        """The seq that bound a fact key."""

    def facts(self, number: int) -> Iterator[int]:
        """The seqs of all bound facts."""

    def version(self) -> int:
        """The number of the commit that it shows."""

    def position(self) -> int:
        """The position of the newest event ever, 0 when there was none."""

    def count(self) -> int:
        """The number of events that are kept."""

    def tallies(self) -> tuple[int, int]:
        """How many runs live, and how many have ended, by the lists of them; without going through these."""

    def registered(self) -> tuple[int, int]:
        """How many runs have a row, and how many run ids lead to one: as many as live and have ended together. Where
        they are not, gc does not trust the lists."""

    def place(self, number: int, seq: int) -> int | None:
        """The position of an event."""

    def record(self, number: int, seq: int) -> bytes | None:
        """The record of an event."""

    def records(self, number: int, first: int, last: int) -> Iterator[tuple[int, int, bytes]]:
        """(seq, position, record) of a run's events, both ends inclusive, ascending; gaps are left out."""

    def stretches(self, number: int, first: int, last: int) -> Iterator[tuple[int, Sequence[int], list[bytes]]]:
        """As `records`, many at a time: the first seq, from which the others count on, positions, records."""

    def after(self, position: int) -> Iterator[tuple[int, bytes]]:
        """(position, record) of all runs' events after a position, ascending."""

    def live(self, *, before: int | None = None) -> Iterator[int]:
        """Numbers of live runs, newest first, all or those below `before`."""

    def ended(self, status: RunStatus, *, before: tuple[int, int] | None = None) -> Iterator[tuple[int, int]]:
        """(ended ms, number) of the runs that ended so, latest first, all or those below `before`."""

    def first_epoch(self) -> int:
        """The epoch of a new run: above those of all forgotten ones."""

    def forgetting(self) -> Iterator[tuple[UUID, int, int]]:
        """(run id, number, head) of the runs that are gone, but for records that a forget under way still removes."""

    def numbers(self, *, before: int | None = None) -> Iterator[int]:
        """Numbers of all runs, newest first."""

    def named(self, first: UUID, last: UUID) -> Iterator[UUID]:
        """Run ids from first to last."""

    def cursor(self, name: str) -> int | None:
        """The position that a named cursor holds."""

    def is_staged(self, id: ArtifactId) -> bool:
        """Whether an artifact is staged."""


class JournalBackend(Protocol):
    """Where records and rows are kept. Every commit is durable when it returns."""

    def bind(self, uuid: str) -> str:
        """The uuid that this journal belongs to; the given one where it is new."""

    def look(self) -> AbstractContextManager[Look]:
        """A look at what is committed now."""

    def version(self) -> int:
        """A number that is another one after every commit of any process; a later look shows at least that commit.

        Followers ask for it again and again, so it costs less than a look at what was appended.
        """

    def commit(
        self, units: Sequence[Unit], admit: Callable[[Unit, Look], None], check: Callable[[Unit, Look], None],
        settled: Callable[[], Iterable[ArtifactId]] = tuple, seen: int | None = None,
    ) -> int:  # fmt: skip
        """Write the units, in order, under the lock that keeps every other writer out; how many artifacts are staged
        then.

        First, what is `settled` now stops to be staged. A unit whose `writes` are None or no longer hold (a row's
        head, epoch or claim is another, or the number of a new run is taken) is admitted here, from a look that has
        the units before it. `seen` is the version of the look that they were admitted from: nothing has to be compared
        where that is still the newest. Then `check`, then its rows and what it stages are written. What either raises
        is the unit's `error` and the others go on; any other failure leaves nothing written.
        Raises: StoreFull, PoisonedHandle (the outcome is not known), ReadOnly.
        """

    def set_claim(self, number: int, epoch: int, claim: ClaimRow | None) -> int | None:
        """Set or delete a claim where the run lives and still is at `epoch`; returns the run's epoch, None where it
        has ended."""

    def forget(self, number: int, limit: int) -> bool:
        """Take an ended run out of every look at once, then remove up to `limit` of its events; whether all are gone.

        Called again until it says so, in whatever process. Positions and run numbers are never given out again; a
        number that names nothing is gone already. Raises: RunLive.
        """

    def rebuild(self, *, dry_run: bool, force: bool = False) -> RebuildReport:
        """Compare what is kept of runs with their records and, unless `dry_run`, put it right: each run whole or not at
        all, and not where others changed it meanwhile."""

    def set_cursor(self, name: str, position: int) -> None:
        """Move a named cursor."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody commits meanwhile, in any process."""

    def info(self) -> dict[str, int]:
        """Facts for people."""

    def close(self) -> None:
        """Give everything back."""
