"""Figures as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Iterable

from benchmarks.measure import MACHINE, OURS, Figure, Results, Row, better, figures


def tables(results: Results) -> str:
    """A table for each workload and case; the machine's noise stands below it."""
    found = figures(results.rows)
    return "\n\n".join(_table(found, workload, case, results.rows) for workload, case in _cases(results.rows))


def _cases(rows: Iterable[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.workload, row.case) for row in rows))


def _table(found: dict[tuple[str, str, str, str], Figure], workload: str, case: str, rows: list[Row]) -> str:
    here = [row for row in rows if (row.workload, row.case) == (workload, case)]
    peers = [peer for peer in dict.fromkeys(row.peer for row in here) if peer != MACHINE]
    peers.sort(key=lambda peer: peer != OURS)
    metrics = list(dict.fromkeys(name for row in here if row.peer != MACHINE for name in row.samples))
    rounds = len({row.round for row in here})
    lines = [f"{workload}, {case} ({rounds} rounds)", ""]
    lines.append("| peer | " + " | ".join(title(metric) for metric in metrics) + " |")
    lines.append("|---" * (len(metrics) + 1) + "|")
    for peer in peers:
        cells = []
        for metric in metrics:
            figure = found.get((workload, case, peer, metric))
            ours = found.get((workload, case, OURS, metric))
            cells.append("–" if figure is None else _cell(metric, figure, ours if peer != OURS else None))
        lines.append(f"| {peer} | " + " | ".join(cells) + " |")
    noise = [_noise(metric, figure) for (w, c, peer, metric), figure in found.items()
             if (w, c, peer) == (workload, case, MACHINE)]  # fmt: skip
    return "\n".join([*lines, *(["", "Machine: " + "; ".join(noise)] if noise else [])])


def title(metric: str) -> str:
    """A column's head: what, and its unit."""
    for end, unit in (("_per_s", "/s"), ("_s", "ms"), ("_bytes", "KiB")):
        if metric.endswith(end):
            return f"{metric.removesuffix(end).replace('_', ' ')} {unit}"
    return metric.replace("_", " ")


def show(metric: str, value: float) -> str:
    """A number in the unit of its column."""
    if metric.endswith("_per_s"):
        return f"{value:,.0f}"
    scaled = value * 1e3 if metric.endswith("_s") else value / 1024 if metric.endswith("_bytes") else value
    return f"{scaled:.3g}" if abs(scaled) < 100 else f"{scaled:,.0f}"


def _cell(metric: str, figure: Figure, ours: Figure | None) -> str:
    text = show(metric, figure.median)
    if metric.endswith("_s") and not metric.endswith("_per_s"):
        text += f", p99 {show(metric, figure.p99)}"
    if len(figure.rounds) > 1:
        text += f" ({show(metric, figure.low)}–{show(metric, figure.high)})"
    if ours is not None:
        ratio = better(metric, ours, figure)
        text += "" if math.isnan(ratio) else f" · ×{ratio:.2g}" if ratio < 100 else f" · ×{ratio:,.0f}"
    return text


def _noise(metric: str, figure: Figure) -> str:
    return (f"{title(metric)} {show(metric, figure.median)}, p99 {show(metric, figure.p99)} "
            f"({show(metric, figure.low)}–{show(metric, figure.high)})")  # fmt: skip
