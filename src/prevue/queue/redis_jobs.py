"""Messages as RQ's jobs in Redis: every step of a job's way is one transaction, so that a crash leaves it in exactly one place.

RQ's own worker calls whatever function a job names, with a time limit by signal, and forgets to extend while it runs. Here a job is data
and nothing is called: its one argument is the message's JSON (never pickle). RQ's places and words are kept, so its tools can look in:

    queue (list) → intermediate (list; taken, not started) → started (sorted by the lease's end) → deleted
                                                            ↘ scheduled (sorted by the time to come back) → queue

Whoever settles a job or brings it back watches the job's hash, which every move changes: of two that do, the second looks again.
A delivery is known by its RQ execution; once that left the started jobs, whatever its handler answers changes nothing.
Times are this machine's clock, in whole seconds, as RQ's are.

https://redis.io/docs/latest/commands/blmove/ (a reliable queue) · docs/adr/0008-redis-celery-or-rq.md (why RQ)
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq.exceptions import DequeueTimeout, NoSuchJobError
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.utils import as_text, current_timestamp, parse_composite_key

QUEUE_NAME = "prevue"
JOB_FUNCTION = "prevue_message"
"""What RQ shows as the job's function. It cannot be imported: an `rq worker` on this queue would fail each job instead of running it."""
UNSETTLED_KEY = "prevue:unsettled"
"""Sorted set: each job that is not settled, by the time when it was enqueued. What the gauge reads."""
REJECTED_KEY = "prevue:rejected"
"""List: what could not be decoded, with the reason; the newest first."""
REJECTED_MAX = 1_000


class Delivery(NamedTuple):
    """One delivery of one message."""

    job: Job
    execution: Execution
    body: str
    failures: int
    """How many handlers of this message raised."""


