"""The dispatcher on real stores of both databases, its jobs in real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mpsearch.schemas.jobs import Execution, JobRequest
from mpsearch_api.blobs import open_blobs
from mpsearch_api.execution.dispatcher import Dispatcher, make_executor
from mpsearch_api.execution.folders import dispatchers
from mpsearch_api.execution.metrics import DispatcherMetrics
from mpsearch_api.faults import UnavailableError
from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, open_store


@pytest.fixture
def settings(service_settings: Settings) -> Settings:
    # Leases too long to run out by chance on a slow machine.
    return service_settings.model_copy(update={"lease": 60.0, "heartbeat": 0.2, "poll": 0.05})


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    store = open_store(settings)
    yield store
    store.close()


class Bench:
    """A dispatcher that turns when told to, and its store."""

    def __init__(self, settings: Settings, store: Store, program) -> None:
        self.settings = settings
        self.store = store
        self.blobs = open_blobs(settings)
        self.executor = make_executor(settings, program())
        self.dispatcher = Dispatcher(settings, store, self.blobs, self.executor)

    def submit(self, label: str, **fields: object) -> str:
        request = {"model": "digits-resnet", "data": "digits", "label": label}
        request |= {"budget": {"weight_memory": "0.12x"}, **fields}
        return self.store.jobs.submit("t", JobRequest(**request))[0].id

    def until(self, done: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, self.store.jobs.page(None)
            self.dispatcher.turn()
            time.sleep(0.01)

    def ended(self, job: str):
        self.until(lambda: self.job(job).ended)
        return self.job(job)

    def job(self, job: str):
        return self.store.jobs.get("t", job)

    def content(self, job: str, name: str) -> str:
        (found,) = [each for each in self.job(job).artifacts if each.name == name]
        return b"".join(self.blobs.read(found.sha256)).decode()

    def folders(self) -> list[Path]:
        return list(self.settings.data_dir.glob("run/*/job_*"))


@pytest.fixture
def bench(settings: Settings, store: Store, program) -> Iterator[Bench]:
    bench = Bench(settings, store, program)
    yield bench
    if bench.settings.data_dir.joinpath("run", bench.dispatcher.name).exists():
        bench.dispatcher.close()


def test_jobs_run_to_their_end_and_their_files_are_published(bench: Bench) -> None:
    jobs = [bench.submit("quick") for _ in range(3)]
    for job in jobs:
        assert bench.ended(job).status == "succeeded"
        assert bench.content(job, "answer.txt") == f"{job} 1"
        told = [event.kind for event in bench.store.jobs.events("t", job)]
        assert told == ["status", "status", "progress", "partial", "status"]
    bench.until(lambda: not bench.folders())


def test_a_failed_job_keeps_its_reason_and_its_log(bench: Bench) -> None:
    job = bench.submit("raise input")
    failed = bench.ended(job)
    assert (failed.status, failed.attempt) == ("failed", 1)
    assert failed.failure.kind == "bad_input"
    assert "bad model" in bench.content(job, "log.txt")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"execution": Execution(memory="1TB")}, "execution.memory"),
        ({"execution": Execution(memory="1 parsec")}, "execution.memory"),
        ({"execution": Execution(memory="25%")}, "execution.memory"),
        ({"execution": Execution(memory="1e308GiB")}, "execution.memory"),
        ({"execution": Execution(time_limit=1e6)}, "execution.time_limit"),
        ({"hardware": "/etc/passwd"}, "unknown hardware"),
        ({"hardware": "hw_00000000000000000000000000"}, "unknown hardware"),
        ({"model": "mdl_00000000000000000000000000"}, "unknown model"),
        ({"data": "dat_00000000000000000000000000"}, "unknown dataset"),
    ],
)
def test_a_job_that_cannot_be_assigned_fails_as_bad_input(bench: Bench, fields, said) -> None:
    failed = bench.ended(bench.submit("quick", **fields))
    assert failed.failure.kind == "bad_input"
    assert said in failed.failure.message


def test_what_a_job_tells_and_names_is_checked(bench: Bench) -> None:
    job = bench.submit("nonsense")
    ended = bench.ended(job)
    assert ended.status == "succeeded"
    assert [each.name for each in ended.artifacts] == ["answer.txt", "log.txt"]
    events = bench.store.jobs.events("t", job)
    assert not [event for event in events if event.kind == "progress"]
    (partial,) = [event for event in events if event.kind == "partial"]
    assert partial.data == {"loss": None, "words": "x" * 500}


@pytest.mark.parametrize("method", ["updates", "ended"])
def test_what_nobody_foresaw_about_one_job_fails_that_job_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    bench.dispatcher._settings = bench.settings.model_copy(update={"workers": 2})
    broken, other = bench.submit("sleep"), bench.submit("quick 0.5")
    bench.until(lambda: len(bench.dispatcher._attempts) == 2)
    run = bench.dispatcher._attempts[broken, 1].run

    def surprised() -> object:
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr(run, method, surprised)
    failed = bench.ended(broken)
    assert (failed.status, failed.failure.kind) == ("failed", "internal")
    assert bench.ended(other).status == "succeeded"
    assert bench.job(other).attempt == 1
    bench.until(lambda: not bench.folders())


def test_a_cancelled_job_is_killed_and_its_folder_removed(bench: Bench) -> None:
    job = bench.submit("sleep")
    bench.until(lambda: bench.job(job).message == "asleep")
    assert bench.store.jobs.cancel("t", job).status == "cancelled"
    bench.until(lambda: not bench.folders(), seconds=2.0)
    assert bench.job(job).status == "cancelled"
    assert bench.ended(bench.submit("quick")).status == "succeeded"


def test_a_job_whose_process_is_killed_runs_again_until_it_is_given_up(bench: Bench) -> None:
    job = bench.submit("kill")
    failed = bench.ended(job)
    assert failed.failure.kind == "worker_died"
    starts = [e.attempt for e in bench.store.jobs.events("t", job) if e.status == "running"]
    assert starts == [1, 2, 3]


def test_closing_puts_running_jobs_back_and_leaves_nothing(bench: Bench) -> None:
    job = bench.submit("sleep")
    bench.until(lambda: bench.job(job).message == "asleep")
    started = time.monotonic()
    bench.dispatcher.close()
    assert time.monotonic() - started < 5.0
    assert bench.job(job).status == "queued"
    assert dispatchers(bench.settings.data_dir) == []
    assert not list(bench.settings.data_dir.glob("run/*"))


class Away:
    """Jobs of a store whose database is away as long as `gone` is set."""

    def __init__(self, jobs) -> None:
        self._jobs = jobs
        self.gone = False
        self.asked = 0

    def __getattr__(self, name: str):
        method = getattr(self._jobs, name)

        def ask(*arguments, **keywords):
            if self.gone:
                self.asked += 1
                raise UnavailableError("away")
            return method(*arguments, **keywords)

        return ask


def test_a_job_goes_on_while_the_database_is_away(settings, store, program) -> None:
    away = Away(store.jobs)
    bench = Bench(settings, replace(store, jobs=away), program)
    try:
        job = bench.submit("quick 0.3")
        bench.until(lambda: store.jobs.get("t", job).status == "running")
        away.gone = True
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            bench.dispatcher.turn()
            time.sleep(0.01)
        assert away.asked > 5
        assert store.jobs.get("t", job).status == "running"
        away.gone = False
        found = bench.ended(job)
    finally:
        away.gone = False
        bench.dispatcher.close()
    assert (found.status, found.attempt) == ("succeeded", 1)
    assert bench.content(job, "answer.txt") == f"{job} 1"


class Slow:
    """An executor that takes long to start anything."""

    elsewhere = False

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def start(self, assignment):
        time.sleep(self._seconds)
        raise OSError("it never starts")

    def ready(self) -> None:
        return None

    def close(self) -> None:
        return None


def test_leases_are_renewed_while_the_executor_is_slow(settings, store) -> None:
    short = settings.model_copy(update={"lease": 2.5, "heartbeat": 0.2})
    dispatcher = Dispatcher(short, store, open_blobs(short), Slow(6.0))
    request = JobRequest(model="m", data="d", budget={"weight_memory": "1x"})
    job = store.jobs.submit("t", request)[0].id
    thread = threading.Thread(target=dispatcher.turn)
    thread.start()
    time.sleep(5.0)  # twice the lease
    assert store.jobs.expire() == []
    thread.join()
    dispatcher.close()
    assert store.jobs.get("t", job).attempt == 1


def test_a_late_dispatcher_changes_nothing(settings, store, program) -> None:
    """It sleeps past its lease; another runs the job to its end; then it wakes up."""
    short = settings.model_copy(update={"lease": 0.5, "heartbeat": 30.0})
    late = Bench(short, store, program)
    job = late.submit("quick 0.2")
    late.until(lambda: late.folders() and (late.folders()[0] / "outcome.json").exists())
    time.sleep(0.6)
    other = Bench(settings, store, program)
    try:
        found = other.ended(job)
        late.until(lambda: not late.dispatcher._attempts)
    finally:
        other.dispatcher.close()
        late.dispatcher.close()
    assert found.attempt == 2
    assert late.job(job) == found
    assert other.content(job, "answer.txt") == f"{job} 2"
    ends = [e for e in store.jobs.events("t", job) if e.status == "succeeded"]
    assert len(ends) == 1


def test_several_dispatchers_share_one_queue(settings, store, program) -> None:
    benches = [Bench(settings, store, program) for _ in range(3)]
    jobs = [benches[0].submit("quick 0.05") for _ in range(12)]
    deadline = time.monotonic() + 60
    try:
        while not all(store.jobs.get("t", job).ended for job in jobs):
            assert time.monotonic() < deadline
            for bench in benches:
                bench.dispatcher.turn()
            time.sleep(0.005)
    finally:
        for bench in benches:
            bench.dispatcher.close()
    for job in jobs:
        found = store.jobs.get("t", job)
        assert (found.status, found.attempt) == ("succeeded", 1)


def test_a_new_dispatcher_clears_away_what_a_dead_one_left(settings, store, program) -> None:
    left = settings.data_dir / "run" / "dead-1" / "job_x-1"
    left.mkdir(parents=True)
    (left.parent / "lock").touch()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], cwd=left)
    bench = Bench(settings, store, program)
    try:
        assert not left.exists()
        assert bystander.wait(5) < 0
    finally:
        bench.dispatcher.close()


def test_old_jobs_and_bytes_nobody_refers_to_are_deleted(bench: Bench) -> None:
    job = bench.submit("quick")
    bench.ended(job)
    bench.until(lambda: not bench.folders())
    orphan = bench.blobs.put([b"nobody wants this"])
    old = time.time() - 7200
    for path in (bench.settings.data_dir / "blobs").rglob("*"):
        if path.is_file():
            os.utime(path, (old, old))
    bench.until(lambda: bench.dispatcher._tidying is not None and bench.dispatcher._tidying.done())
    bench.dispatcher._tidied = float("-inf")
    bench.dispatcher.turn()
    bench.until(lambda: bench.dispatcher._tidying.done())
    assert bench.content(job, "answer.txt")
    assert not list((bench.settings.data_dir / "blobs").rglob(f"*{orphan.sha256[:40]}*"))


def test_how_it_goes_can_be_read_by_other_processes(bench: Bench) -> None:
    bench.ended(bench.submit("quick"))
    bench.ended(bench.submit("raise infeasible"))
    bench.until(lambda: [s.executor for s in dispatchers(bench.settings.data_dir)] == [None])
    bench.dispatcher._written = float("-inf")
    bench.until(lambda: not bench.folders())
    bench.dispatcher._written = float("-inf")
    bench.dispatcher.turn()
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for metric in DispatcherMetrics(bench.settings.data_dir).collect()
        for sample in metric.samples
    }
    name = bench.dispatcher.name
    assert samples["mpsearch_jobs_ended_total", *sorted([name, "succeeded"])] == 1
    assert samples["mpsearch_job_failures_total", *sorted([name, "infeasible"])] == 1
    stage = ("mpsearch_job_stage_seconds_count", *sorted(["false", name, "profile"]))
    assert samples[stage] == 1


@contextmanager
def _process(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "MPSEARCH_DATA_DIR": str(settings.data_dir),
        "MPSEARCH_DATABASE_URL": settings.database,
        "MPSEARCH_DISPATCHER_PARENT": str(os.getpid()),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "mpsearch_api.execution.dispatcher"], env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_sigterm_ends_the_dispatcher_s_process_cleanly(settings, store) -> None:
    with _process(settings) as process:
        deadline = time.monotonic() + 120
        while not dispatchers(settings.data_dir):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 0
    assert not list(settings.data_dir.glob("run/*"))


def test_the_dispatcher_imports_no_torch() -> None:
    program = "import mpsearch_api.execution.dispatcher, sys; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert said.stdout.strip() == b"False"
