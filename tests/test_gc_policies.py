"""Which runs that ended gc keeps, and what of them."""

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import casstore
import journal
from casstore import GcRefused, InvalidArgument, Retention
from casstore.policies import parse_policy
from casstore.testing import FakeClock, FakeRoots, memory_store
from tests.command_line import casstore as command_line

DAY = 86400
STATES = ["flow.step.a", "flow.step.b"]


class Clock(FakeClock):
    """The same seconds for the store and the journal."""


@pytest.fixture
def world(tmp_path):
    clock = Clock()
    with (
        casstore.open(tmp_path / "home", clock=clock) as store,
        journal.open(tmp_path / "home", store=store, clock=clock) as jrn,
    ):
        yield jrn, clock


def ended(world, op, n, how="complete"):
    """A run of two states with a fact, an output and a large context; what its events name, by role."""
    jrn, clock = world
    run = jrn.start_run(op, manifest={"n": n, "op": op}, context={"n": n, "op": op, "at": 0}, plan=STATES)
    found = {}
    for at, state in enumerate(STATES, 1):
        with run.enter(state) as attempt:
            attempt.fact("key", lambda: {"fact": n, "op": op, "of": "x" * 3000})
            attempt.output(b"output %d %s" % (n, op.encode()))
            attempt.complete({"n": n, "op": op, "at": at})
    if how == "complete":
        run.complete()
    else:
        run.cancel("because") if how == "cancel" else run.abandon()
    clock.advance(1)
    found["manifest"], found["final"] = run.state.manifest_id, run.state.checkpoint_id
    found["all"] = {
        root.id for root in jrn.retained_roots(Retention(completed_after_ms=0)) if root.run == str(run.run_id)
    }
    assert len(found["all"]) > 4
    return found


def collect(world, **options):
    jrn, _ = world
    return jrn.store.gc(jrn, **{"grace": 0, "keep_completed": 0, **options})


def names(jrn):
    return set(jrn.store)


def test_the_newest_of_each_operation_are_kept(world):
    """However old, and whatever other operations do; the rest goes."""
    jrn, clock = world
    a = [ended(world, "op_a", n) for n in range(4)]
    clock.advance(30 * DAY)
    b = [ended(world, "op_b", n) for n in range(3)]
    collect(world, keep_last=2)
    kept = set().union(*(found["all"] for found in (*a[2:], *b[1:])))
    gone = set().union(*(found["all"] for found in (*a[:2], *b[:1]))) - kept
    assert kept <= names(jrn) and not gone & names(jrn)
    assert jrn.store.verify().ok
    collect(world, keep_last=1)
    assert a[3]["all"] <= names(jrn) and not (a[2]["all"] - a[3]["all"] - b[2]["all"]) & names(jrn)


def test_age_and_number_keep_more_together(world):
    """A run is kept if either says so; however it ended."""
    jrn, clock = world
    old = [ended(world, "op", n, how) for n, how in enumerate(("complete", "cancel", "complete"))]
    clock.advance(30 * DAY)
    young = [ended(world, "op", n, how) for n, how in enumerate(("cancel", "complete", "complete"), 10)]
    collect(world, keep_last=4, keep_completed=DAY)
    kept = set().union(old[2]["all"], *(found["all"] for found in young))
    assert kept <= names(jrn)
    assert not (old[0]["all"] - kept) & names(jrn) and not (old[1]["all"] - kept) & names(jrn)


def test_only_the_final_snapshot_of_completed_runs(world):
    """Intermediate snapshots, facts and outputs of completed runs go; runs that were cancelled or live keep all."""
    jrn, _ = world
    done = ended(world, "op", 1)
    cancelled = ended(world, "op", 2, "cancel")
    live = ended(world, "op", 3, "live")
    collect(world, keep_completed=DAY, final_only=True)
    assert done["all"] & names(jrn) == {done["manifest"], done["final"]}
    assert cancelled["all"] | live["all"] <= names(jrn)
    assert jrn.store.get_value(done["final"])["at"] == 2
    assert jrn.store.verify().ok and jrn.verify() == []
    collect(world, keep_last=1, final_only=True)
    assert cancelled["all"] <= names(jrn) and done["final"] not in jrn.store
    collect(world)
    assert live["all"] <= names(jrn) and not {done["final"], done["manifest"]} & names(jrn)


def test_a_final_snapshot_keeps_what_it_links_to(world):
    """Its closure stays, as of every root."""
    jrn, _ = world
    linked = jrn.store.put(b"linked")
    run = jrn.start_run("op", manifest={}, context={}, plan=STATES[:1])
    with run.enter(STATES[0]) as attempt:
        attempt.complete({"linked": linked})
    run.complete()
    collect(world, keep_completed=DAY, final_only=True)
    assert linked in jrn.store


