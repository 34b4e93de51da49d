"""What jobs and workers of these tests run; both find this module by PYTHONPATH."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from pathlib import Path

import jobs_for_tests

from mpsearch_api.execution.child import MADE
from mpsearch_api.execution.outcome import Made
from mpsearch_api.execution.port import Assignment
from mpsearch_api.execution.runner import run_job
from mpsearch_api.execution.telling import Tell
from mpsearch_api.store.port import Update


def run(assignment: Assignment, tell: Tell, executor: Executor | None) -> Sequence[Made]:
    """Behave as the label says; labels unknown here are those of `jobs_for_tests`."""
    name, _, argument = assignment.claim.request.label.partition(" ")
    if f"job_{name}" not in globals():
        return jobs_for_tests.run(assignment, tell, executor)
    return globals()[f"job_{name}"](assignment, tell, executor, argument)


def _made(assignment: Assignment, content: str) -> list[Made]:
    (assignment.folder / MADE / "answer.txt").write_text(content)
    return [Made(name="answer.txt", media_type="text/plain")]


def job_watched(assignment, tell, executor, folder) -> Sequence[Made]:
    """A search whose shards leave notes of where they ran in a folder."""
    return run_job(assignment, tell, Watched(executor, Path(folder)))


def job_workers(assignment, tell, executor, argument) -> Sequence[Made]:
    return _made(assignment, "none" if executor is None else type(executor).__name__)


def job_files(assignment, tell, executor, argument) -> Sequence[Made]:
    """Tell the content of every file, and what specs and hardware say."""
    found = [f"{name}={path.read_text()}" for name, path in sorted(assignment.files.items())]
    hardware = assignment.hardware
    if isinstance(hardware, Path):
        found.append(f"{hardware.name}={hardware.read_text()}")
    return _made(assignment, "\n".join([assignment.model, *found]))


def job_raise_apart(assignment, tell, executor, argument) -> Sequence[Made]:
    """Raise in a worker of the cluster instead of the job's own process."""
    executor.submit(jobs_for_tests.job_raise, assignment, None, argument).result()
    return []


def job_endless(assignment, tell, executor, argument) -> Sequence[Made]:
    """Never end, nor let a worker end; the worker leaves its process id."""
    future = executor.submit(stay, argument)
    tell(Update("progress", "profile", 0.5, "asleep"))
    future.result()
    return []


def job_spread(assignment, tell, executor, folder) -> Sequence[Made]:
    """Make calls elsewhere once two such jobs have begun."""
    note(Path(folder), assignment.claim.job)
    while len(list(Path(folder).glob("*@*"))) < 2:
        time.sleep(0.05)
    return _made(assignment, str([each.result() for each in _doubled(executor)]))


def _doubled(executor: Executor) -> list[Future]:
    return [executor.submit(operator.mul, 2, number) for number in range(3)]


def job_once(assignment, tell, executor, folder) -> Sequence[Made]:
    """Wait for the file `go` in the first attempt; in later ones, end at once."""
    tell(Update("progress", "profile", 0.1, str(assignment.claim.attempt)))
    note(Path(folder), f"attempt{assignment.claim.attempt}")
    if assignment.claim.attempt == 1:
        time.sleep(1e6)
    return _made(assignment, str(assignment.claim.attempt))


class Watched(Executor):
    """Has every call noted where it runs."""

    def __init__(self, inner: Executor, folder: Path) -> None:
        self._inner = inner
        self._folder = folder
        self._count = 0

    def submit(self, fn, /, *args, **kwargs) -> Future:
        self._count += 1
        return self._inner.submit(watched, self._folder, self._count, fn, *args, **kwargs)


def watched(folder: Path, number: int, function, *args, **kwargs):
    """Note where this runs, wait while there is a file `hold-NODE`, then do it."""
    node = note(folder, f"shard{number}")
    while (folder / f"hold-{node}").exists():
        time.sleep(0.02)
    return function(*args, **kwargs)


def note(folder: Path, what: str) -> str:
    """Leave a file that names this node, and nobody else's."""
    node = here()
    path = folder / f"{what}@{node}@{os.getpid()}@{time.monotonic_ns()}"
    path.touch()
    return node


def here() -> str:
    """Name this node: by Ray in workers, by the folder of their node's sockets elsewhere."""
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else "job"


def stay(path: str) -> None:
    """Never end; a worker leaves its process id, the job itself has one that says nothing here."""
    if here() != "job":
        Path(path).write_text(str(os.getpid()))
    time.sleep(1e6)


def die_once(path: str) -> str:
    """Kill this worker the first time, answer the second."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "survived"
    os._exit(1)


def die(path: str) -> None:
    with Path(path).open("a") as file:
        file.write("x")
    os._exit(1)


def measured_loss(indices) -> float:
    target = [group % 3 for group in range(len(indices))]
    return sum(int((column - aim) ** 2) for column, aim in zip(indices, target, strict=True)) + 0.25


def identity_of(content: bytes) -> tuple[int, int, int]:
    """Tell who has which object, to see that it is sent once."""
    return os.getpid(), id(content), len(content)
