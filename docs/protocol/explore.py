"""Exploring a small world: every interleaving, breadth first; safety on each transition, liveness backwards.

A state is a tuple; a world says which follow from it, and what is wrong with one in which nothing more happens by itself.
"""
import gc
from array import array
from collections import deque
from typing import Callable, NamedTuple

STATES_MAX = 3_000_000


class World(NamedTuple):
    initial: Callable           # config → state
    successors: Callable        # state, config → (label, is it a fault?, state, violation)
    canonical: Callable         # state → the one that stands for all that are alike
    quiet_violation: Callable   # state, config → what is wrong when nothing more happens; None
    describe: Callable          # state → for the trace
    is_cut: Callable            # state → not looked at further; counts as not reaching quiet, so a correct row can't hide behind it


def quick_replace(record):
    """`_replace`, four times as fast: it is most of what the model does."""
    places, new = {name: k for k, name in enumerate(record._fields)}, tuple.__new__

    def _replace(self, **values):
        fields = list(self)
        for name, value in values.items():
            fields[places[name]] = value
        return new(record, fields)
    record._replace = _replace


def explore(world, c, symmetry=True):
    """Breadth first → (states, transitions, violation or "", trace)."""
    number, parent, good = {world.initial(c): 0}, [(-1, "")], []
    calm_from, calm_to = array("l"), array("l")     # transitions without faults
    work, edges, labels = deque(number.items()), 0, {}
    gc.disable()                        # nothing here is cyclic, and looking for it costs a third
    while work:
        s, k = work.popleft()
        moves = 0
        if world.is_cut(s):
            continue
        for label, fault, s2, bad in world.successors(s, c):
            edges += 1
            label = labels.setdefault(label, label)
            if bad:
                return len(number), edges, bad, labels, trace(parent, k, label)
            s2 = world.canonical(s2) if symmetry else s2
            j = number.setdefault(s2, len(parent))
            if j == len(parent):
                parent.append((k, label))
                work.append((s2, j))
                if j > STATES_MAX:
                    return len(number), edges, "LIMIT", labels, []
            if not fault:
                moves += 1
                calm_to.append(j)
                calm_from.append(k)
        if not moves:
            bad = world.quiet_violation(s, c)
            if bad:
                return len(number), edges, bad, labels, trace(parent, k, f"nothing more happens: {world.describe(s)}")
            good.append(k)
    # liveness: backwards from the good quiet states over transitions without faults
    back, reach, stack = [[] for _ in parent], bytearray(len(parent)), list(good)
    for j, k in zip(calm_to, calm_from, strict=True):
        back[j].append(k)
    while stack:
        k = stack.pop()
        if not reach[k]:
            reach[k] = 1
            stack += back[k]
    if not all(reach):
        k = reach.index(0)
        return len(number), edges, "accepted_reaches_terminal_state", labels, trace(parent, k, "from here no path leads to quiet")
    return len(number), edges, "", labels, []


def trace(parent, k, last):
    out = [last]
    while k > 0:
        out.append(parent[k][1])
        k = parent[k][0]
    return out[::-1]
