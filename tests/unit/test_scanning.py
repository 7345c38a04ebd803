"""Where bytes stop to be a value: the offset and the rule, for each rule; and found exactly where a decoder refuses."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore import values
from casstore.errors import InvalidValue, UndecodableValue
from casstore.ids import ArtifactId
from casstore.scanning import first_fault

LINK = values.encode(ArtifactId.of(b"x"))[0]
SAMPLE: dict[str, Any] = {
    "a": [1, 2.5, None, True, -(1 << 64)], "text": "grüße", "bytes": b"\x00" * 300, "link": ArtifactId.of(b"x"),
    "nested": {"b": [[], {}, "x" * 70_000]}, "big": 1 << 40,
}  # fmt: skip

FAULTS: list[tuple[bytes, int, str, str]] = [
    (b"", 0, "cut off: an item is missing", "$"),
    (b"\x82\x01", 0, "cut off: 2 items, and 1 bytes are left", "$"),
    (b"\x82\x01\x62a", 2, "cut off: a string of 2 bytes, and 1 are left", "$[1]"),
    (b"\x82\x61a\x19\x01", 3, "cut off: a head is not whole", "$[1]"),
    (b"\xa1\x61a\x81", 3, "cut off: 1 items, and 0 bytes are left", "$.a"),
    (b"\x82\x82\x01\x02\x81\x82\x61a\x41", 8, "cut off: a string of 1 bytes", "$[1][0][1]"),
    (b"\x18\x00", 0, "a longer form than needed", "$"),
    (b"\x82\x01\x18\x17", 2, "a longer form than needed", "$[1]"),
    (b"\x82\x01\x19\x00\xff", 2, "a longer form than needed", "$[1]"),
    (b"\x81\x78\x01a", 1, "a longer form than needed", "$[0]"),
    (b"\x98\x01\x01", 0, "a longer form than needed", "$"),
    (b"\x82\x01\x9f\x01\xff", 2, "an indefinite length, or a reserved head", "$[1]"),
    (b"\x1c", 0, "an indefinite length, or a reserved head", "$"),
    (b"\xa2\x61b\x01\x61a\x02", 4, "keys out of order", "$"),
    (b"\xa2\x62aa\x01\x61b\x02", 5, "keys out of order", "$"),
    (b"\xa1\x61x\xa2\x61a\x01\x61a\x02", 7, "a key twice", "$.x"),
    (b"\xa1\x01\x02", 1, "a key that is no text", "$"),
    (b"\xa1\x61a\xf7", 3, "undefined, or a simple value", "$.a"),
    (b"\x81\xf9\x3c\x00", 1, "a float of other than 64 bits", "$[0]"),
    (b"\x81\xfa\x3f\x80\x00\x00", 1, "a float of other than 64 bits", "$[0]"),
    (b"\x81\xfb\x7f\xf8" + bytes(6), 1, "NaN", "$[0]"),
    (b"\x81\xfb\x7f\xf0" + bytes(6), 1, "an infinity", "$[0]"),
    (b"\x81\xfb\x80" + bytes(7), 1, "-0.0", "$[0]"),
    (b"\xa1\x63a b\x63a\xffb", 7, "text that is no UTF-8", '$["a b"]'),
    (b"\x81\xc1\x00", 1, "a tag other than 42", "$[0]"),
    (b"\x81\xd8\x2a\x41\x00", 1, "a tag that is no link", "$[0]"),
    (b"\x82\x01" + LINK[:-1], 2, "a tag that is no link to an artifact, or is cut off", "$[1]"),
    (b"\x01\x01", 1, "bytes after the end", "$"),
    (LINK + b"\x00", len(LINK), "bytes after the end", "$"),
    (b"\x9b\x7f" + bytes(7), 0, "cut off", "$"),
    (b"\x81" * (values.MAX_DEPTH + 1) + b"\x01", values.MAX_DEPTH, "nested deeper", "$" + "[0]" * 66),
]


@pytest.mark.parametrize(("data", "offset", "rule", "path"), FAULTS)
def test_each_rule_is_told_with_its_offset(data: bytes, offset: int, rule: str, path: str) -> None:
    """By the error, which survives a pickle and is still an InvalidValue."""
    with pytest.raises(InvalidValue) as caught:
        values.decode(data)
    error = pickle.loads(pickle.dumps(caught.value))
    assert type(error) is UndecodableValue and error.code == "undecodable_value"
    assert error.fields["offset"] == offset and error.fields["path"].startswith(path[:200])
    assert error.fields["reason"].startswith(rule) and f"at byte {offset}" in str(error)


def test_every_prefix_and_every_longer_form() -> None:
    """Of a value with all there is: cut off anywhere, the offset is that of the item that is not whole; a byte too
    many is named where it stands."""
    data = values.encode(SAMPLE)[0]
    starts = set()
    for end in [*range(400), *range(len(data) - 40, len(data))]:
        with pytest.raises(UndecodableValue, match=r"cut off|no UTF-8") as caught:
            values.decode(data[:end])
        assert caught.value.fields["offset"] <= end
        starts.add(caught.value.fields["offset"])
    assert len(starts) > 10
    with pytest.raises(UndecodableValue, match=f"bytes after the end, at byte {len(data)}"):
        values.decode(data + b"\xf6")


SIMPLE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 64), (1 << 64) - 1), st.floats(allow_nan=False,
              allow_infinity=False), st.text(max_size=8), st.binary(max_size=30), st.just(ArtifactId.of(b"y"))),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=4), inner, max_size=5)),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(SIMPLE, st.data())
def test_a_fault_is_found_exactly_where_a_decoder_refuses(value: Any, draw: st.DataObject) -> None:
    """Bytes of values, with a byte changed, put in or taken out, or any bytes: never one without the other."""
    data = bytearray(values.encode(value)[0])
    what = draw.draw(st.sampled_from(["whole", "change", "insert", "remove", "any"]))
    place = draw.draw(st.integers(0, len(data) - 1))
    if what == "change":
        data[place] ^= 1 << draw.draw(st.integers(0, 7))
    elif what == "insert":
        data.insert(place, draw.draw(st.integers(0, 255)))
    elif what == "remove":
        del data[place]
    elif what == "any":
        data = bytearray(draw.draw(st.binary(max_size=40)))
    fault = first_fault(bytes(data), depth_max=values.MAX_DEPTH)
    try:
        values.decode(bytes(data))
    except UndecodableValue as error:
        assert fault is not None and error.fields["offset"] == fault.offset
        return
    assert fault is None


def test_what_is_no_bytes() -> None:
    """Has no offset."""
    with pytest.raises(InvalidValue) as caught:
        values.decode("text")  # type: ignore[arg-type]
    assert type(caught.value) is InvalidValue
