"""An event loop whose time is a number and whose choices are a seed's.

No selector, no threads, no sleeping: when no callback is ready, time jumps to the next timer. Which of the ready callbacks runs next is
drawn from the seed, so one seed is one interleaving and another seed another. Every callback belongs to a simulated process, known by a
context variable that tasks hand on to their children: that is how a process is killed or stopped between any two of its awaits.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import weakref
from asyncio import events, futures
from collections.abc import Callable, Coroutine, Generator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

START = datetime(2026, 2, 12, 10, 0, tzinfo=UTC)
BOOTED_SECONDS = 1000.0
_T = TypeVar("_T")
_end_of_sleep: Callable[..., object] = futures._set_result_unless_cancelled  # type: ignore[attr-defined]
"""What `asyncio.sleep` has its timer call."""


class Process:
    """What can be killed or stopped as one; `steps` counts the callbacks that it has run."""

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.name = name
        self.loop = loop
        self.is_dead = False
        self.is_stopped = False
        self.steps = 0
        self.strike_at = -1
        """The step after which `strike` is called: a crash or a stop at that await."""
        self.strike: Callable[[], None] = lambda: None
        self.wall_offset_seconds = 0.0
        self._held: list[Call] = []
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._graves: list[asyncio.Task[Any]] = []
        self._context = contextvars.copy_context()
        self._context.run(_PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, _T], *, name: str) -> asyncio.Task[_T]:
        """Run `work` as this process."""
        return self.loop.create_task(work, name=f"{self.name} {name}", context=self._context.copy())

    def call_at(self, when: float, callback: Callable[[], None]) -> Call:
        """A timer of this process."""
        call: Call = self.loop.call_at(when, callback, context=self._context.copy())
        return call

    def own(self, task: asyncio.Task[Any]) -> None:
        """Remember a task of this process."""
        self._tasks.add(task)

    def kill(self) -> None:
        """As SIGKILL: none of its callbacks runs any more. Its coroutines are kept, since closing them would run their `finally`."""
        self.is_dead = True
        self._graves = list(self._tasks)  # those that are done, too: nobody is left to look at their exceptions
        self._held.clear()

    def stop(self) -> None:
        """As SIGSTOP."""
        self.is_stopped = True

    def go_on(self) -> None:
        """As SIGCONT: timers that have passed meanwhile run now."""
        self.is_stopped = False
        self.loop.ready.extend(self._held)
        self._held.clear()

    def hold(self, call: Call) -> None:
        """Keep a callback until `go_on`."""
        self._held.append(call)


if TYPE_CHECKING:
    _Loop = asyncio.BaseEventLoop
else:
    _Loop = asyncio.AbstractEventLoop  # everything that does I/O raises NotImplementedError


class Call(msgspec.Struct, eq=False):
    """A callback that is to run: asyncio's Handle, without what it does for debugging; a struct, since a seed makes ten thousand."""

    callback: Callable[..., object]
    args: tuple[Any, ...]
    context: contextvars.Context
    moment: float
    is_cancelled: bool = False

    def cancel(self) -> None:
        """It will not run; a timer is skipped when its time comes."""
        self.is_cancelled = True

    def cancelled(self) -> bool:
        """As asyncio's."""
        return self.is_cancelled

    def when(self) -> float:
        """As asyncio's."""
        return self.moment


_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("simulated_process", default=None)


def current_process() -> Process | None:
    """The process whose callback runs now; None: the world outside."""
    return _PROCESS.get()


class SimulatedClock:
    """The Clock port on the loop's time: boot time is right, the wall clock of a process may be wrong."""

    def __init__(self, loop: SimulatedLoop, process: Process | None = None) -> None:
        self._loop = loop
        self._process = process

    def boottime(self) -> float:
        """Seconds since an imagined boot; a stopped process's clock goes on."""
        return BOOTED_SECONDS + self._loop.time()

    def now(self) -> datetime:
        """The wall clock, with the process's own error."""
        error = self._process.wall_offset_seconds if self._process is not None else 0.0
        return START + timedelta(seconds=self._loop.time() + error) if error else self._loop.now()


