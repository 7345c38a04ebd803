"""Damage: it costs the artifact it hits and those built on it, each named; wrong bytes never come out."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import lmdb
import pytest

import casstore
import journal
from casstore import ArtifactId, Corrupt
from casstore.home import FORMAT_NUMBER
from casstore.rows import TABLES


def edit(home, change):
    """Open the data file behind the store's back and let `change(txn, tables)` damage it."""
    env = lmdb.open(str(home / "store" / "1"), max_dbs=24, map_size=1 << 30)
    tables = {name: env.open_db(name) for name in TABLES}
    with env.begin(write=True) as txn:
        change(txn, tables)
    env.close()


def flip(data, bit):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def fill(store):
    """Artifacts of every encoding: raw, zstd, delta chains, frames."""
    rng = random.Random(5)
    made = [rng.randbytes(size) for size in (1, 100, 5000)] + [b"text " * n for n in (10, 1000, 3000)]
    ids = [store.put(data) for data in made]
    base = None
    for n in range(12):
        data = b"".join(b"message %d %d\n" % (k, k * k) for k in range(300 + n))
        made.append(data)
        base = store.put(data, base=base)
        ids.append(base)
    made.append(rng.randbytes(1 << 20) + b"x" * (1 << 20))
    ids.append(store.put(made[-1]))
    return dict(zip(ids, made, strict=True))


@pytest.mark.parametrize("seed", range(20))  # more of them, but not in a real file, in test_cases_store.py
def test_a_flipped_bit_is_named_and_never_read(tmp_path, seed):
    """a get is right or raises Corrupt with the asked id; verify lists exactly those."""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        made = fill(store)
    rng = random.Random(seed)

    def damage(txn, tables):
        pieces = list(txn.cursor(tables[b"d1"]))
        key, value = rng.choice(pieces)
        txn.put(key, flip(value, rng.randrange(len(value) * 8)), db=tables[b"d1"])

    edit(home, damage)
    with casstore.open(home) as store:
        failed = set()
        for name, data in made.items():
            try:
                assert store.get(name) == data
            except Corrupt as error:
                assert error.fields["id"] == name
                failed.add(name)
        assert {found.id for found in store.verify().findings} == failed
        for name, data in made.items():  # good bytes heal, also what was built on them
            assert store.put(data, verify=True) == name
        assert store.verify().findings == ()
        assert all(store.get(name) == data for name, data in made.items())


