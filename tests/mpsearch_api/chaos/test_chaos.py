"""Processes are killed, stopped and cut off from their database: no job is lost or run to two ends.

With SQLite two dispatchers share a machine; with PostgreSQL three work as on machines of their own,
which share the database and the blobs alone. The short form runs everywhere;
`MPSEARCH_TEST_CHAOS=long` (as `make chaos` sets) runs 60 jobs and 20 kills at the default lease,
with searches among the jobs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mpsearch_api.blobs import open_blobs
from mpsearch_api.execution.processes import descendants
from mpsearch_api.faults import UnavailableError
from mpsearch_api.settings import Settings


def _service_module():
    """Load the neighbour file; tests are not packages."""
    path = Path(__file__).with_name("service.py")
    spec = importlib.util.spec_from_file_location("chaos_service", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos_service"] = module
    spec.loader.exec_module(module)
    return module


_SERVICE = _service_module()
ChaosService, Piece = _SERVICE.ChaosService, _SERVICE.Piece
LONG = os.environ.get("MPSEARCH_TEST_CHAOS") == "long"


@dataclass(frozen=True)
class Plan:
    """How much of what happens."""

    jobs: int = 60 if LONG else 16
    kills: int = 20 if LONG else 5
    searches: int = 4 if LONG else 0
    seconds: tuple[float, float] = (1.0, 8.0) if LONG else (0.2, 2.0)
    lease: float = 10.0 if LONG else 2.0
    pause: float = 1.0 if LONG else 0.4
    patience: float = 400.0 if LONG else 60.0


@dataclass
class Record:
    """What was done, and when (Unix seconds)."""

    submitted: dict[str, str] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    kills: list[tuple[str, float]] = field(default_factory=list)


PLAN = Plan()


@pytest.fixture
def settings(service_settings: Settings) -> Settings:
    changed = {
        "lease": PLAN.lease,
        "heartbeat": PLAN.lease * 0.3,
        "workers": 2,
        "most_attempts": 20,  # so that no number of kills makes a failure right
    }
    if "postgresql" in service_settings.database:
        changed["blob_url"] = f"file://{service_settings.data_dir}/shared"
    return service_settings.model_copy(update=changed)


@pytest.fixture
def service(settings: Settings) -> Iterator[ChaosService]:
    """Server and dispatchers."""
    count = 2 if settings.blob_url is None else 3
    service = ChaosService(settings, dispatchers=count, server=True, heavy=PLAN.searches > 0)
    try:
        yield service
    finally:
        service.close()


@pytest.fixture
def dispatchers(settings: Settings) -> Iterator[ChaosService]:
    """Dispatchers alone, which start sooner."""
    service = ChaosService(settings, dispatchers=2, server=False)
    try:
        yield service
    finally:
        service.close()


@pytest.mark.slow
def test_no_job_is_lost_or_ended_twice_whatever_is_killed(
    service: ChaosService, settings: Settings, request: pytest.FixtureRequest, record_property
) -> None:
    draw = random.Random(7)
    record = Record()
    labels = [f"quick {draw.uniform(*PLAN.seconds):.2f}" for _ in range(PLAN.jobs)]
    labels[3::8] = ["sleep"] * len(labels[3::8])
    labels[5::12] = ["raise input"] * len(labels[5::12])
    labels[: PLAN.searches] = ["search"] * PLAN.searches
    kinds = ["worker", "dispatcher", "worker", "server"]
    kills = [kinds[number % len(kinds)] for number in range(PLAN.kills - 1)] + ["stop"]
    if "postgresql" in settings.database:
        kills[len(kills) // 2] = "database"
    draw.shuffle(kills)
    for number, label in enumerate(labels):
        job = service.submit(label, seed=number, samples=64, verify=False)
        record.submitted[job] = label
        if kills and draw.random() < 0.5:
            _harm(kills.pop(), service, draw, record, request)
        if draw.random() < 0.5:
            _cancel_some(service, record)
    while kills:
        time.sleep(PLAN.pause)
        _harm(kills.pop(), service, draw, record, request)
        _cancel_some(service, record)
    _wait(service, record)
    requeued = _check(settings, service, record)
    figures = {
        "database": settings.database.partition(":")[0],
        "dispatchers": len(service.dispatchers),
        "jobs": len(record.submitted),
        "cancelled": len(record.cancelled),
        "killed": len(record.kills),
        "requeued": requeued,
    }
    record_property("chaos", json.dumps(figures))
    print(json.dumps(figures))


def _harm(
    what: str,
    service: ChaosService,
    draw: random.Random,
    record: Record,
    request: pytest.FixtureRequest,
) -> None:
    record.kills.append((what, time.time()))
    if what in {"worker", "dispatcher", "stop"}:
        _wait_for_work(service)
    if what == "worker":
        service.kill_worker(draw)
    elif what == "dispatcher":
        draw.choice(service.dispatchers).kill()
    elif what == "server":
        service.server.kill()
    elif what == "stop":
        process = draw.choice(service.dispatchers).process
        process.send_signal(signal.SIGSTOP)
        time.sleep(PLAN.lease + 1.5)
        process.send_signal(signal.SIGCONT)
    else:
        server = request.getfixturevalue("postgres_server")
        server.stop(draw.choice([signal.SIGINT, signal.SIGQUIT]))
        time.sleep(PLAN.lease * 0.4)
        server.start()
    time.sleep(PLAN.pause * draw.random())


def _wait_for_work(service: ChaosService) -> None:
    """Wait a little for a job under way, so that a kill hits something."""
    until = time.monotonic() + 5
    while not service.left_over() and time.monotonic() < until:
        time.sleep(0.02)


def _cancel_some(service: ChaosService, record: Record) -> None:
    """Cancel the jobs that would never end, and one that would."""
    open_jobs = [job for job in record.submitted if job not in record.cancelled]
    wanted = [job for job in open_jobs if record.submitted[job] == "sleep"][:1]
    if len(open_jobs) % 5 == 0:
        wanted.append(open_jobs[-1])
    for job in wanted:
        if service.cancel(job).status == "cancelled":
            record.cancelled.add(job)


def _wait(service: ChaosService, record: Record) -> None:
    counts: dict[str, int] = {}
    until = time.monotonic() + PLAN.patience
    while time.monotonic() < until:
        _cancel_some(service, record)
        try:
            counts = service.store.jobs.counts()
        except UnavailableError:
            counts = {"queued": 1}
        if not counts.get("queued") and not counts.get("running"):
            return
        time.sleep(0.3)
    raise AssertionError(f"not all jobs ended: {counts}\n{service.log.read_text()[-4000:]}")


def _check(settings: Settings, service: ChaosService, record: Record) -> int:
    """Check every job's whole history; returns how often one went back into the queue."""
    store = service.store
    blobs = open_blobs(settings)
    requeued = 0
    assert sum(store.jobs.counts().values()) == len(record.submitted)
    for job, label in record.submitted.items():
        found = service.get(job)
        events = store.jobs.events(None, job, limit=10_000)
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        changes = [event for event in events if event.kind == "status"]
        ends = [e for e in changes if e.status in {"succeeded", "failed", "cancelled"}]
        assert len(ends) == 1, (job, label, ends)
        assert changes[-1] is ends[0], (job, label, changes)
        # Fencing: an attempt is a number that no later one goes back behind.
        assert [e.attempt for e in events] == sorted(e.attempt for e in events), (job, label)
        starts = [event.attempt for event in changes if event.status == "running"]
        assert starts == list(range(1, len(starts) + 1)), (job, label, changes)
        if job in record.cancelled:
            assert found.status == "cancelled", (job, label, found)
            assert not found.artifacts
            continue
        if label.startswith("raise"):
            assert found.status == "failed"
            assert found.failure.kind == "bad_input"
        else:
            assert found.status == "succeeded", (job, label, found.failure)
        if label.startswith("quick"):
            # The files are those of the attempt that ended the job, and of no other.
            (answer,) = [each for each in found.artifacts if each.name == "answer.txt"]
            content = b"".join(blobs.read(answer.sha256)).decode()
            assert content == f"{job} {found.attempt}"
        requeued += sum(each.status == "queued" for each in changes[1:])
    time.sleep(1.0)
    assert service.left_over() == []
    return requeued


