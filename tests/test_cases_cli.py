"""Cases of peers on the command line: what goes to stdout, odd text, formats (docs/CASES.md). Each section names the
public report. Commands run inside of this process; a few run as processes of their own."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import jsonschema
import pytest

import casstore
import journal
from casstore import ArtifactId, Root
from casstore.cli import options
from casstore.cli.main import cli, main
from casstore.home import FORMAT_NUMBER
from journal import DomainEvent, RunStarted

PROJECT = Path(__file__).parent.parent
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (PROJECT / "docs" / "schemas").glob("*.json")}
GOLDEN = Path(__file__).parent / "golden"
A, B = "flow.step.a", "flow.step.b"
DONE, DEAD = UUID(int=0xD0 << 120), UUID(int=0xE0 << 120)


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.decode().split("\n") if line]


class Stream(io.TextIOWrapper):
    """Text that a command prints."""

    is_terminal = False

    def isatty(self) -> bool:
        return self.is_terminal


def run(*arguments: object, stdin: bytes = b"") -> Ended:
    """The command line in this process, as `casstore` runs it."""
    out, err = (Stream(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    before = sys.argv, sys.stdin, sys.stdout, sys.stderr
    sys.argv = ["casstore", *map(os.fspath, (arg if isinstance(arg, Path) else str(arg) for arg in arguments))]
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    sys.stdout, sys.stderr = out, err
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv, sys.stdin, sys.stdout, sys.stderr = before
    assert isinstance(code, int)
    return Ended(code, out.buffer.getvalue(), err.buffer.getvalue().decode(errors="backslashreplace"))  # type: ignore[attr-defined]


# -- 22. restic/restic#5236: --json prints other things too -----------------------------------------------------

VALIDATORS = {name: jsonschema.Draft202012Validator(schema) for name, schema in SCHEMAS.items()}


def check(command: str, ended: Ended) -> Ended:
    """All of stdout is JSON that fits the command's schema, or ends with an error that fits its own; the exit code
    tells which; stderr is talk."""
    assert "Traceback" not in ended.err, ended.err
    documents = ended.lines
    if documents and isinstance(documents[-1], dict) and set(documents[-1]) == {"error"}:
        VALIDATORS["error"].validate(documents.pop())
        assert ended.code not in (0, options.EXIT_STOPPED) and "casstore: " in ended.err
    else:
        assert ended.code in (0, options.EXIT_DAMAGE, options.EXIT_STOPPED) or command == "doctor", ended
    for document in documents:
        VALIDATORS[command].validate(document)
    return ended


class World(NamedTuple):
    """A home, and what it holds."""

    home: Path
    value: str
    other: str
    blob: str
    buried: str
    car: Path


def make(place: Path) -> World:
    """A finished run, one whose process died, values, bytes, a pin, something in quarantine."""
    home = place / "home"
    with journal.open(home) as jrn:
        for run_id, op in ((DONE, "done"), (DEAD, "dead")):
            run_ = jrn.start_run(op, manifest={"n": 1}, context={"n": 0}, plan=[A], run_id=run_id)
            attempt = run_.enter(A)
            if run_id == DONE:
                attempt.fact("price|btc", {"at": 17.5, "raw": b"\x00\xff"})
                attempt.complete({"n": 1})
                run_.complete()
            else:
                run_.release()
        buried = jrn.store.put(b"comes back")
        jrn.store.gc(jrn, grace=0, quarantine=10**6, force=True)
        blob = jrn.store.put(os.urandom(9000), kind="output")
        value = jrn.store.put_value({"a": [1, None, blob], "b": "text"})
        other = jrn.store.put_value({"a": [2], "c": b"x"})
        for name, held in (("value", value), ("other", other), ("blob", blob)):
            jrn.store.pin(name, held)
        car = place / "some.car"
        jrn.store.export([value], car)
    return World(home, str(value), str(other), str(blob), str(buried), car)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    """A copy that may be changed."""
    shutil.copytree(made.home, tmp_path / "home")
    return made._replace(home=tmp_path / "home")


# Each command with arguments that go well, more than one line where it has more than one form.
FINE: dict[str, Callable[[World, Path], list[list[object]]]] = {
    "init": lambda w, tmp: [[]],
    "put": lambda w, tmp: [[w.car, w.car], [w.car, "--kind", "output"]],
    "cat": lambda w, tmp: [[w.value]],
    "info": lambda w, tmp: [[w.value], [w.blob]],
    "ls": lambda w, tmp: [[], ["--limit", 2], ["--kind", "value"]],
    "pin": lambda w, tmp: [[], ["new", w.blob], ["value", "--delete"]],
    "why": lambda w, tmp: [[w.value], [w.buried], ["0" * 64]],
    "verify": lambda w, tmp: [[], ["--subset", "1/3"], ["--max-time", "0s"], ["--repair-from", w.car.parent / "home"]],
    "stats": lambda w, tmp: [[]],
    "gc": lambda w, tmp: [["--dry-run", "--list", "--explain"], ["--history"], ["--auto"],
                          ["--grace", "0s", "--list", "--max-bytes", 0],
                          ["--grace", "0s", "--keep-completed", "0s"], ["--history", "--limit", 1]],
    "undelete": lambda w, tmp: [["--list"], [w.buried]],
    "runs": lambda w, tmp: [[], ["--status", "live"], ["--stale", "1s"]],
    "log": lambda w, tmp: [["d000"], ["d000", "--follow"], ["e000"]],
    "show": lambda w, tmp: [["d000"], ["e000"]],
    "resume-point": lambda w, tmp: [["d000"], ["e000"]],
    "cancel": lambda w, tmp: [["e000"], ["e000", "--reason", "again\x00"[:5]]],
    "forget": lambda w, tmp: [["d000"]],
    "rebuild": lambda w, tmp: [["--dry-run"], []],
    "compact": lambda w, tmp: [[], ["--max-time", "0s"]],
    "backup": lambda w, tmp: [[tmp / "copy"]],
    "train": lambda w, tmp: [["value"]],
    "diff": lambda w, tmp: [[w.value, w.other], [w.value, w.value], [w.value, w.blob]],
    "doctor": lambda w, tmp: [[]],
    "bench": lambda w, tmp: [["--steps", 10]],
    "export": lambda w, tmp: [[w.value, "-o", tmp / "out.car"], ["--run", "d000", "-o", tmp / "run.car"]],
    "import": lambda w, tmp: [[w.car, "--pin", "in"]],
}  # fmt: skip
OPENING = [name for name in FINE if name not in ("bench", "init")]


def test_every_command_has_a_schema_and_lines_of_its_own() -> None:
    """Case 22: none is left out here, and the schemas are schemas."""
    assert set(FINE) == set(cli.commands) and set(SCHEMAS) == {*FINE, "error"}
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("progress", [False, True], ids=["quiet", "progress"])
@pytest.mark.parametrize("command", FINE)
def test_what_goes_well_is_json(
    world: World, tmp_path: Path, command: str, progress: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 22: also where progress is shown, as on a terminal."""
    if progress:
        if command == "bench":
            pytest.skip("it shows none, and takes long")
        monkeypatch.setattr(Stream, "is_terminal", True)
    for arguments in FINE[command](world, tmp_path):
        ended = check(command, run(command, *arguments, "--home", world.home, "--json"))
        assert ended.code in (0, options.EXIT_STOPPED) or command in ("doctor", "diff"), ended
        assert ended.lines or command in ("diff", "pin", "runs", "undelete", "ls"), ended
        assert progress or not ended.err or command in ("put", "diff"), ended.err


