"""Power loss: whatever pair of images of store and journal it leaves, nothing that was acknowledged or named is lost.

With a rule about flushes taken out the same checks find the loss (docs/GC.md, "Races", H22 to H24, H27, H28).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from casstore import ArtifactId
from casstore.staging import Staging
from casstore.store import Store
from casstore.table_backend import TableBackend
from casstore.writing import Writer
from journal.appends import Appender
from tests.power_images import PowerLog
from tests.race_harness import TEXT, Violation, World, refused, watch_locks, without_flushes
from tests.test_gc_races import MORE, Race, bring
from tests.test_race_matrix import OPERATIONS, Templates, chain, damaged

POWER: list[Race] = []
SHARE = 12


def race(
    hole: str, breaks: str, broken: Callable[[pytest.MonkeyPatch], None]
) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """As in test_gc_races."""

    def register(trace: Callable[[World], None]) -> Callable[[World], None]:
        POWER.append(Race(hole, trace, breaks, broken))
        return trace

    return register


def put_chain_undurable(w: World) -> ArtifactId:
    """By another process, which has not flushed yet."""
    x = w.two.store.put(b"x", durable=False)
    return w.two.store.put_value([x], durable=False)


# -- the holes ----------------------------------------------------------------------------------------------


def late_touches_not_flushed(patch: pytest.MonkeyPatch) -> None:
    check = Appender._check_named
    patch.setattr(
        Appender, "_check_named",
        lambda self, append, look, _, touched: check(self, append, look, 1 << 62, touched),
    )  # fmt: skip


@race("H22", "I1", late_touches_not_flushed)
def put_again_after_the_barrier(w: World) -> None:
    """The append has flushed; y is deleted, and put again by another who has not flushed; the append finds y."""
    y = w.put_old([w.put_old(b"x")])

    def again() -> None:
        w.gc(w.three)
        put_chain_undurable(w)

    w.race(lambda: w.append(w.one, y), {"append.synced": again})


def barrier_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "sync", lambda self: self._backend.counters().commit)


@race("H22", "I1", barrier_left_out)
def named_before_the_flush(w: World) -> None:
    """What is named was put without a flush by another."""
    y = put_chain_undurable(w)
    w.race(lambda: w.append(w.one, y), {})


def fresh_hits_not_flushed(patch: pytest.MonkeyPatch) -> None:
    put, flush = TableBackend.put, Writer._flush
    wrote: list[bool] = []

    def noted(self: TableBackend, *arguments: object) -> object:
        result = put(self, *arguments)  # type: ignore[arg-type]
        wrote.append(result.commit != 0)
        return result

    patch.setattr(TableBackend, "put", noted)
    patch.setattr(Writer, "_flush", lambda self, durable, commit=0: flush(self, durable and wrote[-1], commit))


@race("H23", "I2", fresh_hits_not_flushed)
def durable_hit_on_an_unflushed_row(w: World) -> None:
    """x is there, unflushed; a durable put of x finds it fresh, and writes nothing."""
    w.two.store.put(b"x", durable=False)
    w.race(lambda: w.one.store.put(b"x"), {})


def puts_not_flushed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Writer, "_flush", lambda self, durable, commit=0: None)


@race("H23", "I2", puts_not_flushed)
def durable_put(w: World) -> None:
    """Of what is new."""
    w.race(lambda: w.one.store.put(b"x"), {})


def pins_not_flushed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "pin", lambda self, name, id: self._backend.pin(name, id.digest, self._now()))


@race("H24", "I3", pins_not_flushed)
def pinned(w: World) -> None:
    """The pin of what is on disk already."""
    x = w.put_old(b"x")
    w.race(lambda: w.one.store.pin("kept", x), {})


def unflushed_is_safe(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("journal.appends._is_safe", lambda touched, synced: touched is not None)


@race("H27", "I1", unflushed_is_safe)
def base_put_again_after_the_barrier(w: World) -> None:
    """c comes with an append that has flushed; its base b is deleted, and put again by another who has not."""
    b = w.put_old({"text": TEXT})

    def again() -> None:
        w.gc(w.three)
        w.two.store.put_value({"text": TEXT}, durable=False)

    w.race(lambda: bring(w, w.one, {"text": MORE}, b), {"append.synced": again})


@race("H27", "I1", unflushed_is_safe)
def put_by_another_after_the_barrier(w: World) -> None:
    """z comes with an append, and is put by another, unflushed, before the check: it has to be staged all the same."""
    w.race(
        lambda: bring(w, w.one, {"z": 1}),
        {"append.synced": lambda: w.two.store.put_value({"z": 1}, kind="context_snapshot", durable=False)},
    )


def settled_unflushed(patch: pytest.MonkeyPatch) -> None:
    def settle(self: Staging) -> int:
        rows = self._stage.rows()
        self.put(rows)
        self._stage.drop(rows, lambda found: [True] * len(found))
        return len(rows)

    patch.setattr(Staging, "settle", settle)


@race("H28", "I1", settled_unflushed)
def settled(w: World) -> None:
    """What is staged goes into the store, and its rows go."""
    bring(w, w.one, {"z": 1})
    w.race(lambda: w.one.store.staging.settle(), {})


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Templates:
    watch_locks(monkeypatch)
    without_flushes(monkeypatch)  # the log stands for them
    return Templates(tmp_path)


@pytest.mark.parametrize("found", POWER, ids=lambda found: found.name)
def test_closed(found: Race, templates: Templates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the code is, no pair of images lacks anything."""
    w = World(tmp_path / "home")
    log = PowerLog(w, tmp_path / "images", monkeypatch)
    found.trace(w)
    assert log.check() > 1
    assert not w.errors
    w.close()