def test_what_cannot_be_satisfied_is_refused(world):
    """Nothing is removed."""
    jrn, _ = world
    ended(world, "op", 1)
    before = names(jrn)
    with pytest.raises(InvalidArgument):
        collect(world, final_only=True)  # of the runs that are kept; none is
    for wrong in (-1, 1.5, True, "3"):
        with pytest.raises(InvalidArgument):
            collect(world, keep_last=wrong)
    assert names(jrn) == before


class AgesOnly:
    """A root source of somebody else, from before there was any other policy."""

    def __init__(self, roots):
        self._roots, self.uuid, self.asked = roots, roots.uuid, []
        self.position, self.roots_after, self.exclusive = roots.position, roots.roots_after, roots.exclusive

    def live_roots(self, *, completed_after_ms):
        self.asked.append(completed_after_ms)
        return self._roots.live_roots(completed_after_ms=completed_after_ms)


def test_a_source_that_knows_ages_only_is_asked_for_ages_only():
    """It works as ever; asked for another policy, gc refuses instead of keeping less than was wanted."""
    clock = FakeClock()
    with memory_store(clock=clock) as store:
        roots = FakeRoots(store)
        source = AgesOnly(roots)
        name = store.put(b"x")
        roots.append("run", name)
        store.gc(source, grace=0)
        assert source.asked == [(int(clock.now) - 14 * DAY) * 1000]
        for policy in ({"keep_last": 1}, {"final_only": True}):
            with pytest.raises(GcRefused) as error:
                store.gc(source, grace=0, **policy)
            assert error.value.fields["reason"] == "unknown_policy"
        assert len(source.asked) == 1 and name in store and not store._backend.counters().gc_open


def test_the_stand_in_retains_as_a_journal_does():
    """FakeRoots, for users' tests: by age, by number, and the final artifact only."""
    clock = FakeClock()
    with memory_store(clock=clock) as store:
        roots, kept = FakeRoots(store), {}
        for n in range(3):
            kept[n] = [store.put(b"%d %d" % (n, part)) for part in range(2)]
            roots.append(f"run {n}", *kept[n])
            roots.complete(f"run {n}", at_ms=(int(clock.now) - DAY * (3 - n)) * 1000, op_id="op", final=kept[n][1])
        store.gc(roots, grace=0, keep_completed=0, keep_last=2)
        assert set(store) == {*kept[1], *kept[2]}
        store.gc(roots, grace=0, keep_completed=2 * DAY, keep_last=1, final_only=True)
        assert set(store) == {kept[1][1], kept[2][1]}
        store.gc(roots, grace=0, keep_completed=0)
        assert len(store) == 0


def test_an_ended_run_without_a_row_is_damage(world):
    """The list of ended runs names it: gc removes nothing."""
    jrn, _ = world
    ended(world, "op", 1)
    before = names(jrn)
    with jrn._backend._tables.write() as t:
        ((key, _),) = list(t.scan(b"run1"))
        t.delete(b"run1", key)
    for policy in ({"keep_last": 1}, {"keep_last": 1, "final_only": True}):
        with pytest.raises((GcRefused, journal.InvalidStream)):
            collect(world, **policy)
    assert names(jrn) == before


def test_the_command(tmp_path):
    """gc --keep-last and --final-only."""
    clock = Clock()
    with (
        casstore.open(tmp_path / "home", clock=clock) as store,
        journal.open(tmp_path / "home", store=store, clock=clock) as jrn,
    ):
        runs = [ended((jrn, clock), "op", n) for n in range(2)]

    def run(*arguments):
        return command_line("gc", "--json", "--grace", "0s", *arguments, home=tmp_path / "home").coded

    assert run("--keep-completed", "0s", "--final-only")[0] == 2
    code, document = run("--keep-completed", "0s", "--keep-last", "1", "--final-only")
    assert code == 0 and document["live"] == 2
    with casstore.open(tmp_path / "home") as store:
        assert set(store) == {runs[1]["manifest"], runs[1]["final"]}


# -- by how a run ended, outputs, quota, and the file --------------------------------------------------------


