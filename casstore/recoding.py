"""Other encodings for artifacts that are there: read and proven, encoded anew, decoded again, and only then put in the
place of the old ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, final

from casstore import codec, frames
from casstore.backend import BlobBackend, NewEncoding, Record
from casstore.errors import Corrupt, DamagedStore, NotFound
from casstore.reading import Reader
from casstore.recent import RecentBytes
from casstore.steps import reach

PAGE_ROWS: Final = 1000
BATCH_BYTES: Final = 4 << 20
BATCH_ITEMS: Final = 200


class Base(NamedTuple):
    """What an artifact may be made against: digest, data_id, on how many bases it rests itself, and whether it is a
    trained dictionary."""

    digest: bytes
    data_id: int
    depth: int
    trained: bool = False


class Encoding(NamedTuple):
    """Stored bytes; `base` where they need it, `extra` as in a record."""

    codec: int
    stored: bytes
    base: Base | None = None
    extra: bytes = b""


class Stop(Exception):
    """A limit was reached: time or bytes."""


@final
class Recoder:
    """What both halves of a re-encoding use. `skipped` are the artifacts that could not be read, or proven anew."""

    def __init__(
        self, backend: BlobBackend, *, check_room: Callable[[int], None], now: Callable[[], int],
        timer: Callable[[], float], time_s: float | None, bytes_max: int | None,
    ) -> None:  # fmt: skip
        self.backend = backend
        self.skipped: set[bytes] = set()
        self._reader = Reader(backend, RecentBytes())
        self._proven = RecentBytes()  # read in this pass, all of it from what is stored
        self._check_room, self._now, self._timer = check_room, now, timer
        self._until = None if time_s is None else timer() + time_s
        self._bytes_left = bytes_max
        self._batch: list[NewEncoding] = []

    def check_limits(self) -> None:
        """Raises: Stop."""
        if self._until is not None and self._timer() >= self._until:
            raise Stop("time")
        if self._bytes_left is not None and self._bytes_left <= 0:
            raise Stop("bytes")

    def records(self, after: int = 0) -> Iterator[Record]:
        """Everything kept under greater data_ids, ascending. Raises: DamagedStore, Stop."""
        while page := self.backend.records(after, PAGE_ROWS):
            self.check_limits()
            yield from page
            after = page[-1].data_id

    def read(self, digest: bytes) -> bytes | None:
        """The bytes of a visible artifact, proven by its id; None where what is stored does not give them."""
        data = self._proven.get(digest)
        if data is not None:
            return data
        try:
            data = self._reader.get(digest, fresh=True)
        except NotFound:
            return None
        except (Corrupt, DamagedStore):
            self.skipped.add(digest)
            return None
        self._proven.add(digest, data)
        return data

    def encode(self, data: bytes, base: Base | None) -> Encoding | None:
        """Whole, or against a base where that helps; None where the base cannot be read."""
        used = None if base is None else self.read(base.digest)
        if base is not None and used is None:
            return None
        if self._bytes_left is not None:
            self._bytes_left -= len(data)
        if base is None or used is None:
            found = _whole(data)
        else:
            packed = codec.encode_with(data, used) if base.trained else codec.encode(data, used)
            found = Encoding(packed.codec, packed.stored, base) if codec.needs_base(packed.codec) else _whole(data)
        return found

    def replace(self, record: Record, data: bytes, fresh: Encoding) -> list[Record]:
        """Put the new encoding into the next transaction, if it gives the bytes again. What was written, as it was
        before, once that transaction was full."""
        if self._decode(fresh, len(data)) != data:
            self.skipped.add(record.digest)
            return []
        at = None if fresh.base is None else (fresh.base.digest, fresh.base.data_id)
        chain = record.chain if codec.is_delta(fresh.codec) else 0
        self._batch.append(NewEncoding(record, fresh.codec, fresh.stored, at, chain, fresh.extra))
        full = len(self._batch) >= BATCH_ITEMS or sum(len(item.stored) for item in self._batch) >= BATCH_BYTES
        return self.write() if full else []

    def write(self) -> list[Record]:
        """Write what waits; the records, as they were before, of what has its new encoding now. Raises: StoreFull."""
        batch, self._batch = self._batch, []
        if not batch:
            return []
        self._check_room(sum(len(item.stored) for item in batch))
        reach("compact.before_reencode")
        done = self.backend.reencode(batch, self._now())
        reach("compact.reencoded")
        return [item.record for item, replaced in zip(batch, done, strict=True) if replaced]

    def _decode(self, found: Encoding, raw_len: int) -> bytes | None:
        base = None if found.base is None else self.read(found.base.digest)
        if found.codec != codec.Codec.FRAMES:
            try:
                return codec.decode(found.codec, found.stored, raw_len, base)
            except codec.DecodeError:
                return None
        size = frames.table_size(raw_len)
        try:
            table = frames.FrameTable.unpack(found.stored[-size:], raw_len, found.extra)
            return b"".join(
                frames.decode_frame(
                    entry, found.stored[entry.offset : entry.offset + entry.length],
                    min(frames.FRAME_SIZE, raw_len - place * frames.FRAME_SIZE),
                ) for place, entry in enumerate(table.entries)
            )  # fmt: skip
        except frames.FrameError:
            return None


def _whole(data: bytes) -> Encoding:
    """As a put stores it: above one frame as frames."""
    if len(data) <= frames.FRAME_SIZE:
        packed = codec.encode_whole(data)
        return Encoding(packed.codec, packed.stored)
    table, parts, offset = frames.FrameTable(), [], 0
    for at in range(0, len(data), frames.FRAME_SIZE):
        entry, stored = frames.encode_frame(data[at : at + frames.FRAME_SIZE], offset)
        table.entries.append(entry)
        parts.append(stored)
        offset += len(stored)
    tail, seal = table.pack()
    return Encoding(codec.Codec.FRAMES, b"".join((*parts, tail)), None, seal)
