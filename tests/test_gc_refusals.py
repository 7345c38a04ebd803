"""Where gc says no: one table of what is wrong, for the API and the command line. Nothing is removed by any of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import small_disk

import casstore
import journal
from casstore import Busy, GcRefused, InvalidArgument, InvalidPolicy, ReadOnly
from casstore.locks import collector_lock
from casstore.testing import FakeClock, FakeRoots, memory_store
from journal import Journal, records
from journal.rows import DONE, EV, ID, LIVE, RUN, number
from journal.seals import SEAL_BYTES, seal
from tests.command_line import casstore as command_line

REFUSED, USAGE, BUSY = 5, 2, 11


def filled(home: Path) -> None:
    """A live run, one that ended, something loose, and enough of it that a share of it means something."""
    with journal.open(home) as jrn:
        jrn.start_run("live", manifest={"live": 1}, context={"n": 1})
        done = jrn.start_run("done", manifest={"done": 1}, context={"n": 2})
        done.complete()
        jrn.store.put(b"loose")


def change_event(home: Path, change: Callable[[bytes], bytes]) -> None:
    """The newest record, behind the journal's back."""
    with journal.open(home) as jrn, jrn._backend._tables.write() as t:  # type: ignore[attr-defined]
        ((key, value),) = list(t.scan(EV, reverse=True))[:1]
        t.put(EV, key, change(value))


