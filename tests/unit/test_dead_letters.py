"""Dead letters: grouped by cause, replayed as new requests, dropped; on the fakes, and through the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from prevue import cli
from prevue.config import Settings
from prevue.errors import ConfigError, PrevueError
from prevue.model import Message, RequestState, Source
from prevue.statestore.port import ClaimLimits, Dead, Granted
from prevue.testing.contracts.statestore_harness import command
from prevue.testing.queue import FakeQueue
from prevue.testing.statestore import FakeStateStore
from prevue.testing.world import World
from prevue.wiring import dead_letters, operator


async def die(store: FakeStateStore, message: Message, error: str) -> int:
    verdict = await store.register_and_claim(message, holder="w")
    assert isinstance(verdict, Granted)
    await store.give_back(verdict.claim, delay=0, counted=True, error=error)
    assert isinstance(await store.register_and_claim(message, holder="w"), Dead)
    return verdict.claim.request_id


async def filled() -> FakeStateStore:
    store = FakeStateStore(limits=ClaimLimits(attempts_max=1))
    for number in (1, 2, 3):
        error = f"the namespace pv-acme-hello-16-{number} is still being deleted after {number * 10} s\nmore"
        await die(store, command(number, pr_number=number), error)
    await die(store, command(4, pr_number=4), f"Helm ended with code 1 at {'ab' * 20}")
    return store


@pytest.fixture
def store() -> FakeStateStore:
    return asyncio.run(filled())


async def test_letters_are_grouped_by_what_they_have_in_common(store: FakeStateStore) -> None:
    first, second = dead_letters.grouped(await store.dead_letters())
    assert (first.count, first.ids, first.cause) == (3, [1, 2, 3], "the namespace pv-… is still being deleted after N s")
    assert (second.count, second.ids, second.cause) == (1, [4], "Helm ended with code N at …")
    assert [one.id for one in await dead_letters.choose(store, [], first.group)] == [1, 2, 3]


async def test_what_is_meant_must_be_said_and_be_there(store: FakeStateStore) -> None:
    for ids, group in (([], None), ([1], "abc")):
        with pytest.raises(ConfigError, match="which ones"):
            await dead_letters.choose(store, ids, group)
    with pytest.raises(PrevueError, match="no dead letter 99"):
        await dead_letters.choose(store, [1, 99], None)
    with pytest.raises(PrevueError, match="no group zzz"):
        await dead_letters.choose(store, [], "zzz")
    assert [one.id for one in await dead_letters.choose(store, [2, 1, 2], None)] == [2, 1]


async def test_replays_are_new_requests_of_the_same_order(store: FakeStateStore) -> None:
    queue = FakeQueue()
    letters = await dead_letters.choose(store, [1, 4], None)
    done = [one async for one in dead_letters.replay(store, queue, letters, rate="100/second")]
    assert [(one.id, one.result) for one in done] == [(1, "replayed"), (4, "replayed")]
    messages = queue.disk.messages()
    assert [(one.source, one.source_id, one.order) for one in messages] == [
        (Source.REPLAY, "1", command(1).order),
        (Source.REPLAY, "4", command(4).order),
    ]
    assert [one.id for one in await store.dead_letters()] == [3, 2]
    done = [one async for one in dead_letters.replay(store, queue, letters[:1], rate="100/second")]
    assert [one.result for one in done] == ["already_in_queue"]


async def test_replays_keep_to_their_rate(store: FakeStateStore) -> None:
    letters = await dead_letters.choose(store, [1, 2, 3], None)
    begin = asyncio.get_running_loop().time()
    async for _ in dead_letters.replay(store, FakeQueue(), letters, rate="10/second"):
        pass
    assert 0.2 <= asyncio.get_running_loop().time() - begin < 2


@pytest.mark.parametrize(("rate", "seconds"), [("30/minute", 2), ("30", 2), ("2/second", 0.5), (" 100/hour ", 36)])
def test_rates(rate: str, seconds: float) -> None:
    assert dead_letters.seconds_between(rate) == pytest.approx(seconds)


@pytest.mark.parametrize("rate", ["0", "fast", "-1/minute", "1/day", ""])
def test_wrong_rates(rate: str) -> None:
    with pytest.raises(ConfigError, match="--rate"):
        dead_letters.seconds_between(rate)


async def test_replayed_and_repeated_command_both_work(tmp_path: Path) -> None:
    """The user's own way is `/preview` again; the operator's is a replay. After either the preview is there."""
    world = World(key_file=tmp_path / "key.pem", limits=ClaimLimits(lease_seconds=2, attempts_max=1))
    async with world.deployer() as deployer:
        first = world.command(world.open_pull_request())
        number = await die(deployer.store, first, "the disk was full")
        letters = await dead_letters.choose(deployer.store, [number], None)
        async for _ in dead_letters.replay(deployer.store, deployer.queue, letters, rate="1/second"):
            pass
        (replay,) = world.queue.messages()
        await deployer.worker.handle(replay)
        assert (world.state(first), world.state(replay)) == (RequestState.DEAD, RequestState.DEPLOYED)
        again = world.command(first.pr_number)
        await deployer.worker.handle(again)
        assert world.state(again) is RequestState.DEPLOYED
        await deployer.drainer.drain()
        assert "Preview ready" in world.our_comments(first.pr_number)[1].body


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def fakes(self, store: FakeStateStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue = FakeQueue()

        @asynccontextmanager
        async def open_store(_settings: Settings) -> AsyncIterator[FakeStateStore]:
            yield store

        @asynccontextmanager
        async def open_queue(_settings: Settings) -> AsyncIterator[FakeQueue]:
            yield self.queue

        monkeypatch.setattr(dead_letters, "open_store", open_store)
        monkeypatch.setattr(dead_letters, "open_queue", open_queue)
        monkeypatch.setattr(operator, "open_reader", open_store)
        monkeypatch.setenv("PREVUE_STATESTORE__URL", "postgresql://u@h/d")

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
        code = cli.main(["dead-letters", *arguments])
        captured = capsys.readouterr()
        assert code == 0 or captured.err
        return code, captured.out

    def test_list_by_group_then_replay_the_group_and_drop_the_rest(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, out = self.run(capsys, "list", "--group")
        assert out.splitlines()[1].split()[1] == "3"
        _, out = self.run(capsys, "list", "--group", "--json")
        first, second = json.loads(out)
        assert (first["count"], second["ids"]) == (3, [4])
        code, out = self.run(capsys, "replay", "--group", first["group"], "--rate", "100/second")
        assert (code, len(out.splitlines()), len(self.queue.disk.entries)) == (0, 3, 3)
        assert out.splitlines()[0] == "1  acme/hello#1  replayed"
        code, out = self.run(capsys, "drop", "4", "--json")
        assert (code, json.loads(out)[0]["result"]) == (0, "dropped")
        _, out = self.run(capsys, "list")
        assert out == "no dead letters\n"

    def test_mistakes_are_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(capsys, "replay", "1", "--rate", "often") == (2, "")
        assert self.run(capsys, "replay") == (2, "")
        assert self.run(capsys, "drop", "77") == (1, "")
        assert self.queue.disk.entries == []
