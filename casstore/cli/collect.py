"""Commands that remove and bring back: gc, undelete."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from casstore import AmbiguousPrefix, ArtifactId, Buried, GcRecord, GcRefused, Store
from casstore.cli.options import (
    EXIT_STOPPED,
    Duration,
    Out,
    command,
    counted,
    has_journal,
    open_journal,
    open_store,
    shown_size,
)


def register(cli: click.Group) -> None:
    """Add the commands to the group."""

    @command(cli, "gc")
    @click.option("--dry-run", is_flag=True, help="Only say what would go.")
    @click.option("--list", "listed", is_flag=True, help="Name each artifact removed.")
    @click.option(
        "--keep-completed", type=Duration(), default="14d", show_default=True,
        help="Keep what runs that ended later than this ago name; 0s keeps live runs only.",
    )
    @click.option(
        "--keep-last", type=click.IntRange(min=0), default=0, show_default=True,
        help="Keep the newest so many ended runs of each operation too, however old.",
    )
    @click.option(
        "--final-only", is_flag=True, help="Of completed runs that are kept, keep only manifest and final snapshot."
    )
    @click.option("--grace", type=Duration(), default="1h", show_default=True, help="Keep what was touched since.")
    @click.option(
        "--quarantine", type=Duration(), default="0s", show_default=True,
        help="Keep the bytes of what goes for so long: until then `casstore undelete` brings it back.",
    )
    @click.option("--max-time", type=Duration(), help="Stop after so long, as 30s; the next gc goes on.")
    @click.option("--max-bytes", type=click.IntRange(min=0), help="Stop once so many stored bytes are removed.")
    @click.option("--force", is_flag=True, help="Go on where nearly everything would go.")
    @click.option("--history", is_flag=True, help="Remove nothing; show past gcs, the newest first.")
    @click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="With --history: so many.")
    @click.pass_context
    def gc(
        ctx: click.Context, home: Path, out: Out, dry_run: bool, listed: bool, keep_completed: int, keep_last: int,
        final_only: bool, grace: int, quarantine: int, max_time: int | None, max_bytes: int | None,
        force: bool, history: bool, limit: int,
    ) -> None:  # fmt: skip
        """Remove what no live run, pin, lease or recent put needs. Writers may go on meanwhile.

        Stopped by Ctrl-C or at a limit (exit code 4), it has removed something less; the next gc goes on.
        """
        if history:
            with open_store(home, read_only=True) as store:
                for past in store.gc_history(limit=limit):
                    out.line(asdict(past), _shown(past))
            return
        with open_store(home, read_only=dry_run) as store:
            if not has_journal(home):
                raise GcRefused("missing_journal", f"{home} has a store but no journal, so nothing says what is live")
            with open_journal(home, store, read_only=dry_run) as jrn, stop_when_interrupted() as stop:
                report = store.gc(
                    jrn, dry_run=dry_run, keep_completed=keep_completed, keep_last=keep_last, final_only=final_only,
                    grace=grace, quarantine=quarantine,
                    max_time=max_time, max_bytes=max_bytes, stop=stop, force=force,
                )  # fmt: skip
            file_bytes = store.stats().file_bytes
        document: dict[str, Any] = {
            "gc": report.gc, "dry_run": dry_run, "removed": len(report.removed), "raw_bytes": report.raw_bytes,
            "stored_bytes": report.stored_bytes, "kept_bytes": report.kept_bytes, "live": report.live,
            "quarantined_bytes": report.quarantined_bytes, "rescued": report.rescued,
            "stopped": report.stopped, "duration_ms": report.duration_ms, "file_bytes": file_bytes,
        }  # fmt: skip
        if listed:
            document["ids"] = [str(name) for name, _ in report.removed]

        def text() -> None:
            verb = "would remove" if dry_run else "removed"
            click.echo(f"{verb} {counted(len(report.removed), 'artifact')} ({shown_size(report.raw_bytes)} of data)")
            click.echo(f"{shown_size(report.stored_bytes)} {'would be' if dry_run else 'are'} free for new artifacts; "
                       f"the file stays at {shown_size(file_bytes)}")  # fmt: skip
            if report.kept_bytes:
                click.echo(f"{shown_size(report.kept_bytes)} of theirs stay: living deltas are made of them")
            if report.quarantined_bytes:
                click.echo(f"{shown_size(report.quarantined_bytes)} of theirs stay in quarantine: "
                           f"`casstore undelete --gc {report.gc}` brings them back")  # fmt: skip
            click.echo(f"{counted(report.live, 'artifact')} live")
            if listed:
                for name, size in report.removed:
                    click.echo(f"  {name}  {size:>12}")
            if report.stopped:
                click.echo(f"{_STOPPED[report.stopped]}: the next gc goes on")

        out.document(document, text)
        if report.stopped:
            ctx.exit(EXIT_STOPPED)


    @command(cli, "undelete")
    @click.argument("ids", metavar="[ID]...", nargs=-1)
    @click.option("--gc", "gc", type=int, help="Everything that this gc removed.")
    @click.option("--list", "listed", is_flag=True, help="Only show what can be brought back.")
    def undelete(home: Path, out: Out, ids: tuple[str, ...], gc: int | None, listed: bool) -> None:
        """Bring back artifacts that a gc with --quarantine removed, with all that they link to."""
        with open_store(home, read_only=listed) as store:
            if listed:
                for found in store.buried():
                    if gc is None or found.gc == gc:
                        out.line({**asdict(found), "id": str(found.id)}, _shown_buried(found))
                return
            if not ids and gc is None:
                raise click.UsageError("name artifacts, or a gc with --gc")
            report = store.undelete([_buried_id(store, text) for text in ids], gc=gc)
        document = {
            "restored": [str(name) for name in report.restored], "known": [str(name) for name in report.known],
            "raw_bytes": report.raw_bytes,
        }  # fmt: skip

        def text() -> None:
            click.echo(f"restored {counted(len(report.restored), 'artifact')} ({shown_size(report.raw_bytes)} of data)")
            if report.known:
                click.echo(f"{len(report.known)} were there")

        out.document(document, text)


_STOPPED: Final = {"time": "stopped after --max-time", "bytes": "stopped at --max-bytes", "asked": "stopped"}


@contextmanager
def stop_when_interrupted() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; a second one interrupts as ever."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _buried_id(store: Store, text: str) -> ArtifactId:
    """An id, or the only one in quarantine, or in the store, that begins like that."""
    if len(text) == 64:
        return ArtifactId.parse(text)
    found = [row.id for row in store.buried() if str(row.id).startswith(text)] if len(text) >= 4 else []
    if len(found) > 1:
        raise AmbiguousPrefix(text, ", ".join(str(name)[:16] for name in found[:5]))
    return found[0] if found else store.resolve(text)


def _shown_buried(found: Buried) -> str:
    until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.until_s))
    return f"{found.id}  gc {found.gc}  until {until}  {found.size_bytes:>12}"


def _shown(past: GcRecord) -> str:
    """One line of the history."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(past.when_s))
    line = f"gc {past.gc:<5} {when}  {past.outcome:10}"
    if past.outcome == "unfinished":
        return line.rstrip()
    return (
        f"{line}  {past.removed:>9} removed  {shown_size(past.raw_bytes):>10} of data"
        f"  {shown_size(past.stored_bytes):>10} freed  {past.duration_ms / 1000:.1f} s"
    )