def test_json_may_stand_before_the_command(world: World) -> None:
    """Case 22: also then an error is a document."""
    assert check("stats", run("--json", "--home", world.home, "stats")).code == 0
    assert check("info", run("--json", "--home", world.home, "info", "0" * 64)).code == 1


@pytest.mark.parametrize("command", FINE)
def test_bad_usage_is_json(world: World, tmp_path: Path, command: str) -> None:
    """Case 22: an option that there is not, and too many arguments: exit code 2."""
    arguments = FINE[command](world, tmp_path)[0]
    for odd in (["--nonsense"], ["--x"] if command in ("put", "undelete", "export") else ["too", "many", "of", "them"]):
        ended = check(command, run(command, *arguments, *odd, "--home", world.home, "--json"))
        assert ended.code == 2 and ended.lines[-1]["error"]["code"] == "usage"


NOT_FOUND: dict[str, list[object]] = {
    "put": ["/no/such/file"], "cat": ["0" * 64], "info": ["0000"], "pin": ["x", "0" * 64], "undelete": ["0" * 64],
    "log": ["0000"], "show": ["0000"], "resume-point": ["0000"], "cancel": ["0000"], "forget": ["0000"],
    "diff": ["0" * 64, "1" * 64], "export": ["0" * 64, "-o", "/dev/null"], "import": ["/no/such/file"],
    "backup": ["/no/such/directory/copy"], "verify": ["--repair-from", "/no/such/home"],
}  # fmt: skip


