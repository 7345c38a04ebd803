"""What the documents show works as it stands there."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

import casstore
import journal
from casstore import rows as store_rows
from journal import rows as journal_rows

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("place", range(len(BLOCKS)))
def test_examples_of_the_readme_run(place: int, tmp_path: Path) -> None:
    """Each example, in a process and a directory of its own."""
    subprocess.run([sys.executable, "-c", BLOCKS[place]], cwd=tmp_path, check=True)


def test_the_readme_has_examples() -> None:
    """Two of them, so that the test above is not empty."""
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("module", [casstore, journal])
def test_examples_of_docstrings(module: object) -> None:
    """The examples that help() shows."""
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted > 0 and found.failed == 0


def test_commands_of_the_readme_exist() -> None:
    """Every command that is named is one, and every one is in the help."""
    shown = subprocess.run([sys.executable, "-m", "casstore.cli.main", "--help"], capture_output=True, text=True,
                           check=True).stdout  # fmt: skip
    sentence = README[README.index("On the command line:") :].split("\n")[0]
    named = {words.split()[0] for words in re.findall(r"`([^`]+)`", sentence)}
    named -= {"--home", "--json", "--help", "casstore"}
    for command in named | {"runs", "init"}:
        assert re.search(rf"^  {command} ", shown, re.MULTILINE), command


@pytest.mark.parametrize("rows", [store_rows, journal_rows], ids=["store", "journal"])
def test_every_table_is_in_the_format(rows: object) -> None:
    """FORMAT names each table."""
    text = (PROJECT / "docs" / "FORMAT.md").read_text()
    for name in rows.TABLES:  # type: ignore[attr-defined]
        assert f"`{name.decode()}`" in text, name


def test_links_between_documents_lead_somewhere() -> None:
    """Relative links of all documents."""
    for document in [PROJECT / "README.md", *PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_cases_name_tests_that_exist() -> None:
    """Every test that docs/CASES.md names is in the file that stands before it, and no test of a case is left out."""
    text = (PROJECT / "docs" / "CASES.md").read_text()
    named: set[str] = set()
    for path, tests in re.findall(r"\]\(\.\./tests/([\w/]+\.py)\): ((?:`\w+`(?:, )?)+)", text):
        code = (PROJECT / "tests" / path).read_text()
        for test in re.findall(r"`(\w+)`", tests):
            assert f"\ndef {test}(" in code, f"{path}: {test}"
            named.add(test)
    there = {test for path in PROJECT.glob("tests/test_cases_*.py")
             for test in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}  # fmt: skip
    assert there <= named and len(re.findall(r"^\| \d+ \|", text, re.MULTILINE)) == 23
