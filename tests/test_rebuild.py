"""Rows made anew from records: the same bytes, whatever was lost; and nothing where the records do not say it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers import exit_code, fork_child
from kills import kill_at

import journal
from casstore import steps
from casstore.testing import FakeClock
from journal import DomainEvent, ErrorInfo, RunCompleted, StateError, StateFailed, rebuilding
from journal.rebuilding import EPOCHS_LOST
from journal.rows import STAGED, TABLES, number, pack_run, unpack_run
from journal.testing import RUN, _entered, _put, _started, _whole_run, memory_journal
from tests.command_line import casstore as command_line

A, B = "flow.step.a", "flow.step.b"
OPEN, FAILED, FORK, CLAIMED = (UUID(int=place << 120) for place in range(0xC1, 0xC5))
INDEXES = ["rs1", "run1", "id1", "st1", "fk1", "live1", "done1"]
Rows = dict[bytes, dict[bytes, bytes]]


def fill(jrn: Any, clock: FakeClock) -> None:
    """Runs in every state, with batches of different lengths between each other, and one forgotten."""
    initial = _put(jrn, "initial")
    whole = _whole_run(jrn)
    jrn.append(OPEN, 0, [_started(jrn)])
    for place, event in enumerate(whole):
        clock.advance(1)
        jrn.append(RUN, place, [event])
    jrn.append(OPEN, 1, [_entered(initial), DomainEvent("note")])
    later = int((clock.now + 1000) * 1000)
    info = ErrorInfo(code="c", retryable=True, details={"retry_at_ms": later})
    jrn.append(FAILED, 0, [_started(jrn), _entered(initial, A)])
    jrn.append(FAILED, 2, [StateFailed(state_id=A, error=StateError(info=info))])
    clock.advance(-5)
    jrn.append(FAILED, 3, [DomainEvent("note")])
    forgotten = jrn.start_run("flow", manifest={}, context={}, claim=False)
    jrn.fork(RUN, 12, FORK, claim=False)
    forgotten.complete()
    jrn.forget(forgotten.run_id)
    run = jrn.start_run("flow", manifest={}, context={"n": 0}, plan=[A, B], run_id=CLAIMED)
    with run.enter(A) as attempt:
        attempt.fact("k", 1)
        attempt.complete({"n": 1})
    clock.advance(1)
    jrn.append(OTHER_ENDED, 0, [_started(jrn), RunCompleted(status="failed")])


ANOTHER = UUID(int=0xC8 << 120)


def start_another(jrn: Any) -> None:
    """A new run, which gets the number 8."""
    jrn.start_run("flow", manifest={}, context={}, run_id=ANOTHER)
    assert rows(jrn)[b"id1"][ANOTHER.bytes] == number(8)


OTHER_ENDED = UUID(int=0xC9 << 120)


@pytest.fixture(params=["lmdb", "memory"])
def jrn(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    clock = FakeClock()
    lmdb = request.param == "lmdb"
    with journal.open(tmp_path / "home", clock=clock) if lmdb else memory_journal(clock=clock) as jrn:
        fill(jrn, clock)
        yield jrn


def rows(jrn: Any) -> Rows:
    """All but what is staged, which is no row of a run and goes into the store when the journal is closed."""
    with jrn._backend._tables.read() as txn:
        return {table: {} if table == STAGED else dict(txn.scan(table)) for table in TABLES}


def change(jrn: Any, table: str, edit: Callable[[bytes, bytes], bytes | None]) -> None:
    """Each value of a table is what `edit` makes of it; None removes the row."""
    with jrn._backend._tables.write() as txn:
        for key, value in list(txn.scan(table.encode())):
            made = edit(key, value)
            if made is None:
                txn.delete(table.encode(), key)
            elif made != value:
                txn.put(table.encode(), key, made)


def epochs_of(before: Rows, after: Rows) -> Rows:
    """As `after`, but with the epochs that stood in the rows before: only they cannot be derived."""
    same = {table: dict(found) for table, found in after.items()}
    for key, value in before[b"run1"].items():
        run = int.from_bytes(key[1:], "big")
        now, then = unpack_run(run, after[b"run1"][key]), unpack_run(run, value)
        assert now.epoch == then.epoch or now.epoch >= EPOCHS_LOST
        same[b"run1"][key] = pack_run(replace(now, epoch=then.epoch))
    return same


def test_a_sound_journal_is_what_its_records_say(jrn: Any) -> None:
    """Nothing to change, in a dry run and without; every kind of row is there to be compared."""
    before = rows(jrn)
    assert all(before[table.encode()] for table in INDEXES)
    for dry_run in (True, False):
        report = jrn.rebuild(dry_run=dry_run)
        assert (report.changes, report.left) == ((), ())
        assert (report.runs, report.events) == (len(before[b"run1"]), len(before[b"ev1"]))
    assert rows(jrn) == before and jrn.verify() == []


@pytest.mark.parametrize("lost", [*([table] for table in INDEXES), ["rs1", "st1", "fk1", "live1", "done1", "id1"],
                                  ["rs1", "st1", "fk1", "live1", "done1", "run1"]])  # fmt: skip
def test_lost_tables(jrn: Any, lost: list[str]) -> None:
    """Whole tables, alone and together, come back byte for byte; only epochs of lost rows are new."""
    before = rows(jrn)
    for table in lost:
        change(jrn, table, lambda *_: None)
    damaged = rows(jrn)
    report = jrn.rebuild(dry_run=True)
    assert {item.table for item in report.changes} == set(lost) and rows(jrn) == damaged
    assert jrn.rebuild().changes == report.changes and report.left == ()
    after = rows(jrn)
    assert (epochs_of(before, after) if "run1" in lost else after) == before
    assert jrn.verify() == [] and jrn.rebuild().changes == ()


@pytest.mark.parametrize("table", INDEXES)
def test_damaged_rows(jrn: Any, table: str) -> None:
    """One row at a time: cut off, changed, and lost."""
    before = rows(jrn)
    for victim in before[table.encode()]:
        for edit in (lambda value: value[:-1], lambda value: value + b"\x01", lambda value: number(77), lambda _: None):
            change(jrn, table, lambda key, value, victim=victim, edit=edit: edit(value) if key == victim else value)
            if rows(jrn) == before:
                continue  # nothing can be cut off from nothing
            assert jrn.verify() != []
            report = jrn.rebuild()
            assert report.left == () and {item.table for item in report.changes} <= {table, "live1"}
            after = rows(jrn)
            assert (epochs_of(before, after) if table == "run1" else after) == before
            change(jrn, table, lambda key, _: before[table.encode()].get(key))
    assert rows(jrn) == before


@pytest.mark.parametrize("table", INDEXES)
def test_rows_of_nothing(jrn: Any, table: str) -> None:
    """Rows that no record speaks of go; verify tells of them."""
    before = rows(jrn)
    key, value = next(iter(before[table.encode()].items()))
    strays = {
        "run1": [(b"\xff", value)], "id1": [(bytes(16), number(99)), (b"short", value)],
        "live1": [(number(99), b""), (number(2), b"")], "done1": [(b"\x01" + number(5) + number(1), b"")],
    }.get(table, [(number(99) + key[2:], value), (number(1) + b"\x02\x7f\x7f", value), (b"\xff", b"")])  # fmt: skip
    for stray, content in strays:
        with jrn._backend._tables.write() as txn:
            txn.put(table.encode(), stray, content)
        assert jrn.verify() != []
        assert [(item.table, item.what) for item in jrn.rebuild().changes] == [(table, "stray")]
        assert rows(jrn) == before


def test_fields_of_a_run_row(jrn: Any) -> None:
    """A row that can be read, has the right chain, and is wrong all the same is put right, its epoch kept."""
    before = rows(jrn)
    for field, value in (("head", None), ("op_id", "other"), ("n_completed", 9), ("retry_at_ms", 5), ("run_id", RUN)):
        for key, data in before[b"run1"].items():
            run = int.from_bytes(key[1:], "big")
            row = unpack_run(run, data)
            if value is None or getattr(row, field) == value:
                continue
            with jrn._backend._tables.write() as txn:
                txn.put(b"run1", key, pack_run(replace(row, **{field: value})))
            assert {item.what for item in jrn.rebuild().changes} == {"wrong"}
            assert rows(jrn) == before


def test_records_that_are_not_whole(jrn: Any) -> None:
    """A run that lost a record, or whose record was changed, is left as it is, and told of; others are repaired."""
    position = jrn.position_of(RUN, 3)
    data = rows(jrn)[b"ev1"][number(position)]
    for made in (None, data[:-1], data.replace(b"suite", b"other"), b"\xff" * 9):
        change(jrn, "ev1", lambda key, value, made=made: made if key == number(position) else value)
        change(jrn, "st1", lambda *_: None)
        before = rows(jrn)
        report = jrn.rebuild()
        assert RUN in {item.run_id for item in report.left} and RUN not in {item.run_id for item in report.changes}
        assert "st1" in {item.table for item in report.changes}
        after = rows(jrn)
        assert {**after, b"st1": {}} == before
        with jrn._backend._tables.write() as txn:
            txn.put(b"ev1", number(position), data)
        assert jrn.rebuild().left == () and jrn.verify() == []


def test_a_lost_end_is_not_papered_over(jrn: Any) -> None:
    """Records cut off at the end leave a legal stream: the row tells that there was more. With force they count."""
    last = jrn.position_of(RUN, jrn.head(RUN))
    change(jrn, "ev1", lambda key, value: None if key == number(last) else value)
    before = rows(jrn)
    report = jrn.rebuild()
    assert [(item.code, item.run_id) for item in report.left] == [("wrong_chain", RUN)]
    assert rows(jrn) == before
    report = jrn.rebuild(force=True)
    assert report.left == () and jrn.verify() == []
    assert jrn.run_state(RUN).status is None and jrn.run_state(RUN) == journal.analyze(jrn.read(RUN))


def test_a_lost_name(jrn: Any) -> None:
    """The id stands in two rows; where both are gone the run is left, told of by number, and no stray goes."""
    number_of = {unpack_run(0, value).run_id: key for key, value in rows(jrn)[b"run1"].items()}
    change(jrn, "run1", lambda key, value: None if key == number_of[RUN] else value)
    change(jrn, "id1", lambda key, value: None if key == RUN.bytes else value)
    with jrn._backend._tables.write() as txn:
        txn.put(b"id1", bytes(16), number(99))
    before = rows(jrn)
    report = jrn.rebuild()
    assert [(item.code, item.run_id) for item in report.left] == [("unknown_run_id", None)]
    assert report.changes == () and rows(jrn) == before


def test_owners_of_a_lost_row_are_fenced(jrn: Any) -> None:
    """The epoch cannot be derived, so the new one is above all that there were; the claim itself is kept."""
    head = jrn.head(CLAIMED)
    claims = rows(jrn)[b"cl1"]
    change(jrn, "run1", lambda *_: None)
    jrn.rebuild()
    assert rows(jrn)[b"cl1"] == claims and claims
    with pytest.raises(journal.Fenced):
        jrn.append(CLAIMED, head, [DomainEvent("note")], epoch=1)
    assert jrn.resume(CLAIMED, steal=True).next == B


def test_numbers_are_not_given_out_again(jrn: Any) -> None:
    """Also where the row that tells the next one is lost or wrong."""
    meta = rows(jrn)[b"meta1"]
    for made in (None, number(1), b"\xff"):
        change(jrn, "meta1", lambda key, value, made=made: made if key == b"next_run" else value)
        assert [item.table for item in jrn.rebuild().changes] == (["meta1"] if made != meta[b"next_run"] else [])
        assert rows(jrn)[b"meta1"] == meta
        change(jrn, "meta1", lambda key, value: value)


def test_a_rebuild_that_fails_changes_nothing(jrn: Any) -> None:
    """In a part: that part is left out."""
    change(jrn, "st1", lambda *_: None)
    before = rows(jrn)

    def listener(step: str) -> None:
        if step == "rebuild.written":
            raise KeyboardInterrupt

    steps.listen(listener)
    try:
        with pytest.raises(KeyboardInterrupt):
            jrn.rebuild()
    finally:
        steps.listen(None)
    assert rows(jrn) == before


def damage(jrn: Any) -> None:
    """Every run lost rows, one row is of nothing, and the next number is one that is taken."""
    for table in ("st1", "rs1", "fk1", "live1", "done1"):
        change(jrn, table, lambda *_: None)
    with jrn._backend._tables.write() as txn:
        txn.put(b"live1", number(99), b"")
        txn.put(b"meta1", b"next_run", number(1))


def test_a_rebuild_that_is_killed_between_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each of them: every run is as its records say or as it was, and the next rebuild does the rest."""
    monkeypatch.setattr(rebuilding, "PART_ROWS", 1)
    clock, home = FakeClock(), tmp_path / "home"
    with journal.open(home, clock=clock) as jrn:
        fill(jrn, clock)
        before = rows(jrn)
        damage(jrn)
        damaged = rows(jrn)

    def rebuild(stop: int) -> None:
        kill_at(stop, "rebuild.written", "rebuild.part")
        with journal.open(home) as jrn:
            jrn.rebuild()

    stop, differing = 0, [len(differences(damaged, before))]
    while differing[-1]:
        stop += 1
        with journal.open(home) as jrn:
            restore(jrn, damaged)
        code = exit_code(fork_child(lambda stop=stop: rebuild(stop)))
        with journal.open(home) as jrn:
            after = rows(jrn)
            assert all(after[table].get(key) in (found.get(key), damaged[table].get(key))
                       for table, found in before.items() for key in {*found, *damaged[table]})  # fmt: skip
            by_run = [differences(after, before, number(run)) for run in range(1, 9)]
            assert all(left in ([], differences(damaged, before, number(run))) for run, left in enumerate(by_run, 1))
            differing.append(len(differences(after, before)))
            changes = jrn.rebuild(dry_run=True).changes
            assert len(changes) == differing[-1] and jrn.rebuild().changes == changes
            assert rows(jrn) == before and jrn.verify() == []
        assert code == (-signal.SIGKILL if stop <= 2 * 8 else 0)
    assert differing == sorted(differing, reverse=True) and len(set(differing)) == 9


