"""What a call asks for."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`rounds` and `size` (bytes, of files) 0 are the workload's own; `only` and `cases` empty are all of them."""

    quick: bool = False
    large: bool = False
    rounds: int = 0
    only: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    where: Path | None = None
    size: int = 0

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


def parse_size(text: str) -> int:
    """Bytes of `3GiB`, `64MiB`, `1000`. Raises: ValueError."""
    for unit, size in (("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)):
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * size)
    return int(text)


def say(text: str) -> None:
    """Progress: results go to stdout, this does not."""
    print(text, file=sys.stderr, flush=True)
