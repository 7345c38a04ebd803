"""Processes and handles: fork, second openers, kills, full disks."""

import io
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading

import pytest

import casstore
import journal
from casstore import environment, steps
from casstore.testing import FakeRoots


def test_two_handles_share_one_environment(tmp_path):
    """One process may open a home again; other options are a clear error."""
    with casstore.open(tmp_path / "home") as first:
        name = first.put(b"x")
        (tmp_path / "link").symlink_to(tmp_path / "home")
        with casstore.open(tmp_path / "link") as second:
            assert second.get(name) == b"x"
        assert first.get(name) == b"x"
        with pytest.raises(casstore.AlreadyOpen):
            casstore.open(tmp_path / "home", read_only=True)
        with pytest.raises(casstore.AlreadyOpen):
            casstore.open(tmp_path / "home", quota=5)
    with pytest.raises(casstore.ClosedHandle):
        first.get(name)
    with casstore.open(tmp_path / "home", read_only=True) as reader:
        assert reader.get(name) == b"x"
        with pytest.raises(casstore.ReadOnly):
            reader.put(b"y")
        with pytest.raises(casstore.ReadOnly):
            reader.gc(FakeRoots(reader), grace=0)
        assert len(reader.gc(FakeRoots(reader), dry_run=True, grace=0).removed) == 1


def test_a_home_that_is_just_being_closed_can_be_opened(tmp_path, monkeypatch):
    """The last user of a handle is closing it, in a thread that LMDB keeps: who opens waits, and is told no damage."""
    journal.open(tmp_path / "home").close()
    jrn = journal.open(tmp_path / "home")
    found = next(env for env in environment._open.values() if env.path == tmp_path / "home" / "journal")
    closing, go_on, waiting = threading.Event(), threading.Event(), threading.Event()
    inner, wait_for = found._env, environment._closed.wait_for

    class Slow:
        def __getattr__(self, name):
            return getattr(inner, name)

        def close(self):
            closing.set()
            assert go_on.wait(60)
            inner.close()

    def waited(predicate, timeout):
        if not predicate():
            waiting.set()
        return wait_for(predicate, timeout)

    found._env = Slow()
    monkeypatch.setattr(environment._closed, "wait_for", waited)
    closer = threading.Thread(target=jrn.close)
    closer.start()
    assert closing.wait(60)
    results = []

    def reopen():
        try:
            with journal.open(tmp_path / "home") as again:
                results.append(len(again))
        except casstore.StoreError as error:
            results.append(error)
        waiting.set()

    opener = threading.Thread(target=reopen)
    opener.start()
    assert waiting.wait(60)
    assert results == []
    go_on.set()
    closer.join()
    opener.join()
    assert results == [0] and not environment._closing


def test_a_forked_child_reopens_and_the_parent_notices_nothing(tmp_path):
    """the inherited handle refuses, a new one works; while another thread writes."""
    with casstore.open(tmp_path / "home") as store:
        store.put(b"before")
        stop = threading.Event()

        def write():
            n = 0
            while not stop.is_set():
                store.put(b"%d" % n)
                n += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for round_ in range(5):
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        try:
                            store.get(casstore.ArtifactId.of(b"before"))
                        except casstore.ForkedHandle:
                            with casstore.open(tmp_path / "home") as own:
                                own.put(b"child %d" % round_)
                                assert own.get(casstore.ArtifactId.of(b"before")) == b"before"
                            code = 0
                    finally:
                        os._exit(code)
                assert os.waitpid(pid, 0)[1] == 0
        finally:
            stop.set()
            writer.join()
        for n in range(200):
            assert store.get(store.put(b"after %d" % n)) == b"after %d" % n
        assert all(casstore.ArtifactId.of(b"child %d" % n) in store for n in range(5))
        assert store.verify().ok
        with pytest.raises(TypeError):
            pickle.dumps(store)


def put_in_child(home, word):
    with casstore.open(home) as store:
        store.put(word)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_children_write(tmp_path, method):
    """Each start method of multiprocessing: the child opens for itself."""
    with casstore.open(tmp_path / "home") as store:
        context = multiprocessing.get_context(method)
        child = context.Process(target=put_in_child, args=(tmp_path / "home", b"from the child"))
        child.start()
        child.join()
        assert child.exitcode == 0
        assert casstore.ArtifactId.of(b"from the child") in store


