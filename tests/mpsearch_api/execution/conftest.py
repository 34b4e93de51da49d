"""Executors whose jobs are those of `jobs_for_tests`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpsearch.schemas.jobs import JobRequest
from mpsearch_api.execution.limits import Limits
from mpsearch_api.execution.local import LocalExecutor, Program
from mpsearch_api.execution.port import Assignment, Ended, Run
from mpsearch_api.store.port import Claim, Update

HERE = Path(__file__).parent
MIB = 2**20


def program_of(prepare: str | None = None) -> Program:
    return Program(
        target="jobs_for_tests:run", prepare=prepare, preload=(), when_idle=(), paths=(str(HERE),)
    )


def wait_ready(executor: LocalExecutor) -> None:
    until = time.monotonic() + 120
    while executor.ready() is not None:
        assert time.monotonic() < until, executor.ready()
        time.sleep(0.02)


def wait_ended(run: Run, seconds: float = 150.0) -> tuple[Ended, list[Update]]:
    told: list[Update] = []
    until = time.monotonic() + seconds
    while (ended := run.ended()) is None:
        assert time.monotonic() < until, "the run does not end"
        told += run.updates()
        time.sleep(0.01)
    return ended, told + run.updates()


@pytest.fixture(scope="session")
def program() -> Callable[..., Program]:
    return program_of


@pytest.fixture
def assignment_of(tmp_path: Path) -> Callable[..., Assignment]:
    """Makes assignments of one label each."""
    made = []

    def make(label: str, *, memory: int = 256 * MIB, **fields: object) -> Assignment:
        folder = tmp_path / f"attempt{len(made)}"
        folder.mkdir()
        made.append(folder)
        request = JobRequest(
            model="digits-resnet", data="digits", budget={"weight_memory": "0.12x"}, label=label
        )
        claim = Claim(f"job{len(made)}", "tenant", 1, "worker", request)
        cache = tmp_path / "cache"
        values = {"model": "m", "data": "d", "files": {}, "hardware": None, "memory": memory}
        return Assignment(claim=claim, folder=folder, cache=cache, **(values | fields))

    return make


@pytest.fixture(scope="session", params=["apart", "together"])
def executor(request: pytest.FixtureRequest) -> Iterator[LocalExecutor]:
    """An executor where namespaces are given, and one where they are refused."""
    prepare = None if request.param == "apart" else "jobs_for_tests:refuse_namespaces"

    def limits(assignment: Assignment) -> Limits:
        # Only jobs that never end meet their time limit, however slow the machine is.
        endless = assignment.claim.request.label in {"sleep", "spin"}
        seconds = 3.0 if endless else 120.0
        return Limits(assignment.memory, seconds, processes=64, file_bytes=64 * MIB)

    executor = LocalExecutor(limits, program_of(prepare))
    wait_ready(executor)
    yield executor
    executor.close()


@pytest.fixture
def ended(executor: LocalExecutor) -> Iterator[Callable[..., tuple[Ended, list[Update]]]]:
    """Runs assignments to their end; their folders are removed after the test."""
    runs: list[Run] = []

    def run(assignment: Assignment) -> tuple[Ended, list[Update]]:
        runs.append(executor.start(assignment))
        return wait_ended(runs[-1])

    yield run
    for each in runs:
        each.kill()
