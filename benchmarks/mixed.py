"""Workload `mixed`: runs that step while other threads of the same process read earlier contexts and resume runs."""

from __future__ import annotations

import random
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.data import advance, growing, size_name
from benchmarks.measure import Results, quiet, timed
from benchmarks.options import Options
from benchmarks.peers import Git, Peer
from benchmarks.rounds import Samples, run_case
from benchmarks.runs import together
from benchmarks.server_peers import AnyDbos
from benchmarks.steps import PEERS, recover

WORKLOAD: Final = "mixed"
RUNS: Final = 8
READERS: Final = 2
SIZE: Final = 18 << 10
STEPS: Final = (50, 20)  # of each run: full, quick
RESUMES: Final = 0.25  # of what a reader does; the rest are reads of a random earlier context
# git has a walk from the newest commit, a step at a time; DBOS makes the steps itself
READABLE: Final = [peer for peer in PEERS if peer is not Git and not issubclass(peer, AnyDbos)]


def run(results: Results, options: Options) -> None:
    """The one case, all peers, in turn."""
    case = f"{RUNS} x {size_name(SIZE)}, {READERS} readers"
    measure = partial(measure_mixed, runs=RUNS, size=SIZE, steps=STEPS[options.quick])
    run_case(results, options, WORKLOAD, case, READABLE, options.rounds_or(5, 3), measure)


def measure_mixed(peer: type[Peer], home: Path, number: int, *, runs: int, size: int, steps: int) -> Samples:
    """One peer, once: steps and reads a second, and how long each took. What is read is known by its run, its step
    and its length; two runs are read back whole."""
    context, messages = growing(size, steps, seed=7 + number)
    contexts = [{**deepcopy(context), "run": own} for own in range(runs)]
    done = [0] * runs  # steps that readers may ask for
    stepping = set(range(runs))
    took_s: dict[str, list[float]] = {"step_s": [], "read_s": [], "resume_s": []}
    subject = peer(home)

    def begin(own: int) -> None:
        if own < runs:
            subject.begin(own, contexts[own])

    def work(own: int) -> None:
        if own >= runs:
            read(random.Random(own))
            return
        try:
            for step, grown in enumerate(messages):
                advance(contexts[own], step, grown)
                took_s["step_s"].append(timed(partial(subject.step, own, step, contexts[own]))[0])
                done[own] = step + 1
        finally:
            stepping.discard(own)

    def read(r: random.Random) -> None:
        while stepping:
            own = r.randrange(runs)
            there = done[own]
            if not there:
                continue
            if r.random() < RESUMES:
                took, found = timed(partial(subject.resume, own))
                took_s["resume_s"].append(took)
                right = there - 1 <= found["cursor"]
            else:
                step = r.randrange(there)
                took, found = timed(partial(subject.read, own, step))
                took_s["read_s"].append(took)
                right = found["cursor"] == step
            length = len(context["messages"]) + found["cursor"] + 1
            if not right or found["run"] != own or len(found["messages"]) != length:
                raise AssertionError(f"{peer.name}: a context of another run or step was read")

    with quiet():
        took = together(runs + READERS, begin, work).took_s
    subject.close()
    for own in {0, runs - 1}:
        recover(peer, home, contexts[own], own)
    reads = len(took_s["read_s"]) + len(took_s["resume_s"])
    return {"steps_per_s": runs * steps / took, "reads_per_s": reads / took, **took_s}
