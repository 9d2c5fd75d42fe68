"""Webhook deliveries: signed bytes, the log of what was sent, and what still waits to be sent.

Nothing is sent here: an outer pump takes deliveries and writes the responses back. Invariant: a delivery's bytes and
headers never change once it is made, so a redelivery is the same request
(https://docs.github.com/webhooks/testing-and-troubleshooting-webhooks/redelivering-webhooks).
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable
from datetime import datetime
from random import Random
from uuid import UUID

import msgspec

from prevue.testing.github.records import Delivery, DeliveryResponse
from prevue.testing.github.render import Json

DELIVERIES_MAX = 2_000
"""How many deliveries the log keeps, the oldest forgotten first: about 15 kB each, so at most 30 MB."""


class Webhooks:
    """The webhook of one App: `secret` signs, `hook_id` and `app_id` stand in the headers."""

    def __init__(
        self,
        *,
        secret: str,
        hook_id: int,
        app_id: int,
        random: Random,
        new_id: Callable[[], int],
        now: Callable[[], datetime],
    ) -> None:
        self.secret = secret
        self._fixed_headers = {
            "Accept": "*/*",
            "Content-Type": "application/json",
            "User-Agent": "GitHub-Hookshot/local",
            "X-GitHub-Hook-ID": str(hook_id),
            "X-GitHub-Hook-Installation-Target-ID": str(app_id),
            "X-GitHub-Hook-Installation-Target-Type": "integration",
        }
        self._random = random
        self._new_id = new_id
        self._now = now
        self.losses = 0
        """So many of the next happenings make no delivery at all: not sent, and not in the log. GitHub loses one now and then."""
        self._log: deque[Delivery] = deque(maxlen=DELIVERIES_MAX)
        self._outgoing: deque[Delivery] = deque()
        self._listeners: list[Callable[[], None]] = []

    def deliver(self, event: str, body: Json, *, installation_id: int, repository_id: int) -> Delivery | None:
        """Sign a payload and put it in the log and among what waits to be sent; None: this one is lost."""
        if self.losses > 0:
            self.losses -= 1
            return None
        payload = msgspec.json.encode(body)
        guid = str(UUID(int=self._random.getrandbits(128), version=4))
        secret = self.secret.encode()
        headers = {
            **self._fixed_headers,
            "X-GitHub-Delivery": guid,
            "X-GitHub-Event": event,
            "X-Hub-Signature": "sha1=" + hmac.digest(secret, payload, "sha1").hex(),
            "X-Hub-Signature-256": "sha256=" + hmac.digest(secret, payload, "sha256").hex(),
        }
        return self._put(
            Delivery(
                id=self._new_id(),
                guid=guid,
                event=event,
                action=body["action"],
                installation_id=installation_id,
                repository_id=repository_id,
                delivered_at=self._now(),
                headers=headers,
                payload=payload,
            )
        )

    def _put(self, delivery: Delivery) -> Delivery:
        self._log.append(delivery)
        self._outgoing.append(delivery)
        for listener in self._listeners:
            listener()
        return delivery

    def on_delivery(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever there is something new to `take` (at once, in the caller's thread)."""
        self._listeners.append(listener)

    def take(self) -> list[Delivery]:
        """Return the deliveries that nobody has taken yet, oldest first; taking them is a promise to send them."""
        taken = list(self._outgoing)
        self._outgoing.clear()
        return taken

    def record_response(self, delivery: Delivery, response: DeliveryResponse) -> None:
        """Write down what came back for a delivery."""
        delivery.response = response

    def log(self, *, event: str | None = None, per_page: int | None = None) -> list[Delivery]:
        """Return the log, newest first, of one event or of all, at most `per_page` entries."""
        return [delivery for delivery in reversed(self._log) if event in (None, delivery.event)][:per_page]

    def redeliver(self, guid: str) -> Delivery:
        """Send a delivery again: the same guid, headers and bytes, as a new entry of the log.

        Raises:
            KeyError: the log has no such guid.
        """
        original = next((delivery for delivery in reversed(self._log) if delivery.guid == guid), None)
        if original is None:
            raise KeyError(guid)
        return self._put(
            Delivery(
                id=self._new_id(),
                guid=guid,
                event=original.event,
                action=original.action,
                installation_id=original.installation_id,
                repository_id=original.repository_id,
                delivered_at=self._now(),
                headers=original.headers,
                payload=original.payload,
                redelivery=True,
            )
        )
