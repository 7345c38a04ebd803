"""What is asked of a put, and what is known of it before its transaction. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, final

from casstore import values
from casstore.backend import NewArtifact
from casstore.errors import InvalidArgument, InvalidValue
from casstore.ids import ArtifactId
from casstore.stage import fits

# CBOR of a link up to its digest: tag 42, 37 bytes, multibase 0, CIDv1, raw, blake3, 32 bytes.
LINK_PREFIX: Final = b"\xd8\x2a\x58\x25\x00\x01\x55\x1e\x20"
_KIND: Final = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PutItem:
    """One item of `put_many`: raw bytes, a kind, and the hint of a base."""

    data: bytes
    kind: str = "other"
    base: ArtifactId | None = None


@final
@dataclass(frozen=True, slots=True)
class PreparedPut:
    """An artifact that is hashed and encoded, and waits to be put together with others."""

    id: ArtifactId
    item: PutItem
    artifact: NewArtifact

    @property
    def needs(self) -> tuple[ArtifactId, ...]:
        """What it links to, and the base of its delta."""
        found = self.artifact.links if self.artifact.base is None else (*self.artifact.links, self.artifact.base)
        return tuple(map(ArtifactId, found))

    @property
    def can_stage(self) -> bool:
        """Whether it is small enough to be written with an append."""
        return fits(self.artifact)

    @property
    def is_hit(self) -> bool:
        """Whether it was there already: an append that names it needs nothing more."""
        return self.artifact.stored is None


def check_kind(kind: str) -> str:
    """Raises: InvalidArgument unless `kind` is an identifier of at most 63 lowercase characters."""
    if type(kind) is not str or not _KIND.fullmatch(kind):
        raise InvalidArgument("kind", f"{kind!r:.80} is no identifier (a-z, then a-z, 0-9 or _, at most 63)")
    return kind


def links_of(data: bytes) -> tuple[bytes, ...]:
    """Digests that the bytes link to. What bytes are decides it, not how they are put: the same id must have
    the same links whoever puts it first, or gc would take a child of the value that another put made of it."""
    if 0xD8 not in data or not values.may_link(data) or LINK_PREFIX not in data:
        return ()
    try:
        return tuple(link.digest for link in values.links(data))
    except InvalidValue:
        return ()
