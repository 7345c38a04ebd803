"""Commands that look after a home: init, verify, stats."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.progress import Progress

import casstore
import journal
from casstore.cli.options import (
    EXIT_DAMAGE,
    Out,
    command,
    has_journal,
    open_both,
    open_journal,
    open_store,
    shown_size,
    talk,
)


def register(cli: click.Group) -> None:
    """Add the commands to the group."""

    @command(cli, "init")
    def init(home: Path, out: Out) -> None:
        """Make a store and a journal at HOME; harmless where they are."""
        existed = (home / "FORMAT").exists()
        with casstore.open(home) as store, journal.open(home, store=store):
            document = {"home": str(store.home), "uuid": store.uuid, "created": not existed}
        word = "already there" if existed else "made"
        out.document(document, lambda: click.echo(f"{word}: {document['home']} (uuid {document['uuid']})"))

    @command(cli, "verify")
    @click.pass_context
    def verify(ctx: click.Context, home: Path, out: Out) -> None:
        """Read and check everything: hashes, links, deltas, streams. Exit code 3 when damage is found."""
        findings = []
        with open_store(home, read_only=True) as store:
            with Progress(console=talk, transient=True, disable=not talk.is_terminal) as progress:
                bar = progress.add_task("verify", total=None)
                report = store.verify(
                    progress=lambda done, total: progress.update(bar, completed=done, total=total)
                )  # fmt: skip
            findings += [
                {"code": found.code, "id": str(found.id) if found.id else None, "detail": found.detail}
                for found in report.findings
            ]
            if has_journal(home):
                with open_journal(home, store, read_only=True) as jrn:
                    findings += [
                        {"code": found.code, "id": None, "run_id": str(found.run_id), "detail": str(found.detail)}
                        for found in jrn.verify()
                    ]
        document = {"artifacts": report.artifacts, "raw_bytes": report.raw_bytes, "findings": findings}

        def text() -> None:
            for found in findings:
                where = found["id"] or found.get("run_id") or "store"
                click.echo(f"{found['code']}: {where}: {found['detail']}")
            click.echo(f"{report.artifacts} artifacts, {shown_size(report.raw_bytes)} read; {len(findings)} findings")

        out.document(document, text)
        if findings:
            ctx.exit(EXIT_DAMAGE)

    @command(cli, "stats")
    def stats(home: Path, out: Out) -> None:
        """Show sizes and counts: data, how it is kept, what the file takes."""
        if has_journal(home):
            with open_both(home, read_only=True) as (store, jrn):
                found, runs, events = store.stats(), sum(1 for _ in jrn.runs()), jrn.position()
        else:
            with open_store(home, read_only=True) as store:
                found, runs, events = store.stats(), 0, 0
        journal_file = home / "journal" / "data.mdb"
        journal_bytes = journal_file.stat().st_size if journal_file.exists() else 0
        document = {**asdict(found), "runs": runs, "events": events, "journal_file_bytes": journal_bytes}

        def text() -> None:
            click.echo(f"artifacts     {found.artifacts}, {shown_size(found.raw_bytes)} of data")
            click.echo(f"stored        {shown_size(found.stored_bytes)}"
                       f" and {shown_size(found.kept_bytes)} kept for deltas")  # fmt: skip
            click.echo(f"store file    {shown_size(found.file_bytes)}, {found.pages_free} of"
                       f" {found.pages_free + found.pages_used} pages free")  # fmt: skip
            click.echo(f"journal file  {shown_size(journal_bytes)}, {runs} runs, {events} events")
            click.echo(f"collected     {found.gone} artifacts in {found.gcs} gcs")
            for kind, (count, raw) in found.by_kind.items():
                click.echo(f"  kind {kind:18} {count:>9}  {shown_size(raw):>12}")
            for name, (count, raw, stored) in found.by_encoding.items():
                click.echo(f"  as {name:20} {count:>9}  {shown_size(raw):>12}  kept as {shown_size(stored)}")

        out.document(document, text)
