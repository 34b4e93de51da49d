"""Real Ray clusters for tests, and what executors on them need."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mpsearch_api.execution.local import Program
from mpsearch_api.settings import Settings

HERE = Path(__file__).parent
PATHS = (str(HERE), str(HERE.parent))
START = 240.0


def ray_program(*, torch: bool = False) -> Program:
    return Program(
        target="jobs_for_ray:run",
        prepare=None,
        preload=("torch",) if torch else (),
        when_idle=(),
        paths=PATHS,
    )


def ray_environment(mode: str = "token", token: str = "") -> dict[str, str]:
    """Give an environment without any of Ray's variables but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    kept |= {"RAY_AUTH_MODE": mode, "RAY_USAGE_STATS_ENABLED": "0"}
    # As docs/service.md has it for nodes: sums are split by threads.
    kept |= {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return kept | ({"RAY_AUTH_TOKEN": token} if token else {})


class ClusterProcess:
    """A cluster that is started, changed and ended by its process."""

    def __init__(
        self, port: int = 0, *, mode: str = "token", nodes: int = 2, token: str | None = None
    ) -> None:
        """Start the process, which ends with the thread that calls this; see `wait`."""
        self.token = token or secrets.token_hex(32)
        self.mode = mode
        environment = ray_environment(mode, self.token if mode == "token" else "")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "cluster_process.py"), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"PYTHONPATH": os.pathsep.join(PATHS)},
            text=True,
            bufsize=1,
        )
        self._nodes = nodes
        self._raylets: dict[str, int] = {}
        self.address = ""

    def wait(self) -> ClusterProcess:
        """Wait until the cluster answers; may be called from any thread."""
        self.address = self._answer()["address"]
        self.restore(self._nodes)
        return self

    @property
    def nodes(self) -> set[str]:
        """Ids of the nodes that jobs may run on."""
        return set(self._raylets)

    def restore(self, nodes: int = 2) -> None:
        """Start nodes until there are so many."""
        while len(self._raylets) < nodes:
            self._process.stdin.write("add 1\n")
            found = self._answer()
            self._raylets[found["node"]] = found["raylet"]

    def kill(self, node: str) -> None:
        """Kill every process of a node with SIGKILL."""
        self._process.stdin.write(f"kill {node}\n")
        self._answer()
        del self._raylets[node]

    def home_of(self, job: str) -> str:
        """Name the node that a job's own process runs on, by its ancestors."""
        nodes = {raylet: node for node, raylet in self._raylets.items()}
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and f"/{job}-" in _cwd(process):
                pid = int(process.name)
                while pid not in nodes and pid > 1:
                    pid = _parent(pid)
                if pid in nodes:
                    return nodes[pid]
        raise AssertionError(f"no process of {job} on any node")

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _answer(self) -> dict[str, str]:
        assert select.select([self._process.stdout], [], [], START)[0], "the cluster hangs"
        line = self._process.stdout.readline()
        assert line, "the cluster's process died"
        return json.loads(line)


def _cwd(process: Path) -> str:
    with contextlib.suppress(OSError):
        return str((process / "cwd").readlink())
    return ""


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def settings_for(cluster: ClusterProcess, folder: Path, **fields: object) -> Settings:
    return Settings(data_dir=folder, executor="ray", ray_address=cluster.address, **fields)


def wait_until(
    done: Callable[[], object], say: Callable[[], object] = lambda: "", seconds: float = 180.0
) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, say()
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_address() -> str:
    """Give the address that Ray will choose for this machine."""
    import ray

    return ray.util.get_node_ip_address()
