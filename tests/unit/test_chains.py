"""Which version a new one takes as its base, as a process remembers it."""

from __future__ import annotations

from casstore.chains import CHAIN_MAX, KNOWN_MAX, RecentChains, last_of_walk, skip


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


def remembered(count: int) -> RecentChains:
    """A chain of so many versions, the first stored whole, each named by its number."""
    chains = RecentChains()
    for number in range(count):
        chains.add(name(number), number, name(skip(number)) if number else None)
    return chains


def test_the_base_of_the_next_version_is_the_last_of_the_walk() -> None:
    chains = remembered(CHAIN_MAX)
    for number in range(CHAIN_MAX):
        walk = chains.walk(name(number), last_of_walk)
        assert walk is not None
        assert walk[0] == (name(number), 0, number)
        assert walk[-1][2] == skip(number + 1)
        assert len(walk) <= 16


def test_what_is_not_remembered_as_far_as_that_is_no_walk() -> None:
    chains = remembered(16)
    chains.forget(name(12))
    assert chains.walk(name(16), last_of_walk) is None
    assert chains.walk(name(15), last_of_walk) is None  # 15, 14, 13, 12 …
    assert chains.walk(name(14), last_of_walk) == [(name(14), 0, 14)]


def test_versions_that_were_put_again_as_versions_of_each_other_are_no_walk() -> None:
    """The first was collected and put again on the second: what is remembered of both goes round in a circle."""
    chains = RecentChains()
    chains.add(name(1), 0, None)
    chains.add(name(2), 1, name(1))
    chains.add(name(1), 2, name(2))
    chains.add(name(3), 3, name(1))
    assert chains.walk(name(3), lambda _: 0) is None
    chains.add(name(4), 7, name(4))
    assert chains.walk(name(4), lambda _: 0) is None


def test_only_so_many_are_remembered() -> None:
    chains = remembered(KNOWN_MAX + 1)
    assert chains.walk(name(0), last_of_walk) is None
    assert chains.walk(name(1), lambda _: 1) == [(name(1), 0, 1)]
