"""`make bench-imports`: what each queue costs the GitHub App to import, in fresh processes.

Processor time and memory of importing the App's process with the client of one queue, beside the App without any, the least of some tries:
processor time, and the least, because the rest is what else the machine did. Prints the table that stands in docs/queues.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# Run as a file: `bench` is not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import say, write

TRIES = 3
URLS = {
    "none": "",
    "PostgreSQL": "postgresql://user:password@host/database",
    "Redis": "redis://host:6379/0",
    "Cloud Tasks": "cloudtasks://project/location/queue",
    "Pub/Sub": "pubsub://project/topic?subscription=name",
}
PROGRAM = """
import json, sys, time
began = time.process_time()
import prevue.wiring.github_app
from prevue.config import QueueSettings
from prevue.wiring.queues import open_enqueuer
if sys.argv[1]:
    open_enqueuer(QueueSettings(url=sys.argv[1]))
seconds = time.process_time() - began
memory = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(json.dumps([seconds * 1000, memory / 1024]))
"""


def measure(url: str) -> tuple[float, float]:
    """Milliseconds and MiB, the least of some tries."""
    tries = [
        json.loads(subprocess.run([sys.executable, "-c", PROGRAM, url], capture_output=True, text=True, check=True).stdout)
        for _ in range(TRIES)
    ]
    return min(one[0] for one in tries), min(one[1] for one in tries)


def main() -> None:
    """Print the table, as Markdown."""
    for url in URLS.values():
        measure(url)  # byte code and page cache are there for all
    figures = {name: measure(url) for name, url in URLS.items()}
    base = figures["none"]
    say("| the App with | import, processor time | resident memory |\n|---|---|---|")
    for name, (milliseconds, mebibytes) in figures.items():
        more = "" if name == "none" else f" (+{milliseconds - base[0]:.0f})", "" if name == "none" else f" (+{mebibytes - base[1]:.0f})"
        label = "no queue" if name == "none" else name
        say(f"| {label} | {milliseconds:.0f} ms{more[0]} | {mebibytes:.0f} MiB{more[1]} |")
    say(f"written to {write('imports', {name: {'ms': ms, 'mib': mib} for name, (ms, mib) in figures.items()})}")


if __name__ == "__main__":
    main()
