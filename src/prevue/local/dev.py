"""`prevue dev up|down|status`: the stack of the working directory's `.prevue/`.

Each returns the exit status of the command, and prints for people: progress and results on standard output, errors on standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from prevue.local import processes, stack, stack_services
from prevue.local.cluster import LocalClusterError
from prevue.local.cluster.handle import wait_until_stopped
from prevue.local.cluster.locks import FileLock
from prevue.local.folder import DevFile, StackFolder

FOLDER = ".prevue"
UP_SECONDS = 1800.0
"""A first start on a machine builds the cluster's programs, some minutes on two cores."""
DOWN_SECONDS = 150.0
"""Every process may take its grace, and the cluster a minute."""


def up(
    *,
    detach: bool = False,
    deployers: int = 1,
    queue: str = stack.QUEUES[0],
    kubeconfig: Path | None = None,
    image_loader: str | None = None,
) -> int:
    """Start the stack; with `detach` return when all of it is ready, else run until Ctrl-C."""
    folder = StackFolder(Path.cwd() / FOLDER)
    if deployers < 1:
        return _fail("--deployers: expected at least 1")
    if image_loader and kubeconfig is None:
        return _fail("--image-loader is for a cluster of your own: it needs --kubeconfig FILE")
    options = stack.Options(
        folder=folder.root,
        deployers=deployers,
        queue=queue,
        kubeconfig=kubeconfig.absolute() if kubeconfig else None,
        image_loader=image_loader,
    )
    if is_running(folder):
        return _fail(f"a stack runs in {folder.root} already: `prevue dev status` shows it, `prevue dev down` stops it")
    folder.logs.mkdir(parents=True, exist_ok=True)
    clean_up(folder, _say)
    try:
        if detach:
            start_detached(options, _say)
            _show(folder)
            _say("It runs in the background: `prevue dev status` shows it, `prevue dev down` stops it.")
        else:
            stack.run(options, stack.Report(_say, lambda _dev: _show_foreground(folder)))
    except stack.StackFailed as exc:
        return _fail(f"the stack does not start: {exc}")
    return 0


def down() -> int:
    """Stop the stack and remove what it made, except its logs."""
    folder = StackFolder(Path.cwd() / FOLDER)
    if not is_running(folder) and folder.read_supervisor() is None:
        _say(f"no stack runs in {folder.root}")
        return 0
    try:
        stop(folder, _say)
    except stack.StackFailed as exc:
        return _fail(str(exc))
    return 0


def status() -> int:
    """Show what runs; 0 if the stack is ready, 1 if not."""
    folder = StackFolder(Path.cwd() / FOLDER)
    dev = folder.read_dev()
    if dev is None or not is_running(folder):
        _say(f"no stack runs in {folder.root}" if not is_running(folder) else "the stack is starting or stopping")
        return 1
    _show(folder)
    for name, pids in sorted(dev.pids.items()):
        states = ", ".join(f"{pid}" if Path(f"/proc/{pid}").exists() or _exists(pid) else f"{pid} (ended)" for pid in pids)
        _say(f"  {name:<24} {states or 'restarting'}")
    return 0


def is_running(folder: StackFolder) -> bool:
    """Whether a supervisor holds the folder's lock."""
    if not folder.lock.exists():
        return False
    probe = FileLock(folder.lock)
    is_free = probe.try_shared()  # shared: many may ask at once
    probe.release()
    return not is_free


