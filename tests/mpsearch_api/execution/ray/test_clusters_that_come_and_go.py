"""A cluster that is not there, comes, goes and comes back; and one that lets everyone in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mpsearch.schemas.jobs import JobRequest
from mpsearch_api.blobs import open_blobs
from mpsearch_api.execution.dispatcher import Dispatcher, make_executor
from mpsearch_api.execution.folders import dispatchers
from mpsearch_api.settings import Settings
from mpsearch_api.store import open_store
from tests.mpsearch_api.execution.ray.clusters import (
    ClusterProcess,
    free_port,
    own_address,
    ray_program,
    settings_for,
    wait_until,
)

pytest.importorskip("ray", reason="Ray is not installed: pip install 'mpsearch[ray]'")
pytestmark = pytest.mark.slow


def meanwhile(turn: Callable[[], object], work: Callable[[], object]) -> None:
    """Do something slow in a thread while the dispatcher turns."""
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        turn()
        thread.join(0.02)


def test_jobs_wait_for_a_cluster_that_is_away_and_run_when_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token-that-both-know-0123456789")
    port = free_port()
    address = f"{own_address()}:{port}"
    settings = Settings(data_dir=tmp_path, executor="ray", ray_address=address, heartbeat=0.2)
    store = open_store(settings)
    executor = make_executor(settings, ray_program())
    dispatcher = Dispatcher(settings, store, open_blobs(settings), executor)

    def submit() -> str:
        request = JobRequest(
            model="digits-resnet", data="digits", budget={"weight_memory": "0.12x"}, label="quick"
        )
        return store.jobs.submit("t", request)[0].id

    def turn_until(done: Callable[[], object]) -> None:
        wait_until(lambda: dispatcher.turn() or done(), lambda: told(), 240.0)

    def told() -> str | None:
        (state,) = dispatchers(tmp_path)
        return state.executor

    def status(job: str) -> str:
        return store.jobs.get("t", job).status

    def start() -> ClusterProcess:
        return ClusterProcess(port, nodes=1, token="a-token-that-both-know-0123456789")

    try:
        first = submit()
        turn_until(lambda: "cannot be reached" in (told() or ""))
        assert address in told()
        assert status(first) == "queued"
        cluster = start()
        meanwhile(dispatcher.turn, cluster.wait)
        turn_until(lambda: status(first) == "succeeded")
        meanwhile(dispatcher.turn, cluster.close)
        turn_until(lambda: "cannot be reached" in (told() or ""))
        second = submit()
        for _ in range(20):
            dispatcher.turn()
        assert status(second) == "queued"
        cluster = start()
        try:
            meanwhile(dispatcher.turn, cluster.wait)
            turn_until(lambda: status(second) == "succeeded")
        finally:
            dispatcher.close()
            cluster.close()
    finally:
        executor.close()
        store.close()


def test_a_cluster_that_asks_for_no_token_is_refused_unless_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = ClusterProcess(mode="disabled", nodes=0).wait()
    try:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
        monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
        executor = make_executor(settings_for(cluster, tmp_path), ray_program())
        try:
            wait_until(lambda: "asks for no token" in (executor.ready() or ""), executor.ready)
        finally:
            executor.close()
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        executor = make_executor(settings_for(cluster, tmp_path), ray_program())
        try:
            wait_until(lambda: executor.ready() is None, executor.ready)
        finally:
            executor.close()
    finally:
        cluster.close()
