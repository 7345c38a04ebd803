"""A small orchestrator: index a Python source tree, state by state, over the public API only.

    python -m examples.indexer HOME [--root DIR] [--run UUID] [--batch FILES]

The context is the index itself; it grows by a batch of modules with each state, and every state stores it whole. Kill
the process whenever you like and start it again with the same `--run`: it goes on after the last completed state.
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from blake3 import blake3

import journal
from journal import Attempt, Journal, Run

SCAN = "index.scan.files"
RESOLVE = "index.resolve.imports"
RANK = "index.rank.modules"
REPORT = "index.report.write"
IGNORED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
RANK_ROUNDS = 20


# -- the states: each takes the context that the one before left, and returns the next one


def scan(context: dict[str, Any], attempt: Attempt) -> dict[str, Any]:
    """List the files. What the file system says is a fact: a retry sees the same list."""

    def listing() -> list[str]:
        root = Path(context["root"])
        paths = (path.relative_to(root) for path in root.rglob("*.py"))
        return sorted(str(path) for path in paths if not IGNORED & set(path.parts))

    files = attempt.fact("files", listing)
    size = context["batch_size"]
    return {**context, "batches": [files[at : at + size] for at in range(0, len(files), size)]}


def parse(context: dict[str, Any], attempt: Attempt) -> dict[str, Any]:
    """Parse the next batch of files."""
    number = context["parsed"]
    files = context["batches"][number]
    root = Path(context["root"])

    def hashes() -> dict[str, str]:
        return {name: blake3((root / name).read_bytes()).hexdigest() for name in files}

    read = attempt.fact(f"hashes|{number}", hashes)
    modules = dict(context["modules"])
    for name in files:
        modules[_module(name)] = {"file": name, "hash": read[name], **_parse((root / name).read_bytes())}
    return {**context, "modules": modules, "parsed": number + 1}


def resolve(context: dict[str, Any], _: Attempt) -> dict[str, Any]:
    """Turn imported names into edges between modules that are here."""
    modules = context["modules"]
    edges = {name: sorted({_nearest(modules, wanted) for wanted in found["imports"]} - {"", name})
             for name, found in modules.items()}  # fmt: skip
    return {**context, "edges": edges}


def rank(context: dict[str, Any], _: Attempt) -> dict[str, Any]:
    """Weigh the modules by who imports them, in millionths (integers, so that every machine agrees)."""
    edges = context["edges"]
    weights = dict.fromkeys(edges, 1_000_000)
    for _round in range(RANK_ROUNDS):
        given = dict.fromkeys(edges, 150_000)
        for name, wanted in edges.items():
            for target in wanted:
                given[target] += weights[name] * 85 // (100 * len(wanted))
        weights = given
    return {**context, "rank": sorted(weights, key=lambda name: (-weights[name], name))[:100], "weights": weights}


def report(context: dict[str, Any], attempt: Attempt) -> dict[str, Any]:
    """Write the report as an artifact of its own."""
    modules, weights = context["modules"], context["weights"]
    lines = ["# The most imported modules", ""]
    lines += [f"- {name}: weight {weights[name]}, {len(modules[name]['symbols'])} symbols"
              for name in context["rank"][:20]]  # fmt: skip
    broken = sorted(name for name, found in modules.items() if "error" in found)
    lines += ["", f"{len(modules)} modules, {len(broken)} of them not parsed."]
    text = attempt.output("\n".join(lines).encode(), kind="output", meta={"type": "text/markdown"})
    return {**context, "report": text}


STATES = {SCAN: scan, RESOLVE: resolve, RANK: rank, REPORT: report}


def following(context: dict[str, Any]) -> str | None:
    """The state that comes next, None at the end. How many batches there are is known only after the scan."""
    if "batches" not in context:
        return SCAN
    if context["parsed"] < len(context["batches"]):
        return f"index.parse.batch_{context['parsed'] + 1}"
    for state, key in ((RESOLVE, "edges"), (RANK, "rank"), (REPORT, "report")):
        if key not in context:
            return state
    return None


# -- the orchestrator


def drive(run: Run) -> None:
    """Run what is left of a run, wherever it stands."""
    while run.status is None:
        try:
            state = run.next
        except journal.NoPlan:
            state = following(run.context())
        if state is None:
            run.complete()
            return
        with run.enter(state) as attempt:
            attempt.complete(STATES.get(state, parse)(attempt.context(), attempt))
        print(f"{state} done, {run.head} events", flush=True)


def start_or_resume(jrn: Journal, run_id: UUID, root: Path, batch_size: int) -> Run:
    """The run of this id, new or from where its process died."""
    if jrn.head(run_id):
        return jrn.resume(run_id)
    context = {"root": str(root), "batch_size": batch_size, "parsed": 0, "modules": {}}
    manifest = {"program": "examples.indexer", "version": 1, "root": str(root)}
    return jrn.start_run("index", manifest=manifest, context=context, max_attempts=1000, run_id=run_id)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    parser.add_argument("--root", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--run", type=UUID, default=None)
    parser.add_argument("--batch", type=int, default=12)
    given = parser.parse_args()
    with journal.open(given.home) as jrn:
        run = start_or_resume(jrn, given.run or uuid4(), given.root.resolve(), given.batch)
        print(f"run {run.run_id} at {run.head} events", flush=True)
        drive(run)
        print(f"final {run.state.final_snapshot_id}", flush=True)


# -- small things


def _module(file: str) -> str:
    parts = list(Path(file).with_suffix("").parts)
    if len(parts) > 1 and parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def _parse(source: bytes) -> dict[str, Any]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        return {"symbols": [], "imports": [], "error": str(error)}
    symbols, imports = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            symbols.append({"name": node.name, "line": node.lineno, "kind": type(node).__name__})
        elif isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.add(node.module)
            imports.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {"symbols": symbols, "imports": sorted(imports)}


def _nearest(modules: dict[str, Any], name: str) -> str:
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


if __name__ == "__main__":
    main()
