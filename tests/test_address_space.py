"""RLIMIT_AS: under a small address space every operation works or says what is missing, and nothing is lost."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from random import Random

import lmdb
import pytest

import casstore
import journal
from casstore.ahead import in_order
from casstore.lmdb_tables import LmdbTables
from journal.renewal import Renewer
from tests.helpers import python

CHILD = """
import json, random, resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import casstore, journal
from casstore import ArtifactId
from zstandard import ZstdError

limit, place, there = int(sys.argv[1]), Path(sys.argv[2]), ArtifactId.parse(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
told, kept, r = {}, {}, random.Random(7)


def do(name, call):
    try:
        made = call()
        told[name] = "ok"
    except casstore.CodedError as error:
        told[name] = error.code
        return None
    except (MemoryError, ZstdError, RuntimeError):  # Python's own: no room for bytes, a compressor, a thread
        told[name] = "no memory"
        return None
    for one in made if isinstance(made, list) else [made]:
        if isinstance(one, ArtifactId):
            kept[str(one)] = name
    return made


def read_all(name):
    with store.open_reader(name) as reader:
        while reader.read(1 << 20):
            pass


def steps():
    attempt = run.enter("op.steps.s0")
    for number in range(40):
        context["messages"].append(str(number))
        following = f"op.steps.s{number + 1}"
        attempt.complete(context, then=following)
        attempt = run.enter(following)
    return attempt.base_snapshot_id


def imported():
    with journal.open(place / "other") as other:
        other.import_(place / "run.car")


jrn = do("open", lambda: journal.open(place / "home"))
if jrn:
    store = jrn.store
    data = r.randbytes(100 << 10)
    context = {"messages": [r.randbytes(40).hex() for _ in range(1500)]}
    do("get what was there", lambda: store.get(there))
    name = do("put", lambda: store.put(data))
    do("get", lambda: store.get(name))
    base = do("put_value", lambda: store.put_value(context))
    do("put_value with base", lambda: store.put_value({**context, "more": 1}, base=base))
    do("get_value", lambda: store.get_value(base))
    do("put_many", lambda: store.put_many([r.randbytes(20 << 10) for _ in range(300)]))
    large = do("put_file", lambda: store.put_file(place / "large"))
    large and do("read", lambda: read_all(large))
    run = do("start_run", lambda: jrn.start_run("op", manifest={}, context=context))
    if run:
        do("steps", steps)
        events = [journal.DomainEvent("t", {})]
        do("append", lambda: jrn.append(run.run_id, jrn.head(run.run_id), events, epoch=run.epoch))
        do("events", lambda: jrn.read(run.run_id))
        do("resume", lambda: jrn.resume(run.run_id, steal=True))
    do("pin", lambda: [store.pin(f"p{n}", ArtifactId.parse(name)) for n, name in enumerate(kept)])
    do("gc", lambda: store.gc(jrn, grace=0, force=True))
    do("verify", lambda: (store.verify(), jrn.verify()))
    do("compact", store.compact)
    do("put after compact", lambda: store.put(b"after"))
    do("backup", lambda: jrn.backup(place / "backup"))
    if run and do("export", lambda: jrn.export(run.run_id, place / "run.car")):
        do("import", imported)
    do("close", jrn.close)
print(json.dumps([told, kept]))
"""


def under(limit: int, place: Path) -> dict[str, str]:
    """What each operation came to in a process with so much address space. What it kept is there afterwards."""
    (place / "large").write_bytes(Random(3).randbytes(24 << 20))
    with journal.open(place / "home") as jrn:
        there = jrn.store.put(Random(1).randbytes(8 << 20))
        jrn.store.pin("there", there)
    child = python(CHILD, limit, place, there)
    out = child.communicate()[0]
    assert child.returncode == 0
    told, kept = json.loads(out)
    with journal.open(place / "home") as jrn:
        assert not jrn.store.verify().findings
        assert not jrn.verify()
        for name in (str(there), *kept):
            assert jrn.store.get(casstore.ArtifactId.parse(name))
    return dict(told)


@pytest.mark.parametrize("mebibytes", [3072, 1536])
def test_all_works_in_a_small_address_space(mebibytes: int, tmp_path: Path) -> None:
    told = under(mebibytes << 20, tmp_path)
    assert set(told.values()) == {"ok"}, told


@pytest.mark.parametrize("mebibytes", [256, 128])
def test_what_does_not_fit_is_refused_and_nothing_is_lost(mebibytes: int, tmp_path: Path) -> None:
    """Never an error of LMDB's, and never a crash. What Python itself has no memory for is Python's to say."""
    told = under(mebibytes << 20, tmp_path)
    assert set(told.values()) <= {"ok", "store_full", "no memory"}, told


ADOPTS = """
import resource, sys
import casstore
from casstore import ArtifactId

def limit(size):
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))

