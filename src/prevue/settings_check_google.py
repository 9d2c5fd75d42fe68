"""Do the settings of Google's queues fit together, and with a deployment? Part of `settings_check`, without Google's libraries."""

from __future__ import annotations

from urllib.parse import urlsplit

from prevue.config import PreviewSettings, Settings
from prevue.errors import ConfigError
from prevue.queue.addresses import CloudTasksAddress, PubSubAddress
from prevue.settings import laid_over

DISPATCH_SECONDS = (15.0, 1800.0)
"""https://docs.cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#task (dispatch_deadline)"""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Problems = list[tuple[str, str]]
"""Setting and what is wrong with it."""


def google_problems(settings: Settings, *, enqueues: bool, is_deployer: bool) -> tuple[Problems, Problems]:
    """Errors and warnings of the queue that `queue.url` names, where it is Google's."""
    scheme = urlsplit(settings.queue.url).scheme
    if scheme == "cloudtasks":
        return _cloud_tasks(settings, enqueues=enqueues, is_deployer=is_deployer)
    if scheme == "pubsub":
        return _pubsub(settings, is_deployer=is_deployer)
    return [], []


def deployment_seconds_max(settings: Settings) -> float:
    """The longest that one attempt may take by the settings: image, Helm, readiness and URL of the slowest repository."""
    deployer = settings.deployer
    rules: list[PreviewSettings] = [settings.defaults]
    for entry in settings.repositories:
        try:
            rules.append(laid_over(settings.defaults, entry))
        except ConfigError:
            continue  # told by settings_check
    waits = max(rule.image_wait_seconds + rule.readiness_timeout_seconds + rule.url.timeout_seconds for rule in rules)
    return deployer.helm_deadline_seconds + deployer.helm_deadline_grace_seconds + waits


def _cloud_tasks(settings: Settings, *, enqueues: bool, is_deployer: bool) -> tuple[Problems, Problems]:
    tasks = settings.queue.cloud_tasks
    at = "queue.cloud_tasks"
    errors: Problems = []
    warnings: Problems = []
    try:
        CloudTasksAddress.parse(settings.queue.url)
    except ConfigError as exc:
        errors.append(("queue.url", str(exc).removeprefix("queue.url: ")))
    if not enqueues:
        return errors, warnings
    target = urlsplit(tasks.target_url)
    if target.scheme not in ("https", "http") or not target.hostname:
        errors.append((f"{at}.target_url", f"expected the door's URL such as https://tasks.example.com/tasks, got {tasks.target_url!r}"))
    elif target.scheme == "http" and target.hostname not in _LOOPBACK:
        warnings.append((f"{at}.target_url", "is http: tokens and messages can be read on their way"))
    if "@" not in tasks.service_account:
        errors.append((f"{at}.service_account", f"expected a service account's e-mail, got {tasks.service_account!r}"))
    least, most = DISPATCH_SECONDS
    if not least <= tasks.dispatch_deadline_seconds <= most:
        errors.append((f"{at}.dispatch_deadline_seconds", f"expected {least:g} to {most:g} s, got {tasks.dispatch_deadline_seconds:g}"))
    if not is_deployer:
        return errors, warnings
    if not 1 <= tasks.listen_port <= 65535:
        errors.append((f"{at}.listen_port", f"expected 1 to 65535, got {tasks.listen_port}"))
    elif tasks.listen_port == settings.deployer.health_port:
        errors.append((f"{at}.listen_port", "is deployer.health_port: the door is exposed, the health page is not"))
    longest = deployment_seconds_max(settings)
    for name in ("dispatch_deadline_seconds", "load_balancer_timeout_seconds"):
        if getattr(tasks, name) < longest:
            text = f"{getattr(tasks, name):g} s; a deployment may take {longest:g} s: the task is then sent again, which is harmless"
            warnings.append((f"{at}.{name}", text))
    return errors, warnings


def _pubsub(settings: Settings, *, is_deployer: bool) -> tuple[Problems, Problems]:
    errors: Problems = []
    warnings: Problems = []
    try:
        address = PubSubAddress.parse(settings.queue.url)
        if is_deployer and not address.subscription_id:
            errors.append(("queue.url", "a deployer needs a subscription: pubsub://project/topic?subscription=name"))
    except ConfigError as exc:
        errors.append(("queue.url", str(exc).removeprefix("queue.url: ")))
    hold = settings.queue.pubsub.hold_seconds_max
    if hold <= 0:
        errors.append(("queue.pubsub.hold_seconds_max", f"expected more than 0 s, got {hold:g}"))
    elif is_deployer and hold < (longest := deployment_seconds_max(settings)):
        warnings.append(("queue.pubsub.hold_seconds_max", f"{hold:g} s; a deployment may take {longest:g} s: a repeat is harmless"))
    return errors, warnings