def test_failed_and_cancelled_runs_have_a_retention_of_their_own(world):
    """Longer, shorter, or none; where it is not given, that of completed ones."""
    jrn, clock = world
    done, cancelled = ended(world, "op", 1), ended(world, "op", 2, "cancel")
    clock.advance(5 * DAY)
    report = collect(world, keep_completed=10 * DAY, dry_run=True)
    assert len(report.removed) == 0
    collect(world, keep_completed=10 * DAY, keep_cancelled=0)
    assert done["all"] <= names(jrn) and not (cancelled["all"] - done["all"]) & names(jrn)
    failed = jrn.start_run("op", manifest={"n": 3}, context={"n": 3}, plan=STATES[:1])
    failed.fail(journal.ErrorInfo(code="x", category="unknown", retryable=False, message="on purpose"))
    clock.advance(20 * DAY)
    collect(world, keep_completed=10 * DAY, keep_failed=30 * DAY)
    assert names(jrn) == {failed.state.manifest_id, failed.state.checkpoint_id}
    clock.advance(20 * DAY)
    collect(world, keep_completed=10 * DAY, keep_failed=30 * DAY)
    assert names(jrn) == set() and jrn.store.verify().ok


def test_outputs_go_with_final_only_unless_they_are_kept(world):
    """What artifact_written names, and nothing else of the run's past."""
    jrn, _ = world
    done = ended(world, "op", 1)
    outputs = {root.id for root in jrn.retained_roots(Retention(completed_after_ms=0)) if "artifact_id" in root.field}
    assert len(outputs) == 1  # the same in both states
    collect(world, keep_completed=DAY, final_only=True, keep_outputs=True)
    assert names(jrn) == {done["manifest"], done["final"], *outputs}
    collect(world, keep_completed=DAY, final_only=True)
    assert names(jrn) == {done["manifest"], done["final"]}


def test_a_quota_takes_ended_runs_the_oldest_first(world):
    """As few as are needed, however young, and however many are wanted; the rest stays whole."""
    jrn, clock = world
    store = jrn.store
    runs = []
    for n in range(5):
        runs.append(ended(world, f"op_{n % 2}", n, "cancel" if n == 1 else "complete"))
        clock.advance(60)
    live = ended(world, "op_0", 9, "live")
    store.gc(jrn, grace=0)
    whole = store.stats().stored_bytes
    assert store.gc(jrn, grace=0, quota=whole).removed == ()
    report = store.gc(jrn, grace=0, quota=whole - 1, keep_last=5)
    assert report.over_quota_bytes == 0 and report.raw_bytes > 0
    assert set().union(live["all"], *(run["all"] for run in runs[1:])) <= names(jrn)
    assert not (runs[0]["all"] - set().union(*(run["all"] for run in runs[1:]))) & names(jrn)
    three = store.gc(jrn, grace=0, quota=store.stats().stored_bytes * 3 // 5)
    assert runs[4]["all"] | live["all"] <= names(jrn) and not (runs[1]["all"] - runs[4]["all"]) & names(jrn)
    assert store.stats().stored_bytes <= whole * 3 // 5 and three.over_quota_bytes == 0
    report = store.gc(jrn, grace=0, quota=10)
    assert live["all"] == names(jrn) and report.over_quota_bytes == store.stats().stored_bytes - 10
    assert store.verify().ok and jrn.verify() == []


def test_a_quota_counts_what_must_stay_first(world):
    """Pins, leases and the young take from it, and are never taken by it."""
    jrn, clock = world
    store = jrn.store
    done = ended(world, "op", 1)
    store.gc(jrn, grace=0)
    clock.advance(7200)
    quota = store.stats().stored_bytes + 100
    store.pin("pin", store.put(b"".join(b"%d" % (n * n) for n in range(2000))))
    assert (done["all"] - {done["final"]}) <= names(jrn)
    report = store.gc(jrn, quota=quota)
    assert not done["all"] & names(jrn) and set(store.pins().values()) == names(jrn)
    assert report.over_quota_bytes == store.stats().stored_bytes - quota > 0


def test_a_quota_that_is_stopped_removes_nothing(world):
    """Ctrl-C while it adds up."""
    jrn, _ = world
    ended(world, "op", 1)
    before = names(jrn)
    report = collect(world, quota=1, stop=lambda: True)
    assert report.stopped == "asked" and names(jrn) == before


def test_a_file_and_keywords_make_a_policy(world, tmp_path):
    """Keywords first, then the file, then the default; sizes and durations as on the command line."""
    jrn, _ = world
    file = tmp_path / "home" / "gc.toml"
    assert jrn.store.policy() == casstore.Policy()
    file.write_text(
        'keep_completed = "3d"\nkeep_failed = "30d"\nkeep_cancelled = 0\nkeep_last = 2\nfinal_only = true\n'
        'keep_outputs = true\nquota = "1.5GiB"\ngrace = "10m"\nquarantine = "1d"\nmax_time = "5s"\nmax_bytes = 100\n'
        '[auto]\nmin_interval = "5m"\nafter_bytes = "1MB"\n'
    )
    policy = jrn.store.policy()
    assert policy == casstore.Policy(
        keep_completed=3 * DAY, keep_failed=30 * DAY, keep_cancelled=0, keep_last=2, final_only=True, keep_outputs=True,
        quota=3 << 29, grace=600, quarantine=DAY, max_time=5, max_bytes=100,
        auto=casstore.AutoPolicy(min_interval=300, after_bytes=10**6),
    )  # fmt: skip
    assert policy.changed(keep_last=0, grace=None).keep_last == 0 and policy.changed(grace=None) == policy
    assert "keep completed 3d, failed 30d, cancelled 0s; the last 2 of each operation" in str(policy)
    file.unlink()
    assert jrn.store.policy() == casstore.Policy()


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("keep_completed = ", "", "no TOML"),
        ("keep = 1", "keep", "not known; there are keep_completed, "),
        ('keep_completed = "soon"', "keep_completed", "'soon' is no duration such as 14d"),
        ("keep_completed = -1", "keep_completed", "must be seconds"),
        ("keep_completed = 2026-01-01", "keep_completed", "must be seconds"),
        ('keep_last = "3"', "keep_last", "is text, where a number"),
        ("keep_last = 1.5", "keep_last", "whole number"),
        ("final_only = 1", "final_only", "true or false"),
        ("keep_outputs = true", "keep_outputs", "final_only alone"),
        ('quota = "20 gigs"', "quota", "is no size such as 20GiB"),
        ('quota = "9999999999999TiB"', "quota", "is no size"),
        ("quota = -5", "quota", "whole number"),
        ("auto = 3", "auto", "must be a table"),
        ("[auto]\nevery = 3", "auto.every", "not known; there are min_interval"),
        ('[auto]\nafter_runs = "x"', "auto.after_runs", "is text"),
        ('[auto]\nmin_interval = "x"', "auto.min_interval", "is no duration"),
    ],
)
def test_a_file_that_is_wrong_names_the_key(world, tmp_path, text, key, words):
    """With what is wrong, before anything is removed."""
    jrn, _ = world
    file = tmp_path / "home" / "gc.toml"
    file.write_text(text)
    with pytest.raises(casstore.InvalidPolicy) as error:
        jrn.store.policy()
    assert error.value.fields["key"] == key and error.value.fields["path"] == str(file)
    assert words in str(error.value)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(casstore.InvalidPolicy, match="cannot be read"):
        jrn.store.policy()


