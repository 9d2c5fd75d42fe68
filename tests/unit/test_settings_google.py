"""The settings of Google's queues: what is refused, and what only warns."""

from __future__ import annotations

import msgspec
import pytest

from prevue.config import CloudTasksSettings, DeployerSettings, PubSubSettings, QueueSettings, Settings
from prevue.errors import ConfigError
from prevue.queue.addresses import CloudTasksAddress, PubSubAddress
from prevue.settings_check_google import deployment_seconds_max, google_problems

TASKS = CloudTasksSettings(target_url="https://tasks.example.com/tasks", service_account="tasks@project.iam.gserviceaccount.com")
TASKS_URL = "cloudtasks://project/europe-west1/deploys"
PUBSUB_URL = "pubsub://project/topic?subscription=name"


def settings(url: str, tasks: CloudTasksSettings = TASKS, **pubsub: float) -> Settings:
    return Settings(queue=QueueSettings(url=url, cloud_tasks=tasks, pubsub=PubSubSettings(**pubsub)))  # type: ignore[arg-type]


def named(problems: list[tuple[str, str]]) -> list[str]:
    return [path for path, _ in problems]


@pytest.mark.parametrize("url", [TASKS_URL, PUBSUB_URL, "postgresql://host/database"])
def test_good_settings_are_neither_refused_nor_doubted(url: str) -> None:
    assert google_problems(settings(url), enqueues=True, is_deployer=True) == ([], [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_url", ""),
        ("target_url", "tasks.example.com"),
        ("service_account", ""),
        ("service_account", "tasks"),
        ("dispatch_deadline_seconds", 14.0),
        ("dispatch_deadline_seconds", 1801.0),
        ("listen_port", 0),
    ],
)
def test_a_broken_rule_of_cloud_tasks_names_its_setting(name: str, value: object) -> None:
    tasks = msgspec.structs.replace(TASKS, **{name: value})
    errors, _ = google_problems(settings(TASKS_URL, tasks), enqueues=True, is_deployer=True)
    assert named(errors) == [f"queue.cloud_tasks.{name}"]


def test_the_door_is_not_the_health_port() -> None:
    both = msgspec.structs.replace(settings(TASKS_URL), deployer=DeployerSettings(health_port=TASKS.listen_port))
    assert named(google_problems(both, enqueues=True, is_deployer=True)[0]) == ["queue.cloud_tasks.listen_port"]


def test_who_only_asks_the_queue_needs_no_target() -> None:
    bare = settings(TASKS_URL, CloudTasksSettings())
    assert google_problems(bare, enqueues=False, is_deployer=False) == ([], [])


def test_limits_below_a_deployment_are_a_warning() -> None:
    longest = deployment_seconds_max(settings(TASKS_URL))
    assert longest == 45 + 5 + 600 + 300 + 60
    tasks = msgspec.structs.replace(TASKS, dispatch_deadline_seconds=longest - 1, load_balancer_timeout_seconds=30)
    errors, warnings = google_problems(settings(TASKS_URL, tasks), enqueues=True, is_deployer=True)
    assert errors == []
    assert named(warnings) == ["queue.cloud_tasks.dispatch_deadline_seconds", "queue.cloud_tasks.load_balancer_timeout_seconds"]
    _, warnings = google_problems(settings(PUBSUB_URL, hold_seconds_max=longest - 1), enqueues=True, is_deployer=True)
    assert named(warnings) == ["queue.pubsub.hold_seconds_max"]


def test_a_plain_target_that_is_not_here_is_a_warning() -> None:
    tasks = msgspec.structs.replace(TASKS, target_url="http://tasks.example.com/tasks")
    assert named(google_problems(settings(TASKS_URL, tasks), enqueues=True, is_deployer=False)[1]) == ["queue.cloud_tasks.target_url"]


def test_a_deployer_needs_a_subscription_and_the_app_does_not() -> None:
    bare = settings("pubsub://project/topic")
    assert named(google_problems(bare, enqueues=True, is_deployer=True)[0]) == ["queue.url"]
    assert google_problems(bare, enqueues=True, is_deployer=False) == ([], [])


@pytest.mark.parametrize(
    "url",
    ["cloudtasks://project", "cloudtasks://project/location", "cloudtasks://p/l/q/more", "cloudtasks://p/l/q?x=1", "cloudtasks:///l/q"],
)
def test_another_form_of_a_cloud_tasks_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="cloudtasks://project/location/queue"):
        CloudTasksAddress.parse(url)


@pytest.mark.parametrize("url", ["pubsub://project", "pubsub://project/a/b", "pubsub:///topic", "pubsub://project/topic?subscripton=typo"])
def test_another_form_of_a_pubsub_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"pubsub://project/topic\?subscription=name"):
        PubSubAddress.parse(url)


def test_the_names_at_google() -> None:
    tasks = CloudTasksAddress.parse(TASKS_URL)
    assert (tasks.parent, tasks.name) == (
        "projects/project/locations/europe-west1",
        "projects/project/locations/europe-west1/queues/deploys",
    )
    pubsub = PubSubAddress.parse(f"{PUBSUB_URL}&dead_letter=dead")
    names = (pubsub.topic, pubsub.subscription, pubsub.dead_letter)
    assert names == ("projects/project/topics/topic", "projects/project/subscriptions/name", "projects/project/topics/dead")