def differences(found: Rows, wanted: Rows, prefix: bytes | None = None) -> list[tuple[bytes, bytes]]:
    """Rows that are not as they should be; those of one run, of the tables whose keys begin with its number."""
    tables = TABLES if prefix is None else (b"rs1", b"st1", b"fk1", b"live1")
    keys = [(table, key) for table in tables for key in sorted({*found[table], *wanted[table]})]
    own = [name for name in keys if prefix is None or name[1].startswith(prefix)]
    return [(table, key) for table, key in own if found[table].get(key) != wanted[table].get(key)]


def restore(jrn: Any, wanted: Rows) -> None:
    with jrn._backend._tables.write() as txn:
        for table, key in differences(rows(jrn), wanted):
            if key in wanted[table]:
                txn.put(table, key, wanted[table][key])
            else:
                txn.delete(table, key)


def test_writers_between_the_parts_of_a_rebuild(jrn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended, forgotten, taken over, new: what others write is kept, and all is right at the end."""
    monkeypatch.setattr(rebuilding, "PART_ROWS", 1)
    for table in ("st1", "fk1", "live1", "done1"):
        change(jrn, table, lambda *_: None)
    with jrn._backend._tables.write() as txn:
        txn.put(b"live1", number(8), b"")  # nothing has this number now: the next new run gets it
    writes: list[Callable[[], object]] = [
        lambda: (jrn.forget(RUN), jrn.cancel(FAILED), jrn.claim(FORK, "somebody"), start_another(jrn)),
        lambda: jrn.append(OPEN, jrn.head(OPEN), [DomainEvent("meanwhile")]),
        lambda: jrn.cancel(ANOTHER),
    ]
    done = []

    def listener(step: str) -> None:
        if step == "rebuild.part":
            steps.listen(None)
            if writes:
                done.append(writes.pop(0)())
            live = {row.run_id for row in jrn.runs(status="live")}
            assert (ANOTHER in live) is (len(done) < 3) and FAILED not in live
            assert jrn.head(RUN) == 0 and not [key for key in rows(jrn)[b"st1"] if key.startswith(number(2))]
            steps.listen(listener)

    steps.listen(listener)
    try:
        report = jrn.rebuild()
    finally:
        steps.listen(None)
    assert len(done) == 3 and report.left == () and jrn.verify() == []
    assert jrn.head(RUN) == 0 and {jrn.run_state(run_id).status for run_id in (FAILED, ANOTHER)} == {"cancelled"}
    assert jrn.rebuild().changes == ()


def test_a_run_that_is_written_to_again_and_again(jrn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every round, before its part: at last the writers wait."""
    with jrn._backend._tables.write() as txn:
        for key, _ in list(txn.scan(b"st1")):
            txn.delete(b"st1", key)
    look = rebuilding.survey
    appended = []

    def overtaken(txn: Any, *, force: bool) -> Any:
        found = look(txn, force=force)
        if len(appended) < 3:
            found = (found[0], [repair._replace(seen=b"before") for repair in found[1]])
        appended.append(len(found[1]))
        return found

    monkeypatch.setattr(rebuilding, "survey", overtaken)
    assert len(jrn.rebuild().changes) > 1
    assert len(appended) == 4 and len(set(appended)) == 1
    monkeypatch.undo()
    assert jrn.rebuild().changes == () and jrn.verify() == []


def test_a_claim_is_no_event(jrn: Any) -> None:
    """The time of the last event stays that of the last event: else it could not be derived."""
    before = next(row for row in jrn.runs() if row.run_id == OPEN)
    jrn._clock.advance(50)
    jrn.claim(OPEN, "somebody")
    assert next(row for row in jrn.runs() if row.run_id == OPEN) == before
    assert jrn.rebuild().changes == ()


def test_an_empty_journal() -> None:
    """Has no rows, and needs none."""
    with memory_journal() as jrn:
        report = jrn.rebuild()
        assert (report.runs, report.events, report.changes, report.left) == (0, 0, (), ()) and jrn.verify() == []


def test_a_forget_under_way(jrn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of it is neither a run nor stray."""
    assert jrn._backend.forget(unpack_run_number(jrn, RUN), 3) is False
    before = rows(jrn)
    assert jrn.verify() == [] and jrn.rebuild().changes == () and rows(jrn) == before
    assert jrn.forget(RUN) == 16 and jrn.verify() == []


def unpack_run_number(jrn: Any, run_id: UUID) -> int:
    return int.from_bytes(rows(jrn)[b"id1"][run_id.bytes][1:], "big")


def test_on_the_command_line(tmp_path: Path) -> None:
    """3 where a dry run finds something, or something is left; 0 where all is put right."""
    clock = FakeClock()
    with journal.open(tmp_path / "home", clock=clock) as jrn:
        fill(jrn, clock)
        before = rows(jrn)
        change(jrn, "st1", lambda *_: None)

    def run(*line: str) -> tuple[int, dict[str, Any]]:
        return command_line(*line, "--json", home=tmp_path / "home").coded

    code, dry = run("rebuild", "--dry-run")
    assert code == 3 and {item["table"] for item in dry["changes"]} == {"st1"}
    code, document = run("rebuild")
    assert (code, document["changes"], document["left"]) == (0, dry["changes"], [])
    assert run("rebuild", "--dry-run")[0] == 0
    with journal.open(tmp_path / "home") as jrn:
        assert rows(jrn) == before


@pytest.mark.parametrize("whole", [False, True])
def test_two_runs_of_one_id(jrn: Any, whole: bool) -> None:
    """One run's row says the id of another (or is that one's row): both numbers are named, and neither run is given
    the other's row in the index, not even with force."""
    first, second = unpack_run_number(jrn, RUN), unpack_run_number(jrn, OPEN)
    low, high = sorted((first, second))
    row = unpack_run(first, rows(jrn)[b"run1"][number(first)])
    theirs = unpack_run(second, rows(jrn)[b"run1"][number(second)])
    copied = replace(row, number=second) if whole else replace(theirs, run_id=RUN)
    with jrn._backend._tables.write() as txn:
        txn.put(b"run1", number(second), pack_run(copied))
        txn.delete(b"id1", OPEN.bytes)
    before = rows(jrn)
    for _ in range(2):
        (found,) = [found for found in jrn.verify() if found.code == "double_run_id"]
        assert found.run_id == RUN and f"{low} and {high}" in found.detail
        report = jrn.rebuild()
        assert [(item.code, item.run, item.run_id) for item in report.left] == [("double_run_id", second, RUN)]
        assert report.changes == () and rows(jrn) == before
    report = jrn.rebuild(force=True)
    assert [(item.code, item.run) for item in report.left] == [("double_run_id", low), ("double_run_id", high)]
    assert report.changes == () and rows(jrn) == before
    with jrn._backend._tables.write() as txn:  # its name is known again
        txn.put(b"id1", OPEN.bytes, number(second))
    if not whole:
        assert {(item.table, item.run) for item in jrn.rebuild().changes} == {("run1", second)}
        assert jrn.verify() == []


def test_rows_that_are_of_no_run(jrn: Any) -> None:
    """The epoch of new runs is made anew, above all that were; what nothing tells is named: a cursor, and what is left
    of a run being forgotten. Verify tells of each, and raises nothing."""
    for name, made in ((b"epoch", b"\xff"), (b"forgetting" + b"\xff", b""), (b"forgetting" + number(3), b"short")):
        before = rows(jrn)
        with jrn._backend._tables.write() as txn:
            txn.put(b"meta1", name, made)
        assert jrn.verify() != []
        report = jrn.rebuild()
        if name == b"epoch":
            assert [(item.table, item.what) for item in report.changes] == [("meta1", "wrong")] and report.left == ()
            assert jrn.verify() == []
            run = jrn.start_run("flow", manifest={}, context={})
            assert unpack_run(9, rows(jrn)[b"run1"][number(unpack_run_number(jrn, run.run_id))]).epoch >= EPOCHS_LOST
        else:
            assert "bad_row" in {item.code for item in report.left} and report.changes == ()
            with jrn._backend._tables.write() as txn:
                txn.delete(b"meta1", name)
            assert rows(jrn) == before
    with jrn._backend._tables.write() as txn:
        txn.put(b"cur1", b"consumer", b"\xff")
        txn.put(b"live1", number(99), b"")
    assert [(item.code, item.run) for item in jrn.rebuild(dry_run=True).left] == [("bad_row", None)]
    assert [found.code for found in jrn.verify()] == ["bad_row", "wrong_row"]
    assert [item.what for item in jrn.rebuild().changes] == ["stray"]


def test_stray_rows_beside_other_damage(jrn: Any) -> None:
    """An artifact is missing: the rows that belong to nothing are named all the same."""
    with jrn._backend._tables.write() as txn:
        txn.put(b"live1", number(99), b"")
    manifest = jrn.run_state(OPEN).manifest_id
    with jrn.store._backend._tables.write() as txn:
        txn.delete(b"ix1", manifest.digest)
    found = jrn.verify()
    assert {item.code for item in found} == {"missing_artifact", "wrong_row"}
    assert "run number 99 in live1 is stray" in " ".join(item.detail for item in found)
