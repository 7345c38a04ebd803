"""Large artifacts on their way in: frames, cut into pieces, some MiB a transaction, in constant memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import BinaryIO, Final, NamedTuple, final

from blake3 import blake3

from casstore import frames
from casstore.ahead import in_order, threads
from casstore.backend import BlobBackend
from casstore.errors import InvalidArgument
from casstore.rows import PIECE_SIZE
from casstore.steps import reach

FRAMES_AHEAD: Final = 5
UPLOAD_PIECES: Final = (3 << 20) // PIECE_SIZE  # of a large artifact in one transaction: what caches hold


class Written(NamedTuple):
    """What lies under the data_id of an upload: the digest and length of the raw bytes, the stored length, and the hash
    of the frame table."""

    digest: bytes
    raw_len: int
    stored_len: int
    seal: bytes


def write_frames(
    backend: BlobBackend, upload: int, raw_frames: Iterator[bytes], check_room: Callable[[int, int], None],
    progress: Callable[[int], None] | None,
) -> Written:  # fmt: skip
    """Write frames, then their table, into an upload. Not visible before it is put, nor durable before a sync."""
    hasher, table, raw_len = blake3(), frames.FrameTable(), 0
    with _PieceWriter(backend, upload, check_room) as pieces:
        for raw, (entry, stored) in in_order(frames.encode_frame, raw_frames, most=FRAMES_AHEAD):
            hasher.update(raw)
            raw_len += len(raw)
            table.entries.append(entry._replace(offset=pieces.stored_len))
            pieces.write(stored)
            if progress:
                progress(len(raw))
        packed, seal = table.pack()
        pieces.write(packed)
        pieces.flush()
    return Written(hasher.digest(), raw_len, pieces.stored_len, seal)


@final
class _PieceWriter:
    """Cuts a stream of stored bytes into pieces of one page. A thread of its own writes them some MiB at a time, so
    that what comes next is read, hashed and encoded while a commit is flushed; one batch is on its way."""

    def __init__(self, backend: BlobBackend, upload: int, check_room: Callable[[int, int], None]) -> None:
        self._backend, self._upload, self._check_room = backend, upload, check_room
        self._pieces: list[bytes] = []
        self._rest = b""  # the beginning of the next piece
        self._sent_pieces = self._sent_bytes = 0
        self._thread = threads(1)
        self._sent: Future[None] | None = None
        self.stored_len = 0

    def __enter__(self) -> _PieceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def write(self, data: bytes) -> None:
        self.stored_len += len(data)
        first = PIECE_SIZE - len(self._rest)
        if len(data) < first:
            self._rest += data
            return
        end = len(data) - (len(data) - first) % PIECE_SIZE
        self._pieces.append(self._rest + data[:first])
        self._pieces += [data[at : at + PIECE_SIZE] for at in range(first, end, PIECE_SIZE)]
        self._rest = data[end:]
        if len(self._pieces) >= UPLOAD_PIECES:
            self._send()

    def flush(self) -> None:
        """Until everything is written. Raises: what a write of it raised."""
        if self._rest:
            self._pieces.append(self._rest)
            self._rest = b""
        self._send()
        self._wait()

    def _wait(self) -> None:
        sent, self._sent = self._sent, None
        if sent is not None:
            sent.result()

    def _send(self) -> None:
        pieces, self._pieces = self._pieces, []
        if not pieces:
            return
        self._wait()
        self._check_room(sum(map(len, pieces)), self._sent_bytes)
        self._sent_bytes += sum(map(len, pieces))
        self._sent = self._thread.submit(self._commit, self._sent_pieces, pieces)
        self._sent_pieces += len(pieces)

    def _commit(self, first: int, pieces: list[bytes]) -> None:
        self._backend.upload_write(self._upload, first, pieces)
        reach("upload.piece")


def read_up_to(source: BinaryIO, size: int) -> bytes:
    """Short reads happen (pipes, sockets): read until there is enough or no more."""
    parts, have = [], 0
    while have < size and (part := read_some(source, size - have, "source")):
        parts.append(part)
        have += len(part)
    return b"".join(parts)


def read_some(source: BinaryIO, size: int, name: str) -> bytes:
    """Up to so many bytes of a stream that a caller gave as `name`; none at its end. Raises: InvalidArgument where it
    keeps no such promise: what it gave would be stored as what it did not mean."""
    part = source.read(size)
    if part is None:
        raise InvalidArgument(name, "must be a blocking stream: read gave None, which is not the end")
    if not isinstance(part, (bytes, bytearray, memoryview)):
        raise InvalidArgument(name, f"must be a binary stream, read gave {type(part).__name__}")
    part = bytes(part)
    if len(part) > size:
        raise InvalidArgument(name, f"read({size}) gave {len(part)} bytes")
    return part


def frames_of(first: bytes, source: BinaryIO | None) -> Callable[[], Iterator[bytes]]:
    """Frames of the bytes read so far and of what follows."""

    def generate() -> Iterator[bytes]:
        begun = io.BytesIO(first)
        while True:
            frame = begun.read(frames.FRAME_SIZE)
            if source is not None and len(frame) < frames.FRAME_SIZE:
                frame += read_up_to(source, frames.FRAME_SIZE - len(frame))
            if not frame:
                return
            yield frame

    return generate
