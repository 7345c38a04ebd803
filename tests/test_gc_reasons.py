"""What gc and `why` say: what is kept by what, what goes and why, since when and until when."""

import json

import pytest

import casstore
import journal
from casstore import ArtifactId, Policy
from casstore.testing import FakeClock, FakeRoots, memory_store
from tests.command_line import casstore as command_line
from tests.test_gc_policies import DAY, ended, world  # noqa: F401 - a fixture

TEXT = b"".join(b"line %d of a base that a delta is made against\n" % n for n in range(200))


@pytest.fixture
def memory():
    clock = FakeClock()
    with memory_store(clock=clock) as store:
        yield store, FakeRoots(store), clock


def test_each_reason_to_keep_is_counted_once(memory):
    """By the first that holds; and what goes is blamed on the run that ended last."""
    store, roots, clock = memory
    live, retained, past, pinned, leased, loose = (store.put(b"%d" % n) for n in range(6))
    child = store.put(b"child of all")
    parents = [store.put_value({"n": n, "child": child}) for n in range(2)]
    base = store.put(TEXT, kind="context_snapshot")
    delta = store.put(TEXT + b"more", base=base)
    store.put(b"a dictionary")
    store.pin("dictionary/my_kind", ArtifactId.of(b"a dictionary"))
    roots.append("live", live, parents[0], delta)
    roots.append("ended", retained, parents[1])
    roots.append("old", past)
    roots.complete("old", at_ms=int(clock.now - 20 * DAY) * 1000)
    roots.complete("ended", at_ms=int(clock.now - DAY) * 1000)
    store.pin("pin", pinned)
    clock.advance(7200)
    young = store.put(b"young")
    with store.lease(1e6) as lease:
        lease.add(leased)
        dry = store.gc(roots, dry_run=True, explain=True)
        assert loose in store and young in store
        for report in (dry, store.gc(roots, explain=True)):
            told = report.explanation
            assert dict(told.kept) == {
                "live runs": 4, "runs that ended, retained": 2, "pins": 1, "dictionaries in use": 1, "leases": 1,
                "staged with an append": 0, "younger than the grace": 1,
            }  # fmt: skip
            assert told.bases == 1  # of the base, which no run names and a delta is made of
            assert {(share.what, share.artifacts, share.runs) for share in told.gone} == {
                ("only of runs past their retention", 1, 1), ("named by no run", 2, 0),
            }  # fmt: skip
            why = dict(zip([name for name, _ in report.removed], told.reasons, strict=True))
            assert "old completed" in why[past] and "past its retention" in why[past]
            assert "no run names it" in why[loose] and set(why) == {past, loose, base}
            assert told.reasons[:2] == tuple(told.reasons)[:2]
    assert store.gc(roots, grace=0).explanation is None
    assert store.verify().ok


