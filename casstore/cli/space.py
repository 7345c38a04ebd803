"""Commands that move whole homes and give space back: compact, backup."""

from __future__ import annotations

from pathlib import Path

import click

from casstore.cli.options import Out, command, has_journal, open_both, open_store, shown_size


def register(cli: click.Group) -> None:
    """Add the commands to the group."""

    @command(cli, "compact")
    def compact(home: Path, out: Out) -> None:
        """Give the space that gc freed back to the file system. Others may go on reading and writing.

        It needs room for a second copy of what is used, and the old file goes once nobody reads from it any more.
        """
        with open_store(home, read_only=False) as store:
            report = store.compact()
        document = {
            "before_bytes": report.before_bytes, "after_bytes": report.after_bytes,
            "returned_bytes": report.returned_bytes,
        }  # fmt: skip
        back = (
            f"the file system has {shown_size(report.returned_bytes)} back" if report.returned_bytes
            else "there was nothing to give back"
        )  # fmt: skip
        line = f"{shown_size(report.before_bytes)} before, {shown_size(report.after_bytes)} now: {back}"
        out.document(document, lambda: click.echo(line))

    @command(cli, "backup")
    @click.argument("dest", type=click.Path(path_type=Path))
    def backup(home: Path, out: Out, dest: Path) -> None:
        """Copy the whole home to DEST, where nothing is yet. Others may go on reading and writing."""
        if has_journal(home):
            with open_both(home, read_only=False) as (_, jrn):
                report = jrn.backup(dest)
        else:
            with open_store(home, read_only=False) as store:
                report = store.backup(dest)
        document = {
            "path": str(report.path), "instance": report.instance, "artifacts": report.artifacts,
            "raw_bytes": report.raw_bytes, "position": report.position, "file_bytes": report.file_bytes,
        }  # fmt: skip
        out.document(
            document,
            lambda: click.echo(
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
        out.document({"kind": kind, "dictionary": str(name) if name else None}, lambda: click.echo(text))
