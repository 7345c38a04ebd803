"""Commands that help people: diff, doctor, bench."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

import casstore
import journal
from casstore.cli.options import (
    EXIT_FAILURE,
    Out,
    artifact,
    command,
    counted,
    has_journal,
    open_journal,
    open_store,
    say,
    shown_size,
)
from casstore.differences import differences, shown
from casstore.disks import check_filesystem
from journal.event_json import value_to_json

LOW_SPACE_BYTES = 256 << 20


def register(cli: click.Group) -> None:
    """Add the commands to the group."""

    @command(cli, "diff")
    @click.argument("old")
    @click.argument("new")
    def diff(home: Path, out: Out, old: str, new: str) -> None:
        """Show where two stored values differ, path by path; of other bytes, from where on."""
        with open_store(home, read_only=True) as store:
            first, second = artifact(store, old), artifact(store, new)
            try:
                pair = store.get_value(first), store.get_value(second)
            except casstore.InvalidValue:
                left, right = store.get(first), store.get(second)
                place = _same_until(left, right)
                document = {"path": None, "what": "bytes", "from_byte": place, "sizes": [len(left), len(right)]}
                if left != right:
                    out.line(document, f"bytes differ from {place} on; sizes {len(left)} and {len(right)}")
                return
        for found in differences(*pair):
            document = {
                "path": found.path, "what": found.what, "old": value_to_json(found.old), "new": value_to_json(found.new)
            }  # fmt: skip
            text = {"added": shown(found.new), "removed": shown(found.old)}.get(
                found.what, f"{shown(found.old)} -> {shown(found.new)}"
            )
            out.line(document, f"{found.what:8} {found.path}: {text}")

    @command(cli, "doctor")
    @click.pass_context
    def doctor(ctx: click.Context, home: Path, out: Out) -> None:
        """Look for what often goes wrong around a home. Changes nothing; exit code 1 when something needs care."""
        checks = list(_checks(home))
        for check in checks:
            out.line({"check": check.name, "ok": check.ok, "detail": check.detail},
                     f"{'ok  ' if check.ok else 'LOOK'}  {check.name:12} {check.detail}")  # fmt: skip
        if not all(check.ok for check in checks):
            ctx.exit(EXIT_FAILURE)

    @command(cli, "bench")
    @click.option(
        "--dir", "place", type=click.Path(path_type=Path, exists=True, file_okay=False), default=None,
        help="Measure on the disk of this directory (default: that of the home, else the current one).",
    )  # fmt: skip
    @click.option("--steps", type=click.IntRange(min=10), default=100, show_default=True, help="Steps of a run.")
    def bench(home: Path, out: Out, place: Path | None, steps: int) -> None:
        """Measure this machine in a few seconds, in a temporary store: flush, put, read, append, step."""
        parent = place or (home if home.exists() else Path())
        temporary = Path(tempfile.mkdtemp(prefix=".casstore-bench-", dir=parent))
        try:
            figures = _figures(temporary, steps)
        finally:
            shutil.rmtree(temporary)
        document = {name: round(value, 4) for name, value in figures.items()}

        def text() -> None:
            for name, value in document.items():
                say(f"{name:32} {value:>12,.3f}")

        out.document(document, text)


def _same_until(left: bytes, right: bytes) -> int:
    """The length of the prefix that both share."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Check(NamedTuple):
    """One look: whether all is well, and what was seen."""

    name: str
    ok: bool
    detail: str


