"""Rounds of a case: the machine's noise, then every peer in turn, beginning with another one each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks import postgres
from benchmarks.measure import Results, probe, scratch
from benchmarks.options import Options, say
from benchmarks.peers import missing

Samples = dict[str, "float | list[float]"]


class Described(Protocol):
    """What the peers of all workloads have."""

    @property
    def name(self) -> str:
        """How tables call it."""

    @property
    def requires(self) -> tuple[str, ...]:
        """Modules that it needs."""


P = TypeVar("P", bound=Described)


def run_case(
    results: Results, options: Options, workload: str, case: str, known: Sequence[type[P]], rounds: int,
    measure: Callable[[type[P], Path, int], Samples],
) -> None:  # fmt: skip
    """`measure(peer, home, round)` for each of the peers that are wanted and here; nothing if the case is not wanted.

    A peer that fails is told about and left out of this round: that it cannot do it is a result. Ours is not excused.
    """
    if not options.wants(case):
        return
    peers = choose(options, known)
    for number in range(rounds):
        probe(results, workload, case, number, options.where)
        for peer in rotated(peers, number):
            say(f"{workload} {case}, round {number + 1} of {rounds}: {_name(peer)}")
            try:
                with scratch(options.where) as home:
                    results.add(workload, case, _name(peer), number, **measure(peer, home, number))
            except Exception as error:
                if _name(peer) == "ours":
                    raise
                say(f"{workload} {case}: {_name(peer)} failed: {type(error).__name__}: {error}")


def choose(options: Options, known: Sequence[type[P]]) -> list[type[P]]:
    """The peers that were asked for and are installed; one line for each that is not."""
    found = []
    for peer in known:
        if options.only and _name(peer) not in options.only:
            continue
        absent = missing(_requires(peer))
        if absent is None:
            found.append(peer)
        else:
            hint = "" if absent == postgres.SERVER else " (pip install '.[bench]')"
            say(f"{_name(peer)}: skipped, {absent} is not installed{hint}")
    return found


def rotated(peers: Sequence[type[P]], number: int) -> list[type[P]]:
    """Another one begins each round, so that nobody always comes after the same one."""
    start = number % len(peers) if peers else 0
    return [*peers[start:], *peers[:start]]


def _name(peer: Any) -> str:
    name: str = peer.name
    return name


def _requires(peer: Any) -> tuple[str, ...]:
    modules: tuple[str, ...] = peer.requires
    return modules
