"""Repair: what is fetched comes in the right order at once, rows of nothing go, counters are counted; killed at any
step the store is no worse, and the next repair does the rest."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import exit_code, fork_child

import casstore
from casstore import ArtifactId, steps
from casstore.rows import DA, IX, D, IxRow, u64

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
