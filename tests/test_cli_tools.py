"""diff, doctor and bench: what they say is so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import casstore
import journal
from casstore.differences import differences, shown
from tests.command_line import casstore as command_line

PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text("ab c", max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)  # fmt: skip


def command(home: Path, *arguments: object) -> tuple[int, str, str]:
    return command_line(*arguments, "--home", home)


@settings(max_examples=200, deadline=None)
@given(PLAIN, PLAIN)
def test_values_differ_where_they_do(old: Any, new: Any) -> None:
    """Nothing is reported for equal values, something for others; each path leads to what is reported."""
    found = list(differences(old, new))
    same = json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)
    assert (found == []) is same
    assert len({item.path for item in found}) == len(found)
    assert list(differences(old, old)) == []


def test_paths_and_texts() -> None:
    """Paths as in the errors of values; long texts are cut."""
    old = {"a": [1, {"b": 2}], "gone": 1, "odd key": 1}
    new = {"a": [1, {"b": 3}, 4], "odd key": True}
    assert [(item.path, item.what) for item in differences(old, new)] == [
        ("$.a[1].b", "changed"), ("$.a[2]", "added"), ("$.gone", "removed"), ('$["odd key"]', "changed")
    ]  # fmt: skip
    assert shown("x" * 100) == "'" + "x" * 58 + "…"


def test_diff_of_values_and_of_bytes(tmp_path: Path) -> None:
    """Two snapshots path by path; other bytes from where they differ; equal ones say nothing."""
    with casstore.open(tmp_path / "home") as store:
        child = store.put(b"child")
        old, new = store.put_value({"n": 1, "same": [1]}), store.put_value({"n": 2, "same": [1], "link": child})
        left, right = store.put(b"\xffsame start, then this"), store.put(b"\xffsame start, then that one")
    code, out, _ = command(tmp_path / "home", "diff", old, new, "--json")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [
        {"path": "$.n", "what": "changed", "old": 1, "new": 2},
        {"path": "$.link", "what": "added", "old": None, "new": {"/": str(child)}},
    ]
    assert "$.n: 1 -> 2" in command(tmp_path / "home", "diff", old, new)[1]
    assert json.loads(command(tmp_path / "home", "diff", left, right, "--json")[1])["from_byte"] == 20
    assert command(tmp_path / "home", "diff", left, left)[1] == ""


def test_doctor_finds_what_needs_care(tmp_path: Path) -> None:
    """A sound home is sound; a run that nobody works on, a left-over generation, a missing journal are named."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        jrn.start_run("flow", manifest={}, context={}, run_id=UUID(int=1)).complete()
    code, out, _ = command(home, "doctor", "--json")
    assert code == 0 and all(json.loads(line)["ok"] for line in out.splitlines())
    with journal.open(home) as jrn:
        jrn.start_run("flow", manifest={}, context={}, run_id=UUID(int=2)).release()
    (home / "store" / "7").mkdir()
    code, out, _ = command(home, "doctor", "--json")
    wrong = {check["check"]: check["detail"] for check in map(json.loads, out.splitlines()) if not check["ok"]}
    assert code == 1 and wrong.keys() == {"runs", "generations"} and str(UUID(int=2)) in wrong["runs"]
    with casstore.open(tmp_path / "alone"):
        pass
    code, out, _ = command(tmp_path / "alone", "doctor")
    assert code == 1 and "LOOK  journal" in out
    assert command(tmp_path / "nowhere", "doctor")[0] == 10


def test_bench_measures_and_leaves_nothing(tmp_path: Path) -> None:
    """Figures above zero, and the directory is as it was."""
    code, out, error = command(tmp_path / "home", "bench", "--dir", tmp_path, "--steps", "10", "--json")
    assert code == 0, error
    figures = json.loads(out)
    assert len(figures) >= 8 and all(value > 0 for value in figures.values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["diff", "0000"], ["diff", "xyz", "abc"], ["bench", "--steps", "1"]])
def test_mistakes(tmp_path: Path, arguments: list[str]) -> None:
    """Usage errors end with 2, in one line."""
    casstore.open(tmp_path / "home").close()
    code, out, error = command(tmp_path / "home", *arguments)
    assert (code, out) == (2, "") and len(error.splitlines()) == 1
