"""Commands that remove and bring back: gc, undelete."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from casstore import AmbiguousPrefix, ArtifactId, Buried, Collected, DamagedStore, GcRefused, Store
from casstore.cli.gc_report import report_document, report_lines, shown_past
from casstore.cli.options import (
    EXIT_STOPPED,
    Duration,
    Out,
    Size,
    command,
    counted,
    has_journal,
    open_journal,
    open_store,
    say,
    shown_size,
)
from casstore.times import shown_time
from journal import Journal


def register(cli: click.Group) -> None:
    """Add the commands to the group."""

    @command(cli, "gc")
    @click.option("--dry-run", is_flag=True, help="Only say what would go.")
    @click.option("--list", "listed", is_flag=True, help="Name each artifact removed, its size, and why it goes.")
    @click.option("--explain", is_flag=True, help="Say how many are kept by what, and how much goes and why.")
    @click.option(
        "--auto", is_flag=True,
        help="Only if it is worth it, by [auto] in gc.toml: a cheap look, for timers. Says why it did or did not.",
    )
    @policy_options
    @click.option("--max-time", type=Duration(), help="Stop after so long, as 30s; the next gc goes on.")
    @click.option("--max-bytes", type=Size(), help="Stop once so much is removed, as 2GiB; the next gc goes on.")
    @click.option("--force", is_flag=True, help="Go on where nearly everything would go, or little disk is left.")
    @click.option("--history", is_flag=True, help="Remove nothing; show past gcs, the newest first.")
    @click.option("--limit", type=click.IntRange(min=1), default=None, help="With --history: so many (20).")
    @click.pass_context
    def gc(
        ctx: click.Context, /, home: Path, out: Out, dry_run: bool, listed: bool, explain: bool, auto: bool,
        force: bool, history: bool, limit: int | None, **given: Any,
    ) -> None:  # fmt: skip
        """Remove what no live run, pin, lease or recent put needs. Writers may go on meanwhile.

        Which runs that ended are kept, and what of them, is said by HOME/gc.toml (docs/GC.md); an option given here
        comes before the file. Live runs, pins and leases are always kept.

        What goes is free for new artifacts; the file does not shrink before `casstore compact`.

        Stopped by Ctrl-C or at a limit (exit code 4), it has removed something less; the next gc goes on. Where
        anything cannot be read, or a safety rule says no (exit code 5), nothing is removed.
        """
        if limit is not None and not history:
            raise click.UsageError("--limit goes with --history")
        if history:
            with open_store(home, read_only=True) as store:
                for past in store.gc_history(limit=20 if limit is None else limit):
                    out.line(asdict(past), shown_past(past))
            return
        with open_store(home, read_only=dry_run) as store, gc_journal(home, store, read_only=dry_run) as jrn:
            policy = store.policy().changed(**given)
            due = store.gc_due(jrn, policy=policy) if auto else None
            if due is not None and not due.due:
                out.document({"due": False, "reason": due.reason}, lambda: say(f"not worth it: {due.reason}"))
                return
            with stop_when_interrupted() as stop:
                report = store.gc(
                    jrn, policy=policy, dry_run=dry_run, explain=explain or listed, stop=stop, force=force
                )
        document = report_document(report, listed=listed, explained=explain)
        if due is not None:
            document |= {"due": True, "reason": due.reason}

        def text() -> None:
            if due is not None:
                say(f"worth it: {due.reason}")
            if explain:
                say(f"policy: {policy}")
            for line in report_lines(report, listed=listed, explained=explain):
                say(line)

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
                if ids:
                    raise click.UsageError("--list shows all, or with --gc those of one gc; it takes no ids")
                for found in store.buried():
                    if gc is None or found.gc == gc:
                        out.line({**asdict(found), "id": str(found.id)}, _shown_buried(found))
                return
            if not ids and gc is None:
                raise click.UsageError("name artifacts, or a gc with --gc")
            report = store.undelete([buried_id(store, text) for text in ids], gc=gc)
        document = {
            "restored": [str(name) for name in report.restored], "known": [str(name) for name in report.known],
            "raw_bytes": report.raw_bytes,
        }  # fmt: skip

        def text() -> None:
            say(f"restored {counted(len(report.restored), 'artifact')} ({shown_size(report.raw_bytes)} of data)")
            if report.known:
                say(f"{len(report.known)} were there")

        out.document(document, text)


def policy_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What may stand in gc.toml as well; None where it is not given."""
    for option in reversed((
        click.option(
            "--keep-completed", type=Duration(),
            help="Keep runs that ended since; 0s keeps live runs only.  [default: 14d]",
        ),
        click.option("--keep-failed", type=Duration(), help="The same of failed ones.  [default: as completed]"),
        click.option("--keep-cancelled", type=Duration(), help="The same of cancelled ones.  [default: as completed]"),
        click.option(
            "--keep-last", type=click.IntRange(min=0),
            help="Keep the newest so many ended runs of each operation too, however old.  [default: 0]",
        ),
        click.option(
            "--final-only/--whole", default=None,
            help="Of completed runs that are kept, keep only manifest and final snapshot with all it links to. Outputs,"
            " facts and other snapshots go, unless it links to them; failed and cancelled runs keep all.",
        ),
        click.option(
            "--keep-outputs/--no-keep-outputs", default=None,
            help="With --final-only: keep what artifact_written events name as well.",
        ),
        click.option(
            "--quota", type=Size(),
            help="Let ended runs go, the oldest first, until at most so much is stored, as 20GiB. Never a live one.",
        ),
        click.option("--grace", type=Duration(), help="Keep what was put or touched since.  [default: 1h]"),
        click.option(
            "--quarantine", type=Duration(),
            help="Keep the bytes of what goes for so long: until then `casstore undelete` brings it back."
            "  [default: 0s]",
        ),
    )):  # fmt: skip
        function = option(function)
    return function


@contextmanager
def gc_journal(home: Path, store: Store, *, read_only: bool) -> Iterator[Journal]:
    """The journal that says what is live. Raises: GcRefused where it is missing, or is not this home's."""
    if not has_journal(home):
        detail = f"{home} has a store but no journal, so nothing says what is live. Put its journal back"
        raise GcRefused("missing_journal", f"{detail}; where it never had one, `casstore init` makes it")
    try:
        jrn = open_journal(home, store, read_only=read_only)
    except DamagedStore as error:
        detail = f"nothing says what is live: {error} It has to be the journal of this home"
        raise GcRefused("unusable_journal", detail) from error
    with jrn:
        yield jrn


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


def buried_id(store: Store, text: str) -> ArtifactId:
    """An id, or the only one in quarantine, in the store, or collected, that begins like that."""
    if len(text) == 64:
        return ArtifactId.parse(text)
    found = [row.id for row in store.buried() if str(row.id).startswith(text)] if len(text) >= 4 else []
    if len(found) > 1:
        raise AmbiguousPrefix(text, ", ".join(str(name)[:16] for name in found[:5]))
    if found:
        return found[0]
    try:
        return store.resolve(text)
    except Collected as gone:
        return gone.fields["id"]  # type: ignore[no-any-return]


def _shown_buried(found: Buried) -> str:
    return f"{found.id}  gc {found.gc}  until {shown_time(found.until_s)}  {found.size_bytes:>12}"
