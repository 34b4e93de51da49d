"""What the tests of a job store work with: a clock that is set, requests, claims, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from mpsearch.schemas.jobs import Artifact, JobRequest
from mpsearch_api.store.port import Claim, JobStore

__all__ = [
    "DAY",
    "LEASE",
    "NOWHERE",
    "START",
    "SetClock",
    "a_request",
    "all_at_once",
    "an_artifact",
    "claimed",
]

LEASE = 10.0
DAY = 24 * 3600.0
START = 1_800_000_000.0
NOWHERE = "job_00000000000000000000000000"


class SetClock:
    """A clock that stands until it is moved; Unix seconds."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        """Tell the time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on."""
        self.now += seconds


def a_request(label: str = "") -> JobRequest:
    """Make a request; the store reads nothing in it."""
    return JobRequest(
        model="digits-resnet", data="digits", budget={"weight_memory": "0.25x"}, label=label
    )


def claimed(jobs: JobStore, worker: str = "w") -> Claim:
    """Claim a job that is there."""
    claim = jobs.claim(worker, LEASE)
    assert claim is not None
    return claim


def an_artifact(name: str = "allocation.json") -> Artifact:
    """Describe a file."""
    return Artifact(name=name, media_type="application/json", size=7, sha256="ab" * 32)


def all_at_once(tasks: Sequence[Callable[[], None]]) -> None:
    """Run tasks in threads that begin together; an error of one is an error of the test."""
    barrier = threading.Barrier(len(tasks))
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        barrier.wait()
        try:
            task()
        except BaseException as error:  # noqa: BLE001 (told to the test's own thread below)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
