"""Store, journal and gc together: kills at every step, writers beside collectors, damage that gc must not outlive."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers import forked, kill_at, stop_points

import casstore
import journal
from casstore import steps
from journal.events import DomainEvent, RunCompleted
from tests.command_line import casstore as command_line

A, B = "flow.step.a", "flow.step.b"

def one_run(home: Path) -> None:
    """Two states with facts and outputs, and a gc after each; resumed wherever it stands."""
    with journal.open(home) as jrn:
        run_id = UUID(int=7)
        if jrn.head(run_id):
            run = jrn.resume(run_id)
        else:
            run = jrn.start_run("flow", manifest={"m": 1}, context={"n": 0, "text": "x" * 5000}, plan=[A, B],
                                run_id=run_id, max_attempts=99)  # fmt: skip
        while run.next is not None:
            with run.enter(run.next) as attempt:
                context = attempt.context()
                price = attempt.fact("price|" + attempt.state_id, lambda: {"price": 17})
                attempt.output(b"output of " + attempt.state_id.encode())
                attempt.complete({**context, "n": context["n"] + price["price"]})
            jrn.store.put(b"garbage after " + attempt.state_id.encode())
            jrn.store.gc(jrn, grace=0, force=True)
        if run.status is None:
            run.complete()


def final_of(home: Path) -> casstore.ArtifactId | None:
    with journal.open(home, read_only=True) as jrn:
        return jrn.run_state(UUID(int=7)).final_snapshot_id


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


@pytest.mark.spec("scenario 36")
def test_killed_at_every_step_a_run_ends_the_same(tmp_path: Path) -> None:
    """Each counted step of put, append and gc: the next process finds all referenced data, resumes, ends the same."""
    total = len(stop_points(lambda: one_run(tmp_path / "count")))
    wanted = final_of(tmp_path / "count")
    assert total > 40
    for stop in range(1, total + 1):
        home = tmp_path / f"home{stop}"
        assert forked(kill_at(stop, lambda home=home: one_run(home))) == -9
        if (home / "journal" / "data.mdb").exists():
            with journal.open(home) as jrn:
                assert jrn.verify() == [] and jrn.store.verify().findings == ()
                for row in jrn.runs():
                    assert jrn.run_state(row.run_id) == journal.analyze(jrn.read(row.run_id))
                    for item in jrn.read(row.run_id):
                        for _, name in journal.links(item.event):
                            jrn.store.get(name)
        assert forked(one_run, home) == 0 and final_of(home) == wanted


WRITER = """
import random, sys
import journal
from journal import errors
home, seed, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
with journal.open(home) as jrn:
    for n in range(rounds):
        shared = jrn.store.put_value({"shared": rng.randrange(6)}, durable=False)
        try:
            run = jrn.start_run("flow", manifest={"by": seed}, context={"n": n, "messages": ["hello"] * 50})
            for state in range(rng.randrange(1, 5)):
                with run.enter(f"flow.step.s{state}") as attempt:
                    context = attempt.context()
                    context["messages"].append("message %d of %d" % (state, n))
                    parent = jrn.store.put_value({"child": jrn.store.put_value({"shared": rng.randrange(6)})})
                    attempt.emit("note", {"link": parent})
                    attempt.complete(context)
            if rng.random() < 0.5:
                run.complete()
            else:
                run.release()
        except (errors.MissingArtifact, journal.InvalidEvent) as error:
            print(type(error).__name__, error, file=sys.stderr)
        except __import__("casstore").MissingArtifact:
            pass
"""
COLLECTOR = """
import sys
import casstore, journal
home = sys.argv[1]
removed = rounds = 0
with journal.open(home) as jrn:
    while not sys.stdin.closed:
        import select
        if select.select([sys.stdin], [], [], 0)[0]:
            break
        try:
            removed += len(jrn.store.gc(jrn, grace=0, keep_completed=0, force=True).removed)
        except casstore.Busy:
            pass
        rounds += 1
