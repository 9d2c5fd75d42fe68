"""A deployer's part in a Helm run, as a process of its own that a test can stop: one order in, how it ended out."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Literal

import msgspec

from prevue.helm import wrapper
from prevue.helm.command import HelmCommand
from prevue.helm.port import HelmRun, ReleaseSpec


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One Helm run."""

    helm: str
    verb: Literal["upgrade", "rollback", "uninstall"]
    spec: ReleaseSpec
    kubeconfig: str
    deadline: float


async def carry_out(order: Order) -> HelmRun:
    """Run Helm as the pipeline does."""
    namespace, name = order.spec.namespace, order.spec.name
    async with HelmCommand.open(order.helm) as helm:
        if order.verb == "upgrade":
            return await helm.upgrade_install(order.spec, kubeconfig=order.kubeconfig, deadline=order.deadline)
        run = helm.rollback if order.verb == "rollback" else helm.uninstall
        return await run(namespace, name, kubeconfig=order.kubeconfig, deadline=order.deadline)


def _decoded(kind: type, value: object) -> object:
    return kind(value)


if __name__ == "__main__":
    wrapper.die_with(os.getppid())  # a test that is killed takes it along, stopped or not; and it its Helm
    received = msgspec.json.decode(sys.stdin.buffer.read(), type=Order, dec_hook=_decoded)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(carry_out(received))))
