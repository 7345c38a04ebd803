"""Cases of peers: growing maps, forks, killed readers, stale claims (docs/CASES.md). Each section names the report."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import UUID

import lmdb
import pytest
from helpers import assert_whole, forked, map_of

import casstore
import journal
from casstore import ArtifactId, environment
from casstore.environment import Environment
from journal import Claimed, DomainEvent, Fenced, RunStarted

RUN = UUID(int=1)


def begin(jrn: journal.Journal, run: UUID = RUN) -> ArtifactId:
    name = jrn.store.put(b"first")
    jrn.append(run, 0, [RunStarted(op_id="case", manifest_id=name, initial_snapshot_id=name)])
    return name


def environments(jrn: journal.Journal) -> list[Environment]:
    """Of the journal and of its store's generation."""
    return [jrn._backend._tables.environment, jrn.store._backend._tables._tables.environment]  # type: ignore[attr-defined]


# -- 12. jnwatson/py-lmdb#269: several processes grow the map ---------------------------------------------------

SIZES = (1 << 30, 1 << 32, 1 << 36, 1 << 40)


def _write(home: Path, number: int, count: int) -> None:
    rng = random.Random(number)
    with map_of(SIZES[number]), journal.open(home) as jrn:
        begin(jrn, UUID(int=number + 1))
        for n in range(count):
            name = jrn.store.put(b"%d of %d " % (n, number) + rng.randbytes(rng.randrange(200)), durable=False)
            jrn.append(UUID(int=number + 1), n + 1, [DomainEvent("note", {"link": name})])


