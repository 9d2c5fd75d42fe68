"""The local stack's "CI": what makes a commit's image, so that a preview has something to run.

The local GitHub only knows that something is to be called with a repository and a commit; how an image comes about is
the local cluster's affair. Invariant: the call returns when the image is there, and raises when it is not.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import shlex
from collections.abc import Awaitable, Callable
from typing import cast

OnPush = Callable[[str, str], Awaitable[None]]
"""`await on_push("owner/name", sha)`: make that commit's image."""

CONCURRENT_COMMANDS_MAX = 4
"""How many commands run at once; making an image is disk work, and a burst of fifty pushes is one machine's."""

_STDERR_CHARACTERS_MAX = 500


class CiError(RuntimeError):
    """The image of a commit was not made; the message carries the end of the command's output."""


def command_hook(template: str) -> OnPush:
    """Return a hook that runs a command line at each push, with `{owner}`, `{repo}` and `{sha}` filled in.

    The template is split into words as a shell would; no shell runs.

    Raises:
        ValueError: the template names something else in braces, or its quotes do not match.
    """
    words = shlex.split(template)
    slots = asyncio.Semaphore(CONCURRENT_COMMANDS_MAX)

    def fill(owner: str, repo: str, sha: str) -> list[str]:
        return [word.format(owner=owner, repo=repo, sha=sha) for word in words]

    try:
        fill("owner", "repo", "0" * 40)
    except (KeyError, IndexError) as exc:
        raise ValueError(f"--ci-command {template!r}: only {{owner}}, {{repo}} and {{sha}} can be filled in") from exc

    async def on_push(full_name: str, sha: str) -> None:
        owner, _, repo = full_name.partition("/")
        async with slots:
            process = await asyncio.create_subprocess_exec(
                *fill(owner, repo, sha),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            _, stderr = await process.communicate()
        if process.returncode != 0:
            said = stderr.decode(errors="replace").strip()[-_STDERR_CHARACTERS_MAX:]
            raise CiError(f"the CI command ended with {process.returncode} for {full_name} at {sha}: {said}")

    return on_push


def imported_hook(name: str) -> OnPush:
    """Return the coroutine function that `module:attribute` names.

    Raises:
        ValueError: there is no such attribute, or it is not a coroutine function.
    """
    module_name, _, attribute = name.partition(":")
    try:
        hook = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ValueError(f"--ci-hook {name!r} cannot be imported: {exc}") from exc
    if not inspect.iscoroutinefunction(hook):
        raise ValueError(f"--ci-hook {name!r} is not a coroutine function (repository, sha) -> None")
    return cast("OnPush", hook)