@pytest.mark.slow
@pytest.mark.parametrize("dead", ["dispatcher", "worker"])
def test_an_orphaned_job_runs_again_within_the_lease_and_five_seconds(
    dispatchers: ChaosService, settings: Settings, dead: str, record_property
) -> None:
    service = dispatchers
    waits = []
    for number in range(3 if LONG else 1):
        job = service.submit("sleep", seed=number)
        piece = _holder(service, job, attempt=1)
        killed = time.monotonic()
        if dead == "dispatcher":
            piece.kill()
        else:
            nursery = min(descendants(piece.process.pid))
            os.kill(nursery, signal.SIGKILL)
        _holder(service, job, attempt=2)
        waits.append(round(time.monotonic() - killed, 2))
        service.cancel(job)
    record_property(f"recovery_{dead}_s", json.dumps(waits))
    print(f"recovery after the death of a {dead}: {waits}")
    assert max(waits) <= settings.lease + 5.0


@pytest.mark.slow
def test_cancelling_ends_every_process_of_a_job_within_two_seconds(
    dispatchers: ChaosService,
) -> None:
    service = dispatchers
    job = service.submit("sleep")
    _holder(service, job, attempt=1)
    assert service.left_over()
    assert service.cancel(job).status == "cancelled"
    acknowledged = time.monotonic()
    while service.left_over():
        assert time.monotonic() - acknowledged < 2.0
        time.sleep(0.02)


def _holder(service: ChaosService, job: str, attempt: int) -> Piece:
    """Wait until an attempt is under way; give the dispatcher that has it."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        # Folders come and go meanwhile, which a search of all below would stumble over.
        found = f"run/*/{job}-{attempt}/work"
        data = service.settings.data_dir
        for folder in [*data.glob(found), *data.glob(f"machine-*/{found}")]:
            name = folder.parents[1].name
            for piece in service.dispatchers:
                if f"-{piece.process.pid}-" in name:
                    return piece
        time.sleep(0.02)
    raise AssertionError(f"attempt {attempt} of {job} did not start")
