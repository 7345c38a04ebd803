"""What a power loss can leave of a home: every image of the store that no flush has settled yet, with the journal's.

While a scenario runs, each commit of either environment is copied and each flush noted. A power loss at any moment
leaves the journal as of its last commit (its commits are durable) and the store as of any commit from the last flushed
one to the newest. Each such pair is put together, opened, and held against what had been acknowledged by then.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import casstore
import journal
from casstore import ArtifactId
from casstore.environment import Environment
from casstore.leases import Lease
from casstore.store import Store
from journal.log import Journal
from tests import race_harness
from tests.race_harness import Violation, World, check_live, check_protected, check_whole

Acknowledged = tuple[Any, ...]


class PowerLog:
    """Attach it before the scenario; `check` afterwards. A compaction changes the directory: none may run."""

    def __init__(self, w: World, place: Path, patch: pytest.MonkeyPatch) -> None:
        self._w, self._place = w, place
        place.mkdir()
        self._store, self._journal = w.home / "store" / "1", w.home / "journal"
        self._images: dict[Path, list[Path]] = {self._store: [], self._journal: []}
        self._flushed = 0  # index of the newest store image that a flush covers
        self._acknowledged: list[Acknowledged] = []
        self._possible: dict[
            tuple[int, int], int
        ] = {}  # images of store and journal: how many acknowledgements by then
        tables = w.one.store._backend._tables._tables, w.one._backend._tables  # type: ignore[attr-defined]
        for environment in (found.environment for found in tables):
            self._copy(environment)
        self._moment()
        self._watch_disk(patch)
        self._watch_answers(patch)

    # -- while it runs

    def _copy(self, environment: Environment) -> None:
        images = self._images[environment.path]
        image = self._place / f"{environment.path.name}-{len(images)}"
        image.mkdir()
        environment._env.copy(os.fsencode(image))
        images.append(image)

    def _moment(self) -> None:
        """From now on, until the next call, a power loss leaves one of these pairs."""
        newest = len(self._images[self._journal]) - 1
        for store in range(self._flushed, len(self._images[self._store])):
            self._possible[store, newest] = len(self._acknowledged)

    def _watch_disk(self, patch: pytest.MonkeyPatch) -> None:
        write = race_harness._write

        @contextmanager
        def copied(environment: Environment) -> Iterator[Any]:
            with write(environment) as txn:
                yield txn
            if environment.path in self._images:
                self._copy(environment)
                self._moment()

        def sync(environment: Environment) -> None:
            if environment.path == self._store:
                self._flushed = len(self._images[self._store]) - 1
                self._moment()

        patch.setattr(race_harness, "_write", copied)
        patch.setattr(Environment, "sync", sync)

    def _watch_answers(self, patch: pytest.MonkeyPatch) -> None:
        def after(owner: type, method: str, told: Callable[..., list[Acknowledged]]) -> None:
            original = getattr(owner, method)

            def call(*arguments: Any, **options: Any) -> Any:
                result = original(*arguments, **options)
                self._acknowledged += told(result, *arguments, **options)
                self._moment()
                return result

            patch.setattr(owner, method, call)

        def put(name: ArtifactId, *_: Any, durable: bool = True, **__: Any) -> list[Acknowledged]:
            return [("put", name)] if durable else []

        for owner, method in ((Store, "put"), (Store, "put_value"), (Store, "put_file"), (Lease, "put_value")):
            after(owner, method, put)
        after(Store, "put_many", lambda names, *_, **__: [("put", name) for name in names])
        after(Store, "import_", lambda report, *_, **__: [("put", name) for name in report.roots])
        after(Store, "undelete", lambda report, *_, **__: [("put", name) for name in report.restored])
        after(Lease, "add", lambda _, lease, *names: [("put", name) for name in names])
        after(Store, "pin", lambda _, store, name, held: [("pin", name, held)])
        after(Journal, "append", lambda found, *_, **__: [("event", found.run_id, found.last_seq)])

    # -- afterwards

    def check(self, *, damaged: bool = False) -> int:
        """How many pairs there are; `damaged` as in World.check. Raises: Violation, of the first that breaks a rule."""
        for (store, newest), count in sorted(self._possible.items()):
            home = self._place / "home"
            shutil.copytree(self._w.home, home, ignore=shutil.ignore_patterns("*.mdb", "*.lock"))
            shutil.copy(self._images[self._store][store] / "data.mdb", home / "store" / "1")
            shutil.copy(self._images[self._journal][newest] / "data.mdb", home / "journal")
            try:
                with journal.open(home, create=False, clock=self._w.clock) as jrn:
                    _check_image(jrn, self._acknowledged[:count], damaged)
            except Violation as error:
                error.add_note(f"store image {store} of {len(self._images[self._store])}, journal image {newest}")
                raise
            finally:
                shutil.rmtree(home)
        return len(self._possible)


def _check_image(jrn: journal.Journal, acknowledged: list[Acknowledged], damaged: bool) -> None:
    check_live(jrn)
    check_protected(jrn.store)
    pins = jrn.store.pins()
    for what, *rest in acknowledged:
        if what == "pin" and pins.get(rest[0]) != rest[1]:
            raise Violation(f"I3: pin {rest[0]} was acknowledged")
        if what == "put":
            try:
                jrn.store.get(rest[0])
            except casstore.Collected:
                pass  # by a gc that nothing kept from it
            except casstore.NotFound as error:
                raise Violation(f"I2: a put acknowledged {rest[0]}") from error
        if what == "event":
            run_id, seq = rest
            assert isinstance(run_id, UUID)
            if jrn.head(run_id) < seq:
                raise Violation(f"events up to {seq} of {run_id} were acknowledged")
    check_whole(jrn, damaged=damaged)