class RedisJobs:
    """The jobs of one queue; blocking, for threads. `lease_seconds` are rounded up to whole ones."""

    def __init__(self, client: Redis, *, lease_seconds: float = 1, holder: str = "") -> None:
        self.client = client
        self._lease_seconds = max(1, math.ceil(lease_seconds))
        self._holder = holder
        self._queue = Queue(QUEUE_NAME, connection=client, serializer="json")
        self._started = self._queue.started_job_registry
        self._scheduled = self._queue.scheduled_job_registry

    def put(self, body: str, *, description: str) -> None:
        """Enqueue; all of it or nothing."""
        with self.client.pipeline() as pipe:
            job = self._queue.enqueue_call(
                JOB_FUNCTION, args=(body,), timeout=-1, result_ttl=0, description=description, pipeline=pipe
            )  # -1: RQ sets no time limit, and no time to live
            pipe.zadd(UNSETTLED_KEY, {job.id: time.time()})
            pipe.execute()

    def take(self, seconds: float) -> Delivery | None:
        """The next message, under a lease; None when none came within `seconds`."""
        try:
            moved = Queue.lmove(self.client, self._queue.key, seconds)  # type: ignore[arg-type]  # Redis takes fractions
        except DequeueTimeout:
            return None
        return self._start(as_text(moved[1])) if moved else None

    def _start(self, job_id: str) -> Delivery | None:
        taken = _Place(self._queue.intermediate_queue_key, job_id)
        try:
            job = Job.fetch(job_id, connection=self.client, serializer="json")
            body = str(job.args[0])
        except NoSuchJobError:
            self._forget(job_id, taken)
            return None
        except (RedisError, OSError):
            raise
        except Exception as exc:  # noqa: BLE001 (RQ raises what its parsers raise; a job that nobody can read stops nobody)
            self._reject_raw(job_id, exc, taken)
            return None
        with self.client.pipeline() as pipe:
            execution = Execution.create(job, self._lease_seconds, pipe)
            job.prepare_for_execution(self._holder, pipe)
            taken.leave(pipe)
            pipe.execute()
        return Delivery(job, execution, body, job.number_of_retries or 0)

    def extend(self, deliveries: Iterable[Delivery]) -> None:
        """A new lease for each that is still ours; one that was taken over stays taken over."""
        with self.client.pipeline() as pipe:
            for each in deliveries:
                each.execution.heartbeat(self._started, self._lease_seconds, pipe)
            pipe.execute()

    def done(self, delivery: Delivery) -> None:
        """Delete it."""

        def delete(pipe: Pipeline) -> None:
            pipe.delete(delivery.job.key)
            pipe.zrem(UNSETTLED_KEY, delivery.job.id)

        self._settle(delivery, delete)

    def delay(self, delivery: Delivery, seconds: float, *, failed: bool = False) -> None:
        """Bring it back not before `seconds` have passed. It waits in Redis, in nobody's memory."""
        at = datetime.fromtimestamp(math.ceil(time.time() + seconds), UTC)

        def schedule(pipe: Pipeline) -> None:
            delivery.job.set_status(JobStatus.SCHEDULED, pipe)
            if failed:
                pipe.hset(delivery.job.key, "number_of_retries", delivery.failures + 1)
            self._scheduled.schedule(delivery.job, at, pipe)

        self._settle(delivery, schedule)

    def release(self, delivery: Delivery) -> None:
        """Give it back now, before all others."""
        self._settle(delivery, lambda pipe: self._requeue(delivery.job, pipe))

    def reject(self, delivery: Delivery, reason: str) -> None:
        """Set aside what can never be decoded."""

        def set_aside(pipe: Pipeline) -> None:
            _record_rejected(pipe, delivery.body, reason)
            pipe.delete(delivery.job.key)
            pipe.zrem(UNSETTLED_KEY, delivery.job.id)

        self._settle(delivery, set_aside)

    def recover(self) -> None:
        """Bring back what is due: delays that passed, leases that ended, and what was taken by somebody who died before starting it.

        Any number of deployers may do this at once.
        """
        now = current_timestamp()
        for job_id in self._scheduled.get_jobs_to_schedule(now):
            self._bring_back(job_id, _Place(self._scheduled.key, job_id, due_at=now))
        for raw in self.client.zrangebyscore(self._started.key, 0, now):
            entry = as_text(raw)  # type: ignore[arg-type]  # without scores, redis-py gives members
            job_id, execution_id = parse_composite_key(entry)
            execution = Execution(execution_id, job_id, self.client)
            self._bring_back(job_id, _Place(self._started.key, entry, due_at=now, beside=execution.key))
        self._recover_taken()

    def _recover_taken(self) -> None:
        """Starting takes milliseconds, so whoever leaves a job here for a lease is dead. RQ's own cleaning waits for a minute."""
        taken = self._queue.intermediate_queue
        for job_id in taken.get_job_ids():
            if taken.set_first_seen(job_id):
                continue
            seen_at = taken.get_first_seen(job_id)
            if seen_at is not None and time.time() - seen_at.timestamp() >= self._lease_seconds:
                self._bring_back(job_id, _Place(taken.key, job_id, beside=taken.get_first_seen_key(job_id)))

    def depth(self) -> tuple[int, float]:
        """How many are not settled, and the age of the oldest in seconds."""
        with self.client.pipeline() as pipe:
            pipe.zcard(UNSETTLED_KEY)
            pipe.zrange(UNSETTLED_KEY, 0, 0, withscores=True)
            count, oldest = pipe.execute()
        return int(count), max(0.0, time.time() - float(oldest[0][1])) if oldest else 0.0

    def _settle(self, delivery: Delivery, change: Callable[[Pipeline], object]) -> None:
        """`change` the job if this delivery still holds it."""

        def step(pipe: Pipeline) -> None:
            is_ours = pipe.zscore(self._started.key, delivery.execution.composite_key) is not None
            pipe.multi()
            if is_ours:
                delivery.execution.delete(delivery.job, pipe)
                change(pipe)

        self.client.transaction(step, delivery.job.key)

    def _bring_back(self, job_id: str, place: _Place) -> None:
        """To the head of the queue, if it is still there."""
        try:
            job = Job.fetch(job_id, connection=self.client, serializer="json")
        except NoSuchJobError:
            self._forget(job_id, place)
            return
        except (RedisError, OSError):
            raise
        except Exception as exc:  # noqa: BLE001 (as in `_start`)
            self._reject_raw(job_id, exc, place)
            return

        def step(pipe: Pipeline) -> None:
            is_there = place.holds(pipe)
            pipe.multi()
            if is_there:
                place.leave(pipe)
                self._requeue(job, pipe)

        self.client.transaction(step, job.key)

    def _requeue(self, job: Job, pipe: Pipeline) -> None:
        job.set_status(JobStatus.QUEUED, pipe)
        self._queue.push_job_id(job.id, pipe, at_front=True)

    def _forget(self, job_id: str, place: _Place) -> None:
        """The id of a job that is no more: settled meanwhile, or deleted by hand."""
        with self.client.pipeline() as pipe:
            place.leave(pipe)
            pipe.delete(Job.key_for(job_id))  # what a late change may have left of it
            pipe.zrem(UNSETTLED_KEY, job_id)
            pipe.execute()

    def _reject_raw(self, job_id: str, exc: Exception, place: _Place) -> None:
        """Set aside a job that cannot even be read as one."""
        with self.client.pipeline() as pipe:
            _record_rejected(pipe, f"job {job_id}", f"it cannot be read: {type(exc).__name__}: {exc}")
            place.leave(pipe)
            pipe.delete(Job.key_for(job_id))
            pipe.zrem(UNSETTLED_KEY, job_id)
            pipe.execute()


@dataclass(frozen=True)
class _Place:
    """Where a job waits to be brought back: a member of a sorted set that is due, or (`due_at` None) of a list."""

    key: str
    member: str
    due_at: int | None = None
    beside: str = ""
    """A key that goes with it."""

    def holds(self, pipe: Any) -> bool:
        """Asked while the job is watched."""
        if self.due_at is None:
            return pipe.lpos(self.key, self.member) is not None
        score = pipe.zscore(self.key, self.member)
        return score is not None and score <= self.due_at

    def leave(self, pipe: Any) -> None:
        """Part of the transaction."""
        if self.due_at is None:
            pipe.lrem(self.key, 1, self.member)
        else:
            pipe.zrem(self.key, self.member)
        if self.beside:
            pipe.delete(self.beside)


def _record_rejected(pipe: Pipeline, body: str, reason: str) -> None:
    pipe.lpush(REJECTED_KEY, json.dumps({"body": body, "reason": reason, "at": datetime.now(UTC).isoformat(timespec="seconds")}))
    pipe.ltrim(REJECTED_KEY, 0, REJECTED_MAX - 1)
