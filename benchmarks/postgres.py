"""A PostgreSQL server of our own for the peers that need one, started when the first of them is, stopped at exit.

It has PostgreSQL's own settings (fsync and synchronous_commit are on), a cluster in a directory of its own, and a
database for each home. What the cluster and the recycled write-ahead log take on disk is not counted to anybody: of a
peer only its relations are.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import psutil

USER: Final = "postgres"  # whose the server is where we are root: it refuses to run as root
CONNECTIONS: Final = 200
SERVER: Final = "the server of PostgreSQL"  # among what a peer requires


def binaries() -> Path | None:
    """Where initdb and pg_ctl are, None where the server is not installed."""
    found = [Path(directory) for directory in os.environ.get("PATH", "").split(os.pathsep)]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for directory in found:
        if (directory / "initdb").exists() and (directory / "pg_ctl").exists():
            return (directory / "initdb").resolve().parent
    return None


class Server:
    """A running server. It listens on a socket in its directory only."""

    def __init__(self, where: Path) -> None:
        found = binaries()
        if found is None:
            raise FileNotFoundError("PostgreSQL's initdb and pg_ctl are not here")
        self._bin = found
        self._home = Path(tempfile.mkdtemp(prefix="bench-pg-", dir=where))
        self._user = USER if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self._home, self._user)
        self._run("initdb", "-D", "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--locale", "C")
        options = f"-c listen_addresses= -c unix_socket_directories={self._home} -c max_connections={CONNECTIONS}"
        self._run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")
        atexit.register(self.stop)
        self._databases: dict[Path, str] = {}

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments], cwd=self._home, user=self._user, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise OSError(f"{program} ended with {done.returncode}: {done.stderr.strip()[-500:]}")

    def database(self, home: Path) -> str:
        """The database of a home, as libpq's connection string; made when it is first asked for, and then that of
        another home is dropped."""
        if home not in self._databases:
            name = "b" + hashlib.sha256(str(home).encode()).hexdigest()[:16]
            with self._connect("postgres") as admin:
                for old in self._databases.values():
                    admin.execute(f"drop database {old} with (force)")
                self._databases.clear()
                admin.execute(f"create database {name}")
            self._databases[home] = name
        return self._address(self._databases[home])

    def url(self, home: Path) -> str:
        """The same as a URL."""
        self.database(home)
        return f"postgresql://{USER}@/{self._databases[home]}?host={self._home}"

    def bytes_of(self, home: Path) -> int:
        """What the relations of a home take on disk: tables, indexes and what is stored beside them."""
        asked = "select coalesce(sum(pg_total_relation_size(relid)), 0) from pg_stat_user_tables"
        with self._connect(self._databases[home]) as db:
            return int(db.execute(asked).fetchone()[0])

    def cpu_s(self) -> float:
        """Seconds of the processor of its processes so far; a connection that was closed took its own along."""
        first = psutil.Process(int((self._home / "data" / "postmaster.pid").read_text().split()[0]))
        found = 0.0
        for process in (first, *first.children()):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                found += times.user + times.system
        return found

    def stop(self) -> None:
        """Stop it and remove everything."""
        try:
            self._run("pg_ctl", "-D", "data", "-m", "fast", "-w", "stop")
        except OSError as error:
            print(error, file=sys.stderr)
        shutil.rmtree(self._home, ignore_errors=True)

    def _address(self, name: str) -> str:
        return f"host={self._home} user={USER} dbname={name}"

    def _connect(self, name: str) -> Any:
        import psycopg

        return psycopg.connect(self._address(name), autocommit=True)


def server(home: Path) -> Server:
    """The server of this process for homes in that directory, which is also where it has its own."""
    return _server(_open_to_all(home.parent))


@cache
def _server(where: Path) -> Server:
    return Server(where)


def _open_to_all(where: Path) -> Path:
    """The nearest directory above that another user may enter."""
    chain = [where, *where.parents]
    closed = [place for place, directory in enumerate(chain) if not directory.stat().st_mode & 1]
    return chain[closed[-1] + 1] if closed else where
