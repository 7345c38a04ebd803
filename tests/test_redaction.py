"""What failures say is masked before it is stored, where the journal was opened with a hook (SEMANTICS, section 4)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import journal
from journal import ErrorInfo, RunStatus, StateError, StateFailed, redact_secrets

SECRET = "hunter2-and-more-of-it"
A = "op.work.a"


class Refused(Exception):
    """As libraries raise them, with everything that was sent."""

    def __init__(self, details: Any) -> None:
        super().__init__(f"401 for https://bob:{SECRET}@example.com/ with password={SECRET}")
        self.details = details


class Opaque:
    def __init__(self, before: int = 0) -> None:
        self._before = before

    def __repr__(self) -> str:
        return f"<Client {'.' * self._before} https://bob:{SECRET}@example.com password={SECRET!r}>"


def bytes_of(home: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file())


def errors_of(jrn: journal.Journal, run: journal.Run) -> list[ErrorInfo]:
    return [item.event.error.info for item in jrn.read(run.run_id) if isinstance(item.event, StateFailed)]


def failing(error: BaseException) -> Callable[[journal.Run], None]:
    def work(run: journal.Run) -> None:
        with pytest.raises(type(error)), run.enter(A):
            raise error

    return work


WAYS: dict[str, Callable[[journal.Run], None]] = {
    "a message": failing(Refused(None)),
    "details": failing(Refused({"password": SECRET, "retry_at_ms": 5, "n": [1, f"token={SECRET}"]})),
    "large details": failing(Refused({"headers": {"Authorization": f"Bearer {SECRET}"}, "body": "x" * 5000})),
    "what is no value": failing(Refused(Opaque())),
    "what is no value, and long": failing(Refused(Opaque(222))),
    "a task that was cancelled": failing(asyncio.CancelledError(f"password={SECRET}")),
    "fail with an exception": lambda run: run.fail(Refused({"secret": SECRET})),
    "fail with text": lambda run: run.fail(f"password: {SECRET}"),
    "fail with an error": lambda run: run.fail(StateError(info=ErrorInfo(
        code="c", retryable=False, message=f"api_key={SECRET}", details={"api_key": SECRET},
    ))),
    "cancel": lambda run: run.cancel(f"password={SECRET}"),
    "cancel from elsewhere": lambda run: run._journal.cancel(run.run_id, f"password={SECRET}"),
}  # fmt: skip


HOOKS = [redact_secrets, lambda message, details: 1 // 0, lambda message, details: (None, None)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hook", HOOKS, ids=["patterns", "raises", "gives no text"])
def test_no_byte_of_it_is_stored(tmp_path: Path, way: str, hook: Any) -> None:
    """By the patterns, and by a hook that fails, which lets nothing through; the failure is recorded all the same."""
    with journal.open(tmp_path / "home", redact=hook) as jrn:
        run = jrn.start_run("op", manifest={}, context={}, plan=[A], max_attempts=1)
        if way == "cancel":
            run.enter(A)
        WAYS[way](run)
        assert jrn.run_state(run.run_id).status in (RunStatus.FAILED, RunStatus.CANCELLED)
        jrn.store.staging.settle()
        assert jrn.verify() == []
    assert SECRET[:7].encode() not in bytes_of(tmp_path)  # nor a part of it, where what is shown is cut


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    """What is masked is gone for good, so nobody is surprised by it."""
    with journal.open(tmp_path / "home") as jrn:
        run = jrn.start_run("op", manifest={}, context={}, plan=[A])
        WAYS["details"](run)
        assert SECRET in errors_of(jrn, run)[0].message and errors_of(jrn, run)[0].details["password"] == SECRET


def test_what_decides_something_stays(tmp_path: Path) -> None:
    """The patterns mask text and keep the rest: the time of the next try, numbers, the shape."""
    with journal.open(tmp_path / "home", redact=redact_secrets) as jrn:
        run = jrn.start_run("op", manifest={}, context={}, plan=[A])
        WAYS["details"](run)
        info = errors_of(jrn, run)[0]
        assert info.message == "401 for https://bob:***@example.com/ with password=***" and info.retryable
        assert info.details == {"password": "***", "retry_at_ms": 5, "n": [1, "token=***"]}


def test_a_hook_of_the_orchestrator(tmp_path: Path) -> None:
    """Gets the whole message before it is cut, and details as a plain value; returns both, None drops the details."""
    seen = []

    def hook(message: str, details: Any) -> tuple[str, Any]:
        seen.append((len(message), details))
        return "left out", None

    with journal.open(tmp_path / "home", redact=hook) as jrn:
        run = jrn.start_run("op", manifest={}, context={}, plan=[A])
        with pytest.raises(ValueError), run.enter(A):
            raise ValueError("x" * 5000)
        with pytest.raises(Refused), run.enter(A):
            raise Refused(Opaque())
        infos = errors_of(jrn, run)
        assert [(info.message, info.details) for info in infos] == [("left out", None)] * 2
        assert [info.code for info in infos] == ["ValueError", "Refused"]
        assert seen[0] == (5000, None) and seen[1][1].startswith("<Client")


def test_awaited_alike(tmp_path: Path) -> None:
    async def work() -> None:
        async with journal.AsyncJournal.open(tmp_path / "home", redact=redact_secrets) as jrn:
            run = await jrn.start_run("op", manifest={}, context={}, plan=[A])
            with pytest.raises(Refused):
                async with await run.enter(A):
                    raise Refused({"password": SECRET})

    asyncio.run(work())
    assert SECRET.encode() not in bytes_of(tmp_path)


def test_no_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(journal.InvalidArgument):
        journal.open(tmp_path / "home", redact="yes")  # type: ignore[arg-type]


MASKED = [
    "postgresql://user:s3cret@db/prod", "redis://:s3cret@cache:6379/0", "Authorization: Bearer s3cretabcdefghijklmnop",
    "password=s3cret", 'the "password": "s3cret", was', "PGPASSWORD='s3cret'", "aws_secret_access_key = s3cret",
    "client_secret=s3cret&x=1", "x-api-key: s3cret", "AKIAS3CRETS3CRETS3CR", "ghp_s3cretabcdefghijklmnopqrstuv",
    "sk-proj-s3cretabcdefghijklm", "xoxb-s3cret-1234567890",
    "-----BEGIN RSA PRIVATE KEY-----\ns3cret\n-----END RSA PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\ns3cret",
    "eyJs3cretabcdef.eyJs3cretabcdef.s3cret", 'cut off: password="s3cret', "MY_DB_PASSWORD_2: s3cret",
]  # fmt: skip
LEFT = [
    "", "unexpected token: '}' at line 3", "the password is wrong", "connect to https://example.com:8080/path failed",
    "KeyError: 'secret_name'", "basic auth is needed", "no secrets here", "user@example.com: no such mailbox",
    "tokens used: 512", "key=value", "risk-adjusted-return-of-investments",
]  # fmt: skip


@pytest.mark.parametrize("text", MASKED)
def test_patterns_that_are_masked(text: str) -> None:
    message, details = redact_secrets(text, {"a": [text, {"b": text}], "n": 1, "f": 0.5, "none": None})
    assert "s3cret" not in message.lower() and "***" in message
    assert details == {"a": [message, {"b": message}], "n": 1, "f": 0.5, "none": None}


@pytest.mark.parametrize("text", LEFT)
def test_text_that_is_left(text: str) -> None:
    assert redact_secrets(text, text) == (text, text)


@pytest.mark.parametrize("part", [
    "b", "aB3-_x", "a.", "password", "eyJaaaaaaaaaa-", "eyJaaaaaaaaa.eyJ", "http://a:b", "password   ", 'password="',
    "-----BEGIN PRIVATE KEY-----", "a+b-c.", "bearer ", "x://:", "token= ", " ", "password='",
])  # fmt: skip
def test_text_of_any_length(part: str) -> None:
    """A whole response in a message, of whatever it is made: it ends, though each part could begin a secret."""
    redact_secrets("", {"body": part * (1_000_000 // len(part)), part[:400]: part})


def test_keys_that_are_masked() -> None:
    """By the name alone, whatever the value is; counts and flags are no secrets."""
    details = {"db": {"Password": "x", "user": "u"}, "API-Key": b"x", "secrets": ["x"], "token": "x", "max_tokens": 5,
               "cookie": "a=b", "author": "me", "secret": None, "password_set": True}  # fmt: skip
    assert redact_secrets("", details)[1] == {
        "db": {"Password": "***", "user": "u"}, "API-Key": "***", "secrets": "***", "token": "***", "max_tokens": 5,
        "cookie": "***", "author": "me", "secret": None, "password_set": True,
    }  # fmt: skip