def four_that_grow(home: Path, copies: Path, count: int) -> None:
    journal.open(home).close()
    children = [get_context("fork").Process(target=_write, args=(home, number, count)) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    with journal.open(home) as jrn:
        assert len(jrn.store) == 4 * count + 1 and jrn.position() == 4 * (count + 1)
        for number in range(4):
            assert jrn.head(UUID(int=number + 1)) == count + 1
        assert_whole(jrn)
        for place, env in enumerate(environments(jrn)):
            copy = copies / str(place)
            copy.mkdir(parents=True)
            env.copy_to(copy, compact=True)  # goes through every page, and counts the free ones
            assert _entries(copy) == _entries(env.path)


def _entries(path: Path) -> int:
    env = lmdb.open(str(path), max_dbs=24, readonly=True, lock=False, map_size=1 << 40) if path.name.isdigit() and (
        path.parent.name != "store"
    ) else None
    if env is None:  # the one that is open in this process
        found = next(env for env in environment._open.values() if env.path == path)
        with found.read() as txn:
            return sum(txn.stat(db)["entries"] for db in found._databases.values())
    with env.begin() as txn:
        names = [key for key, _ in txn.cursor()]
    tables = [env.open_db(name, create=False) for name in names]
    with env.begin() as txn:
        total = sum(txn.stat(db)["entries"] for db in tables)
    env.close()
    return total


def test_four_processes_with_maps_of_their_own(tmp_path: Path) -> None:
    """Case 12, in small: openers that ask for different sizes; every record is there, every page is sound."""
    four_that_grow(tmp_path / "home", tmp_path / "copies", 60)


@pytest.mark.soak
def test_four_processes_with_maps_of_their_own_for_long(tmp_path: Path) -> None:
    """Case 12: 5,000 puts and appends each."""
    four_that_grow(tmp_path / "home", tmp_path / "copies", 5000)


def grown_by_another(home: Path) -> None:
    """A map of 1 MiB here, while another process writes 6 MiB; threads read all the time."""
    with map_of(1 << 20):
        jrn = journal.open(home)
    with jrn:
        name = begin(jrn)
        stop, failures, reads = threading.Event(), list[BaseException](), [0, 0]

        def read(place: int) -> None:
            try:
                while not stop.is_set():
                    assert jrn.store.get(name) == b"first" and jrn.head(RUN) >= 1
                    reads[place] += 1
            except BaseException as error:
                failures.append(error)

        def grow() -> None:
            with journal.open(home) as other:
                for n in range(100):
                    other.store.put(random.Random(n).randbytes(60_000), durable=False)
                    text = {"text": "x" * 1500}
                    other.append(RUN, 1 + 8 * n, [DomainEvent("note", text)] * 8)

        threads = [threading.Thread(target=read, args=(place,)) for place in range(2)]
        for thread in threads:
            thread.start()
        assert forked(grow) == 0
        before = list(reads)
        while not failures and any(reads[place] < before[place] + 20 for place in range(2)):
            threading.Event().wait(0.001)
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures, failures
        assert jrn.head(RUN) == 801
        jrn.append(RUN, 801, [DomainEvent("note")])
        assert jrn.store.get(jrn.store.put(b"more")) == b"more"
        assert_whole(jrn)


def test_a_larger_map_of_another_process_is_adopted(tmp_path: Path) -> None:
    """Case 12: while threads read; none of them loses its transaction."""
    grown_by_another(tmp_path / "home")


def test_a_map_that_is_not_adopted_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 12, wrong: the map stays as it was opened."""
    monkeypatch.setattr("casstore.adoption.MapUsers.begin", lambda self, who, begin, adopt: begin())
    monkeypatch.setattr("casstore.adoption.MapUsers.end", lambda *_: None)
    with pytest.raises((casstore.StoreError, AssertionError)):
        grown_by_another(tmp_path / "home")


def test_a_larger_map_waits_until_nobody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 12: the map is not taken away from under a transaction of another thread."""
    with map_of(1 << 20):
        store = casstore.open(tmp_path / "home")

    def grow() -> None:
        with casstore.open(tmp_path / "home") as other:
            for n in range(60):
                other.put(random.Random(n).randbytes(60_000), durable=False)

    with store:
        name = store.put(b"x")
        done = threading.Event()
        with store._backend._tables.read() as t:  # type: ignore[attr-defined]
            assert forked(grow) == 1  # a fork inside of a transaction: the child is refused, see case 13
            grown = subprocess.run([sys.executable, "-c", _GROW, str(tmp_path / "home")], check=True)
            assert grown.returncode == 0

            def adopt() -> None:
                store.get(name)
                done.set()

            thread = threading.Thread(target=adopt)
            thread.start()
            while not store._backend._tables._tables.environment._users_of_map._adopting:  # type: ignore[attr-defined]
                threading.Event().wait(0.001)
            assert t.get(b"ix1", name.digest) is not None and not done.is_set()
        thread.join()
        assert done.is_set() and store.verify().ok


_GROW = """
import os, sys, casstore
with casstore.open(sys.argv[1]) as store:
    for n in range(60):
        store.put(os.urandom(60_000), durable=False)
"""


# -- 13. jnwatson/py-lmdb#346: fork with an open store ----------------------------------------------------------

FORKS = """
import os, sys, threading
from uuid import UUID
import casstore, journal
from casstore import ArtifactId
from journal import DomainEvent, RunStarted
home, when, ending = sys.argv[1:]
RUN = UUID(int=1)
jrn = journal.open(home)
store = jrn.store
first = store.put(b"first")
jrn.append(RUN, 0, [RunStarted(op_id="case", manifest_id=first, initial_snapshot_id=first)])
stop, started, hold, held = threading.Event(), threading.Event(), threading.Event(), threading.Event()

def write():
    n = 0
    while not stop.is_set():
        store.put(b"by a thread %d" % n, durable=False)
        n += 1
        started.set()

def read():
    while not stop.is_set():
        assert store.get(first) == b"first" and len(jrn.read(RUN)) >= 1
        started.set()

class Slow:
    # A stream that is in the middle of its upload while the process forks.
    def __init__(self):
        self.parts, self.rest = [os.urandom(1 << 20) for _ in range(3)], b""
    def read(self, size):
        if not self.rest and self.parts:
            if len(self.parts) == 1:
                started.set()
                hold.wait()
            self.rest = self.parts.pop()
        part, self.rest = self.rest[:size], self.rest[size:]
        return part

thread = {"write": threading.Thread(target=write), "read": threading.Thread(target=read),
          "upload": threading.Thread(target=lambda: store.put_file(Slow()))}.get(when)
if thread:
    thread.start()
    started.wait()
reader = store.open_reader(store.put(b"x" * 3_000_000))
reader.read(1 << 20)
feed = jrn.feed()
next(feed)
pending = jrn.append(RUN, 1, [DomainEvent("pending")], wait=False)
for round_ in range(5):
    pid = os.fork()
    if pid == 0:
        for call in (lambda: store.get(first), lambda: store.put(b"no"), lambda: jrn.head(RUN), lambda: reader.read(),
                     lambda: jrn.append(RUN, 1, [DomainEvent("no")]), lambda: next(iter(store)), lambda: next(feed),
                     lambda: pending.result()):
            try:
                call()
            except casstore.ForkedHandle:
                continue
            os._exit(9)
        with journal.open(home) as own:
            name = own.store.put(b"of child %d" % round_)
            own.append(RUN, own.head(RUN), [DomainEvent("note", {"link": name})])
            assert own.store.get(first) == b"first"
        if ending == "_exit":
            os._exit(0)
        stop.set()
        hold.set()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"
stop.set()
hold.set()
if thread:
    thread.join()
for n in range(1000):
    if n % 4 == 0:
        assert store.get(store.put(b"after %d" % n, durable=False)) == b"after %d" % n
    elif n % 4 == 1:
        assert ArtifactId.of(b"of child %d" % (n % 5)) in store
    elif n % 4 == 2:
        assert len(jrn.read(RUN)) == jrn.head(RUN)
    elif n % 20 == 3:
        jrn.append(RUN, jrn.head(RUN), [DomainEvent("after")])
assert len(reader.read()) == 3_000_000 - (1 << 20)
assert jrn.head(RUN) == 2 + 5 + 50
assert store.verify().ok and jrn.verify() == []
jrn.close()
"""


@pytest.mark.parametrize(
    ("when", "ending"), [("idle", "_exit"), ("idle", "exit"), ("read", "exit"), ("write", "_exit"), ("upload", "exit")]
)
def test_a_fork_harms_neither_child_nor_parent(tmp_path: Path, when: str, ending: str) -> None:
    """Case 13: the child is refused what it inherited, opens the home itself, ends; the parent goes on 1,000 times."""
    subprocess.run([sys.executable, "-c", FORKS, str(tmp_path / "home"), when, ending], check=True)


INSIDE = """
import os, sys
import casstore
from casstore import environment
home, how, ending = sys.argv[1:]
store = casstore.open(home)
name = store.put(b"x")
env = store._backend._tables._tables.environment
with (env.read() if how == "read" else env.write()):
    before = env._env.readers()
    pid = os.fork()
    if pid == 0:
        for call in (lambda: store.get(name), lambda: casstore.open(home)):
            try:
                call()
            except casstore.ForkedHandle:
                continue
            os._exit(9)
        if ending == "_exit":
            os._exit(0)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == (0 if ending == "_exit" else 1), code  # leaving the block raises ForkedHandle
    assert env._env.readers() == before
assert store.get(store.put(b"y")) == b"y"
with casstore.open(home) as again:
    assert again.get(name) == b"x"
"""


@pytest.mark.parametrize("ending", ["_exit", "exit"])
@pytest.mark.parametrize("how", ["read", "write"])
def test_a_fork_inside_of_a_transaction_leaves_it_to_the_parent(tmp_path: Path, how: str, ending: str) -> None:
    """Case 13: such a child is refused for good, and gives up neither the parent's snapshot nor its lock."""
    line = [sys.executable, "-c", INSIDE, str(tmp_path / "home"), how, ending]
    subprocess.run(line, check=True, stderr=subprocess.DEVNULL if ending == "exit" else None)


def test_a_child_that_uses_what_it_inherited_is_caught(tmp_path: Path) -> None:
    """Case 13, wrong: nothing asks in which process a handle was opened."""
    code = FORKS.replace("import casstore, journal\n", (
        "import casstore, journal\n"
        "casstore.Store._check = lambda self, write=False: None\n"
        "journal.Journal._check = lambda self, write=False: None\n"
        "from casstore.environment import Environment\n"
        "Environment._check = lambda self: None\n"
    ))  # fmt: skip
    line = [sys.executable, "-c", code, str(tmp_path / "home"), "idle", "_exit"]
    assert subprocess.run(line, stderr=subprocess.DEVNULL, check=False).returncode != 0


def _of_a_child(home: Path, word: str) -> None:
    with journal.open(home) as jrn:
        name = jrn.store.put(word.encode())
        jrn.append(RUN, jrn.head(RUN), [DomainEvent("note", {"link": name})])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_write_both(tmp_path: Path, method: str) -> None:
    """Case 13: with each start method; a handle itself does not go along."""
    with journal.open(tmp_path / "home") as jrn:
        begin(jrn)
        context = get_context(method)
        child = context.Process(target=_of_a_child, args=(tmp_path / "home", method))
        child.start()
        child.join()
        assert child.exitcode == 0
        assert jrn.head(RUN) == 2 and ArtifactId.of(method.encode()) in jrn.store
        for handle in (jrn, jrn.store):
            with pytest.raises(TypeError, match="open it there"):
                __import__("pickle").dumps(handle)


# -- 14. cocoindex-io/cocoindex-code#129: killed readers fill the table -----------------------------------------


@contextmanager
def readers(home: Path, count: int, *, reading: bool = True, both: bool = True) -> Iterator[None]:
    """Children that hold a snapshot of the store's file, and of the journal's, or only the files, until killed."""
    here, there = os.pipe()
    pids: list[int] = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            try:
                store = casstore.open(home, read_only=True)
                backends: list[Any] = [store._backend]
                if both:
                    backends.append(journal.open(home, store=store, read_only=True)._backend)
                with ExitStack() as held:
                    for backend in backends if reading else ():
                        held.enter_context(backend._tables.read())
                    os.write(there, b"x")
                    signal.pause()
            finally:
                os._exit(1)
        pids.append(pid)
    for _ in pids:
        assert os.read(here, 1) == b"x"
    os.close(here)
    os.close(there)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def test_three_hundred_killed_readers_leave_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 14: as many at once as there are slots; alive they are in the way and are named so, dead they are not."""
    monkeypatch.setattr(environment, "_READERS_MAX", 100)
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        name = begin(jrn)
    for round_ in range(3):
        with readers(home, 100, both=False):
            if round_ == 0:
                with pytest.raises(casstore.Busy, match="100 readers"):
                    journal.open(home)
        with journal.open(home) as jrn:
            assert jrn.store.get(name) == b"first" and jrn.head(RUN) == 1
            assert jrn.store.stats().reader_lag_commits == 0


def test_an_open_handle_finds_slots_of_dead_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 14: on "readers full" the dead are cleared, and the read is tried once more."""
    monkeypatch.setattr(environment, "_READERS_MAX", 40)
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        name = begin(jrn)
    with readers(home, 39):
        jrn = journal.open(home)
    # It was opened while they lived, so that opening has cleared nothing; reads of its own look only every 30 s.
    with jrn:
        held = [jrn.store._backend._tables.read() for _ in range(20)]  # type: ignore[attr-defined]
        for reading in held:
            reading.__enter__()
        for reading in held:
            reading.__exit__(None, None, None)
        assert jrn.store.get(name) == b"first"


def grow_after_a_killed_reader(home: Path, times: int = 500) -> int:
    """Bytes by which both files grow while rows are overwritten beside a reader that was killed. A third
    process has them open: without one the engine would begin anew with an empty table of readers."""
    with journal.open(home) as jrn:
        begin(jrn)
    with readers(home, 1, reading=False):
        with readers(home, 1):
            pass
        return _grown(home, times)


def _grown(home: Path, times: int) -> int:
    with journal.open(home) as jrn:
        for n in range(20):
            overwrite(jrn, n)
        before = sum(env.info()["file_bytes"] for env in environments(jrn))
        for n in range(times):
            overwrite(jrn, n)
        return sum(env.info()["file_bytes"] for env in environments(jrn)) - before


def overwrite(jrn: journal.Journal, n: int) -> None:
    jrn._backend.set_cursor("place", n)
    jrn.store._backend.pin("place", ArtifactId.of(b"first").digest, n)


def test_files_stay_as_they_are_beside_a_killed_reader(tmp_path: Path) -> None:
    """Case 14: 500 overwrites cost next to nothing."""
    assert grow_after_a_killed_reader(tmp_path / "home") < 40 * 4096


def test_a_slot_that_nobody_clears_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 14, wrong: opening leaves the slots of the dead."""
    right = environment._open_databases

    def wrong(env: Environment, names: Any, *, read_only: bool) -> None:
        class Blind:
            def __getattr__(self, name: str) -> Any:
                return getattr(inner, name)

            def reader_check(self) -> int:
                return 0

        inner, env._env = env._env, Blind()
        right(env, names, read_only=read_only)

    monkeypatch.setattr(environment, "_open_databases", wrong)
    assert grow_after_a_killed_reader(tmp_path / "home", 100) > 200 * 4096


def test_stats_tell_the_age_of_a_living_reader(tmp_path: Path) -> None:
    """Case 14: the snapshot that somebody holds is shown with its age in commits."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        begin(jrn)
    with readers(home, 1), journal.open(home) as jrn:
        before = jrn.store.stats().reader_lag_commits
        for n in range(30):
            jrn.store._backend.pin("place", ArtifactId.of(b"first").digest, n)
        assert jrn.store.stats().reader_lag_commits == before + 30


# -- 16. dbos-inc/dbos-transact-py#742: a stale list of work is acted upon --------------------------------------


def _recoverer(home: Path, commands: Connection, barrier: Any) -> None:
    """Does as it is told, at the time that it is told: what it answers is what it got, or the code of the error."""
    now = [0.0]
    with journal.open(home, clock=lambda: now[0]) as jrn:
        while True:
            what, now[0], run_id, *rest = commands.recv()
            try:
                if what == "list":
                    answer: object = run_id in [row.run_id for row in jrn.recoverable()]
                elif what == "claim":
                    if rest:
                        barrier.wait()
                    answer = jrn.claim(run_id, ttl=60).epoch
                elif what == "append":
                    epoch, head = rest
                    answer = jrn.append(run_id, head, [DomainEvent("side effect")], epoch=epoch).last_seq
                else:
                    return
            except (Claimed, Fenced) as error:
                answer = error.code
            commands.send(answer)


def stale_lists(home: Path, rounds: int) -> None:
    """Two that list and claim; the winner is stopped, overtaken, woken, and its append is refused."""
    with journal.open(home) as jrn:
        ids = [UUID(int=n + 1) for n in range(rounds)]
        for run_id in ids:
            begin(jrn, run_id)
    context = get_context("fork")
    barrier = context.Barrier(2)
    pairs = [context.Pipe() for _ in range(2)]
    children = [context.Process(target=_recoverer, args=(home, pair[1], barrier)) for pair in pairs]
    for child in children:
        child.start()
    pipes = [pair[0] for pair in pairs]

    def ask(who: int, *command: object) -> Any:
        pipes[who].send(command)
        return pipes[who].recv()

    try:
        with journal.open(home, read_only=True) as jrn:
            for n, run_id in enumerate(ids):
                now = 1_900_000_000.0 + 1000 * n
                assert [ask(who, "list", now, run_id) for who in (0, 1)] == [True, True]
                for pipe in pipes:
                    pipe.send(("claim", now, run_id, "at the barrier"))
                answers = [pipe.recv() for pipe in pipes]
                assert sorted(map(str, answers)) == ["1", "claimed"], answers
                winner = answers.index(1)
                os.kill(children[winner].pid, signal.SIGSTOP)
                pipes[winner].send(("append", now, run_id, 1, 1))
                assert ask(1 - winner, "claim", now + 120, run_id) == 2
                assert ask(1 - winner, "append", now + 120, run_id, 2, 1) == 2
                os.kill(children[winner].pid, signal.SIGCONT)
                assert pipes[winner].recv() == "fenced"
                assert jrn.head(run_id) == 2
    finally:
        for who, child in enumerate(children):
            os.kill(child.pid, signal.SIGCONT)
            pipes[who].send(("end", 0.0, None))
            child.join()
    with journal.open(home) as jrn:
        assert_whole(jrn)


def test_a_stale_list_of_work_wins_nothing(tmp_path: Path) -> None:
    """Case 16: 100 rounds; one claim wins, and who was overtaken hears it before anything is written."""
    stale_lists(tmp_path / "home", 100)


def test_appends_that_carry_no_epoch_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 16, wrong: an append does not compare the epoch, and the stopped one goes on."""
    right = __import__("journal.admission", fromlist=["_claim"])._claim

    def wrong(request: Any, look: Any, row: Any, held: Any, terms: Any) -> Any:
        request.epoch = None if row is None or request.epoch is None else row.epoch
        request.expected_seq = 0 if row is None else row.head
        return right(request, look, row, held, terms)

    monkeypatch.setattr("journal.admission._claim", wrong)
    with pytest.raises(AssertionError):
        stale_lists(tmp_path / "home", 1)
