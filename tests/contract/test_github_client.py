"""Prevue's GitHub client against GitHub's published description: every request that it makes, and what the fake answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prevue.config import GitHubSettings
from prevue.github.client import GitHubClient
from prevue.github.port import GitHub, GitHubApp, Permission, Repositories
from prevue.testing.contracts.github_description import ContractMismatch, GitHubDescription, ValidatingTransport
from prevue.testing.github import FakeGitHub
from prevue.testing.github.app_key import AppKey
from prevue.testing.github.transport import FakeGitHubTransport

FOLDER = Path(__file__).parent / "github_description"
REPO = "acme/hello"


@pytest.fixture(scope="module")
def description() -> GitHubDescription:
    return GitHubDescription(FOLDER)


@pytest.fixture(scope="module")
def key() -> AppKey:
    return AppKey.generate()


class Bench:
    """A GitHub with one pull request, and the client under test with a check in its line."""

    def __init__(self, description: GitHubDescription, key: AppKey, key_file: Path) -> None:
        key_file.write_bytes(key.private_pem)
        self.settings = GitHubSettings(app_id=1, private_key_file=str(key_file))
        self.github = FakeGitHub(now=lambda: datetime.now(UTC), public_key=key.public_pem)
        self.github.add_repository(REPO)
        self.github.set_permission(REPO, "writer", "maintain")
        self.number = self.github.open_pull_request(REPO, "writer").number
        (self.installation,) = self.github.installations
        self.transport = ValidatingTransport(description, FakeGitHubTransport(self.github))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[GitHubClient]:
        async with GitHubClient.open(self.settings, transport=self.transport) as client:
            yield client


@pytest.fixture
def bench(description: GitHubDescription, key: AppKey, tmp_path: Path) -> Bench:
    return Bench(description, key, tmp_path / "key.pem")


async def test_every_request_of_the_client_is_as_github_describes_it(bench: Bench) -> None:
    """Goal: no request of ours is one that GitHub would not know. Method: call every method of the port, then count them."""
    where, number = bench.installation, bench.number
    command = bench.github.comment(REPO, number, "writer", "/preview")
    for at in range(101):  # a second page, so that the client follows a Link header
        bench.github.comment(REPO, number, "writer", f"comment {at}")
    async with bench.client() as client:
        assert await client.app_slug() == "prevue-local"
        assert (await client.pull_request(where, REPO, number)).is_open
        assert await client.permission(where, REPO, "writer") is Permission.MAINTAIN
        ours = await client.create_comment(where, REPO, number, "<!-- marker-7 -->\nDeployment requested!")
        assert ours.is_ours
        assert [found.id for found in await client.find_comments(where, REPO, number, marker="<!-- marker-7 -->")] == [ours.id]
        await client.update_comment(where, REPO, ours.id, "<!-- marker-7 -->\nReady")
        assert (await client.comment(where, REPO, ours.id)).body.endswith("Ready")
        await client.react(where, REPO, command.id, "eyes")
        await client.react(where, REPO, command.id, "eyes")
        await client.delete_comment(where, REPO, ours.id)
        installed = await client.repositories()
        assert installed.silent_installations == frozenset()
        (repository,) = installed.repositories
        assert (repository.full_name, repository.installation_id) == (REPO, where)
        page = await client.deliveries()
        assert (len(page.deliveries), page.deliveries[0].is_pending, page.deliveries[0].is_delivered) == (100, True, False)
        last = await client.deliveries(older=page.older)
        assert (last.older, last.deliveries[-1].event, last.deliveries[-1].action) == ("", "pull_request", "opened")
        assert b'"opened"' in await client.delivery_payload(last.deliveries[-1].id)
        await client.redeliver(last.deliveries[-1].id)
        assert (await client.deliveries()).deliveries[0].guid == last.deliveries[-1].guid
        assert await client.open_pull_requests(where, REPO) == {number}
        scanned = await client.comments_since(where, REPO, command.created_at)
        assert (scanned[0].id, scanned[0].author, scanned[0].pr_number, scanned[0].body) == (command.id, "writer", number, "/preview")
        assert (len(scanned), scanned[0].is_bot, scanned[0].is_edited) == (102, False, False)
    assert bench.transport.mismatches == []
    methods = {name for port in (GitHub, GitHubApp, Repositories) for name in vars(port) if not name.startswith("_")}
    assert methods == {
        "repositories",
        "deliveries",
        "delivery_payload",
        "redeliver",
        "open_pull_requests",
        "comments_since",
        "pull_request",
        "permission",
        "comment",
        "find_comments",
        "create_comment",
        "update_comment",
        "delete_comment",
        "react",
    }, "a new method of the port belongs into this test"
    assert bench.transport.checked.count("GET /repos/{owner}/{repo}/issues/{issue_number}/comments") == 2


async def test_planted_mistake_in_a_request_of_the_client_is_found(bench: Bench) -> None:
    async with bench.client() as client:
        with pytest.raises(ContractMismatch, match="content"):
            await client.react(bench.installation, REPO, bench.github.comment(REPO, bench.number, "writer", "x").id, "tada")
    assert len(bench.transport.mismatches) == 1
