"""Jobs in processes of their own: what they may do, what ends them, what they leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from mpsearch_api.execution.limits import Limits
from mpsearch_api.execution.local import LocalExecutor, Program
from mpsearch_api.execution.processes import descendants

SECRET = "do-not-tell"


def _alive(name: str) -> list[int]:
    """Processes that call themselves so."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if (process / "comm").read_text().strip() == name:
                    found.append(int(process.name))
    return found


def _text(ended, name="answer.txt"):
    (file,) = [each for each in ended.produced if each.name == name]
    return file.path.read_text()


def test_a_job_makes_files_and_tells_updates_in_order(ended, assignment_of):
    found, told = ended(assignment_of("quick"))
    assert found.failure is None
    assert _text(found) == "job1 1"
    assert [each.name for each in found.produced] == ["answer.txt", "log.txt"]
    assert [(each.kind, each.progress) for each in told] == [("progress", 0.5), ("partial", None)]
    assert told[1].data == {"float_loss": 0.5}


@pytest.mark.parametrize(
    ("label", "kind", "said"),
    [
        ("allocate", "memory", "more than its limit of 256 MiB"),
        ("allocate_in_child", "memory", "more than its limit of 256 MiB"),
        ("fork", "limit", "more than 64 processes"),
        ("open", "limit", "more files than a job may"),
        ("fill", "limit", "larger file than a job may"),
        ("sleep", "time", "longer than its limit of 3 s"),
        ("spin", "time", "longer than its limit of 3 s"),
        ("segfault", "crashed", "Segmentation fault"),
        ("abort", "crashed", "Aborted"),
        ("exit 3", "crashed", "exit code 3"),
        ("exit 0", "crashed", "without a result"),
        ("raise memory", "memory", "ran out of memory"),
        ("raise torch", "memory", "ran out of memory"),
        ("raise input", "bad_input", "bad model"),
        ("raise infeasible", "infeasible", "too small"),
        ("raise type", "internal", "TypeError in job_raise: a fault of ours"),
    ],
)
def test_a_misbehaving_job_fails_and_the_next_one_runs(ended, assignment_of, label, kind, said):
    found, _ = ended(assignment_of(label))
    assert found.failure is not None
    assert (found.failure.kind, found.retry) == (kind, False)
    assert said in found.failure.message
    after, _ = ended(assignment_of("quick"))
    assert after.failure is None


def test_a_job_that_is_killed_from_outside_may_be_tried_again(ended, assignment_of):
    found, _ = ended(assignment_of("kill"))
    assert found.retry
    assert found.failure.kind == "worker_died"


def test_a_crash_shows_the_end_of_the_log_with_the_place(ended, assignment_of):
    found, _ = ended(assignment_of("segfault"))
    assert "about to crash" in found.failure.log_tail
    assert "job_segfault" in found.failure.log_tail


def test_paths_of_the_service_are_taken_out_of_the_log(ended, assignment_of, tmp_path):
    found, _ = ended(assignment_of("raise input"))
    assert "the cache is at <cache>" in found.failure.log_tail
    assert str(tmp_path) not in found.failure.log_tail


def test_an_infeasible_job_names_the_least_achievable(ended, assignment_of):
    failure = ended(assignment_of("raise infeasible"))[0].failure
    assert failure.minimum == {"weight_memory": 10.0}
    assert failure.exit_code == 3


def test_a_job_sees_no_secrets_and_its_own_folders_only(
    ended, assignment_of, executor, monkeypatch
):
    assert SECRET not in str(executor)  # the variables below are set after its nursery started
    assignment = assignment_of("look")
    seen = _text(ended(assignment)[0], "seen.txt")
    assert f"TMPDIR={assignment.folder}/tmp" in seen
    assert f"HOME={assignment.folder}/home" in seen
    assert f"cwd={assignment.folder}/work" in seen
    assert "niceness=10" in seen
    # Standard streams, the updates, and the one that lists them.
    assert "descriptors=[0, 1, 2, 3, 4]" in seen


