"""Cases of peers: doing it twice, resume, bad input (docs/CASES.md). Each section names the public report."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import cbor2
import pytest
from helpers import assert_whole, forked, kill_at, stop_points
from hypothesis import given, settings
from hypothesis import strategies as st

import casstore
import journal
from casstore import ArtifactId, rows, steps, values
from casstore.frames import FrameError, FrameTable
from journal import (
    Conflict,
    DomainEvent,
    InvalidStream,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
    StateFailed,
)
from journal import rows as journal_rows
from journal.appends import Appender
from journal.records import Context, decode_record
from journal.seals import seal
from journal.testing import memory_journal

RUN, OTHER = UUID(int=1), UUID(int=2)
A, B, C = "flow.step.a", "flow.step.b", "flow.step.c"


def begin(jrn: journal.Journal, run: UUID = RUN) -> ArtifactId:
    name = jrn.store.put(b"first")
    jrn.append(run, 0, [RunStarted(op_id="case", manifest_id=name, initial_snapshot_id=name)])
    return name


# -- 15. kurrent-io/KurrentDB#1949: a retry stores a second copy ------------------------------------------------

TOKEN, ANOTHER = bytes(16), bytes(range(16))


def notes(*words: str) -> list[DomainEvent]:
    return [DomainEvent("note", {"word": word}) for word in words]


# Run, events, token, and whether it is found or written (else it conflicts). At seq 2 stand a, b, c under TOKEN.
RETRIES: dict[str, tuple[UUID, list[DomainEvent], bytes | None, str]] = {
    "the batch again": (RUN, notes("a", "b", "c"), TOKEN, "existing"),
    "its first half": (RUN, notes("a"), TOKEN, "conflict"),
    "the batch and one more event": (RUN, notes("a", "b", "c", "d"), TOKEN, "conflict"),
    "two events swapped": (RUN, notes("b", "a", "c"), TOKEN, "conflict"),
    "one payload byte changed": (RUN, notes("a", "b", "d"), TOKEN, "conflict"),
    "another token": (RUN, notes("a", "b", "c"), ANOTHER, "conflict"),
    "no token": (RUN, notes("a", "b", "c"), None, "conflict"),
    "the same token in another run": (OTHER, notes("a", "b", "c"), TOKEN, "written"),
}


def the_table(more: int, only: str) -> None:
    """One row of the table, after so many events more."""
    run, events, token, wanted = RETRIES[only]
    with memory_journal() as jrn:
        begin(jrn)
        begin(jrn, OTHER)
        first = jrn.append(RUN, 1, notes("a", "b", "c"), token=TOKEN)
        for n in range(more):
            jrn.append(RUN, 4 + n, notes(f"more {n}"))
        before = jrn.position()
        if wanted == "conflict":
            with pytest.raises(Conflict) as caught:
                jrn.append(run, 1, events, token=token)
            assert caught.value.head == 4 + more
        else:
            again = jrn.append(run, 1, events, token=token)
            assert again.existing is (wanted == "existing") and (again.first_seq, again.last_seq) == (2, 4)
            if again.existing:
                assert again.position == first.position
        assert jrn.position() == before + (3 if wanted == "written" else 0)
        assert jrn.verify() == []


@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("only", RETRIES)
def test_only_the_same_append_is_a_retry(more: int, only: str) -> None:
    """Case 15: the token is looked up before the position is compared; nothing extra is written."""
    the_table(more, only)


def test_a_position_that_is_compared_first_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 15, wrong: whoever repeats its append is told that it lost the race."""
    monkeypatch.setattr("journal.admission._made_before", lambda *_: None)
    with pytest.raises(Conflict):
        the_table(3, "the batch again")


