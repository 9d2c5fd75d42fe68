"""`make bench-webhook`: how many webhooks one App process takes.

Two questions, each answered beside something that everybody can judge, in alternating rounds on the same machine by the same client:

- *Ignored* deliveries (an ordinary comment on a pull request, nearly all that comes), beside Probot with a handler that does nothing;
  each under its production defaults, our log line on, and Probot's too.
- *Accepted* commands, 50 in flight, beside a floor that makes the same calls with the same HTTP client and the same INSERT, and nothing
  else. GitHub answers at once and sets no limit, so what is measured is the App. A round ends when the last reaction has arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

# Run as a file: `bench` is not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.load import Measured, run_load
from bench.report import middle, percentile, say, table, write
from bench.webhook_servers import EXAMPLES, Spec

from prevue.local.ports import free_ports
from prevue.local.postgres import EmbeddedPostgres, prepare
from prevue.migrations.run import migrate

HERE = Path(__file__).parent
SECRET = "a secret of the benchmark"
IGNORED_ROUNDS = 9
IGNORED_REQUESTS = 6_000
IGNORED_CONNECTIONS = 50
ACCEPTED_ROUNDS = 9
ACCEPTED_REQUESTS = 500
"""Below the App's bound of pending acknowledgements (1,000), so that none is skipped and both sides make every call."""
ACCEPTED_IN_FLIGHT = 50
WARM_UP = 1_500
START_SECONDS = 30.0
CALLS = 5
"""GitHub calls for each accepted command: permission, pull request; list, comment, reaction."""


class Server:
    """A child process that listens on a port of this machine."""

    def __init__(self, name: str, command: list[str], port: int, *, log: Path, environment: dict[str, str] | None = None) -> None:
        self.name = name
        self.port = port
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}, cwd=HERE / "webhook"
            )

    def wait_ready(self) -> None:
        """Return when it accepts connections."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        raise SystemExit(f"{self.name} does not start:\n{self.log_end()}")

    def log_end(self) -> str:
        """What it said last, warnings first."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if '"warning"' in line][-5:] or lines[-20:])

    def cpu_seconds(self) -> float:
        """Processor time so far, threads included."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Stop it in order, or at once after some seconds."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def event(body: str, *, comment_id: int) -> bytes:
    """An `issue_comment.created` on a pull request, GitHub's published example with our words (13 kB)."""
    payload: dict[str, Any] = json.loads((EXAMPLES / "issue_comment.created.1.json").read_text())
    payload["issue"]["pull_request"] = {"url": payload["issue"]["url"].replace("issues", "pulls")}
    payload["comment"] |= {"id": comment_id, "body": body}
    payload["repository"]["full_name"] = "acme/hello"
    payload["sender"]["login"] = "ada"
    payload["installation"] = {"id": 3, "node_id": "MDIzOkludGVncmF0aW9uSW5zdGFsbGF0aW9uMw=="}
    return json.dumps(payload, separators=(",", ":")).encode()


def request(path: str, delivery: str, body: bytes) -> bytes:
    """The bytes of one webhook, signed."""
    signature = hmac.digest(SECRET.encode(), body, "sha256").hex()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nUser-Agent: GitHub-Hookshot/bench\r\nContent-Type: application/json\r\n"
        f"X-GitHub-Delivery: {delivery}\r\nX-GitHub-Event: issue_comment\r\nX-Hub-Signature-256: sha256={signature}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def ignored_requests(path: str, count: int, first: int) -> Iterator[bytes]:
    """`count` deliveries of an ordinary comment, each with its own id."""
    template = request(path, "DELIVERY-ID-OF-THIS-SIZE-0000000000", event("Looks good to me, thanks!", comment_id=1))
    before, after = template.split(b"DELIVERY-ID-OF-THIS-SIZE-0000000000")
    return (before + b"%035d" % number + after for number in range(first, first + count))


def accepted_requests(path: str, count: int, first: int) -> list[bytes]:
    """`count` commands, each a comment of its own."""
    return [request(path, f"{number:035d}", event("/preview", comment_id=number)) for number in range(first, first + count)]


