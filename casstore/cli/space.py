"""Commands that move whole homes and give space back: compact."""

from __future__ import annotations

from pathlib import Path

import click

from casstore.cli.options import Out, command, open_store, shown_size


def register(cli: click.Group) -> None:
    """Add the commands to the group."""

    @command(cli, "compact")
    def compact(home: Path, out: Out) -> None:
        """Give the space that gc freed back to the file system. Others may go on reading and writing."""
        with open_store(home, read_only=False) as store:
            report = store.compact()
        document = {"before_bytes": report.before_bytes, "after_bytes": report.after_bytes}
        out.document(
            document,
            lambda: click.echo(f"{shown_size(report.before_bytes)} before, {shown_size(report.after_bytes)} now"),
        )
