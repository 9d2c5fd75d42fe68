"""What every queue backend, the fake too, must keep: one test a promise of `prevue.queue.port`.

A backend's test module subclasses `QueueContract` and provides the fixture `harness`. The suite knows no backend: what it needs beyond
the port (time that passes, a process that dies, a queue that is down) is the harness's.
"""
# ruff: noqa: S101 (these are tests: they assert)

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec
import pytest

from prevue.errors import MessageInvalid, QueueUnavailable
from prevue.model import MESSAGE_BYTES_MAX, Action, Message, Source, idempotency_key
from prevue.queue.port import AlreadyEnqueued, Consumer, Depth, Done, Enqueued, Enqueuer, Gauge, Handler, Release, RetryAfter, Settlement

PATIENCE_SECONDS = 20.0
"""How long something that must happen is waited for; a machine may be busy."""
QUIET_SECONDS = 0.3
"""How long is watched that something does not happen."""
START = datetime(2026, 2, 12, 10, 0, tzinfo=UTC)


class Queue(Enqueuer, Consumer, Gauge, Protocol):
    """All sides of one process, and its sudden death."""

    def crash(self) -> None:
        """End as by SIGKILL: from now on nothing of this process reaches the queue."""
        ...


class OpenedQueue:
    """The sides of one backend as a `Queue`; how such a process dies, the backend's test says."""

    def __init__(self, enqueuer: Enqueuer, consumer: Consumer, gauge: Gauge, crash: Callable[[], None]) -> None:
        self._enqueuer = enqueuer
        self._consumer = consumer
        self._gauge = gauge
        self.crash = crash

    async def enqueue(self, message: Message) -> Enqueued | AlreadyEnqueued:
        return await self._enqueuer.enqueue(message)

    async def check(self) -> None:
        await self._enqueuer.check()

    async def run(self, handler: Handler, *, slots: int, stop: asyncio.Event) -> None:
        await self._consumer.run(handler, slots=slots, stop=stop)

    async def depth(self) -> Depth:
        return await self._gauge.depth()


class QueueHarness(Protocol):
    """What the suite needs beyond the port."""

    def open(self, *, lease_seconds: float = 10) -> AbstractAsyncContextManager[Queue]:
        """Another process's view of the same queue."""
        ...

    async def let_time_pass(self, seconds: float) -> None:
        """Leases and delays are `seconds` nearer to their end."""
        ...

    async def put_raw(self, body: str) -> None:
        """A message whose body no enqueuer of ours would write."""
        ...

    async def rejected(self) -> list[str]:
        """Bodies that were set aside."""
        ...

    def outage(self) -> AbstractAsyncContextManager[None]:
        """Inside, the queue cannot be reached."""
        ...


def command(number: int, **changes: object) -> Message:
    """A complete `/preview` by comment `number`, on the pull request of the same number."""
    sha = f"{number:040x}"
    message = Message(
        idempotency_key=idempotency_key("acme/hello", number, sha),
        repo="acme/hello",
        pr_number=number,
        commit_sha=sha,
        installation_id=1,
        comment_id=number,
        repository_id=42,
        requested_by="writer",
        requested_at=START + timedelta(seconds=number),
        source=Source.COMMENT,
        source_id=str(number),
    )
    return msgspec.structs.replace(message, **changes)


class _Witness:
    """What a handler remembers."""

    def __init__(self) -> None:
        self.seen: list[Message] = []

    def numbers(self) -> list[int]:
        """Pull requests in the order of arrival."""
        return [message.pr_number for message in self.seen]


