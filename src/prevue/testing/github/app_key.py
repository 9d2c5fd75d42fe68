"""A GitHub App's key pair for tests and for one machine: made on the spot, and able to sign the App's JWT itself.

Apart from the fake, which only ever holds the public half, as GitHub does.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


@dataclass(frozen=True)
class AppKey:
    """An RSA key pair; `AppKey.generate()` makes one in about a tenth of a second."""

    private: rsa.RSAPrivateKey

    @classmethod
    def generate(cls) -> AppKey:
        """Make a key of 2048 bits, GitHub's size."""
        return cls(rsa.generate_private_key(public_exponent=65_537, key_size=2048))

    @property
    def private_pem(self) -> bytes:
        """The private key as GitHub hands it out (PKCS #1 PEM)."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())

    @property
    def public_pem(self) -> bytes:
        """The public key, which the local GitHub checks JWTs with."""
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def jwt(self, *, issuer: int | str, now: datetime, seconds: int = 540, issued_seconds_ago: int = 60, **claims: Any) -> str:
        """Return an App's JWT; `claims` replace or add claims, so that a test can make it wrong."""
        issued = int(now.timestamp())
        body = {"iat": issued - issued_seconds_ago, "exp": issued + seconds, "iss": issuer, **claims}
        text = f"{_segment({'alg': 'RS256', 'typ': 'JWT'})}.{_segment(body)}"
        signature = self.private.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{text}.{_base64url(signature)}"


def _segment(value: dict[str, Any]) -> str:
    return _base64url(json.dumps(value).encode())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
