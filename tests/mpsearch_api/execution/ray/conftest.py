"""A Ray cluster of two nodes with token authentication, and executors on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpsearch.schemas.jobs import JobRequest
from mpsearch_api.execution.executors import make_executor
from mpsearch_api.execution.port import Assignment
from mpsearch_api.store.port import Claim
from tests.mpsearch_api.execution.ray.clusters import (
    ClusterProcess,
    ray_program,
    settings_for,
    wait_until,
)

MIB = 2**20


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[ClusterProcess]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mpsearch[ray]'")
    cluster = ClusterProcess().wait()
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(shared_cluster: ClusterProcess) -> ClusterProcess:
    """The cluster with both of its nodes."""
    shared_cluster.restore()
    return shared_cluster


@pytest.fixture
def ray_variables(monkeypatch: pytest.MonkeyPatch, cluster: ClusterProcess) -> None:
    """The cluster's token, in this process's environment."""
    monkeypatch.setenv("RAY_AUTH_MODE", cluster.mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)


@pytest.fixture(scope="session")
def shared_executor(shared_cluster: ClusterProcess, tmp_path_factory) -> Iterator:
    """An executor connected to the cluster, used by many tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", shared_cluster.token)
        patch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
        settings = settings_for(shared_cluster, tmp_path_factory.mktemp("data"))
        executor = make_executor(settings, ray_program())
    wait_until(lambda: executor.ready() is None, lambda: executor.ready())
    yield executor
    executor.close()


@pytest.fixture
def ray_executor(shared_executor) -> Iterator:
    """The executor; what a test leaves running is ended, or it would take room from the next."""
    yield shared_executor
    for run in list(shared_executor._runs.values()):
        run.kill()
    wait_until(lambda: shared_executor.ready() is None and not shared_executor._runs)


@pytest.fixture
def ray_assignment(tmp_path: Path) -> Callable[..., Assignment]:
    """Makes assignments of one label each."""
    made: list[Path] = []

    def make(
        label: str, *, memory: int = 1024 * MIB, seconds: float = 600.0, **fields: object
    ) -> Assignment:
        folder = tmp_path / f"attempt{len(made)}"
        folder.mkdir()
        made.append(folder)
        request = JobRequest(
            model="digits-resnet",
            data="digits",
            budget={"weight_memory": "0.12x"},
            label=label,
            execution={"time_limit": seconds},
        )
        claim = Claim(f"job{tmp_path.name}{len(made)}", "tenant", 1, "worker", request)
        values = {"model": "m", "data": "d", "files": {}, "hardware": None, "memory": memory}
        return Assignment(claim=claim, folder=folder, cache=tmp_path / "cache", **(values | fields))

    return make
