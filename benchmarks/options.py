"""What a call asks for."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`rounds` 0 is the workload's own number; `only` and `cases` empty are all of them."""

    quick: bool = False
    rounds: int = 0
    only: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    where: Path | None = None

    @property
    def joined_cases(self) -> str:
        """The cases as the command line takes them."""
        return ",".join(self.cases)

    def rounds_or(self, full: int, quick: int) -> int:
        """The number of rounds."""
        return self.rounds or (quick if self.quick else full)

    def wants(self, case: str) -> bool:
        """Whether a case was asked for."""
        return not self.cases or any(case.startswith(wanted) for wanted in self.cases)


def say(text: str) -> None:
    """Progress: results go to stdout, this does not."""
    print(text, file=sys.stderr, flush=True)
