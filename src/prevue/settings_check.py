"""Do the settings fit together, and does a process have what it needs? Asked once, at start; a process that would break a promise
later refuses to run now.

The numbers' rules are the claim protocol's (protocol section 7). All errors are reported together; what merely slows recovery
is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from prevue.config import PreviewSettings, Settings
from prevue.errors import ConfigError
from prevue.settings import config_error, laid_over
from prevue.settings_check_google import google_problems
from prevue.values import check_template, check_values

Process = Literal["github-app", "deployer", "sweeper", "operator", "queue", "render"]
PROCESSES: tuple[Process, ...] = ("github-app", "deployer", "sweeper", "operator", "queue", "render")
"""`operator`: migrate, previews, dead-letters. `queue`: what asks the queue alone."""

URL_SOURCES = ("template", "node_port", "ingress", "load_balancer")
"""`cluster.port.UrlSource`, in words: the App checks settings too, and reaches no cluster code."""
FENCES = ("auto", "identity", "token", "lease")
"""`cluster.port.FenceKind`, and `auto`."""
QUEUE_SCHEMES = ("postgresql", "postgres", "redis", "rediss", "cloudtasks", "pubsub")
STATESTORE_SCHEMES = ("postgresql", "postgres")
LEASE_SECONDS_MIN = 2.0
"""A heartbeat is sent every quarter of the lease, so that three may fail; below half a second between them, a busy machine loses claims."""
HELM_GRACE_SECONDS_MIN = 1.0
"""To kill a process group and collect it."""
CLOCK_RATE_ERROR = 0.001
"""Two clocks drift apart by less than this; a kernel's slew is at most 500 ppm."""
GITHUB_WRITES_PER_MINUTE = 80
GITHUB_WRITES_PER_HOUR = 500
"""https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api, secondary limits on content creation."""
GITHUB_ANSWER_SECONDS = 10
"""GitHub gives a webhook up after this time."""
RSA_BITS_MIN = 2048


def check(settings: Settings, *, process: Process, places: Mapping[str, str] | None = None) -> list[str]:
    """Return warnings, if `process` may start with `settings`; `places` are `Loaded.places`, for the texts.

    Raises:
        ConfigError: with every rule that is broken.
    """
    errors, warnings = problems(settings, process=process, places=places)
    if errors:
        raise config_error(errors)
    return warnings


def problems(settings: Settings, *, process: Process, places: Mapping[str, str] | None = None) -> tuple[list[str], list[str]]:
    """All errors and all warnings."""
    checker = _Checker(settings, places or {})
    checker.log()
    if process in ("github-app", "deployer", "sweeper", "render"):
        checker.github_identity()
    if process == "github-app":
        checker.webhook()
        checker.app()
    if process in ("github-app", "deployer", "sweeper", "queue"):
        checker.url("queue.url", settings.queue.url, QUEUE_SCHEMES)
        checker.google(process)
    if process in ("github-app", "deployer", "sweeper"):
        checker.budgets()
    if process in ("deployer", "sweeper", "operator"):
        checker.url("statestore.url", settings.statestore.url, STATESTORE_SCHEMES)
    if process == "deployer":
        checker.deployer()
        checker.takeover()
    if process in ("deployer", "sweeper"):
        checker.sweeper()
    if process == "sweeper":
        checker.cluster(kubeconfig=True)
        checker.repositories()
    if process in ("deployer", "render"):
        checker.cluster(kubeconfig=process == "deployer")
        checker.previews()
    return checker.errors, checker.warnings


