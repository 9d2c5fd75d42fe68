"""`make bench-burst`: 50 `/preview` at once, beside 50 bare `helm install --wait`, beside one `kubectl apply` of the same manifests.

All three sides run the same chart with the same images, which are loaded before any clock starts, each in 50 namespaces of its own, in
alternating rounds; a round starts when the last one's namespaces are gone. The clock runs from the first request until somebody outside
got the right commit from the 50th URL, for all sides alike. GitHub's limit is off.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

# Run as a file: `bench` is not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measure import Costs, Meter
from bench.report import middle, percentile, say, table, write

from prevue.local import ci, dev, stack
from prevue.local.client import HELLO, LocalGitHub, Pull, connect, wait_for
from prevue.local.cluster import join
from prevue.local.folder import DevFile, StackFolder
from prevue.local.prober import Prober, watching
from prevue.local.stack_services import example
from prevue.model import GITHUB_COM, PreviewKey, preview_namespace, release_name

SERVED_SECONDS = 600.0
GONE_SECONDS = 600.0
SIDES = ("prevue", "raw helm", "apply floor")
PLACEHOLDERS = {"name": "bench-release", "namespace": "bench-namespace", "commit": "bench-commit"}


Ask = Callable[[], Coroutine[Any, Any, None]]


@dataclass
class Side:
    """One side's rounds."""

    seconds: list[float] = field(default_factory=list)
    median_seconds: list[float] = field(default_factory=list)
    costs: list[Costs] = field(default_factory=list)
    acknowledged: list[float] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)


