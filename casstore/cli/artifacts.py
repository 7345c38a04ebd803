"""Commands on artifacts: put, cat, info, ls, pin, unpin, why."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any, BinaryIO

import click
from blake3 import blake3

from casstore import ArtifactId, Corrupt
from casstore.cli.collect import buried_id, policy_options
from casstore.cli.options import (
    Out,
    artifact,
    command,
    dumped,
    has_journal,
    open_journal,
    open_store,
    say,
    standard_input,
    tell,
)
from casstore.items import check_kind
from journal.event_json import value_to_json


def _copy(reader: io.BufferedIOBase, name: ArtifactId) -> None:
    """To standard output; the whole proves the id. Raises: Corrupt, after the bytes."""
    hasher = blake3()
    while part := reader.read(1 << 20):
        hasher.update(part)
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()
    if hasher.digest() != name.digest:
        raise Corrupt(name, "what was written has another hash")


def register(cli: click.Group) -> None:
    """Add the commands to the group."""

    @command(cli, "put")
    @click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
    @click.option("--kind", default="other", show_default=True, help="What it is, for people.")
    def put(home: Path, out: Out, files: tuple[Path, ...], kind: str) -> None:
        """Store files (`-` for standard input) and print their ids.

        Prints one id for each file, in order. Bytes that are there already cost no second copy.
        """
        with open_store(home, read_only=False) as store:
            for path in files:
                source: BinaryIO | Path = standard_input() if str(path) == "-" else path
                name = store.put_file(source, kind=kind)
                size, healed = store.info(name).size_bytes, name in store.healed
                out.line({"id": str(name), "file": str(path), "size_bytes": size, "healed": healed}, str(name))
                if healed:
                    tell(f"{name}: the copy that was there was damaged, and is replaced")

    @command(cli, "cat")
    @click.argument("id")
    @click.option("--value", is_flag=True, help="Decode a stored value and print it as JSON.")
    def cat(home: Path, out: Out, id: str, value: bool) -> None:
        """Write an artifact to standard output."""
        with open_store(home, read_only=True) as store:
            name = artifact(store, id)
            if value or out.as_json:
                click.echo(dumped(value_to_json(store.get_value(name))))
                return
            with store.open_reader(name) as reader:
                _copy(reader, name)

    @command(cli, "info")
    @click.argument("id")
    def info(home: Path, out: Out, id: str) -> None:
        """Show facts about an artifact."""
        with open_store(home, read_only=True) as store:
            found = store.info(artifact(store, id))
        document = {
            "id": str(found.id), "kinds": list(found.kinds), "size_bytes": found.size_bytes,
            "stored_bytes": found.stored_bytes, "encoding": found.encoding, "chain": found.chain,
            "base": str(found.base) if found.base else None, "links": [str(link) for link in found.links],
            "touched_s": found.touched_s,
        }  # fmt: skip

        def text() -> None:
            for key, value in document.items():
                say(f"{key:13} {', '.join(value) if isinstance(value, list) else value}")

        out.document(document, text)

    @command(cli, "ls")
    @click.option("--kind", default=None, help="Only artifacts of this kind.")
    @click.option("--limit", type=click.IntRange(min=1), default=None, help="At most so many.")
    def ls(home: Path, out: Out, kind: str | None, limit: int | None) -> None:
        """List artifacts, by id."""
        shown = 0
        if kind is not None:
            check_kind(kind)
        with open_store(home, read_only=True) as store:
            for name in store:
                found = store.info(name)
                if kind is not None and kind not in found.kinds:
                    continue
                line = f"{name}  {found.size_bytes:>12}  {','.join(found.kinds)}"
                out.line({"id": str(name), "size_bytes": found.size_bytes, "kinds": list(found.kinds)}, line)
                shown += 1
                if limit is not None and shown >= limit:
                    break

    @command(cli, "pin")
    @click.argument("name", required=False)
    @click.argument("id", required=False)
    @click.option("--delete", "delete", is_flag=True, help="Remove the pin NAME.")
    def pin(home: Path, out: Out, name: str | None, id: str | None, delete: bool) -> None:
        """Keep an artifact under a name; without arguments, list pins.

        A pinned artifact stays with all it links to until `casstore pin --delete NAME`.
        """
        if delete and (name is None or id is not None):
            raise click.UsageError("give the NAME of the pin to remove, and nothing else")
        with open_store(home, read_only=name is None) as store:
            if name is None:
                for found, held in sorted(store.pins().items()):
                    out.line({"name": found, "id": str(held)}, f"{held}  {found}")
            elif delete:
                store.unpin(name)
                out.line({"name": name, "id": None}, f"unpinned {name}")
            elif id is None:
                raise click.UsageError("give NAME and ID to pin, NAME and --delete to unpin, or nothing to list")
            else:
                held = artifact(store, id)
                store.pin(name, held)
                out.line({"name": name, "id": str(held)}, f"{held}  {name}")

    @command(cli, "why")
    @click.argument("id")
    @policy_options
    def why(home: Path, out: Out, id: str, **given: Any) -> None:
        """Say why an artifact is there, or gone: the shortest path from a root that holds it.

        Where no live run, pin or lease needs it: since when, and when a gc takes it, by the policy of gc.toml and of
        the options, which are those of `casstore gc`.
        """
        with open_store(home, read_only=True) as store:
            name = buried_id(store, id)
            policy = store.policy().changed(**given)
            if has_journal(home, store):
                with open_journal(home, store, read_only=True) as jrn:
                    found = store.why(name, jrn, policy=policy)
            else:
                found = store.why(name, None, policy=policy)

        def text() -> None:
            say(f"{found.state}: {found.detail}")
            for step in found.path:
                say(f"  {step}")

        document = {
            "id": str(name), "state": found.state, "path": list(found.path), "detail": found.detail,
            "since_s": found.since_s, "until_s": found.until_s,
        }  # fmt: skip
        out.document(document, text)


