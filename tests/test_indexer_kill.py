"""The indexer of examples/ is killed with SIGKILL at moments drawn by chance, and always ends the same."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest

import casstore
import journal

ROOT = Path(json.__file__).parent.parent / "asyncio"
KILLS = 30
PROJECT = Path(__file__).parent.parent


def command(home: Path, run_id: UUID) -> list[str]:
    return [sys.executable, "-m", "examples.indexer", str(home), "--root", str(ROOT), "--batch", "2", "--run", str(run_id)]  # fmt: skip # noqa: E501


def run_once(home: Path, run_id: UUID, kill_after_s: float) -> int:
    """The return code; a process that is done earlier is not killed."""
    child = subprocess.Popen(command(home, run_id), cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    timer = threading.Timer(kill_after_s, child.kill)
    timer.start()
    error = child.communicate()[1]
    timer.cancel()
    timer.join()
    assert child.returncode in (0, -signal.SIGKILL), error
    return child.returncode


@pytest.mark.spec("scenarios 17, 36")
def test_killed_at_random_moments_it_ends_with_the_same_snapshot(tmp_path: Path) -> None:
    """At least 30 kills over as many runs as it takes; after each the store verifies clean and the run resumes."""
    reference = uuid4()
    began = time.monotonic()
    assert run_once(tmp_path / "reference", reference, 120) == 0
    lasted = time.monotonic() - began
    with journal.open(tmp_path / "reference") as jrn:
        wanted = jrn.run_state(reference).final_snapshot_id
        assert wanted is not None
    home, rng, kills, finished, interrupted = tmp_path / "home", random.Random(20261125), 0, 0, 0
    casstore.open(home).close()
    while kills < KILLS or not finished:
        run_id, ended = uuid4(), False
        while not ended:
            # Once enough were killed the last run may end undisturbed.
            ended = run_once(home, run_id, rng.uniform(0.3, 1.0) * lasted if kills < KILLS else 120) == 0
            kills += not ended
            with journal.open(home) as jrn:
                assert jrn.store.verify().findings == ()
                assert jrn.verify() == []
                if not ended and jrn.head(run_id):
                    state = jrn.run_state(run_id)
                    interrupted += state.open_attempt is not None
                    assert state == journal.analyze(jrn.read(run_id))
        with journal.open(home) as jrn:
            state = jrn.run_state(run_id)
            assert (state.status, state.final_snapshot_id) == ("completed", wanted)
            finished += 1
    assert kills >= KILLS and interrupted > 0
    with journal.open(home) as jrn:
        jrn.store.gc(jrn, grace=0)
        assert jrn.store.verify().ok and jrn.verify() == []
        assert jrn.store.get_value(wanted)["parsed"] > 5