def in_journal(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Rows changed behind the journal's back. The live run has the number 1, the other one 2."""

    def edit(home: Path) -> None:
        with journal.open(home) as jrn, jrn._backend._tables.write() as t:  # type: ignore[attr-defined]
            change(t)

    return edit


def drop_row(table: bytes, place: int) -> Callable[[Path], None]:
    return in_journal(lambda t: t.delete(table, list(t.scan(table))[place][0]))


def id_of(t: Any, run: int) -> bytes:
    return next(key for key, value in t.scan(ID) if value == number(run))


def end_listed(t: Any) -> None:
    """The live run is in the list of those that ended instead: the counts are as they should be."""
    t.delete(LIVE, number(1))
    ((key, value),) = list(t.scan(DONE))
    t.put(DONE, key.removesuffix(number(2)) + number(1), value)


def foreign(home: Path) -> None:
    """The journal of another home lies where this one's should."""
    filled(home.with_name("other"))
    shutil.rmtree(home / "journal")
    shutil.copytree(home.with_name("other") / "journal", home / "journal")


def no_journal(home: Path) -> None:
    shutil.rmtree(home / "journal")


def missing_artifact(home: Path) -> None:
    """An event of a live run names what is not there: damage."""
    with journal.open(home) as jrn:
        row = next(iter(jrn.runs(status="live")))
        with jrn.store._backend._tables.write() as t:  # type: ignore[attr-defined]
            t.delete(b"ix1", row.manifest_id.digest)


def many_loose(home: Path) -> None:
    with casstore.open(home) as store:
        store.put_many([b"loose %d" % n for n in range(1200)])


def bad_policy(home: Path) -> None:
    (home / "gc.toml").write_text('keep_completed = "soon"\n')


@contextlib.contextmanager
def nothing(home: Path) -> Iterator[None]:
    yield


@contextlib.contextmanager
def another_collector(home: Path) -> Iterator[None]:
    """In a process of its own, as the lock is one of files."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom casstore.locks import collector_lock\n"
        "with collector_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    line = [sys.executable, "-c", code, str(home)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield
        process.communicate()


@dataclass(frozen=True)
class Case:
    """`error` of the API with `reason` (of GcRefused) and words of the message; `forced`: whether --force goes on."""

    name: str
    break_it: Callable[[Path], None]
    error: type[Exception]
    reason: str
    words: str
    code: int
    forced: bool = False
    meanwhile: Callable[[Path], contextlib.AbstractContextManager[None]] = nothing
    flags: tuple[str, ...] = ()
    opens: bool = True  # the API can open a journal there


CASES = [
    Case("unreadable stream", lambda home: change_event(home, lambda data: data[:-1]), GcRefused, "unreadable_roots",
         "InvalidStream", REFUSED),
    Case("unknown event version",
         lambda home: change_event(home, lambda data: seal(data[:1] + b"\x07" + data[2:-SEAL_BYTES])), GcRefused,
         "unreadable_roots", "version 7", REFUSED),
    Case("lost row of a live run", drop_row(RUN, 0), GcRefused, "unreadable_roots", "1 runs have rows", REFUSED),
    Case("lost row of a run that ended", drop_row(RUN, 1), GcRefused, "unreadable_roots", "1 runs have rows", REFUSED),
    Case("live run that is not listed", drop_row(LIVE, 0), GcRefused, "unreadable_roots", "0 are listed as live",
         REFUSED),
    Case("ended run that is not listed", drop_row(DONE, 0), GcRefused, "unreadable_roots", "0 as ended", REFUSED),
    Case("live run that no id leads to", in_journal(lambda t: t.delete(ID, id_of(t, 1))), GcRefused,
         "unreadable_roots", "1 have ids", REFUSED),
    Case("live run whose id leads elsewhere", in_journal(lambda t: t.put(ID, id_of(t, 1), number(2))), GcRefused,
         "unreadable_roots", "its id leads to the events of", REFUSED),
    Case("live run whose id leads nowhere", in_journal(lambda t: t.put(ID, id_of(t, 1), number(9))), GcRefused,
         "unreadable_roots", "leads nowhere", REFUSED),
    Case("ended run that is listed as live", in_journal(lambda t: (t.put(LIVE, number(2), b""),
         t.delete(DONE, next(t.scan(DONE))[0]))), GcRefused, "unreadable_roots", "listed as live, and is completed",
         REFUSED),
    Case("live run that is listed as ended", in_journal(end_listed), GcRefused, "unreadable_roots",
         "listed as completed, and is live", REFUSED),
    Case("foreign journal", foreign, GcRefused, "unusable_journal", "different homes", REFUSED, opens=False),
    Case("missing journal", no_journal, GcRefused, "missing_journal", "no journal", REFUSED, opens=False),
    Case("missing artifact of a live run", missing_artifact, GcRefused, "missing_root", "not in the store", REFUSED),
    Case("implausible share", many_loose, GcRefused, "implausible_share", "--force", REFUSED, forced=True),
    Case("collector already running", lambda home: None, Busy, "", "another gc", BUSY, meanwhile=another_collector),
    Case("policy file", bad_policy, InvalidPolicy, "", "keep_completed 'soon'", USAGE),
    Case("policy that keeps nothing", lambda home: None, InvalidArgument, "", "final_only", USAGE,
         flags=("--final-only", "--keep-completed", "0s")),
]  # fmt: skip
IDS = [case.name for case in CASES]


def command(home: Path, *flags: str) -> tuple[int, str, str]:
    return command_line("gc", "--grace", "0s", "--json", *flags, home=home)


def names(home: Path) -> set[casstore.ArtifactId]:
    with casstore.open(home) as store:
        return set(store)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_command_refuses(tmp_path: Path, case: Case) -> None:
    """Exit code, one line that says what is wrong, a document for programs; a dry run too, but for the lock."""
    home = tmp_path / "home"
    filled(home)
    case.break_it(home)
    before = names(home)
    with case.meanwhile(home):
        code, out, error = command(home, *case.flags)
        assert code == case.code, error
        assert case.words in error and error.count("\n") == 1
        assert json.loads(out)["error"]["code"] == case.error.code  # type: ignore[attr-defined]
        forced, _, _ = command(home, "--force", *case.flags) if not case.forced else (code, "", "")
        assert forced == code  # nothing that --force could be meant for
    assert names(home) == before
    if case.forced:
        assert command(home, "--force", *case.flags)[0] == 0
        assert names(home) < before
    elif case.error is not Busy:
        assert command(home, "--dry-run", *case.flags)[0] == code


@pytest.mark.parametrize("case", [case for case in CASES if case.opens], ids=[c.name for c in CASES if c.opens])
def test_the_api_refuses(tmp_path: Path, case: Case) -> None:
    """The error and its reason; the gc that was opened is closed again, and the next one goes where all is well."""
    home = tmp_path / "home"
    filled(home)
    case.break_it(home)
    options: dict[str, Any] = {"grace": 0}
    if case.flags:
        options |= {"final_only": True, "keep_completed": 0}
    with journal.open(home) as jrn:
        before = set(jrn.store)
        with case.meanwhile(home), pytest.raises(case.error) as caught:
            jrn.store.gc(jrn, policy=jrn.store.policy(), **options)
        assert case.words in str(caught.value)
        if isinstance(caught.value, GcRefused):
            assert caught.value.fields["reason"] == case.reason
        assert set(jrn.store) == before and not jrn.store._backend.counters().gc_open


def live_of(jrn: Journal) -> set[casstore.ArtifactId]:
    return {root.id for root in jrn.live_roots(completed_after_ms=None)}


def test_force_loses_nothing_that_is_live(tmp_path: Path) -> None:
    """What it goes on with is what nothing needs, however much that is."""
    home = tmp_path / "home"
    filled(home)
    many_loose(home)
    with journal.open(home) as jrn:
        needed = live_of(jrn)
        jrn.store.gc(jrn, grace=0, keep_completed=0, force=True)
        assert set(jrn.store) == needed and jrn.verify() == []


def test_sources_that_are_not_this_homes(tmp_path: Path) -> None:
    """None at all, the wrong type, another store's journal: by the API alone."""
    clock = FakeClock()
    with memory_store(clock=clock) as store, memory_store(clock=clock) as other:
        store.put(b"x")
        for source, reason in (
            (None, "no_root_source"), ([store.put(b"y")], "no_root_source"), (FakeRoots(other), "foreign_journal"),
        ):  # fmt: skip
            for call in (
                lambda s, source=source: s.gc(source, grace=0),
                lambda s, source=source: s.gc(source, grace=0, force=True),
                lambda s, source=source: s.gc(source, grace=0, dry_run=True),
                lambda s, source=source: s.gc_due(source),
            ):
                with pytest.raises(GcRefused) as caught:
                    call(store)
                assert caught.value.fields["reason"] == reason
        assert len(store) == 2


@pytest.mark.parametrize("how", ["a backup", "a copy"])
def test_the_journal_of_a_copy(tmp_path: Path, how: str) -> None:
    """It has the home's uuid, and knows nothing of what came since: neither is the other's source, nor its store."""
    home, other = tmp_path / "home", tmp_path / "other"
    filled(home)
    with journal.open(home) as jrn:
        jrn.backup(other)
    if how == "a copy":
        shutil.rmtree(other)
        shutil.copytree(home, other)
    (tmp_path / "link").symlink_to(home)
    with journal.open(home) as jrn, journal.open(other) as copied:
        live = jrn.start_run("later", manifest={"later": 1}, context={"n": 3})
        assert jrn.uuid == copied.uuid and jrn.home == home
        for store, source in ((jrn.store, copied), (copied.store, jrn)):
            for call in (lambda: store.gc(source, grace=0, force=True), lambda: store.gc_due(source)):  # noqa: B023
                with pytest.raises(GcRefused) as caught:
                    call()
                assert caught.value.fields["reason"] == "foreign_journal" and str(source.home) in str(caught.value)
        with pytest.raises(casstore.InvalidHome):
            journal.open(other, store=jrn.store)
        with journal.open(tmp_path / "link", store=jrn.store) as again:
            jrn.store.gc(again, grace=0, force=True)
        assert live.manifest() == {"later": 1} and live.context() == {"n": 3}


def test_a_stop_that_is_none_or_fails(tmp_path: Path) -> None:
    """No function is refused; what one raises comes out as it is, once the gc has ended in order."""
    filled(tmp_path / "home")
    with journal.open(tmp_path / "home") as jrn:
        with pytest.raises(InvalidArgument):
            jrn.store.gc(jrn, stop=5)  # type: ignore[arg-type]
        for dry_run in (False, True):
            with pytest.raises(ZeroDivisionError):
                jrn.store.gc(jrn, grace=0, keep_completed=0, dry_run=dry_run, stop=lambda: bool(1 // 0))
        assert len(jrn.store) == 5 and jrn.store.gc_history()[0].outcome == "stopped"
        assert jrn.store.gc(jrn, grace=0, keep_completed=0, force=True).removed and jrn.verify() == []


def test_a_store_that_is_open_read_only(tmp_path: Path) -> None:
    """Refused before anything is read; a dry run is no gc."""
    home = tmp_path / "home"
    filled(home)
    with journal.open(home, read_only=True) as jrn:
        before = set(jrn.store)
        for force in (False, True):
            with pytest.raises(ReadOnly):
                jrn.store.gc(jrn, grace=0, force=force)
        assert len(jrn.store.gc(jrn, grace=0, dry_run=True).removed) == 1
        assert set(jrn.store) == before


def test_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    """The command says so in one line; a dry run works."""
    with small_disk(tmp_path / "disk", 16) as disk:
        home = disk / "home"
        filled(home)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, _, error = command(home)
        assert code == 1 and "not writable" in error
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert command(home)[0] == 0


def test_low_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any on the disk and none inside of the file: refused, unless forced. Either is enough."""
    home = tmp_path / "home"
    filled(home)
    with journal.open(home) as jrn:
        before, info = set(jrn.store), jrn.store._backend.info()
        disk = os.statvfs(home)
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=3, f_frsize=disk.f_frsize))
        monkeypatch.setattr(jrn.store._backend, "info", lambda: {**info, "pages_free": 5})
        with pytest.raises(GcRefused, match="12288 bytes are free") as caught:
            jrn.store.gc(jrn, grace=0)
        assert caught.value.fields["reason"] == "low_space" and set(jrn.store) == before
        assert jrn.store.gc(jrn, grace=0, dry_run=True).removed
        monkeypatch.setattr(jrn.store._backend, "info", lambda: {**info, "pages_free": 500})
        assert len(jrn.store.gc(jrn, grace=0).removed) == 1
        monkeypatch.setattr(jrn.store._backend, "info", lambda: {**info, "pages_free": 5})
        assert jrn.store.gc(jrn, grace=0, force=True).removed == ()


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    """Held here, then given back."""
    home = tmp_path / "home"
    filled(home)
    with journal.open(home) as jrn:
        with collector_lock(home), pytest.raises(Busy):
            jrn.store.gc(jrn, grace=0)
        assert len(jrn.store.gc(jrn, grace=0).removed) == 1


def test_the_table_knows_the_version_that_records_have() -> None:
    """The case above would be no case if this were the version."""
    assert records.VERSION != 7


@pytest.mark.parametrize("table", [LIVE, DONE, ID, RUN])
def test_lists_that_were_put_right_are_trusted_again(tmp_path: Path, table: bytes) -> None:
    """By a rebuild; and the gc then takes what is loose, and nothing of the live run."""
    home = tmp_path / "home"
    filled(home)
    with journal.open(home) as jrn:
        needed = live_of(jrn)
    drop_row(table, 0)(home)
    with journal.open(home) as jrn:
        with pytest.raises(GcRefused):
            jrn.store.gc(jrn, grace=0)
        jrn.rebuild()
        assert len(jrn.store.gc(jrn, grace=0).removed) == 1
        assert live_of(jrn) == needed <= set(jrn.store) and jrn.verify() == []
