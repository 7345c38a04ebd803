"""What a gc keeps and when one is worth it: a value, from keywords, from the text of HOME/gc.toml, or both. Pure."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from typing import Any, Final, NamedTuple, final

import pytimeparse2

from casstore.errors import InvalidArgument, InvalidPolicy
from casstore.roots import Retention
from casstore.times import shown_span, shown_time

Duration = float | int | timedelta

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?(B|KiB|MiB|GiB|TiB|kB|KB|MB|GB|TB)?", re.ASCII)
_UNITS: Final = {
    "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
_MOST: Final = 1 << 62


def parse_duration(text: str) -> int:
    """`14d`, `1h30m`, `0s` in whole seconds. Raises: ValueError."""
    seconds = pytimeparse2.parse(text)
    if not isinstance(seconds, (int, float)) or not 0 <= seconds < 1 << 40:
        raise ValueError(f"{text!r} is no duration such as 14d, 1h or 0s")
    return int(seconds)


def parse_size(text: str) -> int:
    """`20GiB`, `500 MB`, `1048576` in bytes. Raises: ValueError."""
    found = _SIZE.fullmatch(text.strip())
    number = float(found[1]) * _UNITS[found[2] or "B"] if found else _MOST
    size = int(min(number, _MOST))  # a number with hundreds of digits is infinite
    if size >= _MOST:
        raise ValueError(f"{text!r} is no size such as 20GiB, 500MB or 1048576")
    return size


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AutoPolicy:
    """When a gc is worth it: what it has to find at least, and how long after the one before. Seconds and bytes.

    Any of `after_bytes` (stored) and `after_artifacts` (both new since then) and `after_runs` (that retention has let
    go since then) is enough, once `min_interval` is over; after `max_interval` it goes without.
    """

    min_interval: Duration = 3600
    max_interval: Duration = 7 * 86400
    after_bytes: int = 64 << 20
    after_artifacts: int = 10_000
    after_runs: int = 10

    def __post_init__(self) -> None:
        for name in ("min_interval", "max_interval"):
            object.__setattr__(self, name, whole_seconds(getattr(self, name), name))
        for name in ("after_bytes", "after_artifacts", "after_runs"):
            check_count(getattr(self, name), name)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a gc keeps. Durations in seconds (or timedelta), sizes in bytes; live runs, pins and leases are always kept.

    Runs that ended are kept for `keep_completed`; those that failed or were cancelled for `keep_failed` and
    `keep_cancelled`, where these are given. Kept too are the newest `keep_last` of each operation. With `final_only` a
    completed run that is kept keeps only its manifest, its final snapshot and what that links to, so not its outputs,
    but with `keep_outputs` what it wrote as an output too. `quota` bounds the stored bytes: runs that ended go, the
    oldest first, until they fit; it comes before all that keeps runs that ended, and after everything else.
    """

    keep_completed: Duration = 14 * 86400
    keep_failed: Duration | None = None
    keep_cancelled: Duration | None = None
    keep_last: int = 0
    final_only: bool = False
    keep_outputs: bool = False
    quota: int | None = None
    grace: Duration = 3600
    quarantine: Duration = 0
    max_time: Duration | None = None
    max_bytes: int | None = None
    auto: AutoPolicy = field(default_factory=AutoPolicy)

    def __post_init__(self) -> None:
        for name in ("keep_completed", "keep_failed", "keep_cancelled", "grace", "quarantine", "max_time"):
            given = getattr(self, name)
            if given is not None:
                exact = exact_seconds(given, name)
                object.__setattr__(self, name, exact if name == "max_time" else int(exact))
        for name in ("keep_last", "quota", "max_bytes"):
            given = getattr(self, name)
            if given is not None:
                check_count(given, name)
        for name in ("final_only", "keep_outputs"):
            if type(getattr(self, name)) is not bool:
                raise InvalidArgument(name, "must be true or false")
        if self.final_only and not self.keep_completed and not self.keep_last:
            raise InvalidArgument(
                "final_only", "no completed run is kept: give keep_completed or keep_last too"
            )
        if self.keep_outputs and not self.final_only:
            raise InvalidArgument("keep_outputs", "means something with final_only alone: without it outputs are kept")

    def changed(self, **given: Any) -> Policy:
        """With these in place of its own; None leaves what is there. Raises: InvalidArgument."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def keep_s(self, status: str) -> int:
        """How long a run that ended so is kept."""
        given = {"failed": self.keep_failed, "cancelled": self.keep_cancelled}.get(status)
        return int(_plain(self.keep_completed if given is None else given))

    def retention(self, now_s: int) -> Retention:
        """Which runs that ended are kept now."""
        after = {status: _after_ms(now_s, self.keep_s(status)) for status in ("completed", "failed", "cancelled")}
        others = ((status, after[status]) for status in ("failed", "cancelled"))
        return Retention(
            completed_after_ms=after["completed"],
            exceptions=tuple((status, at) for status, at in others if at != after["completed"]),
            keep_last=self.keep_last, final_only=self.final_only, keep_outputs=self.keep_outputs,
        )  # fmt: skip

    def __str__(self) -> str:
        """`keep completed 14d, failed 30d; grace 1h`."""
        spans = [f"keep completed {shown_span(self.keep_s('completed'))}"]
        spans += [
            f"{status} {shown_span(self.keep_s(status))}"
            for status in ("failed", "cancelled") if self.keep_s(status) != self.keep_s("completed")
        ]  # fmt: skip
        parts = [", ".join(spans)]
        if self.keep_last:
            parts.append(f"the last {self.keep_last} of each operation")
        if self.final_only:
            parts.append("of completed runs the final snapshot" + (" and outputs" if self.keep_outputs else " only"))
        if self.quota is not None:
            parts.append(f"quota {self.quota} bytes")
        parts.append(f"grace {shown_span(_plain(self.grace))}")
        if self.quarantine:
            parts.append(f"quarantine {shown_span(_plain(self.quarantine))}")
        return "; ".join(parts)


# -- the file --------------------------------------------------------------------------------------------


def parse_policy(text: str, path: str) -> Policy:
    """The policy that a gc.toml says; what it does not say is as by default. Raises: InvalidPolicy with the key."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidPolicy(path, "", f"is no TOML: {error}") from error
    auto = found.pop("auto", {})
    if not isinstance(auto, dict):
        raise InvalidPolicy(path, "auto", "must be a table, [auto]")
    given = _read(path, "", found, Policy)
    if auto:
        given["auto"] = _made(path, "auto.", AutoPolicy, _read(path, "auto.", auto, AutoPolicy))
    made: Policy = _made(path, "", Policy, given)
    return made


