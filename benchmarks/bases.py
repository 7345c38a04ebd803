"""Workload `bases`: what versions take where the caller names no base, against naming it and against no search.

`ours` is a put without a base: the store looks for one. `with_hint` names the version before, as the recorder of the
journal does; `without` searches nothing. "put cpu" is processor time, which flushes do not blur.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import casstore
from benchmarks.data import Context, advance, growing, message, objects, size_name
from benchmarks.measure import OURS, Results, quiet
from benchmarks.options import Options
from benchmarks.rounds import Samples, run_case
from casstore import ArtifactId, values

WORKLOAD: Final = "bases"
SIZE: Final = 100 << 10
Step = tuple[int, bytes]  # of which run it is the next version


@dataclass(frozen=True, slots=True)
class Put:
    """How bases are chosen."""

    name: ClassVar[str] = OURS
    requires: ClassVar[tuple[str, ...]] = ()
    hinted: ClassVar[bool] = False
    searches: ClassVar[bool] = True


class WithHint(Put):
    """The version before is named."""

    name = "with_hint"
    hinted = True


class Without(Put):
    """Nothing is named and nothing searched."""

    name = "without"
    searches = False


PEERS: Final[list[type[Put]]] = [Put, WithHint, Without]


def run(results: Results, options: Options) -> None:
    """All cases, the three in turn."""
    steps = 60 if options.quick else 300
    for case, make in CASES.items():
        measure = partial(measure_bases, make=make, steps=steps)
        run_case(results, options, WORKLOAD, f"{case}, {steps} steps", PEERS, options.rounds_or(5, 3), measure)


def measure_bases(
    peer: type[Put], home: Path, number: int, *, make: Callable[[int, int], Iterator[Step]], steps: int
) -> Samples:
    """Stored bytes a step, and the processor time of each put. All are read back."""
    cpu: list[float] = []
    names: list[tuple[ArtifactId, bytes]] = []
    before: dict[int, ArtifactId] = {}
    with casstore.open(home / "home") as store, quiet():
        if not peer.searches:
            store._writer._hints.find = lambda *_: None  # type: ignore[method-assign]
        for own, data in make(steps, 7 + number):
            base = before.get(own) if peer.hinted else None
            begun = time.process_time()
            name = store.put(data, kind="output", base=base, durable=False)
            cpu.append(time.process_time() - begun)
            before[own] = name
            names.append((name, data))
        stored = store.stats().stored_bytes
        if any(store.get(name) != data for name, data in names):
            raise AssertionError(f"{peer.name}: an artifact differs")
        found = sum(store.info(name).base is not None for name, _ in names)
    return {"stored_bytes": stored / len(names), "based": found / len(names), "put_cpu_s": cpu}


def _encoded(context: Context) -> bytes:
    return values.encode(context)[0]


def one_run(steps: int, seed: int, runs: int = 1) -> Iterator[Step]:
    """Contexts that grow by a message a step; several runs in turn, which begin alike."""
    context, messages = growing(SIZE, steps, seed)
    contexts = [json.loads(json.dumps({**context, "run": own})) for own in range(runs)]
    r = random.Random(seed)
    for step, grown in enumerate(messages):
        own = step % runs
        advance(contexts[own], step, grown if runs == 1 else message(r))
        yield own, _encoded(contexts[own])


def shrinking(steps: int, seed: int) -> Iterator[Step]:
    """Every twentieth step the older half of the messages is left out, and a summary put in its place."""
    r = random.Random(seed)
    context: dict[str, Any] = {"op": "demo", "cursor": 0, "messages": [message(r) for _ in range(SIZE // 480)]}
    for step in range(steps):
        if step % 20 == 19:
            half = len(context["messages"]) // 2
            context["messages"] = [message(r), *context["messages"][half:]]
        for _ in range(5):
            advance(context, step, message(r))
        yield 0, _encoded(context)


def reordered(steps: int, seed: int) -> Iterator[Step]:
    """Each step a block of messages goes to another place, and one is new."""
    r = random.Random(seed)
    context: dict[str, Any] = {"op": "demo", "cursor": 0, "messages": [message(r) for _ in range(SIZE // 480)]}
    for step in range(steps):
        messages = context["messages"]
        at, to = r.randrange(len(messages) - 20), r.randrange(len(messages) - 20)
        block = messages[at : at + 20]
        del messages[at : at + 20]
        messages[to:to] = block
        advance(context, step, message(r))
        yield 0, _encoded(context)


def distinct(steps: int, seed: int) -> Iterator[Step]:
    """Texts of which no two are alike."""
    yield from enumerate(objects(steps, SIZE, seed))


def random_bytes(steps: int, seed: int) -> Iterator[Step]:
    """What neither compresses nor resembles anything."""
    r = random.Random(seed)
    for step in range(steps):
        yield step, r.randbytes(SIZE)


def same_head(steps: int, seed: int) -> Iterator[Step]:
    """A quarter is the same in all, the rest is not: alike, and hardly worth a delta."""
    head = objects(1, SIZE // 4, seed + 1000)[0]
    for step, data in enumerate(objects(steps, SIZE * 3 // 4, seed)):
        yield step, head + data


CASES: Final[dict[str, Callable[[int, int], Iterator[Step]]]] = {
    f"one run, {size_name(SIZE)}": one_run,
    f"8 runs in turn, {size_name(SIZE)}": partial(one_run, runs=8),
    f"32 runs in turn, {size_name(SIZE)}": partial(one_run, runs=32),
    f"shrinking, {size_name(SIZE)}": shrinking,
    f"reordered, {size_name(SIZE)}": reordered,
    f"distinct texts, {size_name(SIZE)}": distinct,
    f"random bytes, {size_name(SIZE)}": random_bytes,
    f"same head, {size_name(SIZE)}": same_head,
}
