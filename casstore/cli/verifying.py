"""What `casstore verify` needs besides the store's verify: parts, the place to go on at, repair from another home."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final
from uuid import UUID

import click
from blake3 import blake3

from casstore import ArtifactId, Finding, RepairReport, Store, StoreError
from casstore.cli.options import open_store
from casstore.home import replace_file
from casstore.repairs import WANTED
from journal import InvalidStream, Journal, RebuildReport
from journal.events import links

FILE: Final = "verify.next"
_UNREADABLE: Final = frozenset({"corrupt", "damaged_store"})
_OF_BYTES: Final = frozenset({"corrupt", "corrupt_base", "damaged_store", "missing_need", "wrong_links"})


@final
class Subset(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """`2/7`: the second of seven parts."""

    name = "k/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        first, _, last = str(value).partition("/")
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            self.fail(f"{value!r} is no part such as 1/7", param, ctx)
        return int(first), int(last)


@final
class Places:
    """HOME/verify.next: where verify goes on, one line for each part that was stopped. Damaged or old lines, and
    a home that cannot be written, cost the place and nothing else."""

    def __init__(self, home: Path, subset: tuple[int, int] | None) -> None:
        self._file = home / FILE
        self._part = "{}/{}".format(*(subset or (1, 1)))

    def read(self) -> str | None:
        """The place in this part, None to begin anew."""
        return self._all().get(self._part)

    def keep(self, place: str | None) -> bool:
        """Set the place of this part, or forget it. Whether that worked."""
        before = self._all()
        after = {part: line for part, line in before.items() if part != self._part}
        if place is not None:
            after[self._part] = place
        if after == before:
            return True
        try:
            if after:
                replace_file(self._file, "".join(f"{line}\n" for line in after.values()))
            else:
                self._file.unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def _all(self) -> dict[str, str]:
        lines: list[str] = []
        with suppress(OSError, UnicodeDecodeError):
            lines = self._file.read_text("ascii").splitlines()
        return {line.split(" ")[0]: line for line in lines if line.count(" ") == 2}


@final
@dataclass(frozen=True, slots=True)
class Repaired:
    """What was put right: rows of the store, rows of the journal, artifacts from another home; and what is left."""

    mended: tuple[Finding, ...]
    rebuilt: RebuildReport | None
    fetched: RepairReport | None
    left: frozenset[tuple[str, ArtifactId | None]]
    readable: frozenset[ArtifactId]  # of what was mended, and could not be read before; or is not listed any more

    def is_gone(self, found: Finding) -> bool:
        """Whether a finding of before holds no more."""
        if self.fetched is not None and found.id in self.fetched.repaired:
            return True
        if found.code in _UNREADABLE and found.id in self.readable:
            return True
        if found.code == "wrong_links":
            return any((found.code, found.id) == (done.code, done.id) for done in self.mended)
        return found.code not in _OF_BYTES and (found.code, found.id) not in self.left


def put_right(store: Store, jrn: Journal | None, findings: Sequence[Finding], source: Path | None) -> Repaired:
    """First what needs no good copy: what live runs name, and so is to be fetched, is known by the journal's rows."""
    rebuilt = None if jrn is None else jrn.rebuild()
    mended = store.mend([found.id for found in findings if found.code == "wrong_links" and found.id is not None])
    done, fetched = mended.done, None
    if source is not None:
        fetched = _fetch(store, jrn, findings, source)
        mended = store.mend()  # the counters: what was missing counts again
        done += mended.done
    left = frozenset((found.code, found.id) for found in mended.left)
    named = {found.id for found in done if found.id is not None}
    again = {found.id for found in findings if found.code in _UNREADABLE and found.id is not None}
    return Repaired(done, rebuilt, fetched, left, frozenset(name for name in named & again if _is_well(store, name)))


def _is_well(store: Store, name: ArtifactId) -> bool:
    """Whether it reads, or nobody is told any more that it is there."""
    if name not in store:
        return True
    hasher = blake3()
    try:
        with store.open_reader(name) as reader:
            while part := reader.read(1 << 20):
                hasher.update(part)
    except StoreError:
        return False
    return hasher.digest() == name.digest


def _fetch(store: Store, jrn: Journal | None, findings: Sequence[Finding], source: Path) -> RepairReport:
    """Get from another home what was found damaged or missing, and what live runs name that is not there."""
    wanted = [found.id for found in findings if found.id is not None and found.code in WANTED]
    with suppress(InvalidStream):  # the journal's own finding
        if jrn is not None:
            for row in jrn.runs(status="live"):
                wanted.extend(name for name in _named(jrn, row.run_id) if name not in store)
    with open_store(source, read_only=True) as other:
        return store.repair(other, wanted)


def _named(jrn: Journal, run_id: UUID) -> Iterator[ArtifactId]:
    """What the events of a run name, if they can be read: what one run names is fetched, whatever the others are."""
    with suppress(InvalidStream):
        for item in jrn.read(run_id):
            yield from (name for _, name in links(item.event))
