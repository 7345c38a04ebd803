"""A home that was made once with this format still reads to the last byte, and can be written to."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from uuid import UUID

import pytest

import casstore
import journal
from casstore import ArtifactId
from casstore.home import FORMAT_NUMBER
from journal.event_json import to_json
from tests.golden.make import fill

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with tarfile.open(GOLDEN / f"format-{FORMAT_NUMBER}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "home"


@pytest.mark.spec("FORMAT")
def test_the_golden_home_reads(home: Path) -> None:
    """Every artifact, event, chain and row is what it was."""
    expected = json.loads((GOLDEN / f"format-{FORMAT_NUMBER}.json").read_text())
    with journal.open(home) as jrn:
        store = jrn.store
        assert store.verify().findings == () and jrn.verify() == []
        found = {str(name): [len(store.get(name)), list(store.info(name).kinds), store.info(name).encoding]
                 for name in store}  # fmt: skip
        assert found == expected["artifacts"]
        assert [to_json(item) for item in jrn.feed()] == expected["events"]
        assert {str(row.run_id): jrn.chain_head(row.run_id, row.head).hex() for row in jrn.runs()} == expected["chains"]
        for row in jrn.runs():
            assert jrn.run_state(row.run_id) == journal.analyze(jrn.read(row.run_id))
        with pytest.raises(casstore.Collected):
            store.get(ArtifactId.parse(expected["gone"]))
        assert store.pins()["everything"] in store
        assert store.stats().staged == 4


def test_the_golden_home_goes_on(home: Path) -> None:
    """A fork that was live when it was made is resumed and ends; gc and compact work."""
    with journal.open(home) as jrn:
        run = jrn.resume(UUID(int=3))
        while run.next is not None:
            with run.enter(run.next) as attempt:
                attempt.complete({"n": attempt.context()["n"] + 1})
        run.complete()
        jrn.store.gc(jrn, grace=0, keep_completed=0)
        jrn.store.compact()
        assert jrn.store.verify().findings == () and jrn.verify() == []


def test_what_is_written_today_is_the_same(tmp_path: Path) -> None:
    """Ids, encodings and events of the same calls are those of the golden home: who changes one of them changes the
    format number. Chains hold random tokens, so they differ."""
    expected = json.loads((GOLDEN / f"format-{FORMAT_NUMBER}.json").read_text())
    made = fill(tmp_path / "home", tmp_path / "copy")
    for document in (expected, made):
        del document["chains"]
        for item in document["events"]:
            item["event"].get("payload", {}).pop("head_hash", None)
    assert made == expected
