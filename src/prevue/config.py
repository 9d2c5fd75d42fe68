"""Settings: one frozen struct per subject, a docstring under every field with its meaning, its unit and the reason of its default.

`settings.py` reads them (file, then environment over it) and cross-checks them; this module is what they are. Seconds everywhere.
The pull request never supplies any of this: chart, values and rules come from the operator.
"""

from __future__ import annotations

from typing import Any

import msgspec

from prevue.model import GITHUB_COM


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of settings; a field that it does not know is an error, since it would be a silent typing mistake."""


class GitHubSettings(Struct, frozen=True, kw_only=True):
    """The GitHub App and its host."""

    app_id: int = 0
    """The App's id, from its settings page. Required by github-app and deployer."""
    private_key_file: str = ""
    """Path of the App's private key (PEM). A file, not a value: it never stands in an environment. Required."""
    webhook_secrets: list[str] = []
    """One or two secrets of the webhook's signature; two while one is being rotated, each is accepted. Required by github-app."""
    webhook_secrets_file: str = ""
    """Instead of `webhook_secrets`: a file with one secret a line, for a mounted Kubernetes Secret."""
    api_url: str = "https://api.github.com"
    """Root of the REST API; GitHub Enterprise Server: https://HOST/api/v3."""
    host: str = GITHUB_COM
    """Name of the GitHub host, part of every preview's identity. Changing it makes all previews new ones."""


class CloudTasksSettings(Struct, frozen=True, kw_only=True):
    """With `cloudtasks://`: whom Cloud Tasks calls and as whom, and the deployer's door that it calls. See docs/queues/cloud-tasks.md."""

    target_url: str = ""
    """The deployers' door as Google reaches it: `https://tasks.example.com/tasks`. Required by whoever enqueues."""
    service_account: str = ""
    """E-mail of the service account whose identity each task carries; the door admits no other. Required."""
    audience: str = ""
    """Whom the tasks' tokens are for; empty: target_url."""
    listen_host: str = "127.0.0.1"
    """Address of the deployer's door; 0.0.0.0 in a container, behind the load balancer that ends TLS. Never the health port's listener."""
    listen_port: int = 8081
    """Port of the deployer's door."""
    dispatch_deadline_seconds: float = 1800
    """How long Cloud Tasks waits for the door's answer, then it sends the task again; 15 to 1800, Google's limits."""
    load_balancer_timeout_seconds: float = 1800
    """How long the load balancer in front of the door lets an answer take. It is not set by this; it is checked against our limits."""
    endpoint: str = ""
    """An emulator's `host:port`, spoken to in plain text and without credentials; empty: Google."""
    issuer: str = "https://accounts.google.com"
    """Who signs the tasks' tokens; another only with an emulator."""
    certificates_url: str = "https://www.googleapis.com/oauth2/v3/certs"
    """The issuer's public keys, as a JWK set."""


class PubSubSettings(Struct, frozen=True, kw_only=True):
    """With `pubsub://`. See docs/queues/pubsub.md."""

    hold_seconds_max: float = 3600
    """How long a message is kept from other deployers while it is worked on; longer than a deployment takes. A repeat is harmless."""
    endpoint: str = ""
    """An emulator's `host:port`, spoken to in plain text and without credentials; empty: PUBSUB_EMULATOR_HOST, else Google."""


class QueueSettings(Struct, frozen=True, kw_only=True):
    """The queue between github-app and deployer."""

    url: str = ""
    """Which queue, by its scheme: `postgresql://user:password@host/database` (also `postgres://`; github-app: with a role that may only
    insert), `redis://:password@host:6379/0` (`rediss://` with TLS; needs `prevue[redis]`), `cloudtasks://project/location/queue` or
    `pubsub://project/topic?subscription=name` (both need `prevue[gcp]`). docs/queues.md helps to choose. Required."""
    cloud_tasks: CloudTasksSettings = CloudTasksSettings()
    """With `cloudtasks://`."""
    pubsub: PubSubSettings = PubSubSettings()
    """With `pubsub://`."""


class StatestoreSettings(Struct, frozen=True, kw_only=True):
    """The statestore of the deployers; the GitHub App has none."""

    url: str = ""
    """`postgresql://…` with a role that owns the schema. Required by deployer, migrate, previews, dead-letters."""


