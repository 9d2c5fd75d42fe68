"""Deliveries as GitHub's API shows them: the list's short form, and one with its request and response."""

from __future__ import annotations

import msgspec

from prevue.testing.github.records import Delivery
from prevue.testing.github.render import Json, timestamp


def short_delivery(delivery: Delivery) -> Json:
    """An entry of the list (`simple-webhook-delivery`)."""
    response = delivery.response
    return {
        "id": delivery.id,
        "guid": delivery.guid,
        "delivered_at": timestamp(delivery.delivered_at),
        "redelivery": delivery.redelivery,
        "duration": 0.0 if response is None else round(response.duration_seconds, 3),
        "status": "pending" if response is None else (response.error or "OK"),
        "status_code": 0 if response is None else response.status_code,
        "event": delivery.event,
        "action": delivery.action,
        "installation_id": delivery.installation_id,
        "repository_id": delivery.repository_id,
        "throttled_at": None,
    }


def full_delivery(delivery: Delivery) -> Json:
    """One delivery (`webhook-delivery`)."""
    response = delivery.response
    return {
        **short_delivery(delivery),
        "url": "",
        "request": {"headers": dict(delivery.headers), "payload": msgspec.json.decode(delivery.payload)},
        "response": {
            "headers": {} if response is None else dict(response.headers),
            "payload": "" if response is None else response.payload,
        },
    }
