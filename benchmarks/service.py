"""What the job service stands: clients, submissions, solves, and memory over many jobs.

    python benchmarks/service.py             # about four minutes
    python benchmarks/service.py --quick     # a tenth of everything

Starts `mpsearch serve` on a free port with a new data folder on this disk (SQLite, every commit on
the disk before its answer), and drives it from one process of plain sockets:

polling     200 clients, each reading its job every second and submitting every five, while the
            dispatcher searches (niced, one thread)
submitting  50 clients, each submitting again as soon as it has the answer
solving     POST /v1/solve of a problem of 200 groups x 8 options, one after the other
memory      jobs through an executor that ends each at once; server and dispatcher before and after

Reference for submissions: bare commits of a row to SQLite with the same setting, on the same disk,
in the same run; for reads: GET /healthz among the same clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from service_server import Connection, Server, resident

JOB = {
    "model": "digits-resnet",
    "data": "digits",
    "options": ["w2a8", "w3a8", "w4a8", "w6a8", "w8a8"],
    "budget": {"weight_memory": "0.12x"},
}
CLIENTS = 200
SUBMITTERS = 50
P99_LIMIT = 0.150
SUBMISSIONS_LIMIT = 100.0


@dataclass
class Tally:
    """Latencies in seconds by kind, and what went wrong."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    async def timed(
        self, kind: str, call: Callable[[], Awaitable[tuple[int, bytes]]], expected: int
    ) -> bytes:
        """Time a request, and note an unexpected status."""
        began = time.perf_counter()
        status, body = await call()
        self.seconds.setdefault(kind, []).append(time.perf_counter() - began)
        if status != expected:
            self.errors.append(f"{kind}: {status} {body[:200]!r}")
        return body

    def row(self, kind: str) -> str:
        """Describe one kind."""
        found = sorted(self.seconds.get(kind, []))
        if not found:
            return f"{kind:>12}: none"
        at = {share: found[min(len(found) - 1, int(share * len(found)))] for share in (0.5, 0.99)}
        return (
            f"{kind:>12}: {len(found):6d} requests, median {at[0.5] * 1e3:7.1f} ms, "
            f"p99 {at[0.99] * 1e3:7.1f} ms, worst {found[-1] * 1e3:7.1f} ms"
        )

    def p99(self, kind: str) -> float:
        """Return the 99th percentile, seconds."""
        found = sorted(self.seconds[kind])
        return found[min(len(found) - 1, int(0.99 * len(found)))]


async def polling(port: int, seconds: float) -> Tally:
    """Let 200 clients poll and submit at a human's pace."""
    tally = Tally()
    over = time.monotonic() + seconds

    async def client(number: int) -> None:
        rng = random.Random(number)
        connection = Connection(port)
        # Over as long as it takes them to submit once: no herd at the start.
        await asyncio.sleep(rng.uniform(0, 5))
        body = json.dumps(JOB | {"seed": number}).encode()
        job = ""
        turn = rng.randrange(5)
        while time.monotonic() < over:
            if not job or turn % 5 == 0:
                answer = await tally.timed(
                    "POST job", lambda: connection.ask("POST", "/v1/jobs", body), 202
                )
                job = json.loads(answer).get("id", "")
            await tally.timed(
                "GET job", lambda job=job: connection.ask("GET", f"/v1/jobs/{job}"), 200
            )
            if turn % 10 == 1:
                await tally.timed("GET healthz", lambda: connection.ask("GET", "/healthz"), 200)
            turn += 1
            await asyncio.sleep(rng.uniform(0.8, 1.2))

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return tally


async def submitting(port: int, seconds: float) -> tuple[Tally, float]:
    """Let clients submit as fast as answers come; return the accepted submissions per second."""
    tally = Tally()
    began = time.monotonic()
    over = began + seconds

    async def client(number: int) -> None:
        connection = Connection(port)
        body = json.dumps(JOB | {"seed": number}).encode()
        while time.monotonic() < over:
            await tally.timed("POST job", lambda: connection.ask("POST", "/v1/jobs", body), 202)

    await asyncio.gather(*(client(number) for number in range(SUBMITTERS)))
    accepted = len(tally.seconds["POST job"]) - len(tally.errors)
    return tally, accepted / (time.monotonic() - began)


async def solving(port: int, count: int) -> Tally:
    """Solve problems of 200 x 8 one after the other."""
    tally = Tally()
    connection = Connection(port)
    for seed in range(count + 2):
        body = json.dumps(problem(200, 8, seed)).encode()
        kind = "warming" if seed < 2 else "solve 200x8"
        await tally.timed(kind, lambda body=body: connection.ask("POST", "/v1/solve", body), 200)
    return tally


def problem(groups: int, options: int, seed: int) -> dict[str, object]:
    """Return a random problem with one budget that binds."""
    rng = random.Random(seed)
    rows = []
    total = 0.0
    for row in range(groups):
        weights, sensitivity = rng.lognormvariate(10, 1), rng.lognormvariate(0, 1.5)
        total += weights
        rows.append(
            {
                "name": f"layer{row}",
                "options": [
                    {
                        "name": f"w{bits}",
                        "loss": sensitivity * 4.0**-bits * rng.lognormvariate(0, 0.2),
                        "costs": {"size": weights * bits / 8},
                    }
                    for bits in range(2, 2 + options)
                ],
            }
        )
    return {"groups": rows, "limits": {"size": total * 4.5 / 8}}