def test_content_that_counts_as_a_retry_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 15, wrong: the same events are taken for the same append, whoever brings them."""
    right = __import__("journal.admission", fromlist=["_made_before"])._made_before
    monkeypatch.setattr("journal.admission._made_before", lambda request, _, *rest: right(request, TOKEN, *rest))
    with pytest.raises(pytest.fail.Exception):
        the_table(0, "another token")


# -- 17. langchain-ai/langgraph#8039: result and checkpoint land in either order --------------------------------


def work(home: Path, ledger: Path) -> None:
    """Three states, the second asks the outside world for a price; resumed wherever it stands."""

    def say(word: str) -> None:
        with open(ledger, "a") as file:
            file.write(word + "\n")

    def price() -> int:
        say("called")
        return 17

    with journal.open(home) as jrn:
        if jrn.head(RUN):
            run = jrn.resume(RUN)
        else:
            run = jrn.start_run("case", manifest={}, context={"log": ["x" * 3000]}, plan=[A, B, C], run_id=RUN,
                                max_attempts=99)  # fmt: skip
        while run.next is not None:
            with run.enter(run.next) as attempt:
                context = attempt.context()
                context["log"].append(attempt.state_id)
                if attempt.state_id == B:
                    context["price"] = attempt.fact("price", price)
                    say("recorded")
                attempt.complete(context)
        if run.status is None:
            run.complete()


def killed_at_every_step(place: Path) -> int:
    """The number of stop points; after a kill at each the run ends as if nothing had happened."""
    total = len(stop_points(lambda: work(place / "counted", place / "ledger")))
    with journal.open(place / "counted") as jrn:
        wanted = jrn.run_state(RUN).final_snapshot_id
    for number in range(1, total + 1):
        home, ledger = place / f"home{number}", place / f"ledger{number}"
        assert forked(kill_at(number, lambda home=home, ledger=ledger: work(home, ledger))) == -9
        said = ledger.read_text().split() if ledger.exists() else []
        assert forked(work, home, ledger) == 0, number
        calls = ledger.read_text().split().count("called")
        assert calls == 1 if "recorded" in said else calls <= 2
        with journal.open(home) as jrn:
            events = [item.event for item in jrn.read(RUN)]
            entered: dict[str, list[StateEntered]] = {}
            for event in events:
                if isinstance(event, StateEntered):
                    entered.setdefault(event.state_id, []).append(event)
            assert list(entered) == [A, B, C]
            for tries in entered.values():
                assert [event.attempt for event in tries] == list(range(len(tries))) and len(tries) <= 2
                assert len({event.base_snapshot_id for event in tries}) == 1
            assert sum(len(tries) for tries in entered.values()) <= 4
            failed = [event for event in events if isinstance(event, StateFailed)]
            assert all(event.error.info.code == "orphan_attempt_recovered" for event in failed)
            assert [type(event) for event in events].count(StateCompleted) == 3
            assert isinstance(events[-1], RunCompleted) and events[-1].final_snapshot_id == wanted
            jrn.resume(RUN)
            assert jrn.head(RUN) == len(events)
            assert_whole(jrn)
        shutil.rmtree(home)
    return total


def test_killed_at_any_step_a_run_with_an_outside_call_ends_the_same(tmp_path: Path) -> None:
    """Case 17: artifact first, event second; a recorded fact is not asked for again; a further resume does nothing."""
    assert killed_at_every_step(tmp_path) > 40


def test_an_event_before_its_artifact_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 17, wrong: the append is committed, and then the snapshot that it names is put."""
    right, put_all = Appender._commit_group, Appender._put_all

    def nowhere(self: Appender, appends: Any) -> list[Any]:
        for append in appends:
            append.staged = []
        return []

    def wrong(self: Appender, group: Any) -> None:
        right(self, group)
        steps.reach("append.before_its_artifacts")
        put_all(self, [append for append in group if append.puts])

    monkeypatch.setattr(Appender, "_commit_group", wrong)
    monkeypatch.setattr(Appender, "_place", nowhere)
    monkeypatch.setattr(Appender, "_check_named", lambda *_: None)
    with pytest.raises(AssertionError):
        killed_at_every_step(tmp_path)


# -- 18. agronholm/cbor2#282: the decoder is too kind -----------------------------------------------------------

