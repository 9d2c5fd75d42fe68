"""One webhook delivery from its HTTP parts, without I/O: headers, signature, body.

The signature is checked over the raw bytes before anything of the body is looked at, in constant time, against one secret or, while
one is being rotated, two. Only SHA-256 counts: the older SHA-1 header would let an attacker choose the weaker check.
https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
https://docs.github.com/en/webhooks/webhook-events-and-payloads#delivery-headers
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from prevue.errors import PrevueError

_SIGNATURE: Final = re.compile(r"sha256=[0-9a-f]{64}")
_DELIVERY_ID: Final = re.compile(r"[A-Za-z0-9-]{1,100}")
_EVENT: Final = re.compile(r"[a-z0-9_]{1,100}")


class DeliveryRejected(PrevueError):
    """The delivery is not one that GitHub sends."""


class InvalidSignature(DeliveryRejected):
    """The signature is missing or does not match the body."""


class MalformedDelivery(DeliveryRejected):
    """A header or the body is missing or cannot be read."""


class Headers(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The headers of a delivery, of the right shape; nothing about them is authentic before `verify`."""

    event: str
    delivery_id: str
    signature: str


class Delivery(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A delivery whose signature has been checked."""

    event: str
    delivery_id: str
    body: bytes


def read_headers(headers: Mapping[bytes, bytes]) -> Headers:
    """The headers that matter; names in lower case, as ASGI gives them.

    Raises:
        InvalidSignature: the signature is missing or has not the form `sha256=` and 64 hex digits.
        MalformedDelivery: event, delivery id or content type is missing or wrong.
    """
    signature = headers.get(b"x-hub-signature-256", b"").decode("latin-1")
    if not _SIGNATURE.fullmatch(signature):
        raise InvalidSignature("X-Hub-Signature-256 is missing or not sha256= and 64 hex digits")
    event = headers.get(b"x-github-event", b"").decode("latin-1")
    if not _EVENT.fullmatch(event):
        raise MalformedDelivery("X-GitHub-Event is missing or not a word")
    delivery_id = headers.get(b"x-github-delivery", b"").decode("latin-1")
    if not _DELIVERY_ID.fullmatch(delivery_id):
        raise MalformedDelivery("X-GitHub-Delivery is missing or not an id")
    if not headers.get(b"content-type", b"").lower().startswith(b"application/json"):
        raise MalformedDelivery("Content-Type is not application/json: set it so in the webhook's settings")
    return Headers(event=event, delivery_id=delivery_id, signature=signature)


def verify(headers: Headers, body: bytes, secrets: Sequence[bytes]) -> Delivery:
    """The delivery, if one of `secrets` signed exactly these bytes.

    Raises:
        InvalidSignature: none did.
    """
    given = headers.signature[7:].encode()
    for secret in secrets:
        if hmac.compare_digest(hmac.digest(secret, body, "sha256").hex().encode(), given):
            return Delivery(event=headers.event, delivery_id=headers.delivery_id, body=body)
    raise InvalidSignature("X-Hub-Signature-256 does not match the body")
