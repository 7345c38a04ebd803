"""What the layout promises: who imports whom, and which names are public."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import casstore
import journal

PROJECT = Path(__file__).parent.parent
# What the journal and other backends may use besides the names of `casstore` itself.
PUBLIC = {
    "casstore", "casstore.backups", "casstore.environment", "casstore.errors", "casstore.forks", "casstore.home",
    "casstore.ids", "casstore.lmdb_tables", "casstore.processes", "casstore.roots", "casstore.scanning",
    "casstore.stage", "casstore.steps", "casstore.tables",
    "casstore.testing", "casstore.values",
}  # fmt: skip
PURE = {
    "casstore.car", "casstore.codec", "casstore.frames", "casstore.segments", "casstore.values", "casstore.ids",
    "casstore.items", "casstore.marks", "casstore.policies", "casstore.rebasing", "casstore.similar", "casstore.times",
    "casstore.scanning", "casstore.varints",
    "journal.events", "journal.event_json", "journal.views", "journal.envelopes", "journal.records",
    "journal.decisions", "journal.domain", "journal.failures", "journal.ids", "journal.storable",
    "journal.blanks", "journal.decoding", "journal.record_form",
}  # fmt: skip
EFFECTS = {"lmdb", "os", "time", "threading", "socket", "subprocess", "pathlib", "io", "fcntl", "secrets", "random"}


def modules(package: types.ModuleType) -> list[str]:
    return [package.__name__] + [
        found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    ]  # fmt: skip


def imports(name: str) -> set[str]:
    """Every module that a module imports, wherever in its text, but for typing only."""
    path = PROJECT / (name.replace(".", "/") + ".py")
    tree = ast.parse((path if path.exists() else PROJECT / name.replace(".", "/") / "__init__.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    known = set(modules(casstore)) | set(modules(journal))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else node.module)
    return found


ALL = sorted(set(modules(casstore)) | set(modules(journal)))


@pytest.mark.parametrize("name", ALL)
def test_imports_go_one_way(name: str) -> None:
    """casstore never imports the journal, but for its command line; the journal uses public modules only."""
    for wanted in imports(name):
        if name.startswith("journal") and wanted.split(".")[0] == "casstore":
            assert wanted in PUBLIC, f"{name} imports {wanted}"
        if name.startswith("casstore") and not name.startswith("casstore.cli"):
            assert wanted.split(".")[0] != "journal", f"{name} imports {wanted}"
            assert not wanted.startswith("casstore.cli"), f"{name} imports {wanted}"
        if wanted == "lmdb":
            assert name == "casstore.environment", f"{name} imports lmdb"
        if wanted in {"click", "rich"} or wanted.startswith("rich."):
            assert name.startswith("casstore.cli"), f"{name} imports {wanted}"


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_core_is_pure(name: str) -> None:
    """No clock, file, lock or engine in what decides."""
    # A compressor belongs to one thread; how deep a value may be decoded depends on the thread's stack.
    allowed = {"casstore.codec": {"threading"}, "casstore.values": {"threading", "os"}}.get(name, set())
    assert not (imports(name) & EFFECTS) - allowed


@pytest.mark.parametrize("package", [casstore, journal])
def test_public_names(package: types.ModuleType) -> None:
    """`__all__` is sorted, complete and there; every error of the package is in it."""
    names = package.__all__
    assert sorted(names) == sorted(set(names))
    for name in names:
        assert getattr(package, name) is not None
    errors = importlib.import_module(f"{package.__name__}.errors")
    leaves = {name for name, found in vars(errors).items() if isinstance(found, type)
              and issubclass(found, Exception) and found.__module__ == errors.__name__}  # fmt: skip
    assert leaves <= set(names)


def test_wanted_names_are_there() -> None:
    """The names that the design promises to callers."""
    wanted = {
        journal: "open Journal Run Attempt RunState RunStarted StateEntered StateCompleted StateFailed RunCompleted "
        "DomainEvent RunStatus StateError ErrorInfo ErrorCategory RecordedEvent Appended NonRetryable analyze decide "
        "Enter Orphaned Choose End Ended",
        casstore: "open Store ArtifactId ArtifactInfo PutItem GcReport VerifyReport StoreStats RootSource",
    }
    for package, names in wanted.items():
        for name in names.split():
            assert name in package.__all__


def test_errors_have_codes_of_their_own() -> None:
    """Each leaf has a stable code, and no two share one."""
    codes: dict[str, str] = {}
    for package in (casstore, journal):
        for name in package.__all__:
            found = getattr(package, name)
            if isinstance(found, type) and issubclass(found, (casstore.StoreError, journal.JournalError)):
                twin = codes.setdefault(found.code, name)
                assert twin == name, f"{name} and {twin} share {found.code}"


def test_no_module_is_too_long() -> None:
    """A module of more than 500 lines has a second noun."""
    for name in ALL:
        path = PROJECT / (name.replace(".", "/") + ".py")
        if path.exists():
            assert len(path.read_text().splitlines()) <= 560, path


def test_what_takes_long_to_import_waits_until_it_is_used(tmp_path: Path) -> None:
    """Neither for a run, failures and all, nor for a command; whoever asks gets it."""
    code = """
import sys, casstore, casstore.cli.main, journal
with journal.open(sys.argv[1]) as jrn:
    run = jrn.start_run("op", manifest={}, context={}, plan=["a.b.c"])
    try:
        with run.enter("a.b.c"):
            raise ValueError
    except ValueError:
        assert run.next == "a.b.c"
assert not {"asyncio", "rich", "importlib.metadata"} & set(sys.modules)
from journal import *
assert "AsyncJournal" in dir(journal) and AsyncJournal is journal.AsyncJournal and "asyncio" in sys.modules
try:
    journal.AsyncNothing
except AttributeError as error:
    assert "AsyncNothing" in str(error)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "home")], check=True)
