"""Repair: what is fetched comes in the right order at once, rows of nothing go, counters are counted; killed at any
step the store is no worse, and the next repair does the rest."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import exit_code, fork_child, python
from test_verify import DAMAGES, change_record, command
from test_verify import fill as fill_with_everything

import casstore
import journal
from casstore import ArtifactId, mending, repairs, steps, values
from casstore.locks import collector_lock
from casstore.rows import DA, DATA_IDS_RESERVED, IX, LN, META, PIN, RESERVED_KEY, STATE_KEY, D, DaRow, IxRow, State, u64
from casstore.testing import FakeRoots
from journal.rows import EV, LIVE, number

Made = dict[str, ArtifactId]


def fill(store: casstore.Store) -> Made:
    """A tree of links three high, with a large leaf, each node of the kinds that it needs."""
    made = {"leaf": store.put_value({"leaf": 1}), "raw": store.put(random.Random(1).randbytes(9000))}
    made["node"] = store.put_value({"leaf": made["leaf"], "raw": made["raw"]}, kind="special")
    made["large"] = store.put_value([made["leaf"], random.Random(2).randbytes(2 << 20)])
    made["root"] = store.put_value([made["node"], made["large"]])
    store.pin("root", made["root"])
    return made


def edit(store: casstore.Store, change: Callable[[Any], None]) -> None:
    with store._backend._tables.write() as txn:  # type: ignore[attr-defined]
        change(txn)


def lose(*names: ArtifactId) -> Callable[[Any], None]:
    """Of each artifact all rows but its links."""

    def change(txn: Any) -> None:
        for name in names:
            data_id = IxRow.unpack(txn.get(IX, name.digest)).data_id
            for key in [key for key, _ in txn.scan(D, u64(data_id)) if key[:8] == u64(data_id)]:
                txn.delete(D, key)
            txn.delete(DA, u64(data_id))
            txn.delete(IX, name.digest)

    return change


def killed_at_each_step(home: Path, work: Callable[[], None], check: Callable[[], None]) -> int:
    """Do the work on a copy of the home, killed at its first step, its second and so on, `check` after each."""
    saved, stop = home.with_name("saved"), 0
    shutil.copytree(home, saved)

    def child() -> None:
        count = 0

        def listener(_: str) -> None:
            nonlocal count
            count += 1
            if count == stop:
                os.kill(os.getpid(), signal.SIGKILL)

        steps.listen(listener)
        work()

    while True:
        stop += 1
        shutil.rmtree(home)
        shutil.copytree(saved, home)
        code = exit_code(fork_child(child))
        check()
        if code != -signal.SIGKILL:
            assert code == 0
            return stop - 1


@pytest.mark.parametrize("lost", [["leaf"], ["large"], ["leaf", "node"], ["leaf", "large", "raw"]])
def test_a_kill_between_put_and_order(tmp_path: Path, lost: list[str]) -> None:
    """There is no such moment: what was missing comes in, and what links to it gets younger, in one transaction."""
    home, other = tmp_path / "home", tmp_path / "other"
    with casstore.open(other) as store:
        fill(store)
    with casstore.open(home) as store:
        made = fill(store)
        edit(store, lose(*(made[name] for name in lost)))
        missing = [found.id for found in store.verify().findings if found.code == "missing_link"]
        assert missing

    def work() -> None:
        with casstore.open(home) as store, casstore.open(other, read_only=True) as source:
            report = store.repair(source, missing)  # type: ignore[arg-type]
            assert report.failed == ()

    def check() -> None:
        with casstore.open(home) as store:
            assert "wrong_order" not in {found.code for found in store.verify().findings}

    assert killed_at_each_step(home, work, check) >= 3
    with casstore.open(home) as store:
        assert {found.code for found in store.verify().findings} <= {"wrong_counters"}
        assert store.get_value(made["root"]) == [made["node"], made["large"]]


# -- rows of nothing, and counters ----------------------------------------------------------------------

# What needs the good bytes from elsewhere, or a decision; the rest is put right without.
NOT_MENDED = {
    "a piece is missing", "a piece of a large one", "the seal of a large one", "links are missing", "links of another",
    "a base that is younger", "a base that is missing", "a base of what is no delta", "a base is damaged",
    "a pin of nothing", "half a pin",
}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with casstore.open(tmp_path / "home") as opened:
        yield opened


def contents(store: casstore.Store, made: Made) -> dict[str, bytes | None]:
    return {name: store.get(id) if id in store else None for name, id in made.items()}


@pytest.mark.parametrize("what", [what for what in DAMAGES if what not in NOT_MENDED])
def test_each_kind_of_stray_row(store: casstore.Store, what: str) -> None:
    """Put right: verify finds nothing, every artifact reads as before, a second time nothing is done, and a gc takes
    what it took before."""
    made = fill_with_everything(store)
    before, counters = contents(store, made), store.stats()
    damage, expected, _ = DAMAGES[what]
    edit(store, lambda txn: damage(txn, made))
    report = store.mend()
    told = {found.code for found in report.done}
    assert told <= {*expected, "wrong_counters", "orphan_record", "wrong_record"} and report.left == ()
    assert store.verify().findings == () and contents(store, made) == before
    assert store.mend() == casstore.MendReport(done=(), left=())
    after = store.stats()
    assert (after.artifacts, after.raw_bytes, after.stored_bytes) == (
        counters.artifacts, counters.raw_bytes, counters.stored_bytes
    )
    # What got a new number keeps its bytes under the old one until the next gc.
    assert (after.kept_bytes == counters.kept_bytes) == (what != "a link is younger")
    store.unpin("zstd")
    assert store.gc(FakeRoots(store), grace=0, force=True).removed[:] == ((made["zstd"], 15000),)
    assert store.verify().findings == ()


@pytest.mark.parametrize("what", sorted(NOT_MENDED))
def test_what_is_not_mended_is_not_made_worse(store: casstore.Store, what: str) -> None:
    """No artifact that reads stops to, and nothing else is found than before; what is left of rows is told."""
    made = fill_with_everything(store)
    damage, expected, _ = DAMAGES[what]
    edit(store, lambda txn: damage(txn, made))

    def readable() -> set[str]:
        found = set()
        for name, id in made.items():
            with suppress(casstore.StoreError):
                store.get(id)
                found.add(name)
        return found

    before, counters = readable(), store.stats()
    report = store.mend()
    after = {found.code for found in store.verify().findings}
    assert after <= expected and readable() == before
    assert {found.code for found in report.left} >= after & mending.MENDS
    assert {found.code for found in report.left} <= {*expected, "wrong_record", "wrong_length"}
    assert store.stats().artifacts == counters.artifacts


@pytest.mark.parametrize("what", ["links are missing", "links of another"])
def test_links_that_look_right(store: casstore.Store, what: str) -> None:
    """Only the bytes tell: verify finds it, and what it found is put right by them, so that gc knows what is needed."""
    made = fill_with_everything(store)
    before = contents(store, made)
    edit(store, lambda txn: DAMAGES[what][0](txn, made))
    wrong = [found.id for found in store.verify().findings if found.code == "wrong_links" and found.id is not None]
    assert [(found.code, found.id) for found in store.mend(wrong).done] == [("wrong_links", made["node"])]
    assert store.verify().findings == () and contents(store, made) == before
    for name in set(store.pins()) - {"root"}:
        store.unpin(name)
    store.pin("root", made["root"])
    store.gc(FakeRoots(store), grace=0, force=True)
    assert store.get_value(made["node"])["leaf"] == made["leaf"] and made["leaf"] in store


@pytest.mark.parametrize("ring", [["leaf", "root"], ["leaf", "node"], ["node", "node"], ["raw", "raw"]])
@pytest.mark.parametrize("how", ["put", "repair", "mend"])
def test_links_in_a_ring(store: casstore.Store, tmp_path: Path, ring: list[str], how: str) -> None:
    """A damaged row of links makes an artifact need itself in the end: no order is right for it, whatever brings things
    into order comes to an end all the same, and the bytes make it right."""
    made = fill(store)
    first, last = (made[name] for name in ring)
    data = {name: store.get(id) for name, id in made.items()}
    with casstore.open(tmp_path / "other") as other:
        fill(other)
        edit(store, lambda txn: txn.put(LN, first.digest, last.digest))
        if how == "repair":
            edit(store, lose(made["large"]))
            assert store.repair(other, [made["large"], first]).failed == ()
        elif how == "put":
            with store._backend._tables.write() as txn:  # type: ignore[attr-defined]
                assert repairs.reorder(txn, 1) == 0
            assert store.put(data[ring[0]], verify=True) == first
        store.mend()
    assert store.verify().findings == () and {name: store.get(id) for name, id in made.items()} == data


def test_a_child_that_came_again_and_lost_links(store: casstore.Store) -> None:
    """The child is younger by now than what links to it, whose row of links is lost: a put of both makes it right."""
    made = fill(store)
    data = {name: store.get(id) for name, id in made.items()}
    edit(store, lambda txn: (lose(made["leaf"])(txn), txn.delete(LN, made["node"].digest)))
    for name in ("leaf", "node", "root"):
        assert store.put(data[name], verify=True) == made[name]
    store.mend()
    assert store.verify().findings == () and {name: store.get(id) for name, id in made.items()} == data


LOST_ROWS = [["leaf"], ["node", "leaf"], ["large"], ["raw", "leaf", "node", "large", "root"]]


@pytest.mark.parametrize("made_bad", [None, b"short"])
@pytest.mark.parametrize("lost", LOST_ROWS)
def test_a_lost_row_of_the_index(store: casstore.Store, lost: list[str], made_bad: bytes | None) -> None:
    """The bytes are there and prove their id: they are listed again, under the number that they had, links and all."""
    made = fill(store)
    numbers = {name: store._backend.rows([id.digest])[0].data_id for name, id in made.items()}  # type: ignore[union-attr]
    before = contents(store, made)

    def damage(txn: Any) -> None:
        for name in lost:
            txn.delete(IX, made[name].digest)
            if made_bad is not None:
                txn.put(IX, made[name].digest, made_bad)
            txn.delete(LN, made[name].digest)  # which the bytes tell as well, but for the large one

    edit(store, lambda txn: damage(txn) if lost != ["large"] else txn.delete(IX, made["large"].digest))
    report = store.mend()
    assert report.left == () and {found.id for found in report.done if found.id} == {made[name] for name in lost}
    if "large" in lost and len(lost) > 1:
        return
    assert store.verify().findings == () and contents(store, made) == before
    assert {name: store._backend.rows([id.digest])[0].data_id for name, id in made.items()} == numbers  # type: ignore[union-attr]
    assert not store.gc(FakeRoots(store), grace=0, force=True).removed


def test_a_lost_row_whose_child_came_again(store: casstore.Store) -> None:
    """The child was lost as well, and is younger now: the artifact is listed under a new number at once."""
    made = fill(store)

    def damage(txn: Any) -> None:
        lose(made["leaf"])(txn)
        txn.delete(IX, made["node"].digest)

    edit(store, damage)
    report = store.mend()
    assert made["node"] not in store  # its bytes are there, and no leaf
    assert {found.code for found in report.left} == {"orphan_record", "orphan_links", "missing_link"}
    assert store.put_value({"leaf": 1}) == made["leaf"]
    steps.listen(lambda step: None if step != "mend.part" else order(store))

    def order(store: casstore.Store) -> None:
        assert "wrong_order" not in {found.code for found in store.verify().findings if found.id == made["node"]}

    try:
        report = store.mend()
    finally:
        steps.listen(None)
    assert made["node"] in {found.id for found in report.done} and report.left == ()
    assert store.verify().findings == () and store.get_value(made["root"]) == [made["node"], made["large"]]


def test_bytes_that_prove_nothing_are_left(store: casstore.Store) -> None:
    """They may be all that there is of an artifact; once it was put again they go."""
    data = random.Random(7).randbytes(9000)
    name = store.put(data)
    (row,) = store._backend.rows([name.digest])
    assert row is not None

    def damage(txn: Any) -> None:
        txn.delete(IX, name.digest)
        txn.put(D, u64(row.data_id) + bytes(4), bytes(4080))

    edit(store, damage)
    assert {found.code for found in store.mend().left} == {"orphan_record"}
    assert name not in store and store.put(data) == name
    assert {found.code for found in store.mend().done} == {"orphan_record", "wrong_counters"}
    assert store.verify().findings == () and store.get(name) == data


def test_pieces_of_nothing_beyond_the_next_number(store: casstore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many of them, and a record: gone before the number is given out, and not purged when it was."""
    monkeypatch.setattr(mending, "PIECES_MAX", 7)
    name = store.put(random.Random(3).randbytes(9000))
    following = store._backend.counters().next_data_id
    row = DaRow(name.digest, 5, 4080 * 29 + 1, 0, 0, 0, 0)

    def damage(txn: Any) -> None:
        txn.put(DA, u64(following), row.pack())
        for piece in range(50):
            for data_id in (following, following + 1):
                txn.put(D, u64(data_id) + piece.to_bytes(4, "big"), b"x" * 4080)

    edit(store, damage)
    assert store.mend().left == () and store.verify().findings == ()
    names = [store.put(random.Random(seed).randbytes(9000)) for seed in (4, 5)]
    store.gc(FakeRoots(store), force=True)
    assert [store.get(name) for name in names] and store.verify().findings == ()