limit(400 << 20)
with casstore.open(sys.argv[1], create=False) as store:
    small = store._backend.info()["map_bytes"]
    print(small, flush=True)
    new = ArtifactId.parse(input())
    if sys.argv[2] == "lost":
        casstore.environment.fits = lambda size: True
    if sys.argv[2] == "room":
        print(len(store.get(new)), store._backend.info()["map_bytes"] > small)
        store.put(b"x")
    else:
        with open("/proc/self/statm") as file:
            limit(int(file.read().split()[0]) * resource.getpagesize() + (16 << 20))
        for call in (lambda: store.get(new), lambda: store.put(b"x")):
            try:
                call()
            except casstore.StoreError as error:
                print(error.code)
        limit(400 << 20)
        if sys.argv[2] == "none":
            print(len(store.get(new)))
"""


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("room", [f"{60 << 20} True"]),
        ("none", ["store_full", "store_full", str(60 << 20)]),
        ("lost", ["poisoned", "poisoned"]),  # something else took the room after the look, and the old map was gone
    ],
)
def test_a_store_that_another_process_made_larger_than_the_map(how: str, expected: list[str], tmp_path: Path) -> None:
    """A larger map is adopted as far as there is address space; where there is none the handle is none the worse."""
    with casstore.open(tmp_path / "home") as store:
        child = python(ADOPTS, tmp_path / "home", how)
        assert child.stdout is not None
        assert int(child.stdout.readline()) < 60 << 20
        out = child.communicate(str(store.put(Random(1).randbytes(60 << 20))) + "\n")[0]
    assert out.splitlines() == expected
    assert child.returncode == 0


def test_a_transaction_without_memory_is_refused_and_the_next_one_works(tmp_path: Path) -> None:
    tables = LmdbTables(tmp_path, [b"t"], create=True, read_only=False)
    for transaction in (tables.write, tables.read):
        with pytest.raises(casstore.StoreFull), transaction():
            raise lmdb.MemoryError("mdb_put: Cannot allocate memory")
    with tables.write() as txn:
        txn.put(b"t", b"k", b"v")
    tables.close()


def refuse(_: threading.Thread) -> None:
    """What Thread.start does where there can be no more of them."""
    raise RuntimeError("can't start new thread")


def test_appends_go_on_where_no_thread_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever queued an append commits it, and a thread is tried again for the next one."""
    with journal.open(tmp_path) as jrn:
        run = jrn.start_run("op", manifest={}, context={}, claim=False)
        event = journal.DomainEvent("t", {})
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            for _ in range(2):
                assert jrn.append(run.run_id, jrn.head(run.run_id), [event], wait=False).result().first_seq
        pending = jrn.append(run.run_id, jrn.head(run.run_id), [event], wait=False)
        assert jrn._appender._committer._thread is not None
        assert pending.result().last_seq == 5


def test_renewing_and_maintenance_say_that_no_thread_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And can be tried again, and closed."""
    with journal.open(tmp_path) as jrn:
        run = jrn.start_run("op", manifest={}, context={}, claim=False)
        renewer = Renewer(3600.0)
        keeper = casstore.Maintenance(jrn.store, jrn, every=3600.0)
        for begin in (lambda: renewer.add(run), keeper.start):
            with monkeypatch.context() as patched, pytest.raises(RuntimeError):
                patched.setattr(threading.Thread, "start", refuse)
                begin()
            begin()
        assert renewer._thread is not None and renewer._thread.is_alive()
        assert keeper._thread is not None and keeper._thread.is_alive()
        keeper.close()
        renewer.close()


def test_without_room_for_threads_the_work_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that finds no memory when it begins would be waited for, for ever. Bytes and errors are the same."""
    monkeypatch.setattr("casstore.ahead.fits", lambda size: False)
    monkeypatch.setattr("casstore.ahead.ThreadPoolExecutor", None)  # whoever asked for threads would call that
    monkeypatch.setattr("casstore.ahead.resource.getrlimit", lambda which: (1 << 30, 1 << 30))
    (tmp_path / "large").write_bytes(Random(3).randbytes((9 << 20) + 5))
    many = [Random(n).randbytes(40 << 10) for n in range(20)]
    before = set(threading.enumerate())
    with casstore.open(tmp_path / "home") as store:
        name = store.put_file(tmp_path / "large")
        assert store.get_many(store.put_many(many)) == many
        with store.open_reader(name) as reader:
            assert reader.read() == (tmp_path / "large").read_bytes()
        assert set(threading.enumerate()) == before
        with pytest.raises(ZeroDivisionError):
            list(in_order(lambda number: 1 // number, [2, 1, 0], most=3))
        assert list(in_order(lambda number: 1 // number, [1], most=3)) == [(1, 1)]
