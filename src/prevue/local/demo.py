"""`make demo`: a comment on a pull request becomes a URL that serves the commit; `--burst 50`: fifty at once.

Starts the stack of the working directory's `.prevue/` (or uses the one that runs there), checks what it shows, and says why when
something is wrong. On a terminal it stays up until Ctrl-C; otherwise it stops all that it started.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from prevue.local import dev, stack
from prevue.local.client import HELLO, Comment, Failed, LocalGitHub, Pull, connect, served_commit, wait_for
from prevue.local.cluster import LocalClusterError
from prevue.local.folder import DevFile, StackFolder
from prevue.local.prober import watching
from prevue.model import GITHUB_COM, PreviewKey, preview_namespace

ANSWER_SECONDS = 120.0
BURST_SERVING_SECONDS = 420.0
BURST_COMMENTS_SECONDS = 480.0
"""Fifty results and the acknowledgements that the App left out, at the outbox's 45 writes a minute, with room."""
SERVES_SECONDS = 20.0
GITHUB_WRITES = {"per_minute": 80, "per_hour": 500}
ENDED = ("Preview ready", "Preview failed", "Preview given up", "Preview not started", "Superseded", "Preview already exists")
TAILED = ("supervisor", "github-app", "deployer", "local-github")
BURST_MAX = 100
"""The local node runs 250 pods, and GitHub's hourly limit is 500 writes."""


