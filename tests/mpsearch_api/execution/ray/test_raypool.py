"""`RayPool` on a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra `evolve` is not installed")

from mpsearch_api.execution.processes import die_with_parent
from tests.mpsearch_api.execution.ray.clusters import HERE, PATHS, ray_environment


@pytest.mark.slow
def test_a_pool_behaves_as_executors_do_and_survives_its_workers(cluster, tmp_path: Path) -> None:
    environment = ray_environment("token", cluster.token)
    me = os.getpid()
    ended = subprocess.run(
        [sys.executable, str(HERE / "pool_script.py"), cluster.address, str(tmp_path)],
        env=environment | {"PYTHONPATH": os.pathsep.join(PATHS)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        preexec_fn=lambda: die_with_parent(me),
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert "started 4 times" in found.pop("lost")
    assert "shutdown" in found.pop("after shutdown")
    assert found == {
        "die_once": "survived",
        "starts": True,
        "error": "ValueError",
        "one object in each worker": True,
        "cancelled": True,
        "ended": True,
        "equal": True,
        "trials": True,
    }
