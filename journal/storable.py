"""Make an error storable, whatever it holds: reporting a failure never fails for what the failure says.

Sizes are bytes of UTF-8 or of canonical CBOR. Nothing here raises for a value; only the store can fail, where details
that are too large for an event move into an artifact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from casstore import values
from casstore.errors import MissingArtifact
from casstore.ids import ArtifactId
from journal.errors import NonRetryable
from journal.failures import ErrorCategory, ErrorInfo, StateError
from journal.redaction import Redact, redacted, redacted_text

MESSAGE_LIMIT_BYTES: Final = 1024
RUN_MESSAGE_LIMIT_BYTES: Final = 640  # in run_ended, which holds a reason and a state besides
CODE_LIMIT_BYTES: Final = 128
DETAILS_LIMIT_BYTES: Final = 320
REPR_LIMIT_BYTES: Final = 256
REASON_LIMIT_BYTES: Final = 256
RETRY_AT: Final = "retry_at_ms"

_ANY_BYTES: Final = 1 << 60
_CUT: Final = "…"

PutValue = Callable[[object], ArtifactId]
Present = Callable[[ArtifactId], bool]


def storable_text(text: str, limit_bytes: int) -> str:
    """Plain text of at most `limit_bytes`: lone surrogates become `\\udXXX`, the rest is cut between characters."""
    data = text[: limit_bytes + 1].encode("utf-8", "backslashreplace")
    if len(data) <= limit_bytes:
        return data.decode()
    return data[: limit_bytes - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT


def describe(error: object) -> str:
    """`str(error)`, else its repr, else its type's name: user code runs here and may raise."""
    for show in (str, repr):
        try:
            return show(error)
        except Exception:
            continue
    return type(error).__name__


def storable_details(details: Any, *, put: PutValue, present: Present) -> Any:
    """Details as they can stand in an event, at most DETAILS_LIMIT_BYTES.

    What does not encode, or links to an artifact that is not there, becomes its repr; what is too large moves into
    an artifact and `{"details_id": …}` stays, with the `retry_at_ms` of the details, which decides something.
    """
    try:
        data, links = values.encode(details)
    except Exception:  # InvalidValue, or a hostile __getattr__ or __iter__; a failure is reported all the same
        return _shown(details)
    if not all(present(link) for link in links):
        return _shown(details)
    if len(data) <= DETAILS_LIMIT_BYTES:
        return details
    try:
        moved: dict[str, Any] = {"details_id": put(details)}
    except MissingArtifact:
        return _shown(details)
    return {**_retry_at(details), **moved}


def _shown(details: Any, limit_bytes: int = REPR_LIMIT_BYTES) -> Any:
    try:
        text = repr(details)
    except Exception:
        text = type(details).__name__
    shown = storable_text(text, limit_bytes)
    kept = _retry_at(details)
    return {**kept, "repr": shown} if kept else shown


def _retry_at(details: Any) -> dict[str, Any]:
    value = details.get(RETRY_AT) if type(details) is dict else None
    return {RETRY_AT: value} if type(value) is int and 0 <= value < 1 << 64 else {}


def is_retryable(error: BaseException, classify: Callable[[BaseException], bool] | None) -> bool:
    """NonRetryable never is; else the run's classifier says. One that raises has not said no."""
    if isinstance(error, NonRetryable):
        return False
    if classify is None:
        return True
    try:
        return bool(classify(error))
    except Exception as broken:
        error.add_note(f"the classifier of retryable errors raised {type(broken).__name__}; taken as retryable")
        return True


def error_info(
    error: BaseException, *, retryable: bool, put: PutValue, present: Present, redact: Redact | None = None
) -> ErrorInfo:  # fmt: skip
    """What an exception says, storable. Its `code`, `category` and `details` attributes are used where they fit."""
    details = _attribute(error, "details")
    if redact is not None:
        details = _plain(details)
    message, details = redacted(redact, describe(error), details)
    return ErrorInfo(
        code=_code(error),
        category=_category(_attribute(error, "category")),
        retryable=retryable,
        message=storable_text(message, MESSAGE_LIMIT_BYTES),
        details=None if details is None else storable_details(details, put=put, present=present),
    )


def plain_error_info(error: BaseException, *, retryable: bool, redact: Redact | None = None) -> ErrorInfo:
    """The same without details: what is written when those got in the way."""
    message = storable_text(redacted_text(redact, describe(error)), MESSAGE_LIMIT_BYTES)
    return ErrorInfo(code=_code(error), retryable=retryable, message=message)


def state_error(
    error: BaseException | StateError | ErrorInfo | str, *, put: PutValue, present: Present,
    redact: Redact | None = None,
) -> StateError:  # fmt: skip
    """Whatever a caller gives as the reason of a failed run, storable; never retryable unless it says so itself."""
    if isinstance(error, StateError):
        return replace(error, info=_fit(error.info, put=put, present=present, redact=redact))
    if isinstance(error, ErrorInfo):
        return StateError(info=_fit(error, put=put, present=present, redact=redact))
    if isinstance(error, BaseException):
        info = error_info(error, retryable=False, put=put, present=present, redact=redact)
        return StateError(info=_fit(info, put=put, present=present))
    message = storable_text(redacted_text(redact, str(error)), RUN_MESSAGE_LIMIT_BYTES)
    return StateError(info=ErrorInfo(code="run_failed", retryable=False, message=message))


def _plain(details: Any) -> Any:
    """What a hook is given: a plain value, else what is shown of it, whole: of a secret that is cut no pattern knows
    the rest."""
    try:
        values.encode(details)
    except Exception:
        return _shown(details, _ANY_BYTES)
    return details


def _fit(info: ErrorInfo, *, put: PutValue, present: Present, redact: Redact | None = None) -> ErrorInfo:
    message, details = redacted(redact, info.message, info.details)
    return ErrorInfo(
        code=storable_text(info.code, CODE_LIMIT_BYTES),
        category=info.category,
        retryable=info.retryable,
        message=storable_text(message, RUN_MESSAGE_LIMIT_BYTES),
        details=None if details is None else storable_details(details, put=put, present=present),
    )


def _attribute(error: BaseException, name: str) -> Any:
    try:
        return getattr(error, name, None)
    except Exception:  # a property that raises
        return None


def _code(error: BaseException) -> str:
    code = _attribute(error, "code")
    if not isinstance(code, str) or not 0 < len(code) <= CODE_LIMIT_BYTES:
        code = type(error).__name__
    return storable_text(code, CODE_LIMIT_BYTES)


def _category(value: object) -> ErrorCategory:
    try:
        return ErrorCategory(value)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return ErrorCategory.UNKNOWN
