"""Secrets out of text: log lines, and what comes from outside (Helm, containers, API servers) before it reaches a log or a comment.

Two strengths. `mask_secrets` knows secrets by their shape alone: for our own log lines, where `token` is a claim's number.
`without_secrets` also masks whatever stands behind a word such as "password": for text from outside. Masking twice changes nothing.
"""

from __future__ import annotations

import re
from typing import Final

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
    r"|(?P<user>[A-Za-z][A-Za-z0-9+.-]{0,31}://[^\s/:@\"']*:)(?!\*\*\*@)[^\s/\"']+(?=@)",
    re.DOTALL | re.IGNORECASE,
)


def _may_hold_a_secret(text: str) -> bool:
    """Whether one of the words stands there that are part of every shape; the ordinary line costs less than a microsecond so.

    Written out, since a generator would cost ten times as much.
    """
    low = text.lower()
    return "gh" in low or "github_pat_" in low or "eyj" in low or "-----begin" in low or "bearer" in low or "basic" in low or "://" in low


def _masked(match: re.Match[str]) -> str:
    return (match["scheme"] or match["user"] or "") + MASK


def mask_secrets(text: str) -> str:
    """`text` with tokens, private keys, Authorization values and the passwords of URLs replaced by `***`."""
    return _SHAPES.sub(_masked, text) if _may_hold_a_secret(text) else text


_CLOUD_KEYS: Final = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_ASSIGNMENTS: Final = re.compile(
    # The word begins the match and what follows is bounded: else long text without a blank costs its length squared, minutes for 16 kB.
    r"((?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?)[\w.-]{0,200}"
    r"[\"']?\s*(?:=|:)\s*[\"']?)(?!\s)[^\s\"',;&]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """`mask_secrets`, cloud keys, and values behind words such as `token: …` and `password=…`."""
    return _ASSIGNMENTS.sub(rf"\1{MASK}", _CLOUD_KEYS.sub(MASK, mask_secrets(text)))


def cut(text: str, characters_max: int) -> str:
    """The end of a text that is too long: the last lines say what went wrong."""
    return text if len(text) <= characters_max else "…" + text[-characters_max + 1 :]


def foreign_text(text: str, *, limit: int = 300) -> str:
    """Text from outside, fit for an error: secrets masked, control characters made spaces, cut to `limit` characters.

    Masking comes before the cut, since half a token would not be recognised.
    """
    # A bound before the regular expressions: what comes from outside may have megabytes.
    clean = "".join(char if char.isprintable() else " " for char in without_secrets(text[: limit * 20 + 8192]))
    clean = " ".join(clean.split())
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
