"""The whole story in one go: index a source tree, kill the indexer, resume it, collect what nothing needs.

    make demo        (or: python -m examples.demo [--root DIR])
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from rich.console import Console
from rich.panel import Panel

import casstore
import journal

console = Console(highlight=False, width=100)


def main() -> int:
    """Returns the exit code: 0 when every promise held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(sysconfig.get_path("stdlib")), help="Python files to index")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="casstore-demo-"))
    try:
        return _story(place, given.root.resolve())
    finally:
        shutil.rmtree(place)


def _story(place: Path, root: Path) -> int:
    home, run_id = place / "home", uuid4()
    console.print(Panel("casstore + journal: record a run, kill it, resume it, collect garbage", expand=False))

    console.rule("1. the same run, never interrupted")
    console.print(f"An orchestrator indexes the Python files below {root}. Each state stores its whole context.")
    began = time.monotonic()
    output = subprocess.run(_indexer(place / "reference", root), check=True, capture_output=True, text=True).stdout
    lasted = time.monotonic() - began
    wanted = output.split()[-1]
    console.print(f"{output.count(' done,')} states in {lasted:.1f} s. The final snapshot is [bold]{wanted[:16]}[/]…")

    console.rule("2. again in another store, killed in the middle")
    seed = int.from_bytes(os.urandom(4))
    kills = _until_done(home, root, run_id, lasted, random.Random(seed))
    if not kills:
        console.print("It was done before the first kill came; start the demo again.")
    console.print(f"Killed with SIGKILL {kills} times, at moments drawn by chance (seed {seed}).")

    console.rule("3. what the journal says")
    console.print("$ casstore log RUN (the ends of what was cut off, and how each retry found its way)")
    with journal.open(home) as jrn:
        state, events = jrn.run_state(run_id), jrn.read(run_id)
    lines = _casstore(home, "log", str(run_id)).splitlines()
    shown = [seq for item in events if isinstance(item.event, journal.StateFailed)
             for seq in range(item.seq - 1, item.seq + 3)]  # fmt: skip
    for seq in sorted(set(shown[:12]) | {1, 2, len(lines)}):
        console.print(f"  {lines[seq - 1][:98]}", markup=False)
    same = str(state.final_snapshot_id) == wanted
    console.print(f"The final snapshot is [bold]{str(state.final_snapshot_id)[:16]}[/]…: "
                  + ("[green]the same[/] as that of the run that was never killed." if same else "[red]DIFFERENT[/]"))

    console.rule("4. what full snapshots cost")
    _costs(home, run_id)

    console.rule("5. garbage")
    clean = _garbage(home, run_id)
    good = same and clean
    console.rule("[green]all promises held" if good else "[red]a promise was broken")
    return 0 if good else 1


def _until_done(home: Path, root: Path, run_id: UUID, lasted: float, rng: random.Random) -> int:
    """Start the indexer again and again, each time to be killed at a moment drawn by chance; the kills that hit."""
    kills = 0
    while True:
        child = subprocess.Popen([*_indexer(home, root), "--run", str(run_id)], stdout=subprocess.PIPE, text=True)
        delay = rng.uniform(0.1, 0.6) * lasted if kills < 3 else 600.0
        timer = threading.Timer(delay, child.send_signal, [signal.SIGKILL])
        timer.start()
        output = child.communicate()[0]
        timer.cancel()
        timer.join()
        lines = output.splitlines()
        console.print(f"  process {child.pid}: {lines[0] if lines else 'killed before it said anything'}", markup=False)
        if child.returncode == 0:
            console.print(f"    ran to the end: {lines[-1]}", markup=False)
            return kills
        if child.returncode != -signal.SIGKILL:
            raise SystemExit(f"the indexer failed with code {child.returncode}")
        kills += 1
        console.print(f"    [red]SIGKILL[/] after {delay:.1f} s" + (f"; last word: {lines[-1]}" if lines else ""))


def _costs(home: Path, run_id: UUID) -> None:
    with journal.open(home) as jrn:
        snapshots = {item.event.context_snapshot_id for item in jrn.read(run_id)
                     if isinstance(item.event, journal.StateCompleted)}  # fmt: skip
        found = [jrn.store.info(name) for name in snapshots]
        stats = jrn.store.stats()
    logical, stored = sum(item.size_bytes for item in found), sum(item.stored_bytes for item in found)
    journal_bytes = (home / "journal" / "data.mdb").stat().st_size
    console.print(f"{len(found)} full snapshots hold {_size(logical)} of data and take {_size(stored)}: "
                  f"[bold]{logical / stored:.0f} times less[/].")
    console.print(f"The whole store file is {_size(stats.file_bytes)}, the journal's {_size(journal_bytes)}.")
    median = sorted(item.stored_bytes for item in found)[len(found) // 2]
    console.print(f"The median snapshot is {_size(sorted(i.size_bytes for i in found)[len(found) // 2])} "
                  f"and takes {_size(median)}.")


def _garbage(home: Path, run_id: UUID) -> bool:
    console.print("An upload that nothing names, and a run that is given up: garbage, once nobody needs it.")
    with journal.open(home) as jrn:
        jrn.store.put(os.urandom(100_000), kind="output")
        given_up = jrn.start_run("index", manifest={"given": "up"}, context={"big": os.urandom(50_000)})
        given_up.cancel("not needed any more")
    for options in (["--dry-run"], []):
        command = ["gc", *options, "--grace", "0s", "--keep-completed", "14d"]
        console.print(f"$ casstore {' '.join(command)}", markup=False)
        _show(_casstore(home, *command))
    console.print("The finished run is younger than 14 days, so all that it names is kept. Now keep live runs only:")
    with journal.open(home) as jrn:
        final = jrn.run_state(run_id).final_snapshot_id
        assert final is not None
        jrn.store.pin("the-index", final)
        console.print("(its final snapshot is pinned, so it stays with all that it links to)")
    command = ["gc", "--grace", "0s", "--keep-completed", "0s"]
    console.print(f"$ casstore {' '.join(command)}", markup=False)
    _show(_casstore(home, *command))
    console.print("Free pages inside of the file are used again; compact gives them back to the file system:")
    console.print("$ casstore compact")
    _show(_casstore(home, "compact"))
    console.print("$ casstore verify")
    verified = _casstore(home, "verify")
    _show(verified)
    with casstore.open(home) as store:
        report = store.get_value(final)["report"]
        console.print(f"The pinned index still reads: {len(store.get_value(final)['modules'])} modules; its report:")
        _show("\n".join(store.get(report).decode().splitlines()[:5]))
    document: dict[str, Any] = json.loads(_casstore(home, "verify", "--json"))
    return not document["findings"]


def _indexer(home: Path, root: Path) -> list[str]:
    return [sys.executable, "-m", "examples.indexer", str(home), "--root", str(root)]


def _casstore(home: Path, command: str, *arguments: str) -> str:
    line: Sequence[str] = [sys.executable, "-m", "casstore.cli.main", command, "--home", str(home), *arguments]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


def _show(text: str) -> None:
    for line in text.splitlines():
        console.print(f"  {line}", markup=False)


def _size(size: int) -> str:
    return f"{size / 1024:.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
