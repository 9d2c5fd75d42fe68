"""Who calls: nobody, the App by its JWT, or an installation by its token.

Invariant: a credential that GitHub would refuse is refused here with GitHub's words, on every path, public reading
included (https://docs.github.com/apps/creating-github-apps/authenticating-with-a-github-app).
"""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from functools import lru_cache

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from prevue.testing.github.records import App, Token

JWT_SECONDS_MAX = 600
"""An App's JWT may expire ten minutes ahead at most
(https://docs.github.com/apps/creating-github-apps/authenticating-with-a-github-app/generating-a-json-web-token-jwt-for-a-github-app)."""

CLOCK_DRIFT_SECONDS = 5
"""How far in the future `iat` may be. GitHub names no number and advises a minute in the past; this forgives no more than rounding."""


class ApiError(Exception):
    """An answer that is an error, in GitHub's form: a status, a message, perhaps field errors and headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        errors: list[dict[str, str]] | None = None,
        headers: dict[str, str] | None = None,
        documentation_url: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = errors
        self.headers = headers or {}
        self.documentation_url = documentation_url


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Whose request it is; neither `is_app` nor `token`: an anonymous reader."""

    is_app: bool = False
    token: Token | None = None

    @property
    def limit_key(self) -> str:
        """Return whose rate limit the request counts against."""
        if self.token is not None:
            return f"installation {self.token.installation.id}"
        return "app" if self.is_app else "anonymous"


def identify(authorization: str | None, *, tokens: dict[str, Token], app: App, public_key: bytes, now: datetime) -> Caller:
    """Return who stands behind an Authorization header (`Bearer …` or `token …`).

    Raises:
        ApiError: 401, the credential is unknown, expired or not acceptable; 404, a JWT of another App.
    """
    if authorization is None:
        return Caller()
    scheme, _, value = authorization.strip().partition(" ")
    value = value.strip()
    if scheme.lower() not in ("bearer", "token") or not value:
        raise ApiError(401, "Bad credentials")
    if value.count(".") == 2:
        verify_app_jwt(value, app=app, public_key=public_key, now=now)
        return Caller(is_app=True)
    token = tokens.get(value)
    if token is None or token.expires_at <= now or token.installation.suspended_at is not None:
        raise ApiError(401, "Bad credentials")
    return Caller(token=token)


def verify_app_jwt(jwt: str, *, app: App, public_key: bytes, now: datetime) -> None:
    """Check an App's JWT as GitHub does: RS256 by the App's key, issued in the past, ten minutes at most, by this App.

    Raises:
        ApiError: 401 with GitHub's reason; 404 when another App issued it.
    """
    undecodable = ApiError(401, "A JSON web token could not be decoded")
    head, body, signature = jwt.split(".")
    try:
        header, claims = msgspec.json.decode(_base64url(head)), msgspec.json.decode(_base64url(body))
        if not isinstance(claims, dict) or header.get("alg") != "RS256":
            raise undecodable
        _verify_signature(public_key, f"{head}.{body}", signature)
    except (InvalidSignature, binascii.Error, msgspec.DecodeError, ValueError, AttributeError) as exc:
        raise undecodable from exc
    issued, expires, seconds = claims.get("iat"), claims.get("exp"), now.timestamp()
    if str(claims.get("iss")) not in (str(app.id), app.client_id):
        raise ApiError(404, "Integration not found")
    if not isinstance(issued, int | float) or issued > seconds + CLOCK_DRIFT_SECONDS:
        raise ApiError(
            401,
            "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued",
        )
    if not isinstance(expires, int | float) or expires <= seconds:
        raise ApiError(
            401,
            "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires",
        )
    if expires > seconds + JWT_SECONDS_MAX:
        raise ApiError(401, "'Expiration time' claim ('exp') is too far in the future")


@lru_cache(maxsize=4_096)
def _verify_signature(pem: bytes, signed: str, signature: str) -> None:
    """Raises: `InvalidSignature` (never remembered); one that holds is computed once, since a JWT is presented many times."""
    key = _public_key(pem)
    if not isinstance(key, rsa.RSAPublicKey):
        raise InvalidSignature
    key.verify(_base64url(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())


@lru_cache(maxsize=16)
def _public_key(pem: bytes) -> object:
    return load_pem_public_key(pem)


def _base64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