print(removed, rounds)
"""


@pytest.mark.spec("scenario 40")
def test_writers_and_collectors_side_by_side(tmp_path: Path) -> None:
    """Three writers, two collectors with no grace at all: no live reference dangles, links followed."""
    home = tmp_path / "home"
    journal.open(home).close()
    collectors = [subprocess.Popen([sys.executable, "-c", COLLECTOR, str(home)], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True) for _ in range(2)]  # fmt: skip
    writers = [child(WRITER, home, seed, 40) for seed in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    answers = [collector.communicate("stop\n")[0].split() for collector in collectors]
    assert sum(int(removed) for removed, _ in answers) > 0  # how many is a matter of luck and load
    assert all(collector.returncode == 0 for collector in collectors)
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()
    with journal.open(home) as jrn:
        assert jrn.verify() == [] and jrn.store.verify().findings == ()
        live = list(jrn.runs(status="live"))
        assert len(live) > 20
        for row in live:
            for item in jrn.read(row.run_id):
                for _, name in journal.links(item.event):
                    for link in jrn.store.info(name).links:
                        jrn.store.get(link)
                    jrn.store.get(name)
        jrn.store.gc(jrn, grace=0, keep_completed=0, force=True)
        assert jrn.store.gc(jrn, grace=0, keep_completed=0).removed == ()
        assert jrn.store.verify().findings == () and jrn.verify() == []


@pytest.mark.spec("scenario 35")
@pytest.mark.parametrize("damage", ["random bytes", "cut", "missing", "another version", "a row"])
def test_gc_refuses_what_it_cannot_read(tmp_path: Path, damage: str) -> None:
    """One stream that does not decode: nothing is removed, the exit code is 5, and verify names the run."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        run = jrn.start_run("flow", manifest={"m": 1}, context={"n": 0})
        run.emit("note", {"n": 1})
        jrn.store.put(b"garbage")
        before = set(jrn.store)
        with jrn._backend._tables.write() as txn:  # type: ignore[attr-defined]
            key, data = list(txn.scan(b"ev1"))[1]
            if damage == "random bytes":
                txn.put(b"ev1", key, os.urandom(len(data)))
            elif damage == "cut":
                txn.put(b"ev1", key, data[:-1])
            elif damage == "missing":
                txn.delete(b"ev1", key)
            elif damage == "another version":
                txn.put(b"ev1", key, data[:1] + b"\x09" + data[2:])
            else:
                row, value = next(txn.scan(b"run1"))
                txn.put(b"run1", row, value[:40])
    code, document = command_line("gc", "--grace", "0s", "--json", home=home).coded
    assert code == 5 and document["error"]["code"]
    with journal.open(home) as jrn:
        assert set(jrn.store) == before
        assert jrn.verify() != []


def test_a_lost_answer_is_found_by_its_token(tmp_path: Path) -> None:
    """Killed right after the commit, before the caller heard of it: the same append again is existing."""
    code = """
import os, signal, sys
from uuid import UUID
import journal
from casstore import steps
with journal.open(sys.argv[1]) as jrn:
    name = jrn.store.put(b"x")
    steps.listen(lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == "append.committed" else None)
    started = journal.RunStarted(op_id="flow", manifest_id=name, initial_snapshot_id=name)
    jrn.append(UUID(int=1), 0, [started], token=bytes(16))
"""
    killed = child(code, tmp_path / "home")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    with journal.open(tmp_path / "home") as jrn:
        name = casstore.ArtifactId.of(b"x")
        started = journal.RunStarted(op_id="flow", manifest_id=name, initial_snapshot_id=name)
        again = jrn.append(UUID(int=1), 0, [started], token=bytes(16))
        assert again.existing and (again.first_seq, again.position) == (1, 1)
        with pytest.raises(journal.Conflict):
            jrn.append(UUID(int=1), 0, [started], token=bytes(range(16)))


def count_steps(call: Any) -> dict[str, int]:
    seen: dict[str, int] = {}

    def listener(step: str) -> None:
        seen[step] = seen.get(step, 0) + 1

    steps.listen(listener)
    try:
        call()
    finally:
        steps.listen(None)
    return seen


def test_a_step_is_one_journal_commit(tmp_path: Path) -> None:
    """complete(then=…) costs one durable commit of the journal; without then= there are two."""
    with journal.open(tmp_path / "home") as jrn:
        run = jrn.start_run("flow", manifest={}, context={"n": 0})
        attempt = run.enter("flow.step.s0")
        for n in range(1, 6):
            seen = count_steps(partial(attempt.complete, {"n": n}, then=f"flow.step.s{n}"))
            assert seen["append.committed"] == 1
            attempt = run.enter(f"flow.step.s{n}")


def test_threads_share_commits(tmp_path: Path) -> None:
    """Appends that wait while another commits go together, each in order of its run; one that is refused goes alone."""
    with journal.open(tmp_path / "home") as jrn:
        name = jrn.store.put(b"x")
        runs = [UUID(int=n + 1) for n in range(16)]
        started = journal.RunStarted(op_id="flow", manifest_id=name, initial_snapshot_id=name)
        committer = jrn._appender._committer
        outcomes: list[str] = []

        def work(run_id: UUID, events: list[Any]) -> None:
            try:
                jrn.append(run_id, 0, events)
            except journal.JournalError as error:
                outcomes.append(error.code)
            else:
                outcomes.append("written")

        threads = [threading.Thread(target=work, args=(run_id, [started, DomainEvent("n")])) for run_id in runs]
        threads.append(threading.Thread(target=work, args=(UUID(int=99), [RunCompleted(status="completed")])))  # type: ignore[arg-type]

        def all_of_them() -> None:
            with committer._leader:  # as if a commit were under way
                for thread in threads:
                    thread.start()
                while len(committer._queue) < len(threads):
                    threading.Event().wait(0.001)
            for thread in threads:
                thread.join()

        seen = count_steps(all_of_them)
        assert seen["append.committed"] == 1
        assert sorted(outcomes) == ["missing_run_started"] + ["written"] * 16
        assert jrn.position() == 16 * 2 and jrn.verify() == []


