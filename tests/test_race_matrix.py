"""Every operation beside every kind of gc: each is stopped at each of its steps, and the other runs (docs/GC.md).

The steps are counted by a run of their own, so that new ones are taken in by themselves. After each case I1 to I6 are
checked. The normal run takes a part of the cases; `soak` takes all, and pairs of writers too.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest

import casstore
import journal
from casstore.testing import FakeClock
from journal import DomainEvent, RunCompleted, RunStarted, RunStatus
from tests import test_gc_races as races
from tests.race_harness import (
    LIVE,
    TEXT,
    Interleaving,
    Violation,
    World,
    damage,
    refused,
    watch_locks,
    without_flushes,
)

ENDED, FORK, MOVED, RUN, STAGED = (UUID(int=number) for number in range(2, 7))
SHARE = 6
LARGE = bytes(1 << 20) + b"and a little more than one frame"
DAY_S = 86400


# -- what writers do ----------------------------------------------------------------------------------------


Prepare = Callable[[World], Any]


class Operation(NamedTuple):
    """`act` is done by one handle, on a home where `prepare` ran, whose facts it gets; it promises what must stay."""

    prepare: Prepare
    act: Callable[[World, journal.Journal, Any], object]


OPERATIONS: dict[str, Operation] = {}


def operation(prepare: Prepare) -> Callable[[Callable[[World, journal.Journal, Any], object]], Any]:
    def register(act: Callable[[World, journal.Journal, Any], object]) -> Any:
        OPERATIONS[act.__name__] = Operation(prepare, act)
        return act

    return register


def chain(w: World) -> Any:
    """x ← y ← z, old, and two loose ones."""
    w.put_old(b"loose")
    x = w.put_old(b"x")
    y = w.put_old([x])
    z = w.put_old({"y": y})
    w.put_old(b"loose too")
    return x, y, z


@operation(chain)
def put_new(w: World, me: journal.Journal, names: Any) -> None:
    w.append(me, w.promise(me.store.put_value({"new": names[0]})))


@operation(chain)
def put_hit(w: World, me: journal.Journal, names: Any) -> None:
    w.append(me, w.promise(me.store.put_value({"y": names[1]})))


@operation(chain)
def put_many(w: World, me: journal.Journal, names: Any) -> None:
    made = me.store.put_many([b"loose", b"x", (b"new", "output"), me.store.get(names[1])])
    w.append(me, *map(w.promise, made))


@operation(lambda w: w.put_old({"text": TEXT, "x": w.put_old(b"x")}))
def put_delta(w: World, me: journal.Journal, base: Any) -> None:
    w.append(me, w.promise(me.store.put_value({"text": TEXT + b"more"}, base=base, kind="context_snapshot")))


@operation(chain)
def append(w: World, me: journal.Journal, names: Any) -> None:
    w.append(me, names[2])


@operation(chain)
def hand_over(w: World, me: journal.Journal, names: Any) -> None:
    """Lease put, then a run, then a pin, then the lease goes."""
    with me.store.lease(600) as held:
        name = w.promise(held.put_value([names[0]]))
        held.renew()
        w.append(me, name)
        me.store.pin("kept", name)


@operation(chain)
def lease_add(w: World, me: journal.Journal, names: Any) -> None:
    held = me.store.lease(1 << 30)
    held.add(names[2])
    w.promise(names[2])


@operation(chain)
def pin(w: World, me: journal.Journal, names: Any) -> None:
    me.store.pin("kept", names[2])
    w.promise(names[2])


@operation(lambda w: w.put_old(b"x"))
def upload_value(w: World, me: journal.Journal, x: Any) -> None:
    w.append(me, w.promise(me.store.put_value([x, LARGE])))


@operation(lambda w: w.put_old(LARGE))
def upload_hit(w: World, me: journal.Journal, _: Any) -> None:
    w.append(me, w.promise(me.store.put_file(io.BytesIO(LARGE))))


def damaged(w: World) -> Any:
    x = w.put_old(b"x" * 100)
    y = w.put_old({"x": x, "text": TEXT})
    z = w.put_old([x])
    damage(w.store, x)
    damage(w.store, y)
    w.grow_old()
    return x, z


@operation(damaged)
def heal(w: World, me: journal.Journal, names: Any) -> None:
    """A child of one that is healed too, and of one that was never damaged."""
    me.store.put(b"x" * 100)
    w.append(me, w.promise(me.store.put_value({"x": names[0], "text": TEXT})))
    with refused():
        w.append(me, names[1])


def exported(w: World) -> Any:
    """What the file holds is here as well, but for its root: hits and new blocks."""
    names, car = chain(w), io.BytesIO()
    top = w.store.put_value({"z": names[2], "x": names[0]})
    w.store.export(top, car)
    w.gc(w.one, grace=0)
    chain(w)
    return car.getvalue()


@operation(exported)
def import_car(w: World, me: journal.Journal, car: Any) -> None:
    report = me.store.import_(io.BytesIO(car), pin="imported")
    w.promise(report.roots[0])


def ended(w: World, run_id: UUID = ENDED) -> Any:
    """A run that ended long ago; gc takes what it names."""
    x, y, z = chain(w)
    started = RunStarted(op_id="race", manifest_id=x, initial_snapshot_id=y)
    events = [started, DomainEvent("note", {"z": z}), RunCompleted(status=RunStatus.CANCELLED, final_snapshot_id=y)]
    w.one.append(run_id, 0, events)
    w.grow_old()


@operation(ended)
def fork(w: World, me: journal.Journal, _: Any) -> None:
    with refused(journal.RunNotFound):  # where it was forgotten
        me.fork(ENDED, 1, FORK, claim=False)


@operation(ended)
def forget(w: World, me: journal.Journal, _: Any) -> None:
    with refused(journal.RunNotFound):
        me.forget(ENDED)


def exported_run(w: World) -> Any:
    ended(w, MOVED)
    car = io.BytesIO()
    w.one.export(MOVED, car)
    w.one.forget(MOVED)
    w.grow_old()
    return car.getvalue()


@operation(exported_run)
def import_run(w: World, me: journal.Journal, car: Any) -> None:
    me.import_(io.BytesIO(car), pin="run")
    w.promise(me.store.pins()["run"])


def buried(w: World) -> Any:
    """In quarantine, but for x, which was put again."""
    names = chain(w)
    w.gc(w.one, grace=0, quarantine=400 * DAY_S)
    w.put_old(b"x")
    return names


@operation(buried)
def undelete(w: World, me: journal.Journal, names: Any) -> None:
    me.store.undelete([names[2]])
    w.append(me, w.promise(names[2]))


@operation(chain)
def compact(w: World, me: journal.Journal, names: Any) -> None:
    me.store.compact()


def run_of_two(w: World) -> Any:
    w.one.start_run("race", manifest={"m": 1}, context={"text": TEXT.decode()}, plan=["a.b.c", "d.e.f"],
                    run_id=RUN, claim=False)  # fmt: skip
    w.put_old({"fact": 1})
    w.put_old(b"what a handler made")


@operation(run_of_two)
def recorder_step(w: World, me: journal.Journal, _: Any) -> None:
    """A fact, an output and the next context, none of which is durable or named before the recorder says so."""
    run = me.resume(RUN, claim=False)
    if run.next != "a.b.c":  # another one was here
        return
    with run.enter("a.b.c") as attempt:
        attempt.fact("k", {"fact": 1})
        attempt.output(b"what a handler made")
        attempt.complete({"text": TEXT.decode() + "more"}, then="d.e.f")


def with_staged(w: World) -> Any:
    """Two that are only staged, one on top of the other, by a run that ended; and an old one to stand on."""
    x = w.put_old(b"x")
    run = w.one.start_run("race", manifest={}, context={}, claim=False, run_id=STAGED)
    names = []
    for value in ({"x": x}, {"text": TEXT}):
        put = w.one.store.prepare_value(value)
        assert not isinstance(put, casstore.ArtifactId)
        names.append(put.id)
        w.one.append(STAGED, w.one.head(STAGED), [DomainEvent("note", {"name": put.id})], puts=[put])
    w.one.cancel(run.run_id)
    w.grow_old()
    return names


@operation(with_staged)
def bring(w: World, me: journal.Journal, names: Any) -> None:
    """Appends that bring along what stands on what is staged: by a link, as a delta."""
    for value, base in (({"on": names[0]}, None), ({"text": TEXT + b"more"}, names[1]), ({"x": 1}, None)):
        put = me.store.prepare_value(value, base=base, kind="context_snapshot")
        assert not isinstance(put, casstore.ArtifactId)
        while True:
            try:
                me.append(LIVE, me.head(LIVE), [DomainEvent("note", {"name": put.id})], puts=[put])
            except journal.Conflict:
                continue
            break


@operation(with_staged)
def put_on_staged(w: World, me: journal.Journal, names: Any) -> None:
    """What is put into the store has what it needs there first; so has a pin."""
    w.append(me, w.promise(me.store.put_value({"on": names[0]})))
    me.store.pin("kept", names[1])
    w.promise(names[1])


@operation(with_staged)
def settle(w: World, me: journal.Journal, _: Any) -> None:
    me.store.staging.settle()


# -- those who run beside them ------------------------------------------------------------------------------


def gc_at_once(w: World, me: journal.Journal, _: Any) -> None:
    """Nothing is young."""
    w.gc(me, grace=0)


def gc_overtaken(w: World, me: journal.Journal, _: Any) -> None:
    """Taken for dead once it has marked, and then going on."""
    Interleaving.aside("gc.marked", lambda: w.rival(me))
    w.rival(me)


def gc_with_grace(w: World, me: journal.Journal, _: Any) -> None:
    """As in production, with a quarantine."""
    w.gc(me, quarantine=DAY_S)


COLLECTORS = {found.__name__: Operation(chain, found) for found in (gc_at_once, gc_overtaken, gc_with_grace)}
KEEPERS = {**COLLECTORS, "compact": OPERATIONS["compact"]}
WRITERS = list(OPERATIONS)
OPERATIONS["collect"] = COLLECTORS["gc_at_once"]
ALL = {**OPERATIONS, **COLLECTORS}

# -- cases --------------------------------------------------------------------------------------------------


@dataclass
class Templates:
    """A home prepared for some operations, copied for each case."""

    place: Path
    made: dict[tuple[Prepare, ...], tuple[Path, float, dict[Prepare, Any]]] = field(default_factory=dict)
    count: int = 0

    def world(self, prepares: tuple[Prepare, ...]) -> tuple[World, dict[Prepare, Any]]:
        if prepares not in self.made:
            home, clock = self.place / f"home{len(self.made)}", FakeClock()
            w = World(home, clock)
            facts = {prepare: prepare(w) for prepare in prepares}
            w.close()
            self.made[prepares] = home, clock.now, facts
        home, now, facts = self.made[prepares]
        self.count += 1
        copy = self.place / f"case{self.count}"
        shutil.copytree(home, copy)
        return World(copy, FakeClock(now)), facts

    def drop(self, w: World) -> None:
        w.close()
        shutil.rmtree(w.home)


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Templates:
    watch_locks(monkeypatch)
    without_flushes(monkeypatch)
    monkeypatch.setattr("casstore.stage._ROWS_DUE", 2)  # appends settle often
    monkeypatch.setattr("casstore.stage._GROUPS_DUE", 1)
    return Templates(tmp_path)


class Case(NamedTuple):
    """At the `stop`-th step of the outer operation the inner one runs; at 0 it does not."""

    outer: str
    inner: str
    stop: int

    def __str__(self) -> str:
        return f"{self.inner} at step {self.stop} of {self.outer}"


def run_case(templates: Templates, case: Case) -> list[str]:
    """The steps of the outer operation. Raises: Violation, with the case."""
    both = [ALL[case.outer].prepare, ALL[case.inner].prepare]
    # What collects comes first, or it would take what the other prepares.
    prepares = tuple(dict.fromkeys(sorted(both, key=lambda prepare: prepare not in (buried, exported, exported_run))))
    if case.outer in COLLECTORS or case.inner in COLLECTORS:
        prepares = tuple(prepare for prepare in prepares if prepare is not chain or len(prepares) == 1)
    w, facts = templates.world(prepares)

    def act(name: str, me: journal.Journal) -> None:
        # Told no, or kept out by the collectors' lock: what a put had returned until then is promised all the same.
        with refused(casstore.Busy, journal.Conflict):
            ALL[name].act(w, me, facts.get(ALL[name].prepare))

    try:
        seen = w.race(lambda: act(case.outer, w.one), {case.stop: lambda: act(case.inner, w.two)} if case.stop else {})
        # A gc without grace that opens after a put may take what that returned; one that was open may not.
        late = "gc_at_once" in (case.outer, case.inner) and (
            case.outer != "gc_at_once" or case.inner in COLLECTORS or "gc.closed" in seen[: case.stop]
        )
        w.check(promises=not late, damaged=damaged in prepares)
        w.grow_old()
        w.settle()
    except BaseException as error:
        error.add_note(str(case))
        raise
    finally:
        templates.drop(w)
    return seen


def cases(templates: Templates, outer: str, inner: str) -> Iterator[Case]:
    """One for each step that a dry run reaches."""
    for stop in range(1, len(run_case(templates, Case(outer, inner, 0))) + 1):
        yield Case(outer, inner, stop)


def beside_keepers(templates: Templates, writer: str) -> Iterator[Case]:
    for keeper in KEEPERS:
        yield from cases(templates, writer, keeper)
        yield from cases(templates, keeper, writer)


@pytest.mark.parametrize("writer", OPERATIONS)
def test_some_of_every_pair(writer: str, templates: Templates) -> None:
    """Every sixth case, others for each operation; `soak` runs all."""
    first = list(OPERATIONS).index(writer)
    for case in islice(beside_keepers(templates, writer), first % SHARE, None, SHARE):
        run_case(templates, case)


def test_what_only_a_staged_delta_stood_on_goes_some_time(templates: Templates) -> None:
    """Once that is settled the bytes are enough: a gc that saw it staged may not say later that nothing is to do."""
    for case in cases(templates, "bring", "gc_at_once"):
        run_case(templates, case)


@pytest.mark.soak
@pytest.mark.parametrize("writer", OPERATIONS)
def test_every_pair_at_every_step(writer: str, templates: Templates) -> None:
    """Each operation and each collector, and compact."""
    for case in beside_keepers(templates, writer):
        run_case(templates, case)


@pytest.mark.soak
@pytest.mark.parametrize("writer", WRITERS)
def test_writers_beside_each_other(writer: str, templates: Templates) -> None:
    """No collector: but what two writers leave must be such that the next one does no harm."""
    for other in WRITERS:
        for case in cases(templates, writer, other):
            run_case(templates, case)


NOTICED = [
    (races.links_unchecked, "put_new"),
    (races.recent_unread, "put_new"),
    (races.hits_untouched, "put_hit"),
    (races.young_not_rooted, "put_new"),
    (races.children_renewed_only, "put_hit"),
    (races.rising_order, "append"),
    (races.names_caught_up_only, "append"),
    (races.pins_untouched, "pin"),
    (races.leases_untouched, "lease_add"),
    (races.base_of_an_earlier_look, "put_delta"),
    (races.bases_unmarked, "put_delta"),
    (races.hits_by_an_earlier_look, "put_hit"),
    (races.healed_as_new, "heal"),
    (races.epochs_uncompared, "pin"),
    (races.position_noted_late, "append"),
    (races.checked_before_the_lock, "append"),
    (races.swept_without_the_lock, "append"),
    (races.needs_unchecked, "bring"),
    (races.staged_needs_unmarked, "bring"),
]


@pytest.mark.soak
@pytest.mark.parametrize(("broken", "writer"), NOTICED, ids=lambda found: getattr(found, "__name__", found))
def test_the_cases_notice_a_rule_taken_out(
    broken: Callable[[pytest.MonkeyPatch], None], writer: str, templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without knowing of the trace: some case of the operation breaks an invariant."""
    broken(monkeypatch)
    with pytest.raises(Violation, match=r"^(I\d|C:|unexpected)"):
        for case in beside_keepers(templates, writer):
            run_case(templates, case)
