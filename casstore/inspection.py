"""Looking at a store: verify, why, stats. Reads only; findings are values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from casstore.backend import BlobBackend, Row
from casstore.codec import Codec
from casstore.errors import Corrupt, NotFound, StoreError
from casstore.ids import ArtifactId
from casstore.reading import Reader
from casstore.reports import Finding, StoreStats, VerifyReport, Why
from casstore.roots import Root, RootSource

PAGE_ROWS: Final = 1000


def pages(backend: BlobBackend) -> Iterator[Row]:
    """Every visible artifact, ascending by digest, in short reads."""
    after = b""
    while page := backend.page(after, PAGE_ROWS):
        yield from page
        after = page[-1].digest


def verify(backend: BlobBackend, reader: Reader, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Read everything: hashes, lengths, links, bases, their order, pins, leases, kept bytes, counters."""
    findings: list[Finding] = []
    before = backend.counters()
    count = raw = 0
    for row in pages(backend):
        found = _verify_artifact(backend, reader, row)
        findings += found
        count += 1
        raw += row.raw_len
        if progress:
            progress(count, before.artifacts)
    findings += _verify_kept(backend, reader)
    findings += _verify_roots(backend)
    after = backend.counters()
    if before.commit == after.commit and (count, raw) != (before.artifacts, before.raw_bytes):
        detail = f"counters say {before.artifacts} artifacts, {before.raw_bytes} bytes; there are {count}, {raw}"
        findings.append(Finding(code="wrong_counters", id=None, detail=detail))
    return VerifyReport(findings=tuple(findings), artifacts=count, raw_bytes=raw)


def _verify_artifact(backend: BlobBackend, reader: Reader, row: Row) -> list[Finding]:
    name = ArtifactId(row.digest)
    findings = []
    try:
        data = reader.get(row.digest)
        if len(data) != row.raw_len:
            detail = f"the index says {row.raw_len} bytes, there are {len(data)}"
            findings.append(Finding(code="wrong_length", id=name, detail=detail))
    except NotFound:
        return []  # collected since the page was read
    except Corrupt as error:
        findings.append(Finding(code="corrupt", id=name, detail=error.detail))  # type: ignore[attr-defined]
    except StoreError as error:
        findings.append(Finding(code=error.code, id=name, detail=str(error)))
    edges = backend.edges([row.digest])[0]
    if edges is None:
        return findings
    for link, child in zip(edges.links, backend.rows(edges.links), strict=True):
        if child is None:
            detail = f"links to {link.hex()}, which is not in the store"
            findings.append(Finding(code="missing_link", id=name, detail=detail))
        elif child.data_id >= edges.data_id:
            detail = f"links to {link.hex()}, which is younger"
            findings.append(Finding(code="wrong_order", id=name, detail=detail))
    return findings


def _verify_kept(backend: BlobBackend, reader: Reader) -> list[Finding]:
    findings = []
    for row in backend.kept():
        try:
            reader.data(row.data_id, row.digest)
        except Corrupt as error:
            detail = f"bytes kept for deltas: {error.detail}"  # type: ignore[attr-defined]
            findings.append(Finding(code="corrupt_base", id=ArtifactId(row.digest), detail=detail))
    return findings


def _verify_roots(backend: BlobBackend) -> list[Finding]:
    held = [(f"pin {name!r}", digest) for name, digest in backend.pins().items()]
    held += [(f"lease {name}", digest) for name, _, digest in backend.leased()]
    rows = backend.rows([digest for _, digest in held])
    return [
        Finding(code="missing_root", id=ArtifactId(digest), detail=f"held by {what}, not in the store")
        for (what, digest), row in zip(held, rows, strict=True)
        if row is None
    ]


