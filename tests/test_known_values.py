"""A value that this process encoded, or that it checked when it read it, is not checked for its form again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import casstore
import journal
from casstore import recent, values

CONTEXT = {"messages": [{"role": "user", "content": "x" * 50, "cost": 0.5} for _ in range(60)], "n": 1}


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was decoded with a check of its form."""
    found, decode = list[bytes](), values._decode

    def noted(data: bytes) -> Any:
        found.append(data)
        return decode(data)

    monkeypatch.setattr(values, "_decode", noted)
    return found


def test_once_for_each_value(tmp_path: Path, checked: list[bytes]) -> None:
    """None for what was put here, one for what comes from elsewhere; a fresh object each time."""
    with casstore.open(tmp_path / "home") as store:
        name = store.put_value(CONTEXT)
        linking = store.put_value({"context": name})
        assert store.get_value(name) == CONTEXT and store.get_value(name) is not store.get_value(name)
        assert store.get_value(linking) == {"context": name} and checked == []
    with casstore.open(tmp_path / "home") as store:
        first, second = store.get_value(name), store.get_value(name)
        assert first == second == CONTEXT and first["messages"] is not second["messages"]
        assert store.get_value(linking) == store.get_value(linking) == {"context": name}
        assert checked == [store.get(name), store.get(linking)]


def test_what_is_no_value_is_refused_each_time(tmp_path: Path) -> None:
    """Put as bytes, in a form that no encoder makes."""
    with casstore.open(tmp_path / "home") as store:
        for data in (b"\xa2\x61b\x01\x61a\x02", b"\x81" * 200 + b"\x01", b"\x18\x01", b""):
            name = store.put(data)
            for _ in range(2):
                with pytest.raises(casstore.UndecodableValue):
                    store.get_value(name)


def test_few_are_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checked: list[bytes]) -> None:
    """The newest; the others are checked again."""
    monkeypatch.setattr(recent, "ITEMS_MAX", 3)
    with casstore.open(tmp_path / "home") as store:
        names = [store.put_value({"n": n}) for n in range(5)]
        assert [store.get_value(name) for name in reversed(names)] == [{"n": n} for n in reversed(range(5))]
        assert checked == [store.get(names[1]), store.get(names[0])]


def test_a_fact_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded is what was encoded then, whatever becomes of the value; with its links."""
    encoded, encode = list[object](), values.encode

    def noted(value: object) -> Any:
        encoded.append(value)
        return encode(value)

    with journal.open(tmp_path / "home") as jrn:
        run = jrn.start_run("op", manifest={}, context={})
        linked = jrn.store.put(b"linked")
        with run.enter("a.b.c") as attempt:
            monkeypatch.setattr(values, "encode", noted)
            value = {"answer": CONTEXT, "of": linked}
            assert attempt.fact("key", lambda: value) == value
            assert [item for item in encoded if item == value] == [value]
            monkeypatch.undo()
            attempt.complete({})
        (payload_id,) = run.state.facts.values()
        assert jrn.store.info(payload_id).links == (linked,) and jrn.store.get_value(payload_id) == value
