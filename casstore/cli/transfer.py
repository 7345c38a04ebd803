"""Commands that take artifacts elsewhere: export, import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import click

import journal
from casstore.cli.options import (
    Out,
    artifact,
    command,
    open_journal,
    open_store,
    progress,
    say,
    shown_size,
    standard_input,
    tell,
)
from journal import RunImport, run_files

_LEASE_S: Final = 3600  # renewed while there is progress


def register(cli: click.Group) -> None:
    """Add the commands to the group."""

    @command(cli, "export")
    @click.argument("ids", metavar="[ID]...", nargs=-1)
    @click.option("--run", metavar="RUN", default=None, help="A run: its events, and all artifacts that they name.")
    @click.option(
        "-o", "--output", "file", required=True, type=click.Path(path_type=Path, allow_dash=True),
        help="The CAR file to write; `-` for standard output.",
    )  # fmt: skip
    @click.option("--shallow", is_flag=True, help="Only these artifacts, not what they link to.")
    def export(home: Path, out: Out, ids: tuple[str, ...], run: str | None, file: Path, shallow: bool) -> None:
        """Write artifacts and all that they link to, or a run, into a CAR v1 file."""
        if bool(ids) == (run is not None) or (shallow and run is not None):
            raise click.UsageError("give ids, or --run RUN, which is written whole")
        piped = str(file) == "-"
        if piped and out.as_json:
            raise click.UsageError("--json needs a file: with -o - the artifacts go to standard output")
        target: BinaryIO | Path = sys.stdout.buffer if piped else file
        with open_store(home, read_only=run is None) as store, _progress("export", None) as advance:
            if run is None:
                found = store.export([artifact(store, id) for id in ids], target, shallow=shallow, progress=advance)
            else:
                with open_journal(home, store, read_only=False) as jrn:
                    exported = jrn.export(jrn.resolve(run), target, progress=advance)
                found = exported.file
        text = f"{found.artifacts} artifacts, {shown_size(found.raw_bytes)} of data, {shown_size(found.file_bytes)}"
        if piped:
            sys.stdout.buffer.flush()
            tell(text)
            return
        document = {
            "file": str(file), "roots": [str(root) for root in found.roots], "shallow": shallow,
            "artifacts": found.artifacts, "raw_bytes": found.raw_bytes, "file_bytes": found.file_bytes,
        }  # fmt: skip
        if run is not None:
            document |= {"run_id": str(exported.run_id), "events": exported.events}
            text = f"run {exported.run_id}, {exported.events} events, {text}"
        out.document(document, lambda: say(f"{file}: {text}"))

    @command(cli, "import")
    @click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
    @click.option("--pin", metavar="NAME", default=None, help="Pin the root as NAME; several as NAME/0, NAME/1 …")
    @click.option("--kind", default="other", show_default=True, help="What the artifacts are, for people.")
    def import_(home: Path, out: Out, file: Path, pin: str | None, kind: str) -> None:
        """Store the blocks of a CAR v1 file (`-` for standard input) and print its roots.

        Each block is checked against its id. Run it again after it was interrupted: what is there is not repeated.
        Without --pin, gc takes what nothing names once the grace is over. The events of a run go into the journal.
        """
        piped = str(file) == "-"
        source: BinaryIO | Path = standard_input() if piped else file
        size = file.stat().st_size if not piped and file.is_file() else None
        run: RunImport | None = None
        with open_store(home, read_only=False) as store, store.lease(_LEASE_S) as lease:
            with _progress("import", size) as advance:
                found = store.import_(
                    source, pin=pin, kind=kind, lease=lease, progress=run_files.renewing(lease, advance)
                )
            if run_files.holds_run(store, found):
                with journal.open(home, store=store) as jrn:
                    run = run_files.record(jrn, found)
        document = {
            "file": str(file), "roots": [str(root) for root in found.roots], "blocks": found.blocks,
            "raw_bytes": found.raw_bytes, "known": found.known, "late": found.late,
            "unlinked": [str(name) for name in found.unlinked],
            "pins": {name: str(root) for name, root in found.pins.items()},
        }  # fmt: skip
        if run is not None:
            document |= {"run_id": str(run.run_id), "events": run.events, "added": run.added}

        def text() -> None:
            if run is not None:
                say(f"run {run.run_id}: {run.events} events, {run.added} of them new here")
            for root in found.roots:
                say(str(root))

        out.document(document, text)
        if not out.as_json:
            size_text = shown_size(found.raw_bytes)
            tell(f"{found.blocks} blocks, {size_text} of data; {found.known} were there already")
            if found.unlinked:
                tell(f"{len(found.unlinked)} large ones hold links that gc does not follow")


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    done = 0
    with progress(what, in_bytes=True) as shown:

        def advance(size: int) -> None:
            nonlocal done
            done += size
            shown(done, total)

        yield advance