@pytest.mark.parametrize(("noise", "puts"), [(0, 0), (6000, 2)])
def test_snapshots_of_many_runs_share_the_commits_of_both(tmp_path: Path, noise: int, puts: int) -> None:
    """Runs that complete a state at the same time: one commit of the journal for all of them, and where snapshots are
    too large to be staged one of the store (after one of what was staged); one whose context links to what is not
    there fails alone."""
    blob = [random.Random(place).randbytes(noise) for place in range(9)]
    with journal.open(tmp_path / "home") as jrn:
        attempts = [jrn.start_run("flow", manifest={}, context={"n": n}).enter(A) for n in range(9)]
        committer = jrn._appender._committer
        outcomes: list[str] = []

        def work(place: int, attempt: Any) -> None:
            context: dict[str, Any] = {"n": -place, "blob": blob[place]}
            if place == 8:
                context["link"] = casstore.ArtifactId.of(b"never")
            try:
                attempt.complete(context)
            except casstore.MissingArtifact:
                outcomes.append("missing")
            else:
                outcomes.append("completed")

        threads = [threading.Thread(target=work, args=pair) for pair in enumerate(attempts)]

        def all_of_them(count: int) -> None:
            with committer._leader:
                for thread in threads[-count:]:
                    thread.start()
                while len(committer._queue) < count:
                    threading.Event().wait(0.001)
            for thread in threads[-count:]:
                thread.join()

        threads = threads[:8]
        seen = count_steps(partial(all_of_them, 8))
        assert (seen.get("put.after_commit", 0), seen["append.committed"]) == (puts, 1)
        assert outcomes == ["completed"] * 8
        work(8, attempts[8])
        assert outcomes[-1] == "missing" and attempts[8].run.state.open_attempt is not None
        assert [attempt.run.context() for attempt in attempts[:8]] == [
            {"n": -place, "blob": blob[place]} for place in range(8)
        ]  # fmt: skip
        assert jrn.verify() == [] and jrn.store.verify().findings == ()


def test_what_goes_with_an_append_that_nobody_waits_for_is_put_too(tmp_path: Path) -> None:
    """`puts` with wait=False: there and durable when the result is."""
    with journal.open(tmp_path / "home") as jrn:
        run = jrn.start_run("flow", manifest={}, context={}, claim=False)
        prepared = jrn.store.prepare_value({"goes": "along"})
        assert isinstance(prepared, casstore.PreparedPut)
        event = DomainEvent("note", {}, prepared.id)
        assert jrn.append(run.run_id, run.head, [event], wait=False, puts=[prepared]).result().last_seq == 3
        assert jrn.store.get_value(prepared.id) == {"goes": "along"}


def test_a_forked_child_is_refused_and_may_reopen(tmp_path: Path) -> None:
    """The inherited journal refuses; the child opens its own, and the parent goes on."""
    with journal.open(tmp_path / "home") as jrn:
        run = jrn.start_run("flow", manifest={}, context={})
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                try:
                    run.emit("note")
                except casstore.ForkedHandle:
                    with journal.open(tmp_path / "home") as own:
                        code = 0 if own.head(run.run_id) == 2 else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        run.emit("note")
        assert jrn.head(run.run_id) == 3


def test_the_store_of_another_home_is_refused(tmp_path: Path) -> None:
    """A journal and a store that do not belong together are not opened, nor collected."""
    with casstore.open(tmp_path / "one") as store:
        with pytest.raises(casstore.InvalidHome):
            journal.open(tmp_path / "two", store=store)
        with journal.open(tmp_path / "two") as other, pytest.raises(casstore.GcRefused):
            store.gc(other, grace=0)


def test_a_feed_follows_another_process(tmp_path: Path) -> None:
    """Events of another process come, in order, without being asked for again."""
    code = """
import sys
from uuid import UUID
import journal
with journal.open(sys.argv[1]) as jrn:
    run = jrn.start_run("flow", manifest={}, context={}, run_id=UUID(int=3))
    for n in range(50):
        run.emit("n", {"n": n})
    run.complete()
"""
    journal.open(tmp_path / "home").close()
    with journal.open(tmp_path / "home", read_only=True) as jrn:
        writer = child(code, tmp_path / "home")
        seen = []
        for item in jrn.feed(follow=True, timeout=60):
            seen.append(item)
            if isinstance(item.event, RunCompleted):
                break
        writer.communicate()
        assert [item.position for item in seen] == list(range(1, 54))
        assert seen == jrn.read(UUID(int=3))
