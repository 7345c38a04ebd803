"""What stops a gc before it removes anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casstore.backend import EpochLost
from casstore.errors import GcRefused, StoreError
from casstore.home import is_same_place
from casstore.roots import RootSource


class Asked(Exception):
    """Stop, before anything was removed."""


def is_implausible(condemned: int, total: int) -> bool:
    """A gc that would take nearly all of a store of some size more likely looks at the wrong journal."""
    return total >= 1000 and condemned > total * 0.99


def refuse_implausible(condemned: int, total: int) -> None:
    """Raises: GcRefused where it is implausible."""
    if is_implausible(condemned, total):
        raise GcRefused("implausible_share", f"{condemned} of {total} artifacts would go; --force if that is meant")


def check_source(roots: object, uuid: str, home: Path | None) -> RootSource:
    """Raises: GcRefused unless `roots` is a source that belongs to this store, and, where it says at which `home` it
    is, at this one: the journal of a backup or of a copy knows nothing of what came since."""
    if not isinstance(roots, RootSource):
        raise GcRefused("no_root_source", f"{type(roots).__name__} is no RootSource; give the journal of this home")
    if roots.uuid != uuid:
        raise GcRefused("foreign_journal", f"the journal belongs to home {roots.uuid}, the store to {uuid}")
    place = getattr(roots, "home", None)
    if home is not None and place is not None and not is_same_place(place, home):
        raise GcRefused("foreign_journal", f"the journal is that of {place}, a copy or a backup of this home")
    return roots


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever goes wrong while roots are read stops gc before it removes anything."""
    try:
        yield
    except (StoreError, EpochLost, MemoryError, Asked):
        raise
    except Exception as error:
        raise GcRefused("unreadable_roots", f"{what}: {type(error).__name__}: {error}") from error
