"""Operations of several processes on one home, of which exactly one runs at a time: the test says which.

An outer operation is stopped at a named step (`casstore.steps`); there an inner one runs to its end, in a thread and
with handles of its own. Where it needs a lock that the outer one holds, the outer one goes on until it gives that lock
back, and the inner one gets it first. So each interleaving happens the same way every time, and a wrong order of locks
is found at once instead of hanging.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import casstore
import journal
from casstore import ArtifactId, steps
from casstore import rows as tables
from casstore.environment import Environment
from casstore.gc import Collector
from casstore.refusals import refuse_implausible
from casstore.rows import DaRow, IxRow, u64
from casstore.testing import FakeClock
from journal import DomainEvent

LIVE = UUID(int=1)  # a run that lives from the start, without a claim
GRACE_S = 3600
OLD_S = 2 * GRACE_S
YEARS_S = 3 * 365 * 86400
TEXT = b"".join(b"line %d of a base that a delta is made against\n" % n for n in range(200))

Action = Callable[[], object]


class Violation(AssertionError):
    """An invariant of docs/GC.md does not hold; the text begins with its number there."""


class Deadlock(AssertionError):
    """Two operations wait for each other's locks."""


# -- one at a time --------------------------------------------------------------------------------------


class _Inner:
    """An operation that runs at a stop of the outer one."""

    def __init__(self, race: Interleaving, action: Action) -> None:
        self._race, self._action = race, action
        self.go = threading.Semaphore(0)
        self.waits_for: Environment | None = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="inner")

    def _run(self) -> None:
        try:
            self._action()
        except BaseException as error:
            self.error = error
        finally:
            self._race.baton.release()


class Interleaving:
    """Run `outer` in this thread, and each action of `at` where its step is reached.

    A stop is "gc.marked" (the first time), "gc.after_batch#2" (the second time), or the number of a step from 1 on.
    After `run`, `seen` holds the steps of the outer operation, `errors` what the inner ones raised.
    """

    _running: Interleaving | None = None

    def __init__(self, outer: Action, at: Mapping[str | int, Action], *, on_commit: Action | None = None) -> None:
        self._outer, self._at, self._on_commit = outer, dict(at), on_commit
        self._me = threading.get_ident()
        self._inners: list[_Inner] = []
        self._holders: dict[Environment, int] = {}
        self._aside: dict[int, list[tuple[str, Action]]] = {}
        self.baton = threading.Semaphore(0)
        self.seen: list[str] = []
        self.errors: list[BaseException] = []

    def run(self) -> object:
        """What the outer operation returns or raises, once all have ended."""
        assert Interleaving._running is None
        Interleaving._running = self
        steps.listen(self._reached)
        try:
            return self._outer()
        finally:
            for inner in self._inners:
                inner.thread.join()
            steps.listen(None)
            Interleaving._running = None
            self.errors = [inner.error for inner in self._inners if inner.error is not None]

    @classmethod
    def aside(cls, step: str, action: Action) -> None:
        """At the next `step` of the calling thread run this in it as well: an operation made of two."""
        assert cls._running is not None
        cls._running._aside.setdefault(threading.get_ident(), []).append((step, action))

    def _reached(self, step: str) -> None:
        waiting = self._aside.get(threading.get_ident(), [])
        if waiting and waiting[0][0] == step:
            waiting.pop(0)[1]()
        if threading.get_ident() != self._me:
            return
        self.seen.append(step)
        count = self.seen.count(step)
        for stop in (len(self.seen), f"{step}#{count}", step if count == 1 else ""):
            action = self._at.pop(stop, None)
            if action is not None:
                inner = _Inner(self, action)
                self._inners.append(inner)
                inner.thread.start()
                self.baton.acquire()

    # -- locks

    def wants(self, environment: Environment) -> None:
        """The calling thread is about to take the write lock: it returns once nobody holds it."""
        me = threading.get_ident()
        while self._holders.get(environment, me) != me:
            inner = next((inner for inner in self._inners if inner.thread.ident == me), None)
            if inner is None or self._holders[environment] != self._me:
                raise Deadlock(f"{environment.path} is held by one that waits for another lock")
            inner.waits_for = environment
            self.baton.release()
            inner.go.acquire()
        self._holders[environment] = me

    def gave(self, environment: Environment) -> None:
        """It is free again: who waits for it gets it before anybody else."""
        del self._holders[environment]
        if self._on_commit is not None and not self._holders:
            self._on_commit()
        if threading.get_ident() == self._me:
            for inner in self._inners:
                if inner.waits_for is environment:
                    inner.waits_for = None
                    inner.go.release()
                    self.baton.acquire()


