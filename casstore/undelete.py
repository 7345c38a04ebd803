"""Bringing back what gc removed while its bytes are in quarantine: read, and put again, children first.

Nothing is revived in place (H11 of the protocol): each artifact is a new row with a new data_id, under all the rules
of a put.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Final, final

from casstore import codec
from casstore.backend import BlobBackend, Kept, NewArtifact
from casstore.errors import Corrupt, InvalidArgument, MissingArtifact
from casstore.frames import FRAME_SIZE
from casstore.ids import ArtifactId
from casstore.items import PutItem
from casstore.leases import Lease
from casstore.reading import FramedReader, Reader
from casstore.reports import Buried, UndeleteReport
from casstore.steps import reach
from casstore.writing import Writer

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LEASE_S: Final = 600.0
PAGE_ROWS: Final = 1000


def buried(backend: BlobBackend) -> Iterator[Buried]:
    """Everything that can be brought back, oldest first."""
    return (
        Buried(id=ArtifactId(row.digest), gc=row.gc, until_s=row.until_s, size_bytes=row.raw_len)
        for row in _rows(backend)
    )


def of_gc(backend: BlobBackend, gc: int) -> list[bytes]:
    """What that gc removed and can be brought back. Raises: InvalidArgument where there is nothing."""
    found = [row.digest for row in _rows(backend) if row.gc == gc]
    if not found:
        raise InvalidArgument("gc", f"nothing that gc {gc} removed is in quarantine")
    return found


def undelete(
    backend: BlobBackend, reader: Reader, writer: Writer, digests: Sequence[bytes], lease: Lease,
    clock: Callable[[], float],
) -> UndeleteReport:  # fmt: skip
    """See Store.undelete. `lease` holds what is restored until the whole is."""
    wanted, known = _plan(backend, reader, digests)
    reach("undelete.planned")
    raw, renewed = 0, clock()
    for row in wanted:
        if not 0 <= clock() - renewed < LEASE_S / 4:
            renewed = clock()
            lease.renew()
        reach("undelete.before_put")
        try:
            _restore(backend, reader, writer, row, lease.name)
        except Corrupt:
            if backend.buried(row.digest) is None and backend.rows([row.digest])[0] is None:
                raise reader.missing(row.digest) from None  # its window ended just now
            raise
        for kind in row.kinds[1:]:
            backend.put([NewArtifact(row.digest, kind, row.raw_len, row.links, 0, None, 0)], int(clock()), lease.name)
        raw += row.raw_len
    backend.sync()
    return UndeleteReport(
        restored=tuple(ArtifactId(row.digest) for row in wanted), known=tuple(map(ArtifactId, known)), raw_bytes=raw
    )


def _rows(backend: BlobBackend) -> Iterator[Kept]:
    after = 0
    while page := backend.kept_page(after, PAGE_ROWS):
        yield from (row for row in page if row.until_s)
        after = page[-1].data_id


def _plan(backend: BlobBackend, reader: Reader, digests: Sequence[bytes]) -> tuple[list[Kept], list[bytes]]:
    """What to restore, with all that it links to, and what of it is there already.

    Children come first. The order of data_ids would not do: a child that was put again since is younger.
    """
    found: dict[bytes, Kept] = {}
    known: list[bytes] = []
    todo: list[tuple[bytes, bytes | None]] = [(digest, None) for digest in reversed(dict.fromkeys(digests))]
    seen = set(digests)
    while todo:
        digest, parent = todo.pop()
        if backend.rows([digest])[0] is not None:
            if parent is None:
                known.append(digest)
            continue
        row = backend.buried(digest)
        if row is None and parent is None:
            raise reader.missing(digest)
        if row is None:
            raise MissingArtifact(ArtifactId(digest), f"a link of {parent.hex()}" if parent else "undelete")
        found[digest] = row
        todo += [(link, digest) for link in dict.fromkeys(row.links) if link not in seen]
        seen.update(row.links)
    oldest_first = sorted(found.values(), key=lambda row: row.data_id)
    order = TopologicalSorter({row.digest: [link for link in row.links if link in found] for row in oldest_first})
    return [found[digest] for digest in order.static_order()], known


def _restore(backend: BlobBackend, reader: Reader, writer: Writer, row: Kept, lease: str) -> None:
    kind = row.kinds[0] if row.kinds else "other"
    chain = backend.load_data(row.data_id)
    if not chain or chain[0].digest != row.digest:
        raise Corrupt(ArtifactId(row.digest), "the record of its bytes is missing or another's")
    if chain[0].codec == codec.Codec.FRAMES and not row.links:
        # Put as a stream, without links even if the bytes hold some, and put again the same way.
        framed = FramedReader(backend, chain[0], row.digest)
        with io.BufferedReader(_Frames(framed, chain[0].raw_len), FRAME_SIZE) as source:
            put = writer.put_stream(source, kind, lease=lease, durable=False)
        if put.digest != row.digest:
            raise Corrupt(ArtifactId(row.digest), "its bytes have another hash")
        return
    data = reader.data(row.data_id, row.digest)
    # What it was a delta of is not needed any more, but makes it small again where it is there.
    bases = [digest for digest in backend.digests(row.bases) if digest is not None] if chain[0].chain else []
    hint = next((ArtifactId(base) for base in bases if backend.rows([base])[0] is not None), None)
    writer.put(PutItem(data=data, kind=kind, base=hint), lease=lease, durable=False)


@final
class _Frames(io.RawIOBase):
    """The bytes of a large artifact in quarantine, a frame at a time."""

    def __init__(self, framed: FramedReader, raw_len: int) -> None:
        self._framed, self._raw_len, self._at = framed, raw_len, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        start = self._at // FRAME_SIZE * FRAME_SIZE
        if self._at >= self._raw_len:
            return 0
        (frame,) = self._framed.frames(start, min(start + FRAME_SIZE, self._raw_len))
        data = frame[self._at - start :][: len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
