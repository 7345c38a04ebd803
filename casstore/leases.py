"""Leases: durable, expiring protection for what no event names yet."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, final

from casstore import values
from casstore.arguments import artifact_id, seconds
from casstore.backend import BlobBackend
from casstore.ids import ArtifactId
from casstore.steps import reach
from casstore.writing import Writer

if TYPE_CHECKING:
    from casstore.store import Store


@final
class Lease:
    """Keeps what it holds, with all that those artifacts need, until it is closed or expires.

    An expired lease that no gc has removed yet may be renewed. Once a gc removed it every use raises LeaseLost:
    what it held may be gone, so begin again.
    """

    def __init__(
        self, store: Store, backend: BlobBackend, writer: Writer, ttl_s: float, clock: Callable[[], float]
    ) -> None:
        self._store, self._backend, self._writer, self._clock = store, backend, writer, clock
        self._ttl_s = seconds(ttl_s, "ttl")
        self.name = secrets.token_hex(16)
        backend.lease_open(self.name, self._expiry())
        reach("lease.opened")
        backend.sync()

    def _expiry(self) -> int:
        return int(self._clock() + self._ttl_s) + 1

    def put(self, data: bytes, *, kind: str = "other", base: ArtifactId | None = None) -> ArtifactId:
        """As `Store.put`, held by this lease from its transaction on. Raises: LeaseLost."""
        return self._store._put_leased(data, kind, base, self.name)

    def put_value(self, value: object, *, kind: str = "value", base: ArtifactId | None = None) -> ArtifactId:
        """As `Store.put_value`, held by this lease. Raises: LeaseLost."""
        return self._store._put_leased(values.encode(value)[0], kind, base, self.name)

    def add(self, *ids: ArtifactId) -> None:
        """Hold artifacts that are there. Raises: NotFound, Collected, LeaseLost. Durable on return."""
        digests = [artifact_id(found).digest for found in ids]
        self._writer.stored(digests)
        self._backend.lease_add(self.name, digests, int(self._clock()))
        reach("lease.added")
        self._backend.sync()

    def renew(self, ttl: float | None = None) -> None:
        """Let it expire `ttl` seconds from now (default: as when it was made). Raises: LeaseLost."""
        if ttl is not None:
            self._ttl_s = seconds(ttl, "ttl")
        self._backend.lease_renew(self.name, self._expiry())
        reach("lease.renewed")
        self._backend.sync()

    def close(self) -> None:
        """Hold nothing any more. Idempotent."""
        self._backend.lease_close(self.name)
        reach("lease.closed")

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
