"""A Ray cluster with two workers, until standard input ends; prints its address.

In the suite at full length each worker is on a node of its own: a node takes seconds to start.
It is in a process of its own because Ray forks, which a process with JAX should not.
"""

from __future__ import annotations

import os
import sys

from ray.cluster_utils import Cluster

ATTEMPTS = 3
"""Ray gives its own processes 15 s to start, which a busy machine may exceed."""


def started() -> Cluster:
    for _ in range(ATTEMPTS - 1):
        try:
            return with_two_workers()
        except Exception as error:
            print(error, file=sys.stderr)
    return with_two_workers()


def with_two_workers() -> Cluster:
    nodes = 2 if os.environ.get("SUITE") == "full" else 1
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2 // nodes})
    for _ in range(1, nodes):
        cluster.add_node(num_cpus=1)
    return cluster


if __name__ == "__main__":
    cluster = started()
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()
