"""The table of races in docs/GC.md lists exactly the traces that are tested, and every hole that the code can have."""

from __future__ import annotations

import re
from pathlib import Path

from tests import test_gc_races, test_power_loss

TABLE = (Path(__file__).parent.parent / "docs" / "GC.md").read_text().split("## 6. Races")[1]
ROW = re.compile(r"^\| (H\d+) \| ([^|]+) \| `(\w+)\.py`: `(\w+)` \| `(\w+)` \| ([^|]+) \|$", re.MULTILINE)
HOLES = {f"H{number}" for number in range(1, 29)}


def test_the_table_lists_every_race() -> None:
    """Hole, module, trace, broken variant and invariant, each as it is registered; none is missing on either side."""
    registered = {
        (race.hole, module, race.trace.__name__, race.broken.__name__, race.breaks)
        for module, races in (("test_gc_races", test_gc_races.RACES), ("test_power_loss", test_power_loss.POWER))
        for race in races
    }
    listed = [(hole, module, trace, broken, breaks) for hole, _, module, trace, broken, breaks in ROW.findall(TABLE)]
    assert len(listed) == len(set(listed)) == len(re.findall(r"^\| H", TABLE, re.MULTILINE))
    assert set(listed) == registered
    assert {hole for hole, *_ in listed} >= HOLES


def test_the_tests_named_beside_it_exist() -> None:
    """Files that the text names."""
    for name in re.findall(r"`((?:tests|casstore)/\w+\.py)`", TABLE):
        assert (Path(__file__).parent.parent / name).exists(), name