def _checks(home: Path) -> Iterator[Check]:
    from importlib import metadata  # slow, and of no use to other commands

    names = ("lmdb", "zstandard", "blake3", "cbor2", "libipld")
    yield Check("libraries", True, ", ".join(f"{name} {metadata.version(name)}" for name in names))
    try:
        check_filesystem(home)
        yield Check("file system", True, "local")
    except casstore.UnsupportedFilesystem as error:
        yield Check("file system", False, str(error))
    with open_store(home, read_only=True) as store:
        yield Check("store", True, f"format read, uuid {store.uuid}")
        disk = os.statvfs(home)
        free = disk.f_bavail * disk.f_frsize
        yield Check("disk", free > LOW_SPACE_BYTES, f"{shown_size(free)} free")
        stats = store.stats()
        wasted = stats.pages_free * stats.page_bytes
        worth = wasted > max(stats.file_bytes // 2, 64 << 20)
        yield Check("space", not worth, f"{shown_size(wasted)} of {shown_size(stats.file_bytes)} are free pages"
                    + ("; `casstore compact` gives them back" if worth else ""))  # fmt: skip
        try:
            yield Check("policy", True, f"{store.policy()}")
        except casstore.InvalidPolicy as error:
            yield Check("policy", False, f"{error}; until then no gc")
        yield Check("uploads", stats.uploads == 0, f"{stats.uploads} unfinished"
                    + ("; gc removes those of dead processes" if stats.uploads else ""))  # fmt: skip
        left = sorted(path.name for path in (home / "store").iterdir() if path.is_dir())
        yield Check("generations", len(left) == 1, f"{', '.join(left)}"
                    + ("" if len(left) == 1 else "; the next gc or compact removes what is left over"))  # fmt: skip
        if not has_journal(home, store):
            yield Check("journal", False, "there is none: gc refuses to collect without one")
            return
        try:
            jrn = open_journal(home, store, read_only=True)
        except casstore.StoreError as error:
            yield Check("journal", False, str(error))
            return
        with jrn:
            yield Check("journal", True, f"{len(jrn)} events")
            dead = [str(row.run_id) for row in jrn.recoverable()]
            detail = f"{counted(len(dead), 'live run')} that nobody works on" + (f", such as {dead[0]}" if dead else "")
            yield Check("runs", not dead, detail + ("; resume or cancel them" if dead else ""))


def _figures(place: Path, steps: int) -> dict[str, float]:
    """Milliseconds, or things a second; medians."""
    figures: dict[str, float] = {"flush of 4 KiB (ms)": _flush_ms(place)}
    message = {"role": "tool", "content": "a word or two that are said again and again " * 8, "tokens": 17}
    context: dict[str, Any] = {"messages": [dict(message, n=n) for n in range(250)]}
    with journal.open(place / "home") as jrn:
        small = [b"%d of some small bytes " % n * 40 for n in range(5000)]
        names: list[casstore.ArtifactId] = []
        took = _ms(lambda: names.extend(jrn.store.put_many(small)), 1)
        figures["put_many of 1 KiB (a second)"] = len(small) / took * 1000
        figures["read of 1 KiB (a second)"] = 1000 / _ms(lambda: jrn.store.get(names[17]), 200)
        figures["durable put of 1 KiB (ms)"] = _ms(lambda: jrn.store.put(os.urandom(1000)), 50)
        run = jrn.start_run("bench", manifest={}, context=context)
        figures["append of one event (ms)"] = _ms(lambda: run.emit("note", {"n": 1}), 50)
        attempt, took_each = run.enter("bench.step.s0"), []
        for n in range(1, steps + 1):
            context["messages"].append(dict(message, n=n))
            began = time.perf_counter()
            attempt.complete(context, then=f"bench.step.s{n}")
            took_each.append((time.perf_counter() - began) * 1000)
            attempt = run.enter(f"bench.step.s{n}")
        figures["durable step of 100 KiB (ms)"] = statistics.median(took_each)
        checkpoint = run.state.checkpoint_id
        figures["read of the last context (ms)"] = _ms(lambda: jrn.store.get_value(checkpoint), 20)
        figures["resume point (ms)"] = _ms(lambda: jrn.resume(run.run_id, dry_run=True), 20)
        jrn.store.staging.settle()
        stored = jrn.store.stats().by_kind["context_snapshot"]
        figures["snapshots, MiB of data"] = stored[1] / (1 << 20)
        figures["store and journal on disk, MiB"] = _size(place) / (1 << 20)
        run.release()
    return figures


def _ms(call: Callable[[], object], times: int) -> float:
    took = []
    for _round in range(times):
        began = time.perf_counter()
        call()
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def _flush_ms(place: Path) -> float:
    with open(place / "flush", "wb", buffering=0) as file:

        def flush() -> None:
            file.write(bytes(4096))
            os.fdatasync(file.fileno())

        return _ms(flush, 30)


def _size(place: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in place.rglob("*") if path.is_file())