class Show:
    """Progress for people: a spinner on a terminal, a line each otherwise."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()

    def line(self, text: str, *, style: str = "") -> None:
        """One thing that has happened."""
        line = Text(f"{time.monotonic() - self._began:6.1f} s  ", style="dim").append(text, style=style or "not dim")
        self.console.print(line)

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[str], None]]:
        """What is being waited for; the callable changes the text on a terminal."""
        if not self.console.is_terminal:
            yield lambda _text: None
            return
        with self.console.status(text) as spinner:
            yield spinner.update


async def single(file: DevFile, show: Show) -> None:
    """One pull request, one `/preview`.

    Raises:
        Failed: something is not as it should be.
    """
    async with connect(file.github_url) as github:
        pull = await github.open_pull(HELLO)
        page = f"{file.github_url}/{pull.repo}/pull/{pull.number}"
        show.line(f"pull request {pull.repo}#{pull.number} is open at commit {pull.head_sha[:12]}: {page}")
        began = time.monotonic()
        comment_id = await github.comment(pull)
        show.line("commented /preview as writer")
        delivery = await github.delivery_of(comment_id)
        show.line(f"the App answered the webhook: {delivery['response']['status_code']} after {delivery['duration'] * 1000:.0f} ms")
        with show.waiting("waiting for the preview"):
            answer = await _follow(github, pull, show)
        if "Preview ready" not in answer.text:
            raise Failed(f"the preview did not become ready:\n{answer.text}")
        took = time.monotonic() - began
        commit = await served_commit(answer.url)
        if commit != pull.head_sha:
            raise Failed(f"{answer.url} serves {commit or 'nothing'}, not the pull request's commit {pull.head_sha}")
        show.line(f"{answer.url} serves commit {commit}")
        show.line(f"/preview → URL in {took:.1f} s", style="bold green not dim")
        show.console.print(_conversation(pull, await github.comments(pull)))
        show.console.print(f"Preview        {answer.url}\nPull request   {page}", highlight=False)


async def _follow(github: LocalGitHub, pull: Pull, show: Show) -> Comment:
    """Show what Prevue says until it has said how it ended."""
    said = ""

    async def look() -> Comment | None:
        nonlocal said
        for comment in await github.answers(pull):
            first = comment.text.splitlines()[0]
            if first != said:
                said = first
                show.line(f"Prevue: {first.replace('**', '')}")
            if any(word in comment.text for word in ENDED):
                return comment
        return None

    return await wait_for(look, seconds=ANSWER_SECONDS, what="Prevue's answer on the pull request", instead=lambda: said)


async def burst(file: DevFile, show: Show, count: int) -> None:
    """`count` pull requests, all of them commented `/preview` at once, with GitHub's secondary limit on.

    Raises:
        Failed: a preview does not serve its commit, or there is not exactly one release and one status comment each.
    """
    async with connect(file.github_url) as github:
        await github.limits(**GITHUB_WRITES)
        repository_id = await github.repository_id(HELLO)
        with show.waiting(f"opening {count} pull requests and making their images"):
            pulls = await asyncio.gather(*(github.open_pull(HELLO) for _ in range(count)))
        show.line(f"{count} pull requests are open, each with an image of its own")
        names = {preview_namespace(PreviewKey(GITHUB_COM, repository_id, pull.number), pull.repo): pull for pull in pulls}
        async with watching(file.kubectl, file.kubeconfig) as prober:
            began = time.monotonic()
            comment_ids = await asyncio.gather(*(github.comment(pull) for pull in pulls))
            show.line(f"commented /preview on all {count}, GitHub's limit is {GITHUB_WRITES['per_minute']} writes a minute")
            expected = {namespace: pull.head_sha for namespace, pull in names.items()}
            with show.waiting("waiting for the previews"):
                try:
                    last = await prober.wait(expected, seconds=BURST_SERVING_SECONDS)
                except TimeoutError:
                    missing = prober.missing(expected)
                    raise Failed(f"{len(missing)} of {count} previews do not serve their commit: {', '.join(missing)}") from None
            served = sorted(at - began for at in prober.served_at.values())
        show.line(f"{count} previews serve their own commits")
        deliveries = (await github.deliveries_of(comment_ids)).values()
        acknowledged = sorted(delivery["duration"] for delivery in deliveries)
        if refused := [delivery["response"]["status_code"] for delivery in deliveries if delivery["response"]["status_code"] != 202]:
            raise Failed(f"{len(refused)} of {count} webhooks were not accepted: {refused}")
        with show.waiting("waiting for the status comments") as change:
            answers = await _all_answers(github, pulls, show, change)
        told = time.monotonic() - began
        await _check_burst(file, github, names, answers)
        show.console.print(_summary(count, served=served, last=last - began, acknowledged=acknowledged, told=told))
        show.console.print(f"Pull requests   {file.github_url}/{HELLO}", highlight=False)


async def _all_answers(github: LocalGitHub, pulls: Sequence[Pull], show: Show, change: Callable[[str], None]) -> dict[int, Comment]:
    """Pull request → its status comment that says how it ended; they come at the pace that GitHub allows."""
    answers: dict[int, Comment] = {}
    told = 0

    async def look() -> bool | None:
        nonlocal told
        for pull in pulls:
            if pull.number in answers:
                continue
            ended = [comment for comment in await github.answers(pull) if any(word in comment.text for word in ENDED)]
            if ended:
                answers[pull.number] = ended[0]
        if len(answers) - told >= max(1, len(pulls) // 5):
            told = len(answers)
            show.line(f"{told} of {len(pulls)} status comments say how it ended")
        change(f"waiting for the status comments: {len(answers)} of {len(pulls)}")
        return True if len(answers) == len(pulls) else None

    await wait_for(
        look,
        seconds=BURST_COMMENTS_SECONDS,
        what=f"{len(pulls)} status comments",
        instead=lambda: f"{len(answers)} of them",
        every=1.0,
    )
    return answers


async def _check_burst(file: DevFile, github: LocalGitHub, names: dict[str, Pull], answers: dict[int, Comment]) -> None:
    """Each URL from its comment serves its own commit; one release and one status comment each."""
    wrong: list[str] = []
    for pull in names.values():
        answer = answers[pull.number]
        if "Preview ready" not in answer.text:
            wrong.append(f"#{pull.number}: {answer.text.splitlines()[0]}")
        elif (commit := await _served(answer.url, pull.head_sha)) != pull.head_sha:
            wrong.append(f"#{pull.number}: {answer.url} serves {commit or 'nothing'}, not {pull.head_sha}")
        if (found := len(await github.answers(pull))) != 1:
            wrong.append(f"#{pull.number}: {found} status comments")
    releases: dict[str, list[str]] = {}
    for release in json.loads(_run([file.helm, "--kubeconfig", file.kubeconfig, "list", "--all-namespaces", "--max", "0", "-o", "json"])):
        releases.setdefault(release["namespace"], []).append(f"{release['name']} revision {release['revision']} {release['status']}")
    for namespace, pull in names.items():
        if (found_there := releases.get(namespace, [])) != [f"preview-pr-{pull.number} revision 1 deployed"]:
            wrong.append(f"#{pull.number}: releases {found_there}")
    if wrong:
        raise Failed("\n".join(wrong))


async def _served(url: str, commit: str) -> str:
    """What the URL serves, asked for a while: on a machine with fifty new pods a readiness probe may time out for a moment."""
    found = ""

    async def look() -> bool | None:
        nonlocal found
        found = await served_commit(url)
        return found == commit or None

    with contextlib.suppress(Failed):
        await wait_for(look, seconds=SERVES_SECONDS, what=url, every=0.5)
    return found


def _summary(count: int, *, served: list[float], last: float, acknowledged: list[float], told: float) -> Table:
    table = Table(title=f"{count} previews at once", show_header=False)
    table.add_row("previews that serve their own commit", str(len(served)))
    table.add_row("Helm releases, each at revision 1, deployed", str(count))
    table.add_row("status comments, one on each pull request", str(count))
    table.add_row("first request → last URL serving", f"{last:.1f} s")
    table.add_row("  half of them", f"{median(served):.1f} s")
    table.add_row("webhook acknowledged (202), p50", f"{_percentile(acknowledged, 50) * 1000:.0f} ms")
    table.add_row("webhook acknowledged (202), p99", f"{_percentile(acknowledged, 99) * 1000:.0f} ms")
    table.add_row("last status comment, at the pace that GitHub allows", f"{told:.1f} s")
    return table


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """Nearest rank: the smallest value that so many per cent do not exceed."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _conversation(pull: Pull, comments: Sequence[Comment]) -> Panel:
    said = "\n\n".join(f"{comment.author}:\n{comment.text}" for comment in comments)
    return Panel(Text(said), title=f"{pull.repo}#{pull.number}", title_align="left")


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def _tails(folder: StackFolder, console: Console) -> None:
    for name in TAILED:
        path = folder.logs / f"{name}.log"
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()[-8:]
            console.print(f"--- {path}", *(line[:240] for line in lines), sep="\n", markup=False, highlight=False)