def run_child(code, *args):
    """A Python process of its own."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True)


KILLED_AT_STEP = """
import io, sys
import casstore
from casstore.testing import FakeRoots
from tests.kills import kill_at
home, stop = sys.argv[1], int(sys.argv[2])
reached = kill_at(stop)
store = casstore.open(home)
a = store.put(b"a" * 3000)
v = store.put_value({"child": a})
c = store.put(b"a" * 3000 + b"more", base=a)
big = store.put_file(io.BytesIO(b"0123456789abcdef" * (3 << 16)))
store.pin("v", v)
store.put_many([b"x%d" % n for n in range(100)])
store.gc(FakeRoots(store), grace=0)
store.put_value({"child": a, "second": True})
print(len(reached))
"""


def test_killed_at_every_step_nothing_acknowledged_is_lost(tmp_path):
    """Scenario 36: SIGKILL at each counted step of put, upload and gc; the store opens whole and works on."""
    done = run_child(KILLED_AT_STEP, tmp_path / "count", 0)
    total = int(done.communicate()[0])
    assert total > 20
    for stop in range(1, total + 1):
        home = tmp_path / f"home{stop}"
        child = run_child(KILLED_AT_STEP, home, stop)
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        with casstore.open(home) as store:
            assert store.verify().findings == ()
            pins = store.pins()
            if "v" in pins:
                child_id = store.get_value(pins["v"])["child"]
                assert store.get(child_id) == b"a" * 3000
            again = store.put_file(io.BytesIO(b"0123456789abcdef" * (3 << 16)))
            assert len(store.get(again)) == 16 * (3 << 16)
            for name in pins:
                store.unpin(name)
            store.gc(FakeRoots(store), grace=0)
            stats = store.stats()
            assert (stats.artifacts, stats.stored_bytes, stats.kept_bytes, stats.uploads) == (0, 0, 0, 0)


WRITER = """
import random, sys
import casstore
home, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
with casstore.open(home) as store:
    for n in range(150):
        shared = store.put(b"shared %d" % rng.randrange(20))
        store.put_value({"n": n, "by": seed, "link": shared})
"""


def test_processes_write_the_same_and_different_artifacts(tmp_path):
    """Four writers at once: everything is there once, counters agree."""
    casstore.open(tmp_path / "home").close()
    children = [run_child(WRITER, tmp_path / "home", seed) for seed in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    for child in children:
        child.stdout.close()
    with casstore.open(tmp_path / "home") as store:
        assert len(store) == 4 * 150 + 20
        assert store.verify().ok


FILL = """
import sys
import casstore, os
home = sys.argv[1]
with casstore.open(home) as store:
    kept = []
    try:
        for n in range(100000):
            kept.append(store.put(os.urandom(20000)))
    except casstore.StoreFull as error:
        print("full", error.code)
    for name in kept:
        store.get(name)
    from casstore.testing import FakeRoots
    roots = FakeRoots(store)
    roots.append("live", *kept[:3])
    report = store.gc(roots, grace=0, force=True)
    assert len(report.removed) == len(kept) - 3, report
    store.put(os.urandom(20000))
    for name in kept[:3]:
        store.get(name)
    assert store.verify().ok
    print("went on")
"""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_on_a_full_disk_gc_frees_space_and_puts_go_on(small_disk):
    """a clear error, nothing lost, gc works where put fails."""
    done = run_child(FILL, small_disk / "home")
    out = done.communicate()[0]
    assert done.returncode == 0
    assert out.split("\n")[:2] == ["full store_full", "went on"]


def test_a_quota_is_the_same_error_before_anything_is_written(tmp_path):
    """The limit that the caller set."""
    with casstore.open(tmp_path / "home", quota=100_000) as store:
        kept = []
        with pytest.raises(casstore.StoreFull):
            for _ in range(100):
                kept.append(store.put(random.Random(len(kept)).randbytes(9000)))
        assert store.stats().stored_bytes <= 100_000
        assert [len(store.get(name)) for name in kept] == [9000] * len(kept)
        roots = FakeRoots(store)
        roots.append("live", kept[0])
        store.gc(roots, grace=0)
        store.put(random.Random(1000).randbytes(9000))


def test_a_cancelled_stream_leaves_nothing(tmp_path):
    """An error of the source, or of the progress callback, ends the upload; gc finds nothing to do."""
    with casstore.open(tmp_path / "home") as store:

        def stop(_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.put_file(io.BytesIO(os.urandom(5 << 20)), progress=stop)
        assert len(store) == 0 and store.stats().uploads == 0
        store.gc(FakeRoots(store), grace=0)
        before = store.stats()
        store.put_file(io.BytesIO(os.urandom(3 << 20)))
        assert store.stats().file_bytes <= before.file_bytes + (4 << 20)


def test_dead_readers_do_not_let_the_file_grow(tmp_path):
    """a reader killed with its snapshot open is forgotten before gc."""
    code = (
        "import os, signal, sys, casstore\n"
        "store = casstore.open(sys.argv[1])\n"
        "with store._backend._tables.read() as t:\n"
        "    t.get(b'ix1', bytes(32))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with casstore.open(tmp_path / "home") as store:
        store.put(b"x")
        child = run_child(code, tmp_path / "home")
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        assert store._backend.reader_check() == 1


def test_a_put_under_a_small_address_space_opens_a_smaller_map(tmp_path):
    """RLIMIT_AS of 4 GiB."""
    code = (
        "import resource, sys, casstore\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "with casstore.open(sys.argv[1]) as store:\n"
        "    assert store.get(store.put(b'x')) == b'x'\n"
        "    print('ok')\n"
    )
    assert run_child(code, tmp_path / "home").communicate()[0] == "ok\n"


def test_steps_cost_nothing_without_a_listener():
    """The listener is off unless a test sets it."""
    assert steps._listener is None
