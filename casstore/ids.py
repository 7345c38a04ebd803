"""ArtifactId: the name of an artifact, the BLAKE3-256 of its raw bytes."""

from __future__ import annotations

import re
from typing import Any, Final, NoReturn, final

from blake3 import blake3

from casstore.errors import InvalidId

_HEX: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)

DIGEST_SIZE_BYTES: Final = 32


@final
class ArtifactId:
    """32 bytes, immutable, hashable, ordered by digest; `str()` gives 64 lowercase hex digits.

    It is no subclass of bytes: inside a value a digest has to stay a link, and encoders turn a
    subclass of bytes into plain bytes without a word.
    """

    __slots__ = ("digest",)
    digest: bytes

    def __init__(self, digest: bytes) -> None:
        """Raises: InvalidId unless `digest` is exactly 32 plain bytes."""
        if type(digest) is not bytes or len(digest) != DIGEST_SIZE_BYTES:
            raise InvalidId(digest, "an artifact id is 32 bytes")
        object.__setattr__(self, "digest", digest)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> ArtifactId:
        """The id of these raw bytes."""
        return cls(blake3(data).digest())

    @classmethod
    def parse(cls, text: str) -> ArtifactId:
        """Strict: 64 lowercase ASCII hex digits and nothing else. Raises: InvalidId."""
        if type(text) is not str or not _HEX.fullmatch(text):
            raise InvalidId(text, "an artifact id is written as 64 lowercase hex digits")
        return cls(bytes.fromhex(text))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"ArtifactId is immutable: cannot set {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"ArtifactId is immutable: cannot delete {name}")

    def __str__(self) -> str:
        return self.digest.hex()

    def __repr__(self) -> str:
        return f"ArtifactId({self.digest.hex()})"

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, ArtifactId) else NotImplemented

    def __lt__(self, other: ArtifactId) -> bool:
        return self.digest < other.digest if isinstance(other, ArtifactId) else NotImplemented

    def __le__(self, other: ArtifactId) -> bool:
        return self.digest <= other.digest if isinstance(other, ArtifactId) else NotImplemented

    def __gt__(self, other: ArtifactId) -> bool:
        return self.digest > other.digest if isinstance(other, ArtifactId) else NotImplemented

    def __ge__(self, other: ArtifactId) -> bool:
        return self.digest >= other.digest if isinstance(other, ArtifactId) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __copy__(self) -> ArtifactId:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ArtifactId:
        return self

    def __reduce__(self) -> tuple[type[ArtifactId], tuple[bytes]]:
        return ArtifactId, (self.digest,)