def _run_demo(folder: StackFolder, show: Show, count: int) -> int:
    file = folder.read_dev()
    if file is None:
        return _failed("dev.json cannot be read", folder, show)
    try:
        asyncio.run(burst(file, show, count) if count > 1 else single(file, show))
    except (Failed, OSError, subprocess.SubprocessError, TimeoutError) as exc:
        return _failed(str(exc) or type(exc).__name__, folder, show)
    return 0


def _failed(reason: str, folder: StackFolder, show: Show) -> int:
    _tails(folder, show.console)
    show.console.print(f"[bold red]demo failed:[/bold red] {escape(reason)}", highlight=False)
    return 1


def _stay(show: Show) -> None:
    show.console.print("It stays up until Ctrl-C, which stops it and removes everything.")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m prevue.local.demo", description=__doc__)
    parser.add_argument("--burst", type=int, default=1, metavar="N", help="so many pull requests at once")
    parser.add_argument("--deployers", type=int, default=1, metavar="N", help="so many deployers")
    parser.add_argument("--queue", choices=stack.QUEUES, default=stack.QUEUES[0], help="the queue between App and deployers")
    options = parser.parse_args(arguments)
    count: int = options.burst
    if not 1 <= count <= BURST_MAX:
        parser.error(f"--burst: expected 1 to {BURST_MAX}")
    # Whoever stops the demo stops its stack too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    show = Show(Console(soft_wrap=True) if not sys.stdout.isatty() else Console())
    folder = StackFolder(Path.cwd() / dev.FOLDER)
    if dev.is_running(folder):
        show.line(f"a stack runs in {folder.root} already: using it, and leaving it as it is")
        return _run_demo(folder, show, count)
    folder.logs.mkdir(parents=True, exist_ok=True)
    try:
        dev.clean_up(folder, show.line)
        with show.waiting("starting the stack"):
            dev.start_detached(stack.Options(folder=folder.root, deployers=options.deployers, queue=options.queue), show.line)
        result = _run_demo(folder, show, count)
        if result == 0 and sys.stdin.isatty() and sys.stdout.isatty():
            _stay(show)
    except (stack.StackFailed, LocalClusterError) as exc:
        return _failed(str(exc), folder, show)
    except KeyboardInterrupt:
        show.line("interrupted")
        result = 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if dev.is_running(folder):
            with show.waiting("stopping the stack"):
                dev.stop(folder, show.line)
    return result


if __name__ == "__main__":
    sys.exit(main())
