"""`casstore`: the command line of both packages."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, final

import click

import casstore
import journal
from casstore.cli.options import prepare_streams, report_error


@final
class _Commands(click.Group):
    """A reader such as `head` that goes away is no failure; click would end with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_rest()
            return 0
        return result


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="casstore")
@click.option("--home", type=click.Path(path_type=Path), default=None, help="The store's directory.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cli(home: Path | None, as_json: bool) -> None:
    """Artifacts and the journal of runs that name them, in one directory.

    Results go to stdout and all else to stderr. Exit codes: 0 done, 1 failure, 2 usage, 3 damage found, 4 stopped
    at a limit, 5 refused by a safety rule, 10 no store there, 11 busy, 12 full.
    """


from casstore.cli import artifacts, care, collect, runs, space, tools, transfer  # noqa: E402 - they add their commands

artifacts.register(cli)
runs.register(cli)
care.register(cli)
collect.register(cli)
space.register(cli)
tools.register(cli)
transfer.register(cli)


def main() -> None:
    """Run, and end with the exit code. No traceback for what a user can cause."""
    prepare_streams()
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.Abort:
        code = 130
    except (click.ClickException, casstore.StoreError, journal.JournalError, OSError) as error:
        code = report_error(error)
    _drop_rest()
    sys.exit(code if isinstance(code, int) else 0)


def _drop_rest() -> None:
    """Python would complain at exit about what an output did not take."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
