"""Nodes that die under a job: what runs again, what does not, and what comes out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mpsearch.pipeline import profile
from mpsearch.schemas import Profile
from mpsearch.schemas.jobs import JobRequest
from mpsearch_api.blobs import open_blobs
from mpsearch_api.execution.dispatcher import Dispatcher, make_executor
from mpsearch_api.store import open_store
from tests.mpsearch_api.execution.ray.clusters import ray_program, settings_for, wait_until

pytestmark = pytest.mark.slow

OPTIONS = ["w2a8", "w4a8", "w8a8"]


class Service:
    """A dispatcher that works in a thread, and its store."""

    def __init__(self, cluster, folder: Path) -> None:
        self.settings = settings_for(cluster, folder / "data", lease=60.0, poll=0.05)
        self.store = open_store(self.settings)
        self.blobs = open_blobs(self.settings)
        self.executor = make_executor(self.settings, ray_program(torch=True))
        self.dispatcher = Dispatcher(self.settings, self.store, self.blobs, self.executor)

    def submit(self, label: str) -> str:
        request = JobRequest(
            model="digits-resnet",
            data="digits",
            options=OPTIONS,
            budget={"weight_memory": "0.12x"},
            verify=False,
            label=label,
            execution={"memory": "2GiB"},
        )
        return self.store.jobs.submit("t", request)[0].id

    def job(self, job: str):
        return self.store.jobs.get("t", job)

    def content(self, job: str, name: str) -> bytes:
        (found,) = [each for each in self.job(job).artifacts if each.name == name]
        return b"".join(self.blobs.read(found.sha256))

    def work_until(self, done, seconds: float = 300.0) -> None:
        def turn() -> bool:
            self.dispatcher.turn()
            return done()

        wait_until(turn, lambda: self.store.jobs.page(None), seconds)


@pytest.fixture
def service(cluster, ray_variables, tmp_path: Path) -> Iterator[Service]:
    service = Service(cluster, tmp_path)
    yield service
    service.dispatcher.close()
    service.store.close()


def notes_in(folder: Path) -> list[tuple[str, str]]:
    """List what ran where: (what, node)."""
    return [tuple(path.name.split("@")[:2]) for path in folder.glob("*@*")]


def test_a_node_that_dies_costs_the_shards_it_ran_and_nothing_else(
    cluster, service: Service, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for node in cluster.nodes:
        (notes / f"hold-{node}").touch()
    job = service.submit(f"watched {notes}")

    def nodes_at_work() -> set[str]:
        return {node for what, node in notes_in(notes) if what.startswith("shard")}

    # The attempt lends its processor out while it waits, so that its own node works too.
    service.work_until(lambda: len(nodes_at_work()) == 2)
    home = cluster.home_of(job)
    (victim,) = cluster.nodes - {home}
    held = {what for what, node in notes_in(notes) if node == victim}
    threading.Thread(target=cluster.kill, args=(victim,)).start()
    service.work_until(lambda: victim not in cluster.nodes)
    (notes / f"hold-{home}").unlink()
    service.work_until(lambda: service.job(job).ended)
    ended = service.job(job)
    assert (ended.status, ended.attempt) == ("succeeded", 1), ended.failure
    ran = notes_in(notes)
    counts = Counter(what for what, _ in ran)
    assert {what for what, count in counts.items() if count > 1} == held
    assert all(counts[what] == 2 for what in held)
    found = Profile.parse(service.content(job, "profile.json"), "profile.json")
    here = profile("digits-resnet", "digits", OPTIONS, "measured_loss", seed=0)
    assert np.array_equal(found.loss, here.loss)
    assert np.array_equal(found.stderr, here.stderr, equal_nan=True)
    assert found.float_loss == here.float_loss


def test_a_job_whose_own_node_dies_is_attempted_again(
    cluster, service: Service, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    job = service.submit(f"once {notes}")
    service.work_until(lambda: service.job(job).progress)
    home = cluster.home_of(job)
    threading.Thread(target=cluster.kill, args=(home,)).start()
    service.work_until(lambda: service.job(job).ended)
    ended = service.job(job)
    assert (ended.status, ended.attempt) == ("succeeded", 2), ended.failure
    assert service.content(job, "answer.txt") == b"2"
    told = [event for event in service.store.jobs.events("t", job) if event.kind == "message"]
    assert "died" in told[0].message
