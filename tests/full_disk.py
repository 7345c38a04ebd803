"""A small disk that fills up during each kind of write, again and again. Runs in a process of its own."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from uuid import UUID

from helpers import assert_whole

import casstore
import journal
from casstore import ArtifactId
from journal import DomainEvent, RunCompleted, RunStarted, RunStatus

FULL = (casstore.StoreFull, casstore.PoisonedHandle, journal.OutcomeUnknown)
RUN = UUID(int=5)


class FullDisk:
    """`kept` is what was pinned, `events` what was appended, and both were acknowledged."""

    def __init__(self, home: Path, rng: random.Random) -> None:
        self.home, self.rng = home, rng
        self.ballast = home.parent / "ballast"
        self.kept: dict[str, ArtifactId] = {}
        self.events = 0
        self.asked: list[tuple[bytes, DomainEvent]] = []
        self.seen: Counter[str] = Counter()
        with journal.open(home) as jrn:
            name = jrn.store.put(b"first")
            jrn.append(RUN, 0, [RunStarted(op_id="full", manifest_id=name, initial_snapshot_id=name)])
            self.events = 1

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        actions: dict[str, Callable[[journal.Journal], None]] = {
            "put": self.put, "upload": self.upload, "append": self.append, "gc": self.gc, "compact": self.compact,
            "start": self.start,
        }  # fmt: skip
        while min(self.seen.values(), default=0) < 2 or time.monotonic() < until:
            for name in actions:
                self.full(name, actions[name])
            if time.monotonic() > until + 60 + seconds:
                break
        print(dict(self.seen), flush=True)

    def full(self, name: str, action: Callable[[journal.Journal], None]) -> None:
        """Leave little room, do it until the disk is full, look, make room, look again."""
        with journal.open(self.home) as jrn:
            self.leave(self.rng.randrange(0, 1 << 20))
            try:
                for _ in range(300):
                    action(jrn)
            except FULL as error:
                self.seen[f"{name} {error.code}"] += 1
                if isinstance(error, casstore.StoreFull):
                    self.look(jrn)
        with journal.open(self.home) as jrn:  # also while the disk is full
            self.look(jrn)
            self.ballast.unlink()
            self.forget_some(jrn)
            self.look(jrn)
            assert_whole(jrn)

    def leave(self, size: int) -> None:
        """Fill the disk up to `size` bytes."""
        disk = os.statvfs(self.home)
        with open(self.ballast, "wb") as file:
            left = disk.f_bavail * disk.f_frsize - size
            while left > 0:
                file.write(bytes(min(left, 1 << 16)))
                left -= 1 << 16

    def look(self, jrn: journal.Journal) -> None:
        """Everything that was acknowledged is there and reads."""
        pins = jrn.store.pins()
        for name, found in self.kept.items():
            assert pins[name] == found and ArtifactId.of(jrn.store.get(found)) == found
        recorded = jrn.read(RUN)
        assert len(recorded) >= self.events
        self.events = len(recorded)  # an append whose outcome was not known may have gone well
        for item in recorded:
            for _, named in journal.links(item.event):
                assert ArtifactId.of(jrn.store.get(named)) == named

    def forget_some(self, jrn: journal.Journal) -> None:
        for name in [name for name in self.kept if self.rng.random() < 0.7]:
            jrn.store.unpin(name)
            del self.kept[name]
        jrn.store.gc(jrn, grace=0, keep_completed=0, force=True)
        if self.events > 3000:
            raise SystemExit("the journal outgrows the disk: more events than were meant")

    def put(self, jrn: journal.Journal) -> None:
        found = jrn.store.put(self.rng.randbytes(self.rng.choice([100, 5000, 60_000, 900_000])))
        self._pin(jrn, found)

    def upload(self, jrn: journal.Journal) -> None:
        self._pin(jrn, jrn.store.put_file(BytesIO(self.rng.randbytes(2_500_000))))

    def _pin(self, jrn: journal.Journal, found: ArtifactId) -> None:
        name = f"pin {self.rng.randrange(1 << 40)}"
        jrn.store.pin(name, found)
        self.kept[name] = found

    def append(self, jrn: journal.Journal) -> None:
        small = jrn.store.put(b"small %d" % self.events)
        jrn.append(RUN, self.events, [DomainEvent("note", {"link": small, "text": "x" * 1200})])
        self.events += 1

    def start(self, jrn: journal.Journal) -> None:
        run = jrn.start_run("full", manifest={}, context={"text": "x" * self.rng.randrange(20_000)})
        with run.enter("full.step.one") as attempt:
            attempt.output(self.rng.randbytes(30_000))
            attempt.complete({"done": True})
        run.complete()
        assert jrn.run_state(run.run_id).status is RunStatus.COMPLETED
        assert isinstance(jrn.read(run.run_id)[-1].event, RunCompleted)

    def gc(self, jrn: journal.Journal) -> None:
        """Garbage that is collected while there is next to no room: gc is what makes some."""
        for _ in range(5):
            jrn.store.put(self.rng.randbytes(50_000))
        self.leave(0)
        jrn.store.gc(jrn, grace=0, keep_completed=0, force=True)
        self.leave(self.rng.randrange(0, 1 << 20))

    def compact(self, jrn: journal.Journal) -> None:
        self._pin(jrn, jrn.store.put(self.rng.randbytes(300_000)))
        jrn.store.compact()