def test_a_next_number_that_was_given_out(store: casstore.Store) -> None:
    """It goes on behind the greatest that is there: a put would write over it."""
    made = fill(store)
    before = contents(store, made)

    def damage(txn: Any) -> None:
        state = State.unpack(txn.get(META, STATE_KEY))
        state.next_data_id -= 3
        txn.put(META, STATE_KEY, state.pack())

    edit(store, damage)
    assert {found.code for found in store.mend().done} == {"wrong_number"}
    store.put(random.Random(9).randbytes(9000))
    assert store.verify().findings == () and contents(store, made) == before


def test_gc_is_kept_out(store: casstore.Store) -> None:
    assert store.home is not None
    with collector_lock(store.home), pytest.raises(casstore.Busy):
        store.mend()


def all_kinds_of_damage(store: casstore.Store) -> Made:
    """Of each sort that is mended, in one store."""
    made = fill_with_everything(store)

    def damage(txn: Any) -> None:
        txn.delete(IX, made["leaf"].digest)
        txn.put(IX, made["node"].digest, b"short")
        for what in (
            "links of nothing", "a kind of nothing", "kept, and not listed", "a record that nothing reaches",
            "pieces that nothing reaches", "pieces behind the end", "a purge of what lives", "a touch to come",
            "collected, and visible", "held by no lease", "raw bytes", "kept bytes", "a length in the index",
        ):  # fmt: skip
            DAMAGES[what][0](txn, made)
        change_record("large", digest=bytes(32))(txn, made)

    edit(store, damage)
    return made


