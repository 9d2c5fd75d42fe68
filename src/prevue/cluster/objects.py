"""The few fields of Kubernetes objects that Prevue reads, as msgspec structs: an event is decoded in microseconds, the rest is skipped.

lightkube's own models know every field; a burst of fifty previews has thousands of events, each of some 5 kB, on the same two cores as
the previews themselves.
"""

from __future__ import annotations

import msgspec


class K8s(msgspec.Struct, frozen=True, rename="camel"):
    """Field names are Kubernetes' in snake case."""


class Owner(K8s, frozen=True):
    """A metadata.ownerReferences entry."""

    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False


class Meta(K8s, frozen=True):
    """metadata."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    owner_references: list[Owner] = []


class Metadata(K8s, frozen=True):
    """Any object, its metadata alone."""

    metadata: Meta = Meta()


class MetadataList(K8s, frozen=True):
    """A list of metadata, such as PartialObjectMetadataList."""

    metadata: Meta = Meta()
    items: list[Metadata] | None = None
    """None: empty; the API server writes null there."""


class Condition(K8s, frozen=True):
    """A status condition."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class Strategy(K8s, frozen=True):
    """spec.updateStrategy."""

    type: str = "RollingUpdate"


class WorkloadSpec(K8s, frozen=True):
    """spec of the four kinds of workload."""

    replicas: int = 1
    suspend: bool = False
    update_strategy: Strategy = Strategy()


class WorkloadStatus(K8s, frozen=True):
    """status of the four kinds of workload."""

    observed_generation: int = 0
    replicas: int = 0
    updated_replicas: int = 0
    ready_replicas: int = 0
    available_replicas: int = 0
    current_revision: str = ""
    update_revision: str = ""
    desired_number_scheduled: int = 0
    updated_number_scheduled: int = 0
    number_available: int = 0
    failed: int = 0
    conditions: list[Condition] = []


class Workload(K8s, frozen=True):
    """A Deployment, StatefulSet, DaemonSet or Job."""

    metadata: Meta = Meta()
    spec: WorkloadSpec = WorkloadSpec()
    status: WorkloadStatus = WorkloadStatus()


class Container(K8s, frozen=True):
    """A container of a pod's spec."""

    name: str = ""
    image: str = ""


class PodSpec(K8s, frozen=True):
    """spec of a pod."""

    containers: list[Container] = []
    init_containers: list[Container] = []


class Waiting(K8s, frozen=True):
    """state.waiting."""

    reason: str = ""
    message: str = ""


class Terminated(K8s, frozen=True):
    """state.terminated."""

    reason: str = ""
    message: str = ""
    exit_code: int = 0


class ContainerState(K8s, frozen=True):
    """state and lastState."""

    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(K8s, frozen=True):
    """status of one container."""

    name: str = ""
    ready: bool = False
    restart_count: int = 0
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodStatus(K8s, frozen=True):
    """status of a pod."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: list[Condition] = []
    container_statuses: list[ContainerStatus] = []
    init_container_statuses: list[ContainerStatus] = []


class Pod(K8s, frozen=True):
    """A pod."""

    metadata: Meta = Meta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class ServicePort(K8s, frozen=True):
    """A port of a Service."""

    name: str = ""
    port: int = 0
    node_port: int = 0


class ServiceSpec(K8s, frozen=True):
    """spec of a Service."""

    type: str = "ClusterIP"
    ports: list[ServicePort] = []


class BalancerAddress(K8s, frozen=True):
    """An address of a load balancer."""

    ip: str = ""
    hostname: str = ""


class Balancer(K8s, frozen=True):
    """status.loadBalancer."""

    ingress: list[BalancerAddress] = []


class AddressStatus(K8s, frozen=True):
    """status of a Service or an Ingress."""

    load_balancer: Balancer = Balancer()


class Service(K8s, frozen=True):
    """A Service."""

    metadata: Meta = Meta()
    spec: ServiceSpec = ServiceSpec()
    status: AddressStatus = AddressStatus()


class IngressRule(K8s, frozen=True):
    """A rule of an Ingress."""

    host: str = ""


class IngressTls(K8s, frozen=True):
    """A TLS entry of an Ingress."""

    hosts: list[str] = []


class IngressSpec(K8s, frozen=True):
    """spec of an Ingress."""

    rules: list[IngressRule] = []
    tls: list[IngressTls] = []


class Ingress(K8s, frozen=True):
    """An Ingress."""

    metadata: Meta = Meta()
    spec: IngressSpec = IngressSpec()
    status: AddressStatus = AddressStatus()


class ParentRef(K8s, frozen=True):
    """The gateway listener that an HTTPRoute hangs on."""

    section_name: str = ""
    port: int = 0


class RouteSpec(K8s, frozen=True):
    """spec of an HTTPRoute."""

    hostnames: list[str] = []
    parent_refs: list[ParentRef] = []


class Route(K8s, frozen=True):
    """An HTTPRoute."""

    metadata: Meta = Meta()
    spec: RouteSpec = RouteSpec()


class Event(K8s, frozen=True):
    """An event about an object."""

    reason: str = ""
    message: str = ""
    type: str = ""
    involved_object: Owner = Owner()


class EventList(K8s, frozen=True):
    """A list of events."""

    items: list[Event] = []


class Secret(K8s, frozen=True):
    """A Secret."""

    metadata: Meta = Meta()
    data: dict[str, str] = {}
