"""From stored bytes back to the artifact: decode, check against the id, let nothing wrong out."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar, final

from blake3 import blake3

from casstore import codec, forks, frames
from casstore.ahead import in_order
from casstore.backend import BlobBackend, Stored
from casstore.errors import Collected, Corrupt, DamagedStore, InvalidArgument, NotFound, Quarantined
from casstore.ids import ArtifactId
from casstore.recent import RecentBytes
from casstore.rows import PIECE_SIZE
from casstore.stage import Stage, Staged

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

B = TypeVar("B", bytes, memoryview)

WHOLE_RAW_MAX: Final = codec.DELTA_RAW_MAX  # what is longer is kept in frames
LOOK_BYTES: Final = 4 << 20
MANY_ITEMS: Final = 500
FRAMES_AHEAD: Final = 3
SMALL_RAW_MAX: Final = 32 << 10


@final
class Reader:
    """Reads artifacts of one backend, and those that are staged. Every answer is verified."""

    def __init__(self, backend: BlobBackend, recent: RecentBytes, stage: Stage | None = None) -> None:
        self._backend, self._recent, self._stage = backend, recent, stage or Stage()

    def get(self, digest: bytes, *, fresh: bool = False) -> bytes:
        """The whole artifact, proven by its id. `fresh` reads all that it is made of from the backend.

        Raises: NotFound, Collected, Corrupt.
        """
        for _ in range(3):
            bases: dict[bytes, bytes] = {}
            known = _never if fresh else functools.partial(self._known, digest, bases)
            chain = self._backend.load(digest, known)
            if chain is None:
                staged = self._stage.find(digest)
                if staged is not None:
                    data = self._unstage(staged, fresh=fresh)
                    if data is None:
                        continue
                    return data
                chain = self._backend.load(digest, known)  # it may have been settled between the two looks
            if chain is None:
                raise self.missing(digest)
            try:
                data = self._decode(chain, digest, bases)
            except _MovedOnError:
                continue  # a heal or a collection between two looks: look again
            if blake3(data).digest() != digest:
                raise Corrupt(ArtifactId(digest), "its bytes have another hash")
            return data
        if self._stage.find(digest) is not None:
            raise Corrupt(ArtifactId(digest), "it is staged, and its base is gone")
        raise self.missing(digest)

    def get_many(self, digests: Sequence[bytes]) -> list[bytes]:
        """As `get` of each, with fewer looks where they are small."""
        found: list[bytes] = []
        dictionaries: dict[int, bytes] = {}
        for start in range(0, len(digests), MANY_ITEMS):
            batch = digests[start : start + MANY_ITEMS]
            small = self._backend.load_small(batch, SMALL_RAW_MAX)
            for data_id in {one[3] for one in small if one is not None and one[3]} - dictionaries.keys():
                with suppress(Corrupt):  # for `get` to say
                    dictionaries[data_id] = self.data(data_id, digests[0])
            many = codec.decode_all(small, dictionaries)
            found += [
                data if data is not None and blake3(data).digest() == digest else self.get(digest)
                for digest, data in zip(batch, many, strict=True)
            ]
        return found

    def _unstage(self, row: Staged, *, fresh: bool) -> bytes | None:
        """Decode a staged artifact. Its base was staged before it, or is in the store; None where it is not there:
        the artifact may have been settled whole meanwhile, and its base collected."""
        base = None
        if row.base is not None:
            base = None if fresh else self._recent.get(row.base)
            if base is None:
                try:
                    base = self.get(row.base, fresh=fresh)
                except NotFound:
                    return None
                except Corrupt as error:
                    raise Corrupt(ArtifactId(row.digest), f"its base, {row.base.hex()}: {error}") from error
                self._recent.add(row.base, base)
        try:
            data = codec.decode(row.codec, row.stored, row.raw_len, base)
        except codec.DecodeError as error:
            raise Corrupt(ArtifactId(row.digest), f"staged at position {row.position}: {error}") from error
        if blake3(data).digest() != row.digest:
            raise Corrupt(ArtifactId(row.digest), f"staged at position {row.position}: its bytes have another hash")
        return data

    def is_sound(self, digest: bytes) -> bool:
        """Whether the stored copy gives the right bytes; in constant memory, however large it is."""
        try:
            head = self.head(digest)
            if head.codec == codec.Codec.FRAMES:
                return prove_frames(self._backend, head, digest)
            self.get(digest, fresh=True)
        except (Corrupt, DamagedStore, NotFound):
            return False
        return True

    def is_sound_copy(self, data_id: int, digest: bytes) -> bool:
        """The same of bytes that are kept though they are not what is visible under this digest."""
        try:
            self.data(data_id, digest, digest)
        except (Corrupt, DamagedStore):
            return False
        return True

    def has_all_pieces(self, digest: bytes) -> bool:
        """The cheap look at a large copy: its record and all its pieces are there, and those of its bases."""
        try:
            chain = self._backend.load(digest, _never, exact=True)
            if chain is None:
                return False
            head = chain[0]
            for start in range(0, head.stored_len, LOOK_BYTES):
                if self._backend.load_range(head.data_id, start, min(start + LOOK_BYTES, head.stored_len)) is None:
                    return False
        except (Corrupt, DamagedStore, NotFound):
            return False
        return True

    def data(self, data_id: int, asked: bytes, digest: bytes | None = None) -> bytes:
        """The bytes under a data_id, which may have lost their index row, checked against their own digest, or the one
        that they have to have."""
        chain = self._backend.load_data(data_id)
        if not chain:
            raise Corrupt(ArtifactId(asked), f"the record of its bytes (data_id {data_id}) is missing")
        try:
            data = self._decode(chain, asked, {})
        except _MovedOnError as error:
            raise Corrupt(ArtifactId(asked), "its bytes are gone") from error
        digest = digest or chain[0].digest
        if blake3(data).digest() != digest:
            raise Corrupt(ArtifactId(asked), f"the bytes under data_id {data_id} have another hash")
        self._recent.add(digest, data)
        return data

    def _known(self, asked: bytes, bases: dict[bytes, bytes], digest: bytes) -> bool:
        """Whether a base is at hand; it is kept in `bases`. The artifact itself is always read."""
        found = None if digest == asked else self._recent.get(digest)
        if found is not None:
            bases[digest] = found
        return found is not None

    def missing(self, digest: bytes) -> NotFound:
        """The error for an id that is not visible."""
        gone = self._backend.gone(digest)
        if gone is None:
            return NotFound(ArtifactId(digest))
        if gone.until_s:
            return Quarantined(ArtifactId(digest), gone.when_s, gone.gc, gone.until_s)
        return Collected(ArtifactId(digest), gone.when_s, gone.gc)

    def _decode(self, chain: list[Stored], asked: bytes, bases: dict[bytes, bytes]) -> bytes:
        """Bases that are right are remembered: most deltas of a run share theirs."""
        data: bytes | None = None
        for place, stored in zip(range(len(chain) - 1, -1, -1), reversed(chain), strict=True):
            if stored.digest in bases:
                data = bases[stored.digest]
                continue
            if stored.codec == codec.Codec.FRAMES:
                data = b"".join(map(bytes, FramedReader(self._backend, stored, asked).run(0)))
            elif stored.raw_len > WHOLE_RAW_MAX:
                raise Corrupt(ArtifactId(asked), f"data_id {stored.data_id}: a length of {stored.raw_len} bytes")
            else:
                try:
                    data = codec.decode(stored.codec, stored.stored, stored.raw_len, data)
                except codec.DecodeError as error:
                    raise Corrupt(ArtifactId(asked), f"data_id {stored.data_id}: {error}") from error
            if place and blake3(data).digest() == stored.digest:
                self._recent.add(stored.digest, data)
        assert data is not None
        return data

    def get_range(self, digest: bytes, start: int, length: int) -> bytes:
        """Bytes [start, start + length), cut at the end of the artifact; both from 0."""
        for _ in range(3):
            head = self.head(digest)
            if head.codec != codec.Codec.FRAMES:
                return self.get(digest)[start : start + length]
            stop = min(start + length, head.raw_len)
            if start >= stop:
                return b""
            try:
                framed = FramedReader(self._backend, head, digest)
                parts = framed.frames(start, stop)
            except _MovedOnError:
                continue  # collected, and perhaps put again: look where it is now
            parts[-1] = parts[-1][: (stop - 1) % frames.FRAME_SIZE + 1]
            parts[0] = parts[0][start % frames.FRAME_SIZE :]
            return b"".join(parts)
        raise self.missing(digest)

    def frame(
        self, digest: bytes, framed: FramedReader | None, start: int, stop: int
    ) -> tuple[FramedReader | None, codec.Bytes]:
        """Bytes [start, stop), which are one frame, and what reads others of the same artifact with fewer looks.

        Raises: NotFound, Collected, Corrupt.
        """
        for _ in range(3):
            try:
                if framed is None:
                    head = self.head(digest)
                    if head.codec != codec.Codec.FRAMES:
                        return None, self.get(digest)[start:stop]
                    framed = FramedReader(self._backend, head, digest)
                return framed, framed.frames(start, stop)[0]
            except _MovedOnError:
                framed = None  # collected, and perhaps put again: look where it is now
        raise self.missing(digest)

    def head(self, digest: bytes) -> Stored:
        """How an artifact is kept, without its bytes. One that is staged has the data_id 0.

        Raises: NotFound, Collected; Corrupt where its rows contradict each other.
        """
        chain = self._backend.load(digest, _always, exact=True)
        if chain is None:
            row = self._stage.find(digest)
            if row is not None:
                return Stored(digest, 0, row.raw_len, len(row.stored), row.codec, 0, row.chain, b"", b"")
            chain = self._backend.load(digest, _always, exact=True)
        if chain is None:
            raise self.missing(digest)
        return chain[0]

    def open(self, digest: bytes) -> io.BufferedIOBase:
        """A seekable reader of the artifact."""
        head = self.head(digest)
        if head.codec != codec.Codec.FRAMES:
            return io.BytesIO(self.get(digest))
        return io.BufferedReader(ArtifactReader(self, digest, head.raw_len), frames.FRAME_SIZE)


def _never(_: bytes) -> bool:
    return False


def _always(_: bytes) -> bool:
    return True


class _MovedOnError(Exception):
    """The bytes under a data_id are not there any more."""


@final
class _Memory:
    """What a frame is read and decoded into, again and again: the system gives fresh memory slowly."""

    __slots__ = ("_raw", "stored")

    def __init__(self, stored_max: int) -> None:
        self.stored = bytearray(stored_max + 2 * PIECE_SIZE)
        self._raw: bytearray | None = None

    def raw(self) -> bytearray:
        """Room for a frame; what is kept raw needs none."""
        if self._raw is None:
            self._raw = bytearray(frames.FRAME_SIZE)
        return self._raw


@final
class FramedReader:
    """Frames of one large artifact, each checked by the table, the table by its hash in the record."""

    def __init__(self, backend: BlobBackend, head: Stored, asked: bytes) -> None:
        self._backend, self._head, self._asked = backend, head, asked
        if not head.raw_len:
            raise Corrupt(ArtifactId(asked), "frames of no bytes")
        try:
            size = frames.table_size(head.raw_len)
            packed = self._bytes(head.stored_len - size, head.stored_len)
            self._table = frames.FrameTable.unpack(packed, head.raw_len, head.extra)
        except frames.FrameError as error:
            raise Corrupt(ArtifactId(asked), str(error)) from error

    def frames(self, start: int, stop: int) -> list[codec.Bytes]:
        """The raw frames that hold bytes [start, stop)."""
        return [self._frame(number) for number in frames.frames_for(start, stop)]

    def run(self, first: int) -> Iterator[codec.Bytes]:
        """The raw frames from that number on, some of which are decoded ahead. Each is good until the next is taken,
        which may come into the same memory."""
        free: list[_Memory] = []
        longest = min(max(entry.length for entry in self._table.entries), frames.FRAME_SIZE)
        loaded = (
            (number, self._stored(number, memory), memory)
            for number in range(first, len(self._table.entries))
            for memory in (free.pop() if free else _Memory(longest),)
        )
        for (_, _, memory), raw in in_order(lambda frame: self._decoded(*frame), loaded, most=FRAMES_AHEAD):
            yield raw
            free.append(memory)

    def _frame(self, number: int) -> codec.Bytes:
        memory = _Memory(min(self._table.entries[number].length, frames.FRAME_SIZE))
        return self._decoded(number, self._stored(number, memory), memory)

    def _stored(self, number: int, memory: _Memory) -> memoryview:
        entry = self._table.entries[number]
        start, stop = self._inside(entry.offset, entry.offset + entry.length)
        if not 0 < entry.length <= frames.FRAME_SIZE:
            raise Corrupt(ArtifactId(self._asked), f"frame {number}: {entry.length} bytes are stored")
        return _there(self._backend.load_into(self._head.data_id, start, stop, memory.stored))

    def _decoded(self, number: int, stored: memoryview, memory: _Memory) -> codec.Bytes:
        entry = self._table.entries[number]
        raw_len = min(frames.FRAME_SIZE, self._head.raw_len - number * frames.FRAME_SIZE)
        try:
            return frames.decode_frame(entry, stored, raw_len, memory.raw() if entry.codec else None)
        except frames.FrameError as error:
            raise Corrupt(ArtifactId(self._asked), f"frame {number}: {error}") from error

    def _bytes(self, start: int, stop: int) -> bytes:
        return _there(self._backend.load_range(self._head.data_id, *self._inside(start, stop)))

    def _inside(self, start: int, stop: int) -> tuple[int, int]:
        if not 0 <= start <= stop <= self._head.stored_len:
            raise Corrupt(ArtifactId(self._asked), "a frame lies outside of its bytes")
        return start, stop


def _there(found: B | None) -> B:
    if found is None:
        raise _MovedOnError
    return found


def prove_frames(backend: BlobBackend, head: Stored, asked: bytes) -> bool:
    """Read a large artifact frame by frame, in constant memory, and check all of it against its id. False where it
    was collected or healed meanwhile. Raises: Corrupt."""
    hasher = blake3()
    try:
        for raw in FramedReader(backend, head, asked).run(0):
            hasher.update(raw)
    except _MovedOnError:
        return False
    if hasher.digest() != asked:
        raise Corrupt(ArtifactId(asked), "its bytes have another hash")
    return True


@final
class ArtifactReader(io.RawIOBase):
    """A file-like view of a large artifact: each read decodes and checks the frames that it touches.

    That finds damage; only a full read proves the id.
    """

    def __init__(self, reader: Reader, digest: bytes, size: int) -> None:
        self._reader, self._digest, self._size, self._at = reader, digest, size, 0
        self._framed: FramedReader | None = None
        self._number = -1  # of the frame that is remembered
        self._data: codec.Bytes = b""
        self._run: Iterator[codec.Bytes] | None = None  # what comes after it, where frames are read in turn
        self._pid = forks.pid

    def _frame(self) -> codec.Bytes:
        """The raw frame at the place. It is remembered, and so is the table."""
        number = self._at // frames.FRAME_SIZE
        if self._number != number:
            follows, self._number, self._data = number == self._number + 1, -1, b""
            data = self._following(number) if follows else None
            if data is None:
                self._run = None
                start = number * frames.FRAME_SIZE
                stop = min(start + frames.FRAME_SIZE, self._size)
                self._framed, data = self._reader.frame(self._digest, self._framed, start, stop)
            self._number, self._data = number, data
        return self._data

    def _following(self, number: int) -> codec.Bytes | None:
        """The frame after the last; None where it has to be looked for. A child that was forked has none of the threads
        that decode ahead."""
        if self._framed is None or self._pid != forks.pid:
            return None
        if self._run is None:
            self._run = self._framed.run(number)
        try:
            return next(self._run)
        except _MovedOnError:
            self._framed = None
            return None

    def close(self) -> None:
        self._run = None
        self._data = b""
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise InvalidArgument("offset", "must not lie before the start")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if self._at >= self._size or not view:
            return 0
        start = self._at % frames.FRAME_SIZE  # and to the end of that frame at most
        data = memoryview(self._frame())[start : start + len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