def bare_commits(folder: Path, seconds: float) -> float:
    """Return commits per second of one row each, at `synchronous=FULL`, from one thread."""
    database = sqlite3.connect(folder / "bare.db", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE t (body TEXT)")
    body = json.dumps(JOB)
    began = time.perf_counter()
    count = 0
    while time.perf_counter() - began < seconds:
        database.execute("INSERT INTO t VALUES (?)", (body,))
        count += 1
    database.close()
    return count / (time.perf_counter() - began)


DISPATCHER = """
import sys, threading, signal
from mpsearch_api.blobs import open_blobs
from mpsearch_api.execution.dispatcher import Dispatcher
from mpsearch_api.execution.port import Ended
from mpsearch_api.logs import configure_logs
from mpsearch_api.settings import Settings
from mpsearch_api.store import open_store

class Done:
    def updates(self): return []
    def ended(self): return Ended()
    def kill(self): pass

class AtOnce:
    elsewhere = False
    def start(self, assignment): return Done()
    def ready(self): return None
    def close(self): pass

settings = Settings()
configure_logs(settings)
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
Dispatcher(settings, open_store(settings), open_blobs(settings), AtOnce()).run(stopped)
"""


async def memory(
    server: Server, dispatcher: subprocess.Popen[bytes], count: int
) -> list[tuple[int, float, float]]:
    """Send jobs through an executor that ends each at once; return memory as they end."""
    found = []
    ended = 0
    batch = max(100, count // 10)
    while ended < count:
        waiting: asyncio.Queue[int] = asyncio.Queue()
        for number in range(ended, ended + batch):
            waiting.put_nowait(number)

        async def client(waiting: asyncio.Queue[int] = waiting) -> None:
            connection = Connection(server.port)
            while not waiting.empty():
                body = json.dumps(JOB | {"seed": waiting.get_nowait()}).encode()
                _, answer = await connection.ask("POST", "/v1/jobs", body)
                job = json.loads(answer)["id"]
                while True:
                    _, answer = await connection.ask("GET", f"/v1/jobs/{job}?wait=30")
                    if json.loads(answer)["status"] == "succeeded":
                        break
                    if dispatcher.poll() is not None:
                        raise SystemExit("the dispatcher died")

        await asyncio.gather(*(client() for _ in range(SUBMITTERS)))
        ended += batch
        found.append((ended, resident(server.process.pid), resident(dispatcher.pid)))
        print(f"{ended:8d} jobs: server {found[-1][1]:.1f} MiB, dispatcher {found[-1][2]:.1f} MiB")
    return found


def measure_load(folder: Path, share: float) -> list[str]:
    """Run the first three parts; return what was missed."""
    missed = []
    with Server(folder, "--workers", "1") as server:
        print("solving, nothing else running")
        tally = asyncio.run(solving(server.port, max(5, int(40 * share))))
        print(tally.row("solve 200x8"))
        errors = tally.errors
        median = statistics.median(tally.seconds["solve 200x8"])
        if median > 0.1:
            missed.append(f"solve 200x8: median {median:.3f} s > 0.1 s")
        print(f"polling: {CLIENTS} clients, a search running")
        tally = asyncio.run(polling(server.port, max(15.0, 60 * share)))
        for kind in ("GET job", "POST job", "GET healthz"):
            print(tally.row(kind))
        errors += tally.errors
        if tally.p99("GET job") > P99_LIMIT:
            missed.append(f"GET job: p99 {tally.p99('GET job'):.3f} s > {P99_LIMIT} s")
        print(f"submitting: {SUBMITTERS} clients, a search running")
        tally, rate = asyncio.run(submitting(server.port, max(5.0, 20 * share)))
        errors += tally.errors
        bare = bare_commits(folder, 2.0)
        print(tally.row("POST job"))
        print(f"{rate:.0f} accepted/s; bare commits {bare:.0f}/s; ratio {rate / bare:.2f}")
        if rate < SUBMISSIONS_LIMIT:
            missed.append(f"{rate:.0f} accepted submissions/s < {SUBMISSIONS_LIMIT:.0f}")
    missed += [f"{len(errors)} errors, such as {errors[0]}"] if errors else []
    return missed


def measure_memory(folder: Path, count: int) -> list[str]:
    """Run the last part; return what was missed."""
    with Server(folder, "--no-dispatch") as server:
        environment = os.environ | {
            "MPSEARCH_DATA_DIR": str(folder / "data"),
            "MPSEARCH_WORKERS": "64",
            "MPSEARCH_POLL": "0.02",
            "MPSEARCH_LOG_LEVEL": "warning",
        }
        dispatcher = subprocess.Popen([sys.executable, "-c", DISPATCHER], env=environment)
        try:
            print(f"memory over {count} jobs")
            found = asyncio.run(memory(server, dispatcher, count))
        finally:
            dispatcher.terminate()
            dispatcher.wait(60)
    # The first fifth fills pools and caches.
    first, last = found[len(found) // 5], found[-1]
    missed = []
    for name, before, after in (
        ("server", first[1], last[1]),
        ("dispatcher", first[2], last[2]),
    ):
        grown = (after - before) / (last[0] - first[0]) * 1024
        print(f"{name}: {before:.1f} MiB after {first[0]}, {after:.1f} MiB after {last[0]} jobs "
              f"({grown:.2f} KiB a job)")  # fmt: skip
        if after > before * 1.1:
            missed.append(f"{name}: grew from {before:.1f} to {after:.1f} MiB")
    return missed


def main() -> None:
    """Run everything; exit with 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--only", choices=["load", "memory"], help="one part")
    arguments = parser.parse_args()
    share = 0.1 if arguments.quick else 1.0
    missed = []
    for name, part in (
        ("load", lambda folder: measure_load(folder, share)),
        ("memory", lambda folder: measure_memory(folder, int(10_000 * share))),
    ):
        if arguments.only in {None, name}:
            with tempfile.TemporaryDirectory(prefix="mpsearch-bench-", dir=".") as folder:
                missed += part(Path(folder))
    for line in missed:
        print("MISSED", line)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