@pytest.mark.parametrize("command", NOT_FOUND)
def test_what_is_not_found_is_json(world: World, command: str) -> None:
    """Case 22: an id, a run or a file that is not there."""
    ended = check(command, run(command, *NOT_FOUND[command], "--home", world.home, "--json"))
    assert ended.code in (1, 2, 10) and ended.lines[-1]["error"], ended


@pytest.mark.parametrize("command", OPENING)
def test_no_home_is_json(world: World, tmp_path: Path, command: str) -> None:
    """Case 22: exit code 10, and nothing is made."""
    for arguments in FINE[command](world, tmp_path):
        ended = check(command, run(command, *arguments, "--home", tmp_path / "none", "--json"))
        assert ended.code == 10 and ended.lines[-1]["error"]["code"] == "no_store"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", [name for name in FINE if name != "bench"])
def test_a_damaged_home_is_json(world: World, tmp_path: Path, command: str) -> None:
    """Case 22: a data file that was cut: exit code 3."""
    os.truncate(world.home / "store" / "1" / "data.mdb", 9000)
    for arguments in FINE[command](world, tmp_path)[:1]:
        ended = check(command, run(command, *arguments, "--home", world.home, "--json"))
        assert ended.code == 3 and ended.lines[-1]["error"]["code"] == "damaged_store"


READING = ["cat", "verify", "diff", "export", "gc", "ls", "show", "log", "why", "doctor", "stats"]


@pytest.mark.parametrize("command", READING)
def test_a_damaged_artifact_is_json(world: World, tmp_path: Path, command: str) -> None:
    """Case 22: bytes that cannot be read: what needs them says so with exit code 3, the rest goes on."""
    with casstore.open(world.home) as store, store._backend._tables.write() as t:  # type: ignore[attr-defined]
        for key, piece in list(t.scan(b"d1")):
            t.put(b"d1", key, bytes([piece[0] ^ 255]) + piece[1:])
    for arguments in FINE[command](world, tmp_path)[:1]:
        ended = check(command, run(command, *arguments, "--home", world.home, "--json"))
        needs = command in ("cat", "verify", "diff", "export")
        assert (ended.code == 3) is needs, ended
        if command == "verify":
            assert ended.lines[0]["findings"]


