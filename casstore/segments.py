"""The segment delta: a new version as runs copied from its base and literal bytes between them. Pure.

For a context that grew by a message the answer is two or three runs, found at the speed of memcmp, whatever the
size of the context.
"""

from __future__ import annotations

from typing import Final

from casstore.varints import read_varint, varint

Op = tuple[int, int]  # (offset in the base, length) to copy, or (-1, length) to take from the literals

SEGMENTS_MAX: Final = 96
_PROBE: Final = 24  # bytes of the base that are looked for in the new bytes, to get back in step
_COPY_MIN: Final = 16
_SKIPS: Final = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)


def diff(new: bytes, base: bytes, limit: int = SEGMENTS_MAX) -> tuple[list[Op], bytes] | None:
    """Runs that make `new` of `base`, and the literals; None where more than `limit` runs would be needed."""
    ops: list[Op] = []
    literals: list[bytes] = []
    at = to = 0  # places in new and in base
    while at < len(new):
        run = _common(new, at, base, to)
        if run >= _COPY_MIN or (run and at + run == len(new)):
            ops.append((to, run))
            at, to = at + run, to + run
            if len(ops) > limit:
                return None
            continue
        found = _resync(new, at, base, to)
        if found is None:
            _literal(ops, literals, new[at:])
            break
        next_at, next_to = found
        while next_at > at and next_to > to and new[next_at - 1] == base[next_to - 1]:
            next_at, next_to = next_at - 1, next_to - 1
        if next_at == at and next_to == to:
            next_at += 1  # a run too short to copy, and nowhere else to go on: take a byte
            next_to += 1
        _literal(ops, literals, new[at:next_at])
        at, to = next_at, next_to
    return (ops, b"".join(literals)) if len(ops) <= limit else None


def _literal(ops: list[Op], literals: list[bytes], data: bytes) -> None:
    if not data:
        return
    literals.append(data)
    if ops and ops[-1][0] < 0:
        ops[-1] = (-1, ops[-1][1] + len(data))
    else:
        ops.append((-1, len(data)))


def _common(new: bytes, at: int, base: bytes, to: int) -> int:
    """Length of the run that both share from here: galloping, then bisecting, at the speed of memcmp."""
    most = min(len(new) - at, len(base) - to)
    have, step = 0, 64
    while have < most:
        size = min(step, most - have)
        if new.startswith(base[to + have : to + have + size], at + have):
            have += size
            step *= 4
            continue
        low, high = have, have + size  # equal before low, different before high
        while high - low > 1:
            middle = (low + high) // 2
            if new.startswith(base[to + low : to + middle], at + low):
                low = middle
            else:
                high = middle
        return low
    return have


def _resync(new: bytes, at: int, base: bytes, to: int) -> Op | None:
    """The next places (in new, in base) from which both go on alike."""
    for skip in _SKIPS:
        probe = base[to + skip : to + skip + _PROBE]
        if len(probe) < _PROBE:
            break
        found = new.find(probe, at, at + 4096 + 4 * skip)
        if found >= 0:
            return found, to + skip
    probe = base[to : to + _PROBE]
    if len(probe) == _PROBE:
        found = new.find(probe, at)
        if found >= 0:
            return found, to
    return None


def pack(ops: list[Op]) -> bytes:
    """Varints: the count, then for each run its length and kind in one number, and for a copy how far its offset
    lies from the end of the copy before (zigzag)."""
    out = bytearray(varint(len(ops)))
    end = 0
    for offset, length in ops:
        out += varint(length << 1 | (offset >= 0))
        if offset >= 0:
            move = offset - end
            out += varint(move << 1 if move >= 0 else (-move << 1) - 1)
            end = offset + length
    return bytes(out)


def unpack(data: bytes) -> tuple[list[Op], int]:
    """The runs, and how many bytes they took. Raises: ValueError."""
    count, at = read_varint(data, 0)
    if count > len(data):
        raise ValueError("more runs than bytes")
    ops: list[Op] = []
    end = 0
    for _ in range(count):
        head, at = read_varint(data, at)
        if not head & 1:
            ops.append((-1, head >> 1))
            continue
        move, at = read_varint(data, at)
        offset = end + (move >> 1 if not move & 1 else -((move + 1) >> 1))
        if offset < 0:
            raise ValueError("a run begins before its base")
        ops.append((offset, head >> 1))
        end = offset + (head >> 1)
    return ops, at


def literal_size(ops: list[Op]) -> int:
    """Literal bytes that the runs ask for."""
    return sum(length for offset, length in ops if offset < 0)


def apply(ops: list[Op], literal: bytes, base: bytes, size: int) -> bytes:
    """The new version, of exactly `size` bytes. Raises: ValueError before anything is built."""
    if sum(length for _, length in ops) != size or literal_size(ops) != len(literal):
        raise ValueError("the runs give another length")
    parts, at = [], 0
    for offset, length in ops:
        if offset < 0:
            parts.append(literal[at : at + length])
            at += length
        elif offset + length > len(base):
            raise ValueError("a run lies outside of its base")
        else:
            parts.append(base[offset : offset + length])
    return b"".join(parts)
