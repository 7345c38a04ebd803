"""Which targets hold: targets.toml against the newest results of each case."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import MACHINE, OURS, RESULTS, Figure, Results, Row, better, figures
from benchmarks.options import say
from benchmarks.report import show

TARGETS: Final = Path(__file__).parent / "targets.toml"

Figures = dict[tuple[str, str, str, str], Figure]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target, whether it holds (None: not measured), and the figure that says so."""

    text: str
    holds: bool | None
    detail: str


def check(path: Path | None) -> int:
    """Print a line for each target, by one results file, or for each case by the newest file that has it.

    Returns 1 where there are no results, else 0: a target that does not hold is news, not a failure of the check.
    """
    rows = newest_rows([path] if path else sorted(RESULTS.glob("*.json")))
    if not rows:
        say("there are no results yet: python -m benchmarks all")
        return 1
    verdicts = judge(tomllib.loads(TARGETS.read_text())["target"], figures(rows))
    for verdict in verdicts:
        word = {True: "holds", False: "FAILS", None: "not measured"}[verdict.holds]
        print(f"{word:13}{verdict.text}: {verdict.detail}")
    counts = [sum(verdict.holds is wanted for verdict in verdicts) for wanted in (True, False, None)]
    print(f"{counts[0]} hold, {counts[1]} fail, {counts[2]} not measured")
    return 0


def newest_rows(paths: list[Path]) -> list[Row]:
    """Of each workload and case the rows of the newest file that has any of ours, by the time that it says."""
    loaded = sorted((Results.load(path) for path in paths), key=lambda results: str(results.machine.get("at", "")))
    found: dict[tuple[str, str], list[Row]] = {}
    for results in loaded:
        here: dict[tuple[str, str], list[Row]] = {}
        for row in results.rows:
            here.setdefault((row.workload, row.case), []).append(row)
        found.update({key: rows for key, rows in here.items() if any(row.peer == OURS for row in rows)})
    return [row for rows in found.values() for row in rows]


def judge(targets: list[dict[str, Any]], found: Figures) -> list[Verdict]:
    """A verdict for each target. Pure."""
    measured = {(workload, case) for workload, case, _, _ in found}
    verdicts = []
    for target in targets:
        cases = [target["case"]] if isinstance(target["case"], str) else target["case"]
        case = next((case for case in cases if (target["workload"], case) in measured), cases[0])
        one = {**target, "case": case, "text": f"{target['text']} [{case}]" if len(cases) > 1 else target["text"]}
        verdicts.append(_compare(one, found) if "against" in one else _bound(one, found))
    return verdicts


def _bound(target: dict[str, Any], found: Figures) -> Verdict:
    metric = target["metric"]
    figure = found.get((target["workload"], target["case"], OURS, metric))
    if figure is None:
        return Verdict(target["text"], None, "–")
    holds = figure.median <= target.get("at_most", float("inf")) and figure.median >= target.get("at_least", 0.0)
    return Verdict(target["text"], holds, f"{show(metric, figure.median)} ({show(metric, figure.low)}–"
                   f"{show(metric, figure.high)}) {_unit(metric)}".rstrip())  # fmt: skip


def _compare(target: dict[str, Any], found: Figures) -> Verdict:
    workload, case, metric = target["workload"], target["case"], target["metric"]
    here = {peer: figure for (w, c, peer, m), figure in found.items() if (w, c, m) == (workload, case, metric)}
    ours = here.pop(OURS, None)
    here.pop(MACHINE, None)
    if "*" not in target["against"]:
        here = {peer: figure for peer, figure in here.items() if peer in target["against"]}
    if ours is None or not here:
        return Verdict(target["text"], None, "–")
    ratios = {peer: better(metric, ours, figure) for peer, figure in here.items()}
    holds = all(ratio >= target["at_least"] for ratio in ratios.values())
    worst = sorted(ratios.items(), key=lambda pair: pair[1])[:3]
    return Verdict(target["text"], holds, ", ".join(f"{ratio:.2f} × {peer}" for peer, ratio in worst))


def _unit(metric: str) -> str:
    for end, unit in (("_per_s", "/s"), ("_s", "ms"), ("_bytes", "KiB")):
        if metric.endswith(end):
            return unit
    return ""