_write = Environment.write


@contextmanager
def _watched_write(self: Environment) -> Iterator[Any]:
    race = Interleaving._running
    if race is None:
        with _write(self) as txn:
            yield txn
        return
    race.wants(self)
    try:
        with _write(self) as txn:
            yield txn
    finally:
        race.gave(self)


def watch_locks(patch: pytest.MonkeyPatch) -> None:
    """What an Interleaving needs; and gc at its hardest: one row a batch, no rest between them."""
    patch.setattr(Environment, "write", _watched_write)
    patch.setattr("casstore.gc.BATCH_ROWS", 1)
    patch.setattr("casstore.pace.Pace._rest", lambda self, locked_s: None)


def without_flushes(patch: pytest.MonkeyPatch) -> None:
    """Commits that no power loss can touch anyway: for tests that only stop and never cut."""
    opened = casstore.environment.lmdb.open  # type: ignore[attr-defined]
    patch.setattr("casstore.environment.lmdb.open", lambda path, **options: opened(
        path, **{**options, "sync": False, "metasync": False}))  # fmt: skip
    patch.setattr(Environment, "sync", lambda self: self._check())


# -- a home and those who work on it --------------------------------------------------------------------


class World:
    """A home with a live run, opened by three who know nothing of each other, and a clock that they share."""

    def __init__(self, home: Path, clock: FakeClock | None = None) -> None:
        self.home, self.clock = home, clock or FakeClock()
        self.one, self.two, self.three = (journal.open(home, clock=self.clock) for _ in range(3))
        self.store = self.one.store
        self.promised: list[ArtifactId] = []
        self.errors: list[BaseException] = []
        self.checks_each_commit = False
        if not self.one.head(LIVE):
            first = self.store.put_value("what the run begins with")
            started = journal.RunStarted(op_id="race", manifest_id=first, initial_snapshot_id=first)
            self.one.append(LIVE, 0, [started])

    def close(self) -> None:
        for handle in (self.three, self.two, self.one):
            handle.close()

    # -- what they do

    def put_old(self, value: object) -> ArtifactId:
        """An artifact that nobody names, from long before the cut."""
        name = self.store.put(value) if isinstance(value, bytes) else self.store.put_value(value)
        self.grow_old()
        return name

    def grow_old(self) -> None:
        self.clock.advance(OLD_S)

    def append(self, who: journal.Journal, *names: ArtifactId) -> None:
        """An event of the live run that names these, after those of others."""
        while True:
            try:
                who.append(LIVE, who.head(LIVE), [DomainEvent("note", {"names": list(names)})])
            except journal.Conflict:
                continue
            return

    def promise(self, name: ArtifactId) -> ArtifactId:
        """What a put returned: an open gc, and a later one with a grace, leave it alone (I2, I6)."""
        self.promised.append(name)
        return name

    def gc(self, who: journal.Journal, grace: int = GRACE_S, **options: Any) -> None:
        """As the command does."""
        who.store.gc(who, grace=grace, keep_completed=0, **options)

    def rival(self, who: journal.Journal, grace: int = GRACE_S) -> None:
        """A gc that takes one which holds the collectors' lock for dead."""
        Collector(
            who.store._backend, who, now_s=int(self.clock()), grace_s=grace,
            stage=who.store._stage,
        ).run(plausible=refuse_implausible)  # fmt: skip

    def race(self, outer: Action, at: Mapping[str | int, Action]) -> list[str]:
        """The steps of the outer operation. What any of them raises is looked at in `check`, after all else."""
        race = Interleaving(outer, at, on_commit=self._check_commit if self.checks_each_commit else None)
        try:
            race.run()
        except (Violation, Deadlock):
            raise
        except BaseException as error:
            self.errors.append(error)
        self.errors += race.errors
        assert not race._at, f"never reached: {', '.join(map(str, race._at))} among {race.seen}"
        return race.seen

    # -- what must hold

    def check(self, *, promises: bool = True, damaged: bool = False) -> None:
        """Raises: Violation. `damaged` says that what nobody needs may be, until the next gc."""
        with journal.open(self.home, clock=self.clock) as fresh:
            check_live(fresh)
            check_protected(fresh.store)
            if promises:
                for name in self.promised:
                    read_closure(fresh.store, name, "I2, I6: a put returned it")
            check_whole(fresh, damaged=damaged)
        for error in self.errors:
            raise Violation(f"unexpected {type(error).__name__}: {error}") from error

    def _check_commit(self) -> None:
        check_order(self.three.store)

    def settle(self) -> None:
        """I5: from here further gcs leave exactly what the roots need, and no bytes beside."""
        for name, _, _ in self.store._backend.leased():
            self.store._backend.lease_close(name)
        self.clock.advance(YEARS_S)  # past every quarantine
        for _ in range(3):
            self.gc(self.one, grace=0)
            self.clock.advance(1)
        with journal.open(self.home, clock=self.clock) as fresh:
            store = fresh.store
            roots = {name for row in fresh.runs(status="live") for name in _named(fresh, row.run_id)}
            needed: set[ArtifactId] = set()
            for name in {*roots, *store.pins().values()}:
                needed |= read_closure(store, name, "I1: a root")
            _expect("I5: artifacts", set(store), needed)
            bases = {base for name in needed for base in store._backend.edges([name.digest])[0].bases}
            visible = {row.data_id for row in store._backend.rows([name.digest for name in needed]) if row}
            _expect("I5: kept bytes", {row.data_id for row in store._backend.kept()}, bases - visible)
            _expect("I5: uploads", store._backend.uploads(), [])
            _expect("I5: verify", store.verify().findings, ())


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise Violation(f"{what}: {found!r:.1000} instead of {wanted!r:.1000}")


