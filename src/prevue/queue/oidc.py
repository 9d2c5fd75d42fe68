"""Whether a request carries the identity that it must: an OpenID Connect token, checked against its issuer's published keys.

PyJWT checks signature, issuer, audience and times. The keys are fetched here, since PyJWT's own client and google-auth's `id_token` fetch
synchronously, and google-auth without a cache. Keys are kept as long as their issuer says; an unknown one is looked for at once, but
not oftener than every ten seconds, whoever sends tokens. While the issuer does not answer the known keys stay good for a day.

https://docs.cloud.google.com/tasks/docs/creating-http-target-tasks#token
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable
from typing import Any

import httpx2
import jwt
import msgspec
import structlog
from jwt.algorithms import RSAAlgorithm

KEYS_SECONDS_DEFAULT, KEYS_SECONDS_MIN, KEYS_SECONDS_MAX = 3600.0, 60.0, 86_400.0
"""How long keys are good without being fetched again, where their issuer says nothing; and within which bounds it is believed."""
KEYS_STALE_SECONDS_MAX = 86_400.0
"""How long known keys are good after that while their issuer does not answer."""
FETCH_PAUSE_SECONDS = 10.0
FETCH_SECONDS_MAX = 5.0
LEEWAY_SECONDS = 30.0
"""Clocks differ."""

_log = structlog.get_logger(__name__)


class Refused(Exception):
    """The request is not served: 401 without a valid token, 403 with another's, 503 while that cannot be told."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class KeySet:
    """The public keys of an issuer, by their ids."""

    def __init__(self, url: str, client: httpx2.AsyncClient, *, now: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._client = client
        self._now = now
        self._keys: dict[str, Any] = {}
        self._fresh_until = self._next_fetch_at = -math.inf
        self._is_reachable = False
        self._fetching = asyncio.Lock()

    async def key(self, key_id: str) -> Any:
        """The public key of this id.

        Raises:
            Refused: 401, there is none of that id; 503, the issuer does not say.
        """
        if key_id not in self._keys or self._now() >= self._fresh_until:
            async with self._fetching:  # whoever waited finds what the first has fetched
                if (key_id not in self._keys or self._now() >= self._fresh_until) and self._now() >= self._next_fetch_at:
                    await self._fetch()
        if key_id in self._keys and self._now() < self._fresh_until + KEYS_STALE_SECONDS_MAX:
            return self._keys[key_id]
        if self._is_reachable:
            raise Refused(401, "the token is signed with an unknown key")
        raise Refused(503, "the issuer's keys cannot be fetched")

    async def _fetch(self) -> None:
        self._next_fetch_at = self._now() + FETCH_PAUSE_SECONDS
        try:
            answer = await self._client.get(self._url, timeout=FETCH_SECONDS_MAX)
            answer.raise_for_status()
            self._keys = _keys_in(answer.content)
        except (httpx2.HTTPError, httpx2.InvalidURL, jwt.PyJWTError, msgspec.MsgspecError, ValueError) as exc:
            self._is_reachable = False
            _log.warning("oidc_keys_unavailable", url=self._url, error=f"{type(exc).__name__}: {exc}"[:300])
        else:
            self._is_reachable = True
            self._fresh_until = self._now() + _seconds_fresh(answer.headers.get("cache-control", ""))


class Verifier:
    """Admits one account of one issuer, for one audience."""

    def __init__(self, keys: KeySet, *, issuer: str, audience: str, account: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._account = account

    async def verify(self, authorization: str) -> None:
        """Return if this Authorization header's token is valid and the account's.

        Raises:
            Refused: with the status to answer and the reason to log.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refused(401, "no bearer token")
        try:
            key_id = str(jwt.get_unverified_header(token).get("kid", ""))
            key = await self._keys.key(key_id)
            claims = jwt.decode(
                token,
                key,
                algorithms=["RS256"],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iat", "iss", "aud", "email"]},
            )
        except jwt.InvalidTokenError as exc:
            raise Refused(401, f"{type(exc).__name__}: {exc}") from exc
        if claims["email"] != self._account or claims.get("email_verified") is not True:
            raise Refused(403, f"the token is {str(claims['email'])[:100]!r}'s")


class _JwkSet(msgspec.Struct):
    keys: list[dict[str, Any]]


def _keys_in(content: bytes) -> dict[str, Any]:
    """A JWK set's RSA keys; which algorithm is used with them is ours to say, not the set's."""
    entries = msgspec.json.decode(content, type=_JwkSet).keys
    found = {str(entry.get("kid", "")): RSAAlgorithm.from_jwk(entry) for entry in entries if entry.get("kty") == "RSA"}
    if not found:
        raise ValueError("no RSA key in it")
    return found


def _seconds_fresh(cache_control: str) -> float:
    match = re.search(r"max-age=(\d{1,9})", cache_control)
    return min(KEYS_SECONDS_MAX, max(KEYS_SECONDS_MIN, float(match[1]))) if match else KEYS_SECONDS_DEFAULT
