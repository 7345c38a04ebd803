"""Every parameter of every public method is given what it is not made for: an error with a code, or an answer, and
nothing is harmed."""

from __future__ import annotations

import inspect
import math
import uuid
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import casstore
import journal
from casstore import ArtifactId
from casstore.errors import CodedError


class Text(str):
    """No plain text."""


ODD: dict[str, Any] = {
    "None": None, "True": True, "below 0": -1, "0": 0, "10^30": 10**30, "a float": 1.5, "NaN": math.nan,
    "an infinity": math.inf, "text": "a", "no text": "", "bytes": b"x", "a surrogate": "\ud800", "a NUL": "a\0b",
    "a list": [1], "a list of lists": [[]], "a map": {1: 2}, "an object": object(), "a set": {1},
    "a subclass of str": Text("a"), "a function": lambda *_: None, "a tuple": (1,), "a UUID": uuid.UUID(int=5),
    "an id": ArtifactId.of(b"nowhere"),
}  # fmt: skip
# They end what the next ones need, or copy all of it.
LEFT_OUT = {"close", "complete", "fail", "cancel", "abandon", "release", "compact", "backup"}
# What the two packages ask of each other.
BETWEEN = {
    "put_prepared", "live_roots", "retained_roots", "roots_after", "roots_since", "ended_between", "view", "witness",
    "history",
}  # fmt: skip
CALLED = {"progress", "stop", "fetch"}  # called in the middle, where a TypeError is theirs
PATHS = {"source", "src", "out", "dest"}  # of which Python says itself what a path cannot be


@pytest.fixture(params=["store", "lease", "journal", "run", "attempt"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    """The journal, one of its objects, and an argument that is right for each parameter that has to be given."""
    with journal.open(tmp_path / "home") as jrn:
        store = jrn.store
        run = jrn.start_run("op", manifest={}, context={}, plan=["a.b.c"])
        attempt = run.enter("a.b.c")
        objects = {"store": store, "lease": store.lease(60), "journal": jrn, "run": run, "attempt": attempt}
        good = {
            "id": store.put(b"hello"), "ids": [store.put(b"hello")], "data": b"x", "value": {"a": 1}, "prefix": "abcd",
            "name": "n", "ttl": 5, "source": BytesIO(b"x"), "items": [b"a"], "kind": "other", "start": 0, "length": 1,
            "run_id": run.run_id, "key": "k", "op_id": "op", "manifest": {}, "context": {}, "roots": jrn, "seq": 1,
            "expected_seq": 3, "events": [journal.DomainEvent("x")], "position": 0, "at_seq": 1, "path": "p",
            "phase": "ph", "out": BytesIO(), "src": BytesIO(), "state_id": "a.b.c", "payload": {}, "batches": {},
            "claim": None, "other": store,
        }  # fmt: skip
        yield jrn, objects[request.param], good


def _calls(subject: Any, good: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(what is called how, the call)."""
    for name, _ in inspect.getmembers(type(subject), inspect.isfunction):
        if name.startswith("_") or name in LEFT_OUT | BETWEEN:
            continue
        parameters = list(inspect.signature(getattr(subject, name)).parameters.values())
        needed = [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
        for parameter in parameters:
            if parameter.name in CALLED or (name in ("feed", "watch") and parameter.name in ("follow", "timeout")):
                continue
            for odd, value in ODD.items():
                if parameter.name in PATHS and odd in ("a surrogate", "a NUL"):
                    continue
                given = {one: good[one] for one in needed}
                positional = [value] if parameter.kind is parameter.VAR_POSITIONAL else []
                if not positional:
                    given[parameter.name] = value
                bound = getattr(subject, name)
                yield f"{name}({parameter.name}: {odd})", lambda bound=bound, at=positional, by=given: bound(*at, **by)


def test_odd_arguments_are_refused_with_a_code(
    case: tuple[Any, Any, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain TypeErrors and the like come from nowhere; afterwards everything verifies and the attempt goes on."""
    monkeypatch.chdir(tmp_path)  # files that are named `a`
    jrn, subject, good = case
    wrong: list[str] = []
    tried = 0
    for said, call in _calls(subject, good):
        tried += 1
        try:
            found = call()
            if inspect.isgenerator(found):
                with closing(found):
                    list(islice(found, 3))
        except (CodedError, OSError):
            continue
        except Exception as error:
            wrong.append(f"{said}: {type(error).__name__}: {error}")
    assert wrong == [] and tried >= 40
    assert jrn.store.verify().findings == () and jrn.verify() == []
    again = jrn.store.put_value({"n": 1})
    assert jrn.store.get_value(again) == {"n": 1}
    assert jrn.run_state(good["run_id"]).status is None


def test_what_is_left_out_is_there() -> None:
    """The lists of this test name methods that exist."""
    known = {
        name for one in (casstore.Store, casstore.Lease, journal.Journal, journal.Run, journal.Attempt)
        for name in dir(one)
    }  # fmt: skip
    assert known >= LEFT_OUT | BETWEEN
