"""Waiting for a server and a browser."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

from mpsearch.client import Client
from mpsearch.errors import MpsearchError

SCREENSHOTS = Path(__file__).parents[3] / "out" / "screenshots"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def is_ready(address: str) -> bool:
    try:
        Client(address).ready()
    except MpsearchError:
        return False
    return True


def wait_until(
    holds: Callable[[], object], seconds: float, explain: Callable[[], str] = str
) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"did not happen within {seconds} s\n{explain()}")
        time.sleep(0.1)
