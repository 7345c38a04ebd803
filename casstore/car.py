"""CAR v1, the container in which IPLD tools exchange blocks (docs/FORMAT.md, section 5). Pure: bytes in, bytes out.

Reading trusts nothing: no length that is read makes an allocation before its bytes have come, and a block's last
bytes are given out only when the whole has the hash that its CID says.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, final

from blake3 import blake3

from casstore.errors import InvalidCar
from casstore.ids import DIGEST_SIZE_BYTES, ArtifactId
from casstore.varints import varint

CID_PREFIX: Final = b"\x01\x55\x1e\x20"  # CIDv1, raw, blake3, 32 bytes: what a link inside of a value holds
CID_SIZE_BYTES: Final = len(CID_PREFIX) + DIGEST_SIZE_BYTES
HEADER_BYTES_MAX: Final = 32 << 20
READ_BYTES_MAX: Final = 1 << 20
VARINT_BYTES_MAX: Final = 9
_NAME_BYTES_MAX: Final = 256  # of a foreign CID, to name it in an error
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class Source(Protocol):
    """Where bytes come from: at most `size` at a time, none at the end."""

    def read(self, size: int, /) -> bytes: ...


class Block(NamedTuple):
    """A block of the file: its digest, and where its bytes lie, counted from the file's first byte."""

    id: ArtifactId
    offset: int
    length: int


def header(roots: Sequence[ArtifactId]) -> bytes:
    """The file up to its first block."""
    links = b"".join(b"\xd8\x2a\x58\x25\x00" + CID_PREFIX + root.digest for root in roots)
    body = b"\xa2\x65roots" + _cbor_head(4, len(roots)) + links + b"\x67version\x01"
    return varint(len(body)) + body


def block_head(id: ArtifactId, length: int) -> bytes:
    """What stands before the `length` bytes of a block."""
    return varint(CID_SIZE_BYTES + length) + CID_PREFIX + id.digest


@final
class CarReader:
    """Reads a file from front to back: `roots`, then for each block `next_block` and `read` until it is empty.

    `path` is the name for errors. Raises: InvalidCar, from every method.
    """

    def __init__(self, source: Source, path: str) -> None:
        self._source, self._path = source, path
        self.offset = 0
        self._block: Block | None = None
        self._left = 0
        self._hasher = blake3()
        self.roots = self._read_header()

    def next_block(self) -> Block | None:
        """The next block, None at the end of the file. The one before must have been read to its end."""
        assert not self._left, "a block was not read to its end"
        start = self.offset
        length = self._read_varint(optional=True)
        if length is None:
            return None
        if not length:
            raise self.error(start, "a section of length 0")
        cid = self._exactly(min(length, len(CID_PREFIX)), "a CID")
        if cid != CID_PREFIX or length < CID_SIZE_BYTES:
            cid += self._exactly(min(length, _NAME_BYTES_MAX) - len(cid), "a CID")
            raise self.error(start, refusal(cid))
        id = ArtifactId(self._exactly(DIGEST_SIZE_BYTES, "a CID"))
        self._block, self._left = Block(id, self.offset, length - CID_SIZE_BYTES), length - CID_SIZE_BYTES
        self._hasher = blake3()
        if not self._left:
            self._prove()
        return self._block

    def read(self, size: int = READ_BYTES_MAX) -> bytes:
        """The next bytes of the block, at most `size`; none at its end."""
        wanted = min(self._left, READ_BYTES_MAX, size)
        if wanted <= 0:
            return b""
        part = self._source.read(wanted)
        if not part:
            raise self.error(self.offset, f"the file ends {self._left} bytes before the end of a block")
        self.offset += len(part)
        self._left -= len(part)
        self._hasher.update(part)
        if not self._left:
            self._prove()
        return part

    def read_block(self) -> bytes:
        """All that is left of the block."""
        parts = []
        while part := self.read():
            parts.append(part)
        return b"".join(parts)

    def error(self, offset: int, reason: str) -> InvalidCar:
        return InvalidCar(self._path, offset, reason)

    def _prove(self) -> None:
        assert self._block is not None
        if self._hasher.digest() != self._block.id.digest:
            text = cid_text(CID_PREFIX + self._block.id.digest)
            raise self.error(self._block.offset, f"the bytes of block {self._block.id} ({text}) have another hash")

    def _read_header(self) -> tuple[ArtifactId, ...]:
        length = self._read_varint(optional=False)
        assert length is not None
        if not 0 < length <= HEADER_BYTES_MAX:
            raise self.error(0, f"no CAR file: a header of {length} bytes")
        start = self.offset
        data = self._exactly(length, "the header")
        try:
            return parse_header(data)
        except _HeaderError as error:
            raise self.error(start + error.at, error.reason) from None

    def _read_varint(self, *, optional: bool) -> int | None:
        start, number = self.offset, 0
        for place in range(VARINT_BYTES_MAX):
            byte = self._source.read(1)
            if not byte:
                if optional and not place:
                    return None
                raise self.error(self.offset, "the file ends inside of a length" if place else "the file is empty")
            self.offset += 1
            number |= (byte[0] & 0x7F) << 7 * place
            if byte[0] < 0x80:
                if place and not byte[0]:
                    raise self.error(start, "a length that is not in its shortest form")
                return number
        raise self.error(start, f"a length of more than {VARINT_BYTES_MAX} bytes")

    def _exactly(self, size: int, what: str) -> bytes:
        parts, missing = [], size
        while missing > 0:
            part = self._source.read(min(missing, READ_BYTES_MAX))
            if not part:
                raise self.error(self.offset, f"the file ends inside of {what}")
            parts.append(part)
            self.offset += len(part)
            missing -= len(part)
        return b"".join(parts)