@pytest.mark.parametrize("rows", [1, 256])
def test_a_mend_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """At each step: nothing is found that was not before, what read reads, and the next one does the rest."""
    monkeypatch.setattr(mending, "PART_ROWS", rows)
    home = tmp_path / "home"
    with casstore.open(home) as store:
        made = all_kinds_of_damage(store)
        found = {finding.code for finding in store.verify().findings}
        assert found >= mending.MENDS - {"wrong_kept", "wrong_order", "bad_name", "bad_key", "missing_link"}
    left: list[int] = []

    def work() -> None:
        with casstore.open(home) as store:
            assert store.mend().left == ()

    def check() -> None:
        with casstore.open(home) as store:
            findings = store.verify().findings
            assert {finding.code for finding in findings} <= found
            left.append(len(findings))
            assert all(store.get(made[name]) for name in ("raw", "zstd", "delta", "large"))
            if len(left) % 3 == 0:
                store.put(b"%d" % len(left) * 5000)
                assert store.mend().left == () and store.verify().findings == ()

    assert killed_at_each_step(home, work, check) >= (20 if rows == 1 else 12)
    assert left == sorted(left, reverse=True) and left[-1] == 0
    with casstore.open(home) as store:
        assert store.get_value(made["root"]) == [made["node"], made["leaf"]]


