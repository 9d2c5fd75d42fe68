"""The operator's commands over the statestore: migrate, previews, dead-letters.

Reading goes through the read-only port alone. `--json` is an interface: `FIELDS`, in this order, for every row.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prevue.config import Settings
from prevue.console import JsonValue
from prevue.errors import ConfigError, PrevueError
from prevue.statestore.port import PreviewReader, PreviewView, RequestView

FIELDS = ("repo", "pr_number", "state", "commit_sha", "url", "namespace", "release", "token", "attempts", "error")


@asynccontextmanager
async def open_reader(settings: Settings) -> AsyncIterator[PreviewReader]:
    """The statestore, to read.

    Raises:
        ConfigError: the database has another version's schema.
        OutageError: it cannot be reached.
    """
    from prevue.postgres import check_schema
    from prevue.statestore.port import ClaimLimits
    from prevue.statestore.postgres import PostgresStateStore

    await check_schema(settings.statestore.url)
    async with PostgresStateStore.open(settings.statestore.url, ClaimLimits(), cluster_name=settings.cluster.name) as store:
        yield store


async def migrate(settings: Settings, *, app_role: str | None, app_password_file: Path | None) -> str:
    """Bring the database to this version's schema; returns its revision.

    Raises:
        ConfigError: a URL or the role is wrong.
        OutageError: the database cannot be reached.
    """
    from prevue.migrations import HEAD
    from prevue.migrations import migrate as run

    if app_password_file is not None and app_role is None:
        raise ConfigError("--app-password-file: the password of which role? Give --app-role too")
    await run(settings.statestore.url, app_role=app_role, app_password=_password(app_password_file))
    return str(HEAD)


def _password(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        password = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"--app-password-file: {file} cannot be read") from exc
    if not password:
        raise ConfigError(f"--app-password-file: {file} is empty")
    return password


async def previews(settings: Settings, *, repo: str | None, limit: int) -> list[PreviewView]:
    """Previews, the one that changed last first."""
    async with open_reader(settings) as reader:
        return await reader.previews(repo=repo, limit=limit)


async def preview(settings: Settings, repo: str, pr_number: int) -> tuple[PreviewView, list[dict[str, JsonValue]]]:
    """One preview with its requests, and its ledger.

    Raises:
        PrevueError: there is none.
    """
    async with open_reader(settings) as reader:
        found = await reader.preview(repo, pr_number)
        if found is None:
            raise PrevueError(f"there is no preview of {repo}#{pr_number}; `prevue previews list` shows those that there are")
        return found, list(await reader.ledger(repo, pr_number))


async def dead_letters(settings: Settings, *, limit: int) -> list[tuple[RequestView, PreviewView | None]]:
    """Dead letters, newest first, each with its preview."""
    async with open_reader(settings) as reader:
        seen: dict[tuple[str, int], PreviewView | None] = {}
        found = await reader.dead_letters(limit=limit)
        for one in found:
            key = (one.repo, one.pr_number)
            if key not in seen:
                seen[key] = await reader.preview(*key)
        return [(one, seen[one.repo, one.pr_number]) for one in found]


async def dead_letter(settings: Settings, request_id: int) -> tuple[RequestView, PreviewView | None]:
    """One dead letter with its preview.

    Raises:
        PrevueError: there is none.
    """
    async with open_reader(settings) as reader:
        found = await reader.dead_letter(request_id)
        if found is None:
            raise PrevueError(f"there is no dead letter {request_id}; `prevue dead-letters list` shows those that there are")
        return found, await reader.preview(found.repo, found.pr_number)


def preview_row(view: PreviewView) -> dict[str, JsonValue]:
    """The preview as `--json` promises it."""
    return {name: getattr(view, name) for name in FIELDS}


def dead_letter_row(request: RequestView, view: PreviewView | None) -> dict[str, JsonValue]:
    """The dead letter as `--json` promises it, after the `id` by which it is shown."""
    place = {"namespace": view.namespace if view else "", "release": view.release if view else ""}
    return {"id": request.id} | {name: place[name] if name in place else getattr(request, name) for name in FIELDS}
