"""Where a preview answers: from the manifest's first Service, Ingress or HTTPRoute, as the cluster has it now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import ClassVar

from prevue.cluster.actors import Actors
from prevue.cluster.objects import Balancer, Ingress, Route, Service
from prevue.cluster.port import Fence, UrlSource
from prevue.cluster.rendered import rendered_objects
from prevue.errors import ConfigError, NotReady

POLL_SECONDS = 0.5
"""A load balancer takes seconds to minutes; a NodePort is there at once."""
HTTPS_PORT = 443
KINDS = {UrlSource.NODE_PORT: ("Service",), UrlSource.LOAD_BALANCER: ("Service",), UrlSource.INGRESS: ("Ingress", "HTTPRoute")}


class Urls:
    """Finds URLs, reading in the name of the claim."""

    def __init__(self, actors: Actors) -> None:
        self._actors = actors

    async def find(self, fence: Fence, manifest: str, source: UrlSource, *, host: str, timeout_seconds: float) -> str:
        """The URL, without the setting's path.

        Raises:
            NotReady: the manifest has no such object, or it got no address in time.
        """
        if source is UrlSource.TEMPLATE:
            raise ConfigError("url.source: a template's URL is not looked up in the cluster")
        objects = [item for item in rendered_objects(manifest) if item.kind in KINDS[source]]
        if not objects:
            raise NotReady(f"The chart has no {' or '.join(KINDS[source])}, from which its URL would be taken (url.source: {source})")
        give_up = time.monotonic() + timeout_seconds
        while True:
            for item in objects:
                url = await self._readers[item.kind](self, fence, item.name, source, host)
                if url:
                    return url
            rest = give_up - time.monotonic()
            if rest <= 0:
                names = ", ".join(f"{item.kind} {item.name}" for item in objects)
                raise NotReady(f"No address for the preview in {timeout_seconds:g} s: {names} (url.source: {source})")
            await asyncio.sleep(min(POLL_SECONDS, rest))

    async def _service(self, fence: Fence, name: str, source: UrlSource, host: str) -> str:
        path = f"/api/v1/namespaces/{fence.namespace}/services/{name}"
        found = await self._actors.api(fence).find(path, Service)
        if found is None or not found.spec.ports:
            return ""
        port = next((item for item in found.spec.ports if item.name in ("http", "https", "web")), found.spec.ports[0])
        scheme = "https" if port.name == "https" or port.port == HTTPS_PORT else "http"
        if source is UrlSource.NODE_PORT:
            return f"{scheme}://{_bracketed(host)}:{port.node_port}/" if port.node_port else ""
        address = _address(found.status.load_balancer)
        is_usual = port.port == (HTTPS_PORT if scheme == "https" else 80)
        return f"{scheme}://{_bracketed(address)}{'' if is_usual else f':{port.port}'}/" if address else ""

    async def _ingress(self, fence: Fence, name: str, _source: UrlSource, _host: str) -> str:
        path = f"/apis/networking.k8s.io/v1/namespaces/{fence.namespace}/ingresses/{name}"
        found = await self._actors.api(fence).find(path, Ingress)
        if found is None:
            return ""
        host = next((rule.host for rule in found.spec.rules if rule.host and not rule.host.startswith("*")), "")
        scheme = "https" if any(host in tls.hosts or not tls.hosts for tls in found.spec.tls) else "http"
        address = host or _address(found.status.load_balancer)
        return f"{scheme}://{_bracketed(address)}/" if address else ""

    async def _route(self, fence: Fence, name: str, _source: UrlSource, _host: str) -> str:
        path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{fence.namespace}/httproutes/{name}"
        found = await self._actors.api(fence).find(path, Route)
        host = next((item for item in found.spec.hostnames if not item.startswith("*")), "") if found else ""
        if found is None or not host:
            return ""
        is_https = any(parent.port == HTTPS_PORT or parent.section_name.startswith("https") for parent in found.spec.parent_refs)
        return f"{'https' if is_https else 'http'}://{host}/"

    _readers: ClassVar[dict[str, Callable[[Urls, Fence, str, UrlSource, str], Awaitable[str]]]] = {
        "Service": _service,
        "Ingress": _ingress,
        "HTTPRoute": _route,
    }


def _address(balancer: Balancer) -> str:
    return next((item.hostname or item.ip for item in balancer.ingress if item.hostname or item.ip), "")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
