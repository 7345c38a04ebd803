"""A checksum at the end of a row: CRC-32, the least byte first. Pure."""

from __future__ import annotations

import struct
from typing import Final
from zlib import crc32

SEAL_BYTES: Final = 4
SEALED: Final = 0x2144DF1C  # the CRC-32 of anything that is followed by its CRC-32
BROKEN: Final = "its checksum is wrong: it is not as it was written"
_pack: Final = struct.Struct("<I").pack


def seal(data: bytes) -> bytes:
    """The data with what proves it: `crc32` of the whole is SEALED."""
    return data + _pack(crc32(data))
