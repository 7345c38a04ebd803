"""The row of counters and what comes from it: commit numbers, and data_ids, of which none is given out twice.

Those below DATA_IDS_RESERVED are for dictionaries and have a counter of their own: so one can be the base of what was
there before it.
"""

from __future__ import annotations

from typing import Final

from casstore.errors import DamagedStore
from casstore.rows import (
    DA,
    DATA_IDS_RESERVED,
    IX,
    KP,
    LOOSENED_KEY,
    META,
    PURGE,
    RESERVED_KEY,
    STAGE,
    STATE_KEY,
    TICK,
    UUID_KEY,
    D,
    State,
    from_u64,
    u64,
)
from casstore.tables import ReadTransaction, WriteTransaction

NUMBERS_AHEAD_MAX: Final = 1 << 24
_UNFINISHED: Final = (STAGE, PURGE)  # where a number is that was given out and has no record, not yet or no more
_U64_MAX: Final = (1 << 64) - 1


def load_state(t: ReadTransaction) -> State:
    """Raises: DamagedStore where the row cannot be read, or is lost: a store that was bound has one."""
    found = t.get(META, STATE_KEY)
    if found is None and (t.get(META, UUID_KEY) is not None or any(t.count(table) for table in (IX, DA))):
        raise DamagedStore("table meta1", "the row of counters is missing")
    return State.unpack(found)


def begin(t: WriteTransaction) -> State:
    """The counters, with this transaction's own commit number."""
    state = load_state(t)
    state.commit += 1
    return state


def finish(t: WriteTransaction, state: State, now_s: int | None = None) -> None:
    """Store the counters. A transaction that touched something gives the second, for the cut of a later gc."""
    if now_s is not None and now_s != state.tick_s:
        state.tick_s = now_s
        t.append(TICK, u64(state.commit), u64(now_s))
    t.put(META, STATE_KEY, state.pack())


def loosen(t: WriteTransaction, state: State) -> None:
    """Something may not be needed any more from this commit on: the next gc marks everything anew."""
    t.put(META, LOOSENED_KEY, u64(state.commit))


# -- data_ids -----------------------------------------------------------------------------------------------


def reserve(t: WriteTransaction) -> None:
    """In a new store, before it is bound: the smallest data_ids are for dictionaries."""
    state = load_state(t)
    if state.commit == 0 and state.next_data_id == 1:
        state.next_data_id = DATA_IDS_RESERVED
        t.put(META, STATE_KEY, state.pack())
        t.put(META, RESERVED_KEY, u64(1))


def reserved(t: ReadTransaction) -> int | None:
    """The next data_id for a dictionary, None in a store that reserves none. Raises: DamagedStore."""
    found = t.get(META, RESERVED_KEY)
    return None if found is None else from_u64(found)


def is_given(t: ReadTransaction, state: State, data_id: int) -> bool:
    """Whether this number was given out, and never will be again. Raises: DamagedStore."""
    following = reserved(t) if data_id < DATA_IDS_RESERVED else None
    return 0 < data_id < (state.next_data_id if following is None else following)


def skip_given(t: ReadTransaction, state: State) -> None:
    """See to it that the next data_id was never given out, whatever damage made of the counter: what is there would be
    overwritten. Raises: DamagedStore where it is too far off to go on from."""
    last, far = _last(t, DA), state.next_data_id + NUMBERS_AHEAD_MAX
    if last >= far:
        raise DamagedStore("table meta1", f"the next data_id is {state.next_data_id}, and {last} was given out")
    for table in _UNFINISHED:  # what is far off there is no danger, and goes with the uploads of the dead
        last = max(last, _last_until(t, table, far) if t.count(table) else 0)
    state.next_data_id = max(state.next_data_id, last + 1)
    if state.next_data_id < DATA_IDS_RESERVED and t.get(META, RESERVED_KEY) is not None:
        state.next_data_id = DATA_IDS_RESERVED


def _last(t: ReadTransaction, table: bytes) -> int:
    """The greatest number that is a key of the table, 0 for none."""
    key = t.last(table)
    if key is not None and len(key) != 8:  # for `audits` to say
        key = next((key for key, _ in t.scan(table, reverse=True) if len(key) == 8), None)
    return 0 if key is None else from_u64(key)


def _last_until(t: ReadTransaction, table: bytes, most: int) -> int:
    """The same of those that are not greater than `most`."""
    keys = (key for key, _ in t.scan(table, u64(min(most, _U64_MAX)), reverse=True) if len(key) == 8)
    return from_u64(next(keys, u64(0)))


def take_number(t: WriteTransaction, state: State, *, dictionary: bool = False) -> int:
    """A data_id that was never given out: a reserved one, while there are any, for a dictionary."""
    number = reserved(t) if dictionary else None
    if number is not None:
        number = max(number, 1)
        while number < DATA_IDS_RESERVED and _is_taken(t, number):  # by damage: what is there would be overwritten
            number += 1
        if number < DATA_IDS_RESERVED:
            t.put(META, RESERVED_KEY, u64(number + 1))
            loosen(t, state)  # gc takes what is new to have a greater number
            return number
    state.next_data_id += 1
    return state.next_data_id - 1


def _is_taken(t: ReadTransaction, data_id: int) -> bool:
    key = u64(data_id)
    if any(t.get(table, key) is not None for table in (DA, KP, STAGE, PURGE)):
        return True
    piece = next(t.keys(D, key), b"")
    return piece[:8] == key


def greatest_reserved(t: ReadTransaction) -> int:
    """The greatest data_id of those for dictionaries under which something is kept, 0 for none."""
    return _last_until(t, DA, DATA_IDS_RESERVED - 1)
