"""Artifacts out of a store and into one, as CAR v1 files (docs/FORMAT.md, section 5)."""

from __future__ import annotations

import io
import os
import secrets
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Final, NamedTuple, cast, final

from blake3 import blake3

from casstore import car
from casstore.arguments import instance, several
from casstore.backend import BlobBackend, UploadLost
from casstore.disks import flush
from casstore.errors import Corrupt, InvalidArgument, MissingArtifact, NotFound
from casstore.frames import FRAME_SIZE
from casstore.ids import ArtifactId
from casstore.items import LINK_PREFIX, PutItem, links_of
from casstore.leases import Lease
from casstore.reading import Reader
from casstore.reports import ArtifactInfo, ExportReport, ImportReport
from casstore.roots import RootSource
from casstore.steps import reach
from casstore.uploads import read_some
from casstore.writing import BATCH_BYTES, BATCH_ITEMS, Writer

if TYPE_CHECKING:
    from casstore.store import Store

LEASE_S: Final = 3600
VALUE_BYTES_MAX: Final = 32 << 20  # above, a block is not decoded to find its links
_CONTAINERS: Final = range(0x80, 0xC0)  # first bytes of CBOR arrays and maps: nothing else above 1 MiB has links

Progress = Callable[[int], None]
Wanted = ArtifactId | Iterable[ArtifactId] | RootSource


# -- export -------------------------------------------------------------------------------------------------


def export_car(
    store: Store, wanted: Wanted, out: str | os.PathLike[str] | BinaryIO, *, shallow: bool, progress: Progress | None
) -> ExportReport:
    """See Store.export."""
    roots = wanted_ids(wanted)
    with ExitStack() as cleanup:
        hold: _Hold | None = None
        if store.read_only:
            for root in roots:
                store.info(root)  # absent ones are found before the file is touched
        else:
            hold = _Hold(cleanup.enter_context(store.lease(LEASE_S)), store)
            hold.lease.add(*roots)
        writer = _CarWriter(cleanup.enter_context(_output(out)), progress)
        writer.write(car.header(roots))
        only = frozenset(roots) if shallow else None
        artifacts = raw_bytes = 0
        for info in _children_first(store, roots, only):
            for part in _block(store, info):
                writer.write(part)
                if hold is not None:
                    hold.renew()
            artifacts += 1
            raw_bytes += info.size_bytes
    return ExportReport(roots=roots, artifacts=artifacts, raw_bytes=raw_bytes, file_bytes=writer.size)


def wanted_ids(wanted: Wanted) -> tuple[ArtifactId, ...]:
    """Distinct ids in order: one, several, or all that live runs of a root source name.

    Raises: InvalidArgument where there are none, or something else is among them.
    """
    if isinstance(wanted, ArtifactId):
        return (wanted,)
    if isinstance(wanted, RootSource):
        wanted = (root.id for root in wanted.live_roots(completed_after_ms=None))
    ids = tuple(dict.fromkeys(instance(id, ArtifactId, "ids") for id in several(wanted, "ids")))
    if not ids:
        raise InvalidArgument("ids", "there is nothing to export")
    return ids


def _children_first(
    store: Store, roots: Sequence[ArtifactId], only: frozenset[ArtifactId] | None
) -> Iterator[ArtifactInfo]:
    """Roots and all that they link to (or of `only`), each once, after what it links to itself."""
    seen: set[ArtifactId] = set()
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        info = store.info(root)
        path = [(info, iter(info.links))]
        while path:
            info, links = path[-1]
            child = next((link for link in links if link not in seen and (only is None or link in only)), None)
            if child is None:
                path.pop()
                yield info
            else:
                seen.add(child)
                below = store.info(child)
                path.append((below, iter(below.links)))


def _block(store: Store, info: ArtifactInfo) -> Iterator[bytes]:
    """A block of the file in parts. Raises: Corrupt, at the latest before its last part."""
    head = car.block_head(info.id, info.size_bytes)
    if info.size_bytes <= FRAME_SIZE:
        yield head + store.get(info.id)
        return
    yield head
    hasher, left = blake3(), info.size_bytes
    with store.open_reader(info.id) as reader:
        while part := reader.read(FRAME_SIZE):
            hasher.update(part)
            left -= len(part)
            if not left and hasher.digest() != info.id.digest:
                break
            yield part
    if left or hasher.digest() != info.id.digest:
        raise Corrupt(info.id, "its bytes have another hash")