_DURATIONS: Final = frozenset({
    "keep_completed", "keep_failed", "keep_cancelled", "grace", "quarantine", "max_time", "min_interval",
    "max_interval",
})  # fmt: skip
_SIZES: Final = frozenset({"quota", "max_bytes", "after_bytes"})


def _read(path: str, prefix: str, found: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    known = [each.name for each in fields(kind) if each.name != "auto"]
    for key in found:
        if key not in known:
            raise InvalidPolicy(path, prefix + key, f"is not known; there are {', '.join(known)}")
    return {key: _value(path, prefix + key, key, value) for key, value in found.items()}


def _value(path: str, shown: str, key: str, value: object) -> object:
    """Text is a duration or a size where the key wants one; a number is seconds or bytes as in the API."""
    parse: Callable[[str], int] | None = parse_duration if key in _DURATIONS else None
    parse = parse_size if key in _SIZES else parse
    if not isinstance(value, str):
        return value
    if parse is None:
        raise InvalidPolicy(path, shown, f"{value!r:.80} is text, where a number or true or false is wanted")
    try:
        return parse(value)
    except ValueError as error:
        raise InvalidPolicy(path, shown, str(error)) from error


def _made(path: str, prefix: str, kind: type[Any], given: dict[str, Any]) -> Any:
    try:
        return kind(**given)
    except InvalidArgument as error:
        raise InvalidPolicy(path, f"{prefix}{error.fields['argument']}", error.fields["reason"]) from error


# -- whether a gc is worth it ----------------------------------------------------------------------------


class Growth(NamedTuple):
    """What a cheap look at a store tells. `last_s` is unix time, when the newest gc opened (None: never one), with its
    number and how it ended; the others are what came since: artifacts, stored bytes, runs that retention let go.
    `over_quota_bytes` is by how much more than the quota and than that gc left is stored. `window_over` says that the
    quarantine of something that was removed has ended, whose bytes may go."""

    last_s: int | None
    gc: int = 0
    outcome: str = ""
    artifacts: int = 0
    bytes: int = 0
    runs: int = 0
    over_quota_bytes: int = 0
    window_over: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Whether a gc is worth it, and why or why not, for people."""

    due: bool
    reason: str


def is_due(auto: AutoPolicy, seen: Growth, now_s: int) -> Due:
    """Whether `auto` asks for a gc now. A clock that was set back delays none: an age below 0 counts as over."""
    if seen.last_s is None:
        return Due(due=True, reason="there was no gc yet")
    age_s = now_s - seen.last_s
    since = f"gc {seen.gc} of {shown_time(seen.last_s)}"
    if 0 <= age_s < _plain(auto.min_interval):
        wait = shown_span(_plain(auto.min_interval) - age_s)
        return Due(due=False, reason=f"{since} is {shown_span(age_s)} old; min_interval is over in {wait}")
    reasons = []
    if seen.outcome in ("stopped", "failed", "unfinished"):
        reasons.append(f"{since} is {seen.outcome}")
    if seen.over_quota_bytes > 0:
        reasons.append(f"{seen.over_quota_bytes} bytes over the quota")
    if seen.window_over:
        reasons.append("the quarantine of what was removed has ended")
    for found, wanted, what in (
        (seen.runs, auto.after_runs, "runs past their retention"), (seen.artifacts, auto.after_artifacts, "artifacts"),
        (seen.bytes, auto.after_bytes, "stored bytes"),
    ):  # fmt: skip
        if found >= max(wanted, 1):
            reasons.append(f"{found} new {what} since {since} (it takes {wanted})")
    if not 0 <= age_s < _plain(auto.max_interval):
        reasons.append(f"{since} is older than max_interval, {shown_span(_plain(auto.max_interval))}")
    if reasons:
        return Due(due=True, reason="; ".join(reasons))
    little = (
        f"since {since} only {seen.runs} runs past their retention, {seen.artifacts} new artifacts and {seen.bytes} new"
        f" stored bytes; it takes {auto.after_runs}, {auto.after_artifacts} or {auto.after_bytes}"
    )
    return Due(due=False, reason=little)


# -- checks ----------------------------------------------------------------------------------------------


def check_count(count: object, name: str) -> int:
    """Raises: InvalidArgument."""
    if type(count) is not int or count < 0:
        raise InvalidArgument(name, "must be a whole number from 0")
    return count


def whole_seconds(duration: Duration, name: str) -> int:
    """Raises: InvalidArgument."""
    return int(exact_seconds(duration, name))


def exact_seconds(duration: Duration, name: str) -> float:
    """Raises: InvalidArgument."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1 << 40:
        raise InvalidArgument(name, "must be seconds (0 or more) or a timedelta")
    return seconds


def _plain(duration: Duration) -> float:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


def _after_ms(now_s: int, keep_s: int) -> int | None:
    return (now_s - keep_s) * 1000 if keep_s else None
