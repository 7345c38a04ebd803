"""What failures say, masked before it is stored (SEMANTICS, section 4). Off unless the journal is opened with a hook.

Events are never changed and never leave by gc, and what an exception says may hold a password or a token: so the hook
comes first, before anything is cut, moved to an artifact or written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

# Of (message, details) what is stored instead; details of None are left out. `details` are a plain value.
Redact = Callable[[str, Any], tuple[str, Any]]

MASK: Final = "***"

_NAMES: Final = (
    r"pass(?:word|wd|phrase)s?|pwd|secrets?|credentials?|private[_-]?key|(?:api|access|auth|account)[_-]?key"
    r"|(?:access|auth|refresh|session|bearer|id|api)[_-]?token|authorization|set-cookie|cookie|connection[_-]?string"
)
_SECRET_KEY: Final = re.compile(rf"(?i)(?:.*[_.\- ])?(?:{_NAMES}|token)(?:[_.\- ].*)?")
_VALUE: Final = r"""("[^"]*(?:"|\Z)|'[^']*(?:'|\Z)|[^\s"'&,;)\]}]+)"""
# Each is done in time that grows as the text: what may repeat without a bound is never begun anew inside of itself.
_PATTERNS: Final = tuple((re.compile(pattern), masked) for pattern, masked in (
    (r"(?s)(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----).*?(-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z)",
     rf"\1{MASK}\2"),
    (r"(?i)\b(bearer|basic)(\s{1,8})[A-Za-z0-9._~+/=\-]{16,}", rf"\1\2{MASK}"),
    (r"\b([A-Za-z][A-Za-z0-9+.\-]{0,20}://[^\s/:@]*:)[^\s/@]+@", rf"\1{MASK}@"),
    (rf"(?i)((?:{_NAMES})[\w.\-]{{0,64}}[\"']?\s{{0,8}}[:=]\s{{0,8}}){_VALUE}", rf"\1{MASK}"),
    (rf"(?i)(token[\"']?\s{{0,8}}=\s{{0,8}}){_VALUE}", rf"\1{MASK}"),
    (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", MASK),
    (r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[\w\-]{16,})", MASK),
    (r"\b(?:xox[abeprs]-[A-Za-z0-9\-]{10,}|[sprk]{2}[-_](?:live|test|ant|proj|or)[A-Za-z0-9_\-]{10,})", MASK),
    (r"\bsk-[A-Za-z0-9]{20,}", MASK),
    (r"\bAIza[0-9A-Za-z_\-]{35}", MASK),
    (r"(?<![A-Za-z0-9_\-])eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]*)?", MASK),
))  # fmt: skip


def redact_secrets(message: str, details: Any) -> tuple[str, Any]:
    """A conservative set of patterns, for `journal.open(…, redact=redact_secrets)`: passwords in URLs, values that are
    named like a secret, private keys, bearer tokens, JWTs and keys of well-known services become ***; details keep
    their shape. It does not know every secret: what must not be stored is better not put into an exception."""
    return _masked_text(message), _masked(details)


def redacted(redact: Redact | None, message: str, details: Any) -> tuple[str, Any]:
    """What the hook makes of it. One that fails lets nothing through, and the failure is recorded all the same."""
    if redact is None:
        return message, details
    try:
        message, details = redact(message, details)
        if type(message) is str:
            return message, details
        reason = f"gave a {type(message).__name__} as message"
    except Exception as error:
        reason = f"raised {type(error).__name__}"
    return f"({MASK}: the redact hook {reason})", None


def redacted_text(redact: Redact | None, text: str) -> str:
    """The same of a message without details."""
    return redacted(redact, text, None)[0]


def _masked(value: Any) -> Any:
    if type(value) is str:
        return _masked_text(value)
    if type(value) is list:
        return [_masked(item) for item in value]
    if type(value) is dict:
        return {key: _masked_at(key, item) for key, item in value.items()}
    return value


def _masked_at(key: str, value: Any) -> Any:
    if type(value) in (str, bytes, list, dict) and _SECRET_KEY.fullmatch(key):
        return MASK
    return _masked(value)


def _masked_text(text: str) -> str:
    for pattern, masked in _PATTERNS:
        text = pattern.sub(masked, text)
    return text