class Bench:
    """The three sides on one stack."""

    def __init__(self, file: DevFile, github: LocalGitHub, meter: Meter, *, count: int, repository_id: int) -> None:
        self.file = file
        self.github = github
        self.meter = meter
        self.count = count
        self.repository_id = repository_id
        self.sides = {name: Side() for name in SIDES}
        self._kubectl = [file.kubectl, "--kubeconfig", file.kubeconfig]
        self._template = ""

    async def run(self, rounds: int) -> None:
        """All rounds; each side is first in turn."""
        await self._warm_up()
        runners: dict[str, Callable[[Sequence[Pull], int], Awaitable[None]]] = {
            "prevue": self._prevue,
            "raw helm": self._raw,
            "apply floor": self._floor,
        }
        for number in range(rounds):
            pulls = await asyncio.gather(*(self.github.open_pull(HELLO) for _ in range(self.count)))
            for offset in range(len(SIDES)):
                name = SIDES[(number + offset) % len(SIDES)]
                await runners[name](pulls, number)
                say(f"round {number + 1}, {name}: {self.sides[name].seconds[-1]:.2f} s")

    async def _warm_up(self) -> None:
        """One preview and one release before the clock: programs and pages are in memory for all sides."""
        pull = await self.github.open_pull(HELLO)
        await self.github.comment(pull)
        await self.github.wait_answer(pull, "Preview ready", seconds=120)
        await self.github.close(pull)
        await self._until_gone([self._namespace(pull)])
        rendered = await self._run(
            self.file.helm, "template", PLACEHOLDERS["name"], str(example() / "chart"), "--namespace", PLACEHOLDERS["namespace"],
            *self._values(PLACEHOLDERS["commit"]),
        )  # fmt: skip
        self._template = rendered
        await self._raw_install(pull, "bench-warm")
        await self._delete(["bench-warm"])

    async def _prevue(self, pulls: Sequence[Pull], _number: int) -> None:
        side = self.sides["prevue"]
        expected = {self._namespace(pull): pull.head_sha for pull in pulls}
        ledger_from = await self._ledger_end()
        roots = [pid for role in ("github-app", "deployer") for pid in self.file.pids[role]]
        comment_ids: list[int] = []

        async def ask() -> None:
            comment_ids.extend(await asyncio.gather(*(self.github.comment(pull) for pull in pulls)))

        await self._clock(side, expected, ask, roots)
        deliveries = await self.github.deliveries_of(comment_ids)
        statuses = {delivery["response"]["status_code"] for delivery in deliveries.values()}
        if statuses != {202}:
            raise SystemExit(f"webhooks were answered {statuses}, not 202 alone")
        side.acknowledged += [delivery["duration"] for delivery in deliveries.values()]
        for pull in pulls:
            await self.github.wait_answer(pull, "Preview ready", seconds=120)
        side.steps += await self._steps(ledger_from)
        await asyncio.gather(*(self.github.close(pull) for pull in pulls))
        await self._until_gone(expected)

    async def _raw(self, pulls: Sequence[Pull], number: int) -> None:
        namespaces = [f"bench-raw-{number}-{pull.number}" for pull in pulls]

        async def ask() -> None:
            await asyncio.gather(*(self._raw_install(pull, namespace) for pull, namespace in zip(pulls, namespaces, strict=True)))

        expected = dict(zip(namespaces, (pull.head_sha for pull in pulls), strict=True))
        await self._clock(self.sides["raw helm"], expected, ask, [os.getpid()])
        await self._delete(namespaces)

    async def _raw_install(self, pull: Pull, namespace: str) -> None:
        await self._run(
            self.file.helm, "--kubeconfig", self.file.kubeconfig, "install", release_name(pull.number), str(example() / "chart"),
            "--namespace", namespace, "--create-namespace", "--wait", *self._values(pull.head_sha),
        )  # fmt: skip

    async def _floor(self, pulls: Sequence[Pull], number: int) -> None:
        expected = {f"bench-floor-{number}-{pull.number}": pull.head_sha for pull in pulls}
        documents = []
        for pull, namespace in zip(pulls, expected, strict=True):
            documents.append(f"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n")
            names = {"name": release_name(pull.number), "namespace": namespace, "commit": pull.head_sha}
            text = self._template
            for key, placeholder in PLACEHOLDERS.items():
                text = text.replace(placeholder, names[key])
            # Rendered manifests name no namespace; Helm adds it when it applies.
            documents += [
                part.replace("metadata:\n", f"metadata:\n  namespace: {namespace}\n", 1) for part in text.split("---\n") if part.strip()
            ]
        manifest = "---\n".join(documents)

        async def ask() -> None:
            await self._run(*self._kubectl, "apply", "-f", "-", given=manifest)

        await self._clock(self.sides["apply floor"], expected, ask, [os.getpid()])
        await self._delete(list(expected))

    async def _clock(
        self, side: Side, expected: Mapping[str, str], ask: Callable[[], Coroutine[Any, Any, None]], roots: Sequence[int]
    ) -> None:
        """Run one side once: from the first request until the last URL served its commit outside."""
        async with watching(self.file.kubectl, self.file.kubeconfig) as prober, self.meter.measuring(roots) as costs:
            began = time.monotonic()
            asking = asyncio.create_task(ask(), name="requests")
            last = await self._served(prober, expected)
            await asking
        side.seconds.append(last - began)
        side.median_seconds.append(middle([at - began for at in prober.served_at.values()]))
        side.costs.append(costs)

    async def _served(self, prober: Prober, expected: Mapping[str, str]) -> float:
        try:
            return await prober.wait(expected, seconds=SERVED_SECONDS)
        except TimeoutError:
            raise SystemExit(f"not served after {SERVED_SECONDS:.0f} s: {', '.join(prober.missing(expected))}") from None

    async def _steps(self, after: int) -> list[dict[str, float]]:
        """Milliseconds of each step of each claim, from the ledger."""
        rows = await self._query("SELECT details FROM ledger WHERE event = 'steps' AND id > $1", after)
        return [json.loads(row["details"]) for row in rows]

    async def _ledger_end(self) -> int:
        return int((await self._query("SELECT coalesce(max(id), 0) AS last FROM ledger"))[0]["last"])

    async def _query(self, sql: str, *arguments: Any) -> list[Any]:
        connection = await asyncpg.connect(self.file.database_url, timeout=10)
        try:
            return list(await connection.fetch(sql, *arguments))
        finally:
            await connection.close()

    async def _delete(self, namespaces: Sequence[str]) -> None:
        await self._run(*self._kubectl, "delete", "namespace", *namespaces, "--ignore-not-found", "--wait=false")
        await self._until_gone(namespaces)

    async def _until_gone(self, namespaces: Sequence[str] | Mapping[str, str]) -> None:
        left: set[str] = set()

        async def look() -> bool | None:
            nonlocal left
            names = await self._run(*self._kubectl, "get", "namespaces", "-o", "jsonpath={.items[*].metadata.name}")
            left = set(names.split()) & set(namespaces)
            return not left or None

        await wait_for(look, seconds=GONE_SECONDS, what="the end of the namespaces", instead=lambda: " ".join(sorted(left)), every=1)

    def _namespace(self, pull: Pull) -> str:
        return preview_namespace(PreviewKey(GITHUB_COM, self.repository_id, pull.number), pull.repo)

    @staticmethod
    def _values(commit: str) -> list[str]:
        return ["--set-string", f"image.repository={ci.REGISTRY}/{HELLO},image.tag={commit}"]

    async def _run(self, *command: str, given: str = "") -> str:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate(given.encode())
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(command[:6])} … failed: {err.decode()[-500:]}")
        return out.decode()


