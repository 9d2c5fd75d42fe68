"""Helm's parent: it starts Helm at most once, never past an absolute deadline, and does not end before Helm is reaped (protocol, step 6).

Run as `python -I -S -E wrapper.py DEADLINE GRACE WORKER STATUS_FD PROGRAM [ARGUMENT …]`: a script of its own that imports nothing of
Prevue, because its start is paid for by every Helm run. DEADLINE is in CLOCK_BOOTTIME seconds: a relative time-out would move past the
deadline that the statestore holds when the machine is suspended between the claim's step 5 and the exec; an alarm armed before the exec
is no use either (Go ignores SIGALRM, exec deletes POSIX timers). So this process waits on an absolute timerfd.

Who dies with whom: the worker's death kills the wrapper, the wrapper's death kills Helm (PDEATHSIG, SIGKILL). The exit code says nothing,
since Helm's own would be confused with it; STATUS_FD gets one line at each turn: `started PID`, then `exited CODE`, `deadline`, `refused`
(the deadline was over before the start), `stopped` (SIGTERM came before the start) or `error TEXT`.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
CLOCK_BOOTTIME = 7
TFD_FLAGS = 0o2000000 | 0o4000  # TFD_CLOEXEC | TFD_NONBLOCK
TFD_TIMER_ABSTIME = 1

EXEC_FAILED = 127

libc = ctypes.CDLL(None, use_errno=True)


class Timespec(ctypes.Structure):
    """`struct timespec`."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Itimerspec(ctypes.Structure):
    """`struct itimerspec`."""

    _fields_ = (("interval", Timespec), ("value", Timespec))


def boottime() -> float:
    """CLOCK_BOOTTIME, suspends included."""
    return time.clock_gettime(CLOCK_BOOTTIME)


def arm(timer: int, at: float) -> None:
    """Let `timer` be readable from the absolute time `at` on."""
    seconds = max(int(at), 0)
    spec = Itimerspec(Timespec(0, 0), Timespec(seconds, max(int((at - seconds) * 1e9), 1)))
    if libc.timerfd_settime(timer, TFD_TIMER_ABSTIME, ctypes.byref(spec), None) != 0:
        raise OSError(ctypes.get_errno(), "timerfd_settime")


def die_with(parent: int) -> None:
    """SIGKILL for this process when its parent dies; ends at once if that has happened already."""
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os._exit(EXEC_FAILED)


def kill_group(group: int, number: int) -> None:
    """Signal Helm's process group; its leader is not reaped yet, so the id is still its own."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        os.kill(group, number)  # the child has not made its group yet


def start(command: list[str], deadline: float, status: int) -> int:
    """Fork Helm into a process group of its own."""
    wrapper = os.getpid()
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):  # the child may have been quicker
            os.setpgid(child, child)
        return child
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setpgid(0, 0)
        die_with(wrapper)
        if boottime() < deadline:
            os.execvp(command[0], command)  # noqa: S606  a list of arguments, made by HelmCommand
        os.write(status, b"refused\n")
    except OSError as exc:
        os.write(status, f"error {exc.strerror}\n".encode())
    finally:
        os._exit(EXEC_FAILED)


def wait(child: int, deadline: float, grace: float, timer: int, wakeup: int) -> str:
    """Wait for Helm's end, the deadline or SIGTERM; whatever comes, return only when it is reaped."""
    process = os.pidfd_open(child)
    poll = select.poll()
    for fd in (process, timer, wakeup):
        poll.register(fd, select.POLLIN)
    arm(timer, deadline)
    ended_by_deadline = False
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if process in ready:
            break
        if timer in ready:
            ended_by_deadline = boottime() >= deadline
            kill_group(child, signal.SIGKILL)
            poll.unregister(timer)
        if wakeup in ready:
            # The worker was cancelled: Helm writes `failed` at once, so that the next one finds no pending release.
            kill_group(child, signal.SIGTERM)
            arm(timer, min(deadline, boottime() + grace))
            poll.unregister(wakeup)
    kill_group(child, signal.SIGKILL)  # what Helm started goes with it; not yet reaped, it still owns the group's id
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "deadline" if ended_by_deadline else f"exited {code}"


def main(arguments: list[str]) -> None:
    """Start, wait, tell."""
    deadline, grace, worker, status = float(arguments[0]), float(arguments[1]), int(arguments[2]), int(arguments[3])
    wakeup, wakeup_in = os.pipe()
    os.set_blocking(wakeup_in, False)
    signal.set_wakeup_fd(wakeup_in, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    die_with(worker)
    timer = libc.timerfd_create(CLOCK_BOOTTIME, TFD_FLAGS)
    if timer < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    if boottime() >= deadline:
        os.write(status, b"refused\n")
        return
    if select.select([wakeup], [], [], 0)[0]:
        os.write(status, b"stopped\n")
        return
    os.set_inheritable(status, False)
    child = start(arguments[4:], deadline, status)
    os.write(status, f"started {child}\n".encode())
    os.write(status, (wait(child, deadline, grace, timer, wakeup) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