NAME = ArtifactId.of(b"x")
LINK = b"\xd8\x2a\x58\x25\x00\x01\x55\x1e\x20"
# Good canonical values, and each of the ways in which a decoder may be too kind, built into them.
UNKIND: dict[str, bytes] = {
    "a trailing byte": b"\x81\x01\x00",
    "two items": b"\x01\x02",
    "a duplicate key": b"\xa2\x61a\x01\x61a\x02",
    "indefinite text": b"\x7f\x61a\xff",
    "an indefinite array": b"\x9f\x01\xff",
    "an indefinite map": b"\xbf\x61a\x01\xff",
    "a longer integer than needed": b"\x18\x01",
    "a longer length than needed": b"\x78\x01a",
    "a longer array head than needed": b"\x98\x01\x01",
    "keys out of order": b"\xa2\x61b\x01\x61a\x02",
    "a longer key first": b"\xa2\x62aa\x01\x61b\x02",
    "a half float": b"\xf9\x3c\x00",
    "a single float": b"\xfa\x3f\x80\x00\x00",
    "not a number": b"\xfb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    "an infinity": b"\xfb\x7f\xf0\x00\x00\x00\x00\x00\x00",
    "minus zero": b"\xfb\x80\x00\x00\x00\x00\x00\x00\x00",
    "an unknown tag": b"\xd8\x20\x61a",
    "a bignum": b"\xc2\x49\x01" + bytes(8),
    "undefined": b"\xf7",
    "a simple value": b"\xe0",
    "depth 10,000": b"\x81" * 10_000 + b"\x01",
    "a map of depth 10,000": b"\xa1\x61a" * 10_000 + b"\x01",
    "2^63 items": b"\x9b\x80" + bytes(7),
    "a map of 2^63": b"\xbb\x80" + bytes(7),
    "bytes of 2^63": b"\x5b\x80" + bytes(7),
    "text of 2^63": b"\x7b\x80" + bytes(7),
    "bad UTF-8": b"\x62\xc3\x28",
    "an overlong NUL": b"\x62\xc0\x80",
    "a surrogate in UTF-8": b"\x63\xed\xa0\x80",
    "a link of 31 bytes": LINK.replace(b"\x25", b"\x24") + bytes(31),
    "a link to another codec": LINK.replace(b"\x55", b"\x71") + bytes(32),
}


def refused_everywhere() -> None:
    """As a value; inside of an array beside a link, which the other decoder reads; as a payload of a record."""
    for what, data in UNKIND.items():
        with_link = b"\x82" + LINK + bytes(32) + data
        for bad in (data, with_link):
            with pytest.raises(casstore.InvalidValue):
                values.decode(bad)
                raise AssertionError(what)
        payload = b"\xa1\x61p" + data
        if len(payload) < 1500:
            record = seal(cbor2.dumps([1, 1, 6, 0, 6, ["note", payload, None], [None, 1]]))
            with pytest.raises(InvalidStream) as caught:
                decode_record(record, started_ms=0, resolve=Context(checkpoint_seq=1, checkpoint_id=NAME))
            assert caught.value.rule == "bad_record", what


def test_no_decoder_is_kind() -> None:
    """Case 18: what does not encode back to the same bytes raises the declared error; also in events, beside links."""
    refused_everywhere()


def test_a_decoder_that_does_not_compare_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 18, wrong: what the library reads is accepted as it is."""
    monkeypatch.setattr(values, "decode", lambda data: cbor2.loads(data))
    with pytest.raises((AssertionError, cbor2.CBORDecodeError, pytest.fail.Exception)):
        refused_everywhere()


def _in_little_memory() -> None:
    """Every hostile value is refused without 64 MiB more of address space."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), size + (64 << 20)))
    refused_everywhere()


def test_hostile_lengths_cost_no_memory() -> None:
    """Case 18: headers that claim 2^63 items, and depths of 10,000, within 64 MiB."""
    assert forked(_in_little_memory) == 0


GOOD_VALUES: list[Any] = [
    None, True, 0, -1, 23, 24, 255, 256, 1 << 63, -(1 << 64), 1.5, -2.5e300, "", "text é 😀", b"", b"\x00bytes" * 20,
    [], [1, [2, [3]]], {}, {"a": 1, "bb": [None, {"c": 2.0}]}, ArtifactId.of(b"x"),
    {"link": ArtifactId.of(b"y"), "more": [ArtifactId.of(b"z"), "t" * 300]},
]  # fmt: skip


def test_prefixes_and_flips_of_values() -> None:
    """Case 18: any prefix is refused; any flipped bit is refused or gives a value that encodes to just these bytes."""
    for value in GOOD_VALUES:
        data = values.encode(value)[0]
        for length in range(len(data)):
            with pytest.raises(casstore.InvalidValue):
                values.decode(data[:length])
        for bit in range(len(data) * 8):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            try:
                found = values.decode(bytes(flipped))
            except casstore.InvalidValue:
                continue
            assert values.encode(found)[0] == bytes(flipped)