def start_detached(options: stack.Options, progress: Callable[[str], None]) -> DevFile:
    """Start the supervisor as a process of its own and follow it until the stack is ready.

    Raises:
        stack.StackFailed: it does not become ready; nothing of it runs any more.
    """
    folder = StackFolder(options.folder)
    log = folder.logs / "supervisor.log"
    read_end, write_end = os.pipe()
    with log.open("ab") as output:
        encoded = msgspec.json.encode(options, enc_hook=str).decode()
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "prevue.local.stack", "--options", encoded, "--report-fd", str(write_end)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, pass_fds=[write_end], start_new_session=True,
        )  # fmt: skip
    os.close(write_end)
    timer = threading.Timer(UP_SECONDS, supervisor.terminate)
    timer.daemon = True
    timer.start()
    error = ""
    try:
        with os.fdopen(read_end) as lines:
            for told in map(json.loads, lines):
                if "ready" in told:
                    # It outlives us; as long as we live, its end is collected.
                    threading.Thread(target=supervisor.wait, daemon=True).start()
                    return _ready(folder)
                error = told.get("error", "")
                if not error:
                    progress(told["progress"])
    except BaseException:
        supervisor.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.wait(DOWN_SECONDS)
        raise
    finally:
        timer.cancel()
    supervisor.wait()
    raise stack.StackFailed(error or f"its supervisor ended (exit status {supervisor.returncode})\n{_tail(log)}")


def stop(folder: StackFolder, progress: Callable[[str], None]) -> None:
    """Stop the stack of a folder, whoever runs it, and wait until nothing of it is left.

    Raises:
        stack.StackFailed: something does not end.
    """
    record = folder.read_supervisor()
    if record is not None and processes.is_alive(record.supervisor):
        progress("stopping the stack")
        processes.send(record.supervisor.pid, signal.SIGTERM)
        give_up_at = time.monotonic() + DOWN_SECONDS
        while processes.is_alive(record.supervisor):
            if time.monotonic() >= give_up_at:
                progress(f"the supervisor does not end within {DOWN_SECONDS:.0f} s, killing it")
                processes.send(record.supervisor.pid, signal.SIGKILL)
            time.sleep(0.1)
    clean_up(folder, progress)
    progress("nothing of it runs any more; the logs are in " + str(folder.logs))


def clean_up(folder: StackFolder, progress: Callable[[str], None]) -> None:
    """End and remove what a killed supervisor left: processes by their recorded start times and by their mark.

    Raises:
        stack.StackFailed: a process does not end.
    """
    record = folder.read_supervisor()
    recorded = record.children if record else []

    def ours() -> list[int]:
        pids = {child.pid for child in recorded if processes.is_alive(child)}
        return sorted(pids | set(processes.marked(folder.root)))

    if ours():
        progress("ending what a killed supervisor left")
        if left := processes.end(ours, grace_seconds=10):
            raise stack.StackFailed(f"processes do not end: {left}: end them by hand, then try again")
    if record is not None:
        if record.kubeconfig and record.kubectl and Path(record.kubectl).exists():
            stack.delete_previews(record.kubectl, record.kubeconfig, record.namespaces)
        stack.remove_database(folder)
        folder.remove()
        try:
            wait_until_stopped()
        except LocalClusterError as exc:
            raise stack.StackFailed(str(exc)) from exc


def _ready(folder: StackFolder) -> DevFile:
    dev = folder.read_dev()
    if dev is None:
        raise stack.StackFailed(f"{folder.dev} cannot be read")
    return dev


def _show(folder: StackFolder) -> None:
    dev = _ready(folder)
    _say(f"GitHub    {dev.github_url}  (repositories {', '.join(stack_services.REPOSITORIES)}; users writer, reader)")
    _say(f"App       {dev.webhook_url}")
    _say(f"Database  {dev.database_url}")
    _say(f"Cluster   {dev.kubectl} --kubeconfig {dev.kubeconfig} get pods -A")
    _say(f"Logs      {folder.logs}")


def _show_foreground(folder: StackFolder) -> None:
    _show(folder)
    _say("Ctrl-C stops it.")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _tail(path: Path, lines: int = 15) -> str:
    with contextlib.suppress(OSError):
        return "\n".join([f"--- {path}", *(f"    {line}" for line in path.read_text(errors="replace").splitlines()[-lines:])])
    return f"--- {path}: no log"


def _say(text: str) -> None:
    print(text, flush=True)


def _fail(text: str) -> int:
    print(f"prevue dev: {text}", file=sys.stderr, flush=True)
    return 1
