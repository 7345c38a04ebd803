"""Settling: staged artifacts on their way into the store (docs/GC.md, section 2, "Staged rows")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from casstore.backend import BlobBackend
from casstore.codec import encoding_name
from casstore.ids import ArtifactId
from casstore.items import PreparedPut
from casstore.reports import ArtifactInfo
from casstore.stage import Stage, Staged
from casstore.steps import reach
from casstore.writing import Writer


@final
class Staging:
    """The staged artifacts of one home. Any process may settle; a row goes once its artifact is safe in the store."""

    def __init__(self, stage: Stage, backend: BlobBackend, writer: Writer) -> None:
        self._stage, self._backend, self._writer = stage, backend, writer

    def count(self) -> int:
        """The number of staged artifacts."""
        return self._stage.count()

    def rows(self) -> list[Staged]:
        """All of them, in the order of staging: nothing needs a later one."""
        return self._stage.rows()

    def check_room(self, prepared: Sequence[PreparedPut]) -> None:
        """Raises: StoreFull, as a put into the store would."""
        self._writer.check_room(sum(put.artifact.stored_len for put in prepared))

    def put(self, rows: Sequence[Staged]) -> None:
        """Put rows into the store, in one transaction, durable with its next sync. Raises: StoreFull."""
        if rows:
            reach("settle.begun")
            self._writer.put_staged(rows)
            reach("settle.put")

    def settled(self, rows: Sequence[Staged], synced: int) -> list[bool]:
        """Which rows may go: their artifacts are visible now, and were touched last by a commit up to `synced`, which
        are all on disk. To be asked under the journal's lock (H28)."""
        found = self._backend.rows([row.digest for row in rows])
        return [row is not None and row.touched <= synced for row in found]

    def settle(self) -> int:
        """Move all that is staged into the store; how many rows that were. Durable on return. Killed at any point,
        nothing is lost: an artifact is staged until it is in the store. Raises: StoreFull."""
        rows = self._stage.rows()
        if rows:
            self.put(rows)
            synced = self._backend.sync()
            reach("settle.synced")
            self._stage.drop(rows, lambda found: self.settled(found, synced))
            reach("settle.dropped")
        return len(rows)

    # -- looks

    def hidden(self) -> list[Staged]:
        """Staged artifacts that are not in the store, by digest."""
        rows = sorted(self._stage.rows())
        there = self._backend.rows([row.digest for row in rows])
        return [row for row, found in zip(rows, there, strict=True) if found is None]

    def info(self, digest: bytes) -> ArtifactInfo | None:
        """Facts about a staged artifact."""
        row = self._stage.find(digest)
        if row is None:
            return None
        return ArtifactInfo(
            id=ArtifactId(digest), kinds=(row.kind,), size_bytes=row.raw_len, stored_bytes=len(row.stored),
            encoding=encoding_name(row.codec), chain=row.chain,
            base=None if row.base is None else ArtifactId(row.base), links=tuple(map(ArtifactId, row.links)),
            touched_s=row.put_s,
        )  # fmt: skip
