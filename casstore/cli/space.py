"""Commands that move whole homes and give space back: compact, backup."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from casstore.cli.options import (
    EXIT_STOPPED,
    Duration,
    Out,
    command,
    counted,
    has_journal,
    open_journal,
    open_store,
    say,
    shown_size,
)
from casstore.reports import CompactReport


def register(cli: click.Group) -> None:
    """Add the commands to the group."""

    @command(cli, "compact")
    @click.option(
        "--reencode/--no-reencode", default=True, show_default=True,
        help="Before that, find smaller encodings: away from collected bases, with dictionaries.",
    )  # fmt: skip
    @click.option("--max-time", type=Duration(), help="Stop the re-encoding after so long, as 30s; the copy follows.")
    @click.option("--max-bytes", type=click.IntRange(min=0), help="Stop it once so many raw bytes were encoded.")
    @click.pass_context
    def compact(
        ctx: click.Context, home: Path, out: Out, reencode: bool, max_time: int | None, max_bytes: int | None
    ) -> None:
        """Give the space that gc freed back to the file system. Others may go on reading and writing.

        It needs room for a second copy of what is used, and the old file goes once nobody reads from it any more.
        Where a limit stopped the re-encoding (exit code 4), the next compact goes on with it.
        """
        with open_store(home, read_only=False) as store:
            report = store.compact(reencode=reencode, max_time=max_time, max_bytes=max_bytes)
        document = {**asdict(report), "trained": list(report.trained), "returned_bytes": report.returned_bytes}

        def show() -> None:
            for line in _lines(report):
                say(line)

        out.document(document, show)
        if report.stopped:
            ctx.exit(EXIT_STOPPED)

    @command(cli, "backup")
    @click.argument("dest", type=click.Path(path_type=Path))
    def backup(home: Path, out: Out, dest: Path) -> None:
        """Copy the whole home to DEST, where nothing is yet. Others may go on reading and writing."""
        with open_store(home, read_only=False) as store:
            if has_journal(home, store):
                with open_journal(home, store, read_only=False) as jrn:
                    report = jrn.backup(dest)
            else:
                report = store.backup(dest)
        document = {
            "path": str(report.path), "instance": report.instance, "artifacts": report.artifacts,
            "raw_bytes": report.raw_bytes, "position": report.position, "file_bytes": report.file_bytes,
        }  # fmt: skip
        out.document(
            document,
            lambda: say(
                f"{report.path}: {report.artifacts} artifacts, {report.position} events,"
                f" {shown_size(report.file_bytes)} on disk"
            ),
        )

    @command(cli, "train")
    @click.argument("kind")
    def train(home: Path, out: Out, kind: str) -> None:
        """Train a dictionary on the small artifacts of a kind; later puts of that kind use it."""
        with open_store(home, read_only=False) as store:
            name = store.train(kind)
        text = f"{name}  dictionary/{kind}" if name else f"too few small artifacts of kind {kind}, or it would not help"
        out.document({"kind": kind, "dictionary": str(name) if name else None}, lambda: say(text))


def _lines(report: CompactReport) -> list[str]:
    """One line for the file, and one for each thing that the re-encoding did."""
    back = f"the file system has {shown_size(report.returned_bytes)} back"
    if not report.returned_bytes:
        back = "there was nothing to give back"
    lines = [f"{shown_size(report.before_bytes)} before, {shown_size(report.after_bytes)} now: {back}"]
    if report.freed_bytes:
        lines.append(
            f"{counted(report.rebased, 'delta')} moved, {shown_size(report.freed_bytes)} of collected bases freed"
        )
    lines += (f"dictionary trained for {kind}" for kind in report.trained)
    if report.condensed:
        saved = shown_size(report.condensed_bytes)
        lines.append(f"{counted(report.condensed, 'small artifact')} with a dictionary, {saved} saved")
    if report.skipped:
        lines.append(f"{counted(report.skipped, 'artifact')} damaged and left alone: casstore verify")
    if report.stopped:
        lines.append(f"re-encoding stopped ({report.stopped}): the next compact goes on")
    return lines
