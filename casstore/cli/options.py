"""What every command shares: --home, --json, durations, ids, and how errors become exit codes."""

from __future__ import annotations

import functools
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, final

import click

import casstore
import journal
from casstore import ArtifactId, Store
from casstore.home import has_journal as is_there
from casstore.policies import parse_duration, parse_size
from journal import Journal

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_DAMAGE: Final = 3
EXIT_STOPPED: Final = 4
EXIT_REFUSED: Final = 5
EXIT_NO_STORE: Final = 10
EXIT_BUSY: Final = 11
EXIT_FULL: Final = 12

DEFAULT_HOME: Final = ".casstore"


@final
class Duration(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """`14d`, `1h`, `90s`, `0s`: whole seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@final
class Size(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """`20GiB`, `500MB`, `1048576`: bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@final
class Out:
    """Results go to stdout, as text for people or as JSON; what is told besides goes to stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def document(self, value: dict[str, Any], text: Callable[[], None]) -> None:
        """One JSON document, or what `text` prints."""
        if self.as_json:
            click.echo(dumped(value))
        else:
            text()

    def line(self, value: dict[str, Any], text: str) -> None:
        """One item of a stream: a JSON line, or a line of text."""
        if self.as_json:
            click.echo(dumped(value))
        else:
            say(text)


def say(text: str) -> None:
    """One line for people on stdout."""
    click.echo(printable(text))


def tell(text: str) -> None:
    """One line for people on stderr, beside the results."""
    click.echo(printable(text), err=True)


@contextmanager
def progress(what: str, *, in_bytes: bool = False) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal, nothing in a pipe: it is told how far one is, and of how much where that is known."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress as bars  # takes longer than most commands do
    from rich.console import Console

    columns = bars.Progress.get_default_columns()
    if in_bytes:
        columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn(),
                   bars.TransferSpeedColumn())  # fmt: skip
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(bar, completed=done, total=total)


def printable(text: str) -> str:
    """The text with what would move a cursor or colour a terminal shown as an escape: names, reasons and messages are
    anybody's."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def dumped(value: Any) -> str:
    """One line of JSON. Text that the output's encoding lacks, such as a file name that is no UTF-8, is escaped: read
    as JSON and given to os.fsencode it is that name again."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


_closed: set[str] = set()  # standard streams that the program was started without


def standard_input() -> BinaryIO:
    """Bytes from outside. Raises: UsageError where there is nothing to read from, which is not the same as no bytes."""
    if "stdin" in _closed:
        raise click.UsageError("standard input is closed")
    return sys.stdin.buffer


def prepare_streams() -> None:
    """Text for people shows what the terminal's encoding lacks as an escape, instead of ending with an error. A closed
    standard stream is opened, so that no data file takes its number; what is written to such an output fails."""
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest number that is free
            _closed.add(name)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def command(group: click.Group, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A command with --home and --json; its function is given `home: Path` and `out: Out` first."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @group.command(name, short_help=(function.__doc__ or "").strip().split("\n")[0].rstrip("."))
        @click.option(
            "--home", "home", type=click.Path(path_type=Path), default=None,
            help="The store's directory (default: $CASSTORE_HOME, or ./.casstore).",
        )  # fmt: skip
        @click.option("--json", "as_json", is_flag=True, help="One JSON document, or one a line for lists.")
        @functools.wraps(function)
        def run(*args: Any, home: Path | None, as_json: bool, **kwargs: Any) -> Any:
            before = click.get_current_context().find_root().params  # they may also stand before the command
            place = home or before.get("home") or Path(os.environ.get("CASSTORE_HOME") or DEFAULT_HOME)
            return function(place, Out(as_json=as_json or before.get("as_json", False)), *args, **kwargs)

        return run

    return decorate


def open_store(home: Path, *, read_only: bool) -> Store:
    """A store that exists already."""
    return casstore.open(home, create=False, read_only=read_only)


@contextmanager
def open_both(home: Path, *, read_only: bool) -> Iterator[tuple[Store, Journal]]:
    """The store and the journal of one home, both existing already."""
    with open_store(home, read_only=read_only) as store, open_journal(home, store, read_only=read_only) as jrn:
        yield store, jrn


def open_journal(home: Path, store: Store, *, read_only: bool) -> Journal:
    return journal.open(home, store=store, create=False, read_only=read_only)


def has_journal(home: Path, store: Store | None = None) -> bool:
    """Whether there is one; by what `store` knows also whether there was: to open it says what is wrong then."""
    return is_there(home) or (store is not None and store._backend.has_journal())


def artifact(store: Store, text: str) -> ArtifactId:
    """An id, or the only one that begins like that."""
    return ArtifactId.parse(text) if len(text) == 64 else store.resolve(text)


def exit_code(error: Exception) -> int:
    """What the command line ends with for an error."""
    if isinstance(error, casstore.NotAStore):
        return EXIT_NO_STORE
    if isinstance(error, (casstore.Busy, journal.Claimed)):
        return EXIT_BUSY
    if isinstance(error, casstore.StoreFull):
        return EXIT_FULL
    if isinstance(error, (casstore.GcRefused, journal.RunLive)):
        return EXIT_REFUSED
    if isinstance(error, (casstore.Corrupt, casstore.DamagedStore, casstore.InvalidCar, journal.InvalidStream)):
        return EXIT_DAMAGE
    if isinstance(error, (casstore.InvalidArgument, casstore.InvalidId)):
        return EXIT_USAGE
    if isinstance(error, (casstore.AmbiguousPrefix, journal.AmbiguousRun)):
        return EXIT_USAGE
    if getattr(error, "code", "") == "after_run_completed":
        return EXIT_FAILURE  # what was asked for is right, and too late
    if isinstance(error, (casstore.InvalidPolicy, journal.InvalidEvent, journal.InvalidPlan, journal.InvalidRunFile)):
        return EXIT_USAGE
    return EXIT_FAILURE


def report_error(error: Exception) -> int:
    """One clear line on stderr; with --json also a document on stdout. Returns the exit code."""
    code = exit_code(error)
    name = getattr(error, "code", "usage" if isinstance(error, click.UsageError) else "failure")
    if isinstance(error, click.ClickException):
        code, text = EXIT_USAGE if isinstance(error, click.UsageError) else EXIT_FAILURE, error.format_message()
    elif isinstance(error, OSError) and error.strerror and not isinstance(error, casstore.CodedError):
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    text = " ".join(text.split())
    with suppress(OSError):  # the output may be what fails
        if "--json" in sys.argv:
            click.echo(dumped({"error": {"code": name, "message": text}}))
    with suppress(OSError):
        click.echo(f"casstore: {printable(text)}", err=True)
    return code


def shown_size(size: int) -> str:
    """Bytes for people."""
    amount, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{int(amount)} B" if unit == "B" else f"{amount:.1f} {unit}"


def counted(number: int, noun: str) -> str:
    """`1 artifact`, `2 artifacts`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
