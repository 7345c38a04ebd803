"""The command line as a user meets it: each command, for people and as JSON, and one clear line for each mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import casstore
import journal
from casstore.home import FORMAT_NUMBER
from journal.ids import TIME_LIMIT
from tests.command_line import casstore as command_line

A, B = "flow.step.a", "flow.step.b"


def run(*arguments: object, stdin: bytes = b"", home: Path | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command in a process of its own."""
    return command_line(*arguments, stdin=stdin, home=home)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a run whose process died inside of an attempt, and an artifact that nothing names."""
    place = tmp_path_factory.mktemp("cli") / "home"
    with journal.open(place) as jrn:
        done = jrn.start_run("done", manifest={"n": 1}, context={"n": 0}, plan=[A], run_id=UUID(int=0xD0 << 120))
        with done.enter(A) as attempt:
            attempt.fact("price|btc", 17)
            attempt.complete({"n": 1})
        done.complete()
        dead = jrn.start_run("dead", manifest={"n": 2}, context={"n": 0}, plan=[A, B], run_id=UUID(int=0xE0 << 120))
        dead.enter(A)
        jrn.store.put(b"nothing names it")
    return place


@pytest.fixture
def opened(home: Path) -> Iterator[Any]:
    with journal.open(home, read_only=True) as jrn:
        yield jrn


def document(home: Path, *arguments: object) -> Any:
    code, out, error = run(*arguments, "--json", home=home)
    assert code == 0, error
    return json.loads(out)


def lines(home: Path, *arguments: object) -> list[Any]:
    code, out, error = run(*arguments, "--json", home=home)
    assert code == 0, error
    return [json.loads(line) for line in out.splitlines()]


def test_init_put_cat_info_ls(tmp_path: Path) -> None:
    """A store is made, files and standard input go in, and come out as they were."""
    home, file = tmp_path / "home", tmp_path / "file"
    file.write_bytes(b"content\x00" * 1000)
    assert document(home, "init")["created"] is True and document(home, "init")["created"] is False
    code, out, _ = run("put", file, "-", "--kind", "output", stdin=b"from stdin", home=home)
    assert code == 0
    names = out.split()
    assert names == [str(casstore.ArtifactId.of(data)) for data in (file.read_bytes(), b"from stdin")]
    assert run("cat", names[0][:12], home=home)[1].encode() == file.read_bytes()
    assert lines(home, "put", file)[0]["id"] == names[0]
    info = document(home, "info", names[0][:12])
    assert (info["id"], info["size_bytes"], info["kinds"]) == (names[0], 8000, ["output", "other"])
    assert "8000" in run("info", names[0], home=home)[1]
    assert {item["id"] for item in lines(home, "ls")} == set(names)
    assert [item["id"] for item in lines(home, "ls", "--kind", "other")] == [names[0]]
    assert len(run("ls", "--limit", 1, home=home)[1].splitlines()) == 1


def test_values_are_shown_as_json(tmp_path: Path) -> None:
    """A stored value is printed with its links."""
    with casstore.open(tmp_path / "home") as store:
        child = store.put(b"child")
        name = store.put_value({"a": [1, None, child]})
    assert document(tmp_path / "home", "cat", name) == {"a": [1, None, {"/": str(child)}]}


def test_pins(tmp_path: Path) -> None:
    """Pin, list, unpin; an unknown pin is an error."""
    with casstore.open(tmp_path / "home") as store:
        name = store.put(b"x")
    home = tmp_path / "home"
    assert run("pin", "release", str(name)[:8], home=home)[0] == 0
    assert lines(home, "pin") == [{"name": "release", "id": str(name)}]
    assert run("pin", "release", "--delete", home=home)[0] == 0
    assert lines(home, "pin") == []
    code, _, error = run("pin", "release", "--delete", home=home)
    assert code == 1 and "release" in error
    assert run("pin", "release", home=home)[0] == 2


def test_runs_log_show(home: Path) -> None:
    """Runs are listed newest first; the log has every event, and show sums up."""
    assert [row["op_id"] for row in lines(home, "runs")] == ["dead", "done"]
    assert [row["op_id"] for row in lines(home, "runs", "--status", "live")] == ["dead"]
    assert "completed" in run("runs", home=home)[1]
    events = lines(home, "log", "d000")
    assert [item["event"]["type"] for item in events] == [
        "RunStarted", "DomainEvent", "StateEntered", "DomainEvent", "StateCompleted", "RunCompleted"
    ]  # fmt: skip
    code, out, _ = run("log", "d000", home=home)
    assert code == 0 and len(out.splitlines()) == 6 and "fact_recorded" in out
    assert run("log", "d000", "--follow", home=home)[1] == out  # the run has ended, so there is nothing to follow
    shown = document(home, "show", "d000")
    assert (shown["status"], shown["head"], shown["completed"], shown["attempts"]) == ("completed", 6, [A], {A: 1})
    assert shown["final_snapshot_id"] == shown["checkpoint_id"]
    assert document(home, "show", "e000")["open_attempt"] == A
    assert "checkpoint" in run("show", "e000", home=home)[1]


def test_resume_point_changes_nothing(home: Path, opened: Any) -> None:
    """It says what a resume would append, and appends nothing."""
    before = opened.head(UUID(int=0xE0 << 120))
    point = document(home, "resume-point", "e000")
    assert point["decision"]["action"] == "enter" and point["decision"]["attempt"] == 1
    assert [event["type"] for event in point["would_append"]] == ["StateFailed"]
    assert document(home, "resume-point", "d000")["decision"]["action"] == "ended"
    assert "StateFailed" in run("resume-point", "e000", home=home)[1]
    assert opened.head(UUID(int=0xE0 << 120)) == before


def test_why_stats_verify(home: Path, opened: Any) -> None:
    """Each artifact can be explained; the numbers add up; nothing is damaged."""
    live = opened.run_state(UUID(int=0xE0 << 120)).manifest_id
    ended = opened.run_state(UUID(int=0xD0 << 120)).manifest_id
    loose = casstore.ArtifactId.of(b"nothing names it")
    for name, state in ((live, "live"), (ended, "retained"), (loose, "unreferenced")):
        assert document(home, "why", str(name)[:16])["state"] == state
    assert "manifest_id" in run("why", live, home=home)[1]
    stats = document(home, "stats")
    assert (stats["runs"], stats["events"], stats["artifacts"]) == (2, 9, len(opened.store))
    assert "events" in run("stats", home=home)[1]
    verified = document(home, "verify")
    assert verified["findings"] == [] and verified["artifacts"] == stats["artifacts"]
    assert run("verify", home=home)[1].strip().endswith("0 findings")


def test_gc_and_cancel(tmp_path: Path) -> None:
    """A dry run says what a real one does; scenario 31: a run given up by its process is cancelled, then collected."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        run_id = jrn.start_run("dead", manifest={"n": 2}, context={"n": 0}, plan=[A]).run_id
        loose = jrn.store.put(b"loose")
    dry = document(home, "gc", "--dry-run", "--grace", "0s", "--list")
    assert (dry["removed"], dry["ids"], dry["dry_run"]) == (1, [str(loose)], True)
    real = document(home, "gc", "--grace", "0s", "--list")
    assert (real["removed"], real["ids"], real["live"]) == (1, [str(loose)], dry["live"])
    code, out, _ = run("gc", "--grace", "0s", home=home)
    assert code == 0 and out.startswith("removed 0 artifacts")
    assert document(home, "cancel", str(run_id)[:8])["status"] == "cancelled"
    assert document(home, "gc", "--grace", "0s")["removed"] == 0  # it ended less than 14 days ago
    assert document(home, "gc", "--grace", "0s", "--keep-completed", "0s", "--force")["removed"] == 2
    assert document(home, "why", loose)["state"] == "collected"
    code, _, error = run("cat", loose, home=home)
    assert code == 1 and "collected" in error
    code, _, error = run("cancel", str(run_id)[:8], home=home)
    assert code == 0  # cancelled already


