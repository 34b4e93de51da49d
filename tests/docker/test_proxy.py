"""The proxy's configuration, run by Caddy in front of replicas."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CADDYFILE = ROOT / "docker" / "Caddyfile"
SERVER = ROOT / "tests" / "mpsearch_api" / "chaos" / "server_process.py"
MPSEARCH = Path(sys.executable).with_name("mpsearch")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@dataclass(frozen=True)
class Proxy:
    """Caddy with the repository's configuration."""

    port: int

    def get(self, path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body, {k.lower(): v for k, v in answer.getheaders()}


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    caddy = shutil.which("caddy")
    if caddy is None:
        pytest.skip("no Caddy")
    running: list[subprocess.Popen[bytes]] = []

    def start(*replicas: int) -> Proxy:
        port = _free_port()
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "MPSEARCH_SITE": f"http://:{port}",
            "MPSEARCH_REPLICAS": " ".join(f"127.0.0.1:{replica}" for replica in replicas),
            "MPSEARCH_HEALTH_INTERVAL": "200ms",
        }
        command = [caddy, "run", "--adapter", "caddyfile", "--config", str(CADDYFILE)]
        log = (tmp_path / "caddy.log").open("wb")
        running.append(subprocess.Popen(command, env=environment, stderr=log, stdout=log))
        log.close()
        _wait(lambda: _answers(port), 30)
        return Proxy(port)

    yield start
    for process in running:
        process.terminate()
        process.wait(20)


@pytest.fixture
def replicas() -> Iterator[list[ThreadingHTTPServer]]:
    """Two servers that answer with their own number."""

    def made(number: int) -> ThreadingHTTPServer:
        class Numbered(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = str(number).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Numbered)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    servers = [made(number) for number in range(2)]
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_browser_stays_with_its_replica_and_others_do_not(
    start_proxy: Callable[..., Proxy], replicas: list[ThreadingHTTPServer]
) -> None:
    proxy = start_proxy(*(server.server_port for server in replicas))
    assert {proxy.get("/")[1] for _ in range(40)} == {"0", "1"}
    _, first, headers = proxy.get("/")
    cookie = headers["set-cookie"].partition(";")[0]
    assert {proxy.get("/", Cookie=cookie)[1] for _ in range(20)} == {first}


def test_a_replica_that_is_gone_is_left_out(
    start_proxy: Callable[..., Proxy], replicas: list[ThreadingHTTPServer]
) -> None:
    proxy = start_proxy(*(server.server_port for server in replicas))
    _, first, headers = proxy.get("/")
    cookie = headers["set-cookie"].partition(";")[0]
    gone = replicas[int(first)]
    gone.shutdown()
    gone.server_close()
    answers = [proxy.get("/", Cookie=cookie) for _ in range(10)]
    assert {(status, body) for status, body, _ in answers} == {(200, str(1 - int(first)))}


@pytest.mark.slow
def test_two_real_replicas_stream_events_through_it(
    start_proxy: Callable[..., Proxy], tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "MPSEARCH_DATA_DIR": str(tmp_path / "data"),
        "CHAOS_PARENT": str(os.getpid()),
    }
    ports = [_free_port(), _free_port()]
    servers = []
    try:
        for port in ports:
            with (tmp_path / f"{port}.log").open("wb") as log:
                servers.append(
                    subprocess.Popen(
                        [sys.executable, SERVER, str(port)], env=environment, stdout=log, stderr=log
                    )
                )
            _wait(lambda port=port: _answers(port))
        key = subprocess.run(
            [MPSEARCH, "keys", "create", "test"], env=environment, capture_output=True, text=True
        ).stdout.strip()
        proxy = start_proxy(*ports)
        assert set(json.loads(proxy.get("/readyz")[1])["faults"]) == {"dispatcher"}
        _stream_one_job(proxy, key)
    finally:
        for server in servers:
            server.send_signal(signal.SIGTERM)
        for server in servers:
            server.wait(30)


def _stream_one_job(proxy: Proxy, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    body = {
        "model": "digits-resnet",
        "data": "digits",
        "options": ["w4a8", "w8a8"],
        "budget": {"weight_memory": "0.2x"},
    }

    def post(path: str, value: object = None) -> dict[str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
        connection.request("POST", path, json.dumps(value) if value else None, headers)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        assert answer.status < 300, found
        return dict(found)

    job = post("/v1/jobs", body)["id"]
    # Every replica knows it.
    for _ in range(6):
        assert proxy.get(f"/v1/jobs/{job}", **headers)[0] == 200
    stream = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    stream.request(
        "GET", f"/v1/jobs/{job}/events", headers={**headers, "Accept": "text/event-stream"}
    )
    answer = stream.getresponse()
    assert answer.getheader("Content-Type", "").startswith("text/event-stream")
    # The first event comes while the answer goes on: nothing on the way waits for its end.
    first = _next_event(answer)
    assert "queued" in first
    post(f"/v1/jobs/{job}/cancel")
    assert "cancelled" in _next_event(answer)
    stream.close()


def _next_event(answer: http.client.HTTPResponse) -> str:
    while True:
        line = answer.readline().decode()
        assert line, "the stream ended"
        if line.startswith("data:"):
            return line
