"""The last line of defence in the log, and text from outside made fit for an error of ours.

`redact.without_secrets` also masks whatever stands behind a word such as "token"; over a log line that would hide the claim's token
and cost more than the line. `mask_secrets` knows secrets by their shape alone. One invariant: masking twice changes nothing.
"""

from __future__ import annotations

import re
from typing import Final

from prevue.redact import without_secrets

MASK: Final = "***"

_SHAPES: Final = re.compile(
    # A private key; in JSON its line ends are the two characters \n, so any character may stand between. A cut key has no end.
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    # GitHub's tokens; https://docs.github.com/authentication/keeping-your-account-and-data-secure/about-authentication-to-github
    r"|\bgh[pousr]_[A-Za-z0-9_.-]{8,}"
    r"|\bgithub_pat_[A-Za-z0-9_]{8,}"
    # A JWT: the App's own, a service account's, a cloud's.
    r"|\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*"
    # An Authorization header's value.
    r"|(?P<scheme>\b(?:bearer|basic)\s+)(?!\*\*\*)[A-Za-z0-9._~+/=-]{8,}"
    # The password of a URL: everything from the first colon to the last @ before the host ends.
    r"|(?P<user>[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@\"']*:)(?!\*\*\*@)[^\s/\"']+(?=@)",
    re.DOTALL | re.IGNORECASE,
)

_HINTS: Final = ("gh", "github_pat_", "eyj", "-----begin", "bearer", "basic", "://")
"""One of these stands in every shape; looking for them first makes the ordinary line cost less than a microsecond."""


def _masked(match: re.Match[str]) -> str:
    return (match["scheme"] or match["user"] or "") + MASK


def mask_secrets(text: str) -> str:
    """`text` with tokens, private keys, Authorization values and the passwords of URLs replaced by `***`."""
    lowered = text.lower()
    if not any(hint in lowered for hint in _HINTS):
        return text
    return _SHAPES.sub(_masked, text)


def foreign_text(text: str, *, limit: int = 300) -> str:
    """Text from outside, fit for an error: secrets masked, control characters made spaces, cut to `limit` characters.

    Masking comes before the cut, since half a token would not be recognised.
    """
    # A bound before the regular expressions: what comes from outside may have megabytes.
    clean = "".join(char if char.isprintable() else " " for char in without_secrets(text[: limit * 20 + 8192]))
    clean = " ".join(clean.split())
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
