"""Both clients against the real application in this process; no worker runs its jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the service is not installed")

from mpsearch import models
from mpsearch.client import (
    AsyncClient,
    Client,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    Retries,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
)
from mpsearch.client.in_process import app_here, app_in_thread
from mpsearch_api.http import create_app
from mpsearch_api.settings import Settings
from mpsearch_api.store import open_store

WEIGHTS = Path(models.__file__).parent / "weights" / "digits-resnet.safetensors"
HERE = "http://127.0.0.1"
BUDGET = {"weight_memory": "0.16x"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("data"), open_jobs=3, open_mode=False)


@pytest.fixture(scope="module")
def store(settings):
    store = open_store(settings)
    yield store
    store.close()


@pytest.fixture(scope="module")
def key(store):
    def make(*scopes: str) -> str:
        return store.keys.create("test", list(scopes))[1]

    return make


@pytest.fixture(scope="module")
def transport(settings, store):
    with app_in_thread(create_app(settings, store=store)) as transport:
        yield transport


@pytest.fixture(scope="module")
def client(transport, key):
    with Client(HERE, api_key=key("read", "write"), transport=transport) as client:
        yield client


def test_uploads_are_stored_listed_and_deleted(client) -> None:
    stored = client.upload_model(WEIGHTS, architecture="digits-resnet")
    assert [one.id for one in client.stored("model")] == [stored.id]
    client.delete(stored)
    assert not list(client.stored("model"))
    with pytest.raises(RefusedError, match="unknown model 'no-such-net'"):
        client.upload_model(WEIGHTS, architecture="no-such-net")


def test_jobs_are_queued_up_to_the_quota_listed_and_cancelled(transport, key) -> None:
    client = Client(HERE, api_key=key("write"), transport=transport, retries=Retries(patience=0))
    jobs = [client.submit("digits-resnet", "digits", budget=BUDGET, seed=s) for s in range(3)]
    with pytest.raises(TooManyRequestsError) as caught:
        client.submit("digits-resnet", "digits", budget=BUDGET, seed=9)
    assert caught.value.retry_after
    assert [job.id for job in client.jobs(status="queued")] == [job.id for job in reversed(jobs)]
    assert [client.cancel(job).status for job in jobs] == ["cancelled"] * 3
    assert [event.status for event in client.events(jobs[0])] == ["queued", "cancelled"]


def test_keys_decide_what_is_allowed_and_seen(client, transport, key) -> None:
    job = client.submit("digits-resnet", "digits", budget=BUDGET)
    with Client(HERE, transport=transport) as nobody, pytest.raises(UnauthorizedError):
        nobody.job(job)
    wrong = Client(HERE, api_key="mps_1_2", transport=transport)
    with pytest.raises(UnauthorizedError):
        wrong.job(job)
    with Client(HERE, api_key=key("read"), transport=transport) as reader:
        with pytest.raises(ForbiddenError, match="write"):
            reader.submit("digits-resnet", "digits", budget=BUDGET)
        with pytest.raises(NotFoundError):  # another key is another tenant
            reader.job(job)
    client.cancel(job)


def test_the_key_of_the_environment_is_used(transport, key, monkeypatch) -> None:
    monkeypatch.setenv("MPSEARCH_SERVER", HERE)
    monkeypatch.setenv("MPSEARCH_API_KEY", key("read"))
    with Client(transport=transport) as client:
        assert list(client.jobs()) == []


def test_without_a_worker_the_service_is_not_ready(client) -> None:
    with pytest.raises(UnreachableError) as caught:
        client.ready()
    assert caught.value.status == 503


def test_the_asynchronous_client_follows_a_job_live(settings, store, key) -> None:
    token = key("read", "write")

    async def main() -> list[str]:
        async with (
            app_here(create_app(settings, store=store)) as transport,
            AsyncClient(HERE, api_key=token, transport=transport, retries=Retries()) as client,
        ):
            job = await client.submit("digits-resnet", "digits", budget=BUDGET)
            seen = []
            async for event in client.events(job):
                seen.append(event.status)
                if event.status == "queued":  # the stream is open, and the job has not ended
                    await client.cancel(job)
            assert (await client.wait(job)).status == "cancelled"
            return seen

    assert asyncio.run(main()) == ["queued", "cancelled"]