class SimulatedLoop(_Loop):
    """See the module; `after_step` is called after every callback."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.ready: list[Call] = []
        self.steps = 0
        self.after_step: Callable[[], None] = lambda: None
        self.errors: list[dict[str, Any]] = []
        self._timers: list[tuple[float, int, Call | asyncio.Future[None]]] = []
        """Callbacks, and sleeps that are to end."""
        self._sequence = 0
        self._now = 0.0
        self._told = (0.0, START)
        self._closed = False

    # -- what asyncio asks for ----------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    get_debug = bool  # False, without a frame: every future and task asks

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def call_soon(  # type: ignore[override]  # a slimmer handle
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        call = Call(callback, args, contextvars.copy_context() if context is None else context, self._now)
        if not self._closed:
            self.ready.append(call)
        return call

    def call_later(  # type: ignore[override]  # the same
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        call = Call(callback, args, contextvars.copy_context() if context is None else context, self._now + delay)
        self._sequence += 1
        heapq.heappush(self._timers, (call.moment, self._sequence, call))
        return call

    def call_at(  # type: ignore[override]  # the same
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        call = Call(callback, args, contextvars.copy_context() if context is None else context, when)
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, call))
        return call

    def sleep(self, seconds: float) -> asyncio.Future[None]:
        """`asyncio.sleep` without a handle and its context: half of all that a seed does is to sleep."""
        future: asyncio.Future[None] = asyncio.Future(loop=self)
        self._sequence += 1
        heapq.heappush(self._timers, (self._now + seconds, self._sequence, future))
        return future

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
        **_: Any,
    ) -> asyncio.Task[_T]:
        task: asyncio.Task[_T] = asyncio.Task(coro, loop=self, name=str(name), context=context)
        process = context.get(_PROCESS) if context is not None else _PROCESS.get()
        if process is not None:
            process.own(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed:
            self.errors.append(context)

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run until `work` is done.

        Raises:
            RuntimeError: nothing is left that could happen.
        """
        events._set_running_loop(self)
        try:
            main = self.create_task(work, name="main")
            is_done, turn, jump, ready = main.done, self._turn, self._jump, self.ready
            while not is_done():
                if ready:
                    turn(ready)
                else:
                    jump()
            return main.result()
        finally:
            events._set_running_loop(None)

    def now(self) -> datetime:
        """The right wall clock; the same object while time stands still."""
        if self._told[0] != self._now:
            self._told = self._now, START + timedelta(seconds=self._now)
        return self._told[1]

    def _turn(self, ready: list[Call]) -> None:
        count = len(ready)
        if count > 1:
            chosen = int(self.random.random() * count)
            call, ready[chosen] = ready[chosen], ready[-1]
            ready.pop()
        else:
            call = ready.pop()
        if call.is_cancelled:
            return
        process = call.context.get(_PROCESS)
        if process is not None:
            if process.is_dead:
                return
            if process.is_stopped:
                process.hold(call)
                return
            process.steps += 1
        try:
            call.context.run(call.callback, *call.args)
        except Exception as exc:  # noqa: BLE001  told as a violation
            self.errors.append({"message": "a callback failed", "exception": exc})
        if process is not None and process.steps == process.strike_at:
            process.strike()
        self.steps += 1
        self.after_step()

    def _jump(self) -> None:
        """Time goes on to the next timer; all timers of that moment become ready together.

        A sleep that is over needs no turn of its own, only its task does: half of all turns would be that.
        """
        timers, pop = self._timers, heapq.heappop
        while timers and timers[0][2].cancelled():
            pop(timers)
        if not timers:
            raise RuntimeError("the simulated world stands still: nothing is ready and no timer is set")
        now = self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= now:
            due = pop(timers)[2]
            if not isinstance(due, Call):
                if not due.done():
                    due.set_result(None)
            elif due.callback is _end_of_sleep:
                if not due.is_cancelled:
                    due.callback(*due.args)
            elif not due.is_cancelled:
                self.ready.append(due)

    def close(self) -> None:
        """Whatever still hangs on this loop does nothing from now on."""
        self._closed = True
        self.ready.clear()
        self._timers.clear()