class _HeaderError(Exception):
    def __init__(self, at: int, reason: str) -> None:
        super().__init__(at, reason)
        self.at, self.reason = at, reason


def parse_header(data: bytes) -> tuple[ArtifactId, ...]:
    """The roots. Only the canonical DAG-CBOR of {"roots": [links], "version": 1} is read: by hand, since a general
    decoder would build whatever a hostile header says."""
    if data.startswith(b"\xa1\x67version"):
        raise _HeaderError(0, "a CAR file of version 2; version 1 is read")
    at = _expect(data, 0, b"\xa2\x65roots")
    count, at = _read_cbor_head(data, at, 4)
    roots = []
    for _ in range(count):
        start = at
        at = _expect(data, at, b"\xd8\x2a")
        size, at = _read_cbor_head(data, at, 2)
        link = data[at : at + size]
        if len(link) < size or not link.startswith(b"\x00"):
            raise _HeaderError(start, "a root that is no link")
        if not link.startswith(b"\x00" + CID_PREFIX) or size != 1 + CID_SIZE_BYTES:
            raise _HeaderError(start, "root: " + refusal(link[1:]))
        roots.append(ArtifactId(link[1 + len(CID_PREFIX) :]))
        at += size
    at = _expect(data, at, b"\x67version")
    version, at = _read_cbor_head(data, at, 0)
    if version != 1:
        raise _HeaderError(at, f"a CAR file of version {version}; version 1 is read")
    if at != len(data):
        raise _HeaderError(at, "bytes after the header's map")
    return tuple(roots)


def _expect(data: bytes, at: int, wanted: bytes) -> int:
    if not data.startswith(wanted, at):
        raise _HeaderError(at, "no CAR file: its header is no map of roots and version")
    return at + len(wanted)


def _cbor_head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    size = next(size for size in (1, 2, 4, 8) if number < 1 << 8 * size)
    return bytes([major << 5 | 23 + size.bit_length()]) + number.to_bytes(size, "big")


def _read_cbor_head(data: bytes, at: int, major: int) -> tuple[int, int]:
    first = data[at] if at < len(data) else 0xFF
    number, after = first & 0x1F, at + 1
    if 24 <= number < 28:
        after += 1 << number - 24
        number = int.from_bytes(data[at + 1 : after], "big")
    if data[at:after] != _cbor_head(major, number):
        raise _HeaderError(at, "no CAR file: its header is not canonical DAG-CBOR")
    return number, after


def refusal(cid: bytes) -> str:
    """Why a CID, the first of these bytes, is not read."""
    if cid.startswith(b"\x12\x20") and len(cid) >= 34:
        return f"{cid_text(cid[:34])} is a CIDv0; only CIDv1, raw, blake3 of 32 bytes is read"
    numbers: list[int] = []
    at = 0
    while len(numbers) < 4 and at < len(cid):
        number, shift = 0, 0
        for byte in cid[at : at + VARINT_BYTES_MAX]:
            number |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        numbers.append(number)
    version, codec, function, size = numbers if len(numbers) == 4 else (0, 0, 0, 0)
    if version != 1 or at + size > len(cid):
        return f"what should be a CID is none: {cid[:8].hex()}…"
    return (
        f"{cid_text(cid[: at + size])} is codec {codec:#x} and hash {function:#x} of {size} bytes; "
        "only raw (0x55) and blake3 (0x1e) of 32 bytes is read"
    )


def cid_text(cid: bytes) -> str:
    """A CID as other tools write it: base32, version 0 in base58."""
    if cid[:2] != b"\x12\x20":
        return "b" + base64.b32encode(cid).decode().rstrip("=").lower()
    number, digits = int.from_bytes(cid, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return digits
