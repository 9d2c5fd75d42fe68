"""Helm's parent: it starts Helm at most once, never past an absolute deadline, and does not end before Helm is reaped (protocol step 6).

Run as `python -I -S -E wrapper.py DEADLINE GRACE WORKER STATUS_FD PROGRAM [ARGUMENT …]`: a script of its own that imports nothing of
Prevue, because its start is paid for by every Helm run. DEADLINE is in CLOCK_BOOTTIME seconds: a relative time-out would move past the
deadline that the statestore holds when the machine is suspended between protocol step 5 and the exec; an alarm armed before the exec
is no use either (Go ignores SIGALRM, exec deletes POSIX timers). So this process waits on an absolute timerfd.

Who dies with whom: the worker's death kills the wrapper, the wrapper's death kills Helm (PDEATHSIG, SIGKILL). The exit code says nothing,
since Helm's own would be confused with it; STATUS_FD gets one line at each turn: `started PID`, then `exited CODE`, `deadline`, `refused`
(the deadline was over before the start), `stopped` (SIGTERM came before the start) or `error TEXT`.
"""

# The interpreter's own C modules, not the standard library's wrappers around them: `os`, `signal`, `ctypes` and `contextlib` would double
# the CPU time of the start (24 ms against 12 ms), which fifty previews at once pay fifty times.
import _ctypes
import _signal  # type: ignore[import-not-found]
import posix
import select
import sys
import time
from _struct import pack

PR_SET_PDEATHSIG = 1
CLOCK_BOOTTIME = 7
TFD_FLAGS = 0o2000000 | 0o4000  # TFD_CLOEXEC | TFD_NONBLOCK
TFD_TIMER_ABSTIME = 1

EXEC_FAILED = 127

_LIBC = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # the program itself, as ctypes.CDLL(None) does it


def libc(name: str, *arguments: int | bytes | None) -> int:
    """Call a function of the C library; bytes are passed by address.

    Raises:
        OSError: it returned -1.
    """
    result: int = _ctypes.call_function(_ctypes.dlsym(_LIBC, name), arguments)
    if result < 0:
        raise OSError(f"{name} failed")
    return result


def boottime() -> float:
    """CLOCK_BOOTTIME, suspends included."""
    return time.clock_gettime(CLOCK_BOOTTIME)


def arm(timer: int, at: float) -> None:
    """Let `timer` be readable from the absolute time `at` on."""
    seconds = max(int(at), 0)
    nanoseconds = max(int((at - seconds) * 1e9), 1)  # zero would disarm it
    libc("timerfd_settime", timer, TFD_TIMER_ABSTIME, pack("4l", 0, 0, seconds, nanoseconds), None)


def die_with(parent: int) -> None:
    """SIGKILL for this process when its parent dies; ends at once if that has happened already."""
    libc("prctl", PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
    if posix.getppid() != parent:
        posix._exit(EXEC_FAILED)  # noqa: SLF001  os._exit by its own name


def kill_group(group: int, number: int) -> None:
    """Signal Helm's process group; its leader is not reaped yet, so the id is still its own."""
    try:
        posix.killpg(group, number)
    except ProcessLookupError:
        posix.kill(group, number)  # the child has not made its group yet


def start(command: list[str], deadline: float, status: int) -> int:
    """Fork Helm into a process group of its own."""
    wrapper = posix.getpid()
    child = posix.fork()
    if child:
        try:  # noqa: SIM105  contextlib is not imported here
            posix.setpgid(child, child)
        except OSError:
            pass  # the child was quicker, and has made it itself
        return child
    try:
        _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
        posix.setpgid(0, 0)
        die_with(wrapper)
        if boottime() < deadline:
            posix.execv(command[0], command)
        posix.write(status, b"refused\n")
    except OSError as exc:
        posix.write(status, f"error {exc.strerror or exc}\n".encode())
    finally:
        posix._exit(EXEC_FAILED)  # noqa: SLF001  os._exit by its own name


def wait(child: int, deadline: float, grace: float, timer: int, wakeup: int) -> str:
    """Wait for Helm's end, the deadline or SIGTERM; whatever comes, return only when it is reaped."""
    process = posix.pidfd_open(child)
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
            kill_group(child, _signal.SIGKILL)
            poll.unregister(timer)
        if wakeup in ready:
            # The worker was cancelled: Helm writes `failed` at once, so that the next one finds no pending release.
            kill_group(child, _signal.SIGTERM)
            arm(timer, min(deadline, boottime() + grace))
            poll.unregister(wakeup)
    kill_group(child, _signal.SIGKILL)  # what Helm started goes with it; not yet reaped, it still owns the group's id
    code = posix.waitstatus_to_exitcode(posix.waitpid(child, 0)[1])
    return "deadline" if ended_by_deadline else f"exited {code}"


def main(arguments: list[str]) -> None:
    """Start, wait, tell."""
    deadline, grace, worker, status = float(arguments[0]), float(arguments[1]), int(arguments[2]), int(arguments[3])
    wakeup, wakeup_in = posix.pipe()
    posix.set_blocking(wakeup_in, False)
    _signal.set_wakeup_fd(wakeup_in, warn_on_full_buffer=False)
    _signal.signal(_signal.SIGTERM, lambda *_: None)
    die_with(worker)
    timer = libc("timerfd_create", CLOCK_BOOTTIME, TFD_FLAGS)
    if boottime() >= deadline:
        posix.write(status, b"refused\n")
        return
    if select.select([wakeup], [], [], 0)[0]:
        posix.write(status, b"stopped\n")
        return
    posix.set_inheritable(status, False)
    child = start(arguments[4:], deadline, status)
    posix.write(status, f"started {child}\n".encode())
    posix.write(status, (wait(child, deadline, grace, timer, wakeup) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