def test_what_goes_by_quota_and_by_final_only_says_so(world):  # noqa: F811
    """Each run has one reason."""
    jrn, clock = world
    runs = [ended(world, "op", n) for n in range(3)]
    jrn.store.staging.settle()
    clock.advance(DAY)
    report = jrn.store.gc(jrn, grace=0, final_only=True, dry_run=True, explain=True)
    assert {share.what for share in report.explanation.gone} == {
        "of completed runs that keep their final snapshot only"
    }
    needed = [jrn.store.info(name).stored_bytes for name in runs[2]["all"]]
    report = jrn.store.gc(jrn, grace=0, quota=sum(needed) * 3 // 2, dry_run=True, explain=True)
    (share,) = report.explanation.gone
    assert (share.what, share.runs) == ("only of runs that the quota does not hold", 2)
    assert not {name for name, _ in report.removed} & runs[2]["all"]


def test_collected_bytes_that_nothing_needs_any_more_are_told(memory):
    """They were removed by an earlier gc, and their bytes go with this one."""
    store, roots, _ = memory
    base = store.put(TEXT)
    roots.append("run", store.put(TEXT + b"more", base=base))
    store.gc(roots, grace=0)
    roots.complete("run")
    report = store.gc(roots, grace=0, explain=True)
    assert (report.explanation.released, len(report.removed)) == (1, 1) and store.stats().kept_bytes == 0


def test_what_is_staged_is_kept_and_says_so(world):  # noqa: F811
    """Whatever became of its run: by gc's count, and by why, also of what only a staged one needs."""
    jrn, _ = world
    store = jrn.store
    child = store.put(b"child")
    run = jrn.start_run("op", manifest={"child": child}, context={"n": 1})
    manifest = run.state.manifest_id
    run.complete()
    assert store._stage.find(manifest.digest) is not None  # else this is no test
    dry = store.gc(jrn, grace=0, keep_completed=0, dry_run=True, explain=True)
    assert dict(dry.explanation.kept)["staged with an append"] == 1 and len(dry.removed) == 0  # the child
    found = store.why(manifest, jrn)
    assert found.state == "live" and "until it is settled" in found.detail and found.path[0].startswith("staged by")
    assert store.why(child, jrn).path == (found.path[0], f"{child} (link)")
    store.staging.settle()
    assert store.why(child, jrn).state == "retained"
    report = store.gc(jrn, grace=0, keep_completed=0)
    assert {name for name, _ in report.removed} >= {child, manifest} and store.verify().ok


# -- why -------------------------------------------------------------------------------------------------


def test_why_names_the_shortest_path_from_each_kind_of_root(memory):
    """Run, seq and field; pin; lease; dictionary."""
    store, roots, _ = memory
    leaf = store.put(b"leaf")
    middle = store.put_value([leaf])
    top = store.put_value({"middle": middle})
    roots.append("far", top)
    found = store.why(leaf, roots)
    assert found.state == "live" and len(found.path) == 3 and "far, seq 1, test" in found.path[0]
    assert found.path[1:] == (f"{middle} (link)", f"{leaf} (link)")
    roots.append("near", middle)
    assert [step.split(" (")[0] for step in store.why(leaf, roots).path[1:]] == [str(leaf)]
    store.pin("mine", leaf)
    assert store.why(leaf, roots).path == (f"pin mine: {leaf}",)
    other = store.put(b"other")
    with store.lease(60) as lease:
        lease.add(other)
        assert store.why(other, roots).path[0].startswith(f"lease {lease.name} until 20")
    store.pin("dictionary/my_kind", other)
    assert "dictionary of kind my_kind" in store.why(other, None).path[0]


def test_why_says_when_what_nothing_names_goes(memory):
    """Within the grace, held by a young parent, and past it."""
    store, roots, clock = memory
    child = store.put(b"child")
    since = int(clock.now)
    found = store.why(child, roots)
    assert (found.state, found.path, found.since_s, found.until_s) == ("unreferenced", (), since, since + 3600)
    clock.advance(7200)
    found = store.why(child, roots)
    assert (found.until_s, found.since_s) == (None, since) and "next gc takes it" in found.detail
    parent = store.put_value([child])
    found = store.why(child, roots, policy=Policy(grace=60))
    assert found.until_s == int(clock.now) + 60 and found.path[1] == f"{child} (link)"
    assert "touched at" in found.path[0] and str(parent) in found.path[0]


def test_why_says_until_when_retention_keeps(world):  # noqa: F811
    """By age, by number, past it, with the final snapshot only, and by the status of the run."""
    jrn, clock = world
    store = jrn.store
    done, failed = ended(world, "op", 1), ended(world, "op", 2, "cancel")
    store.staging.settle()
    at = int(clock.now) - 2
    inner = next(iter(done["all"] - {done["manifest"], done["final"]}))
    found = store.why(inner, jrn)
    assert (found.state, found.until_s) == ("retained", at + 14 * DAY) and "completed" in found.path[0]
    found = store.why(inner, jrn, policy=Policy(final_only=True, grace=0))
    assert found.state == "unreferenced" and "final snapshot only" in found.detail
    only = next(iter(failed["all"] - done["all"]))
    assert store.why(only, jrn, policy=Policy(keep_cancelled=DAY)).until_s == at + 1 + DAY
    clock.advance(15 * DAY)
    found = store.why(inner, jrn)
    assert found.state == "unreferenced" and "past its retention of 14d" in found.detail and found.since_s == at + 2
    found = store.why(inner, jrn, policy=Policy(keep_last=2))
    assert (found.state, found.until_s) == ("retained", None) and "one of the last 2" in found.detail
    assert "quota of 5 bytes" in store.why(inner, jrn, policy=Policy(keep_last=2, quota=5)).detail


def test_why_of_the_collected(memory):
    """By which gc and when; in quarantine how it comes back and until when; whose base it still is."""
    store, roots, clock = memory
    gone, base = store.put(b"gone"), store.put(TEXT)
    child = store.put(TEXT + b"more", base=base)
    roots.append("run", child)
    report = store.gc(roots, grace=0)
    found = store.why(gone, roots)
    assert (found.state, found.since_s, found.until_s) == ("collected", int(clock.now), None)
    assert f"gc {report.gc} at 20" in found.detail and "undelete" not in found.detail
    found = store.why(base, roots)
    assert found.path[-1] == f"{base} (base of it)" and str(child) in found.path[0] and "bytes stay" in found.detail
    soon = store.put(b"soon")
    store.gc(roots, grace=0, quarantine=DAY)
    found = store.why(soon, roots)
    assert found.until_s == int(clock.now) + DAY and "casstore undelete" in found.detail
    clock.advance(DAY)
    assert "the next gc ends that" in store.why(soon, roots).detail
    assert store.why(ArtifactId.of(b"never"), roots).state == "unknown"


def test_reading_what_was_collected_says_when_in_words(memory):
    """A date, not a number of seconds."""
    store, roots, _ = memory
    name = store.put(b"x")
    store.gc(roots, grace=0, quarantine=60)
    with pytest.raises(casstore.Quarantined, match=r"gc 1 at 2027-01-15 08:00:00 UTC; .* until 2027-01-15 08:01:00"):
        store.get(name)


def test_the_commands(tmp_path):
    """--explain and --list for people and as JSON; why with the options of gc, also of what is in quarantine."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        run = jrn.start_run("op", manifest={"n": 1}, context={"n": 2})
        loose = jrn.store.put(b"loose")

    def command(*arguments):
        done = command_line(*arguments, home=home)
        assert (done.code, done.err) == (0, "")
        return done.out

    text = command("gc", "--dry-run", "--grace", "0s", "--explain", "--list")
    assert "2  live runs" in text and "1  named by no run" in text and f"{loose}  " in text and "policy: " in text
    document = json.loads(command("gc", "--grace", "0s", "--explain", "--list", "--quarantine", "1d", "--json"))
    assert document["explain"]["kept"]["live runs"] == 2
    assert document["explain"]["gone"] == [{"what": "named by no run", "artifacts": 1, "raw_bytes": 5, "runs": 0}]
    (listed,) = document["list"]
    assert listed["id"] == str(loose) and listed["size_bytes"] == 5 and "no run names it" in listed["why"]
    assert "undelete" in command("why", str(loose)[:8])
    assert f"run {run.run_id}, seq 1, manifest_id" in command("why", str(run.state.manifest_id), "--grace", "0s")