@pytest.mark.parametrize("command", [name for name in FINE if name not in ("bench", "forget")])
def test_a_busy_home_is_json(world: World, tmp_path: Path, command: str) -> None:
    """Case 22: a gc runs elsewhere: exit code 11 from what has to wait for it, the rest goes on."""
    with open(world.home / "gc.lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for arguments in FINE[command](world, tmp_path):
            ended = check(command, run(command, *arguments, "--home", world.home, "--json"))
            waits = command in ("compact", "backup") or "--repair-from" in arguments or (
                command == "gc" and not {"--dry-run", "--history", "--auto"} & set(map(str, arguments))
            )
            assert (ended.code == 11) is waits, (arguments, ended)


def test_warnings_and_development_mode_stay_out_of_stdout(world: World) -> None:
    """Case 22: a process of its own with every warning on."""
    for command in ("stats", "runs"):
        line = [sys.executable, "-X", "dev", "-W", "always", "-m", "casstore.cli.main", command, "--json"]
        done = subprocess.run([*line, "--home", str(world.home)], capture_output=True, check=False)
        check(command, Ended(done.returncode, done.stdout, done.stderr.decode()))
        assert done.returncode == 0


def test_a_line_of_talk_on_stdout_is_caught(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 22, wrong: an informational line ahead of the document."""
    right = options.open_store
    monkeypatch.setattr("casstore.cli.artifacts.open_store", lambda *a, **k: (print("opening"), right(*a, **k))[1])
    with pytest.raises(json.JSONDecodeError):
        check("ls", run("ls", "--home", world.home, "--json"))


# -- 3. borgbackup/borg#9748, 4. treeverse/lakeFS#4658: exit codes ----------------------------------------------


def test_missing_data_has_an_exit_code(world: World, tmp_path: Path) -> None:
    """Case 3: what was collected is not exported nor shown as if it were there."""
    for command, arguments in (("cat", []), ("export", ["-o", tmp_path / "x.car"]), ("info", [])):
        ended = check(command, run(command, world.buried, *arguments, "--home", world.home, "--json"))
        assert ended.code == 1 and ended.lines[-1]["error"]["code"] == "quarantined"
    assert not (tmp_path / "x.car").exists()


def _roots_of(*roots: Any) -> Callable[..., Iterator[Any]]:
    def live_roots(self: journal.Journal, **_: object) -> Iterator[Any]:
        yield from roots
        raise OSError("the rest is unreadable")

    return live_roots


ODD_ROOTS: list[tuple[Any, ...]] = [
    (), ("0" * 64,), (Root("AB" * 32, "run", 1, "field"),), (Root(ArtifactId.of(b"?"), "run", 1, "field"),)  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize("roots", ODD_ROOTS)
def test_a_root_source_in_doubt_has_the_exit_code_of_a_refusal(
    world: World, roots: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 4: exit code 5, and nothing is removed. (--list reads all roots; a short gc asks what has changed.)"""
    before = run("ls", "--home", world.home).out
    monkeypatch.setattr(journal.Journal, "live_roots", _roots_of(*roots))
    # --explain takes a full mark, also where the last gc left nothing to do.
    ended = check("gc", run("gc", "--grace", "0s", "--force", "--explain", "--home", world.home, "--json"))
    assert ended.code == 5 and "Journal" in ended.err
    assert run("ls", "--home", world.home).out == before


# -- 20. langchain-ai/langgraph#1878: a NUL in a message --------------------------------------------------------

TEXTS = ["a\x00b", "\x00", "😀 𝔘", "e\u0301", "\u00e9", "line\nbreak\r\t\x1b[31m", "\u202eback", "\ufeffbom", "\u2028"]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_out_as_it_went_in(tmp_path: Path, text: str) -> None:
    """Case 20: payloads, event names, messages and reasons, through the API and the command line."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        run_ = jrn.start_run("case", manifest={"text": text}, context={text: text}, plan=[A], run_id=DONE)
        with pytest.raises(ValueError), run_.enter(A) as attempt:
            attempt.fact(text, {"said": text})
            attempt.emit(text, {"messages": [{text: text}]})
            raise ValueError(text)
        run_.release()
        value = run_.state.manifest_id
        jrn.cancel(DONE, text)
    with journal.open(home) as jrn:
        events = jrn.read(DONE)
        assert jrn.store.get_value(value) == {"text": text}
        assert any(isinstance(item.event, DomainEvent) and item.event.name == text for item in events)
        assert jrn.verify() == [] and jrn.store.verify().ok
    assert run("cat", value, "--home", home, "--json").lines == [{"text": text}]
    shown = check("log", run("log", "d000", "--home", home, "--json")).lines
    assert [journal.events.from_json(line["event"]) for line in shown] == [item.event for item in events]
    said = [line["event"]["error"]["info"]["message"] for line in shown if line["event"]["type"] == "StateFailed"]
    assert text in said[0]
    assert run("log", "d000", "--home", home).code == 0 and run("show", "d000", "--home", home).code == 0


def test_spellings_of_a_letter_stay_different(tmp_path: Path) -> None:
    """Case 20: composed and decomposed text are two values."""
    with casstore.open(tmp_path / "home") as store:
        composed, decomposed = store.put_value("\u00e9"), store.put_value("e\u0301")
        assert composed != decomposed
        assert (store.get_value(composed), store.get_value(decomposed)) == ("\u00e9", "e\u0301")


@pytest.mark.parametrize("path", ["messages[3].content", "a.b[0]"])
def test_a_lone_surrogate_is_refused_with_its_path(tmp_path: Path, path: str) -> None:
    """Case 20: before any write; the path reads as the value is written."""
    bad: dict[str, Any] = {
        "messages[3].content": {"messages": [{}, {}, {}, {"content": "bad \ud800"}]}, "a.b[0]": {"a": {"b": ["\udfff"]}}
    }  # fmt: skip
    with journal.open(tmp_path / "home") as jrn:
        name = jrn.store.put(b"first")
        jrn.append(DONE, 0, [RunStarted(op_id="case", manifest_id=name, initial_snapshot_id=name)])
        commits = jrn.store.stats().commits
        with pytest.raises(casstore.InvalidValue) as caught:
            jrn.store.put_value(bad[path])
        assert path in str(caught.value) and "surrogate" in str(caught.value)
        with pytest.raises(journal.InvalidEvent) as refused:
            jrn.append(DONE, 1, [DomainEvent("note", bad[path])])
        assert path in str(refused.value)
        with pytest.raises(journal.InvalidEvent):
            DomainEvent("bad \ud800")
        assert (jrn.store.stats().commits, jrn.head(DONE)) == (commits, 1)


ODD_NAMES = [b"with blank", "emoji 🌍".encode(), b"not \xff\xfe utf-8", b"new\nline", "e\u0301".encode()]


@pytest.mark.parametrize("odd", ODD_NAMES)
def test_directories_and_files_of_any_name(world: World, tmp_path: Path, odd: bytes) -> None:
    """Case 20: the store opens there, and commands print such names as JSON that gives them back."""
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + odd))
    shutil.copytree(world.home, place)
    with journal.open(place) as jrn:
        assert str(jrn.store.put(b"x")) == str(ArtifactId.of(b"x")) and jrn.verify() == []
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/file " + odd))
    file.write_bytes(b"content")
    ended = check("put", run("put", file, "--home", place, "--json"))
    assert ended.code == 0 and os.fsencode(ended.lines[0]["file"]) == os.fsencode(file)
    assert os.fsencode(check("init", run("init", "--home", place, "--json")).lines[0]["home"]) == os.fsencode(place)
    for command, arguments in (("put", [file]), ("init", []), ("doctor", []), ("stats", []), ("cat", ["0" * 64]),
                               ("put", [Path(os.fsdecode(os.fsencode(file) + b"?"))]),
                               ("export", [world.value, "-o", Path(os.fsdecode(os.fsencode(file) + b".car"))]),
                               ("backup", [Path(os.fsdecode(os.fsencode(file) + b".copy"))])):  # fmt: skip
        for as_json in ([], ["--json"]):
            ended = run(command, *arguments, "--home", place, *as_json)
            assert ended.code in (0, 1), (command, ended)
            assert "Traceback" not in ended.err
            shutil.rmtree(Path(os.fsdecode(os.fsencode(file) + b".copy")), ignore_errors=True)


# -- 23. HeddleCo/heddle#673: the format version is written and never read --------------------------------------


def _field(name: str, value: str) -> Callable[[str], bytes]:
    def change(text: str) -> bytes:
        lines = [line if line.split(":")[0] != name else f"{name}: {value}" for line in text.splitlines()]
        return ("\n".join(lines) + "\n").encode()

    return change


FORMATS: dict[str, Callable[[str], bytes | None]] = {
    "one more": _field("format", str(FORMAT_NUMBER + 1)),
    "0": _field("format", "0"),
    "text": _field("format", "three"),
    "a fraction": _field("format", f"{FORMAT_NUMBER}.0"),
    "empty": lambda _: b"",
    "binary": lambda _: b"\xff\x00" * 100,
    "missing": lambda _: None,
    "an unknown feature": _field("requires", "antigravity"),
    "another page size": _field("page_size", "65536"),
    "a page size that is no number": _field("page_size", "large"),
}


def digests(home: Path) -> dict[str, str]:
    files = [path for path in home.rglob("*") if path.is_file()]
    return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("what", FORMATS)
def test_another_format_is_refused_by_everything(world: World, tmp_path: Path, what: str) -> None:
    """Case 23: golden homes; every way to open and every command refuse, naming both; no file changes."""
    with tarfile.open(GOLDEN / f"format-{FORMAT_NUMBER}.tar.xz") as archive:
        archive.extractall(tmp_path / "golden", filter="data")
    home = tmp_path / "golden" / "home"
    changed = FORMATS[what]((home / "FORMAT").read_text())
    if changed is None:
        (home / "FORMAT").unlink()
    else:
        (home / "FORMAT").write_bytes(changed)
    before = digests(home)
    for opened in (casstore.open, journal.open):
        for options_ in ({}, {"read_only": True}, {"create": False}):
            with pytest.raises(casstore.UnsupportedFormat) as caught:
                opened(home, **options_)  # type: ignore[operator]
            assert caught.value.fields["found"] and caught.value.fields["supported"]
    for command in (*OPENING, "init"):
        for arguments in FINE[command](world._replace(home=home), tmp_path):
            ended = check(command, run(command, *arguments, "--home", home, "--json"))
            assert ended.code == 1 and ended.lines[-1]["error"]["code"] == "unsupported_format", (command, ended)
    assert digests(home) == before


def test_a_stamp_that_nobody_reads_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 23, wrong: the number is there, and nothing compares it."""
    casstore.open(tmp_path / "home").close()
    form = tmp_path / "home" / "FORMAT"
    form.write_bytes(FORMATS["one more"](form.read_text()) or b"")
    monkeypatch.setattr("casstore.home.FORMAT_NUMBER", FORMAT_NUMBER + 1)
    casstore.open(tmp_path / "home").close()  # it opens: the test above would fail