class AppSettings(Struct, frozen=True, kw_only=True):
    """The GitHub App's process."""

    listen_host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 in a container, behind the load balancer that ends TLS."""
    listen_port: int = 8080
    """Port to listen on."""
    replicas: int = 1
    """How many App processes run: the budget of acknowledgements an installation is divided by it."""
    github_timeout_seconds: float = 6
    """All look-ups of one command together; then 503 and GitHub lists the delivery as failed. GitHub itself waits 10 s for an answer."""
    body_bytes_max: int = 25 * 1024 * 1024
    """Largest webhook body; GitHub's own cap is 25 MB."""
    comments_per_minute: int = 30
    """Content writes (acknowledgements and reactions) a minute and installation, of all App processes together. GitHub allows 80."""
    comments_per_hour: int = 100
    """The same an hour. GitHub allows 500; the outbox needs the rest."""


class DeployerSettings(Struct, frozen=True, kw_only=True):
    """The deployer's process and the claim protocol's numbers (protocol section 7)."""

    slots: int = 50
    """Requests carried out at the same time by one process. A slot is cheap: most of its time it waits for pods."""
    helm_parallel: int = 6
    """Helm processes at the same time, about 70 MB and most of a core each; the other slots wait, before their deadline starts."""
    lease_seconds: float = 30
    """How long a claim lasts without a heartbeat; a heartbeat is sent every quarter of it."""
    helm_deadline_seconds: float = 45
    """Hard end of a Helm run, from the start of the step; Helm's process group is killed then."""
    helm_deadline_grace_seconds: float = 5
    """Added to the stored deadline: time to kill, and the clock's rate error."""
    attempts_max: int = 5
    """Attempts of a deploy before it is a dead letter. Outages and graceful stops do not count."""
    backoff_seconds: float = 5
    """Wait after the first failed attempt; doubled each time, with jitter."""
    backoff_max_seconds: float = 300
    """Longest wait between attempts."""
    shutdown_grace_seconds: float = 20
    """After SIGTERM running requests may finish within this time, then they are given back; less than the pod's grace (30 s)."""
    sweep_interval_seconds: float = 5
    """How often waiting requests that nobody holds are sent to the queue again."""
    sweep_quiet_seconds: float = 5
    """A waiting request is sent again when none was sent for it for this long."""
    comments_per_minute: int = 45
    """The outbox's content writes a minute and installation; with the App's 30 below GitHub's 80."""
    comments_per_hour: int = 400
    """The same an hour; with the App's 100 at GitHub's 500."""
    sweeper: bool = True
    """Run a sweeper beside the deployer; of all that run, one is active. false: `prevue sweeper` runs somewhere, or nothing is repaired."""
    health_host: str = "127.0.0.1"
    """Address of the deployer's /healthz and /readyz."""
    health_port: int = 0
    """Port of the deployer's /healthz, /readyz and /metrics; 0 = none."""


class SweeperSettings(Struct, frozen=True, kw_only=True):
    """The sweeper, in a deployer or as a process of its own: how often each of its rules runs (protocol section 6)."""

    deliveries_seconds: float = 15
    """How often GitHub's log is searched for deliveries that the App did not take. A call or two each, of the App's own 5,000 an hour."""
    poll_seconds: float = 3
    """How often deliveries are read with --poll-deliveries."""
    comments_seconds: float = 60
    """How often comments are searched for commands that no delivery brought: a call a repository, thirty repositories at a time."""
    previews_seconds: float = 60
    """How often previews are compared with GitHub and the cluster: closed pull requests, orphaned namespaces."""
    expiry_seconds: float = 30
    """How often previews are looked for whose time to live is over."""
    alarm_seconds: float = 60
    """How often it is checked whether something needs an operator."""
    overdue_seconds: float = 3600
    """A request that is open for longer is an alarm: longer than readiness, image and all attempts together usually take."""


class ClusterSettings(Struct, frozen=True, kw_only=True):
    """The Kubernetes cluster of the previews."""

    name: str = "default"
    """Name under which previews remember their cluster."""
    kubeconfig: str = ""
    """Path of a kubeconfig; empty: the pod's own service account. Never somebody's current context unasked."""
    context: str = ""
    """Context of that kubeconfig; empty: its current-context."""
    helm: str = "helm"
    """The Helm program (3.18 or newer, or 4): a name on PATH or a path."""
    fence: str = "auto"
    """How a worker that lost its claim is kept from writing: `identity` (each claim's Helm impersonates an account with the claim's number,
    and an admission policy compares it), `token` (each claim has a token of its own, revoked at takeover) or `lease` (nothing but lease
    and deadline: a paused machine can still write once it wakes). `auto`: the strongest that works, found by trying it; the policy is
    installed where the account may. Any other is a demand: nothing weaker is started with. `prevue doctor` says which is in force."""
    fence_settle_seconds: float = 0
    """Wait after the fence was seen to bite. 2 where the control plane has several API servers (a regional GKE cluster), whose caches may
    lag behind the one that was asked; with `fence: token` 12, since each keeps an accepted token for 10 s. Each takeover takes that much
    longer."""
    require_fence: bool = False
    """With `fence: auto`: refuse to work where nothing but the lease is left; otherwise that is a warning, and `doctor` says it."""


