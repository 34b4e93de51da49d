"""The job store: calls per second, beside what the disk allows one writer.

Run: python benchmarks/store.py [--database-url URL] [--folder DIR] [--clients 200] [--jobs 2000]

Every submission is durable when it returns. The bound is measured in the same run: commits per
second of one SQLite connection that writes a row of the same size into the same folder at
`synchronous=FULL`, before and after. Submissions pass it by sharing commits; claims and completions
do not share theirs.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, open_store
from mpsearch_api.store.contract import a_request
from mpsearch_api.store.port import Update

ROW = "x" * 1000


def commits(folder: Path, count: int = 200) -> float:
    """Measure durable commits per second of one bare connection."""
    connection = sqlite3.connect(folder / "bound.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS rows (content TEXT)")
    started = time.perf_counter()
    for _ in range(count):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows VALUES (?)", (ROW,))
        connection.execute("COMMIT")
    seconds = time.perf_counter() - started
    connection.close()
    return count / seconds


def rate(call: Callable[[int], object], count: int, threads: int) -> tuple[float, np.ndarray]:
    """Make calls from several threads; give calls per second and each call's seconds."""
    taken = np.zeros(count)

    def timed(number: int) -> None:
        began = time.perf_counter()
        call(number)
        taken[number] = time.perf_counter() - began

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(timed, range(count)))
    return count / (time.perf_counter() - started), taken


def measure(store: Store, jobs: int, clients: int) -> None:
    """Print one line per call of the store."""
    request = a_request()
    names: list[str] = []

    def submit(number: int) -> None:
        names.append(store.jobs.submit(f"t{number % 8}", request, most_open=100_000)[0].id)

    show(f"submit, {clients} clients", *rate(submit, jobs, clients))
    show("submit, 1 client", *rate(submit, max(jobs // 10, 20), 1))
    show("get, 1 client", *rate(lambda i: store.jobs.get(None, names[i]), jobs, 1))
    show("get, 8 clients", *rate(lambda i: store.jobs.get(None, names[i]), jobs, 8))
    claims = []
    show("claim, 1 worker", *rate(lambda _: claims.append(store.jobs.claim("w", 600)), 200, 1))
    show("claim, 4 workers", *rate(lambda _: claims.append(store.jobs.claim("w", 600)), 200, 4))
    show("lost, 16 claims", *rate(lambda _: store.jobs.lost(claims[:16]), 200, 1))
    show("renew, 16 claims", *rate(lambda _: store.jobs.renew(claims[:16], 600), 100, 1))
    told = [Update("progress", "profile", 0.5, "layer 3 of 9", 1.5)]
    show("report, 1 worker", *rate(lambda i: store.jobs.report(claims[i], told), 200, 1))
    show("complete, 1 worker", *rate(lambda i: store.jobs.complete(claims[i], []), 200, 1))
    stop = threading.Event()
    noise = threading.Thread(target=_submit_until, args=(store, stop))
    noise.start()
    show("get while another submits", *rate(lambda i: store.jobs.get(None, names[i]), jobs, 8))
    stop.set()
    noise.join()


def _submit_until(store: Store, stop: threading.Event) -> None:
    while not stop.is_set():
        store.jobs.submit("noise", a_request())


def show(what: str, per_second: float, seconds: np.ndarray) -> None:
    """Print a rate with its spread."""
    middle, late = np.percentile(seconds * 1000, [50, 99])
    print(f"{what:28s} {per_second:8.0f}/s   median {middle:7.2f} ms   p99 {late:7.2f} ms")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url", help="default: SQLite in a new folder")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        before = commits(Path(folder))
        settings = Settings(data_dir=Path(folder) / "data", database_url=options.database_url)
        store = open_store(settings)
        kind = "PostgreSQL" if store.database.postgres else "SQLite"
        print(f"{kind}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        measure(store, options.jobs, options.clients)
        store.close()
        after = commits(Path(folder))
        print(f"{'bare durable commits':28s} {before:8.0f}/s before, {after:.0f}/s after")


if __name__ == "__main__":
    main()
