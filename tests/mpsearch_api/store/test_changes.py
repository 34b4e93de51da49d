"""Waiting for jobs to change."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpsearch_api.faults import UnavailableError
from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, bells, open_store
from mpsearch_api.store.bells import PostgresBell
from mpsearch_api.store.contract import a_request
from mpsearch_api.store.port import Update

# Longer than anything here takes on a busy machine; no test waits for it to pass.
LONG = 60.0


def later(action: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(0.2, action)
    timer.start()
    return timer


@pytest.fixture
def other_store(service_settings: Settings, store: Store):
    """The same database as another process has it."""
    other = open_store(service_settings)
    yield other
    other.close()


def test_what_has_changed_already_is_told_at_once(store: Store) -> None:
    job, _ = store.jobs.submit("ann", a_request())
    assert store.changes.wait(job.id, 0, LONG)


def test_nothing_is_told_while_nothing_happens(store: Store) -> None:
    job, _ = store.jobs.submit("ann", a_request())
    other, _ = store.jobs.submit("ann", a_request())
    timer = later(lambda: store.jobs.cancel("ann", other.id))
    assert not store.changes.wait(job.id, 1, 0.6)
    timer.join()


def test_a_job_that_is_gone_has_changed(store: Store) -> None:
    assert store.changes.wait("job_00000000000000000000000000", 0, LONG)
    job, _ = store.jobs.submit("ann", a_request())
    store.jobs.cancel("ann", job.id)
    timer = later(lambda: store.jobs.delete("ann", job.id))
    assert store.changes.wait(job.id, 2, LONG)
    timer.join()


@pytest.mark.parametrize("what", ["claim", "report", "cancel", "complete", "expire"])
def test_every_change_made_elsewhere_is_told(store: Store, other_store: Store, what: str) -> None:
    job, _ = store.jobs.submit("ann", a_request())
    claim = None if what == "claim" else store.jobs.claim("w", 0.0 if what == "expire" else 60.0)
    known = store.jobs.version("ann", job.id)
    actions = {
        "claim": lambda: other_store.jobs.claim("w", 60.0),
        "report": lambda: other_store.jobs.report(claim, [Update("progress", "load", 0.5)]),
        "cancel": lambda: other_store.jobs.cancel("ann", job.id),
        "complete": lambda: other_store.jobs.complete(claim, []),
        "expire": lambda: other_store.jobs.expire(),
    }
    timer = later(actions[what])
    assert store.changes.wait(job.id, known, LONG)
    timer.join()
    assert store.jobs.version("ann", job.id) == known + 1


def test_changes_are_found_though_no_notification_arrives(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path, database_url=postgres_url)
    other = open_store(settings)
    job, _ = other.jobs.submit("ann", a_request())
    with monkeypatch.context() as patched:
        # As behind a pool that gives every transaction another connection.
        patched.setattr(bells, "CHANNEL", "mpsearch_nowhere")
        patched.setattr(PostgresBell, "interval", 0.2)
        deaf = open_store(settings)
        assert not deaf.changes.wait(job.id, 1, 1.0)
    other.jobs.cancel("ann", job.id)
    assert deaf.changes.wait(job.id, 1, LONG)
    other.jobs.claim("w", 60.0)
    second, _ = other.jobs.submit("ann", a_request())
    told: list[bool] = []
    waiter = threading.Thread(target=lambda: told.append(deaf.changes.wait(second.id, 1, LONG)))
    waiter.start()
    time.sleep(0.5)
    assert not told
    other.jobs.cancel("ann", second.id)
    waiter.join(LONG)
    assert told == [True]
    deaf.close()
    other.close()


def test_two_hundred_wait_with_one_thread(store: Store, other_store: Store) -> None:
    made = [store.jobs.submit("ann", a_request())[0].id for _ in range(10)]
    for _ in made:
        other_store.jobs.claim("w", 60.0)
    before = threading.active_count()

    async def wait() -> list[bool]:
        waiting = [asyncio.create_task(store.changes.wait_async(job, 2, LONG)) for job in made * 20]
        await asyncio.sleep(0.3)
        assert threading.active_count() <= before + 1
        for job in made:
            await asyncio.to_thread(other_store.jobs.cancel, "ann", job)
        return await asyncio.gather(*waiting)

    assert asyncio.run(wait()) == [True] * 200


def test_waiting_on_a_loop_ends_with_its_time(store: Store) -> None:
    job, _ = store.jobs.submit("ann", a_request())
    assert not asyncio.run(store.changes.wait_async(job.id, 1, 0.3))


def test_a_waiter_that_gives_up_leaves_nothing_behind(store: Store) -> None:
    job, _ = store.jobs.submit("ann", a_request())

    async def give_up() -> None:
        task = asyncio.create_task(store.changes.wait_async(job.id, 1, LONG))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert store.changes._watches == set()
    store.jobs.cancel("ann", job.id)
    assert store.changes.wait(job.id, 1, LONG)


def test_closing_lets_everybody_go(service_settings: Settings) -> None:
    store = open_store(service_settings)
    job, _ = store.jobs.submit("ann", a_request())
    timer = later(store.close)
    started = time.monotonic()
    assert not store.changes.wait(job.id, 1, LONG)
    assert time.monotonic() - started < LONG
    timer.join()
    assert not store.changes.wait(job.id, 1, LONG)
    store.close()


def test_postgres_may_go_away_and_come_back(postgres_server, tmp_path) -> None:
    url = postgres_server.create_database()
    store = open_store(Settings(data_dir=tmp_path, database_url=url))
    job, _ = store.jobs.submit("ann", a_request())
    told: list[bool] = []
    waiter = threading.Thread(target=lambda: told.append(store.changes.wait(job.id, 1, LONG)))
    waiter.start()
    time.sleep(0.3)
    postgres_server.stop()
    try:
        with pytest.raises(UnavailableError, match="does not answer"):
            store.jobs.get("ann", job.id)
        with pytest.raises(UnavailableError):
            store.jobs.submit("ann", a_request())
        assert "does not answer" in store.ready()
    finally:
        postgres_server.start()
    assert store.ready() is None
    assert store.jobs.get("ann", job.id) == job
    store.jobs.cancel("ann", job.id)
    waiter.join(LONG)
    assert told == [True]
    store.close()