def test_gc_refuses_without_a_journal(tmp_path: Path) -> None:
    """A home without a journal has nothing that says what is live: exit code 5, nothing removed."""
    with casstore.open(tmp_path / "home") as store:
        store.put(b"x")
    code, _, error = run("gc", "--grace", "0s", home=tmp_path / "home")
    assert code == 5 and "journal" in error
    with casstore.open(tmp_path / "home") as store:
        assert len(store) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["frobnicate"], 2, "frobnicate"),
        (["info"], 2, "ID"),
        (["info", "xyz"], 2, "xyz"),
        (["info", "0000"], 1, "0000"),
        (["info", "0" * 64], 1, "000000"),
        (["cat", "0" * 64], 1, "000000"),
        (["log", "0000"], 1, "0000"),
        (["log", "nonsense"], 2, "nonsense"),
        (["cancel", "d000"], 1, "completed"),
        (["gc", "--grace", "soon"], 2, "soon"),
        (["gc", "--grace", "-1h"], 2, "-1h"),
        (["put", "/no/such/file"], 1, "/no/such/file"),
        (["runs", "--status", "lost"], 2, "lost"),
        (["pin", "", "0" * 64], 2, "name"),
        (["pin", "--delete"], 2, "NAME"),
        (["pin", "--delete", "p", "0" * 64], 2, "NAME"),
        (["ls", "--kind", ""], 2, "kind"),
        (["gc", "--limit", "3"], 2, "--history"),
    ],
)
def test_mistakes_are_one_clear_line(home: Path, arguments: list[str], code: int, word: str) -> None:
    """The line names what was wrong; with --json a document says the same with a stable code."""
    found, out, error = run(*arguments, home=home)
    assert (found, out) == (code, "") and word in error and len(error.splitlines()) == 1
    found, out, _ = run(*arguments, "--json", home=home)
    assert found == code and json.loads(out)["error"]["code"]


