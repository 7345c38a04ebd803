"""What a gc removed, at 40 bytes an artifact: a report may name a million."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import final, overload

from casstore.ids import ArtifactId

Removal = tuple[ArtifactId, int]


@final
class Removals(Sequence[Removal]):
    """A sequence of (id, raw bytes)."""

    __slots__ = ("_digests", "_sizes")

    def __init__(self, removed: Iterable[tuple[bytes, int]] = ()) -> None:
        self._digests = bytearray()
        self._sizes = array("Q")
        self.add(removed)

    def add(self, removed: Iterable[tuple[bytes, int]]) -> None:
        """More, as (digest, raw bytes)."""
        pairs = tuple(removed)
        self._digests += b"".join([digest for digest, _ in pairs])
        self._sizes.extend([size for _, size in pairs])

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, place: int) -> Removal: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Removal, ...]: ...
    def __getitem__(self, place: int | slice) -> Removal | tuple[Removal, ...]:
        if isinstance(place, slice):
            return tuple(self[at] for at in range(*place.indices(len(self))))
        at = range(len(self))[place]
        return ArtifactId(bytes(self._digests[at * 32 : at * 32 + 32])), self._sizes[at]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Removals):
            return self._digests == other._digests and self._sizes == other._sizes
        return isinstance(other, tuple) and tuple(self) == other

    def __hash__(self) -> int:
        return hash((bytes(self._digests), self._sizes.tobytes()))

    def __repr__(self) -> str:
        return f"<{len(self)} artifacts, {sum(self._sizes)} bytes>"
