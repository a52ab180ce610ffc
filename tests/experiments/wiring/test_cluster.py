"""Which cluster of Ray a command joins."""

from __future__ import annotations

import pytest

from maskgym.errors import UserError
from maskgym.experiments.wiring.cluster import connected

ray = pytest.importorskip("ray")


@pytest.mark.e2e
def test_without_an_address_the_cluster_of_somebody_else_is_left_alone(monkeypatch):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"theirs": 1}})
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with connected(None):
            assert "theirs" not in ray.cluster_resources()
        with connected(cluster.address):
            assert "theirs" in ray.cluster_resources()
    finally:
        cluster.shutdown()


def test_an_address_where_nobody_answers_is_named():
    with (
        pytest.raises(UserError, match=r"^scale\.address=127\.0\.0\.1:9: no cluster answers"),
        connected("127.0.0.1:9"),
    ):
        pass