class Bench:
    """The servers and the rounds."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._next = 1_000_000

    def _numbers(self, count: int) -> int:
        self._next += count
        return self._next - count

    def start(self, role: str, command: list[str], port: int, environment: dict[str, str] | None = None) -> Server:
        """Start a server and stop it at the end."""
        server = Server(role, command, port, log=self._folder / f"{role}.log", environment=environment)
        self._stack.callback(server.stop)
        server.wait_ready()
        return server

    def python(self, role: str, **spec: Any) -> Server:
        """Start one of `bench/webhook_servers.py`."""
        [port] = free_ports(1)
        text = msgspec.json.encode(Spec(port=port, secret=SECRET, **spec)).decode()
        return self.start(role, [sys.executable, str(HERE / "webhook_servers.py"), role, text], port)

    def probot(self, key: str) -> Server:
        """Start Probot, installed first where it is not."""
        if not (HERE / "webhook/node_modules/probot").exists():
            say("installing Probot from npm (bench/webhook/package-lock.json)")
            subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=HERE / "webhook", check=True)
        [port] = free_ports(1)
        environment = {
            "NODE_ENV": "production",
            "APP_ID": "1",
            "PRIVATE_KEY": key,
            "WEBHOOK_SECRET": SECRET,
            "WEBHOOK_PATH": "/webhook",
            "HOST": "127.0.0.1",
            "PORT": str(port),
        }
        return self.start("probot", ["node", "probot.mjs"], port, environment)

    async def ignored(self, ours: Server, probot: Server) -> dict[str, Any]:
        """Alternate rounds of ignored deliveries."""
        rounds: dict[str, list[Measured]] = {ours.name: [], probot.name: []}
        cpu: dict[str, list[float]] = {ours.name: [], probot.name: []}
        for server in (ours, probot):
            await run_load(server.port, ignored_requests("/webhook", WARM_UP, self._numbers(WARM_UP)), connections=IGNORED_CONNECTIONS)
        for number in range(IGNORED_ROUNDS):
            for server in (ours, probot) if number % 2 == 0 else (probot, ours):
                used, own = server.cpu_seconds(), time.process_time()
                requests = ignored_requests("/webhook", IGNORED_REQUESTS, self._numbers(IGNORED_REQUESTS))
                measured = await run_load(server.port, requests, connections=IGNORED_CONNECTIONS)
                if set(measured.statuses) - {200, 202}:
                    raise SystemExit(f"{server.name} answered {measured.statuses}")
                rounds[server.name].append(measured)
                cpu[server.name].append((server.cpu_seconds() - used) / measured.seconds)
                client = (time.process_time() - own) / measured.seconds
                say(f"  round {number + 1} {server.name}: {measured.per_second:,.0f}/s, client {client:.0%} of a core")
        return {
            name: {
                "per_second": middle([each.per_second for each in found]),
                "p50_ms": middle([percentile(each.latencies, 50) * 1000 for each in found]),
                "p99_ms": middle([percentile(each.latencies, 99) * 1000 for each in found]),
                "cores": middle(cpu[name]),
                "cpu_us_per_request": middle([cores / each.per_second * 1e6 for cores, each in zip(cpu[name], found, strict=True)]),
            }
            for name, found in rounds.items()
        }

    async def accepted(self, ours: Server, floor: Server, github: Server) -> dict[str, Any]:
        """Alternate rounds of accepted commands; each ends when GitHub has had its last call."""
        rounds: dict[str, list[dict[str, float]]] = {ours.name: [], floor.name: []}
        for server in (ours, floor):
            await self._accepted_round(server, github, 200)
        for number in range(ACCEPTED_ROUNDS):
            for server in (ours, floor) if number % 2 == 0 else (floor, ours):
                measured = await self._accepted_round(server, github, ACCEPTED_REQUESTS)
                rounds[server.name].append(measured)
                say(f"  round {number + 1} {server.name}: {measured['per_second']:,.0f}/s, p99 {measured['p99_ms']:,.0f} ms")
        return {name: {key: middle([each[key] for each in found]) for key in found[0]} for name, found in rounds.items()}

    async def _accepted_round(self, server: Server, github: Server, count: int) -> dict[str, float]:
        requests = accepted_requests("/webhook", count, self._numbers(count))
        before, used, used_github = _counts(github), server.cpu_seconds(), github.cpu_seconds()
        started = time.perf_counter()
        measured = await run_load(server.port, iter(requests), connections=ACCEPTED_IN_FLIGHT)
        if measured.statuses != {202: count}:
            raise SystemExit(f"{server.name} answered {measured.statuses}:\n{server.log_end()}")
        until = time.monotonic() + 60
        while (reactions := _counts(github).get("reaction", 0) - before.get("reaction", 0)) < count:
            if time.monotonic() > until:
                raise SystemExit(f"{server.name}: {reactions} reactions for {count} commands")
            await asyncio.sleep(0.005)
        seconds = time.perf_counter() - started
        after = _counts(github)
        calls = sum(after.values()) - sum(before.values())
        return {
            "per_second": count / seconds,
            "answered_per_second": measured.per_second,
            "p50_ms": percentile(measured.latencies, 50) * 1000,
            "p99_ms": percentile(measured.latencies, 99) * 1000,
            "cores": (server.cpu_seconds() - used) / seconds,
            "cpu_ms_per_command": (server.cpu_seconds() - used) / count * 1000,
            "github_cores": (github.cpu_seconds() - used_github) / seconds,
            "calls_per_command": calls / count,
        }


def _counts(github: Server) -> dict[str, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{github.port}/_counts", timeout=10) as answer:
        counts: dict[str, int] = json.load(answer)
        return counts


def make_key(folder: Path) -> tuple[Path, str]:
    """An RSA key for the App, as a file and as text."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    path = folder / "app.pem"
    path.write_bytes(pem)
    return path, pem.decode()


