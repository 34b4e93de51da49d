"""A server to measure, and a client of few instructions."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

__all__ = ["Connection", "Server", "resident"]

MAIN = "from mpsearch.cli import main; main()"


class Connection:
    """One client: HTTP/1.1 on a kept connection, little enough to leave the cores to the server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request; return status and body."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        if body:
            head += "Content-Type: application/json\r\n"
        writer.write(head.encode() + b"\r\n" + body)
        status = int((await reader.readuntil(b"\r\n")).split(b" ", 2)[1])
        length = 0
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, await reader.readexactly(length)


class Server:
    """`mpsearch serve` on a free port; a context manager."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        self.port = 0

    def __enter__(self) -> Server:
        environment = os.environ | {
            "MPSEARCH_REQUESTS_PER_MINUTE": "1000000000",
            "MPSEARCH_OPEN_JOBS": "1000000000",
            "MPSEARCH_LOG_LEVEL": "warning",
            "COLUMNS": "200",
        }
        command = [sys.executable, "-c", MAIN, "serve", "--port", "0", "--no-page"]
        command += ["--data-dir", str(self._folder / "data"), *self._options]
        self.process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "serves on http" in line:
                self.port = int(line.split("http://127.0.0.1:")[1].split()[0])
                break
        # Whatever else it says must not fill the pipe.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self._wait_until_ready()
        return self

    def _wait_until_ready(self) -> None:
        async def ask() -> int:
            # The dispatcher imports torch first, which is no part of what is measured.
            path = "/v1/estimators" if "--no-dispatch" in self._options else "/readyz"
            return (await Connection(self.port).ask("GET", path))[0]

        deadline = time.monotonic() + 120
        while True:
            try:
                if asyncio.run(ask()) == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the service did not start")
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def resident(pid: int) -> float:
    """Return the resident memory of a process, MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
