"""One Slurm cluster for the tests of this folder; where none can be started they are skipped."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from cluster import Cluster, lacks


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Cluster]:
    missing = lacks()
    if missing:
        pytest.skip(missing)
    with Cluster(num_nodes=4) as cluster:
        yield cluster


@pytest.fixture
def slurm(_cluster: Cluster) -> Iterator[Cluster]:
    """Four idle nodes vn1 to vn4 and an empty queue; what a test leaves is cleared away."""
    yield _cluster
    _cluster.restore()


@pytest.fixture
def own_nodes(slurm: Cluster) -> Cluster:
    """The same, for tests that need what only nodes with a network of their own have."""
    if slurm.mode != "net":
        pytest.skip("namespaces are forbidden here, so the nodes share one network and hostname")
    return slurm