@pytest.mark.parametrize("found", POWER, ids=lambda found: f"{found.name}-{found.broken.__name__}")
def test_caught(found: Race, templates: Templates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rule a pair does."""
    found.broken(monkeypatch)
    w = World(tmp_path / "home")
    log = PowerLog(w, tmp_path / "images", monkeypatch)
    found.trace(w)
    with pytest.raises(Violation, match=f"^{found.breaks}"):
        log.check()
    w.close()


# -- every operation ----------------------------------------------------------------------------------------

LASTING = [name for name in OPERATIONS if name not in ("compact", "forget")]


def lose_power(templates: Templates, name: str, place: Path, stop: int) -> int:
    """Run an operation; at its `stop`-th step another deletes what is old, and puts it again without a flush. Then
    look at every pair of images. The number of steps."""
    with pytest.MonkeyPatch.context() as patch:
        prepares = tuple(dict.fromkeys((OPERATIONS[name].prepare, chain)))
        w, facts = templates.world(prepares)
        log = PowerLog(w, place, patch)

        def again() -> None:
            w.gc(w.three)
            y = put_chain_undurable(w)
            w.two.store.put_value({"y": y}, durable=False)

        def act() -> None:
            with refused():
                OPERATIONS[name].act(w, w.one, facts[OPERATIONS[name].prepare])

        seen = w.race(act, {stop: again} if stop else {})
        try:
            log.check(damaged=damaged in prepares)
        except Violation as error:
            error.add_note(f"{name}, overtaken at step {stop}")
            raise
        templates.drop(w)
    return len(seen)


@pytest.mark.parametrize("name", LASTING)
def test_power_loss_around_every_operation(name: str, templates: Templates, tmp_path: Path) -> None:
    """Alone, and overtaken at some of its steps; at all of them in `soak`."""
    stops = lose_power(templates, name, tmp_path / "alone", 0)
    for stop in islice(range(1, stops + 1), LASTING.index(name) % SHARE, None, SHARE):
        lose_power(templates, name, tmp_path / f"images{stop}", stop)


@pytest.mark.soak
@pytest.mark.parametrize("name", LASTING)
def test_power_loss_at_every_step(name: str, templates: Templates, tmp_path: Path) -> None:
    """Overtaken at each of its steps."""
    stops = lose_power(templates, name, tmp_path / "alone", 0)
    for stop in range(1, stops + 1):
        lose_power(templates, name, tmp_path / f"images{stop}", stop)
