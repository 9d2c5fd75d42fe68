"""The wire between GitHub and the Apps: deliveries are late, doubled, lost, and sent again by hand where GitHub lists them as failed."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from prevue.testing.github.records import Comment, Delivery, DeliveryResponse, Issue, Pull, Repository, User
from prevue.testing.github.render import Json
from prevue.testing.github.rest import FakeGitHub

if TYPE_CHECKING:
    from tests.simulation.world import App, World

GITHUB_WAITS_SECONDS = 10.0
"""https://docs.github.com/en/webhooks/using-webhooks/best-practices-for-using-webhooks"""


HEARD_OF_NOTHING = 0.05
"""Of what an App ignores without an await (bots' comments, pushes, edits: nearly all deliveries) so many are enough."""


class SimulatedGitHub(FakeGitHub):
    """Makes no delivery of most happenings that ask for nothing, and cuts the time to seconds once while it stands still."""

    _told: tuple[datetime, datetime] | None = None

    def now(self) -> datetime:
        moment = self._clock() - self.behind if self.behind else self._clock()
        if self._told is None or self._told[0] is not moment:
            self._told = moment, moment.replace(microsecond=0)
        return self._told[1]

    def _comment_event(self, action: str, repository: Repository, issue: Issue, comment: Comment, sender: User, **extra: Json) -> None:
        if (action == "created" and sender is not self.app.bot) or self.random.random() < HEARD_OF_NOTHING:
            super()._comment_event(action, repository, issue, comment, sender, **extra)

    def _pull_event(self, action: str, repository: Repository, issue: Issue, pull: Pull, sender: User, **extra: str) -> None:
        if action == "closed" or self.random.random() < HEARD_OF_NOTHING:
            super()._pull_event(action, repository, issue, pull, sender, **extra)


class WebhookWire:
    """Takes what GitHub wants to send, and brings it to one of the Apps."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.in_flight = 0
        self.unsettled: set[str] = set()
        """By guid: deliveries that no App has taken yet."""
        self._settled: set[str] = set()
        self.accepted: list[Delivery] = []
        world.github.webhooks.on_delivery(self._take)

    def _take(self) -> None:
        for delivery in self._world.github.webhooks.take():
            self.send(delivery)

    def send(self, delivery: Delivery) -> None:
        """Bring it, in its own time."""
        faults, random = self._world.faults, self._world.random
        if faults.draw("webhook_never_sent"):
            # It does not stand in GitHub's log either: nobody can find it there.
            self._world.trace(f"webhook {delivery.id} never sent")
            self._world.github.webhooks._log.remove(delivery)
            return
        seconds = [random.uniform(0.05, 0.5)]
        if faults.draw("webhook_delay"):
            seconds[0] += random.uniform(5, 30)
        elif faults.draw("webhook_reorder"):
            seconds[0] += random.uniform(1, 10)
        if faults.draw("webhook_duplicate"):
            seconds.append(random.uniform(0.05, 20))
        for wait in seconds:
            self.in_flight += 1
            self._world.outside(self._bring(delivery, wait), "webhook")

    async def _bring(self, delivery: Delivery, seconds: float) -> None:
        world = self._world
        await asyncio.sleep(seconds)
        status, body = 0, b""
        if not world.faults.draw("webhook_lost"):
            status, body = await self._post(delivery, world.random.choice(world.apps))
            world.oracle.app_answered(delivery, status, body)
        if world.faults.draw("webhook_lost_answer"):
            status = 0
        world.trace(f"webhook {delivery.event} {delivery.action} {delivery.id} {status} {body.decode()}")
        response = DeliveryResponse(status_code=status, headers={}, payload=body.decode(), duration_seconds=0.1)
        world.github.webhooks.record_response(delivery, response)
        self.in_flight -= 1
        if status == 202:
            self.accepted.append(delivery)
        if 200 <= status < 300:
            self.unsettled.discard(delivery.guid)
            self._settled.add(delivery.guid)
        elif _asks_for_something(delivery) and delivery.guid not in self._settled:
            self.unsettled.add(delivery.guid)
            if not world.settings.has_sweeper_rules:
                # No rule of the sweeper does it: somebody presses "redeliver".
                world.outside(self._again(delivery), "redeliver")

    def give_up(self, path: str) -> None:
        """GitHub refused to send a delivery again: the sweeper asks for it no more, and its scans bring what it was about."""
        found = _ATTEMPTS.fullmatch(path)
        for delivery in self._world.github.webhooks.log() if found is not None else ():
            if found is not None and delivery.id == int(found[1]):
                self.unsettled.discard(delivery.guid)
                self._settled.add(delivery.guid)

    async def _again(self, delivery: Delivery) -> None:
        await asyncio.sleep(self._world.random.uniform(2, 15))
        self._world.github.webhooks.redeliver(delivery.guid)

    async def _post(self, delivery: Delivery, app: App) -> tuple[int, bytes]:
        """One HTTP request; 0 where nothing came back in GitHub's time or the App died."""
        answer: asyncio.Future[tuple[int, bytes]] = self._world.loop.create_future()
        status = 0

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": delivery.payload, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not answer.done():
                answer.set_result((status, message["body"]))

        headers = [(name.lower().encode(), value.encode()) for name, value in delivery.headers.items()]
        headers.append((b"content-length", str(len(delivery.payload)).encode()))
        scope = {"type": "http", "path": "/webhook", "method": "POST", "headers": headers}
        if app.process.is_dead:
            return 0, b""
        app.process.spawn(app.door(scope, receive, send), name="webhook")
        try:
            async with asyncio.timeout(GITHUB_WAITS_SECONDS):
                return await answer
        except TimeoutError:
            return 0, b""


_ATTEMPTS = re.compile(r"/app/hook/deliveries/(\d+)/attempts")


def _asks_for_something(delivery: Delivery) -> bool:
    if delivery.event == "pull_request":
        return delivery.action == "closed"
    return delivery.action == "created" and b'"body":"/preview"' in delivery.payload
