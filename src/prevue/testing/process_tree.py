"""Processes below another, as /proc shows them at one look; what ends meanwhile is left out (proc(5), `stat` and `cmdline`)."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path


def children() -> defaultdict[int, list[int]]:
    """Every process's children."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for name in os.listdir("/proc"):  # noqa: PTH208 -- read many times a second
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:  # noqa: PTH123 -- as above
                    stat = file.read()
            except OSError:
                continue
            found[int(stat.rpartition(b")")[2].split()[1])].append(int(name))
    return found


def descendants(*pids: int) -> list[int]:
    """The processes below `pids`, parents first."""
    known = children()
    found = [child for pid in pids for child in known[pid]]
    for one in found:  # it grows while it is walked
        found += known[one]
    return found


def command_line(pid: int) -> list[str]:
    """Its words; none: it has ended, or nobody has collected it yet."""
    try:
        shown = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return shown.decode(errors="replace").removesuffix("\0").split("\0") if shown else []


def naming(program: str, *, below: int) -> list[int]:
    """Living processes below a process whose command line names `program`, parents first."""
    return [pid for pid in descendants(below) if any(program in word for word in command_line(pid))]
