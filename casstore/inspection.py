"""Looking at a store: verify, stats. Reads only; findings are values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import suppress
from typing import Final

from casstore import audits
from casstore.arguments import seconds
from casstore.backend import BlobBackend, Row
from casstore.codec import Codec, encoding_name
from casstore.errors import (
    AmbiguousPrefix,
    Corrupt,
    DamagedStore,
    InvalidArgument,
    InvalidId,
    NotFound,
    StoreError,
)
from casstore.frames import FRAME_SIZE
from casstore.ids import ArtifactId
from casstore.items import links_of
from casstore.reading import Reader, prove_frames
from casstore.reports import ArtifactInfo, Finding, MendReport, StoreStats, VerifyReport
from casstore.rows import DaRow
from casstore.stage import Stage

PAGE_ROWS: Final = 1000
PAGE_ITEMS: Final = 250  # each with its links


def pages(backend: BlobBackend) -> Iterator[Row]:
    """Every visible artifact, ascending by digest, in short reads."""
    after = b""
    while page := backend.page(after, PAGE_ROWS):
        yield from page
        after = page[-1].digest


def resolve(backend: BlobBackend, reader: Reader, prefix: object, staged: Iterable[bytes]) -> ArtifactId:
    """See Store.resolve."""
    if type(prefix) is not str or not 4 <= len(prefix) <= 64 or set(prefix) - set("0123456789abcdef"):
        raise InvalidId(prefix, "a prefix has 4 to 64 lowercase hex digits")
    first, last = bytes.fromhex(prefix.ljust(64, "0")), bytes.fromhex(prefix.ljust(64, "f"))
    alike = {digest for digest in staged if first <= digest <= last}
    found = sorted({*alike, *backend.prefix(first, last, 5)})[:5]
    if len(found) > 1:
        raise AmbiguousPrefix(prefix, ", ".join(digest.hex()[:16] for digest in found))
    if not found:
        gone = backend.gone_prefix(first, last, 2)
        if len(gone) == 1 or len(prefix) == 64:
            raise reader.missing(gone[0] if gone else first)
        raise NotFound(prefix)
    return ArtifactId(found[0])


def pins(backend: BlobBackend) -> dict[str, ArtifactId]:
    """See Store.pins. Raises: DamagedStore."""
    found = backend.pins()
    for name, digest in found.items():
        if len(digest) != 32:
            raise DamagedStore("table pin1", f"the pin {name!r} names no artifact; remove it")
    return {name: ArtifactId(digest) for name, digest in found.items()}


def info(backend: BlobBackend, digest: bytes) -> ArtifactInfo | None:
    """Facts about a visible artifact."""
    row, edges, walk = backend.rows([digest])[0], backend.edges([digest])[0], backend.base_walk(digest)
    if row is None or edges is None or not walk:
        return None
    codec, stored_len = backend.encoding(row.data_id)
    return ArtifactInfo(
        id=ArtifactId(digest), kinds=row.kinds, size_bytes=row.raw_len, stored_bytes=stored_len,
        encoding=encoding_name(codec), chain=walk[0][2], base=ArtifactId(walk[1][0]) if len(walk) > 1 else None,
        links=tuple(map(ArtifactId, edges.links)), touched_s=row.touched_s,
    )  # fmt: skip


def verify(
    backend: BlobBackend, stage: Stage, reader: Reader, *, subset: tuple[int, int] | None = None,
    after: str | None = None, max_seconds: float | None = None, progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> VerifyReport:  # fmt: skip
    """Read and check everything, or a share of it; see `Store.verify`. Stops only between artifacts."""
    share, area, at = _position(subset, after)
    if max_seconds is not None and max_seconds != 0:
        seconds(max_seconds, "max_seconds")
    until = None if max_seconds is None else clock() + max_seconds
    findings, sizes = _check_staged(backend, stage, reader) if after is None else ([], [])
    total = count = raw = 0
    if share.k == share.n:  # each share looks at them, and they count once
        count, raw = len(sizes), sum(sizes)
    with suppress(DamagedStore):  # a finding, below
        total = backend.counters().artifacts // share.n
    todo = list(audits.AREAS)
    del todo[: todo.index(area)]
    while todo:
        page = backend.audit(todo[0], at, share, PAGE_ITEMS)
        following = page.next
        for item in page.items:
            found = _check(backend, reader, item, todo[0])
            if found is None:
                continue  # collected since the page was read
            findings += found
            if todo[0] == "artifacts":
                count += 1
                raw += item.raw_len
                if progress:
                    progress(count, max(count, total))
            if item.codec is not None and until is not None and clock() >= until:
                following = item.key + b"\0"
                break
        if following is None:
            del todo[0]
        at = following or b""
        if todo and until is not None and clock() >= until:
            return VerifyReport(
                findings=tuple(findings), artifacts=count, raw_bytes=raw, complete=False,
                next=f"{share} {todo[0]} {at.hex()}",
            )  # fmt: skip
    return VerifyReport(findings=tuple(findings), artifacts=count, raw_bytes=raw)


def _check_staged(backend: BlobBackend, stage: Stage, reader: Reader) -> tuple[list[Finding], list[int]]:
    """Staged artifacts are few: all are looked at by each share. What was settled meanwhile is checked in the store.
    Also the size of each."""
    findings: list[Finding] = []
    try:
        rows = stage.rows()
    except DamagedStore as error:
        return [Finding(code=error.code, id=None, detail=str(error))], []
    sizes: list[int] = []
    for row in rows:
        name = ArtifactId(row.digest)
        try:
            data = reader.get(row.digest)
        except NotFound:
            continue
        except StoreError as error:
            findings.append(Finding(code=error.code, id=name, detail=_detail(error)))
            continue
        sizes.append(len(data))
        links = links_of(data)
        if links != row.links:
            findings.append(Finding(code="wrong_links", id=name, detail="its bytes link to others than its staged row"))
        there = backend.rows(row.needs)
        gone = [need for need, found in zip(row.needs, there, strict=True) if found is None]
        for need in gone:
            if stage.find(need) is None and backend.rows([need])[0] is None:
                detail = f"staged at position {row.position}, it needs {need.hex()}, which is not there"
                findings.append(Finding(code="missing_need", id=name, detail=detail))
    return findings, sizes


def _position(subset: tuple[int, int] | None, after: str | None) -> tuple[audits.Share, str, bytes]:
    """Share, area and key to begin with. Raises: InvalidArgument."""
    if subset is not None and not (
        isinstance(subset, tuple) and [type(part) for part in subset] == [int, int] and 1 <= subset[0] <= subset[1]
    ):
        raise InvalidArgument("subset", "must be (k, n) with 1 <= k <= n")
    share = audits.WHOLE if subset is None else audits.Share(*subset)
    if after is None:
        return share, next(iter(audits.AREAS)), b""
    try:
        shown, area, key = after.split(" ")
        k, n = map(int, shown.split("/"))
        begun = audits.Share(k, n)
        start = bytes.fromhex(key)
        if area not in audits.AREAS or not 1 <= k <= n:
            raise ValueError
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidArgument("after", f"{after!r:.80} is no position of a verify") from error
    if subset is not None and begun != share:
        raise InvalidArgument("after", f"is a position in the subset {begun}, not in {share}")
    return begun, area, start


def check(backend: BlobBackend, reader: Reader, name: ArtifactId) -> list[Finding]:
    """What is wrong with one artifact; it is missing_root where it is not there."""
    items = backend.audit("artifacts", name.digest, audits.WHOLE, 1).items
    found = _check(backend, reader, items[0], "artifacts") if items and items[0].digest == name.digest else None
    if found is None:
        return [Finding(code="missing_root", id=name, detail="not in the store")]
    for data_id in backend.copies(name.digest):
        try:
            reader.data(data_id, name.digest)
        except StoreError as error:
            found.append(Finding(code="corrupt_base", id=name, detail=f"bytes kept for deltas: {_detail(error)}"))
    return found


def mend(backend: BlobBackend, reader: Reader, now_s: int, relink: Set[bytes]) -> MendReport:
    """Put right what needs no good copy, and look again, at rows and not at bytes."""

    def prove(data_id: int, row: DaRow) -> tuple[bool, tuple[bytes, ...] | None]:
        try:
            if row.codec == Codec.FRAMES:
                item = audits.AuditItem(b"", (), row.digest, data_id, row.raw_len, (), row.codec)
                _prove_frames(backend, reader, item, kept=True)
                return True, None
            data = reader.data(data_id, row.digest, row.digest)
        except StoreError:
            return False, None
        return True, links_of(data) if len(data) <= FRAME_SIZE else None  # a larger one may be a stream, without links

    done = backend.mend(now_s, prove, relink)
    left = [finding for area in audits.AREAS for finding in _structure(backend, area)]
    return MendReport(done=tuple(_finding(*item) for item in done), left=tuple(left))


def _structure(backend: BlobBackend, area: str) -> Iterator[Finding]:
    at: bytes | None = b""
    while at is not None:
        page = backend.audit(area, at, audits.WHOLE, PAGE_ROWS)
        yield from (_finding(*problem) for item in page.items for problem in item.problems)
        at = page.next


def _finding(code: str, digest: bytes | None, detail: str) -> Finding:
    return Finding(code=code, id=ArtifactId(digest) if digest else None, detail=detail)


def _check(backend: BlobBackend, reader: Reader, item: audits.AuditItem, area: str) -> list[Finding] | None:
    """What the audit found, and what reading the bytes finds; None where they were collected meanwhile."""
    problems = [_finding(*problem) for problem in item.problems]
    if item.codec is None:
        return problems
    name = ArtifactId(item.digest)
    try:
        links = _read(backend, reader, item, kept=area == "kept")
    except NotFound:
        return None
    except StoreError as error:
        if area == "kept":
            if backend.encoding(item.data_id) == (0, 0):
                return None
            detail = f"bytes kept for deltas: {_detail(error)}"
            return [*problems, Finding(code="corrupt_base", id=name, detail=detail)]
        # What its record says is of no interest where its bytes cannot be read.
        rest = [found for found in problems if found.code not in ("wrong_record", "wrong_length")]
        return [Finding(code=error.code, id=name, detail=_detail(error)), *rest]
    if links is not None and links != item.links:
        problems.append(Finding(code="wrong_links", id=name, detail="its bytes link to other artifacts than its row"))
    return problems


def _detail(error: StoreError) -> str:
    return str(error.detail) if isinstance(error, Corrupt) else str(error)  # type: ignore[attr-defined]


def _read(backend: BlobBackend, reader: Reader, item: audits.AuditItem, *, kept: bool) -> tuple[bytes, ...] | None:
    """Prove the bytes, large ones frame by frame. The links that the row has to have, None where that is open.

    Raises: NotFound, Corrupt, DamagedStore.
    """
    if item.codec == Codec.FRAMES:
        _prove_frames(backend, reader, item, kept=kept)
        return None
    data = reader.data(item.data_id, item.digest) if kept else reader.get(item.digest)
    # A larger value may have been stored as a stream, without links.
    return None if kept or (len(data) > FRAME_SIZE and not item.links) else links_of(data)


def _prove_frames(backend: BlobBackend, reader: Reader, item: audits.AuditItem, *, kept: bool) -> None:
    for last in (False, True):
        chain = backend.load_data(item.data_id) if kept else backend.load(item.digest, lambda _: False)
        if not chain:
            raise reader.missing(item.digest)
        if chain[0].codec != Codec.FRAMES:  # healed meanwhile
            reader.get(item.digest)
            return
        try:
            if prove_frames(backend, chain[0], item.digest):
                return
        except Corrupt:
            if last:  # else it may have been healed between two frames: look again
                raise
    raise reader.missing(item.digest)


def stats(backend: BlobBackend, stage: Stage) -> StoreStats:
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
    leases = {name for name, _, _ in backend.leased()}
    counters, pages_info, staged = backend.counters(), backend.info(), stage.rows()
    return StoreStats(
        artifacts=counters.artifacts, raw_bytes=counters.raw_bytes, stored_bytes=counters.stored_bytes,
        kept_bytes=counters.kept_bytes, gone=backend.gone_count(), pins=len(backend.pins()), leases=len(leases),
        uploads=len(backend.uploads()), commits=counters.commit, gcs=counters.epoch,
        by_kind={name: (share[0], share[1]) for name, share in sorted(by_kind.items())},
        by_encoding={name: (entry[0], entry[1], entry[2]) for name, entry in sorted(by_encoding.items())},
        staged=len(staged), staged_bytes=sum(len(row.stored) for row in staged), **pages_info,
    )  # fmt: skip