def test_homes_that_are_none(tmp_path: Path) -> None:
    """No store: 10. A file, a newer format, a cut data file: a line that says so."""
    file = tmp_path / "file"
    file.write_text("no store")
    for command in (["ls"], ["runs"], ["gc"], ["verify"], ["stats"], ["put", file], ["cancel", "d000"]):
        code, _, error = run(*command, home=tmp_path / "none")
        assert code == 10 and "casstore init" in error and not (tmp_path / "none").exists()
        code, _, error = run(*command, home=file)
        assert code == 1 and "it is a file" in error
    journal.open(tmp_path / "home").close()
    form = tmp_path / "home" / "FORMAT"
    text = form.read_text()
    form.write_text(text.replace(f"format: {FORMAT_NUMBER}", "format: 99"))
    code, _, error = run("ls", home=tmp_path / "home")
    assert code == 1 and "99" in error
    form.write_text(text)
    for data in (tmp_path / "home" / "journal" / "data.mdb", tmp_path / "home" / "store" / "1" / "data.mdb"):
        whole = data.read_bytes()
        os.truncate(data, 9000)
        code, _, error = run("runs", home=tmp_path / "home")
        assert code == 3 and "data.mdb" in error
        data.write_bytes(whole)
    assert run("verify", home=tmp_path / "home")[0] == 0


