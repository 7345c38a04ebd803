"""Make the golden home of the present format: run once for each format number, and keep what it writes.

    python tests/golden/make.py

It holds an artifact of every encoding, a collected one, a pin, staged ones, and runs that ended, failed, died and were
forked.
"""

from __future__ import annotations

import json
import random
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

import casstore
import journal
from casstore.home import FORMAT_NUMBER
from casstore.testing import FakeClock
from journal.event_json import to_json

HERE = Path(__file__).parent
A, B = "golden.step.a", "golden.step.b"


def fill(home: Path, copy: Path) -> dict[str, Any]:
    """What is there, as the test compares it. The copy is made before the journal is closed, which would settle."""
    clock, rng = FakeClock(), random.Random(2)
    with casstore.open(home, clock=clock) as store, journal.open(home, store=store, clock=clock) as jrn:
        text = b"".join(b"line %d of a text that compresses\n" % n for n in range(3000))
        scattered = bytearray(text)
        for at in range(0, len(scattered), 700):
            scattered[at : at + 3] = rng.randbytes(3)
        names = {
            "empty": store.put(b""), "raw": store.put(rng.randbytes(300)), "zstd": store.put(text, kind="output"),
            "frames": store.put(text * 12 + rng.randbytes(2000), kind="my_kind"),
        }  # fmt: skip
        names["segments"] = store.put(text + b"and one line more\n", base=names["zstd"])
        names["zstd_delta"] = store.put(bytes(scattered), base=names["zstd"])
        value = {"links": [names["raw"], names["zstd"]], "f": -1.5, "i": -(1 << 64), "b": b"\0"}
        names["value"] = store.put_value(value)
        store.put_many([(_small(n), "small") for n in range(300)])
        assert store.train("small") is not None
        names["dictionary"] = store.put(_small(777), kind="small")
        store.pin("everything", store.put_value(dict(names)))
        gone = store.put(b"soon gone")
        done = jrn.start_run("golden", manifest={"n": 1}, context={"n": 0}, plan=[A, B], run_id=UUID(int=1))
        with done.enter(A) as attempt:
            attempt.fact("price|btc", {"price": 17}, meta={"from": "nowhere"})
            attempt.output(b"an output")
            attempt.complete({"n": 1}, then=B)
        clock.advance(1.5)
        try:
            with done.enter(B) as attempt:
                raise OSError("once")
        except OSError:
            pass
        with done.enter(B) as attempt:
            attempt.complete({"n": 2})
        done.complete()
        died = jrn.start_run("golden", manifest={"n": 2}, context={"n": 0}, run_id=UUID(int=2))
        died.enter(A)
        jrn.fork(UUID(int=1), 8, UUID(int=3)).release()
        jrn.start_run("golden", manifest={}, context={}, run_id=UUID(int=4)).fail("no reason")
        jrn.cancel(UUID(int=2), "enough")
        store.gc(jrn, grace=0)
        assert gone not in store
        lines = [f"line {n} of a context" for n in range(200)]
        run = jrn.start_run("golden", manifest={"n": 5}, context={"lines": lines}, run_id=UUID(int=5))
        run.enter(A).complete({"lines": [*lines, "and one more"]})
        run.enter(B).complete({"lines": [*lines, "and one more"], "child": run.state.manifest_id})
        run.release()
        assert store.stats().staged == 4
        shutil.copytree(home, copy)
        return {
            "artifacts": {str(name): [len(store.get(name)), list(store.info(name).kinds), store.info(name).encoding]
                          for name in store},
            "names": {name: str(found) for name, found in names.items()},
            "gone": str(gone),
            "events": [to_json(item) for item in jrn.feed()],
            "chains": {str(row.run_id): jrn.chain_head(row.run_id, row.head).hex() for row in jrn.runs()},
        }  # fmt: skip


def _small(number: int) -> bytes:
    rng = random.Random(number)
    words = [rng.choice(["alpha", "beta", "gamma", "delta", "epsilon"]) for _ in range(20)]
    return json.dumps({"kind": "small", "number": number, "status": "confirmed", "words": words}).encode()


def main() -> None:
    """Write format-N.tar.xz and format-N.json beside this file."""
    place = Path(tempfile.mkdtemp())
    try:
        expected = fill(place / "made", place / "home")
        for lock in place.rglob("lock.mdb"):
            lock.unlink()
        with tarfile.open(HERE / f"format-{FORMAT_NUMBER}.tar.xz", "w:xz") as archive:
            archive.add(place / "home", "home")
        (HERE / f"format-{FORMAT_NUMBER}.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