class Recorder(_Witness):
    """A handler that remembers what it saw and answers with the next of its answers, `Done` after the last."""

    def __init__(self, *answers: Settlement | BaseException) -> None:
        super().__init__()
        self._answers = list(answers)

    async def __call__(self, message: Message) -> Settlement:
        self.seen.append(message)
        answer = self._answers.pop(0) if self._answers else Done()
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Blocker(_Witness):
    """A handler that stays inside until it is told to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.inside_max = 0
        self.cancelled = 0
        self.may_end = asyncio.Event()

    async def __call__(self, message: Message) -> Settlement:
        self.seen.append(message)
        self.inside += 1
        self.inside_max = max(self.inside, self.inside_max)
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1
        return Done()


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 (the condition is about another's state)
            await asyncio.sleep(0.005)


async def depth_becomes(queue: Queue, messages: int) -> None:
    """Wait until the queue counts so many messages; one that cannot count must say so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await queue.depth()).messages not in (messages, None):  # noqa: ASYNC110 (a settlement may be under way)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(queue: Queue, handler: Handler, *, slots: int = 4) -> AsyncIterator[tuple[asyncio.Task[None], asyncio.Event]]:
    """A consumer at work; at the end it is stopped, which it must survive."""
    stop = asyncio.Event()
    task = asyncio.create_task(queue.run(handler, slots=slots, stop=stop), name="consumer under test")
    try:
        yield task, stop
        stop.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(task, return_exceptions=task.cancelled() or task.cancelling() > 0)
    except BaseException as exc:
        if task.done() and not task.cancelled() and (failure := task.exception()) not in (None, exc):
            exc.add_note(f"the consumer had failed: {failure!r}")
        raise
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class QueueContract:
    """To be subclassed with a fixture `harness`."""

    async def test_enqueued_message_survives_reopen(self, harness: QueueHarness) -> None:
        message = command(1, delivery_id="guid", action=Action.DEPLOY)
        async with harness.open() as queue:
            assert await queue.enqueue(message) == Enqueued()
        recorder = Recorder()
        async with harness.open() as queue, running(queue, recorder):
            await eventually(lambda: recorder.seen)
        assert recorder.seen == [message]

    async def test_unsettled_repeat_is_recognised_and_delivered_once(self, harness: QueueHarness) -> None:
        recorder = Recorder()
        async with harness.open() as queue:
            assert await queue.enqueue(command(1)) == Enqueued()
            assert await queue.enqueue(command(1, delivery_id="another")) in (AlreadyEnqueued(), Enqueued())
            await queue.enqueue(command(2))
            async with running(queue, recorder):
                await eventually(lambda: {1, 2} <= set(recorder.numbers()))
        assert set(recorder.numbers()) == {1, 2}

    async def test_equal_idempotency_key_alone_blocks_nothing(self, harness: QueueHarness) -> None:
        recorder = Recorder()
        first = command(1)
        async with harness.open() as queue:
            for comment_id in (1, 2):
                answer = await queue.enqueue(command(1, comment_id=comment_id, source_id=str(comment_id), commit_sha=first.commit_sha))
                assert answer == Enqueued()
            async with running(queue, recorder):
                await eventually(lambda: len(recorder.seen) == 2)

    async def test_incomplete_messages_are_never_taken_for_one_another(self, harness: QueueHarness) -> None:
        """The record's bare payload has no repository id, and a bare close no time: two of them may be two requests."""
        bare = command(1, repository_id=0, source=None, source_id="", requested_at=None, requested_by="")
        close = msgspec.structs.replace(bare, action=Action.DESTROY, commit_sha="", comment_id=0)
        recorder = Recorder()
        async with harness.open() as queue:
            for message in (bare, msgspec.structs.replace(bare, repo="acme/other"), close, close):
                assert await queue.enqueue(message) == Enqueued()
            async with running(queue, recorder):
                await eventually(lambda: len(recorder.seen) == 4)

    async def test_settled_message_never_blocks_a_new_one(self, harness: QueueHarness) -> None:
        recorder = Recorder()
        async with harness.open() as queue, running(queue, recorder):
            await queue.enqueue(command(1))
            await eventually(lambda: len(recorder.seen) == 1)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await queue.enqueue(command(1)) != Enqueued():  # noqa: ASYNC110 (its settlement is under way)
                    await asyncio.sleep(0.01)
            await eventually(lambda: len(recorder.seen) == 2)

    async def test_too_large_a_message_is_refused(self, harness: QueueHarness) -> None:
        async with harness.open() as queue:
            with pytest.raises(MessageInvalid):
                await queue.enqueue(command(1, requested_by="x" * MESSAGE_BYTES_MAX))

    async def test_check_passes(self, harness: QueueHarness) -> None:
        async with harness.open() as queue:
            await queue.check()

    async def test_retry_after_comes_back_after_the_delay(self, harness: QueueHarness) -> None:
        recorder = Recorder(RetryAfter(60))
        async with harness.open() as queue, running(queue, recorder):
            await queue.enqueue(command(1))
            await eventually(lambda: recorder.seen)
            await asyncio.sleep(QUIET_SECONDS)
            assert len(recorder.seen) == 1
            await harness.let_time_pass(61)
            await eventually(lambda: len(recorder.seen) == 2)

    async def test_release_comes_back_at_once(self, harness: QueueHarness) -> None:
        recorder = Recorder(Release())
        async with harness.open() as queue, running(queue, recorder):
            await queue.enqueue(command(1))
            await eventually(lambda: len(recorder.seen) == 2)

    @pytest.mark.parametrize("failure", [RuntimeError("failed"), asyncio.CancelledError()], ids=["raises", "cancelled inside"])
    async def test_message_of_a_failing_handler_comes_back_and_others_go_on(self, harness: QueueHarness, failure: BaseException) -> None:
        recorder = Recorder(failure)
        async with harness.open() as queue, running(queue, recorder):
            await queue.enqueue(command(1))
            await eventually(lambda: recorder.seen)
            await queue.enqueue(command(2))
            await eventually(lambda: 2 in recorder.numbers())
            await harness.let_time_pass(600)
            await eventually(lambda: recorder.numbers().count(1) == 2)

    async def test_undecodable_message_is_set_aside_and_stops_nobody(self, harness: QueueHarness) -> None:
        recorder = Recorder()
        bodies = ["not json", '{"repo": "no/fields"}', "x" * (MESSAGE_BYTES_MAX + 1)]
        for body in bodies:
            await harness.put_raw(body)
        async with harness.open() as queue, running(queue, recorder, slots=1):
            await queue.enqueue(command(1))
            await eventually(lambda: recorder.seen)
            await harness.let_time_pass(3600)
            await queue.enqueue(command(2))
            await eventually(lambda: 2 in recorder.numbers())
        assert recorder.numbers() == [1, 2]
        assert sorted(await harness.rejected()) == sorted(bodies)

    async def test_no_more_handlers_than_slots(self, harness: QueueHarness) -> None:
        blocker = Blocker()
        async with harness.open() as queue:
            for number in range(1, 8):
                await queue.enqueue(command(number))
            async with running(queue, blocker, slots=3):
                await eventually(lambda: blocker.inside == 3)
                await asyncio.sleep(QUIET_SECONDS)
                assert blocker.inside_max == 3
                blocker.may_end.set()
                await eventually(lambda: len(blocker.seen) == 7)
        assert blocker.inside_max == 3

    async def test_messages_are_left_for_others_when_slots_are_full(self, harness: QueueHarness) -> None:
        blocker, recorder = Blocker(), Recorder()
        async with harness.open() as first, harness.open() as second:
            for number in range(1, 6):
                await first.enqueue(command(number))
            async with running(first, blocker, slots=2):
                await eventually(lambda: blocker.inside == 2)
                async with running(second, recorder):
                    await eventually(lambda: len(recorder.seen) == 3)
                blocker.may_end.set()
        assert len(blocker.seen) == 2

    async def test_many_consumers_share_without_repeats(self, harness: QueueHarness) -> None:
        recorder = Recorder()
        async with harness.open() as first, harness.open() as second:
            for number in range(1, 51):
                await first.enqueue(command(number))
            async with running(first, recorder, slots=8), running(second, recorder, slots=8):
                await eventually(lambda: len(recorder.seen) >= 50)
        assert sorted(recorder.numbers()) == list(range(1, 51))

    async def test_stop_waits_for_running_handlers_and_takes_no_more(self, harness: QueueHarness) -> None:
        blocker = Blocker()
        async with harness.open() as queue:
            await queue.enqueue(command(1))
            async with running(queue, blocker, slots=1) as (task, stop):
                await eventually(lambda: blocker.inside == 1)
                await queue.enqueue(command(2))
                stop.set()
                await asyncio.sleep(QUIET_SECONDS)
                assert not task.done()
                blocker.may_end.set()
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await task
            assert len(blocker.seen) == 1
            recorder = Recorder()
            async with running(queue, recorder):
                await eventually(lambda: recorder.seen)
            assert recorder.numbers() == [2]

    async def test_running_message_is_kept_from_others(self, harness: QueueHarness) -> None:
        blocker, recorder = Blocker(), Recorder()
        async with harness.open(lease_seconds=1.5) as first, harness.open(lease_seconds=1.5) as second:
            await first.enqueue(command(1))
            async with running(first, blocker):
                await eventually(lambda: blocker.inside == 1)
                async with running(second, recorder):
                    await asyncio.sleep(2.5)
                    blocker.may_end.set()
        assert recorder.seen == []

    async def test_cancelled_handler_gives_its_message_back(self, harness: QueueHarness) -> None:
        blocker, recorder = Blocker(), Recorder()
        async with harness.open() as first, harness.open() as second:
            await first.enqueue(command(1))
            task = asyncio.create_task(first.run(blocker, slots=1, stop=asyncio.Event()))
            await eventually(lambda: blocker.inside == 1)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            assert blocker.cancelled == 1
            await harness.let_time_pass(30)
            async with running(second, recorder):
                await eventually(lambda: recorder.seen)

    async def test_unsettled_message_comes_back_after_a_crash(self, harness: QueueHarness) -> None:
        blocker, recorder = Blocker(), Recorder()
        async with harness.open() as first, harness.open() as second:
            await first.enqueue(command(1))
            task = asyncio.create_task(first.run(blocker, slots=1, stop=asyncio.Event()))
            await eventually(lambda: blocker.inside == 1)
            first.crash()
            task.cancel()
            await asyncio.wait({task})
            await harness.let_time_pass(30)
            async with running(second, recorder):
                await eventually(lambda: recorder.seen)

    async def test_settling_after_a_takeover_is_harmless(self, harness: QueueHarness) -> None:
        blocker, recorder = Blocker(), Recorder(RetryAfter(60))
        async with harness.open() as first, harness.open() as second:
            await first.enqueue(command(1))
            async with running(first, blocker, slots=1), running(second, recorder):
                await eventually(lambda: blocker.inside + len(recorder.seen) >= 1)
                if blocker.inside:
                    await harness.let_time_pass(30)
                    await eventually(lambda: recorder.seen)
                    blocker.may_end.set()
                    await eventually(lambda: blocker.inside == 0)
                    await asyncio.sleep(QUIET_SECONDS)
                blocker.may_end.set()
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while len(recorder.seen) + len(blocker.seen) < 2:
                        # Again, should the settlement have been written only after time had passed.
                        await harness.let_time_pass(61)
                        await asyncio.sleep(0.05)

    async def test_depth_is_what_is_not_settled(self, harness: QueueHarness) -> None:
        """What waits, is worked on or was delayed counts, where the queue can say; a settled message does not."""
        recorder = Recorder(RetryAfter(60))
        async with harness.open() as queue:
            await depth_becomes(queue, 0)
            await queue.enqueue(command(1))
            await queue.enqueue(command(2))
            await depth_becomes(queue, 2)
            async with running(queue, recorder):
                await eventually(lambda: len(recorder.seen) == 2)
                await depth_becomes(queue, 1)
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while len(recorder.seen) < 3:
                        # Again, should the delay have been written only after time had passed.
                        await harness.let_time_pass(61)
                        await asyncio.sleep(0.05)
                await depth_becomes(queue, 0)

    async def test_oldest_age_grows_until_it_is_settled(self, harness: QueueHarness) -> None:
        async with harness.open() as queue:
            await queue.enqueue(command(1))
            first = (await queue.depth()).oldest_seconds
            await asyncio.sleep(QUIET_SECONDS)
            await queue.enqueue(command(2))
            second = (await queue.depth()).oldest_seconds
            assert (first is None) == (second is None)
            if first is not None and second is not None:
                assert 0 <= first < PATIENCE_SECONDS
                assert second - first >= QUIET_SECONDS / 2
            async with running(queue, Recorder()):
                await depth_becomes(queue, 0)
            assert (await queue.depth()).oldest_seconds in (0.0, None)

    async def test_outage_is_said_by_the_enqueuer(self, harness: QueueHarness) -> None:
        async with harness.open() as queue:
            await queue.check()
            async with harness.outage():
                with pytest.raises(QueueUnavailable):
                    await queue.enqueue(command(1))
                with pytest.raises(QueueUnavailable):
                    await queue.check()
                with pytest.raises(QueueUnavailable):
                    await queue.depth()
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:  # a pooled connection may still have to be found broken
                    try:
                        assert await queue.enqueue(command(1)) in (Enqueued(), AlreadyEnqueued())
                    except QueueUnavailable:
                        continue
                    break

    async def test_outage_is_waited_out_by_the_consumer(self, harness: QueueHarness) -> None:
        blocker, recorder = Blocker(), Recorder()
        async with harness.open() as queue:
            await queue.enqueue(command(1))
            async with running(queue, blocker, slots=1) as (task, _):
                await eventually(lambda: blocker.inside == 1)
                async with harness.outage():
                    blocker.may_end.set()  # its settlement falls into the outage
                    await asyncio.sleep(QUIET_SECONDS)
                    assert not task.done()
                await harness.let_time_pass(0)
                async with harness.open() as other:
                    await other.enqueue(command(2))
                await eventually(lambda: command(2) in blocker.seen)
            async with running(queue, recorder):
                await asyncio.sleep(QUIET_SECONDS)
        assert command(1) not in recorder.seen
