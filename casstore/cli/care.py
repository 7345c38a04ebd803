"""Commands that look after a home: init, verify, stats."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import casstore
import journal
from casstore.cli.options import (
    EXIT_DAMAGE,
    EXIT_STOPPED,
    Duration,
    Out,
    command,
    counted,
    has_journal,
    open_both,
    open_journal,
    open_store,
    progress,
    say,
    shown_size,
)
from casstore.cli.verifying import Places, Subset, put_right
from casstore.home import is_same_place


def register(cli: click.Group) -> None:
    """Add the commands to the group."""

    @command(cli, "init")
    def init(home: Path, out: Out) -> None:
        """Make a store and a journal at HOME; harmless where they are."""
        existed = (home / "FORMAT").exists()
        with casstore.open(home) as store, journal.open(home, store=store):
            document = {"home": str(store.home), "uuid": store.uuid, "created": not existed}
        word = "already there" if existed else "made"
        out.document(document, lambda: say(f"{word}: {document['home']} (uuid {document['uuid']})"))

    @command(cli, "verify")
    @click.option("--subset", type=Subset(), help="Check only part K of N, such as 1/7; N runs check everything.")
    @click.option("--max-time", type=Duration(), help="Stop after this long, such as 10m; exit code 4.")
    @click.option("--resume", is_flag=True, help="Go on where the last verify (of this subset) stopped.")
    @click.option(
        "--repair", is_flag=True,
        help="Put right what needs no good copy: rows that belong to nothing or contradict others, counters, and the"
        " rows of the journal (as rebuild does).",
    )
    @click.option(
        "--repair-from", type=click.Path(path_type=Path),
        help="As --repair, and get what is damaged or missing from another home, such as a backup.",
    )
    @click.pass_context
    def verify(
        ctx: click.Context, home: Path, out: Out, subset: tuple[int, int] | None, max_time: int | None, resume: bool,
        repair: bool, repair_from: Path | None,
    ) -> None:  # fmt: skip
        """Read and check everything: hashes, links, deltas, rows, streams. Exit code 3 when damage is found (and was
        not repaired), else 4 when it stopped at the limit."""
        if repair_from is not None and is_same_place(repair_from, home):
            raise click.UsageError("--repair-from is another home than the one to repair")
        place = Places(home, subset)
        repair = repair or repair_from is not None
        with open_store(home, read_only=not repair) as store:
            with progress("verify") as shown:
                report = store.verify(
                    subset=subset, after=place.read() if resume else None, max_seconds=max_time, progress=shown
                )
            # What cannot be divided belongs to the last part, the journal as well.
            with_journal = report.complete and has_journal(home, store) and (subset is None or subset[0] == subset[1])
            with ExitStack() as stack:
                jrn = None
                if with_journal:
                    jrn = stack.enter_context(open_journal(home, store, read_only=store.read_only))
                fixed = put_right(store, jrn, report.findings, repair_from) if repair else None
                runs = [] if jrn is None else jrn.verify()
        kept = place.keep(report.next)
        findings: list[dict[str, Any]] = [
            {"code": found.code, "id": str(found.id) if found.id else None, "detail": found.detail,
             "repaired": fixed is not None and fixed.is_gone(found)}
            for found in report.findings
        ] + [
            {"code": found.code, "id": None, "run_id": str(found.run_id), "detail": str(found.detail),
             "repaired": False}
            for found in runs
        ]  # fmt: skip
        document: dict[str, Any] = {
            "artifacts": report.artifacts, "raw_bytes": report.raw_bytes, "findings": findings,
            "complete": report.complete, "next": report.next,
        }  # fmt: skip
        fetched = None if fixed is None else fixed.fetched
        if fixed is not None:
            document["mended"] = [
                {"code": done.code, "id": str(done.id) if done.id else None, "detail": done.detail}
                for done in fixed.mended
            ]
            document["rebuilt"] = [
                {"table": item.table, "what": item.what, "run_number": item.run,
                 "run_id": str(item.run_id) if item.run_id else None}
                for item in (fixed.rebuilt.changes if fixed.rebuilt else ())
            ]  # fmt: skip
        if fetched is not None:
            document["repaired"] = [str(name) for name in fetched.repaired]
            document["not_repaired"] = [{"id": str(name), "why": why} for name, why in fetched.failed]

        def text() -> None:
            for found in findings:
                where = found["id"] or found.get("run_id") or "store"
                say(f"{found['code']}: {where}: {found['detail']}{' (repaired)' if found['repaired'] else ''}")
            for name, why in fetched.failed if fetched else ():
                say(f"not repaired: {name}: {why}")
            if fixed:
                rows = len(fixed.mended), len(fixed.rebuilt.changes) if fixed.rebuilt else 0
                say(f"{rows[0]} things put right in the store, {rows[1]} rows in the journal")
            if fetched:
                say(f"{len(fetched.repaired)} artifacts repaired, {len(fetched.failed)} not")
            say(f"{report.artifacts} artifacts, {shown_size(report.raw_bytes)} read; {len(findings)} findings")
            if not report.complete:
                say("stopped at the limit; " + ("--resume goes on" if kept else "the place could not be kept"))

        out.document(document, text)
        if (fetched and fetched.failed) or any(not found["repaired"] for found in findings):
            ctx.exit(EXIT_DAMAGE)
        if not report.complete:
            ctx.exit(EXIT_STOPPED)

    @command(cli, "stats")
    def stats(home: Path, out: Out) -> None:
        """Show sizes and counts: data, how it is kept, what the file takes."""
        if has_journal(home):
            with open_both(home, read_only=True) as (store, jrn):
                found, runs, events = store.stats(), sum(1 for _ in jrn.runs()), len(jrn)
        else:
            with open_store(home, read_only=True) as store:
                found, runs, events = store.stats(), 0, 0
        journal_file = home / "journal" / "data.mdb"
        journal_bytes = journal_file.stat().st_size if journal_file.exists() else 0
        document = {**asdict(found), "runs": runs, "events": events, "journal_file_bytes": journal_bytes}

        def text() -> None:
            say(f"artifacts     {found.artifacts}, {shown_size(found.raw_bytes)} of data")
            say(f"stored        {shown_size(found.stored_bytes)} and {shown_size(found.kept_bytes)} kept for deltas")
            pages = found.pages_free + found.pages_used
            say(f"store file    {shown_size(found.file_bytes)}, {found.pages_free} of {pages} pages free")
            lag = counted(found.reader_lag_commits, "commit")
            say(f"readers       {found.readers}, the oldest snapshot {lag} old")
            say(f"journal file  {shown_size(journal_bytes)}, {counted(runs, 'run')}, {counted(events, 'event')}")
            say(f"collected     {found.gone} artifacts in {found.gcs} gcs")
            for kind, (count, raw) in found.by_kind.items():
                say(f"  kind {kind:18} {count:>9}  {shown_size(raw):>12}")
            for name, (count, raw, stored) in found.by_encoding.items():
                say(f"  as {name:20} {count:>9}  {shown_size(raw):>12}  kept as {shown_size(stored)}")

        out.document(document, text)
