"""`prevue verify`: a healthy system passes, and each planted mistake is found, under its own name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from prevue.console import print_report
from prevue.model import GITHUB_COM, Live, Message, PreviewState, RequestState
from prevue.testing.clock import FakeClock
from prevue.testing.cluster import FakeCluster, FakeProbe
from prevue.testing.statestore_disk import LedgerRow, RequestRow
from prevue.testing.world import REPO, FakeDeployer, World
from prevue.verify.invariants import Invariant, Patience
from prevue.verify.run import Report, Verifier


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock) -> World:
    return World(key_file=tmp_path / "key.pem", clock=clock)


@pytest.fixture
async def deployer(world: World) -> AsyncIterator[FakeDeployer]:
    async with world.deployer() as made:
        yield made


async def verify(world: World, deployer: FakeDeployer, *, quiet: bool = False, conversations: bool = True) -> Report:
    verifier = Verifier(
        store=deployer.store,
        cluster=FakeCluster(world.cluster),
        github=deployer.github,
        probe=FakeProbe(world.cluster),
        github_host=GITHUB_COM,
        patience=Patience(is_quiet=quiet),
        statuses=lambda _repo: frozenset({200}),
        look_again_seconds=0,
        conversations=conversations,
    )
    return await verifier.run()


async def history(world: World, deployer: FakeDeployer, clock: FakeClock) -> Message:
    """Pull request 1 ready after two commits and a superseded command; 2 closed; 3 never had a preview. All told, and a while ago."""
    number = world.open_pull_request()
    first = world.command(number)
    await deployer.worker.handle(first)
    clock.advance(1)
    world.github.push(REPO, number)
    older, newer = world.command(number), world.command(number)
    await deployer.worker.handle(newer)
    await deployer.worker.handle(older)
    clock.advance(1)
    await deployer.worker.handle(world.command(number))  # already live
    other = world.open_pull_request()
    await deployer.worker.handle(world.command(other))
    clock.advance(1)
    await deployer.worker.handle(world.close(other))
    await deployer.worker.handle(world.close(world.open_pull_request()))
    await settle(deployer, clock)
    return newer


async def settle(deployer: FakeDeployer, clock: FakeClock) -> None:
    for _ in range(2):
        await deployer.drainer.drain()
        clock.advance(700)
    await asyncio.sleep(0)


def broken(report: Report) -> dict[Invariant, int]:
    return {one.invariant: len(one.violations) for one in report.invariants if not one.ok}


async def test_healthy_system_passes(world: World, deployer: FakeDeployer, clock: FakeClock, capsys: pytest.CaptureFixture[str]) -> None:
    await history(world, deployer, clock)
    report = await verify(world, deployer, quiet=True)
    assert (broken(report), report.unreadable) == ({}, [])
    assert (report.ok, report.previews, report.requests, report.namespaces) == (True, 3, 7, 1)
    capsys.readouterr()
    print_report(report)
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()[:-1]] == [["ok", name.value] for name in Invariant]
    assert out.endswith("3 previews, 7 requests, 1 namespace: all hold\n")


async def test_running_system_passes(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    await history(world, deployer, clock)
    await deployer.store.register_and_claim(world.command(world.open_pull_request()), holder="somebody")
    assert broken(await verify(world, deployer)) == {}
    assert broken(await verify(world, deployer, quiet=True)) == {Invariant.QUIET_AFTER_FAULTS_STOP: 2}


Plant = Callable[[World, Message], None]


def row_of(world: World, message: Message) -> RequestRow:
    return world.request(message)


def open_for_ever(world: World, message: Message) -> None:
    row = row_of(world, message)
    row.state, row.finished_at, row.registered_at = RequestState.WAITING, None, row.registered_at - timedelta(hours=2)


def ended_twice(world: World, message: Message) -> None:
    row = row_of(world, message)
    world.store.ledger.append(LedgerRow(row.id, None, "finished", world.clock.now(), {}))


def untold(world: World, message: Message) -> None:
    del world.store.outbox[row_of(world, message).id, "status"]


def unsent(world: World, message: Message) -> None:
    world.store.outbox[row_of(world, message).id, "status"].version += 1


def dead_in_silence(world: World, message: Message) -> None:
    row_of(world, message).state = RequestState.DEAD
    untold(world, message)
    world.store.previews[message.key].live, world.store.previews[message.key].state = None, PreviewState.FAILED


def comment_is_gone(world: World, message: Message) -> None:
    comment = world.our_comments(message.pr_number)[-1]
    world.github.delete_comment(REPO, comment.id)


def comment_stands_twice(world: World, message: Message) -> None:
    comment = world.our_comments(message.pr_number)[-1]
    world.github.write_comment(world.repository, world.github.issue(REPO, message.pr_number), comment.author, comment.body)


def token_given_twice(world: World, message: Message) -> None:
    row = row_of(world, message)
    world.store.ledger.append(LedgerRow(row.id, row.token, "granted", world.clock.now(), {}))


def fence_above_the_sequence(world: World, message: Message) -> None:
    world.cluster.namespaces[world.store.previews[message.key].namespace].fence = 1_000


def written_after_the_claim_was_lost(world: World, message: Message) -> None:
    world.store.ledger.append(LedgerRow(1, 1, "given_back", world.clock.now(), {}))


def older_began_later(world: World, message: Message) -> None:
    world.store.ledger.append(LedgerRow(1, 9, "granted", world.clock.now(), {}))
    world.store.ledger.append(LedgerRow(1, 9, "began", world.clock.now(), {"state": "deploying"}))
    world.store.previews[message.key].token = 9


def older_is_live(world: World, message: Message) -> None:
    first = world.store.requests[1]
    row = world.store.previews[message.key]
    assert row.live is not None
    row.live = Live(sha=first.message.commit_sha, digest=row.live.digest, request_id=1, token=row.live.token)


def nothing_is_desired_of_it(world: World, message: Message) -> None:
    row = world.store.previews[message.key]
    row.desired = row.desired._replace(tie=row.desired.tie - 1)


def release_is_another_commits(world: World, message: Message) -> None:
    namespace = world.cluster.namespaces[world.store.previews[message.key].namespace]
    namespace.releases["preview-pr-1"][-1].labels["prevue.dev/commit"] = "f" * 40


def release_is_pending(world: World, message: Message) -> None:
    world.cluster.namespaces[world.store.previews[message.key].namespace].releases["preview-pr-1"][-1].status = "pending-upgrade"


def url_is_silent(world: World, message: Message) -> None:
    world.cluster.namespaces[world.store.previews[message.key].namespace].objects.clear()


def nobody_asked(world: World, message: Message) -> None:
    row = row_of(world, message)
    row.message = msgspec.structs.replace(message, requested_by="")


def namespace_of_nobody(world: World, message: Message) -> None:
    world.cluster.add_namespace("pv-x-77", key=message.key._replace(pr_number=77), fence=1)


def second_namespace(world: World, message: Message) -> None:
    world.cluster.add_namespace("pv-other-name", key=message.key, fence=1)


def closed_and_standing(world: World, message: Message) -> None:
    world.github.close_pull_request(REPO, message.pr_number)


def tombstone_with_a_namespace(world: World, message: Message) -> None:
    row = world.store.previews[message.key._replace(pr_number=2)]
    world.cluster.add_namespace(row.namespace, key=row.key, fence=1)


def registered_twice(world: World, message: Message) -> None:
    row = row_of(world, message)
    world.store.requests[50] = msgspec_copy(row, 50)
    for event in ("registered", "granted", "finished"):
        world.store.ledger.append(LedgerRow(50, None, event, world.clock.now(), {"outcome": row.state.value}))
    world.store.outbox[50, "status"] = world.store.outbox[row.id, "status"]


def ended_as_another_state(world: World, message: Message) -> None:
    """Its ledger says that it was rejected, its row that it was deployed."""
    row = row_of(world, message)
    (ended,) = [one for one in world.store.ledger if one.request_id == row.id and one.event == "finished"]
    ended.details["outcome"] = RequestState.REJECTED.value


def msgspec_copy(row: RequestRow, number: int) -> RequestRow:
    return RequestRow(**{**vars(row), "id": number})


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (
            open_for_ever,
            {
                Invariant.ACCEPTED_REACHES_TERMINAL_STATE,
                Invariant.ONE_OUTCOME_PER_REQUEST,
                Invariant.READY_MEANS_READY_AT_THAT_COMMIT,
            },
        ),
        (ended_twice, {Invariant.ONE_OUTCOME_PER_REQUEST}),
        (untold, {Invariant.NOTHING_ENDS_WITHOUT_A_WORD}),
        (unsent, {Invariant.NOTHING_ENDS_WITHOUT_A_WORD}),
        (
            dead_in_silence,
            {Invariant.DEAD_LETTER_IS_ANNOUNCED, Invariant.NOTHING_ENDS_WITHOUT_A_WORD, Invariant.ONE_OUTCOME_PER_REQUEST},
        ),
        (comment_is_gone, {Invariant.ONE_STATUS_COMMENT_PER_COMMAND}),
        (comment_stands_twice, {Invariant.ONE_STATUS_COMMENT_PER_COMMAND}),
        (token_given_twice, {Invariant.ONE_MUTATING_WORKER_PER_RELEASE, Invariant.ONE_OUTCOME_PER_REQUEST}),
        (fence_above_the_sequence, {Invariant.ONE_MUTATING_WORKER_PER_RELEASE}),
        (written_after_the_claim_was_lost, {Invariant.NO_WRITE_AFTER_LOST_CLAIM, Invariant.ONE_OUTCOME_PER_REQUEST}),
        (older_began_later, {Invariant.GENERATION_NEVER_DECREASES, Invariant.ONE_OUTCOME_PER_REQUEST}),
        (ended_as_another_state, {Invariant.ONE_OUTCOME_PER_REQUEST}),
        (older_is_live, {Invariant.NEWEST_WINS, Invariant.READY_MEANS_READY_AT_THAT_COMMIT}),
        (nothing_is_desired_of_it, {Invariant.NEWEST_WINS}),
        (release_is_another_commits, {Invariant.READY_MEANS_READY_AT_THAT_COMMIT}),
        (release_is_pending, {Invariant.READY_MEANS_READY_AT_THAT_COMMIT}),
        (url_is_silent, {Invariant.READY_MEANS_READY_AT_THAT_COMMIT}),
        (nobody_asked, {Invariant.EVERY_APPLY_WAS_AUTHORISED_FOR_THAT_COMMIT}),
        (namespace_of_nobody, {Invariant.CLOSED_PULL_REQUEST_LEAVES_NOTHING}),
        (second_namespace, {Invariant.NAMES_ARE_INJECTIVE}),
        (closed_and_standing, {Invariant.CLOSED_PULL_REQUEST_LEAVES_NOTHING}),
        (tombstone_with_a_namespace, {Invariant.CLOSED_PULL_REQUEST_LEAVES_NOTHING}),
        (registered_twice, {Invariant.REDELIVERY_CHANGES_NOTHING}),
    ],
)
async def test_planted_mistake_is_found(
    world: World, deployer: FakeDeployer, clock: FakeClock, plant: Plant, expected: set[Invariant]
) -> None:
    plant(world, await history(world, deployer, clock))
    report = await verify(world, deployer)
    assert set(broken(report)) == expected
    assert not report.ok


async def test_namespace_of_another_prevue_is_no_violation(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    message = await history(world, deployer, clock)
    world.cluster.add_namespace("pv-theirs-1", key=message.key._replace(repository_id=999_999), fence=5_000)
    report = await verify(world, deployer)
    assert broken(report) == {}
    assert report.unreadable == ["pv-theirs-1: it bears our label, and neither a preview nor a repository of the App is known for it"]


async def test_command_that_died_before_it_began_leaves_what_is_live(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    message = await history(world, deployer, clock)
    world.store.previews[message.key].state = PreviewState.FAILED
    assert broken(await verify(world, deployer)) == {}


async def test_old_conversations_are_not_read(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    comment_is_gone(world, await history(world, deployer, clock))
    clock.advance(8 * 86_400)
    assert (await verify(world, deployer)).ok


async def test_conversations_may_be_left_out(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    comment_is_gone(world, await history(world, deployer, clock))
    report = await verify(world, deployer, conversations=False)
    assert report.ok
    assert [one.scope for one in report.invariants if one.scope.startswith("not checked (")] == ["not checked (--no-conversations)"]
