"""A profile and costs of the bundled example, made once, and a service that runs jobs."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import mpsearch as mp

MENU = ["w2a8", "w3a8", "w4a8", "w6a8", "w8a8"]


@pytest.fixture(scope="session")
def digits_profile() -> mp.Profile:
    return mp.profile("digits-resnet", "digits", MENU, "measured_loss")


@pytest.fixture(scope="session")
def digits_costs() -> mp.Costs:
    return mp.price("digits-resnet", "digits", MENU)


@dataclass
class Served:
    """`mpsearch serve` with its jobs, on a free port, over a folder that outlives it.

    Attributes:
        folder: Data of the service.
        port: Where it listens.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()[-4000:]

    def start(self) -> None:
        program = Path(sys.executable).with_name("mpsearch")
        arguments = ["serve", "--port", str(self.port), "--data-dir", self.folder / "data"]
        with (self.folder / "log.txt").open("ab") as log:
            # A session of its own, so that killing the server is not killing the tests.
            self.process = subprocess.Popen(
                [program, *arguments, "--no-page"], stdout=log, stderr=log, start_new_session=True
            )

    def wait_until_ready(self, seconds: float = 120.0) -> None:
        from mpsearch.client import Client, UnreachableError

        deadline = time.monotonic() + seconds
        while True:
            try:
                with Client(self.address) as client:
                    return client.ready()
            except UnreachableError as error:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise AssertionError(f"the service does not start: {self.log}") from error
            time.sleep(0.1)

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        self.process.send_signal(signal_number)
        self.process.wait(60)


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> Iterator[Served]:
    """The service on this machine; a test that kills it starts it again."""
    pytest.importorskip("fastapi", reason="the service is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    service = Served(tmp_path_factory.mktemp("served"), port)
    service.start()
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.kill(signal.SIGTERM)