ROWS: dict[str, tuple[bytes, Callable[[bytes], Any], type[Exception]]] = {
    "ix1": (rows.IxRow(1, 2, 3, 4, 5).pack(), lambda data: rows.IxRow.unpack(data).pack(), casstore.DamagedStore),
    "meta1": (rows.State(commit=7).pack(), lambda data: rows.State.unpack(data).pack(), casstore.DamagedStore),
    "da1": (rows.DaRow(bytes(32), 2, 3, 1, 0, 0, 0).pack(), lambda data: rows.DaRow.unpack(data).pack(),
            casstore.DamagedStore),
    "gone1": (rows.GoneRow(1, 2, 3, 4).pack(), lambda data: rows.GoneRow.unpack(data).pack(), casstore.DamagedStore),
    "st1": (journal_rows.pack_state(journal_rows.StateRow(300, 70_000, 1)),
            lambda data: journal_rows.pack_state(journal_rows.unpack_state(data)), InvalidStream),
    "rs1": (journal_rows.number(70_000), lambda data: journal_rows.number(journal_rows.unpack_number(data)),
            InvalidStream),
}  # fmt: skip


@pytest.mark.parametrize("table", ROWS)
def test_rows_of_an_index_are_exact(table: str) -> None:
    """Case 18, index records: prefixes are refused, flips are refused or are another exact row."""
    good, there_and_back, error = ROWS[table]
    assert there_and_back(good) == good
    for length in range(len(good)):
        with pytest.raises(error):
            there_and_back(good[:length])
    if table not in ("da1", "gone1"):  # the end of which is open: an encoding's own bytes, names of kinds
        with pytest.raises(error):
            there_and_back(good + b"\0")
    for bit in range(len(good) * 8):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert there_and_back(bytes(flipped)) == bytes(flipped)
        except error:
            continue


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.integers(0, 1 << 64))
def test_any_bytes_are_a_frame_table_or_the_declared_error(data: bytes, raw_len: int) -> None:
    """Case 18: the table of a large artifact."""
    try:
        FrameTable.unpack(data, raw_len % (1 << 30), b"x" * 16)
    except FrameError:
        pass


# -- 19. dbos-inc/dbos-transact-py#759: an empty id passes ------------------------------------------------------

BAD_IDS = [
    "", " ", "\t", "a\x00b", "a\n", "x" * 10_000, "UPPER", "\u043e\u0440", "\uff41", "\u0661\u0662", "../x", "a/b",
    "a b",
]  # fmt: skip
BAD_STATES = [
    *BAD_IDS, *(f"flow.step.{bad}" for bad in BAD_IDS), "flow.step", "flow.step.a.b", "flow..a", "flow.step.a\n",
]  # fmt: skip
RUN_TEXT = str(UUID(int=0xABC << 100))
BAD_RUNS = [*BAD_IDS, RUN_TEXT.upper(), RUN_TEXT + "\n", f"{{{RUN_TEXT}}}", RUN_TEXT.replace("-", ""),
            RUN_TEXT.replace("0", "\u0660"), "urn:uuid:" + RUN_TEXT, 7, None, b"x" * 16]  # fmt: skip
BAD_DIGESTS = [*BAD_IDS, "AB" * 32, "ab" * 32 + "\n", "ab" * 31, "\uff11" * 64, "../" + "a" * 61, 7, None, b"x" * 31]