def test_the_environment_of_the_service_stays_outside(program, assignment_of, monkeypatch):
    for name in ("MPSEARCH_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MY_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    executor = LocalExecutor(lambda each: Limits(each.memory, 10.0), program())
    try:
        run = executor.start(assignment_of("look"))
        while (found := run.ended()) is None:
            time.sleep(0.01)
        seen = _text(found, "seen.txt")
        run.kill()
    finally:
        executor.close()
    assert SECRET not in seen
    assert "PATH=" in seen


def test_a_process_that_escapes_ends_with_its_job(ended, assignment_of):
    name = f"esc{os.getpid()}"
    found, _ = ended(assignment_of(f"escape {name}"))
    assert found.failure is None
    assert _alive(name) == []


def test_killing_a_run_ends_what_it_started_and_removes_its_folder(executor, assignment_of):
    assignment = assignment_of("fork")
    executor_limits = executor.start(assignment)
    while not executor_limits.updates() and executor_limits.ended() is None:
        if (assignment.folder / "work").exists():
            break
        time.sleep(0.005)
    started = time.monotonic()
    executor_limits.kill()
    assert time.monotonic() - started < 2.0
    assert not assignment.folder.exists()
    left = [
        process.name
        for process in Path("/proc").iterdir()
        if process.name.isdigit() and _works_in(process, assignment.folder)
    ]
    assert left == []


def _works_in(process: Path, folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return str((process / "cwd").readlink()).startswith(str(folder))
    return False


def test_what_a_job_tells_is_checked_and_thinned(ended, assignment_of):
    found, told = ended(assignment_of("chatter"))
    assert found.failure is None
    assert told[-1].message == "done"
    assert len(told) < 2_000
    shares = [each.progress for each in told[:-1]]
    assert shares == sorted(shares)
    assert shares[-1] == 4_999 / 5_000


def test_files_outside_the_folder_of_results_are_not_the_job_s(ended, assignment_of):
    found, _ = ended(assignment_of("link"))
    assert [each.name for each in found.produced] == ["log.txt"]


def test_of_a_log_without_measure_the_end_is_kept(ended, assignment_of):
    found, _ = ended(assignment_of("babble"))
    log = _text(found, "log.txt")
    assert len(log) == 4 * 2**20
    assert "the last word" in log[-1000:]


def test_a_job_is_cut_off_from_the_network(executor, ended, assignment_of, request):
    if "together" in request.node.name:
        pytest.skip("namespaces are refused in this case")
    with socket.create_server(("127.0.0.1", 0)) as server:
        found, _ = ended(assignment_of(f"call 127.0.0.1:{server.getsockname()[1]}"))
    assert found.failure is not None
    assert "unreachable" in found.failure.message


@pytest.mark.parametrize("refused", [False, True])
def test_a_job_that_must_be_isolated_runs_isolated_or_not_at_all(program, assignment_of, refused):
    executor = LocalExecutor(
        lambda each: Limits(each.memory, 10.0, isolated=True),
        program("jobs_for_tests:refuse_namespaces" if refused else None),
    )
    try:
        run = executor.start(assignment_of("quick"))
        while (found := run.ended()) is None:
            time.sleep(0.01)
        run.kill()
    finally:
        executor.close()
    if refused:
        assert found.failure.kind == "dependency"
        assert "without network" in found.failure.message
    else:
        assert found.failure is None


def test_jobs_of_a_dead_nursery_may_be_tried_again_and_the_next_runs(program, assignment_of):
    executor = LocalExecutor(lambda each: Limits(each.memory, 30.0), program())
    try:
        run = executor.start(assignment_of("sleep"))
        until = time.monotonic() + 30
        while not run.updates():
            assert time.monotonic() < until
            time.sleep(0.01)
        (nursery,) = [
            pid
            for pid in descendants(os.getpid())
            if b"mpsearch_api.execution.nursery" in _command(pid)
            and _parent(pid) == os.getpid()
            and pid == executor._nursery._process.pid
        ]
        os.kill(nursery, signal.SIGKILL)
        while (found := run.ended()) is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert found.retry
        run.kill()
        run = executor.start(assignment_of("quick"))
        while (found := run.ended()) is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert found.failure is None
        run.kill()
    finally:
        executor.close()


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_an_executor_that_cannot_import_its_target_says_so():
    executor = LocalExecutor(
        lambda each: Limits(each.memory, 10.0), Program(target="no_such_module:run", prepare=None)
    )
    try:
        until = time.monotonic() + 60
        reason = executor.ready()
        while "no_such_module" not in (reason or ""):
            assert time.monotonic() < until, reason
            time.sleep(0.02)
            reason = executor.ready()
    finally:
        executor.close()


def test_closing_an_executor_ends_its_jobs(program, assignment_of):
    executor = LocalExecutor(lambda each: Limits(each.memory, 30.0), program())
    assignments = [assignment_of("sleep") for _ in range(3)]
    for assignment in assignments:
        executor.start(assignment)
    time.sleep(0.5)
    executor.close()
    executor.close()
    assert not any(assignment.folder.exists() for assignment in assignments)
    assert threading.active_count() < 20
