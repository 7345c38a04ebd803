"""Figures of the saved samples as SVG: step time and disk by peer for each context size, and how a gc grows.

Drawn with matplotlib, which is imported here only, and only when something is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.check import newest_rows
from benchmarks.measure import MACHINE, OURS, RESULTS, Figure, Row, figures
from benchmarks.options import parse_size, say
from benchmarks.peers import missing

Figures = dict[tuple[str, str, str, str], Figure]

OUR_COLOUR: Final = "#1f6fb2"
OTHER_COLOUR: Final = "#b9bfc6"
INK: Final = "#30353a"
STYLE: Final[Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.size": 10, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
    "axes.spines.right": False,
}  # fmt: skip
GC_LINES: Final = {"gc_s": "half of them dead", "full_mark_s": "nothing dead, all marked", "nothing_s": "nothing new"}


def plot(path: Path | None, out: Path) -> int:
    """Draw what the results have, one results file or as `check` chooses them. Returns 1 where nothing was drawn."""
    if missing(("matplotlib",)):
        say("matplotlib is not installed (pip install '.[bench]')")
        return 1
    rows = newest_rows([path] if path and path.is_file() else sorted((path or RESULTS).glob("*.json")))
    out.mkdir(parents=True, exist_ok=True)
    drawn = [out / f"{name}.svg" for name, draw in PLOTS.items() if save(draw(rows), out / f"{name}.svg")]
    for made in drawn:
        print(made)
    if not drawn:
        say("these results have neither steps nor gc_scale")
    return 0 if drawn else 1


def save(figure: Any, path: Path) -> bool:
    """Whether there was a figure. The file is the same for the same samples: no date, no random ids."""
    if figure is None:
        return False
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure.savefig(path, metadata={"Date": None})
    return True


def steps(rows: list[Row]) -> Any:
    """Time of a step."""
    return bars(rows, "step_s", 1e3, "a durable step, ms: median, whiskers from the lowest to the highest of a round")


def disk(rows: list[Row]) -> Any:
    """Disk that a step takes."""
    return bars(rows, "disk_bytes", 1 / 1024, "disk a step, KiB")


def bars(rows: list[Row], metric: str, scale: float, label: str) -> Any:
    """A panel for each context size, a bar for each peer, on a logarithmic axis. None without such samples."""
    found = figures(row for row in rows if row.workload == "steps")
    cases = sorted({case for _, case, peer, name in found if name == metric}, key=size_of)
    peers = [peer for peer in dict.fromkeys(key[2] for key in found) if peer != MACHINE]
    if not cases:
        return None
    peers.sort(key=lambda peer: peer != OURS)
    figure, panels = new_figure(len(cases), 0.32 * len(peers) + 1.3)
    for panel, case in zip(panels, cases, strict=True):
        here = [found.get(("steps", case, peer, metric)) for peer in peers]
        for at, (peer, one) in enumerate(zip(peers, here, strict=True)):
            if one is None:
                continue
            middle, low, high = (value * scale for value in (one.median, one.low, one.high))
            panel.barh(at, middle, color=OUR_COLOUR if peer == OURS else OTHER_COLOUR, height=0.7)
            panel.plot([low, high], [at, at], color=INK, linewidth=1.2)
            panel.annotate(f"{middle:.3g}" if middle < 100 else f"{middle:,.0f}", (max(middle, high), at),
                           xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)  # fmt: skip
        panel.set_yticks(range(len(peers)), peers)
        panel.set_title(case, fontsize=10, loc="left")
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", color="#e4e7ea", linewidth=0.8)
        panel.set_axisbelow(True)
    every = [found[key] for key in found if key[3] == metric]
    panels[0].set_xscale("log")  # of all: lengths compare between sizes as well
    panels[0].set_xlim(min(one.low for one in every) * scale / 4, max(one.high for one in every) * scale * 6)
    plain_ticks(panels[0].xaxis)
    panels[0].invert_yaxis()
    figure.supxlabel(label, fontsize=10)
    return figure


def gc(rows: list[Row]) -> Any:
    """Seconds and memory of a gc by the number of artifacts. None with fewer than two sizes."""
    found = figures(row for row in rows if row.workload == "gc_scale")
    counts = {int(case.split()[0].replace(",", "")): case for _, case, _, _ in found}
    sizes = sorted(counts)
    if len(sizes) < 2:
        return None
    figure, (left, right) = new_figure(2, 3.4, shared=False)

    def line(panel: Any, metric: str, scale: float, text: str) -> None:
        there = [(size, one) for size in sizes if (one := found.get(("gc_scale", counts[size], OURS, metric)))]
        if not there:
            return
        xs, ys = [size for size, _ in there], [one.median * scale for _, one in there]
        (drawn,) = panel.plot(xs, ys, marker="o", markersize=4)
        panel.fill_between(xs, [one.low * scale for _, one in there], [one.high * scale for _, one in there],
                           color=drawn.get_color(), alpha=0.2, linewidth=0)  # fmt: skip
        panel.annotate(text, (xs[-1], ys[-1]), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9,
                       color=drawn.get_color())  # fmt: skip

    for metric, text in GC_LINES.items():
        line(left, metric, 1.0, text)
    line(right, "anonymous_bytes", 2**-20, "")
    for panel, title in ((left, "seconds of a gc"), (right, "anonymous memory of a gc, MiB")):
        panel.set_xscale("log")
        panel.set_title(title, fontsize=10, loc="left")
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.minorticks_off()
    left.set_yscale("log")
    left.set_xlim(sizes[0] / 1.5, sizes[-1] * 60)  # room for what the lines are called
    plain_ticks(left.yaxis)
    right.set_ylim(bottom=0)
    figure.supxlabel("artifacts", fontsize=10)
    return figure


PLOTS: Final[dict[str, Callable[[list[Row]], Any]]] = {"steps": steps, "disk": disk, "gc": gc}


def new_figure(panels: int, height: float, *, shared: bool = True) -> tuple[Any, Any]:
    """A figure with panels side by side."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context(STYLE):
        figure = Drawing(figsize=(3.0 * panels + 1.2 if shared else 4.6 * panels, height), layout="constrained")
        return figure, figure.subplots(1, panels, sharex=shared, sharey=shared, squeeze=False)[0]


def plain_ticks(axis: Any) -> None:
    """1 and 10 rather than powers of ten, and none between."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


def size_of(case: str) -> int:
    """Bytes of the context that a case begins its name with."""
    found = re.match(r"([\d.]+) (\w+)", case)
    return parse_size("".join(found.groups())) if found else 0