@final
class _CarWriter:
    """Counts what it writes; a raw stream may take less than it is given."""

    def __init__(self, out: BinaryIO, progress: Progress | None) -> None:
        self._out, self._progress = out, progress
        self.size = 0

    def write(self, data: bytes) -> None:
        written = self._out.write(data)
        while written is not None and written < len(data):
            written += self._out.write(data[written:])
        self.size += len(data)
        if self._progress is not None:
            self._progress(len(data))


@contextmanager
def _output(out: str | os.PathLike[str] | BinaryIO) -> Iterator[BinaryIO]:
    """A stream as it is; a file all at once at the end, and durable: killed, there is no half file of that name."""
    if not isinstance(out, (str, os.PathLike)):
        if not hasattr(out, "write"):
            raise InvalidArgument("out", f"{type(out).__name__} is neither a path nor a binary stream")
        yield out
        return
    path = Path(os.path.realpath(out))
    if path.exists() and not path.is_file():  # a pipe or a device must not be replaced by a file
        with open(path, "wb") as stream:
            yield stream
        return
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        try:
            file = open(part, "xb")  # noqa: SIM115 - so that the error names the path that was given
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from None
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush(path.parent)


# -- import -------------------------------------------------------------------------------------------------


def import_car(
    store: Store, backend: BlobBackend, writer: Writer, reader: Reader, src: str | os.PathLike[str] | BinaryIO, *,
    kind: str, pin: str | None, lease: Lease | None, progress: Progress | None,
) -> ImportReport:  # fmt: skip
    """See Store.import_."""
    with ExitStack() as cleanup:
        if isinstance(src, (str, os.PathLike)):
            source: BinaryIO = cleanup.enter_context(open(src, "rb"))
            path = os.fspath(src)
        elif hasattr(src, "read"):
            source, path = src, str(getattr(src, "name", "the stream"))
        else:
            raise InvalidArgument("src", f"{type(src).__name__} is neither a path nor a binary stream")
        incoming = _Incoming(source, path, cleanup)
        given = nullcontext(instance(lease, Lease, "lease")) if lease is not None else store.lease(LEASE_S)
        held = cleanup.enter_context(given)
        hold = _Hold(held, store if lease is None else None)
        importer = _Importer(backend, writer, reader, hold, incoming, kind, progress)
        importer.run()
        reach("import.blocks")
        roots = incoming.car.roots
        pins = dict(zip(pin_names(pin, len(roots)), roots, strict=True)) if pin is not None else {}
        for name, root in pins.items():
            store.pin(name, root)
    return ImportReport(
        roots=roots, blocks=importer.blocks, raw_bytes=importer.raw_bytes, known=importer.known,
        late=importer.late, unlinked=tuple(importer.unlinked), pins=pins,
    )  # fmt: skip


def pin_names(name: str, roots: int) -> list[str]:
    """NAME for one root, NAME/0, NAME/1, … for several."""
    return [name] if roots == 1 else [f"{name}/{place}" for place in range(roots)]


@final
class _Hold:
    """A lease; one of our own is renewed as long as there is progress."""

    def __init__(self, lease: Lease, owner: Store | None) -> None:
        self.lease, self._clock = lease, owner._clock if owner is not None else None
        self._renewed = self._clock() if self._clock is not None else 0.0

    def renew(self) -> None:
        if self._clock is not None and not 0 <= self._clock() - self._renewed < LEASE_S / 4:
            self._renewed = self._clock()
            self.lease.renew()


@final
class _Incoming:
    """The file being imported: its blocks in order, then any of those that were put aside, once more."""

    def __init__(self, source: BinaryIO, path: str, cleanup: ExitStack) -> None:
        self._source, self.path, self._cleanup = source, path, cleanup
        self._seekable = bool(getattr(source, "seekable", lambda: False)())
        self._origin = source.tell() if self._seekable else 0
        self._spill: IO[bytes] | None = None
        self.car = car.CarReader(self, path)

    def read(self, size: int, /) -> bytes:
        return read_some(self._source, size, "src")

    def put_aside(self, offset: int, data: bytes) -> int:
        """Where `again` finds the block: in the source, or, where that cannot go back, in a temporary file."""
        if self._seekable:
            return self._origin + offset
        if self._spill is None:
            self._spill = self._cleanup.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        place = self._spill.seek(0, io.SEEK_END)
        self._spill.write(data)
        return place

    def again(self, id: ArtifactId, place: int, length: int) -> bytes:
        """The bytes of a block that was put aside. Only after the last block was read."""
        file = self._spill or self._source
        file.seek(place)
        parts, left = [], length
        while left and (part := file.read(min(left, car.READ_BYTES_MAX))):
            parts.append(part)
            left -= len(part)
        data = b"".join(parts)
        if ArtifactId.of(data) != id:
            raise self.car.error(place - self._origin, f"the file changed while it was read: block {id}")
        return data