def test_writers_between_the_parts(store: casstore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """New artifacts, uploads, leases, the lost bytes themselves: whatever comes meanwhile is kept, and all is right."""
    monkeypatch.setattr(mending, "PART_ROWS", 1)
    made = all_kinds_of_damage(store)
    put: list[ArtifactId] = []

    def write(step: str) -> None:
        if step != "mend.part":
            return
        steps.listen(None)
        rng = random.Random(len(put))
        put.append(store.put(rng.randbytes(5000)))
        put.append(store.put_value([put[-1], made["raw"]], kind="special"))
        if len(put) == 6:
            put.append(store.put_file(io.BytesIO(rng.randbytes(2 << 20))))
            assert store.put_value({"leaf": 1}) == made["leaf"]
        with store.lease(60) as lease:
            lease.put(rng.randbytes(100))
        steps.listen(write)

    steps.listen(write)
    try:
        report = store.mend()
    finally:
        steps.listen(None)
    assert report.left == () and len(put) > 20
    assert store.verify().findings == () and all(store.get(name) for name in put)
    assert store.mend().done == ()


def test_on_the_command_line(tmp_path: Path) -> None:
    """Store and journal at once: what is put right is told, exit code 0 where nothing is left, and 3 where something
    is; without the flag nothing is written."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        made = all_kinds_of_damage(jrn.store)
        jrn.start_run("op", manifest={"m": 1}, context={"n": 0}).release()
        with jrn._backend._tables.write() as txn:  # type: ignore[attr-defined]
            txn.delete(LIVE, number(1))
    for _ in range(2):
        code, document = command("verify", "--home", home)
        assert code == 3 and {item["code"] for item in document["findings"]} >= {"wrong_counters", "wrong_row"}
        assert "mended" not in document
    before = document["findings"]
    code, document = command("verify", "--home", home, "--repair")
    assert code == 0 and all(item["repaired"] for item in document["findings"])
    assert len(document["findings"]) == len(before) - 1  # the journal is looked at when it is right
    assert [(item["table"], item["what"]) for item in document["rebuilt"]] == [("live1", "missing")]
    assert {item["code"] for item in document["mended"]} >= mending.MENDS - {
        "wrong_kept", "wrong_number", "wrong_order", "bad_name", "bad_key", "missing_link"
    }  # fmt: skip
    code, document = command("verify", "--home", home, "--repair")
    assert (code, document["findings"], document["mended"], document["rebuilt"]) == (0, [], [], [])
    with casstore.open(home) as store:
        edit(store, lambda txn: txn.delete(D, u64(IxRow.unpack(txn.get(IX, made["raw"].digest)).data_id) + bytes(4)))
    code, document = command("verify", "--home", home, "--repair")
    assert code == 3 and [item["code"] for item in document["findings"]] == ["corrupt"]


def test_a_put_between_counting_and_correcting(store: casstore.Store) -> None:
    """What it adds stays: the counters are corrected by what they were off by, not set."""
    made = fill_with_everything(store)
    edit(store, lambda txn: DAMAGES["raw bytes"][0](txn, made))
    before = len(store)

    def write(step: str) -> None:
        if step == "mend.counted":
            steps.listen(None)
            store.put(b"meanwhile" * 1000)
            store.unpin("zstd")

    steps.listen(write)
    try:
        assert {found.code for found in store.mend().done} == {"wrong_counters"}
    finally:
        steps.listen(None)
    assert store.verify().findings == () and len(store) == before + 1


def test_a_gc_after_a_mend_marks_everything(tmp_path: Path) -> None:
    """What came back under an old number, and nothing names, is found: to the gc before it was there for good."""
    with journal.open(tmp_path / "home") as jrn:
        store = jrn.store
        pinned = store.put(b"pinned" * 1000)
        store.pin("p", pinned)
        store.gc(jrn, grace=0)
        assert store.gc(jrn, grace=0).incremental
        edit(store, lambda txn: (txn.delete(IX, pinned.digest), txn.delete(PIN, b"p")))
        assert store.mend().left == () and pinned in store
        report = store.gc(jrn, grace=0, force=True)
        assert not report.incremental and {id for id, _ in report.removed} == {pinned}
        assert store.verify().findings == ()


def test_what_is_right_by_now_is_left(store: casstore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links of nothing, until it is put, just then."""
    monkeypatch.setattr(mending, "PART_ROWS", 1)
    leaf = store.put_value({"leaf": 1})
    coming = casstore.ArtifactId.of(values.encode([leaf])[0])

    def damage(txn: Any) -> None:
        txn.put(LN, bytes(32), leaf.digest)
        txn.put(LN, coming.digest, leaf.digest)

    edit(store, damage)

    def write(step: str) -> None:
        if step == "mend.part" and coming not in store:
            assert store.put_value([leaf]) == coming

    steps.listen(write)
    try:
        assert [(found.code, found.id) for found in store.mend().done] == [("orphan_links", ArtifactId(bytes(32)))]
    finally:
        steps.listen(None)
    assert store.verify().findings == () and store.info(coming).links == (leaf,)


def test_a_kept_base_without_a_record_can_be_healed(store: casstore.Store) -> None:
    """It stays listed as kept, so a put of the good bytes finds it, and what is made of it reads again."""
    made = fill_with_everything(store)
    delta = store.get(made["delta"])
    edit(store, lambda txn: DAMAGES["a base that is missing"][0](txn, made))
    store.mend()
    with pytest.raises(casstore.Corrupt):
        store.get(made["delta"])
    store.put(b"".join(b"line %d\n" % n for n in range(3000)))
    assert store.get(made["delta"]) == delta
    assert store.mend().left == () and store.verify().findings == ()


def test_a_run_that_cannot_be_read_keeps_no_other_from_repair(tmp_path: Path) -> None:
    """What another live run names is fetched all the same."""
    home, copy = tmp_path / "home", tmp_path / "copy"
    with journal.open(home) as jrn:
        runs = [jrn.start_run("op", manifest={"m": n}, context={"n": n}, claim=False).run_id for n in range(3)]
        jrn.backup(copy)
    with journal.open(home) as jrn:
        lost = jrn.run_state(runs[1]).manifest_id
        edit(jrn.store, lose(lost))
        with jrn._backend._tables.write() as txn:  # type: ignore[attr-defined]
            for run in (runs[0], runs[2]):
                position = jrn.position_of(run, 1)
                txn.put(EV, number(position), txn.get(EV, number(position))[:-1])
    code, document = command("verify", "--home", home, "--repair-from", copy)
    assert code == 3 and document["repaired"] == [str(lost)]
    assert {item["code"] for item in document["findings"] if not item["repaired"]} == {"bad_record"}


WRITER = """
import random, sys
import casstore
with casstore.open(sys.argv[1]) as store:
    print("open", flush=True)
    for line in sys.stdin:
        rng = random.Random(int(line))
        name = store.put(rng.randbytes(5000))
        with store.lease(60) as lease:
            print(lease.put(rng.randbytes(50)), store.put_value([name, int(line)], kind="special"), flush=True)
"""


def test_writers_of_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go on between the parts; nothing of theirs is lost, and the counters are right at the end."""
    monkeypatch.setattr(mending, "PART_ROWS", 1)
    home = tmp_path / "home"
    with casstore.open(home) as store:
        all_kinds_of_damage(store)
        writer = python(WRITER, home)
        assert writer.stdin is not None and writer.stdout is not None and writer.stdout.readline() == "open\n"
        put: list[ArtifactId] = []

        def write(step: str) -> None:
            if step in ("mend.part", "mend.counted"):
                print(len(put), file=writer.stdin, flush=True)
                put.extend(map(ArtifactId.parse, writer.stdout.readline().split()))  # type: ignore[union-attr]

        steps.listen(write)
        try:
            assert store.mend().left == ()
        finally:
            steps.listen(None)
        writer.communicate()
        assert len(put) > 20 and store.verify().findings == () and all(store.get(name) for name in put)
        assert store.mend().done == ()


# -- numbers that are for dictionaries ------------------------------------------------------------------


def test_no_heal_takes_a_number_for_dictionaries(store: casstore.Store) -> None:
    """A damaged row leads to the number that the next dictionary gets: the good bytes come under another one."""
    data = random.Random(1).randbytes(9000)
    name = store.put(data)
    edit(store, lambda txn: (
        txn.put(IX, name.digest, IxRow.unpack(txn.get(IX, name.digest))._replace(data_id=1).pack()),
        txn.delete(DA, u64(DATA_IDS_RESERVED)),
    ))  # fmt: skip
    assert store.put(data, verify=True) == name
    (row,) = store._backend.rows([name.digest])
    assert row is not None and row.data_id > DATA_IDS_RESERVED
    dictionary = store.put(b"a dictionary " * 50, kind="dictionary")
    store.mend()
    assert store.get(name) == data and store.get(dictionary) == b"a dictionary " * 50
    assert store.verify().findings == ()


@pytest.mark.parametrize("fallen", [u64(1), u64(0), b"?"])
def test_the_next_number_of_a_dictionary_fell(store: casstore.Store, fallen: bytes) -> None:
    """No dictionary is written over another, and verify tells."""
    given = [b"dictionary %d " % n * 50 for n in range(3)]
    dictionaries = {store.put(data, kind="dictionary"): data for data in given}
    edit(store, lambda txn: txn.put(META, RESERVED_KEY, fallen))
    assert {found.code for found in store.verify().findings} == {"wrong_counters"}
    if len(fallen) == 8:
        dictionaries[store.put(b"one more " * 50, kind="dictionary")] = b"one more " * 50
    else:
        with pytest.raises(casstore.DamagedStore):
            store.put(b"one more " * 50, kind="dictionary")
    assert all(store.get(name) == data for name, data in dictionaries.items())
    assert len(store.mend().done) == (len(fallen) != 8)
    assert store.verify().findings == () and store.put(b"the last " * 50, kind="dictionary")
    assert all(store.get(name) == data for name, data in dictionaries.items())


@pytest.mark.parametrize("filled", [False, True])
def test_counters_made_anew_reserve_as_before(store: casstore.Store, filled: bool) -> None:
    """Also in a store without artifacts, where the loss of its counters is damage as well."""
    made = {store.put(b"a dictionary", kind="dictionary"): b"a dictionary"} if filled else {}
    edit(store, lambda txn: txn.delete(META, STATE_KEY))
    with pytest.raises(casstore.DamagedStore, match="counters"):
        store.put(b"data")
    store.mend()
    for n in range(3):
        made[store.put(b"data %d" % n)] = b"data %d" % n
        made[store.put(b"dictionary %d" % n, kind="dictionary")] = b"dictionary %d" % n
    numbers = [row.data_id for row in store._backend.rows([name.digest for name in made]) if row is not None]
    assert len(set(numbers)) == len(made) and sum(number < DATA_IDS_RESERVED for number in numbers) == 3 + filled
    assert all(store.get(name) == data for name, data in made.items()) and store.verify().findings == ()


def test_a_pin_that_is_renamed_takes_no_other_name(store: casstore.Store) -> None:
    """Two names that look alike, and one that would be too long for a key."""
    names = [store.put(b"%d" % n) for n in range(3)]
    store.pin("p\\xad", names[0])
    edit(store, lambda txn: (
        txn.put(PIN, b"p\xad", names[1].digest + u64(1)), txn.put(PIN, b"\xad" * 400, names[2].digest + u64(1)),
    ))  # fmt: skip
    assert [found.code for found in store.mend().done] == ["bad_name"] * 2
    assert sorted(store.pins().values()) == sorted(names) and store.pins()["p\\xad"] == names[0]
    assert store.verify().findings == ()