def test_a_journal_that_is_lost(tmp_path: Path) -> None:
    """The store knows that there was one: whatever needs it says so, and no backup is made without it."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        name = jrn.store.put(b"x")
    shutil.rmtree(home / "journal")
    copy = tmp_path / "copy"
    for command in (["runs"], ["verify"], ["backup", copy], ["why", name], ["init"], ["verify", "--repair"]):
        code, out, error = run(*command, home=home)
        assert (code, out) == (3, "") and str(home / "journal") in error and "missing" in error, command
    assert not copy.exists()
    code, out, _ = run("doctor", home=home)
    assert code == 1 and "the home had a journal, and it is missing" in " ".join(out.split())
    with casstore.open(home) as store, pytest.raises(casstore.DamagedStore, match="journal"):
        store.backup(copy)
    code, _, error = run("export", name, "-o", tmp_path / "no" / "x.car", home=home)
    assert code == 1 and error == f"casstore: {tmp_path / 'no' / 'x.car'}: No such file or directory\n"
    assert run("cat", name, home=home)[:2] == (0, "x") and run("stats", home=home)[0] == 0


def test_what_cannot_be_a_home_is_named(tmp_path: Path) -> None:
    """The path first: the default one is not in the command."""
    file = tmp_path / "file"
    file.write_text("no store")
    for home in (file, file / "below"):
        code, _, error = run("init", home=home)
        assert code == 1 and error.startswith(f"casstore: {home}"), error
    assert "cannot be used as a home: it is a file" in run("ls", home=file)[2]


def test_a_closed_standard_input_is_not_an_empty_one(tmp_path: Path) -> None:
    home = tmp_path / "home"
    casstore.open(home).close()
    for command in ("put -", "import -"):
        line = f"{sys.executable} -m casstore.cli.main {command} --home {home} <&-"
        done = subprocess.run(["bash", "-c", line], capture_output=True, check=False)
        assert done.returncode == 2 and b"standard input is closed" in done.stderr
    assert run("put", "-", home=home)[0] == 0
    with casstore.open(home) as store:
        assert len(store) == 1


def test_repair_from_the_home_itself(tmp_path: Path) -> None:
    journal.open(tmp_path / "home").close()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    code, _, error = run("verify", "--repair-from", tmp_path / "link", home=tmp_path / "home")
    assert code == 2 and "another home" in error


def test_doctor_reads_the_policy(tmp_path: Path) -> None:
    """What stops every gc is told by the command that is asked what is wrong."""
    journal.open(tmp_path / "home").close()
    assert run("doctor", home=tmp_path / "home")[0] == 0
    (tmp_path / "home" / "gc.toml").write_text("[keep]\nforever = true\n")
    code, out, _ = run("doctor", "--json", home=tmp_path / "home")
    assert code == 1 and [
        check["check"] for check in map(json.loads, out.splitlines()) if not check["ok"]
    ] == ["policy"]


def test_who_holds_a_run_is_told_by_what_a_resume_would_do(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        held = jrn.start_run("op", manifest={}, context={}, plan=[A])
        held.enter(A)
        point = document(home, "resume-point", held.run_id)
        assert point["holder"]["owner"] == held._claim.owner and point["would_append"]
        assert "held by" in run("resume-point", held.run_id, home=home)[1]
        held.release()
        assert document(home, "resume-point", held.run_id)["holder"] is None


def test_what_anybody_may_have_written_is_shown(tmp_path: Path) -> None:
    """Times beyond the calendar, and text that would move the cursor or look like another event."""
    home, run_id = tmp_path / "home", UUID(int=7)
    with journal.open(home) as jrn:
        name = jrn.store.put(b"x")
        started = journal.RunStarted(op_id="op", manifest_id=name, initial_snapshot_id=name)
        item = journal.RecordedEvent(run_id=run_id, seq=1, position=0, timestamp_ms=TIME_LIMIT, event=started)
        jrn.append(run_id, 0, [item])
        jrn.cancel(run_id, "\x1b[2J\r    7  gone\n    8  forged \u202e")
        for command in (["log", run_id], ["show", run_id], ["runs"]):
            out = run(*command, home=home)[1]
            assert f"{TIME_LIMIT} ms" in out or command == ["runs"]
            assert out.replace("\n", "").isprintable() and not any(
                line.startswith("    8") for line in out.splitlines()
            )
            assert run(*command, "--json", home=home)[0] == 0
        with pytest.raises(journal.InvalidField):
            journal.RecordedEvent(run_id=run_id, seq=1, position=0, timestamp_ms=TIME_LIMIT + 1, event=started)
    code, _, error = run("info", "\x1b[31mred", home=home)
    assert code == 2 and error.rstrip("\n").isprintable()


def test_a_prefix_of_several(tmp_path: Path) -> None:
    """Of runs as of artifacts: usage, and which they are."""
    home, runs = tmp_path / "home", [UUID(int=(0xABCD << 112) + n) for n in range(2)]
    with journal.open(home) as jrn:
        for run_id in runs:
            jrn.start_run("op", manifest={}, context={}, run_id=run_id).release()
    code, _, error = run("show", "abcd", home=home)
    assert code == 2 and f"fits several runs: {runs[0]}, {runs[1]}. " in error


def test_damage_has_its_exit_code(tmp_path: Path) -> None:
    """A flipped bit in an artifact: verify names it and exits with 3, cat refuses with 3."""
    with journal.open(tmp_path / "home") as jrn:
        name = jrn.store.put(os.urandom(5000))
        with jrn.store._backend._tables.write() as txn:  # type: ignore[attr-defined]
            key, piece = next(txn.scan(b"d1"))
            txn.put(b"d1", key, bytes([piece[0] ^ 1]) + piece[1:])
    code, out, _ = run("verify", "--json", home=tmp_path / "home")
    assert code == 3 and [finding["id"] for finding in json.loads(out)["findings"]] == [str(name)]
    code, out, error = run("cat", name, home=tmp_path / "home")
    assert (code, out) == (3, "") and str(name)[:16] in error


def test_a_reader_that_goes_away_is_no_failure(tmp_path: Path) -> None:
    """`casstore ls | head` ends without a word."""
    with casstore.open(tmp_path / "home") as store:
        for n in range(3000):
            store.put(b"%d" % n, durable=False)
    line = f"{sys.executable} -m casstore.cli.main ls --home {tmp_path / 'home'} | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, check=False)
    assert done.returncode == 0 and done.stderr == b"" and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full", "2>&-", "2>/dev/full", ">&- 2>&- <&-"])
@pytest.mark.parametrize("asked", ["ls", "cat {id}", "--json gc --dry-run", "--json why ffff"])
def test_an_output_that_takes_nothing_is_no_traceback(redirect: str, asked: str, tmp_path: Path) -> None:
    """Closed streams, whose numbers a data file could get, and a full disk: exit code 1, and nothing is damaged."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        name = jrn.store.put(b"some bytes")
    line = f"{sys.executable} -m casstore.cli.main --home {home} {asked.format(id=name)} {redirect}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=False)
    error = done.stderr.decode()
    assert "Traceback" not in error and "ignored" not in error
    assert done.returncode == (1 if "why" in asked or redirect.startswith(">") else 0), error
    with casstore.open(home) as store:
        assert store.get(name) == b"some bytes"
        assert store.verify().findings == ()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    place = tmp_path / "nowhere"
    assert run("init", home=tmp_path / "home")[0] == 0
    assert run("put", place, home=tmp_path / "home") == (1, "", f"casstore: {place}: No such file or directory\n")
