"""The row of counters put right (see `mending`): counted anew, or made anew where it is lost."""

from __future__ import annotations

from typing import Final

from casstore import audits
from casstore.audits import Mended
from casstore.counters import finish, greatest_reserved, load_state, skip_given
from casstore.errors import DamagedStore
from casstore.rows import (
    DA,
    GCS,
    IX,
    KP,
    META,
    PURGE,
    RESERVED_KEY,
    STAGE,
    STATE_KEY,
    TICK,
    D,
    IxRow,
    State,
    from_u64,
    u64,
)
from casstore.steps import reach
from casstore.tables import ReadTransaction, Tables

_COMMITS_AHEAD: Final = 1 << 24  # further than what is lost can have gone on after the last row that names a commit
_NUMBER_MAX: Final = 1 << 62


def count(tables: Tables) -> list[Mended]:
    """What the counters of one look are off by is taken off in a later transaction: all others only add to them."""
    with tables.read() as t:
        wrong = audits.miscounted(t)
    if not wrong:
        return []
    reach("mend.counted")
    with tables.write() as t:
        state = load_state(t)
        for name, (counted, there) in wrong.items():
            setattr(state, name, max(getattr(state, name) + there - counted, 0))
        finish(t, state)
        reach("mend.written")
    reach("mend.part")
    return [
        Mended("wrong_counters", None, f"{name}: {there}, not {counted}") for name, (counted, there) in wrong.items()
    ]


def rebuild(tables: Tables) -> list[Mended]:
    """Where a row of counters cannot be read: numbers that are greater than any that were given, which is all that
    the order of things needs; what is counted follows (`count`)."""
    return _rebuild_reserved(tables) + _rebuild_state(tables)


def _rebuild_reserved(tables: Tables) -> list[Mended]:
    with tables.read() as t:
        if audits.wrong_reserved(t) is None:
            return []
    with tables.write() as t:
        if audits.wrong_reserved(t) is None:
            return []
        following = greatest_reserved(t) + 1
        t.put(META, RESERVED_KEY, u64(following))
        reach("mend.written")
    reach("mend.part")
    return [Mended("wrong_counters", None, f"the next data_id for a dictionary is {following}")]


def _rebuild_state(tables: Tables) -> list[Mended]:
    with tables.read() as t:
        if _is_readable(t):
            return []
    with tables.write() as t:
        if _is_readable(t):
            return []
        state = _made_anew(t)
        t.put(META, STATE_KEY, state.pack())
        reach("mend.written")
    reach("mend.part")
    said = f"the counters are made anew: commits go on from {state.commit}, data_ids from {state.next_data_id}"
    return [Mended("bad_row", None, said)]


def _is_readable(t: ReadTransaction) -> bool:
    try:
        load_state(t)
    except DamagedStore:
        return False
    return True


def _made_anew(t: ReadTransaction) -> State:
    commit = max((_touched(value) for _, value in t.scan(IX)), default=0)
    commit = max(commit, _last(t, TICK)) + _COMMITS_AHEAD
    state = State(
        commit=commit, next_data_id=max(_last(t, table) for table in (DA, D, KP, STAGE, PURGE)) + 1, swept=commit,
        epoch=_last(t, GCS), cut=commit, grace_s_min=0,  # so that each hit is a touch
    )  # fmt: skip
    skip_given(t, state)  # the smallest are for dictionaries
    return state


def _touched(value: bytes) -> int:
    try:
        touched = IxRow.unpack(value).touched
    except DamagedStore:
        return 0
    return touched if touched < _NUMBER_MAX else 0


def _last(t: ReadTransaction, table: bytes) -> int:
    """The greatest number that a key of the table begins with, damage aside."""
    numbers = (from_u64(key[:8]) for key, _ in t.scan(table, reverse=True) if len(key) >= 8)
    return next((number for number in numbers if number < _NUMBER_MAX), 0)
