"""Jobs whose files lie in a blob store elsewhere, which is slow or away."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpsearch.schemas.jobs import Job, JobRequest
from mpsearch_api.blobs import open_blobs
from mpsearch_api.blobs.remote import RemoteBlobs
from mpsearch_api.execution import dispatcher as dispatcher_module
from mpsearch_api.execution.dispatcher import Dispatcher, make_executor
from mpsearch_api.faults import UnavailableError
from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, open_store


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        blob_url=f"memory://{uuid.uuid4().hex}",
        lease=60.0,
        poll=0.05,
        workers=2,
    )


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    store = open_store(settings)
    yield store
    store.close()


@pytest.fixture
def blobs(settings: Settings) -> RemoteBlobs:
    return open_blobs(settings)


@pytest.fixture
def dispatcher(
    settings: Settings, store: Store, blobs: RemoteBlobs, program
) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(settings, store, blobs, make_executor(settings, program()))
    yield dispatcher
    dispatcher.close()


def submit(store: Store, label: str, data: str = "digits") -> str:
    request = {"model": "digits-resnet", "data": data, "label": label}
    request |= {"budget": {"weight_memory": "0.12x"}}
    return store.jobs.submit("t", JobRequest(**request))[0].id


def stored(store: Store, blobs: RemoteBlobs) -> str:
    return store.catalog.add_stored("t", "dataset", "d", "npz", None, blobs.put([b"data"])).id


def until(dispatcher: Dispatcher, done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        dispatcher.turn()
        time.sleep(0.01)


def ended(dispatcher: Dispatcher, store: Store, job: str) -> Job:
    until(dispatcher, lambda: store.jobs.get("t", job).ended)
    return store.jobs.get("t", job)


def test_a_job_waits_while_the_blob_store_is_away_and_says_so(
    dispatcher: Dispatcher, store: Store, blobs: RemoteBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "AWAY_SECONDS", 0.1)
    job = submit(store, "quick", stored(store, blobs))
    asked = []

    def away(*_given: object) -> Path:
        asked.append(1)
        raise UnavailableError("the blob store did not give what was asked")

    with monkeypatch.context() as patched:
        patched.setattr(RemoteBlobs, "local_path", away)
        until(dispatcher, lambda: len(asked) > 3)
        assert store.jobs.get("t", job).status == "running"
    found = ended(dispatcher, store, job)
    assert (found.status, found.attempt) == ("succeeded", 1)
    said = [event.message for event in store.jobs.events("t", job) if event.kind == "message"]
    assert said == ["waits: the blob store did not give what was asked"]


def test_results_are_sent_again_when_the_blob_store_is_back(
    dispatcher: Dispatcher, store: Store, blobs: RemoteBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(store, "quick")
    asked = []

    def away(*_given: object) -> None:
        asked.append(1)
        raise UnavailableError("the blob store did not take what was asked")

    with monkeypatch.context() as patched:
        patched.setattr(RemoteBlobs, "put_file", away)
        until(dispatcher, lambda: len(asked) > 3)
        assert store.jobs.get("t", job).status == "running"
    found = ended(dispatcher, store, job)
    assert found.status == "succeeded"
    assert b"".join(blobs.read(found.artifacts[0].sha256)).decode() == f"{job} 1"


def test_other_jobs_go_on_while_a_file_is_fetched(
    dispatcher: Dispatcher, store: Store, blobs: RemoteBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = threading.Event()
    local_path = RemoteBlobs.local_path

    def slow(self: RemoteBlobs, sha256: str) -> Path:
        arrived.wait(60)
        return local_path(self, sha256)

    monkeypatch.setattr(RemoteBlobs, "local_path", slow)
    job, gone = (submit(store, "quick", stored(store, blobs)) for _ in range(2))
    until(dispatcher, lambda: store.jobs.get("t", gone).status == "running")
    store.jobs.cancel("t", gone)
    # Its place is free at once, though its file is still on the way.
    other = submit(store, "quick")
    assert ended(dispatcher, store, other).status == "succeeded"
    assert store.jobs.get("t", job).status == "running"
    arrived.set()
    assert ended(dispatcher, store, job).status == "succeeded"


def test_what_a_job_reads_is_not_evicted(
    dispatcher: Dispatcher, store: Store, blobs: RemoteBlobs, settings: Settings
) -> None:
    job = submit(store, "sleep", stored(store, blobs))
    places = settings.data_dir / "run"
    until(dispatcher, lambda: list(places.glob(f"*/{job}-1/blobs/*")))
    (link,) = places.glob(f"*/{job}-1/blobs/*")
    assert link.read_bytes() == b"data"
    assert link.stat().st_nlink == 2
    store.jobs.cancel("t", job)
    until(dispatcher, lambda: not link.exists())