class UrlSettings(Struct, frozen=True, kw_only=True):
    """How a preview's URL is found, and what answers it must give before it is posted."""

    source: str = "ingress"
    """`template`, `node_port`, `ingress` or `load_balancer`."""
    template: str = ""
    """With `template`: such as `https://pr-{pr_number}.preview.example.com/`; names as in `values`."""
    host: str = "127.0.0.1"
    """With `node_port`: the address of a node."""
    path: str = "/"
    """Appended to the address that was found."""
    statuses: list[int] = msgspec.field(default_factory=lambda: [200, 204, 301, 302, 303, 307, 308, 401, 403])
    """HTTP statuses that count as an answer: a sign-in in front answers 302 or 401."""
    timeout_seconds: float = 60
    """How long to wait for an address and a good answer after the workloads are ready."""


class PreviewSettings(Struct, frozen=True, kw_only=True):
    """How a repository's previews are made; `defaults`, or one entry of `repositories` laid over it."""

    chart: str = ""
    """Path of a chart folder on the deployer's disk; relative to the configuration file. Required."""
    values: dict[str, Any] = {}
    """Helm values. Strings may use {commit_sha}, {short_sha}, {branch}, {branch_slug}, {pr_number}, {repo}, {owner}, {name},
    {namespace}, {release}, {host}; a dotted key such as `image.tag` means the nested one. {{ and }} are literal braces."""
    url: UrlSettings = UrlSettings()
    """How the URL is found and probed."""
    host: str = ""
    """A host name for {host} in values and URL; may use the other names: `pr-{pr_number}.preview.example.com`."""
    helm_timeout_seconds: float = 40
    """Helm's --timeout, for hooks; less than deployer.helm_deadline_seconds."""
    readiness_timeout_seconds: float = 300
    """How long workloads may take to become ready; then the request fails, with the reason."""
    image_wait_seconds: float = 600
    """How long the commit's own image is waited for, since CI may still be building it."""
    ttl_seconds: float = 0
    """How long a preview stays after its last deploy, then the sweeper removes it; 0: until its pull request is closed."""


class RepositorySettings(Struct, frozen=True, kw_only=True):
    """One entry of `repositories`: only what differs from `defaults`."""

    match: str
    """`owner/name` or a glob such as `acme/*`, case-insensitive; the first entry that matches is taken."""
    chart: str | None = None
    """See defaults."""
    values: dict[str, Any] | None = None
    """Laid over the defaults' values, key by key."""
    url: dict[str, Any] | None = None
    """Laid over the defaults' url, key by key."""
    host: str | None = None
    """See defaults."""
    helm_timeout_seconds: float | None = None
    """See defaults."""
    readiness_timeout_seconds: float | None = None
    """See defaults."""
    image_wait_seconds: float | None = None
    """See defaults."""
    ttl_seconds: float | None = None
    """See defaults."""


class LogSettings(Struct, frozen=True, kw_only=True):
    """Logs on standard error."""

    level: str = "info"
    """`debug`, `info`, `warning` or `error`."""
    format: str = "json"
    """`json` (one object a line) or `console`."""


class Settings(Struct, frozen=True, kw_only=True):
    """Everything; each process uses its part."""

    github: GitHubSettings = GitHubSettings()
    """The GitHub App and its host."""
    queue: QueueSettings = QueueSettings()
    """The queue."""
    statestore: StatestoreSettings = StatestoreSettings()
    """The statestore."""
    app: AppSettings = AppSettings()
    """The GitHub App's process."""
    deployer: DeployerSettings = DeployerSettings()
    """The deployer's process."""
    sweeper: SweeperSettings = SweeperSettings()
    """The sweeper."""
    cluster: ClusterSettings = ClusterSettings()
    """The cluster."""
    log: LogSettings = LogSettings()
    """Logs."""
    defaults: PreviewSettings = PreviewSettings()
    """How previews are made where no entry of `repositories` says otherwise."""
    repositories: list[RepositorySettings] = []
    """Repositories that may have previews, with what differs from `defaults`; none listed that matches: no preview."""
