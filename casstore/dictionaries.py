"""Trained dictionaries for small artifacts: what the artifacts of a kind have in common is kept once.

A dictionary is an artifact, pinned under a name of its own, and the base of what is encoded with it: so gc keeps its
bytes as long as anything needs them, as it does for every base.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import zstandard

from casstore import codec
from casstore.errors import Corrupt, NotFound
from casstore.rows import DICTIONARY_KIND

if TYPE_CHECKING:
    from casstore.backend import BlobBackend
    from casstore.reading import Reader

KIND: Final = DICTIONARY_KIND
PIN: Final = "dictionary/"
SIZE_BYTES: Final = 16 << 10
SMALL_MAX: Final = 4096  # larger artifacts compress well by themselves
SAMPLE_MIN: Final = 64
SAMPLES_MIN: Final = 100
SAMPLES_MAX: Final = 4000
GAIN_MIN: Final = 0.85
PAGE_ROWS: Final = 1000


def samples(backend: BlobBackend, reader: Reader, kind: str) -> list[bytes]:
    """Small artifacts of the kind, at most 4,000, without those that are damaged. In the order of digests, which is
    as good as drawing them at random."""
    found: list[bytes] = []
    after = b""
    while len(found) < SAMPLES_MAX and (page := backend.page(after, PAGE_ROWS)):
        for row in page:
            if kind in row.kinds and SAMPLE_MIN <= row.raw_len <= SMALL_MAX and len(found) < SAMPLES_MAX:
                with suppress(NotFound, Corrupt):
                    found.append(reader.get(row.digest))
        after = page[-1].digest
    return found


def train(given: Sequence[bytes]) -> bytes | None:
    """A dictionary for artifacts like these; None where there are too few, or it saves less than 15 % on those that
    it was not trained on."""
    if len(given) < SAMPLES_MIN:
        return None
    learned, tested = given[1::2], given[::2]
    size = min(SIZE_BYTES, max(sum(map(len, learned)) // 8, 1024))
    try:
        dictionary: bytes = zstandard.train_dictionary(size, list(learned), level=codec.LEVEL).as_bytes()
    except zstandard.ZstdError:  # samples that have nothing in common
        return None
    with_it = sum(len(codec.encode_with(data, dictionary).stored) for data in tested)
    without = sum(len(codec.encode_whole(data).stored) for data in tested)
    return dictionary if with_it < without * GAIN_MIN else None