async def start_postgres(folder: Path, stack: contextlib.ExitStack) -> str:
    """A PostgreSQL of our own; the URL of the role that may only insert.

    It does not wait for the disk: a disk that others write to stalls for seconds at times, and both sides would measure that.
    """
    postgres: EmbeddedPostgres = prepare(folder / "postgres", is_durable=False)
    postgres.init()
    # Registered before the start: a failed start is stopped too.
    stack.callback(shutil.rmtree, postgres.data, ignore_errors=True)
    stack.callback(postgres.stop)
    postgres.start(dies_with_parent=True)
    await postgres.wait_ready()
    url = await postgres.create_database("bench")
    await migrate(url, app_role="prevue_app", app_password="bench")
    return f"postgresql://prevue_app:bench@127.0.0.1:{postgres.port}/bench"


def what_bounds(ours: dict[str, Any], floor: dict[str, Any]) -> str:
    """One sentence on the accepted figure."""
    share = floor["cpu_ms_per_command"] / ours["cpu_ms_per_command"]
    busy = f"the App uses {ours['cores']:.0%} of one core"
    calls = (
        f"{CALLS} GitHub calls, the INSERT and the server are {floor['cpu_ms_per_command']:.2f} of its {ours['cpu_ms_per_command']:.2f} ms"
    )
    return f"{busy}: {calls} of processor time a command ({share:.0%})"


@contextlib.contextmanager
def raised_priority() -> Iterator[None]:
    """Ours and the servers' alike, where we may: other work on the machine then disturbs the figures less.

    Linux weighs sessions against each other before it looks at a process (man 7 sched, "The autogroup feature").
    """
    session = Path("/proc/self/autogroup")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        session.write_text("-10")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            session.write_text("0")


async def main() -> None:
    """Run both halves, print and write the figures."""
    # In memory where that is possible: the servers log there, and a disk that others write to would stop them now and then.
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with raised_priority(), tempfile.TemporaryDirectory(prefix="prevue-bench-", dir=place) as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        bench = Bench(folder, stack)
        key_file, key = make_key(folder)
        queue_url = await start_postgres(folder, stack)
        github = bench.python("github")
        outside = {"queue_url": queue_url, "github_url": f"http://127.0.0.1:{github.port}", "key_file": str(key_file)}
        ours = bench.python("app", **outside)
        probot = bench.probot(key)
        size = len(event("Looks good to me, thanks!", comment_id=1))
        say(f"ignored deliveries, {size:,} bytes, {IGNORED_CONNECTIONS} connections, {IGNORED_ROUNDS} rounds of {IGNORED_REQUESTS:,}")
        ignored = await bench.ignored(ours, probot)
        floor = bench.python("floor", **outside)
        say(f"accepted commands, {ACCEPTED_IN_FLIGHT} in flight, {ACCEPTED_ROUNDS} rounds of {ACCEPTED_REQUESTS:,}")
        accepted = await bench.accepted(ours, floor, github)
    report(size, ignored, accepted)


def report(size: int, ignored: dict[str, Any], accepted: dict[str, Any]) -> None:
    """Tables and `bench/results/webhook.json`."""
    ratio_to_probot = ignored["app"]["per_second"] / ignored["probot"]["per_second"]
    ratio_to_floor = accepted["app"]["per_second"] / accepted["floor"]["per_second"]
    table(
        f"Ignored deliveries ({size:,} bytes): {ratio_to_probot:.2f} x Probot",
        ["", "a second", "p50 ms", "p99 ms", "cores", "CPU us each"],
        [[name, *(row[key] for key in ("per_second", "p50_ms", "p99_ms", "cores", "cpu_us_per_request"))] for name, row in ignored.items()],
    )
    table(
        f"Accepted commands ({ACCEPTED_IN_FLIGHT} in flight): {ratio_to_floor:.2f} x the floor",
        ["", "a second", "answered a second", "p50 ms", "p99 ms", "CPU ms each", "calls each"],
        [
            [
                name,
                *(row[key] for key in ("per_second", "answered_per_second", "p50_ms", "p99_ms", "cpu_ms_per_command", "calls_per_command")),
            ]
            for name, row in accepted.items()
        ],
    )
    bound = what_bounds(accepted["app"], accepted["floor"])
    say(f"What bounds accepted commands: {bound}.")
    cpu_to_probot = ignored["probot"]["cpu_us_per_request"] / ignored["app"]["cpu_us_per_request"]
    cpu_to_floor = accepted["floor"]["cpu_ms_per_command"] / accepted["app"]["cpu_ms_per_command"]
    say(f"By processor time alone, which other work on the machine does not disturb: {cpu_to_probot:.2f} and {cpu_to_floor:.2f}.")
    figures = {
        "body_bytes": size,
        "ignored": {"ratio_to_probot": ratio_to_probot, **ignored},
        "accepted": {"ratio_to_floor": ratio_to_floor, "in_flight": ACCEPTED_IN_FLIGHT, "bound_by": bound, **accepted},
        "ratio_to_probot": ratio_to_probot,
        "ratio_to_floor": ratio_to_floor,
        "ratio_to_probot_by_cpu": cpu_to_probot,
        "ratio_to_floor_by_cpu": cpu_to_floor,
        "load_average": os.getloadavg()[0],
    }
    say(f"written to {write('webhook', figures)}")


if __name__ == "__main__":
    uvloop.run(main())
