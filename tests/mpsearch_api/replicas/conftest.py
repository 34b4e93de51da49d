"""Servers and dispatchers as on several machines, which share a database and a blob store alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx2
import pytest

CHAOS = Path(__file__).parents[1] / "chaos"
PATIENCE = 60.0
JOB = {"model": "digits-resnet", "data": "digits", "budget": {"weight_memory": "0.12x"}}


class Machine:
    """A data folder of its own, a server, and perhaps a dispatcher."""

    def __init__(self, folder: Path, shared: dict[str, str], *, dispatcher: bool) -> None:
        folder.mkdir()
        self.folder = folder
        self.log = folder / "log"
        kept = {name: v for name, v in os.environ.items() if not name.startswith("MPSEARCH_")}
        self._environment = kept | {
            "CHAOS_PARENT": str(os.getpid()),
            "MPSEARCH_DATA_DIR": str(folder / "data"),
            "MPSEARCH_LEASE": "3",
            "MPSEARCH_HEARTBEAT": "0.5",
            "MPSEARCH_REQUESTS_PER_MINUTE": "1000000",
            "MPSEARCH_LOG_FORMAT": "json",
            **shared,
        }
        self.port = _free_port()
        self.server = self._start("server_process.py", str(self.port))
        self.dispatcher = self._start("dispatcher_process.py") if dispatcher else None
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE)

    def _start(self, script: str, *given: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(CHAOS / script), *given]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait(self) -> None:
        """Wait until the server answers."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                assert self.client.get("/healthz").status_code == 200
            except httpx2.TransportError:
                assert self.server.poll() is None, self.log.read_text()[-3000:]
                assert time.monotonic() < until
                time.sleep(0.05)
            else:
                return

    def kill_server(self) -> None:
        """Kill it, and start it again on the same port."""
        self.server.send_signal(signal.SIGKILL)
        self.server.wait()
        self.server = self._start("server_process.py", str(self.port))
        self.wait()

    def submit(self, label: str, **headers: str) -> httpx2.Response:
        return self.client.post("/v1/jobs", json=JOB | {"label": label}, headers=headers)

    def stream(self, job: str) -> Iterator[dict]:
        """Give the events of a job as they come."""
        accept = {"Accept": "text/event-stream"}
        with self.client.stream("GET", f"/v1/jobs/{job}/events", headers=accept) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))

    def until(self, job: str, status: str) -> dict:
        """Wait until a job has a status."""
        until = time.monotonic() + PATIENCE
        while True:
            found = self.client.get(f"/v1/jobs/{job}").json()
            if found["status"] == status:
                return found
            assert time.monotonic() < until, found
            time.sleep(0.05)

    def close(self) -> None:
        self.client.close()
        for process in (self.dispatcher, self.server):
            if process is not None:
                process.kill()
                process.wait()


MakeMachine = Callable[..., AbstractContextManager[Machine]]


@pytest.fixture
def make_machine(tmp_path: Path, postgres_url: str) -> MakeMachine:
    """Give a function that starts a machine; variables of its own come by name."""
    shared = {
        "MPSEARCH_DATABASE_URL": postgres_url,
        "MPSEARCH_BLOB_URL": f"file://{tmp_path}/shared",
    }

    @contextmanager
    def made(name: str, *, dispatcher: bool = False, **own: str) -> Iterator[Machine]:
        machine = Machine(tmp_path / name, shared | own, dispatcher=dispatcher)
        try:
            machine.wait()
            yield machine
        finally:
            machine.close()

    return made


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