def why(backend: BlobBackend, digest: bytes, roots: RootSource | None) -> Why:
    """The shortest path from a root: breadth first over links, then over the bases of deltas."""
    name = ArtifactId(digest)
    row = backend.rows([digest])[0]
    if row is None:
        gone = backend.gone(digest)
        if gone is None:
            return Why(id=name, state="unknown", path=(), detail="no artifact of this id was ever collected here")
        detail = f"collected by gc {gone.gc} at unix time {gone.when_s} ({gone.raw_len} bytes)"
        return Why(id=name, state="collected", path=(), detail=detail)
    path = _path_to(backend, digest, _all_roots(backend, roots))
    if path:
        return Why(id=name, state="live", path=path, detail="reached from a root")
    ended = [] if roots is None else (root for root in roots.live_roots(completed_after_ms=0) if not root.live)
    path = _path_to(backend, digest, ((_shown(root), root.id.digest) for root in ended))
    if path:
        detail = "only runs that ended need it; gc takes it when they are older than --keep-completed"
        return Why(id=name, state="retained", path=path, detail=detail)
    detail = f"nothing names it; last touched at unix time {row.touched_s}; a gc with a smaller grace takes it"
    return Why(id=name, state="unreferenced", path=(), detail=detail)


def _all_roots(backend: BlobBackend, roots: RootSource | None) -> Iterator[tuple[str, bytes]]:
    for name, digest in backend.pins().items():
        yield f"pin {name}", digest
    for name, _, digest in backend.leased():
        yield f"lease {name}", digest
    if roots is not None:
        for root in roots.live_roots(completed_after_ms=None):
            yield _shown(root), root.id.digest


def _shown(root: Root) -> str:
    return f"run {root.run}, seq {root.seq}, {root.field}"


def _path_to(backend: BlobBackend, digest: bytes, roots: Iterable[tuple[str, bytes]]) -> tuple[str, ...]:
    """The shortest path from one of the roots, empty where there is none."""
    parents: dict[bytes, tuple[bytes | None, str]] = {}
    level: list[bytes] = []
    for text, root in roots:
        if root not in parents:
            parents[root] = (None, text)
            level.append(root)
    while level and digest not in parents:
        level = _next_level(backend, parents, level)
    return _path(parents, digest) if digest in parents else ()


def _next_level(
    backend: BlobBackend, parents: dict[bytes, tuple[bytes | None, str]], level: list[bytes]
) -> list[bytes]:
    following: list[bytes] = []
    for parent, edges in zip(level, backend.edges(level), strict=True):
        for link in edges.links if edges else ():
            if link not in parents:
                parents[link] = (parent, "link")
                following.append(link)
    return following


def _path(parents: dict[bytes, tuple[bytes | None, str]], digest: bytes) -> tuple[str, ...]:
    steps: list[str] = []
    at: bytes | None = digest
    while at is not None:
        parent, how = parents[at]
        steps.append(f"{at.hex()} ({how})" if parent is not None else f"{how}: {at.hex()}")
        at = parent
    return tuple(reversed(steps))


def stats(backend: BlobBackend, *, gone: int, leases: int) -> StoreStats:
    """Totals, and a scan for the shares of kinds and encodings: (count, raw bytes[, stored bytes])."""
    by_kind: dict[str, list[int]] = {}
    by_encoding: dict[str, list[int]] = {}
    for row in pages(backend):
        for kind in row.kinds:
            share = by_kind.setdefault(kind, [0, 0])
            share[0] += 1
            share[1] += row.raw_len
        codec, stored_len = backend.encoding(row.data_id)
        entry = by_encoding.setdefault(encoding_name(codec), [0, 0, 0])
        entry[0] += 1
        entry[1] += row.raw_len
        entry[2] += stored_len
    counters, info = backend.counters(), backend.info()
    return StoreStats(
        artifacts=counters.artifacts, raw_bytes=counters.raw_bytes, stored_bytes=counters.stored_bytes,
        kept_bytes=counters.kept_bytes, gone=gone, pins=len(backend.pins()), leases=leases,
        uploads=len(backend.uploads()), commits=counters.commit, gcs=counters.epoch,
        by_kind={name: (share[0], share[1]) for name, share in sorted(by_kind.items())},
        by_encoding={name: (entry[0], entry[1], entry[2]) for name, entry in sorted(by_encoding.items())}, **info,
    )  # fmt: skip


def encoding_name(codec: int) -> str:
    """A word for people."""
    try:
        return Codec(codec).name.lower().replace("_", "-")
    except ValueError:
        return f"unknown-{codec}"
