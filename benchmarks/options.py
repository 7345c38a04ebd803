"""What a call asks for, and the peers that it gets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks.peers import missing


class Described(Protocol):
    """What peers of all workloads have."""

    name: str
    requires: tuple[str, ...]


P = TypeVar("P", bound=Described)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`rounds` 0 is the workload's own number; `only` and `cases` empty are all of them."""

    quick: bool = False
    rounds: int = 0
    only: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    where: Path | None = None

    def rounds_or(self, full: int, quick: int) -> int:
        """The number of rounds."""
        return self.rounds or (quick if self.quick else full)

    def wants(self, case: str) -> bool:
        """Whether a case was asked for."""
        return not self.cases or any(case.startswith(wanted) for wanted in self.cases)

    def peers(self, known: Sequence[type[P]]) -> list[type[P]]:
        """The peers that were asked for and are installed; one line for each that is not."""
        found = []
        for peer in known:
            if self.only and peer.name not in self.only:
                continue
            absent = missing(peer.requires)
            if absent is None:
                found.append(peer)
            else:
                say(f"{peer.name}: skipped, {absent} is not installed (pip install '.[bench]')")
        return found


def rotated(peers: Sequence[type[P]], number: int) -> list[type[P]]:
    """Another one begins each round, so that nobody always comes after the same one."""
    start = number % len(peers) if peers else 0
    return [*peers[start:], *peers[:start]]


def say(text: str) -> None:
    """Progress: results go to stdout, this does not."""
    print(text, file=sys.stderr, flush=True)
