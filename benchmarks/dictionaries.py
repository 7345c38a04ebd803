"""What a trained dictionary saves on small JSON: `python -m benchmarks.dictionaries [--count N]`."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time

import casstore

WORDS = [f"word{n}" for n in range(800)]


def document(rng: random.Random, number: int) -> bytes:
    """Some 640 bytes: alike in shape, different in names, numbers and a random id."""
    return json.dumps({
        "id": f"{rng.getrandbits(128):032x}", "type": rng.choice(["order", "refund", "quote"]),
        "created_at": 1_700_000_000_000 + number * 977, "status": "confirmed",
        "customer": {"name": " ".join(rng.choices(WORDS, k=2)), "country": rng.choice(["DE", "FR", "US", "JP"]),
                     "tags": rng.choices(WORDS, k=4)},
        "items": [{"sku": rng.choice(WORDS), "quantity": rng.randrange(9), "price_cents": rng.randrange(99_999),
                   "currency": "EUR"} for _ in range(4)],
        "note": " ".join(rng.choices(WORDS, k=12)),
    }).encode()  # fmt: skip


def main() -> None:
    """Put half, train, put the other half; print bytes an object and what was gained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=6000)
    count = parser.parse_args().count
    rng = random.Random(5)
    documents = [document(rng, number) for number in range(count)]
    place = tempfile.mkdtemp()
    try:
        with casstore.open(place) as store:
            store.put_many([(data, "fact_payload") for data in documents[: count // 2]])
            without = store.stats().by_encoding["zstd"]
            began = time.perf_counter()
            assert store.train("fact_payload") is not None
            trained_s = time.perf_counter() - began
            names = store.put_many([(data, "fact_payload") for data in documents[count // 2 :]])
            with_it = store.stats().by_encoding["zstd-dictionary"]
            assert [store.get(name) for name in names] == documents[count // 2 :]
    finally:
        shutil.rmtree(place)
    before, after = without[2] / without[0], with_it[2] / with_it[0]
    print(f"raw {without[1] / without[0]:.0f} B, zstd {before:.0f} B, with the dictionary {after:.0f} B an object: "
          f"{before / after:.2f} times smaller; training took {trained_s:.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