def read_closure(store: casstore.Store, name: ArtifactId, why: str) -> set[ArtifactId]:
    """An artifact and all that it links to, each read and proven. Raises: Violation."""
    todo, seen = [name], {name}
    while todo:
        at = todo.pop()
        try:
            store.get(at)
            links = store.info(at).links
        except casstore.StoreError as error:
            raise Violation(f"{why}: {name} needs {at}: {type(error).__name__}: {error}") from error
        todo += [link for link in links if link not in seen]
        seen.update(links)
    return seen


def _named(jrn: journal.Journal, run_id: UUID) -> set[ArtifactId]:
    return {name for item in jrn.read(run_id) for _, name in journal.links(item.event)}


def check_live(jrn: journal.Journal) -> None:
    """I1: what events of live runs name is there, with all that it links to."""
    for row in jrn.runs(status="live"):
        for name in _named(jrn, row.run_id):
            read_closure(jrn.store, name, f"I1: an event of live run {row.run_id}")


def check_protected(store: casstore.Store) -> None:
    """I3: what pins and leases hold is there. (A lease that expired is only safe until the next gc.)"""
    for name, held in store.pins().items():
        read_closure(store, held, f"I3: pin {name}")
    for lease, expires_s, digest in store._backend.leased():
        if expires_s > store._clock():
            read_closure(store, ArtifactId(digest), f"I3: lease {lease}")


def check_whole(jrn: journal.Journal, *, damaged: bool = False) -> None:
    """Both verifications find nothing; with `damaged`, nothing but damage that the test did itself."""
    found = jrn.store.verify().findings
    _expect("C: verify", [f for f in found if not (damaged and f.code in ("corrupt", "corrupt_base"))], [])
    _expect("I1: the journal's verify", jrn.verify(), [])


def check_order(store: casstore.Store) -> None:
    """C: what each artifact needs is there and older. To be called between any two commits."""
    with store._backend._tables.read() as t:  # type: ignore[attr-defined]
        ids = {digest: IxRow.unpack(row).data_id for digest, row in t.scan(tables.IX)}
        for digest, data_id in ids.items():
            links = t.get(tables.LN, digest) or b""
            for at in range(0, len(links), 32):
                child = ids.get(links[at : at + 32])
                if child is None or child >= data_id:
                    raise Violation(f"C: {digest.hex()} is {data_id}, its link {links[at : at + 32].hex()} is {child}")
            row = t.get(tables.DA, u64(data_id))
            base = DaRow.unpack(row).base if row is not None else 0
            if base and (base >= data_id or t.get(tables.DA, u64(base)) is None):
                raise Violation(f"C: {digest.hex()} is {data_id}, the bytes of its base {base} are not there")


@contextmanager
def refused(*more: type[Exception]) -> Iterator[None]:
    """A writer that is told no begins again another time: that is a right answer wherever this stands."""
    try:
        yield
    except (casstore.MissingArtifact, casstore.NotFound, journal.MissingArtifact, *more):
        pass


def damage(store: casstore.Store, name: ArtifactId) -> None:
    """Flip a byte of what is stored of it, behind the store's back."""
    row = store._backend.rows([name.digest])[0]
    assert row is not None
    with store._backend._tables.write() as t:  # type: ignore[attr-defined]
        key = tables.piece_key(row.data_id, 0)
        piece = bytearray(t.get(tables.D, key) or b"")
        piece[0] ^= 1
        t.put(tables.D, key, bytes(piece))
