"""What the world around a store does to it: homes exchanged under it, no permission, no files, no room for a lock
file, an interrupt between any two steps."""

from __future__ import annotations

import dis
import gc
import io
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers import exit_code, fork_child, small_disk, tracing

import casstore
import journal
from casstore import environment
from casstore.adoption import MapUsers
from casstore.fork_gate import ForkGate
from journal.commits import Committer


def other_process(call: Callable[[], None]) -> int:
    return exit_code(fork_child(call))


# -- homes that are not what they were -------------------------------------------------------------------


def test_a_home_that_was_exchanged_is_not_written_to(tmp_path: Path) -> None:
    """Moved away, and another store put there: neither gets what was meant for the other."""
    home, other = tmp_path / "home", tmp_path / "other"
    with casstore.open(other) as store:
        theirs = store.put(b"theirs")
    with casstore.open(home) as store:
        ours = store.put(b"ours")
        home.rename(tmp_path / "away")
        with pytest.raises(casstore.InvalidHome, match="moved or removed"):
            store.put(b"more")
        other.rename(home)
        for call in (lambda: store.put(b"more"), lambda: store.get(ours), lambda: store.gc_history()):
            with pytest.raises(casstore.InvalidHome, match="another store"):
                call()
        home.rename(other)
        (tmp_path / "away").rename(home)
        assert store.get(ours) == b"ours" and store.get(store.put(b"more")) == b"more"
    with casstore.open(other) as store:
        assert list(store) == [theirs]


def test_a_restored_backup_is_another_copy(tmp_path: Path) -> None:
    """The same store by its uuid, not the same by its instance: what was written since the backup is not in it."""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        store.put(b"one")
        store.backup(tmp_path / "backup")
        shutil.rmtree(home)
        shutil.copytree(tmp_path / "backup", home)
        with pytest.raises(casstore.InvalidHome, match="another store"):
            store.put(b"two")


# -- what the system refuses -----------------------------------------------------------------------------


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user to be")
def test_a_reader_without_permission_to_the_lock_file() -> None:
    """LMDB without locks beside a writer would end the process."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        home = Path(directory, "home")
        with casstore.open(home) as store:
            store.put(b"one")

        def read() -> None:
            os.setgid(65534)
            os.setuid(65534)
            with pytest.raises(casstore.InvalidHome, match=r"lock\.mdb"):
                casstore.open(home, read_only=True)

        with casstore.open(home):
            assert other_process(read) == 0


def test_no_room_for_a_lock_file(tmp_path: Path) -> None:
    """A home without one, such as a backup that was put back, on a full disk: an error, not SIGBUS."""
    with small_disk(tmp_path / "disk", 8) as disk:
        home = disk / "home"
        with journal.open(home) as jrn:
            name = jrn.store.put(b"one")
        for lock in home.glob("**/lock.mdb"):
            lock.unlink()
        with open(disk / "full", "wb") as file:
            try:
                while True:
                    os.write(file.fileno(), bytes(4096))
            except OSError:
                pass

        def use() -> None:
            for opened in (casstore.open, journal.open):
                with pytest.raises(casstore.StoreFull):
                    opened(home)

        assert other_process(use) == 0
        (disk / "full").unlink()
        with casstore.open(home) as store:
            assert store.get(name) == b"one"


def test_no_more_files(tmp_path: Path) -> None:
    """That is no damage."""
    with casstore.open(tmp_path / "home") as store:
        name = store.put(b"one")

    def use() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        for left in range(5):
            taken = []
            try:
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                for _ in range(left):
                    os.close(taken.pop())
            try:
                with casstore.open(tmp_path / "home") as opened:
                    opened.get(name)
            except casstore.StoreError as error:
                assert error.code in ("busy", "invalid_home"), error
            for descriptor in taken:
                os.close(descriptor)
        with casstore.open(tmp_path / "home") as opened:
            assert opened.get(name) == b"one"

    assert other_process(use) == 0


# -- interrupts ------------------------------------------------------------------------------------------

LOOKS = ("CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD")
GUARDED = (
    "presence.py", "environment.py", "generations.py", "fork_gate.py", "adoption.py", "lmdb_tables.py", "opening.py",
    "threading.py", "commits.py",
)  # fmt: skip


def is_in_del(frame: FrameType | None) -> bool:
    """Where Python itself swallows whatever comes."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@contextmanager
