"""Why an artifact is there, or gone: the shortest path from what holds it, and what will become of it. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final, NamedTuple, final

from casstore.backend import BlobBackend, Edges, Row
from casstore.codec import Codec
from casstore.dictionaries import PIN
from casstore.errors import InvalidArgument
from casstore.ids import ArtifactId
from casstore.policies import Policy
from casstore.reports import Why
from casstore.roots import RetainingSource, Retention, Root, RootSource
from casstore.stage import Stage
from casstore.times import shown_span, shown_time

PAGE_ROWS: Final = 5000


class _Start(NamedTuple):
    """A root for people, what it names, and until when it holds (unix time, 0: no end is known)."""

    text: str
    digest: bytes
    until_s: int = 0


def why(
    backend: BlobBackend, stage: Stage, digest: bytes, roots: RootSource | None, policy: Policy, now_s: int
) -> Why:  # fmt: skip
    """See Store.why."""
    if roots is not None and not isinstance(roots, RootSource):
        raise InvalidArgument("roots", f"{type(roots).__name__} is no source of roots, such as a Journal")
    name, row, graph = ArtifactId(digest), backend.rows([digest])[0], _Graph(backend, stage)
    staged = stage.find(digest) if row is None else None
    row = row or backend.rows([digest])[0]  # it may have been settled between the two looks
    if row is None and staged is None:
        return _gone(graph, digest, roots, now_s)
    if found := graph.search(digest, _held(graph, roots, now_s)):
        detail = "needed"
        if staged is not None:
            detail = f"staged by the append at position {staged.position}; it stays at least until it is settled"
        return Why(id=name, state="live", path=found.path, detail=detail)
    if row is None:
        return Why(id=name, state="unknown", path=(), detail="it was settled and collected just now: look again")
    return (
        _retained(graph, name, roots, policy, now_s)
        or _young(graph, name, row, policy, now_s)
        or _unneeded(graph, name, row, roots, policy, now_s)
    )


# -- what is not visible -----------------------------------------------------------------------------------


def _gone(graph: _Graph, digest: bytes, roots: RootSource | None, now_s: int) -> Why:
    name, gone = ArtifactId(digest), graph.backend.gone(digest)
    if gone is None:
        detail = "no artifact of this id is here, and none was ever collected"
        return Why(id=name, state="unknown", path=(), detail=detail)
    detail = f"collected by gc {gone.gc} at {shown_time(gone.when_s)} ({gone.raw_len} bytes)"
    if gone.until_s:
        left = "the next gc ends that" if gone.until_s <= now_s else f"in quarantine until {shown_time(gone.until_s)}"
        detail += f"; {left}; `casstore undelete {name}` brings it back"
        return Why(id=name, state="collected", path=(), detail=detail, since_s=gone.when_s, until_s=gone.until_s)
    path: tuple[str, ...] = ()
    if graph.backend.copies(digest):
        found = graph.search(digest, _held(graph, roots, now_s), bases=True)
        path = found.path if found else ()
        detail += "; its bytes stay, since a delta is made of them; put the same bytes again to have it back"
    return Why(id=name, state="collected", path=path, detail=detail, since_s=gone.when_s)


# -- what is visible, and no live run, pin or lease needs --------------------------------------------------


def _retained(
    graph: _Graph, name: ArtifactId, roots: RootSource | None, policy: Policy, now_s: int
) -> Why | None:
    """Named by a run that ended and is still kept: the one that ended last says until when."""
    found = _by_run(graph, name.digest, _ended(roots, policy.retention(now_s)))
    if found is None:
        return None
    path, root = found
    keep_s = policy.keep_s(root.status)
    until_s = root.ended_ms // 1000 + keep_s if root.ended_ms else 0
    if until_s > now_s:
        detail = f"only runs that ended need it; kept until {shown_time(until_s)}, {shown_span(keep_s)} after the end"
    elif policy.keep_last:
        until_s = 0
        detail = f"only runs that ended need it; kept as one of the last {policy.keep_last} of its operation"
    else:
        detail = "only runs that ended need it"
    if policy.quota is not None:
        detail += f", unless the quota of {policy.quota} bytes takes it before"
    return Why(id=name, state="retained", path=path, detail=detail, until_s=until_s or None)


def _young(graph: _Graph, name: ArtifactId, row: Row, policy: Policy, now_s: int) -> Why | None:
    """It, or what links to it, was touched within the grace."""
    grace_s = int(_number(policy.grace))
    found = graph.search(name.digest, _young_rows(graph.backend, now_s, grace_s))
    if found is None:
        return None
    until_s = found.start.until_s
    detail = f"no run names it; gc leaves it until {shown_time(until_s)}, {shown_span(grace_s)} after the last touch"
    path = found.path if len(found.path) > 1 else ()
    return Why(id=name, state="unreferenced", path=path, detail=detail, since_s=row.touched_s, until_s=until_s)


def _unneeded(
    graph: _Graph, name: ArtifactId, row: Row, roots: RootSource | None, policy: Policy, now_s: int
) -> Why:
    """The next gc takes it. Its bytes stay where a living delta is made of them."""
    everything = Retention(completed_after_ms=0)
    named = _by_run(graph, name.digest, _ended(roots, everything))
    kept = {root.run for root in _ended(roots, policy.retention(now_s))} if named is not None else set()
    path: tuple[str, ...] = ()
    if named is None:
        since_s = row.touched_s
        detail = f"no run, pin or lease needs it; last touched at {shown_time(since_s)}"
    else:
        path, root = named
        since_s = max(root.ended_ms // 1000, row.touched_s)
        if root.run in kept:
            detail = "only a completed run names it that keeps its final snapshot only"
        else:
            keep = shown_span(policy.keep_s(root.status))
            detail = f"only runs that ended name it, and the last of them is past its retention of {keep}"
    detail += "; the next gc takes it"
    base = graph.search(name.digest, _held(graph, roots, now_s), bases=True)
    if base is not None:
        path = base.path
        detail += "; its bytes stay, since a delta is made of them"
    return Why(id=name, state="unreferenced", path=path, detail=detail, since_s=since_s)


# -- roots -------------------------------------------------------------------------------------------------


def _held(graph: _Graph, roots: RootSource | None, now_s: int) -> Iterator[_Start]:
    """What holds with no end: live runs, pins, leases that are not over, and what is staged."""
    if roots is not None:
        for root in roots.live_roots(completed_after_ms=None):
            yield _start(root)
    for pin, digest in graph.backend.pins().items():
        kind = pin.removeprefix(PIN)
        yield _Start(f"pin {pin}" if kind == pin else f"dictionary of kind {kind} (pin {pin})", digest)
    for lease, until_s, digest in graph.backend.leased():
        if not until_s or until_s > now_s:  # without an end it is damage, and held
            yield _Start(f"lease {lease} until {shown_time(until_s)}", digest)
    for row in graph.stage.rows():
        yield _Start(f"staged by the append at position {row.position}", row.digest)


def _ended(roots: RootSource | None, retention: Retention) -> Iterator[Root]:
    """What runs that ended name, the one that ended last first."""
    if isinstance(roots, RetainingSource):
        found = roots.retained_roots(retention)
    elif roots is not None:
        found = roots.live_roots(completed_after_ms=retention.completed_after_ms)
    else:
        return iter(())
    return (root for root in found if not root.live)


def _start(root: Root) -> _Start:
    ended = f" ({root.status} {shown_time(root.ended_ms / 1000)})" if root.ended_ms else ""
    return _Start(f"run {root.run}{ended}, seq {root.seq}, {root.field}", root.id.digest)


def _young_rows(backend: BlobBackend, now_s: int, grace_s: int) -> Iterator[_Start]:
    cut, after = backend.gc_peek(now_s, grace_s).cut, b""
    while (page := backend.ages(after, PAGE_ROWS, cut)) is not None:
        for row in backend.rows(page.young):
            if row is not None:
                text = f"touched at {shown_time(row.touched_s)}"
                yield _Start(text, row.digest, row.touched_s + grace_s)
        after = page.last


def _by_run(graph: _Graph, digest: bytes, roots: Iterable[Root]) -> tuple[tuple[str, ...], Root] | None:
    """The path from the first of these runs that reaches it; what one run has reached no other looks at again."""
    seen: set[bytes] = set()
    for _, group in groupby(roots, key=lambda root: root.run):
        named = list(group)
        found = graph.search(digest, map(_start, named), seen=seen)
        if found is not None:
            return found.path, named[0]
    return None


# -- the search --------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    start: _Start
    path: tuple[str, ...]


@final
class _Graph:
    """What needs what, in the store and in the stage."""

    def __init__(self, backend: BlobBackend, stage: Stage) -> None:
        self.backend, self.stage = backend, stage

    def search(
        self, digest: bytes, starts: Iterable[_Start], *, bases: bool = False, seen: set[bytes] | None = None
    ) -> _Found | None:
        """The shortest path, breadth first: over links, or with `bases` over what stored bytes are made of as well.
        Nothing that is in `seen` is looked at, and all that is looked at gets into it."""
        parents: dict[bytes, tuple[bytes | None, str]] = {}
        texts: dict[bytes, _Start] = {}
        for start in starts:
            if start.digest not in parents and (seen is None or start.digest not in seen):
                parents[start.digest] = (None, "")
                texts[start.digest] = start
        level = list(texts)
        while level and digest not in parents:
            following: list[bytes] = []
            for at in range(0, len(level), PAGE_ROWS):
                batch = level[at : at + PAGE_ROWS]
                for parent, edges in zip(batch, self.backend.edges(batch), strict=True):
                    needs = self._staged_needs(parent) if edges is None else self._needs(edges, bases)
                    for needed, how in needs:
                        if needed not in parents and (seen is None or needed not in seen):
                            parents[needed] = (parent, how)
                            following.append(needed)
            level = following
        if seen is not None:
            seen.update(parents)
        return _path(parents, texts, digest) if digest in parents else None

    def _needs(self, edges: Edges, bases: bool) -> Iterator[tuple[bytes, str]]:
        for link in edges.links:
            yield link, "link"
        if not bases or not edges.bases:
            return
        word = "dictionary of it" if self.backend.encoding(edges.data_id)[0] == Codec.ZSTD_DICTIONARY else "base of it"
        for base in self.backend.digests(edges.bases):
            if base is not None:
                yield base, word

    def _staged_needs(self, digest: bytes) -> Iterator[tuple[bytes, str]]:
        """Of a staged artifact the base has to stay as an artifact, until it is settled."""
        row = self.stage.find(digest)
        if row is not None:
            for link in row.links:
                yield link, "link"
            if row.base is not None:
                yield row.base, "base of it"


def _path(parents: dict[bytes, tuple[bytes | None, str]], texts: dict[bytes, _Start], digest: bytes) -> _Found:
    steps: list[str] = []
    at = digest
    while (step := parents[at])[0] is not None:
        steps.append(f"{at.hex()} ({step[1]})")
        at = step[0]
    start = texts[at]
    return _Found(start, (f"{start.text}: {at.hex()}", *reversed(steps)))


def _number(duration: object) -> float:
    assert isinstance(duration, (int, float))  # a Policy has made its durations numbers
    return duration
