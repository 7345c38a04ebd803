"""The benchmarks do what they say: every workload runs, in small, and compares what it reads back. No times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    append,
    bases,
    check,
    feed,
    files,
    flushing,
    gc_beside,
    gc_scale,
    growth,
    measure,
    mixed,
    objects,
    plots,
    puts,
    recover,
    runs,
    scan,
    steps,
)
from benchmarks.__main__ import GC, WORKLOADS
from benchmarks.data import Context
from benchmarks.event_peers import EventPeer, FloorEvents, OursEvents, RawLmdbEvents, SqliteEvents
from benchmarks.measure import Results, Row, better, figure, figures
from benchmarks.object_peers import Floor, ObjectPeer, OursObjects, SqliteObjects
from benchmarks.options import Options, parse_size
from benchmarks.ours import Ours
from benchmarks.peers import Peer, RawLmdb, SqliteWal, missing, run_uuid
from benchmarks.report import tables
from benchmarks.rounds import choose, run_case
from benchmarks.server_peers import DbosPostgres, DbosSqlite, LangGraphPostgres

RATES = ("put_mib_per_s", "out_mib_per_s", "put_memory_bytes", "out_memory_bytes", "read_memory_bytes")
STEP_PEERS: list[type[Peer]] = [Ours, SqliteWal, RawLmdb, LangGraphPostgres, DbosSqlite, DbosPostgres]


@pytest.fixture(autouse=True)
def _peer_is_here(request: pytest.FixtureRequest) -> None:
    """A peer that is not installed is skipped, as the benchmarks do."""
    peer = request.node.callspec.params.get("peer") if hasattr(request.node, "callspec") else None
    absent = missing(peer.requires) if peer is not None else None
    if absent is not None:
        pytest.skip(f"{peer.name}: {absent} is not installed")


@pytest.mark.parametrize("peer", STEP_PEERS)
def test_steps_keeps_every_context_and_recovers_the_last(peer: type[Peer], tmp_path: Path) -> None:
    found = steps.measure_steps(peer, tmp_path, 0, size=4 << 10, steps=6)
    assert len(found["step_s"]) == 6  # type: ignore[arg-type]
    assert found["disk_bytes"] > 0  # type: ignore[operator]


@pytest.mark.parametrize("peer", STEP_PEERS)
def test_runs_of_several_threads_are_recovered_each_by_itself(peer: type[Peer], tmp_path: Path) -> None:
    found = runs.measure_runs(peer, tmp_path, 0, runs=3, size=4 << 10, steps=4)
    assert len(found["step_s"]) == 12  # type: ignore[arg-type]


@pytest.mark.parametrize("peer", STEP_PEERS)
def test_the_last_steps_of_a_run_are_measured(
    peer: type[Peer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(growth, "LAST", 3)
    found = growth.measure(peer, tmp_path, 0, length=5)
    assert len(found["step_s"]) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("peer", mixed.READABLE)
def test_earlier_contexts_are_read_while_runs_step(peer: type[Peer], tmp_path: Path) -> None:
    found = mixed.measure_mixed(peer, tmp_path, 0, runs=2, size=4 << 10, steps=4)
    assert len(found["step_s"]) == 8  # type: ignore[arg-type]


@pytest.mark.parametrize("peer", [OursObjects, SqliteObjects, Floor])
def test_objects_are_read_as_they_were_put(peer: type[ObjectPeer], tmp_path: Path) -> None:
    found = objects.measure_objects(peer, tmp_path, 0, count=50, size=600)
    assert found["disk_bytes"] > 0  # type: ignore[operator]


def test_the_floor_of_a_put_writes_the_rows_of_the_put(tmp_path: Path) -> None:
    found = puts.measure_puts(puts.Put, tmp_path, 0, size=5 << 10, count=4)
    assert len(found["put_s"]) == len(found["floor_s"]) == 4  # type: ignore[arg-type]


def test_a_growing_context_is_put_as_deltas(tmp_path: Path) -> None:
    found = puts.measure_values(puts.Put, tmp_path, 0, size=8 << 10, versions=5)
    assert len(found["put_value_s"]) == len(found["put_value_cpu_s"]) == 5  # type: ignore[arg-type]


def test_versions_are_read_in_every_order(tmp_path: Path) -> None:
    found = objects.measure_versions(OursObjects, tmp_path, 0, size=4 << 10, versions=6)
    assert {name for name in found if name.endswith("_ratio")} == {
        f"{order}{fresh}_ratio" for order in ("random", "oldest_first", "newest_first") for fresh in ("", "_fresh")
    }


@pytest.mark.parametrize("peer", [OursEvents, SqliteEvents, RawLmdbEvents])
def test_events_of_several_threads_are_read_in_order(peer: type[EventPeer], tmp_path: Path) -> None:
    append.measure_threads(peer, tmp_path, 0, threads=3, each=5)


def test_followers_hear_every_event_once(tmp_path: Path) -> None:
    for measured in (feed.measure_here, feed.measure_other):
        found = measured(feed.OursFeed, tmp_path / measured.__name__, 0, gap_s=0.0, count=20)
        assert len(found["heard_s"]) == 20  # type: ignore[arg-type]
    assert feed.measure_idle(feed.OursFeed, tmp_path / "idle", 0, for_s=0.01).keys() == {"cpu_percent"}


@pytest.mark.parametrize("peer", [OursEvents, SqliteEvents, RawLmdbEvents, FloorEvents])
def test_batches_of_events_are_read_in_order(peer: type[EventPeer], tmp_path: Path) -> None:
    append.measure_batches(peer, tmp_path, 0, count=2 * append.BATCH)


def test_the_floor_writes_the_records_that_ours_wrote(tmp_path: Path) -> None:
    floor = FloorEvents(tmp_path, 2 * append.BATCH)
    floor.begin(0)
    for first in (0, append.BATCH):
        floor.append_batch(0, first, append.BATCH)
    assert len(floor.read_raw(0)) == 2 * append.BATCH
    assert all(record[0] == 1 and record[4] == 6 for record in floor.read(0))  # version 1, a domain event
    floor.close()


@pytest.mark.parametrize("subject", recover.SUBJECTS[:2])
@pytest.mark.parametrize("count", [1, 2 * recover.SAMPLES])
def test_runs_are_recovered_where_they_stood(subject: type[recover.Subject], count: int, tmp_path: Path) -> None:
    found = subject.measure(tmp_path, [run_uuid(number) for number in range(count)], 9)
    assert len(found["run_state_s"]) == recover.SAMPLES  # type: ignore[arg-type]


@pytest.mark.parametrize("subject", scan.SUBJECTS)
@pytest.mark.parametrize("runs_", [1, 4])
def test_every_way_to_scan_reads_every_event(subject: type[scan.Subject], runs_: int, tmp_path: Path) -> None:
    if subject.requires:
        pytest.importorskip(subject.requires[0])
    found = scan.measure(subject, tmp_path, 0, count=44, runs=runs_)
    assert {"typed_per_s", "raw_per_s", "reverse_per_s", "range_per_s", "by_position_per_s"} <= set(found)


@pytest.mark.parametrize(("events", "interleaved"), [(9, 4), (50, 1)])
def test_the_layout_is_measured_on_streams_of_the_length_it_says(
    events: int, interleaved: int, tmp_path: Path
) -> None:
    assert append.disk_per_event(tmp_path, events, interleaved, 4) > 32  # a digest in every other event at least


@pytest.mark.parametrize("case", bases.CASES)
def test_bases_are_found_in_every_case_and_all_is_read_back(case: str, tmp_path: Path) -> None:
    found = {}
    for peer in bases.PEERS:
        found[peer.name] = bases.measure_bases(peer, tmp_path / peer.name, 0, make=bases.CASES[case], steps=24)
    assert found["without"]["based"] == 0.0
    assert found["ours"]["stored_bytes"] <= found["without"]["stored_bytes"]  # type: ignore[operator]
    if "run" in case:  # those resemble what came before
        assert found["ours"]["stored_bytes"] < found["without"]["stored_bytes"] / 4  # type: ignore[operator]


@pytest.mark.parametrize("content", ["half", "random"])
def test_files_are_read_as_they_were_put_in_little_memory(content: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    files.write_source(source, (24 << 20) + 17, content)
    results = Results()
    for name, peer in files.PEERS.items():
        (tmp_path / name).mkdir()
        results.add("files", content, name, 0, **files.measure_file(peer, tmp_path / name, 0, source=source))
    ours = next(row.samples for row in results.rows if row.peer == measure.OURS)
    assert ours["put_memory_bytes"][0] < files.MEMORY_TARGET_BYTES
    assert ours["read_memory_bytes"][0] < files.MEMORY_TARGET_BYTES
    assert 1 <= ours["frames_a_range"][0] < 1.1
    assert len(files.verdicts(results, content)) == 5


def test_rounds_that_disagree_decide_nothing() -> None:
    def lines(*ours: float) -> list[str]:
        results = Results()
        for number, rate in enumerate(ours):
            results.add("files", "c", "ours", number, **dict.fromkeys(RATES, rate))
            results.add("files", "c", "floor", number, **dict.fromkeys(RATES, 100.0))
        return [line for line in files.verdicts(results, "c") if "put_mib_per_s" in line]

    assert "95% of the floor, 58% to 127% (undecided: 60 %)" in lines(116.0, 58.0, 127.0, 74.0)[0]
    assert "(missed" in lines(59.0, 20.0)[0]
    assert "(holds" in lines(60.0, 90.0)[0]


def test_sizes_are_read_with_their_units() -> None:
    assert [parse_size(text) for text in ("3GiB", "1.5MiB", "4KiB", "17")] == [3 << 30, 3 << 19, 4096, 17]


def test_a_gc_is_measured_that_removes_half_and_then_nothing(tmp_path: Path) -> None:
    names = gc_scale.fill(str(tmp_path / "home"), 3 * gc_scale.NEW)
    found = gc_scale.collect(str(tmp_path / "home"), names)
    assert len(found["nothing_s"]) == gc_scale.SHORT_GCS  # type: ignore[arg-type]


def test_writers_are_measured_without_a_gc_and_beside_one(tmp_path: Path) -> None:
    found = gc_beside.measure(gc_scale.Collecting, tmp_path, 0, window_s=0.5, pairs=1, dead=40_000)
    for what in ("append", "put"):
        assert found[f"{what}_s"] and found[f"{what}_beside_s"] and found[f"{what}_share"]


def _fails(home: str, phase: object, ready: object) -> dict[str, Any]:
    raise ValueError(home)


def _dies(home: str, phase: object, ready: object) -> dict[str, Any]:
    os._exit(3)


@pytest.mark.parametrize(("child", "error"), [(_fails, "_fails: ValueError: "), (_dies, "without a word")])
def test_a_process_that_fails_beside_a_gc_is_not_waited_for(
    child: gc_beside.Work, error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("write", "collect"):
        with monkeypatch.context() as patched, pytest.raises(AssertionError, match=error):
            patched.setattr(gc_beside, name, child)
            gc_beside.measure(gc_scale.Collecting, tmp_path / name, 0, window_s=0.01, pairs=1, dead=10)


class Forgetful(SqliteWal):
    """A peer that gives back another context than it was given."""

    name = "forgetful"

    def recover(self, run: int) -> Context:
        return {**super().recover(run), "cursor": -1}


def test_a_peer_that_loses_data_has_no_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    results, options = Results(), Options(rounds=1, where=tmp_path)

    def once(peer: type[Peer], home: Path, number: int) -> Any:
        return steps.measure_steps(peer, home, number, size=1 << 10, steps=2)

    run_case(results, options, "steps", "tiny", [SqliteWal, Forgetful], 1, once)
    assert {row.peer for row in results.rows} == {measure.MACHINE, "sqlite_wal"}
    assert "forgetful failed: AssertionError" in capsys.readouterr().err


class Absent(SqliteWal):
    """A peer whose package nobody has."""

    name = "absent"
    requires = ("no_such_package_at_all.inside",)


def test_a_peer_that_is_not_installed_is_skipped_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose(Options(), [Absent, SqliteWal]) == [SqliteWal]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "absent: skipped" in lines[0]
    assert "[bench]" in lines[0]


def _results() -> Results:
    results = Results({"at": "2026-01-01"})
    for number, slowdown in enumerate((1.0, 10.0)):  # the machine is ten times slower in the second round
        results.add("steps", "1 MiB", "ours", number, step_s=[0.001 * slowdown] * 3, disk_bytes=1024.0)
        results.add("steps", "1 MiB", "other", number, step_s=[0.002 * slowdown] * 3, disk_bytes=512.0)
    return results


def test_ratios_are_made_within_a_round() -> None:
    found = figures(_results().rows)
    ours, other = (found["steps", "1 MiB", peer, "step_s"] for peer in ("ours", "other"))
    assert better("step_s", ours, other) == pytest.approx(2.0)
    assert (ours.low, ours.high) == (0.001, 0.01)
    assert better("rate_per_s", figure([[10.0]]), figure([[5.0]])) == 2.0


def test_results_are_saved_and_shown_as_tables(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "r.json"
    _results().save(path)
    assert Results.load(path) == _results()
    assert "| other | 11, p99 20 (2–20) · ×2 | 0.5 (0.5–0.5) · ×0.5 |" in tables(_results())


def test_the_results_are_drawn_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = _results()
    for size in (1000, 10_000):
        results.add("gc_scale", f"{size:,} artifacts", "ours", 0, gc_s=size / 1e5, anonymous_bytes=float(size))
    results.save(tmp_path / "r.json")
    for out in ("a", "b"):
        assert plots.plot(tmp_path / "r.json", tmp_path / out) == 0
    drawn = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert drawn == ["disk.svg", "gc.svg", "steps.svg"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in drawn)
    assert ">other<" in (tmp_path / "a" / "steps.svg").read_text()


def test_without_matplotlib_one_line_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plots, "missing", lambda _: "matplotlib")
    assert plots.plot(None, tmp_path) == 1
    assert "matplotlib is not installed" in capsys.readouterr().err


def test_targets_hold_fail_or_are_not_measured() -> None:
    target = {"text": "t", "workload": "steps", "case": "1 MiB", "against": ["*"]}
    targets: list[dict[str, Any]] = [
        {**target, "metric": "step_s", "at_least": 1.5},
        {**target, "metric": "disk_bytes", "at_least": 1.0},
        {**target, "metric": "step_s", "at_least": 1.0, "against": ["git"]},
        {"text": "t", "workload": "steps", "case": ["no such", "1 MiB"], "metric": "disk_bytes", "at_most": 2048.0},
        {"text": "t", "workload": "steps", "case": "10 MiB", "metric": "disk_bytes", "at_most": 2048.0},
    ]
    verdicts = check.judge(targets, figures(_results().rows))
    assert [verdict.holds for verdict in verdicts] == [True, False, None, True, None]


def test_the_newest_results_of_a_case_count(tmp_path: Path) -> None:
    for name, at, value in (("a", "2026-02-02", 2.0), ("b", "2026-01-01", 1.0)):
        Results({"at": at}, [Row("steps", "1 MiB", "ours", 0, {"disk_bytes": [value]})]).save(tmp_path / f"{name}.json")
    Results({"at": "2026-03-03"}, [Row("steps", "1 MiB", "git", 0, {"disk_bytes": [3.0]})]).save(tmp_path / "c.json")
    rows = check.newest_rows(sorted(tmp_path.glob("*.json")))
    assert [row.samples["disk_bytes"] for row in rows] == [[2.0]]


def test_every_target_names_a_workload_and_a_bound() -> None:
    targets = check.tomllib.loads(check.TARGETS.read_text())["target"]
    for target in targets:
        assert target["workload"] in ("flushes", *WORKLOADS, *GC)
        assert {"at_least", "at_most"} & set(target)


FLUSHES = """
import mmap, os, subprocess, sys
from benchmarks import flushing
before = flushing.counts()
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(fd, b"x" * 4096); os.fdatasync(fd); os.fsync(fd); os.fsync(fd)
with mmap.mmap(fd, 4096) as m: m.flush()
synchronous = os.open(sys.argv[1], os.O_RDWR | os.O_DSYNC)
os.pwrite(synchronous, b"x", 0)
child = "import os, sys; os.fdatasync(os.open(sys.argv[1], os.O_RDWR))"
subprocess.run([sys.executable, "-c", child, sys.argv[1]], check=True)
after = flushing.counts()
print({kind: after[kind] - before[kind] for kind in after})
"""


@pytest.mark.skipif(flushing.compiler() is None, reason="no C compiler")
def test_the_shim_counts_what_waits_for_the_disk(tmp_path: Path) -> None:
    shim = flushing.build(tmp_path)
    command = [sys.executable, "-c", FLUSHES, str(tmp_path / "file")]
    found = subprocess.run(
        command, env=flushing.environment(shim, 0), capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    expected = {"fdatasync": 2, "fsync": 2, "msync": 1, "sync_file_range": 0, "synchronous_write": 1}
    assert found.stdout.strip() == str(expected)


def test_without_the_shim_there_is_no_count() -> None:
    assert flushing.total() is None


def test_a_case_that_there_is_not_is_said(tmp_path: Path) -> None:
    """Cases are asked for by the beginning of their names."""
    line = [sys.executable, "-m", "benchmarks", "runs", "--cases", "18 KiB", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    assert done.returncode == 1
    assert "nothing was measured" in done.stderr and "18 KiB" in done.stderr
