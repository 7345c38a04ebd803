"""Claims: who may append to a run. The verbs of `Journal` that deal with them; Journal inherits them from RunClaims."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

from journal.admission import ClaimRequest, is_free
from journal.appends import Claim, check_claim
from journal.backend import ClaimRow, RunRow
from journal.errors import Conflict, Fenced, InvalidArgument, InvalidEvent, RunNotFound
from journal.ids import check_int, parse_run_id
from journal.reading import RunSummary

if TYPE_CHECKING:
    from journal.admission import Terms
    from journal.backend import JournalBackend


class RunClaims:
    """See Journal. What it needs of it stands here."""

    _backend: JournalBackend
    _claim_ttl_ms: int

    def _check(self, *, write: bool = False) -> None:
        raise NotImplementedError

    def _terms(self) -> Terms:
        raise NotImplementedError

    def claim(self: Any, run_id: UUID | str, owner: str | None = None, ttl: float | None = None) -> Claim:
        """Take the claim on a run for `ttl` seconds; `owner` is by default this process, whose death frees it.

        Raises: RunNotFound, Claimed, InvalidEvent (the run has ended).
        """
        self._check(write=True)
        wanted = parse_run_id(run_id)
        request = check_claim(ClaimRequest(owner=owner, ttl_ms=None if ttl is None else _ttl_ms(ttl)))
        while True:
            head = self.head(wanted)
            if head == 0:
                raise RunNotFound(wanted)
            if self.run_state(wanted).status is not None:
                raise InvalidEvent("after_run_completed", wanted, head + 1, "the run has ended")
            try:
                appended = self.append(wanted, head, [], claim=request)
            except Conflict:  # somebody appended in between; a claim asks for no position
                continue
            taken: Claim | None = appended.claim
            assert taken is not None
            return taken

    def renew(self, claim: Claim, ttl: float | None = None) -> Claim:
        """Extend a claim by `ttl` seconds, by default those it was taken for, an expired one too if nobody took it.
        Raises: Fenced (somebody did, or the run ended)."""
        self._check(write=True)
        _check_claim(claim)
        if ttl is None:
            held = self._held(claim.run_id)[1]
            ttl_ms = self._claim_ttl_ms if held is None else held.ttl_ms
        else:
            ttl_ms = _ttl_ms(ttl)
        until_ms = self._terms().now_ms + ttl_ms
        self._set_claim(claim, ClaimRow(claim.owner, until_ms, ttl_ms))
        return Claim(run_id=claim.run_id, epoch=claim.epoch, owner=claim.owner, until_ms=until_ms)

    def release(self, claim: Claim) -> None:
        """Give a claim back; one that was taken over or whose run ended or is gone is left as it is."""
        self._check(write=True)
        _check_claim(claim)
        try:
            self._set_claim(claim, None)
        except (Fenced, RunNotFound):
            return

    def holder(self, run_id: UUID | str) -> Claim | None:
        """Who holds a run just now, so that a resume of it would be Claimed; None where nobody does. Raises:
        RunNotFound."""
        self._check()
        wanted = parse_run_id(run_id)
        row, held = self._held(wanted)
        if row is None:
            raise RunNotFound(wanted)
        if held is None or row.status is not None or is_free(held, self._terms()):
            return None
        return Claim(run_id=wanted, epoch=row.epoch, owner=held.owner, until_ms=held.until_ms)

    def recoverable(self, *, op_id: str | None = None, limit: int | None = None) -> Iterator[RunSummary]:
        """Live runs that nobody holds, newest first, but for those whose last failure says to wait longer."""
        return islice(self._recoverable(op_id), check_limit(limit))

    # -- inside

    def _held(self, run_id: UUID) -> tuple[RunRow | None, ClaimRow | None]:
        with self._backend.look() as look:
            row = look.run(run_id)
            return row, None if row is None else look.claim(row.number)

    def _set_claim(self, claim: Claim, row: ClaimRow | None) -> None:
        with self._backend.look() as look:
            found = look.run(claim.run_id)
        if found is None:
            raise RunNotFound(claim.run_id)
        epoch = self._backend.set_claim(found.number, claim.epoch, row) if found.epoch == claim.epoch else found.epoch
        if epoch != claim.epoch:
            raise Fenced(claim.run_id, claim.epoch, found.epoch if epoch is None else epoch)

    def _recoverable(self: Any, op_id: str | None) -> Iterator[RunSummary]:
        for run in self.runs(status="live", op_id=op_id):
            terms = self._terms()
            if run.retry_at_ms > terms.now_ms:
                continue
            row, held = self._held(run.run_id)
            if row is not None and row.status is None and is_free(held, terms):
                yield run


def _check_claim(claim: object) -> None:
    if type(claim) is not Claim:
        raise InvalidArgument("claim", f"a Claim is wanted, not {type(claim).__name__}")


def _ttl_ms(ttl: float) -> int:
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl < 1 << 40:
        raise InvalidArgument("ttl", "a number of seconds above 0 is wanted")
    return max(int(ttl * 1000), 1)


def check_limit(limit: int | None) -> int | None:
    """The limit itself. Raises: InvalidField."""
    return None if limit is None else check_int("limit", limit, 0, 1 << 62)
