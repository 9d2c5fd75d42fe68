"""The cluster's contract on the fake and on a real API server."""

from __future__ import annotations

import pytest

from prevue.cluster.port import FenceKind
from prevue.testing.contracts.cluster import ClusterContract
from prevue.testing.contracts.live import LiveWorld, live_cluster, live_token_world, live_world
from prevue.testing.contracts.worlds import FakeWorld

__all__ = ["live_cluster", "live_token_world", "live_world"]


class TestFakeCluster(ClusterContract):
    """The fake."""

    @pytest.fixture
    def world(self) -> FakeWorld:
        return FakeWorld()


class TestFakeClusterByToken(ClusterContract):
    """The fake, with a token for each claim."""

    @pytest.fixture
    def world(self) -> FakeWorld:
        return FakeWorld(FenceKind.TOKEN)


@pytest.mark.cluster
@pytest.mark.timeout(120, func_only=True)  # building the cluster on a new machine does not count
class TestKubernetesCluster(ClusterContract):
    """The local cluster."""

    @pytest.fixture
    def world(self, live_world: LiveWorld) -> LiveWorld:
        return live_world


@pytest.mark.cluster
@pytest.mark.timeout(120, func_only=True)
class TestKubernetesClusterByToken(ClusterContract):
    """The same with a token for each claim."""

    @pytest.fixture
    def world(self, live_token_world: LiveWorld) -> LiveWorld:
        return live_token_world
