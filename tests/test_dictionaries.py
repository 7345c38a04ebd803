"""Dictionaries for small artifacts: they help where there is something to learn, and are never lost before their
last user."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import casstore
from casstore import ArtifactId, dictionaries
from casstore.testing import FakeRoots, memory_store
from tests.command_line import casstore as command_line


def documents(count: int, seed: int) -> list[bytes]:
    """JSON of some 500 bytes, alike but for names and numbers."""
    rng = random.Random(seed)
    words = [f"word{n}" for n in range(500)]
    return [json.dumps({
        "type": rng.choice(["order", "refund"]), "created_at": 1_700_000_000 + n, "status": "confirmed",
        "customer": {"name": rng.choice(words), "country": rng.choice(["DE", "FR"]), "tags": rng.sample(words, 3)},
        "items": [{"sku": rng.choice(words), "quantity": rng.randrange(9), "currency": "EUR", "price_cents": 100 + n}
                  for _ in range(4)],
    }).encode() for n in range(count)]  # fmt: skip


def trained(store: casstore.Store) -> tuple[ArtifactId, list[ArtifactId]]:
    store.put_many([(data, "fact_payload") for data in documents(400, 1)])
    dictionary = store.train("fact_payload")
    assert dictionary is not None
    return dictionary, store.put_many([(data, "fact_payload") for data in documents(400, 2)])


def test_small_artifacts_are_kept_in_half_and_less() -> None:
    """Those put after the training use the dictionary and take less than half; all read the same."""
    with memory_store() as store:
        dictionary, names = trained(store)
        by_encoding = store.stats().by_encoding
        before, after = by_encoding["zstd"], by_encoding["zstd-dictionary"]
        assert after[0] == 400 and after[2] / after[0] < 0.5 * before[2] / before[0]
        assert [store.get(name) for name in names] == documents(400, 2)
        assert store.info(names[0]).base == dictionary and store.pins()["dictionary/fact_payload"] == dictionary
        assert store.verify().findings == ()


def test_a_dictionary_outlives_its_pin_while_it_is_needed(tmp_path: Path) -> None:
    """Unpinned and collected, its bytes stay for the artifacts that need them, and go with the last of them."""
    with casstore.open(tmp_path / "home") as store:
        dictionary, names = trained(store)
        roots = FakeRoots(store)
        roots.append("run", *names[:5])
        store.unpin("dictionary/fact_payload")
        store.gc(roots, grace=0, force=True)
        with pytest.raises(casstore.Collected):
            store.get(dictionary)
        assert [store.get(name) for name in names[:5]] == documents(400, 2)[:5]
        assert store.put(b"x" * 300, kind="fact_payload") in store  # the writer still remembers the dictionary
        assert store.verify().findings == ()
    with casstore.open(tmp_path / "home") as store:
        assert [store.get(name) for name in names[:5]] == documents(400, 2)[:5]
        store.compact()
        assert store.get(names[0]) == documents(400, 2)[0]
        store.gc(FakeRoots(store), grace=0, force=True)
        stats = store.stats()
        assert (stats.artifacts, stats.stored_bytes, stats.kept_bytes) == (0, 0, 0)


def test_a_damaged_dictionary_is_named_and_healed(tmp_path: Path) -> None:
    """Its users say that their bytes are wrong, never give other ones; a put of the good bytes heals them all."""
    with casstore.open(tmp_path / "home") as store:
        dictionary, names = trained(store)
        good = store.get(dictionary)
        with store._backend._tables.write() as txn:  # type: ignore[attr-defined]
            data_id = txn.get(b"ix1", dictionary.digest)[:8]
            key, piece = next(txn.scan(b"d1", data_id))
            txn.put(b"d1", key, piece[:100] + bytes([piece[100] ^ 4]) + piece[101:])
    with casstore.open(tmp_path / "home") as store:
        for name in names[:20]:
            with pytest.raises(casstore.Corrupt):
                store.get(name)
        assert store.put(good) == dictionary
    with casstore.open(tmp_path / "home") as store:
        assert [store.get(name) for name in names] == documents(400, 2)
        assert store.verify().findings == ()


def test_nothing_is_trained_where_there_is_nothing_to_learn() -> None:
    """Too few, or noise: no dictionary, and puts go on as before."""
    with memory_store() as store:
        assert store.train("fact_payload") is None
        rng = random.Random(3)
        store.put_many([(rng.randbytes(300), "fact_payload") for _ in range(300)])
        assert store.train("fact_payload") is None and store.pins() == {}
    assert dictionaries.train([b"same"] * 50) is None


def test_a_pin_that_holds_no_dictionary_does_no_harm() -> None:
    """Whatever a user pins under such a name: puts are stored whole."""
    with memory_store() as store:
        store.pin("dictionary/my_kind", store.put(b"no dictionary"))
        name = store.put(b"some text " * 20, kind="my_kind")
        assert store.get(name) == b"some text " * 20 and store.info(name).base is None


def test_the_command(tmp_path: Path) -> None:
    """`casstore train KIND` says what it made."""
    home = tmp_path / "home"
    with casstore.open(home) as store:
        store.put_many([(data, "my_kind") for data in documents(300, 1)])
    made = command_line("train", "my_kind", "--json", home=home).document
    with casstore.open(home) as store:
        assert store.pins() == {"dictionary/my_kind": ArtifactId.parse(made["dictionary"])}
