"""The whole way: `mpsearch serve` with jobs on a cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mpsearch_api.execution.processes import die_with_parent
from tests.mpsearch_api.execution.ray.clusters import PATHS, ray_environment, wait_until

pytestmark = pytest.mark.slow

SERVE = "from mpsearch.cli import main; main()"
JOB = {
    "model": "digits-resnet",
    "data": "digits",
    "options": ["w2a8", "w8a8"],
    "budget": {"weight_memory": "0.12x"},
    "verify": False,
}


def ask(url: str, body: object = None) -> tuple[int, dict]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_search_by_http_runs_on_the_cluster_and_its_files_come_back(
    cluster, tmp_path: Path
) -> None:
    log = tmp_path / "serve.log"
    me = os.getpid()
    settings = {
        "MPSEARCH_EXECUTOR": "ray",
        "MPSEARCH_RAY_ADDRESS": cluster.address,
        "MPSEARCH_DATA_DIR": str(tmp_path / "data"),
        "COLUMNS": "200",
        "PYTHONPATH": os.pathsep.join(PATHS),
    }
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, "serve", "--port", "0", "--no-page"],
            env=ray_environment("token", cluster.token) | settings,
            stderr=output,
            stdout=output,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(me),
        )
    try:
        wait_until(lambda: "serves on http" in log.read_text(), log.read_text)
        base = log.read_text().split("serves on ")[1].split()[0]
        wait_until(lambda: ask(f"{base}/readyz")[0] == 200, lambda: ask(f"{base}/readyz"))
        status, job = ask(f"{base}/v1/jobs", JOB)
        assert status in {201, 202}, job
        address = f"{base}/v1/jobs/{job['id']}"
        # One request waits long; many would be too many.
        wait_until(
            lambda: ask(f"{address}?wait=30")[1]["status"] in {"succeeded", "failed"},
            log.read_text,
            300.0,
        )
        found = ask(address)[1]
        assert found["status"] == "succeeded", found
        _, answer = ask(f"{address}/artifacts/allocation.json")
        assert set(answer["groups"].values()) <= {"w2a8", "w8a8"}
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    assert server.returncode == 0, log.read_text()[-2000:]
