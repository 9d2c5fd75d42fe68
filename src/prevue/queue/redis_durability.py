"""What a Redis server promises about a write, asked of the server itself.

Redis answers a write before it is on disk. How much a crash may take with it is four settings; nothing here changes them.
"""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from prevue.errors import QueueUnavailable

SYNC_MILLISECONDS_MAX = 2_000
"""With `appendfsync everysec` the disk is written once a second; a disk that needs longer than two cannot be promised on."""


def doubts(client: Redis) -> list[str]:
    """What could lose a message, each with the setting and the value that is wanted; empty: nothing known.

    Raises:
        redis.RedisError: the server cannot be reached.
    """
    try:
        settings = {**client.config_get("appendonly"), **client.config_get("appendfsync"), **client.config_get("maxmemory*")}
    except ResponseError:  # a managed server without CONFIG, or a role without the right
        text = "Redis does not let its settings be read (CONFIG GET): see for yourself that appendonly is yes (or the provider's"
        return [f"{text} persistence is on) and maxmemory-policy is noeviction"]
    found = []
    if settings.get("appendonly") != "yes":
        found.append(
            "Redis: appendonly is not yes: a restart of the server loses what was enqueued since its last snapshot; set it to yes "
            "(by CONFIG SET it holds once INFO says aof_rewrite_in_progress:0 again)"
        )
    elif settings.get("appendfsync") == "no":
        found.append("Redis: appendfsync is no: a crash of its machine may lose half a minute; set it to everysec or always")
    elif settings.get("appendfsync") == "everysec" and not _can_wait(client):
        found.append(
            "Redis: appendfsync is everysec, and nobody can wait for the disk here (WAITAOF: Redis 7.2, and the right to it): "
            "a crash of its machine may lose the last second; set it to always"
        )
    if settings.get("maxmemory-policy") != "noeviction" and settings.get("maxmemory", "0") != "0":
        found.append(
            f"Redis: maxmemory-policy is {settings.get('maxmemory-policy')}: a full server throws messages away; set it to noeviction"
        )
    return found


def sync_to_disk(client: Redis) -> None:
    """Wait until what this connection wrote is on the server's disk, where the server can tell (7.2, AOF on); else return at once.

    `client` must have a single connection. WAITAOF answers after its time-out too, so its counts are what is looked at.
    https://redis.io/docs/latest/commands/waitaof/

    Raises:
        QueueUnavailable: it is not on disk in time; the message is in the queue and may survive.
        redis.RedisError: the server cannot be reached.
    """
    try:
        answer: Any = client.waitaof(1, 0, SYNC_MILLISECONDS_MAX)
    except ResponseError:  # older than 7.2, AOF off, or not allowed: `doubts` says so
        return
    if int(answer[0]) < 1:
        raise QueueUnavailable(f"Redis: the write is not on disk after {SYNC_MILLISECONDS_MAX / 1000:g} s")


def _can_wait(client: Redis) -> bool:
    try:
        client.waitaof(0, 0, 0)
    except ResponseError:
        return False
    return True
