"""The URLs of Google's queues, taken apart. Pure, so that settings can be checked without Google's libraries."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import msgspec

from prevue.errors import ConfigError


class CloudTasksAddress(msgspec.Struct, frozen=True):
    """`cloudtasks://project/location/queue`."""

    project: str
    location: str
    queue: str

    @property
    def parent(self) -> str:
        """The location's resource name."""
        return f"projects/{self.project}/locations/{self.location}"

    @property
    def name(self) -> str:
        """The queue's resource name."""
        return f"{self.parent}/queues/{self.queue}"

    @classmethod
    def parse(cls, url: str) -> CloudTasksAddress:
        """The address in `url`.

        Raises:
            ConfigError: it has another form.
        """
        parts = urlsplit(url)
        words = [parts.netloc, *parts.path.removeprefix("/").split("/")]
        if parts.scheme != "cloudtasks" or len(words) != 3 or not all(words) or parts.query:
            raise ConfigError("queue.url: expected cloudtasks://project/location/queue")
        return cls(*words)


class PubSubAddress(msgspec.Struct, frozen=True):
    """`pubsub://project/topic?subscription=…&dead_letter=…`; the App needs no subscription."""

    project: str
    topic_id: str
    subscription_id: str = ""
    dead_letter_id: str = ""
    """Topic for what cannot be decoded, and the backstop of the subscription; empty: none."""

    @property
    def topic(self) -> str:
        """The topic's resource name."""
        return f"projects/{self.project}/topics/{self.topic_id}"

    @property
    def subscription(self) -> str:
        """The subscription's resource name.

        Raises:
            ConfigError: the URL names none.
        """
        if not self.subscription_id:
            raise ConfigError("queue.url: a deployer needs a subscription: pubsub://project/topic?subscription=name")
        return f"projects/{self.project}/subscriptions/{self.subscription_id}"

    @property
    def dead_letter(self) -> str | None:
        """The dead-letter topic's resource name."""
        return f"projects/{self.project}/topics/{self.dead_letter_id}" if self.dead_letter_id else None

    @classmethod
    def parse(cls, url: str) -> PubSubAddress:
        """The address in `url`.

        Raises:
            ConfigError: it has another form.
        """
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        topic = parts.path.removeprefix("/")
        if parts.scheme != "pubsub" or not parts.netloc or not topic or "/" in topic or set(query) - {"subscription", "dead_letter"}:
            raise ConfigError("queue.url: expected pubsub://project/topic?subscription=name, and &dead_letter=topic where one is wanted")
        return cls(parts.netloc, topic, query.get("subscription", ""), query.get("dead_letter", ""))
