"""The machine's network, as far as the cluster touches it: a free range, a node address, forwarding, and the way back.

Everything that is changed here is undone by `remove`, and rules of others are never rewritten: iptables is only ever told
to add or remove our own lines and Kubernetes' own chains.
"""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from prevue.errors import PrevueError
from prevue.local.cluster.errors import LocalClusterError
from prevue.local.cluster.state import Layout, boot_id
from prevue.local.ports import free_ports

NODE_LINK = "prevue0"
COMMENT = "prevue-local-cluster"
KUBERNETES_CHAIN = re.compile(r"^:((?:KUBE|CNI)-[A-Z0-9-]+) ")
JUMP_TO_KUBERNETES = re.compile(r"^-A (?!KUBE-|CNI-)\S+ .*-j (KUBE|CNI)-")
TABLES = ("iptables", "ip6tables")
FORWARDING = ("net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet")


def choose_layout() -> Layout:
    """A range of addresses and ports that nobody on this machine uses now.

    Raises:
        LocalClusterError: another Kubernetes runs in this network namespace.
    """
    if any(_chains(program) for program in TABLES):
        raise LocalClusterError(
            "another Kubernetes node runs on this machine (its iptables chains KUBE-* are there), and two of them disturb each "
            "other: use it with --kubeconfig FILE, or stop it"
        )
    try:
        api_port, etcd_port, etcd_peer_port = free_ports(3)
    except PrevueError as exc:
        raise LocalClusterError(str(exc)) from exc
    return Layout(
        network=_free_network(),
        api_port=api_port,
        etcd_port=etcd_port,
        etcd_peer_port=etcd_peer_port,
        forwarding={name: Path("/proc/sys", name).read_text().strip() for name in FORWARDING},
        boot_id=boot_id(),
    )


def prepare(layout: Layout) -> None:
    """Give the node its address and let packets of its pods pass; calling it twice is harmless."""
    # Asked of `ip`: /sys shows the links of the network namespace that it was mounted in.
    if subprocess.run(["ip", "link", "show", NODE_LINK], capture_output=True, check=False).returncode != 0:
        # A bridge without members: kubelet wants an address that is not loopback, and not every kernel has `dummy` devices.
        _run(["ip", "link", "add", NODE_LINK, "type", "bridge"])
    _run(["ip", "address", "replace", f"{layout.node_ip}/32", "dev", NODE_LINK])
    _run(["ip", "link", "set", NODE_LINK, "up"])
    _run(["ip", "link", "set", "lo", "up"])  # it is down in a new network namespace
    for name in FORWARDING:
        Path("/proc/sys", name).write_text("1")
    _remove_own_rules("iptables")
    for rule in _own_rules(layout):
        _run(["iptables", "-w", "10", *rule])


def remove(layout: Layout) -> None:
    """Take away what `prepare`, kube-proxy and the network plugins put there."""
    for program in TABLES:
        _remove_own_rules(program)
        _remove_chains(program)
    subprocess.run(["ip", "link", "delete", NODE_LINK], capture_output=True, check=False)
    for name, value in layout.forwarding.items():
        Path("/proc/sys", name).write_text(value)


def _own_rules(layout: Layout) -> list[list[str]]:
    mark = ["-m", "comment", "--comment", COMMENT]
    pods = layout.pod_range
    return [
        # In front of a firewall's DROP, which Docker sets as the policy.
        ["-I", "FORWARD", "-s", pods, *mark, "-j", "ACCEPT"],
        ["-I", "FORWARD", "-d", pods, *mark, "-j", "ACCEPT"],
        ["-t", "nat", "-A", "POSTROUTING", "-s", pods, "!", "-d", f"10.{layout.network}.0.0/16", *mark, "-j", "MASQUERADE"],
    ]


def _free_network() -> int:
    taken = list(_taken_networks())
    for candidate in range(244, 255):
        wanted = ipaddress.ip_network(f"10.{candidate}.0.0/16")
        if not any(wanted.overlaps(network) for network in taken):
            return candidate
    raise LocalClusterError("no free range 10.244.0.0/16 … 10.254.0.0/16 for the local cluster: remove a route to one of them")


def _taken_networks() -> Iterable[ipaddress.IPv4Network]:
    for command in (["ip", "-j", "-4", "route", "show", "table", "all"], ["ip", "-j", "-4", "address"]):
        for entry in json.loads(_run(command) or "[]"):
            texts = [entry.get("dst", "")]
            texts += [f"{address['local']}/{address['prefixlen']}" for address in entry.get("addr_info", ())]
            for text in texts:
                try:
                    network = ipaddress.IPv4Network(text, strict=False)
                except ValueError:
                    continue  # "default", and whatever else is no range
                if network.prefixlen >= 8:
                    yield network


def _save(program: str) -> list[str]:
    """The rules as text, or nothing where the kernel has no such tables (IPv6 switched off)."""
    result = subprocess.run([f"{program}-save"], capture_output=True, text=True, check=False)
    return result.stdout.splitlines() if result.returncode == 0 else []


def _chains(program: str) -> list[tuple[str, str]]:
    """Kubernetes' chains as (table, chain)."""
    table, found = "", []
    for line in _save(program):
        if line.startswith("*"):
            table = line[1:]
        elif match := KUBERNETES_CHAIN.match(line):
            found.append((table, match[1]))
    return found


def _remove_own_rules(program: str) -> None:
    table = ""
    for line in _save(program):
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A ") and f"--comment {COMMENT} " in line:
            subprocess.run([program, "-w", "10", "-t", table, "-D", *line.split()[1:]], capture_output=True, check=False)


def _remove_chains(program: str) -> None:
    for script in removal_scripts(_save(program)):
        command = [f"{program}-restore", "-w", "10", "--noflush"]
        subprocess.run(command, input=script, text=True, capture_output=True, check=False)


def removal_scripts(saved: list[str]) -> list[str]:
    """From what `iptables-save` printed: one transaction a table that removes Kubernetes' chains and the jumps to them.

    Lines of others are not mentioned, so they stay whatever they have become meanwhile.
    """
    scripts = []
    table, jumps, chains = "", list[str](), list[str]()
    for line in saved:
        if line.startswith("*"):
            table, jumps, chains = line[1:], [], []
        elif match := KUBERNETES_CHAIN.match(line):
            chains.append(match[1])
        elif JUMP_TO_KUBERNETES.match(line):
            jumps.append(f"-D {line[3:]}")
        elif line == "COMMIT" and chains:
            emptied = [f":{chain} - [0:0]" for chain in chains]
            removed = [f"-X {chain}" for chain in chains]
            scripts.append("\n".join([f"*{table}", *emptied, *jumps, *removed, "COMMIT", ""]))
    return scripts


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise LocalClusterError(f"`{' '.join(command)}` failed: {error.stderr.strip()}: the cluster needs to change the network") from error
