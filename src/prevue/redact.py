"""Text from outside, made fit for logs and pull requests: no secrets, no more of it than is useful.

What Helm, a container or an API server prints may hold a token; whatever leaves Prevue's own process goes through here first.
"""

from __future__ import annotations

import re

MASK = "***"

_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
    (re.compile(r"\b(?:gh[oprsu]_[A-Za-z0-9_]{16,}|github_pat_[A-Za-z0-9_]{16,})"), MASK),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"), MASK),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), MASK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {MASK}"),
    (re.compile(r"(\w+://[^\s/:@]*:)[^\s/@]+@"), rf"\1{MASK}@"),
    (
        re.compile(
            r"(?i)([\w.-]*(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?)[\w.-]*"
            r"[\"']?\s*(?:=|:)\s*[\"']?)(?!\s)[^\s\"',;&]+"
        ),
        rf"\1{MASK}",
    ),
)


def without_secrets(text: str) -> str:
    """`text` with what looks like a secret masked: tokens, keys, passwords, `token: …` and `password=…`."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def cut(text: str, characters_max: int) -> str:
    """The end of a text that is too long: the last lines say what went wrong."""
    return text if len(text) <= characters_max else "…" + text[-characters_max + 1 :]