def interrupted(step: int) -> Iterator[list[int]]:
    """Ctrl-C at the place of that number where the interpreter looks for signals in what guards transactions, which is
    after calls and jumps back; counts them."""
    count = [0]
    before: dict[FrameType, str] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(GUARDED) or is_in_del(frame):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            last = before.get(frame, "")
            before[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            count[0] += last in LOOKS
            if count[0] == step and last in LOOKS:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    try:
        with tracing(trace):
            yield count
    finally:
        before.clear()


@pytest.mark.parametrize("what", ["get", "put"])
def test_an_interrupted_call_leaves_nothing_behind(tmp_path: Path, what: str) -> None:
    """Not wherever it comes: a fork would wait for it, and a compaction's old file would stay open."""
    with casstore.open(tmp_path / "home") as store:
        name = store.put(b"one")
        tables = store._backend._tables  # type: ignore[attr-defined]
        users = tables._tables.environment._users_of_map
        step, done = 0, False
        while not done:
            step += 1
            try:
                with interrupted(step):
                    store.get(name) if what == "get" else store.put(b"%d" % step)
                done = True
            except KeyboardInterrupt:
                pass
            assert not environment._gate.is_used, f"step {step}"
            assert not users._open and not any(tables._active.values()), f"step {step}"
        assert step > 20
        assert store.get(store.put(b"two")) == b"two"
        assert other_process(lambda: None) == 0


def is_free_elsewhere(lock: Any) -> bool:
    """Another thread can take it: its own thread takes it twice."""

    def take() -> bool:
        return lock.acquire(timeout=60) and lock.release() is None

    with ThreadPoolExecutor(1) as other:
        return other.submit(take).result()


def leave_while_somebody_forks() -> tuple[Any, Callable[[], None]]:
    gate = ForkGate()
    gate._forking = True
    return gate._lock, lambda: gate.leave(gate)


def end_while_somebody_adopts() -> tuple[Any, Callable[[], None]]:
    users = MapUsers(OSError)
    users._adopting = True
    return users._lock, lambda: users.end(users)


def wake_the_committer() -> tuple[Any, Callable[[], None]]:
    committer = Committer(lambda _: None)
    return committer._lock, committer.start_thread


@pytest.mark.parametrize("make", [leave_while_somebody_forks, end_while_somebody_adopts, wake_the_committer])
def test_an_interrupt_leaves_no_lock_taken(make: Callable[[], tuple[Any, Callable[[], None]]]) -> None:
    """Nor inside of the condition's own code: another thread would wait for ever."""
    lock, act = make()
    places, step = 1, 0
    while step <= places:
        with suppress(KeyboardInterrupt), interrupted(step) as count:
            act()
        places, step = max(places, count[0]), step + 1
        assert is_free_elsewhere(lock), f"step {step}"
    assert places > 2


def test_a_child_is_not_held_back_by_its_parents_fork() -> None:
    """What was inside when it was forked leaves without a lock, which a thread of the parent may have held."""
    gate = environment._gate
    assert other_process(lambda: os._exit(gate._forking)) == 0 and not gate._forking


COME_AND_GO: dict[str, Callable[[casstore.Store, casstore.Store], Any]] = {
    "open": lambda store, _: casstore.open(store.home).close(),
    "close": lambda store, _: store.close(),
    "move on": lambda _, other: len(other),
    "compact": lambda store, _: store.compact(),
}


@pytest.mark.parametrize("what", COME_AND_GO)
def test_an_interrupt_while_handles_come_and_go(tmp_path: Path, what: str) -> None:
    """Wherever it comes: the same process can open, read, write and compact afterwards, under any options once all is
    closed, and no environment stays open."""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        name = store.put(b"one")

    def attempt(step: int) -> int:
        store, other = casstore.open(home), casstore.open(home)
        if what == "move on":
            store.compact()
        with suppress(KeyboardInterrupt), interrupted(step) as count:
            COME_AND_GO[what](store, other)
        assert not environment._gate.is_used and not environment._closing and is_free_elsewhere(environment._open_lock)
        assert other.get(name) == b"one" and other.put(b"%d" % step) in other
        store.close()
        other.close()
        return count[0]

    places = attempt(0)
    assert places > 10
    for step in range(1, places + 1, max(places // 15, 1)):
        attempt(step)
        gc.collect()
        left = [env.path for env in environment._open.values() if home in env.path.parents]
        assert left == [], f"step {step}"
        with casstore.open(home, quota=1 << 40, create=False) as store:
            assert store.get(name) == b"one", f"step {step}"
            store.compact()
    assert other_process(lambda: None) == 0


# -- streams that keep no promise, and quotas --------------------------------------------------------------


class Generous(io.RawIOBase):
    """Gives more than was asked for."""

    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        part = b"x" * min(self._left, size + 1)
        self._left -= len(part)
        return part


class Waiting(io.RawIOBase):
    """Has nothing just now."""

    def __init__(self, first: bytes) -> None:
        self._parts: list[bytes | None] = [first, None]

    def read(self, size: int = -1, /) -> bytes | None:
        return self._parts.pop(0) if self._parts else b""


@pytest.mark.parametrize(
    "make", [lambda: Generous(3 << 20), lambda: Waiting(b"x" * 100), lambda: Waiting(b"x" * (1 << 20)),
             lambda: io.StringIO("x")],
)  # fmt: skip
def test_a_stream_that_keeps_no_promise_is_refused(tmp_path: Path, make: Callable[[], Any]) -> None:
    """Too much would be stored as what cannot be read; nothing just now is not the end."""
    with casstore.open(tmp_path / "home") as store:
        with pytest.raises(casstore.InvalidArgument, match="source"):
            store.put_file(make())
        with pytest.raises((casstore.InvalidArgument, casstore.InvalidCar)):
            store.import_(make())
        assert not list(store) and store.stats().uploads == 0 and store.verify().ok


def test_a_quota_holds_for_streams(tmp_path: Path) -> None:
    """What an upload has written counts, before it is visible; nothing of it is left."""
    with casstore.open(tmp_path / "home", quota=5 << 20) as store:
        small = store.put(b"one")
        for data in (os.urandom(6 << 20), os.urandom(20 << 20)):
            for put in (lambda data=data: store.put_file(io.BytesIO(data)), lambda data=data: store.put(data)):
                with pytest.raises(casstore.StoreFull, match="quota"):
                    put()
        assert list(store) == [small] and store.stats().uploads == 0
        name = store.put_file(io.BytesIO(data := os.urandom(4 << 20)))
        assert store.get(name) == data
