"""Attempts on a real cluster with token authentication, against the local executor's behaviour."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mpsearch_api.blobs import open_blobs
from mpsearch_api.execution.executors import make_executor
from mpsearch_api.execution.limits import Limits
from mpsearch_api.execution.local import LocalExecutor
from mpsearch_api.execution.ray.orders import Start
from mpsearch_api.settings import Settings
from tests.mpsearch_api.execution.ray.clusters import ray_program, settings_for, wait_until

pytestmark = pytest.mark.slow  # for the cluster, which takes a minute to start


def finish(executor, assignment, seconds: float = 180.0):
    run = executor.start(assignment)
    told = []

    def over() -> bool:
        ended = run.ended() is not None
        told.extend(run.updates())
        return ended

    wait_until(over, lambda: told, seconds)
    return run.ended(), told


def text_of(ended, name: str = "answer.txt") -> str:
    (file,) = [each for each in ended.produced if each.name == name]
    return file.path.read_text()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_job_makes_files_and_tells_updates_in_order(ray_executor, ray_assignment) -> None:
    assignment = ray_assignment("quick")
    ended, told = finish(ray_executor, assignment)
    assert ended.failure is None
    assert text_of(ended) == f"{assignment.claim.job} 1"
    assert [each.name for each in ended.produced] == ["answer.txt", "log.txt"]
    assert all(each.path.is_relative_to(assignment.folder) for each in ended.produced)
    assert [(each.kind, each.progress) for each in told] == [("progress", 0.5), ("partial", None)]


@pytest.mark.parametrize(
    "label",
    [
        "raise input",
        "raise infeasible",
        "raise type",
        "raise memory",
        "segfault",
        "exit 3",
        "open",
        "kill",
    ],
)
def test_a_failing_job_fails_as_it_does_locally(ray_executor, ray_assignment, label) -> None:
    limits = Limits(2**30, 60.0)
    local = LocalExecutor(lambda _: limits, ray_program())
    try:
        wait_until(lambda: local.ready() is None)
        here, _ = finish(local, ray_assignment(label))
    finally:
        local.close()
    there, _ = finish(ray_executor, ray_assignment(label))
    assert here.failure is not None
    assert there.retry == here.retry, there.failure
    assert there.failure.model_dump(exclude={"log_tail"}) == here.failure.model_dump(
        exclude={"log_tail"}
    )
    assert bool(there.failure.log_tail) == bool(here.failure.log_tail)


@pytest.mark.parametrize(
    ("label", "seconds", "kind", "said"),
    [
        ("sleep", 3.0, "time", "longer than its limit of 3 s"),
        ("allocate", 600.0, "memory", "more than its limit of 256 MiB"),
        ("allocate_in_child", 600.0, "memory", "more than its limit of 256 MiB"),
    ],
)
def test_limits_hold_on_the_node(ray_executor, ray_assignment, label, seconds, kind, said) -> None:
    assignment = ray_assignment(label, seconds=seconds, memory=256 * 2**20)
    ended, _ = finish(ray_executor, assignment)
    assert (ended.failure.kind, ended.retry) == (kind, False)
    assert said in ended.failure.message


def test_an_error_of_a_worker_is_the_job_s_error(ray_executor, ray_assignment) -> None:
    ended, _ = finish(ray_executor, ray_assignment("raise_apart input"))
    assert (ended.failure.kind, ended.failure.message) == ("bad_input", "bad model")
    ended, _ = finish(ray_executor, ray_assignment("raise_apart infeasible"))
    assert (ended.failure.kind, ended.failure.minimum) == ("infeasible", {"weight_memory": 10.0})


def test_progress_arrives_before_the_end_and_cancelling_ends_job_and_shards(
    ray_executor, ray_assignment, tmp_path: Path
) -> None:
    marker = tmp_path / "pid"
    assignment = ray_assignment(f"endless {marker}")
    run = ray_executor.start(assignment)
    told: list = []

    def asleep() -> bool:
        assert run.ended() is None
        told.extend(run.updates())
        return bool(told) and marker.exists() and bool(marker.read_text())

    wait_until(asleep)
    assert told[0].message == "asleep"
    worker = int(marker.read_text())
    run.kill()
    assert not assignment.folder.exists()
    wait_until(lambda: not alive(worker))
    wait_until(lambda: run.ended() is not None)
    assert finish(ray_executor, ray_assignment("quick"))[0].failure is None


def test_a_job_sees_neither_the_token_nor_ray(ray_executor, ray_assignment, shared_cluster) -> None:
    seen = text_of(finish(ray_executor, ray_assignment("look"))[0], "seen.txt")
    assert shared_cluster.token not in seen
    assert not [line for line in seen.splitlines() if line.startswith("RAY_")]


def test_a_job_gets_workers_unless_it_must_not_reach_the_network(
    ray_executor, ray_assignment
) -> None:
    assert text_of(finish(ray_executor, ray_assignment("workers"))[0]) == "RelayPool"
    ended, _ = finish(ray_executor, ray_assignment("workers", trusted=True))
    if ended.failure is None:  # where namespaces are given
        assert text_of(ended) == "none"
    else:
        assert (ended.failure.kind, ended.retry) == ("dependency", False)


def test_uploads_reach_the_node(cluster, ray_variables, ray_assignment, tmp_path: Path) -> None:
    # A store that is no folder of this machine to the service: `local` is fsspec's.
    settings = settings_for(cluster, tmp_path / "data", blob_url=f"local://{tmp_path / 'bucket'}")
    blobs = open_blobs(Settings(data_dir=tmp_path / "other", blob_url=settings.blob_url))
    model, table = blobs.put([b"weights"]), blobs.put([b"table"])
    executor = make_executor(settings, ray_program())
    try:
        wait_until(lambda: executor.ready() is None, executor.ready)
        ended, _ = finish(
            executor,
            ray_assignment(
                "files",
                model="upload:mdl_1.onnx",
                contents={"mdl_1.onnx": model.sha256, "hardware.csv": table.sha256},
                hardware=Path("/elsewhere/hardware.csv"),
            ),
        )
    finally:
        executor.close()
    assert text_of(ended).splitlines() == [
        "upload:mdl_1.onnx",
        "mdl_1.onnx=weights",
        "hardware.csv=table",
    ]


def test_a_job_that_the_cluster_has_no_room_for_is_told_so(ray_executor, ray_assignment) -> None:
    assignment = ray_assignment("quick", memory=2**40)
    settings = ray_executor._settings
    ray_executor._settings = settings.model_copy(update={"worker_memory": 2**60})
    run = ray_executor.start(assignment)
    ray_executor._settings = settings
    told: list = []

    def heard() -> bool:
        assert run.ended() is None
        told.extend(run.updates())
        return bool(told)

    wait_until(heard)
    assert "no node of it has 1 CPUs and 1024.0 GiB" in told[0].message
    run.kill()
    wait_until(lambda: run.ended() is not None)


def test_a_node_with_another_version_refuses(ray_executor, ray_assignment, monkeypatch) -> None:
    send = ray_executor._gateway.send

    def older(message) -> None:
        if isinstance(message, Start):
            object.__setattr__(message.order, "version", "0.0.1")
        send(message)

    monkeypatch.setattr(ray_executor._gateway, "send", older)
    ended, _ = finish(ray_executor, ray_assignment("quick"))
    assert ended.failure.kind == "dependency"
    assert "the dispatcher 0.0.1" in ended.failure.message


def test_a_wrong_token_is_refused_with_a_clear_reason(cluster, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    executor = make_executor(settings_for(cluster, tmp_path), ray_program())
    try:
        wait_until(lambda: "refuses" in (executor.ready() or ""), executor.ready)
        assert "RAY_AUTH_TOKEN" in executor.ready()
        assert "0000" not in executor.ready()
    finally:
        executor.close()


def test_when_the_gateway_dies_its_attempts_may_be_tried_again(
    cluster, ray_variables, ray_assignment, tmp_path: Path
) -> None:
    executor = make_executor(settings_for(cluster, tmp_path / "data"), ray_program())
    try:
        wait_until(lambda: executor.ready() is None, executor.ready)
        run = executor.start(ray_assignment("sleep"))
        wait_until(lambda: run.ended() or run.updates())
        os.kill(executor._gateway._process.pid, 9)
        wait_until(lambda: run.ended() is not None)
        assert run.ended().retry
        assert "connection to the Ray cluster was lost" in run.ended().failure.message
        assert executor.ready() is not None
        time.sleep(2.1)
        wait_until(lambda: executor.ready() is None, executor.ready)
        assert finish(executor, ray_assignment("quick"))[0].failure is None
    finally:
        executor.close()


def test_jobs_that_hold_all_the_memory_still_end(ray_executor, ray_assignment, tmp_path) -> None:
    # Each node has 6 GiB for Ray to give: with a job of 4 GiB on each, no call of theirs fits.
    notes = tmp_path / "notes"
    notes.mkdir()
    runs = [
        ray_executor.start(ray_assignment(f"spread {notes}", memory=4 * 2**30)) for _ in range(2)
    ]
    wait_until(lambda: all(run.ended() for run in runs), seconds=300.0)
    for run in runs:
        assert run.ended().failure is None
        assert text_of(run.ended()) == "[0, 2, 4]"
