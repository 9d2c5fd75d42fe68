"""What the backends have in common when they call a handler: a failure is an answer, and only the caller's cancelling ends it."""

from __future__ import annotations

import asyncio

from prevue.model import Message
from prevue.queue.port import Handler, Settlement


async def ask(handler: Handler, message: Message) -> Settlement | BaseException:
    """The handler's settlement, or what it raised: a `CancelledError` too, where something inside was cancelled and the handler was not.

    Raises:
        CancelledError: the running task itself was asked to end.
    """
    try:
        return await handler(message)
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is not None and task.cancelling() > 0:
            raise
        return exc
    except Exception as exc:  # noqa: BLE001 (whatever it is: the message comes back, and the others go on)
        return exc