def test_the_command_goes_by_the_file_and_flags_win(tmp_path):
    """A home may have the file before it has a store."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "gc.toml").write_text('keep_completed = "0s"\ngrace = "0s"\nquarantine = "1d"\n')
    with journal.open(home) as jrn:
        jrn.start_run("op", manifest={"n": 1}, context={"n": 2}).complete()
        jrn.store.put(b"loose")

    def run(*arguments):
        return command_line("gc", "--json", *arguments, home=home).coded

    assert run("--dry-run", "--grace", "1h")[1]["removed"] == 0
    assert run("--dry-run")[1]["removed"] == 3
    document = run("--keep-completed", "1d", "--quarantine", "0s")[1]
    assert (document["removed"], document["quarantined_bytes"]) == (1, 0)
    code, document = run()
    assert (code, document["removed"]) == (0, 2) and document["quarantined_bytes"] > 0
    (home / "gc.toml").write_text("nonsense\n")
    code, document = run()
    assert code == 2 and document["error"]["code"] == "invalid_policy"
    assert run("--quota", "lots")[0] == 2


def test_the_example_of_the_documentation_is_a_policy():
    """Every key that there is, each with a value that is one."""
    text = (Path(__file__).parent.parent / "docs" / "GC.md").read_text().split("```toml\n")[1].split("```")[0]
    policy = parse_policy(text, "GC.md")
    assert policy.quota == 20 << 30 and policy.auto == casstore.AutoPolicy()
    keys = {line.split(" = ")[0] for line in text.splitlines() if " = " in line}
    assert keys == {each.name for kind in (casstore.Policy, casstore.AutoPolicy) for each in fields(kind)} - {"auto"}


@given(st.text(max_size=40))
def test_any_text_is_a_policy_or_an_error_of_ours(text):
    """Files are written by people."""
    for source in (text, f"keep_completed = {text}", f'quota = "{text}"'):
        try:
            parse_policy(source, "gc.toml")
        except casstore.InvalidPolicy as error:
            assert str(error).startswith("gc.toml: ")
