"""Pins, leases and unfinished uploads put right (see `mending`): what holds artifacts is never dropped for a damaged
name or end."""

from __future__ import annotations

import itertools
from typing import Final

from casstore.audits import Mended
from casstore.counters import begin, finish, loosen
from casstore.rows import LEASE, LEASED, LN, PIN, PURGE, STAGE, text, u64
from casstore.steps import reach
from casstore.tables import ReadTransaction, Tables, WriteTransaction

LEASE_S: Final = 86400  # what a lease is given whose end cannot be read
NAME_MAX: Final = 400  # bytes of a name that was damaged: a key has at most 511, of a lease and a digest together


def is_named(t: ReadTransaction, digest: bytes) -> bool:
    """Whether a row of links, a pin or a lease is of this artifact. Looks at all of them."""
    named = (value[at : at + 32] for _, value in t.scan(LN) for at in range(0, len(value), 32))
    held = itertools.chain((value[:32] for _, value in t.scan(PIN)), (key[-32:] for key in t.keys(LEASED)))
    return digest in itertools.chain(named, held)


def mend(tables: Tables, now_s: int) -> list[Mended]:
    """All of it, in one transaction; what was done."""
    with tables.read() as t:
        if not (_unheld(t) or _endless(t) or _unnamed(t) or _stray(t)):
            return []
    with tables.write() as t:
        state = begin(t)
        done = [*_free(t), *_rename(t), *_end(t, now_s), *_drop(t)]
        loosen(t, state)
        finish(t, state)
        reach("mend.written")
    reach("mend.part")
    return done


def _free(t: WriteTransaction) -> list[Mended]:
    """What is held by leases that are not there."""
    unheld = _unheld(t)
    t.delete_many(LEASED, unheld)
    codes = (("orphan_lease", key[-32:]) if len(key) > 32 else ("bad_row", None) for key in unheld)
    return [Mended(code, digest, "not held any more") for code, digest in codes]


def _unheld(t: ReadTransaction) -> list[bytes]:
    return [key for key in t.keys(LEASED) if len(key) <= 32 or t.get(LEASE, key[:-32]) is None]


def _end(t: WriteTransaction, now_s: int) -> list[Mended]:
    """Leases whose end cannot be read, which stops every gc."""
    endless = _endless(t)
    for name in endless:
        t.put(LEASE, name, u64(now_s + LEASE_S))
    said = "ends a day from now, unless it is renewed"
    return [Mended("bad_row", None, f"lease {text(name)} {said}") for name in endless]


def _endless(t: ReadTransaction) -> list[bytes]:
    return [name for name, value in t.scan(LEASE) if len(value) != 8]


def _rename(t: WriteTransaction) -> list[Mended]:
    """Names that are no text get one, by which they can be removed."""
    done = []
    for table, name in _unnamed(t):
        good = _readable_name(t, table, name)
        for key, value in [row for row in t.scan(LEASED, name) if row[0][:-32] == name and table == LEASE]:
            t.delete(LEASED, key)
            t.put(LEASED, good + key[-32:], value)
        value = t.get(table, name) or b""
        t.delete(table, name)
        t.put(table, good, value)
        done.append(Mended("bad_name", None, f"{'pin' if table == PIN else 'lease'} {good.decode()} has this name now"))
    return done


def _readable_name(t: ReadTransaction, table: bytes, name: bytes) -> bytes:
    """One that is not taken, and not too long for a key."""
    good = text(name).encode()[:NAME_MAX].decode(errors="ignore")
    names = (f"{good}~{n}" if n else good for n in itertools.count())
    return next(name for name in map(str.encode, names) if t.get(table, name) is None)


def _unnamed(t: ReadTransaction) -> list[tuple[bytes, bytes]]:
    return [(table, name) for table in (PIN, LEASE) for name in t.keys(table) if text(name).encode() != name]


def _drop(t: WriteTransaction) -> list[Mended]:
    """Rows of uploads and purges that name no number."""
    stray = _stray(t)
    for table, key in stray:
        t.delete(table, key)
        if table == STAGE and len(key) == 8:
            t.put(PURGE, key, b"")
    return [Mended("bad_row", None, f"a row of table {table.decode()} is gone") for table, _ in stray]


def _stray(t: ReadTransaction) -> list[tuple[bytes, bytes]]:
    stray = [(STAGE, key) for key, value in t.scan(STAGE) if len(key) != 8 or len(value) < 8]
    return stray + [(PURGE, key) for key in t.keys(PURGE) if len(key) != 8]
