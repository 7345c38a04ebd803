"""Values: both encoders agree, what is no plain value is refused with its path, only canonical bytes are read."""

from __future__ import annotations

import collections
import enum
import struct
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore import values
from casstore.errors import InvalidValue
from casstore.ids import ArtifactId

IDS = st.binary(min_size=32, max_size=32).map(ArtifactId)
# Bytes that look like a CID, which the fast encoder would write as a link.
CID_LIKE = st.binary(min_size=32, max_size=32).map(lambda digest: b"\x01\x55\x12\x20" + digest)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 64), (1 << 64) - 1), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20), st.binary(max_size=40), CID_LIKE, IDS, st.binary(max_size=6).map(bytearray),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6), st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=8), inner, max_size=6),
    ),
    max_leaves=40,
)  # fmt: skip


def plain(value: Any) -> Any:
    """What comes back: tuples as lists, bytearrays as bytes, -0.0 as 0.0."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, bytearray):
        return bytes(value)
    return value + 0.0 if isinstance(value, float) else value


def linked(value: Any) -> set[ArtifactId]:
    if isinstance(value, ArtifactId):
        return {value}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return {link for item in items for link in linked(item)}


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_both_encoders_make_the_same_bytes(value: Any) -> None:
    """Identical bytes and links; decoded, the value is back; encoded again, so are the bytes."""
    data, links = values.encode(value)
    assert (data, links) == values.encode_reference(value)
    assert set(links) == linked(value)
    again = values.decode(data)
    assert again == plain(value)
    assert values.encode(again) == (data, links)
    assert values.encode(values.decode(data, canonical=True)) == (data, links)
    assert set(values.links(data)) == set(links)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=6), LEAVES, min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_order_of_insertion_is_no_part_of_the_content(value: dict[str, Any], rng: Any) -> None:
    """Equal dicts have equal bytes."""
    keys = list(value)
    rng.shuffle(keys)
    assert values.encode({key: value[key] for key in keys}) == values.encode(value)


class Colour(enum.StrEnum):
    RED = "red"


class Number(int):
    pass


@pytest.mark.parametrize(
    ("value", "path", "word"),
    [
        ({"messages": [0, 1, 2, {"cost": float("nan")}]}, "$.messages[3].cost", "NaN"),
        ({"a": float("-inf")}, "$.a", "infinity"),
        ([1 << 64], "$[0]", "integer"),
        ([-(1 << 64) - 1], "$[0]", "integer"),
        ({"a b": {1}}, '$["a b"]', "set"),
        ({1: 2}, "$", "key"),
        ({"x": object()}, "$.x", "object"),
        ({"x": "\ud800"}, "$.x", "surrogate"),
        ({"\ud800": 1}, "$", "surrogate"),
        (memoryview(b"x"), "$", "memoryview"),
    ],
)
def test_what_is_no_plain_value_is_refused_with_its_path(value: Any, path: str, word: str) -> None:
    """Scenario of bad input: the path inside the value, and what was there."""
    for encode in (values.encode, values.encode_reference):
        with pytest.raises(InvalidValue) as caught:
            encode(value)
        assert caught.value.args[0] == path and word in caught.value.args[1]


def test_depth_is_limited_alike_on_every_path() -> None:
    """The deepest allowed value goes in and out; one deeper is refused, as is a cycle, also on a small stack."""
    def nest(depth: int, leaf: Any) -> Any:
        value = leaf
        for _ in range(depth):
            value = [value]
        return value

    for leaf in (1, ArtifactId.of(b"x"), {"a": "b" * 200}):
        room = values.MAX_DEPTH - (1 if isinstance(leaf, dict) else 0)
        assert values.decode(values.encode(nest(room, leaf))[0]) == nest(room, leaf)
        for encode in (values.encode, values.encode_reference):
            with pytest.raises(InvalidValue, match="deeper"):
                encode(nest(room + 1, leaf))
        with pytest.raises(InvalidValue, match="deeper"):  # bytes of what could not be encoded
            values.decode(b"\x81" * (room + 1) + values.encode([leaf])[0][1:])
    cycle: list[Any] = []
    cycle.append(cycle)
    found: list[BaseException] = []

    def on_a_small_stack() -> None:
        for call in (lambda: values.encode(cycle), lambda: values.decode(b"\x81" * 100_000 + b"\x01")):
            try:
                call()
            except InvalidValue as error:
                found.append(error)

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=on_a_small_stack)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert len(found) == 2
    deep = b"\x81" * 100_000 + b"\x01"
    with pytest.raises(InvalidValue):
        values.decode(deep)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x18\x00", b"\x01\x01", b"\x9f\xff", b"\xfa\x00\x00\x00\x00", b"\xf9\x3c\x00", b"\xf7", b"\xc1\x00",
        b"\xa2\x61b\x01\x61a\x02", b"\xa2\x61a\x01\x61a\x02", b"\xa1\x01\x02", b"\xfb\x7f\xf8" + bytes(6),
        b"\xfb\x80" + bytes(7), b"\xd8\x2a\x41\x00", b"\xd8\x2a\x58\x25\x00\x01\x55\x1e\x20" + bytes(31),
        b"\xd8\x2a\x58\x25\x00\x01\x71\x12\x20" + bytes(32), b"\x5b\xff" + bytes(7) + b"x",
    ],
)  # fmt: skip
def test_other_forms_are_not_read(data: bytes) -> None:
    """Longer ints, indefinite lengths, other floats and tags, unsorted or double keys, trailing bytes."""
    with pytest.raises(InvalidValue):
        values.decode(data)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=60), VALUES.map(lambda value: values.encode(value)[0]),
                 st.binary(max_size=40).map(lambda junk: b"\xd8\x2a" + junk)))  # fmt: skip
def test_hostile_bytes_are_refused_or_canonical(data: bytes) -> None:
    """Whatever is read encodes to the same bytes; nothing else comes out but InvalidValue."""
    try:
        value = values.decode(data)
    except InvalidValue:
        return
    assert values.encode(value)[0] == data


@pytest.mark.parametrize("odd", [Colour.RED, Number(5), {"a": [Colour.RED]}, collections.OrderedDict(a=1)])
def test_subclasses_are_refused(odd: Any) -> None:
    """An enum, or a subclass of int or dict, would come back as something else."""
    for encode in (values.encode, values.encode_reference):
        with pytest.raises(InvalidValue):
            encode(odd)


def test_what_looks_like_a_link_in_a_number_is_none() -> None:
    """A float and an integer whose bytes begin as a link does, and end in a real one."""
    number = struct.unpack(">d", bytes.fromhex("d82a58250001551e"))[0]
    for value in (
        [number, -1, ArtifactId.of(b"x")], [number, -1, *[ArtifactId.of(b"x")] * 3], [number, -1, "a" * 31],
        {"a": b"\xd8\x2a\x58\x25\x00\x01\x55\x1e\x20", "b": ArtifactId.of(b"x")},
    ):  # fmt: skip
        data, links = values.encode(value)
        assert (data, links) == values.encode_reference(value)
        assert values.decode(data) == value and values.links(data) == links


def test_containers_that_are_shared() -> None:
    """Once in memory, many times in the bytes: as far as that has an end."""
    leaf = {"text": "x" * 10, "id": ArtifactId.of(b"x")}
    value = [leaf, leaf, [leaf, {"a": leaf}]]
    assert values.encode(value) == values.encode_reference(value)
    assert values.decode(values.encode(value)[0]) == value
    cycle: list[Any] = []
    cycle += [cycle, cycle, cycle]
    with pytest.raises(InvalidValue, match="a cycle"):
        values.encode(cycle)
    bomb: Any = []
    for _ in range(100):
        bomb = {"a": bomb, "b": bomb}
    with pytest.raises(InvalidValue, match="shared"):
        values.encode(bomb)


def test_the_limit_of_recursion_protects_no_stack() -> None:
    """A program may have raised it: deep bytes are refused all the same, and crash nothing."""
    code = (
        "import sys, threading; from casstore import values; from casstore.errors import InvalidValue\n"
        "sys.setrecursionlimit(10**8)\n"
        "def use():\n"
        "    for data in (b'\\x81' * 3_000_000 + b'\\x01', b'\\x81' * 3_000_000, b'\\xa1\\x61a' * 1_000_000):\n"
        "        for call in (values.decode, values.links):\n"
        "            try: call(data + b'\\xd8\\x2a\\x58\\x25\\x00' if call is values.links else data)\n"
        "            except InvalidValue: print('refused')\n"
        "use(); thread = threading.Thread(target=use); thread.start(); thread.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "refused\n" * 12, (done.returncode, done.stderr[-500:])