class _Checker:
    def __init__(self, settings: Settings, places: Mapping[str, str]) -> None:
        self.settings = settings
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self._places = places

    def _place(self, path: str) -> str:
        """Where the setting stands; of a Helm value, where what contains it stands; empty where nobody set it."""
        while ".values." in path and path not in self._places:
            path = path.rpartition(".")[0]
        return self._places.get(path, "")

    def _error(self, path: str, text: str) -> None:
        line = f"{path} ({self._place(path) or 'default'}): {text}"
        if line not in self.errors:  # an error in `defaults` shows in every entry that is laid over them
            self.errors.append(line)

    def _required(self, path: str, text: str) -> None:
        line = f"{path} ({self._places.get(path, 'not set')}): is required: {text}"
        if line not in self.errors:
            self.errors.append(line)

    def _warn(self, path: str, text: str) -> None:
        self.warnings.append(f"{path} ({self._place(path) or 'default'}): {text}")

    def _range(self, path: str, value: float, least: float, most: float | None = None, *, unit: str = "") -> None:
        if value < least or (most is not None and value > most):
            wanted = f"at least {least:g}" if most is None else f"{least:g} to {most:g}"
            self._error(path, f"expected {wanted}{unit}, got {value:g}")

    def _one_of(self, path: str, value: str, accepted: tuple[str, ...]) -> None:
        if value not in accepted:
            self._error(path, f"expected one of {', '.join(accepted)}; got {value!r}")

    def log(self) -> None:
        self._one_of("log.level", self.settings.log.level, ("debug", "info", "warning", "error"))
        self._one_of("log.format", self.settings.log.format, ("json", "console"))

    def url(self, path: str, url: str, schemes: tuple[str, ...]) -> None:
        accepted = ", ".join(f"{scheme}://" for scheme in schemes)
        if not url:
            self._required(path, f"accepted: {accepted}")
            return
        try:
            parts = urlsplit(url)
            scheme, rest, _ = parts.scheme, parts.netloc or parts.path.strip("/"), parts.port
        except ValueError:
            self._error(path, "is no URL: its port is wrong, or a bracket or character in it must be percent-encoded")
            return
        if scheme not in schemes:
            self._error(path, f"its scheme must be one of {accepted}")
        elif not rest:
            self._error(path, f"names no host and no database; expected such as {schemes[0]}://user:password@host/database")

    def google(self, process: Process) -> None:
        """A queue of Google's, where it is one; the URL's own errors are told already."""
        if any(line.startswith("queue.url ") for line in self.errors):
            return
        errors, warnings = google_problems(self.settings, enqueues=process != "queue", is_deployer=process == "deployer")
        for path, text in errors:
            self._error(path, text)
        for path, text in warnings:
            self._warn(path, text)

    def github_identity(self) -> None:
        github = self.settings.github
        if github.app_id < 1:
            self._required("github.app_id", "the number on the App's settings page")
        api = urlsplit(github.api_url)
        if api.scheme not in ("https", "http") or not api.netloc:
            self._error("github.api_url", f"expected a URL such as https://api.github.com, got {github.api_url!r}")
        if not github.host or "/" in github.host:
            self._error("github.host", f"expected a host name such as github.com, got {github.host!r}")
        if not github.private_key_file:
            self._required("github.private_key_file", "the path of the App's private key (PEM)")
        elif problem := private_key_problem(Path(github.private_key_file)):
            self._error("github.private_key_file", problem)

    def webhook(self) -> None:
        github = self.settings.github
        path = "github.webhook_secrets_file" if github.webhook_secrets_file else "github.webhook_secrets"
        secrets = github.webhook_secrets
        if github.webhook_secrets_file and not secrets:
            self._error(path, f"{github.webhook_secrets_file} cannot be read or is empty; expected one or two lines, a secret each")
        elif not secrets:
            self._required(path, "one secret, or two while one is being rotated")
        elif len(secrets) > 2:
            self._error(path, f"expected one or two secrets, got {len(secrets)}")
        elif any(not secret.strip() for secret in secrets):
            self._error(path, "an empty secret would accept anybody's webhook")

    def app(self) -> None:
        app = self.settings.app
        self._range("app.replicas", app.replicas, 1)
        self._range("app.listen_port", app.listen_port, 0, 65535)
        self._range("app.body_bytes_max", app.body_bytes_max, 1)
        if not 0 < app.github_timeout_seconds < GITHUB_ANSWER_SECONDS:
            self._error(
                "app.github_timeout_seconds",
                f"expected more than 0 and less than {GITHUB_ANSWER_SECONDS} s, when GitHub gives the webhook up; "
                f"got {app.github_timeout_seconds:g}",
            )

    def budgets(self) -> None:
        """App and outbox share GitHub's limit on content writes. Other hosts set limits of their own, or none."""
        app, deployer = self.settings.app, self.settings.deployer
        for a_period, period, apps, outbox, most in (
            ("a minute", "minute", app.comments_per_minute, deployer.comments_per_minute, GITHUB_WRITES_PER_MINUTE),
            ("an hour", "hour", app.comments_per_hour, deployer.comments_per_hour, GITHUB_WRITES_PER_HOUR),
        ):
            self._range(f"app.comments_per_{period}", apps, 0)
            self._range(f"deployer.comments_per_{period}", outbox, 1)
            if apps + outbox > most:
                text = f"{apps} and deployer.comments_per_{period} {outbox} are {apps + outbox} together; GitHub allows {most} {a_period}"
                report = self._error if urlsplit(self.settings.github.api_url).hostname == "api.github.com" else self._warn
                report(f"app.comments_per_{period}", text)

    def deployer(self) -> None:
        deployer = self.settings.deployer
        self._range("deployer.slots", deployer.slots, 1)
        self._range("deployer.helm_parallel", deployer.helm_parallel, 1)
        self._range("deployer.attempts_max", deployer.attempts_max, 1)
        self._range("deployer.lease_seconds", deployer.lease_seconds, LEASE_SECONDS_MIN, unit=" s: three heartbeats may fail in it")
        self._range("deployer.helm_deadline_seconds", deployer.helm_deadline_seconds, 1, unit=" s")
        grace_min = max(HELM_GRACE_SECONDS_MIN, deployer.helm_deadline_seconds * CLOCK_RATE_ERROR)
        self._range("deployer.helm_deadline_grace_seconds", deployer.helm_deadline_grace_seconds, grace_min, unit=" s")
        self._range("deployer.shutdown_grace_seconds", deployer.shutdown_grace_seconds, 0)
        for name in ("backoff_seconds", "backoff_max_seconds", "sweep_interval_seconds", "sweep_quiet_seconds"):
            value = getattr(deployer, name)
            if value <= 0:
                self._error(f"deployer.{name}", f"expected more than 0 s, got {value:g}")
        if deployer.backoff_seconds > deployer.backoff_max_seconds:
            self._error(
                "deployer.backoff_seconds",
                f"expected at most deployer.backoff_max_seconds ({deployer.backoff_max_seconds:g} s), got {deployer.backoff_seconds:g}",
            )
        self._range("deployer.health_port", deployer.health_port, 0, 65535)

    def sweeper(self) -> None:
        for name in self.settings.sweeper.__struct_fields__:
            value = getattr(self.settings.sweeper, name)
            if value <= 0:
                self._error(f"sweeper.{name}", f"expected more than 0 s, got {value:g}")

    def repositories(self) -> None:
        """The sweeper scans the comments of listed repositories; it needs no charts."""
        if not self.settings.repositories:
            self._warn("repositories", "no repository is listed, so no comments are searched for lost commands")

    def takeover(self) -> None:
        """How soon another deployer goes on after a crash: a goal, so it only warns."""
        deployer = self.settings.deployer
        deadline = deployer.helm_deadline_seconds + deployer.helm_deadline_grace_seconds
        takeover = max(deployer.lease_seconds, deadline) + deployer.sweep_quiet_seconds
        if takeover > 2 * deployer.lease_seconds:
            self._warn(
                "deployer.lease_seconds",
                f"after a crash in Helm another deployer takes over within {takeover:g} s, more than two leases "
                f"({2 * deployer.lease_seconds:g} s); lower deployer.helm_deadline_seconds or raise the lease",
            )
        if deployer.shutdown_grace_seconds > deployer.lease_seconds:
            self._warn(
                "deployer.shutdown_grace_seconds",
                f"{deployer.shutdown_grace_seconds:g} s is longer than the lease ({deployer.lease_seconds:g} s): "
                "a crash would hand over sooner",
            )

    def cluster(self, *, kubeconfig: bool) -> None:
        cluster = self.settings.cluster
        if not cluster.name:
            self._required("cluster.name", "previews remember their cluster by it")
        if not cluster.helm:
            self._required("cluster.helm", "a name on PATH or a path")
        self._one_of("cluster.fence", cluster.fence, FENCES)
        if kubeconfig and cluster.kubeconfig and not Path(cluster.kubeconfig).is_file():
            self._error("cluster.kubeconfig", f"there is no file {cluster.kubeconfig}")

    def previews(self) -> None:
        """Each entry as it will be used, laid over the defaults; an error is told where the value stands."""
        if not self.settings.repositories:
            self._warn("repositories", "no repository is listed, so none may have a preview")
        seen: set[str] = set()
        for index, entry in enumerate(self.settings.repositories):
            at = f"repositories[{index}]"
            if entry.match.count("/") != 1 or entry.match.startswith("/") or entry.match.endswith("/"):
                self._error(f"{at}.match", f"expected owner/name or a glob such as acme/*, got {entry.match!r}")
            if entry.match.casefold() in seen:
                self._warn(f"{at}.match", f"{entry.match!r} stands above already; this entry is never used")
            seen.add(entry.match.casefold())
            try:
                effective = laid_over(self.settings.defaults, entry)
            except ConfigError as exc:
                self._error(f"{at}.values", str(exc))
                continue
            self._preview(effective, at)

    def _where(self, at: str, name: str) -> str:
        """`name` in the entry if it stands there, else in the defaults."""
        return f"{at}.{name}" if f"{at}.{name}" in self._places else f"defaults.{name}"

    def _preview(self, preview: PreviewSettings, at: str) -> None:
        deadline = self.settings.deployer.helm_deadline_seconds
        if not 0 < preview.helm_timeout_seconds < deadline:
            self._error(
                self._where(at, "helm_timeout_seconds"),
                f"expected more than 0 and less than deployer.helm_deadline_seconds ({deadline:g} s), got {preview.helm_timeout_seconds:g}",
            )
        if preview.readiness_timeout_seconds <= 0:
            self._error(self._where(at, "readiness_timeout_seconds"), f"expected more than 0 s, got {preview.readiness_timeout_seconds:g}")
        self._range(self._where(at, "image_wait_seconds"), preview.image_wait_seconds, 0, unit=" s")
        self._range(self._where(at, "ttl_seconds"), preview.ttl_seconds, 0, unit=" s")
        self._chart(preview.chart, self._where(at, "chart"))
        try:
            check_values(preview.values)
        except ConfigError as exc:
            key, _, text = str(exc).partition(": ")
            self._error(self._where(at, f"values.{key}"), text)
        self._template(preview.host, self._where(at, "host"), without=("host",))
        self._url(preview, at)

    def _chart(self, chart: str, path: str) -> None:
        if not chart:
            self._required(path, "the path of a chart folder")
        elif not Path(chart).is_dir():
            self._error(path, f"there is no folder {chart}")
        elif not (Path(chart) / "Chart.yaml").is_file():
            self._error(path, f"{chart} has no Chart.yaml: it is no Helm chart")

    def _template(self, template: str, path: str, *, without: tuple[str, ...] = ()) -> None:
        try:
            check_template(template, without=without)
        except ConfigError as exc:
            self._error(path, str(exc))

    def _url(self, preview: PreviewSettings, at: str) -> None:
        url = preview.url
        self._one_of(self._where(at, "url.source"), url.source, URL_SOURCES)
        self._template(url.template, self._where(at, "url.template"))
        if url.source == "template" and not url.template.startswith(("http://", "https://")):
            self._error(self._where(at, "url.template"), f"expected such as https://pr-{{pr_number}}.example.com/, got {url.template!r}")
        if not url.path.startswith("/"):
            self._error(self._where(at, "url.path"), f"expected a path that begins with /, got {url.path!r}")
        if not url.statuses:
            self._error(self._where(at, "url.statuses"), "expected at least one HTTP status")
        for status in self._bad_statuses(url.statuses):
            self._error(self._where(at, "url.statuses"), f"expected HTTP statuses from 200 to 599, got {status}")
        if url.timeout_seconds <= 0:
            self._error(self._where(at, "url.timeout_seconds"), f"expected more than 0 s, got {url.timeout_seconds:g}")

    @staticmethod
    def _bad_statuses(statuses: list[int]) -> Iterator[int]:
        return (status for status in statuses if not 200 <= status <= 599)


def private_key_problem(file: Path) -> str | None:
    """Why `file` cannot be the App's private key; None if it can. Nothing of its content is in the text."""
    # Imported here: cryptography takes a tenth of a second, and `prevue --help` needs none of it.
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except OSError as exc:
        return f"{file} cannot be read: {exc.strerror}"
    except (ValueError, TypeError):
        return f"{file} is no unencrypted PEM private key; GitHub offers one at the foot of the App's settings page"
    if not isinstance(key, RSAPrivateKey):
        return f"{file} is no RSA key; GitHub's Apps sign with RS256"
    if key.key_size < RSA_BITS_MIN:
        return f"{file} has {key.key_size} bits; at least {RSA_BITS_MIN} are needed"
    return None