def figures(bench: Bench) -> dict[str, Any]:
    """What goes into the results' file."""
    prevue, raw, floor = (bench.sides[name] for name in SIDES)
    steps = sorted({name for step in prevue.steps for name in step})
    return {
        "count": bench.count,
        "ratio_to_raw_helm": round(middle(prevue.seconds) / middle(raw.seconds), 3),
        "ratio_to_apply_floor": round(middle(prevue.seconds) / middle(floor.seconds), 3),
        "ratio_of_processor_seconds": round(_own_cpu(prevue) / _own_cpu(raw), 3),
        "seconds": {name: [round(value, 2) for value in bench.sides[name].seconds] for name in SIDES},
        "median_preview_seconds": {name: round(middle(bench.sides[name].median_seconds), 2) for name in SIDES},
        "acknowledged_p50_ms": round(percentile(prevue.acknowledged, 50) * 1000),
        "acknowledged_p99_ms": round(percentile(prevue.acknowledged, 99) * 1000),
        "peak_memory_mib": {
            "prevue": max(cost.memory_mib for cost in prevue.costs),
            "raw helm": max(cost.memory_mib for cost in raw.costs),
        },
        "requests_by_verb": {name: _middles([cost.requests for cost in bench.sides[name].costs]) for name in SIDES},
        "watches": {name: _most([cost.watches for cost in bench.sides[name].costs]) for name in SIDES},
        "cpu_seconds": {name: _middles([cost.cpu_seconds for cost in bench.sides[name].costs]) for name in SIDES},
        "steps_ms": {
            name: {"p50": percentile(values, 50), "p95": percentile(values, 95)}
            for name in steps
            if (values := [step[name] for step in prevue.steps if name in step])
        },
    }


def _own_cpu(side: Side) -> float:
    """Processor seconds of the stack, the cluster and the bench: what others on this machine do is not in it."""
    return middle([sum(seconds for name, seconds in cost.cpu_seconds.items() if name != "machine") for cost in side.costs])


def _middles(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for one in rounds for name in one})
    found = {name: round(middle([one.get(name, 0) for one in rounds]), 2) for name in names}
    return {name: value for name, value in found.items() if value}


def _most(rounds: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = sorted({name for one in rounds for name in one})
    return {name: max(one.get(name, 0) for one in rounds) for name in names}


def show(found: Mapping[str, Any]) -> None:
    """Tables for people."""
    rounds = range(len(found["seconds"]["prevue"]))
    rows: list[list[object]] = [[f"round {index + 1}", *(found["seconds"][name][index] for name in SIDES)] for index in rounds]
    rows.append(["median", *(middle(found["seconds"][name]) for name in SIDES)])
    rows.append(["half of the URLs served (median)", *(found["median_preview_seconds"][name] for name in SIDES)])
    rows.append(["peak memory, MiB", found["peak_memory_mib"]["prevue"], found["peak_memory_mib"]["raw helm"], ""])
    rows.append(["requests to the API server", *(int(sum(found["requests_by_verb"][name].values())) for name in SIDES)])
    own = {name: sum(value for process, value in found["cpu_seconds"][name].items() if process != "machine") for name in SIDES}
    rows.append(["processor seconds of stack and cluster", *(own[name] for name in SIDES)])
    rows.append(["processor seconds of the machine", *(found["cpu_seconds"][name]["machine"] for name in SIDES)])
    table(f"{found['count']} at once: seconds from the first request to the last URL that serves its commit", ["", *SIDES], rows)
    verbs = sorted({verb for name in SIDES for verb in found["requests_by_verb"][name]})
    table(
        "Requests to the API server by verb",
        ["", *SIDES],
        [[verb, *(int(found["requests_by_verb"][name].get(verb, 0)) for name in SIDES)] for verb in verbs],
    )
    processes = sorted({name for side in SIDES for name in found["cpu_seconds"][side]})
    table(
        "Processor seconds by process (children: those that have ended, such as a deployer's Helm)",
        ["", *SIDES],
        [[name, *(float(found["cpu_seconds"][side].get(name, 0)) for side in SIDES)] for name in processes],
    )
    table("Where a claim's time goes, ms", ["step", "p50", "p95"], [[name, at["p50"], at["p95"]] for name, at in found["steps_ms"].items()])
    say(f"watches open at once during a round, by resource (one of services is the prober's): {found['watches']['prevue']}")
    say(f"acknowledged (202): p50 {found['acknowledged_p50_ms']} ms, p99 {found['acknowledged_p99_ms']} ms")
    ratios = ("ratio_to_raw_helm", "ratio_to_apply_floor", "ratio_of_processor_seconds")
    say(", ".join(f"{name} {found[name]}" for name in ratios))


async def bench_on(file: DevFile, meter: Meter, *, count: int, rounds: int) -> dict[str, Any]:
    """Run all rounds on a running stack."""
    async with connect(file.github_url) as github:
        await github.limits(per_minute=None, per_hour=None)
        meter.pids = file.pids
        bench = Bench(file, github, meter, count=count, repository_id=await github.repository_id(HELLO))
        await bench.run(rounds)
        return figures(bench)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prevue-bench-") as home:
        folder = StackFolder(Path(home) / dev.FOLDER)
        folder.logs.mkdir(parents=True)
        cluster = join(say)
        meter = Meter(str(cluster.kubectl), str(cluster.kubeconfig))
        try:
            file = dev.start_detached(stack.Options(folder=folder.root), say)
            found = asyncio.run(bench_on(file, meter, count=arguments.count, rounds=arguments.rounds))
        finally:
            with contextlib.suppress(KeyboardInterrupt):
                dev.stop(folder, say)
            cluster.leave()
    show(found)
    say(f"written to {write('burst', found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