class _Ready(NamedTuple):
    """A block in memory, proven; `links` are those of its bytes."""

    id: ArtifactId
    offset: int
    data: bytes
    links: tuple[bytes, ...]


class _Late(NamedTuple):
    """A block put aside: what it links to was not there when it came."""

    place: int
    length: int
    missing: set[bytes]


@final
class _Order:
    """Blocks that wait for others. `ready` are those that wait for none. Pure."""

    def __init__(self, missing: dict[bytes, set[bytes]]) -> None:
        self.missing = missing
        self.ready = deque(digest for digest, waited in missing.items() if not waited)
        self._parents: dict[bytes, list[bytes]] = {}
        for digest, waited in missing.items():
            for link in waited:
                self._parents.setdefault(link, []).append(digest)

    def done(self, digest: bytes) -> None:
        """It waits no more, and nobody for it."""
        del self.missing[digest]
        for parent in self._parents.pop(digest, ()):
            waited = self.missing[parent]
            waited.discard(digest)
            if not waited:
                self.ready.append(parent)


@final
class _Importer:
    """Puts blocks under a lease, in batches, each after what it links to."""

    def __init__(
        self, backend: BlobBackend, writer: Writer, reader: Reader, hold: _Hold, incoming: _Incoming, kind: str,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self._backend, self._writer, self._reader = backend, writer, reader
        self._hold, self._incoming, self._car = hold, incoming, incoming.car
        self._kind, self._progress = kind, progress
        self._told = 0
        self._batch: list[_Ready] = []
        self._batch_bytes = 0
        self._late: dict[bytes, _Late] = {}
        self.blocks = self.raw_bytes = self.known = self.late = 0
        self.unlinked: list[ArtifactId] = []

    def run(self) -> None:
        """Raises: InvalidCar, MissingArtifact, StoreFull, LeaseLost. What was put before stays, each under its
        own id."""
        while (block := self._car.next_block()) is not None:
            self.blocks += 1
            self.raw_bytes += block.length
            first = self._car.read()
            if block.length <= FRAME_SIZE or (block.length <= VALUE_BYTES_MAX and first[0] in _CONTAINERS):
                data = first + self._car.read_block()
                self._add(_Ready(block.id, block.offset, data, links_of(data)))
            else:
                self._flush()  # an interrupted upload is lost, what came before it need not be
                self._stream(block, first)
            self._step()
        self._flush()
        self._settle()
        self._check_roots()

    def _step(self) -> None:
        self._hold.renew()
        if self._progress is not None:
            self._progress(self._car.offset - self._told)
            self._told = self._car.offset

    def _visible(self, digests: Iterable[bytes]) -> set[bytes]:
        asked = list(dict.fromkeys(digests))
        found: set[bytes] = set()
        for start in range(0, len(asked), BATCH_ITEMS):
            found.update(row.digest for row in self._backend.rows(asked[start : start + BATCH_ITEMS]) if row)
        return found

    def _stream(self, block: car.Block, first: bytes) -> None:
        """A large block that is not looked into: a hit where it is there, else an upload."""
        stream = _BlockStream(first, self._car, self._step)
        if self._is_held(block.id):
            self.known += 1
            while stream.read(car.READ_BYTES_MAX):
                pass
            return
        # The reader of the CAR raises before it gives out the last bytes of a wrong block: the upload is dropped.
        self._writer.put_stream(cast("BinaryIO", stream), self._kind, lease=self._hold.lease.name)
        if stream.linked and first[0] in _CONTAINERS:
            self.unlinked.append(block.id)

    def _is_held(self, id: ArtifactId) -> bool:
        """Whether a large artifact is there, and under our lease now."""
        if self._backend.rows([id.digest])[0] is None or not self._reader.has_all_pieces(id.digest):
            return False
        try:
            self._hold.lease.add(id)
        except NotFound:
            return False
        return True

    def _add(self, block: _Ready) -> None:
        if self._batch and self._batch_bytes + len(block.data) > BATCH_BYTES:
            self._flush()
        self._batch.append(block)
        self._batch_bytes += len(block.data)
        if len(self._batch) >= BATCH_ITEMS:
            self._flush()

    def _flush(self) -> None:
        """Put the batch; aside with those whose links are neither in the store nor before them in the batch."""
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        there = self._visible(digest for block in batch for digest in (block.id.digest, *block.links))
        self.known += sum(block.id.digest in there for block in batch)
        ready = []
        for block in batch:
            missing = {link for link in block.links if link not in there}
            if missing:
                self._put_aside(block, missing)
            else:
                ready.append(block)
                there.add(block.id.digest)
        for block in self._put(ready):
            self._put_aside(block, set(block.links) - self._visible(block.links))

    def _put_aside(self, block: _Ready, missing: set[bytes]) -> None:
        if block.id.digest not in self._late:
            place = self._incoming.put_aside(block.offset, block.data)
            self._late[block.id.digest] = _Late(place, len(block.data), missing)
            self.late += 1

    def _put(self, ready: Sequence[_Ready]) -> list[_Ready]:
        """Put in order; those come back whose links were not there when it came to it."""
        lease, refused = self._hold.lease.name, []
        items = [PutItem(data=block.data, kind=self._kind) for block in ready]
        try:
            self._writer.put_many(items, lease=lease)
        except (MissingArtifact, InvalidArgument, UploadLost):
            for block, item in zip(ready, items, strict=True):
                try:
                    self._writer.put(item, lease=lease)
                except MissingArtifact:
                    refused.append(block)
                except (InvalidArgument, UploadLost):  # there already, as a stream older than what it links to
                    self._put_unlinked(block.id, block.data)
        return refused

    def _put_unlinked(self, id: ArtifactId, data: bytes) -> None:
        """As `put_file` does: a large artifact without links (docs/FORMAT.md, 2.3)."""
        self._writer.put_stream(io.BytesIO(data), self._kind, lease=self._hold.lease.name)
        self.unlinked.append(id)

    def _settle(self) -> None:
        """Put what was put aside, each block as soon as the last of what it waits for is put."""
        there = self._visible(link for late in self._late.values() for link in late.missing)
        order = _Order({digest: late.missing - there for digest, late in self._late.items()})
        while order.missing:
            batch = self._take(order)
            if not batch:
                self._give_up_links(order)
            for block in self._put(batch):
                raise self._missing(block.id.digest, set(block.links) - self._visible(block.links))
            self._step()

    def _take(self, order: _Order) -> list[_Ready]:
        """A batch in order: a block may link to those before it."""
        batch: list[_Ready] = []
        size = 0
        while order.ready and len(batch) < BATCH_ITEMS:
            late = self._late[order.ready[0]]
            if batch and size + late.length > BATCH_BYTES:
                break
            id = ArtifactId(order.ready.popleft())
            data = self._incoming.again(id, late.place, late.length)
            batch.append(_Ready(id, late.place, data, links_of(data)))
            size += late.length
            order.done(id.digest)
        return batch

    def _give_up_links(self, order: _Order) -> None:
        """What links to nothing that is there can only be what `put_file` took: large, and without links."""
        for digest, missing in order.missing.items():
            late = self._late[digest]
            if late.length > FRAME_SIZE and not missing & order.missing.keys():
                id = ArtifactId(digest)
                self._put_unlinked(id, self._incoming.again(id, late.place, late.length))
                order.done(digest)
                return
        for digest, missing in order.missing.items():
            if absent := missing - order.missing.keys():
                raise self._missing(digest, absent)

    def _missing(self, digest: bytes, links: set[bytes]) -> MissingArtifact:
        link = min(links) if links else digest
        return MissingArtifact(ArtifactId(link), f"a link of {digest.hex()} in {self._incoming.path}")

    def _check_roots(self) -> None:
        """A file cut between two blocks looks whole but for its roots, which come last."""
        there = self._visible(root.digest for root in self._car.roots)
        for root in self._car.roots:
            if root.digest not in there:
                reason = f"the root {root} is neither in the file nor in the store: the file is cut short"
                raise self._car.error(self._car.offset, reason)


@final
class _BlockStream:
    """The block that a reader stands in, after the bytes that were looked at; whether there is a link in it."""

    def __init__(self, first: bytes, reader: car.CarReader, step: Callable[[], None]) -> None:
        self._first, self._reader, self._step = first, reader, step
        self._tail = b""
        self.linked = False

    def read(self, size: int) -> bytes:
        part, self._first = self._first[:size], self._first[size:]
        if not part and size:
            part = self._reader.read(size)
            self._step()
        if not self.linked:
            seam = self._tail + part
            self.linked = LINK_PREFIX in seam
            self._tail = seam[-len(LINK_PREFIX) + 1 :]
        return part
