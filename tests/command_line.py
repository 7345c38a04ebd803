"""`casstore` as a user runs it, a process for each command: forked from one that has imported everything already, since
that takes ten times as long as most commands do. What Python itself does at start, such as with a closed stream, is
not seen here."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

_server: Final = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["casstore.cli.main"])


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What `--json` printed."""
        return json.loads(self.out)

    @property
    def coded(self) -> tuple[int, Any]:
        return self.code, self.document


def casstore(*arguments: object, stdin: bytes = b"", home: Path | None = None) -> Ended:
    """Run it to its end; never a traceback. `home`: as if set in the environment."""
    environment = {**os.environ, **({"CASSTORE_HOME": str(home)} if home else {})}
    with tempfile.TemporaryDirectory() as place:
        streams = [Path(place, name) for name in ("in", "out", "err")]
        streams[0].write_bytes(stdin)
        child = _server.Process(target=_run, args=([*map(str, arguments)], environment, os.getcwd(), streams))
        child.start()
        child.join()
        out, err = (path.read_bytes().decode(errors="surrogateescape") for path in streams[1:])
    assert "Traceback" not in err, err
    assert child.exitcode is not None
    return Ended(child.exitcode, out, err)


def _run(arguments: Sequence[str], environment: Mapping[str, str], directory: str, streams: Sequence[Path]) -> None:
    from casstore.cli.main import main

    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 - as Python itself does
    sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = ["casstore", *arguments]
    main()
