"""A whole service in processes of its own, to be killed piece by piece."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx2

from mpsearch.schemas.jobs import Job, JobRequest
from mpsearch_api.execution.processes import descendants
from mpsearch_api.settings import Settings
from mpsearch_api.store import open_store

HERE = Path(__file__).parent
PATIENCE = 120.0


class Piece:
    """A process of the service that is started again when it was killed."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._command = command
        self._environment = environment
        self._log = log
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and start it again."""
        self.process.send_signal(number)
        self.process.wait(30)
        self.process = self._start()

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


class ChaosService:
    """Server and dispatchers over one database, and a client that does not give up.

    Where the blobs are shared, each dispatcher has a data folder of its own, as on a machine of its
    own.
    """

    def __init__(
        self, settings: Settings, *, dispatchers: int, server: bool, heavy: bool = False
    ) -> None:
        self.settings = settings
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("MPSEARCH_")
        }
        environment |= {
            "CHAOS_PARENT": str(os.getpid()),
            "CHAOS_TORCH": "1" if heavy else "",
            "MPSEARCH_DATA_DIR": str(settings.data_dir),
            "MPSEARCH_DATABASE_URL": settings.database,
            "MPSEARCH_LEASE": str(settings.lease),
            "MPSEARCH_HEARTBEAT": str(settings.heartbeat),
            "MPSEARCH_WORKERS": str(settings.workers),
            "MPSEARCH_MOST_ATTEMPTS": str(settings.most_attempts),
            "MPSEARCH_LOG_FORMAT": "json",
        }
        if settings.blob_url is not None:
            environment["MPSEARCH_BLOB_URL"] = settings.blob_url
        log = settings.data_dir / "chaos.log"
        self.log = log
        self.dispatchers = []
        for number in range(dispatchers):
            folder = settings.data_dir
            if settings.blob_url is not None:
                folder /= f"machine-{number}"
            own = environment | {"MPSEARCH_DATA_DIR": str(folder)}
            command = [sys.executable, str(HERE / "dispatcher_process.py")]
            self.dispatchers.append(Piece(command, own, log))
        self.port = _free_port()
        command = [sys.executable, str(HERE / "server_process.py"), str(self.port)]
        self.server = Piece(command, environment, log) if server else None
        self.store = open_store(settings)
        self._client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10)

    def close(self) -> None:
        self._client.close()
        self.store.close()
        for piece in [*self.dispatchers, *([self.server] if self.server else [])]:
            piece.close()

    def submit(self, label: str, **wishes: object) -> str:
        """Submit: over HTTP, with the same key until it is answered, where there is a server."""
        body = {"model": "digits-resnet", "data": "digits", "label": label}
        body |= {"budget": {"weight_memory": "0.12x"}, **wishes}
        if self.server is None:
            return self.store.jobs.submit("local", JobRequest.model_validate(body))[0].id
        key = {"Idempotency-Key": uuid.uuid4().hex}
        answer = self._insist("POST", "/v1/jobs", json=body, headers=key)
        assert answer.status_code in {200, 202}, answer.text
        return str(answer.json()["id"])

    def cancel(self, job: str) -> Job:
        """Cancel; what it returns has been acknowledged."""
        if self.server is None:
            return self.store.jobs.cancel(None, job)
        answer = self._insist("POST", f"/v1/jobs/{job}/cancel")
        assert answer.status_code == 200, answer.text
        return Job.model_validate_json(answer.content)

    def get(self, job: str) -> Job:
        answer = self._insist("GET", f"/v1/jobs/{job}")
        assert answer.status_code == 200, answer.text
        return Job.model_validate_json(answer.content)

    def _insist(self, method: str, path: str, **content: object) -> httpx2.Response:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                answer = self._client.request(method, path, **content)
            except httpx2.TransportError:
                if time.monotonic() > until:
                    raise
            else:
                if answer.status_code not in {429, 503} or time.monotonic() > until:
                    return answer
            time.sleep(0.1)

    def kill_worker(self, draw: random.Random) -> bool:
        """Kill a nursery, a keeper or a job; False when there is none."""
        born = [pid for each in self.dispatchers for pid in descendants(each.process.pid)]
        if not born:
            return False
        try:
            os.kill(draw.choice(born), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def left_over(self) -> list[int]:
        """Processes that work in folders of attempts."""
        inside = f"{self.settings.data_dir.resolve()}/"
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    place = f"{(process / 'cwd').readlink()}/"
                    if place.startswith(inside) and "/run/" in place:
                        found.append(int(process.name))
                except OSError:
                    continue
        return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
