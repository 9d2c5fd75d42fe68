"""The App's JWT, and the installation tokens that it buys: cached, renewed minutes before their end, fetched once for all who wait.

Ends are kept on the boot-time clock, computed from GitHub's own clock (`expires_at` minus the answer's `Date`), so a wrong wall clock
here cannot make us use a dead token. The JWT alone needs the wall clock: GitHub refuses one that is too far ahead, hence `iat` a
minute back and an end of at most 9 minutes.
https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-a-json-web-token-jwt-for-a-github-app
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import jwt
import msgspec

from prevue.clock import Clock
from prevue.config import GitHubSettings
from prevue.errors import ConfigError

JWT_BACKDATED: Final = timedelta(seconds=60)
"""GitHub's advice against clock drift."""
JWT_LIFETIME: Final = timedelta(minutes=9)
"""From the backdated `iat`, so 8 minutes from now; GitHub allows 10 and measures with its own clock."""
JWT_REUSED_SECONDS: Final = 240.0
"""Signing costs about a millisecond; one JWT serves this long."""
RENEWED_BEFORE_SECONDS: Final = 300.0
"""A token (one hour) is not handed out in its last minutes, so that no call begins with one that ends under way."""


class Token(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An installation token."""

    value: str
    obtained_at: float
    """Boot-time seconds when it was received; a young one may be unknown to some of GitHub's machines yet."""
    usable_until: float
    """Boot-time seconds after which it is not handed out."""


def token_usable_until(*, obtained_at: float, lifetime_seconds: float) -> float:
    """When a token stops being handed out; one that lives for less than 20 minutes keeps three quarters of its life."""
    return obtained_at + lifetime_seconds - min(RENEWED_BEFORE_SECONDS, max(0.0, lifetime_seconds) / 4)


class AppIdentity:
    """The App's id and private key; makes its JWTs."""

    def __init__(self, *, app_id: int, private_key: str, clock: Clock) -> None:
        self._app_id = app_id
        self._private_key = private_key
        self._clock = clock
        self._jwt = ""
        self._jwt_until = float("-inf")

    @classmethod
    def from_settings(cls, settings: GitHubSettings, clock: Clock) -> AppIdentity:
        """Read the key and try it once.

        Raises:
            ConfigError: no App id, no key file, or a file that holds no RSA private key in PEM.
        """
        if settings.app_id <= 0:
            raise ConfigError("github.app_id is not set; it is the number on the App's settings page")
        if not settings.private_key_file:
            raise ConfigError("github.private_key_file is not set; it is the path of the App's private key (PEM)")
        try:
            key = Path(settings.private_key_file).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "not a text file"
            raise ConfigError(f"github.private_key_file: {settings.private_key_file} cannot be read: {why}") from exc
        identity = cls(app_id=settings.app_id, private_key=key, clock=clock)
        try:
            identity.jwt()
        except (ValueError, TypeError, jwt.PyJWTError) as exc:
            raise ConfigError(f"github.private_key_file: {settings.private_key_file} holds no RSA private key in PEM") from exc
        return identity

    def jwt(self) -> str:
        """A JWT that is good for minutes."""
        if self._clock.boottime() < self._jwt_until:
            return self._jwt
        issued = self._clock.now() - JWT_BACKDATED
        claims = {"iat": int(issued.timestamp()), "exp": int((issued + JWT_LIFETIME).timestamp()), "iss": str(self._app_id)}
        self._jwt = jwt.encode(claims, self._private_key, algorithm="RS256")
        self._jwt_until = self._clock.boottime() + JWT_REUSED_SECONDS
        return self._jwt


class _Fetch:
    """A token on its way, and how many wait for it."""

    __slots__ = ("task", "waiters")

    def __init__(self, task: asyncio.Task[Token]) -> None:
        self.task = task
        self.waiters = 0


class InstallationTokens:
    """Tokens by installation. `fetch` buys one; its errors reach everybody who waits for that installation."""

    def __init__(self, fetch: Callable[[int], Coroutine[None, None, Token]], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._tokens: dict[int, Token] = {}
        self._fetching: dict[int, _Fetch] = {}

    async def get(self, installation_id: int) -> Token:
        """A token that is not near its end, from the cache or bought now."""
        token = self._tokens.get(installation_id)
        if token is not None and self._clock.boottime() < token.usable_until:
            return token
        fetch = self._fetching.get(installation_id)
        if fetch is None:
            task = asyncio.create_task(self._fetch(installation_id), name=f"token of installation {installation_id}")
            fetch = self._fetching[installation_id] = _Fetch(task)
            task.add_done_callback(partial(self._fetched, installation_id, fetch))
        fetch.waiters += 1
        try:
            # Shielded: one caller's time-out must not fail the others who wait for the same token.
            return await asyncio.shield(fetch.task)
        finally:
            fetch.waiters -= 1
            if fetch.waiters == 0 and not fetch.task.done():
                # Nobody waits any more: whoever comes next asks anew, and does not inherit a request that hangs.
                fetch.task.cancel()
                self._end(installation_id, fetch)

    def forget(self, installation_id: int, token: Token) -> None:
        """Do not hand out this token again: GitHub has refused it."""
        if self._tokens.get(installation_id) is token:
            del self._tokens[installation_id]

    async def aclose(self) -> None:
        """Cancel what is being fetched."""
        tasks = [fetch.task for fetch in self._fetching.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, installation_id: int, fetch: _Fetch) -> None:
        if self._fetching.get(installation_id) is fetch:
            del self._fetching[installation_id]

    def _fetched(self, installation_id: int, fetch: _Fetch, task: asyncio.Task[Token]) -> None:
        self._end(installation_id, fetch)
        # Asking for the exception also marks it as seen, where every caller has gone meanwhile.
        if not task.cancelled() and task.exception() is None:
            self._tokens[installation_id] = task.result()
