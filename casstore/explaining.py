"""Why a gc keeps what it keeps, and removes what it removes: asked for, it is told; else it costs nothing."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final, final

from casstore.backend import BlobBackend, Candidate
from casstore.dictionaries import PIN
from casstore.marks import IdSet, Marks
from casstore.reports import GcExplanation, GcShare
from casstore.roots import RetainingSource, Retention, Root, RootSource
from casstore.times import shown_time

LIVE: Final = "live runs"
RETAINED: Final = "runs that ended, retained"
PINS: Final = "pins"
DICTIONARIES: Final = "dictionaries in use"
LEASES: Final = "leases"
STAGED: Final = "staged with an append"
YOUNG: Final = "younger than the grace"
UNNAMED: Final = "named by no run"
PAST: Final = "only of runs past their retention"
OVER_QUOTA: Final = "only of runs that the quota does not hold"
NOT_FINAL: Final = "of completed runs that keep their final snapshot only"

_EVERYTHING: Final = Retention(completed_after_ms=0)
_STEP: Final = 500


def is_dictionary(pin: str) -> bool:
    """Whether a pin holds the dictionary that puts of a kind use."""
    return pin.startswith(PIN)


@final
class Explainer:
    """Told by a collection what it marks and removes. `kept` counts artifacts by the first reason that reached them.

    What goes is blamed on the run that ended last of those that name it. Artifacts take 4 bytes each for that.
    """

    def __init__(self, backend: BlobBackend, retention: Retention) -> None:
        self._backend, self._retention = backend, retention
        self._kept: list[tuple[str, int]] = []
        self._counted = 0
        self._runs_kept: set[str] = set()
        self._owners = array("I")  # data_id -> place in _blames
        self._blames: list[tuple[str, str]] = [(UNNAMED, "no run names it, and no pin or lease holds it")]
        self._removed = array("I")
        self._sums: dict[str, list[int]] = {}
        self._runs_gone: Counter[str] = Counter()
        self._bases = 0
        self._released = 0

    def saw(self, root: Root) -> None:
        """A run that ended and is kept."""
        self._runs_kept.add(root.run)

    def reached(self, what: str, marks: Marks) -> None:
        """Everything that was marked since the last call is kept for this reason."""
        total = len(marks.visible)
        self._kept.append((what, total - self._counted))
        self._counted = total

    def marked(self, source: RootSource, marks: Marks, released: int, check: Callable[[], None]) -> None:
        """The mark is over: find which runs that ended name what was not reached. `released` counts the collected
        artifacts whose bytes nothing needs any more."""
        self._bases = len(marks.bytes.without(marks.visible))
        self._released = released
        for (run, status, ended_ms), roots in groupby(_ended_roots(source), key=_ending):
            check()
            reason = self._reason(run, ended_ms)
            self._blames.append((reason, f"{_what(run, status, ended_ms)}: {_because(reason)}"))
            if self._claim((root.id.digest for root in roots), marks.visible, len(self._blames) - 1):
                self._runs_gone[reason] += 1

    def _reason(self, run: str, ended_ms: int) -> str:
        if run in self._runs_kept:
            return NOT_FINAL
        return OVER_QUOTA if ended_ms and ended_ms < self._retention.not_before_ms else PAST

    def _claim(self, digests: Iterable[bytes], kept: IdSet, place: int) -> bool:
        """Write `place` to everything that these need and nobody has claimed; whether there was any."""
        found, todo = False, list(dict.fromkeys(digests))
        while todo:
            batch = todo[-_STEP:]
            del todo[-_STEP:]
            for edges in self._backend.edges(batch):
                if edges is None or edges.data_id in kept or self._owner(edges.data_id):
                    continue
                self._owners[edges.data_id] = place
                found = True
                todo += edges.links
        return found

    def _owner(self, data_id: int) -> int:
        if data_id >= len(self._owners):
            self._owners.extend([0] * max(data_id + 1 - len(self._owners), 4096))
        return self._owners[data_id]

    def removed(self, batch: Sequence[Candidate], removed: Sequence[tuple[bytes, int]]) -> None:
        """These went, or would, with their raw bytes."""
        data_ids = {candidate.digest: candidate.data_id for candidate in batch if not candidate.kept}
        for digest, size in removed:
            place = self._owner(data_ids.get(digest, 0))
            self._removed.append(place)
            entry = self._sums.setdefault(self._blames[place][0], [0, 0])
            entry[0] += 1
            entry[1] += size

    def told(self) -> GcExplanation:
        """All of it."""
        gone = tuple(
            GcShare(what=what, artifacts=entry[0], raw_bytes=entry[1], runs=self._runs_gone[what])
            for what, entry in sorted(self._sums.items(), key=lambda item: -item[1][1])
        )
        return GcExplanation(
            kept=tuple(self._kept), bases=self._bases, released=self._released, gone=gone,
            reasons=_Reasons([text for _, text in self._blames], self._removed),
        )  # fmt: skip


@final
class _Reasons(Sequence[str]):
    """One text for each artifact, of few different ones."""

    def __init__(self, texts: list[str], places: array[int]) -> None:
        self._texts, self._places = texts, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:  # type: ignore[override]
        if isinstance(place, slice):
            return tuple(self._texts[at] for at in self._places[place])
        return self._texts[self._places[place]]


def _ended_roots(source: RootSource) -> Iterator[Root]:
    """Of all runs that ended, the one that ended last first."""
    roots = (
        source.retained_roots(_EVERYTHING) if isinstance(source, RetainingSource)
        else source.live_roots(completed_after_ms=0)
    )  # fmt: skip
    return (root for root in roots if not root.live)


def _ending(root: Root) -> tuple[str, str, int]:
    return root.run, root.status, root.ended_ms


def _what(run: str, status: str, ended_ms: int) -> str:
    when = f" {shown_time(ended_ms / 1000)}" if ended_ms else ""
    return f"run {run} {status or 'ended'}{when}"


def _because(reason: str) -> str:
    return {
        PAST: "past its retention", OVER_QUOTA: "over the quota", NOT_FINAL: "it keeps its final snapshot only",
    }[reason]  # fmt: skip