DAMAGES = {
    "piece missing": lambda txn, t, data_id: txn.delete(data_id + bytes(4), db=t[b"d1"]),
    "piece cut": lambda txn, t, data_id: txn.put(data_id + bytes(4), b"short", db=t[b"d1"]),
    "record missing": lambda txn, t, data_id: txn.delete(data_id, db=t[b"da1"]),
    "record of random bytes": lambda txn, t, data_id: txn.put(
        data_id, random.Random(1).randbytes(len(txn.get(data_id, db=t[b"da1"]))), db=t[b"da1"]
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_put_of_the_good_bytes_heals(tmp_path, what):
    """whatever the damage to the stored copy, a put repairs it under the same id."""
    home = tmp_path / "home"
    data = b"good bytes " * 100
    with casstore.open(home) as store:
        name = store.put(data)
        child = store.put(data + b"and more", base=name)

    def damage(txn, tables):
        data_id = txn.get(name.digest, db=tables[b"ix1"])[:8]
        DAMAGES[what](txn, tables, data_id)

    edit(home, damage)
    with casstore.open(home) as store:
        with pytest.raises(Corrupt):
            store.get(name)
        assert store.put(data) == name
        assert store.get(name) == data
        assert store.put(data + b"and more") == child
        assert store.get(child) == data + b"and more"


@pytest.mark.parametrize("seed", range(40))
def test_random_bytes_in_any_record_are_an_error_of_ours(tmp_path, seed):
    """Hostile rows give Corrupt or DamagedStore: no crash, no huge allocation, no other exception."""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        made = fill(store)
    rng = random.Random(seed)

    def damage(txn, tables):
        table = tables[rng.choice([b"ix1", b"da1", b"d1", b"ln1", b"d1", b"da1"])]
        rows = list(txn.cursor(table))
        if rows:
            key, value = rng.choice(rows)
            txn.put(key, rng.randbytes(rng.choice([len(value), rng.randrange(1, 100)])), db=table)

    edit(home, damage)
    with casstore.open(home) as store:
        for name, data in made.items():
            try:
                assert store.get(name) == data
            except casstore.StoreError:
                pass
        try:
            store.verify()
        except casstore.DamagedStore:
            pass


def test_a_truncated_data_file_is_refused(tmp_path):
    """A short file would end the process with SIGBUS: it is named at open, and nothing is written."""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        store.put(os.urandom(100_000))
    file = home / "store" / "1" / "data.mdb"
    for size in (file.stat().st_size - 4096, 8192, 100, 0):
        os.truncate(file, size)
        with pytest.raises(casstore.DamagedStore, match=r"data\.mdb"):
            casstore.open(home)
        assert file.stat().st_size == size
    file.unlink()
    with pytest.raises(casstore.DamagedStore):
        casstore.open(home, read_only=True)


@pytest.mark.parametrize(
    "text",
    ["format: 99\n", "format: 1\n", "format: 0\n", "hello\n", "", "\xff\xfe",
     f"format: {FORMAT_NUMBER}\nuuid: x\nrequires: antigravity\n"],
)
def test_another_format_is_refused_untouched(tmp_path, text):
    """The format is read before any other byte; the files stay as they are."""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        store.put(b"x")
    (home / "FORMAT").write_bytes(text.encode("latin-1"))
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != "lock.mdb"}
    for read_only in (False, True):
        with pytest.raises(casstore.UnsupportedFormat) as caught:
            casstore.open(home, read_only=read_only)
        assert caught.value.fields["supported"] == FORMAT_NUMBER
    assert before == {
        path: path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != "lock.mdb"
    }


def test_a_missing_format_file_is_not_made_up(tmp_path):
    """A home whose FORMAT is gone is not taken for a new one."""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        store.put(b"x")
    (home / "FORMAT").unlink()
    with pytest.raises(casstore.UnsupportedFormat):
        casstore.open(home)


def test_a_store_moved_while_closed_opens(tmp_path):
    """HOME names no paths."""
    with casstore.open(tmp_path / "a") as store:
        name = store.put(b"x")
    shutil.move(tmp_path / "a", tmp_path / "b 🌍")
    with casstore.open(tmp_path / "b 🌍", create=False) as store:
        assert store.get(name) == b"x"


def test_homes_that_cannot_be(tmp_path):
    """A file, a directory with other things, nothing there: each its error."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(casstore.InvalidHome):
        casstore.open(tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(casstore.InvalidHome, match="thesis"):
        casstore.open(tmp_path / "full")
    with pytest.raises(casstore.NotAStore):
        casstore.open(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    with pytest.raises(casstore.InvalidHome):
        casstore.open("/proc/nowhere/home")


def test_an_unwritable_home_is_named():
    """As another user than root: the directory cannot be written."""
    with tempfile.TemporaryDirectory() as place:  # one that every user can reach
        home = Path(place) / "home"
        home.mkdir()
        home.chmod(0o555)
        Path(place).chmod(0o755)
        code = (
            "import casstore, casstore.store, os\n"
            "if os.getuid() == 0: os.setuid(65534)\n"
            f"try: casstore.open({str(home)!r})\n"
            "except casstore.InvalidHome as error: print(error.code)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "invalid_home", done.stderr


def test_ids_are_refused_before_storage_is_touched(tmp_path):
    """Scenario 11: a closed store says that the id is wrong only where storage was not asked."""
    for wrong in ("A" * 64, "g" * 64, "0" * 63, "0" * 64 + "\n", "", "../x", "０" * 64):
        with pytest.raises(casstore.InvalidId):
            ArtifactId.parse(wrong)


@pytest.mark.parametrize("bit", [40, 62])
def test_a_number_that_nothing_was_given_makes_no_huge_set(tmp_path: Path, bit: int) -> None:
    """A flipped bit in the number of an artifact: gc refuses, removes nothing and asks for no terabytes."""
    with journal.open(tmp_path / "home") as jrn:
        names = [jrn.store.put(b"%d" % n * 50) for n in range(3)]
        jrn.store.pin("held", names[0])
        with jrn.store._backend._tables.write() as t:
            row = bytearray(t.get(b"ix1", names[0].digest))
            row[7 - bit // 8] ^= 1 << bit % 8
            t.put(b"ix1", names[0].digest, bytes(row))
        with pytest.raises((casstore.StoreError, casstore.GcRefused)):
            jrn.store.gc(jrn, grace=0, force=True)
        assert set(jrn.store) == set(names)


def test_counters_that_damage_made_nonsense_of_refuse_no_put(tmp_path: Path) -> None:
    """A stored length of a damaged row is taken off them when it is healed."""
    with casstore.open(tmp_path / "home") as store:
        name = store.put(b"some bytes" * 50)
        with store._backend._tables.write() as t:
            key = (store._backend.rows([name.digest])[0].data_id).to_bytes(8, "big")
            row = bytearray(t.get(b"da1", key))
            row[40] ^= 0x80  # of the stored length
            t.put(b"da1", key, bytes(row))
        assert store.put(b"some bytes" * 50, verify=True) == name
        assert store.get(name) == b"some bytes" * 50
        store.mend()
        assert store.verify().findings == ()


def test_a_uuid_that_is_no_text_is_damage(tmp_path: Path) -> None:
    with journal.open(tmp_path / "home") as jrn:
        for tables in (jrn.store._backend._tables, jrn._backend._tables):
            with tables.write() as t:
                t.put(b"meta1", b"uuid", b"\xad" * 36)
    for opened in (casstore.open, journal.open):
        with pytest.raises(casstore.DamagedStore, match="uuid"):
            opened(tmp_path / "home")