def test_no_bad_id_reaches_storage(tmp_path: Path) -> None:
    """Case 19: each type of id, each call that takes one: the declared error, and nothing has changed."""
    with journal.open(tmp_path / "home") as jrn:
        store = jrn.store
        name = begin(jrn)
        run = jrn.start_run("case", manifest={}, context={}, claim=False)

        def counts() -> tuple[Any, ...]:
            return store.stats().commits, jrn.position(), len(list(jrn.runs())), store.pins()

        before = counts()

        def refused(kind: Any, call: Callable[[], object], bad: object) -> None:
            with pytest.raises(kind):
                call()
                raise AssertionError(f"{bad!r:.40} passed")
            assert counts() == before

        for bad in BAD_DIGESTS:
            odd: Any = bad
            if type(odd) is str:
                refused(casstore.InvalidId, lambda odd=odd: ArtifactId.parse(odd), odd)
                if not odd or set(odd) - set("0123456789abcdef"):
                    refused(casstore.InvalidId, lambda odd=odd: store.resolve(odd), odd)
            else:
                refused(casstore.InvalidId, lambda odd=odd: ArtifactId(odd), odd)
            for call in (store.get, store.info, store.open_reader, lambda i: store.pin("p", i),
                         lambda i: store.put(b"x", base=i) if i is not None else store.get(i),
                         lambda i: store.touched([i]), lambda i: list(store.undelete([i]).restored)):  # fmt: skip
                refused(casstore.InvalidId, lambda odd=odd, call=call: call(odd), odd)
            refused(journal.InvalidEvent, lambda odd=odd: RunStarted(
                op_id="case", manifest_id=odd, initial_snapshot_id=name), odd)  # fmt: skip
        for bad in BAD_RUNS:
            odd = bad
            for by_run in (jrn.read, jrn.head, jrn.run_state, jrn.resume, jrn.cancel, jrn.claim, jrn.forget,
                           lambda i: jrn.append(i, 0, []), lambda i: jrn.fork(i, 1), lambda i: jrn.chain_head(i, 1),
                           lambda i: jrn.append_many({i: (0, notes("a"))})):  # fmt: skip
                refused(journal.InvalidRunId, lambda odd=odd, by_run=by_run: by_run(odd), odd)
            if odd is not None:  # None asks for a fresh one
                refused(journal.InvalidRunId, lambda odd=odd: jrn.start_run(
                    "case", manifest={}, context={}, run_id=odd), odd)  # fmt: skip
        for bad in [*BAD_IDS, *BAD_STATES[13:], 7, None]:
            odd = bad
            refused(journal.InvalidOpId, lambda odd=odd: jrn.start_run(odd, manifest={}, context={}), odd)
            refused(journal.InvalidOpId, lambda odd=odd: RunStarted(
                op_id=odd, manifest_id=name, initial_snapshot_id=name), odd)  # fmt: skip
        for bad in [*BAD_STATES, 7, None]:
            odd = bad
            refused(journal.InvalidStateId, lambda odd=odd: run.enter(odd), odd)
            refused(journal.InvalidStateId, lambda odd=odd: StateEntered(
                state_id=odd, attempt=0, base_snapshot_id=name), odd)  # fmt: skip
            refused(journal.InvalidPlan, lambda odd=odd: jrn.start_run(
                "case", manifest={}, context={}, plan=[A, odd]), odd)  # fmt: skip
        for bad in [*BAD_IDS, 7, None]:
            odd = bad
            refused(casstore.InvalidArgument, lambda odd=odd: store.put(b"x", kind=odd), odd)
        for bad in ["", "a\x00b", "a\n", "x" * 10_000, 7, None]:
            odd = bad
            refused(casstore.InvalidArgument, lambda odd=odd: store.pin(odd, name), odd)
        for bad in [b"", b"x" * 15, b"x" * 17, "x" * 16, 7]:
            odd = bad
            refused(journal.InvalidArgument, lambda odd=odd: jrn.append(RUN, 1, notes("a"), token=odd), odd)


@pytest.mark.parametrize("bad", [b"", b"FLOW.step.a", b"flow.step.\x00", b"flow/step.a", b"flow.step\xff"])
@pytest.mark.parametrize("where", ["record", "row"])
def test_a_damaged_id_in_a_stream_is_reported(tmp_path: Path, where: str, bad: bytes) -> None:
    """Case 19: a resume raises InvalidStream and writes nothing; nor does it invent another run."""
    home = tmp_path / "home"
    with journal.open(home) as jrn:
        run = jrn.start_run("case", manifest={}, context={}, plan=[A, B], run_id=RUN, claim=False)
        run.enter(A)
        table = b"ev1" if where == "record" else b"run1"
        with jrn._backend._tables.write() as t:  # type: ignore[attr-defined]
            for key, value in list(t.scan(table)):
                if value.count(A.encode()) == 1 and (where == "row" or value.count(B.encode()) == 0):
                    data = value.replace(A.encode(), bad)
                    if where == "record" and len(bad) != len(A):
                        data = value.replace(bytes([0x60 + len(A)]) + A.encode(), bytes([0x60 + len(bad)]) + bad)
                    t.put(table, key, data)
    with journal.open(home) as jrn:
        def stored() -> list[list[tuple[bytes, bytes]]]:
            with jrn._backend._tables.read() as t:  # type: ignore[attr-defined]
                return [list(t.scan(table)) for table in journal_rows.TABLES]

        before = stored()
        for options in ({"claim": False}, {}, {"steal": True}, {"dry_run": True}):
            with pytest.raises(InvalidStream):
                jrn.resume(RUN, **options)  # type: ignore[call-overload]
        assert stored() == before
        assert jrn.verify() != []
        with pytest.raises(casstore.GcRefused):
            jrn.store.gc(jrn, grace=0, force=True)


def test_an_id_that_is_only_looked_at_for_none_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Case 19, wrong: whatever is not None passes."""
    monkeypatch.setattr("journal.events.check_op_id", lambda value: value)
    monkeypatch.setattr("journal.resume.check_op_id", lambda value: value, raising=False)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_no_bad_id_reaches_storage(tmp_path)
